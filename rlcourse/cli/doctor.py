"""`rlcourse doctor`: what is installed, what this machine has and what fits on it, and what to do about what is wrong.

Looks at files and memory only, and never at the network.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path

from rlcourse.cli.parser import add_json, columns, command, say

PACKAGE = Path(__file__).parents[1]
MODELS = {  # a hub name, and its numbers in practice/memory.py
    "HuggingFaceTB/SmolLM2-135M-Instruct": "SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-360M-Instruct": "SmolLM2-360M",
    "Qwen/Qwen2.5-0.5B-Instruct": "Qwen2.5-0.5B",
    "Qwen/Qwen3-0.6B": "Qwen3-0.6B",
    "meta-llama/Llama-3.2-1B(-Instruct)": "Llama-3.2-1B",
}
# What is asked of them: answers sampled at once, answers (or pairs) learned from at once, and lengths in tokens.
SAMPLED, LEARNED, PROMPT, RESPONSE = 64, 8, 128, 256


def add(commands) -> None:
    doctor = command(
        commands,
        "doctor",
        run_doctor,
        help="what is installed, what fits this machine, what is wrong",
        description="Python, packages, processors, memory, downloaded models; which models fit for which method; and "
        "what to do about what is wrong. Asks nothing of the network.",
        example="rlcourse doctor",
    )
    add_json(doctor)


def run_doctor(options: argparse.Namespace) -> int:
    machine, installed, downloaded = look_at_machine(), packages(), models_downloaded()
    room = max((gpu["memory"] for gpu in machine["gpus"]), default=machine["memory"])
    fits = what_fits(room, "bf16" if machine["gpus"] else "fp32")
    wrong = what_is_wrong(machine, installed, downloaded)
    document = machine | {"packages": installed, "models": downloaded, "fits": fits, "wrong": wrong}
    say(options, document, *told(machine, installed, downloaded, fits, wrong))
    return 1 if wrong else 0


# ---- looking


def look_at_machine() -> dict:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"python": platform.python_version(), "platform": platform.platform(), "cores": cores, "gpus": []}
    found |= {"threads": None, "cuda_build": None, "memory": memory_here()}
    found |= {"disk_free": shutil.disk_usage(".").free}
    try:
        import torch
    except ImportError:
        return found
    found |= {"threads": torch.get_num_threads(), "cuda_build": torch.version.cuda}
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        found["gpus"].append({"name": torch.cuda.get_device_name(i), "memory": total, "free": free})
    return found


def memory_here() -> int:
    """Bytes of memory; in a container, of the container's limit."""
    import psutil

    total, limit = psutil.virtual_memory().total, Path("/sys/fs/cgroup/memory.max")
    told = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(told)) if told.isdecimal() else total


def packages() -> list[dict]:
    """What rlcourse asks for: which version is here, which was tested, and whether this one will do."""
    from packaging.requirements import Requirement

    constraints = PACKAGE.parent / "constraints.txt"
    pins = constraints.read_text().splitlines() if constraints.exists() else []
    tested = dict(line.lower().replace("_", "-").split("==") for line in pins if "==" in line)
    found = []
    for wanted in map(Requirement, importlib.metadata.requires("rlcourse") or []):
        if wanted.name == "rlcourse":
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        found.append(
            {
                "name": wanted.name,
                "version": version,
                "tested": tested.get(wanted.name.lower().replace("_", "-")),
                "wanted": str(wanted.specifier),
                "extra": str(wanted.marker).rpartition("extra == ")[2].strip('"') if wanted.marker else None,
                "good": version is not None and wanted.specifier.contains(version, prereleases=True),
            }
        )
    return found


def models_downloaded() -> dict:
    """The language models in the hub's cache: name and bytes."""
    try:
        from huggingface_hub import CacheNotFound, constants, scan_cache_dir
    except ImportError:
        return {"folder": None, "found": []}
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        repos = []
    named = {repo.repo_id: repo.size_on_disk for repo in repos if repo.repo_type == "model"}
    return {
        "folder": str(constants.HF_HUB_CACHE),
        "found": [{"name": name, "bytes": size} for name, size in sorted(named.items())],
    }


# ---- arithmetic


def what_fits(room: int, precision: str) -> list[dict]:
    """Bytes that each model takes for GRPO, GRPO with LoRA and DPO, beside the bytes that there are."""
    from rlcourse.practice.memory import MODELS as SHAPES

    shapes = {"pocket": pocket_shape()} | {name: SHAPES[short] for name, short in MODELS.items()}
    ways = {"GRPO": ("GRPO", 0), "GRPO, LoRA 16": ("GRPO", 16), "DPO": ("DPO", 0)}
    return [
        {"model": name} | {way: {"bytes": (n := needed(shape, *how, precision)), "fits": n < 0.9 * room}
        for way, how in ways.items()}
        for name, shape in shapes.items()
    ]  # fmt: skip


def needed(shape, method: str, lora: int, precision: str) -> int:
    """The peak: what is learned and what stands beside it, and the larger of sampling and learning."""
    from rlcourse.practice.memory import memory

    def table(batch: int):
        sizes = {"batch": batch, "prompt": PROMPT, "response": RESPONSE}
        return memory(shape, method, precision, checkpointing=False, lora=lora, **sizes)

    learning, sampling = table(LEARNED), table(SAMPLED)
    passing = learning.column("activations") + learning.column("logits")
    judge = learning.row("reward") if "reward" in learning.cells else 0  # ours is a rule
    return (
        learning.total
        - learning.column("KV cache")
        - judge
        - passing
        + max(passing, sampling.column("KV cache"))
    )


def pocket_shape():
    from rlcourse.practice.memory import Architecture

    c = json.loads((PACKAGE / "lm" / "pockets" / "pocket" / "config.json").read_text())
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return Architecture(*(c[name] for name in names), c["intermediate_size"], c["vocab_size"], tied=True)


# ---- what is wrong


def what_is_wrong(machine: dict, installed: list[dict], downloaded: dict) -> list[str]:
    """A sentence for each thing: what it is and what to do."""
    wrong = []
    for package in installed:
        name, wanted = package["name"], package["wanted"]
        if package["extra"] is None and package["version"] is None:
            wrong.append(f"{name} is not installed: `make setup` installs all that is needed.")
        elif package["version"] and not package["good"]:
            wrong.append(
                f"{name} is {package['version']}, and rlcourse needs {wanted}: `make setup` puts it right."
            )
    if not machine["gpus"] and shutil.which("nvidia-smi"):
        why = "was built without CUDA" if machine["cuda_build"] is None else "cannot reach it"
        wrong.append(
            f"There is an NVIDIA driver, and torch {why}: choose the build for your driver at "
            "pytorch.org/get-started, or see whether nvidia-smi lists a GPU at all."
        )
    if machine["disk_free"] < 10**9:
        wrong.append(
            "Less than 1 GB is free on this disk: runs and their checkpoints go to runs/; make room."
        )
    name = os.environ.get("RLCOURSE_MODEL")  # an empty one is none, as `load_policy` reads it
    here = {model["name"] for model in downloaded["found"]}
    here |= {file.parent.name for file in (PACKAGE / "lm" / "pockets").glob("*/model.safetensors")}
    here |= {file.parent.name for file in (PACKAGE.parent / "models").glob("*/config.json")}
    if name and name not in here and not Path(name).is_dir():
        wrong.append(
            f"RLCOURSE_MODEL is {name}, which is no pocket, no folder and not downloaded: `hf download {name}`."
        )
    return wrong


# ---- telling


def told(
    machine: dict, installed: list[dict], downloaded: dict, fits: list[dict], wrong: list[str]
) -> list[str]:
    from rlcourse.practice.memory import readable

    def size(number: int) -> str:
        return readable(number, "B")

    present = [package for package in installed if package["version"]]
    as_tested = [package for package in present if package["version"].split("+")[0] == package["tested"]]
    others = [
        f"         {package['name']} {package['version']}, tested with {package['tested']}"
        for package in present
        if package not in as_tested
    ]
    torch = "".join(
        f", {p['name']} {p['version']}" for p in present if p["name"] in ("torch", "transformers", "trl")
    )
    threads = f"{machine['threads']} threads in torch" if machine["threads"] else "torch is not installed"
    gpus = [
        f"GPU      {gpu['name']}, {size(gpu['memory'])}, {size(gpu['free'])} free" for gpu in machine["gpus"]
    ]
    ways = list(fits[0])[1:]
    table = [["model", *ways]]
    for row in fits:
        cells = [f"{size(row[way]['bytes'])} {'fits' if row[way]['fits'] else 'too large'}" for way in ways]
        table.append([row["model"], *cells])
    models = [f"{model['name']}, {size(model['bytes'])}" for model in downloaded["found"]]
    return [
        f"rlcourse {importlib.metadata.version('rlcourse')}, Python {machine['python']}, {sys.executable}",
        f"CPU      {machine['cores']} cores, {threads}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
        f"memory   {size(machine['memory'])}; disk {size(machine['disk_free'])} free",
        *(gpus or ["GPU      none: everything runs on the CPU"]),
        f"models   {'; '.join(models) or 'none downloaded: the pockets ship with rlcourse'}  ({downloaded['folder']})",
        f"packages {len(as_tested)} of {len(present)} at the versions that were tested{torch}",
        *others,
        "",
        f"Memory for --responses {SAMPLED} --micro-batch {LEARNED}, answers of {RESPONSE} tokens, by arithmetic:",
        *columns(table),
        "On a CPU the pocket learns in a minute; the others run, and take their time."
        if not machine["gpus"]
        else "Too large? --lora 16, --gradient-checkpointing, a smaller --micro-batch, or --shard over several GPUs.",
        "",
        *(f"! {sentence}" for sentence in wrong),
        *([] if wrong else ["Nothing is wrong."]),
    ]
