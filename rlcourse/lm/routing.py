"""Which experts a mixture of experts sends each token to: to record it, and to send it there again.

In every layer a router gives each token to its k likeliest experts, with gates that say how much
each contributes. The choice is discrete, so a small step of the weights can change it, and the
token's probability jumps. A replay fixes the *choice* and nothing else: the gates are computed
anew from the present router, or the router would get no gradient.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# softmax over all experts, then the k likeliest: what the replay below computes
KNOWN = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")


def has_experts(model) -> bool:
    return model.config.model_type in KNOWN


def routers(model) -> list[nn.Module]:
    """One a layer that has experts."""
    if not has_experts(model):
        raise ValueError(
            f"a model of type {model.config.model_type!r} has no experts to route to that we know of; "
            f"routing can be recorded and replayed for {', '.join(KNOWN)}"
        )
    return [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]


@contextmanager
def recorded(model):
    """Gives a function that returns what the routers chose in the latest forward pass, [N L K]."""
    chosen: dict[int, Tensor] = {}

    def note(layer):
        return lambda module, args, output: chosen.__setitem__(layer, output[2])

    hooks = [router.register_forward_hook(note(i)) for i, router in enumerate(routers(model))]
    try:
        yield lambda: torch.stack([chosen[i] for i in range(len(hooks))], 1)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replayed(model, experts: Int[Tensor, "N L K"]):
    """Inside, every token goes to these experts, with gates from the present router."""

    def replay(layer):
        def hook(router, args, output):
            gates = output[0].softmax(-1, dtype=torch.float).gather(-1, experts[:, layer])
            if getattr(router, "norm_topk_prob", True):
                gates = gates / gates.sum(-1, keepdim=True)
            return output[0], gates.to(output[1].dtype), experts[:, layer]

        return hook

    hooks = [router.register_forward_hook(replay(i)) for i, router in enumerate(routers(model))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def experts_changed(old: Int[Tensor, "*S L K"], new: Int[Tensor, "*S L K"]) -> Float[Tensor, "*S L"]:
    """The share of each token's experts, layer by layer, that are no longer chosen. Their order is nothing."""
    still = (old[..., :, None] == new[..., None, :]).any(-1)
    return 1 - still.float().mean(-1)
