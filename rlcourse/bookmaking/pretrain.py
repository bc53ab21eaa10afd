"""Build a pocket model from nothing: `python -m rlcourse.bookmaking.pretrain pocket`; or `lab`, on a GPU.

The text is generated (tasks/sums.py, tasks/helpdesk.py), the tokenizer is read off it, and the
weights are trained to predict it. One seed and one thread, so that the same machine builds the
same bytes again. The model goes to runs/pockets/; `--ship` puts it in the place of the one that
the package brings. A card with its cost and its scores is written beside the weights. `lab` is built by
lab.py, and only when it is named.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch

from rlcourse.bookmaking import lab
from rlcourse.bookmaking.card import describe, probe
from rlcourse.bookmaking.muon import Optimizer
from rlcourse.lm import Policy, Rollout
from rlcourse.lm.loading import POCKETS
from rlcourse.lm.pocket import build_model, build_tokenizer
from rlcourse.tasks import helpdesk, sums
from rlcourse.tensors import token_logprobs

RECIPES = {
    "pocket": dict(what="The default model: a Llama that has read both worlds."),
    "pocket-moe": dict(what="The same text, with a router and 8 experts, 2 a token.", experts=8),
    "pocket-direct": dict(
        what="The control: the same recipe, but not one worked answer in its text.", worked_share=0.0
    ),
}
STEPS, LEARNING_RATE, SEED = 4000, 4e-3, 0
SUMS, TABLES, TALKS = 40, 12, 12  # documents of each kind in a batch: about 2,700 tokens


def batch(policy: Policy, rng: random.Random, worked_share: float) -> list[Rollout]:
    """Documents as 'responses' to the BOS token: pretraining is scoring, with the weights trained.

    Sorted by length and cut in two, so that little of it is padding.
    """
    pairs = [sums.corpus(rng, worked_share) for _ in range(SUMS)] + [
        helpdesk.corpus(rng) for _ in range(TALKS)
    ]
    rows = [[*policy.encode(prompt)[1:], *policy.encode_response(response)] for prompt, response in pairs]
    rows += [policy.encode_response(sums.table(rng)) for _ in range(TABLES)]
    rows.sort(key=len)
    half = len(rows) // 2
    return [policy.tokens_after_bos(rows[:half]), policy.tokens_after_bos(rows[half:])]


def loss_of(policy: Policy, part: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood, and the load-balancing loss of a mixture of experts (0 without)."""
    if not hasattr(policy.model.config, "num_experts"):
        return -policy.score(part).sum(), torch.zeros(())
    bos = part.prompt_tokens.expand(len(part), 1)
    mask = torch.cat([torch.ones_like(bos, dtype=torch.bool), part.mask], 1)
    out = policy.model(
        torch.cat([bos, part.tokens], 1),
        attention_mask=mask.long(),
        output_router_logits=True,
        use_cache=False,
    )
    nll = -token_logprobs(out.logits[:, :-1][part.mask], part.tokens[part.mask]).sum()
    return nll, policy.model.config.router_aux_loss_coef * out.aux_loss


def pretrain(name: str, folder: Path, steps: int = STEPS, seed: int = SEED) -> Policy:
    recipe = RECIPES[name]
    worked_share = recipe.get("worked_share", sums.WORKED)
    torch.set_num_threads(1)
    rng = random.Random(f"{seed}/corpus")
    tokenizer = build_tokenizer([text for _ in range(20_000) for text in helpdesk.corpus(rng)])
    policy = Policy(build_model(tokenizer, recipe.get("experts", 0), seed), tokenizer, name)
    print(policy, f"{len(tokenizer)} tokens in the vocabulary", flush=True)

    optimizer = Optimizer(policy)
    started, losses = time.time(), []
    for step in range(steps):
        parts = batch(policy, rng, worked_share)
        tokens, total = sum(int(part.mask.sum()) for part in parts), 0.0
        policy.model.zero_grad()
        for part in parts:
            nll, balance = loss_of(policy, part)
            (nll / tokens + balance / len(parts)).backward()
            total += nll.item() / tokens
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        # a short climb, a plateau, and a straight way down over the second half
        optimizer.step(LEARNING_RATE * min((step + 1) / 50, 2 * (1 - step / steps), 1.0))
        losses.append(total)
        if (step + 1) % 250 == 0:
            found = probe(policy, sums.Sums())
            print(
                f"step {step + 1}  loss {sum(losses[-250:]) / 250:.4f}  accuracy {found['accuracy']:.2f}  "
                f"worked {found['worked']:.2f}  {time.time() - started:.0f} s",
                flush=True,
            )
    minutes, loss = (time.time() - started) / 60, sum(losses[-250:]) / 250
    facts = dict(seed=seed, steps=steps, minutes=round(minutes, 1), loss=round(loss, 4))
    describe(policy, folder, about(policy, facts), facts)
    return policy


def about(policy: Policy, facts: dict) -> str:
    size, seed, minutes = sum(p.numel() for p in policy.parameters()), facts["seed"], round(facts["minutes"])
    share = f"{sums.WORKED:.0%} of the answers are worked, and {sums.SLIP:.0%} of their steps slip"
    if policy.name == "pocket-direct":
        share = "not one answer is worked"
    return f"""{RECIPES[policy.name]["what"]} {size:,} parameters, {type(policy.model).__name__}, float32.

Built by `python -m rlcourse.bookmaking.pretrain {policy.name}` with seed {seed}: {facts["steps"]:,} steps, about
{minutes} minutes on one core, last loss {facts["loss"]:.3f} nats a token. Its text is generated and is of three kinds:
sums and their answers ({share}), pages of a primer of
two-number additions, and a helpdesk's messages with replies of every quality. No text from outside, and
nobody's data. The text holds sums of 2 to 5 terms of 1 to 3 digits: what is longer, the model has never seen."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain our models from nothing.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)} (all of them by default), and lab")
    parser.add_argument("--steps", type=int, help=f"default: {STEPS}; lab: {lab.STEPS}")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, help=f"default: runs/pockets; lab: {lab.FOLDER.parent.name}")
    parser.add_argument("--ship", action="store_true", help="replace the models that the package brings")
    parser.add_argument("--minutes", type=float, help="lab: stop after so many at the latest")
    parser.add_argument(
        "--tiny", action="store_true", help="lab: the same with a tiny model, to try the command"
    )
    asked = parser.parse_args()
    if unknown := set(asked.names) - {*RECIPES, "lab"}:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; there are {', '.join([*RECIPES, 'lab'])}")
    if "lab" not in asked.names and (asked.minutes or asked.tiny):
        parser.error("--minutes and --tiny are for lab")
    if asked.tiny and not asked.out:
        parser.error("--tiny wants an --out of its own: it would be taken for the real lab")
    for name in asked.names or RECIPES:
        if name == "lab":
            folder = asked.out / name if asked.out else lab.FOLDER
            lab.pretrain_lab(folder, asked.steps or lab.STEPS, asked.minutes, asked.seed, asked.tiny)
        else:
            folder = (POCKETS if asked.ship else asked.out or Path("runs/pockets")) / name
            pretrain(name, folder, asked.steps or STEPS, asked.seed)


if __name__ == "__main__":
    main()
