"""The exercises of chapter 13: the solution passes, the blank fails politely, each mistake is named."""

import re
from pathlib import Path

import pytest
import torch

SOURCE = (Path(__file__).parents[1] / "book" / "chapters" / "13_grpo.md").read_text()
SOLUTIONS = re.findall(r"<summary>Solution</summary>\n\n```python\n(.*?)```", SOURCE, re.S)
CELLS = re.findall(r"```\{code-cell\} ipython3\n(.*?)```", SOURCE, re.S)
CHECKS = [cell for cell in CELLS if cell.startswith("def check_")]
BLANKS = [CELLS[CELLS.index(check) - 1] for check in CHECKS]


def answer(code: str, check: str, capsys) -> str:
    """What the reader sees who writes `code` into the cell and runs the check below it."""
    exec(f"{code}\n{check}", {"torch": torch})
    return capsys.readouterr().out


@pytest.mark.parametrize("number", range(3))
def test_the_solution_passes(number, capsys):
    assert answer(SOLUTIONS[number], CHECKS[number], capsys).startswith("Right")


@pytest.mark.parametrize("number", range(3))
def test_the_blank_fails_politely(number, capsys):
    assert answer(BLANKS[number], CHECKS[number], capsys) == "Not answered yet.\n"


MISTAKES = [
    (0, "def my_advantages(r): return r - r.mean()", "over the group, or over the batch"),
    (
        0,
        "def my_advantages(r): return (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)",
        "exactly 0",
    ),
    (
        0,
        "def my_advantages(r): return (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 0.1)",
        "expected",
    ),
    (0, "def my_advantages(r): return (r - r.mean(1, keepdim=True))[:, 0]", "own advantage"),
    (
        0,
        "def my_advantages(r):\n"
        "    a = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True, correction=0) + 1e-4)\n"
        "    return a.masked_fill(r.amax(1, keepdim=True) == r.amin(1, keepdim=True), 0)",
        "squares by G",
    ),
    (
        0,
        "def my_advantages(r):\n"
        "    a = (r - r.mean(1, keepdim=True)) / (r.var(1, keepdim=True) + 1e-4)\n"
        "    return a.masked_fill(r.amax(1, keepdim=True) == r.amin(1, keepdim=True), 0)",
        "divided by the variance",
    ),
    (
        0,
        "def my_advantages(r):\n"
        "    a = (r - r.mean()) / (r.std(1, keepdim=True) + 1e-4)\n"
        "    return a.masked_fill(r.amax(1, keepdim=True) == r.amin(1, keepdim=True), 0)",
        "over the group, or over the batch",
    ),
    (
        0,
        "def my_advantages(r):\n"
        "    a = r - r.mean(1, keepdim=True)\n"
        "    return a.masked_fill(r.amax(1, keepdim=True) == r.amin(1, keepdim=True), 0)",
        "expected",
    ),
    (1, "def dead_share(p, G): return (1 - p) ** G\nsmallest_G = 14", "one of the two cases"),
    (1, "def dead_share(p, G): return 1 - p**G - (1 - p)**G\nsmallest_G = 14", "p = 0.25"),
    (1, "def dead_share(p, G): return p**G + (1 - p)**G\nsmallest_G = 13", "smallest_G = 13 is not"),
    (1, "def dead_share(p, G): return p * (1 - p) * G\nsmallest_G = 14", "p = 0.25"),
    (1, "def dead_share(p, G): return 1 - (1 - p)**G\nsmallest_G = 14", "half of all groups"),
    (2, "def loss_at_start(A, T, how): return -A.sum() if how == 'token' else -A.mean()", "over 35 tokens"),
    (2, "def loss_at_start(A, T, how): return -(A * T).sum() / T.sum()", "each answer counts the same"),
    (
        2,
        "def loss_at_start(A, T, how):\n"
        "    w = torch.ones_like(T) if how == 'sequence' else T\n"
        "    return (A * w).sum() / w.sum()",
        "The sign",
    ),
    (
        2,
        "def loss_at_start(A, T, how):\n"
        "    w = torch.ones_like(T) if how == 'sequence' else 1 / T\n"
        "    return -(A * w).sum() / w.sum()",
        "over 35 tokens",
    ),
    (
        2,
        "def loss_at_start(A, T, how): return -(A * (1 if how == 'sequence' else T)).mean()",
        "over 35 tokens",
    ),
]


@pytest.mark.parametrize("number, code, named", MISTAKES)
def test_each_planted_mistake_is_named(number, code, named, capsys):
    said = answer(code, CHECKS[number], capsys)
    assert named in said and not said.startswith("Right")
