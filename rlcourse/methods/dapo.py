"""DAPO (Yu et al., 2025): GRPO with four repairs.

idea       1 clip higher: leave rare tokens more room to rise than to fall
           2 dynamic sampling: replace groups that are all right or all wrong by fresh prompts
           3 token mean: every token of the step counts the same, in long answers too
           4 overlong shaping: a penalty that grows as the answer nears the limit, instead of a cliff
objective  mean over tokens of  min(r A, clip(r, 1 - 0.2, 1 + 0.28) A);  no KL
fixes      GRPO's entropy collapse, its dead groups, its cheap long wrong answers, its noise from cuts
breaks     dynamic sampling pays for answers that it throws away, the more the better the policy is
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlcourse.methods.grpo import GRPO, group_advantages
from rlcourse.methods.ppo import clip_active, clipped_surrogate
from rlcourse.methods.protocol import Paper
from rlcourse.tensors import each_token, only, token_weights

PAPER = Paper(
    "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", "arXiv 2503.14476", "2025-03-18"
)


def informative_groups(correct: Bool[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Groups with right answers and wrong ones. On correctness, before any shaping: under a length
    penalty even a group that is all wrong has unequal rewards, and it would teach length only."""
    return correct.any(1) & ~correct.all(1)


def soft_overlong_penalty(
    lengths: Int[Tensor, "*S"], max_length: int, cache_length: int
) -> Float[Tensor, "*S"]:
    """0 up to max_length - cache_length, then falling in a line to -1 at max_length, -1 beyond."""
    if not 0 < cache_length <= max_length:
        raise ValueError(
            f"soft_overlong_penalty: cache_length must lie in 1..{max_length}, got {cache_length}"
        )
    return ((max_length - cache_length - lengths) / cache_length).clamp(-1.0, 0.0)


def dapo_per_token(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Float[Tensor, "B T"]:
    """PPO's surrogate with an upper clip of its own. 0 off the mask."""
    logp, old_logp = only(logp, mask), only(old_logp, mask)
    return clipped_surrogate(logp, old_logp, each_token(advantages, mask), clip_low, clip_high)


def dapo_loss(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """The mean over all tokens of the step."""
    weights = token_weights(mask, "token") if weights is None else weights
    return (dapo_per_token(logp, old_logp, advantages, mask, clip_low, clip_high) * only(weights, mask)).sum()


@dataclass(frozen=True)
class DAPO(GRPO):
    """`dynamic_sampling=False`, `token_mean=False`, `overlong=0` and `clip_high=0.2` take the repairs off."""

    clip: ClassVar = None  # no longer a field: the clip has two sides now
    beta: ClassVar = 0.0  # no KL
    group_size: int = 16
    clip_low: float = 0.2
    clip_high: float = 0.28
    dynamic_sampling: bool = True
    refills: int = 8  # how often a step draws again; the paper's code: 10 batches at most
    token_mean: bool = True
    overlong: float = 0.2  # share of the token limit in which the penalty grows: the paper's 4,096 of 20,480
    minibatches: int = 16

    def keep(self, rollout):
        if not self.dynamic_sampling:
            return super().keep(rollout)
        return informative_groups(rollout.grouped(rollout.correct))

    def advantages(self, rollout, state):
        rewards = rollout.rewards  # the paper pays +1 and -1; paid 1 and 0, the penalty weighs double
        if cache := int(self.overlong * rollout.max_tokens):
            rewards = rewards + soft_overlong_penalty(rollout.lengths, rollout.max_tokens, cache)
        return group_advantages(rollout.grouped(rewards), self.scale).flatten()

    def weights(self, batch):
        return token_weights(batch.mask, "token" if self.token_mean else "sequence")

    def loss(self, batch, state):
        b, low, high = batch, self.clip_low, self.clip_high
        with torch.no_grad():
            clipped = clip_active(b.logp, b.old_logp, b.advantages, low, high)
        per_token = dapo_per_token(b.logp, b.old_logp, b.advantages, b.mask, low, high)
        return per_token, {"clip_fraction": clipped.float()}
