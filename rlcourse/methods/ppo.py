"""PPO (Schulman et al., 2017): several careful updates from one rollout.

idea       weigh each token by how much likelier it has become since it was sampled, and stop
           rewarding the change once it has moved far enough
objective  mean over tokens of  min(r A, clip(r, 1 - low, 1 + high) A),  r = pi / pi_old
fixes      REINFORCE must throw its samples away after one update
breaks     it needs an advantage for every token, and so a critic as large as the policy
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.methods.protocol import Paper

PAPER = Paper("Proximal Policy Optimization Algorithms", "arXiv 1707.06347", "2017-07-20")


def clipped_surrogate(
    logp: Float[Tensor, "*S"],
    old_logp: Float[Tensor, "*S"],
    advantages: Float[Tensor, ...],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "*S"]:
    """Per-token loss: max(-r A, -clip(r) A)."""
    advantages = _per_token(advantages, logp)
    ratio = (logp - old_logp.detach()).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(-ratio * advantages, -clipped * advantages)


def clip_active(
    logp: Float[Tensor, "*S"],
    old_logp: Float[Tensor, "*S"],
    advantages: Float[Tensor, ...],
    clip_low: float,
    clip_high: float,
) -> Bool[Tensor, "*S"]:
    """Where the clip has taken the gradient away: the ratio is out on the side that A pushes to."""
    advantages = _per_token(advantages, logp)
    ratio = (logp - old_logp).exp()
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def _per_token(advantages: Tensor, logp: Tensor) -> Tensor:
    """One advantage a response counts for each of its tokens; either way it is data, not a path for gradient."""
    return (advantages if advantages.dim() == logp.dim() else advantages.unsqueeze(-1)).detach()
