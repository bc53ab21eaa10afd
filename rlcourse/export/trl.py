"""For TRL: train.py, which is one configuration object and one trainer."""

from __future__ import annotations

from rlcourse.export.experiment import Experiment, Sheet, beside, said

VERSION = "TRL 1.16.0"
TRAINERS = {"RLOO": "RLOO", "SFT": "SFT", "BradleyTerry": "Reward", "DPO": "DPO", "IPO": "DPO", "KTO": "KTO"}
METHODS = ["GRPO", "DrGRPO", "DAPO", "GSPO", "CISPO", "SAPO", "ScalingGRPO", *TRAINERS]


def lacks(method) -> str | None:
    match type(method).__name__:
        case name if name in METHODS:
            return None
        case "PPO" | "VCPPO" | "VAPO":
            return "its PPO trainer was removed after 1.12, so nothing there has a critic"
        case "OnlineDPO":
            return "its online DPO lives in trl.experimental, which may change with every release"
    return "it has no trainer that computes this"


def asked(prompt: str) -> dict:
    return {"prompt": [said("user", prompt)]}


def settings(run: Experiment) -> Sheet:
    config, sheet = run.config, Sheet(run)
    batch = run.size if run.online else config["batch"]
    sheet |= dict(
        output_dir="out",
        model_init_kwargs={"dtype": "float32"},
        bf16=not run.pocket,
        seed=config["seed"],
        optim="adamw_torch",
        learning_rate=config["lr"],
        lr_scheduler_type="constant" if run.online else "linear",
        warmup_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=config["max_grad_norm"],
        per_device_train_batch_size=batch // run.processes,
        gradient_accumulation_steps=1,
        gradient_checkpointing=config.get("gradient_checkpointing", False),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    (online if run.online else offline)(run, sheet)
    return sheet


def online(run: Experiment, sheet: Sheet) -> None:
    method, name, config = run.method, type(run.method).__name__, run.config
    sheet |= dict(
        max_steps=run.steps * method.epochs * run.updates,
        num_generations=method.group_size,
        max_completion_length=config["max_tokens"],
        temperature=config["temperature"],
        top_p=1.0,
        top_k=0,
        steps_per_generation=run.updates,
        num_iterations=method.epochs,
        shuffle_dataset=False,
        disable_dropout=True,
        mask_truncated_completions=False,
        beta=method.beta,
    )
    if run.updates * method.epochs > 1:
        sheet.note("max_steps", f"optimizer steps; ours counts rollouts, {run.steps}")
    if name == "RLOO":
        sheet |= dict(epsilon=0.2, normalize_advantages=False)
        sheet.note(
            "epsilon", "clips the whole answer's ratio, which is 1 here: there is one update a rollout"
        )
        return
    low, high = run.clip
    loss = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo"}[run.denominator]
    sheet |= dict(
        loss_type={"CISPO": "cispo", "SAPO": "sapo"}.get(name, loss),
        importance_sampling_level="sequence" if name == "GSPO" else "token",
        scale_rewards="group" if method.scale else "none",
        epsilon=low,
        epsilon_high=1 + high if name == "CISPO" else high,
        use_bias_correction_kl=name == "ScalingGRPO",
        off_policy_mask_threshold=method.delta if name == "ScalingGRPO" else None,
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        use_vllm=run.cap is not None,
    )
    if method.scale:
        sheet.note("scale_rewards", "a tied group may get rounding noise for an advantage; ours gets 0")
    if run.denominator == "token" and run.updates > 1:
        sheet.note(
            "loss_type", "divides by the mean tokens of the rollout's mini-batches, not each by its own"
        )
    match name:
        case "DrGRPO" if method.max_length not in (None, config["max_tokens"]):
            share = config["max_tokens"] / method.max_length
            sheet.note("loss_type", f"divides by max_completion_length: the loss is {1 / share:g} of ours")
        case "CISPO":
            sheet.note("epsilon_high", f"the cap itself; ours is the room above 1: {high}")
            if low < 1:
                sheet.note(
                    "epsilon", f"CISPO there has no lower bound; ours keeps the weight above {1 - low:g}"
                )
        case "SAPO":
            sheet |= dict(sapo_temperature_pos=method.tau_positive, sapo_temperature_neg=method.tau_negative)
        case "GSPO" if method.token:
            sheet.note(
                "importance_sampling_level",
                "no GSPO-token: the same gradient where tokens share one advantage",
            )
        case "DAPO" if method.dynamic_sampling:
            sheet.note("", "no dynamic sampling: tied groups stay in the batch, with advantage 0")
        case "ScalingGRPO" if method.keep_routing:
            sheet.note("", "no routing replay: a mixture of experts chooses them anew in the update")
    if run.cap is not None:
        sheet |= dict(
            vllm_importance_sampling_correction=True,
            vllm_importance_sampling_mode="token_truncate",
            vllm_importance_sampling_clip_max=run.cap,
        )
        if method.beta:
            sheet.note(
                "vllm_importance_sampling_mode",
                "weighs the policy's loss only; ours weighs the KL penalty too",
            )


def offline(run: Experiment, sheet: Sheet) -> None:
    method, name = run.method, type(run.method).__name__
    sheet |= dict(num_train_epochs=run.config["epochs"], max_length=None)
    sheet.note("", "examples come in another order: ours puts those of like length into one batch")
    if name != "SFT":
        sheet |= dict(disable_dropout=True)
    match name:
        case "SFT":
            sheet |= dict(loss_type="nll", completion_only_loss=True, packing=False)
        case "BradleyTerry":
            sheet |= dict(center_rewards_coefficient=method.centring or None)
            if method.margin:
                sheet.note("", f"the margin, {method.margin:g}, is a column of data.jsonl")
        case "DPO" if method.label_smoothing:
            # "robust" is ((1 - s) L(h) - s L(-h)) / (1 - 2 s): at s = 1/4, weighed like this, what is left is ours
            e = method.label_smoothing
            sheet |= dict(beta=method.beta, loss_type=["sigmoid", "robust"])
            sheet |= dict(loss_weights=[1 + 2 * e, -2 * e], label_smoothing=0.25)
            sheet.note("label_smoothing", f"with the weights above, a smoothing of {e:g}")
        case "DPO":
            sheet |= dict(beta=method.beta, loss_type=["sigmoid"], label_smoothing=0.0)
        case "IPO":
            sheet |= dict(beta=method.beta, loss_type=["ipo"])
        case "KTO":
            sheet |= dict(
                beta=method.beta,
                loss_type="kto",
                desirable_weight=method.desirable_weight,
                undesirable_weight=method.undesirable_weight,
            )
            sheet.note("", "z mixes prompts and answers within a batch; ours within all the data")


def files(run: Experiment, sheet: Sheet) -> dict[str, str]:
    trainer = TRAINERS.get(type(run.method).__name__, "GRPO")
    rewards = ["reward"] if run.online else []
    if run.overlong:
        rewards.append(f"get_soft_overlong_punishment({run.config['max_tokens']}, {run.overlong})")
    imports = "from trl.rewards import get_soft_overlong_punishment\n" * bool(run.overlong)
    script = SCRIPT.format(
        head=sheet.head,
        version=VERSION.replace("TRL ", "trl==") + " peft" * bool(run.adapter),
        trainer=trainer,
        imports=imports + "\nfrom reward import reward\n" * run.online,
        model=f"str({beside(run.model)})",
        settings=sheet.written(lambda name, value: f"{name}={value!r},", "    "),
        rewards=f"\n        reward_funcs=[{', '.join(rewards)}]," * run.online,
        launcher="python" if run.processes == 1 else f"accelerate launch --num_processes {run.processes}",
        peft="from peft import LoraConfig\n" * bool(run.adapter),
        adapter="" if run.adapter is None else ADAPTER.format(*run.adapter),
    )
    return {"train.py": script} | ({"reward.py": run.reward_file(FUNCTION)} if run.online else {})


SCRIPT = '''\
"""Made by rlcourse, for TRL: pip install {version}, and {launcher} train.py"""

{head}
import json
from pathlib import Path

from datasets import Dataset
{peft}from trl import {trainer}Config, {trainer}Trainer
{imports}
MODEL = {model}
DATA = Path(__file__).parent / "data.jsonl"

config = {trainer}Config(
{settings})

if __name__ == "__main__":
    rows = [json.loads(line) for line in DATA.read_text().splitlines()]
    trainer = {trainer}Trainer(
        model=MODEL,
        args=config,
        train_dataset=Dataset.from_list(rows),{rewards}{adapter}
    )
    trainer.train()
    trainer.save_model("trained")
'''

ADAPTER = """
        peft_config=LoraConfig(r={}, lora_alpha={}, lora_dropout=0.0, target_modules="all-linear"),"""

FUNCTION = """\
def reward(prompts, completions, completion_ids, **_):
    asked = [PROBLEMS[prompt[-1]["content"]] for prompt in prompts]
    finished = [ids[-1] == TOKENIZER.eos_token_id for ids in completion_ids]
    texts = [completion[-1]["content"] for completion in completions]
    return [reward for reward, _ in judged(TASK, asked, texts, finished)]
"""
