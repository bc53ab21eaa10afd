"""For verl: run.sh, which overrides its Hydra configuration. verl counts mini-batches in prompts."""

from __future__ import annotations

from pathlib import Path

from rlcourse.export.experiment import Experiment, Sheet, in_shell, said
from rlcourse.methods import GRPO

VERSION = "verl 0.9.1"
METHODS = ["GRPO", "DrGRPO", "DAPO", "GSPO", "CISPO", "SAPO", "RLOO", "REINFORCE", "ReMax", "PPO"]
NEVER = 1e6  # a bound so far out that it never binds, where verl cannot go without one


def lacks(method) -> str | None:
    match type(method).__name__:
        case "REINFORCE" if (method.baseline, method.gamma, method.group_size) != ("none", 1.0, 1):
            return "it has no such baseline; REINFORCE() itself can be exported"
        case name if name in METHODS:
            return None
        case "VCPPO" | "VAPO":
            return "its critic and its policy share one lambda, the same for every answer"
        case "ScalingGRPO":
            return (
                "it neither weighs k3 by the ratio nor leaves out the answers that the policy has left behind"
            )
    return "its main_ppo learns from rewards of answers that it samples, and from nothing else"


def asked(prompt: str) -> dict:
    rule = {"style": "rule", "ground_truth": prompt}
    return {"prompt": [said("user", prompt)], "data_source": "rlcourse", "reward_model": rule}


def settings(run: Experiment) -> Sheet:
    method, name, config, sheet = run.method, type(run.method).__name__, run.config, Sheet(run)
    mini_batch = next(n for n in range(max(1, run.prompts // run.updates), 0, -1) if run.prompts % n == 0)
    low, high = run.clip
    actor, rollout = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
    sheet |= {
        "data.train_files": Path("data.jsonl"),
        "data.val_files": Path("data.jsonl"),
        "data.shuffle": False,
        "data.train_batch_size": run.prompts,
        "data.max_prompt_length": run.longest_prompt,
        "data.max_response_length": config["max_tokens"],
        "reward.custom_reward_function.path": Path("reward.py"),
        "reward.custom_reward_function.name": "compute_score",
        "reward.reward_manager.name": "dapo" if run.overlong else "naive",
        "actor_rollout_ref.model.path": run.model,
        "actor_rollout_ref.model.enable_gradient_checkpointing": config.get("gradient_checkpointing", False),
        "algorithm.adv_estimator": {"RLOO": "rloo", "ReMax": "remax", "PPO": "gae"}.get(name, "grpo"),
        "algorithm.norm_adv_by_std_in_grpo": getattr(method, "scale", False),
        "algorithm.use_kl_in_reward": False,
        "algorithm.filter_groups.enable": getattr(method, "dynamic_sampling", False),
        "algorithm.rollout_correction.rollout_is": None,
        actor + "ppo_mini_batch_size": mini_batch,
        actor + "ppo_micro_batch_size_per_gpu": run.micro_batch,
        actor + "ppo_epochs": method.epochs,
        actor + "shuffle": run.updates > 1,
        actor + "policy_loss.loss_mode": {"GSPO": "gspo", "CISPO": "cispo", "SAPO": "sapo"}.get(
            name, "vanilla"
        ),
        actor + "loss_agg_mode": {
            "token": "token-mean",
            "sequence": "seq-mean-token-mean",
            "sum": "seq-mean-token-sum",
            "constant": "seq-mean-token-sum-norm",
        }[run.denominator],
        actor + "clip_ratio": low,
        actor + "clip_ratio_low": low,
        actor + "clip_ratio_high": high,
        actor + "clip_ratio_c": NEVER,
        actor + "entropy_coeff": getattr(method, "entropy_bonus", 0.0),
        actor + "use_kl_loss": False,
        **optimizer(actor, config["lr"], config["max_grad_norm"]),
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": run.micro_batch,
        rollout + "name": "vllm",
        rollout + "n": method.group_size,
        rollout + "temperature": config["temperature"],
        rollout + "top_p": 1.0,
        rollout + "top_k": -1,
        rollout + "seed": config["seed"],
        rollout + "tensor_model_parallel_size": 1,
        rollout + "log_prob_micro_batch_size_per_gpu": run.micro_batch,
        "trainer.total_training_steps": run.steps,
        "trainer.total_epochs": 1 + method.refills,
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": run.processes,
        "trainer.logger": ["console"],
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.project_name": "rlcourse",
        "trainer.experiment_name": name,
    }
    sheet.note("", "bfloat16 arithmetic over float32 weights, and vLLM samples")
    sheet.note("reward.custom_reward_function.name", "is not told of cut answers, which ours counts as wrong")
    sheet.note(
        actor + "clip_ratio_c", "the dual clip, which is always on and which ours has not: out of reach"
    )
    if mini_batch * method.group_size != run.size:
        sheet.note(
            actor + "ppo_mini_batch_size", f"in prompts, all answers of each; ours takes {run.size} responses"
        )
    if isinstance(method, GRPO):
        family(run, sheet, actor, high)
    match name:
        case "REINFORCE":
            sheet.note(
                "algorithm.adv_estimator", "leaves the reward of a lone answer as it is, which is REINFORCE"
            )
        case "ReMax":
            sheet["trainer.use_v1"] = False
            sheet.note(
                "trainer.use_v1", "the new trainer samples no greedy answer; the old one is to be removed"
            )
        case "PPO":
            ppo(run, sheet)
    if run.adapter:
        models = ["actor_rollout_ref.model.", *["critic.model."] * (name == "PPO")]
        names = ("lora_rank", "lora_alpha")
        sheet |= {model + name: size for model in models for name, size in zip(names, run.adapter)}
    if name in ("PPO", "RLOO") and method.beta:
        sheet |= {
            "algorithm.use_kl_in_reward": True,
            "algorithm.kl_penalty": "kl",
            "algorithm.kl_ctrl.kl_coef": method.beta,
            "algorithm.kl_ctrl.type": "adaptive" if getattr(method, "target_kl", None) else "fixed",
        }
    if run.cap is not None:
        correction = "algorithm.rollout_correction."
        sheet |= {correction + "rollout_is": "token", correction + "rollout_is_threshold": run.cap}
        if getattr(method, "beta", 0.0):
            sheet.note(
                correction + "rollout_is",
                "weighs the policy's loss only; ours weighs what is added to it too",
            )
    return sheet


def family(run: Experiment, sheet: Sheet, actor: str, high: float) -> None:
    """What GRPO and its descendants have beside the common settings."""
    method, config = run.method, run.config
    if method.scale:
        sheet.note("algorithm.norm_adv_by_std_in_grpo", "adds 1e-6 to the std, ours 1e-4")
    if method.beta:
        sheet |= {actor + "use_kl_loss": True, actor + "kl_loss_coef": method.beta}
        sheet[actor + "kl_loss_type"] = "low_var_kl"
        sheet.note(actor + "kl_loss_type", "k3, cut off at 10")
    match type(method).__name__:
        case "DrGRPO":
            sheet[actor + "loss_scale_factor"] = method.max_length or config["max_tokens"]
        case "SAPO":
            sheet |= {actor + "tau_pos": method.tau_positive, actor + "tau_neg": method.tau_negative}
        case "GSPO" if method.token:
            sheet.note(actor + "policy_loss.loss_mode", "this is GSPO-token")
        case "GSPO":
            text = "GSPO-token: the same gradient where tokens share one advantage"
            sheet.note(actor + "policy_loss.loss_mode", text)
        case "DAPO" if method.dynamic_sampling:
            sheet["algorithm.filter_groups.metric"] = "acc"
            sheet.note("algorithm.filter_groups.enable", "draws until the batch is full; ours gives up")
    if run.overlong:
        kwargs = "+reward.reward_kwargs."
        sheet |= {
            kwargs + "max_resp_len": config["max_tokens"],
            kwargs + "overlong_buffer_cfg.enable": True,
            kwargs + "overlong_buffer_cfg.len": run.overlong,
            kwargs + "overlong_buffer_cfg.penalty_factor": 1.0,
            kwargs + "overlong_buffer_cfg.log": False,
        }


def ppo(run: Experiment, sheet: Sheet) -> None:
    method, config = run.method, run.config
    sheet |= {
        "algorithm.gamma": method.gamma,
        "algorithm.lam": method.lam,
        "critic.model.path": run.model,
        "critic.model.enable_gradient_checkpointing": config.get("gradient_checkpointing", False),
        "critic.ppo_micro_batch_size_per_gpu": run.micro_batch,
        "critic.loss_agg_mode": "token-mean",
        "critic.cliprange_value": NEVER if method.value_clip is None else method.value_clip,
        **optimizer("critic.", method.critic_lr or config["lr"], config["max_grad_norm"]),
    }
    sheet.note("critic.optim.lr", f"vf={method.vf:g} is left out: the critic's optimizer is its own")
    if method.critic == "shared":
        sheet.note("critic.model.path", "a model of its own; ours is a second head on the policy")
    if not method.whiten:
        sheet.note("algorithm.adv_estimator", "gae always whitens the advantages; ours was told not to")
    if method.target_kl:
        sheet |= {
            "algorithm.kl_ctrl.target_kl": method.target_kl,
            "algorithm.kl_ctrl.horizon": method.horizon,
        }
        sheet.note(
            "algorithm.kl_ctrl.target_kl",
            "nats a token there, nats an answer here: divide by the mean length",
        )


def optimizer(owner: str, lr: float, max_grad_norm: float) -> dict:
    return {
        owner + "optim.lr": lr,
        owner + "optim.lr_scheduler_type": "constant",
        owner + "optim.lr_warmup_steps_ratio": 0.0,
        owner + "optim.betas": [0.9, 0.999],
        owner + "optim.weight_decay": 0.0,
        owner + "optim.clip_grad": max_grad_norm,
    }


def override(name: str, value) -> str:
    """As Hydra reads it: null for None, and a list without spaces."""
    if isinstance(value, list):
        value = f"[{','.join(map(str, value))}]"
    return f"{name}={in_shell('null' if value is None else value)}"


def files(run: Experiment, sheet: Sheet) -> dict[str, str]:
    overrides = sheet.written(override, "  ")
    script = SCRIPT.format(version=VERSION, head=sheet.head, overrides=overrides)
    return {"run.sh": script, "reward.py": run.reward_file(FUNCTION)}


SCRIPT = """\
#!/bin/bash
# Made by rlcourse, for {version}: bash run.sh
{head}
cd "$(dirname "$0")"
overrides=(
{overrides})
python3 -m verl.trainer.main_ppo "${{overrides[@]}}" "$@"
"""

FUNCTION = """\
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    ((reward, right),) = judged(TASK, [PROBLEMS[ground_truth]], [solution_str], [True])
    return {"score": reward, "acc": float(right)}
"""
