"""Online DPO (Guo et al., 2024): ask the policy itself for the two answers.

idea       sample two answers from the policy as it is now, let a judge rank them, learn from that pair by DPO
objective  DPO's, over pairs that are as fresh as the policy
fixes      DPO learns from answers that it would no longer give
breaks     needs a judge at every step, as reinforcement learning does; and that is what it is
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlcourse.methods.dpo import implicit_rewards
from rlcourse.methods.protocol import Paper
from rlcourse.methods.reinforce import PolicyGradient
from rlcourse.tensors import only

PAPER = Paper("Direct Language Model Alignment from Online AI Feedback", "arXiv 2402.04792", "2024-02-07")


def online_dpo_advantages(
    rewards: Float[Tensor, "P 2"], logp: Float[Tensor, "P 2"], ref_logp: Float[Tensor, "P 2"], beta: float
) -> Float[Tensor, "P 2"]:
    """What DPO's gradient multiplies each answer's score with: plus or minus beta sigmoid(-h), 0 for a tie.

    h is the margin of the implicit rewards of whole answers. So a DPO step on fresh pairs is a policy gradient
    whose advantage is the surprise at the judge's choice, and not the size of the reward's lead.
    """
    implicit = implicit_rewards(logp, ref_logp, beta).detach()
    order = (rewards[:, 0] - rewards[:, 1]).sign()
    surprise = beta * torch.sigmoid(-order * (implicit[:, 0] - implicit[:, 1]))
    return torch.stack([order * surprise, -order * surprise], 1)


@dataclass(frozen=True)
class OnlineDPO(PolicyGradient):
    beta: float = 0.1
    group_size: int = 2
    needs = ("ref_logp",)

    def __post_init__(self):
        super().__post_init__()
        if self.group_size != 2:
            raise ValueError(f"OnlineDPO compares two answers to a prompt; got group_size={self.group_size}")

    def keep(self, rollout):
        rewards = rollout.grouped(rollout.rewards)
        return rewards[:, 0] != rewards[:, 1]  # a tie says nothing

    def advantages(self, rollout, state):
        logp, ref_logp = (
            rollout.grouped(only(x, rollout.mask).sum(1)) for x in (rollout.logp, rollout.ref_logp)
        )
        # times 2: DPO is a mean over pairs, and a policy gradient one over answers
        return (
            2 * online_dpo_advantages(rollout.grouped(rollout.rewards), logp, ref_logp, self.beta).flatten()
        )
