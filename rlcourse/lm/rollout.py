"""What passes along the loop: prompts, what the policy answered, and what was learned about it on the way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Rollout:
    """P prompts with G responses each, B = P * G rows; rows of one prompt stand together.

    Prompts are stored once, left-padded. `owner[b]` is the prompt that row b answers, so that
    a batch of any rows (`rollout[rows]`) still knows its prompts.
    """

    prompts: list[str]  # P
    prompt_tokens: Int[Tensor, "P S"]
    prompt_mask: Bool[Tensor, "P S"]
    owner: Int[Tensor, " B"]
    tokens: Int[Tensor, "B T"]  # right-padded
    mask: Bool[Tensor, "B T"]  # true on response tokens, the EOS included
    logp: Float[Tensor, "B T"]  # under the distribution that was sampled from
    finished: Bool[Tensor, " B"]  # false: cut at the token limit, no EOS
    texts: list[str]  # B
    temperature: float = 1.0
    max_tokens: int | None = None  # the limit it was sampled under
    problems: list = field(default_factory=list)  # P, the task's own
    rewards: Float[Tensor, " B"] | None = None
    correct: Bool[Tensor, " B"] | None = None
    advantages: Float[Tensor, ...] | None = None  # [B] or [B T]
    entropy: Float[Tensor, "B T"] | None = None  # of the distribution each token was drawn from
    old_logp: Float[Tensor, "B T"] | None = None  # in a batch: `logp` when it was sampled
    weights: Float[Tensor, "B T"] | None = None  # in a batch: what each token's loss counts
    ref_logp: Float[Tensor, "B T"] | None = None
    greedy_rewards: Float[Tensor, " B"] | None = None  # of the greedy answer to the row's prompt
    engine_logp: Float[Tensor, "B T"] | None = None  # of the engine that sampled, where that is another one
    values: Float[Tensor, "B T"] | None = None  # of the state before each token, by the critic
    old_values: Float[Tensor, "B T"] | None = None  # in a batch: `values` when it was sampled
    returns: Float[Tensor, "B T"] | None = None  # what the critic should have said
    imitation: Float[Tensor, "B T"] | None = None  # in a batch: VAPO's weights of its second term
    routing: Int[Tensor, "B T L K"] | None = None  # the K experts that layer L sent each token to
    prompt_routing: Int[Tensor, "P S L K"] | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # what a method measured on the whole of it

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def group_size(self) -> int:
        return len(self) // len(self.prompts)

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        return self.mask.sum(1)

    def grouped(self, x: Tensor) -> Tensor:
        """[B] -> [P G]"""
        return x.view(len(self.prompts), self.group_size)

    def experts(self) -> Int[Tensor, "N L K"]:
        """The routing of prompts and responses together, row after row."""
        return torch.cat([self.prompt_routing[self.owner], self.routing], 1).flatten(0, 1)

    def spread(self, flat: Tensor) -> Float[Tensor, "B T"]:
        """One number a real token, in the order of `tokens[mask]`, as [B T] with 0 off the mask."""
        return flat.new_zeros(self.mask.shape).masked_scatter(self.mask, flat)

    def __getitem__(self, rows) -> Rollout:
        """The given rows (a slice, indices or a bool mask) with the prompts that they answer."""
        rows = torch.arange(len(self), device=self.tokens.device)[rows]
        prompts, owner = self.owner[rows].unique(return_inverse=True)
        picked = {
            f.name: value[prompts if f.name.startswith("prompt_") else rows]
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        lists = {
            "texts": [self.texts[row] for row in rows.tolist()],
            "prompts": [self.prompts[p] for p in prompts.tolist()],
            "problems": [self.problems[p] for p in prompts.tolist()] if self.problems else [],
        }
        return dataclasses.replace(self, **picked | lists | {"owner": owner})

    def groups(self, keep: Bool[Tensor, " P"]) -> Rollout:
        """Only the given prompts, each with its whole group."""
        return self if keep.all() else self[keep.to(self.owner.device)[self.owner]]

    @staticmethod
    def cat(rollouts: list[Rollout]) -> Rollout:
        """Several rollouts as one, padded to the longest: prompts on the left, responses on the right."""
        if len(rollouts) == 1:
            return rollouts[0]
        first = rollouts[0]
        merged: dict = {"owner": [], "prompts": [], "problems": [], "texts": []}
        for r in rollouts:
            merged["owner"].append(r.owner + len(merged["prompts"]))
            for name in ("prompts", "problems", "texts"):
                merged[name] += getattr(r, name)
        merged["owner"] = torch.cat(merged["owner"])
        for f in dataclasses.fields(first):
            values = [getattr(r, f.name) for r in rollouts]
            if f.name in merged or not isinstance(values[0], Tensor):
                continue
            if values[0].dim() >= 2:
                width = max(v.shape[1] for v in values)
                left = f.name.startswith("prompt_")
                values = [_widened(v, width, left) for v in values]
            merged[f.name] = torch.cat(values)
        return dataclasses.replace(first, **merged)


def _widened(x: Tensor, width: int, left: bool) -> Tensor:
    """Dimension 1 padded with zeros."""
    missing = x.new_zeros(len(x), width - x.shape[1], *x.shape[2:])
    return torch.cat([missing, x] if left else [x, missing], 1)
