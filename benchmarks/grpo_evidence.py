"""The evidence behind chapter 13, over several seeds: `make evidence` (about 15 minutes on two cores).

Every run gets the same budget of sampled tokens. Four learning rates are tried for each arm on two
seeds that are not reported; the two best of them then run on all reported seeds, and the better one
is reported.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from many_runs import MACHINERY, at_its_best_rate, over_seeds, tenths

TOKENS = 60_000
SEEDS = (0, 1, 2, 3, 4)
SEARCH_SEEDS = (100, 101)
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
NOISE = (0.1, 0.2, 0.3)
METHODS = ("GRPO", "REINFORCE", "REINFORCE with a batch baseline")


@dataclass(frozen=True)
class Spec:
    """One run. `judge` is "rule", "bonus", or "noise 0.1"."""

    method: str
    lr: float = 3e-4
    seed: int = 0
    model: str = "pocket"
    judge: str = "rule"


class Bonus:
    """The rule's verdict plus a bonus of 0 to 9 points that depends on the question and on nothing else."""

    def __call__(self, rollout):
        import torch

        bonus = torch.tensor([float(problem.answer % 10) for problem in rollout.problems])
        return rollout.correct.float() + bonus[rollout.owner]


class Noisy:
    """The rule's verdict, turned round with probability `flip`."""

    def __init__(self, flip: float, seed: int):
        import torch

        self.flip, self.generator = flip, torch.Generator().manual_seed(seed)

    def __call__(self, rollout):
        import torch

        turned = torch.rand(len(rollout), generator=self.generator) < self.flip
        return (rollout.correct ^ turned).float()


def judge_of(spec: Spec):
    if spec.judge == "rule":
        return None
    return Bonus() if spec.judge == "bonus" else Noisy(float(spec.judge.split()[1]), spec.seed)


def method(name: str):
    from rlcourse.methods import GRPO, REINFORCE

    return {
        "GRPO": GRPO(),
        "REINFORCE": REINFORCE(),
        "REINFORCE with a batch baseline": REINFORCE(baseline="batch"),
    }[name]


def measure(spec: Spec) -> dict:
    """Train once; accuracy on 512 fresh problems before and after, and the curve between, in tenths of the budget."""
    import torch

    from rlcourse import load_policy, train
    from rlcourse.evaluate import accuracy
    from rlcourse.tasks import Sums

    torch.set_num_threads(1)
    policy, task = load_policy(spec.model, device="cpu"), Sums(judge=judge_of(spec))
    before = accuracy(policy, Sums())
    run = train(policy, task, method(spec.method), tokens=TOKENS, lr=spec.lr, seed=spec.seed, quiet=True)
    curve = {
        name: [sum(row[name] for row in part) / len(part) for part in tenths(run.history, TOKENS)]
        for name in ("correct", "worked", "length", "entropy")
    }
    return {
        "before": before,
        "after": accuracy(policy, Sums()),
        "steps": len(run.history),
        "curve": curve,
        "tied_groups": run.mean("tied_groups", 10) if "tied_groups" in run.history[-1] else None,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    from rlcourse.bookmaking.evidence import record

    arms = {f"{m}, {judge}": Spec(m, judge=judge) for m in METHODS for judge in ("rule", "bonus")}
    arms["control"] = Spec("GRPO", model="pocket-direct")
    measured, tried = at_its_best_rate(measure, arms, RATES, SEARCH_SEEDS, SEEDS)
    lr = measured["GRPO, rule"]["lr"]
    noisy = {f"noise {flip}": Spec("GRPO", lr, judge=f"noise {flip}") for flip in NOISE}
    measured |= over_seeds(measure, noisy, SEEDS)
    for name, arm in measured.items():
        print(f"{name:40s} lr {arm['lr']:g}  before {arm['before'][0]:.2f}  after {arm['after']}", flush=True)

    modules = [
        *MACHINERY,
        "rlcourse.tensors", "rlcourse.kl", "rlcourse.lm.policy", "rlcourse.lm.llama", "rlcourse.lm.rollout",
        "rlcourse.tasks.sums", "rlcourse.methods.reinforce", "rlcourse.methods.ppo", "rlcourse.methods.grpo",
        "rlcourse.training.online", "rlcourse.evaluate",
    ]  # fmt: skip
    record(
        "grpo",
        {"tokens": TOKENS, "rates": tried, "arms": measured},
        command="python benchmarks/grpo_evidence.py",
        modules=modules,
        checkpoints=["pocket", "pocket-direct"],
    )


if __name__ == "__main__":
    main()
