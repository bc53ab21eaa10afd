"""SAPO (Gao et al., 2025): a gate that closes softly, instead of a clip.

idea       weigh a token by a sigmoid of its ratio: full weight at 1, fading on both sides, never cut
objective  mean over responses of mean over tokens of  f(r) A,  f(r) = 4 / tau * sigmoid(tau (r - 1))
           with tau = 1.0 where A > 0 and 1.05 where not
fixes      the hard clip: inside it every token counts in full, outside not at all
breaks     nothing is ever quite silenced: a token that is far off still pulls a little
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.methods.grpo import GRPO
from rlcourse.methods.protocol import Paper
from rlcourse.tensors import each_token, only, token_weights

PAPER = Paper("Soft Adaptive Policy Optimization", "arXiv 2511.20347", "2025-11-25")


def sapo_per_token(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> Float[Tensor, "B T"]:
    """-f(r) * A. At r = 1 the slope of f is 1, as the ratio's own. 0 off the mask."""
    advantages = each_token(advantages, mask).detach()
    ratio = (only(logp, mask) - only(old_logp, mask).detach()).exp()
    tau = torch.where(advantages > 0, ratio.new_tensor(tau_positive), ratio.new_tensor(tau_negative))
    return only(-(tau * (ratio - 1)).sigmoid() * 4 / tau * advantages, mask)


def sapo_loss(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """The mean over each answer's tokens, then over the answers."""
    weights = token_weights(mask, "sequence") if weights is None else weights
    per_token = sapo_per_token(logp, old_logp, advantages, mask, tau_positive, tau_negative)
    return (per_token * only(weights, mask)).sum()


@dataclass(frozen=True)
class SAPO(GRPO):
    clip: ClassVar = None  # no longer a field: nothing is clipped
    beta: ClassVar = 0.0
    tau_positive: float = 1.0
    tau_negative: float = 1.05
    minibatches: int = 4

    def loss(self, batch, state):
        b = batch
        return sapo_per_token(
            b.logp, b.old_logp, b.advantages, b.mask, self.tau_positive, self.tau_negative
        ), {}
