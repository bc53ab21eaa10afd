"""Weights in bfloat16, learning in float32.

bfloat16 has 8 bits of precision: next to a weight of 1 the nearest other numbers are 0.004 below and 0.008
above. A step of 1e-6 rounds to nothing, and so do a million of them. So the optimizer steps on *masters*, float32
twins of such weights. Each micro-batch's gradient is added to theirs, and after a step they are published: rounded
into the weights that sample and score. A float32 weight is its own master.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def master(weight: nn.Parameter) -> nn.Parameter:
    """What the optimizer steps on."""
    if weight.dtype == torch.float32:
        return weight
    twin = nn.Parameter(weight.detach().float())
    twin.published = weight
    return twin


def masters(optimizer: torch.optim.Optimizer) -> dict[int, nn.Parameter]:
    """Those that are not the weights themselves, by their place in the optimizer."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {i: p for i, p in enumerate(parameters) if hasattr(p, "published")}


def adamw(groups: Iterable[tuple[Iterable[nn.Parameter], float]]) -> torch.optim.Optimizer:
    """AdamW on the masters of these weights, each group with its learning rate."""
    groups = [{"params": [master(w) for w in weights if w.requires_grad], "lr": lr} for weights, lr in groups]
    fused = groups[0]["params"][0].is_cuda or None  # one kernel for all weights, where there is one
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=fused)
    optimizer.register_step_post_hook(lambda *_: publish(optimizer))
    return optimizer


def collect(optimizer: torch.optim.Optimizer) -> None:
    """Add what a backward pass left in the weights to their masters' gradients, in float32."""
    for twin in masters(optimizer).values():
        if (grad := twin.published.grad) is not None:
            twin.grad = grad.float() if twin.grad is None else twin.grad.add_(grad)
            twin.published.grad = None


@torch.no_grad()
def publish(optimizer: torch.optim.Optimizer) -> None:
    """Round the masters into the weights that sample and score."""
    for twin in masters(optimizer).values():
        twin.published.copy_(twin)


def clip(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """Clip each group's gradient to the norm; the first group's, the policy's, before that."""
    for group in reversed(optimizer.param_groups):
        norm = nn.utils.clip_grad_norm_(group["params"], max_norm)
        if not (size := whole(norm)).isfinite():
            raise ValueError(
                f"the gradient's norm is {size.item()}, and nothing can be learned from it: lower lr"
            )
    return size.item()


def whole(tensor: Tensor) -> Tensor:
    """Of a tensor that is divided between processes, all of it: a call that all of them have to make."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
