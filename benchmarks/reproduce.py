"""Does today's code compute what the code did that made the evidence? One seed of several arms, digit by digit.

    python benchmarks/reproduce.py            the stale evidence files
    python benchmarks/reproduce.py grpo dpo   these

A change that computes the same thing another way makes every evidence file stale, and hours of runs would bring back
the same digits. Digits depend on the processor, so the record itself is no judge: the code that the file is stamped
with, from the history, and today's, both run here, on one thread. Where all runs come out equal in *every* number, six
digits each, the file gets today's stamp, and says so: `reproduced` lists the runs. What differs anywhere stays stale,
and its own script has to run again.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from many_runs import MACHINERY

from rlcourse.bookmaking import atomic, stamps
from rlcourse.bookmaking.evidence import FOLDER, as_text, evidence, module_key, rounded
from rlcourse.bookmaking.stale import stale

NAMES = ("arena", "critic", "dapo", "dpo", "grpo", "gspo", "kto", "reward_model")


@dataclass(frozen=True)
class Again:
    """A run of the evidence that can be measured once more."""

    name: str
    arm: dict | list  # what was recorded of it, over all seeds: columns, or a dict a seed
    measure: Callable[..., dict]
    spec: tuple  # what `measure` takes for the first seed
    watched: str = "after"  # its headline

    @property
    def recorded(self) -> dict:
        return first_seed(self.arm)


def first_seed(arm: dict | list) -> dict:
    if isinstance(arm, list):
        return arm[0]
    return {
        key: first_seed(value) if isinstance(value, dict) else value[0]
        for key, value in arm.items()
        if isinstance(value, dict | list)
    }


def runs(name: str) -> list[Again]:
    """What is run again of an evidence file. Only its own script is imported: the stamp covers what is loaded."""
    found = evidence(name)
    made = import_module(name if name == "arena" else f"{name}_evidence")
    arms = found.get("arms", {})
    if name == "arena":
        chosen = ("RLOO", "DAPO", "VAPO", "GRPO, experts replayed", "GRPO with TIS, bfloat16 engine")
        return [Again(arm, arms[arm], made.measure, (arm, 0)) for arm in chosen]
    if name == "grpo":
        return [
            Again(arm, arms[arm], made.measure, (made.Spec(arm.split(",")[0], arms[arm]["lr"], judge=judge),))
            for arm, judge in (("GRPO, rule", "rule"), ("REINFORCE, bonus", "bonus"))
        ]
    if name == "dapo":
        return [
            Again(arm, found[part][arm], made.measure, (made.Spec(arm, found[part][arm]["lr"]),))
            for part, arm in (("repairs", "DAPO"), ("reused", "no upper clip"))
        ]
    if name == "critic":
        return [
            Again(arm, arms[arm], made.measure, (made.Spec(arm, arms[arm]["lr"]),))
            for arm in ("PPO, taught, rule", "PPO, five")
        ]
    if name == "gspo":
        return [
            Again("GSPO, 1e-4", arms["16"]["GSPO"]["0.0001"], made.trained, (made.Spec("GSPO", 16, 1e-4),))
        ]
    if name == "kto":
        return [
            Again(arm, arms[arm], made.measure, (made.Spec(how, down, arms[arm]["lr"]),))
            for arm, how, down in (
                ("KTO, weighted, 1:5", "KTO, weighted", 5),
                ("DPO on pairs, 1:1", "DPO on pairs", 1),
            )
        ]
    if name == "dpo":
        arm = arms["online, one pass"]
        return [
            Again("online, one pass", arm, made.measure, (made.Spec("online", 0.0, arm["lr"], epochs=1),))
        ]
    spec = made.Trained(steps=40, lr=3 * made.LR)  # reward_model
    return [
        Again("150 pairs", arms["150 pairs"], made.judged, (made.Judged(150),), watched="accuracy"),
        Again("PPO against it", arms["policy, 0 a word"], made.trained, (spec,)),
    ]


def differences(before: dict, after: dict) -> list[str]:
    """The numbers that came out otherwise; seconds are the machine's."""
    before, after = rounded(before), rounded(after)
    return [
        f"{key}: {before.get(key)} before, {after.get(key)} now"
        for key in sorted((before.keys() | after.keys()) - {"seconds", "seeds"})
        if before.get(key) != after.get(key)
    ]


def recorder(name: str, folder: Path) -> Path:
    """The files of the last commit that wrote the record and whose code is the one that it is stamped with."""
    file = f"benchmarks/evidence/{name}.json"
    stamp = json.loads((FOLDER / f"{name}.json").read_text())["stamp"]
    for commit in git("log", "--format=%H", "--", file).decode().split():
        tree = folder / commit
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "rlcourse", "benchmarks"))) as files:
            files.extractall(tree, filter="data")
        if not stamps.changed(stamp, tree):
            return tree
        shutil.rmtree(tree)
    raise SystemExit(f"no commit here holds the code that {file} is stamped with: is the history complete?")


def git(*command: str) -> bytes:
    return subprocess.run(["git", "-C", str(stamps.ROOT), *command], capture_output=True, check=True).stdout


# In a process of its own, with the library of the tree it stands in.
MEASURE = """
import json, sys, torch
torch.set_num_threads(1)
import reproduce
from rlcourse.bookmaking import stamps
from rlcourse.bookmaking.evidence import rounded
found = {run.name: rounded(run.measure(*run.spec)) for run in reproduce.runs(sys.argv[1])}
print("\\n" + json.dumps([found, sorted(stamps.loaded())]))
"""


def measured(name: str, tree: Path) -> tuple[dict, list[str]]:
    """Each run's numbers by the code in a tree, and the keys of what it has loaded."""
    path = os.pathsep.join([str(tree), str(tree / "benchmarks")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, name]
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def reproduce(name: str) -> bool:
    """Run the file's runs by both codes; where all are equal, stamp it with today's."""
    with tempfile.TemporaryDirectory() as folder:
        before, _ = measured(name, recorder(name, Path(folder)))
    now, loaded = measured(name, stamps.ROOT)
    differ = {run: differences(before[run], now[run]) for run in before}
    for run, found in differ.items():
        print(f"{name}: {run}: {found[0] if found else 'equal'}", flush=True)
    if any(differ.values()):
        return False
    path = FOLDER / f"{name}.json"
    file = json.loads(path.read_text())
    keys = set(file["stamp"]) | set(map(module_key, MACHINERY))
    if not all(map(stamps.fingerprint, keys)):  # files have moved: what is loaded now is what made it
        keys = {key for key in keys if stamps.fingerprint(key)} | set(loaded)
    file |= {"stamp": stamps.stamp(keys), "reproduced": [f"{run}, first seed" for run in now]}
    atomic.write(path, as_text(file))
    return True


def main() -> int:
    names = sys.argv[1:] or [name for name in NAMES if f"benchmarks/evidence/{name}.json" in stale()]
    if unknown := set(names) - set(NAMES):
        raise SystemExit(f"no runs of {', '.join(unknown)} here: there are {', '.join(NAMES)}")
    equal = [reproduce(name) for name in names]  # all of them, also after one that differs
    return int(not all(equal))


if __name__ == "__main__":
    sys.exit(main())
