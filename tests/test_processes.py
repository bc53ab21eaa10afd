"""Several processes make the run that one makes. This file is also the script that they run, under torchrun."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from tiny import build, characters

from rlcourse import Policy, Scorer, fit, load_policy, train
from rlcourse import methods as m
from rlcourse.tasks import Demonstration, Pair, Verdict
from rlcourse.tasks.sums import Sum
from rlcourse.training import Run, processes
from rlcourse.training.online import complete, learn, modules
from rlcourse.training.precision import adamw

PROMPTS = ["12+3=", "4+5=", "60+7="]
ONLINE = {
    "token": m.DAPO(group_size=5, minibatches=2),
    "sequence": m.GRPO(group_size=5, beta=0.1, epochs=2, minibatches=2),
    "constant": m.DrGRPO(group_size=5),
    "plain": m.REINFORCE(baseline="batch"),
    "PPO": m.PPO(epochs=2, minibatches=2, entropy_bonus=0.01),
    "shared critic": m.PPO(critic="shared"),
    "pretraining": m.VCPPO(pretrain=9),
    "imitation": m.VAPO(group_size=5, pretrain=0, alpha=1.0, minibatches=2),
    "GSPO": m.GSPO(group_size=5, minibatches=2),
    "CISPO": m.CISPO(group_size=5, minibatches=2),
    "SAPO": m.SAPO(group_size=5),
    "DeepSeek-V3.2": m.ScalingGRPO(group_size=5, beta=0.1, minibatches=2),
    "TIS": m.TIS(m.GRPO(group_size=5)),
}
OFFLINE = {"SFT": m.SFT(), "DPO": m.DPO(), "IPO": m.IPO(), "KTO": m.KTO(), "BradleyTerry": m.BradleyTerry()}
RUNS = {
    "GRPO": (m.GRPO(group_size=4, beta=0.1, minibatches=2), {"responses": 12}),
    "one prompt": (m.GRPO(group_size=4), {"responses": 4, "micro_batch": 3}),
    "ReMax": (m.ReMax(), {"responses": 5}),
    "PPO": (m.PPO(target_kl=0.1, epochs=2), {"responses": 5}),
    "VC-PPO": (m.VCPPO(pretrain=2), {"responses": 5}),
    "bfloat16": (m.GRPO(group_size=4, minibatches=2), {"responses": 12, "micro_batch": 2}),
}
STEPS = {"steps": 3, "lr": 1e-2, "quiet": True}


class Noted(torch.optim.SGD):
    """Plain small steps, and a note of every gradient that one was taken with."""

    def __init__(self, groups, **_):
        super().__init__(groups, lr=1e-2)
        GRADIENTS.clear()

    def step(self):
        for group in self.param_groups:
            some = [p for p in group["params"] if p.grad is not None]
            GRADIENTS.extend(processes.whole(p.grad).clone() for p in some)
        super().step()


GRADIENTS: list[torch.Tensor] = []
SHARDED = {
    "sequence",
    "PPO",
    "pretraining",
    "imitation",
    "SFT",
    "BradleyTerry",
    "GRPO",
    "bfloat16",
}  # slow to set up


class Ones:
    """Pays for the share of ones in an answer."""

    max_tokens = 8

    def __init__(self, die_at=0):
        self.left = die_at

    def draw(self, rng):
        return Sum((rng.randint(1, 99), rng.randint(1, 99)))

    def grade(self, rollout):
        self.left -= 1
        if self.left == 0 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        shares = [0.1 + text.count("1") / (1 + len(text)) for text in rollout.texts]
        ones = ["1" in text for text in rollout.texts]
        return {"rewards": torch.tensor(shares), "correct": torch.tensor(ones)}

    def __repr__(self):
        return "Ones()"


# ---- what one process does, and what several do


def fresh(seed=0, dtype=torch.float32):
    return Policy(build("llama", seed).to(dtype), characters(), "tiny")


def weights(*parts):
    return [p.detach().clone() for part in parts for p in part.parameters()]


def gradient(method, shard=False, dtype=torch.float32, micro_batch=3):
    """Every gradient of `learn` on a given rollout of 15 rows, and what it measures."""
    policy = fresh(dtype=dtype)
    state = method.init(policy)
    for module in modules(state):
        torch.nn.init.constant_(module.head.weight, 0.1)
    rollout = policy.sample(PROMPTS, 5, max_tokens=8, seed=1)
    rollout.rewards = torch.tensor([text.count("1") / (1 + len(text)) for text in rollout.texts])
    rollout.correct = rollout.rewards > 0
    complete(policy, fresh(1), method, state, rollout, None)
    rollout.advantages = method.advantages(rollout, state)
    rollout.logp = rollout.logp + 0.05 * torch.randn(rollout.logp.shape, generator=torch.manual_seed(0))
    team = processes.team(policy, modules(state), shard) if "RANK" in os.environ else processes.ALONE
    optimizer = adamw([(policy.parameters(), 1e-2), *((x.parameters(), 1e-2) for x in modules(state))])
    measured = learn(policy, optimizer, method, rollout, state, micro_batch, 1.0, 7, team)
    return list(GRADIENTS), measured


def fitted(method, shard=False):
    """What one step of `fit` on 7 examples does, likewise."""
    rng = random.Random(0)

    def text():
        return "".join(rng.choice("0123456789+=") for _ in range(rng.randint(1, 9)))

    kind = {"Demonstration": Demonstration, "Pair": Pair, "Verdict": Verdict}[method.data[0]]
    extra = {Demonstration: lambda i: [], Pair: lambda i: [text()], Verdict: lambda i: [i % 3 > 0]}[kind]
    data = [kind(text(), text(), *extra(i)) for i in range(7)]
    policy = fresh()
    model = Scorer(policy) if method.trains == "Scorer" else policy
    if model is not policy:
        torch.nn.init.constant_(model.head.weight, 0.1)
    run = fit(
        model, data, method, batch=7, lr=1e-2, micro_batch=2, quiet=True, shard=shard, reference=fresh(1)
    )
    assert not any(hasattr(p, "full_tensor") for p in weights(model))  # an ordinary model again
    return list(GRADIENTS), run.history[0]


def trained(name, shard=False, out=None, **more):
    method, settings = RUNS[name]
    policy = fresh(dtype=torch.bfloat16 if name == "bfloat16" else torch.float32)
    run = train(policy, Ones(), method, shard=shard, out=out, **STEPS | settings | more)
    return weights(policy), timeless(run.history), run.samples


def chosen(cases, shard):
    return [(name, case) for name, case in cases.items() if name in SHARDED or not shard]


def timeless(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def work(task, out):
    """The script: all checks in one group of processes, kept for the tests to compare."""
    rank, found = os.environ["RANK"], {}
    warnings.filterwarnings("error", category=UserWarning)
    if task == "all":
        adam = torch.optim.AdamW
        for shard in (False, True):
            torch.optim.AdamW = Noted
            found[shard] = {name: gradient(method, shard) for name, method in chosen(ONLINE, shard)}
            found[shard] |= {name: fitted(method, shard) for name, method in chosen(OFFLINE, shard)}
            found[shard]["bfloat16"] = gradient(ONLINE["sequence"], shard, torch.bfloat16)
            torch.optim.AdamW = adam
            found[shard] |= {f"train {name}": trained(name, shard) for name, _ in chosen(RUNS, shard)}
        for steps in (2, 3):  # in two goes
            again = {"shard": True, "out": out / "divided", "resume": True, "steps": steps}
            found["divided"] = trained("bfloat16", **again)
            # its value head is one row: the second process has no part of it
            found["divided PPO"] = trained("PPO", **again | {"out": out / "divided PPO"})
        found["straight"] = trained("GRPO", out=out / "straight", checkpoint_every=2)
    elif task == "die":
        method, settings = RUNS["GRPO"]
        # in step 3, after the checkpoint of step 2; the first to be graded are the watched prompts
        train(fresh(), Ones(die_at=4), method, out=out / "run", checkpoint_every=2, **STEPS | settings)
    else:
        found["resumed"] = trained("GRPO", out=out / "run", checkpoint_every=2, resume=True)
    torch.save(found, out / f"{task}-{rank}.pt")


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))


# ---- the tests


def launch(task, out, *launcher):
    """The script in two processes."""
    launcher = launcher or ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *launcher, __file__, task, str(out)],
        env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def ranks(out):
    done = launch("all", out)
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(out / f"all-{rank}.pt", weights_only=True) for rank in (0, 1)]


def close(found, expected, atol):
    (gradients, measured), (theirs, numbers) = found, expected
    for a, b in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)
    assert max(gradient.abs().max() for gradient in theirs) > 1e-3
    assert measured.keys() == numbers.keys()
    for name in measured.keys() - {"seconds"}:
        assert measured[name] == pytest.approx(numbers[name], rel=1e-4, abs=1e-5), name


CASES = [
    pytest.param(name, shard, id=f"{name}-{'FSDP2' if shard else 'DDP'}")
    for shard in (False, True)
    for name, _ in chosen(ONLINE | OFFLINE, shard)
]


@pytest.mark.parametrize(("name", "shard"), CASES)
def test_two_processes_take_the_step_that_one_takes(name, shard, ranks, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Noted)
    expected = gradient(ONLINE[name]) if name in ONLINE else fitted(OFFLINE[name])
    for rank in ranks:
        close(rank[shard][name], expected, atol=1e-5 if shard else 1e-6)


@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
def test_gradients_of_bfloat16_weights_are_summed_in_float32(shard, ranks, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Noted)
    expected, _ = gradient(ONLINE["sequence"], dtype=torch.bfloat16)
    first = slice(len(expected) // 4)  # of four updates: later a ratio may be past the clip
    for rank in ranks:
        found, _ = rank[shard]["bfloat16"]
        assert all(grad.dtype == torch.float32 for grad in found)
        found, theirs = (torch.cat([grad.flatten() for grad in grads[first]]) for grads in (found, expected))
        assert (found - theirs).norm() < 0.03 * theirs.norm()


@pytest.mark.parametrize(
    ("name", "shard"), [(name, shard) for shard in (False, True) for name, _ in chosen(RUNS, shard)]
)
def test_after_three_steps_all_processes_have_the_same_weights_and_numbers(name, shard, ranks):
    first, second = (rank[shard][f"train {name}"] for rank in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert repr(first[1:]) == repr(second[1:]) and len(first[1]) == 3
    before = weights(fresh(dtype=first[0][0].dtype))
    assert not all(torch.equal(a, b) for a, b in zip(first[0], before, strict=True))


def test_each_process_answers_prompts_of_its_own_with_noise_of_its_own(ranks):
    rows = [ranks[0][False]["train GRPO"][1], trained("GRPO")[1]]
    assert rows[0][0]["prompts_drawn"] == rows[1][0]["prompts_drawn"] == 3
    assert rows[0] != rows[1]  # the same problems, answered by other chance


def test_only_the_first_process_writes_and_the_run_is_one(out, ranks):
    run = Run.load(out / "straight")
    assert run.config["processes"] == 2 and timeless(run.history) == ranks[0]["straight"][1]
    assert sorted(run.samples) == [0, 3] and all(len(answers) == 8 for answers in run.samples.values())
    assert [folder.name for folder in (out / "straight").glob("step-*")] == ["step-000003"]


@pytest.fixture(scope="module")
def killed(out, ranks):
    begun = time.monotonic()
    return launch("die", out), time.monotonic() - begun


def test_a_killed_process_ends_the_job_with_a_clear_sentence(killed, out):
    done, seconds = killed
    assert done.returncode != 0 and seconds < 60
    assert "process 0 of 2 has lost the others" in done.stderr and "resume=True" in done.stderr
    assert [folder.name for folder in (out / "run").glob("step-*")] == ["step-000002"]


def test_it_resumes_to_the_numbers_of_the_run_that_nothing_stopped(killed, out, ranks):
    """By `accelerate launch`, which sets the same environment as torchrun."""
    launcher = "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"
    done = launch("resume", out, *launcher, "--mixed_precision", "no", "--dynamo_backend", "no")
    assert done.returncode == 0, done.stderr[-6000:]
    for rank in (0, 1):
        found = torch.load(out / f"resume-{rank}.pt", weights_only=True)["resumed"]
        straight = ranks[rank]["straight"]
        assert all(torch.equal(a, b) for a, b in zip(found[0], straight[0], strict=True))
        assert found[1:] == straight[1:]


def test_a_divided_run_is_kept_whole_and_resumes_to_the_same_numbers(out, ranks):
    for rank in ranks:
        for name, resumed in (("bfloat16", rank["divided"]), ("PPO", rank["divided PPO"])):
            straight = rank[True][f"train {name}"]
            assert all(torch.equal(a, b) for a, b in zip(resumed[0], straight[0], strict=True))
            assert resumed[1] == straight[1]
    model = load_policy(out / "divided" / "step-000003").model  # float32: the masters themselves
    theirs = [p.bfloat16() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(theirs, ranks[0]["divided"][0], strict=True))


def test_a_resumed_run_keeps_its_number_of_processes(out, killed):
    with pytest.raises(ValueError, match="processes=2, and now processes=1"):
        trained("GRPO", out=out / "run", resume=True)


def test_dividing_a_model_needs_processes_to_divide_it_between():
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        trained("GRPO", shard=True)


def test_one_process_starts_no_group_of_processes():
    trained("GRPO", steps=1)
    assert not torch.distributed.is_initialized()
