"""Checkpoints that a kill at any moment leaves whole.

A checkpoint is a folder, written under another name and then renamed: it is there entirely or
not at all. The one before it is deleted only afterwards. Weights and optimizer are safetensors,
the rest is JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

FORMAT = 1


def save(
    out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, record: dict
) -> None:
    """`state` is the method's: tensors and modules by name. `record` is JSON: config, history, samples."""
    final, draft = out / f"step-{step:06d}", out / f".draft-{os.getpid()}"
    for leftover in out.glob(".draft-*"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover)
    draft.mkdir(parents=True)
    save_file(_tensors(model.state_dict()), draft / "model.safetensors")
    moments = {
        f"{i}.{name}": value
        for i, slot in optimizer.state_dict()["state"].items()
        for name, value in slot.items()
    }
    save_file(_tensors(moments), draft / "optimizer.safetensors")
    for name, part in state.items():
        save_file(
            _tensors(part.state_dict() if isinstance(part, nn.Module) else {"": part}),
            draft / f"{name}.safetensors",
        )
    (draft / "record.json").write_text(json.dumps({"format": FORMAT, "step": step} | record))
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    for older in checkpoints(out)[:-1]:
        shutil.rmtree(older)


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("step-*"))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """Put everything back in place; the record is returned."""
    _fill(model, folder / "model.safetensors")
    slots: dict[int, dict] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        i, key = name.split(".", 1)
        slots.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})
    for name, part in state.items():
        file = folder / f"{name}.safetensors"
        if isinstance(part, nn.Module):
            _fill(part, file)
        else:
            part.copy_(load_file(file)[""])
    return json.loads((folder / "record.json").read_text())


def _fill(module: nn.Module, file: Path) -> None:
    # strict=False: a tied head is stored once, under the name of the embedding that it shares
    try:
        missing, unexpected = module.load_state_dict(load_file(file), strict=False)
    except RuntimeError as error:
        shapes = str(error).splitlines()[1].strip()
        raise ValueError(f"{file} holds the weights of another model: {shapes}") from None
    tied = set(module.state_dict()) - set(_tensors(module.state_dict()))
    if unexpected or set(missing) - tied:
        raise ValueError(f"{file} holds the weights of another model: {(unexpected or missing)[:3]}")


def _tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous, on the CPU, each memory once: what safetensors takes."""
    seen, out = set(), {}
    for name, value in tensors.items():
        if value.data_ptr() in seen and value.numel() > 1:
            continue
        seen.add(value.data_ptr())
        out[name] = value.detach().cpu().contiguous()
    return out
