"""What mends the engine and is nobody's objective: wrap it around any method.

TIS            answers come from another engine (another kernel, another precision) whose
               probabilities differ a little from the trainer's: weigh each token of the policy's
               term by the ratio of the two, cut off at a cap (Yao et al., 2025)
RoutingReplay  in a mixture of experts the router may send a token elsewhere than when it was
               sampled: send it to the same experts again (Zheng et al., 2025; Ma et al., 2025)
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rlcourse.lm import routing
from rlcourse.methods.protocol import OnlineMethod, Paper
from rlcourse.tensors import only

PAPER = Paper(
    "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
    "fengyao.notion.site/off-policy-rl",
    "2025-08-05",
)


def truncated_importance_weights(
    logp: Float[Tensor, "*S"], engine_logp: Float[Tensor, "*S"], cap: float
) -> Float[Tensor, "*S"]:
    """min(pi / pi_engine, cap) of each token, without gradient: both as they were when it was sampled."""
    return (logp - engine_logp).detach().exp().clamp(max=cap)


@dataclass(frozen=True)
class Correction(OnlineMethod):
    """Hands through whatever it does not change."""

    method: OnlineMethod

    def __post_init__(self):
        for name in ("group_size", "epochs", "minibatches", "refills", "critic_lr"):
            object.__setattr__(self, name, getattr(self.method, name))
        for name in ("init", "keep", "advantages", "weights", "loss", "other_terms"):
            if name not in vars(type(self)):
                object.__setattr__(self, name, getattr(self.method, name))
        super().__post_init__()


@dataclass(frozen=True)
class TIS(Correction):
    """The critic's loss, a KL penalty in the loss and an entropy bonus are not weighed, as in TRL 1.16, verl and
    OpenRLHF, although all are means over the engine's tokens. What is not the policy's, `other_terms` says."""

    cap: float = 2.0

    @property
    def needs(self):
        return (*self.method.needs, "engine_logp")

    def loss(self, batch, state):
        per_token, metrics = self.method.loss(batch, state)
        others = self.method.other_terms(batch, state)
        logp, engine_logp = only(batch.old_logp, batch.mask), only(batch.engine_logp, batch.mask)
        weight = truncated_importance_weights(logp, engine_logp, self.cap)
        return (per_token - others) * weight + others, {**metrics, "tis_weight": weight}


@dataclass(frozen=True)
class RoutingReplay(Correction):
    @property
    def needs(self):
        return (*self.method.needs, "routing")

    def init(self, policy):
        routing.routers(policy.model)  # says so if there are none
        return self.method.init(policy)
