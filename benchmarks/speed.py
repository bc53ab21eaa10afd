"""Seconds a step, beside TRL's GRPOTrainer on the same work in the same process: `make bench` (a minute).

The work is one optimizer step of GRPO: 16 prompts of 16 tokens with 8 sampled responses each,
rewards, advantages, the loss and its gradient, clipping, AdamW. Both sides have the same weights,
tokenizer, prompts and reward rule, float32, temperature 1, no KL penalty, one update a rollout,
and two threads. Rounds alternate, and so does who goes first; the first rounds are thrown away. In a round
each side takes two steps and the second counts, because in training a step follows one of its own.

fixed    a Llama of 1.08 M parameters, 32 new tokens for every response. The EOS is a token that
         the model has no logit for, so that neither side can sample it or pays for forbidding it.
natural  the shipped pocket model; its answers end by themselves, within 29 tokens. The learning
         rate is so small that lengths stay what they are; tokens a response are shown.

Counted, on both sides: encoding prompts, sampling, decoding, rewards, scoring, the update, and the
metrics that each computes as it goes. Not counted: loading; and of TRL also its data loader, its
learning-rate schedule, callbacks, logging and checkpoints, for its `training_step` is called
directly. TRL runs without gradient checkpointing (its default recomputes the forward pass), without
reports, with its own GRPO loss type and its default optimizer. "generation" is what turns prompts
into sampled tokens: TRL's `_tokenize_prompts` and `_generate_single_turn`, our `Policy.sample` (which
decodes the answers too); "training" is the rest of the step.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, logging

from rlcourse.lm import Policy, load_policy
from rlcourse.lm.pocket import build_tokenizer
from rlcourse.lm.policy import POCKETS
from rlcourse.methods import GRPO
from rlcourse.tasks import Sums
from rlcourse.tasks.sums import Sum, read
from rlcourse.training import online

PROMPTS, GROUP, WARM_UP, ROUNDS, LEARNING_RATE = 16, 8, 2, 12, 1e-6
PARTS = ("generation", "training", "whole step")


class Clock:
    """Adds up the seconds of the calls that it stands around."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - started
            return result

        return timed


class Ours:
    """The loop's own two halves, `collect` and `learn`, on problems that are handed to it."""

    name = "rlcourse"

    def __init__(self, policy: Policy, problems: list[Sum], max_tokens: int):
        self.policy, self.problems, self.max_tokens = policy, problems, max_tokens
        self.method, self.clock = GRPO(group_size=GROUP), Clock()
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        policy.sample = self.clock.around(policy.sample)

    def draw(self, rng: random.Random) -> Sum:
        return next(self.next_problem)

    def grade(self, rollout) -> dict:
        return Sums().grade(rollout)

    def step(self, seed: int) -> tuple[float, float]:
        """Seconds of generation and of the whole step; leaves the tokens a response in `length`."""
        self.clock.seconds, self.next_problem = 0.0, iter(self.problems)
        started = time.perf_counter()
        rollout, metrics = online.collect(
            self.policy, self, self.method, PROMPTS, self.max_tokens, 1.0, seed, 1
        )
        rollout.advantages = self.method.advantages(rollout, {})
        online.learn(self.policy, self.optimizer, self.method, rollout, {}, None, 1.0, seed)
        whole = time.perf_counter() - started
        self.length = metrics["length"]
        return self.clock.seconds, whole


class Theirs:
    """TRL's GRPOTrainer: `training_step` generates, scores and back-propagates; then its optimizer's step."""

    name = "TRL"

    def __init__(self, policy: Policy, problems: list[Sum], max_tokens: int, folder: str):
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        # as text, so that TRL tokenizes a plain string and the chat template is paid for by nobody
        rows = [
            {"prompt": policy.tokenizer.decode(policy.encode(problem.prompt)), "answer": problem.answer}
            for problem in problems
        ]
        for row, problem in zip(rows, problems, strict=True):
            assert policy.tokenizer(row["prompt"])["input_ids"] == policy.encode(problem.prompt)
        self.batch = [row for row in rows for _ in range(GROUP)]
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=max_tokens,
            learning_rate=LEARNING_RATE,
            beta=0.0,
            loss_type="grpo",
            temperature=1.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        self.trainer = GRPOTrainer(
            model=policy.model,
            args=config,
            reward_funcs=self.reward,
            train_dataset=Dataset.from_list(rows),
            processing_class=policy.tokenizer,
        )
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        self.clock = Clock()
        for part in ("_tokenize_prompts", "_generate_single_turn"):
            setattr(self.trainer, part, self.clock.around(getattr(self.trainer, part)))

    def reward(self, completions: list[str], answer: list[int], **_) -> list[float]:
        return [float(read(text).answer == right) for text, right in zip(completions, answer, strict=True)]

    def step(self, seed: int) -> tuple[float, float]:
        trainer = self.trainer
        self.clock.seconds = 0.0
        torch.manual_seed(seed)
        started = time.perf_counter()
        trainer.training_step(trainer.model, self.batch, None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        whole = time.perf_counter() - started
        self.length = trainer._metrics["train"]["completions/mean_length"][-1]
        return self.clock.seconds, whole


def fixed() -> tuple[Callable[[], Policy], list[Sum], int]:
    """Prompts of 16 tokens: the beginning and the two roles' marks, and 13 characters."""
    tokenizer = build_tokenizer([])
    size = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})  # the first id beyond the model's vocabulary
    rng = random.Random(0)
    problems = [
        Sum((rng.randint(100, 999), rng.randint(100, 999), rng.randint(1000, 9999))) for _ in range(16)
    ]

    def build() -> Policy:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=size,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=size,
        )
        return Policy(LlamaForCausalLM(config), tokenizer, "a Llama")

    assert all(len(build().encode(problem.prompt)) == 16 for problem in problems[:1])
    return build, problems, 32


def natural() -> tuple[Callable[[], Policy], list[Sum], int]:
    rng = random.Random(0)
    task = Sums()
    return (
        (lambda: load_policy("pocket", device="cpu")),
        [task.draw(rng) for _ in range(PROMPTS)],
        task.max_tokens,
    )


def compare(setting: Callable, rounds: int) -> dict:
    """Both sides in turn, each with weights of its own; seconds of every counted round."""
    build, problems, max_tokens = setting()
    with tempfile.TemporaryDirectory() as folder:
        sides = [Ours(build(), problems, max_tokens), Theirs(build(), problems, max_tokens, folder)]
        seconds = {side.name: {part: [] for part in PARTS} for side in sides}
        lengths = {side.name: [] for side in sides}
        for n in range(WARM_UP + rounds):
            for side in sides if n % 2 else reversed(sides):
                side.step(seed=2 * n)
                generation, whole = side.step(seed=2 * n + 1)
                if n >= WARM_UP:
                    lengths[side.name].append(side.length)
                    for part, value in zip(PARTS, (generation, whole - generation, whole), strict=True):
                        seconds[side.name][part].append(value)
    ours, theirs = (seconds[side.name] for side in sides)
    return {
        "parameters": sum(p.numel() for p in sides[0].policy.parameters()),
        "tokens a response": {name: statistics.mean(each) for name, each in lengths.items()},
        "seconds": {name: {part: spread(each[part]) for part in PARTS} for name, each in seconds.items()},
        "ratio": {
            part: spread([a / b for a, b in zip(ours[part], theirs[part], strict=True)]) for part in PARTS
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def show(name: str, found: dict) -> None:
    lengths = ", ".join(f"{side} {length:.1f}" for side, length in found["tokens a response"].items())
    print(f"\n{name}: {found['parameters'] / 1e6:.2f} M parameters; tokens a response: {lengths}")
    print(f"{'seconds: median (quartiles)':30s}" + "".join(f"{part:>24s}" for part in PARTS))
    for label, row in [*found["seconds"].items(), ("rlcourse / TRL", found["ratio"])]:
        digits = 2 if "/" in label else 3
        cells = (
            f"{v['median']:.{digits}f} ({v['low']:.{digits}f}-{v['high']:.{digits}f})" for v in row.values()
        )
        print(f"{label:30s}" + "".join(f"{cell:>24s}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", action="store_true", help="keep the result in benchmarks/evidence/speed.json"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    try:
        import trl
    except ImportError:
        raise SystemExit(
            "trl is not installed, and there is nothing to compare with: make test brings it"
        ) from None
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(2)

    settings = {"fixed": fixed}
    if (POCKETS / "pocket" / "model.safetensors").exists():
        settings["natural"] = natural
    else:
        print("natural: left out, the pocket model has not been built (make pockets)")
    versions = {"torch": torch.__version__, "trl": trl.__version__, "threads": torch.get_num_threads()}
    print(f"{options.rounds} rounds, {versions}")
    found = {}
    for name, setting in settings.items():
        found[name] = compare(setting, options.rounds)
        show(name, found[name])
    if options.record:
        from rlcourse.bookmaking.evidence import record

        record(
            "speed", {"rounds": options.rounds, **versions, **found}, "python benchmarks/speed.py --record"
        )


if __name__ == "__main__":
    main()
