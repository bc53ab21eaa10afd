"""The quiz: which card comes next, that no rating is lost, and the terminal, the notebook and Anki around it."""

import io
import multiprocessing
import os
import pty
import resource
import sqlite3
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import fsrs
import pytest

from rlcourse import cli
from rlcourse.practice import cards as shelf
from rlcourse.practice import quiz
from rlcourse.practice.cards import Card
from rlcourse.practice.deck import export
from rlcourse.practice.rendering import html, line, plain
from rlcourse.practice.widget import Quiz, quiz_widget

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)

CARD = Card(
    id="kl.k3",
    topic="kl",
    question="What is $k_3$?",
    difficulty="medium",
    tags=("kl", "two words"),
    asked="Baidu (reported)",
    short=r"It is $r - 1 - \log r$, see [chapter 4](../../chapters/04_kl.ipynb).",
    full="| k1 | k3 |\n|---|---|\n| any | $k_3 < 1$ |",
    follow_ups=(("Biased?", "No."), ("As a loss?", "Yes."), ("Off-policy?", "Weigh it.")),
    wrong='"It is new." No.',
    proof="`tests/test_kl.py::test_k3`",
)
EASY = replace(CARD, id="kl.easy", difficulty="easy", question="What is KL?")
HARD = replace(CARD, id="kl.hard", difficulty="hard", question="Why KL?")
CARDS = [HARD, CARD, EASY]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "workbook" / "quiz.json"


def ids(cards: list[Card]) -> list[str]:
    return [card.id for card in cards]


def rated(file) -> list[tuple[str, int]]:
    return [(each["card"], each["rating"]) for each in quiz.load(file)]


# Which card comes next


def test_new_cards_come_easy_first():
    assert ids(quiz.queue(CARDS, [], NOON)) == ["kl.easy", "kl.k3", "kl.hard"]


def test_due_cards_come_before_new_ones_the_longest_due_first(file):
    quiz.rate(HARD, 3, file, NOON)
    quiz.rate(CARD, 1, file, NOON)
    ratings = quiz.load(file)
    assert ids(quiz.queue(CARDS, ratings, NOON)) == ["kl.easy"]
    assert ids(quiz.queue(CARDS, ratings, NOON + 2 * MINUTE)) == ["kl.k3", "kl.easy"]
    assert ids(quiz.queue(CARDS, ratings, NOON + 11 * MINUTE)) == ["kl.k3", "kl.hard", "kl.easy"]


def test_a_better_rating_brings_a_card_back_later(file):
    days = []
    for rating in (1, 2, 3, 4):
        known = quiz.schedule([{"card": "kl.k3", "rating": rating, "at": NOON.isoformat()}])
        days.append(known["kl.k3"].due)
    assert days == sorted(days) and days[0] < NOON + 2 * MINUTE and days[3] > NOON + 2 * DAY


def test_the_same_ratings_give_the_same_days_and_they_are_those_of_fsrs():
    times = [NOON, NOON + 11 * MINUTE, NOON + 4 * DAY, NOON + 40 * DAY]
    ratings = [{"card": "kl.k3", "rating": 3, "at": at.isoformat()} for at in times]
    card = fsrs.Card(card_id=0, due=NOON)
    for at in times:
        card, _ = fsrs.Scheduler(enable_fuzzing=False).review_card(card, fsrs.Rating.Good, at)
    assert {quiz.schedule(ratings)["kl.k3"].due for _ in range(20)} == {card.due}
    assert card.due > NOON + 60 * DAY  # so long that fuzz would have shown


@pytest.mark.parametrize(
    ("wait", "says"),
    [(timedelta(0), "in 10 minutes"), (9.5 * MINUTE, "within a minute"), (9 * MINUTE, "in 1 minute")],
)
def test_when_the_next_card_comes_back_is_said_in_words(wait, says):
    assert (
        quiz.comes_back([CARD], [{"card": "kl.k3", "rating": 3, "at": NOON.isoformat()}], NOON + wait) == says
    )


def test_days_are_said_as_days():
    ratings = [{"card": "kl.k3", "rating": 4, "at": NOON.isoformat()}]
    due = quiz.schedule(ratings)["kl.k3"].due
    assert quiz.comes_back([CARD], ratings, NOON) == f"in {(due - NOON).days} days"
    assert quiz.comes_back([CARD], ratings, due - timedelta(hours=5)) == "in 5 hours"


# No rating is lost


def test_ratings_of_cards_that_left_the_book_are_kept(file):
    quiz.rate(replace(CARD, id="kl.gone"), 3, file, NOON)
    quiz.rate(CARD, 2, file, NOON)
    assert rated(file) == [("kl.gone", 3), ("kl.k3", 2)]
    assert ids(quiz.queue([CARD], quiz.load(file), NOON + DAY)) == ["kl.k3"]


def rate_often(file, times: int, done) -> None:
    for number in range(times):
        quiz.rate(CARD, 3, file, NOON + number * DAY)
        done.value = number + 1


def start(file, times: int):
    """A process that rates, and the number of ratings that it knows to be kept."""
    system = multiprocessing.get_context("fork")
    done = system.RawValue("i", 0)
    worker = system.Process(target=rate_often, args=(file, times, done))
    worker.start()
    return worker, done


def test_two_processes_at_once_lose_no_rating(file):
    workers = [start(file, 30)[0] for _ in range(2)]
    for worker in workers:
        worker.join()
    assert len(rated(file)) == 60


def test_a_kill_loses_no_rating(file):
    worker, done = start(file, 10**6)
    while done.value < 20 and worker.is_alive():
        time.sleep(0.001)
    worker.kill()
    worker.join()
    assert 20 <= done.value <= len(rated(file)) <= done.value + 1
    quiz.rate(CARD, 1, file, NOON)  # and the dead process has not left it locked
    assert rated(file)[-1] == ("kl.k3", 1) and not list(file.parent.glob("*damaged*"))


def test_what_dies_while_writing_leaves_the_old_file(file, monkeypatch):
    quiz.rate(CARD, 3, file, NOON)
    before = file.read_text()

    def die(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        quiz.rate(CARD, 4, file, NOON)
    assert file.read_text() == before


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[{",
        "null",
        '{"kl.k3": 3}',
        '[{"card": "kl.k3"}]',
        '[{"card": "kl.k3", "rating": 7, "at": "2026-11-02"}]',
    ],
)
def test_a_damaged_file_is_kept_beside_and_named(file, damage, capsys):
    file.parent.mkdir()
    for number in (1, 2):
        file.write_text(damage)
        quiz.rate(CARD, 3, file, NOON)
        kept = file.with_name(f"quiz.damaged-{number}.json")
        assert kept.read_text() == damage and kept.name in capsys.readouterr().err
        assert rated(file) == [("kl.k3", 3)]


def test_a_file_of_a_later_version_is_left_alone_and_said_to_be_one(file, monkeypatch, capsys):
    later = '{"version": 2, "ratings": [{"card": "kl.k3", "grade": 0.7}]}'
    file.parent.mkdir()
    file.write_text(later)
    monkeypatch.setattr(quiz, "PROGRESS", file)
    for use in (lambda: quiz.load(file), lambda: quiz.rate(CARD, 3, file, NOON), lambda: Quiz(CARDS, file)):
        with pytest.raises(ValueError, match=r"quiz.json was written by a later rlcourse \(version 2"):
            use()
    assert cli.main(["quiz"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("rlcourse: ") and "update rlcourse" in said and "damaged" not in said
    assert file.read_text() == later and not list(file.parent.glob("*damaged*"))


def test_looking_writes_nothing(file):
    assert quiz.load(file) == [] and Quiz(CARDS, file).card == EASY and not file.parent.exists()


# A session in the terminal


@pytest.fixture
def play(file, monkeypatch, capsys):
    """A session that is given these lines; returns what it printed."""

    def session(*lines: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        quiz.session(CARDS, file, lambda: NOON)
        return capsys.readouterr().out

    return session


def test_a_card_is_shown_step_by_step(play):
    shown = play("", "", "", "", "f", "9", "3", "q")
    order = (
        *("What is KL?", "It is r - 1 - log r", "They go on asking. Biased?", "No.", "As a loss?", "Yes."),
        *(
            "Off-policy?",
            "Weigh it.",
            "It is new",
            "tests/test_kl.py",
            "k₃ < 1",
            "What is k₃?",
            "1 card rated",
        ),
    )
    places = [shown.index(text) for text in order]
    assert places == sorted(places)
    assert "\x1b" not in shown and "$" not in shown and ".ipynb" not in shown


@pytest.mark.parametrize("steps", range(5))
def test_stopping_at_any_point_keeps_what_was_rated(play, file, steps):
    shown = play("", "", "", "", "4", *[""] * steps, "q", "", "", "", "", "1", "1")
    assert rated(file) == [("kl.easy", 4)] and f"1 card rated, kept in {file}" in shown.replace("\n", " ")


@pytest.mark.parametrize("steps", range(5))
def test_the_end_of_the_input_is_a_stop(play, file, steps):
    assert "0 cards rated." in play(*[""] * steps) and rated(file) == []


def test_a_session_ends_when_nothing_is_due(play, file):
    shown = play(*["", "", "", "", "1"], *["", "", "", "", "2"], *["", "", "", "", "3"])
    assert rated(file) == [("kl.easy", 1), ("kl.k3", 2), ("kl.hard", 3)]
    assert "Nothing is due. The next card comes back in 1 minute." in shown and "3 cards rated" in shown


def test_control_c_is_a_stop(play, monkeypatch):
    def interrupt(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert "0 cards rated." in play()


def test_a_terminal_gets_styles(file, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    child, terminal = pty.fork()
    if child == 0:
        try:
            with open(0) as sys.stdin, open(1, "w") as sys.stdout:  # not those that pytest looks at
                quiz.session(CARDS, file)
                sys.stdout.flush()
                os._exit(0)
        finally:
            os._exit(1)
    shown = b""
    while b"Enter" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, b"q\n\x04")
    try:
        while more := os.read(terminal, 1000):
            shown += more
    except OSError:  # the other end is closed
        pass
    assert os.waitpid(child, 0)[1] == 0
    assert b"\x1b[1mWhat is KL?" in shown and b"0 cards rated" in shown


# Mathematics and Markdown


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"-\tfrac12 \cdot \frac{a+b}{2}", "-1/2 · (a+b)/2"),
        (r"\tfrac12(a+b)", "(1/2)(a+b)"),
        (r"r\log\pi_\theta", "r log π_θ"),
        (r"\log\frac pq", "log (p/q)"),
        (r"\pi_{\text{ref}}(y_t \mid x, y_{<t})", "π_ref(y_t | x, y_<t)"),
        (r"e^{R/\beta}x^2_1", "e^(R/β) x²₁"),
        (r"\gamma^lA_t", "γ^l A_t"),
        (r"\sum_{t=1}^{T}", "∑_(t=1)^T"),
        (r"\mathbb{E}_t\big[\hat A_t\big]", "E_t[Â_t]"),
        (r"\sqrt{L} \le \sqrt{a b}", "√L ≤ √(a b)"),
        (r"\begin{cases} R & \text{last} \\ 0\end{cases}", "R last ; 0"),
        (r"\mathrm{KL}(p\,\|\,q) = 50\%", "KL(p ‖ q) = 50%"),
        (r"\unheard x", r"\unheard x"),
    ],
)
def test_mathematics_reads_as_one_would_type_it(tex, text):
    assert plain(tex) == text


def test_a_line_keeps_words_and_no_marks():
    assert line("Why is **$k_3$** `fine`\nin [chapter 4](x.ipynb)?") == "Why is k₃ fine in chapter 4?"


def test_html_has_mathjax_escaped_and_only_links_that_lead_out():
    made = html("$a<b$ [c](../x.ipynb) [d](https://example.org)\n\n$$\nz\n$$")
    assert r"\(a&lt;b\)" in made and r"\[z\]" in made and "$" not in made
    assert "x.ipynb" not in made and '<a href="https://example.org">d</a>' in made


# The Anki deck


def notes(file) -> list[tuple]:
    with zipfile.ZipFile(file) as package:
        package.extract("collection.anki2", file.parent)
    with sqlite3.connect(file.parent / "collection.anki2") as database:
        found = database.execute("select guid, mid, tags, flds from notes").fetchall()
        assert database.execute("select count(*), count(distinct did) from cards").fetchone() == (
            len(found),
            1,
        )
    return found


def test_the_deck_opens_and_holds_the_cards(tmp_path):
    export(CARDS, tmp_path / "deck.apkg")
    found = {note[3].split("\x1f")[0]: note for note in notes(tmp_path / "deck.apkg")}
    assert found.keys() == set(ids(CARDS))
    _, _, tags, fields = found["kl.k3"]
    assert tags.split() == ["kl", "medium", "kl", "two-words"]
    assert r"What is <span" in fields and r"\(r - 1 - \log r\)" in fields and r"<td><span" in fields
    assert all(text in fields for text in ("Biased?", "Weigh it.", "It is new", "test_k3", r"\(k_3 &lt; 1\)"))
    assert "$" not in fields and ".ipynb" not in fields


def test_exporting_again_updates_the_same_notes(tmp_path):
    export(CARDS, tmp_path / "deck.apkg")
    before = {note[:2] for note in notes(tmp_path / "deck.apkg")}
    assert ("gxb/|mq%[?", 1491650833) in before  # what Anki knows kl.k3 by, since the first export
    export([replace(card, question="Otherwise?") for card in reversed(CARDS)], tmp_path / "deck.apkg")
    assert {note[:2] for note in notes(tmp_path / "deck.apkg")} == before and len(before) == 3


# The widget


def test_the_widget_goes_from_question_to_rating_and_to_the_next_card(file):
    widget = Quiz(CARDS, file, lambda: NOON)

    def offered() -> list[str]:
        return [each.description for each in widget.children[1].children if each.layout.display != "none"]

    assert "What is KL?" in widget.page.value and "log r" not in widget.page.value
    assert offered() == ["Show the answer"]
    for says in (r"\log r\)", "No.", "Yes.", "It is new"):
        widget.onward.click()
        assert says in widget.page.value
    assert "<details>" in widget.page.value and offered() == ["1 again", "2 hard", "3 good", "4 easy"]
    widget.ratings[2].click()
    assert rated(file) == [("kl.easy", 3)]
    assert (
        "kl.k3" in widget.page.value
        and "kl.easy" not in widget.page.value
        and offered() == ["Show the answer"]
    )


def test_the_widget_looks_again_when_nothing_was_due(file):
    times = [NOON]
    widget = Quiz([CARD], file, lambda: times[-1])
    for button in [widget.onward] * 4 + [widget.ratings[0]]:
        button.click()
    assert "in 1 minute" in widget.page.value and widget.onward.description == "Look again"
    widget.onward.click()
    assert "in 1 minute" in widget.page.value
    times.append(NOON + 2 * MINUTE)
    widget.onward.click()
    assert "What is" in widget.page.value and widget.onward.description == "Show the answer"


def test_the_widget_says_when_a_rating_cannot_be_kept(tmp_path):
    (tmp_path / "taken").write_text("")  # a file where the folder should be
    widget = Quiz([CARD], tmp_path / "taken" / "quiz.json", lambda: NOON)
    for button in [widget.onward] * 4 + [widget.ratings[3]]:
        button.click()
    assert "could not be kept" in widget.page.value and widget.card == CARD


# The command


@pytest.fixture
def book(tmp_path, monkeypatch, file):
    """Two cards in a folder, and a workbook that is not the reader's."""
    text = (
        "## {}?\n\n`kl.{}` · {} · tags: kl\n\n<details><summary>Answer</summary>\n\n**In 30 seconds.** A.\n\n"
    )
    text += "**In full.** B.\n\n**They go on asking.**\n\n1. *A?* A.\n2. *B?* B.\n3. *C?* C.\n\n"
    text += "**Often said, and wrong.** No.\n\n**Proof.** `tests/test_kl.py::test_k3`\n\n</details>\n\n"
    (tmp_path / "kl.md").write_text(
        text.format("Is $k_3$ biased", "biased", "hard") + text.format("Why", "why", "easy")
    )
    monkeypatch.setattr(shelf, "FOLDER", tmp_path)
    monkeypatch.setattr(quiz, "PROGRESS", file)
    return tmp_path


def test_list_prints_one_card_a_line(book, capsys):
    assert cli.main(["quiz", "--list"]) == 0
    assert capsys.readouterr().out == "kl.biased  hard    Is k₃ biased?\nkl.why     easy    Why?\n"
    assert cli.main(["quiz", "--list", "--topic", "kl", "--difficulty", "easy", "--tag", "kl"]) == 0
    assert capsys.readouterr().out == "kl.why  easy    Why?\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quiz", "--topic", "k1"], "Did you mean 'kl'?"),
        (["quiz", "--list", "--export", "a.apkg"], "not allowed with"),
        (["quiz", "--export", "a.txt"], "end in .apkg, not 'a.txt'"),
        (["quzi"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_what(book, capsys, arguments, says):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_what_cannot_be_done_exits_with_1_and_says_why(book, capsys):
    (book / "taken").write_text("")
    assert cli.main(["quiz", "--export", str(book / "taken" / "a.apkg")]) == 1
    assert "taken" in capsys.readouterr().err
    (book / "ppo.md").write_text(
        (book / "kl.md").read_text().replace("kl.", "ppo.").replace("tags: kl", "tags: ppo")
    )
    assert cli.main(["quiz", "--list", "--topic", "ppo", "--tag", "kl"]) == 1
    assert "No card is all of that" in capsys.readouterr().err
    (book / "kl.md").write_text("## Why?\n")
    assert cli.main(["quiz"]) == 1 and "kl.md, Why?: no `tags" in capsys.readouterr().err


def test_quiz_and_export_run_from_the_command(book, file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n\n\n3\nq\n"))
    assert cli.main(["quiz"]) == 0 and rated(file) == [("kl.why", 3)]
    assert cli.main(["quiz", "--export", str(book / "deck.apkg")]) == 0
    assert len(notes(book / "deck.apkg")) == 2 and "2 cards in" in capsys.readouterr().out


def test_the_widget_takes_what_the_command_takes(book, file):
    widget = quiz_widget(difficulty="hard")
    assert ids(widget.cards) == ["kl.biased"] and widget.file == file


def test_a_closed_pipe_is_no_error(book, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert cli.main(["quiz", "--list"]) == 0
    assert capsys.readouterr().err == ""


def test_help_comes_at_once_and_loads_nothing_heavy():
    code = "import sys; from rlcourse.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "practise the interview cards" in done.stdout
    assert not set(done.stdout.split()) & {
        "torch",
        "numpy",
        "IPython",
        "rich",
        "fsrs",
        "genanki",
        "ipywidgets",
    }
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3  # measured: 0.05
