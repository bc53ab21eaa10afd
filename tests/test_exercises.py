"""Every exercise: the solution passes, the blank fails politely, each planted mistake is named."""

import re
import runpy
from pathlib import Path

import jupytext
import nbformat
import pytest
import torch

from rlcourse.bookmaking.build import read_source
from rlcourse.bookmaking.exercises import REGION, solved, student
from rlcourse.practice import check, checking

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "book" / "exercises").glob("*.md"))
CHAPTERS = sorted((ROOT / "book" / "chapters").glob("*.md"))
HEAD = re.compile(r"^`(\w+\.\w+)` · (easy|medium|hard) · (\d+) minutes$", re.M)
CHECK = re.compile(r'^check\("(\w+\.\w+)"')


def checks(source: Path) -> dict[str, str]:
    """The cell that checks each exercise of a page."""
    cells = [cell.source for cell in read_source(source).cells if cell.cell_type == "code"]
    return {CHECK.match(cell)[1]: cell for cell in cells if CHECK.match(cell)}


CELLS = {name: cell for source in SOURCES for name, cell in checks(source).items()}
MISTAKES = {
    name: planted
    for file in sorted((ROOT / "tests" / "mistakes").glob("*.py"))
    for name, planted in runpy.run_path(str(file))["MISTAKES"].items()
}


def verdict(exercise: str, code: str):
    """What the reader sees who writes `code` into the cell and runs the check below it."""
    namespace = {"torch": torch, "check": check}
    exec(code, namespace)
    return eval(CELLS[exercise], namespace)


def test_every_chapter_has_two_exercises_or_more_and_all_together_24():
    assert [source.name for source in SOURCES] == [chapter.name for chapter in CHAPTERS]
    assert all(len(checks(source)) >= 2 for source in SOURCES) and len(CELLS) >= 24


def test_every_exercise_has_its_checker_and_every_checker_its_exercise():
    assert sorted(CELLS) == sorted(checking.names()) == sorted(MISTAKES)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_exercise_says_how_hard_and_how_long_it_is_and_has_two_hints_and_a_folded_solution(source):
    page = "\n".join(cell.source for cell in read_source(source).cells)
    parts = re.split(r"^## \d+\. ", page, flags=re.M)[1:]
    assert [HEAD.search(part)[1] for part in parts] == list(checks(source))
    for part in parts:
        folded = re.findall(r"<details><summary>(.*?)</summary>", part)
        assert {"Hint 1", "Hint 2", "Solution"} <= set(folded)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_chapter_leads_to_each_of_its_exercises_with_its_level_and_minutes(source):
    chapter = (ROOT / "book" / "chapters" / source.name).read_text()
    levels = HEAD.findall("\n".join(cell.source for cell in read_source(source).cells))
    rows = re.findall(
        rf"^\| \[.*\]\(\.\./exercises/{source.stem}\.ipynb\) \|.*\| (\w+) \| (\d+) \|$", chapter, re.M
    )
    assert rows == [(level, minutes) for _, level, minutes in levels]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_solutions_pass(source):
    namespace: dict = {}
    for cell in jupytext.read(source, fmt="md:myst").cells:
        if cell.cell_type == "code" and not CHECK.match(cell.source):
            exec(solved(cell.source), namespace)
        elif cell.cell_type == "code":
            assert eval(cell.source, namespace).right is True


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_students_notebook_holds_no_solution_outside_the_folds_and_every_blank_fails_politely(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        assert "SOLUTION" not in cell.source
        if CHECK.match(cell.source):
            assert "not answered yet" in cell.outputs[0].data["text/plain"]


@pytest.mark.parametrize("exercise", sorted(CELLS))
def test_five_mistakes_or_more_are_planted_each_with_a_message_of_its_own(exercise):
    assert len({named for _, named in MISTAKES[exercise]}) >= 5


@pytest.mark.parametrize(
    "exercise, code, named", [(exercise, *each) for exercise, planted in MISTAKES.items() for each in planted]
)
def test_each_planted_mistake_is_named(exercise, code, named, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # as a reader meets it: under test a wrong answer raises
    found = verdict(exercise, code)
    assert found.right is False and named in repr(found)


@pytest.mark.parametrize(
    "exercise, code, named", [(exercise, *planted[0]) for exercise, planted in MISTAKES.items()]
)
def test_under_test_a_wrong_answer_raises(exercise, code, named):
    with pytest.raises(checking.Wrong, match=re.escape(named)):
        verdict(exercise, code)


SOURCE = """def f(x):
    ### BEGIN SOLUTION
    return x + 1
    ### END SOLUTION

### BEGIN SOLUTION
best = f(1)
### END SOLUTION"""


def page(*cells: str):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def test_a_student_gets_a_blank_for_each_solution_and_the_solution_folded_behind_its_check():
    made = student(page(SOURCE, 'check("a.b", f, best)', "print(1)"))
    assert [cell.cell_type for cell in made.cells] == ["code", "code", "markdown", "code"]
    assert made.cells[0].source == "def f(x):\n    ...\n\nbest = ..."
    assert made.cells[2].source.startswith("<details><summary>Solution</summary>")
    assert "def f(x):\n    return x + 1\n\nbest = f(1)\n```" in made.cells[2].source
    assert not any(REGION.search(cell.source) for cell in made.cells)


def test_a_page_without_solutions_stays_as_it_is():
    assert [cell.source for cell in student(page("x = 1", "print(x)")).cells] == ["x = 1", "print(x)"]


compare, Wrong = checking.compare, checking.Wrong


def says(function, *rest, **more) -> str:
    with pytest.raises(Wrong) as wrong:
        compare(function, *rest, **more)
    return str(wrong.value)


def test_an_unknown_mistake_shows_the_input_what_came_out_and_what_should_have():
    said = says(lambda x, y: x * y, (2.0, 3.0), 5.0)
    assert said.splitlines() == [
        "Not yet. This input is small enough to do on paper.",
        "given      x = 2, y = 3", "you have   6", "expected   5",
    ]  # fmt: skip


def test_a_known_mistake_is_told_by_its_name_whether_given_as_a_value_or_as_a_function():
    known = {"You multiplied.": 6.0, "You subtracted.": lambda x, y: x - y}
    assert says(lambda x, y: x * y, (2.0, 3.0), 5.0, known).startswith("You multiplied.")
    assert says(lambda x, y: x - y, (2.0, 3.0), 5.0, known).startswith("You subtracted.")


def test_a_wrong_shape_a_nan_an_exception_and_a_changed_input_are_told():
    given = torch.tensor([1.0, 2.0])
    assert "The shape is (1, 2); it should be (2,)" in says(lambda x: x[None], (given,), given)
    assert "There is a NaN" in says(lambda x: x * float("nan"), (given,), given)
    assert "stopped with ZeroDivisionError: division by zero" in says(lambda x: 1 / 0, (given,), given)
    assert "in place" in says(lambda x: x.zero_(), (given,), torch.zeros(2)) and given.tolist() == [1, 2]


@pytest.mark.parametrize(
    "nothing", [None, ..., lambda x: None, lambda x: ...], ids=["None", "...", "no return", "..."]
)
def test_a_blank_is_not_answered_rather_than_wrong(nothing):
    with pytest.raises(checking.NotAnswered):
        compare(nothing, (1.0,), 1.0)


def test_an_exercise_that_does_not_exist_is_answered_with_the_nearest_that_does():
    with pytest.raises(ValueError, match="no exercise 'gpro.advantage'. Did you mean 'grpo.advantages'"):
        check("gpro.advantage", None)


def test_a_verdict_is_true_only_when_right_and_escapes_what_the_reader_wrote():
    assert checking.Verdict("a.b", True, "good") and not checking.Verdict("a.b", None, "blank")
    assert (
        "<b>"
        not in checking.Verdict("a.b", False, "no", ("you have   '<b>'",))._repr_html_().split("<pre")[1]
    )
