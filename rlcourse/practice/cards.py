"""Interview cards: what the topic files in `book/interview/cards/` hold, and whether their proofs stand.

    cards(topic="grpo", difficulty="hard")      the cards, in the order in which they are written
    stands(proof)                               "" or why not, for each of proofs(card)

A file is read whole: all that is missing in it is said at once, card by card.
"""

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name

from rlcourse.bookmaking import stamps

FOLDER = stamps.ROOT / "book" / "interview" / "cards"
TOPICS = ("ppo", "kl", "grpo", "preferences", "systems")  # in the order in which one learns them
DIFFICULTIES = ("easy", "medium", "hard")
SECTIONS = ("In 30 seconds", "In full", "They go on asking", "Often said, and wrong", "Proof")

CLAIM = r'\[[^]]*\]\((?P<page>[^)\s]+)\):\s+"(?P<says>[^"]+)"'
TEST = r"`(?P<file>tests/[\w/]+\.py)::(?P<test>(\w+::)?test_\w+)`"
NAME = r"`(?P<name>rlcourse(\.\w+)+)`"
PROOF = re.compile(rf"({CLAIM}|{TEST}|{NAME})\s*(;\s*|\.?$)")


class Faulty(ValueError):
    """A topic file in which something is missing."""


class Unknown(ValueError):
    """A topic, difficulty or tag that no card has."""


@dataclass(frozen=True)
class Card:
    """A question, the answer to it at three lengths, and what shows that the answer is right."""

    id: str
    topic: str
    question: str
    difficulty: str
    tags: tuple[str, ...]
    asked: str  # company, round and date, where known; else ""
    short: str
    full: str
    follow_ups: tuple[tuple[str, str], ...]  # question, answer
    wrong: str
    proof: str


@dataclass(frozen=True)
class Proof:
    """A "claim" of a notebook, a "test", or a "name" in the library."""

    kind: str
    where: str  # the page, the test's file, the module and name
    what: str = ""  # the claim's words, the test's name


def cards(topic: str | None = None, difficulty: str | None = None, tag: str | None = None) -> list[Card]:
    """The cards of a topic, a difficulty and a tag; None is all of them."""
    files = [FOLDER / f"{name}.md" for name in TOPICS]
    found = [card for file in files if file.exists() for card in parse(file)]
    if not found:
        raise FileNotFoundError(f"There are no cards in {FOLDER}: they come with a clone of the repository.")
    known("topic", topic, {card.topic for card in found})
    known("difficulty", difficulty, {card.difficulty for card in found})
    known("tag", tag, {tag for card in found for tag in card.tags})
    return [
        card
        for card in found
        if topic in (None, card.topic) and difficulty in (None, card.difficulty) and tag in (None, *card.tags)
    ]


def known(kind: str, given: str | None, names: set[str]) -> None:
    if given is not None and given not in names:
        near = get_close_matches(given, names, n=1, cutoff=0.5)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise Unknown(f"No card has the {kind} {given!r}.{meant} There are: {', '.join(sorted(names))}.")


def parse(file: Path) -> list[Card]:
    """The cards of a topic file."""
    found, faults = [], []
    for block in re.split(r"^## ", file.read_text(), flags=re.MULTILINE)[1:]:
        card, missing = read(block, file.stem)
        if card.id in {other.id for other in found}:
            missing.append("another card has this id")
        faults += [f"{file.name}, {card.id or card.question}: {fault}" for fault in missing]
        found.append(card)
    if faults:
        raise Faulty("\n".join(faults))
    return found


def read(block: str, topic: str) -> tuple[Card, list[str]]:
    """The card of one `##` section, and what it lacks."""
    head, _, answer = block.partition("<details><summary>Answer</summary>")
    question, _, rest = head.partition("\n")
    ident, *facts = [fact.strip() for fact in rest.strip().partition("\n")[0].split("·")]
    named = {key: value.strip() for key, colon, value in (fact.partition(":") for fact in facts) if colon}
    label = re.compile(rf"^\*\*({'|'.join(SECTIONS)})\.\*\*", re.MULTILINE)
    _, *parts = label.split(answer.rpartition("</details>")[0])
    short, full, asking, wrong, proof = (
        dict(zip(parts[::2], map(str.strip, parts[1::2]))).get(section, "") for section in SECTIONS
    )
    items = re.split(r"^\d+\.\s+", asking, flags=re.MULTILINE)[1:]
    pairs = [re.fullmatch(r"\*(.+?[^\s*])\*\s+(.+)", item.strip(), re.DOTALL) for item in items]
    card = Card(
        id=ident.strip("`"),
        topic=topic,
        question=question.strip(),
        difficulty=facts[0] if facts else "",
        tags=tuple(tag for tag in re.split(r",\s*", named.get("tags", "")) if tag),
        asked=named.get("asked", ""),
        short=short,
        full=full,
        follow_ups=tuple((pair[1], pair[2]) for pair in pairs if pair),
        wrong=wrong,
        proof=proof,
    )
    wanted = {
        f"its id should be `{topic}.name`": re.fullmatch(rf"`{topic}\.\w+`", ident),
        f"its difficulty should be one of {', '.join(DIFFICULTIES)}": card.difficulty in DIFFICULTIES,
        "no `tags: one, another`": card.tags,
        "no `<details><summary>Answer</summary>` ... `</details>`": "</details>" in answer,
        **{f"no **{name}.**": text for name, text in zip(SECTIONS, (short, full, asking, wrong, proof))},
        f"{len(items)} follow-ups, at least 3 wanted": len(items) >= 3,
        "a follow-up is not `1. *Question?* Answer`": all(pairs),
    }
    missing = [says for says, holds in wanted.items() if not holds]
    try:
        if not {"claim", "test"} & {each.kind for each in proofs(card)}:
            missing.append("neither a claim nor a test among its proofs")
    except Faulty as fault:
        missing.append(str(fault))
    return card, missing


def proofs(card: Card) -> list[Proof]:
    """What a card names as its proof."""
    found, rest = [], card.proof
    while rest:
        item = PROOF.match(rest)
        if item is None:
            raise Faulty(f'neither [page](link): "claim", `tests/file.py::test` nor `rlcourse.name`: {rest}')
        if item["page"]:
            found.append(Proof("claim", item["page"], item["says"]))
        elif item["file"]:
            found.append(Proof("test", item["file"], item["test"]))
        else:
            found.append(Proof("name", item["name"]))
        rest = rest[item.end() :]
    return found


def stands(proof: Proof, root: Path = stamps.ROOT, folder: Path = FOLDER) -> str:
    """Why a proof does not stand; "" if it does."""
    try:
        if proof.kind == "claim":
            # with what was measured and its bound behind the words, or as a fact without
            said = re.compile(re.escape(f"✓ {proof.what}") + r"(: \S+( [<>] \S+){1,2})?")
            if not any(map(said.fullmatch, printed(folder / proof.where.partition("#")[0]))):
                return f'{proof.where} does not print "✓ {proof.what}"'
        elif proof.kind == "test":
            stamps.source_of((root / proof.where).read_text(), proof.what.replace("::", "."))
        else:
            resolve_name(proof.where)
    except (OSError, ValueError, LookupError, ImportError, AttributeError) as error:
        return f"{proof.where}: {error}"
    return ""


def printed(notebook: Path) -> set[str]:
    """The lines that the cells of an executed notebook have printed."""
    cells = json.loads(notebook.read_text())["cells"]
    texts = ["".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", [])]
    return {line.strip() for text in texts for line in text.splitlines()}
