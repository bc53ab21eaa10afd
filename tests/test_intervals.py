"""Intervals of means, and maj@k, against tables, brute force and simulation."""

import random
from collections import Counter
from itertools import combinations
from math import sqrt
from statistics import mean

import pytest

from rlcourse.evaluate.interval import mean_and_margin, share_interval, student_t
from rlcourse.evaluate.majority import majority_at_k


@pytest.mark.parametrize(
    ("freedom", "level", "t"),  # any textbook's table
    [
        *[(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (5, 0.95, 2.571)],
        *[(10, 0.95, 2.228), (29, 0.95, 2.045), (30, 0.95, 2.042), (120, 0.95, 1.980)],
        *[(1, 0.90, 6.314), (2, 0.99, 9.925), (7, 0.99, 3.499), (1, 0.5, 1.0)],
    ],
)
def test_students_t_is_the_one_in_the_tables(freedom, level, t):
    assert student_t(freedom, level) == pytest.approx(t, abs=6e-4)


def test_the_margin_of_three_seeds_is_t_times_their_standard_error():
    middle, margin = mean_and_margin([0.80, 0.84, 0.85])
    assert middle == pytest.approx(0.83) and margin == pytest.approx(4.30265 * 0.0264575 / sqrt(3), rel=1e-4)


def test_one_value_has_no_interval():
    assert mean_and_margin([0.5]) == (0.5, None)


def test_the_interval_holds_the_true_mean_19_times_in_20():
    rng = random.Random(0)
    held = 0
    for _ in range(2000):
        middle, margin = mean_and_margin([rng.gauss(3.0, 2.0) for _ in range(3)])
        held += abs(middle - 3.0) <= margin
    assert 0.935 < held / 2000 < 0.965  # a normal's 1.96 in the place of 4.3 holds it 0.81 of the time


def test_with_one_try_a_problem_the_interval_of_a_share_is_wilsons():
    low, high = share_interval([1.0] * 8 + [0.0] * 2)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson's score interval for 8 of 10


def test_a_perfect_score_is_not_certain():
    low, high = share_interval([1.0] * 20)
    assert low == pytest.approx(0.8389, abs=1e-4) and high == 1.0
    assert share_interval([0.0] * 20) == pytest.approx((0.0, 1 - 0.8389), abs=1e-4)


def test_more_tries_at_problems_that_are_all_right_or_all_wrong_add_nothing():
    assert share_interval([1.0, 0.0, 1.0, 1.0]) == share_interval([16 / 16, 0 / 16, 16 / 16, 16 / 16])
    steady, split = share_interval([0.5, 0.6, 0.4, 0.5]), share_interval([1.0, 0.0, 1.0, 0.0])
    assert steady[1] - steady[0] < split[1] - split[0]


def test_an_interval_is_no_narrower_than_the_tries_made_allow():
    shares = [0.5, 0.5, 0.5, 0.5625]  # problems that hardly differ, by chance
    assert share_interval(shares, 16) == pytest.approx(share_interval([1.0] * 33 + [0.0] * 31), abs=1e-9)
    low, high = share_interval(shares)
    assert high - low < 0.06


def test_the_interval_of_a_share_holds_the_truth_19_times_in_20_when_tries_at_a_problem_resemble_each_other():
    rng, held = random.Random(1), 0
    for _ in range(1000):
        problems = [rng.betavariate(0.5, 0.5) for _ in range(60)]  # true mean 0.5, most are easy or hopeless
        shares = [sum(rng.random() < p for _ in range(4)) / 4 for p in problems]
        low, high = share_interval(shares)
        held += low <= 0.5 <= high
    assert 0.93 < held / 1000 < 0.97  # counted as 240 independent tries: 0.79


# ---- maj@k


def by_brute_force(answers, correct, k):
    """Every subset of k; of tied answers one by lot; None does not vote."""
    right, won, subsets = {a for a, c in zip(answers, correct) if c}, 0.0, list(combinations(answers, k))
    for subset in subsets:
        votes = Counter(answer for answer in subset if answer is not None)
        top = [answer for answer in votes if votes[answer] == max(votes.values())]
        won += mean(answer in right for answer in top) if top else 0.0
    return won / len(subsets)


@pytest.mark.parametrize("seed", range(40))
def test_maj_at_k_is_the_mean_over_all_subsets(seed):
    rng = random.Random(seed)
    answers = [rng.choice(["1", "2", "3", "4", None]) for _ in range(rng.randint(1, 9))]
    correct = [answer in ("1", "4") for answer in answers]  # two ways to write the right one
    for k in range(1, len(answers) + 1):
        assert majority_at_k(answers, correct, k) == pytest.approx(
            by_brute_force(answers, correct, k), abs=1e-12
        )


def test_maj_at_1_is_accuracy_and_ties_are_drawn_by_lot():
    assert majority_at_k(["7", "7", "8", "9"], [True, True, False, False], 1) == 0.5
    assert majority_at_k(["7", "8"], [True, False], 2) == 0.5
    assert majority_at_k(["7", "8", "9"], [True, False, False], 3) == pytest.approx(1 / 3)


def test_who_gives_no_answer_does_not_vote():
    assert majority_at_k(["7", None, None], [True, False, False], 3) == 1.0
    assert majority_at_k([None, None], [False, False], 2) == 0.0


def test_votes_help_where_the_right_answer_leads_and_hurt_where_a_wrong_one_does():
    ahead = ["7"] * 6 + ["8"] * 2 + ["9"] * 2
    behind = ["7"] * 3 + ["8"] * 6 + ["9"]
    assert majority_at_k(ahead, [a == "7" for a in ahead], 5) > 0.75 > 0.6
    assert majority_at_k(behind, [a == "7" for a in behind], 5) < 0.2 < 0.3


def test_more_votes_than_tries_are_refused():
    with pytest.raises(ValueError, match="maj@3 needs at least 3 samples, got 2"):
        majority_at_k(["7", "8"], [True, False], 3)
