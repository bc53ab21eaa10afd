"""Ours beside verl's, from a record: what verl 0.9.1 made of the inputs in peers/verl.json (`make peers` makes it).

Both sides compute in float64, so equal means to seven digits. Ours gets NaN behind the mask, where verl got 0. What
differs does so on purpose, and has a test here too.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import tensor

from rlcourse.kl import kl_estimate
from rlcourse.methods.cispo import cispo_loss
from rlcourse.methods.corrections import truncated_importance_weights
from rlcourse.methods.dapo import dapo_loss, soft_overlong_penalty
from rlcourse.methods.dr_grpo import dr_grpo_loss
from rlcourse.methods.grpo import group_advantages, grpo_loss
from rlcourse.methods.gspo import gspo_loss, gspo_token_loss
from rlcourse.methods.ppo import adapted_beta, clipped_surrogate, gae, kl_shaped_rewards, value_loss
from rlcourse.methods.reinforce import last_token, reinforce_per_token, reward_to_go
from rlcourse.methods.remax import remax_advantages
from rlcourse.methods.rloo import leave_one_out_advantages
from rlcourse.methods.sapo import sapo_loss
from rlcourse.tensors import aggregate, only, token_weights, whiten

RECORD = json.loads((Path(__file__).parent / "peers" / "verl.json").read_text())
MASK = tensor(RECORD["inputs"].pop("mask")).bool()
EMPTY = tensor(RECORD["mask_with_empty_row"]).bool()


def numbers(x):
    """What is recorded, as a tensor; null stands for NaN."""

    def plain(y):
        return [plain(z) for z in y] if isinstance(y, list) else math.nan if y is None else y

    return tensor(plain(x), dtype=torch.float64)


def inputs(name, mask=MASK):
    """A recorded input; behind the mask NaN, which must not matter."""
    x = numbers(RECORD["inputs"][name])
    return x if x.dim() == 1 else x.masked_fill(~mask, math.nan)


def agree(ours, theirs, mask=None):
    theirs = theirs if isinstance(theirs, torch.Tensor) else numbers(theirs).view_as(ours)
    if mask is not None:
        ours, theirs = ours[mask], theirs[mask]
    torch.testing.assert_close(ours, theirs, atol=2e-8, rtol=2e-8)  # verl adds 1e-8 to counts of tokens
    assert theirs.abs().max() > 1e-4  # equal, and not because both are nothing


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def recorded(name, how, low=0.2, high=0.2, c=1e6, advantages="scores", constant=None, **flags):
    """The one recorded policy loss with these settings."""
    wanted = {"name": name, "how": how, "low": low, "high": high, "c": c, "advantages": advantages}
    wanted |= {"constant": constant, **flags}
    names = {*wanted, "loss", "gradient"}
    (case,) = [x for x in RECORD["policy_loss"] if set(x) == names and wanted.items() <= x.items()]
    return case


def agree_on_loss(function, case, mask=MASK):
    """`function(logp)` and its gradient are the recorded ones, and nothing flows behind the mask."""
    loss, gradient = value_and_gradient(function, inputs("logp", mask))
    agree(loss, case["loss"])
    agree(gradient, case["gradient"], mask)
    assert gradient[~mask].eq(0).all()


TOKEN, SEQUENCE = "token-mean", "seq-mean-token-mean"
SUM, CONSTANT = "seq-mean-token-sum", "seq-mean-token-sum-norm"


def test_the_record_is_verls_of_the_version_that_we_name():
    assert RECORD["verl"] == "0.9.1"


# ---- advantages


@pytest.mark.parametrize("case", RECORD["gae"], ids=lambda case: f"{case['gamma']}-{case['lam']}")
def test_gae_is_verls(case):
    lam = numbers(case["lam"]) if isinstance(case["lam"], list) else case["lam"]
    advantages, returns = gae(inputs("rewards"), inputs("values"), MASK, case["gamma"], lam)
    agree(returns, case["returns"], MASK)
    # verl whitens inside; ours is whitened by PPO, after VC-PPO has had the chance to call gae twice
    agree(whiten(advantages, MASK), case["advantages"], MASK)


def test_verls_advantages_behind_the_mask_are_not_zero_and_ours_are():
    advantages, returns = gae(inputs("rewards"), inputs("values"), MASK, 1.0, 0.95)
    assert numbers(RECORD["gae"][0]["advantages"])[~MASK].abs().min() > 0
    assert advantages[~MASK].eq(0).all() and returns[~MASK].eq(0).all()


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_verls(shift_mean):
    agree(whiten(inputs("rewards"), MASK, shift_mean), RECORD["whiten"][str(shift_mean)], MASK)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reward_to_go_is_verls_return_of_reinforce_plus_plus(gamma):
    agree(reward_to_go(inputs("rewards"), MASK, gamma), RECORD["reward_to_go"][str(gamma)], MASK)


def test_remax_is_verls():
    # verl subtracts the greedy answer's score from the reward still to come, of one reward a token
    to_go = reward_to_go(inputs("rewards"), MASK)
    agree(remax_advantages(to_go, inputs("scores")[:, None]), RECORD["remax"], MASK)


def test_group_advantages_and_rloo_are_verls():
    case = RECORD["groups"][0]
    rewards = numbers(case["rewards"])
    # verl's default eps is 1e-6, TRL's and ours 1e-4
    agree(group_advantages(rewards, eps=1e-6), case["grpo"])
    agree(group_advantages(rewards, scale=False), case["grpo_unscaled"])
    agree(leave_one_out_advantages(rewards), case["rloo"])


def test_the_default_eps_differs_from_verls_where_rewards_hardly_do():
    case = RECORD["groups"][0]
    ours, theirs = group_advantages(numbers(case["rewards"])), numbers(case["grpo"])
    gap = ((ours - theirs) / theirs).abs()
    # one reward of 0.001 among zeros: its deviation is 5e-4, and eps a fifth of it
    assert gap[2].min() > 0.1 and gap[0].max() < 1e-3


def test_verl_gives_a_tied_group_a_trace_of_advantage_and_we_give_none():
    case = RECORD["groups"][1]
    assert case["dtype"] == "float32" and len(set(case["rewards"][0])) == 1
    tied = numbers(case["rewards"]).float()
    assert group_advantages(tied).abs().max() == 0 and leave_one_out_advantages(tied).abs().max() == 0
    # eight times 0.7: a twentieth of a deviation, and all of the eight pushed the same way
    assert numbers(case["grpo"]).min() > 0.05


def test_verl_takes_a_group_of_one_for_its_own_raw_reward_and_we_refuse():
    case = RECORD["groups"][2]
    alone = numbers(case["rewards"])
    torch.testing.assert_close(numbers(case["grpo"]), alone, atol=0, rtol=1e-5)
    agree(alone, case["rloo"])
    for function in (group_advantages, leave_one_out_advantages):
        with pytest.raises(ValueError, match="at least 2"):
            function(alone)


# ---- KL


def test_the_kl_shaped_reward_is_verls():
    # verl adds the penalty to rewards by token; ours takes one score, for the last token
    scores = inputs("rewards")[last_token(MASK)]
    ours = kl_shaped_rewards(scores, inputs("logp"), inputs("ref_logp"), MASK, 0.05)
    theirs = numbers(RECORD["kl_in_reward"]) - only(inputs("rewards"), MASK & ~last_token(MASK))
    agree(ours, theirs, MASK)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_and_their_gradients_are_verls(kind):
    ref = only(inputs("ref_logp"), MASK)
    value, gradient = value_and_gradient(lambda x: kl_estimate(x, ref, kind), only(inputs("logp"), MASK))
    agree(value, RECORD["kl"][kind]["value"], MASK)
    agree(gradient, RECORD["kl"][kind]["gradient"], MASK)


def test_verls_k3_plus_is_the_value_of_k3_with_the_gradient_of_k2():
    logp, ref = only(inputs("logp"), MASK), only(inputs("ref_logp"), MASK)
    agree(kl_estimate(logp, ref, "k3"), RECORD["kl"]["k3+"]["value"], MASK)
    _, gradient = value_and_gradient(lambda x: kl_estimate(x, ref, "k2"), logp)
    agree(gradient, RECORD["kl"]["k3+"]["gradient"], MASK)


def test_verl_caps_k3_at_10_and_with_it_the_gradient_and_we_do_not():
    far = RECORD["kl_far"]
    ref = numbers(far["ref_logp"])
    value, gradient = value_and_gradient(lambda x: kl_estimate(x, ref, "k3"), numbers(far["logp"]))
    # d = -5, where the policy has all but forgotten a token: e^5 - 1 - 5 = 142.4, its slope 1 - e^5 = -147.4
    assert far["value"][:2] == [10, 10] and far["gradient"][:2] == [0, 0]
    assert value[0].item() == pytest.approx(142.413159) and gradient[0].item() == pytest.approx(-147.413159)
    agree(value[2], far["value"][2])
    agree(gradient[2], far["gradient"][2])


def test_the_adaptive_beta_is_verls():
    # The same formula. verl's trainer feeds it the KL of a mean token, Ziegler et al. and ours that of an answer.
    case, betas = RECORD["controller"], []
    beta = case["beta"]
    for kl in case["kl"]:
        beta = adapted_beta(beta, kl, case["target"], case["n"], case["horizon"])
        betas.append(beta)
    assert betas == pytest.approx(case["betas"], rel=1e-8)
    assert betas[0] == pytest.approx(
        0.05 * (1 - 0.2 * 256 / 10_000)
    )  # kl 1 for a target of 6: the error is capped


# ---- losses


@pytest.mark.parametrize("case", RECORD["value_loss"], ids=lambda c: f"{c['clip']}-{c['empty_row']}")
def test_the_value_loss_and_its_gradient_are_verls(case):
    mask = EMPTY if case["empty_row"] else MASK
    old, returns = inputs("values", mask), inputs("rewards", mask)
    loss, gradient = value_and_gradient(
        lambda x: value_loss(x, old, returns, mask, case["clip"]), inputs("new_values", mask)
    )
    agree(loss, case["loss"])
    agree(gradient, case["gradient"], mask)


HOW = {TOKEN: ("token", None), SEQUENCE: ("sequence", None), SUM: ("constant", 1), CONSTANT: ("constant", 16)}


@pytest.mark.parametrize("case", RECORD["aggregate"], ids=lambda case: f"{case['how']}-{case['empty_row']}")
def test_denominators_are_verls_and_an_empty_row_is_no_sequence(case):
    mask = EMPTY if case["empty_row"] else MASK
    agree(aggregate(inputs("advantages", mask), mask, *HOW[case["how"]]), case["loss"])


def test_the_reinforce_loss_is_verls():
    advantages, weights = only(inputs("advantages"), MASK), token_weights(MASK, "constant", 1)
    agree_on_loss(
        lambda x: (reinforce_per_token(only(x, MASK), advantages) * weights).sum(), RECORD["reinforce"]
    )


def ppo_loss(logp):
    old, advantages = only(inputs("old_logp"), MASK), only(inputs("advantages"), MASK)
    return aggregate(clipped_surrogate(only(logp, MASK), old, advantages, 0.2, 0.2), MASK, "token")


def test_ppos_surrogate_is_verls_with_its_dual_clip_out_of_the_way():
    agree_on_loss(ppo_loss, recorded("vanilla", TOKEN, advantages="advantages"))


def test_verls_dual_clip_silences_bad_tokens_that_have_become_three_times_likelier_and_ours_learn():
    _, ours = value_and_gradient(ppo_loss, inputs("logp"))
    dual = numbers(recorded("vanilla", TOKEN, advantages="advantages", c=3.0)["gradient"])
    ratio = (inputs("logp") - inputs("old_logp")).exp()
    silenced = MASK & (inputs("advantages") < 0) & (ratio > 3)
    assert silenced.any() and dual[silenced].eq(0).all() and ours[silenced].min() > 1e-3
    agree(ours, dual, MASK & ~silenced)


def test_the_grpo_loss_is_verls_by_sequence():
    old, scores = inputs("old_logp"), inputs("scores")
    agree_on_loss(lambda x: grpo_loss(x, old, scores, MASK), recorded("vanilla", SEQUENCE))


def test_the_grpo_loss_is_verls_with_an_empty_row_too():
    old, scores = inputs("old_logp", EMPTY), inputs("scores").masked_fill(~EMPTY.any(1), math.nan)
    case = recorded("vanilla", SEQUENCE, empty_row=True)
    agree_on_loss(lambda x: grpo_loss(x, old, scores, EMPTY), case, EMPTY)


def test_the_dr_grpo_loss_is_verls():
    old, scores = inputs("old_logp"), inputs("scores")
    case = recorded("vanilla", CONSTANT, constant=16)
    agree_on_loss(lambda x: dr_grpo_loss(x, old, scores, MASK, max_length=16), case)


def test_the_dapo_loss_is_verls():
    case = recorded("vanilla", TOKEN, high=0.28)
    agree_on_loss(lambda x: dapo_loss(x, inputs("old_logp"), inputs("scores"), MASK), case)


def test_nan_behind_the_mask_passes_through_neither_dapos_loss_nor_verls():
    clean = recorded("vanilla", TOKEN, advantages="advantages")
    theirs = recorded("vanilla", TOKEN, advantages="advantages", nan_behind=True)
    assert theirs["loss"] == clean["loss"] and theirs["gradient"] == clean["gradient"]
    old, advantages = inputs("old_logp"), inputs("advantages")
    agree_on_loss(lambda x: dapo_loss(x, old, advantages, MASK, clip_high=0.2), clean)


def test_nan_behind_the_mask_passes_through_verls_gspo_and_not_through_ours():
    # verl multiplies by the mask there, and NaN * 0 is NaN
    assert recorded("gspo", SEQUENCE, 0.1, 0.15, advantages="advantages", nan_behind=True)["loss"] is None
    clean = recorded("gspo", SEQUENCE, 0.1, 0.15, advantages="advantages")
    old, advantages = inputs("old_logp"), inputs("advantages")
    agree_on_loss(lambda x: gspo_token_loss(x, old, advantages, MASK, 0.1, 0.15), clean)


@pytest.mark.parametrize(("low", "high"), [(3e-4, 4e-4), (0.1, 0.15)])
def test_the_gspo_loss_is_verls(low, high):
    # verl writes it as GSPO-token: with one advantage an answer the two are the same
    old, scores = inputs("old_logp"), inputs("scores")
    case = recorded("gspo", SEQUENCE, low, high)
    agree_on_loss(lambda x: gspo_loss(x, old, scores, MASK, low, high), case)
    agree_on_loss(lambda x: gspo_token_loss(x, old, scores, MASK, low, high), case)


@pytest.mark.parametrize(("how", "weights"), [(SEQUENCE, None), (TOKEN, token_weights(MASK, "token"))])
def test_the_gspo_token_loss_is_verls_where_advantages_differ_by_token(how, weights):
    # verl's default is the mean over tokens; ours is the paper's, over answers
    old, advantages = inputs("old_logp"), inputs("advantages")
    case = recorded("gspo", how, 0.1, 0.15, advantages="advantages")
    agree_on_loss(lambda x: gspo_token_loss(x, old, advantages, MASK, 0.1, 0.15, weights), case)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (1.0, 0.5)])
def test_the_cispo_loss_is_verls(low, high):
    # As in the paper both bounds are distances from 1. verl's default bounds below too, at 0.8; ours does not.
    case = recorded("cispo", TOKEN, low, high)
    agree_on_loss(lambda x: cispo_loss(x, inputs("old_logp"), inputs("scores"), MASK, low, high), case)


def test_the_sapo_loss_is_verls():
    case = recorded("sapo", SEQUENCE)
    agree_on_loss(lambda x: sapo_loss(x, inputs("old_logp"), inputs("scores"), MASK), case)


# ---- what is done to the engine and to the reward


def test_truncated_importance_weights_are_verls():
    old, engine = only(inputs("old_logp"), MASK), only(inputs("engine_logp"), MASK)
    ours = truncated_importance_weights(old, engine, 2.0)
    agree(ours, RECORD["correction"]["token"], MASK)
    # verl by sequence: one weight an answer, the product of its tokens'
    whole = truncated_importance_weights(old.sum(1), engine.sum(1), 2.0)
    agree(whole[:, None].expand(MASK.shape), RECORD["correction"]["sequence"], MASK)


def test_icepop_drops_a_token_whose_weight_is_out_of_bounds_and_truncation_keeps_it_at_the_cap():
    ours = truncated_importance_weights(inputs("old_logp"), inputs("engine_logp"), 2.0)
    dropped = numbers(RECORD["correction"]["icepop"])  # bounds 0.5 and 2
    outside = MASK & ((ours == 2) | (ours < 0.5))
    assert (ours[MASK] == 2).any() and (ours[MASK] < 0.5).any() and dropped[outside].eq(0).all()
    agree(ours, dropped, MASK & ~outside)


def test_the_overlong_penalty_is_verls_up_to_the_limit_and_stops_at_minus_one_beyond():
    case = RECORD["overlong"]
    lengths, theirs = tensor(case["lengths"]), numbers(case["penalty"]).float()
    ours = soft_overlong_penalty(lengths, case["max_length"], case["cache"])
    torch.testing.assert_close(ours, theirs.clamp(min=-1), atol=1e-6, rtol=0)
    assert theirs[lengths > case["max_length"]].lt(-1).all()
