"""How good is a policy? Accuracy and pass@k; win rates and calibration belong here too."""

from __future__ import annotations

import random
from math import comb

from torch import Tensor

from rlcourse.lm import Policy
from rlcourse.tasks.ask import ask, suited


def pass_at_k(samples: int | Tensor, correct: int | Tensor, k: int) -> float:
    """The chance that at least one of k tries is right, from `samples` tries of which `correct` were.

    Unbiased (Chen et al., 2021, arXiv 2107.03374, equation 1). 1 - (1 - correct/samples)^k is not:
    it draws the same try twice.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    samples, correct, k = int(samples), int(correct), int(k)
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {samples}")
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} correct of {samples} samples cannot be")
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def accuracy(policy: Policy, task, problems: int = 512, seed: int = 0) -> float:
    """Share of right answers, one a problem, sampled at temperature 1.

    The problems are drawn from a stream of their own: no training seed draws from it.
    """
    task, rng = suited(task, policy), random.Random(f"accuracy/{seed}")
    rollout, _ = ask(policy, task, [task.draw(rng) for _ in range(problems)], seed=seed)
    return rollout.correct.float().mean().item()
