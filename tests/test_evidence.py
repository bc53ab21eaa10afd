"""What the evidence files say is what their scripts still measure, and what the chapters claim hangs on the method."""

import json
import sys
from dataclasses import dataclass

import dpo_evidence
import grpo_evidence
import pytest
from many_runs import reached, tenths
from reproduce import NAMES, differences, runs

from rlcourse.bookmaking import evidence
from rlcourse.evaluate import accuracy
from rlcourse.lm import load_policy
from rlcourse.methods import GRPO
from rlcourse.tasks import Sums
from rlcourse.training import train


@pytest.mark.parametrize(
    "run",
    [pytest.param(run, id=f"{name}: {run.name}") for name in NAMES if name != "arena" for run in runs(name)],
)
def test_one_seed_measured_again_is_what_was_recorded(run):
    again, recorded = run.measure(*run.spec)[run.watched], run.arm[run.watched]
    # the same numbers on the machine that recorded them; another one rounds otherwise and drifts a little
    spread = max(recorded) - min(recorded)
    assert again == pytest.approx(recorded[0], abs=max(0.06, spread))


def test_without_the_group_mean_grpo_is_lost_under_a_bonus():
    @dataclass(frozen=True)
    class NoBaseline(GRPO):
        def advantages(self, rollout, state):
            return rollout.rewards  # the central line is gone

    policy = load_policy("pocket")
    train(
        policy,
        Sums(judge=grpo_evidence.Bonus()),
        NoBaseline(),
        tokens=grpo_evidence.TOKENS,
        seed=0,
        quiet=True,
    )
    assert accuracy(policy, Sums()) < 0.85  # what the chapter claims of GRPO


def test_a_run_by_tenths_of_its_budget():
    history = [{"sampled_tokens": n, "x": x} for n, x in ((5, "a"), (30, "b"), (31, "c"), (100, "d"))]
    parts = ["".join(row["x"] for row in part) for part in tenths(history, 100)]
    assert parts == ["a", "", "", "bc", "", "", "", "", "", "d"]
    assert "".join(reached(history, ["x"], 100)["x"]) == "aabccccccd"
    assert (
        "".join(reached(history, ["x"], 100, spent=20)["x"]) == "aaaabccccc"
    )  # with 20 spent before it began


def test_a_number_that_comes_out_otherwise_in_its_sixth_digit_is_named():
    recorded = {"after": 0.972656, "curve": {"length": [11.3828, 17.7422]}}
    equal = {"after": 0.97265625, "curve": {"length": [11.3828125, 17.7421875]}, "seconds": 3.0}
    assert differences(recorded, equal) == []
    assert "lost: 1 before, None now" in differences(recorded | {"lost": 1, "seeds": 3}, equal)[0]
    assert "after: 0.972656 before, 0.972657 now" in differences(recorded, equal | {"after": 0.972657})[0]
    assert differences(recorded, equal | {"curve": {"length": [11.3828, 17.7423]}})


def test_arms_that_are_added_to_a_record_change_no_number_of_the_others(monkeypatch, tmp_path, capsys):
    kept = {
        name: {"lr": 0.1, "gold": [1.0]} for name in dpo_evidence.all_arms() if not name.startswith("SFT")
    }
    stamp = {"rlcourse/tensors.py": "of the day when they were measured"}
    file = tmp_path / "dpo.json"
    file.write_text(json.dumps({"result": {"arms": kept, "rates": {}}, "stamp": stamp}))
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["dpo_evidence.py", "--missing"])
    monkeypatch.setattr(
        dpo_evidence,
        "at_its_best_rate",
        lambda measure, arms, *_: (
            dict.fromkeys(arms, {"lr": 0.2, "gold": [2.0]}),
            dict.fromkeys(arms, {0.2: 2.0}),
        ),
    )
    monkeypatch.setattr(
        dpo_evidence, "over_seeds", lambda measure, arms, seeds: {n: {"lr": a.lr} for n, a in arms.items()}
    )
    dpo_evidence.main()
    after = json.loads(file.read_text())
    added = [name for name in dpo_evidence.all_arms() if name not in kept]
    assert {name: after["result"]["arms"][name] for name in kept} == kept and after["stamp"] == stamp
    assert (
        added
        == [name for name, arm in after["result"]["arms"].items() if arm["lr"] == 0.2]
        == [*after["result"]["rates"]]
    )
    assert after["result"]["again"] == {
        f"DPO, beta 0.5, noise {noise}": {"lr": 0.1} for noise in ("0", "0.1", "0.3")
    }
    kept_as, measured = capsys.readouterr().out.split("to be measured:")
    assert all(name in kept_as for name in kept) and all(name in measured for name in added)
