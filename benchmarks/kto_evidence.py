"""The evidence behind chapter 11, over several seeds: thumbs up and down in unequal numbers.

There are always 840 verdicts on the SFT policy's own replies. KTO takes them as they are, DPO the pairs that can be
made of them: a reply with thumbs up and one with thumbs down to the same customer, each used once. Three learning
rates are tried for each arm on a seed that is not reported; the two best of them then run on all reported seeds,
and the better one is reported.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

from desk_runs import looked_at, sft
from many_runs import MACHINERY, at_its_best_rate

VERDICTS = 840
SEEDS = (0, 1, 2, 3, 4)
SEARCH_SEEDS = (100,)
RATES = (3e-5, 1e-4, 3e-4)
DOWN = (1, 5, 20)  # thumbs down for each thumb up
METHODS = ("KTO", "KTO, weighted", "DPO on pairs", "SFT on thumbs up")


@dataclass(frozen=True)
class Spec:
    how: str
    down: int
    lr: float = 3e-4
    seed: int = 0


@cache
def pool(seed: int) -> tuple[list, list]:
    """All verdicts on four replies each to 600 customers: thumbs up, thumbs down."""
    from random import Random

    from rlcourse.tasks import Annotator, Helpdesk, Verdict

    rng, annotator = Random(f"pool/{seed}"), Annotator(bar=0.5)
    offered = Helpdesk().candidates(4, sft(), rng)
    ups, downs = [], []
    for _ in range(600):
        ticket, replies = next(offered)
        for reply in replies:
            good = annotator.approves(ticket, reply, rng)
            (ups if good else downs).append(Verdict(ticket.prompt, reply, good))
    return ups, downs


def thumbs(down: int, seed: int) -> list:
    """840 of them, `down` thumbs down for each thumb up."""
    from random import Random

    rng, (ups, downs), n_up = Random(f"thumbs/{seed}"), pool(seed), VERDICTS // (1 + down)
    chosen = rng.sample(ups, n_up) + rng.sample(downs, VERDICTS - n_up)
    rng.shuffle(chosen)
    return chosen


def pairs_of(verdicts: list) -> list:
    """The pairs that can be made: one up and one down to the same customer, each verdict used once."""
    from rlcourse.tasks import Pair

    by_prompt = defaultdict(lambda: {True: [], False: []})
    for verdict in verdicts:
        by_prompt[verdict.prompt][verdict.good].append(verdict.response)
    return [
        Pair(prompt, up, down)
        for prompt, said in by_prompt.items()
        for up, down in zip(said[True], said[False], strict=False)
    ]


def measure(spec: Spec) -> dict:
    from rlcourse import fit
    from rlcourse.methods import DPO, KTO, SFT
    from rlcourse.tasks import Demonstration

    data = thumbs(spec.down, spec.seed)
    # weighted: the good ones' total weight is 4/3 of the bad ones', the upper end of the paper's advice
    method = KTO(desirable_weight=4 / 3 * spec.down if spec.how == "KTO, weighted" else 1.0)
    if spec.how == "DPO on pairs":
        data, method = pairs_of(data), DPO(beta=0.5)
    elif spec.how == "SFT on thumbs up":
        data, method = [Demonstration(v.prompt, v.response) for v in data if v.good], SFT()
    policy = sft().copy()
    run = fit(policy, data, method, epochs=2, lr=spec.lr, reference=sft(), seed=spec.seed, quiet=True)
    last = run.history[-5:]
    z = [row["reference_kl"] for row in last if "reference_kl" in row]
    return {**looked_at(policy), "examples": len(data), "reference_kl": sum(z) / len(z) if z else None}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    from rlcourse.bookmaking.evidence import record

    arms = {f"{how}, 1:{down}": Spec(how, down) for down in DOWN for how in METHODS}
    measured, tried = at_its_best_rate(measure, arms, RATES, SEARCH_SEEDS, SEEDS)
    for name, arm in measured.items():
        print(
            f"{name:24s} lr {arm['lr']:g}  n {arm['examples']}  gold {[round(g, 2) for g in arm['gold']]}",
            flush=True,
        )

    modules = [
        *MACHINERY,
        "rlcourse.tensors", "rlcourse.lm.policy", "rlcourse.lm.llama", "rlcourse.lm.rollout",
        "rlcourse.tasks.helpdesk", "rlcourse.tasks.annotators", "rlcourse.tasks.desk", "rlcourse.tasks.ask",
        "rlcourse.methods.offline", "rlcourse.methods.sft", "rlcourse.methods.reward_model", "rlcourse.methods.dpo",
        "rlcourse.methods.kto", "rlcourse.training.offline", "rlcourse.evaluate.report",
    ]  # fmt: skip
    record(
        "kto",
        {"verdicts": VERDICTS, "start": looked_at(sft()), "rates": tried, "arms": measured},
        command="python benchmarks/kto_evidence.py",
        modules=modules,
        checkpoints=["pocket"],
    )


if __name__ == "__main__":
    main()
