"""Files that are not what they should be, and texts that would take a terminal over."""

import json
from random import Random

import pytest

from rlcourse import cli
from rlcourse.bookmaking import atomic, workbook
from rlcourse.bookmaking.workbook import MANIFEST, fingerprint, lay_out, reset
from rlcourse.terminal import visible, visible_lines
from rlcourse.training.run import Table

# ---- the workbook


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A checkout with a book of two pages; the workbook is not laid out yet."""
    (tmp_path / "checkout" / "book" / "chapters").mkdir(parents=True)
    (tmp_path / "checkout" / "book" / "index.ipynb").write_text('{"cells": []}')
    (tmp_path / "checkout" / "book" / "chapters" / "a.svg").write_text("<svg/>")
    monkeypatch.setattr(workbook, "ROOT", tmp_path / "checkout")
    return tmp_path / "checkout"


def said(*arguments):
    with pytest.raises(SystemExit) as stop:
        workbook.main(list(arguments))
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def lie(home, names):
    """A manifest that says of these that we have laid them, as they are now."""
    mine = home / "workbook"
    lay_out(home / "book", mine)
    laid = json.loads((mine / MANIFEST).read_text())
    laid |= {name: [fingerprint(mine / name)] for name in names}
    (mine / MANIFEST).write_text(json.dumps(laid))


def test_a_manifest_that_names_files_outside_of_the_workbook_touches_none_of_them(home):
    near, far = home / "pyproject.toml", home.parent / "precious.txt"
    behind = home.parent / "elsewhere"
    behind.mkdir()
    for file in (near, far, behind / "linked.txt"):
        file.write_text("mine")
    (home / "workbook").mkdir()
    (home / "workbook" / "link").symlink_to(behind, target_is_directory=True)
    outside = [
        "../pyproject.toml",
        "../../precious.txt",
        str(far),
        "link/linked.txt",
        "link/../precious.txt",
    ]
    (home / "workbook" / "old.svg").write_text("<old/>")
    lie(home, [*outside, "old.svg"])
    assert lay_out(home / "book", home / "workbook")["removed"] == ["old.svg"]  # and that one it may
    for file in (near, far, behind / "linked.txt"):
        assert file.read_text() == "mine"
    assert not set(json.loads((home / "workbook" / MANIFEST).read_text())) & set(outside)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "3", '"text"', "[[1, 2]]", '{"index.ipynb": 5}', '{"index.ipynb": "abc"}'),
        *(
            '{"index.ipynb": [1]}',
            '{"index.ipynb": {"a": 1}}',
            '{"a\\u0000b": ["x"], "": ["x"], "chapters": []}',
        ),
    ],
)
def test_a_manifest_that_is_none_makes_everything_the_readers(home, content):
    mine = home / "workbook"
    lay_out(home / "book", mine)
    (mine / MANIFEST).write_text(content)
    (mine / "index.ipynb").write_text("my notes")
    (home / "book" / "index.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4}')
    assert lay_out(home / "book", mine)["kept"] == ["index.ipynb"]
    assert (mine / "index.ipynb").read_text() == "my notes"
    assert "yours is index.mine-1.ipynb" in reset("index.ipynb", home / "book", mine)
    assert not any(lay_out(home / "book", mine).values())


def test_a_file_in_the_workbooks_place_is_named_and_kept(home):
    (home / "workbook").write_text("mine")
    for arguments in ((), ("--reset", "index.ipynb")):
        assert "workbook" in said(*arguments) and "must be a folder" in said(*arguments)
    assert (home / "workbook").read_text() == "mine"


def test_a_folder_in_a_pages_place_is_named_and_kept(home):
    (home / "workbook" / "index.ipynb").mkdir(parents=True)
    assert f"{home / 'workbook' / 'index.ipynb'}: Is a directory" in said()
    assert (home / "workbook" / "index.ipynb").is_dir()


def test_a_workbook_that_cannot_be_written_is_said(home, monkeypatch):
    def read_only(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(atomic, "write", read_only)
    assert "workbook/.manifest.json: Permission denied. " in said()
    assert "a folder that you may write to" in said("--reset", "index.ipynb")


# ---- what a terminal obeys

HOSTILE = {
    "\x1b[2J": "\\x1b[2J",
    "\x1b]0;owned\x07": "\\x1b]0;owned\\x07",
    "right\rwrong": "right\\rwrong",
    "no\b\byes": "no\\x08\\x08yes",
    "\x9b31m": "\\x9b31m",
    "\x7f\x00": "\\x7f\\x00",
    "\u202etxet\u2066": "\\u202etxet\\u2066",
    "\u2028\u2029": "\\u2028\\u2029",
    "\ud800": "\\ud800",
    "\U000e0041": "\\U000e0041",
}
PLAIN = "17+25=42 ✓ $\\boxed{90}$ é 한국어 中文\u3000字 شما می\u200cخواهید 👩\u200d🚀 �\xa0"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_terminal_obeys_is_shown_and_not_sent(text):
    assert visible(text) == visible(visible(text)) == HOSTILE[text]
    assert visible_lines(f"{text}\n{text}") == f"{HOSTILE[text]}\n{HOSTILE[text]}"


def test_all_other_text_stays_as_it_is():
    assert visible(PLAIN) == PLAIN and visible("a\tb\nc") == "a\\tb\\nc"


def test_no_single_character_reaches_the_terminal_as_a_command():
    commands = [*map(chr, range(32)), *map(chr, range(127, 160)), *map(chr, range(0x202A, 0x202F))]
    assert all(visible(c).isprintable() and len(visible(c)) >= 2 for c in commands)


def test_a_table_of_hostile_answers_has_a_line_a_row_and_straight_columns():
    table = Table(["prompt", "step 1"], [["1+1=", text] for text in (*HOSTILE, "two\nlines")])
    lines = repr(table).splitlines()
    assert len(lines) == 1 + len(table.rows) and all(line.isprintable() for line in lines)
    assert {line.index(shown) for line, shown in zip(lines[1:], HOSTILE.values())} == {len("prompt  ")}


def test_sample_shows_what_was_said_and_obeys_none_of_it(monkeypatch, capsys):
    from rlcourse.lm import Policy

    decode = Policy.decode
    monkeypatch.setattr(
        Policy, "decode", lambda self, tokens: f"one\n\x1b[2Jtwo\r{decode(self, tokens)}"[:12]
    )
    assert cli.main(["sample", "pocket", "--prompt", "1+1=", "-n", "1", "--max-tokens", "2"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[:2] == ["1+1=", "    one"] and lines[2].startswith("    \\x1b[2Jtwo")
    assert all(line.isprintable() for line in lines)


def test_an_error_quotes_a_file_and_obeys_none_of_it(tmp_path, capsys):
    assert cli.main(["sample", str(tmp_path / "a\x1b[2Jb")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("rlcourse: ") and said.strip("\n").isprintable()


# ---- noise of their own


def test_two_batches_of_the_same_problem_are_answered_by_other_random_numbers():
    from rlcourse.evaluate.tries import tries
    from rlcourse.lm import load_policy
    from rlcourse.tasks import Sums

    class Same(Sums):
        def draw(self, rng):
            return Sums.draw(self, Random(3))

    found = tries(load_policy("pocket"), Same(), problems=8, samples=4, rows=4)
    assert len({each.prompt for each in found}) == 1
    assert len({tuple(each.texts) for each in found}) > 4


def test_a_desks_batches_of_tickets_are_answered_with_seeds_of_their_own():
    from rlcourse.lm import Policy
    from rlcourse.tasks import Helpdesk
    from rlcourse.tasks.helpdesk import noisy_reply

    class Agent(Policy):
        pocket, name, seeds = True, "agent", []

        def __init__(self):
            pass

        def sample(self, prompts, group_size, max_tokens, seed):
            self.seeds.append(seed)
            rng = Random(seed)
            self.texts = [
                noisy_reply(desk.draw(Random(seed)), rng) for _ in prompts for _ in range(group_size)
            ]
            return self

    desk, agent = Helpdesk(), Agent()
    desk.pairs(100, policy=agent)
    assert len(agent.seeds) > 1 and len(set(agent.seeds)) == len(agent.seeds)


def test_people_are_asked_one_by_one_and_each_has_doubts_of_their_own():
    """The same two replies again and again: choices vary, and one says nothing of the next."""
    from rlcourse.tasks import Annotator, Helpdesk

    class Again(Helpdesk):
        def candidates(self, k, policy, rng):
            ticket, replies = next(Helpdesk.candidates(self, k, policy, Random(5)))
            while True:
                yield ticket, [*replies]

    annotator = Annotator(temperature=1e6)  # what they feel is all noise
    pairs = Again().pairs(200, annotator=annotator)
    first = [pair.chosen == pairs[0].chosen for pair in pairs]
    same = [a == b for a, b in zip(first, first[1:])]
    assert 58 < sum(first) < 142 and 58 < sum(same) < 142  # six standard deviations of a fair coin
    thumbs = [each.good for each in Again().thumbs(200, annotator=annotator)]
    assert 58 < sum(thumbs) < 142
    orders = [each.responses for each in Again().rankings(100, k=3, annotator=annotator)]
    assert len(set(orders)) == 6
