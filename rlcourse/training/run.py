"""A run: its numbers, its sampled texts, and how to look at them."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rlcourse import documents
from rlcourse.lm import Policy, Scorer
from rlcourse.terminal import visible
from rlcourse.training import named

REMEDY = "`rlcourse resume` writes the file anew from the checkpoint; or take the line out."


@dataclass
class Run:
    """What `train` and `fit` give back. `history` holds one dict a step."""

    policy: Policy | Scorer | None
    task: object  # None of an offline run
    method: object
    seed: int = 0
    history: list[dict] = field(default_factory=list)
    state: dict = field(default_factory=dict, repr=False)  # the method's: its critic, if it has one
    prompts: list[str] = field(default_factory=list)  # asked again and again while training goes on
    samples: dict[int, list[tuple[str, bool | None]]] = field(
        default_factory=dict
    )  # step -> (answer, correct)
    config: dict = field(default_factory=dict, repr=False)  # what makes it this run

    @staticmethod
    def load(folder: str | Path) -> Run:
        """What a run has written, for plots and tables: no model is loaded, `policy` is None."""
        folder = Path(folder)
        if not (folder / "config.json").exists() or not (folder / "metrics.jsonl").exists():
            raise ValueError(f"{folder} holds no run: there is no config.json with a metrics.jsonl in it")
        config = documents.read(folder / "config.json", {"method": str, "task": str | None, "seed": int})
        metrics = folder / "metrics.jsonl"
        samples: dict = {}
        prompts: dict = {}  # by step, so that one that is asked twice counts twice
        answer = {"step": int, "prompt": str, "answer": str, "correct": bool | None}
        for line in documents.lines(folder / "samples.jsonl", answer, REMEDY):
            samples.setdefault(line["step"], []).append((line["answer"], line["correct"]))
            prompts.setdefault(line["step"], []).append(line["prompt"])
        return Run(
            policy=None,
            task=_remade(named.task, config.get("task")),
            method=_remade(named.method, config["method"]),
            seed=config["seed"],
            history=[
                documents.row(line, f"line {number} of {metrics}", REMEDY)
                for number, line in enumerate(documents.lines(metrics, {}, REMEDY), 1)
            ],
            prompts=prompts[min(prompts)] if prompts else [],
            samples=samples,
            config=config,
        )

    def __repr__(self) -> str:
        if not self.history:
            return f"Run({self.method}, no step yet)"
        first, last = self.history[0], self.history[-1]
        seen = (
            f"{last['sampled_tokens']:,} sampled tokens" if self.online else f"{last['examples']:,} examples"
        )
        name = self.headline[0]
        return (
            f"Run({self.method}, {last['step']} steps, {seen}, {name} {first[name]:.2f} -> {last[name]:.2f})"
        )

    @property
    def online(self) -> bool:
        return self.task is not None

    @property
    def headline(self) -> list[str]:
        """The numbers to look at first."""
        names = ("reward", "length", "entropy") if self.online else ("loss", "accuracy", "margin")
        return [name for name in names if name in self.history[-1]]

    def column(self, name: str) -> list[int | float]:
        """One number a step; NaN where a step has none."""
        if not any(name in row for row in self.history):
            known = ", ".join(sorted({key for row in self.history for key in row}))
            raise KeyError(f"this run has no {name!r}; it has {known}")
        return [row.get(name, float("nan")) for row in self.history]

    def mean(self, name: str, last: int = 10) -> float:
        """The mean over the last steps that have this number: one step's is noisy."""
        values = [value for value in self.column(name) if value == value][-last:]
        return sum(values) / len(values) if values else float("nan")

    def plot(self, *names: str, against: str = "step", also: dict[str, Run] | None = None, smooth: int = 5):
        """One panel a metric. `also` draws other runs beside this one, by name."""
        import matplotlib.pyplot as plt

        if not self.history:
            raise ValueError("this run has made no step yet: there is nothing to draw")
        names = names or self.headline
        runs = {(type(self.method).__name__ if also else ""): self} | (also or {})
        figure, axes = plt.subplots(
            1, len(names), figsize=(3.6 * len(names), 3.2), squeeze=False, layout="constrained"
        )
        for axis, name in zip(axes[0], names, strict=True):
            for number, (label, run) in enumerate(runs.items()):
                x, y = run.column(against), run.column(name)
                if against == "sampled_tokens":
                    x = [tokens / 1000 for tokens in x]
                axis.plot(x, y, color=f"C{number}", alpha=0.4, linewidth=1)
                dashes = ("-", "--", "-.", ":")[number % 4]  # told apart without colour too
                axis.plot(x, smoothed(y, smooth), dashes, color=f"C{number}", label=label)
            axis.set(xlabel=LABELS.get(against, against), ylabel=LABELS.get(name, name))
            if axis.get_ylim()[0] > -0.1 * axis.get_ylim()[1]:  # what cannot be negative is shown from 0
                axis.set_ylim(bottom=0)
        if also:
            axes[0][0].legend()
        return figure

    def before_after(self, n: int = 5) -> Table:
        """The same prompts, answered before training and after it."""
        if not self.samples:
            raise ValueError(
                "a scorer says nothing that could be shown: ask it for scores of answers instead"
            )
        first, last = min(self.samples), max(self.samples)
        return self.table([first, last], n)

    def table(self, steps: list[int] | None = None, n: int = 5) -> Table:
        """The same prompts, answered at several moments of the run."""
        steps = sorted(self.samples) if steps is None else steps
        rows = [
            [prompt, *(_mark(self.samples[step][i]) for step in steps)]
            for i, prompt in enumerate(self.prompts[:n])
        ]
        return Table(["prompt", *(f"step {step}" for step in steps)], rows)


LABELS = {
    "step": "step",
    "sampled_tokens": "sampled tokens (thousands)",
    "seconds": "seconds",
    "reward": "mean reward",
    "length": "mean length (tokens)",
    "entropy": "entropy (nats per token)",
    "kl": "KL to reference (nats/answer)",
    "worked": "share of worked answers",
    "correct": "share correct",
    "clip_fraction": "clip fraction",
    "grad_norm": "gradient norm",
    "explained_variance": "explained variance",
    "value_loss": "value loss",
    "beta": "beta",
    "prompts_drawn": "prompts drawn",
    "tied_groups": "share of tied groups",
    "finished": "share finished",
    "gold": "mean gold score",
    "loss": "loss",
    "accuracy": "share in the right order",
    "margin": "margin, chosen - rejected",
    "chosen_moved": "log pi/ref, chosen (nats)",
    "rejected_moved": "log pi/ref, rejected (nats)",
    "good_moved": "log pi/ref, good (nats)",
    "bad_moved": "log pi/ref, bad (nats)",
    "reference_kl": "reference point z (nats)",
    "examples": "examples",
}


def _remade(make: Callable, text: str | None):
    """The object that the text stands for, or the text where that was made in Python, as a judge is."""
    try:
        return text and make(text)
    except ValueError:
        return text


def _mark(sample: tuple[str, bool | None]) -> str:
    text, correct = sample
    return text if correct is None else f"{'✓' if correct else '✗'} {text}"


def smoothed(values: list[float], window: int) -> list[float]:
    """A trailing mean: it never looks ahead of what was known at that step."""
    return [
        sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - window) : i + 1])
    ]


@dataclass
class Table:
    """Rows of text that show as a table in a notebook and as lines in a terminal."""

    head: list[str]
    rows: list[list[str]]

    def __repr__(self) -> str:
        rows = [list(map(visible, row)) for row in [self.head, *self.rows]]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        def cells(row: list[str], tag: str) -> str:
            return "".join(
                f'<{tag} style="text-align:left"><code>{html.escape(cell)}</code></{tag}>' for cell in row
            )

        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.rows)
        return f"<table><thead><tr>{cells(self.head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
