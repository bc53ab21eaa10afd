"""The explorer of lost steps: which weights bfloat16 leaves where they are."""

import re

import pytest
import torch

from rlcourse.explore.rounding import LARGEST, STEPS, lost, rounding_explorer

WEIGHTS = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 0.1


def test_around_one_by_hand():
    # above 1 bfloat16 goes on in steps of 1/128: less than half of that is lost, and half too, for 1 is even
    ones = torch.ones(1)
    assert lost(ones, 2**-9).item() == lost(ones, 2**-8).item() == 1
    assert lost(ones, 3 * 2**-9).item() == lost(ones, 2**-7).item() == 0


def test_below_one_the_gaps_are_half_as_wide():
    below = torch.full((1,), 1 - 2**-8)  # the neighbour of 1; up to 1 it is 1/256
    assert lost(below, 2**-10).item() == 1 and lost(below, 3 * 2**-10).item() == 0


def test_the_line_is_where_the_first_step_is_lost():
    step = 1e-6
    assert lost(torch.tensor([step / LARGEST]), step).item() == 1
    assert lost(torch.tensor([step / LARGEST / 2.01]), step).item() == 0  # a power of two below


def test_a_sign_changes_nothing_for_most_and_a_larger_step_loses_fewer():
    shares = [lost(WEIGHTS, step).mean().item() for step in STEPS]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.99 and shares[-1] < 0.1
    assert lost(-WEIGHTS, -1e-5).mean() == lost(WEIGHTS, 1e-5).mean()


def test_each_position_has_a_picture_whose_words_name_it():
    slider, stack = rounding_explorer(WEIGHTS).children
    assert len(slider.options) == len(stack.children) == len(STEPS)
    said = [re.search(r'alt="([^"]*)"', frame.value)[1] for frame in stack.children]
    assert all(f" {label} " in words for (label, _), words in zip(slider.options, said))
    assert slider.label == "1e-06" and stack.selected_index == slider.index
    assert len({re.search(r'base64,([^"]+)"', frame.value)[1] for frame in stack.children}) == len(STEPS)


def test_no_weights_is_an_error_that_says_what_to_give():
    with pytest.raises(ValueError, match="no weights"):
        rounding_explorer(torch.zeros(0))
