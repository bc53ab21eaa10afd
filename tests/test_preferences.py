"""Learning from preferences, the formulas: by hand, by property, and beside TRL's trainers, called live."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from rlcourse.methods.dpo import dpo_loss, implicit_rewards, ipo_loss
from rlcourse.methods.kto import kto_loss
from rlcourse.methods.reward_model import bradley_terry_loss, plackett_luce_loss

quickly = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10_000)
LN3 = math.log(3)


def draws(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(function, *given_):
    """The gradient of a loss at these inputs."""
    inputs = [x.clone().requires_grad_() for x in given_]
    return torch.autograd.grad(function(*inputs), inputs)


# ---- by hand


def test_a_choice_by_hand():
    # scores ln 3 apart: the better one is chosen with probability 3/4
    assert bradley_terry_loss(tensor([LN3]), tensor([0.0])).item() == pytest.approx(-math.log(3 / 4))
    # and with a margin of ln 3 with 1/2
    assert bradley_terry_loss(tensor([LN3]), tensor([0.0]), LN3).item() == pytest.approx(math.log(2))
    # the pair's sum of 3, squared, a tenth of it
    found = bradley_terry_loss(tensor([2.0]), tensor([1.0]), centring=0.1)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.9)


def test_the_least_expected_choice_does_not_overflow():
    assert bradley_terry_loss(tensor([-1000.0]), tensor([1000.0])).item() == 2000
    assert plackett_luce_loss(tensor([[-1000.0, 1000.0]])).item() == 2000


def test_a_ranking_by_hand():
    # weights 3, 2, 1: first with 3/6, then second with 2/3
    found = plackett_luce_loss(tensor([[LN3, math.log(2), 0.0]]))
    assert found.item() == pytest.approx(math.log(2) + math.log(3 / 2))


def test_dpo_by_hand():
    # beta 1/2, log-ratios 2 ln 3 and 0: implicit rewards ln 3 and 0
    loss, chosen, rejected = dpo_loss(
        tensor([2 * LN3 - 5]), tensor([-7.0]), tensor([-5.0]), tensor([-7.0]), 0.5
    )
    assert loss.item() == pytest.approx(-math.log(3 / 4))
    assert (chosen.item(), rejected.item()) == (pytest.approx(LN3), 0)
    assert not chosen.requires_grad and not rejected.requires_grad


def test_dpo_starts_at_log_2_with_half_of_beta_as_slope():
    both = tensor([-3.0, -4.0])
    assert dpo_loss(both, both - 1, both, both - 1, beta=0.1)[0].item() == pytest.approx(math.log(2))
    chosen, rejected = slope(lambda c, r: dpo_loss(c, r, both, both - 1, beta=0.1)[0], both, both - 1)
    assert chosen.tolist() == pytest.approx([-0.025, -0.025])  # beta / 2, over two pairs
    assert rejected.tolist() == pytest.approx([0.025, 0.025])


def test_conservative_dpo_believes_a_share_of_the_labels_to_be_turned():
    loss, _, _ = dpo_loss(
        tensor([LN3]), tensor([0.0]), tensor([0.0]), tensor([0.0]), 1.0, label_smoothing=0.25
    )
    assert loss.item() == pytest.approx(-0.75 * math.log(3 / 4) - 0.25 * math.log(1 / 4))
    # and rests where the model believes in its labels as much: sigmoid(margin) = 3/4
    (c, _) = slope(
        lambda c, r: dpo_loss(c, r, tensor([0.0]), tensor([0.0]), 1.0, 0.25)[0], tensor([LN3]), tensor([0.0])
    )
    assert c.item() == pytest.approx(0, abs=1e-7)


def test_ipo_by_hand():
    # beta 1/2: the margin to reach is 1. Here it is 3, so 2 too much
    assert ipo_loss(tensor([2.0]), tensor([-1.0]), tensor([0.0]), tensor([0.0]), beta=0.5).item() == 4
    assert ipo_loss(tensor([2.0]), tensor([1.0]), tensor([0.0]), tensor([0.0]), beta=0.5).item() == 0


def test_kto_by_hand():
    # both log-ratios ln 3, beta 1, no KL: good 1 - 3/4, bad 1 - 1/4; weights 2 and 1
    policy, desirable = tensor([LN3 - 2, LN3 - 4]), tensor([True, False])
    found = kto_loss(policy, tensor([-2.0, -4.0]), desirable, 0.0, 1.0, desirable_weight=2.0)
    assert found.item() == pytest.approx((2 / 4 + 3 / 4) / 2)
    # with a KL of ln 3 both stand at the reference point
    assert kto_loss(policy, tensor([-2.0, -4.0]), desirable, LN3, 1.0).item() == pytest.approx(0.5)


def test_ktos_reference_point_is_never_negative_and_carries_no_gradient():
    policy, desirable = tensor([0.3, -0.2]), tensor([True, False])
    below = kto_loss(policy, tensor([0.0, 0.0]), desirable, -5.0)
    assert below == kto_loss(policy, tensor([0.0, 0.0]), desirable, 0.0)
    kl = tensor(0.7, requires_grad=True)
    kto_loss(policy.requires_grad_(), tensor([0.0, 0.0]), desirable, kl).backward()
    assert kl.grad is None and policy.grad[0] < 0 < policy.grad[1]


def test_no_gradient_reaches_the_reference():
    ref = tensor([-1.0, -2.0], requires_grad=True)
    policy = tensor([-1.5, -1.0], requires_grad=True)
    dpo_loss(policy, policy - 1, ref, ref)[0].backward()
    ipo_loss(policy, policy - 1, ref, ref).backward()
    kto_loss(policy, ref, tensor([True, False]), 0.1).backward()
    assert ref.grad is None


# ---- properties


@quickly
@given(seeds, st.floats(-50, 50))
def test_a_constant_for_each_prompt_changes_no_choice(seed, constant):
    chosen, rejected = draws(seed, 2, 5)
    before = bradley_terry_loss(chosen, rejected)
    torch.testing.assert_close(bradley_terry_loss(chosen + constant, rejected + constant), before)
    scores = draws(seed, 5, 4)
    torch.testing.assert_close(plackett_luce_loss(scores + constant), plackett_luce_loss(scores))


@quickly
@given(seeds)
def test_a_ranking_of_two_is_a_choice(seed):
    scores = draws(seed, 6, 2)
    torch.testing.assert_close(plackett_luce_loss(scores), bradley_terry_loss(scores[:, 0], scores[:, 1]))


@quickly
@given(seeds)
def test_the_probabilities_of_all_rankings_add_up_to_one(seed):
    from itertools import permutations

    scores = draws(seed, 4)
    each = [(-plackett_luce_loss(scores[list(order)][None])).exp() for order in permutations(range(4))]
    assert sum(each).item() == pytest.approx(1)


@quickly
@given(seeds, st.floats(0.01, 2))
def test_dpo_is_bradley_terry_on_implicit_rewards(seed, beta):
    pc, pr, rc, rr = draws(seed, 4, 5)
    loss, chosen, rejected = dpo_loss(pc, pr, rc, rr, beta)
    torch.testing.assert_close(chosen, implicit_rewards(pc, rc, beta))
    torch.testing.assert_close(loss, bradley_terry_loss(chosen, rejected))


@quickly
@given(seeds)
def test_dpo_looks_at_the_margin_only_and_so_both_answers_may_become_rarer(seed):
    pc, pr, rc, rr = draws(seed, 4, 5)
    torch.testing.assert_close(dpo_loss(pc - 9, pr - 9, rc, rr)[0], dpo_loss(pc, pr, rc, rr)[0])


@quickly
@given(seeds)
def test_the_implicit_reward_of_the_best_policy_is_the_reward_up_to_a_constant(seed):
    # the optimum of E[reward] - beta KL over six answers is ref exp(reward / beta) / Z
    reward, ref, beta = draws(seed, 6), draws(seed + 1, 6).log_softmax(0), 0.3
    best = (ref + reward / beta).log_softmax(0)
    difference = implicit_rewards(best, ref, beta) - reward
    torch.testing.assert_close(difference, difference[:1].expand(6))


@quickly
@given(seeds)
def test_kto_lets_go_of_what_is_far_from_the_reference_point(seed):
    ref = draws(seed, 2)
    for far in (400.0, -400.0):
        (slopes,) = slope(lambda p: kto_loss(p, ref, tensor([True, False]), 0.0), ref + far)
        assert slopes.abs().max() < 1e-9


# ---- beside TRL


trl = pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]' brings it")


def trainer(**fields):
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, num_processes=1
    )
    return SimpleNamespace(
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **fields,
    )


def says(log_probs):
    """A model that gives these log-probs to the tokens after the first, and is asked for little else."""
    zeros = torch.zeros_like(log_probs)
    out = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, logits=zeros[..., None])
    out.is_top1 = zeros.bool()
    return lambda **_: out


def answers(seed, rows):
    """Log-probs [rows, 5] of tokens, zero outside the completion, and the completion mask with the prompt."""
    mask = torch.ones(rows, 6, dtype=torch.long)
    mask[:, 0] = 0
    mask[::2, 4:] = 0
    return -draws(seed, rows, 5).abs() * mask[:, 1:], mask


@pytest.mark.parametrize("kind, ours", [("sigmoid", dpo_loss), ("ipo", ipo_loss)])
@pytest.mark.parametrize("seed", range(3))
def test_dpo_and_ipo_beside_trl(kind, ours, seed):
    logp, mask = answers(seed, 6)
    ref, _ = answers(seed + 50, 6)
    mine, theirs = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    lengths = mask.sum(1) if kind == "ipo" else 1
    loss = ours(*(mine.sum(1) / lengths).chunk(2), *(ref.sum(1) / lengths).chunk(2), beta=0.3)
    loss = loss[0] if kind == "sigmoid" else loss
    it = trainer(
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=0.3, loss_types=[kind],
        loss_weights=[1.0], label_smoothing=0.0, use_weighting=False,
    )  # fmt: skip
    ref_chosen, ref_rejected = ref.sum(1).chunk(2)
    batch = {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected,
    }  # fmt: skip
    expected = trl.DPOTrainer._compute_loss(it, says(theirs), batch, False)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("kl", [0.4, -0.4])
@pytest.mark.parametrize("seed", range(3))
def test_kto_beside_trl(seed, kl):
    logp, mask = answers(seed, 6)
    ref, _ = answers(seed + 50, 6)
    labels = tensor([True, False, True, True, False, True])
    mine, theirs = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    loss = kto_loss(mine.sum(1), ref.sum(1), labels, tensor(kl, dtype=torch.float64), 0.3, 1.5, 0.7)
    it = trainer(
        precompute_ref_logps=True, calculate_KL=True, loss_type="kto", beta=0.3, desirable_weight=1.5,
        undesirable_weight=0.7, _compute_kl_logps=lambda model, batch: torch.full((6,), kl, dtype=torch.float64),
    )  # fmt: skip
    batch = {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "label": labels, "ref_logps": ref.sum(1), "ref_KL_logps": torch.zeros(6, dtype=torch.float64),
    }  # fmt: skip
    expected = trl.KTOTrainer._compute_loss(it, says(theirs), batch, False)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("margin, centring", [(None, None), (0.5, None), (0.5, 0.01)])
def test_the_reward_models_loss_beside_trl(margin, centring):
    scores = draws(3, 8)
    mine, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    loss = bradley_terry_loss(*mine.chunk(2), margin or 0.0, centring or 0.0)
    it = trainer(args=SimpleNamespace(center_rewards_coefficient=centring))
    batch = {"attention_mask": torch.ones(8, 3)} | ({"margin": torch.full((4,), margin)} if margin else {})
    model = lambda **_: SimpleNamespace(logits=theirs[:, None])  # noqa: E731
    expected = trl.RewardTrainer.compute_loss(it, model, batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
