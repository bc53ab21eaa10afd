"""The offline loop: learn from what people have said of answers that are there already.

    feedback -> tokens -> (reference log-probs, once) -> batches of like length -> method.loss -> optimizer

One loop for SFT, reward models, DPO, IPO and KTO, and no formula in it.
"""

from __future__ import annotations

import dataclasses
import random
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlcourse.lm import Policy, Rollout, Scorer
from rlcourse.methods.offline import OfflineMethod
from rlcourse.tensors import only
from rlcourse.training import precision
from rlcourse.training.folder import Folder, described, fingerprint, one_writer, settings
from rlcourse.training.presets import positive, preset
from rlcourse.training.processes import ALONE, Alone, first, parts, team
from rlcourse.training.progress import Progress
from rlcourse.training.run import Run
from rlcourse.training.seeds import stream

# What `fit` has been given in this process, and with which methods. `policy.trained` says more, and a copy takes it
# along; but to fit a copy by the method that made the original is no repetition.
FITTED: WeakKeyDictionary = WeakKeyDictionary()


@one_writer
def fit(
    model: Policy | Scorer,
    data: Sequence,
    method: OfflineMethod,
    *,
    epochs: int = 1,
    batch: int = 32,
    lr: float | None = None,
    max_grad_norm: float = 1.0,
    micro_batch: int | None = None,
    reference: Policy | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    shard: bool = False,
    gradient_checkpointing: bool = False,
    tensorboard: bool = False,
    quiet: bool = False,
) -> Run:
    """Train `model` in place on `data`: demonstrations, pairs, rankings or verdicts.

    epochs            passes over the data, in a new order each
    batch             examples a step, over all processes: a pair is one example
    lr                learning rate, which falls to 0 over the run; by default the method's own
    micro_batch       examples scored at once in a process; changes the memory, not the gradient
    reference         where a method that needs one measures from; by default the policy as it comes in
    out, resume       a folder for checkpoints; `resume=True` goes on from the last one there
    shard, gradient_checkpointing, tensorboard    as for `train`
    """
    name = type(method).__name__
    positive(lr=lr, max_grad_norm=max_grad_norm, micro_batch=micro_batch, checkpoint_every=checkpoint_every)
    _check(model, data, method, name, epochs, batch)
    policy = model if isinstance(model, Policy) else model.policy
    if name in FITTED.get(model, ()):
        if resume and reference is None and "ref_logp" in method.needs:
            raise ValueError(
                f"this very model has been trained by {name} already, and would be taken for the reference that the "
                "run began with: resume with a model as it was then, or pass reference=..."
            )
        if not resume and first():
            warnings.warn(
                f"{name} has been fitted to this very model already; training goes on from there. "
                "For a fresh start load it again, or fit a copy().",
                stacklevel=3,
            )
    lr = lr if lr is not None else method.pocket_lr if policy.pocket else method.lr

    examples = as_rollout(policy, data)
    others = mismatched(policy, data, seed) if "reference_kl" in method.needs else None
    compared = "ref_logp" in method.needs
    rows = preset(policy, examples.tokens.shape[1]).micro_batch
    micro_batch = micro_batch or rows and max(1, rows // examples.group_size)
    reference = reference or policy  # asked before the first step, so no copy is needed
    config = dict(
        kind="fit", **settings(policy), data=stream(data), method=described(method), epochs=epochs, batch=batch, lr=lr,
        max_grad_norm=max_grad_norm, measured_from=fingerprint(reference) if compared else None, seed=seed, shard=shard,
    )  # fmt: skip
    budget = dict(
        micro_batch=micro_batch, checkpoint_every=checkpoint_every,
        gradient_checkpointing=gradient_checkpointing, tensorboard=tensorboard,
    )  # fmt: skip

    if gradient_checkpointing:
        policy.checkpoint_layers()
    processes = team(policy, [model] if isinstance(model, Scorer) else [], shard)
    if compared:
        for answers in filter(None, (examples, others)):
            size = micro_batch and micro_batch * answers.group_size
            answers.ref_logp = processes.each(partial(scored, reference), answers, size)
    trained = model.parameters() if isinstance(model, Scorer) else policy.parameters()
    optimizer = precision.adamw([(trained, lr)])
    run = Run(model, None, method, seed, prompts=[x.prompt for x in data[:8]] if model is policy else [])
    folder = Folder(out, run, config, budget, processes, tensorboard)
    step = folder.resume(resume, model, optimizer, {})
    clock = time.monotonic() - (run.history[-1]["seconds"] if run.history else 0.0)
    progress = Progress(run, quiet or not first())
    plan = [rows for epoch in range(epochs) for rows in batches(examples, batch, stream(seed, epoch))]

    def sample_watched() -> None:
        if run.prompts:
            room = policy.context - int(examples.prompt_mask[:8].sum(1).max())
            length = min(examples.tokens.shape[1], room)
            with processes.gathered():
                answers = policy.sample(run.prompts, max_tokens=length, seed=stream("watched"))
            folder.watch(step, [(text, None) for text in answers.texts])

    FITTED.setdefault(model, set()).add(name)
    earlier = list(policy.trained)
    if step == 0:
        sample_watched()
    for chosen in plan[step:]:
        optimizer.param_groups[0]["lr"] = lr * (1 - step / len(plan))
        step += 1
        measured = learn(
            model, optimizer, method, picked(examples, chosen), others and picked(others, chosen),
            micro_batch, max_grad_norm, processes,
        )  # fmt: skip
        seen = sum(map(len, plan[:step]))
        policy.trained = [*earlier, f"{name} on {seen} examples"]  # interrupted runs too
        folder.note(
            {
                "step": step,
                **measured,
                "epoch": epochs * step / len(plan),
                "examples": seen,
                "seconds": round(time.monotonic() - clock, 3),
            }
        )
        if step == len(plan):
            sample_watched()
        progress.update(step / len(plan), last=step == len(plan))
        if step % checkpoint_every == 0 or step == len(plan):
            folder.save(step, model, optimizer, {})
    policy.trained = [*earlier, f"{name} on {sum(map(len, plan))} examples"]
    processes.finish()
    return run


def objective(
    model: Policy | Scorer, method: OfflineMethod, batch: Rollout, rows: slice
) -> tuple[Tensor, dict[str, Tensor]]:
    """The share of some examples in the mean loss of their batch, and what was measured on each."""
    part = picked(batch, range(len(batch.prompts))[rows])
    if isinstance(model, Scorer):
        part.rewards = model(part)
    else:
        part.logp = model.score(part)
    mean, metrics = method.loss(part)
    share = method.size(part) / method.size(batch)  # the parts' means add up to the batch's
    return mean * share, {name: values.detach().float() for name, values in metrics.items()}


def learn(
    model: Policy | Scorer,
    optimizer: torch.optim.Optimizer,
    method: OfflineMethod,
    batch: Rollout,
    others: Rollout | None,
    micro_batch: int | None,
    max_grad_norm: float,
    processes: Alone = ALONE,
) -> dict[str, float]:
    """One optimizer step; what was measured on the way."""
    if others:
        with processes.gathered():
            logp = processes.each(partial(scored, model), others, micro_batch)
        batch.metrics = {"reference_kl": only(logp - others.ref_logp, others.mask).sum(1).mean().item()}
    optimizer.zero_grad()
    loss, seen = 0.0, {}
    for some in processes.share(len(batch.prompts), micro_batch):
        share, metrics = processes.backward(partial(objective, model, method, batch), some)
        precision.collect(optimizer)
        loss += share
        for name, values in metrics.items():
            seen.setdefault(name, []).append(values.cpu())
    norm = precision.clip(optimizer, max_grad_norm)
    optimizer.step()
    loss, seen = joined(processes.gather((loss, seen)))
    means = {name: torch.cat(values).mean().item() for name, values in seen.items()}
    return {"loss": loss, **means, **batch.metrics, "grad_norm": norm}


def joined(parts: list[tuple[float, dict[str, list[Tensor]]]]) -> tuple[float, dict[str, list[Tensor]]]:
    """What the processes have measured: the sum of their losses, and each example's numbers."""
    names = dict.fromkeys(name for _, seen in parts for name in seen)
    seen = {name: [values for _, each in parts for values in each.get(name, [])] for name in names}
    return sum(loss for loss, _ in parts), seen


# ---- from feedback to batches


def as_rollout(policy: Policy, data: Sequence) -> Rollout:
    """Every example's answers as a group. Thumbs up go where a rule would say `correct`."""
    k = len(data[0].answers)
    rollout = policy.answered(
        [example.prompt for example in data for _ in range(k)],
        [text for example in data for text in example.answers],
    )
    room = rollout.prompt_mask.sum(1) + rollout.lengths
    if (room > policy.context).any():
        row = int(room.argmax())
        raise ValueError(
            f"example {row // k} has {int(room[row])} tokens, prompt and answer together; the context of "
            f"{policy.name} is {policy.context}. Shorten it or leave it out. It begins: {data[row // k].prompt[:60]!r}"
        )
    if hasattr(data[0], "good"):
        rollout.correct = torch.tensor([example.good for example in data], device=policy.device)
    return dataclasses.replace(
        rollout,
        prompts=rollout.prompts[::k],
        prompt_tokens=rollout.prompt_tokens[::k],
        prompt_mask=rollout.prompt_mask[::k],
        owner=torch.arange(len(data), device=policy.device).repeat_interleave(k),
    )


def mismatched(policy: Policy, data: Sequence, seed: int) -> Rollout:
    """Every prompt with the answer to another one: half the examples further on in a shuffled circle, or the first
    one after that whose prompt is another."""
    order = list(range(len(data)))
    random.Random(stream(seed, "mismatched")).shuffle(order)
    partner = {}
    for place, i in enumerate(order):
        further = (order[(place + len(order) // 2 + more) % len(order)] for more in range(len(order)))
        partner[i] = next(j for j in further if data[j].prompt != data[i].prompt)
    others = policy.answered(
        [example.prompt for example in data], [data[partner[i]].response for i in range(len(data))]
    )
    # each fits behind its own prompt, and here it stands behind another: what passes the context is cut
    room = policy.context - others.prompt_mask.sum(1, keepdim=True)
    others.mask &= torch.arange(others.mask.shape[1], device=policy.device) < room
    return others


def batches(examples: Rollout, size: int, seed: int) -> list[list[int]]:
    """All examples once, `size` at a time, those of like length together: less padding to compute.

    Shuffled, then sorted by length within every eight batches, then the batches shuffled.
    """
    rng = random.Random(seed)
    longest = examples.grouped(examples.lengths).amax(1) + examples.prompt_mask.sum(1)
    order = list(range(len(examples.prompts)))
    rng.shuffle(order)
    sorted_ = [
        i for start in range(0, len(order), 8 * size)
        for i in sorted(order[start : start + 8 * size], key=longest.tolist().__getitem__)
    ]  # fmt: skip
    found = [sorted_[start : start + size] for start in range(0, len(order), size)]
    rng.shuffle(found)
    return found


def picked(rollout: Rollout, examples: Sequence[int]) -> Rollout:
    """These examples, with every row of their groups, padded no wider than they need."""
    k = rollout.group_size
    rows = rollout[[i * k + j for i in sorted(examples) for j in range(k)]]
    width, prompt_width = int(rows.lengths.max()), int(rows.prompt_mask.sum(1).max())
    cut = {
        f.name: value[:, -prompt_width:] if f.name.startswith("prompt_") else value[:, :width]
        for f in dataclasses.fields(rows)
        if isinstance(value := getattr(rows, f.name), Tensor) and value.dim() >= 2
    }
    return dataclasses.replace(rows, **cut)


@torch.no_grad()
def scored(policy: Policy, rollout: Rollout, size: int = 256) -> Tensor:
    """log pi of every token, a few rows at a time."""
    return torch.cat([policy.score(rollout[rows]) for rows in parts(len(rollout), size)])


def _check(model, data, method, name: str, epochs: int, batch: int) -> None:
    """What cannot work is said before anything is computed."""
    if not isinstance(method, OfflineMethod):
        raise ValueError(
            f"{name} learns from answers that the policy samples: train(policy, task, {name}(), ...)"
        )
    if not isinstance(model, {"Policy": Policy, "Scorer": Scorer}[method.trains]):
        how = "fit(Scorer(policy.copy()), ...)" if method.trains == "Scorer" else "fit(policy, ...)"
        raise ValueError(f"{name} trains a {method.trains}, and this is a {type(model).__name__}: {how}")
    if not len(data) or epochs < 1 or batch < 1:
        raise ValueError(
            f"{len(data)} examples, epochs={epochs}, batch={batch}: there is nothing to learn from"
        )
    if "reference_kl" in method.needs and len({example.prompt for example in data}) < 2:
        raise ValueError(
            f"{name} measures its reference point on answers to *other* prompts: give it two or more "
            f"({len(data)} examples, all with one prompt)"
        )
    kinds = {type(example).__name__ for example in data}
    if len(kinds) > 1 or kinds - set(method.data):
        raise ValueError(
            f"{name} learns from {' or '.join(method.data)}s, all of one kind; got {', '.join(sorted(kinds))}. "
            "See rlcourse.tasks.annotators"
        )
    if len({len(example.answers) for example in data}) > 1:
        raise ValueError(f"{name} needs as many answers to each prompt; some rankings are longer than others")
    for i, example in enumerate(data):
        if twice := [answer for answer in example.answers if example.answers.count(answer) > 1]:
            raise ValueError(
                f"example {i} compares an answer with itself, {twice[0][:60]!r} in reply to {example.prompt[:60]!r}: "
                "there is nothing to learn from that, leave it out"
            )
