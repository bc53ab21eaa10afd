"""What all commands share: how they read their command line, and how they answer."""

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from rlcourse import documents
from rlcourse.terminal import visible, visible_lines


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where to read on: a page of usage hides it."""

    def error(self, message: str):
        stop = "" if message[-1] in ".?!" else "."
        self.exit(2, f"{self.prog}: {plain(message)}{stop} See: {self.prog} --help\n")


def command(commands, name: str, run: Callable, help: str, description: str, example: str) -> Parser:
    parser = commands.add_parser(
        name,
        help=help,
        description=textwrap.fill(description, 96),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_json(parser: Parser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, for scripts"
    )


def positive(text: str) -> int:
    """A number of things: 1 or more, and `40_000` is one too."""
    if not text.replace("_", "").isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def rate(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def place(text: str) -> Path:
    """Where to write. What an unset variable leaves of `--out "$OUT"` would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no place: give a path, or leave the option away")
    return Path(text)


def understood(options: argparse.Namespace, kind: str, text: str):
    """The method or the task of this name or expression; what there is not is the command line's fault."""
    from rlcourse import methods, tasks
    from rlcourse.training import named

    known = {name.lower(): name for name in (methods if kind == "method" else tasks).__all__}
    name, bracket, rest = text.strip().partition("(")
    try:
        return getattr(named, kind)(known.get(name.lower(), name) + bracket + rest)
    except ValueError as error:
        options.parser.error(str(error))


def say(options: argparse.Namespace, document: dict, *lines: str) -> int:
    """The answer of a command: for scripts the document, for people the lines. Of several processes one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(documents.text(document, indent=1) if options.json else visible_lines("\n".join(lines)))
    return 0


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def hidden() -> bool:
    """Progress is for people who look: not in a log, not in a pipe."""
    return not sys.stderr.isatty()


TOO_LARGE = (
    "out of memory. In this order: --micro-batch 4, --gradient-checkpointing, --lora 16, fewer --responses, "
    "a smaller --model. `rlcourse doctor` says what fits here."
)


def sentence(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, MemoryError):
        return TOO_LARGE
    if isinstance(error, OSError) and error.filename:
        return plain(f"{error.filename}: {error.strerror}")
    return plain(str(error))


def plain(text: str) -> str:
    """In one line, and nothing in it that a terminal obeys: a file may hold anything."""
    return visible(text.replace("\n", " "))
