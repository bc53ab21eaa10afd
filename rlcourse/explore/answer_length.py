"""How far three importance ratios spread around 1, as the answer gets longer.

Every token's log-ratio is drawn from one bell curve, independently of the others. The curve's middle
lies a little below 0, because ratios, being importance weights, have a mean of 1. Then the log of the
product spreads with the square root of the length, and the log of the geometric mean with one over
it. Real tokens are neither independent nor alike; the chapter measures what they do.
"""

from __future__ import annotations

import math

from rlcourse.explore.frames import slider_over

LENGTHS = [1, 4, 16, 64, 256, 1024, 4096, 16384]
SPREAD = 0.02  # of one token's log-ratio: a small step of a large model
TOKEN_CLIP = (0.2, 0.27)  # of the ratio, down and up: GRPO in GSPO's paper, section 5.1
SEQUENCE_CLIP = (3e-4, 4e-4)  # GSPO there


def spreads(length: int, spread: float = SPREAD) -> dict[str, float]:
    """The standard deviation of the log of each ratio."""
    return {
        "token": spread,
        "product": spread * math.sqrt(length),
        "geometric mean": spread / math.sqrt(length),
    }


def centres(length: int, spread: float = SPREAD) -> dict[str, float]:
    """The mean of the log of each ratio: exp of a bell curve has the mean 1 if its middle is at -spread^2 / 2."""
    one = -(spread**2) / 2
    return {"token": one, "product": one * length, "geometric mean": one}


def outside(centre: float, deviation: float, clip: tuple[float, float]) -> float:
    """The share of a bell curve of log-ratios that lies outside the clip, on either side."""
    low, high = centre - math.log(1 - clip[0]), math.log(1 + clip[1]) - centre

    def tail(x: float) -> float:
        return math.erfc(x / (deviation * math.sqrt(2))) / 2

    return tail(low) + tail(high)


def draw(length: int):
    """Three bell curves over the log of the ratio, each with the clip that its method puts around it."""
    import matplotlib.pyplot as plt
    import numpy as np

    from rlcourse.bookmaking.style import BLUE, GREEN, ORANGE

    centre, deviation = centres(length), spreads(length)
    panels = [
        ("token", "one token (GRPO)", ORANGE, TOKEN_CLIP),
        ("product", "product over the answer", GREEN, TOKEN_CLIP),
        ("geometric mean", "geometric mean (GSPO)", BLUE, SEQUENCE_CLIP),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0), sharey=True)
    for axis, (name, title, colour, clip) in zip(axes, panels, strict=True):
        edges = np.log([1 - clip[0], 1 + clip[1]])
        width = 2.0 * max(-edges[0], edges[1])  # the same for every length: the clip stays, the curve moves
        x = np.linspace(-width, width, 601)
        axis.plot(x, np.exp(-0.5 * ((x - centre[name]) / deviation[name]) ** 2), color=colour)
        axis.axvspan(*edges, color="0.9", zorder=0)
        share = outside(centre[name], deviation[name], clip)
        said = f"{share:.0%}" if share >= 0.01 or share == 0 else "under 1 %"
        axis.set(title=title, xlabel="log of the ratio", yticks=[], ylim=(0, 1.25))
        axis.annotate(f"outside: {said}", (0.5, 0.93), xycoords="axes fraction", ha="center", fontsize=12)
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_ylabel("how often (peak = 1)")
    figure.suptitle(f"{length} token{'s' * (length > 1)} in the answer")
    return figure


def answer_length_explorer():
    """Slide the number of tokens in an answer."""
    return slider_over(
        LENGTHS,
        draw,
        description="tokens in the answer",
        alt="Three bell curves, the log-ratio of a token, of the product and of the geometric mean, for an "
        "answer of {} tokens, each over the interval that its clip allows",
        start=2,
    )
