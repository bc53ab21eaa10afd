"""What verl computes, written down for the tests: `make peers` runs this in an environment of its own (2 minutes).

verl 0.9.1 and this book want different versions of transformers, so verl is not called live as TRL
is. Here its own functions get small fixed inputs, in float64, and inputs and outputs become
tests/peers/verl.json, which tests/test_verl.py gives to ours. Numbers are written with ten
significant digits, so the same versions make the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import verl
from verl import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils.torch_functional import masked_whiten
from verl.workers.config import ActorConfig
from verl.workers.reward_manager.dapo import DAPORewardManager

RECORD = Path(__file__).resolve().parents[1] / "tests" / "peers" / "verl.json"
NO_DUAL_CLIP = 1e6  # verl always has the dual clip on; a bound this far out is none


def draw() -> dict[str, torch.Tensor]:
    """Five answers of up to six tokens, ratios on both sides of every clip. Padding is 0."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(6)[None] < torch.tensor([6, 1, 4, 2, 5])[:, None]

    def normal(scale):
        return scale * torch.randn(mask.shape, generator=generator, dtype=torch.float64)

    old = -3 * torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    values = normal(1.0)
    drawn = {
        "old_logp": old,
        "logp": old + normal(0.5),
        "ref_logp": old + normal(0.5),
        "engine_logp": old + normal(0.7),
        "advantages": normal(1.0),
        "rewards": normal(1.0),
        "values": values,
        "new_values": values + normal(0.4),
    }
    # Where the dual clip works: a bad token that has become 1.5 / 0.25 = 6 times likelier.
    drawn["logp"][0, 0], drawn["old_logp"][0, 0], drawn["advantages"][0, 0] = -0.4, -2.2, -1.3
    inputs = {name: (x * mask).mul(1e4).round().div(1e4) + 0.0 for name, x in drawn.items()}
    inputs["scores"] = inputs["advantages"][:, 0].clone()
    inputs["mask"] = mask.double()
    return inputs


def with_empty_row(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return inputs | {"mask": inputs["mask"] * torch.tensor([1.0, 1, 0, 1, 1])[:, None]}


def gradient(function, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """A loss (the first, where verl returns metrics too) and its gradient."""
    x = x.clone().requires_grad_()
    loss = function(x)
    loss = loss[0] if isinstance(loss, tuple) else loss
    (grad,) = torch.autograd.grad(loss.sum(), x)
    return {"loss": loss, "gradient": grad}


def policy_loss(inputs, name, how, low=0.2, high=0.2, c=NO_DUAL_CLIP, advantages="advantages", constant=None):
    """One of verl's registered policy losses; `advantages` are by token, or "scores", one for the answer."""
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=c,
        global_batch_info={"loss_scale_factor": constant} if constant else {},
    )
    weighed = inputs[advantages]
    weighed = weighed if weighed.dim() == 2 else weighed[:, None] * inputs["mask"]
    found = gradient(
        lambda logp: get_policy_loss_fn(name)(
            inputs["old_logp"], logp, weighed, inputs["mask"], loss_agg_mode=how, config=config
        ),
        inputs["logp"],
    )
    settings = {"name": name, "how": how, "low": low, "high": high, "c": c, "advantages": advantages}
    return settings | {"constant": constant} | found


def group_case(rewards: list[list[float]], dtype: torch.dtype) -> dict:
    """The outcome advantages of GRPO and RLOO for [P G] rewards, each answer three tokens long."""
    rewards = torch.tensor(rewards, dtype=dtype)
    index = np.repeat(np.arange(len(rewards)), rewards.shape[1])
    mask = torch.ones(rewards.numel(), 3, dtype=dtype)
    by_token = torch.zeros_like(mask)
    by_token[:, -1] = rewards.flatten()

    def advantages(estimator, **settings):
        return estimator(by_token.clone(), mask, index=index, **settings)[0][:, 0].view_as(rewards)

    grpo, rloo = core_algos.compute_grpo_outcome_advantage, core_algos.compute_rloo_outcome_advantage
    return {
        "rewards": rewards,
        "dtype": str(dtype).removeprefix("torch."),
        "grpo": advantages(grpo),
        "grpo_unscaled": advantages(grpo, norm_adv_by_std_in_grpo=False),
        "rloo": advantages(rloo),
    }


def overlong(length: int, max_length: int, cache: int) -> float:
    """What the DAPO reward manager adds to a score of 0 for an answer of `length` tokens."""
    manager = DAPORewardManager(
        tokenizer=SimpleNamespace(decode=lambda *_, **__: "", eos_token="<eos>"),
        num_examine=0,
        compute_score=lambda **_: 0.0,
        max_resp_len=max_length,
        overlong_buffer_cfg=SimpleNamespace(enable=True, len=cache, penalty_factor=1.0, log=False),
    )
    data = DataProto.from_dict(
        tensors={
            "prompts": torch.ones(1, 1, dtype=torch.long),
            "responses": torch.ones(1, length, dtype=torch.long),
            "attention_mask": torch.ones(1, 1 + length, dtype=torch.long),
        },
        non_tensors={
            "data_source": np.array([""], dtype=object),
            "reward_model": np.array([{"ground_truth": ""}], dtype=object),
        },
    )
    return manager(data).sum().item()


def controller(kls: list[float], beta: float, target: float, n: int, horizon: int) -> dict:
    adaptive = core_algos.AdaptiveKLController(beta, target, horizon)
    betas = []
    for kl in kls:
        adaptive.update(kl, n)
        betas.append(float(adaptive.value))
    return {"kl": kls, "beta": beta, "target": target, "n": n, "horizon": horizon, "betas": betas}


def record() -> dict:
    inputs = draw()
    empty, mask = with_empty_row(inputs), inputs["mask"]
    rewards, values = inputs["rewards"], inputs["values"]
    nan_behind = inputs | {"logp": inputs["logp"].masked_fill(mask == 0, torch.nan)}
    far = {"logp": [-7.0, -6.0, -2.0], "ref_logp": [-2.0, -1.0, -7.0]}
    far = {name: torch.tensor(x, dtype=torch.float64) for name, x in far.items()}

    def gae(gamma, lam):
        lams = torch.tensor(lam, dtype=torch.float64)
        advantages, returns = core_algos.compute_gae_advantage_return(rewards, values, mask, gamma, lams)
        return {"gamma": gamma, "lam": lam, "advantages": advantages, "returns": returns}

    def value(clip, batch):
        return gradient(
            lambda new: core_algos.compute_value_loss(
                new, batch["rewards"], batch["values"], batch["mask"], cliprange_value=clip
            ),
            inputs["new_values"],
        )

    def kl(kind, logp, ref_logp):
        found = gradient(lambda x: core_algos.kl_penalty(x, ref_logp, kind), logp)
        return {"value": found["loss"], "gradient": found["gradient"]}

    def aggregated(how, batch, constant=None):
        loss = agg_loss(batch["advantages"], batch["mask"], how, loss_scale_factor=constant)
        return {"how": how, "constant": constant, "empty_row": batch is empty, "loss": loss}

    def correction(level, bound):
        log_ratio = inputs["old_logp"] - inputs["engine_logp"]
        return compute_rollout_correction_weights(log_ratio, mask, level, bound)[0]

    def reinforce(how):
        return gradient(
            lambda logp: core_algos.compute_policy_loss_reinforce(
                inputs["engine_logp"],
                logp,
                inputs["advantages"],
                mask,
                loss_agg_mode=how,
                config=SimpleNamespace(global_batch_info={}),
            ),
            inputs["logp"],
        )

    mean, each = "token-mean", "seq-mean-token-mean"
    normed, summed = "seq-mean-token-sum-norm", "seq-mean-token-sum"
    return {
        "verl": verl.__version__,
        "torch": torch.__version__.split("+")[0],
        "inputs": inputs,
        "mask_with_empty_row": empty["mask"],
        "gae": [gae(1.0, 0.95), gae(1.0, 1.0), gae(0.9, 0.5), gae(1.0, 0.0), gae(1.0, [1, 0.9, 0.5, 0.2, 0])],
        "whiten": {str(shift): masked_whiten(rewards, mask, shift) for shift in (True, False)},
        "reward_to_go": {
            str(gamma): core_algos.compute_reinforce_plus_plus_outcome_advantage(
                rewards, mask, config=SimpleNamespace(gamma=gamma)
            )[1]
            for gamma in (1.0, 0.9)
        },
        "groups": [
            group_case([[1, 0, 0, 1], [0.3, -2, 5.5, 0], [1e-3, 0, 0, 0], [1, 1, 1, 1]], torch.float64),
            group_case([[0.7] * 8], torch.float32),
            group_case([[0.7], [-2]], torch.float64),
        ],
        "remax": core_algos.compute_remax_outcome_advantage(rewards, inputs["scores"], mask)[0],
        "kl_in_reward": core_algos.compute_rewards(rewards, inputs["logp"], inputs["ref_logp"], 0.05),
        "kl": {kind: kl(kind, inputs["logp"], inputs["ref_logp"]) for kind in ("k1", "k2", "k3", "k3+")},
        "kl_far": {**far, **kl("k3", far["logp"], far["ref_logp"])},
        "controller": controller([1.0, 6.0, 6.6, 60.0, 0.0], 0.05, 6.0, 256, 10_000),
        "value_loss": [
            {"clip": 0.2, "empty_row": False, **value(0.2, inputs)},
            {"clip": 0.2, "empty_row": True, **value(0.2, empty)},
            {"clip": None, "empty_row": False, **value(1e6, inputs)},
        ],
        "aggregate": [
            *(aggregated(how, batch) for how in (mean, each, summed) for batch in (inputs, empty)),
            *(aggregated(normed, batch, 16) for batch in (inputs, empty)),
        ],
        "reinforce": reinforce(summed),
        "policy_loss": [
            policy_loss(inputs, "vanilla", mean),
            policy_loss(inputs, "vanilla", mean, c=3.0),
            policy_loss(inputs, "vanilla", each, advantages="scores"),
            policy_loss(empty, "vanilla", each, advantages="scores") | {"empty_row": True},
            policy_loss(inputs, "vanilla", normed, advantages="scores", constant=16),
            policy_loss(inputs, "vanilla", mean, 0.2, 0.28, advantages="scores"),
            policy_loss(nan_behind, "vanilla", mean) | {"nan_behind": True},
            policy_loss(nan_behind, "gspo", each, 0.1, 0.15) | {"nan_behind": True},
            policy_loss(inputs, "gspo", each, 3e-4, 4e-4, advantages="scores"),
            policy_loss(inputs, "gspo", each, 0.1, 0.15, advantages="scores"),
            policy_loss(inputs, "gspo", each, 0.1, 0.15),
            policy_loss(inputs, "gspo", mean, 0.1, 0.15),
            policy_loss(inputs, "cispo", mean, advantages="scores"),
            policy_loss(inputs, "cispo", mean, 1.0, 0.5, advantages="scores"),
            policy_loss(inputs, "sapo", each, advantages="scores"),
        ],
        "correction": {
            "token": correction("token", 2.0),
            "sequence": correction("sequence", 2.0),
            "icepop": correction("token", "0.5_2.0"),
        },
        "overlong": {
            "max_length": 20,
            "cache": 8,
            "lengths": (lengths := [1, 11, 12, 13, 16, 20, 24]),
            "penalty": [overlong(length, 20, 8) for length in lengths],
        },
    }


def plain(x):
    """JSON has no tensors and no NaN: lists, and null."""
    if isinstance(x, torch.Tensor):
        return plain(x.tolist())
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, list):
        return [plain(value) for value in x]
    if isinstance(x, float):
        return None if np.isnan(x) else float(f"{x:.10g}") + 0.0
    return x


def as_text(found: dict) -> str:
    """A line for each entry, so that a change is a readable diff."""
    lines = []
    for key, value in plain(found).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(row) for row in value)
            lines.append(f"{json.dumps(key)}: [\n  {rows}\n ]")
        elif isinstance(value, dict):
            rows = ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f"{json.dumps(key)}: {{\n  {rows}\n }}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    RECORD.write_text(as_text(record()))
    print(f"{RECORD.name}: what verl {verl.__version__} computes, {RECORD.stat().st_size / 1000:.0f} KB")
