"""REINFORCE (Williams, 1992): the policy gradient itself.

idea       make each sampled answer likelier in proportion to its reward
objective  mean over responses of  A * sum over tokens of log pi(token | prefix)
fixes      nothing: it is where everything starts
breaks     one rollout, one update; with no baseline every answer that earned anything is pushed
           up, and the noise of the rewards' level drowns what tells good from bad
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
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


@dataclass(frozen=True)
class REINFORCE(OnlineMethod):
    """`baseline` is subtracted from the reward: "none", or "batch" for the mean reward of the step."""

    group_size: int = 1
    baseline: str = "none"

    def __post_init__(self):
        if self.baseline not in ("none", "batch"):
            raise ValueError(f'REINFORCE: baseline is "none" or "batch", got {self.baseline!r}')

    def advantages(self, rollout, state):
        if self.baseline == "none":
            return rollout.rewards
        return rollout.rewards - rollout.rewards.mean()

    def weights(self, mask):
        # log pi(response) is the *sum* of its tokens' log-probs: no token is divided by a length
        return token_weights(mask, "constant", constant=1)

    def loss(self, batch, state):
        return reinforce_per_token(only(batch.logp, batch.mask), batch.advantages), {}
