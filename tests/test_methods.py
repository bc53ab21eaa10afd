"""REINFORCE, PPO's clipped surrogate and GRPO: by hand, by property, by enumeration, and by contract.

Numbers called "by hand" are worked out in the comment beside them, not by the code under test.
"""

import dataclasses
import importlib
import inspect
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

import rlcourse.methods
from rlcourse.lm import Rollout
from rlcourse.methods import GRPO, REINFORCE
from rlcourse.methods.grpo import group_advantages, grpo_loss, grpo_per_token
from rlcourse.methods.ppo import clip_active, clipped_surrogate
from rlcourse.methods.reinforce import reinforce_per_token
from rlcourse.tensors import aggregate, only, token_weights

NAN, INF = math.nan, math.inf
GARBAGE = [NAN, INF, -INF, 1e30, -1e30]
quickly = settings(max_examples=40, deadline=None)  # a busy machine is no failure
seeds = st.integers(0, 10_000)


def mask_of(lengths, width=None):
    """Right-padded: row i is true on its first lengths[i] positions."""
    return torch.arange(width or max(lengths))[None] < tensor(lengths)[:, None]


ragged = st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(lambda n: sum(n) >= 1).map(mask_of)


def drawn(mask, seed):
    """logp, old_logp, ref_logp of likely sizes, ratios well outside the clip among them, and advantages."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(mask.shape, generator=generator, dtype=torch.float64) * 3
    logp = old + 0.4 * torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    ref = old + 0.4 * torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    return logp, old, ref, torch.randn(len(mask), generator=generator, dtype=torch.float64)


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    (grad,) = torch.autograd.grad(y, x)
    return y.detach(), grad


def rollout_of(rewards, mask, **fields):
    """A rollout with nothing in it but what methods look at. `rewards` is [P G]."""
    P, G = rewards.shape
    return Rollout(
        prompts=[f"prompt {p}" for p in range(P)],
        prompt_tokens=torch.zeros(P, 1, dtype=torch.long),
        prompt_mask=torch.ones(P, 1, dtype=torch.bool),
        owner=torch.arange(P).repeat_interleave(G),
        tokens=torch.zeros(mask.shape, dtype=torch.long),
        mask=mask,
        logp=fields.pop("logp", torch.zeros(mask.shape)),
        finished=torch.ones(P * G, dtype=torch.bool),
        texts=[""] * (P * G),
        rewards=rewards.flatten(),
        **fields,
    )


# ---- the contract: names and signatures that outside code calls

CONTRACT = {
    "tensors.token_logprobs": "logits, tokens",
    "tensors.entropy": "logits",
    "tensors.masked_mean": "x, mask, dim=None",
    "tensors.whiten": "x, mask, shift_mean=True",
    "tensors.token_weights": "mask, how, constant=None",
    "tensors.aggregate": "per_token, mask, how, constant=None",
    "kl.exact_kl": "logits, ref_logits",
    "kl.kl_estimate": "logp, ref_logp, kind",
    "methods.reinforce.reinforce_per_token": "logp, advantages",
    "methods.ppo.clipped_surrogate": "logp, old_logp, advantages, clip_low, clip_high",
    "methods.grpo.group_advantages": "rewards, scale=True, eps=0.0001",
    "methods.grpo.grpo_loss": (
        "logp, old_logp, advantages, mask, clip=0.2, ref_logp=None, beta=0.0, weights=None"
    ),
    "evaluate.pass_at_k": "samples, correct, k",
    "evaluate.accuracy": "policy, task, problems=512, seed=0",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_public_names_keep_their_signatures(name):
    module, _, function = name.rpartition(".")
    parameters = inspect.signature(
        getattr(importlib.import_module(f"rlcourse.{module}"), function)
    ).parameters
    plain = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters.values()]
    assert ", ".join(plain) == CONTRACT[name]


@pytest.mark.parametrize("method", [GRPO(), REINFORCE()])
def test_method_objects_are_frozen(method):
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.group_size = 3


# ---- REINFORCE


def test_reinforce_per_token_by_hand():
    # -A * logp: -2 * -0.5 = 1, -2 * -1 = 2 in the first row; 3 * -0.25 = -0.75 in the second
    found = reinforce_per_token(tensor([[-0.5, -1.0], [-0.25, 0.0]]), tensor([2.0, -3.0]))
    assert found.tolist() == [[1.0, 2.0], [-0.75, 0.0]]


def test_reinforce_takes_an_advantage_a_token_too():
    found = reinforce_per_token(tensor([[-0.5, -1.0]]), tensor([[2.0, 4.0]]))
    assert found.tolist() == [[1.0, 4.0]]


def test_reinforce_gradient_is_minus_the_advantage_and_none_reaches_the_advantage():
    logp, advantages = torch.zeros(2, 2, requires_grad=True), tensor([2.0, -3.0], requires_grad=True)
    reinforce_per_token(logp, advantages).sum().backward()
    assert logp.grad.tolist() == [[-2, -2], [3, 3]]
    assert advantages.grad is None


def test_the_reinforce_object_uses_the_sum_of_log_probs():
    # Three answers of 2, 1 and 0 tokens: two sequences, each token counts 1/2 whatever its answer's length.
    batch = SimpleNamespace(mask=mask_of([2, 1, 0]))
    assert REINFORCE().weights(batch).tolist() == [[0.5, 0.5], [0.5, 0.0], [0.0, 0.0]]


def test_the_reinforce_baselines():
    rollout = rollout_of(tensor([[1.0], [0.0], [0.5], [0.5]]), mask_of([1, 1, 1, 1]))
    assert REINFORCE().advantages(rollout, {}).tolist() == [1, 0, 0.5, 0.5]
    # the step's mean is 0.5
    assert REINFORCE(baseline="batch").advantages(rollout, {}).tolist() == [0.5, -0.5, 0, 0]


def test_an_unknown_baseline_is_named():
    with pytest.raises(ValueError, match="\"running\", got 'critic'"):
        REINFORCE(baseline="critic")


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_behind_the_mask_does_not_reach_reinforce(garbage):
    mask = mask_of([2, 1])
    logp = tensor([[-1.0, -2.0], [-3.0, garbage]], requires_grad=True)
    batch = rollout_of(tensor([[1.0], [2.0]]), mask, logp=logp, advantages=tensor([1.0, 2.0]))
    per_token, _ = REINFORCE().loss(batch, {})
    loss = (per_token * REINFORCE().weights(SimpleNamespace(mask=mask))).sum()
    loss.backward()
    # (1 * 1 + 1 * 2 + 2 * 3) / 2 = 4.5
    assert loss.item() == 4.5
    assert logp.grad.tolist() == [[-0.5, -0.5], [-1.0, 0.0]]


# ---- PPO's clipped surrogate

# ratio, advantage -> loss, its derivative by the log-prob, is the clip active; clip 0.2 below and 0.28 above.
# loss = max(-r A, -clip(r) A); where the first is larger, the derivative is -r A, else 0.
SURROGATE = [
    (1.5, +1.0, -1.28, 0.0, True),  # better and already likelier than 1.28: no more reward
    (1.5, -1.0, +1.5, +1.5, False),  # worse and likelier: pull it back, at full weight
    (0.5, +1.0, -0.5, -0.5, False),  # better and rarer: full weight
    (0.5, -2.0, +1.6, 0.0, True),  # worse and already below 0.8: 0.8 * 2
    (1.1, +2.0, -2.2, -2.2, False),  # inside the clip
    (0.9, -2.0, +1.8, +1.8, False),
    (1.25, +1.0, -1.25, -1.25, False),  # above 1.2 and below 1.28: the upper side is the upper side's
    (0.75, -1.0, +0.8, 0.0, True),  # below 0.8 and above 0.72: the lower side is the lower side's
    (1.5, 0.0, 0.0, 0.0, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope", "active"), SURROGATE)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, slope, active):
    old = tensor([-2.0], dtype=torch.float64)
    A = tensor([advantage], dtype=torch.float64)
    found, grad = value_and_gradient(
        lambda x: clipped_surrogate(x, old, A, 0.2, 0.28).sum(), old + math.log(ratio)
    )
    assert found.item() == pytest.approx(loss, abs=1e-9)
    assert grad.item() == pytest.approx(slope, abs=1e-9)
    assert clip_active(old + math.log(ratio), old, A, 0.2, 0.28).item() is active


def test_one_advantage_a_response_counts_for_each_of_its_tokens():
    logp, old = torch.zeros(2, 3), torch.zeros(2, 3)
    spread = clipped_surrogate(logp, old, tensor([1.0, -2.0]), 0.2, 0.2)
    assert spread.tolist() == [[-1, -1, -1], [2, 2, 2]]
    given_each = clipped_surrogate(logp, old, tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]]), 0.2, 0.2)
    assert torch.equal(spread, given_each)


def test_no_gradient_reaches_old_logp_or_advantages_through_the_surrogate():
    logp, old, advantages = (torch.zeros(1, 2, requires_grad=True) for _ in range(3))
    clipped_surrogate(logp, old, advantages + 1, 0.2, 0.2).sum().backward()
    assert logp.grad.tolist() == [[-1, -1]]
    assert old.grad is None and advantages.grad is None


# ---- GRPO's advantages


def test_group_advantages_by_hand_with_ddof_1_and_eps_on_the_deviation():
    # 1, 0, 0, 1: mean 1/2; squared distances sum to 1, over 4 - 1: deviation sqrt(1/3) = 0.5773503;
    #   0.5 / (0.5773503 + 0.0001) = 0.8658754. With ddof 0 it would be 0.9998.
    # 3, 1, 1, 1: mean 1.5; squared distances 2.25 + 3 * 0.25 = 3, over 3: deviation 1;
    #   1.5 / 1.0001 and -0.5 / 1.0001
    found = group_advantages(tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 1.0]]))
    by_hand = tensor(
        [[0.8658754, -0.8658754, -0.8658754, 0.8658754], [1.499850, -0.499950, -0.499950, -0.499950]]
    )
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=0)


def test_unscaled_group_advantages_are_distances_from_the_mean():
    found = group_advantages(tensor([[3.0, 1.0, 1.0, 1.0]]), scale=False)
    assert found.tolist() == [[1.5, -0.5, -0.5, -0.5]]


def test_eps_is_added_to_the_deviation():
    # 2, 0: deviation sqrt(2) = 1.4142136; 1 / (1.4142136 + 1) = 0.4142136
    found = group_advantages(tensor([[2.0, 0.0]]), eps=1.0)
    torch.testing.assert_close(found, tensor([[0.4142136, -0.4142136]]))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.7, 0.1, -3.3, 1e6])
def test_tied_groups_have_exactly_no_advantage(reward, scale):
    # In float32 the mean of eight 0.7s is not 0.7, and the rest divided by a deviation of 6e-8 is not small.
    assert group_advantages(torch.full((1, 8), reward), scale, eps=1e-12).tolist() == [[0.0] * 8]


def test_a_tied_group_leaves_its_neighbours_alone():
    found = group_advantages(tensor([[0.7] * 4, [1.0, 0.0, 0.0, 1.0]]))
    assert found[0].tolist() == [0.0] * 4
    assert found[1].abs().min() > 0.8


groups = (
    st.integers(2, 6)
    .flatmap(
        lambda G: st.lists(st.lists(st.integers(-20, 20), min_size=G, max_size=G), min_size=1, max_size=4)
    )
    .map(lambda rows: tensor(rows, dtype=torch.float64))
)


@quickly
@given(groups, st.integers(-1000, 1000))
def test_advantages_do_not_change_when_all_rewards_shift(rewards, shift):
    torch.testing.assert_close(
        group_advantages(rewards + shift), group_advantages(rewards), atol=1e-9, rtol=1e-9
    )


@quickly
@given(groups, st.floats(0.5, 1000))
def test_advantages_do_not_change_when_rewards_scale_but_for_eps(rewards, factor):
    # the deviation of whole numbers that differ is at least sqrt(1/6): eps weighs at most 5e-4 of it
    torch.testing.assert_close(
        group_advantages(rewards * factor), group_advantages(rewards), atol=1e-9, rtol=1e-3
    )
    torch.testing.assert_close(
        group_advantages(rewards * factor, eps=0.0), group_advantages(rewards, eps=0.0), atol=1e-9, rtol=1e-9
    )


@quickly
@given(groups)
def test_each_groups_advantages_sum_to_zero_and_keep_the_rewards_order(rewards):
    advantages = group_advantages(rewards)
    assert advantages.sum(1).abs().max() < 1e-9
    for row, values in zip(rewards, advantages):
        for i, j in itertools.combinations(range(len(row)), 2):
            assert (row[i] > row[j]) == (values[i] > values[j])


@quickly
@given(groups)
def test_a_group_knows_nothing_of_the_others(rewards):
    together = group_advantages(rewards)
    alone = torch.cat([group_advantages(row[None]) for row in rewards])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", ["GRPO", "DrGRPO", "DAPO", "GSPO", "CISPO", "SAPO", "ScalingGRPO", "RLOO"])
def test_a_method_that_compares_answers_is_not_made_with_a_group_of_one(name):
    with pytest.raises(ValueError, match=f"{name} with group_size=1: it needs at least 2 responses a prompt"):
        getattr(rlcourse.methods, name)(group_size=1)


@pytest.mark.parametrize(
    ("name", "setting", "value", "range_"),
    [
        ("GRPO", "clip", -1.0, "0 or more"), ("GRPO", "clip", NAN, "0 or more"),
        ("DAPO", "clip_high", NAN, "0 or more"),
        ("PPO", "lam", 1.5, "from 0 to 1"), ("PPO", "beta", -0.1, "0 or more"), ("VAPO", "alpha", 0.0, "positive"),
        ("PPO", "entropy_bonus", NAN, "a number"), ("PPO", "critic_lr", 0.0, "positive"),
        ("VCPPO", "pretrain", -1, "0 or more"), ("REINFORCE", "gamma", NAN, "from 0 to 1"),
        ("OnlineDPO", "beta", NAN, "0 or more"), ("SAPO", "tau_positive", 0.0, "positive"),
        ("GRPO", "epochs", 0, "1 or more"), ("DPO", "label_smoothing", 2.0, "from 0 to 1"),
        ("IPO", "beta", 0.0, "positive"), ("KTO", "desirable_weight", -1.0, "0 or more"),
        ("BradleyTerry", "margin", NAN, "a number"),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_said_when_the_method_is_made(name, setting, value, range_):
    with pytest.raises(ValueError, match=f"{name} with {setting}={value}: .*{range_}"):
        getattr(rlcourse.methods, name)(**{setting: value})


def test_a_correction_is_checked_too():
    with pytest.raises(ValueError, match="TIS with cap=0.0: that is positive"):
        rlcourse.methods.TIS(GRPO(), cap=0.0)


def test_a_group_of_one_is_an_error_that_says_why():
    with pytest.raises(ValueError, match="at least 2 responses a prompt"):
        group_advantages(tensor([[1.0], [0.0]]))


# ---- GRPO's loss

# Lengths 2 and 1, garbage behind. Old log-probs -1, clip 0.2.
#   row 1, A = +1: ratio 1.5 -> -1.2 (clipped: no gradient);  ratio 0.5 -> -0.5 (gradient -0.5)
#   row 2, A = -2: ratio 1.5 -> +3.0 (gradient +3)
# Mean of the rows' means: ((-1.2 - 0.5)/2 + 3.0)/2 = 1.075.  (The mean over tokens would be 0.4333.)
# A token of row 1 counts 1/(2 * 2), the token of row 2 counts 1/2: gradients 0, -0.125, 1.5.
MASK = mask_of([2, 1])
OLD = tensor([[-1.0, -1.0], [-1.0, NAN]])
LOGP = tensor([[-1 + math.log(1.5), -1 + math.log(0.5)], [-1 + math.log(1.5), INF]])
ADVANTAGES = tensor([1.0, -2.0])


def test_grpo_loss_and_gradient_by_hand():
    loss, grad = value_and_gradient(lambda x: grpo_loss(x, OLD, ADVANTAGES, MASK), LOGP)
    assert loss.item() == pytest.approx(1.075, abs=1e-6)
    torch.testing.assert_close(grad, tensor([[0.0, -0.125], [1.5, 0.0]]))


def test_the_clip_is_the_one_given():
    # clip 0.6: ratios 1.5 and 0.5 are inside; ((-1.5 - 0.5)/2 + 3)/2 = 1
    loss = grpo_loss(LOGP, OLD, ADVANTAGES, MASK, clip=0.6)
    assert loss.item() == pytest.approx(1.0, abs=1e-6)


def test_the_kl_penalty_by_hand():
    # d = logp - ref = ln 2 everywhere: k3 = 1/2 - 1 + ln 2 = 0.1931472, its slope 1 - exp(-d) = 1/2.
    # beta 0.1: the loss grows by 0.01931472, the gradients by 0.1 * 0.5 times the tokens' 1/4, 1/4, 1/2.
    loss, grad = value_and_gradient(
        lambda x: grpo_loss(x, OLD, ADVANTAGES, MASK, ref_logp=LOGP - math.log(2), beta=0.1), LOGP
    )
    assert loss.item() == pytest.approx(1.075 + 0.0193147, abs=1e-6)
    torch.testing.assert_close(grad, tensor([[0.0125, -0.125 + 0.0125], [1.5 + 0.025, 0.0]]))


def test_kl_moves_the_policy_even_where_every_advantage_is_zero():
    _, grad = value_and_gradient(
        lambda x: grpo_loss(x, x.detach(), torch.zeros(2), MASK, ref_logp=LOGP - math.log(2), beta=0.1), LOGP
    )
    torch.testing.assert_close(grad, tensor([[0.0125, 0.0125], [0.025, 0.0]]))


def test_given_weights_replace_the_papers():
    # token mean: (-1.2 - 0.5 + 3) / 3
    loss = grpo_loss(LOGP, OLD, ADVANTAGES, MASK, weights=token_weights(MASK, "token"))
    assert loss.item() == pytest.approx(1.3 / 3, abs=1e-6)


def test_on_policy_the_loss_is_zero_and_its_gradient_is_not():
    # A = +0.8, -0.8 sum to zero, every ratio is 1, every answer counts 1/2: -(0.8 - 0.8)/2 = 0.
    # The gradients are -A/(2 * length): -0.2 on two tokens, +0.4 on one.
    logp, mask = tensor([[-1.0, -2.0], [-0.5, 0.0]]), mask_of([2, 1])
    advantages = tensor([0.8, -0.8])
    loss, grad = value_and_gradient(lambda x: grpo_loss(x, logp, advantages, mask), logp)
    assert loss.item() == 0
    torch.testing.assert_close(grad, tensor([[-0.2, -0.2], [0.4, 0.0]]))


def test_on_policy_the_loss_under_token_weights_is_not_zero():
    # two tokens at -0.8 and one at +0.8, over three: -0.2667
    logp, mask = tensor([[-1.0, -2.0], [-0.5, 0.0]]), mask_of([2, 1])
    loss = grpo_loss(logp, logp, tensor([0.8, -0.8]), mask, weights=token_weights(mask, "token"))
    assert loss.item() == pytest.approx(-0.8 / 3, abs=1e-6)


@quickly
@given(ragged, seeds)
def test_at_ratio_one_grpo_has_the_plain_policy_gradient(mask, seed):
    logp, _, _, advantages = drawn(mask, seed)
    _, grpo = value_and_gradient(lambda x: grpo_loss(x, logp, advantages, mask), logp)
    _, plain = value_and_gradient(
        lambda x: aggregate(reinforce_per_token(x, advantages), mask, "sequence"), logp
    )
    torch.testing.assert_close(grpo, plain)


@quickly
@given(ragged, seeds, st.sampled_from(GARBAGE), st.sampled_from([0.0, 0.1]))
def test_garbage_behind_the_mask_changes_neither_loss_nor_gradient(mask, seed, garbage, beta):
    logp, old, ref, advantages = drawn(mask, seed)
    weights = token_weights(mask, "sequence").double()
    clean, clean_grad = value_and_gradient(
        lambda x: grpo_loss(x, old, advantages, mask, ref_logp=ref, beta=beta, weights=weights), logp
    )
    logp, old, ref, weights = (x.masked_fill(~mask, garbage) for x in (logp, old, ref, weights))
    dirty, dirty_grad = value_and_gradient(
        lambda x: grpo_loss(x, old, advantages, mask, ref_logp=ref, beta=beta, weights=weights), logp
    )
    assert torch.equal(clean, dirty) and torch.equal(clean_grad, dirty_grad)
    assert dirty_grad[~mask].eq(0).all()


@quickly
@given(ragged, seeds, st.sampled_from([NAN, INF, 1e30]))
def test_an_empty_row_is_no_sequence_and_its_advantage_may_be_garbage(mask, seed, garbage):
    logp, old, _, advantages = drawn(mask, seed)
    loss = grpo_loss(logp, old, advantages, mask)
    more = [torch.cat([x, torch.full((1, x.shape[1]), garbage, dtype=x.dtype)]) for x in (logp, old)]
    more_mask = torch.cat([mask, torch.zeros(1, mask.shape[1], dtype=torch.bool)])
    more_advantages = torch.cat([advantages, tensor([garbage], dtype=torch.float64)])
    torch.testing.assert_close(grpo_loss(*more, more_advantages, more_mask), loss)


@quickly
@given(ragged, seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_answers_does_not_matter(mask, seed, rng):
    logp, old, ref, advantages = drawn(mask, seed)
    order = list(range(len(mask)))
    rng.shuffle(order)
    loss, grad = value_and_gradient(
        lambda x: grpo_loss(x, old, advantages, mask, ref_logp=ref, beta=0.1), logp
    )
    shuffled, shuffled_grad = value_and_gradient(
        lambda x: grpo_loss(x, old[order], advantages[order], mask[order], ref_logp=ref[order], beta=0.1),
        logp[order],
    )
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(shuffled_grad, grad[order])


@quickly
@given(
    ragged, seeds, st.integers(1, 4), st.sampled_from([("token", None), ("sequence", None), ("constant", 9)])
)
def test_grpo_micro_batches_add_up_under_every_denominator(mask, seed, size, denominator):
    logp, old, ref, advantages = drawn(mask, seed)
    weights = token_weights(mask, *denominator)

    def loss_of(x, rows):
        return grpo_loss(
            x[rows],
            old[rows],
            advantages[rows],
            mask[rows],
            ref_logp=ref[rows],
            beta=0.1,
            weights=weights[rows],
        )

    whole, whole_grad = value_and_gradient(lambda x: loss_of(x, slice(None)), logp)
    starts = range(0, len(mask), size)
    parts, parts_grad = value_and_gradient(
        lambda x: sum(loss_of(x, slice(s, s + size)) for s in starts), logp
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(parts_grad, whole_grad)


def test_only_logp_carries_gradient_through_the_grpo_loss():
    logp, old, ref = (x.clone().requires_grad_() for x in (LOGP, OLD, LOGP - math.log(2)))
    advantages = ADVANTAGES.clone().requires_grad_()
    grpo_loss(logp, old, advantages, MASK, ref_logp=ref, beta=0.1).backward()
    assert logp.grad.abs().max() > 0.1
    assert old.grad is None and ref.grad is None and advantages.grad is None


def test_a_penalty_without_a_reference_is_an_error_that_says_what_is_missing():
    with pytest.raises(ValueError, match="beta=0.1.*needs ref_logp"):
        grpo_loss(LOGP, OLD, ADVANTAGES, MASK, beta=0.1)


def test_a_step_without_a_token_is_an_error():
    with pytest.raises(ValueError, match="no response token"):
        grpo_loss(LOGP, OLD, ADVANTAGES, torch.zeros_like(MASK))


# ---- the GRPO object is the same formula


def test_the_grpo_object_needs_a_reference_only_for_its_penalty():
    assert "ref_logp" in GRPO(beta=0.04).needs
    assert "ref_logp" not in GRPO().needs


def test_the_grpo_object_compares_each_answer_with_its_own_prompts_answers():
    # rows of one prompt stand together: (1, 0) and (5, 5). Read by columns they would be (1, 5) and (0, 5).
    rollout = rollout_of(tensor([[1.0, 0.0], [5.0, 5.0]]), mask_of([1, 1, 1, 1]))
    # 1, 0: deviation sqrt(1/2) = 0.7071068; 0.5 / 0.7072068 = 0.7070068
    found = GRPO(group_size=2).advantages(rollout, {})
    torch.testing.assert_close(found, tensor([0.7070068, -0.7070068, 0.0, 0.0]))
    assert GRPO(group_size=2, scale=False).advantages(rollout, {}).tolist() == [0.5, -0.5, 0, 0]


@quickly
@given(ragged, seeds, st.sampled_from([0.0, 0.1]))
def test_the_grpo_object_computes_the_grpo_loss(mask, seed, beta):
    logp, old, ref, advantages = drawn(mask, seed)
    method = GRPO(beta=beta, clip=0.3)
    batch = rollout_of(torch.zeros(len(mask), 1), mask, logp=logp, advantages=advantages)
    batch = dataclasses.replace(batch, old_logp=old, ref_logp=ref)
    per_token, metrics = method.loss(batch, {})
    found = (per_token * method.weights(SimpleNamespace(mask=mask))).sum()
    torch.testing.assert_close(found, grpo_loss(logp, old, advantages, mask, 0.3, ref, beta))
    expected = clip_active(logp, old, advantages, 0.3, 0.3).float()
    assert torch.equal(only(metrics["clip_fraction"], mask), only(expected, mask))


def test_per_token_losses_behind_the_mask_are_zero():
    found = grpo_per_token(LOGP, OLD, ADVANTAGES, MASK, ref_logp=LOGP - math.log(2), beta=0.1)
    assert found[~MASK].tolist() == [0.0]
