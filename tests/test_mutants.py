"""The mutation tester makes the changes that it says, one at a time, and counts what survives them."""

import ast
import json

import mutants
import pytest
from mutants import Watch, difference, measure, score

SOURCE = '''\
"""What it is about."""
import torch

PAPER = Paper("a", "b", "c")


@wrapped(1)
def loss(x: Float[Tensor, "B T"], clip: float = 0.2) -> Tensor:
    """One number."""
    if clip < 0:
        raise ValueError(f"got {clip}")
    return torch.clamp(x, -clip, max=1).detach()


class GRPO:
    scale: bool = True

    def weights(self, batch):
        if self.scale and batch:
            batch.note("a sentence of words")
        return {"a": 1, "b": [x for x in batch if x > 0]}
'''
FOUND = [
    "loss: float=0.2) -> float=0.4)",
    "loss: if clip < 0: -> pass",
    "loss: clip < 0 -> clip <= 0",
    "loss: < 0 -> < 1",
    "loss: .detach() -> ",
    "loss: -clip -> clip",
    "loss: , max=1 -> ",
    "loss: max=1 -> max=2",
    "GRPO: True -> False",
    "GRPO.weights: and -> or",
    "GRPO.weights: batch.note('a sentence of words') -> pass",
    "GRPO.weights: 'a': 1,  -> ",
    "GRPO.weights: , 'b': [x for x in batch if x > 0] -> ",
    "GRPO.weights: 'a': 1 -> 'a': 2",
    "GRPO.weights:  if x > 0 -> ",
    "GRPO.weights: x > 0 -> x >= 0",
    "GRPO.weights: > 0 -> > 1",
]


def test_each_mutant_is_one_change_and_the_file_is_whole_again_after_it():
    found = list(mutants.mutants(SOURCE))
    plain = ast.unparse(ast.parse(SOURCE))
    told = []
    for where, _, text in found:
        changed = difference(plain, text, around=0)
        assert text != plain and compile(text, "m.py", "exec")
        told.append((where, *changed.split(" -> ")))
    assert len({text for *_, text in found}) == len(found) >= len(FOUND)
    assert len({f"{where}: {shown}" for where, shown, _ in found}) == len(found)  # a name for each
    assert {where for where, *_ in found} == {"loss", "GRPO", "GRPO.weights"}
    for each in FOUND:
        where, change = each.split(": ", 1)
        old, new = (part.replace(" ", "") for part in change.split(" -> "))
        texts = [text.replace(" ", "") for place, _, text in found if place == where]
        if new == "pass":
            assert any(old not in text and "pass" in text for text in texts), each
        else:
            assert any(
                plain.replace(" ", "").replace(old, new, 1) == text or new in text for text in texts
            ), each


def test_what_is_read_by_people_or_by_a_type_checker_is_left_alone():
    for _, _, text in mutants.mutants(SOURCE):
        for same in ('"""What it is about."""', '"""One number."""', "Paper('a', 'b', 'c')", "Float[Tensor, 'B T']",
                     "@wrapped(1)", "import torch", "torch.clamp"):  # fmt: skip
            assert same in text
        assert "got {clip}" in text or "pass" in text


def test_the_quickest_tests_come_first_and_the_others_are_left_out():
    class Item:
        def __init__(self, nodeid):
            self.nodeid = nodeid

    items = [Item(name) for name in "abcd"]
    Watch(["d", "b"]).pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["d", "b"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A repository of one function, and two tests of it; what the runner is asked is noted, and answered by them."""
    (tmp_path / "rlcourse").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "rlcourse" / "kl.py").write_text("def double(x):\n    return x * 2\n")
    (tmp_path / "tests" / "test_kl.py").write_text("")
    for name, value in dict(
        ROOT=tmp_path,
        STATE=tmp_path / "runs",
        EQUIVALENT=tmp_path / "equivalent.json",
        TESTS={"rlcourse/kl.py": ["kl"]},
    ).items():
        monkeypatch.setattr(mutants, name, value)
    (tmp_path / "equivalent.json").write_text("{}")
    asked = []

    def run_tests(folder, files, limit, watch, shapes=True):
        if not watch.wanted:
            called = {
                "tests/test_kl.py::test_0": ["rlcourse/kl.py:double", "rlcourse/lm/policy.py:sample"],
                "tests/test_kl.py::test_1": ["rlcourse/lm/policy.py:sample"],
                "tests/test_kl.py::test_2": ["rlcourse/door.py:find", "tests/test_kl.py:fields"],
            }
            (folder / "told.json").write_text(
                json.dumps({"called": called, "seconds": dict.fromkeys(called, 0.1)})
            )
            return 0
        text = (folder / "rlcourse" / "kl.py").read_text()
        asked.append((text, watch.wanted, shapes))
        space = {}
        exec(text, space)
        return int(space["double"](0) != 0)  # a weak test: at 0 only

    monkeypatch.setattr(mutants, "run_tests", run_tests)
    return tmp_path, asked


def test_a_file_is_measured_in_pieces_and_what_has_been_run_is_not_run_again(small):
    folder, asked = small
    assert measure("rlcourse/kl.py", folder, until=0)["verdicts"] == {} and asked == []
    known = measure("rlcourse/kl.py", folder, until=float("inf"))
    assert set(known["verdicts"].values()) == {"survived"} and known["mutants"] == len(known["verdicts"]) == 2
    # each is tried without the checks of shapes, and with them where it survives; asked are the test that calls it
    # and the one that calls nothing of the library, and may look at its defaults
    assert [shapes for *_, shapes in asked] == [False, True] * 2
    assert all(wanted == ["tests/test_kl.py::test_0", "tests/test_kl.py::test_2"] for _, wanted, _ in asked)
    assert (folder / "rlcourse" / "kl.py").read_text() == "def double(x):\n    return x * 2\n"
    measure("rlcourse/kl.py", folder, until=float("inf"))
    assert len(asked) == 4
    (folder / "tests" / "test_kl.py").write_text("more = 1")  # other tests: the survivors are tried again
    measure("rlcourse/kl.py", folder, until=float("inf"))
    assert len(asked) == 8
    (folder / "rlcourse" / "kl.py").write_text(
        "def double(x):\n    return x + x + 1 - 1\n"
    )  # another file: all of them
    assert measure("rlcourse/kl.py", folder, until=float("inf"))["mutants"] == 5


def test_the_score_counts_the_killed_the_equivalent_and_names_the_rest(small, capsys):
    folder, _ = small
    known = {
        "mutants": 4,
        "verdicts": {"f: a": "killed", "f: b": "survived", "f: c": "survived", "f: d": "out of time"},
    }
    (folder / "equivalent.json").write_text(json.dumps({"m.py": {"f: c": "why", "f: gone": "why"}}))
    assert score("m.py", known) == {"mutants": 4, "killed": 2, "equivalent": 1, "survived": ["f: b"]}
    assert "names what does not survive: ['f: gone']" in capsys.readouterr().out


def test_every_reason_stands_with_a_file_that_is_scored():
    reasons = json.loads((mutants.ROOT / "benchmarks" / "equivalent.json").read_text())
    scored = {
        path.relative_to(mutants.ROOT).as_posix()
        for each in mutants.TESTS
        for path in mutants.ROOT.glob(each)
    }
    assert set(reasons) <= scored
    assert all(len(reason) > 10 for why in reasons.values() for reason in why.values())


def test_the_quickest_tests_are_run_until_their_time_is_up(monkeypatch):
    monkeypatch.setattr(mutants, "BUDGET", 1.0)
    assert mutants.within_budget({"a": 0.5, "b": 0.1, "c": 0.7, "d": 0.3}) == ["b", "d", "a"]
    assert mutants.within_budget({"a": 2.0, "b": 3.0}) == ["a"]
