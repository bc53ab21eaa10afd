"""The folder of a run. Whatever moment the process is killed at, what stands there makes sense.

    config.json     what the run is: it may not change when the run is resumed
    budget.json     how long it goes on and how it is laid out in memory: that may
    metrics.jsonl   a line a step
    samples.jsonl   a line for each answer to a watched prompt
    step-000100/    the newest checkpoint: a model that `load_policy` takes, with all that a resumed run needs

Files are replaced whole, or grow by whole lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path

import torch

from rlcourse.lm import Policy, Scorer, checkpoints
from rlcourse.training import checkpoint
from rlcourse.training.processes import Alone
from rlcourse.training.run import Run

FREE = ("rlcourse",)  # of the config: a newer version may go on with an older one's run


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


class Folder:
    """Keeps a run on disk. Without a path nothing is kept; of several processes only the first writes."""

    def __init__(
        self, path, run: Run, config: dict, budget: dict, processes: Alone, tensorboard: bool = False
    ):
        self.path = Path(path) if path else None
        self.run, self.budget, self.processes = run, budget, processes
        config = {"rlcourse": version("rlcourse")} | config | {"processes": processes.size}
        # through JSON, so that it reads the same from the file
        run.config = self.config = json.loads(json.dumps(config))
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
        if theirs and theirs.exists() and "rlcourse" not in json.loads(theirs.read_text()):
            raise ValueError(f"{theirs} is a model's, and a run would overwrite it: give another out=.")
        step, run = 0, self.run
        if found:
            self._check(json.loads((found[-1] / "record.json").read_text()))
            record = checkpoint.load(found[-1], model, optimizer, state)
            step, run.history[:] = record["step"], record["history"]
            run.samples.update({int(k): [tuple(pair) for pair in v] for k, v in record["samples"].items()})
        if len(stand := set(self.processes.gather(step))) > 1:
            raise ValueError(
                f"the processes found checkpoints of different steps, {sorted(stand)}: {self.path} has to be on a "
                "disk that all machines see"
            )
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write("config.json", json.dumps(self.config, indent=1) + "\n")
            self._write("budget.json", json.dumps(self.budget, indent=1) + "\n")
            self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in run.history))
            self._write("samples.jsonl", "".join(map(self._answers, run.samples)))
        if self.tensorboard and self.processes.rank == 0:
            self.board = self._board()
        return step

    def note(self, row: dict) -> None:
        """A step is done."""
        self.run.history.append(row)
        self._append("metrics.jsonl", json.dumps(row) + "\n")
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

    def _check(self, record: dict) -> None:
        if record["format"] != checkpoint.FORMAT:
            raise ValueError(
                f"{self.path} was written in format {record['format']} of run folders, by another version of "
                f"rlcourse; this one reads {checkpoint.FORMAT}. Start the run again with another out=."
            )
        theirs = record["config"]
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
