"""What a config says, and what every library asks of it: batches, problems, rewards; and the sheet it is written on."""

from __future__ import annotations

import json
import math
import random
import shlex
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from rlcourse import documents
from rlcourse.lm import Rollout, checkpoints, pockets
from rlcourse.methods.corrections import TIS, Correction
from rlcourse.methods.protocol import OnlineMethod
from rlcourse.training import named
from rlcourse.training.run import REMEDY
from rlcourse.training.seeds import stream

# what the other libraries have to be told
NEEDED = {"policy": str, "method": str, "seed": int, "lr": float, "max_grad_norm": float}
ONLINE = {
    "task": str,
    "responses": documents.Count,
    "temperature": float,
    "max_tokens": documents.Count,
    "steps": documents.Count | None,
    "processes": documents.Count | None,
}
OFFLINE = {"epochs": documents.Count, "batch": documents.Count}


@dataclass
class Experiment:
    """A run's config, with its method unwrapped."""

    config: dict
    method: object
    cap: float | None = None  # TIS's, if it was wrapped around the method
    steps: int = 100
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, config: dict | str | Path) -> Experiment:
        made, where = None, "the config"
        if not isinstance(config, dict):
            folder = Path(config).parent if Path(config).is_file() else Path(config)
            if not (folder / "config.json").exists():
                raise ValueError(
                    f"{folder} holds no config.json: give the folder of a run, the one that out= named"
                )
            budget, metrics = folder / "budget.json", folder / "metrics.jsonl"
            where = str(folder / "config.json")
            config = documents.read(folder / "config.json")
            config |= documents.read(budget) if budget.exists() else {}
            made = len(documents.lines(metrics, {}, REMEDY))
        documents.checked(config, NEEDED, where)
        run = cls(config, named.method(config["method"]))
        while isinstance(wrapped := run.method, Correction):
            run.method = wrapped.method
            if isinstance(wrapped, TIS):
                run.cap = wrapped.cap
            else:
                run.notes.append(f"{type(wrapped).__name__} is left out: an update chooses its experts anew")
        documents.checked(config, ONLINE if run.online else OFFLINE, where)
        run.steps = config.get("steps") or made or run.steps
        if run.online:
            if not config.get("steps"):
                why = "that many were made" if made else "the config does not say how many"
                run.notes.append(f"{run.steps} steps, because {why}")
            if run.config["responses"] % run.size:
                raise ValueError(
                    f"{run.config['responses']} responses do not divide into {run.method.minibatches} mini-batches of "
                    "one size, which the other libraries want: choose a number that does"
                )
        return run

    @property
    def online(self) -> bool:
        return isinstance(self.method, OnlineMethod)

    @property
    def pocket(self) -> bool:
        return self.config["policy"] in pockets()

    @property
    def model(self) -> str | Path:
        """The model's name, or its folder; a pocket, which no hub has, is written beside the script."""
        if self.pocket:
            return Path("model")
        if (folder := Path(self.config["policy"])).is_dir():
            return str((checkpoints(folder) or [folder])[-1].resolve())
        return self.config["policy"]

    @property
    def processes(self) -> int:
        return self.config.get("processes") or 1

    @property
    def adapter(self) -> tuple[int, int] | None:
        """LoRA's rank and alpha, as `load_policy(lora=rank)` sets it; None where all weights learn."""
        rank = self.config.get("lora")
        return (rank, 2 * rank) if rank else None

    # ---- one step, in prompts and in responses: what is counted differs by library

    @property
    def prompts(self) -> int:
        return self.config["responses"] // self.method.group_size

    @property
    def size(self) -> int:
        """Responses in one optimizer step."""
        return -(-self.config["responses"] // self.method.minibatches)

    @property
    def updates(self) -> int:
        """Optimizer steps in one pass over a rollout."""
        return self.config["responses"] // self.size

    @property
    def clip(self) -> tuple[float, float]:
        """How far a ratio may fall below 1, and rise above it; everybody's 0.2 where the method has no clip."""
        if (both := getattr(self.method, "clip", None)) is not None:
            return both, both
        return getattr(self.method, "clip_low", 0.2), getattr(self.method, "clip_high", 0.2)

    @property
    def micro_batch(self) -> int:
        """Responses that one device computes at once: no number in the result depends on it."""
        return math.gcd(8, self.size // self.processes)

    @property
    def denominator(self) -> str:
        """What the loss is a mean over: "token", "sequence", "constant", or the "sum" of each answer's tokens."""
        match type(self.method).__name__:
            case "PPO" | "CISPO":
                return "token"
            case "DAPO":
                return "token" if self.method.token_mean else "sequence"
            case "DrGRPO":
                return "constant"
            case "RLOO" | "REINFORCE" | "ReMax":
                return "sum"
        return "sequence"

    @property
    def overlong(self) -> int:
        """DAPO's penalty begins so many tokens before the limit; 0 for none."""
        return int(getattr(self.method, "overlong", 0) * self.config.get("max_tokens", 0))

    # ---- data

    @cached_property
    def problems(self) -> list:
        return problems(named.task(self.config["task"]), self.steps, self.prompts, self.config["seed"])

    @property
    def longest_prompt(self) -> int:
        """In tokens, with room for a chat template: no tokenizer makes more of them than there are bytes."""
        return max(len(problem.prompt.encode()) for problem in self.problems) + 128

    def told(self, example) -> dict:
        """Feedback as TRL and OpenRLHF read it: in messages, so that the model's chat template is used."""
        row = {"prompt": [said("user", example.prompt)]}
        if hasattr(example, "chosen"):
            row |= {name: [said("assistant", getattr(example, name))] for name in ("chosen", "rejected")}
            return row | ({"margin": margin} if (margin := getattr(self.method, "margin", 0.0)) else {})
        row["completion"] = [said("assistant", example.response)]
        return row | ({"label": example.good} if hasattr(example, "good") else {})

    @staticmethod
    def jsonl(rows: Iterable[dict]) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows)

    def reward_file(self, function: str) -> str:
        how = dict(task=self.config["task"], steps=self.steps, prompts=self.prompts, seed=self.config["seed"])
        return REWARD.format(**how, model=beside(self.model)) + function


REWARD = '''\
"""What an answer earns, by rlcourse's own rule: install your clone of the course here too, pip install -e ."""

from pathlib import Path

from transformers import AutoTokenizer

from rlcourse.export.experiment import judged, problems
from rlcourse.training.named import task

TASK = task({task!r})
PROBLEMS = {{problem.prompt: problem for problem in problems(TASK, steps={steps}, prompts={prompts}, seed={seed})}}
TOKENIZER = AutoTokenizer.from_pretrained({model})


'''


def beside(value: str | Path) -> str:
    """In Python: a path is one beside the script."""
    return f'Path(__file__).parent / "{value}"' if isinstance(value, Path) else repr(value)


def in_shell(value: object) -> str:
    """In a shell: a path is one beside the script, which its first line has gone to."""
    return f'"$PWD/{value}"' if isinstance(value, Path) else shlex.quote(str(value))


def said(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def problems(task, steps: int, prompts: int, seed: int) -> list:
    """The problems of a run in its order: from the same seeds as in `collect`."""
    rngs = [random.Random(stream(seed, step, "problems")) for step in range(1, steps + 1)]
    return [task.draw(rng) for rng in rngs for _ in range(prompts)]


def judged(task, asked: list, texts: list[str], finished: list[bool]) -> list[tuple[float, bool]]:
    """What a task says of answers that another library sampled: the reward, and whether it is right."""
    n = len(texts)
    rollout = Rollout(
        prompts=[problem.prompt for problem in asked],
        prompt_tokens=torch.zeros(n, 1, dtype=torch.long),
        prompt_mask=torch.ones(n, 1, dtype=torch.bool),
        owner=torch.arange(n),
        tokens=torch.zeros(n, 1, dtype=torch.long),
        mask=torch.ones(n, 1, dtype=torch.bool),
        logp=torch.zeros(n, 1),
        finished=torch.tensor(finished),
        texts=texts,
        problems=asked,
    )
    grades = task.grade(rollout)
    return list(zip(grades["rewards"].tolist(), grades["correct"].tolist()))


class Sheet(dict):
    """Settings by the other library's names; and notes, beside a setting or, with the name "", on the whole."""

    def __init__(self, run: Experiment):
        self.run = "{method} of {policy}".format(**run.config)
        self.notes: dict[str, list[str]] = {"": list(run.notes)}

    def note(self, name: str, text: str) -> None:
        self.notes.setdefault(name, []).append(text)

    @property
    def differences(self) -> list[str]:
        return [f"{name}: {text}" if name else text for name, texts in self.notes.items() for text in texts]

    @property
    def head(self) -> str:
        """What was run, and the notes on the whole, as comments."""
        return "".join(commented(text, "") for text in (self.run, *self.notes[""]))

    def written(self, line: Callable[[str, object], str], indent: str) -> str:
        return "".join(
            "".join(commented(text, indent) for text in self.notes.get(name, []))
            + indent
            + line(name, value)
            + "\n"
            for name, value in self.items()
        )


def commented(text: str, indent: str) -> str:
    return textwrap.fill(text, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ") + "\n"
