"""pass@k: unbiased, which its naive form is not; accuracy on problems that no training draws."""

import itertools
from fractions import Fraction

import pytest
import torch
from tiny import build, characters

from rlcourse import Policy
from rlcourse.evaluate import accuracy, pass_at_k
from rlcourse.tasks import Sums


def test_pass_at_k_by_hand():
    # 4 tries, 1 right: of the 6 pairs of tries 3 hold the right one
    assert pass_at_k(4, 1, 2) == 0.5
    # 5 tries, 2 right: of the 10 triples only 1 holds none of them
    assert pass_at_k(5, 2, 3) == 0.9
    assert pass_at_k(7, 0, 7) == 0 and pass_at_k(7, 1, 7) == 1 and pass_at_k(3, 2, 2) == 1


@pytest.mark.parametrize("samples", [2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_try(samples):
    for correct in range(samples + 1):
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(range(samples), k))
            share = Fraction(sum(min(subset) < correct for subset in subsets), len(subsets))
            assert pass_at_k(samples, correct, k) == pytest.approx(float(share), abs=1e-12)


def test_pass_at_k_is_unbiased_and_the_naive_form_is_not():
    # 6 tries at a chance of 0.3 each: average both over the binomial law of their number of right ones
    p, n, k = Fraction(3, 10), 6, 3
    law = [len(list(itertools.combinations(range(n), c))) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    ours = sum(float(share) * pass_at_k(n, c, k) for c, share in enumerate(law))
    naive = sum(float(share) * (1 - (1 - c / n) ** k) for c, share in enumerate(law))
    assert ours == pytest.approx(float(1 - (1 - p) ** k), abs=1e-12)
    assert naive < ours - 0.02


def test_counts_may_be_tensors():
    assert pass_at_k(torch.tensor(4), torch.tensor(1), 2) == 0.5


@pytest.mark.parametrize(("samples", "correct", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_impossible_counts_are_refused(samples, correct, k):
    with pytest.raises(ValueError, match="needs at least|cannot be"):
        pass_at_k(samples, correct, k)


def test_accuracy_is_the_share_of_right_answers_and_repeats():
    class BeginsWithA(Sums):
        def grade(self, rollout):
            right = torch.tensor([text.startswith("a") for text in rollout.texts])
            return {"rewards": right.float(), "correct": right}

    policy, task = Policy(build("llama"), characters()), BeginsWithA()
    found = accuracy(policy, task, problems=200)
    assert 0 < found < 1 and found * 200 == pytest.approx(round(found * 200), abs=1e-3)
    assert found == accuracy(policy, task, problems=200)
    assert found != accuracy(policy, task, problems=200, seed=1)
