"""Every proof of a chapter rests on `claim`: it raises, it prints what it compared, it knows whose claims these are."""

import json
import math

import numpy as np
import pytest
import torch

from rlcourse.bookmaking.claims import claim
from rlcourse.lm import pockets


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    monkeypatch.delenv("RLCOURSE_MODEL", raising=False)
    monkeypatch.delenv("RLCOURSE_CLAIMS", raising=False)


@pytest.mark.parametrize("name", [None, "", *pockets()])
def test_a_claim_that_does_not_hold_raises_on_every_pocket(name, monkeypatch, capsys):
    if name is not None:
        monkeypatch.setenv("RLCOURSE_MODEL", name)
    with pytest.raises(AssertionError, match="it rises: 0.2 > 0.3: that does not hold"):
        claim("it rises", 0.2, above=0.3)
    with pytest.raises(AssertionError, match="^it is so: that does not hold$"):
        claim("it is so", False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B-Instruct", "/models/pocket", "pocketful", "lab"])
def test_on_another_model_it_is_reported_and_not_enforced(name, monkeypatch, capsys):
    monkeypatch.setenv("RLCOURSE_MODEL", name)
    claim("it rises", 0.2, above=0.3)
    claim("it is so", True)
    assert capsys.readouterr().out == f"✗ it rises: 0.2 > 0.3: not with {name}, in this run\n✓ it is so\n"


@pytest.mark.parametrize(
    "measured, bounds, printed",
    [
        (0.6712, {"above": 0.3}, "✓ x: 0.671 > 0.3"),
        (-2, {"below": 0}, "✓ x: -2 < 0"),
        (0.05, {"above": -0.1, "below": 0.1}, "✓ x: -0.1 < 0.05 < 0.1"),
        ([0.95, 0.91, 0.99], {"above": 0.9}, "✓ x: 0.91 > 0.9"),
        (torch.tensor([[0.1, 0.4], [0.2, 0.3]]), {"above": 0.0, "below": 1.0}, "✓ x: 0 < 0.1 < 1"),
        ([torch.tensor(0.5), 0.25], {"below": 1}, "✓ x: 0.5 < 1"),
    ],
)
def test_it_prints_the_worst_that_was_measured_and_its_bound(measured, bounds, printed, capsys):
    claim("x", measured, **bounds)
    assert capsys.readouterr().out == printed + "\n"


@pytest.mark.parametrize(
    "measured, bounds",
    [
        (0.3, {"above": 0.3}),  # a bound is not within itself
        (0.1, {"below": 0.1}),
        (math.nan, {"above": 0.0}),
        (math.nan, {"below": 0.0}),
        ([1.0, math.nan, 1.0], {"above": 0.0, "below": 2.0}),
        ([0.95, 0.89, 0.99], {"above": 0.9}),
        (0.2, {"above": -0.1, "below": 0.1}),
        (-0.2, {"above": -0.1, "below": 0.1}),
        (torch.tensor(False), {}),
    ],
)
def test_it_fails_at_the_bound_beyond_it_and_on_nan(measured, bounds):
    with pytest.raises(AssertionError, match="that does not hold"):
        claim("x", measured, **bounds)


@pytest.mark.parametrize(
    "measured", [0.2, 1, "said", [False], {"a": True}, torch.tensor([True, False]), torch.tensor(0.5), None]
)
def test_without_bounds_only_true_or_false_can_be_claimed(measured):
    with pytest.raises(ValueError, match="is neither true nor false; say above= or below="):
        claim("x", measured)


def test_a_fact_may_come_from_numpy_or_torch(capsys):
    claim("x", np.bool_(True))
    claim("x", torch.tensor(True))
    claim("x", (torch.zeros(2) == 0).all())
    assert capsys.readouterr().out == "✓ x\n" * 3
    with pytest.raises(AssertionError, match="that does not hold"):
        claim("x", np.bool_(False))


def test_of_a_dictionary_the_values_are_claimed_and_not_its_keys():
    claim("x", {0.1: 0.9, 0.2: 0.8}, above=0.7)
    with pytest.raises(AssertionError, match="0.1 > 0.5"):
        claim("x", {1: 0.9, 2: [0.8, 0.1]}, above=0.5)


def test_the_worst_is_the_one_nearest_to_either_bound(capsys):
    claim("x", [0.5, 0.85, 0.2], above=0.0, below=1.0)
    claim("x", [3, -4], below=10)
    assert capsys.readouterr().out == "✓ x: 0 < 0.85 < 1\n✓ x: 3 < 10\n"


def test_a_bound_of_0_is_a_bound():
    with pytest.raises(AssertionError, match="-1 > 0"):
        claim("x", -1.0, above=0)
    with pytest.raises(AssertionError, match="1 < 0"):
        claim("x", 1.0, below=0)
    with pytest.raises(AssertionError, match="0 < -1 < 1"):
        claim("x", -1.0, above=0, below=1)


def test_what_is_noted_is_added_to_what_was_noted_before(tmp_path, monkeypatch):
    monkeypatch.setenv("RLCOURSE_CLAIMS", str(tmp_path / "claims.jsonl"))
    (tmp_path / "claims.jsonl").write_text('{"says": "before"}\n')
    claim("x", True)
    assert (tmp_path / "claims.jsonl").read_text() == '{"says": "before"}\n{"says": "x", "holds": true}\n'


def test_a_claim_about_nothing_is_an_error():
    with pytest.raises(ValueError, match="x: nothing was measured"):
        claim("x", [], above=0)


def test_what_was_measured_is_noted_where_one_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RLCOURSE_CLAIMS", str(tmp_path / "claims.jsonl"))
    claim("it rises", [0.5, 0.4], above=0.3)
    claim("it is so", True)
    with pytest.raises(AssertionError):
        claim("it falls", 1.0, below=0.5)
    assert [json.loads(line) for line in (tmp_path / "claims.jsonl").read_text().splitlines()] == [
        {"says": "it rises", "measured": 0.4, "above": 0.3, "below": None, "holds": True},
        {"says": "it is so", "holds": True},
        {"says": "it falls", "measured": 1.0, "above": None, "below": 0.5, "holds": False},
    ]
