"""REINFORCE (Williams, 1992): the policy gradient itself.

idea       make each sampled answer likelier in proportion to its reward
objective  mean over responses of  sum over tokens of  A * log pi(token | prefix)
fixes      nothing: it is where everything starts
breaks     one rollout, one update; with no baseline every answer that earned anything is pushed
           up, and the noise of the rewards' level drowns what tells good from bad
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.methods.protocol import OnlineMethod, Paper
from rlcourse.tensors import only, token_weights

PAPER = Paper(
    "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    "Machine Learning 8, 229-256",
    "1992-05-01",
)


def reinforce_per_token(logp: Float[Tensor, "*S"], advantages: Float[Tensor, ...]) -> Float[Tensor, "*S"]:
    """-A * logp. Its gradient is minus the advantage times the score."""
    if advantages.dim() < logp.dim():
        advantages = advantages.unsqueeze(-1)
    return -advantages.detach() * logp


def reward_to_go(
    rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], gamma: float = 1.0
) -> Float[Tensor, "B T"]:
    """What is still to come from each token on: a token cannot have caused what was paid before it."""
    rewards, to_go = only(rewards, mask).detach(), torch.zeros_like(rewards)
    running = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        running = torch.where(mask[:, t], rewards[:, t] + gamma * running, running)
        to_go[:, t] = running
    return only(to_go, mask)


def last_token(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True on the last real token of each response: where a score for the whole answer is paid."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


class PolicyGradient(OnlineMethod):
    """One update a rollout, on the sum of each answer's log-probs. What differs is where A comes from."""

    def weights(self, batch):
        # log pi(response) is the *sum* of its tokens' log-probs: no token is divided by a length
        return token_weights(batch.mask, "constant", constant=1)

    def loss(self, batch, state):
        return reinforce_per_token(only(batch.logp, batch.mask), batch.advantages), {}


@dataclass(frozen=True)
class REINFORCE(PolicyGradient):
    """`baseline` is subtracted from the reward: "none"; "batch", the mean reward of this step, which
    contains the answer's own and so shrinks its push by 1 - 1/B; "running", a mean over earlier steps."""

    group_size: int = 1
    baseline: str = "none"
    memory: float = 0.9  # of the running baseline: how much of it survives a step
    gamma: float = 1.0  # below 1, early tokens are paid less for what comes late

    def __post_init__(self):
        super().__post_init__()
        if self.baseline not in ("none", "batch", "running"):
            raise ValueError(f'REINFORCE: baseline is "none", "batch" or "running", got {self.baseline!r}')

    def init(self, policy):
        if self.baseline != "running":
            return {}
        return {"baseline": torch.zeros((), device=policy.device), "steps": torch.zeros(())}

    def advantages(self, rollout, state):
        rewards = rollout.rewards
        if self.baseline == "batch":
            rewards = rewards - rewards.mean()
        elif self.baseline == "running":
            mean = rewards.mean()
            if state["steps"] > 0:  # nothing to remember yet at the first step: no baseline there
                rewards = rewards - state["baseline"]
                mean = self.memory * state["baseline"] + (1 - self.memory) * mean
            state["baseline"].copy_(mean)
            state["steps"] += 1
        if self.gamma == 1.0:
            return rewards
        return reward_to_go(rewards[:, None] * last_token(rollout.mask), rollout.mask, self.gamma)
