"""Does today's code still make the recorded numbers? One seed of several arms of every evidence file, digit by digit.

    python benchmarks/reproduce.py            the stale evidence files
    python benchmarks/reproduce.py grpo dpo   these

A change that computes the same thing another way makes every evidence file stale, and hours of runs would
bring back the same digits. So a file whose runs all come out equal to its record in *every* recorded number,
six digits each, gets today's stamp, and says so: `reproduced` lists the runs. What differs anywhere stays
stale, and its own script has to run again. Digits depend on the processor: this works on a machine of the
kind that recorded them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

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


def differences(recorded: dict, measured: dict) -> list[str]:
    """The numbers that came out otherwise; seconds are the machine's."""
    measured = rounded(measured)
    return [
        f"{key}: {recorded.get(key)} was recorded, {measured.get(key)} is measured"
        for key in sorted((recorded.keys() | measured.keys()) - {"seconds", "seeds"})
        if recorded.get(key) != measured.get(key)
    ]


def reproduce(name: str) -> bool:
    """Run the file's runs again; where all are equal, stamp it with today's code."""
    equal = []
    for run in runs(name):
        differ = differences(run.recorded, run.measure(*run.spec))
        print(f"{name}: {run.name}: {'equal' if not differ else differ[0]}", flush=True)
        if differ:
            return False
        equal.append(run.name)
    path = FOLDER / f"{name}.json"
    file = json.loads(path.read_text())
    keys = {key for key in file["stamp"] if stamps.fingerprint(key)} | set(map(module_key, MACHINERY))
    file |= {"stamp": stamps.stamp(keys), "reproduced": [f"{run}, first seed" for run in equal]}
    atomic.write(path, as_text(file))
    return True


def main() -> int:
    names = sys.argv[1:] or [name for name in NAMES if f"benchmarks/evidence/{name}.json" in stale()]
    if unknown := set(names) - set(NAMES):
        raise SystemExit(f"no runs of {', '.join(unknown)} here: there are {', '.join(NAMES)}")
    if len(names) == 1:
        return not reproduce(names[0])
    # a process for each: the stamp covers the modules that its runs have loaded, and no others
    codes = [subprocess.call([sys.executable, __file__, name]) for name in names]
    return int(any(codes))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    sys.exit(main())
