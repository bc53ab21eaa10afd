"""How far may a measured mean be off? 95% intervals for shares of problems, and for a few seeds.

>>> mean, margin = mean_and_margin([0.80, 0.84, 0.85])
>>> f"{mean:.2f} ± {margin:.2f}"
'0.83 ± 0.07'
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, inf, pi, sin, sqrt, tan
from statistics import NormalDist, mean, pvariance, stdev

LEVEL = 0.95


def mean_and_margin(values: Sequence[float], level: float = LEVEL) -> tuple[float, float | None]:
    """The mean and half the width of its interval by Student's t; one value has no spread, and no interval."""
    if len(values) < 2:
        return mean(values), None
    return mean(values), student_t(len(values) - 1, level) * stdev(values) / sqrt(len(values))


def student_t(freedom: int, level: float = LEVEL) -> float:
    """The t that holds `level` of Student's distribution between -t and t.

    >>> [round(student_t(freedom), 3) for freedom in (1, 2, 9, 1000)]
    [12.706, 4.303, 2.262, 1.962]
    """
    low, high = 0.0, pi / 2
    for _ in range(60):  # halve the angle's range: 60 times is all that a float holds
        angle = (low + high) / 2
        low, high = (angle, high) if _held(angle, freedom) < level else (low, angle)
    return sqrt(freedom) * tan(low)


def _held(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)): Abramowitz and Stegun's Handbook, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    series = 0.0 if freedom == 1 else term
    for j in range(2 + odd, freedom - 1, 2):
        term *= (j - 1) / j * cos(angle) ** 2
        series += term
    return 2 / pi * (angle + sin(angle) * series) if odd else sin(angle) * series


def share_interval(
    shares: Sequence[float], tries: int | None = None, level: float = LEVEL
) -> tuple[float, float]:
    """Wilson's interval for the mean share of right answers; `shares` has one number a problem, of so many `tries`.

    Tries at one problem resemble each other, so what counts is how much problems differ: the interval is that of as
    many independent tries as would give a mean this steady, and no more than were made. With one try a problem that is
    the number of problems.

    >>> low, high = share_interval([1.0] * 8 + [0.0] * 2)
    >>> f"{low:.3f} to {high:.3f}"
    '0.490 to 0.943'
    """
    p, spread = mean(shares), pvariance(shares)
    n = len(shares) * min(p * (1 - p) / spread if spread else 1, tries or inf)
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, reach = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return max(0.0, (middle - reach) / (1 + z * z / n)), min(1.0, (middle + reach) / (1 + z * z / n))
