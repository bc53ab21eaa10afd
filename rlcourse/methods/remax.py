"""ReMax (Li et al., 2023): the greedy answer is the baseline.

idea       decode the same prompt once more, greedily; an answer is good if it beats that one
objective  REINFORCE's, with  A = reward - reward of the greedy answer
fixes      REINFORCE's noise, without a critic; and of PPO it drops all that a language model,
           whose environment is deterministic and whose reward comes at the end, does not need
breaks     a greedy answer to pay for at every prompt; one answer's luck is the baseline of all
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from rlcourse.methods.protocol import Paper
from rlcourse.methods.reinforce import PolicyGradient

PAPER = Paper(
    "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models",
    "arXiv 2310.10505",
    "2023-10-16",
)


def remax_advantages(
    rewards: Float[Tensor, "..."], greedy_rewards: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The greedy answer does not depend on the sampled one, so the gradient stays unbiased."""
    return rewards - greedy_rewards


@dataclass(frozen=True)
class ReMax(PolicyGradient):
    group_size: int = 1
    needs: ClassVar = ("greedy",)

    def advantages(self, rollout, state):
        return remax_advantages(rollout.rewards, rollout.greedy_rewards)
