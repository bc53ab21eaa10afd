"""RLOO (Ahmadian et al., 2024; the estimator is Kool et al.'s, 2019): the others are the baseline.

idea       sample several answers to a prompt; the baseline of each is the mean reward of the others
objective  REINFORCE's, with  A_i = R_i - mean of R_j over j != i
fixes      REINFORCE's noise with no second network, and unbiased: no answer is in its own baseline
breaks     like REINFORCE it is for one update a rollout; a tied group teaches nothing
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from rlcourse.kl import kl_estimate
from rlcourse.methods.protocol import Paper
from rlcourse.methods.reinforce import PolicyGradient
from rlcourse.tensors import only

PAPER = Paper(
    "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    "arXiv 2402.14740",
    "2024-02-22",
)


def leave_one_out_advantages(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Each reward minus the mean of the others: G / (G - 1) times the centred reward."""
    group = rewards.shape[1]
    if group < 2:
        raise ValueError(
            "leave_one_out_advantages needs at least 2 responses a prompt: one answer has no others"
        )
    others = (rewards.sum(1, keepdim=True) - rewards) / (group - 1)
    # Equal rewards carry no preference. Said exactly: in float32 the mean of seven 0.7s is not 0.7.
    tied = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return (rewards - others).masked_fill(tied, 0.0)


@dataclass(frozen=True)
class RLOO(PolicyGradient):
    least_group: ClassVar = 2
    group_size: int = 4  # paper: 2 and 4 (section 4)
    beta: float = 0.0  # KL in the reward, of the whole answer, taken off before the others are averaged

    @property
    def needs(self):
        return ("ref_logp",) if self.beta else ()

    def advantages(self, rollout, state):
        rewards = rollout.rewards
        if self.beta:
            kl = only(kl_estimate(rollout.logp, rollout.ref_logp, "k1"), rollout.mask).sum(1)
            rewards = rewards - self.beta * kl
        return leave_one_out_advantages(rollout.grouped(rewards)).flatten()
