"""The evidence behind chapter 15, over several seeds: about 25 minutes on two cores.

Every run gets the same budget of sampled tokens as those that it is compared with; answers that
dynamic sampling throws away are in it. Four parts:

repairs   GRPO, each repair alone and all four, on the exam: three learning rates on two seeds that are
          not reported; the two best of them run on all reported seeds, and the better one is reported
reused    sixteen updates from each batch, so that the clip wakes up: three upper clips, and a token mean
ramps     where the penalty for length begins, against where right answers end
bug       dynamic sampling that looks at shaped rewards, on sums that are nearly out of reach

`--try` runs one seed of each part on a sixth of its budget.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from functools import cache

from many_runs import MACHINERY, at_its_best_rate, over_seeds, reached, together

TOKENS = {"exam": 60_000, "sums": 25_000, "hard": 30_000}
SEEDS = (0, 1, 2, 3, 4)
SEARCH_SEEDS = (100, 101)
RATES = (3e-5, 1e-4, 3e-4)
LR = 1e-4  # where no rate is searched

PLAIN = {
    "group_size": 8, "minibatches": 4,
    "clip_high": 0.2, "dynamic_sampling": False, "token_mean": False, "overlong": 0.0,
}  # fmt: skip
REPAIRS = {
    "GRPO": {},
    "clip higher": {"clip_high": 0.28},
    "dynamic sampling": {"dynamic_sampling": True},
    "token mean": {"token_mean": True},
    "overlong shaping": {"overlong": 0.2},
    "DAPO": {"clip_high": 0.28, "dynamic_sampling": True, "token_mean": True, "overlong": 0.2},
}
REUSED = {
    "upper clip 0.2": {"epochs": 4},
    "upper clip 0.28": {"epochs": 4, "clip_high": 0.28},
    "no upper clip": {"epochs": 4, "clip_high": 1e9},
    "upper clip 0.2, token mean": {"epochs": 4, "token_mean": True},
}
RAMPS = {  # the last number is the limit: worked answers to `sums` have 21 to 26 tokens
    "no ramp": ({"overlong": 0.0}, 40),
    "ramp from 32 to 40": ({"overlong": 0.2}, 40),
    "ramp from 15 to 29": ({"overlong": 0.5}, 29),
}
BUG = {name: {**REPAIRS["DAPO"], "overlong": 0.5} for name in ("asks for verdicts", "asks for rewards")}


@dataclass(frozen=True)
class Spec:
    """One run."""

    arm: str
    lr: float = LR
    seed: int = 0
    share: float = 1.0  # of the budget

    @property
    def task(self) -> str:
        return "sums" if self.arm in RAMPS else "hard" if self.arm in BUG else "exam"


def made(arms: dict) -> dict[str, Spec]:
    return {name: Spec(name) for name in arms}


@cache
def tasks() -> dict:
    from rlcourse.tasks import Sums

    @dataclass(frozen=True)
    class Exam(Sums):
        kinds: tuple = ((3, 2), (5, 2), (3, 3), (5, 3))
        max_tokens = 80

        def draw(self, rng: random.Random):
            return Sums(*rng.choice(self.kinds)).draw(rng)

    return {"exam": Exam(), "sums": Sums(3, 2), "hard": Sums(5, 3)}


def method(arm: str):
    from rlcourse.methods import DAPO, GRPO
    from rlcourse.methods.dapo import soft_overlong_penalty

    @dataclass(frozen=True)
    class AsksForRewards(DAPO):
        """The planted bug: a group is kept when its *shaped* rewards differ."""

        def keep(self, rollout):
            limit = rollout.max_tokens
            penalty = soft_overlong_penalty(rollout.lengths, limit, int(self.overlong * limit))
            shaped = rollout.grouped(rollout.rewards + penalty)
            return shaped.amax(1) > shaped.amin(1)

    if arm == "GRPO":
        return GRPO(minibatches=4)
    changes = RAMPS[arm][0] if arm in RAMPS else (REPAIRS | REUSED | BUG)[arm]
    return (AsksForRewards if arm == "asks for rewards" else DAPO)(**PLAIN | changes)


def measure(spec: Spec) -> dict:
    """Train once; accuracy on 1,024 fresh problems before and after, and the curve in tenths of the budget."""
    import torch

    from rlcourse import load_policy, train
    from rlcourse.evaluate import accuracy

    torch.set_num_threads(1)
    policy, task = load_policy("pocket", device="cpu"), tasks()[spec.task]
    tokens = int(spec.share * TOKENS[spec.task])
    limit = RAMPS[spec.arm][1] if spec.arm in RAMPS else None
    before = accuracy(policy, task, 1024)
    run = train(
        policy,
        task,
        method(spec.arm),
        tokens=tokens,
        lr=spec.lr,
        seed=spec.seed,
        max_tokens=limit,
        quiet=True,
    )
    full = getattr(run.method, "dynamic_sampling", False)
    living = [
        row["prompts_kept"] if full else row["prompts_drawn"] * (1 - row["tied_groups"])
        for row in run.history
        if "loss" in row
    ]
    names = ("correct", "worked", "length", "finished", "entropy")
    return {
        "before": before,
        "after": accuracy(policy, task, 1024),
        "batches": len(living),
        "drawn": sum(run.column("prompts_drawn")),
        "living": sum(living),
        "least_finished": min(run.column("finished")),
        "clip_fraction": run.mean("clip_fraction", len(run.history)),
        "curve": reached(run.history, names, tokens),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--try", action="store_true", dest="just_try", help="one seed, a sixth of the budget")
    if parser.parse_args().just_try:
        specs = [Spec(arm, share=1 / 6) for arm in ("GRPO", "DAPO", "no upper clip", "no ramp", *BUG)]
        for spec, result in together(measure, specs).items():
            print(spec.arm, {name: result[name] for name in result if name != "curve"})
        return
    from rlcourse.bookmaking.evidence import record

    found = {}
    found["repairs"], rates = at_its_best_rate(measure, made(REPAIRS), RATES, SEARCH_SEEDS, SEEDS)
    for part, arms in {"reused": REUSED, "ramps": RAMPS, "bug": BUG}.items():
        found[part] = over_seeds(measure, made(arms), SEEDS)
    for arms in found.values():
        for name, arm in arms.items():
            print(f"{name:28s} lr {arm['lr']:g}  batches {arm['batches']}  after {arm['after']}", flush=True)

    modules = [
        *MACHINERY,
        "rlcourse.tensors", "rlcourse.lm.policy", "rlcourse.lm.llama", "rlcourse.lm.rollout",
        "rlcourse.tasks.ask", "rlcourse.tasks.sums", "rlcourse.methods.ppo", "rlcourse.methods.grpo",
        "rlcourse.methods.dapo", "rlcourse.training.online", "rlcourse.evaluate",
    ]  # fmt: skip
    record(
        "dapo",
        {"tokens": TOKENS, "rates": rates, **found},
        command="python benchmarks/dapo_evidence.py",
        modules=modules,
        checkpoints=["pocket"],
    )


if __name__ == "__main__":
    main()
