"""The evidence behind chapters 01, 06 and 08, over several seeds: what a reward model learns, and what it does
to the policy that is trained on it.

A seed stands for everything: the customers, the annotators' choices, the reward model's order of them, and the
policy's own sampling. Only the policy that all start from is the same.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import cache

from desk_runs import FACETS, looked_at, scorer, sft
from many_runs import MACHINERY, columns, together

SEEDS = (0, 1, 2, 3, 4)  # of the reward models; the first three also train policies
STEPS = 80
LR = 1e-4
SIZES = (150, 600, 2400)
PER_WORD = (0.0, 0.1, 0.2)
BETAS = (0.0, 0.01, 0.05, 0.2, 5.0)


@dataclass(frozen=True)
class Trained:
    """A policy trained by PPO on a reward model from so many pairs."""

    beta: float = 0.05
    target_kl: float | None = None
    pairs: int = 600
    per_word: float = 0.0
    steps: int = STEPS
    lr: float = LR
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """A reward model, looked at."""

    pairs: int = 600
    per_word: float = 0.0
    seed: int = 0


def trained(spec: Trained) -> dict:
    """Where PPO leads, and the way there in tenths of the steps."""
    from rlcourse import train
    from rlcourse.methods import PPO
    from rlcourse.tasks import Helpdesk

    judge, policy = scorer(spec.pairs, spec.seed, spec.per_word), sft().copy()
    method = PPO(beta=spec.beta, target_kl=spec.target_kl, horizon=1000, group_size=4, epochs=2)
    task = Helpdesk(judge=judge, watch=FACETS)
    run = train(
        policy,
        task,
        method,
        steps=spec.steps,
        responses=64,
        lr=spec.lr,
        reference=sft(),
        seed=spec.seed,
        quiet=True,
    )
    tenth = spec.steps // 10
    parts = [run.history[start : start + tenth] for start in range(0, spec.steps, tenth)]
    curve = {
        name: [sum(row[name] for row in part) / len(part) for part in parts]
        for name in ("reward", "gold", "kl", "words", "entropy", "beta")
    }
    return {
        **looked_at(policy, judge),
        "curve": curve,
        "texts": [text for text, _ in run.samples[max(run.samples)][:3]],
    }


def judged(spec: Judged) -> dict:
    """Accuracy, AUC and calibration on people's choices and on gold, and what a word more is worth to it."""
    from random import Random

    import torch

    from rlcourse.evaluate.agreement import auc_within, calibration_error, pair_accuracy
    from rlcourse.methods.rft import best_of_n
    from rlcourse.tasks import Annotator, Helpdesk
    from rlcourse.tasks.helpdesk import gold_score
    from rlcourse.training.offline import as_rollout

    judge = scorer(spec.pairs, spec.seed, spec.per_word)

    @torch.no_grad()
    def scores(data):
        rollout = as_rollout(judge.policy, data)
        return rollout.grouped(judge(rollout))

    rng, desk = Random("judged"), Helpdesk()
    offered = desk.candidates(4, None, rng)
    tickets, replies = zip(*(next(offered) for _ in range(256)), strict=True)
    rankings = [_Group(ticket.prompt, tuple(four)) for ticket, four in zip(tickets, replies, strict=True)]
    said = scores(rankings)
    gold = torch.tensor(
        [[gold_score(t, reply) for reply in four] for t, four in zip(tickets, replies, strict=True)]
    )
    choices = scores(desk.pairs(1024, seed=10_000, annotator=Annotator(noise=0.1)))
    believed = (choices[:, 0] - choices[:, 1]).sigmoid()
    turned = torch.arange(len(believed)) % 2 == 0  # asked about "is the first one better?" in either order
    p = torch.where(turned, believed, 1 - believed)
    proxy, truth = tried(judge)
    words = torch.tensor([[float(len(reply.split())) for reply in four] for four in replies])
    return {
        "accuracy": pair_accuracy(*choices.unbind(1)),
        "auc": auc_within(said, gold > gold.median()),
        "calibration_error": calibration_error(p, turned),
        "per_word": slope(said, gold, words),
        "best_of": {
            str(n): {
                name: x.reshape(-1, n).gather(1, best_of_n(proxy.reshape(-1, n))[:, None]).mean().item()
                for name, x in (("proxy", proxy), ("gold", truth))
            }
            for n in (1, 2, 4, 8, 16, 32, 64)
        },
    }


@cache
def replies():
    """64 replies of the policy that all start from, to each of 128 customers, and their gold."""
    from random import Random

    from rlcourse.tasks import Helpdesk, ask

    rng, desk = Random("replies"), Helpdesk(watch="gold")
    rollout, grades = ask(sft(), desk, [desk.draw(rng) for _ in range(128)], group_size=64, seed=0)
    return rollout, rollout.grouped(grades["gold"])


def tried(judge):
    """What a judge says of those replies."""
    import torch

    rollout, truth = replies()
    with torch.no_grad():
        proxy = torch.cat([judge(rollout[start : start + 512]) for start in range(0, len(rollout), 512)])
    return rollout.grouped(proxy), truth


@dataclass(frozen=True)
class _Group:
    prompt: str
    answers: tuple[str, ...]


def slope(said, gold, words) -> float:
    """Points of gold that a word more is worth to the judge: a least-squares fit of its scores to gold and
    length, within customers."""
    import torch

    centred = [(x - x.mean(1, keepdim=True)).flatten() for x in (said, gold, words)]
    a, b = torch.linalg.lstsq(torch.stack(centred[1:], 1), centred[0][:, None]).solution.flatten().tolist()
    return b / a


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    from rlcourse.bookmaking.evidence import record

    arms: dict = {f"{n} pairs": Judged(n) for n in SIZES}
    arms |= {f"{word:g} a word": Judged(per_word=word) for word in PER_WORD}
    arms |= {f"beta {beta:g}": Trained(beta) for beta in BETAS}
    arms |= {"adaptive": Trained(target_kl=2.0), "beta 0, 2400 pairs": Trained(0.0, pairs=2400)}
    arms |= {f"policy, {word:g} a word": Trained(per_word=word, steps=40, lr=3 * LR) for word in PER_WORD}

    def seeds(arm) -> tuple[int, ...]:
        return SEEDS[:3] if isinstance(arm, Trained) else SEEDS

    specs = {name: [replace(arm, seed=seed) for seed in seeds(arm)] for name, arm in arms.items()}
    found = together(measure, [spec for each in specs.values() for spec in each])
    measured = {name: columns([found[spec] for spec in each]) for name, each in specs.items()}
    for name, arm in measured.items():
        shown = "gold" if "gold" in arm else "accuracy"
        print(f"{name:24s} {shown} {[round(x, 2) for x in arm[shown]]}", flush=True)

    modules = [
        *MACHINERY,
        "rlcourse.tensors", "rlcourse.kl", "rlcourse.lm.policy", "rlcourse.lm.llama", "rlcourse.lm.rollout",
        "rlcourse.lm.critic", "rlcourse.lm.scorer", "rlcourse.tasks.helpdesk", "rlcourse.tasks.annotators",
        "rlcourse.tasks.desk", "rlcourse.tasks.ask", "rlcourse.methods.offline", "rlcourse.methods.sft",
        "rlcourse.methods.reward_model", "rlcourse.methods.rft", "rlcourse.methods.reinforce", "rlcourse.methods.ppo",
        "rlcourse.training.online", "rlcourse.training.offline", "rlcourse.evaluate.report",
        "rlcourse.evaluate.agreement",
    ]  # fmt: skip
    record(
        "reward_model",
        {"steps": STEPS, "seeds": list(SEEDS), "start": looked_at(sft()), "arms": measured},
        command="python benchmarks/reward_model_evidence.py",
        modules=modules,
        checkpoints=["pocket"],
    )


def measure(spec) -> dict:
    return trained(spec) if isinstance(spec, Trained) else judged(spec)


if __name__ == "__main__":
    main()
