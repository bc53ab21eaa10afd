"""Supervised fine-tuning, the first step of InstructGPT (Ouyang et al., 2022): do as the demonstration does.

idea       make each token of a good answer likelier, given the prompt and the good tokens before it
objective  mean over response tokens of  -log pi(token | prefix)
fixes      a base model continues the page; it does not know that it is to answer
breaks     it sees only good prefixes and never its own, copies what it cannot know, and cannot learn
           from what people can judge but not write
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from rlcourse.methods.offline import OfflineMethod
from rlcourse.methods.protocol import Paper
from rlcourse.tensors import masked_mean

PAPER = Paper(
    "Training language models to follow instructions with human feedback", "arXiv 2203.02155", "2022-03-04"
)


def sft_loss(logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """The mean over all response tokens of the batch. A mean of answers' means would make short ones count more."""
    return -masked_mean(logp, mask)


@dataclass(frozen=True)
class SFT(OfflineMethod):
    data = ("Demonstration",)
    lr, pocket_lr = 2e-5, 1e-3

    def size(self, batch):
        return int(batch.mask.sum())

    def loss(self, batch):
        return sft_loss(batch.logp, batch.mask), {}
