"""`lab` and the script for a GPU, with tiny models on the CPU: that they are restartable, and say what is missing."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time

import gpu
import psutil
import pytest
import torch
from gpu import FORK, Job

from rlcourse.bookmaking import evidence, gpu_record, lab, pretrain, stamps
from rlcourse.lm import load_policy
from rlcourse.tasks import sums


@pytest.fixture
def quick(monkeypatch):
    """Without the card, which takes the time."""

    def described(policy, folder, about, facts, *_):
        policy.save(folder)
        (folder / "scores.json").write_text(json.dumps(facts))

    monkeypatch.setattr(lab, "describe", described)


def tiny_lab(folder, steps=6, **settings):
    lab.pretrain_lab(folder, steps=steps, tiny=True, device="cpu", **settings)
    return (folder / "model.safetensors").read_bytes()


def in_a_process(function, *arguments):
    worker = FORK.Process(target=function, args=arguments)
    worker.start()
    worker.join()
    return worker.exitcode


# ---- lab


def test_lab_killed_in_its_pretraining_resumes_to_the_same_weights(quick, tmp_path, monkeypatch, capsys):
    whole, keep = tiny_lab(tmp_path / "whole"), lab.keep

    def keep_and_die(*arguments):
        keep(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(lab, "keep", keep_and_die)
    assert in_a_process(tiny_lab, tmp_path / "killed") == -signal.SIGKILL
    monkeypatch.setattr(lab, "keep", keep)
    assert not (tmp_path / "killed" / "scores.json").exists()
    assert tiny_lab(tmp_path / "killed") == whole
    assert "goes on from step 2" in capsys.readouterr().out
    first, second = (
        json.loads((tmp_path / name / "scores.json").read_text()) for name in ("whole", "killed")
    )
    assert [row["loss"] for row in first["curve"]] == [row["loss"] for row in second["curve"]]


def test_lab_stops_when_its_minutes_are_spent(quick, tmp_path):
    tiny_lab(tmp_path, steps=10_000, minutes=0.002)
    assert json.loads((tmp_path / "scores.json").read_text())["steps"] < 100


def test_lab_that_is_there_is_left_as_it_is(quick, tmp_path, capsys):
    once = tiny_lab(tmp_path)
    assert tiny_lab(tmp_path, steps=2) == once and "is there already" in capsys.readouterr().out


def test_a_checkpoint_of_another_plan_is_not_gone_on_with(quick, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lab, "describe", stopped)
    with pytest.raises(KeyboardInterrupt):
        tiny_lab(tmp_path)
    with pytest.raises(ValueError, match="'steps': 6.*'steps': 8.*remove the file"):
        tiny_lab(tmp_path, steps=8)


def test_another_seed_is_another_lab():
    first, again, other = (lab.build(load_policy("pocket").tokenizer, lab.TINY, seed) for seed in (1, 1, 2))
    weights = [torch.cat([p.detach().flatten() for p in each.parameters()]) for each in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_what_lab_reads_is_what_a_policy_asks_and_answers():
    policy, rng = load_policy("pocket"), random.Random(0)
    prompt, response = lab.sum_and_answer(rng)
    read = policy.tokenizer(
        f"<|bos|><|user|>{prompt}<|assistant|>{response}<|eos|>", add_special_tokens=False
    )
    assert read["input_ids"] == [*policy.encode(prompt), *policy.encode_response(response)]
    assert lab.documents(random.Random(0), (1, 0, 0)) == [
        f"<|bos|><|user|>{prompt}<|assistant|>{response}<|eos|>"
    ]


def test_a_batch_is_known_by_its_step_alone_and_little_of_it_is_padding():
    text = lab.Text(load_policy("pocket").tokenizer, 5, (200, 60, 60), seed=3)
    whole, later = (
        list(lab.batches(text, first, workers, pinned=False)) for first, workers in ((0, 1), (3, 0))
    )
    assert len(whole) == 5 and len(later) == 2
    for a, b in zip(whole[3:], later):
        assert len(a) == len(b) == lab.PARTS and all(map(torch.equal, a, b))
    parts = whole[0]
    assert sum(len(part) for part in parts) == 320 and {int(row[0]) for part in parts for row in part} == {1}
    real, seen = sum(int((part >= 0).sum()) for part in parts), sum(part.numel() for part in parts)
    assert seen < 1.4 * real and max(part.shape[1] for part in parts) < lab.SHAPE["max_position_embeddings"]


def test_padding_costs_lab_nothing():
    torch.manual_seed(0)
    model = lab.build(load_policy("pocket").tokenizer, lab.TINY, 0)
    rows = torch.randint(5, 60, (2, 9))
    padded = torch.nn.functional.pad(rows, (0, 4), value=-1)
    assert lab.loss_of(model, padded).item() == pytest.approx(lab.loss_of(model, rows).item(), rel=1e-5)


def test_labs_sums_are_harder_than_the_pockets_and_seldom_worked():
    rng = random.Random(0)
    read = [
        (prompt.count("+") + 1, sums.read(answer)) for prompt, answer in map(lab.sum_and_answer, [rng] * 2000)
    ]
    assert max(lab.TERMS) > max(sums.TERMS) and max(lab.DIGITS) > max(sums.DIGITS)
    assert {terms for terms, _ in read} == set(lab.TERMS)
    assert 0.08 < sum(bool(working.steps) for _, working in read) / len(read) < 0.12 < sums.WORKED
    lines = [line for _ in range(100) for line in lab.table(rng).split(" ")]
    assert all(sum(map(int, line.split("=")[0].split("+"))) == int(line.split("=")[1]) for line in lines)
    assert max(len(line.split("+")[0]) for line in lines) == 5  # as long as eight terms of four digits reach


@pytest.mark.parametrize(
    "arguments, why",
    [(["lab", "--tiny"], "--out of its own"), (["pocket", "--minutes", "1"], "for lab"), (["x"], "lab")],
)
def test_the_command_says_what_it_cannot_do(arguments, why, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pretrain", *arguments])
    with pytest.raises(SystemExit):
        pretrain.main()
    assert why in capsys.readouterr().err


# ---- running parts: here they are toys


def good(job):
    with (job.out / "calls").open("a") as file:
        file.write("good ")
    return {"answer": 42}


def bad(job):
    raise ValueError("the answer is wrong")


def killed_once(job):
    if not (job.out / "half").exists():
        (job.out / "half").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"resumed": True}


def endless(job):
    (job.out / "pid").write_text(str(os.getpid()))
    time.sleep(600)


def with_a_child(job):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (job.out / "child").write_text(str(child.pid))
    child.wait()


def parts_of(out):
    return json.loads((out / "record.json").read_text())["parts"]


def test_a_part_that_is_there_is_left_out(tmp_path, capsys):
    job = Job(tmp_path, tiny=True)
    assert gpu.run(job, {"good": good}) == 0 and gpu.run(job, {"good": good}) == 0
    assert (tmp_path / "calls").read_text() == "good " and "there already" in capsys.readouterr().out
    assert parts_of(tmp_path)["good"]["result"] == {"answer": 42}
    assert {"seconds", "device", "versions", "commit"} < set(parts_of(tmp_path)["good"])


def test_a_part_that_fails_stops_no_other_and_is_tried_again(tmp_path):
    job = Job(tmp_path, tiny=True)
    assert gpu.run(job, {"bad": bad, "good": good}) == 1
    assert parts_of(tmp_path)["bad"]["error"] == "ValueError: the answer is wrong"
    assert parts_of(tmp_path)["good"]["result"] == {"answer": 42}
    assert gpu.run(job, {"bad": good, "good": good}) == 0 and (tmp_path / "calls").read_text() == "good good "


def test_a_part_that_is_killed_is_reported_and_resumed(tmp_path):
    job = Job(tmp_path, tiny=True)
    assert gpu.run(job, {"killed": killed_once, "good": good}) == 1
    assert "ended with -9" in parts_of(tmp_path)["killed"]["error"] and "good" in parts_of(tmp_path)
    assert gpu.run(job, {"killed": killed_once, "good": good}) == 0
    assert parts_of(tmp_path)["killed"]["result"] == {"resumed": True}


def test_when_time_runs_out_the_rest_waits_for_another_call(tmp_path):
    parts = {"endless": endless, "good": good}
    assert gpu.run(Job(tmp_path, minutes=0.01, tiny=True), parts) == 3
    assert {entry["error"] for entry in parts_of(tmp_path).values()} == {gpu.OUT_OF_TIME}
    assert not (tmp_path / "calls").exists() and gone(int((tmp_path / "pid").read_text()))
    assert gpu.run(Job(tmp_path, tiny=True), {"endless": good, "good": good}) == 0


def test_what_a_part_has_started_is_ended_with_it(tmp_path):
    assert gpu.run(Job(tmp_path, minutes=0.05, tiny=True), {"with_a_child": with_a_child}) == 3
    time.sleep(0.2)
    assert gone(int((tmp_path / "child").read_text()))


def dies_afterwards(job, name, part):
    gpu.note(job, name, {"result": part(job)})
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_result_that_is_there_is_kept_however_its_process_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "attempt", dies_afterwards)
    assert gpu.run(Job(tmp_path, tiny=True), {"good": good}) == 0
    assert parts_of(tmp_path)["good"]["result"] == {"answer": 42}


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert gpu.commit() == "unknown"


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def started(out):
    """The script in a process of its own, in the middle of a part."""
    script = FORK.Process(target=gpu.main, args=(["--out", str(out), "--tiny"],))
    script.start()
    while not (out / "pid").exists():
        time.sleep(0.02)
    return script, int((out / "pid").read_text())


def test_the_script_takes_its_part_along_when_it_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PARTS", {"endless": endless})
    script, part = started(tmp_path)
    script.terminate()
    script.join()
    assert script.exitcode == 143 and gone(part)


def test_two_scripts_do_not_work_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PARTS", {"endless": endless})
    script, part = started(tmp_path)
    script.kill()  # without a chance to end its part
    script.join()
    with pytest.raises(SystemExit, match="another gpu.py is at work"):
        gpu.main(["--out", str(tmp_path), "--tiny"])
    os.kill(part, signal.SIGKILL)
    monkeypatch.setattr(gpu, "PARTS", {"endless": good})
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits until the part is dead
    assert gpu.main(["--out", str(tmp_path), "--tiny"]) == 0


def test_without_a_gpu_a_part_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.run(Job(tmp_path), {"good": good}) == 1
    assert "there is no GPU here; --tiny" in parts_of(tmp_path)["good"]["error"]
    with pytest.raises(SystemExit, match="of a real run: give another --out"):
        gpu.run(Job(tmp_path, tiny=True), {"good": good})


# ---- all of it, tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    return out, gpu.main(["--out", str(out), "--tiny"])


def test_the_tiny_run_completes_and_is_marked(tiny):
    out, code = tiny
    found = json.loads((out / "record.json").read_text())
    assert code == 0, {name: part.get("error") for name, part in found["parts"].items()}
    assert found["tiny"] is True and list(found["parts"]) == list(gpu.PARTS)
    assert all("result" in part and part["device"] == "CPU" for part in found["parts"].values())
    assert (out / "lab" / "model.safetensors").exists() and not (
        out / "lab" / "checkpoint.safetensors"
    ).exists()


def test_the_tiny_run_measures_what_a_real_one_does(tiny):
    parts = parts_of(tiny[0])
    for method in ("grpo", "ppo", "dpo"):
        result = parts[method]["result"]
        assert {"before", "after", "curves", "answers"} < set(result) and len(result["curves"]["loss"]) >= 2
        assert len((tiny[0] / method / "metrics.jsonl").read_text().splitlines()) == len(
            result["curves"]["loss"]
        )
    rows = parts["sampling"]["result"]["rows"]
    assert {row["how"] for row in rows} == set(gpu.HOWS) - {"continuous batching"}
    assert all(row.get("tokens a second", 0) > 0 for row in rows), rows
    assert {row["precision"] for row in parts["training"]["result"]["rows"]} == set(gpu.PRECISIONS)
    assert all(0 < row["sampling, s"] < row["whole step, s"] for row in parts["training"]["result"]["rows"])
    assert "two GPUs" in parts["processes"]["result"]["left out"]


def test_a_second_call_runs_nothing_and_a_lost_part_resumes_its_run(tiny):
    out, _ = tiny
    before = (out / "record.json").read_bytes()
    assert gpu.main(["--out", str(out), "--tiny"]) == 0 and (out / "record.json").read_bytes() == before
    record = json.loads(before)
    lost = record["parts"].pop("grpo")["result"]
    (out / "record.json").write_text(json.dumps(record))
    assert gpu.main(["--out", str(out), "--tiny"]) == 0
    assert (
        parts_of(out)["grpo"]["result"]["curves"] == lost["curves"]
    )  # read back: not one step was taken anew


def test_a_check_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "stepped", lambda device, fused: torch.ones(3) * (1 + fused))
    with pytest.raises(ValueError, match="fused AdamW and plain, relative: 1, at most 1e-05"):
        gpu.correctness(Job(tmp_path, tiny=True))


# ---- what the book shows


def test_a_tiny_run_is_nobodys_record(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path), "--tiny", "--record"])
    assert "nobody's measurement" in capsys.readouterr().err


def test_the_book_shows_the_record_or_says_that_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "ROOT", tmp_path)
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "benchmarks" / "evidence")
    assert gpu_record.record() is None and gpu_record.FILE in stamps.USED
    box = gpu_record.not_run_here().data
    assert "Not run here" in box and "benchmarks/gpu.py" in box and box.startswith(">")

    rows = [{"how": "generate", "tokens a second": 1234.5}, {"how": "continuous batching", "failed": "no"}]
    evidence.FOLDER.mkdir(parents=True)
    found = {"result": {"sampling": {"result": {"rows": rows}}}}
    (evidence.FOLDER / "gpu.json").write_text(json.dumps(found))
    shown = repr(gpu_record.table(gpu_record.record(), "sampling"))
    assert "tokens a second" in shown and "1,234" in shown and "no" in shown
