"""What a method is to the training loop, and where it comes from.

    task.draw -> sample -> judge -> method.keep -> method.advantages -> method.loss -> optimizer

A method file holds what its paper added and imports the rest from the papers that it builds on.
"""

from __future__ import annotations

import dataclasses
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


RANGES = {  # what a setting of that name may be, in whichever method
    "1 or more": (lambda x: x >= 1, "group_size epochs minibatches horizon max_length"),
    "positive": (lambda x: x > 0, "critic_lr alpha cap tau_positive tau_negative"),
    "0 or more": (
        lambda x: x >= 0,
        "refills pretrain clip clip_low clip_high value_clip vf beta delta imitation centring desirable_weight "
        "undesirable_weight",
    ),
    "from 0 to 1": (lambda x: 0 <= x <= 1, "gamma lam critic_lam memory overlong label_smoothing"),
}


def check_settings(method) -> None:
    """A number that makes no sense is said when the object is made. NaN is in no range."""
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if not isinstance(value, int | float):
            continue
        what, right = "a number", value == value
        for words, (within, names) in RANGES.items():
            if field.name in names.split():
                what, right = words, within(value)
        if not right:
            raise ValueError(f"{type(method).__name__} with {field.name}={value}: that is {what}")


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
    least_group: ClassVar[int] = 1  # 2 where an answer is compared with the others to its prompt
    refills: int = 0  # how often a step may draw again for groups that `keep` turned down
    critic_lr: float | None = None  # of the modules in the state; None for the policy's

    def __post_init__(self):
        check_settings(self)
        if self.group_size < self.least_group:
            raise ValueError(
                f"{type(self).__name__} with group_size={self.group_size}: it needs at least {self.least_group} "
                "responses a prompt, for one answer has nobody to compare with"
            )

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

    def other_terms(self, batch: Rollout, state: dict) -> Float[Tensor, "B T"] | float:
        """What of `loss` is not the policy's own term: a KL penalty, the critic's loss, an entropy bonus."""
        return 0.0
