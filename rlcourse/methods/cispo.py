"""CISPO (MiniMax, 2025): clip the weight, not the update.

idea       a token whose ratio is clipped by PPO learns nothing; here the ratio is only a weight on
           the policy gradient, and what is cut is the weight: every token keeps its gradient
objective  mean over tokens of  sg(clip(r, 1 - low, 1 + high)) * A * log pi
fixes      PPO's clip silences first the rare tokens ("However", "Wait") at which reasoning forks
breaks     nothing stops a token from moving on: the weight is bounded, the step is not
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.methods.grpo import GRPO
from rlcourse.methods.protocol import Paper
from rlcourse.methods.reinforce import reinforce_per_token
from rlcourse.tensors import each_token, only, token_weights

PAPER = Paper(
    "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
    "arXiv 2506.13585",
    "2025-06-16",
)


def cispo_per_token(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> Float[Tensor, "B T"]:
    """-sg(clip(r)) * A * logp. 0 off the mask."""
    logp, old_logp = only(logp, mask), only(old_logp, mask)
    weight = (logp - old_logp).exp().clamp(1 - clip_low, 1 + clip_high).detach()
    return weight * reinforce_per_token(logp, each_token(advantages, mask))


def cispo_loss(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip_low: float = 1.0,
    clip_high: float = 4.0,
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """The mean over all tokens of the step."""
    weights = token_weights(mask, "token") if weights is None else weights
    per_token = cispo_per_token(logp, old_logp, advantages, mask, clip_low, clip_high)
    return (per_token * only(weights, mask)).sum()


@dataclass(frozen=True)
class CISPO(GRPO):
    clip: ClassVar = None  # no longer a field
    beta: ClassVar = 0.0
    clip_low: float = 1.0  # no lower bound, as in the paper
    clip_high: float = (
        4.0  # the paper names no number; TRL's epsilon_high is the cap itself, so 5 there is 4 here
    )
    minibatches: int = 16

    def weights(self, batch):
        return token_weights(batch.mask, "token")

    def loss(self, batch, state):
        b, low, high = batch, self.clip_low, self.clip_high
        with torch.no_grad():
            ratio = (only(b.logp, b.mask) - only(b.old_logp, b.mask)).exp()
            clipped = (ratio < 1 - low) | (ratio > 1 + high)
        per_token = cispo_per_token(b.logp, b.old_logp, b.advantages, b.mask, low, high)
        return per_token, {"clip_fraction": clipped.float()}
