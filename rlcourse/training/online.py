"""The online loop: act, judge, learn.

    task.draw -> policy.sample -> task.grade -> method.keep -> method.advantages
              -> for each minibatch: method.loss -> optimizer -> run.history

One loop for every online method, and no formula in it: what a method computes is in its file.
All that is random in step n comes from (seed, n), so a run that is resumed at step n needs no
memory of how it got there.
"""

from __future__ import annotations

import dataclasses
import random
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rlcourse.kl import kl_estimate
from rlcourse.lm import Policy, Rollout
from rlcourse.lm.routing import has_experts
from rlcourse.methods.protocol import OnlineMethod
from rlcourse.tasks.ask import ask, suited
from rlcourse.tensors import entropy, masked_mean, only, token_logprobs
from rlcourse.training import precision
from rlcourse.training.folder import Folder, described, fingerprint, one_writer, settings
from rlcourse.training.presets import positive, preset
from rlcourse.training.processes import ALONE, Alone, first, team
from rlcourse.training.progress import Progress
from rlcourse.training.run import Run
from rlcourse.training.seeds import stream

STEPS = " steps"  # how an entry of `policy.trained` ends that `train` has made


@one_writer
def train(
    policy: Policy,
    task,
    method: OnlineMethod,
    *,
    steps: int | None = None,
    tokens: int | None = None,
    responses: int | None = None,
    lr: float | None = None,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    max_grad_norm: float = 1.0,
    micro_batch: int | None = None,
    reference: Policy | None = None,
    engine: Callable[[Policy], Policy] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    sample_every: int = 25,
    shard: bool = False,
    gradient_checkpointing: bool = False,
    tensorboard: bool = False,
    quiet: bool = False,
) -> Run:
    """Improve `policy` in place on `task`, for so many `steps` or so many sampled `tokens`.

    responses         sampled a step, over all prompts and processes: `responses // method.group_size` prompts.
                      By default 128; 32 of a model other than a pocket on a CPU
    lr                learning rate; by default 3e-4 for a pocket model, 1e-6 for others, 1e-5 for an adapter
    micro_batch       rows scored at once in a process; changes the memory, not the gradient
    reference         where KL is measured from; by default, where the method needs one, the policy as it comes in
    engine            makes of the policy what samples, where that is not the policy itself: say, a copy in bfloat16
    out, resume       a folder for checkpoints; `resume=True` goes on from the last one there
    sample_every      every so many steps a few fixed prompts are asked again, for `run.table()`
    shard             under torchrun: divide weights and moments between the processes (FSDP2)
    gradient_checkpointing   compute each layer again in the backward pass: less memory, a third more time
    tensorboard       write what is measured for TensorBoard too, into out/tensorboard
    """
    if (steps is None) == (tokens is None):
        raise ValueError("train for so many steps=..., or for so many sampled tokens=...: give one of them")
    if (steps if tokens is None else tokens) < 1:
        raise ValueError(f"steps={steps}, tokens={tokens} is nothing to train for: give a positive number")
    positive(
        lr=lr, temperature=temperature, max_tokens=max_tokens, max_grad_norm=max_grad_norm,
        micro_batch=micro_batch, checkpoint_every=checkpoint_every, sample_every=sample_every,
    )  # fmt: skip
    if shard and engine:
        raise ValueError(
            "engine= makes a copy of the policy, and with shard=True no process has all of it to copy"
        )
    task = suited(task, policy)
    max_tokens = max_tokens or task.max_tokens
    usual = preset(policy, max_tokens)
    lr = usual.lr if lr is None else lr
    responses = usual.responses if responses is None else responses
    micro_batch = micro_batch or usual.micro_batch
    n_prompts = prompts_a_step(responses, method)
    again = [done for done in policy.trained if done.endswith(STEPS)]  # going on from a `fit` is usual
    if again and not resume and first():
        warnings.warn(
            f"this policy has been trained already ({', '.join(again)}); training goes on from there. "
            "For a fresh start load it again, or train a policy.copy() from before.",
            stacklevel=3,
        )
    if reference is None and "ref_logp" in method.needs:
        fresh = policy.adapted and not policy.trained  # an adapter that has learned nothing yet is no change
        reference = policy.base() if fresh else policy.copy()
    config = dict(
        kind="train", **settings(policy), task=described(task), method=described(method), responses=responses, lr=lr,
        temperature=temperature, max_tokens=max_tokens, max_grad_norm=max_grad_norm,
        engine=getattr(engine, "__name__", engine and type(engine).__name__),
        measured_from=fingerprint(reference), seed=seed, shard=shard,
        data=stream(task.questions) if hasattr(task, "questions") else None,
    )  # fmt: skip
    budget = dict(
        **({"steps": steps} if steps else {"tokens": tokens}), micro_batch=micro_batch, sample_every=sample_every,
        checkpoint_every=checkpoint_every, gradient_checkpointing=gradient_checkpointing, tensorboard=tensorboard,
    )  # fmt: skip

    if gradient_checkpointing:
        policy.checkpoint_layers()
    state = method.init(policy)
    processes = team(policy, modules(state), shard)
    weights = [(policy.parameters(), lr), *((m.parameters(), method.critic_lr or lr) for m in modules(state))]
    optimizer = precision.adamw(weights)
    watched = [task.draw(random.Random(stream("watched", i))) for i in range(8)]
    run = Run(policy, task, method, seed, state=state, prompts=[problem.prompt for problem in watched])
    folder = Folder(out, run, config, budget, processes, tensorboard)
    step = folder.resume(resume, policy, optimizer, state)
    earlier = list(policy.trained)
    spent = run.history[-1]["sampled_tokens"] if run.history else 0
    clock = time.monotonic() - (run.history[-1]["seconds"] if run.history else 0.0)
    progress = Progress(run, quiet or not first())

    def sample_watched() -> None:
        with processes.gathered():
            answers, _ = ask(
                policy, task, watched, max_tokens=max_tokens, temperature=temperature, seed=stream("watched")
            )
        folder.watch(step, list(zip(answers.texts, answers.correct.tolist(), strict=True)))

    def done() -> float:
        return step / steps if steps else spent / tokens

    if step == 0:
        sample_watched()
    while done() < 1:
        step += 1
        with processes.gathered():
            sampler = engine(policy) if engine else policy
            rollout, metrics = collect(
                sampler, task, method, n_prompts, max_tokens, temperature, seed, step, processes
            )
            if rollout:
                complete(policy, reference, method, state, rollout, micro_batch, processes)
        spent += metrics.pop("tokens")
        if rollout:
            rollout.advantages = method.advantages(rollout, state)
            measured = learn(
                policy, optimizer, method, rollout, state, micro_batch, max_grad_norm, stream(seed, step), processes
            )  # fmt: skip
            metrics |= rollout.metrics | measured
        policy.trained = [*earlier, f"{type(method).__name__} for {step}{STEPS}"]  # interrupted runs too
        folder.note(
            {"step": step, **metrics, "sampled_tokens": spent, "seconds": round(time.monotonic() - clock, 3)}
        )
        finished = done() >= 1 or not rollout
        if step % sample_every == 0 or finished:
            sample_watched()
        progress.update(done(), last=finished)
        if step % checkpoint_every == 0 or finished:
            folder.save(step, policy, optimizer, state)
        if not rollout:
            break
    policy.trained = [*earlier, f"{type(method).__name__} for {step}{STEPS}"]
    processes.finish()
    if (last := run.history[-1])["prompts_kept"] == 0 and first():
        warnings.warn(
            f"stopped at step {step}: {type(method).__name__} kept none of the {last['prompts_drawn']} "
            f"prompts that it was offered, of whose answers {last['correct']:.0%} were right. There is "
            "nothing left to learn from at this difficulty.",
            stacklevel=3,
        )
    return run


def prompts_a_step(responses: int, method: OnlineMethod) -> int:
    """So many groups of answers; what cannot be divided into them is said before anything is done."""
    for name in ("group_size", "epochs", "minibatches"):
        if (number := getattr(method, name)) < 1:
            raise ValueError(f"{type(method).__name__} with {name}={number}: that is 1 or more")
    n_prompts, rest = divmod(responses, method.group_size)
    if n_prompts == 0 or rest:
        raise ValueError(
            f"{responses} responses a step do not divide into {type(method).__name__}'s groups of "
            f"{method.group_size}: pass responses={max(1, n_prompts) * method.group_size}"
        )
    return n_prompts


def collect(
    sampler: Policy,
    task,
    method: OnlineMethod,
    n_prompts: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    step: int,
    processes: Alone = ALONE,
) -> tuple[Rollout | None, dict]:
    """A rollout of `n_prompts` groups that the method keeps, of fewer if it turned down too many, and None
    if it kept none. What was sampled and dropped is counted too."""
    rng = random.Random(stream(seed, step, "problems"))
    kept, n_kept, spent, drawn, facts = [], 0, 0, 0, []
    for attempt in range(1 + method.refills):
        problems = [task.draw(rng) for _ in range(n_prompts)]
        how = dict(max_tokens=max_tokens, temperature=temperature)
        rollout, grades = processes.ask(
            sampler, task, problems, method.group_size, seed=stream(seed, step, "sample", attempt), **how
        )
        drawn, spent = drawn + n_prompts, spent + int(rollout.mask.sum())
        facts.append(
            {name: grade.float().mean().item() for name, grade in grades.items() if name != "rewards"}
        )
        facts[-1] |= {
            "reward": rollout.rewards.mean().item(),
            "length": rollout.lengths.float().mean().item(),
            "finished": rollout.finished.float().mean().item(),
            "entropy": masked_mean(rollout.entropy, rollout.mask).item(),
        }
        if method.group_size > 1:
            groups = rollout.grouped(rollout.rewards)
            facts[-1]["tied_groups"] = (groups.amax(1) == groups.amin(1)).float().mean().item()
        if "greedy" in method.needs:
            greedy, _ = processes.ask(sampler, task, problems, greedy=True, **how)
            rollout.greedy_rewards = greedy.rewards[rollout.owner]
            spent += int(greedy.mask.sum())
        keep = method.keep(rollout)
        n_kept += int(keep.sum())
        if keep.any():
            kept.append(rollout.groups(keep))
        if n_kept >= n_prompts:
            break
    # averages over all that was sampled, not over what was kept: keeping only mixed groups would flatter or hide
    metrics = {name: sum(f[name] for f in facts) / len(facts) for name in facts[0]}
    metrics |= {"tokens": spent, "prompts_drawn": drawn, "prompts_kept": min(n_kept, n_prompts)}
    if not kept:
        return None, metrics
    rollout = Rollout.cat(kept)
    rollout = rollout.groups(torch.arange(len(rollout.prompts)) < n_prompts)
    if "routing" in method.needs and has_experts(sampler.model):
        sampler.route(rollout)
    return rollout, metrics


@torch.no_grad()
def complete(
    policy: Policy,
    reference: Policy | None,
    method: OnlineMethod,
    state: dict,
    rollout: Rollout,
    size: int | None,
    processes: Alone = ALONE,
) -> None:
    """Fill in what the method needs beside the rewards, `size` rows at a time."""
    if "engine_logp" in method.needs:
        replay = rollout.routing is not None
        rollout.engine_logp = rollout.logp
        rollout.logp = processes.each(partial(policy.score, replay=replay), rollout, size)
    if reference:
        rollout.ref_logp = processes.each(reference.score, rollout, size)
        drift = kl_estimate(rollout.logp, rollout.ref_logp, "k1")
        rollout.metrics["kl"] = only(drift, rollout.mask).sum(1).mean().item()
    if "values" in method.needs:
        rollout.values = processes.each(state["critic"], rollout, size)


def modules(state: dict) -> list[torch.nn.Module]:
    """What of a method's state is trained: its critic, if it has one."""
    return [part for part in state.values() if isinstance(part, torch.nn.Module)]


def look(policy: Policy, method: OnlineMethod, state: dict, batch: Rollout) -> None:
    """What the policy, and the critic, say of a batch now: everything here carries gradient."""
    states, logits = policy.states_and_logits(batch, replay=batch.routing is not None)
    batch.logp = batch.spread(token_logprobs(logits, batch.tokens[batch.mask]))
    if "entropy" in method.needs:
        batch.entropy = batch.spread(entropy(logits))
    if "values" in method.needs:
        batch.values = state["critic"](batch, states)


def objective(
    policy: Policy, method: OnlineMethod, state: dict, minibatch: Rollout, rows: slice
) -> tuple[Tensor, dict[str, Tensor]]:
    """The share of some rows in the loss of their minibatch, and the sums of what was measured on them."""
    batch = minibatch[rows]
    look(policy, method, state, batch)
    per_token, metrics = method.loss(batch, state)
    loss = (per_token * batch.weights).sum()
    return loss, {name: only(value, batch.mask).sum().detach() for name, value in metrics.items()}


def learn(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    method: OnlineMethod,
    rollout: Rollout,
    state: dict,
    micro_batch: int | None,
    max_grad_norm: float,
    seed: int,
    processes: Alone = ALONE,
) -> dict:
    """`epochs` passes over the rollout, `minibatches` optimizer steps each; means of what was measured."""
    rollout = dataclasses.replace(rollout, old_logp=rollout.logp, old_values=rollout.values)
    generator = torch.Generator().manual_seed(seed)
    updates, sums = 0, {}
    for _ in range(method.epochs):
        order = torch.arange(len(rollout))
        if method.minibatches > 1:
            order = torch.randperm(len(rollout), generator=generator)
        for rows in order.chunk(method.minibatches):
            minibatch = rollout[rows]
            # One set of weights for the whole optimizer step: its micro-batches add up to the same gradient.
            minibatch.weights = method.weights(minibatch)
            n_tokens, measured = int(minibatch.mask.sum()), {"loss": 0.0}
            optimizer.zero_grad()
            for some in processes.share(len(minibatch), micro_batch):
                loss, metrics = processes.backward(partial(objective, policy, method, state, minibatch), some)
                precision.collect(optimizer)
                measured["loss"] += loss
                for name, value in metrics.items():
                    measured[name] = measured.get(name, 0.0) + value.item() / n_tokens
            norm = precision.clip(optimizer, max_grad_norm)
            optimizer.step()
            updates += 1
            for part in (*processes.gather(measured), {"grad_norm": norm}):
                for name, value in part.items():
                    sums[name] = sums.get(name, 0.0) + value
    return {name: total / updates for name, total in sums.items()}
