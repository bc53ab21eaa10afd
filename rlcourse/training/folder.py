"""The folder of a run. Whatever moment the process is killed at, what stands there makes sense.

    config.json     what the run is: it may not change when the run is resumed
    budget.json     how long it goes on and how it is laid out in memory: that may
    metrics.jsonl   a line a step
    samples.jsonl   a line for each answer to a watched prompt
    step-000100/    the newest checkpoint: a model that `load_policy` takes, with all that a resumed run needs
    .lock           held by the one process that may write here; after it, however it ended, it says nothing

Files are replaced whole, or grow by whole lines.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from rlcourse import documents
from rlcourse.lm import Policy, Scorer, checkpoints
from rlcourse.training import checkpoint
from rlcourse.training.processes import Alone, first
from rlcourse.training.run import Run

FREE = ("rlcourse",)  # of the config: a newer version may go on with an older one's run
HELD: set[tuple[Path, int]] = set()  # the folders that this process writes, and in which thread
# what stands in a folder before the first step
BEGINNINGS = {f"{name}.json" for name in ("config", "budget", "compare", "before")} | {
    f"{name}.jsonl" for name in ("metrics", "samples", "data")
}


def described(thing) -> str:
    """Its repr, without the address that a function has in this one process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def settings(policy: Policy) -> dict:
    """Of a config: what loads the policy again."""
    adapter = next(iter(getattr(policy.model, "peft_config", {}).values()), None)
    return {
        "policy": policy.name,
        "dtype": str(next(policy.model.parameters()).dtype).removeprefix("torch."),
        "lora": adapter and adapter.r,
    }


def fingerprint(policy: Policy | None) -> str | None:
    """Tells a model from what training has made of it, by a few of each tensor's numbers."""
    if policy is None:
        return None
    few = [p.detach().flatten()[:64].float().cpu() for p in policy.model.parameters()]
    return hashlib.sha256(torch.cat(few).numpy().tobytes()).hexdigest()[:12]


# ---- one writer at a time


def one_writer(loop: Callable) -> Callable:
    """A loop that writes into `out`, and is alone in it."""

    @functools.wraps(loop)
    def alone(*given, out: str | Path | None = None, **settings):
        with writing(out):
            return loop(*given, out=out, **settings)

    return alone


@contextmanager
def writing(out: str | Path | None, fresh: bool = False) -> Iterator[None]:
    """Inside, no other process writes there. A folder that an error leaves before its first step is taken away
    again, if it was made here or, `fresh`, just before."""
    if out is not None and not str(out).strip():
        raise ValueError(
            f"out={str(out)!r} names no folder: give it a name, or leave out= away to keep nothing"
        )
    if out is not None and Path(out).is_file():
        raise ValueError(f"{out} is a file, and out= names a folder: give another one")
    if out is None or not first():  # of several processes the first writes for all
        yield
        return
    folder = Path(out)
    me = folder.resolve(), threading.get_ident()
    if me in HELD:
        yield
        return
    made = [each for each in (folder, *folder.parents) if not each.exists()] or [folder] * fresh
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    known, lock = file.exists(), FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{out} is being written by another process{_writer(file)}: wait until it has ended, or give another "
            "folder."
        ) from None
    except (OSError, NotImplementedError) as error:  # a disk without locks is no reason to keep nothing
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    HELD.add(me)
    try:
        with suppress(OSError):
            file.write_text(f"{os.getpid()} on {platform.node()}\n")
        yield
    except Exception:
        if not known:
            file.unlink(missing_ok=True)
        if made:
            _take_away(folder)
            for each in made:
                with suppress(OSError):  # it holds something
                    each.rmdir()
        raise
    finally:
        HELD.discard(me)
        lock.release()


def _writer(file: Path) -> str:
    """Which process it is, if the lock says so."""
    with suppress(OSError, ValueError):
        if found := re.match(r"\d+ on [\w.-]+", file.read_text()):
            return f" ({found[0]})"
    return ""


def _take_away(folder: Path) -> None:
    """What was written before the first step, if there is nothing else."""
    board = [*folder.glob("tensorboard/events.out.tfevents*")]
    ours = [each for each in folder.iterdir() if each.name.removeprefix(".") in BEGINNINGS]
    others = {*folder.rglob("*")} - {*ours, *board, *(each.parent for each in board)}
    begun = folder / "metrics.jsonl"
    if others or begun.exists() and begun.stat().st_size:
        return
    for each in (*ours, *board):
        each.unlink()
    for each in {each.parent for each in board}:
        each.rmdir()


class Folder:
    """Keeps a run on disk. Without a path nothing is kept; of several processes only the first writes."""

    def __init__(
        self, path, run: Run, config: dict, budget: dict, processes: Alone, tensorboard: bool = False
    ):
        self.path = Path(path) if path else None
        self.run, self.budget, self.processes = run, budget, processes
        config = {"rlcourse": version("rlcourse")} | config | {"processes": processes.size}
        # through JSON, so that it reads the same from the file
        run.config = self.config = json.loads(documents.text(config))
        self.writes = self.path is not None and processes.rank == 0
        self.tensorboard, self.board = tensorboard, None

    def resume(
        self, resume: bool, model: Policy | Scorer, optimizer: torch.optim.Optimizer, state: dict
    ) -> int:
        """Put a run back where its last checkpoint left it; the step it stands at, 0 for a new one."""
        found = checkpoints(self.path) if self.path else []
        if found and not resume:
            raise ValueError(
                f"{self.path} already holds a run, up to {found[-1].name}. resume=True goes on with it; "
                "another out= keeps both."
            )
        theirs = self.path and self.path / "config.json"
        if theirs and theirs.exists() and "rlcourse" not in documents.read(theirs):
            raise ValueError(f"{theirs} is a model's, and a run would overwrite it: give another out=.")
        step, run = 0, self.run
        if found:
            self._check(checkpoint.record(found[-1])["config"])
            record = checkpoint.load(found[-1], model, optimizer, state)
            step, run.history[:] = record["step"], record["history"]
            run.samples.update(record["samples"])
        if len(stand := set(self.processes.gather(step))) > 1:
            raise ValueError(
                f"the processes found checkpoints of different steps, {sorted(stand)}: {self.path} has to be on a "
                "disk that all machines see"
            )
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write("config.json", documents.text(self.config, indent=1) + "\n")
            self._write("budget.json", documents.text(self.budget, indent=1) + "\n")
            self._write("metrics.jsonl", "".join(documents.text(row) + "\n" for row in run.history))
            self._write("samples.jsonl", "".join(map(self._answers, run.samples)))
        if self.tensorboard and self.processes.rank == 0:
            self.board = self._board()
        return step

    def note(self, row: dict) -> None:
        """A step is done."""
        self.run.history.append(row)
        self._append("metrics.jsonl", documents.text(row) + "\n")
        for name, value in row.items() if self.board else ():
            self.board.add_scalar(name, value, row["step"])

    def watch(self, step: int, answers: list[tuple[str, bool | None]]) -> None:
        """The watched prompts have been answered."""
        self.run.samples[step] = answers
        self._append("samples.jsonl", self._answers(step))

    def save(self, step: int, model: Policy | Scorer, optimizer: torch.optim.Optimizer, state: dict) -> None:
        if self.path:
            record = {"config": self.config, "history": self.run.history, "samples": self.run.samples}
            checkpoint.save(self.path, step, model, optimizer, state, record, self.writes)
        if self.board:
            self.board.flush()

    def _answers(self, step: int) -> str:
        lines = [
            {"step": step, "prompt": prompt, "answer": answer, "correct": correct}
            for prompt, (answer, correct) in zip(self.run.prompts, self.run.samples[step], strict=True)
        ]
        return "".join(json.dumps(line) + "\n" for line in lines)

    def _append(self, name: str, lines: str) -> None:
        if self.writes:
            with checkpoint.said(self.path, name), (self.path / name).open("a") as file:
                file.write(lines)

    def _write(self, name: str, text: str) -> None:
        """All of it or nothing."""
        draft = self.path / f".{name}"
        with checkpoint.said(self.path, name):
            draft.write_text(text)
            draft.replace(self.path / name)

    def _check(self, theirs: dict) -> None:
        for name in self.config:
            if name in FREE or theirs.get(name) == self.config[name]:
                continue
            if name == "measured_from":
                raise ValueError(
                    f"{self.path} measures KL from the model that the run began with, and this is another model. "
                    "Load that one again, or pass reference=..."
                )
            raise ValueError(
                f"{self.path} was run with {name}={theirs.get(name)!r}, and now {name}={self.config[name]!r}: a "
                "resumed run must be the same run. Give the old value, or another out= for a new one."
            )

    def _board(self):
        if self.path is None:
            raise ValueError("tensorboard=True writes into the folder of the run: give out=...")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "tensorboard=True needs a package: pip install 'rlcourse[tensorboard]'"
            ) from None
        return SummaryWriter(str(self.path / "tensorboard"))
