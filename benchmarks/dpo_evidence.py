"""The evidence behind chapter 10, over several seeds: label noise, and offline against online.

Everyone starts from the same SFT policy and spends the same number of labels on its own replies. Three
learning rates are tried for each arm on a seed that is not reported; the two best of them then run on all
reported seeds, and the better one is reported.

    python benchmarks/dpo_evidence.py            every arm
    python benchmarks/dpo_evidence.py --missing  those that the record lacks; it keeps the others' numbers

Digits depend on the processor. So `--missing` also runs DPO at beta 0.5 again, at its recorded rates: with the
new arms it compares what one machine has measured, and with its own record it says what another machine changes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import cache

from desk_runs import looked_at, sft
from many_runs import MACHINERY, at_its_best_rate, over_seeds

LABELS = 600
SEEDS = (0, 1, 2, 3, 4)
SEARCH_SEEDS = (100,)
RATES = (1e-4, 3e-4, 6e-4)
NOISE = (0.0, 0.1, 0.3)


@dataclass(frozen=True)
class Spec:
    """One run. `how` is a key of `methods`, "SFT on the chosen" or "online"."""

    how: str
    noise: float
    lr: float = 3e-4
    epochs: int = 2
    seed: int = 0


def methods(noise: float) -> dict:
    from rlcourse.methods import DPO, IPO

    return {
        "DPO, beta 0.1": DPO(beta=0.1),
        "DPO, beta 0.5": DPO(beta=0.5),
        "conservative DPO": DPO(beta=0.5, label_smoothing=max(noise, 0.1)),
        "IPO": IPO(beta=1.0),
    }


def annotator(noise: float):
    from rlcourse.tasks import Annotator

    return Annotator(temperature=0.0, noise=noise)  # every wrong label is one that was turned round


@cache
def pairs(noise: float, seed: int, n: int = LABELS):
    from rlcourse.tasks import Helpdesk

    return Helpdesk().pairs(n, seed=seed, annotator=annotator(noise), policy=sft())


class Asked:
    """An annotator as a judge: of two replies to a customer the one that they choose earns 1, the other 0."""

    def __init__(self, noise: float, seed: int):
        from random import Random

        self.annotator, self.rng = annotator(noise), Random(f"asked/{seed}")

    def __call__(self, rollout):
        import torch

        rewards = torch.zeros(len(rollout))
        for first in range(0, len(rollout), 2):
            ticket = rollout.problems[int(rollout.owner[first])]
            choice = self.annotator.compare(ticket, *rollout.texts[first : first + 2], self.rng)
            rewards[first], rewards[first + 1] = choice > 0, choice < 0
        return rewards


def ordered(policy, data) -> float:
    """Share of pairs that the implicit reward puts in the right order."""
    from rlcourse.training.offline import as_rollout, scored

    rollout = as_rollout(policy, data)
    moved = rollout.grouped((scored(policy, rollout) - scored(sft(), rollout)).sum(1))
    return (moved[:, 0] > moved[:, 1]).float().mean().item()


def measure(spec: Spec) -> dict:
    from rlcourse import fit, train
    from rlcourse.methods import SFT, OnlineDPO
    from rlcourse.tasks import Demonstration, Helpdesk

    policy, found = sft().copy(), {}
    if spec.how == "online":
        task = Helpdesk(judge=Asked(spec.noise, spec.seed))
        train(
            policy, task, OnlineDPO(beta=0.5), steps=round(spec.epochs * LABELS / 32), responses=64, lr=spec.lr,
            reference=sft(), seed=spec.seed, quiet=True,
        )  # fmt: skip
    elif spec.how == "SFT on the chosen":
        data = pairs(spec.noise, spec.seed)
        chosen = [Demonstration(pair.prompt, pair.chosen) for pair in data]
        fit(policy, chosen, SFT(), epochs=spec.epochs, lr=spec.lr, seed=spec.seed, quiet=True)
        found["accuracy"] = ordered(policy, data)
    else:
        data = pairs(spec.noise, spec.seed)
        run = fit(
            policy, data, methods(spec.noise)[spec.how], epochs=spec.epochs, lr=spec.lr, reference=sft(),
            seed=spec.seed, quiet=True,
        )  # fmt: skip
        last = run.history[-8:]
        found = {
            name: sum(row[name] for row in last) / len(last) for name in ("chosen_moved", "rejected_moved")
        }
        found["accuracy"] = ordered(policy, data)
    return {**looked_at(policy), **found, "held_out": ordered(policy, pairs(0.0, 10_000, 256))}


def all_arms() -> dict[str, Spec]:
    how = ["SFT on the chosen", *methods(0.0)]
    return {f"{each}, noise {noise:g}": Spec(each, noise) for noise in NOISE for each in how} | {
        # the same 600 labels: once through them offline, or 600 answered by the policy as it is then
        "offline, one pass": Spec("DPO, beta 0.5", 0.0, epochs=1),
        "online, one pass": Spec("online", 0.0, epochs=1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--missing", action="store_true", help="measure what the record lacks, keep the rest")
    missing = parser.parse_args().missing
    from rlcourse.bookmaking import atomic
    from rlcourse.bookmaking.evidence import FOLDER, as_text, record

    arms, path = all_arms(), FOLDER / "dpo.json"
    if missing:
        file = json.loads(path.read_text())
        kept = file["result"]["arms"]
        arms = {name: spec for name, spec in arms.items() if name not in kept}
        print("kept as recorded:", *kept, sep="\n  ")
        print("to be measured:", *arms, sep="\n  ", flush=True)
        if not arms:
            return
    measured, tried = at_its_best_rate(measure, arms, RATES, SEARCH_SEEDS, SEEDS)
    for name, arm in measured.items():
        print(f"{name:32s} lr {arm['lr']:g}  gold {[round(g, 2) for g in arm['gold']]}", flush=True)

    if missing:
        once_more = {
            name: replace(spec, lr=kept[name]["lr"])
            for name, spec in all_arms().items()
            if name.startswith("DPO, beta 0.5, noise") and name in kept
        }
        file["result"]["arms"] |= measured
        file["result"]["rates"] |= tried
        file["result"]["again"] = over_seeds(measure, once_more, SEEDS)
        # most of the file is as old as it was: its stamp stays, and `make stale` goes on listing what has changed
        atomic.write(path, as_text(file))
        return
    modules = [
        *MACHINERY,
        "rlcourse.tensors", "rlcourse.kl", "rlcourse.lm.policy", "rlcourse.lm.llama", "rlcourse.lm.rollout",
        "rlcourse.tasks.helpdesk", "rlcourse.tasks.annotators", "rlcourse.tasks.desk", "rlcourse.tasks.ask",
        "rlcourse.methods.offline", "rlcourse.methods.sft", "rlcourse.methods.reward_model", "rlcourse.methods.dpo",
        "rlcourse.methods.reinforce", "rlcourse.methods.online_dpo", "rlcourse.training.online",
        "rlcourse.training.offline", "rlcourse.evaluate.report",
    ]  # fmt: skip
    record(
        "dpo",
        {"labels": LABELS, "start": looked_at(sft()), "rates": tried, "arms": measured},
        command="python benchmarks/dpo_evidence.py",
        modules=modules,
        checkpoints=["pocket"],
    )


if __name__ == "__main__":
    main()
