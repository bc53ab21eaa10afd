"""The few tensor operations that every method shares.

Shapes: B sequences, T response positions (prompt excluded, right-padded), V vocabulary.
`mask` is bool and true on response tokens, the EOS included. Whatever stands behind the mask
may be garbage, NaN too: it is replaced *before* any arithmetic, because a `where` after an
`exp` still sends NaN backwards.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_logprobs(logits: Float[Tensor, "*B V"], tokens: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """log pi(token | prefix). The logits are aligned with their tokens: no shift happens here."""
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def entropy(logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """-sum p log p in nats. Logits of -inf (truncated sampling) count 0, as p log p does."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp.masked_fill(logp.isneginf(), 0.0)).sum(-1)


def only(x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """x where the mask is true, 0 elsewhere; gradients elsewhere are exactly 0."""
    return x.masked_fill(~mask, 0.0)


def each_token(x: Float[Tensor, ...], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """What is given for each response, [B], counts for each of its tokens; [B T] stays. 0 off the mask."""
    return only(x if x.dim() == 2 else x[:, None].expand(mask.shape), mask)


def masked_mean(
    x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], dim: int | None = None
) -> Float[Tensor, "..."]:
    """Mean over the true positions of the mask, over all of them or along `dim`."""
    dims = tuple(range(x.dim())) if dim is None else dim
    count = mask.sum(dims)
    if (count == 0).any():
        raise ValueError("masked_mean over a mask with no true position: there is nothing to average")
    return only(x, mask).sum(dims) / count


def whiten(x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], shift_mean: bool = True) -> Float[Tensor, "*S"]:
    """Masked mean 0 and variance 1 (ddof 1); `shift_mean=False` keeps the mean. 0 off the mask."""
    count = mask.sum()
    if count < 2:
        raise ValueError(f"whiten needs at least two tokens for a variance, got {int(count)}")
    mean = masked_mean(x, mask)
    centred = only(x - mean, mask)
    variance = centred.square().sum() / (count - 1)
    return only(centred * torch.rsqrt(variance + 1e-8) + (0.0 if shift_mean else mean), mask)


def token_weights(mask: Bool[Tensor, "B T"], how: str, constant: int | None = None) -> Float[Tensor, "B T"]:
    """What each token's loss counts, over one whole optimizer step: the loss denominator as an object.

    "token"     1 / tokens                   every token alike: long answers weigh more
    "sequence"  1 / (sequences * length)     every answer alike: a token of a long answer weighs less
    "constant"  1 / (sequences * constant)   a token weighs the same whatever its answer's length

    An empty row weighs nothing and is not counted as a sequence.
    """
    lengths = mask.sum(1, keepdim=True)
    sequences = (lengths > 0).sum()
    if sequences == 0:
        raise ValueError("token_weights: no response token in this step, so there is nothing to learn from")
    if how == "token":
        each = 1.0 / lengths.sum().expand_as(lengths)
    elif how == "sequence":
        each = 1.0 / (sequences * lengths.clamp(min=1))
    elif how == "constant":
        if not constant or constant <= 0:
            raise ValueError(f'token_weights: how="constant" needs a positive constant, got {constant}')
        each = 1.0 / (sequences * constant).expand_as(lengths)
    else:
        raise ValueError(f'token_weights: how is "token", "sequence" or "constant", got {how!r}')
    return each * mask


def aggregate(
    per_token: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], how: str, constant: int | None = None
) -> Float[Tensor, ""]:
    """The loss: a weighted sum over tokens."""
    return (only(per_token, mask) * token_weights(mask, how, constant)).sum()
