"""Checkpoints that a kill, or a full disk, at any moment leaves whole.

A checkpoint is a folder, written under another name and then renamed: it is there entirely or
not at all. The one before it is deleted only afterwards. It is a model that `load_policy` takes
(a scorer that `Scorer.load` takes), with the optimizer and the method's state beside it. Tensors
are safetensors, the rest is JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlcourse import documents
from rlcourse.lm import Policy, Scorer, checkpoints
from rlcourse.lm.loading import recorded_step
from rlcourse.training.precision import masters, publish, whole

FORMAT = 2
REMEDY = "Put a copy of the checkpoint back, or begin the run again in another folder."


def save(
    out: Path,
    step: int,
    model: Policy | Scorer,
    optimizer: torch.optim.Optimizer,
    state: dict,
    record: dict,
    writes: bool = True,
) -> None:
    """`state` is the method's: tensors and modules by name. `record` is JSON: config, history, samples.

    Of several processes all call this, for each may hold a part of every tensor, and one `writes`.
    """
    final, draft = out / f"step-{step:06d}", out / f".draft-{os.getpid()}"
    with said(out, f"Step {step}", draft):
        if writes:
            for leftover in out.glob(".draft-*"):  # of a process that was killed while it wrote
                if re.fullmatch(r"\.draft-\d+", leftover.name) and not leftover.is_symlink():
                    shutil.rmtree(leftover)
            draft.mkdir(parents=True)
            _describe(_policy(model), draft)
        for name, tensors in _contents(model, optimizer, state):
            tensors = _tensors(tensors, writes)
            if writes:
                save_file(tensors, draft / f"{name}.safetensors", metadata={"format": "pt"})
        if not writes:
            return
        (draft / "record.json").write_text(documents.text({"format": FORMAT, "step": step} | record))
        if os.path.lexists(final):  # this run has not been here before: it is a reader's, and kept for them
            aside = (final.with_name(f"{final.name}-not-of-this-run-{n}") for n in count(1))
            final.rename(next(name for name in aside if not os.path.lexists(name)))
        draft.rename(final)
    for older in checkpoints(out):
        # only what says itself that it is an earlier step; and no link, which the run does not make
        if not older.is_symlink() and (theirs := recorded_step(older)) is not None and theirs < step:
            older.rename(draft)  # so that a kill leaves no half of it under its name
            shutil.rmtree(draft)


@contextmanager
def said(out: Path, what: str, draft: Path | None = None) -> Iterator[None]:
    """A disk that is full, or gone, is said in one sentence, with what is safe."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if draft:
            shutil.rmtree(draft, ignore_errors=True)  # it may be what fills the disk
        kept = checkpoints(out)
        safe = f"{kept[-1].name} is whole: resume=True goes on from it" if kept else "no checkpoint is there"
        why = getattr(error, "strerror", None) or error
        raise OSError(f"{what} could not be written to {out}: {why}; {safe}.") from error


def load(folder: Path, model: Policy | Scorer, optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """Put everything back in place; the record is returned."""
    found = record(folder)
    policy = _policy(model)
    if trained := _adapter(policy):
        _fill(policy.model, folder / "adapter.safetensors", trained)
    else:
        _fill(policy.model, folder / "model.safetensors")
    if isinstance(model, Scorer):
        _fill(model.head, folder / "score_head.safetensors")
    _remember(optimizer, folder / "optimizer.safetensors")
    for name, part in state.items():
        file = folder / f"{name}.safetensors"
        if isinstance(part, nn.Module):
            _fill(part, file)
            continue
        values = _read(file)
        if values.keys() != {""} or values[""].shape != part.shape:
            raise ValueError(f"{file} holds another method's {name}. {REMEDY}")
        part.copy_(values[""])
    return found


def record(folder: Path) -> dict:
    """What a checkpoint says of its run, all of it as it was when it was written."""
    file = folder / "record.json"
    found = documents.read(file, {"format": int}, REMEDY)
    if found["format"] != FORMAT:
        raise ValueError(
            f"{folder.parent} was written in format {found['format']} of run folders, by another version of "
            f"rlcourse; this one reads {FORMAT}. Start the run again with another out=."
        )
    needs = {"step": documents.Count, "config": dict, "history": list, "samples": dict}
    documents.checked(found, needs, str(file), REMEDY)
    found["history"] = [documents.row(row, f"the history in {file}", REMEDY) for row in found["history"]]
    if [row["step"] for row in found["history"]] != [*range(1, found["step"] + 1)]:
        raise ValueError(f"{file} is broken: its history is not of {found['step']} steps. {REMEDY}")
    try:
        found["samples"] = {
            int(step): [(answer, right) for answer, right in pairs]
            for step, pairs in found["samples"].items()
        }
    except (ValueError, TypeError):
        raise ValueError(f"{file} is broken: its samples are no answers by step. {REMEDY}") from None
    return found


def _remember(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Adam's averages of each weight, and the float32 masters of weights that are not."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    twins, slots, found = masters(optimizer), {}, set()
    for name, value in _read(file).items():
        place, _, key = name.partition(".")
        i = int(place) if place.isdecimal() else len(parameters)
        if i >= len(parameters) or value.shape != (() if key == "step" else parameters[i].shape):
            raise ValueError(
                f"{file} holds the optimizer of another model: {name!r} {[*value.shape]}. {REMEDY}"
            )
        if key != "step":
            value = _placed(value, parameters[i])
        if key == "master" and i in twins:
            twins[i].data.copy_(value)
            found.add(i)
        else:
            slots.setdefault(i, {})[key] = value
    if found != twins.keys() or any(
        slot.keys() != {"step", "exp_avg", "exp_avg_sq"} for slot in slots.values()
    ):
        raise ValueError(f"{file} lacks some of what the optimizer remembers, or holds more. {REMEDY}")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})
    publish(optimizer)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}. {REMEDY}"
        ) from None


def _policy(model: Policy | Scorer) -> Policy:
    return model if isinstance(model, Policy) else model.policy


def _adapter(policy: Policy) -> dict[str, Tensor]:
    """What is trained of a model with an adapter; of any other, nothing: all of it is."""
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    return trained if policy.adapted else {}


def _describe(policy: Policy, folder: Path) -> None:
    """What makes a folder a model, its tensors aside."""
    if _adapter(policy):
        return policy.save(folder)  # as any library loads it: the adapter is added into the weights
    config = policy.model.config
    config.architectures = config.architectures or [type(policy.model).__name__.removeprefix("FSDP")]
    for part in (config, getattr(policy.model, "generation_config", None), policy.tokenizer):
        if part is not None:
            part.save_pretrained(folder)


def _contents(
    model: Policy | Scorer, optimizer: torch.optim.Optimizer, state: dict
) -> Iterator[tuple[str, dict]]:
    """The files of a checkpoint, and the tensors in each."""
    policy = _policy(model)
    yield (
        ("adapter", trained)
        if (trained := _adapter(policy))
        else ("model", policy.model.state_dict(keep_vars=True))
    )
    if isinstance(model, Scorer):
        yield "score_head", model.head.state_dict()
    slots = optimizer.state_dict()["state"].items()
    moments = {f"{i}.{name}": value for i, slot in slots for name, value in slot.items()}
    yield "optimizer", moments | {f"{i}.master": twin for i, twin in masters(optimizer).items()}
    for name, part in state.items():
        yield name, part.state_dict(keep_vars=True) if isinstance(part, nn.Module) else {"": part}


def _fill(module: nn.Module, file: Path, wanted: Collection[str] | None = None) -> None:
    own = module.state_dict(keep_vars=True)
    found = {name: _placed(value, own.get(name)) for name, value in _read(file).items()}
    # strict=False: a tied head is stored once, under the name of the embedding that it shares
    try:
        missing, unexpected = module.load_state_dict(found, strict=False)
    except RuntimeError as error:
        shapes = str(error).splitlines()[1].strip()
        raise ValueError(f"{file} holds the weights of another model: {shapes}") from None
    missing = set(missing) & set(own if wanted is None else wanted)
    tied = missing and set(own) - set(_tensors(own))
    if unexpected or missing - tied:
        raise ValueError(f"{file} holds the weights of another model: {(unexpected or sorted(missing))[:3]}")


def _placed(value: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor, divided between processes as `like` is, if it is."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _tensors(tensors: dict[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole, contiguous, on the CPU, each memory once: what safetensors takes."""
    seen, out = set(), {}
    for name, value in tensors.items():
        if id(value) in seen:  # a tied weight. Not by its address: a process's share may be empty
            continue
        seen.add(id(value))
        value = whole(value.detach())
        if keep:
            out[name] = value.cpu().contiguous()
    return out
