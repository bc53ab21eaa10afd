"""The optimizer that our models are pretrained with."""

from __future__ import annotations

import torch

from rlcourse.lm import Policy


class Optimizer:
    """Muon for the matrices between layers, AdamW for embeddings, norms and routers.

    With AdamW alone the model had not begun to add two numbers when with Muon it got two in three right.
    Muon takes matrices; a stack of experts is handed to it slice by slice, in the same memory.
    """

    def __init__(self, policy: Policy, fused: bool = False):
        self.slices, matrices, others = [], [], []
        for name, p in policy.model.named_parameters():
            if p.dim() == 3:
                self.slices += [(p, i, torch.nn.Parameter(p.data[i])) for i in range(len(p))]
            elif p.dim() == 2 and "embed" not in name and not name.endswith("mlp.gate.weight"):
                matrices.append(p)
            else:
                others.append(p)
        matrices += [leaf for _, _, leaf in self.slices]
        self.parts = [
            torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=fused),
        ]

    def step(self, rate: float) -> None:
        for stack, i, leaf in self.slices:
            leaf.grad = stack.grad[i]
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def moments(self) -> dict[str, torch.Tensor]:
        """All that it remembers, for a checkpoint."""
        return {
            f"{number}.{i}.{name}": value
            for number, part in enumerate(self.parts)
            for i, slot in part.state_dict()["state"].items()
            for name, value in slot.items()
        }

    def put_back(self, moments: dict[str, torch.Tensor]) -> None:
        for number, part in enumerate(self.parts):
            slots: dict[int, dict] = {}
            for key, value in moments.items():
                owner, i, name = key.split(".")
                if int(owner) == number:
                    slots.setdefault(int(i), {})[name] = value
            part.load_state_dict(part.state_dict() | {"state": slots})
