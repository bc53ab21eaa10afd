"""Build `lab` from nothing, on a GPU and in minutes: `python -m rlcourse.bookmaking.pretrain lab`.

A Llama of 31 M parameters that reads what the pockets read, with more terms and more digits and
fewer worked answers: it can do the long sums, and does them seldom. What is otherwise than with the
pockets is what a GPU asks for. The text is written by background processes; the products run in
bfloat16 beside float32 weights; nothing in a step makes the CPU wait for the GPU.

The model is too large for the repository: it goes to models/lab, which git ignores.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from itertools import accumulate, groupby
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer

from rlcourse.bookmaking.card import describe
from rlcourse.bookmaking.muon import Optimizer
from rlcourse.bookmaking.stamps import ROOT
from rlcourse.lm import Policy
from rlcourse.lm.loading import POCKETS
from rlcourse.lm.pocket import build_model
from rlcourse.tasks import helpdesk, sums

FOLDER = ROOT / "models" / "lab"
SHAPE = dict(
    hidden_size=512,
    intermediate_size=1792,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=512,
)
TINY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
TINY |= dict(num_key_value_heads=2, head_dim=16, max_position_embeddings=512)

STEPS, LEARNING_RATE, WARM_UP, SEED = 3000, 2e-3, 100, 0
SUMS, TABLES, TALKS = 800, 240, 240  # documents of each kind in a batch: about 65,000 tokens
PARTS = 6  # of as many tokens each, that a batch is cut into by length: little padding, a sixth of the memory
REPORT_EVERY, KEEP_EVERY = 50, 250  # steps

# The dials: up to 8 terms of up to 4 digits where the pockets have read 5 of 3, and one answer in ten is worked.
TERMS = range(2, 9)
DIGITS = {1: 0.10, 2: 0.25, 3: 0.40, 4: 0.25}
WORKED = 0.10
DIAL = [(3, 2), (4, 3), (6, 3), (6, 4), (8, 3), (8, 4), (10, 3), (12, 3), (10, 4)]  # what the card measures


def sum_and_answer(rng: random.Random) -> tuple[str, str]:
    """As `sums.corpus`, at the dials above."""
    (digits,) = rng.choices(list(DIGITS), DIGITS.values())
    problem = sums.Sums(rng.choice(TERMS), digits).draw(rng)
    works = rng.random() < WORKED
    return problem.prompt, sums.worked(problem.terms, rng, sums.SLIP) if works else sums.guess(
        problem.terms, rng
    )


def table(rng: random.Random, lines: int = 8) -> str:
    """As `sums.table`, with totals as long as eight terms of four digits reach."""
    page = []
    for _ in range(lines):
        a, b = (rng.randint(1, 10 ** rng.randint(1, longest) - 1) for longest in (5, 4))
        page.append(f"{a}+{b}={a + b}")
    return " ".join(page)


def documents(rng: random.Random, counts: tuple[int, int, int]) -> list[str]:
    """So many sums, tables and talks, as the tokenizer is to read them: a chat is what `Policy.encode` makes of it."""
    n_sums, n_tables, n_talks = counts
    pairs = [sum_and_answer(rng) for _ in range(n_sums)] + [helpdesk.corpus(rng) for _ in range(n_talks)]
    chats = [f"<|bos|><|user|>{prompt}<|assistant|>{response}<|eos|>" for prompt, response in pairs]
    return chats + [f"<|bos|>{table(rng)}<|eos|>" for _ in range(n_tables)]


class Text(Dataset):
    """Item n is the batch of step n: who resumes at step n needs to know nothing else."""

    def __init__(self, tokenizer, steps: int, counts: tuple[int, int, int], seed: int):
        self.tokenizer, self.steps, self.counts, self.seed = tokenizer, steps, counts, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[torch.Tensor]:
        """Rows of tokens, those of like length together, and -1 behind each row's end."""
        texts = documents(random.Random(f"{self.seed}/{step}"), self.counts)
        rows = sorted(self.tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        before, total = list(accumulate(map(len, rows), initial=0)), sum(map(len, rows))
        parts = groupby(range(len(rows)), key=lambda row: before[row] * PARTS // total)
        return [
            pad_sequence([torch.tensor(rows[row]) for row in part], batch_first=True, padding_value=-1)
            for _, part in parts
        ]


def batches(text: Text, first: int, workers: int, pinned: bool) -> DataLoader:
    """The batches from step `first` on, written ahead of the training by processes of their own."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    steps = range(first, len(text))
    return DataLoader(text, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pinned)


def loss_of(model, rows: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood. Padding stands on the right, where no token looks: it needs no mask."""
    logits = model(rows[:, :-1].clamp(min=0), use_cache=False).logits
    return cross_entropy(
        logits.float().flatten(0, 1), rows[:, 1:].flatten(), ignore_index=-1, reduction="sum"
    )


def build(tokenizer, shape: dict, seed: int):
    """A pocket in all but its size."""
    pocket = build_model(tokenizer)
    pocket.config.update(shape)
    torch.manual_seed(seed)
    return type(pocket)(pocket.config)


def keep(file: Path, policy: Policy, optimizer, record: dict) -> None:
    """Weights, moments and what else a resumed run needs, in one file that is there entirely or not at all."""
    tensors = {f"weight.{name}": p for name, p in policy.model.named_parameters()} | optimizer.moments()
    draft = file.with_suffix(".draft")
    save_file({name: t.detach().cpu() for name, t in tensors.items()}, draft, {"record": json.dumps(record)})
    draft.replace(file)


def put_back(file: Path, policy: Policy, optimizer, plan: dict) -> dict:
    """What `keep` wrote; an error if it was of another plan."""
    with safe_open(file, "pt", device=str(policy.device)) as kept:
        record = json.loads(kept.metadata()["record"])
        if record["plan"] != plan:
            raise ValueError(
                f"{file} was begun as {record['plan']}, and this is {plan}: "
                "give the old values to go on, or remove the file to begin anew"
            )
        moments = {name: kept.get_tensor(name) for name in kept.keys() if not name.startswith("weight.")}  # noqa: SIM118
        with torch.no_grad():
            for name, p in policy.model.named_parameters():
                p.copy_(kept.get_tensor(f"weight.{name}"))
    optimizer.put_back(moments)
    return record


def estimate(parameters: int, tokens: int) -> str:
    """6 operations a parameter and token: forward 2, backward 4."""
    flop = 6 * parameters * tokens
    return (
        f"{parameters / 1e6:.3g} M parameters x {tokens / 1e6:.3g} M tokens x 6 = {flop:.1e} operations: "
        f"{flop / 2e14 / 60:.2g} minutes at 200 TFLOP/s, a fifth of what an H100 has in bfloat16"
    )


def pretrain_lab(
    folder: Path = FOLDER,
    steps: int = STEPS,
    minutes: float | None = None,
    seed: int = SEED,
    tiny: bool = False,
    device: str | None = None,
) -> None:
    """Train until `steps` or `minutes` are spent, whichever is first: the learning rate falls with that share.

    Killed and called again it goes on from its last checkpoint. `tiny` is the same, small enough for a test.
    """
    if (folder / "scores.json").exists():
        print(f"{folder} is there already: remove the folder to build it again")
        return
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shape, counts = (TINY, (20, 6, 6)) if tiny else (SHAPE, (SUMS, TABLES, TALKS))
    report_every, keep_every = (1, 2) if tiny else (REPORT_EVERY, KEEP_EVERY)
    workers = 0 if tiny else min(8, (os.cpu_count() or 1) - 1)

    tokenizer = AutoTokenizer.from_pretrained(
        POCKETS / "pocket", model_max_length=shape["max_position_embeddings"]
    )
    policy = Policy(build(tokenizer, shape, seed).to(device), tokenizer, "lab")
    optimizer = Optimizer(policy, fused=device.type == "cuda")
    text = Text(tokenizer, steps, counts, seed)
    size = sum(p.numel() for p in policy.parameters())
    a_batch = sum(int((rows[:, 1:] >= 0).sum()) for rows in text[0])
    print(policy, estimate(size, steps * a_batch), sep="\n", flush=True)

    plan = dict(shape=shape, counts=list(counts), steps=steps, seed=seed)
    file = folder / "checkpoint.safetensors"
    record = dict(plan=plan, step=0, seconds=0.0, tokens=0, curve=[])
    if file.exists():
        record = put_back(file, policy, optimizer, plan)
        print(f"goes on from step {record['step']}", flush=True)

    def share(step: int, seconds: float) -> float:
        return max(step / steps, seconds / (60 * minutes) if minutes else 0.0)

    began, spent = time.monotonic() - record["seconds"], share(record["step"], record["seconds"])
    loss, tokens = torch.zeros((), device=device), record["tokens"]
    for step, parts in enumerate(
        batches(text, record["step"], workers, device.type == "cuda"), record["step"] + 1
    ):
        if spent >= 1:
            break
        n = sum(int((rows[:, 1:] >= 0).sum()) for rows in parts)  # counted here: nobody waits for the GPU
        policy.model.zero_grad()
        for rows in parts:
            rows = rows.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                part = loss_of(policy.model, rows) / n
            part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        # as for the pockets: a short climb, a plateau, and a straight way down over the second half
        optimizer.step(LEARNING_RATE * min(step / WARM_UP, 2 * (1 - spent), 1.0))
        tokens += n
        seconds = time.monotonic() - began
        spent = share(step, seconds)
        if step % report_every == 0 or spent >= 1:
            since = step - (record["curve"][-1]["step"] if record["curve"] else 0)
            mean = loss.item() / since
            loss.zero_()
            if not math.isfinite(mean):
                raise ValueError(
                    f"the loss became {mean} before step {step}: a smaller LEARNING_RATE may help"
                )
            row = dict(step=step, loss=mean, tokens=tokens, seconds=round(time.monotonic() - began, 2))
            record["curve"].append(row)
            print(f"step {step}  loss {mean:.4f}  {tokens / row['seconds']:,.0f} tokens/s", flush=True)
        if step % keep_every == 0 or spent >= 1:
            keep(file, policy, optimizer, record | dict(step=step, seconds=seconds, tokens=tokens))

    policy.model.to(torch.bfloat16)  # what is measured is what is kept
    row = record["curve"][-1]
    facts = dict(
        seed=seed, tiny=tiny, steps=row["step"], tokens=row["tokens"], minutes=round(row["seconds"] / 60, 1)
    )
    facts |= dict(loss=round(row["loss"], 4), curve=record["curve"], device=name_of(device))
    dial, problems = (DIAL[:1], 8) if tiny else (DIAL, 512)
    describe(policy, folder, about(policy, facts, size), facts, dial, problems)
    file.unlink(missing_ok=True)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def about(policy: Policy, facts: dict, size: int) -> str:
    steps, a_step = facts["steps"], facts["tokens"] // facts["steps"]
    return f"""The pockets' larger sister for a GPU: a Llama that has read both worlds, with harder sums.
{size:,} parameters, {type(policy.model).__name__}, bfloat16.

Built by `python -m rlcourse.bookmaking.pretrain lab` with seed {facts["seed"]}: {steps:,} steps of about
{a_step:,} tokens, {facts["minutes"]} minutes on one {facts["device"]}, last loss {facts["loss"]:.3f} nats a token.
Its text is generated and is of three kinds: sums and their answers ({WORKED:.0%} of the answers are worked, and
{sums.SLIP:.0%} of their steps slip), pages of a primer of two-number additions, and a helpdesk's messages with
replies of every quality. No text from outside, and nobody's data. The text holds sums of {min(TERMS)} to
{max(TERMS)} terms of 1 to {max(DIGITS)} digits: what is longer, the model has never seen."""
