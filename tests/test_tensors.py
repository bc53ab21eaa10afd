"""Log-probs, means over masks and loss denominators: numbers by hand, and what must hold for every mask.

Numbers called "by hand" are worked out in the comment beside them, not by the code under test.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from rlcourse.tensors import (
    aggregate,
    entropy,
    masked_mean,
    only,
    token_logprobs,
    token_weights,
    whiten,
)

NAN, INF = math.nan, math.inf
GARBAGE = [NAN, INF, -INF, 1e30, -1e30]
HOW = [("token", None), ("sequence", None), ("constant", 7)]


def mask_of(lengths, width=None):
    """Right-padded: row i is true on its first lengths[i] positions."""
    return torch.arange(width or max(lengths))[None] < tensor(lengths)[:, None]


# At least two tokens; empty rows are allowed.
ragged = st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(lambda n: sum(n) >= 2).map(mask_of)
seeds = st.integers(0, 10_000)
quickly = settings(max_examples=40, deadline=None)  # a busy machine is no failure


def noise(mask, seed):
    return torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    (grad,) = torch.autograd.grad(y, x)
    return y.detach(), grad


# ---- token_logprobs, entropy


def test_logprob_is_the_log_of_the_tokens_share():
    # exp(0) = 1 and exp(ln 3) = 3: shares 1/4 and 3/4. log(1/4) = -1.386294, log(3/4) = -0.287682
    logits = tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    torch.testing.assert_close(token_logprobs(logits, tensor([0, 1])), tensor([-1.386294, -0.287682]))


def test_logits_and_tokens_are_aligned_with_no_shift():
    # Each position is certain of another token; read one place off, every log-prob would be about -50.
    tokens = tensor([[2, 0, 1]])
    logits = 50.0 * torch.nn.functional.one_hot(tokens, 3).float()
    assert token_logprobs(logits, tokens).abs().max() < 1e-6


@quickly
@given(seeds, st.floats(-50, 50))
def test_a_constant_added_to_all_logits_changes_no_logprob(seed, constant):
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tokens = tensor([0, 3, 6, 2])
    torch.testing.assert_close(token_logprobs(logits + constant, tokens), token_logprobs(logits, tokens))


def test_entropy_of_four_equal_tokens_is_ln_4_and_of_a_certain_one_0():
    # ln 4 = 1.386294; shares 1/4, 3/4: 0.25 * 1.386294 + 0.75 * 0.287682 = 0.562335
    logits = tensor([[1.0, 1.0, 1.0, 1.0], [0.0, math.log(3), -INF, -INF], [0.0, -INF, -INF, -INF]])
    torch.testing.assert_close(entropy(logits), tensor([1.386294, 0.562335, 0.0]))


def test_entropy_with_impossible_tokens_has_a_finite_gradient():
    _, grad = value_and_gradient(lambda x: entropy(x).sum(), tensor([[0.0, 1.0, -INF]]))
    assert grad.isfinite().all() and grad[0, 2] == 0


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7), (2, 1, 3, 7)])
def test_the_vocabulary_is_the_last_axis_however_many_stand_before_it(shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.arange(logits[..., 0].numel()).view(shape[:-1]) % 7
    rows = logits.view(-1, 7)
    probs = [[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in rows.tolist()]
    logps = [math.log(row[token]) for row, token in zip(probs, tokens.flatten().tolist())]
    torch.testing.assert_close(token_logprobs(logits, tokens).flatten(), tensor(logps, dtype=torch.float64))
    entropies = [-sum(p * math.log(p) for p in row) for row in probs]
    torch.testing.assert_close(entropy(logits).flatten(), tensor(entropies, dtype=torch.float64))
    assert entropy(logits).shape == token_logprobs(logits, tokens).shape == shape[:-1]


# ---- only, masked_mean


@pytest.mark.parametrize("garbage", GARBAGE)
def test_only_puts_zero_and_no_gradient_behind_the_mask(garbage):
    mask = tensor([True, False])
    kept, grad = value_and_gradient(lambda x: only(x, mask).square().sum(), tensor([3.0, garbage]))
    assert kept == 9 and grad.tolist() == [6, 0]


def test_masked_mean_by_hand():
    # (1 + 2 + 6) / 3 = 3; by row (1 + 2) / 2 and 6 / 1; by column (1 + 6) / 2 and 2 / 1
    x, mask = tensor([[1.0, 2.0], [6.0, NAN]]), mask_of([2, 1])
    assert masked_mean(x, mask).item() == 3
    assert masked_mean(x, mask, dim=1).tolist() == [1.5, 6]
    assert masked_mean(x, mask, dim=0).tolist() == [3.5, 2]


def test_masked_mean_of_nothing_is_an_error_also_for_one_row():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="no true position"):
        masked_mean(x, torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="no true position"):
        masked_mean(x, mask_of([3, 0]), dim=1)


# ---- whiten


def test_whitening_by_hand_with_ddof_1():
    # 2, 4, 6: mean 4, variance (4 + 0 + 4) / (3 - 1) = 4, deviation 2. With ddof 0 it would be 1.633.
    x, mask = tensor([[2.0, 4.0], [6.0, NAN]]), mask_of([2, 1])
    torch.testing.assert_close(whiten(x, mask), tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_whitening_that_keeps_the_mean_divides_around_it():
    # 2, 4, 6 around their mean 4, at deviation 1: 3, 4, 5
    x, mask = tensor([[2.0, 4.0], [6.0, NAN]]), mask_of([2, 1])
    torch.testing.assert_close(whiten(x, mask, shift_mean=False), tensor([[3.0, 4.0], [5.0, 0.0]]))


def test_whitening_equal_values_gives_0_and_nearly_equal_ones_no_noise_of_size_1():
    # 1e-8 is added to the variance: -1e-4 and 1e-4 have 2e-8, and become 1e-4 / sqrt(3e-8)
    assert whiten(torch.full((1, 3), 0.5), mask_of([3])).tolist() == [[0.0, 0.0, 0.0]]
    near = whiten(tensor([[-1e-4, 1e-4]], dtype=torch.float64), mask_of([2]))
    torch.testing.assert_close(near, tensor([[-0.577350, 0.577350]], dtype=torch.float64), atol=1e-6, rtol=0)


@quickly
@given(ragged, seeds)
def test_whitened_values_have_mean_0_and_variance_1_and_are_0_off_the_mask(mask, seed):
    white = whiten(noise(mask, seed), mask)
    assert white[~mask].eq(0).all()
    assert abs(white[mask].mean().item()) < 1e-6
    assert white[mask].var(unbiased=True).item() == pytest.approx(1, abs=1e-3)


def test_whitening_one_token_is_an_error_that_says_how_many_there_were():
    with pytest.raises(ValueError, match="at least two tokens.*got 1"):
        whiten(torch.ones(1, 2), mask_of([1], 2))


# ---- token_weights, aggregate


def test_three_denominators_by_hand():
    # Lengths 3, 1 and 0. The empty row is no sequence: 4 tokens, 2 sequences.
    mask = mask_of([3, 1, 0])
    # a token counts 1/4
    assert token_weights(mask, "token").tolist() == [[0.25, 0.25, 0.25], [0.25, 0, 0], [0, 0, 0]]
    # a token counts 1/(2 * 3) in the first row and 1/(2 * 1) in the second
    torch.testing.assert_close(
        token_weights(mask, "sequence"), tensor([[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0], [0, 0, 0]])
    )
    # a token counts 1/(2 * 10)
    torch.testing.assert_close(
        token_weights(mask, "constant", constant=10), tensor([[0.05, 0.05, 0.05], [0.05, 0, 0], [0, 0, 0]])
    )


def test_three_denominators_give_three_losses():
    # Losses 1, 2, 3 | 10: token mean 16/4 = 4; mean of the rows' means (2 + 10)/2 = 6; 16/(2 * 10) = 0.8
    loss, mask = tensor([[1.0, 2.0, 3.0], [10.0, NAN, NAN]]), mask_of([3, 1])
    assert aggregate(loss, mask, "token").item() == 4
    assert aggregate(loss, mask, "sequence").item() == 6
    assert aggregate(loss, mask, "constant", constant=10).item() == pytest.approx(0.8)


@quickly
@given(ragged)
def test_token_and_sequence_weights_sum_to_one(mask):
    for how in ("token", "sequence"):
        assert token_weights(mask, how).sum().item() == pytest.approx(1)


@quickly
@given(ragged)
def test_under_sequence_weights_every_answer_counts_the_same(mask):
    rows = token_weights(mask, "sequence").sum(1)
    answered = mask.any(1)
    assert rows[~answered].eq(0).all()
    torch.testing.assert_close(rows[answered], torch.full_like(rows[answered], 1 / int(answered.sum())))


@quickly
@given(ragged, seeds, st.integers(1, 3))
def test_an_empty_row_changes_no_loss(mask, seed, empty):
    x = noise(mask, seed)
    more_x = torch.cat([x, torch.full((empty, x.shape[1]), NAN, dtype=x.dtype)])
    more_mask = torch.cat([mask, torch.zeros(empty, mask.shape[1], dtype=torch.bool)])
    for how, constant in HOW:
        torch.testing.assert_close(
            aggregate(more_x, more_mask, how, constant), aggregate(x, mask, how, constant)
        )


@quickly
@given(ragged, seeds)
def test_padding_further_to_the_right_changes_no_loss(mask, seed):
    x = noise(mask, seed)
    wide_x, wide_mask = (torch.nn.functional.pad(t, (0, 3)) for t in (x, mask))
    for how, constant in HOW:
        torch.testing.assert_close(
            aggregate(wide_x, wide_mask, how, constant), aggregate(x, mask, how, constant)
        )


@quickly
@given(ragged, seeds, st.integers(1, 4), st.sampled_from(HOW))
def test_micro_batches_with_one_set_of_weights_add_up_to_the_step(mask, seed, size, denominator):
    x = noise(mask, seed)
    weights = token_weights(mask, *denominator)

    def in_parts(x):
        rows = zip(x.square().split(size), mask.split(size), weights.split(size))
        return sum((only(part, m) * w).sum() for part, m, w in rows)

    whole, whole_grad = value_and_gradient(lambda x: aggregate(x.square(), mask, *denominator), x)
    parts, parts_grad = value_and_gradient(in_parts, x)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(parts_grad, whole_grad)


def test_weights_computed_for_each_micro_batch_do_not_add_up():
    # Losses 1, 1, 1 | 4: the step's token mean is 7/4; the mean of the two micro-batches' means is (1 + 4)/2.
    loss, mask = tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]]), mask_of([3, 1])
    assert aggregate(loss, mask, "token").item() == 1.75
    halves = [aggregate(loss[i : i + 1], mask[i : i + 1], "token").item() for i in range(2)]
    assert sum(halves) / 2 == 2.5


@quickly
@given(ragged, seeds, st.sampled_from(GARBAGE))
def test_garbage_behind_the_mask_changes_no_value_and_no_gradient(mask, seed, garbage):
    clean = noise(mask, seed)
    dirty = clean.masked_fill(~mask, garbage)
    functions = [lambda x, h=h, c=c: aggregate(x, mask, h, c) for h, c in HOW]
    functions += [
        lambda x: masked_mean(x, mask),
        lambda x: whiten(x, mask).pow(3).sum(),
        lambda x: whiten(x, mask, shift_mean=False).pow(3).sum(),
    ]
    for function in functions:
        value, grad = value_and_gradient(function, dirty)
        expected, expected_grad = value_and_gradient(function, clean)
        assert torch.equal(value, expected) and torch.equal(grad, expected_grad)
        assert grad[~mask].eq(0).all()


def test_a_step_without_a_token_is_an_error():
    with pytest.raises(ValueError, match="no response token in this step"):
        token_weights(torch.zeros(2, 3, dtype=torch.bool), "token")


def test_an_unknown_denominator_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match='"token", "sequence" or "constant", got \'mean\''):
        token_weights(mask_of([1]), "mean")


@pytest.mark.parametrize("constant", [None, 0, -5])
def test_a_constant_denominator_must_be_given_and_positive(constant):
    with pytest.raises(ValueError, match=f"positive constant, got {constant}"):
        token_weights(mask_of([1]), "constant", constant)


def test_shapes_are_checked_when_called_wrongly():
    with pytest.raises(Exception, match="(?i)type-check|shape"):
        aggregate(torch.ones(2, 3), mask_of([3, 3, 3]), "token")
