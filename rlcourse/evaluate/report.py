"""One look at a policy: everything that its task says of its answers, on problems of their own."""

from __future__ import annotations

import random

import torch

from rlcourse.lm import Policy
from rlcourse.tasks.ask import ask, suited
from rlcourse.tensors import only


@torch.no_grad()
def report(
    policy: Policy, task, problems: int = 256, seed: int = 0, reference: Policy | None = None
) -> dict[str, float]:
    """Means over one answer to each problem, sampled at temperature 1; with a `reference`, the KL from it too.

    The problems are drawn from a stream of their own: no training seed draws from it.
    """
    task, rng = suited(task, policy), random.Random(f"report/{seed}")
    rollout, grades = ask(policy, task, [task.draw(rng) for _ in range(problems)], seed=seed)
    means = {name: grade.float().mean().item() for name, grade in grades.items()}
    means |= {"length": rollout.lengths.float().mean().item()}
    if reference:
        moved = only(rollout.logp - reference.score(rollout), rollout.mask).sum(1)
        means["kl"] = moved.mean().item()
    return means
