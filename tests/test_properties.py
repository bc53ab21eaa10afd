"""What must hold for every method and every batch: identities, masks, order, micro-batches.

The identities are those that readers are asked about. The rest is what makes a loss safe to use,
and is asked of all losses and of all method objects alike: a method that is added must be entered
in LOSSES or METHODS, and is then asked too.
"""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

import rlcourse.methods
from rlcourse.lm import Rollout
from rlcourse.methods import (
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    PPO,
    REINFORCE,
    RLOO,
    SAPO,
    TIS,
    VAPO,
    VCPPO,
    DrGRPO,
    OnlineDPO,
    ReMax,
    RoutingReplay,
    ScalingGRPO,
)
from rlcourse.methods.cispo import cispo_loss
from rlcourse.methods.corrections import truncated_importance_weights
from rlcourse.methods.dapo import dapo_loss, informative_groups, soft_overlong_penalty
from rlcourse.methods.dr_grpo import dr_grpo_loss
from rlcourse.methods.grpo import group_advantages, grpo_loss
from rlcourse.methods.gspo import gspo_loss, gspo_token_loss, log_sequence_ratio, log_token_ratio
from rlcourse.methods.offline import OfflineMethod
from rlcourse.methods.ppo import (
    adapted_beta,
    clip_active,
    clipped_surrogate,
    explained_variance,
    gae,
    kl_shaped_rewards,
    value_loss,
)
from rlcourse.methods.reinforce import last_token, reinforce_per_token, reward_to_go
from rlcourse.methods.remax import remax_advantages
from rlcourse.methods.rloo import leave_one_out_advantages
from rlcourse.methods.sapo import sapo_loss
from rlcourse.methods.scaling_grpo import off_policy_sequences, unbiased_kl
from rlcourse.methods.vapo import length_adaptive_lambda
from rlcourse.tensors import aggregate, only, token_weights, whiten

NAN, INF = math.nan, math.inf
GARBAGE = [NAN, INF, -INF, 1e30, -1e30]
HOW = [("token", None), ("sequence", None), ("constant", 9)]
quickly = settings(max_examples=25, deadline=None)  # a busy machine is no failure
for_each_method = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 10_000)


def mask_of(lengths, width=None):
    """Right-padded: row i is true on its first lengths[i] positions."""
    return torch.arange(width or max(lengths))[None] < tensor(lengths)[:, None]


def rows(shortest, fewest=1):
    """Masks of some rows with shortest to 5 tokens each; at least two tokens in all."""
    lengths = st.lists(st.integers(shortest, 5), min_size=fewest, max_size=6)
    return lengths.filter(lambda n: sum(n) >= 2).map(mask_of)


ragged = rows(shortest=0)
no_row_empty = rows(shortest=1)
groups = (
    st.integers(2, 6)
    .flatmap(
        lambda G: st.lists(st.lists(st.integers(-20, 20), min_size=G, max_size=G), min_size=1, max_size=4)
    )
    .map(lambda rewards: tensor(rewards, dtype=torch.float64))
)


def drawn(mask, seed, spread=0.4):
    """Likely inputs, with ratios well outside the usual clips among them: everything that some loss reads."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -3 * torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    return {
        "logp": old + spread * noise(*mask.shape),
        "old_logp": old,
        "ref_logp": old + spread * noise(*mask.shape),
        "engine_logp": old + spread * noise(*mask.shape),
        "advantages": noise(len(mask)),
        "rewards": noise(*mask.shape),
        "scores": noise(len(mask)),
        "values": noise(*mask.shape),
        "old_values": noise(*mask.shape),
        "returns": noise(*mask.shape),
    }


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    (grad,) = torch.autograd.grad(y, x)
    return y.detach(), grad


def same(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-7)  # token weights are float32


def behind(mask, garbage, d):
    """Garbage wherever the mask is false; and for a row with no token at all, in what is given a row."""
    empty = ~mask.any(1)
    return {name: x.masked_fill(~mask if x.dim() == 2 else empty, garbage) for name, x in d.items()}


# ---- the losses, each as a function of what learns and of the rest

LOSSES = {
    "grpo": lambda x, d, mask, **k: grpo_loss(
        x, d["old_logp"], d["advantages"], mask, ref_logp=d["ref_logp"], beta=0.1, **k
    ),
    "dr_grpo": lambda x, d, mask, **k: dr_grpo_loss(x, d["old_logp"], d["advantages"], mask, 9, **k),
    "dapo": lambda x, d, mask, **k: dapo_loss(x, d["old_logp"], d["advantages"], mask, **k),
    "gspo": lambda x, d, mask, **k: gspo_loss(x, d["old_logp"], d["advantages"], mask, 0.1, 0.15, **k),
    "gspo_token": lambda x, d, mask, **k: gspo_token_loss(
        x, d["old_logp"], d["advantages"], mask, 0.1, 0.15, **k
    ),
    "cispo": lambda x, d, mask, **k: cispo_loss(x, d["old_logp"], d["advantages"], mask, 0.5, 0.5, **k),
    "sapo": lambda x, d, mask, **k: sapo_loss(x, d["old_logp"], d["advantages"], mask, **k),
}
CRITIC = {
    "value": lambda x, d, mask: value_loss(x, d["old_values"], d["returns"], mask, 0.2),
    "value, no clip": lambda x, d, mask: value_loss(x, d["old_values"], d["returns"], mask, None),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
all_and_the_critics = pytest.mark.parametrize("name", [*LOSSES, *CRITIC])
any_loss = LOSSES | CRITIC


def learns(name, d):
    return d["logp"] if name in LOSSES else d["values"]


# ---- identities: advantages


@quickly
@given(groups)
def test_rloo_is_the_centred_reward_times_g_over_g_minus_1(rewards):
    G = rewards.shape[1]
    torch.testing.assert_close(
        leave_one_out_advantages(rewards), G / (G - 1) * group_advantages(rewards, scale=False)
    )


@quickly
@given(groups)
def test_rloo_is_remax_with_the_mean_of_the_others_for_the_greedy_answer(rewards):
    others = [[[r for j, r in enumerate(row) if j != i] for i in range(len(row))] for row in rewards.tolist()]
    baseline = tensor(others, dtype=torch.float64).mean(-1)
    torch.testing.assert_close(leave_one_out_advantages(rewards), remax_advantages(rewards, baseline))


@quickly
@given(groups, st.integers(-1000, 1000), st.floats(0.5, 100))
def test_rloo_ignores_a_shift_and_follows_the_scale(rewards, shift, factor):
    torch.testing.assert_close(
        leave_one_out_advantages(factor * (rewards + shift)),
        factor * leave_one_out_advantages(rewards),
        atol=1e-8,
        rtol=1e-8,
    )


@quickly
@given(groups, st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_grpo_ignores_a_shift_exactly_and_the_scale_up_to_eps(rewards, shift, factor):
    same([group_advantages(rewards + shift)], [group_advantages(rewards)])
    same([group_advantages(rewards * factor, eps=0.0)], [group_advantages(rewards, eps=0.0)])
    # with eps, a scale f is a shrinkage by (std + eps) / (std + eps / f)
    std = rewards.std(1, keepdim=True)
    shrunk = group_advantages(rewards) * (std + 1e-4) / (std + 1e-4 / factor)
    same([group_advantages(rewards * factor)], [shrunk])


@pytest.mark.parametrize("advantages", [leave_one_out_advantages, group_advantages])
@pytest.mark.parametrize("reward", [0.7, 0.1, -3.3, 1e6])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_a_tied_group_has_exactly_no_advantage(advantages, reward, size):
    assert advantages(torch.full((1, size), reward)).tolist() == [[0.0] * size]


@pytest.mark.parametrize("advantages", [leave_one_out_advantages, group_advantages])
def test_a_group_of_one_is_an_error(advantages):
    with pytest.raises(ValueError, match="at least 2 responses a prompt"):
        advantages(tensor([[1.0], [0.0]]))


@quickly
@given(groups)
def test_informative_groups_are_those_whose_best_and_worst_differ(rewards):
    correct = rewards > 0
    assert torch.equal(informative_groups(correct), correct.amax(1) > correct.amin(1))
    # and they are the ones that have an advantage to give
    given = group_advantages(correct.double()).abs().sum(1) > 0
    assert torch.equal(informative_groups(correct), given)


# ---- identities: losses


@quickly
@given(st.integers(1, 6), seeds)
def test_gspo_is_grpo_where_answers_have_one_token(B, seed):
    mask = mask_of([1] * B)
    d = drawn(mask, seed)
    grpo = value_and_gradient(lambda x: grpo_loss(x, d["old_logp"], d["advantages"], mask, 0.2), d["logp"])
    for gspo in (gspo_loss, gspo_token_loss):
        found = value_and_gradient(
            lambda x, gspo=gspo: gspo(x, d["old_logp"], d["advantages"], mask, 0.2, 0.2), d["logp"]
        )
        same(found, grpo)


def test_gspo_is_not_grpo_where_they_have_two():
    # ratios 2 and 1/2, advantage 1, nothing clipped: GRPO's mean is 1.25, the geometric mean 1
    logp, old, mask = tensor([[2.0, 0.5]]).log(), torch.zeros(1, 2), mask_of([2])
    assert grpo_loss(logp, old, tensor([1.0]), mask, 9.0).item() == pytest.approx(-1.25)
    assert gspo_loss(logp, old, tensor([1.0]), mask, 9.0, 9.0).item() == pytest.approx(-1.0)


@quickly
@given(ragged, seeds, st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_gspo_token_is_gspo_where_an_answer_has_one_advantage(mask, seed, low, high):
    d = drawn(mask, seed)
    same(
        value_and_gradient(
            lambda x: gspo_token_loss(x, d["old_logp"], d["advantages"], mask, low, high), d["logp"]
        ),
        value_and_gradient(
            lambda x: gspo_loss(x, d["old_logp"], d["advantages"], mask, low, high), d["logp"]
        ),
    )


@quickly
@given(ragged, seeds)
def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens(mask, seed):
    d = drawn(mask, seed)
    found = log_sequence_ratio(d["logp"], d["old_logp"], mask)
    for row in range(len(mask)):
        log_ratios = (d["logp"] - d["old_logp"])[row][mask[row]].tolist()
        expected = math.prod(math.exp(x) for x in log_ratios) ** (1 / max(len(log_ratios), 1))
        assert found[row].exp().item() == pytest.approx(expected)


@quickly
@given(st.integers(1, 5), st.integers(1, 6), st.integers(5, 20), seeds)
def test_dr_grpo_is_grpo_times_length_over_max_length_where_lengths_are_equal(length, B, max_length, seed):
    """For the same advantages. The constant is length / max_length: Dr. GRPO's step is shorter by it."""
    mask = mask_of([length] * B)
    d = drawn(mask, seed)
    grpo = value_and_gradient(lambda x: grpo_loss(x, d["old_logp"], d["advantages"], mask), d["logp"])
    dr_grpo = value_and_gradient(
        lambda x: dr_grpo_loss(x, d["old_logp"], d["advantages"], mask, max_length), d["logp"]
    )
    same(dr_grpo, [length / max_length * x for x in grpo])


@quickly
@given(ragged, seeds, st.floats(0.01, 0.5))
def test_dapo_is_grpo_with_a_token_mean_where_the_clips_are_equal(mask, seed, clip):
    d = drawn(mask, seed)
    weights = token_weights(mask, "token")
    same(
        value_and_gradient(
            lambda x: dapo_loss(x, d["old_logp"], d["advantages"], mask, clip, clip), d["logp"]
        ),
        value_and_gradient(
            lambda x: grpo_loss(x, d["old_logp"], d["advantages"], mask, clip, weights=weights), d["logp"]
        ),
    )


@quickly
@given(no_row_empty, seeds)
def test_dapo_is_ppos_clip_with_a_token_mean(mask, seed):
    d = drawn(mask, seed)
    ppo = aggregate(
        clipped_surrogate(d["logp"], d["old_logp"], d["advantages"], 0.2, 0.28).masked_fill(~mask, 0),
        mask,
        "token",
    )
    same([dapo_loss(d["logp"], d["old_logp"], d["advantages"], mask)], [ppo])


@quickly
@given(ragged, seeds)
def test_cispo_has_the_gradient_of_the_ratio_where_its_weight_is_not_cut(mask, seed):
    d, far = drawn(mask, seed), 1e9
    _, cispo = value_and_gradient(
        lambda x: cispo_loss(x, d["old_logp"], d["advantages"], mask, 1.0, far), d["logp"]
    )
    _, ratio = value_and_gradient(
        lambda x: dapo_loss(x, d["old_logp"], d["advantages"], mask, far, far), d["logp"]
    )
    same([cispo], [ratio])


@quickly
@given(no_row_empty, seeds)
def test_cispo_cuts_the_weight_and_never_the_gradient(mask, seed):
    d = drawn(mask, seed, spread=2.0)
    _, grad = value_and_gradient(
        lambda x: cispo_loss(x, d["old_logp"], d["advantages"], mask, 0.2, 0.28), d["logp"]
    )
    per_token = (grad * mask.sum() / -d["advantages"][:, None])[mask]
    ratio = (d["logp"] - d["old_logp"]).exp()[mask]
    torch.testing.assert_close(per_token, ratio.clamp(0.8, 1.28), atol=1e-6, rtol=1e-6)


# ratio, advantage -> loss and its derivative by the log-prob. f(r) = 4 / tau * sigmoid(tau (r - 1)), slope
# 4 sigmoid (1 - sigmoid) r: at r = 1 sigmoid is 1/2, so f = 2 / tau and the slope 1.
#   r = 2, A = +1: sigmoid(1) = 0.7310586, f = 2.9242343, slope 4 * 0.7310586 * 0.2689414 * 2 = 1.5728954
#   r = 2, A = -1: sigmoid(1.05) = 0.7407749, f = 2.8219996, slope 4 * 0.7407749 * 0.2592251 * 2 = 1.5362201
SOFT_GATE = [(1.0, 1.0, -2.0, -1.0), (1.0, -1.0, 2 / 1.05, 1.0)]
SOFT_GATE += [(2.0, 1.0, -2.9242343, -1.5728954), (2.0, -1.0, 2.8219996, 1.5362201)]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), SOFT_GATE)
def test_the_soft_gate_by_hand(ratio, advantage, loss, slope):
    old, mask = tensor([[-1.0]]).double(), mask_of([1])
    found, grad = value_and_gradient(
        lambda x: sapo_loss(x, old, tensor([advantage]).double(), mask), old + math.log(ratio)
    )
    assert found.item() == pytest.approx(loss, abs=1e-6) and grad.item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo_token", "cispo", "sapo"])
@quickly
@given(ragged, seeds)
def test_one_advantage_an_answer_is_the_same_for_each_of_its_tokens(name, mask, seed):
    d = drawn(mask, seed)
    by_token = d | {"advantages": d["advantages"][:, None].expand(mask.shape)}
    same(
        value_and_gradient(lambda x: LOSSES[name](x, d, mask), d["logp"]),
        value_and_gradient(lambda x: LOSSES[name](x, by_token, mask), d["logp"]),
    )


@quickly
@given(ragged, seeds)
def test_unbiased_kl_is_k3_on_the_policys_own_samples_with_another_gradient(mask, seed):
    d = drawn(mask, seed)
    value, grad = value_and_gradient(lambda x: unbiased_kl(x, d["logp"], d["ref_logp"]).sum(), d["logp"])
    k3 = (d["ref_logp"] - d["logp"]).exp() - 1 + d["logp"] - d["ref_logp"]
    same([value], [k3.sum()])
    # through the ratio k3, through k3 itself 1 - exp(-d): together d
    same([grad], [d["logp"] - d["ref_logp"]])


@quickly
@given(ragged, seeds, st.floats(0, 1), st.floats(0, 1))
def test_only_bad_answers_are_dropped_and_more_of_them_the_smaller_delta_is(mask, seed, delta, other):
    d = drawn(mask, seed)
    inputs = (d["logp"], d["old_logp"], d["advantages"], mask)
    strict, lenient = (off_policy_sequences(*inputs, x) for x in sorted((delta, other)))
    assert not (lenient & ~strict).any()
    assert not strict[d["advantages"] >= 0].any()
    gap = only(d["old_logp"] - d["logp"], mask).sum(1) / mask.sum(1).clamp(min=1)
    expected = (d["advantages"] < 0) & (gap > min(delta, other))
    sure = (gap - min(delta, other)).abs() > 1e-6  # nearer, rounding decides
    assert torch.equal(strict[sure], expected[sure])


@quickly
@given(ragged, seeds, st.floats(0.5, 5))
def test_importance_weights_are_the_ratio_up_to_the_cap(mask, seed, cap):
    d = drawn(mask, seed)
    logp = d["logp"].requires_grad_()
    weights = truncated_importance_weights(logp, d["engine_logp"], cap)
    assert not weights.requires_grad
    same([weights], [(d["logp"].detach() - d["engine_logp"]).exp().clamp(max=cap)])


# ---- identities: rewards, GAE, the critic


@quickly
@given(no_row_empty, seeds, st.floats(0, 1))
def test_shaped_rewards_add_up_to_the_score_less_beta_times_the_answers_k1(mask, seed, beta):
    d = drawn(mask, seed)
    found = kl_shaped_rewards(d["scores"], d["logp"].requires_grad_(), d["ref_logp"], mask, beta)
    k1 = only(d["logp"] - d["ref_logp"], mask).sum(1)
    same([found.sum(1)], [(d["scores"] - beta * k1).detach()])
    assert not found.requires_grad and (found[~mask] == 0).all()


@quickly
@given(no_row_empty, seeds)
def test_the_score_is_paid_on_the_last_real_token(mask, seed):
    d = drawn(mask, seed)
    found = kl_shaped_rewards(d["scores"], d["logp"], d["ref_logp"], mask, 0.0)
    for row, length in enumerate(mask.sum(1)):
        assert found[row].nonzero().flatten().tolist() == [int(length) - 1]
        assert found[row, length - 1] == d["scores"][row]
    assert torch.equal(found != 0, last_token(mask))


@quickly
@given(ragged, seeds, st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_gae_is_the_discounted_sum_of_td_errors(mask, seed, gamma, lam):
    d = drawn(mask, seed)
    found, returns = gae(d["rewards"], d["values"], mask, gamma, lam)
    for row, length in enumerate(mask.sum(1).tolist()):
        r, v = d["rewards"][row].tolist(), [*d["values"][row].tolist()[:length], 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, length))
            assert found[row, t].item() == pytest.approx(expected, abs=1e-9)
            assert returns[row, t].item() == pytest.approx(expected + v[t], abs=1e-9)
    assert (found[~mask] == 0).all() and (returns[~mask] == 0).all()


@quickly
@given(ragged, seeds)
def test_each_answer_may_have_a_lambda_of_its_own(mask, seed):
    d = drawn(mask, seed)
    lam = torch.rand(len(mask), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    together = gae(d["rewards"], d["values"], mask, 0.9, lam)
    alone = [
        gae(d["rewards"][[i]], d["values"][[i]], mask[[i]], 0.9, lam[i].item()) for i in range(len(mask))
    ]
    same(together, [torch.cat(parts) for parts in zip(*alone)])


def test_nothing_that_gae_returns_carries_gradient():
    d, mask = drawn(mask_of([3, 2]), 0), mask_of([3, 2])
    advantages, returns = gae(d["rewards"].requires_grad_(), d["values"].requires_grad_(), mask, 0.9, 0.9)
    assert not advantages.requires_grad and not returns.requires_grad


@quickly
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=5), st.floats(0.001, 1.0))
def test_the_length_adaptive_lambda_remembers_alpha_times_the_length(lengths, alpha):
    found = length_adaptive_lambda(tensor(lengths), alpha)
    for lam, length in zip(found.tolist(), lengths):
        assert 0 <= lam <= 1
        # GAE's memory is 1 / (1 - lambda) tokens, never less than one
        assert 1 / (1 - lam) == pytest.approx(max(alpha * length, 1.0), rel=1e-2)


@quickly
@given(ragged, seeds, st.floats(0.05, 1.0))
def test_clipping_the_value_never_makes_its_loss_smaller(mask, seed, clip):
    d = drawn(mask, seed)
    inputs = (d["values"], d["old_values"], d["returns"], mask)
    assert value_loss(*inputs, clip) >= value_loss(*inputs, None)
    # where V has moved by less than the clip, it is the same
    near = d["old_values"] + 0.9 * clip * torch.tanh(d["values"])
    same([value_loss(near, *inputs[1:], clip)], [value_loss(near, *inputs[1:], None)])


# V, V when it was sampled, return -> loss and slope, clip 0.2. Half the squared error is (V - R)^2 / 2.
#   V = 3, R = 1:              (3 - 1)^2 / 2 = 2, slope V - R = 2;      old 3: not moved, nothing to clip
#   V = 1, old 0, R = 1:       V is right, but V kept near old is 0.2: (0.2 - 1)^2 / 2 = 0.32, and no slope
#   V = -1, old 0, R = 1:      4 / 2 = 2 beats (-0.2 - 1)^2 / 2 = 0.72: slope -2
VALUE = [(3.0, 3.0, 1.0, 2.0, 2.0), (1.0, 0.0, 1.0, 0.32, 0.0), (-1.0, 0.0, 1.0, 2.0, -2.0)]


@pytest.mark.parametrize(("value", "old", "target", "loss", "slope"), VALUE)
def test_the_value_loss_by_hand(value, old, target, loss, slope):
    # beside it a token that is right, and padding: the mean is over two tokens
    row = [tensor([[x, 5.0, NAN]]).double() for x in (value, old, target)]
    mask = mask_of([2], 3)
    found, grad = value_and_gradient(lambda x: value_loss(x, row[1], row[2], mask, 0.2), row[0])
    assert found.item() == pytest.approx(loss / 2)
    torch.testing.assert_close(grad, tensor([[slope / 2, 0.0, 0.0]]).double())


@quickly
@given(rows(shortest=0), seeds, st.floats(-5, 5))
def test_explained_variance_is_1_for_the_truth_and_0_for_its_mean(mask, seed, shift):
    d = drawn(mask, seed)
    assert explained_variance(d["returns"], d["returns"], mask) == pytest.approx(1.0)
    assert explained_variance(torch.full_like(d["values"], shift), d["returns"], mask) == pytest.approx(
        0.0, abs=1e-6
    )
    assert explained_variance(d["values"], d["returns"], mask) <= 1.0


@quickly
@given(st.floats(0.0, 50.0), st.floats(0.1, 10.0), st.integers(1, 1000))
def test_beta_rises_when_the_policy_is_too_far_and_falls_when_it_is_near(kl, target, n):
    beta = adapted_beta(0.05, kl, target, n, 10_000)
    assert (beta > 0.05) == (kl > target) or kl == pytest.approx(target)
    assert abs(beta / 0.05 - 1) <= 0.2 * n / 10_000 + 1e-12  # and never by more than a fifth of n / horizon


@quickly
@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 20))
def test_the_overlong_penalty_is_a_ramp_from_0_to_minus_1(lengths, cache, free):
    limit = cache + free
    for length, found in zip(lengths, soft_overlong_penalty(tensor(lengths), limit, cache).tolist()):
        if length <= free:
            assert found == 0
        elif length >= limit:
            assert found == -1
        else:
            assert found == pytest.approx(-(length - free) / cache)


# ---- every loss: masks, gradients, order, micro-batches


@all_and_the_critics
@quickly
@given(ragged, seeds, st.sampled_from(GARBAGE))
def test_garbage_behind_the_mask_changes_neither_loss_nor_gradient(name, mask, seed, garbage):
    d = drawn(mask, seed)
    clean = value_and_gradient(lambda x: any_loss[name](x, d, mask), learns(name, d))
    dirty = behind(mask, garbage, d)
    found = value_and_gradient(lambda x: any_loss[name](x, dirty, mask), learns(name, dirty))
    assert all(torch.equal(a, b) for a, b in zip(clean, found))
    assert found[1][~mask].eq(0).all()


@every_loss
@quickly
@given(ragged, seeds, st.sampled_from(GARBAGE))
def test_garbage_in_the_weights_and_in_advantages_of_tokens_matters_no_more(name, mask, seed, garbage):
    d = drawn(mask, seed)
    if name != "gspo":  # one ratio an answer: it has one advantage too
        d |= {"advantages": d["rewards"]}
    d |= {"weights": token_weights(mask, "token").double()}
    dirty = behind(mask, garbage, d)
    same(
        value_and_gradient(lambda x: LOSSES[name](x, dirty, mask, weights=dirty["weights"]), dirty["logp"]),
        value_and_gradient(lambda x: LOSSES[name](x, d, mask, weights=d["weights"]), d["logp"]),
    )


PER_TOKEN = {
    "reward_to_go": lambda d, mask: reward_to_go(d["rewards"], mask, 0.9),
    "kl_shaped_rewards": lambda d, mask: kl_shaped_rewards(d["scores"], d["logp"], d["ref_logp"], mask, 0.1),
    "gae's advantages": lambda d, mask: gae(d["rewards"], d["values"], mask, 0.9, 0.8)[0],
    "gae's returns": lambda d, mask: gae(d["rewards"], d["values"], mask, 0.9, 0.8)[1],
    "gae with a lambda a row": lambda d, mask: gae(
        d["rewards"], d["values"], mask, 0.9, length_adaptive_lambda(mask.sum(1), 0.4).double()
    )[0],
    "whiten": lambda d, mask: whiten(d["rewards"], mask),
    "log_token_ratio": lambda d, mask: only(log_token_ratio(d["logp"], d["old_logp"], mask), mask),
}


@pytest.mark.parametrize("name", PER_TOKEN)
@quickly
@given(ragged, seeds, st.sampled_from(GARBAGE))
def test_behind_the_mask_every_function_of_tokens_reads_nothing_and_says_0(name, mask, seed, garbage):
    d = drawn(mask, seed)
    found = PER_TOKEN[name](behind(mask, garbage, d), mask)
    assert torch.equal(found, PER_TOKEN[name](d, mask))
    assert found[~mask].eq(0).all()


@quickly
@given(ragged, seeds, st.sampled_from(GARBAGE))
def test_behind_the_mask_every_function_of_answers_reads_nothing(mask, seed, garbage):
    d = drawn(mask, seed)
    dirty = behind(mask, garbage, d)
    for function in (
        lambda d: log_sequence_ratio(d["logp"], d["old_logp"], mask)[mask.any(1)],
        lambda d: off_policy_sequences(d["logp"], d["old_logp"], d["advantages"], mask, 0.05)[mask.any(1)],
        lambda d: tensor(explained_variance(d["values"], d["returns"], mask)),
    ):
        assert torch.equal(function(dirty), function(d))


@pytest.mark.parametrize("name", PER_TOKEN)
@quickly
@given(ragged, seeds, st.integers(1, 3))
def test_more_padding_changes_no_function_of_tokens(name, mask, seed, more):
    d = drawn(mask, seed)
    wide = {
        n: torch.cat([x, x.new_full((len(x), more), NAN)], 1) if x.dim() == 2 else x for n, x in d.items()
    }
    wide_mask = torch.cat([mask, torch.zeros(len(mask), more, dtype=torch.bool)], 1)
    same([PER_TOKEN[name](wide, wide_mask)[:, : mask.shape[1]]], [PER_TOKEN[name](d, mask)])


@all_and_the_critics
def test_only_what_learns_carries_gradient(name):
    mask = mask_of([3, 1, 2])
    d = {n: x.requires_grad_() for n, x in drawn(mask, 0).items()}
    any_loss[name](learns(name, d), d, mask).backward()
    reached = {n for n, x in d.items() if x.grad is not None and x.grad.abs().max() > 0}
    assert reached == {"logp" if name in LOSSES else "values"}


@all_and_the_critics
@quickly
@given(ragged, seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_answers_does_not_matter(name, mask, seed, rng):
    d = drawn(mask, seed)
    order = rng.sample(range(len(mask)), len(mask))
    loss, grad = value_and_gradient(lambda x: any_loss[name](x, d, mask), learns(name, d))
    shuffled = {n: x[order] for n, x in d.items()}
    same(
        value_and_gradient(lambda x: any_loss[name](x, shuffled, mask[order]), learns(name, shuffled)),
        (loss, grad[order]),
    )


@every_loss
@pytest.mark.parametrize("how", HOW, ids=str)
@quickly
@given(ragged, seeds, st.integers(1, 4))
def test_a_loss_over_micro_batches_adds_up_under_every_denominator(name, how, mask, seed, size):
    d = drawn(mask, seed)
    weights = token_weights(mask, *how)

    def part(x, rows):
        return LOSSES[name](x[rows], {n: y[rows] for n, y in d.items()}, mask[rows], weights=weights[rows])

    starts = range(0, len(mask), size)
    same(
        value_and_gradient(lambda x: sum(part(x, slice(s, s + size)) for s in starts), d["logp"]),
        value_and_gradient(lambda x: part(x, slice(None)), d["logp"]),
    )


# ---- every method object, on a batch as `train` makes it

METHODS = {
    "REINFORCE": REINFORCE(),
    "REINFORCE, batch baseline, discount": REINFORCE(baseline="batch", gamma=0.9),
    "REINFORCE, running baseline": REINFORCE(baseline="running"),
    "ReMax": ReMax(),
    "RLOO": RLOO(group_size=2, beta=0.1),
    "PPO": PPO(entropy_bonus=0.01),
    "PPO, adaptive KL": PPO(target_kl=0.5, whiten=False, value_clip=None),
    "VCPPO": VCPPO(pretrain=0, beta=0.1),
    "VCPPO, pretraining": VCPPO(pretrain=50),
    "VAPO": VAPO(pretrain=0, group_size=2, alpha=0.5),
    "GRPO": GRPO(group_size=2, beta=0.1),
    "DrGRPO": DrGRPO(group_size=2, max_length=9),
    "DAPO": DAPO(group_size=2, overlong=0.5),
    "GSPO": GSPO(group_size=2, clip_low=0.1, clip_high=0.15),
    "GSPO, token": GSPO(group_size=2, clip_low=0.1, clip_high=0.15, token=True),
    "CISPO": CISPO(group_size=2, clip_low=0.5, clip_high=0.5),
    "SAPO": SAPO(group_size=2),
    "ScalingGRPO": ScalingGRPO(group_size=2, beta=0.1, delta=0.05),
    "TIS": TIS(GRPO(group_size=2), cap=1.2),
    "TIS of PPO": TIS(PPO(), cap=1.2),
    "OnlineDPO": OnlineDPO(),
    "RoutingReplay": RoutingReplay(GSPO(group_size=2)),
}
every_method = pytest.mark.parametrize("name", METHODS)
pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(2, 5)), min_size=1, max_size=4).map(
    lambda lengths: mask_of([n for pair in lengths for n in pair])
)  # two answers to each prompt, some of them empty
LEARNS = ("logp", "values", "entropy")  # in a batch these three carry gradient


def test_every_method_is_asked():
    kinds = {name: getattr(rlcourse.methods, name) for name in rlcourse.methods.__all__}
    online = {name for name, kind in kinds.items() if not issubclass(kind, OfflineMethod)}
    assert {type(method).__name__ for method in METHODS.values()} == online


def fresh_state():
    return {
        "beta": tensor(0.05),
        "steps": tensor(3.0),  # later than the first step, and earlier than the end of pretraining
        "baseline": tensor(0.3),
    }


def batch_of(mask, seed):
    """A rollout with everything that some method reads; `rewards` and `correct` of whole answers."""
    d = drawn(mask, seed)
    B, P = len(mask), len(mask) // 2
    return Rollout(
        prompts=[f"prompt {p}" for p in range(P)],
        prompt_tokens=torch.zeros(P, 1, dtype=torch.long),
        prompt_mask=torch.ones(P, 1, dtype=torch.bool),
        owner=torch.arange(P).repeat_interleave(2),
        tokens=torch.zeros(mask.shape, dtype=torch.long),
        mask=mask,
        finished=torch.ones(B, dtype=torch.bool),
        texts=[str(row) for row in range(B)],
        max_tokens=mask.shape[1],
        rewards=d["scores"],
        correct=d["scores"] > 0,
        greedy_rewards=d["scores"].roll(1),
        entropy=d["rewards"].abs(),
        **{n: d[n] for n in ("logp", "old_logp", "ref_logp", "engine_logp", "values", "old_values")},
    )


def judged(method, rollout, state):
    """Advantages as before the first update: the rollout's own log-probs and values are the old ones."""
    sampled = dataclasses.replace(
        rollout, logp=rollout.old_logp, values=rollout.old_values, metrics={}, returns=None
    )
    advantages = method.advantages(sampled, state)
    return dataclasses.replace(rollout, advantages=advantages, returns=sampled.returns)


def learned(method, rollout, state, size=None, how=None):
    """Loss and gradients of one optimizer step, taken in micro-batches of `size` rows."""
    leaves = {n: getattr(rollout, n).clone().requires_grad_() for n in LEARNS}
    rollout = dataclasses.replace(rollout, **leaves)
    rollout.weights = method.weights(rollout)
    if how:
        rollout.weights = token_weights(rollout.mask, *how)
    total, size = 0.0, size or len(rollout)
    for start in range(0, len(rollout), size):
        batch = rollout[start : start + size]
        per_token, _ = method.loss(batch, state)
        total = total + (per_token * batch.weights).sum()
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return [total.detach(), *grads]


def stepped(method, rollout, **how):
    state = fresh_state()
    return learned(method, judged(method, rollout, state), state, **how)


def test_these_batches_move_something():
    still = "VCPPO, pretraining"
    for name, method in METHODS.items():
        _, policy, critic, _ = stepped(method, batch_of(mask_of([3, 2, 1, 4]), 1))
        assert (policy.abs().max() > 1e-3) == (name != still), name
        assert (critic.abs().max() > 1e-3) == isinstance(getattr(method, "method", method), PPO), name


@every_method
@pytest.mark.parametrize("how", [None, *HOW], ids=str)
@settings(max_examples=5, deadline=None)
@given(pairs, seeds, st.integers(1, 5))
def test_micro_batches_add_up_to_the_step(name, how, mask, seed, size):
    rollout = batch_of(mask, seed)
    whole = stepped(METHODS[name], rollout, how=how)
    same(stepped(METHODS[name], rollout, how=how, size=size), whole)


@every_method
@for_each_method
@given(pairs, seeds, st.randoms(use_true_random=False))
def test_the_order_of_prompts_and_of_answers_does_not_matter(name, mask, seed, rng):
    rollout, P = batch_of(mask, seed), len(mask) // 2
    order = [2 * p + i for p in rng.sample(range(P), P) for i in rng.sample(range(2), 2)]
    loss, *grads = stepped(METHODS[name], rollout)
    same(stepped(METHODS[name], rollout[order]), [loss, *[grad[order] for grad in grads]])


@every_method
@for_each_method
@given(pairs, seeds, st.sampled_from(GARBAGE))
def test_garbage_behind_the_mask_does_not_reach_the_step(name, mask, seed, garbage):
    rollout = batch_of(mask, seed)
    dirty = {
        f.name: value.masked_fill(~mask, garbage)
        for f in dataclasses.fields(rollout)
        if torch.is_tensor(value := getattr(rollout, f.name))
        and value.is_floating_point()
        and value.dim() == 2
    }
    clean = stepped(METHODS[name], rollout)
    found = stepped(METHODS[name], dataclasses.replace(rollout, **dirty))
    same(found, clean)
    assert all(grad[~mask].eq(0).all() for grad in found[1:])


@every_method
def test_a_method_object_is_frozen(name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS[name].group_size = 3


# ---- one method is another with its addition taken out


def steps_alike(one, other, mask, seed):
    rollout = batch_of(mask, seed)
    same(stepped(one, copy.deepcopy(rollout)), stepped(other, rollout))


@quickly
@given(pairs, seeds)
def test_dapo_without_its_four_repairs_is_grpo(mask, seed):
    bare = DAPO(group_size=2, clip_high=0.2, dynamic_sampling=False, token_mean=False, overlong=0.0)
    steps_alike(bare, GRPO(group_size=2), mask, seed)
    assert bare.keep(batch_of(mask, seed)).all()


@quickly
@given(pairs, seeds)
def test_deepseeks_grpo_without_its_additions_is_grpo_without_the_std(mask, seed):
    bare = ScalingGRPO(group_size=2, beta=0.0, delta=INF, keep_routing=False)
    steps_alike(bare, GRPO(group_size=2, scale=False), mask, seed)


@quickly
@given(pairs, seeds)
def test_vc_ppo_with_one_lambda_and_no_pretraining_is_ppo(mask, seed):
    steps_alike(VCPPO(pretrain=0, critic_lam=0.9, lam=0.9, beta=0.05), PPO(lam=0.9, beta=0.05), mask, seed)


@quickly
@given(pairs, seeds)
def test_vapo_without_its_additions_is_vc_ppo_with_lambda_1(mask, seed):
    bare = VAPO(pretrain=0, alpha=1e12, clip_high=0.2, imitation=0.0)
    steps_alike(bare, VCPPO(pretrain=0, lam=1.0), mask, seed)


@quickly
@given(pairs, seeds)
def test_vapo_imitates_the_mean_token_of_the_right_answers(mask, seed):
    rollout = batch_of(mask, seed)
    _, with_it, *_ = stepped(VAPO(pretrain=0, imitation=0.1), copy.deepcopy(rollout))
    _, without, *_ = stepped(VAPO(pretrain=0, imitation=0.0), rollout)
    right = mask & rollout.correct[:, None]
    same([with_it - without], [-0.1 * right.double() / right.sum().clamp(min=1)])


@quickly
@given(pairs, seeds)
def test_a_discount_of_1_and_an_engine_that_agrees_change_nothing(mask, seed):
    steps_alike(REINFORCE(gamma=1.0 - 1e-15), REINFORCE(), mask, seed)
    agrees = batch_of(mask, seed)
    agrees.engine_logp = agrees.old_logp
    same(stepped(TIS(GRPO(group_size=2)), copy.deepcopy(agrees)), stepped(GRPO(group_size=2), agrees))


@quickly
@given(pairs, seeds, st.floats(0.2, 3.0))
def test_tis_weighs_each_token_by_its_truncated_ratio(mask, seed, cap):
    rollout = batch_of(mask, seed)
    _, plain, *_ = stepped(GRPO(group_size=2), copy.deepcopy(rollout))
    _, weighed, *_ = stepped(TIS(GRPO(group_size=2), cap=cap), rollout)
    weights = (rollout.old_logp - rollout.engine_logp).exp().clamp(max=cap)
    same([weighed], [plain * weights])


@quickly
@given(pairs, seeds)
def test_while_the_critic_is_pretrained_the_policy_stands_still(mask, seed):
    rollout = batch_of(mask, seed)
    _, policy, critic, _ = stepped(VCPPO(pretrain=50), copy.deepcopy(rollout))
    _, _, ppos_critic, _ = stepped(PPO(lam=1.0, beta=0.0), rollout)
    assert (policy == 0).all()
    same([critic], [ppos_critic])  # lambda 1: its targets are Monte Carlo returns


@quickly
@given(no_row_empty, seeds)
def test_the_clip_is_active_exactly_where_the_surrogate_has_no_slope(mask, seed):
    d = drawn(mask, seed)
    _, grad = value_and_gradient(
        lambda x: clipped_surrogate(x, d["old_logp"], d["advantages"], 0.2, 0.28).sum(), d["logp"]
    )
    assert torch.equal(clip_active(d["logp"], d["old_logp"], d["advantages"], 0.2, 0.28), grad == 0)


@quickly
@given(no_row_empty, seeds)
def test_reinforce_is_every_loss_at_ratio_1(mask, seed):
    """With the weights that the loss gives its tokens."""
    d = drawn(mask, seed)
    d |= {"old_logp": d["logp"], "ref_logp": d["logp"]}
    weights = token_weights(mask, "sequence")
    _, plain = value_and_gradient(
        lambda x: (only(reinforce_per_token(x, d["advantages"]), mask) * weights).sum(), d["logp"]
    )
    for loss in LOSSES.values():
        _, grad = value_and_gradient(lambda x, loss=loss: loss(x, d, mask, weights=weights), d["logp"])
        same([grad], [plain])
