"""DeepSeek-V3.2's GRPO (2025, section 3.1): what it took to scale it.

idea       keep what is right for a policy that has moved on since it sampled: weigh the KL estimate
           by the ratio; drop bad answers that the policy has left far behind; use the same experts
objective  mean over responses of mean over tokens of  M * min(r A, clip(r) A) - beta * r * k3,
           A = reward - mean of its group;  M = 0 if A < 0 and mean over tokens of log(pi_old / pi) > delta,
           where this one pi_old is the engine that sampled, so that M sees its difference too (equation 9)
fixes      k3 in the loss has the gradient of another KL, without bound where pi is far below the
           reference; very off-policy wrong answers; routing that differs between sampling and training
breaks     right for each token with its prefix held fixed: what the policy does to the prefixes is still missing
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.kl import kl_estimate
from rlcourse.methods.grpo import GRPO, grpo_per_token
from rlcourse.methods.protocol import Paper
from rlcourse.tensors import only

PAPER = Paper(
    "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models", "arXiv 2512.02556", "2025-12-02"
)


def unbiased_kl(
    logp: Float[Tensor, "*S"], old_logp: Float[Tensor, "*S"], ref_logp: Float[Tensor, "*S"]
) -> Float[Tensor, "*S"]:
    """r * k3, with the gradient through r too: on tokens from the *old* policy, right in value and gradient."""
    return (logp - old_logp.detach()).exp() * kl_estimate(logp, ref_logp.detach(), "k3")


def off_policy_sequences(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    delta: float,
) -> Bool[Tensor, " B"]:
    """True for answers to leave out: worse than their group, and by now much less likely than when sampled."""
    gone = (only(old_logp, mask) - only(logp, mask)).detach().sum(1) / mask.sum(1).clamp(min=1)
    return (advantages < 0) & (gone > delta)


@dataclass(frozen=True)
class ScalingGRPO(GRPO):
    scale: bool = False
    beta: float = 0.0  # differs by domain in the paper, near 0 for mathematics
    delta: float = 0.1  # nats a token; the paper names no number
    keep_routing: bool = True
    minibatches: int = 4

    @property
    def needs(self):
        return (*super().needs, *["routing"] * self.keep_routing)

    def loss(self, batch, state):
        b = batch
        # As in the paper and in TRL 1.16: from the engine's log-probs where they are kept beside the policy's own.
        sampled_logp = b.old_logp if b.engine_logp is None else b.engine_logp
        dropped = off_policy_sequences(b.logp, sampled_logp, b.advantages, b.mask, self.delta)
        per_token = grpo_per_token(b.logp, b.old_logp, b.advantages, b.mask, self.clip)
        per_token = per_token.masked_fill(dropped[:, None], 0.0)
        if self.beta:
            per_token = per_token + self.other_terms(b, state)
        return per_token, {"dropped": dropped.float()[:, None].expand_as(b.mask)}

    def other_terms(self, batch, state):
        if not self.beta:
            return 0.0
        logp, old_logp, ref_logp = (only(x, batch.mask) for x in (batch.logp, batch.old_logp, batch.ref_logp))
        return self.beta * unbiased_kl(logp, old_logp, ref_logp)
