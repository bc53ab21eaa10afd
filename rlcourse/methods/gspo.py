"""GSPO (Zheng et al., 2025): the answer is what is rewarded, so the answer is what gets a ratio.

idea       one importance ratio an answer, the geometric mean of its tokens' ratios
objective  mean over responses of  min(s A, clip(s, 1 - 3e-4, 1 + 4e-4) A),  s = (pi(y) / pi_old(y))^(1/|y|)
fixes      GRPO's token ratios: each is a correction from a single sample, their noise adds up over
           a long answer, and in a mixture of experts a token's ratio jumps when its experts change
breaks     an answer is clipped whole: one token that has moved takes the others with it
GSPO-token the same value, with the gradient of each token by itself, for advantages that differ by token
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.methods.grpo import GRPO
from rlcourse.methods.ppo import clip_active, clipped_surrogate
from rlcourse.methods.protocol import Paper
from rlcourse.tensors import each_token, only, token_weights

PAPER = Paper("Group Sequence Policy Optimization", "arXiv 2507.18071", "2025-07-24")


def log_sequence_ratio(
    logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """log s: the mean over an answer's tokens of log r."""
    log_ratio = only(logp, mask) - only(old_logp, mask).detach()
    return log_ratio.sum(1) / mask.sum(1).clamp(min=1)


def log_token_ratio(
    logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """GSPO-token's: the value is the sequence's log s, the gradient each token's own."""
    logp = only(logp, mask)
    return log_sequence_ratio(logp, old_logp, mask).detach()[:, None] + logp - logp.detach()


def gspo_per_token(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Float[Tensor, "B T"]:
    """The answer's one loss, on each of its tokens: weights that add up to 1 / B over them give it once."""
    log_s = each_token(log_sequence_ratio(logp, old_logp, mask), mask)
    advantages = each_token(advantages, mask)
    return clipped_surrogate(log_s, torch.zeros_like(log_s), advantages, clip_low, clip_high)


def gspo_token_per_token(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Float[Tensor, "B T"]:
    log_s, advantages = log_token_ratio(logp, old_logp, mask), each_token(advantages, mask)
    return clipped_surrogate(log_s, torch.zeros_like(log_s), advantages, clip_low, clip_high)


def gspo_loss(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """The mean over answers."""
    weights = token_weights(mask, "sequence") if weights is None else weights
    return (gspo_per_token(logp, old_logp, advantages, mask, clip_low, clip_high) * only(weights, mask)).sum()


def gspo_token_loss(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    weights = token_weights(mask, "sequence") if weights is None else weights
    per_token = gspo_token_per_token(logp, old_logp, advantages, mask, clip_low, clip_high)
    return (per_token * only(weights, mask)).sum()


@dataclass(frozen=True)
class GSPO(GRPO):
    clip: ClassVar = None  # no longer a field
    beta: ClassVar = 0.0
    clip_low: float = 3e-4  # for answers of thousands of tokens; the pocket's short ones need far more
    clip_high: float = 4e-4
    token: bool = False  # GSPO-token
    minibatches: int = 4

    def loss(self, batch, state):
        b, low, high = batch, self.clip_low, self.clip_high
        per_token = (gspo_token_per_token if self.token else gspo_per_token)(
            b.logp, b.old_logp, b.advantages, b.mask, low, high
        )
        with torch.no_grad():
            log_s = log_sequence_ratio(b.logp, b.old_logp, b.mask)
            clipped = clip_active(log_s, torch.zeros_like(log_s), b.advantages, low, high)
        return per_token, {"clip_fraction": clipped.float()[:, None].expand_as(b.mask)}
