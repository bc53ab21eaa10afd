"""Seconds a step, beside TRL's trainers on the same work in the same process: `make bench` (some four minutes).

The work is one optimizer step. Both sides have the same weights, tokenizer, prompts, batch and number
type, AdamW, clipping, temperature 1 and two threads. Rounds alternate, and so does who goes first; the
first rounds are thrown away. In a round each side takes two steps and the second counts, because in
training a step follows one of its own.

GRPO     16 prompts with 8 sampled responses each: rewards by the same rule, advantages, the loss and
         its gradient; no KL penalty, one update a rollout.
  fixed    a Llama of 1.07 M parameters, 16 tokens a prompt, 32 new tokens for every response. The EOS
           is a token that the model has no logit for, so that neither side can sample it or pays for
           forbidding it.
  larger   the same with 8.4 M parameters.
  natural  the shipped pocket model; its answers end by themselves, within 29 tokens. The learning
           rate is so small that lengths stay what they are; tokens a response are shown.
DPO      32 pairs of the helpdesk, as `fit` takes them.
  pairs          the shipped pocket model.
  pairs, larger  the Llama of 8.4 M parameters, with a word a token as the pocket has.
Where there is a GPU, "gpu" and "gpu, pairs" run in place of all these: Qwen2.5-0.5B's shape with random
weights in bfloat16 on both sides, 256 new tokens, 16 rows (or pairs) at a time through the loss. There
ours keeps float32 masters and moments beside them, as `train` and `fit` do, and TRL keeps neither.

Counted, on both sides: encoding prompts, sampling, decoding, rewards, scoring, the update, and the
metrics that each computes as it goes; of DPO, making a padded batch of pairs that are tokens already.
Not counted: loading, and tokenizing pairs, which both do once; and of TRL also its data loader, its
learning-rate schedule, callbacks, logging and checkpoints, for its `training_step` is called
directly. The reference's log-probs of DPO are computed before the first step on both sides: ours always
are, and TRL does it when asked; by default it would run the reference again in every step. Both get the
same pairs in a batch, chosen at random: that `fit` puts pairs of like length together is not counted.
TRL runs without gradient checkpointing (its default recomputes the forward pass), without
reports, with its own GRPO loss type and its default optimizer. "generation" is what turns prompts
into sampled tokens: TRL's `_tokenize_prompts` and `_generate_single_turn`, our `Policy.sample` (which
decodes the answers too); "training" is the rest of the step.

Peak memory is that of two steps with all that they need (weights, gradients, Adam's moments), each side
in a process of its own, beyond what the process holds once everything is imported and a tiny model has
taken a step. On the CPU it is resident memory with one thread, on a GPU what torch has allocated.

The floor is in `floor.py`: the matrix products that no implementation can do without, at the speed that
this machine has at their shapes, measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from floor import floor, where_time_goes
from transformers import AutoConfig, AutoModelForCausalLM, logging

from rlcourse.lm import Policy, load_policy
from rlcourse.lm.loading import POCKETS
from rlcourse.lm.pocket import build_tokenizer
from rlcourse.methods import DPO, GRPO
from rlcourse.tasks import Helpdesk, Sums
from rlcourse.tasks.annotators import Pair
from rlcourse.tasks.sums import Sum, read
from rlcourse.training import offline, online, precision

WARM_UP = 2
PARTS = ("generation", "training", "whole step")

SMALL = dict(
    model_type="llama",
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)
LARGER = SMALL | dict(
    hidden_size=320, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=5, num_key_value_heads=5
)
TINY = SMALL | dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
QWEN = dict(
    model_type="qwen2",
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151_936,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Setting:
    """What both sides do."""

    method: str = "GRPO"
    shape: dict | None = None  # of a model with random weights; None is the shipped pocket
    prompts: int = 16  # of DPO: pairs
    group: int = 8
    max_tokens: int = 32
    micro_batch: int | None = None  # rows, of DPO pairs, at a time through the loss
    device: str = "cpu"
    dtype: str = "float32"
    lr: float = 1e-6
    rounds: int = 12

    def problems(self) -> list[Sum]:
        """For a random model prompts of 16 tokens: the beginning and the two roles' marks, and 13 characters."""
        rng = random.Random(0)
        if self.shape is None:
            return [Sums().draw(rng) for _ in range(self.prompts)]
        digits = ((100, 999), (100, 999), (1000, 9999))
        return [Sum(tuple(rng.randint(*each) for each in digits)) for _ in range(self.prompts)]

    def pairs(self) -> list[Pair]:
        return Helpdesk().pairs(self.prompts, seed=0)

    def policy(self) -> Policy:
        if self.shape is None:
            return load_policy("pocket", device=self.device)
        texts = []
        if self.method == "DPO":  # a word a token
            texts = [text for pair in self.pairs() for text in (pair.prompt, *pair.answers)]
        tokenizer = build_tokenizer(texts)
        if (missing := self.shape.get("vocab_size", 0) - len(tokenizer)) > 0:  # words that nobody says
            letters = itertools.islice(itertools.product("abcdefghijklmnopqrst", repeat=4), missing)
            tokenizer = build_tokenizer([*texts, "".join(f" zz{''.join(each)}" for each in letters)])
        size = len(tokenizer)
        if self.method == "GRPO":  # no answer ends: the first id beyond the model's vocabulary
            tokenizer.add_special_tokens({"eos_token": "<|never|>"})
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        torch.manual_seed(0)
        config = AutoConfig.for_model(**(self.shape | {"vocab_size": size} | ids))
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype))
        return Policy(model.to(self.device), tokenizer, "a model with random weights")


PAIRS = Setting("DPO", prompts=32, group=2)
ON_GPU = dict(shape=QWEN, micro_batch=16, device="cuda", dtype="bfloat16", rounds=6)
SETTINGS = {
    "fixed": Setting(shape=SMALL),
    "larger": Setting(shape=LARGER, rounds=5),
    "natural": Setting(max_tokens=Sums().max_tokens),
    "pairs": PAIRS,
    "pairs, larger": replace(PAIRS, shape=LARGER, rounds=5),
    "gpu": Setting(max_tokens=256, **ON_GPU),
    "gpu, pairs": replace(PAIRS, **ON_GPU),
}


def now() -> float:
    """The time when all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Side:
    """One implementation: `work` takes a step and leaves the tokens a response in `length`."""

    def __init__(self):
        self.generating = 0.0

    def generation(self, function: Callable) -> Callable:
        """The function, with its seconds counted as generation."""

        def timed(*args, **kwargs):
            started = now()
            result = function(*args, **kwargs)
            self.generating += now() - started
            return result

        return timed

    def step(self, seed: int) -> tuple[float, float]:
        """Seconds of generation and of the whole step."""
        self.generating, started = 0.0, now()
        self.work(seed)
        return self.generating, now() - started


class OurGRPO(Side):
    """The loop's own two halves, `collect` and `learn`, on problems that are handed to it."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.policy, self.problems, self.setting = setting.policy(), setting.problems(), setting
        self.method = GRPO(group_size=setting.group)
        self.optimizer = precision.adamw([(self.policy.parameters(), setting.lr)])
        self.policy.sample = self.generation(self.policy.sample)

    def draw(self, rng: random.Random) -> Sum:
        return next(self.next_problem)

    def grade(self, rollout) -> dict:
        return Sums().grade(rollout)

    def work(self, seed: int) -> None:
        self.collect(seed)
        self.learn(seed)

    def collect(self, seed: int) -> None:
        self.next_problem, s = iter(self.problems), self.setting
        self.rollout, metrics = online.collect(
            self.policy, self, self.method, s.prompts, s.max_tokens, 1.0, seed, 1
        )
        self.rollout.advantages = self.method.advantages(self.rollout, {})
        self.length = metrics["length"]

    def sample(self, seed: int) -> None:
        prompts = [problem.prompt for problem in self.problems]
        self.policy.sample(prompts, self.setting.group, self.setting.max_tokens, seed=seed)

    def learn(self, seed: int) -> dict:
        return online.learn(
            self.policy, self.optimizer, self.method, self.rollout, {}, self.setting.micro_batch, 1.0, seed
        )


class OurDPO(Side):
    """What `fit` does in a step: `picked` makes the batch, `learn` the update."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.policy, self.setting, self.method = setting.policy(), setting, DPO()
        self.rollout = offline.as_rollout(self.policy, setting.pairs())
        self.reference = self.policy.copy()  # `fit` holds it too
        self.rollout.ref_logp = offline.scored(self.reference, self.rollout)
        self.optimizer = precision.adamw([(self.policy.parameters(), setting.lr)])
        self.length = self.rollout.lengths.float().mean().item()

    def work(self, seed: int) -> None:
        self.loss = self.learn(seed)["loss"]

    def learn(self, seed: int) -> dict:
        batch = offline.picked(self.rollout, range(self.setting.prompts))
        return offline.learn(
            self.policy, self.optimizer, self.method, batch, None, self.setting.micro_batch, 1.0
        )


class TRL(Side):
    """A trainer of TRL's: `training_step` for every micro-batch, then its optimizer's step."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.policy, self.setting = setting.policy(), setting
        self.folder = tempfile.TemporaryDirectory()
        rows = setting.prompts * (setting.group if setting.method == "GRPO" else 1)
        self.parts = rows // (setting.micro_batch or rows)
        self.trainer = self.make(
            dict(
                output_dir=self.folder.name,
                per_device_train_batch_size=rows // self.parts,
                gradient_accumulation_steps=self.parts,
                learning_rate=setting.lr,
                use_cpu=setting.device == "cpu",
                bf16=False,  # the weights are what the setting says: no autocast on either side
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            )
        )
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = self.parts

    def text(self, prompt: str) -> str:
        """As text, so that TRL tokenizes a plain string and the chat template is paid for by nobody."""
        text = self.policy.tokenizer.decode(self.policy.encode(prompt))
        assert self.policy.tokenizer(text)["input_ids"] == self.policy.encode(prompt)
        return text

    def work(self, seed: int) -> None:
        trainer = self.trainer
        torch.manual_seed(seed)
        parts = [trainer.training_step(trainer.model, self.batch(part), None) for part in range(self.parts)]
        self.loss = sum(parts)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        self.measure()


class TheirGRPO(TRL):
    """GRPOTrainer: its first `training_step` generates for all of them."""

    def make(self, settings: dict):
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        rows = [
            {"prompt": self.text(problem.prompt), "answer": problem.answer}
            for problem in self.setting.problems()
        ]
        self.rows = [row for row in rows for _ in range(self.setting.group)]
        config = GRPOConfig(
            num_generations=self.setting.group,
            max_completion_length=self.setting.max_tokens,
            beta=0.0,
            loss_type="grpo",
            temperature=1.0,
            **settings,
        )
        trainer = GRPOTrainer(
            model=self.policy.model,
            args=config,
            reward_funcs=self.reward,
            train_dataset=Dataset.from_list(rows),
            processing_class=self.policy.tokenizer,
        )
        for part in ("_tokenize_prompts", "_generate_single_turn"):
            setattr(trainer, part, self.generation(getattr(trainer, part)))
        return trainer

    def reward(self, completions: list[str], answer: list[int], **_) -> list[float]:
        return [float(read(text).answer == right) for text, right in zip(completions, answer, strict=True)]

    def batch(self, part: int) -> list[dict]:
        return self.rows

    def measure(self) -> None:
        self.length = self.trainer._metrics["train"]["completions/mean_length"][-1]


class TheirDPO(TRL):
    """DPOTrainer, with the reference's log-probs beside its pairs."""

    def make(self, settings: dict):
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        pairs = self.setting.pairs()
        rows = [
            {"prompt": self.text(pair.prompt), "chosen": pair.chosen, "rejected": pair.rejected}
            for pair in pairs
        ]
        trainer = DPOTrainer(
            model=self.policy.model,
            args=DPOConfig(beta=0.1, precompute_ref_log_probs=True, **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.policy.tokenizer,
        )
        self.rows, self.lengths = list(trainer.train_dataset), {}
        for row, pair in zip(self.rows, pairs, strict=True):
            assert row["prompt_ids"] == self.policy.encode(pair.prompt)
            assert row["chosen_ids"] == self.policy.encode_response(pair.chosen)
            assert row["rejected_ids"] == self.policy.encode_response(pair.rejected)
        return trainer

    def batch(self, part: int) -> dict:
        size = len(self.rows) // self.parts
        batch = self.trainer.data_collator(self.rows[part * size : (part + 1) * size])
        self.lengths[part] = batch["completion_mask"].sum(1)
        return batch

    def measure(self) -> None:
        self.length = torch.cat(list(self.lengths.values())).float().mean().item()


SIDES = {
    "GRPO": {"rlcourse": OurGRPO, "TRL": TheirGRPO},
    "DPO": {"rlcourse": OurDPO, "TRL": TheirDPO},
}


# ---- memory


def highest() -> int:
    """The most bytes of resident memory so far. Not by `ru_maxrss` on Linux, which begins at the parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except FileNotFoundError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on a Mac


def peak_of(side: Callable[[Setting], Side], setting: Setting, steps: int = 2) -> tuple[int, Side]:
    """The most bytes that so many steps need beyond what a process holds that is ready to begin."""
    tiny = dict(shape=TINY, prompts=2, group=2, max_tokens=2, micro_batch=None, dtype="float32")
    side(replace(setting, **tiny)).step(0)  # what is loaded at its first use is loaded now
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        if (reset := Path("/proc/self/clear_refs")).exists():
            reset.write_text("5")  # imports have a peak of their own
        before, peak = highest(), highest
    made = side(setting)
    for seed in range(steps):
        made.step(seed)
    return peak() - before, made


def memory(name: str, setting: Setting) -> int:
    """`peak_of` one side, as a process of its own runs it."""
    quiet(threads=1)
    return peak_of(SIDES[setting.method][name], setting)[0]


def one_process_each(function: Callable, *arguments: list, at_once: int = 1) -> list:
    """What the function returns for each, every call in a fresh process."""
    pool = ProcessPoolExecutor(at_once, mp_context=get_context("spawn"), max_tasks_per_child=1)
    with pool:
        return list(pool.map(function, *arguments))


# ---- time


def compare(setting: Setting, rounds: int) -> dict:
    """Both sides in turn, each with weights of its own; seconds of every counted round."""
    sides = {name: side(setting) for name, side in SIDES[setting.method].items()}
    seconds = {name: {part: [] for part in PARTS} for name in sides}
    lengths = {name: [] for name in sides}
    for n in range(WARM_UP + rounds):
        for name in list(sides) if n % 2 else reversed(sides):
            sides[name].step(seed=2 * n)
            generation, whole = sides[name].step(seed=2 * n + 1)
            if n >= WARM_UP:
                lengths[name].append(sides[name].length)
                for part, value in zip(PARTS, (generation, whole - generation, whole), strict=True):
                    seconds[name][part].append(value)
    parts = PARTS if setting.method == "GRPO" else ("training",)
    ours, theirs = seconds.values()
    spreads = {name: {part: spread(each[part]) for part in parts} for name, each in seconds.items()}
    mine = sides["rlcourse"]
    return {
        "parameters": sum(p.numel() for p in mine.policy.parameters()),
        "tokens a response": {name: statistics.mean(each) for name, each in lengths.items()},
        "seconds": spreads,
        "ratio": {
            part: spread([a / b for a, b in zip(ours[part], theirs[part], strict=True)]) for part in parts
        },
        "floor": floor(mine.policy.model, mine.rollout, sampled=setting.method == "GRPO"),
        "ours by kind": by_kind(mine, spreads["rlcourse"]),
    }


def by_kind(side: Side, seconds: dict) -> dict[str, dict[str, float]]:
    """Where our seconds go, of each part."""
    parts = {"training": side.learn}
    if "generation" in seconds:
        parts = {"generation": side.sample, **parts}
    cuda = side.policy.device.type == "cuda"
    return {part: where_time_goes(work, seconds[part]["median"], now, cuda) for part, work in parts.items()}


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


# ---- what is shown


def show(name: str, setting: Setting, found: dict) -> None:
    lengths = ", ".join(f"{side} {length:.1f}" for side, length in found["tokens a response"].items())
    millions = found["parameters"] / 1e6
    print(f"\n{name}: {setting.method}, {millions:.2f} M parameters; tokens a response: {lengths}")
    parts = list(found["ratio"])
    print(f"{'seconds: median (quartiles)':30s}" + "".join(f"{part:>24s}" for part in parts))
    for label, row in [*found["seconds"].items(), ("rlcourse / TRL", found["ratio"])]:
        digits = 2 if "/" in label else 3
        cells = (
            f"{v['median']:.{digits}f} ({v['low']:.{digits}f}-{v['high']:.{digits}f})" for v in row.values()
        )
        print(f"{label:30s}" + "".join(f"{cell:>24s}" for cell in cells))
    print(f"{'floor':30s}" + "".join(f"{found['floor']['seconds'][part]:>24.3f}" for part in parts))
    operations = sum(found["floor"]["operations"].values())
    rate = operations / sum(found["floor"]["seconds"][part] for part in found["floor"]["operations"])
    print(f"  of {operations / 1e9:.1f} G operations, at {rate / 1e9:.0f} G a second")
    print("where ours go, ms")
    for part, kinds in found["ours by kind"].items():
        print(f"  {part:12s}" + ", ".join(f"{kind} {1000 * s:.0f}" for kind, s in kinds.items()))
    if peaks := found.get("memory"):
        ratio = peaks["rlcourse"] / peaks["TRL"]
        sizes = ", ".join(f"{side} {size / 2**20:,.0f} MiB" for side, size in peaks.items())
        print(f"peak memory: {sizes}; rlcourse / TRL {ratio:.2f}", flush=True)


def quiet(threads: int) -> None:
    """So many threads, and no talk from the libraries."""
    from datasets import disable_progress_bars

    os.environ.update(TQDM_DISABLE="1", KINETO_LOG_LEVEL="9")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    torch.set_num_threads(threads)


def chosen(only: list[str] | None) -> dict[str, Setting]:
    """The settings asked for, or all that this machine can run."""
    if only:
        return {name: SETTINGS[name] for name in only}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fit = {name: setting for name, setting in SETTINGS.items() if setting.device == device}
    if not (POCKETS / "pocket" / "model.safetensors").exists():
        print("natural, pairs: left out, the pocket model has not been built (make pockets)", file=sys.stderr)
        fit = {name: setting for name, setting in fit.items() if setting.shape}
    return fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=SETTINGS, help="this setting; may be repeated")
    parser.add_argument("--rounds", type=int, help="for each setting; by default its own number")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, not as tables")
    parser.add_argument("--record", action="store_true", help="keep it in benchmarks/evidence/speed.json")
    options = parser.parse_args()
    try:
        import trl
    except ImportError:
        raise SystemExit(
            "trl is not installed, and there is nothing to compare with: make test brings it"
        ) from None
    quiet(threads=2)
    settings = chosen(options.only)
    on_gpu = any(setting.device == "cuda" for setting in settings.values())
    result = {
        "torch": torch.__version__,
        "trl": trl.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    for name, setting in settings.items():
        rounds = options.rounds or setting.rounds
        names = list(SIDES[setting.method])
        found = {"setting": asdict(setting), "rounds": rounds, **compare(setting, rounds)}
        peaks = one_process_each(memory, names, [setting] * len(names), at_once=1 if on_gpu else 2)
        result[name] = {**found, "memory": dict(zip(names, peaks, strict=True))}
        if not options.json:
            show(name, setting, result[name])
    if options.json:
        print(json.dumps(result))
    if options.record:
        from rlcourse.bookmaking.evidence import record

        record("speed", result, "python benchmarks/speed.py --record")


if __name__ == "__main__":
    main()
