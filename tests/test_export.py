"""A run written for another library is the same experiment, as far as that library's own configuration can tell.

TRL is called live: its classes read the exported script, and two of its trainers take one real step with it. What
verl and OpenRLHF accept was recorded from themselves (benchmarks/peers_config.py, by `make peers`).
"""

import argparse
import json
import os
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from rlcourse import fit, load_policy
from rlcourse.export import LIBRARIES, experiment, export, openrlhf, verl
from rlcourse.export.experiment import Experiment
from rlcourse.methods import (
    CISPO,
    DAPO,
    DPO,
    GRPO,
    GSPO,
    IPO,
    KTO,
    PPO,
    REINFORCE,
    RLOO,
    SAPO,
    SFT,
    TIS,
    BradleyTerry,
    DrGRPO,
    OnlineDPO,
    ReMax,
    RoutingReplay,
    ScalingGRPO,
)
from rlcourse.tasks import Helpdesk, Sums
from rlcourse.tasks.annotators import Demonstration, Pair, Verdict
from rlcourse.training.online import collect

PEERS = Path(__file__).parent / "peers"
ONLINE = [
    GRPO(),
    GRPO(beta=0.04, clip=0.1, scale=False, epochs=2, minibatches=2),
    DrGRPO(max_length=64),
    DAPO(group_size=8, minibatches=2),
    DAPO(group_size=8, minibatches=2, dynamic_sampling=False, token_mean=False, overlong=0.0),
    GSPO(clip_low=0.01, clip_high=0.02),
    CISPO(minibatches=2, clip_low=0.5, clip_high=3.0),
    SAPO(tau_negative=1.2),
    RLOO(beta=0.05),
    TIS(GRPO(), cap=1.5),
]
OFFLINE = [SFT(), BradleyTerry(), DPO(beta=0.2), DPO(label_smoothing=0.1), IPO(beta=0.3)]
PAIRS = [Pair("17+25=", "#42", "#41"), Pair("2+2=", "#4", "#5")]


def config(method, **changes) -> dict:
    """What a run's config.json holds."""
    if hasattr(method, "group_size"):
        run = dict(task=repr(Sums(terms=3, digits=2)), responses=32, temperature=0.9, max_tokens=24, steps=5)
    else:
        run = dict(data=1, epochs=2, batch=16)
    return dict(policy="pocket", method=repr(method), lr=3e-4, max_grad_norm=0.5, seed=7, **run) | changes


def sheet(method, library):
    return library.settings(Experiment.read(config(method)))


def notes(method, library) -> str:
    return "\n".join(sheet(method, library).differences)


# ---- TRL: live


@pytest.fixture
def as_script(tmp_path, monkeypatch):
    """Exports to TRL, and runs all of the script but its main part."""
    pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]' brings it")

    def run(method, data=(), **changes):
        export(config(method, **changes), "trl", tmp_path / "trl", data)
        monkeypatch.syspath_prepend(str(tmp_path / "trl"))
        monkeypatch.delitem(sys.modules, "reward", raising=False)
        return runpy.run_path(str(tmp_path / "trl" / "train.py"))

    return run


@pytest.mark.parametrize(
    "method", [*ONLINE, ScalingGRPO(beta=0.1), *OFFLINE, KTO(undesirable_weight=1.5)], ids=repr
)
def test_trl_understands_every_field(method, as_script):
    understood = vars(as_script(method)["config"])
    written = sheet(method, LIBRARIES["trl"]) | {"report_to": []}
    assert {name: understood[name] for name in written} == written


def test_trl_is_told_what_ours_means(as_script):
    told = as_script(DAPO(group_size=8, minibatches=2))["config"]
    assert (told.epsilon, told.epsilon_high, told.loss_type, told.beta) == (0.2, 0.28, "dapo", 0.0)
    assert (told.generation_batch_size, told.per_device_train_batch_size, told.max_steps) == (32, 16, 10)
    assert (told.learning_rate, told.temperature, told.max_grad_norm, told.seed) == (3e-4, 0.9, 0.5, 7)
    assert told.lr_scheduler_type == "constant" and told.use_bias_correction_kl is False


@pytest.mark.parametrize(
    "method, field, value",
    [
        (GRPO(), "loss_type", "grpo"),  # its default is dapo
        (DrGRPO(), "loss_type", "dr_grpo"),
        (DrGRPO(), "scale_rewards", "none"),
        (GSPO(), "importance_sampling_level", "sequence"),
        (CISPO(clip_high=4.0), "epsilon_high", 5.0),  # the cap itself
        (ScalingGRPO(), "use_bias_correction_kl", True),
        (ScalingGRPO(delta=0.2), "off_policy_mask_threshold", 0.2),
        (TIS(GRPO(), cap=1.5), "vllm_importance_sampling_clip_max", 1.5),
        (IPO(), "loss_type", ["ipo"]),
        (SFT(), "completion_only_loss", True),
        (BradleyTerry(centring=0.01), "center_rewards_coefficient", 0.01),
    ],
)
def test_trl_is_told_in_its_own_words(method, field, value):
    assert sheet(method, LIBRARIES["trl"])[field] == value


def trained(trl):
    """One real step of the exported script, on the CPU; the trainer afterwards."""
    from datasets import Dataset

    (trainer,) = (value for name, value in trl.items() if name.endswith("Trainer"))
    told, trl["config"].max_steps = trl["config"], 1
    rows = [json.loads(line) for line in Path(trl["DATA"]).read_text().splitlines()]
    rewards = {"reward_funcs": [trl["reward"]]} if "reward" in trl else {}
    trainer = trainer(trl["MODEL"], args=told, train_dataset=Dataset.from_list(rows), **rewards)
    trainer.train()
    return trainer


def test_a_step_of_grpo_in_trl_asks_the_runs_own_problems_and_pays_by_its_rule(
    as_script, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trl = as_script(GRPO(group_size=4), responses=16, steps=2)
    seen = {}
    pay = trl["reward"]
    trl["reward"] = lambda **given: seen.setdefault("pairs", [(given, pay(**given))])[0][1]
    trl["reward"].__name__ = "reward"
    trainer = trained(trl)
    ((given, rewards),) = seen["pairs"]

    # the first step's problems are the first that a run with this seed draws
    policy, task = load_policy("pocket"), Sums(terms=3, digits=2)
    rollout, _ = collect(policy, task, GRPO(group_size=4), 4, 24, 0.9, 7, 1)
    assert [prompt[0]["content"] for prompt in given["prompts"][::4]] == rollout.prompts

    # what TRL sampled is paid as our task would have paid it
    texts = [completion[0]["content"] for completion in given["completions"]]
    problems = [problem for problem in rollout.problems for _ in range(4)]
    finished = [ids[-1] == policy.eos_id for ids in given["completion_ids"]]
    assert rewards == [float(said.split("#")[-1] == str(p.answer) and done and said.count("#") == 1)
                       for said, p, done in zip(texts, problems, finished)]  # fmt: skip
    log = next(row for row in trainer.state.log_history if "reward" in row)
    assert log["reward"] == pytest.approx(sum(rewards) / 16) and 0 < log["reward"] < 1
    assert log["loss"] == pytest.approx(0, abs=1e-5)  # ratio 1 and advantages that add up to 0


@pytest.mark.parametrize(
    "method", [DPO(beta=0.2), DPO(beta=0.2, label_smoothing=0.1), IPO(beta=0.3)], ids=repr
)
def test_a_step_in_trl_starts_at_the_same_loss_and_ends_at_the_same_weights(
    method, as_script, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pairs = Helpdesk().pairs(8, seed=0)
    run = dict(batch=8, epochs=1, lr=1e-3)
    theirs = trained(as_script(method, pairs, **run))
    policy = load_policy("pocket")
    ours = fit(policy, pairs, method, **run, max_grad_norm=0.5, seed=7, quiet=True)
    log = theirs.state.log_history
    assert log[0]["loss"] == pytest.approx(ours.history[0]["loss"], rel=1e-4)
    assert log[0]["grad_norm"] == pytest.approx(ours.history[0]["grad_norm"], rel=1e-3)
    start = load_policy("pocket").model.state_dict()
    moved = {name: (policy.model.state_dict()[name] - start[name]) for name in start}
    there = {name: (value - start[name]) for name, value in theirs.model.state_dict().items()}
    together = (
        torch.cat([x.flatten() for x in moved.values()]),
        torch.cat([there[n].flatten() for n in moved]),
    )
    assert torch.cosine_similarity(*together, 0) > 0.99


# ---- verl: a record of what it understood


RECORD = json.loads((PEERS / "verl_config.json").read_text()) if (PEERS / "verl_config.json").exists() else {}


def verl_examples() -> dict[str, dict]:
    ppo = [PPO(), PPO(target_kl=6.0, value_clip=None, critic_lr=1e-3, entropy_bonus=0.01)]
    return {repr(method): config(method) for method in [*ONLINE, REINFORCE(), ReMax(), *ppo]}


def overrides(config: dict) -> list[str]:
    """What the exported script hands to Hydra, with $PWD as it stands."""
    return shlex.split(verl.settings(Experiment.read(config)).written(verl.override, ""), comments=True)


@pytest.mark.parametrize("name, told", verl_examples().items(), ids=list(verl_examples()))
def test_verl_understands_every_field(name, told):
    found = RECORD["examples"][name]
    assert [given.split("=")[0] for given in overrides(told)] == list(found), (
        "make peers, and look at the diff"
    )
    for (field, value), (_, understood) in zip(verl.settings(Experiment.read(told)).items(), found.values()):
        assert understood == (f"$PWD/{value}" if isinstance(value, Path) else value), field
        assert type(understood) is type(value) or value is None or isinstance(value, Path | list), field


@pytest.mark.parametrize(
    "method, field, value",
    [
        (GRPO(), "actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-mean"),  # its default is token-mean
        (GRPO(scale=False), "algorithm.norm_adv_by_std_in_grpo", False),
        (GRPO(beta=0.04), "actor_rollout_ref.actor.kl_loss_coef", 0.04),
        (GRPO(), "actor_rollout_ref.actor.clip_ratio_c", 1e6),
        (DrGRPO(max_length=64), "actor_rollout_ref.actor.loss_scale_factor", 64),
        (DAPO(group_size=8, minibatches=2), "actor_rollout_ref.actor.ppo_mini_batch_size", 2),  # prompts
        (DAPO(group_size=8, minibatches=2), "+reward.reward_kwargs.overlong_buffer_cfg.len", 4),
        (CISPO(minibatches=2, clip_high=4.0), "actor_rollout_ref.actor.clip_ratio_high", 4.0),  # room above 1
        (RLOO(), "actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-sum"),
        (PPO(lam=0.9), "algorithm.lam", 0.9),
        (TIS(GRPO(), cap=1.5), "algorithm.rollout_correction.rollout_is_threshold", 1.5),
        (ReMax(), "trainer.use_v1", False),
    ],
)
def test_verl_is_told_in_its_own_words(method, field, value):
    assert sheet(method, verl)[field] == value


def test_what_verl_would_have_done_by_itself_is_not_what_is_wanted():
    differ = {
        field
        for found in RECORD["examples"].values()
        for field, (default, understood) in found.items()
        if default != understood
    }
    assert {
        "actor_rollout_ref.actor.clip_ratio_c",
        "actor_rollout_ref.actor.loss_agg_mode",
        "trainer.logger",
    } < differ
    assert {"actor_rollout_ref.actor.optim.weight_decay", "critic.cliprange_value", "data.shuffle"} < differ


# ---- OpenRLHF: a record of its parsers


@pytest.fixture(scope="module")
def parsers():
    """Its commands' argument parsers, made again from the record."""
    made = {}
    for command, known in json.loads((PEERS / "openrlhf_arguments.json").read_text())["commands"].items():
        made[command] = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
        for name, how in known.items():
            if how["nargs"] == 0:
                made[command].add_argument(name, action="store_true")
            else:
                kind = {"int": int, "float": float}.get(how["type"], str)
                made[command].add_argument(name, type=kind, nargs=how["nargs"], choices=how["choices"])
    return made


OPENRLHF = [m for m in ONLINE if not isinstance(m, CISPO | SAPO)] + [
    REINFORCE(baseline="batch"),
    PPO(target_kl=6.0),
]


@pytest.mark.parametrize("method", [*OPENRLHF, *OFFLINE], ids=repr)
def test_openrlhf_accepts_the_command_line(method, parsers, tmp_path):
    export(config(method), "openrlhf", tmp_path)
    script = (tmp_path / "run.sh").read_text()
    inside = script.split("arguments=(")[1].split("\n)")[0]
    words = [word for line in inside.splitlines() for word in shlex.split(line, comments=True)]
    command = openrlhf.COMMANDS.get(type(Experiment.read(config(method)).method).__name__, "train_ppo_ray")
    assert f"openrlhf.cli.{command} " in script
    parsed = vars(parsers[command].parse_args(words))
    for name, value in sheet(method, openrlhf).items():
        wanted = (
            list(value) if isinstance(value, tuple) else f"$PWD/{value}" if isinstance(value, Path) else value
        )
        assert parsed[name] == wanted, name


@pytest.mark.parametrize(
    "method, field, value",
    [
        (GRPO(), "actor.loss_agg_mode", "seq-mean-token-mean"),  # its default is token-mean
        (GRPO(), "algo.kl.init_coef", 0.0),  # its default is 0.01
        (GRPO(), "actor.adam.betas", (0.9, 0.999)),  # its default is 0.9, 0.95
        (GRPO(scale=False), "algo.advantage.estimator", "dr_grpo"),
        (GRPO(minibatches=4), "train.batch_size", 8),  # responses
        (GRPO(), "rollout.batch_size", 4),  # prompts
        (GSPO(), "actor.policy_loss_type", "gspo"),
        (DAPO(group_size=8, minibatches=2), "reward.overlong_buffer_len", 4),
        (TIS(GRPO(), cap=1.5), "algo.advantage.is_correction_threshold", (0.0, 1.5)),
        (IPO(), "model.ipo_enable", True),
    ],
)
def test_openrlhf_is_told_in_its_own_words(method, field, value):
    assert sheet(method, openrlhf)[field] == value


# ---- what differs is said, beside the field and in the report


@pytest.mark.parametrize(
    "method, library, said",
    [
        (CISPO(clip_low=0.5, minibatches=2), "trl", "no lower bound"),
        (CISPO(minibatches=2), "trl", "the cap itself"),
        (DAPO(group_size=8, minibatches=2), "trl", "no dynamic sampling"),
        (DrGRPO(max_length=48), "trl", "2 of ours"),
        (GRPO(minibatches=16), "verl", "ours takes 2 responses"),
        (GRPO(), "verl", "adds 1e-6 to the std"),
        (GRPO(beta=0.1), "openrlhf", "whatever the policy's loss is a mean over"),
        (DrGRPO(), "openrlhf", "a constant denominator is not to be had"),
        (RLOO(), "openrlhf", "ours by its answers"),
        (PPO(critic="shared"), "verl", "a second head on the policy"),
        (PPO(target_kl=6.0), "openrlhf", "nats a token there"),
        (IPO(), "openrlhf", "ours on their mean"),
        (RoutingReplay(GRPO()), "trl", "RoutingReplay is left out"),
    ],
)
def test_a_difference_is_said(method, library, said):
    assert said in notes(method, LIBRARIES[library])


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_difference_stands_in_the_script_too(library, tmp_path):
    done = export(config(GRPO(beta=0.1, minibatches=16)), library, tmp_path)
    script = " ".join(line.strip(" #") for line in done.files[0].read_text().splitlines())
    assert done.differences and all(each.split(": ", 1)[-1] in script for each in done.differences)


# ---- the folder


def test_the_rewards_files_pay_what_our_task_pays(tmp_path, monkeypatch):
    for library in ("verl", "openrlhf"):
        export(config(GRPO()), library, tmp_path / library)
    policy, task = load_policy("pocket"), Sums(terms=3, digits=2)
    problem = experiment.problems(task, 5, 4, 7)[0]
    right, wrong = f"#{problem.answer}", f"#{problem.answer + 1}"
    verls = runpy.run_path(str(tmp_path / "verl" / "reward.py"))["compute_score"]
    assert verls("rlcourse", right, problem.prompt) == {"score": 1.0, "acc": 1.0}
    assert verls("rlcourse", wrong, problem.prompt) == {"score": 0.0, "acc": 0.0}
    openrlhfs = runpy.run_path(str(tmp_path / "openrlhf" / "reward.py"))["reward_func"]
    asked = policy.tokenizer.decode(policy.encode(problem.prompt))
    queries = [
        asked + right + policy.tokenizer.eos_token,
        asked + right,
        asked + wrong + policy.tokenizer.eos_token,
    ]
    grades = openrlhfs(queries, [asked] * 3, [problem.prompt] * 3)
    assert grades["rewards"].tolist() == [1.0, 0.0, 0.0]  # the second was cut


def test_a_runs_folder_is_read_with_its_budget(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config(GRPO()) | {"steps": None}))
    (run / "metrics.jsonl").write_text("{}\n{}\n")
    for given in (run, run / "config.json"):
        assert Experiment.read(given).steps == 2
    (run / "budget.json").write_text('{"steps": 9}')
    assert Experiment.read(run).steps == 9 and Experiment.read(run).notes == []


def test_a_pocket_goes_along_and_any_other_model_goes_by_its_name_or_folder(tmp_path):
    export(config(GRPO()), "verl", tmp_path / "pocket")
    assert load_policy(tmp_path / "pocket" / "model").context == load_policy("pocket").context
    export(config(GRPO(), policy="Qwen/Qwen3-0.6B"), "verl", tmp_path / "qwen")
    assert "model.path=Qwen/Qwen3-0.6B" in (tmp_path / "qwen" / "run.sh").read_text()
    assert not (tmp_path / "qwen" / "model").exists()
    (tmp_path / "run" / "step-000050").mkdir(parents=True)
    of_a_run = Experiment.read(config(GRPO(), policy=str(tmp_path / "run")))
    assert of_a_run.model == str(tmp_path / "run" / "step-000050")


def test_data_are_written_as_messages(tmp_path):
    def row(method, data):
        done = export(config(method), "trl", tmp_path / type(method).__name__, data)
        return json.loads(done.files[-1].read_text().splitlines()[0])

    user, good = [{"role": "user", "content": "2+2="}], [{"role": "assistant", "content": "#4"}]
    assert row(SFT(), [Demonstration("2+2=", "#4")]) == {"prompt": user, "completion": good}
    assert row(KTO(), [Verdict("2+2=", "#4", True)]) == {"prompt": user, "completion": good, "label": True}
    found = row(BradleyTerry(margin=0.5), PAIRS[1:])
    assert found == {
        "prompt": user,
        "chosen": good,
        "rejected": [{"role": "assistant", "content": "#5"}],
        "margin": 0.5,
    }


def test_without_the_data_it_says_that_they_are_to_be_brought(tmp_path):
    done = export(config(DPO()), "trl", tmp_path)
    assert [path.name for path in done.files] == ["train.py"] and "yours to bring" in "".join(
        done.differences
    )


@pytest.mark.parametrize(
    "given, to, said",
    [
        (GRPO(), "tlr", "no export to 'tlr': did you mean trl?"),
        (GRPO(), "deepspeed-chat", "there are trl, verl, openrlhf"),
        (PPO(), "trl", "TRL 1.16.0 cannot run PPO: its PPO trainer was removed after 1.12"),
        (OnlineDPO(), "trl", "trl.experimental"),
        (KTO(), "openrlhf", "its train_kto is gone"),
        (DPO(), "verl", "It can run GRPO"),
        (SAPO(), "openrlhf", "its policy losses are ppo and gspo"),
        (REINFORCE(baseline="running"), "verl", r"REINFORCE\(\) itself"),
        (DAPO(minibatches=5), "trl", "do not divide into 5 mini-batches"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_sentence(given, to, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        export(config(given), to, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_file_that_is_there_already_is_left_alone(tmp_path):
    (tmp_path / "train.py").write_text("mine")
    with pytest.raises(ValueError, match="train.py is there already"):
        export(config(GRPO()), "trl", tmp_path)
    assert (tmp_path / "train.py").read_text() == "mine" and os.listdir(tmp_path) == ["train.py"]
    with pytest.raises(ValueError, match="holds no config.json"):
        export(tmp_path, "trl", tmp_path / "out")
