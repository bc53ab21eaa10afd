"""The explorers of distributions, denominators, lengths and temperature, and pictures in few colours."""

import math
import re
from base64 import b64decode
from io import BytesIO

import ipywidgets
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from rlcourse.explore.adaptive_lambda import adapted, adaptive_lambda_explorer, reach
from rlcourse.explore.best_of import best_of_explorer
from rlcourse.explore.denominators import LENGTHS, denominators_explorer, weights
from rlcourse.explore.estimators import STEPS, estimators_explorer, logits, moments
from rlcourse.explore.overlong import CACHES, LIMIT, overlong_explorer, penalties
from rlcourse.explore.palette import COLOURS, in_palette, still
from rlcourse.explore.temperature import TEMPERATURES, at_temperature, temperature_explorer
from rlcourse.kl import exact_kl

EXPLORERS = [
    (adaptive_lambda_explorer, 8, "1600"),
    (denominators_explorer, len(LENGTHS), "32"),
    (estimators_explorer, len(STEPS), "0.5"),
    (overlong_explorer, len(CACHES), "4096"),
    (temperature_explorer, len(TEMPERATURES), "1.0"),
]


@pytest.mark.parametrize("explorer, positions, start", EXPLORERS)
def test_each_position_has_a_picture_whose_words_name_it(explorer, positions, start):
    slider, stack = explorer().children
    assert len(slider.options) == len(stack.children) == positions
    said = [re.search(r'alt="([^"]*)"', frame.value)[1] for frame in stack.children]
    assert (
        all(f" {label}" in words for (label, _), words in zip(slider.options, said))
        and len(set(said)) == positions
    )
    assert slider.label == start and stack.selected_index == slider.index
    pictures = {re.search(r'base64,([^"]+)"', frame.value)[1] for frame in stack.children}
    assert len(pictures) == positions  # no two positions show the same


def test_slider_and_pictures_are_linked_in_the_browser(monkeypatch):
    linked = []
    monkeypatch.setattr(ipywidgets, "jslink", lambda *ends: linked.append(ends))
    slider, stack = denominators_explorer().children
    assert linked == [((slider, "index"), (stack, "selected_index"))]


# Estimators


def test_estimators_of_two_coins_by_hand():
    # policy (3/4, 1/4), reference (1/4, 3/4): d = ln 3 and -ln 3, and KL = ln 3 / 2
    policy, reference = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.25, 0.75]).log()
    d, coin = math.log(3), math.sqrt(3) / 4  # the standard deviation of a coin of 3/4
    assert moments(policy, reference, "k1") == pytest.approx((d / 2, 2 * d * coin), abs=1e-6)
    assert moments(policy, reference, "k2") == pytest.approx((d * d / 2, 0), abs=1e-6)
    # k3 = exp(-d) - 1 + d: ln 3 - 2/3, and 2 - ln 3
    assert moments(policy, reference, "k3") == pytest.approx((d / 2, (8 / 3 - 2 * d) * coin), abs=1e-6)


def test_the_policy_of_the_picture_walks_away_from_its_reference():
    kls = [exact_kl(logits(4.0 + step), logits(4.0)).item() for step in [0.0, *STEPS]]
    assert kls[0] == 0 and kls == sorted(kls) and kls[-1] > 2


# Denominators


def test_weights_of_two_answers_by_hand():
    # 8 and 24 tokens: one of 32; half of one of 8, half of one of 24; one of 2 x 64
    assert weights(24, "token") == pytest.approx((1 / 32, 1 / 32))
    assert weights(24, "sequence") == pytest.approx((1 / 16, 1 / 48))
    assert weights(24, "constant") == pytest.approx((1 / 128, 1 / 128))


def test_under_the_mean_of_means_an_answers_length_does_not_change_its_share():
    for length in LENGTHS:
        short, long = weights(length, "sequence")
        assert 8 * short == pytest.approx(0.5) and length * long == pytest.approx(0.5)


# Overlong


def test_the_overlong_penalty_by_hand():
    # a cache of 4,000 before 20,480: nothing up to 16,480, half in the middle, all at the limit and beyond
    assert penalties([100, 16_480, 18_480, 20_480, 30_000], 4000) == pytest.approx([0, 0, -0.5, -1, -1])


def test_a_cache_of_one_token_is_a_cliff():
    assert penalties([LIMIT - 1, LIMIT], 1) == [0, -1]


# Length-adaptive lambda


def test_the_adapted_lambda_by_hand():
    assert adapted(400) == pytest.approx(0.95)  # 1 - 1 / 20
    assert adapted(40) == pytest.approx(0.5) and adapted(20) == adapted(5) == 0
    assert adapted(8, alpha=0.5) == pytest.approx(0.75)


def test_the_reward_reaches_back_by_powers_of_lambda():
    assert reach(4, 0.5) == pytest.approx([0.125, 0.25, 0.5, 1.0])
    assert reach(3, 0.0) == [0, 0, 1] and reach(3, 1.0) == [1, 1, 1]


# Temperature


def test_temperature_by_hand():
    # odds of 3 to 1: 9 to 1 at temperature 1/2, root 3 to 1 at temperature 2
    two = [math.log(3), 0.0]
    assert at_temperature(two, 1.0)[0] == pytest.approx([0.75, 0.25])
    assert at_temperature(two, 0.5)[0] == pytest.approx([0.9, 0.1])
    assert at_temperature(two, 2.0)[0][0] == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)))
    assert at_temperature(two, 1.0)[1] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert at_temperature(two, 0.5)[1] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert at_temperature([0.0] * 8, 0.1)[1] == pytest.approx(math.log(8))


# Few colours


def test_a_frame_shows_the_same_in_few_colours_and_fewer_bytes():
    from rlcourse.explore import best_of

    scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    buffer = BytesIO()
    best_of.draw(4, scores, scores).savefig(buffer, format="png")
    small = in_palette(buffer.getvalue())
    assert len(small) < len(buffer.getvalue()) / 2
    a, b = (
        np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int) for png in (buffer.getvalue(), small)
    )
    # of 255: the small orange dot keeps its colour, and large areas theirs
    assert np.abs(a - b).max() < 40 and np.abs(a - b).mean() < 0.5
    shown = best_of_explorer(scores, scores).children[1].children[0].value
    assert len(Image.open(BytesIO(b64decode(re.search(r'base64,([^"]+)"', shown)[1]))).getcolors()) <= COLOURS


def test_a_picture_in_few_colours_has_few():
    noise = BytesIO()
    Image.effect_noise((32, 32), 80).convert("RGB").save(noise, "png")
    assert len(Image.open(BytesIO(in_palette(noise.getvalue()))).getcolors()) <= COLOURS


def test_a_still_says_in_words_what_it_shows_and_leaves_no_figure_behind():
    open_before = plt.get_fignums()
    shown = still(plt.figure(), alt="nothing yet")
    _, metadata = shown._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "nothing yet"
    assert plt.get_fignums() == open_before
