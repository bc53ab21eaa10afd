"""What a group's advantages are, as the number of right answers in it changes."""

from __future__ import annotations

import torch

from rlcourse.explore.frames import slider_over
from rlcourse.methods.grpo import group_advantages


def of_right_and_wrong(right: int, group_size: int, scale: bool = True) -> tuple[float, float]:
    """The advantage of a right answer and of a wrong one; NaN where the group has none."""
    rewards = torch.tensor([[1.0] * right + [0.0] * (group_size - right)])
    advantages = group_advantages(rewards, scale)[0].tolist()
    return (
        advantages[0] if right > 0 else float("nan"),
        advantages[-1] if right < group_size else float("nan"),
    )


def draw(right: int, group_size: int = 8):
    """One bar an answer: right ones first."""
    import matplotlib.pyplot as plt

    from rlcourse.bookmaking.style import BLUE, ORANGE

    good, bad = of_right_and_wrong(right, group_size)
    heights = [good] * right + [bad] * (group_size - right)
    colours = [BLUE] * right + [ORANGE] * (group_size - right)
    figure, axis = plt.subplots(figsize=(6.4, 3.0))
    axis.bar(range(1, group_size + 1), heights, color=colours)
    axis.axhline(0, color="0.3", linewidth=1)
    for x, height in enumerate(heights, start=1):
        axis.annotate(
            f"{height:.2f}", (x, height), ha="center", fontsize=11,
            va="bottom" if height >= 0 else "top",
        )  # fmt: skip
    tied = right in (0, group_size)
    axis.set(
        ylim=(-2.9, 2.9), xlabel="answer (right ones first)", ylabel="advantage $A_i$",
        title=f"{right} of {group_size} right" + (": no signal" if tied else ""),
    )  # fmt: skip
    axis.set_xticks(range(1, group_size + 1))
    return figure


def group_advantages_explorer(group_size: int = 8):
    """Slide the number of right answers from none to all."""
    return slider_over(
        list(range(group_size + 1)),
        lambda right: draw(right, group_size),
        description="right answers",
        alt="Bar chart of the advantages of a group of answers, {} of them right",
        start=1,
    )
