"""The same experiment, written for TRL, verl or OpenRLHF: a file a library, field by field.

From a run's config.json comes a folder that the other library runs: the settings, the run's own problems in
their order, the reward, and a pocket model. A setting is there for every number on which the other library's
default might differ. Where a field means something else there, or is missing, a comment says so.

    export("runs/grpo", "verl", "elsewhere").differences
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlcourse.export import openrlhf, trl, verl
from rlcourse.export.experiment import Experiment
from rlcourse.lm.loading import POCKETS, checkpoints

LIBRARIES = {"trl": trl, "verl": verl, "openrlhf": openrlhf}


@dataclass
class Exported:
    """What was written, and in what the experiment is not the same there."""

    files: list[Path]
    differences: list[str]


def empty_of_runs(given: str | Path) -> Path:
    """A folder to write into, and not that of a run, a model or a comparison: those are told by files that would be
    mixed with ours."""
    folder = Path(given)
    if not str(given).strip() or folder.is_file():
        raise ValueError(f"{str(given)!r} names no folder to write into: give another one")
    theirs = [name for name in ("compare.json", "budget.json", "config.json") if (folder / name).exists()]
    if theirs or checkpoints(folder):
        raise ValueError(
            f"{folder} holds a run, a model or a comparison already, with its {(*theirs, 'checkpoint')[0]}: export "
            "into a folder of its own"
        )
    return folder


def export(config: dict | str | Path, to: str, folder: str | Path, data: Sequence = ()) -> Exported:
    """Write a run for another library. `config` is the run's folder, its config.json, or what that holds.

    `data` is what an offline method learned from: a config holds no more of it than a fingerprint.
    """
    if to not in LIBRARIES:
        near = difflib.get_close_matches(to.lower(), LIBRARIES, 1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(LIBRARIES)}"
        raise ValueError(f"no export to {to!r}: {hint}")
    library, run = LIBRARIES[to], Experiment.read(config)
    folder = empty_of_runs(folder)
    if why := library.lacks(run.method):
        names = ", ".join(library.METHODS)
        raise ValueError(
            f"{library.VERSION} cannot run {type(run.method).__name__}: {why}. It can run {names}"
        )
    sheet = library.settings(run)
    files = library.files(run, sheet)
    if run.online:
        files["data.jsonl"] = run.jsonl(map(library.asked, (problem.prompt for problem in run.problems)))
    elif data:
        files["data.jsonl"] = run.jsonl(map(run.told, data))
    else:
        sheet.note(
            "", "data.jsonl is yours to bring: a run's config holds no more of its data than a fingerprint"
        )
    if taken := [name for name in (*files, "model") if (folder / name).exists()]:
        raise ValueError(
            f"{folder / taken[0]} is there already, and may hold changes of yours: choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    if run.pocket:
        shutil.copytree(POCKETS / run.config["policy"], folder / "model")
    return Exported([folder / name for name in files], sheet.differences)
