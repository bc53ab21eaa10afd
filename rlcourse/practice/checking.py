"""`check("grpo.advantages", my_function)`: right, and why; or wrong, and which mistake it probably is.

A mistake is known by what it computes. `compare` calls the reader's function on an input so small that one can
do it on paper; where the result is not the right one but the one that a known mistake gives, it says which.
"""

from __future__ import annotations

import copy
import html
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from textwrap import indent

import torch

from rlcourse.practice import exercises


class NotAnswered(Exception):
    """The blank is still blank."""


class Wrong(Exception):
    """What is wrong, in a sentence, and the lines that show it: (label, value)."""

    def __init__(self, says: str, *shown: tuple[str, object]):
        self.says, self.shown = says, shown
        super().__init__("\n".join([says, *self.lines()]))

    def lines(self) -> list[str]:
        return [
            f"{label:10s} {value if isinstance(value, str) else readable(value)}"
            for label, value in self.shown
        ]


@dataclass(frozen=True)
class Verdict:
    """What `check` answers; a notebook shows it, `bool` says whether it is right."""

    exercise: str
    right: bool | None  # None: not answered
    says: str
    shown: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.right is True

    @property
    def mark(self) -> str:
        return {True: "✓", False: "✗", None: "…"}[self.right]

    def __repr__(self) -> str:
        return "\n".join(
            [f"{self.mark} {self.exercise}: {self.says}", *(indent(line, "    ") for line in self.shown)]
        )

    def _repr_html_(self) -> str:
        colour = {True: "#009E73", False: "#D55E00", None: "#767676"}[self.right]
        shown = (
            f"<pre style='margin: 0.4em 0 0'>{html.escape(chr(10).join(self.shown))}</pre>"
            if self.shown
            else ""
        )
        return (
            f"<div role='status' style='border-left: 4px solid {colour}; padding: 0.2em 0.8em'>"
            f"<b>{self.mark} {html.escape(self.exercise)}</b>: {html.escape(self.says)}{shown}</div>"
        )


def check(exercise: str, *answer) -> Verdict:
    """Examine the answer to an exercise. While tests run a wrong one raises: a cell cannot pass by printing."""
    checker = find(exercise)
    try:
        if ... in answer:
            raise NotAnswered
        return Verdict(exercise, True, checker(*answer))
    except NotAnswered:
        return Verdict(
            exercise, None, "not answered yet. Fill in the cell above, run it, then run this one again."
        )
    except Wrong as wrong:
        if "PYTEST_CURRENT_TEST" in os.environ:
            raise
        return Verdict(exercise, False, wrong.says, tuple(wrong.lines()))


def find(exercise: str) -> Callable[..., str]:
    """The checker of an exercise, by its name."""
    topic, _, name = exercise.partition(".")
    if topic in topics() and name in (checkers := in_topic(topic)):
        return checkers[name]
    near = get_close_matches(exercise, names(), n=3) or names()
    raise ValueError(f"There is no exercise {exercise!r}. Did you mean {' or '.join(map(repr, near))}?")


def topics() -> list[str]:
    return [module.name for module in iter_modules(exercises.__path__)]


def in_topic(topic: str) -> dict[str, Callable[..., str]]:
    """The checkers of a topic: the public functions of its file."""
    module = import_module(f"rlcourse.practice.exercises.{topic}")
    return {
        name: found
        for name, found in vars(module).items()
        if inspect.isfunction(found) and found.__module__ == module.__name__ and not name.startswith("_")
    }


def names() -> list[str]:
    """Every exercise there is."""
    return [f"{topic}.{name}" for topic in topics() for name in in_topic(topic)]


def call(function, *given):
    """The reader's function on copies of what is given. A blank, an exception and a changed input are told."""
    if function is None or function is ...:
        raise NotAnswered
    if not callable(function):
        raise Wrong(f"This wants a function; it got {readable(function)}.")
    ours = copy.deepcopy(given)
    try:
        got = function(*ours)
    except (Wrong, NotAnswered):
        raise  # a checker that wraps the reader's function has seen it already
    except Exception as error:
        where = ("given", named(function, given))
        raise Wrong(f"Your function stopped with {type(error).__name__}: {error}", where) from error
    if got is None or got is ...:
        raise NotAnswered
    if not all(map(same, ours, given)):
        raise Wrong(
            "Your function changes its input in place. The caller still needs it: make a new tensor.",
            ("given", named(function, given)), ("left as", named(function, ours)),
        )  # fmt: skip
    return got


def compare(function, given: tuple, expected, mistakes: Mapping[str, object] = {}, tolerance: float = 1e-4):
    """Call the reader's function and hold what it gives against the right result and against known mistakes.

    `mistakes`: a sentence that names the mistake -> what it gives here, or a function that computes that.
    Returns what the reader's function gave.
    """
    got = call(function, *given)
    if same(got, expected, tolerance):
        return got
    shown = ("given", named(function, given)), ("you have", got), ("expected", expected)
    computed = {
        says: value(*copy.deepcopy(given)) if callable(value) else value for says, value in mistakes.items()
    }
    for near in (
        tolerance,
        30 * tolerance,
    ):  # the second time for a mistake within a mistake: a forgotten epsilon
        for says, value in computed.items():
            if same(got, value, near) and not same(value, expected, near):
                raise Wrong(says, *shown)
    if shape(got) != shape(expected):
        raise Wrong(f"The shape is {shape(got)}; it should be {shape(expected)}.", *shown)
    if holds_nan(got) and not holds_nan(expected):
        raise Wrong(
            "There is a NaN in it. NaN times 0 is NaN: choose with torch.where before you compute.", *shown
        )
    raise Wrong("Not yet. This input is small enough to do on paper.", *shown)


def same(a, b, tolerance: float = 0.0) -> bool:
    """Equal up to the tolerance, shapes included; a number and a tensor of one number are the same."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        try:
            a, b = (torch.as_tensor(x).detach().double() for x in (a, b))
        except (TypeError, ValueError, RuntimeError):
            return False
        return a.shape == b.shape and torch.allclose(a, b, atol=tolerance, rtol=0, equal_nan=True)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or abs(a - b) <= tolerance or (a != a and b != b)
    return type(a) is type(b) and bool(a == b)


def shape(value) -> str:
    """What a reader calls the shape of a value: `(2, 4)`, `a number`, `3 items`."""
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape)) if value.dim() else "a number"
    if isinstance(value, (list, tuple)):
        return f"{len(value)} items"
    return "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}"


def holds_nan(value) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(holds_nan, value))
    return (
        value != value
        if isinstance(value, float)
        else isinstance(value, torch.Tensor) and bool(value.isnan().any())
    )


def named(function, given: tuple) -> str:
    """The arguments as the reader's own function calls them: `rewards = [[1, 0]], scale = True`."""
    try:
        names = list(inspect.signature(function).bind(*given).arguments)
    except (TypeError, ValueError):
        names = []
    if len(names) != len(given):
        return ", ".join(map(readable, given))
    return ", ".join(f"{name} = {readable(value)}" for name, value in zip(names, given))


def readable(value) -> str:
    """A value as one would write it down: no `tensor(...)`, four digits, whole numbers whole."""
    if isinstance(value, torch.Tensor):
        return readable(value.tolist())
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(readable, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, float):
        return f"{value:.0f}" if value == round(value, 9) // 1 and abs(value) < 1e6 else f"{value:.4g}"
    return repr(value)
