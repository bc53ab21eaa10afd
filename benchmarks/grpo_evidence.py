"""The evidence behind chapter 13, over several seeds: `make evidence` (about 25 minutes on two cores).

Every run gets the same budget of sampled tokens. Each method gets the best of three learning
rates, chosen on seeds that are not reported. Two runs at a time, one thread each.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

TOKENS = 200_000
SEEDS = (0, 1, 2, 3, 4)
SEARCH_SEEDS = (100, 101)
RATES = (1e-4, 3e-4, 1e-3)
NOISE = (0.0, 0.1, 0.2, 0.3)
METHODS = ("GRPO", "REINFORCE", "REINFORCE with a batch baseline")


@dataclass(frozen=True)
class Spec:
    """One run."""

    method: str
    lr: float
    seed: int
    model: str = "pocket"
    noise: float = 0.0


class NoisyRule:
    """The rule's verdict, turned round with probability `flip`."""

    def __init__(self, flip: float, seed: int):
        import torch

        self.flip, self.generator = flip, torch.Generator().manual_seed(seed)

    def __call__(self, rollout):
        import torch

        turned = torch.rand(len(rollout), generator=self.generator) < self.flip
        return (rollout.correct ^ turned).float()

    def __repr__(self) -> str:
        return f"NoisyRule({self.flip})"


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
    policy = load_policy(spec.model, device="cpu")
    judge = NoisyRule(spec.noise, spec.seed) if spec.noise else None
    before = accuracy(policy, Sums())
    run = train(
        policy, Sums(judge=judge), method(spec.method), tokens=TOKENS, lr=spec.lr, seed=spec.seed, quiet=True
    )
    tenths = [[] for _ in range(10)]
    for row in run.history:
        tenths[min(9, int(10 * row["sampled_tokens"] / TOKENS))].append(row)
    curve = {
        name: [sum(row[name] for row in part) / len(part) for part in tenths]
        for name in ("correct", "worked", "length", "entropy")
    }
    return {
        "before": before,
        "after": accuracy(policy, Sums()),
        "steps": len(run.history),
        "curve": curve,
        "tied_groups": run.mean("tied_groups", 10) if "tied_groups" in run.history[-1] else None,
    }


def together(specs: list[Spec]) -> list[dict]:
    os.environ["OMP_NUM_THREADS"] = "1"  # two processes of two threads each would fight for two cores
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(measure, specs))


def best_rates() -> dict[str, dict]:
    specs = [Spec(name, lr, seed) for name in METHODS for lr in RATES for seed in SEARCH_SEEDS]
    found: dict[str, dict[float, list[float]]] = {name: {lr: [] for lr in RATES} for name in METHODS}
    for spec, result in zip(specs, together(specs), strict=True):
        found[spec.method][spec.lr].append(result["after"])
    return {
        name: {"lr": max(RATES, key=lambda lr: sum(by_rate[lr])), "searched": by_rate}
        for name, by_rate in found.items()
    }


def collect(specs: list[Spec], results: list[dict]) -> dict:
    """Columns over seeds: what a chapter reads."""
    return {
        "lr": specs[0].lr,
        "seeds": [spec.seed for spec in specs],
        **{
            name: [result[name] for result in results] for name in ("before", "after", "steps", "tied_groups")
        },
        "curve": {name: [result["curve"][name] for result in results] for name in results[0]["curve"]},
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    from rlcourse.bookmaking.evidence import record

    rates = best_rates()
    print({name: found["lr"] for name, found in rates.items()}, flush=True)
    grpo_lr = rates["GRPO"]["lr"]
    arms = {name: [Spec(name, rates[name]["lr"], seed) for seed in SEEDS] for name in METHODS}
    arms["control"] = [Spec("GRPO", grpo_lr, seed, model="pocket-direct") for seed in SEEDS]
    for flip in NOISE[1:]:
        arms[f"noise {flip}"] = [Spec("GRPO", grpo_lr, seed, noise=flip) for seed in SEEDS[:3]]
    specs = [spec for arm in arms.values() for spec in arm]
    results = dict(zip(specs, together(specs), strict=True))
    measured = {name: collect(arm, [results[spec] for spec in arm]) for name, arm in arms.items()}
    for name, arm in measured.items():
        print(f"{name:35s} lr {arm['lr']:g}  before {arm['before'][0]:.2f}  after {arm['after']}", flush=True)

    modules = [
        "rlcourse.tensors", "rlcourse.kl", "rlcourse.lm.policy", "rlcourse.lm.llama", "rlcourse.lm.rollout",
        "rlcourse.tasks.sums", "rlcourse.methods.reinforce", "rlcourse.methods.ppo", "rlcourse.methods.grpo",
        "rlcourse.training.online", "rlcourse.evaluate",
    ]  # fmt: skip
    record(
        "grpo",
        {"tokens": TOKENS, "rates": {name: rates[name]["searched"] for name in METHODS}, "arms": measured},
        command="python benchmarks/grpo_evidence.py",
        modules=modules,
        checkpoints=["pocket", "pocket-direct"],
    )


if __name__ == "__main__":
    main()
