"""Which weights a step can move: the step against the gaps between the numbers that bfloat16 has."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rlcourse.explore.frames import slider_over

STEPS = [1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
LARGEST = 2.0**-9  # a step of this share of a weight, or less, leaves it where it is


def lost(weights: Float[Tensor, " N"], step: float) -> Float[Tensor, " N"]:
    """1 for each weight that bfloat16 leaves where it is when the step is added, 0 for the others.

    >>> from torch import tensor
    >>> lost(tensor([1.0, 0.02, 0.0001]), 1e-6)
    tensor([1., 1., 0.])
    """
    low = weights.bfloat16()
    return (low + step == low).float()


def draw(step: float, weights: Float[Tensor, " N"]):
    """The weights by size; those right of the line, in orange, do not notice the step."""
    import matplotlib.pyplot as plt
    import numpy as np

    from rlcourse.bookmaking.style import BLUE, ORANGE

    size = weights.abs().clamp(min=1e-7).log10()
    gone = lost(weights, step).bool()
    edges = np.linspace(-6, 1, 57)
    figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    counts = [np.histogram(part.numpy(), edges)[0] / len(size) for part in (size[gone], size[~gone])]
    axis.stairs(counts[0], edges, fill=True, color=ORANGE, label="the step is lost")
    axis.stairs(
        counts[0] + counts[1], edges, baseline=counts[0], fill=True, color=BLUE, label="the weight moves"
    )
    axis.axvline(np.log10(step / LARGEST), color="0.3", linestyle=":", linewidth=1.5)
    axis.set(
        xlabel="size of a weight", ylabel="share of the weights", ylim=(0, 0.14), xlim=(-6, 1),
        title=f"a step of {step:g}: lost by {gone.float().mean():.1%} of the weights",
    )  # fmt: skip
    axis.set_xticks(range(-6, 2), [f"$10^{{{power}}}$" for power in range(-6, 2)])
    axis.legend(loc="upper left")
    return figure


def rounding_explorer(weights: Float[Tensor, " N"]):
    """Slide the size of a step. `weights` are a model's, in one row."""
    if not len(weights):
        raise ValueError("no weights: give those of a model, torch.cat([p.flatten() for p in ...])")
    return slider_over(
        STEPS,
        lambda step: draw(step, weights),
        description="step",
        alt="How many weights of each size do not move in bfloat16 when a step of {} is added to them",
        start=STEPS.index(1e-6),
    )
