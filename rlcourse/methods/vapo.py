"""VAPO (Yue et al., 2025): VC-PPO with DAPO's loss, for long chains of thought.

idea       one lambda does not suit short and long answers alike; and a right answer is so rare and
           so dear that it may be imitated as well as reinforced
objective  VC-PPO's, with  lambda_actor = 1 - 1 / (alpha * length)  for each answer, DAPO's clip and
           token mean, plus 0.1 * the negative log-likelihood of the right answers
fixes      at lambda = 0.95 the reward at the end of 1,000 tokens reaches the first as 5e-23 of itself
breaks     seven changes at once; the imitation term goes on pushing what is already likely
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlcourse.methods.dapo import dapo_per_token
from rlcourse.methods.ppo import clip_active
from rlcourse.methods.protocol import Paper
from rlcourse.methods.vc_ppo import VCPPO
from rlcourse.tensors import only, token_weights

PAPER = Paper(
    "VAPO: Efficient and Reliable Reinforcement Learning for Advanced Reasoning Tasks",
    "arXiv 2504.05118",
    "2025-04-07",
)


def length_adaptive_lambda(lengths: Int[Tensor, " B"], alpha: float = 0.05) -> Float[Tensor, " B"]:
    """1 - 1 / (alpha * length), so that GAE's memory, 1 / (1 - lambda) tokens, grows with the answer.

    Below length 1 / alpha the formula is negative, and lambda 0.
    """
    return (1 - 1 / (alpha * lengths.clamp(min=1))).clamp(0.0, 1.0)


@dataclass(frozen=True)
class VAPO(VCPPO):
    clip: ClassVar = None  # no longer a field: the clip has two sides
    lam: ClassVar = None  # nor this: each answer has its own
    group_size: int = 16  # fewer prompts, more answers each: 512 of 16 where 8,192 of 1 had been
    alpha: float = 0.05  # lambda is 0 below 20 tokens: the pocket's answers want a larger one
    clip_low: float = 0.2
    clip_high: float = 0.28
    imitation: float = 0.1

    def actor_lam(self, rollout):
        return length_adaptive_lambda(rollout.lengths, self.alpha)

    def weights(self, batch):
        weights = super().weights(batch)
        right = batch.mask & batch.correct[:, None]
        # The imitation term has a denominator of its own: the tokens of the step's right answers.
        batch.imitation = torch.zeros_like(weights)
        if right.any():
            batch.imitation[right] = token_weights(right, "token")[right] / weights[right]
        return weights

    def policy_loss(self, batch):
        b, low, high = batch, self.clip_low, self.clip_high
        per_token = dapo_per_token(b.logp, b.old_logp, b.advantages, b.mask, low, high)
        with torch.no_grad():
            clipped = clip_active(b.logp, b.old_logp, b.advantages, low, high)
        return per_token + self.imitated(b), {"clip_fraction": clipped.float()}

    def imitated(self, batch):
        return self.imitation * (-only(batch.logp, batch.mask) * batch.imitation)

    def other_terms(self, batch, state):
        others = super().other_terms(batch, state)
        return others + self.imitated(batch) if state["steps"] > self.pretrain else others
