"""Whatever readers, other processes and disks do to the folder of a run, the run is safe or says what is wrong."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from test_cli import failed, here, preferred, refused, report, timeless, trained  # noqa: F401
from test_runs import PAIRS, run_once
from test_train import fresh, same_weights, weights

from rlcourse import Run, cli, fit, load_policy
from rlcourse.cli import compare
from rlcourse.cli.parser import sentence
from rlcourse.export import export
from rlcourse.lm import checkpoints
from rlcourse.methods import DPO
from rlcourse.training import checkpoint, online
from rlcourse.training.folder import writing

TINY = ["--steps", "2", "--responses", "16"]


@pytest.fixture
def run(here, trained):  # noqa: F811
    """A run of two steps, to be broken."""
    return Path(shutil.copytree(trained, here / "run"))


@pytest.fixture
def after_save(monkeypatch):
    """Do something as soon as a checkpoint has been written."""
    real = checkpoint.save

    def patched(do):
        def save(out, step, *rest):
            real(out, step, *rest)
            do(Path(out), step)

        monkeypatch.setattr(checkpoint, "save", save)

    return patched


# ---- copies


def test_a_readers_copies_of_checkpoints_disturb_nothing_and_are_kept(tmp_path, after_save):
    newest = []

    def copies(out, step):
        newest.append(checkpoints(out)[-1].name)
        if step == 2:
            for name in ("step-keep", "step-000002-best", "step-000001", "step-000005"):
                shutil.copytree(out / "step-000002", out / name)
            (out / "step-000004").symlink_to("step-000002")

    after_save(copies)
    straight = run_once(tmp_path, steps=6, checkpoint_every=1)
    assert newest == [f"step-{step:06d}" for step in range(1, 7)]
    assert checkpoints(tmp_path) == [tmp_path / "step-000006"]
    for name in ("step-keep", "step-000002-best", "step-000001", "step-000005-not-of-this-run-1"):
        assert (tmp_path / name / "record.json").exists()
    assert (tmp_path / "step-000004-not-of-this-run-1").is_symlink()
    assert same_weights(weights(load_policy(tmp_path)), weights(straight.policy))
    assert len(run_once(tmp_path, steps=7, checkpoint_every=1, resume=True).history) == 7


def test_a_checkpoint_that_a_reader_has_moved_and_linked_is_read_and_not_deleted(tmp_path, after_save):
    def moves(out, step):
        if step == 2:
            (out / "step-000002").rename(tmp_path / "elsewhere")
            (out / "step-000002").symlink_to(tmp_path / "elsewhere")

    after_save(moves)
    run_once(tmp_path / "run", steps=2)
    run_once(tmp_path / "run", resume=True)
    assert (tmp_path / "elsewhere" / "record.json").exists() and (
        tmp_path / "run" / "step-000002"
    ).is_symlink()
    assert checkpoints(tmp_path / "run")[-1].name == "step-000004"


def test_a_folder_that_does_not_say_of_which_step_it_is_is_never_deleted(tmp_path):
    run_once(tmp_path, steps=2)
    for name in ("step-000001", ".draft-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    run_once(tmp_path, resume=True)
    assert (tmp_path / "step-000001/notes.txt").exists() and (tmp_path / ".draft-mine/notes.txt").exists()


def test_every_command_reads_a_run_with_copies_beside_its_checkpoint(run, capsys):
    for name in ("step-keep", "step-000002-best", "step-000001", "step-000003"):
        shutil.copytree(run / "step-000002", run / name)
        (run / name / "model.safetensors").write_bytes(b"")
    report(capsys, "sample", run, "-n", "1")
    report(capsys, "plot", run)
    report(capsys, "export", "trl", run, "--out", "elsewhere")
    assert report(capsys, "resume", run, "--steps", "3")["last"]["step"] == 3


# ---- one writer


def held(folder):
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    lock.acquire()
    (folder / ".lock").write_text("4711 on elsewhere\n")
    return lock


def test_a_second_process_is_told_that_the_folder_is_being_written(run, here, capsys):  # noqa: F811
    lock, other, third = held(run), held(here / "other"), held(here / "third")
    (here / "third/compare.json").write_text("{}")
    before = {file: file.read_bytes() for file in here.rglob("*") if file.is_file()}
    says = "is being written by another process (4711 on elsewhere): wait until it has ended, or give another folder"
    assert says in failed(capsys, "resume", run, "--steps", "3")
    assert says in failed(capsys, "train", "RLOO", *TINY, "--out", "other")
    assert says in failed(capsys, "train", "SFT", "--examples", "8", "--out", "other")
    assert says in failed(capsys, "compare", "GRPO", "RLOO", *TINY, "--out", "third")
    assert says in failed(capsys, "resume", "third")
    with pytest.raises(ValueError, match="is being written by another process"):
        fit(fresh(), PAIRS, DPO(), out=other.lock_file.removesuffix("/.lock"), quiet=True)
    assert before == {file: file.read_bytes() for file in here.rglob("*") if file.is_file()}
    lock.release(), third.release()
    # what a dead process left is no obstacle
    assert report(capsys, "resume", run, "--steps", "3")["last"]["step"] == 3


def test_a_run_holds_its_folder_to_the_end_and_gives_it_back_however_it_ends(tmp_path, after_save):
    seen = []

    def tries(out, step):
        with pytest.raises(Timeout):
            FileLock(out / ".lock", timeout=0).acquire()
        seen.append(step)
        if step == 4:
            raise KeyboardInterrupt

    after_save(tries)
    with pytest.raises(
        KeyboardInterrupt
    ) as stopped:  # whose traceback keeps the run's frames, as a notebook does
        run_once(tmp_path, steps=4)
    assert seen == [2, 4] and stopped.tb
    with FileLock(tmp_path / ".lock", timeout=0):
        pass


def test_of_several_processes_of_one_run_only_the_first_locks(tmp_path, monkeypatch):
    lock = held(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    with writing(tmp_path / "run"), writing(tmp_path / "other"):
        assert not (tmp_path / "other").exists()
    lock.release()


# ---- exports


def test_an_export_never_goes_into_a_run_a_model_or_a_comparison(run, here, capsys):  # noqa: F811
    load_policy("pocket").save(here / "model")
    (here / "duel").mkdir()
    (here / "duel/compare.json").write_text("{}")
    before = sorted(here.rglob("*"))
    for folder in (run, run / "step-000002", here / "model", here / "duel"):
        assert "holds a run, a model or a comparison" in failed(capsys, "export", "trl", run, "--out", folder)
        with pytest.raises(ValueError, match="export into a folder of its own"):
            export(run, "verl", folder)
    (here / "file").write_text("")
    for nowhere in ("file", ""):
        with pytest.raises(ValueError, match="names no folder to write into"):
            export(run, "trl", nowhere)
    (here / "file").unlink()
    assert sorted(here.rglob("*")) == before


# ---- broken files


def changed(file, **changes):
    content = json.loads(file.read_text()) | changes
    return json.dumps({name: value for name, value in content.items() if value is not ...})


WRONG = ["", "{", "[]", "7", "null", b"\xff\xfe", "[" * 100_000]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_file_that_is_no_json_object_is_named_in_one_sentence(wrong, run, capsys):
    commands = {
        "config.json": (
            ["resume", run], ["plot", run], ["export", "trl", run, "--out", "x"], ["sample", run], ["eval", run],
        ),
        "budget.json": (["resume", run], ["export", "trl", run, "--out", "x"]),
        "step-000002/record.json": (["resume", run],),
        "compare.json": (["resume", run],),
    }  # fmt: skip
    for name, all_of in commands.items():
        file = run / name
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
        for command in all_of:
            assert str(file) in failed(capsys, *command), command
        file.unlink() if before is None else file.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("config.json", {"method": ...}, "has no 'method'"),
        ("config.json", {"policy": 3}, "says policy=3, and that should be a text"),
        ("config.json", {"task": ...}, "has no 'task'"),
        ("config.json", {"responses": "many"}, "says responses='many'"),
        ("config.json", {"responses": 0}, "a whole number of 1 or more"),
        ("config.json", {"method": "GRPO\x1b[2J("}, "is no method"),
        ("config.json", {"engine": "\x1b[2J"}, "engine made in Python"),
        ("budget.json", {"steps": ...}, "has neither steps nor tokens"),
        ("budget.json", {"checkpoint_every": 0}, "checkpoint_every=0"),
        ("step-000002/record.json", {"history": ...}, "has no 'history'"),
        ("step-000002/record.json", {"history": []}, "not of 2 steps"),
        ("step-000002/record.json", {"history": [{"step": "one"}]}, "says step='one'"),
        ("step-000002/record.json", {"samples": {"x": 3}}, "no answers by step"),
        ("step-000002/record.json", {"config": [1]}, "should be an object"),
    ],
)
def test_what_a_file_lacks_or_has_wrong_is_said(name, changes, says, run, capsys):
    (run / name).write_text(changed(run / name, **changes))
    said = failed(capsys, "resume", run, *(["--steps", "3"] if name != "budget.json" else []))
    assert says in said and said[:-1].isprintable()


def test_a_sentence_is_one_line_that_no_file_can_make_drive_the_terminal():
    assert sentence(ValueError("no\x1b[2J\r model\nä")) == "no\\x1b[2J\\r model ä"


@pytest.mark.parametrize(
    "changes", [{"responses": ...}, {"lr": "x"}, {"policy": None}, {"method": 5}, {"seed": ...}]
)
def test_an_export_says_what_the_config_lacks(changes, run, capsys):
    (run / "config.json").write_text(changed(run / "config.json", **changes))
    assert next(iter(changes)) in failed(capsys, "export", "trl", run, "--out", "x")
    with pytest.raises(ValueError, match=next(iter(changes))):
        export(json.loads((run / "config.json").read_text()), "trl", "x")


@pytest.mark.parametrize("line", ["{", "7", "[]", "{}", '{"step": 1, "reward": "high"}', ""])
def test_a_broken_line_amid_the_metrics_is_named_by_its_number(line, run, capsys):
    file = run / "metrics.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text(f"{first}\n{line}\n{second}\n")
    assert f"line 2 of {file}" in failed(capsys, "plot", run)
    assert (
        cli.main(["resume", str(run)]) == 0
    )  # and it is written anew from the checkpoint, as the sentence says
    assert file.read_text().splitlines() == [first, second]


@pytest.mark.parametrize(
    "changes",
    [{"methods": []}, {"methods": {}}, {"methods": {"GRPO": 3}}, {"budget": {}}, {"seeds": 0}, {"task": ...},
     {"methods": {"GRPO": {"lr": None}}}, {"budget": {"steps": "x"}}],
)  # fmt: skip
def test_a_broken_comparison_is_named(changes, here, capsys):  # noqa: F811
    settings = {"model": "pocket", "task": "Sums()", "methods": {"GRPO": {"method": "GRPO()", "lr": None}},
                "budget": {"steps": 1}, "responses": 16, "seeds": 1, "problems": 4}  # fmt: skip
    (here / "compare.json").write_text(json.dumps(settings))
    (here / "compare.json").write_text(changed(here / "compare.json", **changes))
    assert "compare.json" in failed(capsys, "resume", here)


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_truncated_tensors_are_named(name, run, capsys):
    file = run / "step-000002" / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert str(file) in failed(capsys, "resume", run, "--steps", "3") or name == "model"
    if name == "model":
        failed(capsys, "sample", run)
        failed(capsys, "eval", run)
    folder, twin = run / "step-000002", load_policy("pocket")
    with pytest.raises(
        ValueError, match=f"{name}.safetensors cannot be read: .*Put a copy of the checkpoint back"
    ):
        checkpoint.load(folder, twin, torch.optim.AdamW(twin.parameters()), {})


@pytest.mark.parametrize("fault", ["shape", "place", "name", "part"])
def test_an_optimizer_of_another_model_is_refused(fault, tmp_path):
    run_once(tmp_path, steps=2)
    file = tmp_path / "step-000002/optimizer.safetensors"
    held = load_file(file)
    if fault == "shape":
        held["0.exp_avg"] = held["0.exp_avg"][:1].clone()
    elif fault == "part":
        del held["0.exp_avg_sq"]
    else:
        held[{"place": "999.exp_avg", "name": "x"}[fault]] = torch.zeros(3)
    save_file(held, file)
    with pytest.raises(ValueError, match="optimizer.safetensors (holds the optimizer of another|lacks some)"):
        run_once(tmp_path, resume=True)


# ---- numbers that are none


def test_a_number_that_is_none_is_null_in_the_files_and_nan_when_read(tmp_path, monkeypatch):
    real = online.learn
    with monkeypatch.context() as patch:
        patch.setattr(online, "learn", lambda *given: real(*given) | {"odd": math.nan, "far": math.inf})
        run_once(tmp_path, steps=2)

    def none(constant):
        raise AssertionError(f"{constant} is no JSON")

    rows = [
        json.loads(line, parse_constant=none)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert [(row["odd"], row["far"]) for row in rows] == [(None, None)] * 2
    json.loads((tmp_path / "step-000002/record.json").read_text(), parse_constant=none)
    for again in (Run.load(tmp_path), run_once(tmp_path, steps=3, resume=True)):
        assert math.isnan(again.history[0]["odd"]) and math.isnan(again.history[0]["far"])
    assert math.isnan(Run.load(tmp_path).mean("odd"))


# ---- refused


def too_much(*_, **__):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("out", [None, "new", "new/and/deeper"])
def test_a_refused_run_leaves_no_folder(out, here, capsys, monkeypatch):  # noqa: F811
    (here / "one.jsonl").write_text('{"prompt": "1+1=", "response": "#2", "good": true}\n')
    where = ["--out", out] if out else []
    for command in (
        ["train", "GRPO(group_size=3)", *TINY],
        ["train", "KTO", "--data", "one.jsonl"],
        ["compare", "GRPO", "GRPO(group_size=3)", "--seeds", "1", "--problems", "2", *TINY][
            : 99 if out == "new" else 0
        ],
    ):
        if command:
            failed(capsys, *command, *where)
        if "compare" not in command:
            assert not [*here.rglob("*.json"), *here.rglob("new"), *here.rglob("runs/*")], command
        shutil.rmtree(here / "new", ignore_errors=True)
    monkeypatch.setattr(online, "collect", too_much)
    failed(capsys, "train", "GRPO", *TINY, *where)
    assert not [*here.rglob("new"), *here.rglob("runs/*")]
    with pytest.raises(RuntimeError):
        run_once(here / "new")
    assert not (here / "new").exists()


def test_what_was_there_before_a_refused_run_is_there_after_it(here, monkeypatch, capsys):  # noqa: F811
    (here / "empty").mkdir()
    (here / "notes").mkdir()
    (here / "notes/config.txt").write_text("mine")
    monkeypatch.setattr(online, "collect", too_much)
    for name in ("empty", "notes"):
        failed(capsys, "train", "GRPO", *TINY, "--out", name)
    assert (here / "empty").is_dir() and (here / "notes/config.txt").read_text() == "mine"


def test_a_run_that_has_made_a_step_is_kept_when_it_fails(here, monkeypatch, capsys):  # noqa: F811
    real = online.collect
    monkeypatch.setattr(online, "collect", lambda *given: too_much() if given[7] == 2 else real(*given))
    failed(capsys, "train", "GRPO", *TINY, "--out", "new", "--checkpoint-every", "1")
    assert checkpoints(here / "new") and (here / "new/config.json").exists()


def test_a_folder_without_a_name_and_a_file_are_no_folders(here, capsys):  # noqa: F811
    (here / "file").write_text("mine")
    for command in (["train", "GRPO"], ["compare", "GRPO", "RLOO"], ["export", "trl", "x"], ["plot", "x"]):
        assert "'' names no place" in refused(capsys, *command, "--out", "")
    for command in (["train", "GRPO", *TINY], ["compare", "GRPO", "RLOO", *TINY]):
        assert "file is a file, and out= names a folder" in failed(capsys, *command, "--out", "file")
    with pytest.raises(ValueError, match="out='' names no folder"):
        run_once("")
    with pytest.raises(ValueError, match="is a file, and out= names a folder"):
        fit(fresh(), PAIRS, DPO(), out="file")
    assert os.listdir(here) == ["file"] and (here / "file").read_text() == "mine"


# ---- arms


@pytest.mark.parametrize(
    "arms",
    [("GRPO(clip=0.1)", "GRPO( clip=0.1 )"), ("GRPO(clip=0.1)", "grpo(clip = .1)"), ("GRPO", "GRPO()"),
     ("GRPO", "GRPO(clip=0.2)")],
)  # fmt: skip
def test_arms_that_differ_in_writing_only_are_one(arms, here, capsys):  # noqa: F811
    assert "is named twice" in refused(capsys, "compare", *arms, *TINY, "--out", "duel")
    assert not (here / "duel").exists()


def test_arms_with_names_that_no_folder_can_hold_have_one_each():
    labels = ["A(x='b c')", "A(x='b-c')", "A(x-b-c)-2", "a(X='b c')"]
    folders = [compare.folder_of(Path(), labels, label, 0).name.lower() for label in labels]
    assert len(set(folders)) == 4
    assert compare.folder_of(Path(), ["GRPO", "GRPO(clip=0.1)"], "GRPO(clip=0.1)", 1) == Path(
        "GRPO-clip-0.1-seed1"
    )


def test_a_rate_is_given_to_a_method_however_it_is_written():
    options = cli.parser().parse_args(["compare", "GRPO", "DAPO", "--lr", "grpo( clip=0.1 )=1e-4"])
    assert compare.rates(options, {"GRPO(clip=0.1)": {}, "DAPO": {}}) == {"GRPO(clip=0.1)": 1e-4}
