"""Do two judges agree: by hand, by brute force, and what cannot be seen from the scores of one prompt."""

import math
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import build, characters
from torch import tensor

from rlcourse import Policy
from rlcourse.evaluate.agreement import (
    auc_within,
    bootstrap,
    calibration,
    calibration_error,
    cohens_kappa,
    pair_accuracy,
    win_rate,
)
from rlcourse.methods.rft import best_of_n, best_of_n_kl, right_and_distinct

quickly = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 10_000)
labels = st.lists(st.sampled_from("abc"), min_size=2, max_size=12)


def draws(seed, *shape, coarse=False):
    """Normal numbers; coarse ones tie."""
    found = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return found.round() if coarse else found


# ---- kappa


def test_kappa_by_hand():
    # two people judge 50 grants: both say yes to 20, both no to 15, the first alone yes to 5, the second alone to 10.
    # They agree on 35 of 50, 0.7. The first says yes to half, the second to 0.6: by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    first = "y" * 20 + "n" * 15 + "y" * 5 + "n" * 10
    second = "y" * 20 + "n" * 15 + "n" * 5 + "y" * 10
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa([1, 0, 1, 0], [0, 1, 0, 1]) == -1  # always the opposite
    assert cohens_kappa("aaab", "aaba") == pytest.approx(
        (0.5 - 0.625) / 0.375
    )  # half the same, and worse than chance
    assert cohens_kappa("aa", "bb") == 0  # never the same, as chance would have it


@quickly
@given(labels, st.data())
def test_kappa_knows_no_first_no_order_and_no_names_and_is_at_most_1(first, data):
    second = data.draw(st.lists(st.sampled_from("abc"), min_size=len(first), max_size=len(first)))
    if len({*first, *second}) == 1:
        return
    kappa = cohens_kappa(first, second)
    assert kappa <= 1 and (kappa == 1) == (first == second)
    assert (
        kappa
        == pytest.approx(cohens_kappa(second, first))
        == pytest.approx(cohens_kappa(first[::-1], second[::-1]))
    )
    renamed = {"a": "c", "b": "a", "c": "b"}
    assert kappa == pytest.approx(cohens_kappa([renamed[x] for x in first], [renamed[x] for x in second]))
    # by hand: against every pairing of one's labels with the other's
    chance = sum(a == b for a in first for b in second) / len(first) ** 2
    same = sum(map(str.__eq__, first, second)) / len(first)
    assert kappa == pytest.approx((same - chance) / (1 - chance))


def test_kappa_of_independent_judges_is_about_0_where_their_agreement_is_high():
    first, second = (torch.rand(4000, generator=torch.Generator().manual_seed(s)) < 0.9 for s in (0, 1))
    assert (first == second).float().mean() > 0.8
    assert abs(cohens_kappa(first.tolist(), second.tolist())) < 0.06


def test_kappa_beside_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for seed in range(5):
        first, second = (
            torch.randint(3, (40,), generator=torch.Generator().manual_seed(s)) for s in (seed, seed + 9)
        )
        expected = metrics.cohen_kappa_score(first.numpy(), second.numpy())
        assert cohens_kappa(first.tolist(), second.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("ab", "abc", "two labels for each item; got 2 and 3"),
        ("", "", "got 0 and 0"),
        ("aaa", "aaa", "the same label: there is no agreement beyond chance"),
    ],
)
def test_kappa_refuses(first, second, says):
    with pytest.raises(ValueError, match=says):
        cohens_kappa(first, second)


# ---- accuracy, win rates, AUC


def test_pair_accuracy_by_hand():
    assert pair_accuracy(tensor([1.0, 2.0, 3.0, 0.0]), tensor([0.0, 2.0, 4.0, -1.0])) == 0.625  # 1, 1/2, 0, 1
    assert pair_accuracy(torch.zeros(5), torch.zeros(5)) == 0.5


@quickly
@given(seeds, st.booleans())
def test_our_wins_and_theirs_add_up_to_1_and_only_the_order_of_a_pair_counts(seed, coarse):
    ours, theirs = draws(seed, 2, 9, coarse=coarse)
    won = win_rate(ours, theirs)
    assert won + win_rate(theirs, ours) == pytest.approx(1)
    shift = draws(seed + 1, 9, coarse=True) * 4
    assert win_rate(ours.double() + shift, theirs.double() + shift) == pytest.approx(won)
    each = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours.tolist(), theirs.tolist())]
    assert won == pytest.approx(sum(each) / 9)


def test_auc_by_hand():
    # the first prompt's good answer beats one bad one and ties with the other: 3/4; the second's loses: 0;
    # the third has only good ones and is left out
    scores = tensor([[2.0, 1.0, 2.0], [0.0, 5.0, 9.0], [1.0, 1.0, 1.0]])
    good = tensor([[True, False, False], [True, False, False], [True, True, True]])
    assert auc_within(scores, good) == pytest.approx(3 / 8)
    with pytest.raises(ValueError, match="no prompt has both a good and a bad answer"):
        auc_within(scores[2:], good[2:])


@quickly
@given(seeds, st.booleans())
def test_auc_is_the_brute_force_one_and_a_constant_for_each_prompt_changes_nothing(seed, coarse):
    scores, good = draws(seed, 4, 5, coarse=coarse).double(), draws(seed + 1, 4, 5) > 0
    by_prompt = []
    for row, is_good in zip(scores.tolist(), good.tolist()):
        pairs = [(a, b) for (a, x), (b, y) in product(zip(row, is_good), repeat=2) if x and not y]
        if pairs:
            by_prompt.append(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    if not by_prompt:
        return
    found = auc_within(scores, good)
    assert found == pytest.approx(sum(by_prompt) / len(by_prompt))
    assert auc_within(scores + 100 * draws(seed + 2, 4, 1, coarse=True), good) == pytest.approx(found)
    assert auc_within(-scores, good) == pytest.approx(1 - found) == pytest.approx(auc_within(scores, ~good))


# ---- calibration


def test_calibration_by_hand():
    # two bins: 0.2 and 0.4 were said, one of two happened; 0.9 and 1.0 and 0.5 were said, and none happened
    predicted, happened = tensor([0.2, 0.4, 0.9, 1.0, 0.5]), tensor([True, False, False, False, False])
    (low, was, n), (high, also, m) = calibration(predicted, happened, bins=2)
    assert (low, was, n) == (pytest.approx(0.3), 0.5, 2) and (high, also, m) == (pytest.approx(0.8), 0.0, 3)
    assert calibration_error(predicted, happened, bins=2) == pytest.approx((2 * 0.2 + 3 * 0.8) / 5)
    assert [n for *_, n in calibration(predicted, happened, bins=10)] == [
        1,
        1,
        1,
        2,
    ]  # 0.9 and 1.0 share the last


@quickly
@given(seeds, st.integers(1, 12))
def test_every_prediction_is_in_one_bin_and_the_bins_means_add_up(seed, bins):
    predicted, happened = draws(seed, 30).sigmoid(), draws(seed + 1, 30) > 0
    rows = calibration(predicted, happened, bins)
    assert sum(n for *_, n in rows) == 30
    assert sum(said * n for said, _, n in rows) == pytest.approx(predicted.sum().item(), rel=1e-4)
    assert sum(was * n for _, was, n in rows) == pytest.approx(happened.sum().item(), rel=1e-4)
    assert 0 <= calibration_error(predicted, happened, bins) <= 1


def test_who_says_what_happens_is_calibrated_and_who_is_too_sure_is_not():
    p = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    happened = torch.rand(20_000, generator=torch.Generator().manual_seed(1)) < p
    assert calibration_error(p, happened) < 0.02
    assert calibration_error((3 * p.logit()).sigmoid(), happened) > 0.1


# ---- intervals


def mean(x):
    return x.mean().item()


def test_a_bootstrap_interval_holds_the_mean_about_as_often_as_it_says():
    held = {0.95: 0, 0.5: 0}
    for seed in range(200):
        for level in held:
            low, high = bootstrap(mean, draws(seed, 40), draws=200, level=level, seed=seed)
            held[level] += low < 0 < high
    assert 0.88 <= held[0.95] / 200 <= 0.99 and 0.38 <= held[0.5] / 200 <= 0.62


def test_a_bootstrap_interval_is_the_normal_one_where_that_holds():
    x = draws(1, 400)
    low, high = bootstrap(mean, x)
    half = 1.96 * x.std().item() / 20
    assert low == pytest.approx(mean(x) - half, abs=0.02) and high == pytest.approx(mean(x) + half, abs=0.02)
    assert (low, high) == bootstrap(mean, x) != bootstrap(mean, x, seed=1)
    narrow = bootstrap(mean, x, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_a_bootstrap_draws_whole_rows():
    ours = draws(2, 50)
    assert bootstrap(win_rate, ours, ours - 1, draws=50) == (
        1.0,
        1.0,
    )  # better in every row, whichever are drawn


# ---- rejection sampling


def test_right_answers_are_kept_each_text_once_a_prompt():
    policy = Policy(build("llama"), characters())
    rollout = policy.answered(["1+", "1+", "1+", "1+", "2+", "2+"], ["1", "2", "1", "3", "1", "1"])[
        [0, 1, 2, 3, 4, 5]
    ]
    rollout.owner, rollout.prompts = tensor([0, 0, 0, 0, 1, 1]), ["1+", "2+"]
    rollout.correct = tensor([True, False, True, True, False, True])
    assert right_and_distinct(rollout) == [0, 3, 5]
    rollout.correct = torch.zeros(6, dtype=torch.bool)
    assert right_and_distinct(rollout) == []


def test_the_best_of_n_is_the_first_of_those_that_earned_most():
    assert best_of_n(tensor([[0.0, 2.0, 1.0], [3.0, 1.0, 3.0], [-2.0, -1.0, -1.0]])).tolist() == [1, 0, 1]


@quickly
@given(seeds, st.booleans())
def test_nothing_earned_more_than_the_best_and_nothing_before_it_as_much(seed, coarse):
    rewards = draws(seed, 5, 4, coarse=coarse)
    for row, best in zip(rewards.tolist(), best_of_n(rewards).tolist()):
        assert row[best] == max(row) and best == row.index(max(row))


def best_of_n_law(p, n):
    """The chance that each answer is the best of n, answers being ordered by their reward: by enumeration."""
    law = torch.zeros(len(p), dtype=torch.float64)
    for drawn in product(range(len(p)), repeat=n):
        law[max(drawn)] += p[list(drawn)].prod()
    return law


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_kl_of_best_of_n_is_below_its_bound_whatever_the_policy(n, seed):
    p = draws(seed, 5).double().softmax(0)
    law = best_of_n_law(p, n)
    assert law.sum().item() == pytest.approx(1)
    kl = (law * (law / p).log()).sum().item()
    assert 0 <= kl + 1e-12 and kl <= best_of_n_kl(n) + 1e-12
    assert n == 1 or kl < best_of_n_kl(n) - 0.01


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_bound_is_reached_by_many_answers_each_unlikely_by_itself(n):
    gaps = []
    for size in (
        10,
        1000,
        100_000,
    ):  # all equally likely: the best of n is at most the i-th with (i / size)^n
        below = torch.arange(size + 1, dtype=torch.float64) / size
        law = below[1:] ** n - below[:-1] ** n
        gaps.append(best_of_n_kl(n) - (law * (law * size).log()).sum().item())
    assert gaps == sorted(gaps, reverse=True) and 0 <= gaps[-1] < 1e-3


def test_the_bound_by_hand():
    assert best_of_n_kl(1) == 0 and best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)
    assert all(best_of_n_kl(b) > best_of_n_kl(a) for a, b in combinations(range(1, 20), 2))
