"""Several answers to each of many problems: what accuracy, pass@k and maj@k are all counted from."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlcourse.lm import Policy
from rlcourse.tasks.ask import ask


@dataclass(frozen=True)
class Tries:
    """All answers to one problem."""

    prompt: str
    texts: list[str]
    correct: list[bool]
    answers: list[str | None] | None  # what each says in the end, where the task can tell; None of a cut one


def tries(
    policy: Policy, task, problems: int = 256, samples: int = 1, seed: int = 0, rows: int = 512, **sampling
) -> list[Tries]:
    """`samples` answers to each of the problems that `accuracy` asks, some `rows` of them at a time."""
    rng = random.Random(f"accuracy/{seed}")
    drawn = [task.draw(rng) for _ in range(problems)]
    size = max(1, rows // samples)
    answer_of = getattr(task, "answer_of", None)
    found = []
    for start in range(0, problems, size):
        rollout, _ = ask(policy, task, drawn[start : start + size], samples, seed=seed + start, **sampling)
        said = zip(rollout.texts, rollout.correct.tolist(), rollout.finished.tolist(), strict=True)
        rest = list(said)
        for i, (prompt, problem) in enumerate(zip(rollout.prompts, rollout.problems, strict=True)):
            own = rest[i * samples : (i + 1) * samples]
            answers = answer_of and [
                answer_of(problem, text) if finished else None for text, _, finished in own
            ]
            found.append(Tries(prompt, [text for text, *_ in own], [right for _, right, _ in own], answers))
    return found
