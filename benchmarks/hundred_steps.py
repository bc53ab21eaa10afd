"""`train(load_policy("pocket"), Sums(), GRPO(), steps=100, seed=s)` for five seeds: accuracy before and after, seconds.

Run it on a quiet machine: `python benchmarks/hundred_steps.py` (about three minutes on two cores).
"""

import time

from rlcourse import load_policy, train
from rlcourse.evaluate import accuracy
from rlcourse.methods import GRPO
from rlcourse.tasks import Sums


def main() -> None:
    for seed in range(5):
        policy = load_policy("pocket", device="cpu")
        before, started = accuracy(policy, Sums()), time.perf_counter()
        run = train(policy, Sums(), GRPO(), steps=100, seed=seed, quiet=True)
        seconds = time.perf_counter() - started
        print(
            f"seed {seed}  accuracy {before:.3f} -> {accuracy(policy, Sums()):.3f}  {seconds:.1f} s  "
            f"worked {run.history[0]['worked']:.2f} -> {run.mean('worked'):.2f}  "
            f"length {run.history[0]['length']:.1f} -> {run.mean('length'):.1f}  "
            f"entropy {run.history[0]['entropy']:.2f} -> {run.mean('entropy'):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
