import json
import random

import pytest

from rlcourse.bookmaking import atomic, workbook
from rlcourse.bookmaking.workbook import lay_out, pages, reset


def notebook(source, output="3\n", count=1, **metadata):
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": [output]},
        {"output_type": "execute_result", "data": {}, "metadata": {}, "execution_count": count},
    ]
    cell = {
        "cell_type": "code",
        "id": "c000",
        "metadata": {},
        "execution_count": count,
        "outputs": outputs,
        "source": [source],
    }
    return json.dumps({"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def book(tmp_path):
    folder = tmp_path / "book"
    (folder / "chapters" / ".ipynb_checkpoints").mkdir(parents=True)
    (folder / "index.ipynb").write_text(notebook("contents"))
    (folder / "index.md").write_text("contents")
    (folder / "chapters" / "13_grpo.ipynb").write_text(notebook("1 + 2"))
    (folder / "chapters" / "loss.svg").write_text("<svg/>")
    (folder / "chapters" / ".ipynb_checkpoints" / "x.ipynb").write_text("")
    return folder


@pytest.fixture
def mine(book):
    folder = book.parent / "workbook"
    lay_out(book, folder)
    return folder


GRPO = "chapters/13_grpo.ipynb"


def test_the_contents_page_comes_first_and_sources_stay_behind(book):
    assert [page.as_posix() for page in pages(book)] == ["index.ipynb", GRPO, "chapters/loss.svg"]


def test_the_first_time_lays_out_everything_and_the_second_nothing(book, tmp_path):
    assert lay_out(book, tmp_path / "w")["new"] == ["index.ipynb", GRPO, "chapters/loss.svg"]
    assert (tmp_path / "w" / GRPO).read_bytes() == (book / GRPO).read_bytes()
    assert not any(lay_out(book, tmp_path / "w").values())


def test_an_untouched_page_is_refreshed(book, mine):
    (book / GRPO).write_text(notebook("1 + 3"))
    (book / "chapters/loss.svg").write_text("<svg></svg>")
    assert lay_out(book, mine)["refreshed"] == [GRPO, "chapters/loss.svg"]
    assert (mine / GRPO).read_bytes() == (book / GRPO).read_bytes()


def test_opened_and_saved_is_untouched(book, mine):
    saved = json.loads((mine / GRPO).read_text())
    saved["metadata"]["language_info"] = {"version": "3.11.7"}
    saved["cells"][0]["metadata"] = {"trusted": True, "collapsed": False}
    saved["cells"][0]["execution_count"] = saved["cells"][0]["outputs"][1]["execution_count"] = 7
    saved["cells"][0]["source"] = "".join(saved["cells"][0]["source"])
    saved["cells"][0]["outputs"][0]["text"] = "".join(saved["cells"][0]["outputs"][0]["text"])
    (mine / GRPO).write_text(json.dumps(saved, indent=1))
    (book / GRPO).write_text(notebook("1 + 3"))
    assert lay_out(book, mine)["refreshed"] == [GRPO]


@pytest.mark.parametrize(
    "theirs",
    [
        notebook("1 + 2 # why?"),
        notebook("1 + 2", output="4\n"),
        notebook("1 + 2").replace(
            '"execution_count": 1, "outputs"', '"attachments": {"a.png": {}}, "outputs"'
        ),
        '{"cells": [',
        "",
        notebook("1").replace('"source"', '"s"'),
    ],
    ids=[
        "a cell edited",
        "a cell run, with another output",
        "a picture attached",
        "half a notebook",
        "nothing",
        "not a notebook",
    ],
)
def test_what_the_reader_changed_is_never_overwritten(book, mine, theirs):
    (mine / GRPO).write_text(theirs)
    assert not any(lay_out(book, mine).values()), "nothing to tell while the book is the same"
    (book / GRPO).write_text(notebook("1 + 3"))
    for _ in range(2):
        assert lay_out(book, mine)["kept"] == [GRPO]
        assert (mine / GRPO).read_text() == theirs


def test_a_deleted_page_comes_back(book, mine):
    (mine / GRPO).unlink()
    assert lay_out(book, mine)["new"] == [GRPO]
    assert (mine / GRPO).exists()


def test_a_page_that_left_the_book_goes_only_if_untouched(book, mine):
    (book / GRPO).unlink()
    (book / "chapters/loss.svg").unlink()
    (mine / GRPO).write_text(notebook("my notes"))
    assert lay_out(book, mine)["removed"] == ["chapters/loss.svg"]
    assert (mine / GRPO).read_text() == notebook("my notes")


def test_without_its_manifest_everything_is_the_readers(book, mine):
    (mine / ".manifest.json").write_text("{")
    (book / GRPO).write_text(notebook("1 + 3"))
    assert lay_out(book, mine)["kept"] == [GRPO]
    (mine / "index.ipynb").write_text(notebook("contents", count=7))
    (book / "index.ipynb").write_text(notebook("new contents"))
    assert lay_out(book, mine)["refreshed"] == ["index.ipynb"], (
        "it equalled the book when the manifest was lost"
    )


def test_reset_brings_the_books_back_and_never_clobbers_an_earlier_copy(book, mine):
    for number, name in enumerate([GRPO, f"workbook/{GRPO}", f"book/{GRPO}"], start=1):
        (mine / GRPO).write_text(notebook(f"try {number}"))
        assert f"yours is chapters/13_grpo.mine-{number}.ipynb" in reset(name, book, mine)
        assert (mine / GRPO).read_bytes() == (book / GRPO).read_bytes()
    kept = [
        json.loads((mine / f"chapters/13_grpo.mine-{n}.ipynb").read_text())["cells"][0]["source"]
        for n in (1, 2, 3)
    ]
    assert kept == [["try 1"], ["try 2"], ["try 3"]]
    assert not any(lay_out(book, mine).values())


def test_reset_of_an_untouched_page_keeps_no_copy(book, mine):
    (book / GRPO).write_text(notebook("1 + 3"))
    assert reset(GRPO, book, mine) == f"{GRPO} is the book's again"
    assert (mine / GRPO).read_text() == notebook("1 + 3")
    assert not list(mine.rglob("*mine*"))


@pytest.mark.parametrize("name", ["", "chapters/99.ipynb", "../pyproject.toml", "chapters/loss.svg"])
def test_reset_of_something_else_lists_what_there_is(book, mine, name):
    with pytest.raises(SystemExit, match=GRPO):
        reset(name, book, mine)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_at_any_point_loses_nothing_and_the_next_time_finishes(book, mine, monkeypatch, seed):
    """Two kills with two new editions between them: every page ends as the newest, or as the reader's."""
    rng = random.Random(seed)
    (mine / "index.ipynb").write_text(notebook("my notes"))
    real = atomic.write
    for edition in ("second", "third"):
        (book / GRPO).write_text(notebook(edition))
        (book / "chapters/loss.svg").write_text(f"<svg>{edition}</svg>")
        left = rng.randrange(4)

        def dying(path, content):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            real(path, content)

        monkeypatch.setattr(workbook.atomic, "write", dying)
        try:
            lay_out(book, mine) if rng.random() < 0.5 else reset(GRPO, book, mine)
        except Killed:
            pass
        monkeypatch.setattr(workbook.atomic, "write", real)
        assert "my notes" in (mine / "index.ipynb").read_text()
    assert not lay_out(book, mine)["kept"]
    for page in (GRPO, "chapters/loss.svg"):
        assert (mine / page).read_bytes() == (book / page).read_bytes()
    assert "my notes" in (mine / "index.ipynb").read_text()


@pytest.mark.parametrize("calls", range(3))
def test_a_kill_during_reset_keeps_the_readers_version(book, mine, monkeypatch, calls):
    (mine / GRPO).write_text(notebook("hours of work"))
    real, count = atomic.write, iter(range(10))
    monkeypatch.setattr(
        workbook.atomic,
        "write",
        lambda *args: real(*args) if next(count) < calls else (_ for _ in ()).throw(Killed),
    )
    try:
        reset(GRPO, book, mine)
    except Killed:
        monkeypatch.setattr(workbook.atomic, "write", real)
        lay_out(book, mine)
    assert "hours of work" in (mine / "chapters/13_grpo.mine-1.ipynb").read_text()
    assert (mine / GRPO).read_bytes() == (book / GRPO).read_bytes()


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic.write(path, "old")
    monkeypatch.setattr(atomic.os, "replace", lambda *args: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        atomic.write(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
