"""GRPO (Shao et al., 2024): PPO without a critic.

idea       sample a group of answers to each prompt; their mean reward is the baseline
objective  mean over responses of mean over tokens of  min(r A, clip(r) A) - beta * k3,
           A = (reward - mean of its group) / std of its group, the same for every token
fixes      PPO's critic: its memory, and its error early in training
breaks     a group whose rewards are all equal teaches nothing; every token of an answer gets the
           same credit; dividing by the answer's length makes long wrong answers cheap
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.kl import kl_estimate
from rlcourse.methods.ppo import clip_active, clipped_surrogate
from rlcourse.methods.protocol import OnlineMethod, Paper
from rlcourse.tensors import each_token, only, token_weights

PAPER = Paper(
    "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    "arXiv 2402.03300",
    "2024-02-05",
)


def group_advantages(
    rewards: Float[Tensor, "P G"], scale: bool = True, eps: float = 1e-4
) -> Float[Tensor, "P G"]:
    """How much better each answer is than its own group, in the group's standard deviations (ddof 1)."""
    if rewards.shape[1] < 2:
        raise ValueError(
            "group_advantages needs at least 2 responses a prompt: one answer has nobody to compare with"
        )
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale:
        centred = centred / (rewards.std(1, keepdim=True) + eps)
    # Equal rewards carry no preference. Said exactly: in float32 the mean of eight 0.7s is not 0.7.
    tied = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return centred.masked_fill(tied, 0.0)


def grpo_per_token(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
    ref_logp: Float[Tensor, "B T"] | None = None,
    beta: float = 0.0,
) -> Float[Tensor, "B T"]:
    """PPO's clipped surrogate with the group's advantage, plus the KL penalty. 0 off the mask."""
    logp, old_logp = only(logp, mask), only(old_logp, mask)
    loss = clipped_surrogate(logp, old_logp, each_token(advantages, mask), clip, clip)
    if beta:
        if ref_logp is None:
            raise ValueError(f"beta={beta} asks for a KL penalty, which needs ref_logp")
        loss = loss + beta * kl_estimate(logp, only(ref_logp, mask).detach(), "k3")
    return loss


def grpo_loss(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, ...],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
    ref_logp: Float[Tensor, "B T"] | None = None,
    beta: float = 0.0,
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """The mean over each answer's tokens, then over the answers."""
    weights = token_weights(mask, "sequence") if weights is None else weights
    return (
        grpo_per_token(logp, old_logp, advantages, mask, clip, ref_logp, beta) * only(weights, mask)
    ).sum()


@dataclass(frozen=True)
class GRPO(OnlineMethod):
    least_group: ClassVar = 2
    group_size: int = 8  # paper: 64 (section 4.2); TRL: 8; DeepSeek-R1: 16
    clip: float = 0.2
    beta: float = 0.0  # paper: 0.04; since DAPO mostly 0, TRL's default too
    scale: bool = True  # divide by the group's std
    epochs: int = 1  # the paper's mu: one update a rollout, so the ratio is 1 and the clip sleeps
    minibatches: int = 1

    @property
    def needs(self):
        return ("ref_logp",) if self.beta else ()

    def advantages(self, rollout, state):
        return group_advantages(rollout.grouped(rollout.rewards), self.scale).flatten()

    def weights(self, batch):
        return token_weights(batch.mask, "sequence")

    def loss(self, batch, state):
        b = batch
        per_token = grpo_per_token(b.logp, b.old_logp, b.advantages, b.mask, self.clip, b.ref_logp, self.beta)
        with torch.no_grad():
            clipped = clip_active(b.logp, b.old_logp, b.advantages, self.clip, self.clip)
        return per_token, {"clip_fraction": clipped.float()}

    def other_terms(self, batch, state):
        if not self.beta:
            return 0.0
        logp, ref_logp = only(batch.logp, batch.mask), only(batch.ref_logp, batch.mask).detach()
        return self.beta * kl_estimate(logp, ref_logp, "k3")
