"""maj@k: ask k times, and take the answer that comes up most often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import comb


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """The chance that the commonest answer of k tries is right, the k drawn from these tries without putting back.

    Exact: every choice of k is counted. A try without an answer (None) casts no vote, of answers that tie one is
    drawn by lot, and where nobody votes nothing is right. Libraries that take the first of the tied answers, or
    count "no answer" as a vote, give other numbers.

    >>> majority_at_k(["137", "137", "136"], [True, True, False], k=3)
    1.0
    >>> majority_at_k(["137", "136"], [True, False], k=2)
    0.5
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} needs at least {k} samples, got {len(answers)}")
    votes = Counter(answer for answer in answers if answer is not None)
    right = {answer for answer, is_right in zip(answers, correct, strict=True) if is_right}
    silent, won = len(answers) - votes.total(), Fraction(0)
    for top in range(1, min(k, max(votes.values(), default=0)) + 1):  # of votes that the winner has
        # in how many ways: (tries drawn, answers with `top` votes, right ones of those); no answer has more
        ways = Counter({(drawn, 0, 0): comb(silent, drawn) for drawn in range(min(silent, k) + 1)})
        for answer, count in votes.items():
            before, ways = ways, Counter()
            for (drawn, tied, good), number in before.items():
                for chosen in range(min(count, top, k - drawn) + 1):
                    leads = chosen == top
                    after = (drawn + chosen, tied + leads, good + (leads and answer in right))
                    ways[after] += number * comb(count, chosen)
        won += sum(Fraction(n * good, tied) for (drawn, tied, good), n in ways.items() if drawn == k and tied)
    return float(won / comb(len(answers), k))
