"""The KL and its estimators: numbers by hand, and values for any pair of distributions over five tokens.

Which estimator has the right *gradient*, for one token and for sequences, is in test_enumeration.py.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from rlcourse.kl import exact_kl, kl_estimate

seeds = st.integers(0, 10_000)
quickly = settings(max_examples=40, deadline=None)  # a busy machine is no failure
KINDS = ["k1", "k2", "k3"]


def categorical(seed, scale=1.5):
    """Policy and reference, as logits over five tokens."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, 5, generator=generator, dtype=torch.float64)).unbind()


def gradient(function, logits):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(function(logits.log_softmax(-1)), logits)[0]


def kl(logp, logq):
    """sum p (log p - log q), written out; differentiable in both."""
    return sum(logp[x].exp() * (logp[x] - logq[x]) for x in range(len(logp)))


# ---- by hand

# Policy (1/2, 1/2), reference (1/4, 3/4). d = ln 2 and ln(2/3):
#   KL(policy || reference) = (ln 2 + ln(2/3)) / 2            = (0.693147 - 0.405465) / 2 =  0.143841
#   k1 = d                                                    =  0.693147  and -0.405465
#   k2 = d^2 / 2                                              =  0.240227  and  0.082201, mean 0.161214
#   k3 = exp(-d) - 1 + d = 1/2 - 1 + ln 2, 3/2 - 1 + ln(2/3)  =  0.193147  and  0.094535, mean 0.143841
HALF = tensor([0.5, 0.5]).log()
REF = tensor([0.25, 0.75]).log()


def test_exact_kl_by_hand_and_in_the_right_direction():
    torch.testing.assert_close(exact_kl(HALF, REF), tensor(0.143841))
    # the other way: (1/4) ln(1/2) + (3/4) ln(3/2) = -0.173287 + 0.304099
    torch.testing.assert_close(exact_kl(REF, HALF), tensor(0.130812))


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [("k1", [0.693147, -0.405465]), ("k2", [0.240227, 0.082201]), ("k3", [0.193147, 0.094535])],
)
def test_estimators_by_hand(kind, by_hand):
    torch.testing.assert_close(kl_estimate(HALF, REF, kind), tensor(by_hand), atol=1e-6, rtol=0)


def test_k1_and_k3_average_to_the_kl_and_k2_does_not():
    means = {kind: kl_estimate(HALF, REF, kind).mean().item() for kind in KINDS}
    assert means["k1"] == pytest.approx(0.143841, abs=1e-6)
    assert means["k3"] == pytest.approx(0.143841, abs=1e-6)
    assert means["k2"] == pytest.approx(0.161214, abs=1e-6)


def test_exact_kl_takes_logits_of_any_level():
    torch.testing.assert_close(exact_kl(HALF + 3.0, REF - 5.0), tensor(0.143841))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_exact_kl_sums_over_the_last_axis_however_many_stand_before_it(shape):
    generator = torch.Generator().manual_seed(0)
    logits, ref_logits = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    pairs = zip(logits.log_softmax(-1).view(-1, 5), ref_logits.log_softmax(-1).view(-1, 5))
    by_row = torch.stack([kl(*pair) for pair in pairs]).view(shape[:-1])
    torch.testing.assert_close(exact_kl(logits, ref_logits), by_row)


def test_a_token_that_the_policy_never_plays_costs_nothing():
    # the rest is (1/2, 1/2) against (1/4, 1/4), the missing half of the reference going to the third: ln 2
    policy = tensor([0.0, 0.0, -math.inf])
    reference = tensor([0.25, 0.25, 0.5]).log()
    torch.testing.assert_close(exact_kl(policy, reference), tensor(math.log(2)))
    both = exact_kl(policy, tensor([0.5, 0.5, 0.0]).log())
    torch.testing.assert_close(both, tensor(0.0))


def test_k3_keeps_its_digits_near_zero():
    # d^2/2 - d^3/6 + ... = 5e-9 at d = 1e-4: exp(-d) - 1 in float32 would round to steps of 6e-8
    k3 = kl_estimate(tensor([1e-4]), tensor([0.0]), "k3").item()
    assert k3 == pytest.approx(5e-9, rel=0.01)


def test_an_unknown_estimator_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match='"k1", "k2" or "k3", got \'k4\''):
        kl_estimate(HALF, REF, "k4")


# ---- values


@quickly
@given(seeds)
def test_k1_and_k3_are_unbiased_for_any_pair(seed):
    policy, reference = (x.log_softmax(-1) for x in categorical(seed))
    exact = kl(policy, reference)
    torch.testing.assert_close(exact_kl(policy, reference), exact)
    for kind in ("k1", "k3"):
        torch.testing.assert_close((policy.exp() * kl_estimate(policy, reference, kind)).sum(), exact)


@quickly
@given(seeds)
def test_k2_and_k3_are_never_negative(seed):
    policy, reference = (x.log_softmax(-1) for x in categorical(seed, scale=4))
    for kind in ("k2", "k3"):
        assert kl_estimate(policy, reference, kind).min() >= -1e-12


@quickly
@given(seeds)
def test_exact_kl_has_the_gradient_of_the_written_out_sum(seed):
    policy, reference = categorical(seed)
    found = gradient(lambda logp: exact_kl(logp, reference), policy)
    exact = gradient(lambda logp: kl(logp, reference.log_softmax(-1)), policy)
    torch.testing.assert_close(found, exact)
