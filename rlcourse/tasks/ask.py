"""Put problems to a policy and grade what it says: what training, evaluation and chapters all do."""

from __future__ import annotations

from torch import Tensor

from rlcourse.lm import Policy, Rollout


def ask(
    policy: Policy, task, problems: list, group_size: int = 1, max_tokens: int | None = None, **sampling
) -> tuple[Rollout, dict[str, Tensor]]:
    """`group_size` answers to each problem with their rewards, and all that the task says of them."""
    prompts = [problem.prompt for problem in problems]
    rollout = policy.sample(prompts, group_size, max_tokens or task.max_tokens, **sampling)
    rollout.problems = problems
    grades = task.grade(rollout)
    rollout.rewards, rollout.correct = (grades[name].to(policy.device) for name in ("rewards", "correct"))
    _check(rollout)
    return rollout, grades


def suited(task, policy: Policy):
    """The task as this policy should be asked, where the task makes a difference."""
    return task.asked_of(policy) if hasattr(task, "asked_of") else task


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
