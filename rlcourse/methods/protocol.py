"""What a method is to the training loop, and where it comes from.

    task.draw -> sample -> judge -> method.keep -> method.advantages -> method.loss -> optimizer

A method file holds what its paper added and imports the rest from the papers that it builds on.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.lm import Policy, Rollout
from rlcourse.tensors import token_weights


class Paper(NamedTuple):
    """Where a method was first written down. A method may import only from papers before its own."""

    title: str
    where: str
    date: str  # ISO: the tests hold the imports of `methods/` against it


class OnlineMethod:
    """What an online method may say of itself; every default is the plainest choice.

    A method object is a frozen dataclass of hyperparameters. What changes while it trains (a
    critic, a KL controller) is the state that `init` returns: tensors and modules by name. The
    loop trains the modules along with the policy and saves all of it with every checkpoint.

    `needs` says what the loop fills in beside the rewards:

        "ref_logp"     log-probs under the reference
        "greedy"       `rollout.greedy_rewards`: what the greedy answer to the same prompt earns
        "values"       `rollout.values`, by the critic in the state; in a batch, `values` with gradient
        "entropy"      in a batch, `entropy` of the present policy with gradient
        "routing"      which experts each token went to; the update sends it to the same ones
        "engine_logp"  the sampling engine's log-probs, beside the policy's own `logp`
    """

    needs: ClassVar[tuple[str, ...]] = ()
    group_size: int = 1
    epochs: int = 1  # passes over one rollout
    minibatches: int = 1  # optimizer steps a pass
    refills: int = 0  # how often a step may draw again for groups that `keep` turned down
    critic_lr: float | None = None  # of the modules in the state; None for the policy's

    def init(self, policy: Policy) -> dict[str, Any]:
        return {}

    def keep(self, rollout: Rollout) -> Bool[Tensor, " P"]:
        """Which prompts' groups to learn from. The loop replaces the others by fresh prompts."""
        return torch.ones(len(rollout.prompts), dtype=torch.bool)

    def advantages(self, rollout: Rollout, state: dict) -> Float[Tensor, ...]:
        """[B] or [B T], from `rollout.rewards`. Called once a step, so a state that counts steps counts here."""
        raise NotImplementedError

    def weights(self, batch: Rollout) -> Float[Tensor, "B T"]:
        """What each token's loss counts in one optimizer step."""
        return token_weights(batch.mask, "token")

    def loss(self, batch: Rollout, state: dict) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        """Per-token loss to minimise, and per-token metrics. `batch.logp` carries the gradient;
        `batch.old_logp` is the sampling policy's."""
        raise NotImplementedError
