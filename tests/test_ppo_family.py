"""Advantages and the critic's loss, by hand: REINFORCE's reward-to-go, ReMax, RLOO, PPO, VC-PPO, VAPO.

Every number is worked out in the comment beside it, not by the code under test.
"""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from test_methods import INF, NAN, mask_of, rollout_of, value_and_gradient
from torch import tensor

from rlcourse.methods import PPO, REINFORCE, RLOO, VAPO, VCPPO, ReMax
from rlcourse.methods.ppo import (
    adapted_beta,
    explained_variance,
    gae,
    kl_shaped_rewards,
    value_loss,
    value_per_token,
)
from rlcourse.methods.reinforce import last_token, reward_to_go
from rlcourse.methods.remax import remax_advantages
from rlcourse.methods.rloo import leave_one_out_advantages
from rlcourse.methods.vapo import length_adaptive_lambda
from rlcourse.tensors import whiten

close = torch.testing.assert_close

# ---- what is still to come


def test_reward_to_go_by_hand():
    # from the back: 4, -2 + 4 = 2, 1 + 2 = 3; at gamma 1/2: 4, -2 + 4/2 = 0, 1 + 0/2 = 1
    rewards, mask = tensor([[1.0, -2.0, 4.0], [3.0, NAN, INF]]), mask_of([3, 1])
    assert reward_to_go(rewards, mask).tolist() == [[3, 2, 4], [3, 0, 0]]
    assert reward_to_go(rewards, mask, gamma=0.5).tolist() == [[1, 0, 4], [3, 0, 0]]


def test_the_last_token_is_the_last_real_one_and_an_empty_row_has_none():
    assert last_token(mask_of([3, 1, 0])).tolist() == [
        [False, False, True],
        [True, False, False],
        [False] * 3,
    ]


def test_reinforce_with_a_discount_pays_early_tokens_less():
    # 4 on the last of three tokens, halved once a token: 1, 2, 4; -1 on the only token of the other
    rollout = rollout_of(tensor([[4.0], [-1.0]]), mask_of([3, 1]))
    assert REINFORCE(gamma=0.5).advantages(rollout, {}).tolist() == [[1, 2, 4], [-1, 0, 0]]


def test_the_running_baseline_remembers_earlier_steps_and_not_this_one():
    method = REINFORCE(baseline="running", memory=0.9)
    state, found = method.init(SimpleNamespace(device="cpu")), []
    # step means 0.5, 1, 0: the baseline is nothing, then 0.5, then 0.9 * 0.5 + 0.1 * 1 = 0.55
    for rewards in ([[1.0], [0.0]], [[1.0], [1.0]], [[0.0], [0.0]]):
        found.append(method.advantages(rollout_of(tensor(rewards), mask_of([1, 1])), state))
    close(torch.stack(found), tensor([[1.0, 0.0], [0.5, 0.5], [-0.55, -0.55]]))


def test_remax_subtracts_the_greedy_answers_reward():
    assert remax_advantages(tensor([1.0, 0.0, 0.5]), tensor(0.5)).tolist() == [0.5, -0.5, 0]
    # two prompts of two answers; the greedy ones earned 1 and 0.25
    found = remax_advantages(tensor([[1.0, 0.0], [0.5, 0.0]]), tensor([[1.0], [0.25]]))
    assert found.tolist() == [[0, -1], [0.25, -0.25]]
    rollout = rollout_of(tensor([[1.0], [0.0]]), mask_of([1, 1]), greedy_rewards=tensor([0.25, 0.5]))
    assert ReMax().advantages(rollout, {}).tolist() == [0.75, -0.5]


def test_rloo_by_hand():
    # 3 against the mean of 1, 1, 1: +2. A 1 against the mean of 3, 1, 1, which is 5/3: -2/3
    close(leave_one_out_advantages(tensor([[3.0, 1.0, 1.0, 1.0]])), tensor([[2.0, -2 / 3, -2 / 3, -2 / 3]]))
    assert leave_one_out_advantages(tensor([[1.0, 0.0], [0.7, 0.7]])).tolist() == [[1, -1], [0, 0]]


def test_rloos_kl_is_taken_off_the_reward_before_the_others_are_averaged():
    # summed k1: 2 + 1 = 3 and -1; at beta 0.1 the rewards 1 and 0.5 become 0.7 and 0.6; the garbage is no KL
    logp, ref = tensor([[-1.0, -1.0], [-2.0, NAN]]), tensor([[-3.0, -2.0], [-1.0, INF]])
    rollout = rollout_of(tensor([[1.0, 0.5]]), mask_of([2, 1]), logp=logp, ref_logp=ref)
    close(RLOO(group_size=2, beta=0.1).advantages(rollout, {}), tensor([0.1, -0.1]))


# ---- PPO: rewards and advantages


def test_kl_shaped_rewards_by_hand():
    # beta 0.1 times d = logp - ref: (0.5, -1, 0.25) costs (0.05, -0.1, 0.025), and the score 1 joins the last
    # token. The second answer was cut after two tokens, d = (2, 1): its score is on its last real token all the
    # same. The third is empty.
    logp = tensor([[-1.0, -2.0, -0.5], [-1.0, -1.0, NAN], [INF, NAN, NAN]])
    ref = tensor([[-1.5, -1.0, -0.75], [-3.0, -2.0, INF], [NAN, INF, NAN]])
    found = kl_shaped_rewards(tensor([1.0, -2.0, NAN]), logp, ref, mask_of([3, 2, 0]), beta=0.1)
    close(found, tensor([[-0.05, 0.1, 0.975], [-0.2, -2.1, 0.0], [0.0, 0.0, 0.0]]))


def test_a_shaped_reward_is_data():
    logp = tensor([[-1.0]]).requires_grad_()
    assert not kl_shaped_rewards(tensor([1.0]), logp, tensor([[-2.0]]), mask_of([1]), 0.1).requires_grad


# One reward of 1 on the last of three tokens, values 0.5, 0.8, 0.4 before them. With gamma 1 the TD errors are
#   delta_3 = 1 - 0.4 = 0.6    delta_2 = 0.4 - 0.8 = -0.4    delta_1 = 0.8 - 0.5 = 0.3
# The second answer is one token long: reward -1, value 0.25, so delta = -1.25. Garbage behind.
REWARDS = tensor([[0.0, 0.0, 1.0], [-1.0, NAN, INF]])
VALUES = tensor([[0.5, 0.8, 0.4], [0.25, INF, NAN]])
MASK = mask_of([3, 1])


@pytest.mark.parametrize(
    ("gamma", "lam", "advantages", "returns"),
    [
        # A_3 = 0.6, A_2 = -0.4 + 0.6/2 = -0.1, A_1 = 0.3 - 0.1/2 = 0.25; returns A + V
        (1.0, 0.5, [[0.25, -0.1, 0.6], [-1.25, 0, 0]], [[0.75, 0.7, 1.0], [-1.0, 0, 0]]),
        # lambda 0 is the TD error alone; the target is the next value
        (1.0, 0.0, [[0.3, -0.4, 0.6], [-1.25, 0, 0]], [[0.8, 0.4, 1.0], [-1.0, 0, 0]]),
        # lambda 1 waits for the end: 1 - V; the target is what was paid
        (1.0, 1.0, [[0.5, 0.2, 0.6], [-1.25, 0, 0]], [[1.0, 1.0, 1.0], [-1.0, 0, 0]]),
        # gamma 1/2: deltas 0.2 - 0.8 = -0.6 and 0.4 - 0.5 = -0.1, and a memory of 1/4:
        # A_2 = -0.6 + 0.6/4 = -0.45, A_1 = -0.1 - 0.45/4 = -0.2125
        (0.5, 0.5, [[-0.2125, -0.45, 0.6], [-1.25, 0, 0]], [[0.2875, 0.35, 1.0], [-1.0, 0, 0]]),
    ],
)
def test_gae_by_hand(gamma, lam, advantages, returns):
    found = gae(REWARDS, VALUES, MASK, gamma, lam)
    close(found, (tensor(advantages), tensor(returns)))


def test_each_answer_may_have_its_own_lambda():
    rewards, values = REWARDS[:1].expand(2, 3), VALUES[:1].expand(2, 3)
    advantages, _ = gae(rewards, values, mask_of([3, 3]), 1.0, tensor([0.0, 1.0]))
    close(advantages, tensor([[0.3, -0.4, 0.6], [0.5, 0.2, 0.6]]))


def ppo_rollout(**fields):
    fields = {"values": VALUES, **fields}
    return rollout_of(tensor([[1.0], [-1.0]]), MASK, **fields)


NO_KL = {"beta": tensor(0.0), "steps": tensor(0.0)}


def test_ppo_whitens_the_advantages_and_not_the_returns():
    # 0.25, -0.1, 0.6, -1.25 have mean -0.125; squares of what is left 0.140625, 0.000625, 0.525625, 1.265625 add
    # up to 1.9325, over 3: variance 0.6441667, deviation 0.8026. 0.375, 0.025, 0.725, -1.125 divided by it:
    rollout = ppo_rollout()
    advantages = PPO(beta=0.0, lam=0.5).advantages(rollout, dict(NO_KL))
    by_hand = [[0.4672315, 0.0311488, 0.9033143], [-1.4016946, 0.0, 0.0]]
    close(advantages, tensor(by_hand), atol=1e-6, rtol=0)
    close(rollout.returns, tensor([[0.75, 0.7, 1.0], [-1.0, 0.0, 0.0]]))
    plain = PPO(beta=0.0, lam=0.5, whiten=False).advantages(ppo_rollout(), dict(NO_KL))
    close(plain, tensor([[0.25, -0.1, 0.6], [-1.25, 0.0, 0.0]]))


def test_whitening_without_the_shift_keeps_the_mean():
    # 1 and 3 (garbage behind): mean 2, deviation sqrt(2): -0.7071068 and 0.7071068, plus 2
    x, mask = tensor([[1.0, 3.0, NAN]]), mask_of([2], width=3)
    close(whiten(x, mask), tensor([[-0.7071068, 0.7071068, 0.0]]))
    close(whiten(x, mask, shift_mean=False), tensor([[1.2928932, 2.7071068, 0.0]]))


def test_ppo_pays_the_score_less_the_kl_of_each_token():
    # beta 0.1; log-ratios (1, 0, -1) and 2: rewards (-0.1, 0, 1.1) and -1.2. With no values and lambda 1 the
    # advantage is what is still to come: 1.0, 1.1, 1.1 and -1.2.
    logp = tensor([[-1.0, -1.0, -2.0], [-1.0, NAN, NAN]])
    ref = tensor([[-2.0, -1.0, -1.0], [-3.0, INF, NAN]])
    rollout = ppo_rollout(values=torch.zeros(2, 3), logp=logp, ref_logp=ref)
    found = PPO(beta=0.1, lam=1.0, whiten=False).advantages(rollout, {"beta": tensor(0.1)})
    close(found, tensor([[1.0, 1.1, 1.1], [-1.2, 0.0, 0.0]]))


# ---- PPO: losses

# Old value 1 and clip 0.2, three tokens:
#   V 1.5, return 2: error 0.25, but kept within 0.2 of the old value V is 1.2 and its error 0.64: that counts,
#                    and moving V does not change it
#   V 1.5, return 1: error 0.25, kept near 0.04: 0.25 counts; slope of half the square: 0.5
#   V 1.1, return 2: within reach of the old value, error 0.81; slope -0.9
# Half the mean: (0.64 + 0.25 + 0.81)/6 = 1.7/6; slopes over 3. Without the clip (0.25 + 0.25 + 0.81)/6.
NEW, PAID, SHORT = tensor([[1.5, 1.5], [1.1, NAN]]), tensor([[2.0, 1.0], [2.0, INF]]), mask_of([2, 1])
BEFORE = tensor([[1.0, 1.0], [1.0, INF]])


def test_the_clipped_value_loss_by_hand():
    loss, grad = value_and_gradient(lambda v: value_loss(v, BEFORE, PAID, SHORT, clip=0.2), NEW)
    assert loss.item() == pytest.approx(1.7 / 6)
    close(grad, tensor([[0.0, 0.5 / 3], [-0.3, 0.0]]))


def test_the_value_loss_without_a_clip_by_hand():
    loss, grad = value_and_gradient(lambda v: value_loss(v, BEFORE, PAID, SHORT, clip=None), NEW)
    assert loss.item() == pytest.approx(1.31 / 6)
    close(grad, tensor([[-0.5 / 3, 0.5 / 3], [-0.3, 0.0]]))


def test_returns_and_old_values_are_targets_and_no_path_for_gradient():
    old, returns = (tensor([[1.0]]).requires_grad_() for _ in range(2))
    assert not value_per_token(tensor([[2.0]]), old, returns, 0.2).requires_grad


def test_ppos_loss_is_the_surrogate_plus_vf_times_the_value_loss_less_the_entropy_bonus():
    # ratio 1.5, A = 2: clipped at 1.2, -2.4. Value 1.5, return and old value 1, no clip: half of 0.25 is 0.125,
    # times 0.1. Entropy 0.7 times 0.01.  -2.4 + 0.0125 - 0.007 = -2.3945
    one = mask_of([1])
    batch = dataclasses.replace(
        rollout_of(tensor([[0.0]]), one, logp=tensor([[-1.0 + math.log(1.5)]])),
        old_logp=tensor([[-1.0]]),
        advantages=tensor([[2.0]]),
        values=tensor([[1.5]]),
        old_values=tensor([[1.0]]),
        returns=tensor([[1.0]]),
        entropy=tensor([[0.7]]),
    )
    per_token, metrics = PPO(entropy_bonus=0.01, value_clip=None).loss(batch, {})
    close(per_token, tensor([[-2.3945]]))
    assert metrics["value_loss"].tolist() == [[0.125]] and metrics["clip_fraction"].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("kl", "beta"),
    [
        (6.0, 0.05),  # on target
        (6.6, 0.050128),  # a tenth too far, 256 of 10,000 answers: times 1 + 0.1 * 0.0256
        (60.0, 0.050256),  # ten times too far counts as a fifth: times 1 + 0.2 * 0.0256
        (0.0, 0.049744),  # and so does standing still: times 1 - 0.2 * 0.0256
    ],
)
def test_the_adaptive_beta_by_hand(kl, beta):
    assert adapted_beta(0.05, kl, target=6.0, n=256, horizon=10_000) == pytest.approx(beta, abs=1e-9)


def test_ppo_adapts_beta_to_the_mean_summed_kl_of_an_answer_for_the_next_step():
    # summed log-ratios 2 + 1 + 0 = 3 and 1: mean 2, against a target of 1 capped at 0.2; 2 answers of 10:
    # beta 0.1 * (1 + 0.2 * 0.2) = 0.104. (The mean over tokens would be 1: on target.) This step pays at 0.1.
    logp, ref = torch.zeros(2, 3), tensor([[-2.0, -1.0, 0.0], [-1.0, NAN, INF]])
    rollout = ppo_rollout(values=torch.zeros(2, 3), logp=logp, ref_logp=ref)
    state = {"beta": tensor(0.1)}
    found = PPO(beta=0.1, target_kl=1.0, horizon=10, lam=0.0, whiten=False).advantages(rollout, state)
    assert state["beta"].item() == pytest.approx(0.104)
    close(found, tensor([[-0.2, -0.1, 1.0], [-1.1, 0.0, 0.0]]))


def test_explained_variance_of_a_critic_that_is_nearly_right_knows_the_mean_or_has_it_backwards():
    # returns 1, 2, 3, 4: squared distances from 2.5 add up to 5
    returns, mask = tensor([[1.0, 2.0, 3.0, 4.0, NAN]]), mask_of([4], width=5)
    for values, by_hand in [
        ([1.0, 2.0, 3.0, 3.0, INF], 0.85),  # one error of 1: 0.75^2 + 3 * 0.25^2 = 0.75, of 5
        ([2.5, 2.5, 2.5, 2.5, NAN], 0.0),
        ([4.0, 3.0, 2.0, 1.0, NAN], -3.0),  # errors -3, -1, 1, 3: 20 of 5
    ]:
        assert explained_variance(tensor([values]), returns, mask) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("reward", [0.0, 0.7, -3.0])
def test_where_all_returns_are_equal_but_for_rounding_nothing_is_to_be_explained(reward):
    mask, generator = mask_of([5, 3, 1]), torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, generator=generator)
    rewards = torch.zeros(3, 5).masked_fill(last_token(mask), reward)
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    assert explained_variance(values, returns, mask) == 0
    assert explained_variance(torch.zeros(1, 2), tensor([[1.0, 9.0]]), tensor([[True, False]])) == 0


# ---- VC-PPO and VAPO


@pytest.mark.parametrize("method", [VCPPO(), VAPO()])
def test_vc_ppo_and_vapo_pass_once_over_sixteen_minibatches_and_not_four_times_over_one(method):
    assert (method.epochs, method.minibatches) == (1, 16)


def test_vc_ppo_has_a_lambda_for_the_policy_and_lambda_1_for_the_critics_targets():
    rollout = ppo_rollout()
    advantages = VCPPO(lam=0.5, whiten=False).advantages(rollout, dict(NO_KL))
    close(advantages, tensor([[0.25, -0.1, 0.6], [-1.25, 0.0, 0.0]]))
    close(rollout.returns, tensor([[1.0, 1.0, 1.0], [-1.0, 0.0, 0.0]]))


def test_while_vc_ppo_pretrains_only_the_value_loss_is_left():
    one = mask_of([1])
    batch = dataclasses.replace(
        rollout_of(tensor([[0.0]]), one, logp=tensor([[-1.0]]).requires_grad_()),
        old_logp=tensor([[-1.0]]),
        advantages=tensor([[2.0]]),
        values=tensor([[1.5]]).requires_grad_(),
        old_values=tensor([[1.5]]),
        returns=tensor([[1.0]]),
    )
    method = VCPPO(pretrain=3)
    # half of 0.5 squared, times vf = 0.1; afterwards the surrogate at ratio 1 joins it: -2
    for step, by_hand in [(1, 0.0125), (3, 0.0125), (4, -2 + 0.0125)]:
        per_token, _ = method.loss(batch, {"steps": tensor(float(step))})
        assert per_token.item() == pytest.approx(by_hand)
        grads = torch.autograd.grad(per_token.sum(), [batch.logp, batch.values], allow_unused=True)
        assert (grads[0] is None) == (step <= 3) and grads[1].item() == pytest.approx(0.05)


def test_the_length_adaptive_lambda_by_hand():
    # alpha 0.05: 1 - 20/length. 40: 1/2; 100: 0.8; 1,000: 0.98; 20: 0, and nothing below goes under it
    found = length_adaptive_lambda(tensor([1000, 100, 40, 20, 10, 1, 0]))
    close(found, tensor([0.98, 0.8, 0.5, 0.0, 0.0, 0.0, 0.0]))
    # alpha 1/2 suits answers of four tokens: 1 - 2/4
    close(length_adaptive_lambda(tensor([4]), alpha=0.5), tensor([0.5]))


def test_vapo_has_a_lambda_for_each_length():
    # alpha 1/2. Three tokens: 1 - 2/3 = 1/3; A_3 = 0.6, A_2 = -0.4 + 0.6/3 = -0.2, A_1 = 0.3 - 0.2/3 = 0.2333333.
    # Two tokens: 1 - 2/2 = 0, so the TD errors: reward -1, values 0.25 and 0.5: -1.5 and 0.25. (At 1/3 the first
    # would be -0.25.) The critic's targets are what was paid.
    values = tensor([[0.5, 0.8, 0.4], [0.25, 0.5, NAN]])
    rollout = rollout_of(tensor([[1.0], [-1.0]]), mask_of([3, 2]), values=values)
    advantages = VAPO(alpha=0.5, whiten=False).advantages(rollout, dict(NO_KL))
    close(advantages, tensor([[0.2333333, -0.2, 0.6], [0.25, -1.5, 0.0]]))
    close(rollout.returns, tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 0.0]]))


def test_vapo_imitates_right_answers_at_a_tenth_of_their_mean_log_likelihood():
    # Three tokens in all; the first answer, of two, is right. With no advantage and a perfect critic only the
    # imitation is left: 0.1 * mean of 1.5 and 0.5 = 0.1, and each right token's slope is -0.1/2.
    mask = mask_of([2, 1])
    logp = tensor([[-1.5, -0.5], [-1.0, NAN]])
    nothing = torch.zeros(2, 2)

    def loss(x):
        batch = rollout_of(tensor([[1.0], [0.0]]), mask, logp=x, correct=tensor([True, False]))
        batch = dataclasses.replace(
            batch, old_logp=logp, advantages=nothing, values=nothing, old_values=nothing, returns=nothing
        )
        method = VAPO(pretrain=0)
        weights = method.weights(batch)
        per_token, _ = method.loss(batch, {"steps": tensor(1.0)})
        return (per_token * weights).sum()

    found, grad = value_and_gradient(loss, logp)
    assert found.item() == pytest.approx(0.1)
    close(grad, tensor([[-0.05, -0.05], [0.0, 0.0]]))
