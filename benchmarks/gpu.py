"""All that a GPU is needed for, in one go: `python benchmarks/gpu.py --out FOLDER` (under ten minutes).

Every part runs in a process of its own, so that one that fails, or takes the GPU's state down with it, stops
no other. What it found goes into FOLDER/record.json. Called again, the script leaves out what is there, and
resumes the part that it was killed in, or that the time did not suffice for, from its last checkpoint.

    environment    versions, device, memory
    correctness    sampled log-probs are the scored ones; recorded sampling is plain sampling; the gradient
                   is the CPU's; the fused optimizer is the plain one
    pretrain       the model `lab` from nothing: FOLDER/lab, bfloat16
    grpo, ppo      `lab` learns to work its sums: FOLDER/grpo and FOLDER/ppo
    dpo            `lab` learns from pairs at the helpdesk: FOLDER/sft and FOLDER/dpo
    sampling       tokens a second, with the cache that grows, the static one, CUDA graphs, and transformers'
                   own `generate` and continuous batching; also for the shape of Qwen2.5-0.5B, with random weights
    training       seconds a step of GRPO and peak memory, by precision
    processes      two processes compute what one does
    trl            beside TRL, by speed.py

`--tiny` runs the same with tiny models on the CPU: for the tests, and to try the script. Exit code: 0 if all
is there, 1 if a part failed, 3 if time ran out and another call will go on. Where FOLDER/lab is copied to
models/lab, `load_policy("lab")` finds it.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import importlib.util
import json
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers

import rlcourse
from rlcourse.bookmaking import atomic, card, evidence, lab, stamps
from rlcourse.evaluate import accuracy
from rlcourse.lm import Policy, load_policy
from rlcourse.lm.caches import StaticCache, TransformersCache
from rlcourse.lm.llama import Cache
from rlcourse.methods import DPO, GRPO, PPO, SFT
from rlcourse.tasks import Helpdesk, Sums
from rlcourse.training import fit, train

# A forked process has all that is imported here, at once. It may use the GPU as long as this one never has: so
# not even torch.cuda.is_available() is called outside a part.
FORK = multiprocessing.get_context("fork")
OUT_OF_TIME = "time ran out"


@dataclass(frozen=True)
class Job:
    """What a part is told."""

    out: Path
    minutes: float = 9.0
    tiny: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"

    @property
    def sums(self) -> Sums:
        """The sums that `lab` can do, and seldom does."""
        return Sums(2, 1) if self.tiny else Sums(6, 3)

    def lab(self) -> Policy:
        """As it was pretrained: float32 weights to train, computed with in bfloat16."""
        return load_policy(
            self.out / "lab", self.device, "float32", autocast=None if self.tiny else "bfloat16"
        )


# ---- the parts


def environment(job: Job) -> dict:
    facts = {
        "python": platform.python_version(),
        "processor cores": os.cpu_count(),
        "trl": bool(importlib.util.find_spec("trl")),
        "GPUs": torch.cuda.device_count(),
    }
    if not job.tiny:
        gpu = torch.cuda.get_device_properties(0)
        facts |= {
            "GPU": gpu.name,
            "memory, GB": round(gpu.total_memory / 1e9, 1),
            "multiprocessors": gpu.multi_processor_count,
            "capability": f"{gpu.major}.{gpu.minor}",
            "CUDA": torch.version.cuda,
            "bfloat16": torch.cuda.is_bf16_supported(),
        }
    return facts


def correctness(job: Job) -> dict:
    """Every check is a gap and what it may be at most."""
    rng = random.Random(0)
    prompts = [Sums().draw(rng).prompt for _ in range(16)]
    checks: list[tuple[str, float, float]] = []

    def scored(what: str, policy: Policy, at_most: float) -> None:
        rollout = policy.sample(prompts, 4, max_tokens=32)
        with torch.no_grad():
            gap = (policy.score(rollout) - rollout.logp)[rollout.mask].abs().mean().item()
        checks.append((f"{what}: sampled log-probs against scored ones, mean gap", gap, at_most))

    for precision, settings in PRECISIONS.items():
        scored(
            f"pocket, {precision}",
            load_policy("pocket", job.device, **settings),
            1e-5 if not settings else 0.05,
        )
    for model, policy in {
        "pocket": load_policy("pocket", job.device),
        "a small Qwen2": qwen(job, small=True),
    }.items():
        plain = policy.sample(prompts, greedy=True, max_tokens=32, temperature=1.0).texts
        for how, cache in CACHES.items():
            if cache is not Cache or model == "pocket":
                policy._cache = lambda cache=cache: cache
                scored(f"{model}, {how}", policy, 1e-5)
                texts = policy.sample(prompts, greedy=True, max_tokens=32).texts
                other = sum(a != b for a, b in zip(plain, texts, strict=True)) / len(plain)
                checks.append((f"{model}, {how}: greedy answers that are not the default's", other, 0.1))

    gradients = [gradient(load_policy("pocket", device), prompts) for device in ("cpu", job.device)]
    checks.append(("gradient on the CPU and here, relative", apart(*gradients), 1e-4))
    checks.append(
        ("fused AdamW and plain, relative", apart(*(stepped(job.device, fused) for fused in (0, 1))), 1e-5)
    )
    if wrong := [f"{what}: {gap:.2g}, at most {most:g}" for what, gap, most in checks if not gap <= most]:
        raise ValueError("; ".join(wrong))
    return {"rows": [{"check": what, "gap": gap, "at most": at_most} for what, gap, at_most in checks]}


def gradient(policy: Policy, prompts: list[str]) -> torch.Tensor:
    rollout = policy.answered(prompts, ["17+25=42 42+48=90#90", "#90"] * (len(prompts) // 2))
    advantages = torch.linspace(-1, 1, len(prompts), device=policy.device)
    (policy.score(rollout) * advantages[:, None]).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()]).cpu()


def stepped(device: str, fused: int) -> torch.Tensor:
    """The pocket's weights after three steps along one gradient."""
    policy = load_policy("pocket", device)
    before = torch.cat([p.detach().flatten() for p in policy.parameters()])
    gradient(policy, ["1+2=", "3+4="])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, fused=bool(fused))
    for _ in range(3):
        optimizer.step()
    return (torch.cat([p.detach().flatten() for p in policy.parameters()]) - before).cpu()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / a.norm()).item()


def pretrain(job: Job) -> dict:
    folder = job.out / "lab"
    lab.pretrain_lab(
        folder, 4 if job.tiny else lab.STEPS, 0.35 * job.minutes, tiny=job.tiny, device=job.device
    )
    return json.loads((folder / "scores.json").read_text())


def grpo(job: Job) -> dict:
    return improved(job, "grpo", GRPO())


def ppo(job: Job) -> dict:
    return improved(job, "ppo", PPO())


def improved(job: Job, name: str, method) -> dict:
    """`lab` before and after training on sums, and the curves between."""
    policy, problems = job.lab(), 16 if job.tiny else 512
    before = accuracy(policy, job.sums, problems)
    settings = dict(steps=2, responses=16) if job.tiny else dict(steps=60, responses=256)
    run = train(
        policy, job.sums, method, **settings, lr=1e-4, out=job.out / name, resume=True, checkpoint_every=10, quiet=True
    )  # fmt: skip
    return {
        "what": f"{method!r} on {job.sums!r}, {settings}",
        "before": before,
        "after": accuracy(policy, job.sums, problems),
        "curves": curves(run),
        "answers": repr(run.before_after(4)),
    }


def dpo(job: Job) -> dict:
    """Demonstrations first, then pairs; by the gold score that neither method sees."""
    policy, n = job.lab(), 16 if job.tiny else 4096
    settings = dict(batch=8 if job.tiny else 64, resume=True, quiet=True)
    fit(policy, Helpdesk().demonstrations(n // 4), SFT(), lr=3e-4, out=job.out / "sft", **settings)
    sft, tickets = policy.copy(), 16 if job.tiny else 512
    before = card.gold(sft, tickets)
    run = fit(policy, Helpdesk().pairs(n), DPO(), lr=3e-5, reference=sft, out=job.out / "dpo", **settings)
    return {
        "what": f"{DPO()!r} on {n} pairs of the helpdesk, after SFT on {n // 4} demonstrations; gold score",
        "before": before,
        "after": card.gold(policy, tickets),
        "curves": curves(run),
        "answers": repr(run.before_after(4)),
    }


def curves(run) -> dict:
    names = [name for name in run.history[-1] if isinstance(run.history[-1][name], int | float)]
    return {name: run.column(name) for name in names}


# ---- throughput


class Unrecorded(StaticCache):
    """The static cache, every kernel launched by itself."""

    def step(self, tokens):
        self.tokens.copy_(tokens[:, None])
        return self._step()


PRECISIONS = {
    "float32": {},
    "float32 weights, bfloat16 products": {"autocast": "bfloat16"},
    "bfloat16": {"dtype": "bfloat16"},
}
CACHES = {
    "lean cache, grows": Cache,
    "transformers' cache, grows": TransformersCache,
    "static cache": Unrecorded,
    "static cache, CUDA graph": StaticCache,
}


def qwen(job: Job, small: bool = False, dtype: str = "float32", autocast: str | None = None) -> Policy:
    """Qwen2.5-0.5B's shape, or a small one, with random weights: no hub is needed to see how fast it is."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(load_policy("pocket", "cpu").model.name_or_path)
    shape = dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14)
    shape |= dict(num_key_value_heads=2, vocab_size=151_936, max_position_embeddings=32_768)
    if small or job.tiny:
        shape |= dict(hidden_size=56, intermediate_size=96, num_hidden_layers=2, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    with torch.device(job.device):
        model = Qwen2ForCausalLM(
            Qwen2Config(tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, **shape)
        )
    return Policy(
        model.to(getattr(torch, dtype)),
        tokenizer,
        "Qwen2.5-0.5B's shape",
        autocast and getattr(torch, autocast),
    )


def models(job: Job) -> dict[str, Callable[..., Policy]]:
    return {
        "lab": lambda **precision: load_policy(
            job.out / "lab", job.device, **{"dtype": "float32"} | precision
        ),
        "Qwen2.5-0.5B's shape": lambda **precision: qwen(job, **precision),
    }


def sampling(job: Job) -> dict:
    """Answers of one length: nobody may end early."""
    rng = random.Random(0)
    prompts = [job.sums.draw(rng).prompt for _ in range(2 if job.tiny else 16)]
    new_tokens = 8 if job.tiny else 64
    rows = []
    for model, build in models(job).items():
        for precision in ("bfloat16", "float32"):
            policy = build(**PRECISIONS[precision])
            policy.eos = torch.tensor([-1], device=policy.device)
            for how in HOWS:
                if precision == "float32" and CACHES.get(how) is not StaticCache:
                    continue  # one row is enough to see what precision is worth
                if CACHES.get(how) is Cache and policy.model.config.model_type != "llama":
                    continue
                if how == "continuous batching" and job.tiny:
                    continue  # takes a minute and gigabytes to begin on a CPU
                go = partial(HOWS[how], policy, prompts, new_tokens)
                row = {"model": model, "precision": precision, "how": how, "answers": 8 * len(prompts)}
                rows.append(row | timed(job, go, may_fail=how in THEIRS))
                if how == "continuous batching":  # it keeps the memory that it has taken
                    policy.model.destroy_cached_continuous_batching_manager()
    return {"rows": rows, "new tokens": new_tokens}


def timed(job: Job, go: Callable[[], int], may_fail: bool) -> dict:
    """Tokens a second of the second call; or, of what is not ours, why there are none."""
    try:
        go()
        wait(job)
        started = time.perf_counter()
        tokens = go()
        wait(job)
        return {"tokens a second": tokens / (time.perf_counter() - started)}
    except Exception as error:
        if not may_fail:
            raise
        return {"failed": f"{type(error).__name__}: {error}"[:200]}


def wait(job: Job) -> None:
    """A GPU is asked, and answers later: a clock is read when it is done."""
    if job.device == "cuda":
        torch.cuda.synchronize()


def ours(cache: type, policy: Policy, prompts: list[str], new_tokens: int) -> int:
    policy._cache = lambda: cache
    return int(policy.sample(prompts, 8, new_tokens).mask.sum())


def generate(policy: Policy, prompts: list[str], new_tokens: int) -> int:
    tokens, mask = policy.left_padded([prompt for prompt in prompts for _ in range(8)])
    settings = dict(
        do_sample=True, top_k=0, max_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=policy.pad_id
    )
    out = policy.model.generate(input_ids=tokens, attention_mask=mask.long(), **settings)
    return (out.shape[1] - tokens.shape[1]) * len(tokens)


def continuous(policy: Policy, prompts: list[str], new_tokens: int) -> int:
    inputs = [policy.encode(prompt) for prompt in prompts for _ in range(8)]
    settings = dict(do_sample=True, max_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=policy.pad_id)
    settings = transformers.GenerationConfig(**settings)
    out = policy.model.generate_batch(inputs, generation_config=settings, persistent_manager=True)
    if len(out) < len(inputs):  # it only logs what went wrong
        raise RuntimeError(f"{len(out)} answers came back to {len(inputs)} prompts")
    return sum(len(answer.generated_tokens) for answer in out.values())


THEIRS = {"generate": generate, "continuous batching": continuous}
HOWS = {how: partial(ours, cache) for how, cache in CACHES.items()} | THEIRS


def training(job: Job) -> dict:
    """Whole steps of GRPO. The first of three counts for nothing: it allocates, and chooses kernels."""
    return {
        "rows": [
            {"model": model, "precision": precision, **steps_of(job, partial(build, **settings))}
            for model, build in models(job).items()
            for precision, settings in PRECISIONS.items()
        ]
    }


def steps_of(job: Job, build: Callable[[], Policy]) -> dict:
    """Seconds and memory of one model's steps; what the model before it held is free again."""
    gc.collect()
    if not job.tiny:
        torch.cuda.reset_peak_memory_stats()
    policy, sampled = build(), []
    sample = policy.sample

    def clocked(*args, **kwargs):
        started = time.perf_counter()
        rollout = sample(*args, **kwargs)
        wait(job)
        sampled.append(time.perf_counter() - started)
        return rollout

    policy.sample = clocked
    size = dict(responses=16, max_tokens=8) if job.tiny else dict(responses=128, max_tokens=128)
    settings = dict(steps=3, lr=1e-6, micro_batch=32, sample_every=99, quiet=True)
    run = train(policy, job.sums, GRPO(), **settings, **size)
    first, _, last = run.column("seconds")
    asked, seconds = sum(sampled[2:4]) / 2, (last - first) / 2  # sampled[0] asked the watched prompts
    return {
        **size,
        "sampling, s": asked,
        "learning, s": seconds - asked,
        "whole step, s": seconds,
        "memory, GB": None if job.tiny else torch.cuda.max_memory_allocated() / 1e9,
    }


# ---- other programs


def processes(job: Job) -> dict:
    """DPO on the same pairs: the losses and gradient norms of two processes beside those of one."""
    if torch.cuda.device_count() < 2:
        return {"left out": "it takes two GPUs; tests/test_processes.py does it on a CPU"}
    file = job.out / "two.json"
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
    ]
    done = subprocess.run([*launch, "--out", job.out, "--one-of-two", file], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"two processes failed: {done.stderr.strip()[-500:]}")
    two, one = json.loads(file.read_text()), one_of_two()
    gap = max(abs(a - b) / abs(b) for name in one for a, b in zip(two[name], one[name], strict=True))
    if not gap <= 1e-4:
        raise ValueError(f"two processes and one are {gap:.2g} apart, relatively: {two} and {one}")
    return {"largest relative gap": gap, "one": one, "two": two}


def one_of_two() -> dict:
    run = fit(
        load_policy("pocket", f"cuda:{os.environ.get('LOCAL_RANK', 0)}"),
        Helpdesk().pairs(32),
        DPO(),
        batch=16,
        quiet=True,
    )
    return {name: run.column(name) for name in ("loss", "grad_norm")}


def trl(job: Job) -> dict:
    """speed.py finds the GPU by itself."""
    if job.tiny or not importlib.util.find_spec("trl"):
        return {"left out": "`make bench` does it on a CPU" if job.tiny else "trl is not installed here"}
    command = [sys.executable, Path(__file__).with_name("speed.py"), "--json", "--rounds", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"speed.py failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


PARTS = {
    part.__name__: part
    for part in (environment, correctness, pretrain, grpo, ppo, dpo, sampling, training, processes, trl)
}


# ---- running them


def record_of(job: Job) -> dict:
    file = job.out / "record.json"
    found = json.loads(file.read_text()) if file.exists() else {"tiny": job.tiny, "parts": {}}
    if found["tiny"] != job.tiny:
        raise SystemExit(f"{file} is of a {'tiny' if found['tiny'] else 'real'} run: give another --out")
    return found


def has_result(job: Job, name: str) -> bool:
    return "result" in record_of(job)["parts"].get(name, {})


def note(job: Job, name: str, entry: dict) -> None:
    record = record_of(job)
    record["parts"][name] = entry
    atomic.write(job.out / "record.json", json.dumps(record, indent=1) + "\n")


def attempt(job: Job, name: str, part: Callable[[Job], dict]) -> None:
    """One part, in a process of its own: its result, or what went wrong, goes into the record."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    started = time.monotonic()
    try:
        if not job.tiny and not torch.cuda.is_available():
            raise RuntimeError("there is no GPU here; --tiny runs the same on the CPU, with tiny models")
        found = {"result": part(job)}
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_initialized() else "CPU"
    versions = {
        "rlcourse": rlcourse.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    seconds = round(time.monotonic() - started, 1)
    note(job, name, {"seconds": seconds, "device": gpu, "versions": versions, "commit": commit(), **found})


def commit() -> str:
    try:
        asked = subprocess.run(
            ["git", "-C", stamps.ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except FileNotFoundError:  # no git here
        return "unknown"
    return asked.stdout.strip() or "unknown"


def run(job: Job, parts: dict[str, Callable[[Job], dict]]) -> int:
    """Every part that has no result yet. The exit code."""
    job.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * job.minutes
    for name, part in parts.items():
        if has_result(job, name):
            print(f"{name}: there already", flush=True)
            continue
        left = deadline - time.monotonic()
        problem = in_a_process(job, name, part, left) if left > 0 else OUT_OF_TIME
        if problem and not has_result(job, name):  # it may have died only afterwards
            note(job, name, {"error": problem})
        found = record_of(job)["parts"][name]
        print(f"{name}: {found.get('error', 'done')}, {found.get('seconds', 0)} s", flush=True)
    errors = {record_of(job)["parts"][name].get("error") for name in parts} - {None}
    return 1 if errors - {OUT_OF_TIME} else 3 if errors else 0


def in_a_process(job: Job, name: str, part: Callable[[Job], dict], seconds: float) -> str | None:
    """None if the part has noted how it went; otherwise why it could not."""
    worker = FORK.Process(target=attempt, args=(job, name, part))
    worker.start()
    with suppress(ProcessLookupError, PermissionError):  # one that has ended already
        os.setpgid(worker.pid, worker.pid)  # a group of its own, together with what it starts
    try:
        worker.join(seconds)
        if worker.is_alive():
            return OUT_OF_TIME
    finally:  # also when this process is told to end
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.join()
    if worker.exitcode:
        return f"its process ended with {worker.exitcode}"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="a folder for the record, the runs and the weights"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many; default: %(default)g")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be repeated")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU, to try the script")
    parser.add_argument(
        "--record", action="store_true", help=f"keep the result in {evidence.FOLDER.name}/gpu.json"
    )
    parser.add_argument("--one-of-two", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.tiny and asked.record:
        parser.error("a tiny run is nobody's measurement: it is not recorded")
    if asked.one_of_two:
        found = one_of_two()
        if os.environ["RANK"] == "0":
            asked.one_of_two.write_text(json.dumps(found))
        return 0
    job = Job(asked.out.resolve(), asked.minutes, asked.tiny)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a part in progress is ended too
    job.out.mkdir(parents=True, exist_ok=True)
    with (job.out / ".lock").open("w") as lock:
        try:  # a part inherits the lock, and holds it still where it has outlived a script that was killed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another gpu.py is at work in {job.out}: wait for it, or end it") from None
        code = run(job, {name: part for name, part in PARTS.items() if not asked.only or name in asked.only})
    if asked.record and code == 0 and not asked.only:
        # without a stamp of code: a GPU is seldom at hand, and the record says which commit it is of
        command = "python benchmarks/gpu.py --out FOLDER --record"
        evidence.record("gpu", record_of(job)["parts"], command, modules=(), checkpoints=())
    return code


if __name__ == "__main__":
    sys.exit(main())
