"""The evidence behind chapter 07, over several seeds: about 25 minutes on two cores.

critics   how much of the returns critics explain that were taught on more and more answers, and the ceiling:
          what the true values explain, from continuations of many prefixes
gradients noise and direction of the policy gradient at the base policy, by where the advantages come from
arms      training. Every run may sample the same number of tokens; the answers that a critic is taught on
          before the run starts are in it. Of the parents and of the arm that fails, three learning rates are
          tried on two seeds that are not reported, the two best run on all reported seeds, and the better
          one is reported. The other arms run at the library's rate.

`--try` runs one seed of everything on a fraction of its budget.
"""

from __future__ import annotations

import argparse
import random
from copy import copy
from dataclasses import dataclass
from functools import cache

from many_runs import MACHINERY, at_its_best_rate, over_seeds, reached

TOKENS = 25_000
LESSONS = 640  # answers that a critic is taught on
SEEDS = (0, 1, 2, 3, 4)
SEARCH_SEEDS = (100, 101)
RATES = (3e-5, 1e-4, 3e-4)
LR = 3e-4
OFFSET = 5.0  # what the generous judge pays for taking part
SETTINGS = {"beta": 0.0, "value_clip": None, "critic_lr": 1e-3, "epochs": 2}

# name: (changes to PPO's settings, who starts as the critic)
PPO_ARMS = {
    "PPO": ({}, "new"),
    "PPO, lambda 1": ({"lam": 1.0}, "new"),
    "PPO without a critic": ({"vf": 0.0, "lam": 1.0}, "new"),
    "PPO, taught": ({}, "taught"),
    "PPO, taught, lambda 0": ({"lam": 0.0}, "taught"),
    "PPO, taught, lambda 1": ({"lam": 1.0}, "taught"),
    "PPO, shared trunk": ({"critic": "shared"}, "new"),
    "PPO, peeking": ({}, "peeking"),
}
PARENTS = {"REINFORCE": "none", "REINFORCE with a batch baseline": "batch"}
SEARCHED = [f"{name}, {judge}" for name in PARENTS for judge in ("rule", "five")] + ["PPO, five"]
FIXED = [f"{name}, rule" for name in PPO_ARMS] + ["PPO, lambda 1, five", "PPO, taught, five"]


@dataclass(frozen=True)
class Spec:
    """One run of an arm, "PPO, taught, rule": a method and a judge."""

    arm: str
    lr: float = LR
    seed: int = 0
    share: float = 1.0  # of the budget

    @property
    def name(self) -> str:
        return self.arm.rpartition(", ")[0]

    @property
    def judge(self) -> str:
        return self.arm.rpartition(", ")[2]


def generous(rollout):
    return rollout.correct.float() + OFFSET


def answers(policy, task, n: int, seed: str):
    from rlcourse.tasks import ask

    rng = random.Random(seed)
    problems = [task.draw(rng) for _ in range(n)]
    return ask(policy, task, problems, seed=rng.randrange(2**31))[0]


def monte_carlo(rollout):
    """What every token turned out to be followed by: the answer's reward."""
    return rollout.rewards[:, None].expand(rollout.mask.shape)


def peeking_critic():
    import torch

    from rlcourse.lm.critic import Critic
    from rlcourse.methods.reinforce import last_token

    class PeekingCritic(Critic):
        """The planted bug: V of the state *after* each token."""

        def forward(self, rollout, states=None):
            before = super().forward(rollout, states)
            return torch.where(last_token(rollout.mask), before, before.roll(-1, 1))

    return PeekingCritic


def teach(critic, rollout, steps: int, seed: int = 0):
    import torch

    from rlcourse.methods.ppo import value_loss

    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = rollout[torch.randperm(len(rollout), generator=generator)[:128]]
        values = critic(batch)
        loss = value_loss(values, values, monte_carlo(batch), batch.mask, clip=None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic


@cache
def lesson(who: str, seed: int):
    """A critic taught on the base policy's answers, right 1 and wrong 0; and the tokens that took."""
    from rlcourse import load_policy
    from rlcourse.lm.critic import Critic
    from rlcourse.tasks import Sums

    base = load_policy("pocket", device="cpu")
    rollout = answers(base, Sums(), LESSONS, f"lesson/{seed}")
    critic = (Critic if who == "taught" else peeking_critic())(base)
    return teach(critic, rollout, 20, seed), int(rollout.mask.sum())


def method(spec: Spec):
    """The method, and the tokens that its critic has cost already."""
    from rlcourse.lm.critic import Critic
    from rlcourse.methods import PPO, REINFORCE

    if spec.name in PARENTS:
        return REINFORCE(baseline=PARENTS[spec.name]), 0
    changes, who = PPO_ARMS[spec.name]
    if who == "new":
        return PPO(**SETTINGS | changes), 0
    taught, tokens = lesson(who, spec.seed)

    @dataclass(frozen=True)
    class TaughtPPO(PPO):
        def init(self, policy):
            critic = (Critic if who == "taught" else peeking_critic())(policy)
            critic.load_state_dict(taught.state_dict())
            if spec.judge == "five":  # every state is worth that much more
                critic.head.bias.data += OFFSET
            return super().init(policy) | {"critic": critic}

    return TaughtPPO(**SETTINGS | changes), tokens


def measure(spec: Spec) -> dict:
    """Train once; accuracy on 512 fresh problems before and after, and the curve in tenths of the budget."""
    import torch

    from rlcourse import load_policy, train
    from rlcourse.evaluate import accuracy
    from rlcourse.tasks import Sums

    torch.set_num_threads(1)
    policy, task = load_policy("pocket", device="cpu"), Sums(judge=generous if spec.judge == "five" else None)
    before = accuracy(policy, Sums())
    made, spent = method(spec)
    budget = int(spec.share * TOKENS)
    run = train(policy, task, made, tokens=max(1, budget - spent), lr=spec.lr, seed=spec.seed, quiet=True)
    names = [n for n in ("correct", "worked", "length", "explained_variance") if n in run.history[0]]
    return {
        "before": before,
        "after": accuracy(policy, Sums()),
        "steps": len(run.history),
        "curve": reached(run.history, names, budget, spent),
    }


def arms(seeds: tuple[int, ...], search_seeds: tuple[int, ...], share: float) -> tuple[dict, dict]:
    made = {name: Spec(name, share=share) for name in (*SEARCHED, *FIXED)}
    searched = {name: made[name] for name in SEARCHED}
    best, tried = at_its_best_rate(measure, searched, RATES, search_seeds, seeds)
    return best | over_seeds(measure, {name: made[name] for name in FIXED}, seeds), tried


def going_on(policy, task, starts: list, n: int, seed: int):
    """`n` continuations of each start, a problem with the tokens said so far: which of them end right, [S n]."""
    import torch

    twin = copy(policy)
    twin.encode = lambda start: policy.encode(start[0].prompt) + start[1]
    right = []
    for first in range(0, len(starts), 32):
        part = starts[first : first + 32]
        rollout = twin.sample(part, n, task.max_tokens, seed=seed + first)
        said = zip(rollout.owner.tolist(), rollout.tokens.tolist(), rollout.lengths.tolist(), strict=True)
        rollout.texts = [policy.decode(part[owner][1] + row[:length]) for owner, row, length in said]
        rollout.problems = [problem for problem, _ in part]
        right.append(task.grade(rollout)["correct"].float().view(len(part), n))
    return torch.cat(right)


def critics(small: bool) -> dict:
    """Held-out explained variance by number of answers, and what the true values would explain."""
    import torch

    from rlcourse import load_policy
    from rlcourse.lm.critic import Critic
    from rlcourse.methods.ppo import explained_variance
    from rlcourse.tasks import Sums

    torch.set_num_threads(1)
    base, task = load_policy("pocket", device="cpu"), Sums()
    test = answers(base, task, 256 if small else 2048, "held out")
    returns = monte_carlo(test)

    states = test.mask.nonzero()
    generator = torch.Generator().manual_seed(0)
    states = states[torch.randperm(len(states), generator=generator)[: 32 if small else 768]]
    starts = [(test.problems[test.owner[b]], test.tokens[b, :t].tolist()) for b, t in states.tolist()]
    n = 8 if small else 64
    p = going_on(base, task, starts, n, seed=7).mean(1)
    noise = p * (1 - p) * n / (n - 1)  # unbiased, of the variance of one return given its state
    spread = returns[test.mask].var()

    explained = {}
    for lessons, steps in ((640, 20), (2_560, 80), (20_480, 640)) if not small else ((64, 2),):
        explained[lessons] = []
        for seed in range(1 if small else 3 if lessons < 20_000 else 1):
            parts = [
                answers(base, task, min(lessons, 1024), f"critics/{seed}/{i}")
                for i in range(-(-lessons // 1024))
            ]
            critic = teach(Critic(base), type(test).cat(parts), steps, seed)
            with torch.no_grad():
                values = torch.cat([critic(test[i : i + 256]) for i in range(0, len(test), 256)])
            values = torch.nn.functional.pad(values, (0, test.mask.shape[1] - values.shape[1]))
            explained[lessons].append(explained_variance(values, returns, test.mask))
    return {
        "ceiling": (1 - noise.mean() / spread).item(),
        "ceiling_error": (noise.std() / len(noise) ** 0.5 / spread).item(),
        "explained": explained,
    }


def gradients(small: bool) -> dict:
    """Of the policy gradient at the base policy, from batches of 128 answers: its noise, as variance over
    the squared length of the true gradient, and the cosine between its mean and the true gradient."""
    import torch

    from rlcourse import load_policy
    from rlcourse.methods.ppo import gae
    from rlcourse.methods.reinforce import last_token
    from rlcourse.tasks import Sums

    torch.set_num_threads(1)
    base, task = load_policy("pocket", device="cpu"), Sums()
    critic, _ = lesson("taught", 0)
    found: dict[str, list] = {}
    batches = 4 if small else 48
    for number in range(batches):
        rollout = answers(base, task, 128, f"gradients/{number}")
        with torch.no_grad():
            values = critic(rollout)
        logp, mask = base.score(rollout), rollout.mask
        for judge, extra in (("rule", 0.0), ("five", OFFSET)):
            rewards = rollout.rewards + extra
            paid = last_token(mask) * rewards[:, None]
            advantages = {
                "no baseline": rewards[:, None] * mask,
                "batch baseline": (rewards - rewards.mean())[:, None] * mask,
                "V = 0, lambda 0.95": gae(paid, 0 * values, mask, 1.0, 0.95)[0],
            }
            for lam in (1.0, 0.95, 0.8, 0.5, 0.0):
                advantages[f"taught, lambda {lam:g}"] = gae(paid, (values + extra) * mask, mask, 1.0, lam)[0]
            for name, advantage in advantages.items():
                loss = (advantage * logp).sum() / len(rollout)
                gradient = torch.autograd.grad(loss, list(base.parameters()), retain_graph=True)
                found.setdefault(f"{name}, {judge}", []).append(torch.cat([g.flatten() for g in gradient]))
    found = {name: torch.stack(each) for name, each in found.items()}
    # three unbiased estimators of one gradient: their mean is the best that there is
    truth = sum(
        found[f"{name}, rule"].mean(0) for name in ("no baseline", "batch baseline", "taught, lambda 1")
    )
    best = found["taught, lambda 1, rule"]
    squared_length = best.mean(0).square().sum() - best.var(0).sum() / batches  # less what is noise in it
    result = {}
    for name, each in found.items():
        cosine = torch.cosine_similarity(each.mean(0), truth, 0).item()
        result[name] = {"noise": (each.var(0).sum() / squared_length).item(), "cosine": cosine}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--try", dest="small", action="store_true", help="one seed, a fraction of each budget"
    )
    small = parser.parse_args().small
    from rlcourse.bookmaking.evidence import record

    found = {"critics": critics(small), "gradients": gradients(small)}
    for part, values in found.items():
        print(part, values, flush=True)
    seeds, search_seeds = ((0,), (100,)) if small else (SEEDS, SEARCH_SEEDS)
    found["arms"], found["rates"] = arms(seeds, search_seeds, 0.4 if small else 1.0)
    for name, arm in found["arms"].items():
        print(f"{name:40s} lr {arm['lr']:g}  before {arm['before'][0]:.2f}  after {arm['after']}", flush=True)

    modules = [
        *MACHINERY,
        "rlcourse.tensors", "rlcourse.kl", "rlcourse.lm.policy", "rlcourse.lm.llama", "rlcourse.lm.rollout",
        "rlcourse.lm.critic", "rlcourse.tasks.ask", "rlcourse.tasks.sums", "rlcourse.methods.protocol",
        "rlcourse.methods.reinforce", "rlcourse.methods.ppo", "rlcourse.training.online", "rlcourse.evaluate",
    ]  # fmt: skip
    if not small:
        record(
            "critic",
            {"tokens": TOKENS, "lessons": LESSONS, **found},
            command="python benchmarks/critic_evidence.py",
            modules=modules,
            checkpoints=["pocket"],
        )


if __name__ == "__main__":
    main()
