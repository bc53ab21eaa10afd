"""The helpdesk as a task: replies to customers, judged by gold, by a reward model, or by people.

>>> pair = Helpdesk().pairs(1)[0]
>>> pair.chosen != pair.rejected
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from random import Random

import torch
from torch import Tensor

from rlcourse.lm import Policy, Rollout
from rlcourse.tasks.annotators import Annotator, Demonstration, Pair, Ranking, Verdict, near_duplicate
from rlcourse.tasks.ask import shown
from rlcourse.tasks.helpdesk import (
    Facets,
    Ticket,
    draw_ticket,
    gold_score,
    good_reply,
    noisy_reply,
    read_facets,
)  # fmt: skip

COUNTED = {f.name for f in fields(Facets)} - {"order", "apology"} | {"extra_apologies", "excess_words"}


@dataclass(frozen=True)
class Helpdesk:
    """The task. `judge` gives the rewards: a `Scorer`, or any function of a rollout; without one, the gold score.

    `watch` names what to note beside the reward, and to pay nobody for: "gold", or facets such as "apologies".
    """

    judge: Callable[[Rollout], Tensor] | None = None
    watch: str | tuple[str, ...] = ()
    max_tokens: int = 64
    in_words: bool = False  # told what to do, and read as ordinary English: for models that are no pockets

    __repr__ = shown

    def __post_init__(self):
        if unknown := set(self.watched) - COUNTED - {"gold"}:
            raise ValueError(
                f"Helpdesk cannot watch {', '.join(sorted(unknown))}: it knows gold, {', '.join(sorted(COUNTED))}"
            )

    @property
    def watched(self) -> tuple[str, ...]:
        return (self.watch,) if isinstance(self.watch, str) else tuple(self.watch)

    def draw(self, rng: Random) -> Ticket:
        return replace(draw_ticket(rng), in_words=self.in_words)

    def asked_of(self, policy: Policy) -> Helpdesk:
        """The task as this policy should be asked: in words, with room for them, unless it is a pocket."""
        return self if policy.pocket else replace(self, in_words=True, max_tokens=max(self.max_tokens, 128))

    @torch.no_grad()
    def grade(self, rollout: Rollout) -> dict[str, Tensor]:
        """`rewards` of every reply, `correct`: was the customer served, and what is watched."""
        tickets = [rollout.problems[p] for p in rollout.owner.tolist()]
        read = list(map(read_facets, tickets, rollout.texts))
        gold = torch.tensor(list(map(gold_score, tickets, rollout.texts)))
        seen = {name: gold if name == "gold" else torch.tensor([float(getattr(f, name)) for f in read])
                for name in self.watched}  # fmt: skip
        served = torch.tensor([facets.served for facets in read]).to(rollout.tokens.device) & rollout.finished
        return {"rewards": self.judge(rollout) if self.judge else gold, "correct": served, **seen}

    # ---- what people give

    def demonstrations(self, n: int, seed: int = 0) -> list[Demonstration]:
        """Replies with nothing wrong in them, as a good agent would write."""
        rng = Random(f"demonstrations/{seed}")
        tickets = [self.draw(rng) for _ in range(n)]
        return [Demonstration(ticket.prompt, good_reply(ticket, rng)) for ticket in tickets]

    def pairs(self, n: int, noise: float | None = None, seed: int = 0, **who) -> list[Pair]:
        """`n` choices between two replies; ties are asked and left out. `noise` overrides the annotator's.

        `who`: an `annotator=`, and a `policy=` whose replies are judged, in place of an untrained desk's.
        """

        def judged(annotator, ticket, replies, rng):
            choice = annotator.compare(ticket, *replies, rng)
            return Pair(ticket.prompt, *replies[::choice]) if choice else None

        return self._collected("pairs", n, 2, judged, noise, seed, **who)

    def rankings(self, n: int, k: int = 4, noise: float | None = None, seed: int = 0, **who) -> list[Ranking]:
        """`n` orders of `k` replies each, the best first; the rest is as for `pairs`."""

        def judged(annotator, ticket, replies, rng):
            return Ranking(ticket.prompt, tuple(annotator.rank(ticket, replies, rng)))

        return self._collected("rankings", n, k, judged, noise, seed, **who)

    def thumbs(
        self, n: int, up: float | None = None, noise: float | None = None, seed: int = 0, **who
    ) -> list[Verdict]:
        """`n` verdicts on one reply each. `up` is the share of thumbs up among them; by default as it comes."""
        if up is not None and not 0 <= up <= 1:
            raise ValueError(f"up={up} is the share of thumbs up: from 0 to 1")
        room = {True: n, False: n} if up is None else {True: round(n * up), False: n - round(n * up)}

        def judged(annotator, ticket, replies, rng):
            good = annotator.approves(ticket, replies[0], rng)
            room[good] -= 1
            return Verdict(ticket.prompt, replies[0], good) if room[good] >= 0 else None

        return self._collected("thumbs", n, 1, judged, noise, seed, **who)

    def _collected(
        self,
        kind: str,
        n: int,
        k: int,
        judged: Callable,
        noise: float | None,
        seed: int,
        annotator: Annotator | None = None,
        policy: Policy | None = None,
    ) -> list:
        """What `judged` makes of tickets with `k` replies, until there are `n`; it may decline with None."""
        annotator, rng = annotator or Annotator(), Random(f"{kind}/{seed}")
        if noise is not None:
            annotator = replace(annotator, noise=noise)
        found: list = []
        for offered, (ticket, replies) in enumerate(self.candidates(k, policy, rng)):
            if len(found) == n:
                break
            if offered > 200 * (n + 1):
                raise ValueError(
                    f"after {offered} tickets there are {len(found)} of the {n} {kind} asked for: what is wanted "
                    "hardly occurs among these replies. Ask for fewer, or of another policy or annotator"
                )
            if (example := judged(annotator, ticket, replies, rng)) is not None:
                found.append(example)
        return found

    def candidates(self, k: int, policy: Policy | None, rng: Random) -> Iterator[tuple[Ticket, list[str]]]:
        """Tickets without end, each with `k` replies no two of which are almost the same."""
        while True:
            tickets = [self.draw(rng) for _ in range(64)]
            tries = 2 * k if k > 1 else 1
            if policy:
                prompts = [ticket.prompt for ticket in tickets]
                texts = policy.sample(prompts, tries, self.max_tokens, seed=rng.getrandbits(40)).texts
            else:
                texts = [noisy_reply(ticket, rng) for ticket in tickets for _ in range(tries)]
            found = 0
            for i, ticket in enumerate(tickets):
                kept: list[str] = []
                for text in texts[i * tries : (i + 1) * tries]:
                    if not near_duplicate(text, kept):
                        kept.append(text)
                if len(kept) >= k:
                    found += 1
                    yield ticket, kept[:k]
            if not found:
                raise ValueError(
                    f"of {tries} replies to a customer no {k} differ, for any of {len(tickets)} customers: this policy "
                    "says the same thing again and again, and there is nothing for people to choose between"
                )
