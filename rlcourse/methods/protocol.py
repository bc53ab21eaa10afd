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
    critic, a KL controller) is the state that `init` returns.
    """

    needs: ClassVar[tuple[str, ...]] = ()  # what the loop fills in beside rewards: "ref_logp", ...
    group_size: int = 1
    epochs: int = 1  # passes over one rollout
    minibatches: int = 1  # optimizer steps a pass

    def init(self, policy: Policy) -> dict[str, Any]:
        return {}

    def keep(self, rollout: Rollout) -> Bool[Tensor, " P"]:
        """Which prompts' groups to learn from. The loop replaces the others by fresh prompts."""
        return torch.ones(len(rollout.prompts), dtype=torch.bool)

    def advantages(self, rollout: Rollout, state: dict) -> Float[Tensor, ...]:
        """[B] or [B T], from `rollout.rewards`."""
        raise NotImplementedError

    def weights(self, mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """What each token's loss counts in one optimizer step."""
        return token_weights(mask, "token")

    def loss(self, batch: Rollout, state: dict) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        """Per-token loss to minimise, and per-token metrics. `batch.logp` carries the gradient;
        `batch.old_logp` is the sampling policy's."""
        raise NotImplementedError
