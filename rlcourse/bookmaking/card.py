"""What a model of ours can do, measured, and the card that says so."""

from __future__ import annotations

import json
import random
from math import isnan
from pathlib import Path

from rlcourse.evaluate import pass_at_k
from rlcourse.lm import Policy
from rlcourse.tasks import ask, helpdesk
from rlcourse.tasks.sums import Sums

DIAL = [(2, 1), (2, 2), (3, 2), (3, 3), (4, 2), (5, 2), (5, 3), (6, 2), (7, 2), (8, 2)]  # (terms, digits)


def probe(policy: Policy, task: Sums, problems: int = 512) -> dict[str, float]:
    """One answer a problem, at temperature 1: how many are right, are worked, and are right when worked or not."""
    rng = random.Random("probe")
    _, grades = ask(policy, task, [task.draw(rng) for _ in range(problems)])
    works, right = grades["worked"], grades["correct"]
    return {
        "accuracy": right.float().mean().item(),
        "worked": works.float().mean().item(),
        "right_if_worked": right[works].float().mean().item() if works.any() else float("nan"),
        "right_if_direct": right[~works].float().mean().item() if (~works).any() else float("nan"),
    }


def pass_at_64(policy: Policy, task: Sums, problems: int = 32) -> float:
    rng = random.Random("pass@64")
    rollout, _ = ask(policy, task, [task.draw(rng) for _ in range(problems)], group_size=64)
    right = rollout.grouped(rollout.correct).sum(1)
    return sum(pass_at_k(64, n, 64) for n in right.tolist()) / problems


def gold(policy: Policy, tickets: int = 256) -> float:
    """Mean gold score of one reply a ticket, sampled at temperature 1."""
    rng = random.Random("gold")
    drawn = [helpdesk.draw_ticket(rng) for _ in range(tickets)]
    replies = policy.sample([ticket.message for ticket in drawn], max_tokens=64).texts
    return sum(map(helpdesk.gold_score, drawn, replies)) / tickets


def scores(policy: Policy, dial: list[tuple[int, int]] = DIAL, problems: int = 512) -> dict:
    by_dial = {
        f"{terms} x {digits}": probe(policy, Sums(terms, digits), problems)
        | {"pass@64": pass_at_64(policy, Sums(terms, digits), problems // 16 or 1)}
        for terms, digits in dial
    }
    return {"sums": by_dial, "helpdesk gold": gold(policy, problems // 2)}


def describe(
    policy: Policy,
    folder: Path,
    about: str,
    facts: dict,
    dial: list[tuple[int, int]] = DIAL,
    problems: int = 512,
) -> None:
    """Save the policy with a card for people, README.md, and at last `scores.json`: where that is, all is there."""
    policy.save(folder, max_shard_size="15MB")  # larger files are a burden to repositories
    measured = scores(policy, dial, problems)
    columns = ("accuracy", "worked", "right_if_worked", "right_if_direct", "pass@64")
    rows = "\n".join(
        f"| {at} | " + " | ".join("-" if isnan(s[c]) else f"{s[c]:.2f}" for c in columns) + " |"
        for at, s in measured["sums"].items()
    )
    (folder / "README.md").write_text(f"""# {policy.name}

{about}

What it does before any training by reinforcement, at temperature 1. `3 x 2` means three terms of two digits.
One answer to each of {problems} problems; pass@64 over {problems // 16 or 1} problems.

| terms x digits | accuracy | worked | right if worked | right if direct | pass@64 |
|---|---|---|---|---|---|
{rows}

Helpdesk: mean gold score of its replies {measured["helpdesk gold"]:.2f}, on a scale from -4 to 3.

It is made for teaching. It knows nothing but these two worlds.
""")
    (folder / "scores.json").write_text(json.dumps(facts | {"scores": measured}, indent=1) + "\n")
