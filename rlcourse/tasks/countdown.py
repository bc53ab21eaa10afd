r"""Countdown: reach a target with given numbers, each used exactly once, and + - * /.

The game as a task for language models is from Stream of Search (Gandhi et al., 2024, arXiv 2404.03683), and
TinyZero (github.com/Jiayi-Pan/TinyZero) made it the small reproduction of R1-Zero that everybody tries. As there,
every number must be used, the answer is one expression, and the prompt asks to work first. Different here:

- TinyZero pays 1.0 for right and 0.1 for an answer in the right tags. Here only right pays, and `boxed` and
  `valid` are noted: what a share of the reward for format does is yours to try with `judge=`.
- its `gen_dataset` draws target and numbers apart, so that a puzzle may have no solution; here every one has.
- its expressions are run by Python's `eval` and compared to within 1e-5. Model output is data: here a grammar
  reads it, and fractions are exact.
- the answer stands in `\boxed{...}`, as in all our tasks in words, and not between <answer> tags.

    >>> puzzle = Countdown(numbers=3, high=9).draw(Random(1))
    >>> puzzle.numbers, puzzle.target, puzzle.solution
    ((3, 2, 5), 4, '2 + (5 - 3)')
    >>> read("(1 + 2) * 3 / 2").value
    Fraction(9, 2)
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from torch import Tensor

from rlcourse.lm import Rollout
from rlcourse.tasks.ask import shown
from rlcourse.tasks.boxed import InWords, boxed, number

# ---- the grammar
#
# sum      :=  product (("+" | "-") product)*
# product  :=  factor (("*" | "/") factor)*
# factor   :=  whole number | "(" sum ")" | "-" factor

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
LONGEST, DEEPEST = 200, 20  # characters, and factors within factors: more is no answer to any puzzle
SPELT = {  # the same sign, as models write it
    **dict.fromkeys(("×", "x", "·", r"\times", r"\cdot"), "*"),
    **dict.fromkeys(("÷", r"\div"), "/"),
    **dict.fromkeys(("−", "–"), "-"),
    **dict.fromkeys((r"\left", r"\right"), ""),
}
_SPELT = re.compile("|".join(map(re.escape, SPELT)))
_TOKENS = re.compile(r"(?:[0-9]{1,9}(?![0-9])|[-+*/()]|\s)*")


@dataclass(frozen=True)
class Expression:
    value: Fraction
    numbers: tuple[int, ...]  # in the order in which they stand there


def read(text: str) -> Expression | None:
    """An expression of the grammar above; None if it is none, is too long or too deep, or divides by zero."""
    if len(text) > LONGEST:
        return None
    text = _SPELT.sub(lambda sign: SPELT[sign[0]], text)
    if not _TOKENS.fullmatch(text):
        return None
    tokens = re.findall(r"[0-9]+|[-+*/()]", text)
    numbers = tuple(int(token) for token in tokens if token.isdigit())
    tokens.reverse()  # so that pop() takes the first

    def sum_(depth: int) -> Fraction:
        value = product(depth)
        while tokens and tokens[-1] in "+-":
            value = SIGNS[tokens.pop()](value, product(depth))
        return value

    def product(depth: int) -> Fraction:
        value = factor(depth)
        while tokens and tokens[-1] in "*/":
            value = SIGNS[tokens.pop()](value, factor(depth))
        return value

    def factor(depth: int) -> Fraction:
        token = tokens.pop() if tokens and depth <= DEEPEST else ""
        if token == "-":
            return -factor(depth + 1)
        if token == "(":
            value = sum_(depth + 1)
            if tokens and tokens.pop() == ")":
                return value
        if token.isdigit():
            return Fraction(token)
        raise ValueError("not in the grammar")

    try:
        value = sum_(0)
    except (ValueError, ZeroDivisionError):
        return None
    return None if tokens else Expression(value, numbers)


# ---- the game


@dataclass(frozen=True)
class Puzzle:
    """The numbers, the target, and one way to reach it."""

    numbers: tuple[int, ...]
    target: int
    solution: str

    @property
    def prompt(self) -> str:
        *others, last = map(str, self.numbers)
        return (
            f"Using the numbers {', '.join(others)} and {last}, each exactly once, write an expression that equals "
            f"{self.target}. You can use +, -, *, / and parentheses. Please reason step by step, and put the final "
            r"expression within \boxed{}, for example \boxed{(1 + 2) / 3}."
        )


@dataclass(frozen=True)
class Countdown(InWords):
    """The task. Its difficulty: how many `numbers`, from `low` to `high`. Reward 1 for a right expression.

    A puzzle is made backwards, by joining numbers until one is left, which is the target. Every result on the way
    is a whole number from 1 to `most`, so that targets stay of the size of the numbers and need no fractions.
    """

    numbers: int = 4
    low: int = 1
    high: int = 99
    most: int = 999
    max_tokens: int = 512
    judge: Callable[[Rollout], Tensor] | None = None

    __repr__ = shown

    def __post_init__(self):
        if not 2 <= self.numbers <= 8:
            raise ValueError(f"Countdown takes 2 to 8 numbers; got numbers={self.numbers}")
        if not 1 <= self.low <= self.high <= self.most:
            raise ValueError(
                "Countdown draws its numbers from low to high, and no result passes most: 1 <= low <= high <= most; "
                f"got low={self.low}, high={self.high}, most={self.most}"
            )

    def draw(self, rng: Random) -> Puzzle:
        numbers = tuple(rng.randint(self.low, self.high) for _ in range(self.numbers))
        terms = [(n, str(n)) for n in numbers]
        while len(terms) > 1:
            pair = [terms.pop(rng.randrange(len(terms))) for _ in range(2)]
            (a, left), (b, right) = sorted(pair, reverse=True)
            results = {sign: join(Fraction(a), b) for sign, join in SIGNS.items()}
            # never none: a - b where they differ, and a / b where they do not
            fine = [sign for sign, c in results.items() if 1 <= c <= self.most and c.denominator == 1]
            sign = rng.choice(fine)
            terms.append((int(results[sign]), f"({left} {sign} {right})"))
        target, solution = terms[0]
        return Puzzle(numbers, target, solution[1:-1])

    def read(self, puzzle: Puzzle, text: str) -> dict[str, bool]:
        """`correct`, and `valid`: is it an expression with exactly the given numbers?"""
        answer, equals, claimed = (boxed(text) or "").partition(
            "="
        )  # "= target" behind the expression does no harm
        found = read(answer)
        valid = found is not None and sorted(found.numbers) == sorted(puzzle.numbers)
        right = valid and found.value == puzzle.target and (not equals or number(claimed) == puzzle.target)
        return {"correct": right, "valid": valid}

    def answer_of(self, puzzle: Puzzle, text: str) -> str | None:
        """The expression, its spaces aside."""
        answer = boxed(text)
        return answer and "".join(answer.split())
