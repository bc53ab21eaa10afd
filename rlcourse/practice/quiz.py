"""The quiz: which card comes next, and a session with it in a terminal.

`workbook/quiz.json` is the list of the reader's ratings and nothing else. The day on which a card comes back is
computed from them by FSRS, without its random fuzz: the same ratings always give the same days.

Should it ever hold anything else, it will be an object with a "version", 2 or more: this rlcourse leaves it alone.
"""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import fsrs
from filelock import FileLock
from rich.console import Console

from rlcourse.bookmaking import atomic, stamps
from rlcourse.practice.cards import DIFFICULTIES, Card
from rlcourse.practice.rendering import terminal

PROGRESS = stamps.ROOT / "workbook" / "quiz.json"
RATINGS = {"1": "again", "2": "hard", "3": "good", "4": "easy"}
SCHEDULER = fsrs.Scheduler(enable_fuzzing=False)


def clock() -> datetime:
    return datetime.now(UTC)


# What the reader has done


def load(file: Path) -> list[dict]:
    """The ratings so far. A file that is not a list of ratings is set aside, and its new name is said."""
    if not file.exists():
        return []
    with lock(file):
        return read(file)


def rate(card: Card, rating: int, file: Path, now: datetime) -> None:
    """Add a rating. Other processes may do the same: each reads what the last one wrote."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with lock(file):
        ratings = [*read(file), {"card": card.id, "rating": rating, "at": now.isoformat(timespec="seconds")}]
        lines = ",\n".join(map(json.dumps, ratings))
        atomic.write(file, f"[\n{lines}\n]\n")


def lock(file: Path) -> FileLock:
    return FileLock(file.with_name(f".{file.name}.lock"), timeout=10)


class Later(ValueError):
    """Written by a later rlcourse than this one."""


def read(file: Path) -> list[dict]:
    try:
        ratings = json.loads(file.read_text())
        if isinstance(ratings, dict) and "version" in ratings:
            raise Later(
                f"{file} was written by a later rlcourse (version {ratings['version']!r} of the file), and this one "
                "cannot read it. It is left as it is: update rlcourse (git pull, make setup)"
            )
        schedule(ratings)
        return ratings
    except FileNotFoundError:
        return []
    except Later:
        raise
    except (ValueError, LookupError, TypeError, OverflowError):
        kept = atomic.set_aside(file, "damaged")
        print(f"{file} is damaged. It is kept as {kept.name}, and a new one is begun.", file=sys.stderr)
        return []


# Which card comes next


def schedule(ratings: list[dict]) -> dict[str, fsrs.Card]:
    """What FSRS knows of each card that has been rated."""
    known: dict[str, fsrs.Card] = {}
    for each in ratings:
        at = datetime.fromisoformat(each["at"]).astimezone(UTC)
        before = known.get(each["card"]) or fsrs.Card(card_id=0, due=at)
        known[each["card"]], _ = SCHEDULER.review_card(before, fsrs.Rating(each["rating"]), at)
    return known


def queue(cards: list[Card], ratings: list[dict], now: datetime) -> list[Card]:
    """The cards that are due, the longest first; then the new ones, the easy first."""
    known = schedule(ratings)
    due = [card for card in cards if card.id in known and known[card.id].due <= now]
    new = [card for card in cards if card.id not in known]
    return [
        *sorted(due, key=lambda card: known[card.id].due),
        *sorted(new, key=lambda card: DIFFICULTIES.index(card.difficulty)),
    ]


def comes_back(cards: list[Card], ratings: list[dict], now: datetime) -> str:
    """When the first of these cards is due, all of which have been rated."""
    known = schedule(ratings)
    minutes = (min(known[card.id].due for card in cards) - now).total_seconds() / 60
    for size, unit in ((1440, "day"), (60, "hour"), (1, "minute")):
        if minutes >= size:
            return f"in {minutes / size:.0f} {unit}{'s' * (round(minutes / size) != 1)}"
    return "within a minute"


# A session


def heading(card: Card, left: int) -> str:
    """What is shown before the answer."""
    facts = (card.id, card.difficulty, card.asked and f"asked: {card.asked}", f"{left} to go")
    return f"{' · '.join(filter(None, facts))}\n\n**{card.question}**"


def steps(card: Card) -> Iterator[str]:
    """What is shown after the question, step by step: an answer, and what they ask next."""
    asked, answers = zip(*card.follow_ups)
    for answer, question in zip((card.short, *answers), asked):
        yield f"{answer}\n\n**They go on asking.** {question}"
    yield f"{answers[-1]}\n\n**Often said, and wrong.** {card.wrong}\n\n**Proof.** {card.proof}"


def session(cards: list[Card], file: Path, now: Callable[[], datetime] = clock) -> None:
    """Card after card, until none is due or the reader stops. A rating is kept as soon as it is given."""
    rated = 0
    try:
        while waiting := queue(cards, load(file), now()):
            rate(waiting[0], practise(waiting[0], len(waiting)), file, now())
            rated += 1
        print(f"Nothing is due. The next card comes back {comes_back(cards, load(file), now())}.")
    except (EOFError, KeyboardInterrupt):
        print()
    print(f"{rated} card{'s' * (rated != 1)} rated" + (f", kept in {file}." if rated else "."))


def practise(card: Card, left: int) -> int:
    """One card in the terminal, and the reader's rating of their own answer."""
    console = Console(highlight=False)
    console.width = min(console.width, 100)  # longer lines are hard to read

    def say(text: str) -> None:
        console.print(terminal(text), "", sep="\n")

    say(f"---\n\n{heading(card, left)}")
    for step in steps(card):
        ask("Answer aloud, then Enter (q: stop) ")
        say(step)
    while (said := ask("1 again, 2 hard, 3 good, 4 easy (f: the full answer, q: stop) ")) not in RATINGS:
        if said == "f":
            say(card.full)
    return int(said)


def ask(prompt: str) -> str:
    said = input(prompt).strip().lower()
    if not sys.stdin.isatty():
        print()  # nobody has pressed Enter
    if said == "q":
        raise EOFError
    return said
