"""Settings to begin with, by model and by device. Whatever `train` is given goes before them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlcourse.lm import Policy

POCKET_LR, LR, LORA_LR = 3e-4, 1e-6, 1e-5  # an adapter wants about ten times the rate of all weights


def positive(**settings) -> None:
    """What is not, NaN too, is said before anything is done. None is left to a default."""
    for name, value in settings.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value}: give a positive number")


@dataclass(frozen=True)
class Preset:
    lr: float
    responses: int  # a step, over all prompts
    max_tokens: int | None  # of an answer; None: the task says
    micro_batch: int | None  # rows scored at once; None: all


def preset(policy: Policy, max_tokens: int = 256) -> Preset:
    """A pocket learns all of its rows at once. Of other models, the logits of the rows that are scored at once, with
    their softmax and its gradient, may take a quarter of a GPU's memory, or a gigabyte beside a CPU."""
    if policy.pocket:
        return Preset(POCKET_LR, 128, None, None)
    on_gpu = policy.device.type == "cuda"
    room = torch.cuda.get_device_properties(policy.device).total_memory / 4 if on_gpu else 2**30
    rows = int(room // (3 * 4 * policy.model.config.vocab_size * max_tokens))
    lr = LORA_LR if policy.adapted else LR
    return Preset(lr, 128 if on_gpu else 32, max_tokens, max(1, min(rows, 64)))
