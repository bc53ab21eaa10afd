"""What the evidence scripts share: many runs, two at a time, and a fair choice of learning rates.

A script says what one run is (a frozen dataclass with `lr` and `seed`) and how it is measured (a function
of it that returns a dict with the accuracy "after").
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from statistics import mean

# What every run goes through, whatever its method: part of the stamp of each file.
MACHINERY = ["rlcourse.lm.loading", "rlcourse.training.precision", "rlcourse.training.processes"]


def together(measure: Callable, specs: Sequence) -> dict:
    """What `measure` returns for each, two processes at a time, one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"  # two processes of two threads each would fight for two cores
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return dict(zip(specs, pool.map(measure, specs), strict=True))


def tenths(history: list[dict], tokens: int) -> list[list[dict]]:
    """The steps of a run by the tenth of its budget in which they ended."""
    parts: list[list[dict]] = [[] for _ in range(10)]
    for row in history:
        parts[min(9, int(10 * row["sampled_tokens"] / tokens))].append(row)
    return parts


def reached(history: list[dict], names: Sequence[str], tokens: int, spent: int = 0) -> dict[str, list]:
    """Where a run stood after each tenth of its budget; `spent` is what was sampled before it began."""
    last = [
        (
            [row for row in history if spent + row["sampled_tokens"] <= tokens * (tenth + 1) / 10]
            or history[:1]
        )[-1]
        for tenth in range(10)
    ]
    return {name: [row[name] for row in last] for name in names}


def columns(rows: list[dict]) -> dict:
    """A list of dicts as a dict of lists; nested dicts likewise."""
    return {
        key: columns([row[key] for row in rows]) if isinstance(value, dict) else [row[key] for row in rows]
        for key, value in rows[0].items()
    }


def over_seeds(measure: Callable, arms: dict, seeds: Sequence[int]) -> dict:
    """Every arm on every seed: columns over seeds, what a chapter reads."""
    specs = {name: [replace(arm, seed=seed) for seed in seeds] for name, arm in arms.items()}
    results = together(measure, [spec for each in specs.values() for spec in each])
    return {
        name: {"lr": each[0].lr, "seeds": list(seeds), **columns([results[spec] for spec in each])}
        for name, each in specs.items()
    }


def at_its_best_rate(
    measure: Callable, arms: dict, rates: Sequence[float], search_seeds: Sequence[int], seeds: Sequence[int]
) -> tuple[dict, dict]:
    """Every arm at its best learning rate, and what each rate gave in the search.

    The search runs on seeds that are not reported. Two seeds alone choose badly where the spread is wide,
    and no parent must lose by that: so the two best rates run on all reported seeds, and the better counts.
    """
    tries = {(name, lr): replace(arm, lr=lr) for name, arm in arms.items() for lr in rates}
    found = over_seeds(measure, tries, search_seeds)
    tried = {name: {lr: mean(found[name, lr]["after"]) for lr in rates} for name in arms}
    finals = {
        (name, lr): tries[name, lr] for name in arms for lr in sorted(tried[name], key=tried[name].get)[-2:]
    }
    measured = over_seeds(measure, finals, seeds)
    best = {
        name: max(
            (each for (n, _), each in measured.items() if n == name), key=lambda arm: mean(arm["after"])
        )
        for name in arms
    }
    return best, tried
