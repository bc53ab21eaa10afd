r"""Answers in a box: what a model that reads English is asked for, and how its answer is read.

`\boxed{...}` is where the MATH data set put its answers (Hendrycks et al., 2021, arXiv 2103.03874), and what
models have been trained on since. Any string at all may come in, a model wrote it: nothing here raises, and
nothing takes longer than a walk along the text.

    >>> boxed(r"17 + 25 = 42, and so \boxed{42 \text{ cents}}.")
    '42 \\text{ cents}'
    >>> number("$1,234.50"), number(r"\frac{3}{4}"), number("about 12")
    (Fraction(2469, 2), Fraction(3, 4), None)
"""

from __future__ import annotations

import re
from fractions import Fraction

import torch
from torch import Tensor

from rlcourse.lm import Policy, Rollout

# The words of Qwen2.5-Math's README, which small instruct models know.
STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds, braces in it balanced. None without one, or if it was never closed."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    for brace in re.finditer(r"[{}]", rest if found else ""):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return rest[: brace.start()].strip()
    return None


_DECIMAL = re.compile(
    r"([-+]?) ?(?:\\?[$£€])? ?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+|(?=\.[0-9]))((?:\.[0-9]*)?)(?: ?\\?%)?"
)
_FRAC = re.compile(r"([-+]?)\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")


def number(text: str) -> Fraction | None:
    """The number that a text is, exactly: "1,234", "-3.5", "$12", "50%" (for 50), "3/4". None if it is not one."""
    text = text.strip().strip("$").strip().replace("−", "-")
    if len(text) > 60:
        return None
    top, slash, bottom = _FRAC.sub(r"\1\2/\3", text, count=1).partition("/")
    parts = [_DECIMAL.fullmatch(part.strip()) for part in ([top, bottom] if slash else [top])]
    if None in parts:
        return None
    values = [
        Fraction(sign + (whole.replace(",", "") or "0") + point)
        for sign, whole, point in map(re.Match.groups, parts)
    ]
    if slash and not values[1]:
        return None
    return values[0] / values[1] if slash else values[0]


class InWords:
    """What the tasks share that are asked in English and answered in a box.

    A task says in `read(problem, text)` what it sees in an answer: `correct`, and what else is worth noting.
    """

    def asked_of(self, policy: Policy):
        """The task itself; a pocket, which has not read such words, is turned away."""
        if policy.pocket:
            raise ValueError(
                f"{type(self).__name__} is asked in plain English, and {policy.name} has read only sums and the "
                "helpdesk. Give it Sums() or Helpdesk(), or load an instruct model, such as "
                'load_policy("Qwen/Qwen2.5-0.5B-Instruct")'
            )
        return self

    def grade(self, rollout: Rollout) -> dict[str, Tensor]:
        """`rewards` and `correct` (right, and not cut at the token limit), `boxed`: was the format kept, and what
        else the task reads."""
        problems = [rollout.problems[p] for p in rollout.owner.tolist()]
        read = [self.read(problem, text) for problem, text in zip(problems, rollout.texts, strict=True)]
        seen = {name: torch.tensor([facts[name] for facts in read]) for name in read[0]}
        seen["boxed"] = torch.tensor([boxed(text) is not None for text in rollout.texts])
        rollout.correct = seen["correct"].to(rollout.tokens.device) & rollout.finished
        rewards = self.judge(rollout) if self.judge else rollout.correct.float()
        return {**seen, "rewards": rewards, "correct": rollout.correct}
