"""Sums: `17+25+48=`, answered in one breath (`#90`) or step by step (`17+25=42 42+48=90#90`).

The world in which a small model learns to think. The reward looks at nothing but the number
after `#`: right 1, wrong 0. Nobody is paid for working.

The text that the pocket models are pretrained on (`corpus`) holds three answers in one breath for
every worked one. The worked ones are right but for slips. The others are guesses: the right
number plus an error that is as likely to be nothing as to be any of a few units. So the base
model *can* work, and seldom does. How to add two numbers it has also read in a primer (`table`):
a model without the worked answers knows how to add, and not that an answer may show it.

    >>> problem = Sums(terms=3, digits=2).draw(random.Random(0))
    >>> problem.prompt, problem.answer
    ('59+63+15=', 137)
    >>> worked(problem.terms)
    '59+63=122 122+15=137#137'

Models that read English are asked the same sums in words, `SumsInWords`, with the answer in a box.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcourse.lm import Policy, Rollout
from rlcourse.tasks.ask import shown
from rlcourse.tasks.boxed import STEP_BY_STEP, InWords, boxed, number


@dataclass(frozen=True)
class Sum:
    """One problem: the numbers to add."""

    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return "+".join(map(str, self.terms)) + "="

    @property
    def answer(self) -> int:
        return sum(self.terms)


@dataclass(frozen=True)
class Working:
    """What a response says: its steps (a, b, what it claims a + b is) and its answer, None if it gives none."""

    steps: tuple[tuple[int, int, int], ...]
    answer: int | None


# response  :=  work "#" number       work  :=  pieces between spaces, of which a step is
# step      :=  number "+" number "=" number
_NUMBER = re.compile(r"[0-9]{1,12}")
_STEP = re.compile(r"([0-9]{1,12})\+([0-9]{1,12})=([0-9]{1,12})")


def read(response: str) -> Working:
    """Parse a response by the grammar above. Any string at all may come in: a model wrote it.

    >>> read('59+63=122 122+15=137#137')
    Working(steps=((59, 63, 122), (122, 15, 137)), answer=137)
    >>> read('#137').answer, read('137').answer, read('#137#138').answer
    (137, None, None)
    """
    work, _, answer = response.partition("#")
    steps = filter(None, map(_STEP.fullmatch, work.split(" ")))
    return Working(
        steps=tuple(tuple(map(int, step.groups())) for step in steps),
        answer=int(answer) if _NUMBER.fullmatch(answer) else None,
    )


def worked(terms: tuple[int, ...], rng: random.Random | None = None, slip: float = 0.0) -> str:
    """The step-by-step answer; with probability `slip` a step goes wrong, and the rest follows from it."""
    total, steps = terms[0], []
    for term in terms[1:]:
        claimed = total + term
        if slip and rng.random() < slip:
            claimed = max(0, claimed + rng.choice((-10, -1, 1, 10)))
        steps.append(f"{total}+{term}={claimed}")
        total = claimed
    return " ".join(steps) + f"#{total}"


def guess(terms: tuple[int, ...], rng: random.Random) -> str:
    """An answer in one breath: the right sum plus a uniform error, wider for longer sums.

    No number is likelier than its neighbours, so there is no best guess to sharpen towards.
    """
    spread = len(terms) + len(str(max(terms))) - 1
    return f"#{max(0, sum(terms) + rng.randint(-spread, spread))}"


# What the corpus mixes: numbers of terms and of digits; how often an answer is worked, and one of its steps slips.
TERMS = {2: 0.25, 3: 0.40, 4: 0.20, 5: 0.15}
DIGITS = {1: 0.25, 2: 0.60, 3: 0.15}
WORKED = 0.25
SLIP = 0.02


def corpus(rng: random.Random, worked_share: float = WORKED) -> tuple[str, str]:
    """One (prompt, response) of the pretraining text."""
    (terms,) = rng.choices(list(TERMS), TERMS.values())
    (digits,) = rng.choices(list(DIGITS), DIGITS.values())
    problem = Sums(terms, digits).draw(rng)
    works = rng.random() < worked_share
    return problem.prompt, worked(problem.terms, rng, SLIP) if works else guess(problem.terms, rng)


def table(rng: random.Random, lines: int = 10) -> str:
    """A page of the primer: additions of two numbers, all right. Nobody asks and nobody answers here.

    >>> table(random.Random(1), lines=3)
    '98+65=163 58+61=119 97+500=597'
    """
    page = []
    for _ in range(lines):
        digits = rng.choices((1, 2, 3), (0.10, 0.45, 0.45))[0], rng.choices((1, 2, 3), (0.20, 0.55, 0.25))[0]
        a, b = (rng.randint(1, 10**d - 1) for d in digits)
        page.append(f"{a}+{b}={a + b}")
    return " ".join(page)


@dataclass(frozen=True)
class Sums:
    """The task. `terms` and `digits` are the difficulty dial: the pockets have read sums of 2 to 5 terms
    of 1 to 3 digits, and beyond that they are on their own. `judge` replaces the rule by rewards of your own;
    it finds what the rule says in `rollout.correct`."""

    terms: int = 3
    digits: int = 2
    judge: Callable[[Rollout], Tensor] | None = None

    __repr__ = shown

    def __post_init__(self):
        if self.terms < 2 or not 1 <= self.digits <= 9:
            raise ValueError(
                f"Sums takes 2 terms or more, of 1 to 9 digits; got {self.terms} of {self.digits}"
            )

    @property
    def max_tokens(self) -> int:
        """Room for the longest worked answer with its EOS, and a few tokens to go astray in."""
        total = len(str(self.terms * (10**self.digits - 1)))
        return (self.terms - 1) * (2 * total + self.digits + 3) + total + 4

    def draw(self, rng: random.Random) -> Sum:
        low, high = (1 if self.digits == 1 else 10 ** (self.digits - 1)), 10**self.digits - 1
        return Sum(tuple(rng.randint(low, high) for _ in range(self.terms)))

    def grade(self, rollout: Rollout) -> dict[str, Tensor]:
        """`rewards` and `correct` of every response, and `worked`: did it show a step?

        An answer that was cut at the token limit counts as wrong: `#13` may have been on its way to `#137`.
        """
        read_texts = [read(text) for text in rollout.texts]
        answers = [rollout.problems[p].answer for p in rollout.owner.tolist()]
        right = torch.tensor([r.answer == a for r, a in zip(read_texts, answers, strict=True)])
        rollout.correct = right.to(rollout.tokens.device) & rollout.finished
        return {
            "rewards": self.judge(rollout) if self.judge else rollout.correct.float(),
            "correct": rollout.correct,
            "worked": torch.tensor([len(r.steps) > 0 for r in read_texts]),
        }

    def answer_of(self, problem: Sum, text: str) -> str | None:
        """What a response says in the end: majority votes are over this."""
        answer = read(text).answer
        return None if answer is None else str(answer)

    def asked_of(self, policy: Policy) -> Sums | SumsInWords:
        """The task as this policy should be asked: in words, unless it is a pocket."""
        return self if policy.pocket else SumsInWords(self.terms, self.digits, judge=self.judge)


# ---- the same sums for models that read English


@dataclass(frozen=True)
class SumInWords(Sum):
    @property
    def prompt(self) -> str:
        return f"What is {' + '.join(map(str, self.terms))}? {STEP_BY_STEP}"


# Two numbers, no third before them, and their sum: `17 + 25 = 42`, and not the end of `48 + 17 + 25 = 90`.
_STEP_IN_WORDS = re.compile(r"(?<![0-9+])(?<!\+ )[0-9]{1,12} ?\+ ?[0-9]{1,12} ?= ?[0-9]")


@dataclass(frozen=True)
class SumsInWords(InWords):
    """The task in words: the same dials, and room for `max_tokens` of English."""

    terms: int = 3
    digits: int = 2
    max_tokens: int = 256
    judge: Callable[[Rollout], Tensor] | None = None

    __repr__ = shown

    def __post_init__(self):
        Sums(self.terms, self.digits)  # knows which sums there are

    def draw(self, rng: random.Random) -> SumInWords:
        return SumInWords(Sums(self.terms, self.digits).draw(rng).terms)

    def read(self, problem: SumInWords, text: str) -> dict[str, bool]:
        """`correct`, and `worked`: did it show a step, an addition of two numbers with its result?"""
        return {
            "correct": number(boxed(text) or "") == problem.answer,
            "worked": _STEP_IN_WORDS.search(text) is not None,
        }

    def answer_of(self, problem: Sum, text: str) -> str | None:
        answer = number(boxed(text) or "")
        return None if answer is None else str(answer)
