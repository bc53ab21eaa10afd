"""What plays other machines: whose results count, how much room a claim is said to have, what a fault replaces."""

import json

import elsewhere
import falsify
import pytest

from rlcourse.bookmaking import build, stamps
from rlcourse.bookmaking.evidence import evidence


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(elsewhere, "HERE", tmp_path)
    return tmp_path


def results(**measured: float) -> dict:
    note = {"says": "it rises", "above": 0.3, "below": None}
    return {
        (name.replace("_", " "), "page.md"): {"claims": [note | {"measured": value, "holds": value > 0.3}]}
        for name, value in measured.items()
    }


def test_room_is_the_distance_to_the_bound_in_standard_deviations_over_the_roundings():
    (row,) = elsewhere.claims_of(results(one_thread=0.5, avx2=0.4, default=0.6, other_seeds_1=0.2))
    assert row["spread"] == pytest.approx(0.1) and row["room"] == pytest.approx(2.0)
    assert row["worst rounding"] == pytest.approx(0.1) and row["other seeds"] == [pytest.approx(-0.1)]
    assert row["measured"] == "0.5 > 0.3"


def test_a_claim_in_a_loop_is_several_and_what_no_rounding_moves_has_all_the_room():
    found = results(one_thread=0.5, avx2=0.5)
    for each in found.values():
        each["claims"] *= 2
    assert [row["room"] for row in elsewhere.claims_of(found)] == [float("inf")] * 2
    assert elsewhere.claims_of(results(one_thread=0.5)) == []  # one setting says nothing of others


def test_a_piece_counts_until_its_code_changes(here):
    file = elsewhere.place("avx2", "tests/test_kl.py")
    file.parent.mkdir()
    found = {
        "failed": [],
        "code": elsewhere.code_of("tests/test_kl.py"),
        "stamp": stamps.stamp({"rlcourse/kl.py"}),
    }
    file.write_text(json.dumps(found))
    assert elsewhere.there("avx2", "tests/test_kl.py")["failed"] == []
    for other in ({"stamp": {"rlcourse/kl.py": "another"}}, {"code": "another"}):
        file.write_text(json.dumps(found | other))
        assert elsewhere.there("avx2", "tests/test_kl.py") is None
    assert elsewhere.there("default", "tests/test_kl.py") is None


def test_every_page_that_executes_is_a_piece_and_every_numeric_test_is_there():
    pieces = elsewhere.pieces()
    assert len(pieces) == len(set(pieces)) and all((stamps.ROOT / piece).exists() for piece in pieces)
    chapters = [path for path in build.sources() if path.parent.name == "chapters"]
    assert {path.relative_to(stamps.ROOT).as_posix() for path in chapters} <= set(pieces)


def test_a_page_goes_on_after_a_failing_cell_and_notes_every_claim(here, tmp_path):
    tree = tmp_path / "tree"
    elsewhere.planted(tree, *elsewhere.SEEDS["other seeds 1"])
    fence, head = "```", (tree / "book" / "index.md").read_text().split("---")[1]
    cell = "{code-cell} ipython3\nfrom rlcourse.bookmaking.claims import claim"
    (tree / "book" / "two.md").write_text(
        f"---{head}---\n\n{fence}{cell}\nclaim('falls', 1, below=0)\n{fence}\n\n"
        f"{fence}{cell}\nimport rlcourse.training.seeds as s\nprint(s.__file__)\nclaim('rises', 1, above=0)\n{fence}\n"
    )
    found = elsewhere.ran("book/two.md", tree)
    assert found["failed"][1:] == [], found
    assert [(note["says"], note["holds"]) for note in found["claims"]] == [("falls", False), ("rises", True)]
    assert len(found["failed"]) == 1 and "AssertionError: falls: 1 < 0" in found["failed"][0]
    assert "rlcourse/training/seeds.py" in found["keys"]


def test_a_fault_replaces_one_text_or_says_that_it_cannot(tmp_path):
    file = "rlcourse/kl.py"
    tree = elsewhere.planted(tmp_path / "tree", file, "def exact_kl(", "def other_kl(")
    assert "def other_kl(" in (tree / file).read_text()
    with pytest.raises(ValueError, match="stands 0 times in rlcourse/kl.py"):
        elsewhere.planted(tmp_path / "tree", file, "no such text", "")


@pytest.mark.parametrize("fault", falsify.FAULTS, ids=lambda fault: fault.page)
def test_each_fault_of_a_chapter_can_still_be_planted(fault):
    assert (stamps.ROOT / fault.file).read_text().count(fault.old) == 1
    assert (stamps.ROOT / "book" / "chapters" / f"{fault.page}.md").exists()


def test_every_chapter_has_its_fault():
    pages = {path.stem for path in (stamps.ROOT / "book" / "chapters").glob("*.md")}
    assert {fault.page for fault in falsify.FAULTS} == pages


def test_with_its_central_line_taken_out_every_chapter_has_lost_a_claim():
    found = evidence("falsify")
    assert found.keys() == {fault.page for fault in falsify.FAULTS}
    assert {fault.page: fault.what for fault in falsify.FAULTS} == {
        p: each["fault"] for p, each in found.items()
    }
    assert all(each["claims that fall"] for each in found.values())
