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
    problems: list = field(default_factory=list)  # P, the task's own
    rewards: Float[Tensor, " B"] | None = None
    correct: Bool[Tensor, " B"] | None = None
    advantages: Float[Tensor, ...] | None = None  # [B] or [B T]
    entropy: Float[Tensor, "B T"] | None = None  # of the distribution each token was drawn from
    old_logp: Float[Tensor, "B T"] | None = None  # in a batch: `logp` when it was sampled
    weights: Float[Tensor, "B T"] | None = None  # in a batch: what each token's loss counts
    ref_logp: Float[Tensor, "B T"] | None = None
    values: Float[Tensor, "B T"] | None = None

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

    def __getitem__(self, rows) -> Rollout:
        """The given rows (a slice, indices or a bool mask), their prompts kept as they are."""
        rows = torch.arange(len(self), device=self.tokens.device)[rows]
        picked = {
            f.name: value[rows]
            for f in dataclasses.fields(self)
            if f.name not in ("prompt_tokens", "prompt_mask")
            and isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **picked, texts=[self.texts[row] for row in rows.tolist()])

    def groups(self, keep: Bool[Tensor, " P"]) -> Rollout:
        """Only the given prompts, each with its whole group."""
        if keep.all():
            return self
        keep = keep.to(self.owner.device)
        kept = self[keep[self.owner]]
        prompts = keep.nonzero().squeeze(1).tolist()
        return dataclasses.replace(
            kept,
            prompts=[self.prompts[p] for p in prompts],
            problems=[self.problems[p] for p in prompts],
            prompt_tokens=self.prompt_tokens[keep],
            prompt_mask=self.prompt_mask[keep],
            owner=(keep.cumsum(0) - 1)[kept.owner],
        )

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
            if values[0].dim() == 2:
                width = max(v.shape[1] for v in values)
                left = f.name.startswith("prompt")
                values = [
                    torch.nn.functional.pad(v, (width - v.shape[1], 0) if left else (0, width - v.shape[1]))
                    for v in values
                ]
            merged[f.name] = torch.cat(values)
        return dataclasses.replace(first, **merged)
