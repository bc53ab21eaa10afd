"""A run is a folder that holds together whatever happens, and that any process can go on with."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from test_train import SETTINGS, Ones, fresh, same_weights, timeless, weights

from rlcourse import Policy, Run, Scorer, fit, load_policy, train
from rlcourse.lm import checkpoints
from rlcourse.methods import DPO, GRPO, KTO, SFT, VAPO, BradleyTerry
from rlcourse.tasks import Pair, Sums
from rlcourse.training import checkpoint, named
from rlcourse.training.presets import preset

METHOD = GRPO(group_size=4, beta=0.1)
PAIRS = [Pair("1+1=", "2", "3"), Pair("2+2=", "4", "5")]


def run_once(out=None, method=METHOD, policy=None, **changes):
    return train(
        policy or fresh(), Ones(), method, out=out, **SETTINGS | {"steps": 4, "checkpoint_every": 2} | changes
    )


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# ---- what is in the folder


def test_a_folder_says_what_the_run_is_and_all_that_happened(tmp_path):
    run = run_once(tmp_path, sample_every=2)
    config, budget = (json.loads((tmp_path / name).read_text()) for name in ("config.json", "budget.json"))
    assert config["kind"] == "train" and config["rlcourse"] and config["processes"] == 1
    assert (config["policy"], config["task"], config["method"]) == ("tiny", "Ones()", repr(METHOD))
    assert (config["responses"], config["lr"], config["seed"]) == (16, 1e-2, 0) and "steps" not in config
    assert budget["steps"] == 4 and "tokens" not in budget
    assert lines(tmp_path / "metrics.jsonl") == run.history
    samples = lines(tmp_path / "samples.jsonl")
    assert len(samples) == 3 * 8 and [line["step"] for line in samples[::8]] == [0, 2, 4]
    assert samples[8] == dict(
        zip(("step", "prompt", "answer", "correct"), (2, run.prompts[0], *run.samples[2][0]))
    )
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000004"]


def test_a_loaded_run_shows_what_the_run_showed_without_any_model(tmp_path, monkeypatch):
    run = run_once(tmp_path)
    monkeypatch.setattr("rlcourse.lm.loading.load_policy", None)
    again = Run.load(tmp_path)
    assert (again.history, again.samples, again.prompts) == (run.history, run.samples, run.prompts)
    assert again.config == run.config and again.method == METHOD and again.policy is None and again.online
    assert repr(again.before_after()) == repr(run.before_after()) and repr(again) == repr(run)
    assert again.headline == run.headline and again.plot("reward") is not None


def test_a_loaded_offline_run_is_one(tmp_path):
    run = fit(fresh(), PAIRS, DPO(), quiet=True, out=tmp_path)
    again = Run.load(tmp_path)
    assert not again.online and again.method == DPO() and again.headline == run.headline
    assert repr(again.before_after()) == repr(run.before_after())
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 1


def test_a_line_that_a_kill_has_cut_is_no_line(tmp_path):
    run_once(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    assert len(Run.load(tmp_path).history) == 4
    run_once(tmp_path, steps=5, resume=True)
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_folder_without_a_run_is_said_to_have_none(tmp_path):
    with pytest.raises(ValueError, match="holds no run: there is no config.json"):
        Run.load(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3-moe", "gpt2"])
def test_a_checkpoint_is_a_model_that_loads_by_itself(kind, tmp_path):
    run = run_once(tmp_path, GRPO(group_size=4), fresh(kind), steps=1)
    again = load_policy(tmp_path / "step-000001")
    assert same_weights(weights(again), weights(run.policy))
    assert again.sample(["1+2="], seed=1).texts == run.policy.sample(["1+2="], seed=1).texts


def test_a_checkpoint_of_a_scorer_is_a_scorer(tmp_path):
    judge = Scorer(fresh())
    fit(judge, PAIRS, BradleyTerry(), lr=1e-2, quiet=True, out=tmp_path)
    again = Scorer.load(tmp_path / "step-000001")
    assert torch.equal(again.scores(["1+1="], ["2"]), judge.scores(["1+1="], ["2"]))


# ---- disks fill, processes die


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for_tensors(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("where", ["weights", "optimizer", "tokenizer", "record", "rename"])
def test_a_disk_that_fills_while_saving_leaves_the_checkpoint_before_and_says_so(
    where, tmp_path, monkeypatch
):
    straight = run_once()
    with monkeypatch.context() as patch:
        save = checkpoint.save

        def fills(out, step, *rest):
            if step == 4 and where in ("weights", "optimizer"):
                real, written, after = checkpoint.save_file, [], where == "optimizer"
                patch.setattr(
                    checkpoint, "save_file",
                    lambda *a, **k: full_for_tensors() if len(written) == after else written.append(real(*a, **k)),
                )  # fmt: skip
            elif step == 4 and where == "tokenizer":
                patch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
            elif step == 4 and where == "record":
                patch.setattr(Path, "write_text", full)
            elif step == 4:
                patch.setattr(Path, "rename", full)
            save(out, step, *rest)

        patch.setattr(checkpoint, "save", fills)
        with pytest.raises(OSError) as error:
            run_once(tmp_path)
    for part in (
        "Step 4 could not be written",
        "No space left on device",
        "step-000002 is whole",
        "resume=True",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob(".draft-*"))  # what fills the disk is taken away again
    again = run_once(tmp_path, resume=True)
    assert timeless(again.history) == timeless(straight.history)
    assert same_weights(weights(again.policy), weights(straight.policy))


def test_a_disk_that_fills_while_a_step_is_noted_says_so_too(tmp_path, monkeypatch):
    straight = run_once()
    real, steps = Path.open, iter(range(9))  # the first line is written to an empty file

    def fills(path, *how, **more):
        now = path.name == "metrics.jsonl" and path.stat().st_size > 0 and next(steps) == 2
        return full() if now else real(path, *how, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fills)
        with pytest.raises(
            OSError, match="metrics.jsonl could not be written.*No space left.*step-000002 is whole"
        ):
            run_once(tmp_path)
    assert timeless(run_once(tmp_path, resume=True).history) == timeless(straight.history)


KILLED = """
import os, random, signal, sys, threading, time, warnings
sys.path.insert(0, {tests!r})
from test_runs import *
if {after}:
    threading.Thread(target=lambda: (time.sleep({after}), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
run_once({out!r}, steps={steps}, checkpoint_every=1, resume=True)
"""


def in_a_process(out, after=0.0, steps=40):
    """A run in a process of its own, which is killed so many seconds after it began to train."""
    script = KILLED.format(tests=str(Path(__file__).parent), out=str(out), after=after, steps=steps)
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)


def test_a_run_killed_at_a_random_moment_resumes_to_the_same_weights(tmp_path):
    done = in_a_process(tmp_path, after=random.uniform(0.3, 1.0), steps=400)
    assert done.returncode == -signal.SIGKILL, done.stderr
    reached = len(Run.load(tmp_path).history)
    assert reached < 400
    straight, again = run_once(steps=reached + 2), run_once(tmp_path, steps=reached + 2, resume=True)
    assert timeless(again.history) == timeless(straight.history)
    assert same_weights(weights(again.policy), weights(straight.policy))


# ---- going on in another process


def test_a_run_goes_on_from_what_its_folder_says(tmp_path):
    straight = train(load_policy("pocket"), Sums(terms=2), GRPO(beta=0.1), steps=2, responses=16, quiet=True)
    train(
        load_policy("pocket"), Sums(terms=2), GRPO(beta=0.1), steps=1, responses=16, quiet=True, out=tmp_path
    )
    config = json.loads((tmp_path / "config.json").read_text())
    policy, task = load_policy(config["policy"]), named.task(config["task"])
    settings = {name: config[name] for name in ("responses", "lr", "temperature", "max_tokens", "seed")}
    method = named.method(config["method"])
    again = train(policy, task, method, **settings, steps=2, out=tmp_path, resume=True, quiet=True)
    assert same_weights(weights(again.policy), weights(straight.policy))


class Judged(Sums):
    def __repr__(self):
        return f"Sums(judge={self.judge})"


def test_a_judge_that_is_a_function_has_no_address_in_the_config(tmp_path):
    def judge(rollout):
        return rollout.correct.float()

    task, settings = Judged(judge=judge), {"responses": 8, "quiet": True, "out": tmp_path}
    run = train(load_policy("pocket"), task, GRPO(), steps=1, **settings)
    assert " at 0x" not in run.config["task"] and "judge" in run.config["task"]
    assert Run.load(tmp_path).task == run.config["task"]  # a text, where the object cannot be made again


def test_resuming_with_a_model_that_is_trained_already_would_measure_from_the_wrong_place(tmp_path):
    policy = run_once(tmp_path, steps=2).policy
    with pytest.raises(ValueError, match="measures KL from the model that the run began with"):
        run_once(tmp_path, policy=policy, resume=True)
    assert len(run_once(tmp_path, policy=policy, reference=fresh(), resume=True).history) == 4


def test_a_folder_of_another_format_is_refused_by_its_number(tmp_path):
    run_once(tmp_path)
    file = tmp_path / "step-000004" / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))
    with pytest.raises(ValueError, match="format 1 of run folders.*this one reads 2"):
        run_once(tmp_path, resume=True)


def test_a_folder_that_holds_a_model_is_not_overwritten_by_a_run(tmp_path):
    fresh().save(tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(
        ValueError, match="config.json is a model's, and a run would overwrite it: give another out="
    ):
        run_once(tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_a_refused_run_leaves_nothing_in_the_other_ones_folder(tmp_path):
    run_once(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="already holds a run"):
        run_once(tmp_path, tensorboard=True)
    assert sorted(tmp_path.rglob("*")) == before


# ---- objects by name


@pytest.mark.parametrize(
    "made", [GRPO(), GRPO(clip=0.1, scale=False), VAPO(), DPO(beta=0.3), KTO(), SFT(), METHOD]
)
def test_a_methods_repr_makes_it_again(made):
    assert named.method(repr(made)) == made


def test_a_wrapped_method_and_a_bare_name_are_read_too():
    assert named.method("TIS(method=GRPO(clip=0.1), cap=3.0)").method == GRPO(clip=0.1)
    assert named.method("TIS(GRPO())").cap == 2.0
    assert named.method("GRPO") == GRPO() and named.task(" Sums(4, digits=1) ") == Sums(4, 1)


@pytest.mark.parametrize(
    ("make", "text", "says"),
    [
        (named.method, "GPRO", "there is no method 'GPRO'; did you mean .*GRPO"),
        (named.method, "grpo(clip=0.1)", "did you mean .*GRPO"),
        (named.method, "GRPO(clop=0.1)", "GRPO has no setting 'clop'; did you mean clip"),
        (named.task, "Sum", "did you mean Sums"),
        (named.task, "Pair('a', 'b', 'c')", "there is no task 'Pair'"),
        (named.task, "Sums(judge=print)", r"Sums\(judge=print\) cannot be read from text.*in Python"),
        (named.task, "Sums(terms=__import__('os').getpid())", "cannot be read from text"),
        (named.task, "Sums(terms=1)", "2 terms or more"),
        (named.task, "Sums(2, 2, None, 4)", "Sums takes 3 settings, and .* gives it 4"),
        (named.task, "import os", "'import os' is no task.*such as Sums"),
        (named.method, "", "is no method.*such as GRPO"),
        (named.method, "GRPO()()", r"there is no method 'GRPO\(\)'"),
        (named.method, "GRPO(**{'clip': 1})", "cannot be read|has no setting"),
        (named.method, "TIS()", "missing"),
        (named.method, "GRPO(clip='x')", r"GRPO\(clip='x'\): clip is of type float"),
        (named.method, "GRPO(group_size=8.0)", "group_size is of type int"),
    ],
)
def test_what_cannot_be_made_says_why_and_what_is_near(make, text, says):
    with pytest.raises(ValueError, match=says):
        make(text)


# ---- settings by model, errors before any step


def test_a_pocket_and_a_large_model_have_settings_of_their_own(monkeypatch):
    pocket = preset(load_policy("pocket"))
    assert (pocket.lr, pocket.responses, pocket.micro_batch) == (3e-4, 128, None)
    large = fresh()
    large.model.config.vocab_size = 150_000
    assert preset(large).lr == 1e-6 and preset(large).responses == 32
    assert 1 <= preset(large, max_tokens=256).micro_batch < preset(large, max_tokens=32).micro_batch
    monkeypatch.setattr(Policy, "adapted", True)
    assert preset(large).lr == 1e-5


def test_a_run_without_a_step_has_nothing_to_plot():
    with pytest.raises(ValueError, match="has made no step yet"):
        Run(None, None, METHOD, 0).plot()


def test_a_rate_that_breaks_the_model_is_said_in_one_sentence():
    with pytest.raises(
        ValueError, match="the gradient's norm is nan, and nothing can be learned from it: lower lr"
    ):
        run_once(lr=1e30)


@pytest.mark.parametrize("setting", ["group_size", "epochs", "minibatches"])
def test_a_number_below_one_is_refused_before_any_step(setting):
    with pytest.raises(ValueError, match=f"GRPO with {setting}=0: that is 1 or more"):
        run_once(method=replace(METHOD, **{setting: 0}))


def test_a_group_of_one_is_refused_before_any_step():
    policy = fresh()
    with pytest.raises(ValueError, match="at least 2 responses a prompt"):
        run_once(method=GRPO(group_size=1), policy=policy)
    assert same_weights(weights(policy), weights(fresh())) and policy.trained == []


def test_tensorboard_is_written_or_its_package_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="give out="):
        run_once(tensorboard=True)
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"pip install 'rlcourse\[tensorboard\]'"):
            run_once(tmp_path, tensorboard=True)
    else:
        run_once(tmp_path, tensorboard=True)
        assert list((tmp_path / "tensorboard").glob("events*"))
