"""Every online method on the same sums, with the same number of sampled tokens: `python benchmarks/arena.py`.

Three seeds each. What a method drops (dynamic sampling) or samples beside (ReMax's greedy answers)
counts as sampled; steps in which only the critic learns count too. Two runs at a time, one thread each.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import mean

TOKENS = 40_000
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """One line of the table: a method made by `make(rlcourse.methods)`."""

    make: Callable
    lr: float = 3e-4
    model: str = "pocket"
    bfloat16: bool = False  # answers come from a copy in that precision


# Where a method differs from its own defaults, the reason stands beside it.
ARMS = {
    "REINFORCE": Arm(lambda m: m.REINFORCE()),
    "REINFORCE, batch baseline": Arm(lambda m: m.REINFORCE(baseline="batch")),
    "REINFORCE, running baseline": Arm(lambda m: m.REINFORCE(baseline="running")),
    "ReMax": Arm(lambda m: m.ReMax()),
    "RLOO": Arm(lambda m: m.RLOO()),
    "PPO": Arm(lambda m: m.PPO()),
    "PPO, shared trunk": Arm(lambda m: m.PPO(critic="shared")),
    # a critic this small is pretrained in 10 steps; alpha 0.05 means lambda 0 below 20 tokens; PPO's passes, for the
    # papers' 16 mini-batches would be of eight answers here
    "VC-PPO": Arm(lambda m: m.VCPPO(pretrain=10, epochs=4, minibatches=1)),
    "VAPO": Arm(lambda m: m.VAPO(pretrain=10, alpha=1.0, epochs=4, minibatches=1)),
    "GRPO": Arm(lambda m: m.GRPO()),
    "Dr. GRPO": Arm(lambda m: m.DrGRPO()),
    # 16 optimizer steps a rollout, as in the papers: a gentler rate
    "DAPO": Arm(lambda m: m.DAPO(), lr=1e-4),
    "CISPO": Arm(lambda m: m.CISPO(), lr=1e-4),
    # the paper's clip is for answers of thousands of tokens: the ratio of a short one spreads far wider
    "GSPO": Arm(lambda m: m.GSPO(clip_low=0.03, clip_high=0.04)),
    "GSPO-token": Arm(lambda m: m.GSPO(clip_low=0.03, clip_high=0.04, token=True)),
    "SAPO": Arm(lambda m: m.SAPO()),
    "Scaling GRPO": Arm(lambda m: m.ScalingGRPO()),
    "Scaling GRPO, experts": Arm(lambda m: m.ScalingGRPO(), model="pocket-moe"),
    "GRPO, experts replayed": Arm(lambda m: m.RoutingReplay(m.GRPO(minibatches=4)), model="pocket-moe"),
    "GRPO with TIS, bfloat16 engine": Arm(lambda m: m.TIS(m.GRPO()), bfloat16=True),
}


def measure(name: str, seed: int, tokens: int = TOKENS) -> dict:
    import torch

    from rlcourse import load_policy, methods, train
    from rlcourse.evaluate import accuracy
    from rlcourse.tasks import Sums

    torch.set_num_threads(1)
    arm, task = ARMS[name], Sums()
    policy, engine = load_policy(arm.model, device="cpu"), in_bfloat16 if arm.bfloat16 else None
    before = accuracy(policy, task)
    run = train(
        policy, task, arm.make(methods), tokens=tokens, lr=arm.lr, seed=seed, engine=engine, quiet=True
    )
    first, last = run.history[0], run.history[-1]
    return {
        "method": repr(run.method),
        "before": before,
        "after": accuracy(policy, task),
        **{f"{key} before": first[key] for key in ("entropy", "length")},
        **{f"{key} after": run.mean(key, 3) for key in ("entropy", "length")},
        "steps": last["step"],
        "sampled_tokens": last["sampled_tokens"],
        "seconds": last["seconds"],
    }


def in_bfloat16(policy):
    """The same weights as another engine might hold them."""
    import torch

    twin = policy.copy()
    twin.model.to(torch.bfloat16)
    return twin


def row(name: str, results: list[dict]) -> str:
    """Accuracy of each seed; the rest as means."""
    after = " ".join(f"{r['after']:.2f}" for r in results)
    means = {key: mean(r[key] for r in results) for key in results[0] if key != "method"}
    return (
        f"{name:31s} {ARMS[name].lr:<6g} {means['before']:.2f} -> {after}   "
        f"entropy {means['entropy before']:.2f} -> {means['entropy after']:.3f}   "
        f"length {means['length before']:4.1f} -> {means['length after']:4.1f}   "
        f"{means['steps']:4.0f} steps {means['seconds']:4.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(ARMS), help="names of arms")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--record", action="store_true", help="keep the result as benchmarks/evidence/arena.json"
    )
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    results: dict[str, list[dict]] = {}
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        jobs = {name: [pool.submit(measure, name, seed) for seed in args.seeds] for name in args.only}
        for name, futures in jobs.items():
            results[name] = [future.result() for future in futures]
            print(row(name, results[name]), flush=True)
    if args.record:
        from rlcourse import methods
        from rlcourse.bookmaking.evidence import record

        for method in methods.__all__:
            getattr(methods, method)  # loads its module, so that the stamp covers it
        import rlcourse.evaluate  # noqa: F401
        import rlcourse.training  # noqa: F401

        record(
            "arena",
            {"tokens": TOKENS, "seeds": args.seeds, "arms": results},
            command="python benchmarks/arena.py --record",
            checkpoints=["pocket", "pocket-moe"],
        )


if __name__ == "__main__":
    main()
