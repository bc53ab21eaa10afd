"""Dr. GRPO (Liu et al., 2025): GRPO done right, by leaving out two divisions.

idea       divide neither by the answer's length nor by the group's std: both bias the gradient
objective  mean over responses of  (1 / constant) * sum over tokens of  min(r A, clip(r) A),
           A = reward - mean of its group
fixes      under GRPO a wrong answer is punished less per token the longer it is, and questions that
           are nearly always right or nearly always wrong count more than those in between
breaks     a constant to choose; the step's size now moves with the lengths of the answers
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.methods.grpo import GRPO, grpo_loss
from rlcourse.methods.protocol import Paper
from rlcourse.tensors import token_weights

PAPER = Paper("Understanding R1-Zero-Like Training: A Critical Perspective", "arXiv 2503.20783", "2025-03-26")


def dr_grpo_loss(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    max_length: int,
    clip: float = 0.2,
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """The sum over tokens, divided by answers * max_length: a constant, whatever was sampled."""
    weights = token_weights(mask, "constant", max_length) if weights is None else weights
    return grpo_loss(logp, old_logp, advantages, mask, clip, weights=weights)


@dataclass(frozen=True)
class DrGRPO(GRPO):
    scale: bool = False
    max_length: int | None = None  # the constant; None for the run's token limit

    def weights(self, batch):
        return token_weights(batch.mask, "constant", self.max_length or batch.max_tokens)
