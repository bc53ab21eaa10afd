r"""A reader's own data: a text file with one JSON object a line.

    {"question": "Ann has 3 apples and buys 4. How many has she?", "answer": "3 + 4 = 7\n#### 7"}
    {"prompt": "Where is my parcel?", "chosen": "It comes tomorrow.", "rejected": "No idea."}

`Questions` is the task of answering a file's questions, `preferences` what people have said in one. What is wrong
with a file is said with the line that it is wrong in, before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import NamedTuple

from torch import Tensor

from rlcourse.lm import Rollout
from rlcourse.tasks.annotators import Demonstration, Pair, Ranking, Verdict
from rlcourse.tasks.ask import shown
from rlcourse.tasks.boxed import STEP_BY_STEP, InWords, boxed, number

# ---- lines


class Row(NamedTuple):
    """One line's object, and where it stands, for errors."""

    fields: dict
    where: str

    def one_of(self, *names: str) -> str:
        """The name among these that the line has."""
        if found := [name for name in names if name in self.fields]:
            return found[0]
        wanted, there = (", ".join(map(json.dumps, some)) for some in (names, self.fields))
        raise ValueError(f"{self.where} lacks one of {wanted}; it has {there or 'nothing'}")

    def text(self, name: str, value, role: str) -> tuple[str | None, str]:
        """What this role says, and what it was asked: `value` is a text, or a conversation of one turn."""
        asked = None
        match value:
            case str(text):
                pass
            case [{"role": who, "content": str(text)}] if who == role:
                pass
            case [{"role": "user", "content": str(asked)}, {"role": "assistant", "content": str(text)}] if (
                role == "assistant"
            ):
                pass
            case _:
                raise ValueError(
                    f"{self.where}: {json.dumps(name)} must be a text, or a conversation of one turn, which is a "
                    f'list with one message {{"role": "{role}", "content": "..."}}; rlcourse asks once, with the '
                    f"user's message alone. It is {json.dumps(value)[:100]}"
                )
        for said in [each for each in (asked, text) if each is not None]:
            if not said.strip():
                raise ValueError(f"{self.where}: {json.dumps(name)} is empty")
            if re.search("[\ud800-\udfff]", said):
                raise ValueError(
                    f"{self.where}: {json.dumps(name)} holds half a character (a lone surrogate)"
                )
        return asked, text


def rows(path: str | Path) -> Iterator[Row]:
    """The objects of a file, one a line; blank lines are skipped."""
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    empty = True
    for n, line in enumerate(lines, 1):
        where = f"line {n} of {path}"
        if not line.strip():
            continue
        try:
            found = json.loads(line.decode(), object_pairs_hook=_no_key_twice)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where} is not UTF-8: byte {error.start + 1} of it is {line[error.start]:#04x}"
            ) from None
        except (ValueError, RecursionError) as error:
            what = (
                f"at column {error.colno}, {error.msg}" if isinstance(error, json.JSONDecodeError) else error
            )
            raise ValueError(
                f"{where} is not JSON: {what}. Each line must be one whole object, {{...}}"
            ) from None
        if not isinstance(found, dict):
            raise ValueError(f"{where} must be an object, {{...}}; it is {json.dumps(found)[:60]}")
        empty = False
        yield Row(found, where)
    if empty:
        raise ValueError(f"{path} is empty: it must hold one JSON object a line")


def _no_key_twice(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {json.dumps(twice)} twice")
    return found


# ---- questions


@dataclass(frozen=True)
class Question:
    prompt: str
    answer: str


@dataclass(frozen=True)
class Questions(InWords):
    """The task of answering the questions in a file of {"question" or "prompt": ..., "answer": ...}.

    The answer is a number, or a text; of GSM8K's, what follows "####". A response is right if its answer is the same
    number (the box may say a word beside it, "18 dollars"), or for other answers the same text but for case, spaces
    and punctuation around it. Its answer is what stands in the last box; if there is no box, what follows "####"; if
    there is neither, its last line.

    What a policy was trained on says little about how good it is. Where there is one file only, train on
    `part="train"` and measure on `part="test"`, a tenth of its questions, chosen by their text: the same ones each
    time, whatever else is in the file. `instruction` follows every question; pass "" if yours say all that is needed.
    """

    path: str | Path
    part: str = "all"  # or "train", "test"
    instruction: str = STEP_BY_STEP
    max_tokens: int = 512
    judge: Callable[[Rollout], Tensor] | None = None
    questions: tuple[Question, ...] = field(init=False, repr=False, compare=False)

    __repr__ = shown

    def __post_init__(self):
        if self.part not in ("all", "train", "test"):
            raise ValueError(
                f'part={self.part!r}: a file of questions has the parts "all", "train" and "test"'
            )
        found = [self._question(row) for row in rows(self.path)]
        chosen = [q for q in found if self.part in ("all", "test" if _held_out(q) else "train")]
        if not chosen:
            raise ValueError(
                f"of the {len(found)} questions in {self.path} none falls into part={self.part!r}: one in ten is kept "
                "for testing, by chance. Add questions, or bring a file for each part"
            )
        object.__setattr__(self, "path", str(self.path))
        more = f"\n{self.instruction}" if self.instruction else ""
        object.__setattr__(self, "questions", tuple(Question(q.prompt + more, q.answer) for q in chosen))

    @staticmethod
    def _question(row: Row) -> Question:
        name = row.one_of("prompt", "question")
        _, prompt = row.text(name, row.fields[name], "user")
        answer = row.fields[row.one_of("answer")]
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = _written_out(answer, row.where)
        if not isinstance(answer, str) or not normal(answer := answer.rpartition("####")[2].strip()):
            raise ValueError(f'{row.where}: "answer" must be a number or a text, and not an empty one')
        return Question(prompt, answer)

    def draw(self, rng: Random) -> Question:
        return rng.choice(self.questions)

    def read(self, question: Question, text: str) -> dict[str, bool]:
        said, wanted = final(text), number(question.answer)
        if wanted is None:
            return {"correct": normal(said) == normal(question.answer)}
        return {"correct": only_number(said) == wanted}

    def answer_of(self, question: Question, text: str) -> str | None:
        """What `read` compares: of a question for a number the number, or nothing; else the text."""
        said = final(text)
        if number(question.answer) is None:
            return normal(said) or None
        value = only_number(said)
        return None if value is None else str(value)


def _written_out(answer: int | float, where: str) -> str:
    """A JSON number as people write it, and models: 0.00005 and not 5e-05, which nobody's answer would equal."""
    if isinstance(answer, int):
        return str(answer)
    if not math.isfinite(answer):  # Python reads NaN and Infinity, and 1e999 for the latter
        raise ValueError(f'{where}: "answer" must be a number or a text; {answer} is no number to arrive at')
    text = f"{Decimal(repr(answer)):f}"
    if number(text) is None:
        raise ValueError(
            f'{where}: "answer" is {answer!r}, a number that takes {len(text)} characters to write out, more than '
            "are read of a response. Ask for fewer digits, or give the answer as a text"
        )
    return text


def _held_out(question: Question) -> bool:
    return hashlib.sha256(question.prompt.encode()).digest()[0] < 26  # of 256


def final(text: str) -> str:
    """Where a response says its answer: see `Questions`. A box that was never closed is none, and hides the rest."""
    if r"\boxed" in text:
        return boxed(text) or ""
    if "####" in text:
        return text.rpartition("####")[2].strip()
    return text.strip().rpartition("\n")[2]


def normal(text: str) -> str:
    """A text but for case, spaces, and the punctuation and LaTeX around it."""
    text = re.sub(r"^\\text\{([^{}]*)\}$", r"\1", text.strip().strip("$ "))
    return " ".join(text.casefold().split()).strip(" .,:;!?\"'()*")


_NUMBERS = re.compile(r"(?<![\w.,])[-−]?\\?\$?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?")


def only_number(text: str) -> Fraction | None:
    """The number that a text is, or the only one in it: 18 for "18 dollars", None for "17 or 18"."""
    if len(text) > 300:  # no answer, and a hostile one would take long
        return None
    found = {number(text)} - {None} or {number(match.rstrip(",")) for match in _NUMBERS.findall(text)}
    return found.pop() if len(found) == 1 else None


# ---- what people have said


def preferences(path: str | Path) -> list[Pair] | list[Demonstration] | list[Verdict] | list[Ranking]:
    """The feedback in a file, in the order of its lines, all of one kind:

        {"prompt", "chosen", "rejected"}      Pair
        {"prompt", "response"}                Demonstration
        {"prompt", "response", "good"}        Verdict; good is true or false
        {"prompt", "responses"}               Ranking; the best first

    TRL's names are understood, "completion" for the response and "label" for good, and so are its conversations of
    one turn, in which the question may stand before the answers and not in a "prompt".
    """
    found = []
    for row in rows(path):
        found.append(_feedback(row))
        first, kind = (type(found[i]).__name__ for i in (0, -1))
        if kind != first:
            raise ValueError(
                f"{row.where} is a {kind}, and the lines before it are {first}s: a file holds one kind"
            )
    return found


def _feedback(row: Row) -> Pair | Demonstration | Verdict | Ranking:
    names, asked = row.fields, []

    def said(name: str, value) -> str:
        question, text = row.text(name, value, "assistant")
        if question is not None:
            asked.append(question)
        return text

    def prompt() -> str:
        """What was asked, wherever that stands: everywhere the same."""
        if not asked or "prompt" in names:
            asked.append(row.text("prompt", names[row.one_of("prompt")], "user")[1])
        if len(set(asked)) > 1:
            raise ValueError(f"{row.where} answers two questions: {asked[0][:60]!r} and {asked[-1][:60]!r}")
        return asked[0]

    if "chosen" in names or "rejected" in names:
        better, worse = (said(name, names[row.one_of(name)]) for name in ("chosen", "rejected"))
        return Pair(prompt(), better, worse)
    if "responses" in names:
        if not isinstance(names["responses"], list) or len(names["responses"]) < 2:
            raise ValueError(f'{row.where}: "responses" must be a list of two or more, the best first')
        ranked = tuple(said("responses", each) for each in names["responses"])
        return Ranking(prompt(), ranked)
    answer = row.one_of("response", "completion", "messages")
    response = said(answer, names[answer])
    verdict = [name for name in ("good", "label") if name in names]
    if not verdict:
        return Demonstration(prompt(), response)
    good = names[verdict[0]]
    if not isinstance(good, bool):
        raise ValueError(
            f"{row.where}: {json.dumps(verdict[0])} must be true or false; it is {json.dumps(good)[:60]}"
        )
    return Verdict(prompt(), response, good)
