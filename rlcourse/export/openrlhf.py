"""For OpenRLHF: run.sh, one command line. It counts a rollout in prompts and an update in responses."""

from __future__ import annotations

from pathlib import Path

from rlcourse.export.experiment import Experiment, Sheet, in_shell, said
from rlcourse.methods import GRPO

VERSION = "OpenRLHF 0.11.2"
COMMANDS = {"SFT": "train_sft", "BradleyTerry": "train_rm", "DPO": "train_dpo", "IPO": "train_dpo"}
METHODS = ["GRPO", "DrGRPO", "DAPO", "GSPO", "RLOO", "REINFORCE", "PPO", *COMMANDS]
ESTIMATORS = {"RLOO": "rloo", "REINFORCE": "flash_reinforce", "PPO": "gae"}


def lacks(method) -> str | None:
    match type(method).__name__:
        case "REINFORCE" if (method.baseline, method.gamma) != ("batch", 1.0):
            return 'its plain estimator subtracts a mean; REINFORCE(baseline="batch") is its flash_reinforce'
        case "BradleyTerry" if method.centring:
            return (
                "its reward model's loss does not pull scores towards 0; with centring=0.0 it can be exported"
            )
        case name if name in METHODS:
            return None
        case "CISPO" | "SAPO" | "ScalingGRPO":
            return "its policy losses are ppo and gspo"
        case "VCPPO" | "VAPO":
            return "its critic and its policy share one lambda, the same for every answer"
        case "KTO":
            return "its train_kto is gone"
    return "none of its commands computes this"


def asked(prompt: str) -> dict:
    return {"prompt": [said("user", prompt)], "label": prompt}


def settings(run: Experiment) -> Sheet:
    config, sheet = run.config, Sheet(run)
    sheet |= {
        "train.seed": config["seed"],
        "train.batch_size": run.size if run.online else config["batch"],
        "ds.param_dtype": "bf16",
        "ckpt.output_dir": "trained",
        "data.apply_chat_template": True,
    }
    if run.pocket:
        sheet.note("ds.param_dtype", "the pocket was trained in float32, which is not to be had")
    sheet.note(
        "data.apply_chat_template", "without a template: take this out, and messages out of data.jsonl"
    )
    (online if run.online else offline)(run, sheet)
    if run.adapter:
        sheet |= dict(zip(("ds.lora.rank", "ds.lora.alpha"), run.adapter))
    return sheet


def online(run: Experiment, sheet: Sheet) -> None:
    method, name, config = run.method, type(run.method).__name__, run.config
    group = "group_norm" if getattr(method, "scale", False) else "dr_grpo"
    sheet |= {
        "actor.model_name_or_path": run.model,
        "actor.gradient_checkpointing_enable": config.get("gradient_checkpointing", False),
        "reward.remote_url": Path("reward.py"),
        "data.prompt_dataset": Path("data.jsonl"),
        "data.input_key": "prompt",
        "data.label_key": "label",
        "data.max_len": run.longest_prompt + config["max_tokens"],
        "rollout.max_new_tokens": config["max_tokens"],
        "rollout.temperature": config["temperature"],
        "rollout.top_p": 1.0,
        "rollout.batch_size": run.prompts,
        "rollout.n_samples_per_prompt": method.group_size,
        "rollout.micro_batch_size": run.micro_batch,
        "train.micro_batch_size": run.micro_batch,
        "train.max_epochs": method.epochs,
        "train.num_episodes": 1 + method.refills,
        "train.colocate_all": True,
        "vllm.num_engines": run.processes,
        "vllm.tensor_parallel_size": 1,
        "vllm.gpu_memory_utilization": 0.5,
        "vllm.enable_sleep": True,
        "ds.enable_sleep": True,
        **{f"{part}.num_gpus_per_node": run.processes for part in ("actor", "critic", "ref", "reward")},
        "algo.advantage.estimator": ESTIMATORS.get(name, group),
        "algo.advantage.is_correction_level": "off",
        "algo.kl.init_coef": getattr(method, "beta", 0.0),
        "algo.dynamic_filtering_enable": getattr(method, "dynamic_sampling", False),
        "actor.policy_loss_type": "gspo" if name == "GSPO" else "ppo",
        "actor.loss_agg_mode": "seq-mean-token-mean" if run.denominator == "sequence" else "token-mean",
        "actor.eps_clip_low_high": run.clip,
        "reward.clip_range": (-1e6, 1e6),
        **optimizer("actor.", config["lr"], config["max_grad_norm"], "constant"),
    }
    sheet.note("data.prompt_dataset", "is shuffled there, whatever one says; ours came in this order")
    sheet.note("reward.clip_range", "cuts what is left after the group's baseline, at 10 by default")
    if isinstance(method, GRPO):
        family(run, sheet)
    match run.denominator:
        case "constant":
            sheet.note(
                "actor.loss_agg_mode", "divides by the step's tokens: a constant denominator is not to be had"
            )
        case "sum":
            why = "divides by the step's tokens, ours by its answers: the same direction, another length"
            sheet.note("actor.loss_agg_mode", why)
    if name == "RLOO" and method.beta:
        sheet.note(
            "algo.kl.init_coef", "taken off after the others were averaged, token by token; ours before"
        )
    if name == "PPO":
        ppo(run, sheet)
    if run.cap is not None:
        correction = "algo.advantage.is_correction_"
        sheet |= {
            correction + "level": "token",
            correction + "mode": "clip",
            correction + "threshold": (0.0, run.cap),
        }
        if getattr(method, "beta", 0.0):
            sheet.note(
                correction + "level", "weighs the policy's loss only; ours weighs what is added to it too"
            )
        if name == "GSPO":
            sheet.note(
                correction + "level", "under gspo it weighs nothing, and turns the ratio into one to vLLM"
            )


def family(run: Experiment, sheet: Sheet) -> None:
    """What GRPO and its descendants have beside the common settings."""
    method, estimator = run.method, "algo.advantage.estimator"
    if sheet[estimator] == "group_norm":
        sheet.note(estimator, "adds 1e-9 to the std, ours 1e-4: a tied group may get noise for an advantage")
    if method.beta:
        sheet |= {"algo.kl.use_loss": True, "algo.kl.estimator": "k3"}
        sheet.note("algo.kl.estimator", "cut off at 10")
        if run.denominator != "token":
            sheet.note(
                "algo.kl.use_loss", "a mean over the step's tokens, whatever the policy's loss is a mean over"
            )
    match type(method).__name__:
        case "GSPO" if method.token:
            sheet.note(
                "actor.policy_loss_type", "no GSPO-token: the same gradient where tokens share one advantage"
            )
        case "DAPO" if method.dynamic_sampling:
            sheet["algo.dynamic_filtering_range"] = (0.0, 1.0)
            sheet.note("algo.dynamic_filtering_enable", "draws until the prompts end; ours gives up")
    if run.overlong:
        sheet |= {"reward.overlong_buffer_len": run.overlong, "reward.overlong_penalty_factor": 1.0}


def ppo(run: Experiment, sheet: Sheet) -> None:
    method, config = run.method, run.config
    sheet |= {
        "algo.advantage.gamma": method.gamma,
        "algo.advantage.lambd": method.lam,
        "algo.advantage.no_std_norm": not method.whiten,
        "algo.kl.estimator": "k1",
        "critic.model_name_or_path": run.model,
        "critic.value_clip": 1e6 if method.value_clip is None else method.value_clip,
        **optimizer("critic.", method.critic_lr or config["lr"], config["max_grad_norm"], "constant"),
    }
    sheet.note("algo.advantage.estimator", "whitens with ddof 0, ours with ddof 1")
    if not method.whiten:
        sheet.note(
            "algo.advantage.no_std_norm", "the mean is taken off even so; ours was told not to whiten at all"
        )
    sheet.note("critic.adam.lr", f"vf={method.vf:g} is left out: the critic's optimizer is its own")
    if method.critic == "shared":
        sheet.note("critic.model_name_or_path", "a model of its own; ours is a second head on the policy")
    if method.entropy_bonus:
        sheet["actor.entropy_coef"] = method.entropy_bonus
    if method.target_kl:
        sheet |= {"algo.kl.target": method.target_kl, "algo.kl.horizon": method.horizon}
        sheet.note("algo.kl.target", "nats a token there, nats an answer here: divide by the mean length")


def offline(run: Experiment, sheet: Sheet) -> None:
    method, name, config = run.method, type(run.method).__name__, run.config
    sheet |= {
        "model.model_name_or_path": run.model,
        "model.gradient_checkpointing_enable": config.get("gradient_checkpointing", False),
        "data.dataset": Path("data.jsonl"),
        "data.max_len": 16384,
        "train.max_epochs": config["epochs"],
        "train.micro_batch_size": 1,
        **optimizer("", config["lr"], config["max_grad_norm"], "linear"),
    }
    sheet.note("train.batch_size", "drops what is left over of an epoch; ours makes a smaller step of it")
    sheet.note("", "examples come in another order: ours puts those of like length into one batch")
    if name == "SFT":
        sheet |= {"data.input_key": "prompt", "data.output_key": "completion"}
        return
    sheet |= {f"data.{key}_key": key for key in ("prompt", "chosen", "rejected")}
    match name:
        case "BradleyTerry":
            sheet |= {"model.loss_type": "sigmoid", "model.margin_loss_enable": method.margin > 0}
        case "DPO":
            sheet |= {"model.beta": method.beta, "model.label_smoothing": method.label_smoothing}
        case "IPO":
            sheet |= {"model.beta": method.beta, "model.ipo_enable": True}
            sheet.note(
                "model.beta", "on log-probs summed over tokens, ours on their mean: a far smaller margin"
            )


def optimizer(owner: str, lr: float, max_grad_norm: float, schedule: str) -> dict:
    return {
        owner + "optim": "adam",
        owner + "adam.lr": lr,
        owner + "adam.betas": (0.9, 0.999),
        owner + "adam.weight_decay": 0.0,
        owner + "lr_scheduler": schedule,
        owner + "lr_warmup_ratio": 0.0,
        owner + "max_norm": max_grad_norm,
    }


def argument(name: str, value) -> str:
    """As argparse reads it: a flag that is on is its name alone, several values follow one another."""
    values = value if isinstance(value, tuple) else () if value is True else (value,)
    return " ".join([f"--{name}", *(in_shell(each) for each in values)])


def files(run: Experiment, sheet: Sheet) -> dict[str, str]:
    given = Sheet(run)
    given |= {
        name: value for name, value in sheet.items() if value is not False
    }  # a flag that is off is left out
    given.notes = sheet.notes
    script = SCRIPT.format(
        version=VERSION,
        head=sheet.head,
        arguments=given.written(argument, "  "),
        command=COMMANDS.get(type(run.method).__name__, "train_ppo_ray"),
        launcher="python3" if run.online else f"deepspeed --num_gpus {run.processes}",
    )
    return {"run.sh": script} | ({"reward.py": run.reward_file(FUNCTION)} if run.online else {})


SCRIPT = """\
#!/bin/bash
# Made by rlcourse, for {version}: bash run.sh
{head}
cd "$(dirname "$0")"
arguments=(
{arguments})
{launcher} -m openrlhf.cli.{command} "${{arguments[@]}}" "$@"
"""

FUNCTION = """\
def reward_func(queries, prompts, labels):
    import torch

    answers = [query[len(prompt) :] for query, prompt in zip(queries, prompts)]
    finished = [answer.endswith(TOKENIZER.eos_token) for answer in answers]
    texts = [answer.removesuffix(TOKENIZER.eos_token) for answer in answers]
    grades = judged(TASK, [PROBLEMS[label] for label in labels], texts, finished)
    rewards, right = zip(*grades)
    return {"rewards": torch.tensor(rewards), "scores": torch.tensor(right).float()}
"""
