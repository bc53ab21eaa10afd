"""The evidence behind chapter 15, over several seeds: about 20 minutes on two cores.

    python benchmarks/dapo_evidence.py

Every run gets the same budget of sampled tokens; answers that dynamic sampling throws away are in it.
Three learning rates are tried for GRPO, for each repair alone and for all four, on two seeds that are
not reported; the two best of them then run on all reported seeds, and the better one is reported.
Two runs at a time, one thread each.
"""

from __future__ import annotations

import argparse
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context

TOKENS = 60_000
HARD_TOKENS = 30_000
SEEDS = (0, 1, 2, 3, 4)
BUG_SEEDS = (0, 1, 2)
SEARCH_SEEDS = (100, 101)
RATES = (3e-5, 1e-4, 3e-4)
UPDATES = 4  # optimizer steps a batch, and with REUSE passes over it four times as many
REUSE = 4

OFF = {"clip_high": 0.2, "dynamic_sampling": False, "token_mean": False, "overlong": 0.0}
REPAIRS = {
    "GRPO": {},
    "clip higher": {"clip_high": 0.28},
    "dynamic sampling": {"dynamic_sampling": True},
    "token mean": {"token_mean": True},
    "overlong shaping": {"overlong": 0.2},
}
REPAIRS["DAPO"] = {name: value for repair in REPAIRS.values() for name, value in repair.items()}
REUSED = {
    "upper clip 0.2": {},
    "upper clip 0.28": {"clip_high": 0.28},
    "no upper clip": {"clip_high": 1e9},
    "upper clip 0.2, token mean": {"token_mean": True},
}


@dataclass(frozen=True)
class Spec:
    """One run. `task` is "exam", or "hard": five terms of three digits, where hardly an answer is right."""

    arm: str
    lr: float = 1e-4
    seed: int = 0
    task: str = "exam"


@cache
def exam():
    from rlcourse.tasks import Sums

    @dataclass(frozen=True)
    class Exam(Sums):
        kinds: tuple = ((3, 2), (5, 2), (3, 3), (5, 3))
        max_tokens = 80

        def draw(self, rng: random.Random):
            return Sums(*rng.choice(self.kinds)).draw(rng)

    return Exam()


def method(arm: str):
    from rlcourse.methods import DAPO, GRPO
    from rlcourse.methods.dapo import soft_overlong_penalty

    @dataclass(frozen=True)
    class AskingForRewards(DAPO):
        """The planted bug: a group is kept when its *shaped* rewards differ."""

        def keep(self, rollout):
            cache = int(self.overlong * rollout.max_tokens)
            penalty = soft_overlong_penalty(rollout.lengths, rollout.max_tokens, cache)
            shaped = rollout.grouped(rollout.rewards + penalty)
            return shaped.amax(1) > shaped.amin(1)

    if arm == "GRPO":
        return GRPO(minibatches=UPDATES)
    if arm in REPAIRS:
        return DAPO(group_size=8, minibatches=UPDATES, **OFF | REPAIRS[arm])
    if arm in REUSED:
        return DAPO(group_size=8, minibatches=UPDATES, epochs=REUSE, **OFF | REUSED[arm])
    kind = {"asks for verdicts": DAPO, "asks for rewards": AskingForRewards}[arm]
    return kind(group_size=8, minibatches=UPDATES, overlong=0.5)


def measure(spec: Spec) -> dict:
    """Train once; accuracy on 1,024 fresh problems before and after, and the curve between, in tenths of the budget."""
    import torch

    from rlcourse import load_policy, train
    from rlcourse.evaluate import accuracy
    from rlcourse.tasks import Sums

    torch.set_num_threads(1)
    hard = spec.task == "hard"
    policy, task, tokens = (
        load_policy("pocket", device="cpu"),
        Sums(5, 3) if hard else exam(),
        HARD_TOKENS if hard else TOKENS,
    )
    before = accuracy(policy, task, 1024)
    run = train(policy, task, method(spec.arm), tokens=tokens, lr=spec.lr, seed=spec.seed, quiet=True)
    ends = [(tenth + 1) * tokens / 10 for tenth in range(10)]
    last = [max((row for row in run.history if row["sampled_tokens"] <= end), default=run.history[0],
                key=lambda row: row["step"]) for end in ends]  # fmt: skip
    names = ("correct", "worked", "length", "finished", "entropy", "clip_fraction")
    full = getattr(run.method, "dynamic_sampling", False)
    living = [
        row["prompts_kept"] if full else row["prompts_drawn"] * (1 - row["tied_groups"])
        for row in run.history
    ]
    return {
        "before": before,
        "after": accuracy(policy, task, 1024),
        "batches": len(run.history),
        "drawn": sum(run.column("prompts_drawn")),
        "living": sum(living),
        "least_finished": min(run.column("finished")),
        "curve": {name: [row[name] for row in last] for name in names},
    }


def together(specs: list[Spec]) -> list[dict]:
    os.environ["OMP_NUM_THREADS"] = "1"  # two processes of two threads each would fight for two cores
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(measure, specs))


def searched(arms: list[str]) -> dict[str, dict[float, float]]:
    """For each arm, the mean accuracy of every learning rate over the search seeds."""
    specs = [Spec(arm, lr, seed) for arm in arms for lr in RATES for seed in SEARCH_SEEDS]
    after = dict(zip(specs, [result["after"] for result in together(specs)], strict=True))
    return {
        arm: {lr: sum(after[Spec(arm, lr, s)] for s in SEARCH_SEEDS) / len(SEARCH_SEEDS) for lr in RATES}
        for arm in arms
    }


def columns(specs: list[Spec], results: dict[Spec, dict]) -> dict:
    """Columns over seeds: what the chapter reads."""
    rows = [results[spec] for spec in specs]
    return {
        "lr": specs[0].lr,
        "seeds": [spec.seed for spec in specs],
        **{name: [row[name] for row in rows] for name in rows[0] if name != "curve"},
        "curve": {name: [row["curve"][name] for row in rows] for name in rows[0]["curve"]},
    }


def measured(runs: dict) -> dict:
    """By arm; where an arm ran at two rates, the one with the better mean accuracy."""
    specs = [spec for each in runs.values() for spec in each]
    results = dict(zip(specs, together(specs), strict=True))
    best: dict[str, dict] = {}
    for (arm, _), each in runs.items():
        found = columns(each, results)
        if arm not in best or sum(found["after"]) > sum(best[arm]["after"]):
            best[arm] = found
    return best


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    from rlcourse.bookmaking.evidence import record

    tried = searched(list(REPAIRS))
    finals = {arm: sorted(by_rate, key=by_rate.get)[-2:] for arm, by_rate in tried.items()}
    repairs = measured(
        {(arm, lr): [Spec(arm, lr, seed) for seed in SEEDS] for arm in REPAIRS for lr in finals[arm]}
    )
    reused = measured({(arm, 1e-4): [Spec(arm, seed=seed) for seed in SEEDS] for arm in REUSED})
    bug = measured({
        (arm, 1e-4): [Spec(arm, seed=seed, task="hard") for seed in BUG_SEEDS]
        for arm in ("asks for verdicts", "asks for rewards")
    })  # fmt: skip
    for name, arm in (repairs | reused | bug).items():
        print(f"{name:28s} lr {arm['lr']:g}  batches {arm['batches']}  after {arm['after']}", flush=True)

    modules = [
        "rlcourse.tensors", "rlcourse.lm.policy", "rlcourse.lm.llama", "rlcourse.lm.rollout",
        "rlcourse.tasks.ask", "rlcourse.tasks.sums", "rlcourse.methods.ppo", "rlcourse.methods.grpo",
        "rlcourse.methods.dapo", "rlcourse.training.online", "rlcourse.evaluate",
    ]  # fmt: skip
    record(
        "dapo",
        {
            "tokens": TOKENS,
            "hard_tokens": HARD_TOKENS,
            "rates": tried,
            "repairs": repairs,
            "reused": reused,
            "bug": bug,
        },
        command="python benchmarks/dapo_evidence.py",
        modules=modules,
        checkpoints=["pocket"],
    )


if __name__ == "__main__":
    main()
