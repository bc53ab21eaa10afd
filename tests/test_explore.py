"""The explorers: their arithmetic, and what the browser is given."""

import math

import pytest

from rlcourse.explore import group_advantages_explorer, slider_over
from rlcourse.explore.group_advantages import of_right_and_wrong


def test_the_rarer_answer_has_the_larger_advantage_by_hand():
    # one right of four: deviations 3/4 and -1/4, standard deviation 1/2
    assert of_right_and_wrong(1, 4) == pytest.approx((1.5, -0.5), abs=1e-3)
    assert of_right_and_wrong(3, 4) == pytest.approx((0.5, -1.5), abs=1e-3)


def test_a_group_without_disagreement_has_no_advantage():
    right, wrong = of_right_and_wrong(0, 8)
    assert math.isnan(right) and wrong == 0
    right, wrong = of_right_and_wrong(8, 8)
    assert right == 0 and math.isnan(wrong)


def test_every_position_of_the_slider_has_a_picture_with_words():
    slider, stack = group_advantages_explorer(group_size=4).children
    assert [value for _, value in slider.options] == [0, 1, 2, 3, 4] == list(range(len(stack.children)))
    assert slider.index == stack.selected_index == 1
    assert [f"{k} of them right" in frame.value for k, frame in enumerate(stack.children)] == [True] * 5


def test_too_many_frames_are_refused():
    with pytest.raises(ValueError, match="13 frames"):
        slider_over(list(range(13)), None, "", "")
