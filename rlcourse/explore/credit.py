"""What GAE pays each token of one answer, as lambda goes from the next value to the end of the answer."""

from __future__ import annotations

import torch

from rlcourse.explore.frames import slider_over
from rlcourse.methods.ppo import gae

LAMBDAS = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0]


def paid(values: list[float], reward: float, lam: float) -> list[float]:
    """The advantage of each token of an answer that gets its reward at the end; gamma is 1."""
    rewards = torch.zeros(1, len(values))
    rewards[0, -1] = reward
    mask = torch.ones(1, len(values), dtype=torch.bool)
    return gae(rewards, torch.tensor([values]), mask, 1.0, lam)[0][0].tolist()


def draw(lam: float, tokens: list[str], critics: dict[str, list[float]], reward: float):
    """A panel a critic, a bar a token. `critics` maps a title to V of the state before each token."""
    import matplotlib.pyplot as plt

    from rlcourse.bookmaking.style import BLUE, ORANGE

    figure, axes = plt.subplots(
        1, len(critics), figsize=(4.9 * len(critics), 3.1), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, values) in zip(axes[0], critics.items(), strict=True):
        advantages = paid(values, reward, lam)
        axis.bar(range(len(tokens)), advantages, color=[BLUE if a >= 0 else ORANGE for a in advantages])
        axis.axhline(0, color="0.3", linewidth=1)
        axis.set_xticks(range(len(tokens)), tokens, fontsize=9)
        axis.set(ylim=(-1.25, 1.25), xlabel="token of the answer", title=f"{title}, $\\lambda$ = {lam:g}")
    axes[0][0].set_ylabel("advantage $A_t$")
    return figure


def credit_explorer(tokens: list[str], critics: dict[str, list[float]], reward: float):
    """Slide lambda from 0, where a token answers for the next value only, to 1, where it answers for the end."""
    if wrong := [title for title, values in critics.items() if len(values) != len(tokens)]:
        raise ValueError(
            f"{wrong[0]!r} has {len(critics[wrong[0]])} values for {len(tokens)} tokens: one each"
        )
    return slider_over(
        LAMBDAS,
        lambda lam: draw(lam, tokens, critics, reward),
        description="lambda",
        alt="Bar charts of the advantage of each token of one answer at lambda = {}",
        start=LAMBDAS.index(0.95),
    )
