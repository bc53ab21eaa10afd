"""Put problems to a policy and grade what it says: what training, evaluation and chapters all do."""

from __future__ import annotations

import re
from dataclasses import fields

from torch import Tensor

from rlcourse.lm import Policy, Rollout


def ask(
    policy: Policy, task, problems: list, group_size: int = 1, max_tokens: int | None = None, **sampling
) -> tuple[Rollout, dict[str, Tensor]]:
    """`group_size` answers to each problem with their rewards, and all that the task says of them."""
    prompts = [problem.prompt for problem in problems]
    longest = task.max_tokens if max_tokens is None else max_tokens
    rollout = policy.sample(prompts, group_size, longest, **sampling)
    rollout.problems = problems
    grades = task.grade(rollout)
    rollout.rewards, rollout.correct = (grades[name].to(policy.device) for name in ("rewards", "correct"))
    _check(rollout)
    return rollout, grades


def suited(task, policy: Policy):
    """The task as this policy should be asked, where the task makes a difference: pockets have read no questions
    in words, and other models have read no `17+25=` that ends in `#42`."""
    return task.asked_of(policy) if hasattr(task, "asked_of") else task


def shown(task) -> str:
    """A task's repr: what makes it again, but for a judge, which goes by its name.

    A function's own repr holds its address, so that no run with it could ever be recognised and resumed."""
    values = {field.name: getattr(task, field.name) for field in fields(task) if field.repr}
    said = {name: repr(value) for name, value in values.items()}
    if judge := values.get("judge"):
        said["judge"] = getattr(judge, "__qualname__", None) or re.sub(" at 0x[0-9a-f]+", "", repr(judge))
    return f"{type(task).__name__}({', '.join(f'{name}={value}' for name, value in said.items())})"


def _check(rollout: Rollout) -> None:
    """What would poison an update is named here, before there is any."""
    if rollout.rewards.shape != (len(rollout),):
        raise ValueError(
            f"the task gave rewards of shape {tuple(rollout.rewards.shape)} for {len(rollout)} responses: one each"
        )
    if not rollout.rewards.isfinite().all():
        row = int((~rollout.rewards.isfinite()).nonzero()[0])
        prompt, reward = rollout.prompts[rollout.owner[row]], rollout.rewards[row].item()
        raise ValueError(
            f"the reward of response {row} is {reward}: to {prompt!r} the policy answered {rollout.texts[row]!r}"
        )
