"""KTO (Ethayarajh et al., 2024): thumbs up or down, no pairs.

idea       people judge an answer against what they expect, so compare its implicit reward with a
           reference point: how far the policy has moved on average, its KL from the reference
objective  mean of  w (1 - sigmoid(beta (rho - z)))  for good answers, and of
           w (1 - sigmoid(beta (z - rho)))  for bad ones;  rho = log pi/ref,  z = max(0, KL)
fixes      DPO needs two answers to one prompt; most feedback is a single verdict
breaks     the reference point is estimated from mismatched pairs and biased; the weights have to
           make up for more of one verdict than of the other
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.methods.dpo import implicit_rewards
from rlcourse.methods.offline import OfflineMethod, whole
from rlcourse.methods.protocol import Paper

PAPER = Paper("KTO: Model Alignment as Prospect Theoretic Optimization", "arXiv 2402.01306", "2024-02-02")


def kto_loss(
    policy_logp: Float[Tensor, " B"],
    ref_logp: Float[Tensor, " B"],
    desirable: Bool[Tensor, " B"],
    reference_kl: float | Float[Tensor, ""],
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """The mean over all answers. Log-probs are summed over tokens.

    `reference_kl`: the mean of log pi/ref over answers to *other* prompts, in nats. A KL is never
    negative, and its estimate is: so it is cut off at 0. No gradient passes through it.
    """
    z = torch.as_tensor(reference_kl, dtype=policy_logp.dtype, device=policy_logp.device)
    gain = implicit_rewards(policy_logp, ref_logp, beta) - beta * z.detach().clamp(min=0)
    value = torch.sigmoid(torch.where(desirable, gain, -gain))
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return (weight * (1 - value)).mean()


@dataclass(frozen=True)
class KTO(OfflineMethod):
    """Where one verdict is rarer, weigh it up: the paper wants the good ones' total weight to be 1 to 3/2 of the
    bad ones' (equation 9). In an early version it was 1 to 4/3 (equation 8), and TRL 1.16 warns outside of that."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    needs = ("ref_logp", "reference_kl")
    data = ("Verdict",)

    def loss(self, batch):
        logp, ref_logp = whole(batch.logp, batch).squeeze(1), whole(batch.ref_logp, batch).squeeze(1)
        good, z = batch.correct, batch.metrics["reference_kl"]
        loss = kto_loss(logp, ref_logp, good, z, self.beta, self.desirable_weight, self.undesirable_weight)
        moved = (logp - ref_logp).detach()
        return loss, {"good_moved": moved[good], "bad_moved": moved[~good]}
