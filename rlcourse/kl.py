"""How far is the policy from its reference? The KL divergence, exactly and from samples.

Everywhere d = logp - ref_logp, on tokens that the *policy* sampled. The three estimators are
John Schulman's (http://joschu.net/blog/kl-approx.html). That one of them has the right value on
average does not mean that it has the right *gradient* on average.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def exact_kl(logits: Float[Tensor, "*B V"], ref_logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """KL(policy || reference) of each state's next-token distribution, summed over the vocabulary."""
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    impossible = logp.isneginf()  # the policy never plays it: it counts 0, whatever the reference says
    gap = logp.masked_fill(impossible, 0.0) - ref_logp.masked_fill(impossible, 0.0)
    return (logp.exp() * gap).sum(-1)


def kl_estimate(logp: Float[Tensor, "*S"], ref_logp: Float[Tensor, "*S"], kind: str) -> Float[Tensor, "*S"]:
    """Per token. k1 = d: unbiased, may be negative. k2 = d^2/2: biased, low variance.
    k3 = exp(-d) - 1 + d: unbiased and never negative."""
    d = logp - ref_logp
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return (-d).expm1() + d
    raise ValueError(f'kl_estimate: kind is "k1", "k2" or "k3", got {kind!r}')
