"""A language model small enough to list everything that it can say.

Every prefix has a row of logits of its own: free parameters, and no network behind them. So all
answers can be listed with their probabilities. An expectation is then a sum and not a sample, and
what an estimator gives on average can be laid beside the exact gradient, digit by digit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor, tensor

from rlcourse.tensors import only, token_logprobs

EOS = 0


class TabularLM:
    """`vocabulary` tokens, the EOS among them; an answer ends with it or is cut at `length` tokens.

    There are N answers, and they pass through S prefixes. The rows of what is [N] or [N T] are the answers.

    >>> policy = TabularLM(vocabulary=2, length=2)
    >>> [row[mask].tolist() for row, mask in zip(policy.tokens, policy.mask)]
    [[0], [1, 0], [1, 1]]
    >>> policy.logits.shape  # after nothing, and after 1
    torch.Size([2, 2])
    """

    def __init__(self, vocabulary: int = 3, length: int = 2, seed: int = 0, scale: float = 1.0):
        words = range(1, vocabulary)
        prefixes = [words_so_far for n in range(length) for words_so_far in product(words, repeat=n)]
        answers = [(*prefix, EOS) for prefix in prefixes] + list(product(words, repeat=length))

        self.tokens = tensor([answer + (EOS,) * (length - len(answer)) for answer in answers])  # [N T]
        self.mask = torch.arange(length) < tensor([[len(answer)] for answer in answers])  # [N T]
        # the row of the table that each token is drawn from; behind the mask any row would do
        number = {prefix: s for s, prefix in enumerate(prefixes)}
        self.prefix = tensor([[number.get(answer[:t], 0) for t in range(length)] for answer in answers])

        generator = torch.Generator().manual_seed(seed)
        shape = (len(prefixes), vocabulary)
        self.logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)  # [S V]
        self.logits.requires_grad_()

    def __len__(self) -> int:
        return len(self.tokens)

    def logp(self) -> Float[Tensor, "N T"]:
        """log pi(token | prefix) of each token of each answer, with its gradient; 0 off the mask."""
        return only(token_logprobs(self.logits[self.prefix], self.tokens), self.mask)

    def probabilities(self) -> Float[Tensor, " N"]:
        return self.logp().sum(1).exp()

    def greedy(self) -> int:
        """The answer that takes the likeliest token everywhere."""
        likeliest = self.logits[self.prefix].argmax(-1) == self.tokens
        return int((likeliest | ~self.mask).all(1).nonzero())

    # ---- what is true

    def expected(self, rewards: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """J: each answer's reward times its probability. Differentiable: this is the exact objective."""
        return (self.probabilities() * rewards).sum()

    def kl(self, reference: TabularLM) -> Float[Tensor, ""]:
        """KL(policy || reference) of whole answers. Differentiable in both."""
        return self.expected((self.logp() - reference.logp()).sum(1))

    def values(self, returns: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """V of the state before each token: the mean of `returns` there, over all answers that come by."""
        weights, values = self.probabilities().detach(), torch.zeros_like(returns)
        for prefix in range(len(self.logits)):
            here = (self.prefix == prefix) & self.mask
            answers = here.any(1)  # a prefix stands at one position, so each of them comes by once
            values[here] = (weights[answers] * returns[here]).sum() / weights[answers].sum()
        return values

    def gradient(self, objective: Float[Tensor, ""]) -> Float[Tensor, "S V"]:
        """The derivative of an objective by the table of logits."""
        return torch.autograd.grad(objective, self.logits, retain_graph=True)[0]

    # ---- what samples say on average

    def expectation(
        self, estimate: Callable[[Int[Tensor, " G"]], Float[Tensor, ""]], group_size: int = 1
    ) -> Float[Tensor, ""]:
        """The mean of `estimate(rows)` over all groups of answers that this policy may sample, N ** G of them.

        How likely a group is counts as a constant: a sample does not know where it came from. So the
        gradient is what the gradient of endlessly many sampled estimates tends to. It may be taken by another
        policy's logits, if that is what `estimate` computes from.
        """
        probabilities = self.probabilities().detach()
        groups = (tensor(rows) for rows in product(range(len(self)), repeat=group_size))
        return sum(probabilities[rows].prod() * estimate(rows) for rows in groups)
