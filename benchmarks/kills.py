"""Kill a run with SIGKILL at ten random moments, go on with it each time, and compare with one that nothing stopped.

    python benchmarks/kills.py            the pocket, GRPO with a KL penalty, 30 steps, a checkpoint every 3
    python benchmarks/kills.py --kills 3

Prints a table: at which step each process died, from which checkpoint the next went on. The final weights, the
history and the sampled texts have to be equal to the last bit. On one thread: several add gradients up in another
order each time, and even two runs that nothing stops differ then in their last digits.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, EVERY = 30, 3
os.environ["OMP_NUM_THREADS"] = "1"  # before torch, here and in the children


def run(out: str | None):
    from rlcourse import load_policy, train
    from rlcourse.methods import GRPO
    from rlcourse.tasks import Sums

    return train(
        load_policy("pocket"), Sums(), GRPO(beta=0.05, minibatches=2), steps=STEPS, responses=32, seed=3, quiet=True,
        out=out, checkpoint_every=EVERY, sample_every=10, resume=True,
    )  # fmt: skip


def told(run) -> dict:
    """Hashes of all that has to be equal."""
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in run.policy.parameters()))
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]
    texts = json.dumps([rows, sorted(run.samples.items())])
    return {
        "weights": weights.hexdigest()[:16],
        "numbers and texts": hashlib.sha256(texts.encode()).hexdigest()[:16],
    }


def steps_of(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def newest(out: Path) -> str:
    from rlcourse.lm import checkpoints

    return next((folder.name for folder in reversed(checkpoints(out))), "the start")


def main(folder: Path) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    straight, out = told(run(None)), folder / "run"
    # somewhere within the steps that are left, and a moment later: in the middle of one, or of a checkpoint
    targets = sorted(chance.randint(1, STEPS - 1) for _ in range(options.kills))
    print(f"{'kill':>4}  {'killed after':>12}  {'goes on from':>12}")
    for number, target in enumerate(targets, 1):
        process = subprocess.Popen([sys.executable, __file__, "--child", str(out)])
        while process.poll() is None and steps_of(out) < target:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.wait()
        print(f"{number:>4}  {'step ' + str(steps_of(out)):>12}  {newest(out):>12}", flush=True)
    resumed = told(run(str(out)))
    print()
    for name in straight:
        verdict = "equal" if straight[name] == resumed[name] else "DIFFERENT"
        print(f"{name:18} {straight[name]} {resumed[name]} {verdict}")
    return straight != resumed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run(sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(main(Path(folder)))
