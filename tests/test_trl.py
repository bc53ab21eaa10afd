"""GRPO beside TRL's own, called live: the same numbers in, the same loss, gradient and advantages out.

`GRPOTrainer._compute_loss` and `_generate_and_score_completions` run as they are, on a stand-in
for the trainer that holds what they look at. What differs does so on purpose, and has a test here
too: TRL counts an empty row as a sequence, lets garbage behind the mask through, and gives eight
equal rewards in float32 an advantage that is small but not zero. eps is the same, 1e-4.
"""

import math
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import tensor

pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]' brings it")
from trl import GRPOTrainer

from rlcourse.lm import llama
from rlcourse.methods.grpo import group_advantages, grpo_loss
from rlcourse.tensors import token_logprobs, token_weights


def stand_in(**changes):
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        is_main_process=True,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction=None: x,
    )
    args = SimpleNamespace(
        delta=None,
        use_bias_correction_kl=False,
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=8,
        gradient_checkpointing_kwargs=None,
    )
    trainer = SimpleNamespace(
        accelerator=accelerator,
        args=args,
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        loss_type="grpo",
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.2,
        beta=0.0,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=16,
        num_iterations=1,
        num_generations=4,
        scale_rewards="group",
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=tensor([1.0]),
        reward_funcs=[None],
        reward_func_names=["reward"],
        environment_factories=None,
        environments=None,
        tools=None,
        mask_truncated_completions=False,
        pad_to_multiple_of=None,
        log_multimodal=False,
        ref_model=None,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _logs=defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
    )
    for name, value in changes.items():
        setattr(trainer, name, value)
    return trainer


def trl_loss(logp, old_logp, advantages, mask, clip=0.2, ref_logp=None, beta=0.0, **changes):
    """`_compute_loss`, with the model's log-probs given instead of computed."""
    trainer = stand_in(beta=beta, epsilon_low=clip, epsilon_high=clip, **changes)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, torch.zeros_like(logp), None)
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": torch.ones_like(tokens[:, :1]),
        "completion_ids": tokens,
        "completion_mask": mask.int(),
        "advantages": advantages,
        "old_per_token_logps": old_logp,
        "ref_per_token_logps": ref_logp,
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


def trl_advantages(rewards, scale):
    """`_generate_and_score_completions`, with the answers and their rewards given. `rewards` is [P G]."""
    trainer = stand_in(num_generations=rewards.shape[1], scale_rewards="group" if scale else "none")
    n = rewards.numel()
    answers = ([[1]] * n, [[2]] * n, None, [""] * n, None, {}, None, [])
    trainer._generate = lambda prompts: answers
    trainer._calculate_rewards = lambda *_: rewards.flatten()[:, None].clone()
    inputs = [{"prompt": "prompt"} for _ in range(n)]
    return GRPOTrainer._generate_and_score_completions(trainer, inputs)["advantages"].view_as(rewards)


def drawn(seed, lengths=(6, 1, 4, 2)):
    """Ratios from about 0.4 to 2.5, so that both sides of a clip of 0.2 are at work."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths))[None] < tensor(lengths)[:, None]
    old = -3 * torch.rand(mask.shape, generator=generator)
    logp = old + 0.5 * torch.randn(mask.shape, generator=generator)
    ref = old + 0.5 * torch.randn(mask.shape, generator=generator)
    return logp, old, torch.randn(len(lengths), generator=generator), mask, ref


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x)[0]


@pytest.mark.parametrize("clip", [0.2, 0.05, 10.0])
@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_are_trls_grpo(seed, beta, clip):
    logp, old, advantages, mask, ref = drawn(seed)
    ours, our_grad = value_and_gradient(
        lambda x: grpo_loss(x, old, advantages, mask, clip, ref_logp=ref, beta=beta), logp
    )
    theirs, their_grad = value_and_gradient(
        lambda x: trl_loss(x, old, advantages, mask, clip, ref_logp=ref, beta=beta), logp
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_grad, their_grad, atol=1e-5, rtol=1e-5)
    assert our_grad[mask].abs().max() > 1e-3  # equal, and not because both are nothing


def test_both_sides_of_the_clip_are_at_work_in_this_comparison():
    logp, old, _, mask, _ = drawn(0, lengths=(6, 6, 6, 5))
    advantages = tensor([1.0, 1.0, -1.0, -1.0])
    _, grad = value_and_gradient(lambda x: trl_loss(x, old, advantages, mask), logp)
    above, below = logp - old > math.log(1.2), logp - old < math.log(0.8)
    better, worse = (advantages > 0)[:, None], (advantages < 0)[:, None]
    assert (above & better & mask).any() and (below & worse & mask).any()
    assert grad[above & better | below & worse].eq(0).all()


@pytest.mark.parametrize(
    ("loss_type", "how", "constant"),
    [
        ("grpo", "sequence", None),
        ("bnpo", "token", None),
        ("dapo", "token", None),
        ("dr_grpo", "constant", 16),
    ],
)
def test_trls_loss_types_are_our_denominators(loss_type, how, constant):
    logp, old, advantages, mask, _ = drawn(1)
    weights = token_weights(mask, how, constant)
    ours, our_grad = value_and_gradient(lambda x: grpo_loss(x, old, advantages, mask, weights=weights), logp)
    theirs, their_grad = value_and_gradient(
        lambda x: trl_loss(x, old, advantages, mask, loss_type=loss_type), logp
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_grad, their_grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_are_trls(scale):
    rewards = tensor(
        [[1.0, 0.0, 0.0, 1.0], [0.3, -2.0, 5.5, 0.0], [1.0, 1.0, 1.0, 1.0], [1e-3, 0.0, 0.0, 0.0]]
    )
    torch.testing.assert_close(
        group_advantages(rewards, scale), trl_advantages(rewards, scale), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_scores_and_their_gradients_are_trls(temperature):
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=19, initializer_range=0.3, **shape)).eval()
    tokens = torch.randint(3, 19, (4, 11))
    prompt_mask = torch.arange(5) >= tensor([0, 2, 2, 4])[:, None]
    mask = torch.arange(6) < tensor([6, 1, 4, 2])[:, None]

    logits = llama.response_logits(model, tokens[:, :5], prompt_mask, torch.arange(4), tokens[:, 5:], mask)
    ours = token_logprobs(logits / temperature, tokens[:, 5:][mask])
    our_grads = torch.autograd.grad(ours.square().sum(), list(model.parameters()))

    add_fused_lm_head(model, temperature=temperature)
    trainer = stand_in()
    trainer.accelerator.autocast = nullcontext
    everything = torch.cat([prompt_mask, mask], 1).int()
    theirs = GRPOTrainer._get_per_token_logps_and_entropies(trainer, model, tokens, everything, 6)[0][mask]
    their_grads = torch.autograd.grad(theirs.square().sum(), list(model.parameters()))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(our_grads, their_grads):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


# ---- what differs on purpose


def test_trl_counts_an_empty_row_as_a_sequence_and_we_do_not():
    logp, old, advantages, mask, _ = drawn(2, lengths=(5, 3, 0, 2))
    ours = grpo_loss(logp, old, advantages, mask)
    theirs = trl_loss(logp, old, advantages, mask)
    # a mean over 3 answers here, over 4 rows there
    torch.testing.assert_close(ours, theirs * 4 / 3, atol=1e-5, rtol=1e-5)


def test_trl_lets_nan_behind_the_mask_through_and_we_do_not():
    logp, old, advantages, mask, _ = drawn(3)
    clean = grpo_loss(logp, old, advantages, mask)
    dirty = logp.masked_fill(~mask, math.nan)
    torch.testing.assert_close(grpo_loss(dirty, old, advantages, mask), clean)
    assert trl_loss(dirty, old, advantages, mask).isnan()


def test_trl_gives_a_tied_group_a_trace_of_advantage_and_we_give_none():
    tied = torch.full((1, 8), 0.7)
    assert group_advantages(tied).abs().max() == 0
    assert 0 < trl_advantages(tied, scale=True).abs().max() < 1e-2
