"""What every estimator gives on average, beside the exact gradient: no sampling, everything enumerated.

A tabular policy lists all that it can say. The average over endlessly many samples is a sum over
that list (over all groups of answers, where a method looks at groups), and the truth is the
derivative of a sum over the same list. So "unbiased" means here: equal, digit by digit.
"""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, tensor

from rlcourse.kl import exact_kl, kl_estimate
from rlcourse.lm import Rollout
from rlcourse.lm.tabular import TabularLM
from rlcourse.methods import GRPO, REINFORCE, RLOO, DrGRPO, ReMax, ScalingGRPO
from rlcourse.methods.cispo import cispo_loss
from rlcourse.methods.corrections import truncated_importance_weights
from rlcourse.methods.dapo import dapo_loss, informative_groups
from rlcourse.methods.dr_grpo import dr_grpo_loss
from rlcourse.methods.grpo import group_advantages, grpo_loss
from rlcourse.methods.gspo import gspo_loss, gspo_token_loss
from rlcourse.methods.ppo import clipped_surrogate, gae, kl_shaped_rewards, value_loss
from rlcourse.methods.reinforce import reinforce_per_token, reward_to_go
from rlcourse.methods.remax import remax_advantages
from rlcourse.methods.rloo import leave_one_out_advantages
from rlcourse.methods.sapo import sapo_loss
from rlcourse.methods.scaling_grpo import unbiased_kl
from rlcourse.tensors import aggregate, token_weights

ONE_TOKEN, SEQUENCES = (5, 1), (3, 2)  # vocabulary, length: 5 answers, and 7
WIDE_OPEN = 1e9  # a clip that clips nothing


class World(NamedTuple):
    policy: TabularLM
    reference: TabularLM  # also whoever else samples
    rewards: Tensor  # [N]


def world_of(vocabulary: int, length: int, seed: int) -> World:
    policy, reference = (TabularLM(vocabulary, length, seed + i) for i in (0, 100))
    generator = torch.Generator().manual_seed(seed)
    return World(policy, reference, 1 + 2 * torch.randn(len(policy), generator=generator).double())


@pytest.fixture(params=[(*SEQUENCES, 0), (*SEQUENCES, 1), (2, 4, 2)], ids=str)
def world(request):
    return world_of(*request.param)


@pytest.fixture(params=[(*ONE_TOKEN, 0), (*ONE_TOKEN, 1), (*ONE_TOKEN, 2)], ids=str)
def one_token(request):
    return world_of(*request.param)


@pytest.fixture(params=[(*ONE_TOKEN, 0), (*SEQUENCES, 0), (*SEQUENCES, 1), (2, 4, 2)], ids=str)
def any_length(request):
    return world_of(*request.param)


def average_gradient(policy, loss, group_size=1, sampler=None):
    """What the gradient of a loss over sampled groups tends to."""
    return policy.gradient((sampler or policy).expectation(loss, group_size))


def policy_gradient(policy, advantages):
    """What REINFORCE follows, on average, if each answer (or each of its tokens) has this advantage. Uphill."""
    logp = policy.logp()
    return -average_gradient(policy, lambda rows: reinforce_per_token(logp[rows], advantages[rows]).sum())


def group_gradient(policy, advantages_of, group_size):
    """The same, if an answer's advantage depends on the group that it is sampled with."""
    logp = policy.logp()

    def loss(rows):
        return reinforce_per_token(logp[rows], advantages_of(rows)).sum() / group_size

    return -average_gradient(policy, loss, group_size)


def random_like(x, seed=7):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).double()


def cosine(a, b):
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def equal(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)  # token weights are float32


def differs(found, expected, by=0.02):
    """Another vector, and not by a rounding error: by this share of the expected one's length, at least."""
    return (found - expected).norm() > by * expected.norm()


# ---- the tabular model itself


def test_every_answer_is_listed_once_and_ends_once():
    policy = TabularLM(vocabulary=3, length=2)
    answers = [tuple(row[mask].tolist()) for row, mask in zip(policy.tokens, policy.mask)]
    assert sorted(answers) == [(0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize(("vocabulary", "length"), [(2, 1), (5, 1), (3, 2), (2, 4), (3, 3)])
def test_probabilities_add_up_to_one(vocabulary, length):
    policy = TabularLM(vocabulary, length, seed=3, scale=2.0)
    equal(policy.probabilities().sum(), tensor(1.0).double())
    # words w: answers that end after 1, 2, ... tokens, and those that are cut
    words = vocabulary - 1
    assert len(policy) == sum(words**n for n in range(length)) + words**length


def test_an_answers_probability_is_the_product_of_its_tokens_shares():
    policy = TabularLM(vocabulary=2, length=2)
    # after nothing: EOS 1/4, word 3/4.  After the word: EOS 1/2, word 1/2
    policy.logits = tensor([[0.25, 0.75], [0.5, 0.5]]).double().log().requires_grad_()
    equal(policy.probabilities(), tensor([0.25, 0.375, 0.375]).double())
    # rewards 1, 2, 4: 0.25 + 0.75 + 1.5
    equal(policy.expected(tensor([1.0, 2.0, 4.0]).double()), tensor(2.5).double())
    # after the word the mean is 3; before it 2.5
    values = policy.values(tensor([1.0, 2.0, 4.0]).double()[:, None].expand(3, 2))
    equal(values, tensor([[2.5, 0.0], [2.5, 3.0], [2.5, 3.0]]).double())
    assert policy.greedy() in (1, 2) and policy.tokens[policy.greedy(), 0] == 1


def test_the_exact_gradient_is_the_slope_that_one_measures(world):
    policy, _, rewards = world
    exact, step = policy.gradient(policy.expected(rewards)), 1e-6
    for s, v in [(0, 0), (1, 1), (-1, 0)]:
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                policy.logits[s, v] += sign * step
                ends.append(policy.expected(rewards))
                policy.logits[s, v] -= sign * step
        torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), exact[s, v], atol=1e-7, rtol=1e-6)


def test_an_expectation_over_groups_is_an_expectation(world):
    policy, _, rewards = world
    equal(policy.expectation(lambda rows: rewards[rows].mean(), 2), policy.expected(rewards).detach())
    # two answers are drawn independently of each other
    equal(policy.expectation(lambda rows: rewards[rows].prod(), 2), policy.expected(rewards).detach() ** 2)


def test_the_kl_of_answers_is_the_sum_of_their_states_kl(world):
    policy, reference, _ = world
    per_state = exact_kl(policy.logits, reference.logits)[policy.prefix] * policy.mask
    equal(policy.kl(reference), policy.expected(per_state.sum(1)))


# ---- the policy gradient, its baselines, and who is biased


@pytest.mark.parametrize("baseline", [0.0, 1.0, -7.5])
def test_reinforce_is_unbiased_whatever_the_constant_baseline(world, baseline):
    policy, _, rewards = world
    equal(policy_gradient(policy, rewards - baseline), policy.gradient(policy.expected(rewards)))


def test_a_baseline_from_earlier_answers_is_unbiased(world):
    policy, _, rewards = world
    logp = policy.logp()

    def loss(rows):
        earlier, now = rows[:1], rows[1:]
        return reinforce_per_token(logp[now], rewards[now] - rewards[earlier]).sum()

    equal(-average_gradient(policy, loss, 2), policy.gradient(policy.expected(rewards)))


def test_a_baseline_for_each_state_is_unbiased_and_one_that_has_seen_the_token_is_not(world):
    policy, _, rewards = world
    exact, total = policy.gradient(policy.expected(rewards)), rewards[:, None].expand(policy.mask.shape)
    of_state = random_like(policy.logits[:, 0])[policy.prefix]
    of_token = random_like(policy.logits)[policy.prefix, policy.tokens]
    equal(policy_gradient(policy, total - of_state), exact)
    assert differs(policy_gradient(policy, total - of_token), exact, by=0.1)


@pytest.mark.parametrize("size", [2, 3])
def test_the_batch_mean_as_baseline_shrinks_the_gradient_by_one_over_the_batch(world, size):
    policy, _, rewards = world
    found = group_gradient(policy, lambda rows: rewards[rows] - rewards[rows].mean(), size)
    equal(found, (1 - 1 / size) * policy.gradient(policy.expected(rewards)))


def rewarded_tokens(policy, seed=11):
    """A reward for each token, known once the token is said: rewards [N T], and the total [N] that they add up to."""
    of_token = random_like(policy.logits, seed)[policy.prefix, policy.tokens] * policy.mask
    return of_token, of_token.sum(1)


def test_reward_to_go_is_unbiased_and_so_is_the_whole_reward(world):
    policy = world.policy
    rewards, total = rewarded_tokens(policy)
    exact = policy.gradient(policy.expected(total))
    equal(policy_gradient(policy, reward_to_go(rewards, policy.mask)), exact)
    equal(policy_gradient(policy, total), exact)


def test_reward_to_go_leaves_out_what_is_noise_on_average(world):
    policy = world.policy
    rewards, total = rewarded_tokens(policy)
    past = total[:, None] - reward_to_go(rewards, policy.mask)
    assert past[policy.mask].abs().max() > 0.1
    equal(policy_gradient(policy, past), torch.zeros_like(policy.logits))


def test_a_discount_or_no_future_at_all_is_another_gradient(world):
    policy = world.policy
    rewards, total = rewarded_tokens(policy)
    exact = policy.gradient(policy.expected(total))
    assert differs(policy_gradient(policy, reward_to_go(rewards, policy.mask, gamma=0.5)), exact)
    assert differs(policy_gradient(policy, rewards), exact)  # gamma 0


def test_dividing_each_answer_by_its_length_is_another_gradient(world):
    policy, _, rewards = world
    lengths = policy.mask.sum(1)
    found = policy_gradient(policy, rewards / lengths)
    assert differs(found, policy.gradient(policy.expected(rewards)))
    # it is the exact gradient of something else: of the reward per token
    equal(found, policy.gradient(policy.expected(rewards / lengths)))


def test_remax_is_unbiased(world):
    policy, _, rewards = world
    greedy = rewards[policy.greedy()]
    found = policy_gradient(policy, remax_advantages(rewards, greedy.expand_as(rewards)))
    equal(found, policy.gradient(policy.expected(rewards)))


@pytest.mark.parametrize("size", [2, 3])
def test_leaving_one_out_is_unbiased(world, size):
    policy, _, rewards = world
    found = group_gradient(policy, lambda rows: leave_one_out_advantages(rewards[rows][None])[0], size)
    equal(found, policy.gradient(policy.expected(rewards)))


@pytest.mark.parametrize("size", [2, 3])
def test_the_groups_mean_only_shortens_the_gradient(world, size):
    policy, _, rewards = world
    found = group_gradient(policy, lambda rows: group_advantages(rewards[rows][None], scale=False)[0], size)
    equal(found, (1 - 1 / size) * policy.gradient(policy.expected(rewards)))


# ---- what the group's standard deviation does


def scaled(policy, rewards, size):
    return group_gradient(policy, lambda rows: group_advantages(rewards[rows][None])[0], size)


def test_the_groups_std_turns_the_gradient():
    """Twelve policies with graded rewards, groups of 3: cosine 0.86 to 0.996, on average 0.95; length 0.28 to 0.86."""
    cosines, lengths = [], []
    for seed in range(12):
        policy, _, rewards = world_of(*SEQUENCES, seed)
        exact, found = policy.gradient(policy.expected(rewards)), scaled(policy, rewards, 3)
        cosines.append(cosine(found, exact))
        lengths.append((found.norm() / exact.norm()).item())
    assert 0.92 < sum(cosines) / 12 < 0.98 and max(cosines) < 0.998 and min(cosines) < 0.9
    assert 0.2 < min(lengths) < 0.4 and 0.7 < max(lengths) < 1.0  # another step size for each


def test_with_right_and_wrong_answers_to_one_question_the_std_changes_the_length_only(world):
    policy, _, rewards = world
    right = (rewards > rewards.median()).double()
    exact = policy.gradient(policy.expected(right))
    found = scaled(policy, right, 3)
    assert cosine(found, exact) == pytest.approx(1.0, abs=1e-9)
    assert differs(found, exact, by=0.1)


def yes_or_no(p):
    """One token: wrong, or right with probability p."""
    policy = TabularLM(vocabulary=2, length=1)
    policy.logits = tensor([[1 - p, p]]).double().log().requires_grad_()
    return policy, tensor([0.0, 1.0]).double()


@pytest.mark.parametrize(("p", "weight"), [(0.5, 1.74), (0.02, 2.41)])
def test_how_much_more_the_std_makes_of_a_hard_question(p, weight):
    # 1/std alone would say 1 / sqrt(p (1-p)): 2 and 7.1. Tied groups, most of them at p = 0.02, say nothing.
    policy, rewards = yes_or_no(p)
    exact = policy.gradient(policy.expected(rewards))
    assert (scaled(policy, rewards, 8) / exact).mean().item() == pytest.approx(weight, abs=0.01)


# ---- KL: value and gradient of every line of the table, for one token and for sequences
#
# d = logp - ref_logp on answers of the policy. For one token the estimators' gradients are those that
# the textbooks state. On sequences a sum over tokens of the same estimators is a statement about each
# state with the way to it held fixed: what is missing is that the policy also chooses its prefixes.


def deviations(world, kind):
    """The estimator of each token, [N T], with the policy's gradient."""
    logp, ref_logp = world.policy.logp(), world.reference.logp().detach()
    return kl_estimate(logp, ref_logp, kind)  # 0 behind the mask: d is 0 there


def summed(world, kind):
    """The estimator of whole answers: one d, the sum of its tokens'. [N]"""
    return kl_estimate(world.policy.logp().sum(1), world.reference.logp().detach().sum(1), kind)


def in_the_loss(world, per_answer):
    return average_gradient(world.policy, lambda rows: per_answer[rows].sum())


def in_the_reward(world, penalty, mask=None):
    """The penalty is a negative reward, to be earned from each token on. Downhill, as a loss."""
    mask = world.policy.mask if mask is None else mask
    return -policy_gradient(world.policy, reward_to_go(-penalty.detach(), mask))


def way_held_fixed(policy, per_state, sampler=None):
    """The gradient of what is spent in the states, if nothing could be done about how often each is reached."""
    spent = (per_state[policy.prefix] * policy.mask).sum(1)
    return policy.gradient(((sampler or policy).probabilities().detach() * spent).sum())


def state_kl(world):
    return exact_kl(world.policy.logits, world.reference.logits.detach())


def state_other_kl(world):
    return exact_kl(world.reference.logits.detach(), world.policy.logits)


def kl_gradient(world):
    return world.policy.gradient(world.policy.kl(world.reference))


def other_kl_gradient(world):
    return world.policy.gradient(world.reference.kl(world.policy))


# Values


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_have_the_right_value_token_by_token_and_for_whole_answers(any_length, kind):
    policy, exact = any_length.policy, any_length.policy.kl(any_length.reference)
    equal(policy.expected(deviations(any_length, kind).sum(1)), exact)
    equal(policy.expected(summed(any_length, kind)), exact)


def test_k2_has_another_value(any_length):
    policy, exact = any_length.policy, any_length.policy.kl(any_length.reference).item()
    for per_answer in (deviations(any_length, "k2").sum(1), summed(any_length, "k2")):
        assert policy.expected(per_answer).item() != pytest.approx(exact, rel=0.02)


def test_the_ratio_times_k3_has_the_right_value_for_one_token_that_another_policy_sampled(one_token):
    policy, reference, _ = one_token
    sampler = TabularLM(*ONE_TOKEN, seed=50)
    found = unbiased_kl(policy.logp(), sampler.logp().detach(), reference.logp().detach()).sum(1)
    equal(sampler.expected(found), policy.kl(reference))


def test_on_sequences_of_another_policy_only_the_cumulative_ratio_has_the_right_value(world):
    policy, reference, _ = world
    sampler = TabularLM(policy.logits.shape[1], policy.mask.shape[1], seed=50)
    k3, ratio = deviations(world, "k3"), (policy.logp() - sampler.logp().detach()).exp()
    exact = policy.kl(reference)
    equal(sampler.expected((ratio.cumprod(1) * k3).sum(1)), exact)
    per_token = unbiased_kl(policy.logp(), sampler.logp().detach(), reference.logp().detach())
    found = sampler.expected((per_token * policy.mask).sum(1)).item()
    assert found != pytest.approx(exact.item(), rel=0.02)
    # it is the KL of the states, reached as often as the sampler reaches them
    equal(found, sampler.expected((state_kl(world)[policy.prefix] * policy.mask).sum(1)).item())


# k1


def test_k1_in_the_loss_has_no_gradient_on_average(any_length):
    found = in_the_loss(any_length, deviations(any_length, "k1").sum(1))
    equal(found, torch.zeros_like(found))


def test_k1_in_the_loss_divided_by_the_length_pushes_on_the_lengths_and_knows_no_reference(world):
    policy = world.policy
    lengths = policy.mask.sum(1).double()
    found = in_the_loss(world, deviations(world, "k1").sum(1) / lengths)
    assert found.norm() > 0.01
    # descending it makes 1 / length smaller: answers grow, whatever the reference is
    equal(found, policy.gradient(policy.expected(1.0 / lengths)))


def test_k1_in_the_reward_has_the_gradient_of_the_kl(any_length):
    """As reward-to-go with gamma = lambda = 1. For one token nothing is left to come."""
    equal(in_the_reward(any_length, deviations(any_length, "k1")), kl_gradient(any_length))


def test_k1_in_the_reward_without_what_comes_later_is_a_statement_about_each_state(world):
    found = -policy_gradient(world.policy, -deviations(world, "k1").detach())
    equal(found, way_held_fixed(world.policy, state_kl(world)))
    assert differs(found, kl_gradient(world), by=0.05)


# k2


def test_k2_of_the_summed_log_ratio_has_the_gradient_of_the_kl(any_length):
    equal(in_the_loss(any_length, summed(any_length, "k2")), kl_gradient(any_length))


def test_k2_token_by_token_is_a_statement_about_each_state(any_length):
    found = in_the_loss(any_length, deviations(any_length, "k2").sum(1))
    equal(found, way_held_fixed(any_length.policy, state_kl(any_length)))


# k3


def test_k3_in_the_loss_has_the_gradient_of_the_other_kl(any_length):
    """Of KL(reference || policy). Over the states, or over whole answers."""
    found = in_the_loss(any_length, summed(any_length, "k3"))
    equal(found, other_kl_gradient(any_length))
    found = in_the_loss(any_length, deviations(any_length, "k3").sum(1))
    equal(found, way_held_fixed(any_length.policy, state_other_kl(any_length)))


def test_k3_in_the_loss_is_not_the_gradient_of_the_kl_that_it_estimates(any_length):
    exact = kl_gradient(any_length)
    assert differs(in_the_loss(any_length, summed(any_length, "k3")), exact, by=0.2)
    assert differs(in_the_loss(any_length, deviations(any_length, "k3").sum(1)), exact, by=0.2)


def test_k3_in_the_reward_has_the_kls_gradient_less_that_of_k3_in_the_loss(any_length):
    per_token = deviations(any_length, "k3")
    found = in_the_reward(any_length, per_token)
    equal(found, kl_gradient(any_length) - in_the_loss(any_length, per_token.sum(1)))


def test_for_one_token_k3_in_the_reward_has_the_difference_of_the_two_kls(one_token):
    found = in_the_reward(one_token, deviations(one_token, "k3"))
    equal(found, kl_gradient(one_token) - other_kl_gradient(one_token))


def test_k3_in_the_reward_is_of_second_order_near_the_reference(one_token):
    """Half the distance to the reference: half the gradient of the KL, a quarter of this one's."""
    policy, _, rewards = one_token
    norms = []
    for distance in (0.02, 0.01):
        near = TabularLM(*ONE_TOKEN)
        near.logits = (policy.logits + distance * random_like(policy.logits)).detach()
        close = World(policy, near, rewards)
        norms.append((in_the_reward(close, deviations(close, "k3")).norm(), kl_gradient(close).norm()))
    (far_k3, far_kl), (near_k3, near_kl) = norms
    assert far_kl / near_kl == pytest.approx(2, rel=0.03)
    assert far_k3 / near_k3 == pytest.approx(4, rel=0.05)
    assert near_k3 < 0.05 * near_kl


def test_k3_in_the_reward_punishes_tokens_that_the_policy_makes_rarer_than_the_reference():
    logp, ref_logp = tensor([0.1, 0.9]).log(), tensor([0.5, 0.5]).log()
    assert (-kl_estimate(logp, ref_logp, "k1")).sign().tolist() == [1, -1]  # back towards the reference
    assert (-kl_estimate(logp, ref_logp, "k3")).sign().tolist() == [-1, -1]


# The ratio times k3


@pytest.mark.parametrize("seed", [None, 50], ids=["own samples", "another policy's"])
def test_the_ratio_times_k3_has_the_gradient_of_the_kl_for_one_token(one_token, seed):
    policy, reference, _ = one_token
    sampler = policy if seed is None else TabularLM(*ONE_TOKEN, seed=seed)
    found = unbiased_kl(policy.logp(), sampler.logp().detach(), reference.logp().detach()).sum(1)
    equal(average_gradient(policy, lambda rows: found[rows].sum(), sampler=sampler), kl_gradient(one_token))


@pytest.mark.parametrize("seed", [None, 50], ids=["own samples", "another policy's"])
def test_on_sequences_the_ratio_of_each_token_times_k3_is_a_statement_about_each_state(world, seed):
    policy, reference, _ = world
    sampler = policy if seed is None else TabularLM(policy.logits.shape[1], policy.mask.shape[1], seed)
    per_token = unbiased_kl(policy.logp(), sampler.logp().detach(), reference.logp().detach()) * policy.mask
    found = average_gradient(policy, lambda rows: per_token[rows].sum(), sampler=sampler)
    equal(found, way_held_fixed(policy, state_kl(world), sampler))
    assert differs(found, kl_gradient(world), by=0.05)


@pytest.mark.parametrize("seed", [None, 50], ids=["own samples", "another policy's"])
def test_on_sequences_the_cumulative_ratio_times_k3_has_the_gradient_of_the_kl(world, seed):
    policy, reference, _ = world
    sampler = policy if seed is None else TabularLM(policy.logits.shape[1], policy.mask.shape[1], seed)
    ratio = (policy.logp() - sampler.logp().detach()).exp().cumprod(1)
    per_token = ratio * deviations(world, "k3")
    found = average_gradient(policy, lambda rows: per_token[rows].sum(), sampler=sampler)
    equal(found, kl_gradient(world))


def test_on_sequences_what_the_prefixes_are_missing_is_large():
    """0.58 of the gradient's norm, on average over twenty policies of three tokens and three steps; 0.30 for two."""
    missing = []
    for seed in range(20):
        world = world_of(3, 3, seed)
        exact = kl_gradient(world)
        missing.append((way_held_fixed(world.policy, state_kl(world)) - exact).norm() / exact.norm())
    assert 0.45 < torch.stack(missing).mean() < 0.7


# ---- PPO: the KL-shaped reward, and the critic


def test_kl_shaped_rewards_give_the_gradient_of_the_reward_less_beta_times_the_kl(any_length):
    policy, reference, rewards = any_length
    beta, logp = 0.3, policy.logp().detach()
    shaped = kl_shaped_rewards(rewards, logp, reference.logp().detach(), policy.mask, beta)
    wrong_critic = random_like(policy.logits[:, 0])[policy.prefix]
    advantages, _ = gae(shaped, wrong_critic, policy.mask, 1.0, 1.0)
    exact = policy.gradient(policy.expected(rewards) - beta * policy.kl(reference))
    equal(policy_gradient(policy, advantages), exact)


def critics(world):
    """The reward on the last token; what V is exactly; and a V of the state that is wrong."""
    policy, _, rewards = world
    logp = policy.logp().detach()
    on_the_last = kl_shaped_rewards(rewards, logp, logp, policy.mask, 0.0)
    exact = policy.values(rewards[:, None].expand(policy.mask.shape))
    return on_the_last, exact, random_like(policy.logits[:, 0])[policy.prefix] * policy.mask


def test_with_lambda_0_the_advantage_is_the_td_error(world):
    policy = world.policy
    rewards, _, values = critics(world)
    found, returns = gae(rewards, values, policy.mask, 0.9, 0.0)
    for n in range(len(policy)):
        length = int(policy.mask[n].sum())
        for t in range(length):
            later = values[n, t + 1] if t + 1 < length else 0.0  # nothing comes after the last token
            equal(found[n, t], rewards[n, t] + 0.9 * later - values[n, t])
            equal(returns[n, t], found[n, t] + values[n, t])


def test_with_lambda_1_the_advantage_is_the_monte_carlo_return_less_v(world):
    policy = world.policy
    rewards, _, values = critics(world)
    found, returns = gae(rewards, values, policy.mask, 0.9, 1.0)
    to_go = reward_to_go(rewards, policy.mask, gamma=0.9)
    equal(found, (to_go - values) * policy.mask)
    equal(returns, to_go)


def test_with_lambda_1_the_gradient_is_unbiased_for_any_v_of_the_state(world):
    policy, _, rewards = world
    on_the_last, _, wrong = critics(world)
    found = policy_gradient(policy, gae(on_the_last, wrong, policy.mask, 1.0, 1.0)[0])
    equal(found, policy.gradient(policy.expected(rewards)))


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95])
def test_with_lambda_below_1_it_is_unbiased_if_v_is_exact_and_biased_if_not(world, lam):
    policy, _, rewards = world
    on_the_last, exact_v, wrong_v = critics(world)
    exact = policy.gradient(policy.expected(rewards))
    equal(policy_gradient(policy, gae(on_the_last, exact_v, policy.mask, 1.0, lam)[0]), exact)
    found = policy_gradient(policy, gae(on_the_last, wrong_v, policy.mask, 1.0, lam)[0])
    assert differs(found, exact, by=0.1 * (1 - lam))


def test_as_an_advantage_lambda_1_is_biased_unless_v_is_exact(world):
    """Unbiased is the policy gradient. The advantage of a state, averaged over what is said there, should be 0."""
    policy = world.policy
    on_the_last, exact_v, wrong_v = critics(world)
    for values, biased in ((exact_v, False), (wrong_v, True)):
        mean = policy.values(gae(on_the_last, values, policy.mask, 1.0, 1.0)[0])
        assert (mean.abs().max() > 0.1) == biased


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_exact_v_is_where_the_value_loss_rests_whatever_lambda(world, lam):
    policy = world.policy
    on_the_last, exact_v, wrong_v = critics(world)
    for values, rests in ((exact_v, True), (wrong_v, False)):
        _, returns = gae(on_the_last, values, policy.mask, 1.0, lam)
        of_state = torch.zeros(len(policy.logits)).double()
        of_state[policy.prefix[policy.mask]] = values[policy.mask]
        of_state.requires_grad_()

        def loss(rows, of_state=of_state, returns=returns):
            now, mask = of_state[policy.prefix][rows], policy.mask[rows]
            # its mean over tokens undone: answers of all lengths count by how often they are said
            return value_loss(now, now.detach(), returns[rows], mask, 0.2) * mask.sum()

        (gradient,) = torch.autograd.grad(policy.expectation(loss), of_state)
        assert (gradient.abs().max() < 1e-10) == rests


# ---- at ratio 1 every loss is the policy gradient with its advantages and weights


def at_ratio_1(policy, advantages):
    """Each loss of all answers, old log-probs equal to the new, and the weights that its paper gives a token."""
    logp, mask, length = policy.logp(), policy.mask, policy.mask.shape[1]
    old = logp.detach()
    return {
        "ppo": (aggregate(clipped_surrogate(logp, old, advantages, 0.2, 0.2), mask, "token"), "token"),
        "grpo": (grpo_loss(logp, old, advantages, mask), "sequence"),
        "dr_grpo": (dr_grpo_loss(logp, old, advantages, mask, length), "constant"),
        "dapo": (dapo_loss(logp, old, advantages, mask), "token"),
        "gspo": (gspo_loss(logp, old, advantages, mask), "sequence"),
        "gspo_token": (gspo_token_loss(logp, old, advantages, mask, 3e-4, 4e-4), "sequence"),
        "cispo": (cispo_loss(logp, old, advantages, mask), "token"),
        "sapo": (sapo_loss(logp, old, advantages, mask), "sequence"),
    }


@pytest.mark.parametrize("name", ["ppo", "grpo", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo", "sapo"])
def test_at_ratio_1_the_gradient_is_the_policy_gradients_with_the_same_weights(world, name):
    policy, _, rewards = world
    loss, how = at_ratio_1(policy, rewards)[name]
    constant = policy.mask.shape[1] if how == "constant" else None
    plain = aggregate(reinforce_per_token(policy.logp(), rewards), policy.mask, how, constant)
    equal(policy.gradient(loss), policy.gradient(plain))
    assert policy.gradient(loss).norm() > 1e-3


@pytest.mark.parametrize("how", ["token", "constant"])
@pytest.mark.parametrize("loss", [grpo_loss, gspo_loss])
def test_at_ratio_1_the_weights_that_are_given_are_those_that_count(world, loss, how):
    policy, _, rewards = world
    weights = token_weights(policy.mask, how, 9 if how == "constant" else None).double()
    old = policy.logp().detach()
    plain = (reinforce_per_token(policy.logp(), rewards) * weights).sum()
    equal(
        policy.gradient(loss(policy.logp(), old, rewards, policy.mask, weights=weights)),
        policy.gradient(plain),
    )


# ---- answers of another policy


def test_the_ratio_makes_up_for_another_sampler_of_one_token(one_token):
    policy, sampler, rewards = one_token
    loss = clipped_surrogate(policy.logp(), sampler.logp(), rewards, WIDE_OPEN, WIDE_OPEN).sum(1)
    found = -average_gradient(policy, lambda rows: loss[rows].sum(), sampler=sampler)
    equal(found, policy.gradient(policy.expected(rewards)))


def test_a_ratio_a_token_does_not_make_up_for_another_sampler_of_sequences(world):
    policy, sampler, rewards = world
    loss = clipped_surrogate(policy.logp(), sampler.logp(), rewards, WIDE_OPEN, WIDE_OPEN)
    loss = (loss * policy.mask).sum(1)
    exact = policy.gradient(policy.expected(rewards))
    assert differs(-average_gradient(policy, lambda rows: loss[rows].sum(), sampler=sampler), exact)
    # the ratio of the whole answer does
    whole = clipped_surrogate(policy.logp().sum(1), sampler.logp().sum(1), rewards, WIDE_OPEN, WIDE_OPEN)
    equal(-average_gradient(policy, lambda rows: whole[rows].sum(), sampler=sampler), exact)


@pytest.mark.parametrize(("cap", "unbiased"), [(WIDE_OPEN, True), (1.0, False)])
def test_importance_weights_make_up_for_the_engine_until_they_are_truncated(one_token, cap, unbiased):
    policy, engine, rewards = one_token
    weights = truncated_importance_weights(policy.logp(), engine.logp(), cap)
    loss = (weights * reinforce_per_token(policy.logp(), rewards)).sum(1)
    found = -average_gradient(policy, lambda rows: loss[rows].sum(), sampler=engine)
    assert differs(found, policy.gradient(policy.expected(rewards)), by=1e-9) != unbiased


# ---- whole steps of the method objects, as `train` takes them


def step(method, policy, rewards, state, reference=None):
    """The loss of one optimizer step on the sampled answers to one prompt."""
    logp, old_logp = policy.logp(), policy.logp().detach()

    def loss(rows):
        B = len(rows)
        rollout = Rollout(
            prompts=["?"],
            prompt_tokens=torch.zeros(1, 1, dtype=torch.long),
            prompt_mask=torch.ones(1, 1, dtype=torch.bool),
            owner=torch.zeros(B, dtype=torch.long),
            tokens=policy.tokens[rows],
            mask=policy.mask[rows],
            logp=old_logp[rows],
            finished=(policy.tokens[rows] == 0).any(1),
            texts=[""] * B,
            rewards=rewards[rows],
        )
        if reference:
            rollout.ref_logp = reference.logp().detach()[rows]
        if "greedy" in method.needs:
            rollout.greedy_rewards = rewards[policy.greedy()].expand(B)
        rollout.advantages = method.advantages(rollout, copy.deepcopy(state))
        rollout.logp, rollout.old_logp = logp[rows], old_logp[rows]
        per_token, _ = method.loss(rollout, state)
        return (per_token * method.weights(rollout)).sum()

    return loss


STEPS = {
    "reinforce": (REINFORCE(), 1, 1.0),
    "reinforce, mean of the batch": (REINFORCE(baseline="batch"), 2, 1 / 2),
    "reinforce, running baseline": (REINFORCE(baseline="running"), 2, 1.0),
    "reinforce, discount": (REINFORCE(gamma=0.999999999999), 1, 1.0),
    "remax": (ReMax(), 1, 1.0),
    "rloo, 2": (RLOO(group_size=2), 2, 1.0),
    "rloo, 3": (RLOO(group_size=3), 3, 1.0),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_the_method_follows_the_expected_reward_up_to_this_factor(world, name):
    policy, _, rewards = world
    method, size, factor = STEPS[name]
    later = {"baseline": tensor(0.7).double(), "steps": tensor(3.0)}  # a running baseline remembers
    found = -average_gradient(policy, step(method, policy, rewards, later), size)
    equal(found, factor * policy.gradient(policy.expected(rewards)))


def test_a_step_of_dr_grpo_follows_the_expected_reward_over_the_budget_of_tokens(world):
    policy, _, rewards = world
    found = -average_gradient(policy, step(DrGRPO(group_size=3, max_length=16), policy, rewards, {}), 3)
    equal(found, (1 - 1 / 3) / 16 * policy.gradient(policy.expected(rewards)))


def test_a_step_of_rloo_with_a_penalty_follows_the_reward_less_beta_times_the_kl(any_length):
    policy, reference, rewards = any_length
    found = -average_gradient(policy, step(RLOO(2, beta=0.3), policy, rewards, {}, reference), 2)
    equal(found, policy.gradient(policy.expected(rewards) - 0.3 * policy.kl(reference)))


def test_the_penalty_of_grpo_follows_the_other_kl_and_that_of_deepseek_the_one_it_is_named_after(one_token):
    policy, reference, rewards = one_token
    nothing = torch.zeros_like(rewards)  # all groups are tied: what is left of the step is the penalty
    for method, exact in (
        (GRPO(group_size=2, beta=0.3), other_kl_gradient(one_token)),
        (ScalingGRPO(group_size=2, beta=0.3), kl_gradient(one_token)),
    ):
        equal(average_gradient(policy, step(method, policy, nothing, {}, reference), 2), 0.3 * exact)


def test_a_step_of_grpo_follows_something_else():
    """Length and std together. Twelve policies: cosine 0.82 to 0.996, on average 0.935."""
    cosines = []
    for seed in range(12):
        policy, _, rewards = world_of(*SEQUENCES, seed)
        found = -average_gradient(policy, step(GRPO(group_size=3), policy, rewards, {}), 3)
        cosines.append(cosine(found, policy.gradient(policy.expected(rewards))))
    assert 0.9 < sum(cosines) / 12 < 0.97 and max(cosines) < 0.998 and min(cosines) < 0.87


def test_leaving_out_tied_groups_takes_nothing_from_the_gradient(world):
    policy, _, rewards = world
    right = (rewards > rewards.median()).double()
    logp, old = policy.logp(), policy.logp().detach()

    def informative(rows):
        return informative_groups(right[rows][None].bool())[0].double()

    def loss(rows):
        return dapo_loss(logp[rows], old[rows], group_advantages(right[rows][None])[0], policy.mask[rows])

    everything = average_gradient(policy, loss, 3)
    equal(average_gradient(policy, lambda rows: informative(rows) * loss(rows), 3), everything)
    # so a step made of informative groups only is longer by 1 / their share, and points nowhere else
    assert 0.1 < policy.expectation(informative, 3) < 0.9
