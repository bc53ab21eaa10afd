"""VC-PPO (Yuan et al., 2025): PPO whose critic is calibrated before it is believed.

idea       first teach the critic, on the fixed starting policy and on returns that use no value at
           all; then let critic and policy each have a lambda of its own
objective  PPO's, with  A from GAE(lambda_actor = 0.95), the critic's targets from GAE(lambda_critic = 1)
fixes      PPO on long answers: a critic that starts wrong misleads the policy at once, and with
           lambda < 1 the reward at the end has faded, as lambda^(T-t), before it reaches the start
breaks     steps that teach the policy nothing; targets with the full noise of every answer
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlcourse.methods.ppo import PPO, gae
from rlcourse.methods.protocol import Paper

PAPER = Paper(
    "What's Behind PPO's Collapse in Long-CoT? Value Optimization Holds the Secret",
    "arXiv 2503.01491",
    "2025-03-03",
)


@dataclass(frozen=True)
class VCPPO(PPO):
    critic_lam: float = 1.0
    pretrain: int = 50  # first steps, in which only the critic learns
    beta: float = 0.0
    # Not PPO's four passes. These authors' PPO, told in VAPO's section 5.1 (arXiv 2504.05118): 8,192 answers in
    # mini-batches of 512, and no second pass is named.
    epochs: int = 1
    minibatches: int = 16

    def __post_init__(self):
        super().__post_init__()
        if self.pretrain and self.critic == "shared":
            raise ValueError(
                'the policy stands still while its critic is pretrained, so they cannot share a trunk: critic="alone", '
                "or pretrain=0"
            )

    def init(self, policy):
        return super().init(policy) | {"steps": torch.zeros(())}

    def advantages(self, rollout, state):
        state["steps"] += 1
        rewards, values, mask = self.token_rewards(rollout, state), rollout.values, rollout.mask
        advantages, _ = gae(rewards, values, mask, self.gamma, self.actor_lam(rollout))
        _, rollout.returns = gae(rewards, values, mask, self.gamma, self.critic_lam)
        return self.finished(rollout, advantages)

    def actor_lam(self, rollout):
        return self.lam

    def loss(self, batch, state):
        if state["steps"] > self.pretrain:
            return super().loss(batch, state)
        value = self.critic_loss(batch)  # alone: no gradient reaches the policy
        return self.vf * value, {"value_loss": value.detach()}

    def other_terms(self, batch, state):
        if state["steps"] > self.pretrain:
            return super().other_terms(batch, state)
        return self.vf * self.critic_loss(batch)
