"""The command line: every command done once, every wrong way to call it, and what scripts rely on."""

import errno
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from rlcourse import cli
from rlcourse.cli import compare, doctor
from rlcourse.cli.runs import free_folder
from rlcourse.lm import load_policy
from rlcourse.lm.loading import POCKETS
from rlcourse.training.folder import Folder

COMMANDS = ["doctor", "train", "resume", "plot", "export", "compare", "sample", "eval", "quiz", "completion"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}  # this tree, from any directory
TINY = ["--steps", "2", "--responses", "16", "--checkpoint-every", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test has a working directory of its own: `runs/` is made there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLCOURSE_MODEL", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", "GRPO", *TINY, "--out", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def preferred(tmp_path_factory):
    """An offline run on 16 of the helpdesk's pairs, one step."""
    folder = tmp_path_factory.mktemp("preferred") / "run"
    assert cli.main(["train", "dpo", "--examples", "16", "--out", str(folder), "--quiet"]) == 0
    return folder


def report(capsys, *arguments):
    """The JSON document that a command prints, which is all that it prints."""
    capsys.readouterr()
    assert cli.main([*map(str, arguments), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


def timeless(row):
    return {name: value for name, value in row.items() if name != "seconds"}


def refused(capsys, *arguments):
    """The one line with which a bad command line is turned down."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, arguments)))
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1 and "--help" in said.err
    return said.err


def failed(capsys, *arguments):
    """The one line that says why something could not be done."""
    capsys.readouterr()
    assert cli.main(list(map(str, arguments))) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("rlcourse: ") and said.err.count("\n") == 1
    return said.err


def process(*arguments):
    command = [sys.executable, "-m", "rlcourse.cli", *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # a shell that runs the tests in the background has them ignore ctrl-C, and what they start too
    return subprocess.Popen(
        command, env=ENVIRONMENT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes
    )


# ---- help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_ends_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    example = capsys.readouterr().out.rpartition("example:\n")[2]
    assert stop.value.code == 0 and f"rlcourse {command}" in example


def test_every_example_is_a_command_line_that_parses(capsys):
    parser = cli.parser()
    for command in COMMANDS[:-1]:
        with pytest.raises(SystemExit):
            parser.parse_args([command, "--help"])
        words = shlex.split(capsys.readouterr().out.rpartition("example:\n")[2])
        assert parser.parse_args(words[1:]).run


def test_help_of_a_command_loads_nothing_heavy():
    code = "import sys; from rlcourse.cli import main\ntry: main(['compare', '--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert not {"torch", "numpy", "transformers", "matplotlib", "shtab"} & set(done.stdout.split())


# ---- train and resume


def test_a_run_is_a_folder_and_the_document_says_where(here, capsys):
    document = report(capsys, "train", "grpo", "--task", "sums(terms=2)", *TINY)
    assert document["run"] == "runs/grpo-sums-1" and document["last"]["step"] == 2
    assert report(capsys, "train", "GRPO", *TINY)["run"] == "runs/grpo-sums-2"
    config = json.loads((here / "runs/grpo-sums-1/config.json").read_text())
    assert config["task"].startswith("Sums(terms=2,") and config["responses"] == 16
    assert (here / "runs/grpo-sums-1/step-000002/model.safetensors").exists()


def test_settings_in_the_expression_and_options_reach_the_run(here, capsys):
    options = ["--lr", "1e-4", "--seed", "7", "--max-tokens", "20", "--tokens", "100", "--responses", "4"]
    document = report(capsys, "train", "GRPO(group_size=4, clip=0.1)", "--out", here / "run", *options)
    config = json.loads((here / "run/config.json").read_text())
    assert "clip=0.1" in document["method"] and document["last"]["length"] <= 20
    assert (config["lr"], config["seed"], config["max_tokens"]) == (1e-4, 7, 20)
    assert json.loads((here / "run/budget.json").read_text())["tokens"] == 100


def test_a_resumed_run_is_the_run_that_was_never_stopped(here, trained, capsys):
    whole = report(capsys, "train", "GRPO", *TINY, "--steps", "3", "--out", here / "whole")
    report(capsys, "train", "GRPO", *TINY, "--out", here / "parts")
    parts = report(capsys, "resume", here / "parts", "--steps", "3")
    assert timeless(parts["last"]) == timeless(whole["last"])
    weights = [here / name / "step-000003/model.safetensors" for name in ("whole", "parts")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_budget_of_tokens_can_take_the_place_of_steps(here, capsys):
    report(capsys, "train", "GRPO", *TINY, "--out", here / "run")
    assert report(capsys, "resume", here / "run", "--tokens", "400")["last"]["sampled_tokens"] >= 400


def test_an_offline_run_keeps_what_it_learned_from_and_goes_on_without_the_readers_file(
    here, capsys, monkeypatch
):
    pairs = [{"prompt": f"{n}+1=", "chosen": f"#{n + 1}", "rejected": "#0"} for n in range(1, 9)]
    (here / "mine.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    arguments = ["--data", "mine.jsonl", "--batch", "4", "--checkpoint-every", "1", "--epochs", "2"]
    whole = report(capsys, "train", "DPO(beta=0.5)", *arguments, "--out", "whole")
    assert whole["last"]["step"] == 4
    save = Folder.save

    def stops_at_the_second(folder, step, *rest):
        save(folder, step, *rest)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "save", stops_at_the_second)
        assert cli.main(["train", "DPO(beta=0.5)", *arguments, "--out", "run", "--quiet"]) == 130
    (here / "mine.jsonl").unlink()
    assert report(capsys, "resume", "run")["last"]["step"] == 4
    weights = [here / name / "step-000004/model.safetensors" for name in ("run", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert cli.main(["resume", "run"]) == 0  # a loop that resumes until all is done comes to an end
    assert capsys.readouterr().err == "rlcourse: run was done already, at step-000004.\n"
    assert "is offline, and as long as its data" in refused(capsys, "resume", "run", "--steps", "9")
    assert [json.loads(line) for line in (here / "run/data.jsonl").read_text().splitlines()] == pairs


@pytest.mark.parametrize(
    ("method", "kind"),
    [("SFT", "response"), ("KTO", "good"), ("BradleyTerry", "chosen"), ("PlackettLuce", "responses")],
)
def test_every_offline_method_finds_people_to_learn_from(method, kind, here, capsys):
    assert report(capsys, "train", method, "--examples", "8", "--out", "run")["last"]["examples"] == 8
    assert kind in json.loads((here / "run/data.jsonl").read_text().splitlines()[0])


def test_a_run_can_start_from_another_run(trained, capsys):
    report(capsys, "train", "REINFORCE", "--model", trained, *TINY, "--out", "second")
    assert json.loads(Path("second/config.json").read_text())["policy"] == str(trained)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "GRPOO"], "did you mean GRPO"),
        (["train", "GRPO", "--task", "Sum"], "did you mean Sums"),
        (["train", "GRPO(clipp=0.1)"], "did you mean clip"),
        (["train", "GRPO(clip=open('x'))"], "cannot be read from text"),
        (["train", "GRPO", "--task", "Sums(terms=1)"], "2 terms or more"),
        (["train", "GRPO(group_size=1)"], "at least 2 responses a prompt"),
        (["train", "GRPO(clip=-0.1)"], "GRPO with clip=-0.1: that is 0 or more"),
        (["train", "GRPO", "--steps", "-3"], "'-3' is not a whole number of 1 or more"),
        (["train", "GRPO", "--steps", "0"], "'0' is not a whole number"),
        (["train", "GRPO", "--lr", "nan"], "'nan' is not a number above 0"),
        (["train", "GRPO", "--steps", "3", "--tokens", "9"], "not allowed with"),
        (["train", "GRPO", "--data", "pairs.jsonl"], "--data is not for GRPO, which samples its own answers"),
        (["train", "DPO", "--steps", "3"], "--steps is not for DPO, which learns from what people have said"),
        (["train", "DPO", "--task", "Sums"], "--task is not for DPO"),
        (["train", "DPO", "--data", "a.jsonl", "--examples", "9"], "give one"),
        (["compare", "GRPO"], "two methods or more"),
        (["compare", "GRPO", "grpo"], "GRPO is named twice"),
        (["compare", "GRPO", "DPO"], "DPO learns from what people have said"),
        (["compare", "GRPO", "PPO", "--lr", "DAPO=1"], "'DAPO' is not compared here; there are GRPO, PPO"),
        (["sample", "pocket", "--prompt", "1+1=", "--task", "Sums"], "give one of them"),
        (["eval", "pocket", "--samples", "4", "--k", "8"], "--k 8 needs --samples 8 or more"),
        (["export", "jax", "run", "--out", "x"], "invalid choice"),
        (["trian"], "invalid choice"),
    ],
)
def test_a_bad_command_line_is_turned_down_in_one_line(arguments, says, here, capsys):
    assert says in refused(capsys, *arguments)
    assert not (here / "runs").exists()


def test_what_cannot_be_done_is_said_in_one_line(here, trained, capsys, monkeypatch):
    (here / "broken.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    (here / "empty.jsonl").write_text("")
    (here / "folder").mkdir()
    train = ["train", "GRPO", *TINY, "--out"]
    cases = {
        ("train", "DPO", "--data", "broken.jsonl"): "line 2 of broken.jsonl",
        ("train", "DPO", "--data", "empty.jsonl"): "empty.jsonl is empty",
        ("train", "DPO", "--data", "none.jsonl"): "none.jsonl cannot be read",
        ("train", "GRPO", "--model", "no-such-model"): "No model 'no-such-model'",
        (*train, trained): f"`rlcourse resume {trained}` goes on with it",
        (*train, here / "empty.jsonl" / "run"): "Not a directory",
        (*train, "one", "--max-tokens", "300"): "passes the context of pocket, 256",
        ("resume", "folder"): "folder is not the folder of a run: it has no config.json",
        ("plot", "folder"): "not the folder of a run",
        ("export", "trl", "folder", "--out", "x"): "not the folder of a run",
        ("sample", "pocket", "--prompt", "1+" * 100): "passes the context of pocket",
        ("compare", "GRPO", "PPO", "--out", trained): "holds a run or a model, not a comparison",
        ("export", "trl", POCKETS / "pocket", "--out", "x"): "not the folder of a run",
    }
    for arguments, says in cases.items():
        assert says in failed(capsys, *arguments), arguments


def test_nothing_that_is_in_the_folder_already_is_overwritten(here, capsys):
    load_policy("pocket").save(here / "model")
    (here / "own").mkdir()
    (here / "own/data.jsonl").write_text(
        '{"prompt": "1+1=", "chosen": "#2", "rejected": "#3", "note": "mine"}\n'
    )
    report(capsys, "compare", "GRPO", "RLOO", "--seeds", "1", *TINY[:4], "--problems", "4", "--out", "duel")
    before = {file: file.read_bytes() for file in here.rglob("*.json*")}
    for arguments, says in {
        (
            "train",
            "GRPO",
            "--model",
            "model",
            *TINY,
            "--out",
            "model",
        ): "is a model's, and a run would overwrite it",
        (
            "train",
            "DPO",
            "--data",
            "own/data.jsonl",
            "--out",
            "own",
        ): "no run has written it: give another --out",
        ("train", "GRPO", *TINY, "--out", "duel"): "duel holds a comparison already",
    }.items():
        assert says in failed(capsys, *arguments)
    assert {file: file.read_bytes() for file in here.rglob("*.json*")} == before
    assert "whose budget stays as it is" in refused(capsys, "resume", "duel", "--steps", "50")


def test_two_commands_that_start_together_have_a_folder_each(here):
    assert [str(free_folder("GRPO", "Sums")) for _ in range(2)] == ["runs/grpo-sums-1", "runs/grpo-sums-2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["RLOO(group_size=3)"], "do not divide into RLOO's groups of 3"),
        (["RLOO", "--task", "Countdown"], "Countdown"),
    ],
)
def test_a_comparison_that_cannot_work_leaves_nothing_behind(arguments, says, here, capsys):
    assert says in failed(capsys, "compare", "GRPO", *arguments, *TINY[:4], "--out", "duel")
    assert not (here / "duel").exists()


def test_methods_that_differ_by_a_sign_have_a_folder_each():
    labels = [f"GRPO(beta={beta})" for beta in ("0.1", "-0.1")]
    assert len({compare.folder_of(Path(), labels, label, 0) for label in labels}) == 2


def test_a_scorer_is_not_asked_for_answers(here, capsys):
    report(capsys, "train", "BradleyTerry", "--examples", "8", "--out", "judge")
    assert "judge is a scorer: it judges answers and gives none" in failed(capsys, "sample", "judge")


def test_a_run_without_a_checkpoint_has_nothing_to_resume(here, trained, capsys):
    for name in ("config.json", "budget.json", "metrics.jsonl"):
        (here / name).write_text((trained / name).read_text())
    assert "no checkpoint yet" in failed(capsys, "resume", here)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_how_to_go_on(here, capsys, monkeypatch):
    from rlcourse.training import checkpoint

    write, written = checkpoint.save_file, []

    def full(tensors, path, **how):
        written.append(path)
        if len(written) > 2:  # the second checkpoint's
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(tensors, path, **how)

    monkeypatch.setattr(checkpoint, "save_file", full)
    said = failed(capsys, "train", "GRPO", *TINY, "--out", "run")
    assert (
        "No space left on device" in said
        and "run/step-000001 is kept; go on with: rlcourse resume run" in said
    )
    monkeypatch.setattr(checkpoint, "save_file", write)
    assert report(capsys, "resume", "run")["last"]["step"] == 2


def test_a_machine_that_is_too_small_is_told_what_takes_less(capsys, monkeypatch):
    from rlcourse.training import online

    def too_much(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(online, "collect", too_much)
    assert "--micro-batch 4, --gradient-checkpointing" in failed(capsys, "train", "GRPO", *TINY)


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(here, capsys):
    running = process("train", "GRPO", *TINY, "--steps", "5000", "--out", here / "run")
    deadline = time.monotonic() + 60
    while not list((here / "run").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    try:
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and out == ""
    last = max((here / "run").glob("step-*"))
    assert err.strip() == f"rlcourse: stopped. {last} is kept; go on with: rlcourse resume {here / 'run'}"
    steps = int(last.name[5:]) + 1
    assert report(capsys, "resume", here / "run", "--steps", steps)["last"]["step"] == steps


def test_ctrl_c_before_there_is_a_run_is_said_too(capsys, monkeypatch):
    def stopped(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.doctor, "run_doctor", stopped)
    assert cli.main(["doctor"]) == 130 and capsys.readouterr().err.strip() == "rlcourse: stopped."


# ---- sample and eval


def test_answers_to_a_prompt_and_to_a_task(trained, capsys):
    document = report(capsys, "sample", "pocket", "--prompt", "12+13=", "--prompt", "1+1=", "-n", "3")
    assert [answer["prompt"] for answer in document["answers"]] == ["12+13="] * 3 + ["1+1="] * 3
    assert {answer["correct"] for answer in document["answers"]} == {None}
    document = report(capsys, "sample", trained, "--problems", "2", "-n", "2")
    assert len(document["answers"]) == 4 and {type(a["correct"]) for a in document["answers"]} == {bool}
    assert document == report(capsys, "sample", trained, "--problems", "2", "-n", "2")
    assert document != report(capsys, "sample", trained, "--problems", "2", "-n", "2", "--seed", "1")


def test_a_greedy_answer_is_one_and_marked(capsys):
    assert cli.main(["sample", "pocket", "--task", "Sums(terms=2, digits=1)", "--greedy"]) == 0
    prompt, answer = capsys.readouterr().out.splitlines()
    assert prompt.endswith("=") and answer[2] in "✓✗"


def test_eval_is_counted_from_the_tries(capsys):
    from rlcourse import load_policy
    from rlcourse.evaluate import accuracy
    from rlcourse.evaluate.tries import tries
    from rlcourse.tasks import Sums

    document = report(capsys, "eval", "pocket", "--problems", "24", "--samples", "4", "--k", "4", "1")
    found = tries(load_policy("pocket"), Sums(), 24, 4)
    right = [sum(each.correct) for each in found]
    assert document["accuracy"] == document["pass"]["1"] == document["maj"]["1"] == sum(right) / 96
    assert document["pass"]["4"] == sum(map(bool, right)) / 24
    assert document["accuracy"] < document["maj"]["4"] < document["pass"]["4"]
    low, high = document["interval"]
    assert 0 < low < document["accuracy"] < high < 1
    one = report(capsys, "eval", "pocket", "--problems", "100", "--samples", "1")
    assert one["accuracy"] == pytest.approx(accuracy(load_policy("pocket"), Sums(), 100))
    assert list(one["pass"]) == ["1"]


def test_an_answer_that_was_cut_has_no_vote():
    from rlcourse import load_policy
    from rlcourse.evaluate.tries import tries
    from rlcourse.tasks import Sums

    task = Sums(digits=3)  # "#812" is four tokens, and its EOS a fifth
    problem = task.draw(Random(0))
    found = tries(load_policy("pocket"), task, problems=4, samples=8, max_tokens=4)
    assert any(task.answer_of(problem, text) for each in found for text in each.texts)
    assert all(each.answers == [None] * 8 for each in found)


def test_a_task_without_final_answers_has_no_majority(capsys):
    arguments = ["eval", "pocket", "--task", "Helpdesk", "--problems", "2", "--samples", "2"]
    assert report(capsys, *arguments)["maj"] is None
    assert cli.main(arguments) == 0 and "no maj@k" in capsys.readouterr().out


# ---- compare


def test_a_comparison_that_was_stopped_goes_on_where_it_stopped(here, capsys, monkeypatch):
    arguments = ["compare", "GRPO", "rloo", "--seeds", "2", *TINY[:4], "--problems", "32", "--out", "duel"]
    measured, asked = compare.measured, []

    def stops_at_the_third(folder, *rest):
        asked.append(folder.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return measured(folder, *rest)

    monkeypatch.setattr(compare, "measured", stops_at_the_third)
    assert cli.main(arguments) == 130
    assert "2 of 4 runs are done and kept; go on with: rlcourse resume duel" in capsys.readouterr().err
    document = report(capsys, "resume", "duel")
    assert asked == ["GRPO-seed0", "RLOO-seed0", "GRPO-seed1", "GRPO-seed1", "RLOO-seed1"]
    assert document == report(capsys, *arguments)  # and a finished one is only read
    first, second = document["results"]
    assert first["method"] == "GRPO" and "difference" not in first and second["verdict"]
    assert second["difference"] == pytest.approx(second["after"] - first["after"])
    assert (here / "duel/compare.png").read_bytes().startswith(b"\x89PNG")
    assert "its problems is 32, and now 16" in failed(capsys, *arguments, "--problems", "16")


def test_differences_are_paired_and_called_inconclusive_where_their_interval_holds_0():
    def runs(*values):
        return [{"accuracy": value, "sampled_tokens": 10, "seconds": 1.0} for value in values]

    clear, noisy = runs(0.71, 0.81, 0.62), runs(0.71, 0.81, 0.41)
    first, better, unsure = compare.compared(0.4, {"A": runs(0.6, 0.7, 0.5), "B": clear, "C": noisy})
    assert first["after"] == pytest.approx(0.6) and first["margin"] == pytest.approx(
        4.30265 * 0.1 / 3**0.5, rel=1e-4
    )
    # seeds differ by 0.2 and the differences by 0.01: pairing is what makes it clear
    assert better["difference"] == pytest.approx(0.113, abs=1e-3) and better["difference_margin"] < 0.02
    assert (better["verdict"], unsure["verdict"]) == ("better", "inconclusive")
    assert compare.compared(0.4, {"A": clear, "B": runs(0.6, 0.7, 0.5)})[1]["verdict"] == "worse"


def test_one_seed_decides_nothing():
    alone = [{"accuracy": 0.5, "sampled_tokens": 10, "seconds": 1.0}]
    _, other = compare.compared(0.4, {"A": alone, "B": [alone[0] | {"accuracy": 0.9}]})
    assert (
        other["margin"] is None
        and other["verdict"] == "inconclusive"
        and "±" not in " ".join(compare.line(other))
    )


def test_all_means_every_online_method_and_no_correction():
    options = cli.parser().parse_args(["compare", "GRPO(beta=0.1)", "all"])
    names = compare.asked(options)
    assert names[:2] == ["GRPO(beta=0.1)", "REINFORCE"] and len(names) == len(set(names))
    assert {"PPO", "DAPO", "VAPO", "OnlineDPO"} <= set(names) and not {
        "GRPO",
        "TIS",
        "SFT",
        "RoutingReplay",
    } & set(names)


def test_rates_are_everybodys_or_one_methods():
    options = cli.parser().parse_args(["compare", "GRPO", "DAPO", "--lr", "dapo=1e-4", "--lr", "3e-4"])
    assert compare.rates(options, {"GRPO": {}, "DAPO": {}}) == {"GRPO": 3e-4, "DAPO": 1e-4}


# ---- plot and export


def test_curves_of_one_run_and_of_several(here, trained, preferred, capsys):
    assert cli.main(["plot", str(trained), "--y", "reward", "length", "--x", "sampled_tokens"]) == 0
    assert capsys.readouterr().out.strip() == str(trained / "plot.png")
    assert (
        report(capsys, "plot", trained, preferred, "--y", "loss", "--out", "both.svg")["figure"] == "both.svg"
    )
    drawn = (here / "both.svg").read_text()
    assert str(trained) in drawn and str(preferred) in drawn
    assert "has no 'rewrad'" in refused(capsys, "plot", trained, "--y", "rewrad")
    assert "give --out FIGURE.png" in refused(capsys, "plot", trained, "--out", "figure.docx")


def test_a_run_is_written_for_trl_with_its_data(trained, preferred, capsys):
    document = report(capsys, "export", "trl", trained, "--out", "online")
    assert document["files"] and all(Path(file).exists() for file in document["files"])
    report(capsys, "export", "trl", preferred, "--out", "offline")
    assert len(Path("offline/data.jsonl").read_text().splitlines()) == 16


# ---- doctor and completion


def test_doctor_says_what_is_here_and_never_touches_the_network(capsys, monkeypatch):
    def unreachable(*_):
        raise AssertionError("doctor opens a connection")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "Qwen/Qwen2.5-0.5B-Instruct" in said and "Nothing is wrong." in said


def test_doctor_finds_what_is_wrong_and_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda _: ["torch>=99", "no-such-package", "trl; extra == 'dev'"]
    )
    monkeypatch.setenv("RLCOURSE_MODEL", "Qwen/Qwen9")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/" + name)
    assert cli.main(["doctor", "--json"]) == 1
    wrong = json.loads(capsys.readouterr().out)["wrong"]
    assert len(wrong) == 4 and all(
        "no-such" in w or "torch" in w or "hf download Qwen/Qwen9" in w for w in wrong
    )
    assert "no-such-package is not installed: `make setup`" in wrong[1]


def test_what_fits_is_arithmetic_that_one_can_check():
    fits = {row["model"]: row for row in doctor.what_fits(24 * 10**9, "bf16")}
    qwen = fits["Qwen/Qwen2.5-0.5B-Instruct"]
    # 494 M parameters: 16 bytes each for the policy, 2 for the reference, and then what passes through
    assert 494e6 * 18 < qwen["GRPO"]["bytes"] < 494e6 * 18 + 8e9
    assert qwen["GRPO, LoRA 16"]["bytes"] < qwen["GRPO"]["bytes"] < qwen["DPO"]["bytes"]
    assert fits["pocket"]["GRPO"]["fits"] and not fits["meta-llama/Llama-3.2-1B(-Instruct)"]["DPO"]["fits"]
    assert fits["pocket"]["GRPO"]["bytes"] < 2e8


def test_bash_completes_commands_options_and_methods(here):
    (here / "complete.bash").write_text(subprocess_output("completion", "bash"))
    for words, expected in (
        (["rlcourse", "tr"], "train"),
        (["rlcourse", "train", "--grad"], "--gradient-checkpointing"),
        (["rlcourse", "compare", "GRPO", "DAP"], "DAPO"),
        (["rlcourse", "export", "op"], "openrlhf"),
    ):
        line = " ".join(words)
        script = f"""source complete.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE="{line}"
                     $(complete -p rlcourse | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected and done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_too(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert "rlcourse" in said and "gradient-checkpointing" in said and "DAPO" in said


def subprocess_output(*arguments):
    done = process(*arguments)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0 and err == ""
    return out
