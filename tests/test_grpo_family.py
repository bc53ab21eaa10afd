"""GRPO's descendants, by hand: Dr. GRPO, DAPO, GSPO, CISPO, SAPO, DeepSeek-V3.2's GRPO, and importance weights.

Every number is worked out in the comment beside it, not by the code under test.
"""

import dataclasses
import math

import pytest
import torch
from test_methods import INF, NAN, mask_of, rollout_of, value_and_gradient
from torch import tensor

from rlcourse.methods import (
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    PPO,
    SAPO,
    TIS,
    VAPO,
    VCPPO,
    DrGRPO,
    RoutingReplay,
    ScalingGRPO,
)
from rlcourse.methods.cispo import cispo_loss
from rlcourse.methods.corrections import truncated_importance_weights
from rlcourse.methods.dapo import dapo_loss, informative_groups, soft_overlong_penalty
from rlcourse.methods.dr_grpo import dr_grpo_loss
from rlcourse.methods.gspo import gspo_loss, gspo_token_loss, log_sequence_ratio, log_token_ratio
from rlcourse.methods.sapo import sapo_loss
from rlcourse.methods.scaling_grpo import off_policy_sequences, unbiased_kl
from rlcourse.tensors import token_weights

close = torch.testing.assert_close

# Two answers, of two tokens and of one, garbage behind. Old log-probs -1; ratios 1.5 and 0.5, and 1.5.
# The first is good, A = 1, the second bad, A = -2.
MASK = mask_of([2, 1])
OLD = tensor([[-1.0, -1.0], [-1.0, NAN]])
LOGP = tensor([[-1 + math.log(1.5), -1 + math.log(0.5)], [-1 + math.log(1.5), INF]])
ADVANTAGES = tensor([1.0, -2.0])


def check(loss_of, loss, gradient, x=LOGP):
    found, grad = value_and_gradient(loss_of, x)
    assert found.item() == pytest.approx(loss, abs=1e-6)
    close(grad, tensor(gradient), atol=1e-6, rtol=0)


# ---- Dr. GRPO


def test_dr_grpo_by_hand():
    # clip 0.2: -1.2 (no gradient), -0.5 and +3 add up to 1.3; 2 answers * 10 tokens: 0.065.
    # Every token counts 1/20, in the long answer and in the short: gradients 0, -0.5/20, 3/20.
    check(
        lambda x: dr_grpo_loss(x, OLD, ADVANTAGES, MASK, max_length=10), 0.065, [[0.0, -0.025], [0.15, 0.0]]
    )


def test_dr_grpo_does_not_count_an_empty_row():
    logp, old = (torch.cat([x, tensor([[NAN, INF]])]) for x in (LOGP, OLD))
    loss = dr_grpo_loss(logp, old, tensor([1.0, -2.0, NAN]), mask_of([2, 1, 0]), max_length=10)
    assert loss.item() == pytest.approx(0.065)


def test_dr_grpos_advantage_is_the_distance_from_the_mean_and_its_constant_the_token_limit():
    rollout = rollout_of(tensor([[3.0, 1.0]]), MASK, max_tokens=10)
    assert DrGRPO(group_size=2).advantages(rollout, {}).tolist() == [1, -1]
    close(DrGRPO().weights(rollout), tensor([[0.05, 0.05], [0.05, 0.0]]))
    close(DrGRPO(max_length=5).weights(rollout), tensor([[0.1, 0.1], [0.1, 0.0]]))


# ---- DAPO


def test_dapo_by_hand():
    # -1.28 (clipped above at 1.28: no gradient), -0.5, +3: 1.22 over three tokens; gradients 0, -0.5/3, 3/3
    check(lambda x: dapo_loss(x, OLD, ADVANTAGES, MASK), 1.22 / 3, [[0.0, -0.5 / 3], [1.0, 0.0]])


def test_dapo_leaves_more_room_to_rise_than_to_fall():
    # ratio 1.25, A = 1: outside PPO's 0.2 and inside DAPO's 0.28. Ratio 0.75, A = -1: outside 0.2, stopped at 0.8.
    one, old = mask_of([1, 1]), tensor([[-1.0], [-1.0]])
    logp = tensor([[-1 + math.log(1.25)], [-1 + math.log(0.75)]])
    advantages = tensor([1.0, -1.0])
    check(lambda x: dapo_loss(x, old, advantages, one), (-1.25 + 0.8) / 2, [[-0.625], [0.0]], logp)
    equal = {"clip_low": 0.2, "clip_high": 0.2}
    check(lambda x: dapo_loss(x, old, advantages, one, **equal), (-1.2 + 0.8) / 2, [[0.0], [0.0]], logp)


def test_dapo_takes_an_advantage_for_each_token():
    # -1.28 as above; ratio 0.5 with A = -1 is clipped below: 0.8; +3
    by_token = tensor([[1.0, -1.0], [-2.0, NAN]])
    check(lambda x: dapo_loss(x, OLD, by_token, MASK), 2.52 / 3, [[0.0, 0.0], [1.0, 0.0]])


def test_the_overlong_penalty_by_hand():
    # Limit 20, cache 8: free up to 12, one eighth for each token more, -1 at 20, and no worse beyond
    lengths = tensor([0, 1, 12, 13, 16, 19, 20, 21, 40])
    by_hand = [0, 0, 0, -0.125, -0.5, -0.875, -1, -1, -1]
    assert soft_overlong_penalty(lengths, max_length=20, cache_length=8).tolist() == by_hand
    # a cache as long as the limit: every token costs
    assert soft_overlong_penalty(tensor([0, 5, 20]), 20, 20).tolist() == [0, -0.25, -1]


@pytest.mark.parametrize("cache", [0, -1, 21])
def test_a_cache_that_is_none_or_longer_than_the_limit_is_an_error_with_its_value(cache):
    with pytest.raises(ValueError, match=f"1..20, got {cache}"):
        soft_overlong_penalty(tensor([1]), 20, cache)


def test_informative_groups_have_right_answers_and_wrong_ones():
    correct = tensor([[True, False, False], [True] * 3, [False] * 3, [True, True, False]])
    assert informative_groups(correct).tolist() == [True, False, False, True]


def test_dapo_keeps_groups_by_their_correctness_and_not_by_their_reward():
    # all wrong, and yet of unequal reward: it would teach length only
    rollout = rollout_of(
        tensor([[0.0, -0.5], [1.0, 1.0]]), mask_of([1] * 4), correct=tensor([False, False, True, False])
    )
    assert DAPO(group_size=2).keep(rollout).tolist() == [False, True]
    assert DAPO(group_size=2, dynamic_sampling=False).keep(rollout).tolist() == [True, True]


def test_dapos_advantage_has_the_penalty_in_the_reward():
    # Both right; 2 tokens cost nothing and 5, the limit, with a cache of 0.4 * 5 = 2, cost 1: rewards 1 and 0,
    # deviation sqrt(1/2): 0.5 / 0.7072068 = 0.7070068
    rollout = rollout_of(tensor([[1.0, 1.0]]), mask_of([2, 5]), max_tokens=5)
    found = DAPO(group_size=2, overlong=0.4).advantages(rollout, {})
    close(found, tensor([0.7070068, -0.7070068]))
    assert DAPO(group_size=2, overlong=0.0).advantages(rollout, {}).tolist() == [0, 0]


# ---- GSPO

# The first answer's ratio is the geometric mean of 1.5 and 0.5: sqrt(0.75) = 0.8660254; the second's 1.5.


def test_the_sequence_ratio_is_the_geometric_mean():
    close(log_sequence_ratio(LOGP, OLD, MASK).exp(), tensor([0.8660254, 1.5]))
    close(log_token_ratio(LOGP, OLD, MASK).exp()[MASK], tensor([0.8660254, 0.8660254, 1.5]))


def test_gspo_by_hand():
    # clip 0.2/0.3: -0.8660254; +3 (the clip at 1.3 would be better for the policy, so it does not count).
    # Mean over answers (3 - 0.8660254)/2. d s / d logp = s / length: -0.8660254/2/2 on both tokens, 3/2 on the one.
    check(
        lambda x: gspo_loss(x, OLD, ADVANTAGES, MASK, 0.2, 0.3),
        1.0669873,
        [[-0.2165064, -0.2165064], [1.5, 0.0]],
    )


def test_gspo_clips_an_answer_whole():
    # A = -1 for the first: s = 0.866 is below 1 - 0.1, so the clip's 0.9 counts and *both* tokens are silent,
    # the one with ratio 1.5 too. Mean (0.9 + 3)/2.
    check(lambda x: gspo_loss(x, OLD, tensor([-1.0, -2.0]), MASK, 0.1, 0.1), 1.95, [[0.0, 0.0], [1.5, 0.0]])


def test_gspos_clip_is_the_papers_narrow_one_unless_told_otherwise():
    # A = -1 at s = 0.866: 1 - 0.0003.  A = 2 at s = 1.5: -2 * 1.0004.
    loss = gspo_loss(LOGP, OLD, tensor([-1.0, 2.0]), MASK)
    assert loss.item() == pytest.approx((0.9997 - 2.0008) / 2, abs=1e-6)


def test_gspo_token_by_hand():
    # The value of s on each token, the gradient each token's own: A = 1 and 3 on the first answer's tokens.
    # (-0.8660254 * (1 + 3)/2 + 3)/2 = 0.6339746; gradients -s A / 4: -0.2165064 and three times that; 3/2.
    by_token = tensor([[1.0, 3.0], [-2.0, NAN]])
    check(
        lambda x: gspo_token_loss(x, OLD, by_token, MASK, 0.2, 0.3),
        0.6339746,
        [[-0.2165064, -0.6495191], [1.5, 0.0]],
    )


def test_gspo_token_with_one_advantage_an_answer_is_gspo():
    check(
        lambda x: gspo_token_loss(x, OLD, ADVANTAGES, MASK, 0.2, 0.3),
        1.0669873,
        [[-0.2165064, -0.2165064], [1.5, 0.0]],
    )


# ---- CISPO

# logp is -1 + ln 1.5 = -0.5945349 and -1 + ln 0.5 = -1.6931472.


def test_cispo_by_hand():
    # Weights cut at 1.2, from below not at all: 1.2, 0.5, 1.2. Losses -w A logp: 0.7134419, 0.8465736, -1.4268837,
    # together 0.1331317, over three tokens. Gradients -w A / 3: the first token, which PPO's clip silences, learns
    # at 1.2, and no gradient comes through the ratio.
    check(
        lambda x: cispo_loss(x, OLD, ADVANTAGES, MASK, clip_high=0.2),
        0.0443772,
        [[-0.4, -0.5 / 3], [0.8, 0.0]],
    )


def test_cispos_lower_bound_is_there_if_asked_for():
    # low 0.2: the second weight is 0.8
    _, grad = value_and_gradient(
        lambda x: cispo_loss(x, OLD, ADVANTAGES, MASK, clip_low=0.2, clip_high=0.2), LOGP
    )
    close(grad, tensor([[-0.4, -0.8 / 3], [0.8, 0.0]]))


def test_cispos_weight_is_the_ratio_up_to_five_unless_told_otherwise():
    # ratios 1.5 and 6: A = 1, mean over two tokens
    old, one = tensor([[-2.0], [-2.0]]), mask_of([1, 1])
    logp = tensor([[-2 + math.log(1.5)], [-2 + math.log(6.0)]])
    _, grad = value_and_gradient(lambda x: cispo_loss(x, old, tensor([1.0, 1.0]), one), logp)
    close(grad, tensor([[-0.75], [-2.5]]))


# ---- SAPO


def test_sapo_by_hand():
    # A = 1, tau 1: sigmoid(0.5) = 0.6224593 at ratio 1.5 and 0.3775407 at 0.5. Together they are 1, so the losses
    # -4 * sigmoid add up to -4 and their mean is -2.
    # A = -2, tau 1.05: sigmoid(0.525) = 0.6283162; 2 * 4/1.05 times it: 4.7871710.  (-2 + 4.7871710)/2.
    # Slopes -A * 4 sigmoid (1 - sigmoid) r: 4 * 0.2350037 times 1.5 and 0.5: 1.4100223 and 0.4700074;
    # 2 * 4 * 0.2335349 * 1.5 = 2.8024195. Weights 1/4, 1/4, 1/2.
    check(
        lambda x: sapo_loss(x, OLD, ADVANTAGES, MASK),
        1.3935855,
        [[-0.3525056, -0.1175019], [1.4012097, 0.0]],
    )


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_at_ratio_1_sapos_gate_has_the_slope_of_the_ratio_whatever_tau(advantage):
    # the sigmoid is 1/2 there and its slope tau/4, times 4/tau: 1. The value is 2/tau: 2, and 2/1.05 = 1.9047619
    value = {1.0: -2.0, -1.0: 1.9047619}[advantage]
    old = tensor([[-1.0]])
    check(lambda x: sapo_loss(x, old, tensor([advantage]), mask_of([1])), value, [[-advantage]], old)


# ---- DeepSeek-V3.2


def test_the_unbiased_kl_by_hand():
    # r = exp(ln 2) = 2, d = logp - ref = ln 2: k3 = 1/2 - 1 + ln 2 = 0.1931472, times r: 0.3862944.
    # Slope r k3 + r (1 - exp(-d)) = 0.3862944 + 2 * 0.5 = 1.3862944, which is r d.
    # On policy (r = 1) with d = -ln 2: k3 = 2 - 1 - ln 2 = 0.3068528, slope d = -ln 2; that of k3 alone is -1.
    logp, ref = tensor([-1.0, -1.0]), tensor([-1 - math.log(2), -1 + math.log(2)])
    old = tensor([-1 - math.log(2), -1.0])
    close(unbiased_kl(logp, old, ref), tensor([0.3862944, 0.3068528]))
    check(lambda x: unbiased_kl(x, old, ref).sum(), 0.6931472, [1.3862944, -0.6931472], logp)


def test_only_logp_carries_gradient_through_the_unbiased_kl():
    old, ref = tensor([-1.0]).requires_grad_(), tensor([-2.0]).requires_grad_()
    assert not unbiased_kl(tensor([-1.5]), old, ref).requires_grad


def test_an_answer_is_dropped_if_it_is_bad_and_on_average_a_token_has_become_rarer_than_delta_allows():
    # mean of old - new over an answer's tokens, against delta 0.1
    old, mask = torch.zeros(6, 3), mask_of([2, 3, 1, 2, 2, 1])
    logp = tensor(
        [
            [-0.3, -0.1, NAN],  # 0.2, A < 0: dropped
            [-0.05, -0.05, -0.05],  # 0.05 (0.15 in sum): stays
            [-0.15, NAN, INF],  # 0.15, A < 0: dropped; behind the mask is nothing
            [-0.5, -0.5, NAN],  # far, but good: stays
            [0.5, 0.5, NAN],  # bad, but likelier than it was: stays
            [-0.5, NAN, NAN],  # A = 0: stays
        ]
    )
    dropped = off_policy_sequences(logp, old, tensor([-1.0, -1, -1, 1, -1, 0]), mask, delta=0.1)
    assert dropped.tolist() == [True, False, True, False, False, False]


def test_deepseeks_advantage_is_the_distance_from_the_mean():
    rollout = rollout_of(tensor([[3.0, 1.0, 1.0, 1.0]]), mask_of([1] * 4))
    assert ScalingGRPO(group_size=4).advantages(rollout, {}).tolist() == [1.5, -0.5, -0.5, -0.5]


def test_a_dropped_answer_keeps_its_kl():
    # A = -1; ratio 1/2 on its only token, ln 2 nats rarer: the policy's loss would be 0.8. Reference at logp - ln 2:
    # d = ln 2, r = 1/2: r k3 = 0.0965736, slope r d = 0.3465736. beta 0.1.
    one, old = mask_of([1]), tensor([[0.0]])
    logp = tensor([[-math.log(2)]])

    def loss(x, delta):
        batch = dataclasses.replace(
            rollout_of(tensor([[0.0]]), one, logp=x),
            old_logp=old,
            ref_logp=logp - math.log(2),
            advantages=tensor([-1.0]),
        )
        return ScalingGRPO(beta=0.1, delta=delta).loss(batch, {})[0].sum()

    check(lambda x: loss(x, delta=0.5), 0.00965736, [[0.03465736]], logp)
    check(lambda x: loss(x, delta=1.0), 0.8 + 0.00965736, [[0.03465736]], logp)


# ---- another engine


def test_importance_weights_are_cut_off_at_the_cap_and_carry_no_gradient():
    # three times likelier for the policy than for the engine: 2 at a cap of 2; half: 1/2, no floor; the same: 1
    engine = tensor([-2.0, -2.0, -2.0]).requires_grad_()
    logp = tensor([-2 + math.log(3), -2 + math.log(0.5), -2.0]).requires_grad_()
    weights = truncated_importance_weights(logp, engine, cap=2.0)
    close(weights, tensor([2.0, 0.5, 1.0]))
    assert not weights.requires_grad


def test_tis_weighs_each_tokens_loss_by_what_the_policy_was_and_not_by_what_it_is():
    # ratio now / then: 1.1, A = 1: -1.1. Then / engine: 1.5.
    batch = dataclasses.replace(
        rollout_of(tensor([[0.0]]), mask_of([1]), logp=tensor([[-1 + math.log(1.1)]])),
        old_logp=tensor([[-1.0]]),
        engine_logp=tensor([[-1 - math.log(1.5)]]),
        advantages=tensor([1.0]),
    )
    per_token, _ = TIS(GRPO(), cap=2.0).loss(batch, {})
    close(per_token, tensor([[-1.65]]))
    per_token, _ = TIS(GRPO(), cap=1.2).loss(batch, {})
    close(per_token, tensor([[-1.32]]))


def weighed_once(method, ratio=1.5, **columns):
    """One token at ratio 1: its loss under TIS, and what the policy's term and the others are without."""
    one = tensor([[-1.0]])
    fields = {"old_logp": one, "engine_logp": one - math.log(ratio), "advantages": tensor([2.0])}
    batch = dataclasses.replace(
        rollout_of(tensor([[0.0]]), mask_of([1]), logp=one.clone(), correct=tensor([True])),
        **fields | columns,
    )
    batch.weights = method.weights(batch)
    state = {"steps": tensor(1.0)}
    return TIS(method, cap=9.0).loss(batch, state)[0].item(), method.loss(batch, state)[0].item()


VALUES = {"values": tensor([[1.5]]), "old_values": tensor([[1.5]]), "returns": tensor([[1.0]])}


@pytest.mark.parametrize(
    ("method", "columns", "others"),
    [
        (PPO(entropy_bonus=0.01), VALUES | {"entropy": tensor([[0.7]])}, 0.0125 - 0.007),
        (VAPO(group_size=1, pretrain=0), VALUES, 0.0125 + 0.1),  # the imitation of a right token at log pi = -1
        (VCPPO(pretrain=0), VALUES, 0.0125),
        (GRPO(beta=0.1), {"ref_logp": tensor([[-1 - math.log(2)]])}, 0.1 * (0.5 - 1 + math.log(2))),
        (ScalingGRPO(beta=0.1), {"ref_logp": tensor([[-1 - math.log(2)]])}, 0.1 * (0.5 - 1 + math.log(2))),
        (DAPO(), {}, 0.0),
        (RoutingReplay(GRPO(beta=0.1)), {"ref_logp": tensor([[-1 - math.log(2)]])}, 0.1 * (0.5 - 1 + math.log(2))),
    ],
    ids=lambda x: type(x).__name__,
)  # fmt: skip
def test_tis_weighs_the_policys_term_and_not_the_critics_loss_the_kl_or_the_bonus(method, columns, others):
    under_tis, plain = weighed_once(method, **columns)
    assert plain == pytest.approx(-2 + others, abs=1e-6)  # the surrogate at ratio 1, A = 2
    assert under_tis == pytest.approx(1.5 * -2 + others, abs=1e-6)


def test_while_the_critic_is_pretrained_tis_weighs_nothing():
    under_tis, plain = weighed_once(VCPPO(pretrain=5), **VALUES)
    assert under_tis == pytest.approx(plain) == pytest.approx(0.0125)


def test_an_answer_that_another_engine_sampled_is_dropped_by_how_far_it_is_from_that_engine():
    # now = then, and ln 2 nats a token rarer than for the engine: beyond delta 0.1
    one = tensor([[-1.0]])
    batch = dataclasses.replace(
        rollout_of(tensor([[0.0]]), mask_of([1]), logp=one.clone()), old_logp=one, advantages=tensor([-1.0])
    )
    assert ScalingGRPO().loss(batch, {})[1]["dropped"].item() == 0
    batch.engine_logp = one + math.log(2)
    for method in (ScalingGRPO(), TIS(ScalingGRPO())):
        per_token, metrics = method.loss(batch, {})
        assert metrics["dropped"].item() == 1 and per_token.item() == 0


# ---- the objects are the formulas


@pytest.mark.parametrize(
    ("method", "loss"),
    [
        (DrGRPO(max_length=10), lambda *b: dr_grpo_loss(*b, max_length=10)),
        (DAPO(), dapo_loss),
        (DAPO(token_mean=False), lambda *b: dapo_loss(*b, weights=token_weights(MASK, "sequence"))),
        (GSPO(), gspo_loss),
        (GSPO(clip_low=0.2, clip_high=0.3), lambda *b: gspo_loss(*b, 0.2, 0.3)),
        (GSPO(token=True), gspo_token_loss),
        (CISPO(), cispo_loss),
        (CISPO(clip_low=0.2, clip_high=0.3), lambda *b: cispo_loss(*b, 0.2, 0.3)),
        (SAPO(), sapo_loss),
        (SAPO(tau_positive=2.0, tau_negative=3.0), lambda *b: sapo_loss(*b, 2.0, 3.0)),
    ],
    ids=lambda x: repr(x) if dataclasses.is_dataclass(x) else "",
)
def test_a_method_object_computes_its_loss(method, loss):
    def of_object(x):
        batch = rollout_of(tensor([[0.0, 0.0]]), MASK, logp=x)
        batch = dataclasses.replace(batch, old_logp=OLD, advantages=ADVANTAGES)
        per_token, _ = method.loss(batch, {})
        return (per_token * method.weights(batch)).sum()

    found = value_and_gradient(of_object, LOGP)
    close(found, value_and_gradient(lambda x: loss(x, OLD, ADVANTAGES, MASK), LOGP))
    assert found[1][MASK].abs().max() > 0.01


# Two tokens: of a good answer with ratio 1.5, of a bad one with ratio 0.5. Who counts as clipped?
@pytest.mark.parametrize(
    ("method", "clipped"),
    [
        (DAPO(), [1, 1]),  # above 1.28, below 0.8
        (DAPO(clip_high=0.6), [0, 1]),
        (GSPO(clip_low=0.6, clip_high=0.4), [1, 0]),
        (CISPO(), [0, 0]),  # within 0 and 5
        (CISPO(clip_low=0.2, clip_high=0.6), [0, 1]),
    ],
    ids=lambda x: repr(x) if dataclasses.is_dataclass(x) else "",
)
def test_the_clip_fraction_that_is_logged(method, clipped):
    logp = tensor([[-1 + math.log(1.5)], [-1 + math.log(0.5)]])
    batch = dataclasses.replace(
        rollout_of(tensor([[0.0, 0.0]]), mask_of([1, 1]), logp=logp),
        old_logp=tensor([[-1.0], [-1.0]]),
        advantages=tensor([1.0, -1.0]),
    )
    assert method.loss(batch, {})[1]["clip_fraction"].flatten().tolist() == clipped
