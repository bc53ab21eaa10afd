"""Each number of an experiment arrives where the other library reads it: change it, and what that one reads changes.

TRL's script is run, with a trainer in the place of its own that only notes what it is given. verl's and OpenRLHF's
command lines are read from run.sh, OpenRLHF's by its own parsers, made again from their record.
"""

import ast
import dataclasses
import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from test_export import config, parsers  # noqa: F401

from rlcourse import fit, load_policy, train
from rlcourse import methods as every_method
from rlcourse.export import LIBRARIES, export, openrlhf
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
    BradleyTerry,
    DrGRPO,
    ReMax,
    ScalingGRPO,
)
from rlcourse.tasks import Sums
from rlcourse.tasks.annotators import Demonstration, Pair, Verdict

DATA = {
    SFT: [Demonstration("2+2=", "#4")],
    KTO: [Verdict("2+2=", "#4", True)],
    **dict.fromkeys((BradleyTerry, DPO, IPO), [Pair("2+2=", "#4", "#5")]),
}


@pytest.fixture
def read(tmp_path, monkeypatch, parsers):  # noqa: F811
    """What a library reads of an exported experiment, by its own names."""

    def read(library, method, **changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        written = config(method, **changes)
        export(written, library, folder, DATA.get(type(method), ()))
        if library == "trl":
            return of_trl(folder, written)
        script = (folder / "run.sh").read_text()
        lines = script.split("=(\n")[1].split("\n)")[0]
        words = [word for line in lines.splitlines() for word in shlex.split(line, comments=True)]
        if library == "verl":
            return {name: literal(value) for name, value in (word.split("=", 1) for word in words)}
        command = openrlhf.COMMANDS.get(type(method).__name__, "train_ppo_ray")
        launched = script.splitlines()[-1].split(" -m ")[0]
        return vars(parsers[command].parse_args(words)) | {"launched": launched}

    def of_trl(folder, written):
        trl = pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]' brings it")
        name = (
            LIBRARIES["trl"].TRAINERS.get(type(Experiment.read(written).method).__name__, "GRPO") + "Trainer"
        )
        noted = {}

        class Trainer:
            def __init__(self, **given):
                noted.update(given)

            def train(self):
                noted["trained"] = True

            def save_model(self, path):
                noted["saved"] = path

        with monkeypatch.context() as patched:
            patched.setattr(trl, name, Trainer)
            patched.setattr("transformers.AutoTokenizer.from_pretrained", lambda path: path)  # of no hub
            patched.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
            patched.setenv(
                "ACCELERATE_MIXED_PRECISION", "no"
            )  # the configuration sets it, for all that follows
            patched.syspath_prepend(str(folder))
            patched.delitem(sys.modules, "reward", raising=False)
            runpy.run_path(str(folder / "train.py"), run_name="__main__")
        assert noted.pop("trained") and noted.pop("saved") == "trained"
        adapter = noted.get("peft_config")
        return {
            **vars(noted.pop("args")),
            **noted,
            "lora": adapter and (adapter.r, adapter.lora_alpha, adapter.lora_dropout, adapter.target_modules),
            "launched": (folder / "train.py").read_text().splitlines()[0].strip('"').split(", and ")[-1],
        }

    return read


def literal(value: str):
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value


ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
FOUR = [f"{part}.num_gpus_per_node" for part in ("actor", "critic", "ref", "reward")]
# What is changed in the config of a run of GRPO in groups of 8, and what each library reads then.
ONLINE_FIELDS = [
    (
        dict(responses=64),
        dict(per_device_train_batch_size=64),
        {"data.train_batch_size": 8, ACTOR + "ppo_mini_batch_size": 8},
        {"rollout.batch_size": 8, "train.batch_size": 64},
    ),
    (
        dict(temperature=0.7),
        dict(temperature=0.7),
        {ROLLOUT + "temperature": 0.7},
        {"rollout.temperature": 0.7},
    ),
    (
        dict(max_tokens=48),
        dict(max_completion_length=48),
        {"data.max_response_length": 48},
        {"rollout.max_new_tokens": 48, "data.max_len": 137 + 48},
    ),
    (dict(steps=9), dict(max_steps=9), {"trainer.total_training_steps": 9}, None),
    (
        dict(lr=2e-5),
        dict(learning_rate=2e-5),
        {ACTOR + "optim.lr": 2e-5},
        {"actor.adam.lr": 2e-5},
    ),
    (
        dict(max_grad_norm=0.25),
        dict(max_grad_norm=0.25),
        {ACTOR + "optim.clip_grad": 0.25},
        {"actor.max_norm": 0.25},
    ),
    (dict(seed=8), dict(seed=8), {ROLLOUT + "seed": 8}, {"train.seed": 8}),
    (
        dict(processes=2),
        dict(per_device_train_batch_size=16, launched="accelerate launch --num_processes 2 train.py"),
        {"trainer.n_gpus_per_node": 2},
        {"vllm.num_engines": 2, **dict.fromkeys(FOUR, 2)},
    ),
    (
        dict(gradient_checkpointing=True),
        dict(gradient_checkpointing=True),
        {"actor_rollout_ref.model.enable_gradient_checkpointing": True},
        {"actor.gradient_checkpointing_enable": True},
    ),
    (
        dict(lora=16),
        dict(lora=(16, 32, 0.0, "all-linear")),
        {"actor_rollout_ref.model.lora_rank": 16, "actor_rollout_ref.model.lora_alpha": 32},
        {"ds.lora.rank": 16, "ds.lora.alpha": 32},
    ),
    (
        dict(policy="Qwen/Qwen3-0.6B"),
        dict(model="Qwen/Qwen3-0.6B", bf16=True),
        {"actor_rollout_ref.model.path": "Qwen/Qwen3-0.6B"},
        {"actor.model_name_or_path": "Qwen/Qwen3-0.6B"},
    ),
]
# The same for a run of DPO, which verl has not.
OFFLINE_FIELDS = [
    (dict(epochs=3), dict(num_train_epochs=3), None, {"train.max_epochs": 3}),
    (dict(batch=32), dict(per_device_train_batch_size=32), None, {"train.batch_size": 32}),
    (dict(lr=2e-5), dict(learning_rate=2e-5), None, {"adam.lr": 2e-5}),
    (dict(max_grad_norm=0.25), dict(max_grad_norm=0.25), None, {"max_norm": 0.25}),
    (dict(seed=8), dict(seed=8), None, {"train.seed": 8}),
    (
        dict(processes=2),
        dict(per_device_train_batch_size=8, launched="accelerate launch --num_processes 2 train.py"),
        None,
        {"launched": "deepspeed --num_gpus 2"},
    ),
    (
        dict(gradient_checkpointing=True),
        dict(gradient_checkpointing=True),
        None,
        {"model.gradient_checkpointing_enable": True},
    ),
    (
        dict(lora=16),
        dict(lora=(16, 32, 0.0, "all-linear")),
        None,
        {"ds.lora.rank": 16, "ds.lora.alpha": 32},
    ),
    (
        dict(policy="Qwen/Qwen3-0.6B"),
        dict(model="Qwen/Qwen3-0.6B", bf16=True),
        None,
        {"model.model_name_or_path": "Qwen/Qwen3-0.6B"},
    ),
]


def cases(method, fields):
    for changes, *by_library in fields:
        for library, expected in zip(("trl", "verl", "openrlhf"), by_library):
            if expected is not None:
                yield pytest.param(method, library, changes, expected, id=f"{library} {changes}")


def close(found, expected) -> bool:
    return found == (pytest.approx(expected, rel=1e-12) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    "method, library, changes, expected", [*cases(GRPO(), ONLINE_FIELDS), *cases(DPO(), OFFLINE_FIELDS)]
)
def test_a_field_of_the_run_changes_what_the_library_reads_in_its_place(
    method, library, changes, expected, read
):
    before, after = read(library, method), read(library, method, **changes)
    for name, value in expected.items():
        assert close(after[name], value), name
        assert before.get(name) != after[name], name


# A method, its field, and what each library reads for it; None where it cannot run it, or has nothing of the kind.
METHOD_FIELDS = [
    (GRPO(), dict(group_size=4), dict(num_generations=4), {ROLLOUT + "n": 4, "data.train_batch_size": 8},
     {"rollout.n_samples_per_prompt": 4, "rollout.batch_size": 8}),
    (GRPO(), dict(clip=0.1), dict(epsilon=0.1, epsilon_high=0.1),
     {ACTOR + "clip_ratio": 0.1, ACTOR + "clip_ratio_low": 0.1, ACTOR + "clip_ratio_high": 0.1},
     {"actor.eps_clip_low_high": [0.1, 0.1]}),
    (GRPO(), dict(beta=0.04), dict(beta=0.04), {ACTOR + "use_kl_loss": True, ACTOR + "kl_loss_coef": 0.04,
     ACTOR + "kl_loss_type": "low_var_kl"}, {"algo.kl.init_coef": 0.04, "algo.kl.use_loss": True,
     "algo.kl.estimator": "k3"}),
    (GRPO(), dict(scale=False), dict(scale_rewards="none"), {"algorithm.norm_adv_by_std_in_grpo": False},
     {"algo.advantage.estimator": "dr_grpo"}),
    (GRPO(), dict(epochs=3), dict(num_iterations=3, max_steps=15), {ACTOR + "ppo_epochs": 3}, {"train.max_epochs": 3}),
    (GRPO(), dict(minibatches=2), dict(steps_per_generation=2, per_device_train_batch_size=16, max_steps=10),
     {ACTOR + "ppo_mini_batch_size": 2, ACTOR + "shuffle": True}, {"train.batch_size": 16}),
    (DAPO(minibatches=2), dict(clip_low=0.1), dict(epsilon=0.1), {ACTOR + "clip_ratio_low": 0.1},
     {"actor.eps_clip_low_high": [0.1, 0.28]}),
    (DAPO(minibatches=2), dict(clip_high=0.3), dict(epsilon_high=0.3), {ACTOR + "clip_ratio_high": 0.3},
     {"actor.eps_clip_low_high": [0.2, 0.3]}),
    (DAPO(minibatches=2), dict(dynamic_sampling=False), None, {"algorithm.filter_groups.enable": False},
     {"algo.dynamic_filtering_enable": False}),
    (DAPO(minibatches=2), dict(refills=3), None, {"trainer.total_epochs": 4}, {"train.num_episodes": 4}),
    (DAPO(minibatches=2), dict(token_mean=False), dict(loss_type="grpo"), {ACTOR + "loss_agg_mode":
     "seq-mean-token-mean"}, {"actor.loss_agg_mode": "seq-mean-token-mean"}),
    (DAPO(minibatches=2), dict(overlong=0.5), None, {"+reward.reward_kwargs.overlong_buffer_cfg.len": 12},
     {"reward.overlong_buffer_len": 12}),
    (GSPO(minibatches=2), dict(clip_low=0.01), dict(epsilon=0.01), {ACTOR + "clip_ratio_low": 0.01},
     {"actor.eps_clip_low_high": [0.01, 4e-4]}),
    (GSPO(minibatches=2), dict(clip_high=0.02), dict(epsilon_high=0.02), {ACTOR + "clip_ratio_high": 0.02},
     {"actor.eps_clip_low_high": [3e-4, 0.02]}),
    (CISPO(minibatches=2), dict(clip_low=0.5), dict(epsilon=0.5), {ACTOR + "clip_ratio_low": 0.5}, None),
    (CISPO(minibatches=2), dict(clip_high=3.0), dict(epsilon_high=4.0), {ACTOR + "clip_ratio_high": 3.0}, None),
    (SAPO(minibatches=2), dict(tau_positive=1.3), dict(sapo_temperature_pos=1.3), {ACTOR + "tau_pos": 1.3}, None),
    (SAPO(minibatches=2), dict(tau_negative=1.4), dict(sapo_temperature_neg=1.4), {ACTOR + "tau_neg": 1.4}, None),
    (ScalingGRPO(minibatches=2), dict(beta=0.2), dict(beta=0.2), None, None),
    (ScalingGRPO(minibatches=2), dict(delta=0.3), dict(off_policy_mask_threshold=0.3), None, None),
    (RLOO(group_size=4), dict(beta=0.1), dict(beta=0.1), {"algorithm.use_kl_in_reward": True,
     "algorithm.kl_ctrl.kl_coef": 0.1, "algorithm.kl_ctrl.type": "fixed"}, {"algo.kl.init_coef": 0.1}),
    (DrGRPO(), dict(max_length=64), None, {ACTOR + "loss_scale_factor": 64}, None),
    (PPO(), dict(clip=0.1), None, {ACTOR + "clip_ratio": 0.1}, {"actor.eps_clip_low_high": [0.1, 0.1]}),
    (PPO(), dict(value_clip=0.3), None, {"critic.cliprange_value": 0.3}, {"critic.value_clip": 0.3}),
    (PPO(), dict(value_clip=None), None, {"critic.cliprange_value": 1e6}, {"critic.value_clip": 1e6}),
    (PPO(), dict(lam=0.9), None, {"algorithm.lam": 0.9}, {"algo.advantage.lambd": 0.9}),
    (PPO(), dict(gamma=0.99), None, {"algorithm.gamma": 0.99}, {"algo.advantage.gamma": 0.99}),
    (PPO(), dict(beta=0.2), None, {"algorithm.kl_ctrl.kl_coef": 0.2}, {"algo.kl.init_coef": 0.2}),
    (PPO(), dict(beta=0.0), None, {"algorithm.use_kl_in_reward": False}, {"algo.kl.init_coef": 0.0}),
    (PPO(), dict(target_kl=6.0), None, {"algorithm.kl_ctrl.target_kl": 6.0, "algorithm.kl_ctrl.type": "adaptive"},
     {"algo.kl.target": 6.0}),
    (PPO(target_kl=6.0), dict(horizon=500), None, {"algorithm.kl_ctrl.horizon": 500}, {"algo.kl.horizon": 500}),
    (PPO(), dict(entropy_bonus=0.01), None, {ACTOR + "entropy_coeff": 0.01}, {"actor.entropy_coef": 0.01}),
    (PPO(), dict(whiten=False), None, None, {"algo.advantage.no_std_norm": True}),
    (PPO(), dict(critic_lr=1e-3), None, {"critic.optim.lr": 1e-3}, {"critic.adam.lr": 1e-3}),
    (PPO(), dict(epochs=2), None, {ACTOR + "ppo_epochs": 2}, {"train.max_epochs": 2}),
    (DPO(), dict(beta=0.2), dict(beta=0.2), None, {"model.beta": 0.2}),
    (DPO(), dict(label_smoothing=0.1), dict(loss_weights=[1.2, -0.2], label_smoothing=0.25), None,
     {"model.label_smoothing": 0.1}),
    (IPO(), dict(beta=0.2), dict(beta=0.2), None, {"model.beta": 0.2}),
    (KTO(), dict(beta=0.2), dict(beta=0.2), None, None),
    (KTO(), dict(desirable_weight=1.3), dict(desirable_weight=1.3), None, None),
    (KTO(), dict(undesirable_weight=1.3), dict(undesirable_weight=1.3), None, None),
    (BradleyTerry(), dict(margin=0.5), None, None, {"model.margin_loss_enable": True}),
    (BradleyTerry(), dict(centring=0.01), dict(center_rewards_coefficient=0.01), None, None),
]  # fmt: skip


@pytest.mark.parametrize(
    "library, method, changes, expected",
    [
        pytest.param(library, method, changes, expected, id=f"{library} {type(method).__name__} {changes}")
        for method, changes, *by_library in METHOD_FIELDS
        for library, expected in zip(("trl", "verl", "openrlhf"), by_library)
        if expected is not None
    ],
)
def test_a_field_of_the_method_changes_what_the_library_reads_in_its_place(
    library, method, changes, expected, read
):
    before, after = read(library, method), read(library, dataclasses.replace(method, **changes))
    for name, value in expected.items():
        assert close(after.get(name), value), name
        assert before.get(name) != after.get(name), name


@pytest.mark.parametrize("library, model", [("verl", "critic.model."), ("verl", "actor_rollout_ref.model.")])
def test_a_critic_has_an_adapter_too(library, model, read):
    found = read(library, PPO(), lora=8)
    assert (found[model + "lora_rank"], found[model + "lora_alpha"]) == (8, 16)


def another(field, value):
    """Another value of a method's field that the method takes."""
    known = dict(
        group_size=4,
        minibatches=2,
        critic="shared",
        value_clip=0.5,
        target_kl=6.0,
        critic_lr=1e-3,
        max_length=64,
    )
    if field in known and known[field] != value:
        return known[field]
    return (
        not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 0.9 * value or 0.05
    )


MADE = [
    getattr(every_method, name)
    for name in every_method.__all__
    if name not in ("TIS", "RoutingReplay", "REINFORCE")
]
# OpenRLHF says that it has no constant denominator, whatever the constant
SAME = {("openrlhf", "DrGRPO", "max_length")}


@pytest.mark.parametrize(
    "library, kind",
    [
        pytest.param(library, kind, id=f"{library} {kind.__name__}")
        for library in LIBRARIES
        for kind in MADE
        if not LIBRARIES[library].lacks(kind())
    ],
)
def test_no_field_of_a_method_is_lost_in_silence(kind, library):
    """What a library has no name for is said in words."""

    def written(method):
        run = Experiment.read(config(method, **({"responses": 64} if hasattr(method, "group_size") else {})))
        files = LIBRARIES[library].files(run, LIBRARIES[library].settings(run))
        return "".join(files.values()).replace(repr(method), "")

    method = kind()
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        changed = dataclasses.replace(method, **{field.name: another(field.name, value)})
        if not LIBRARIES[library].lacks(changed) and (library, kind.__name__, field.name) not in SAME:
            assert written(changed) != written(method), field.name


# What a run's config holds beside: who made it, how it was kept on disk, and what changes memory and no number.
ELSEWHERE = {
    "kind", "rlcourse", "measured_from", "data", "engine", "dtype", "shard", "micro_batch", "sample_every",
    "checkpoint_every", "tensorboard", "tokens",
}  # fmt: skip


def test_every_field_that_a_run_writes_down_is_exported_or_known_not_to_be(tmp_path):
    train(
        load_policy("pocket"),
        Sums(),
        GRPO(),
        steps=1,
        responses=8,
        max_tokens=4,
        out=tmp_path / "t",
        quiet=True,
    )
    fit(load_policy("pocket"), DATA[SFT], SFT(), epochs=1, out=tmp_path / "f", quiet=True)
    for name, fields in (("t", ONLINE_FIELDS), ("f", OFFLINE_FIELDS)):
        tested = {field for changes, *_ in fields for field in changes} | {"method", "task"}
        config = json.loads((tmp_path / name / "config.json").read_text())
        budget = tmp_path / name / "budget.json"
        config |= json.loads(budget.read_text()) if budget.exists() else {}
        assert set(config) - tested <= ELSEWHERE


def test_the_runs_problems_are_as_many_as_its_steps_ask_for(tmp_path):
    for library in LIBRARIES:
        export(config(GRPO(), steps=3), library, tmp_path / library)
        rows = [json.loads(row) for row in (tmp_path / library / "data.jsonl").read_text().splitlines()]
        assert len(rows) == 3 * 4  # 32 responses in groups of 8
        other = config(GRPO(), steps=3, seed=8)
        export(other, library, tmp_path / f"{library} again")
        assert (tmp_path / f"{library} again" / "data.jsonl").read_text() != (
            tmp_path / library / "data.jsonl"
        ).read_text()


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_reward_is_of_the_runs_own_task(library, tmp_path):
    export(config(GRPO(), task=repr(Sums(terms=2, digits=1))), library, tmp_path / "out")
    told = runpy.run_path(str(tmp_path / "out" / "reward.py"))
    assert repr(told["TASK"]) == repr(Sums(terms=2, digits=1))
    assert len(told["PROBLEMS"]) > 1 and all(prompt.count("+") == 1 for prompt in told["PROBLEMS"])


def test_overlong_answers_are_told_by_trls_own_punishment(tmp_path):
    export(config(DAPO(minibatches=2, overlong=0.25)), "trl", tmp_path / "out")
    script = (tmp_path / "out" / "train.py").read_text()
    assert "reward_funcs=[reward, get_soft_overlong_punishment(24, 6)]" in script
    assert Path(tmp_path / "out" / "reward.py").exists()


def test_remax_and_reinforce_are_what_they_are_called(read):
    assert read("verl", ReMax())["algorithm.adv_estimator"] == "remax"
    assert read("verl", REINFORCE())["algorithm.adv_estimator"] == "grpo"  # of a lone answer: its reward
    assert read("openrlhf", REINFORCE(baseline="batch"))["algo.advantage.estimator"] == "flash_reinforce"
