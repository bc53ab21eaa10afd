"""How near is right, which mistake is named, and what a reader is shown: the rules that all exercises share."""

import math

import pytest
import torch

from rlcourse.practice import check, checking
from rlcourse.practice.checking import (
    NotAnswered,
    Verdict,
    Wrong,
    compare,
    holds_nan,
    named,
    readable,
    same,
    shape,
)

NAN = math.nan


def says(function, *rest, **more) -> str:
    with pytest.raises(Wrong) as wrong:
        compare(function, *rest, **more)
    return wrong.value.says


def test_a_rounding_is_forgiven_and_a_difference_in_the_fourth_digit_is_not():
    assert compare(lambda x: x + 0.9e-4, (1.0,), 1.0) == 1.0 + 0.9e-4
    assert says(lambda x: x + 1.2e-4, (1.0,), 1.0).startswith("Not yet")
    assert compare(lambda x: x + 0.4, (1.0,), 1.0, tolerance=0.5) == 1.4
    assert says(lambda x: x + 0.6, (1.0,), 1.0, tolerance=0.5).startswith("Not yet")


def test_a_mistake_is_recognised_with_another_small_one_on_top_of_it():
    known = {"You doubled.": lambda x: 2 * x}
    assert says(lambda x: 2 * x + 2.9e-3, (1.0,), 1.0, known) == "You doubled."
    assert says(lambda x: 2 * x + 3.2e-3, (1.0,), 1.0, known).startswith("Not yet")


def test_the_mistake_that_fits_best_is_named_and_none_that_is_right_within_a_rounding():
    near, exact = {"Roughly.": 2.002}, {"Exactly.": 2.0}
    assert says(lambda x: 2.0, (1.0,), 1.0, near | exact) == "Exactly."
    assert says(lambda x: 2.0, (1.0,), 1.0, near) == "Roughly."
    # a "mistake" that happens to give the right number here is no explanation
    assert says(lambda x: 1.0005, (1.0,), 1.0, {"Harmless.": 1.00001}).startswith("Not yet")


def test_a_mistake_is_computed_from_what_was_given_and_cannot_spoil_it():
    given = torch.tensor([1.0, 2.0])

    def spoils(x):
        return x.mul_(3)

    assert says(lambda x: 3 * x, (given,), given + 1, {"Tripled.": spoils}) == "Tripled."
    assert given.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "a, b, tolerance, equal",
    [
        (1, 1.0, 0.0, True), (1.0, 1.1, 0.1000001, True), (1.0, 1.2, 0.1, False), (NAN, NAN, 0.0, True),
        (NAN, 1.0, 9.0, False), (torch.tensor(1.0), 1, 0.0, True),
        (torch.tensor([1.0]), 1.0, 0.0, False), (torch.tensor([1]), [1.0], 0.0, True),
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), 0.0, True),
        (torch.ones(2, 1), torch.ones(1, 2), 0.0, False),
        (torch.ones(2), torch.ones(2) + 0.05, 0.1, True),
        (torch.ones(2), torch.ones(2) + 0.2, 0.1, False),
        (torch.ones(2) * 1e6, torch.ones(2) * 1e6 + 1, 0.5, False),  # no share of a large number is forgiven
        (torch.ones(2), "x", 0.0, False), ([1, [2.0]], (1, [2.0]), 0.0, True), ([1, 2], [1], 0.0, False),
        ([1, 2], [1, 3], 0.5, False), ("a", "a", 0.0, True), ("a", "b", 9.0, False),
        ("1", 1, 9.0, False), (None, None, 0.0, True),
    ],
)  # fmt: skip
def test_what_counts_as_the_same(a, b, tolerance, equal):
    assert same(a, b, tolerance) is equal and same(b, a, tolerance) is equal


def test_nothing_is_forgiven_where_nothing_is_said():
    assert not same(1.0, 1.0 + 1e-9) and not same(torch.ones(1), torch.ones(1) + 1e-6)


@pytest.mark.parametrize(
    "value, called",
    [
        (torch.ones(2, 3), "(2, 3)"), (torch.tensor(1.0), "a number"), (2, "a number"), (2.5, "a number"),
        ([1, 2, 3], "3 items"), ((1,), "1 items"), ("x", "a str"),
    ],
)  # fmt: skip
def test_what_a_reader_calls_a_shape(value, called):
    assert shape(value) == called


def test_a_nan_is_found_wherever_it_stands():
    assert all(map(holds_nan, (NAN, [1.0, NAN], (1, [2, NAN]), torch.tensor([1.0, NAN]))))
    assert not any(map(holds_nan, (1.0, [1.0], "nan", torch.ones(2), math.inf, None)))
    assert "There is a NaN" in says(lambda x: NAN, (1.0,), 1.0)
    assert same(compare(lambda x: NAN, (1.0,), NAN), NAN)


@pytest.mark.parametrize(
    "value, written",
    [
        (2.0, "2"), (-3.0, "-3"), (0.5, "0.5"), (-0.5, "-0.5"), (1 / 3, "0.3333"), (123456.0, "123456"), (1e6, "1e+06"),
        (NAN, "nan"), (math.inf, "inf"), (True, "True"), ("x", "'x'"), (torch.tensor([[1.0, 0.25]]), "[[1, 0.25]]"),
        ((1, 2.0), "(1, 2)"), ([1, (2, 3)], "[1, (2, 3)]"), (None, "None"),
    ],
)  # fmt: skip
def test_a_value_is_written_as_one_would_write_it(value, written):
    assert readable(value) == written


def test_arguments_are_named_as_the_readers_own_function_names_them():
    assert named(lambda rewards, scale: 0, ([1.0], True)) == "rewards = [1], scale = True"
    assert named(lambda *given: 0, (1, 2)) == "1, 2" and named(lambda x: 0, (1, 2)) == "1, 2"
    assert named(dict, (1,)) == "1"


def test_what_is_no_function_and_what_is_a_blank():
    with pytest.raises(Wrong, match="wants a function; it got 3"):
        checking.call(3)
    for blank in (None, ..., lambda: None, lambda: ...):
        with pytest.raises(NotAnswered):
            checking.call(blank)
    assert checking.call(lambda: 0) == 0 and checking.call(lambda: False) is False


def test_a_blank_answer_is_neither_right_nor_wrong():
    found = check("grpo.advantages", ...)
    assert found.right is None and not found and found.mark == "…" and "not answered yet" in found.says


def test_while_tests_run_a_wrong_answer_raises_and_for_a_reader_it_is_told(monkeypatch):
    with pytest.raises(Wrong):
        check("grpo.advantages", lambda *given: torch.zeros(1))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    found = check("grpo.advantages", lambda *given: torch.zeros(1))
    assert found.right is False and not found and found.shown and found.says


@pytest.mark.parametrize(
    "right, mark, colour", [(True, "✓", "#009E73"), (False, "✗", "#D55E00"), (None, "…", "#767676")]
)
def test_a_verdict_shows_its_mark_and_its_colour(right, mark, colour):
    verdict = Verdict("a.b", right, "said", ("given   x",))
    assert repr(verdict) == f"{mark} a.b: said\n    given   x"
    shown = verdict._repr_html_()
    assert f"<b>{mark} a.b</b>: said" in shown and colour in shown and "given   x</pre>" in shown
    assert "<pre" not in Verdict("a.b", right, "said")._repr_html_()
