"""Loading a policy by name, and one clear sentence for whatever stands in the way."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from huggingface_hub.errors import GatedRepoError

from rlcourse.lm.policy import Policy, no_bars

POCKETS = Path(__file__).parent / "pockets"
MADE = POCKETS.parents[2] / "models"  # pretrained by the reader, too large to ship: lab
LOADED: set[str] = set()  # the pockets that this process has loaded: a built notebook is stamped with them
DTYPES = ("float32", "bfloat16", "float16")

# After a fork torch makes a new pool of threads when it is first asked, and fails if two threads ask at once, as
# those do that read a model's weights (torch 2.13). So it is asked here, by one.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(torch.get_num_threads()))


def pockets() -> list[str]:
    """The names of the models that ship with the package."""
    return sorted(file.parent.name for file in POCKETS.glob("*/model.safetensors"))


def made() -> list[str]:
    """The names of the models that the reader has pretrained: `lab`, or none."""
    return sorted(file.parent.name for file in MADE.glob("*/config.json"))


def checkpoints(folder: str | Path) -> list[Path]:
    """Of a run, in the order of their steps: folders of exactly the name that a run gives them. A reader's copy,
    `step-000040-best`, is theirs: it is neither read for the run's nor ever deleted. And so is one with a name like
    ours, if its record says another step than its name."""
    ours = re.compile(r"step-(\d{6}|[1-9]\d{6,})")
    named = {each: ours.fullmatch(each.name) for each in Path(folder).glob("step-*") if each.is_dir()}
    found = {int(name[1]): each for each, name in named.items() if name}
    return [found[step] for step in sorted(found) if recorded_step(found[step]) in (step, None)]


def recorded_step(checkpoint: Path) -> int | None:
    """What its record says, None where that cannot be read. It begins with it: the rest grows with the run."""
    try:
        with (checkpoint / "record.json").open("rb") as file:
            begins = re.match(rb'\s*{\s*"format":\s*\d+,\s*"step":\s*(\d+)\b', file.read(200))
    except OSError:
        return None
    return int(begins[1]) if begins else None


def load_policy(
    name_or_path: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    lora: int | None = None,
    autocast: torch.dtype | str | None = None,
) -> Policy:
    """A policy by name: a pocket model that ships with the package, a local folder, or a hub name.

    Without a name: $RLCOURSE_MODEL, or "pocket". A run's folder gives its newest checkpoint.

    dtype      of the weights: float32 on a CPU and for the pockets, bfloat16 for others on a GPU
    lora       the rank of an adapter, which is then all that is trained
    autocast   the precision to compute in, where it is not the weights' own: "bfloat16"
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name = str(name_or_path or os.environ.get("RLCOURSE_MODEL") or "pocket")
    # exactly a name: POCKETS / "/abs" is /abs, so that any folder at all would seem to be in there
    shipped = name in pockets()
    folder = str(POCKETS / name if shipped else MADE / name if name in made() else name)
    folder = str([folder, *checkpoints(folder)][-1])
    where = _device(device)
    dtype = _dtype(dtype) or (torch.float32 if shipped or where.type == "cpu" else torch.bfloat16)
    autocast = _dtype(autocast)
    if lora is not None and lora < 1:
        raise ValueError(f"lora is the rank of the adapter, at least 1; got {lora}")

    found, reads = False, "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        found = True
        _check_causal(config)
        if not shipped:
            _check_memory(name, config, dtype, where)
        reads = "its tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        reads = "its weights"
        with no_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # ours to say, and not to ignore
            )
        _check_weights(name, report)
        model = model.to(where)
    except Exception as error:  # libraries raise whatever a damaged file makes them stumble over
        if _out_of_memory(error):
            raise ValueError(
                f"Out of memory while {name} was loaded in {str(dtype)[6:]}. dtype='bfloat16' takes half of "
                "float32, lora=16 a quarter in training; else take a smaller model."
            ) from None
        raise ValueError(_why_not(name, found or Path(name).is_dir(), reads, error)) from None
    if shipped:
        LOADED.add(name)
    return Policy(_with_adapter(model, lora) if lora else model, tokenizer, name, autocast)


def _device(name: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and device.index is None:  # torchrun says which is this process's
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(0, device=device)  # a device may be known and not be here
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"There is no device {name!r} here: pass 'cpu', or 'cuda' with a GPU") from None
    return device


def _dtype(name: torch.dtype | str | None) -> torch.dtype | None:
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise ValueError(f"dtype and autocast are one of {', '.join(DTYPES)}; got {name!r}")
    return getattr(torch, name)


def _with_adapter(model, rank: int):
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("lora needs the package peft: pip install 'rlcourse[lora]'") from None
    # alpha = 2 * rank and every linear layer but the head: the usual start; dropout would blur the log-probs
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    with warnings.catch_warnings(), torch.random.fork_rng():
        torch.manual_seed(0)  # the same adapter at each loading: a run that goes on knows it again
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going
        return get_peft_model(model, config)


# ---- what stands in the way


def _check_causal(config) -> None:
    """BERT would load, as a causal model with a head of noise."""
    heads = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    made = config.architectures or []
    if config.is_encoder_decoder or made and not any(name.endswith(heads) for name in made):
        raise ValueError(f"it holds a {' '.join(made) or config.model_type}, which does not continue a text.")


def _check_weights(name: str, report: dict) -> None:
    """Whatever the files do not hold, or hold in another shape, transformers has drawn at random."""
    if more := report["unexpected_keys"]:
        warnings.warn(
            f"{name}: config.json has no place for {len(more)} of the weights in its files, {min(more)} among them: "
            "they are left out",
            stacklevel=3,
        )
    if report["missing_keys"]:
        raise ValueError(f"its files lack weights, {min(report['missing_keys'])} among them.")
    if report["mismatched_keys"]:
        weight, there, asked = min(report["mismatched_keys"])
        raise ValueError(
            f"{weight} is of shape {tuple(there)} in its files, and {tuple(asked)} by config.json: one of them "
            "belongs to another model."
        )


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class TooLittleMemory(ValueError):
    """The weights alone do not fit."""


def _check_memory(name: str, config, dtype: torch.dtype, device: torch.device) -> None:
    """Before anything is downloaded or read: a process that takes too much is killed without a word."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config, dtype=dtype).parameters())
    need, half = size * dtype.itemsize / 1e9, size * 2 / 1e9
    for place in {torch.device("cpu"), device}:  # weights pass through the CPU's memory on their way
        free = _free(place) / 1e9
        if need > free:
            less = f"dtype='bfloat16' takes {half:.3g} GB" if half <= free else "take a smaller model"
            raise TooLittleMemory(
                f"{name} takes {need:.3g} GB in {str(dtype)[6:]}, and {place} has {free:.3g} GB free: {less}; "
                "to train, lora=16 takes little more than that, where all weights take four times as much."
            )


def _free(place: torch.device) -> int:
    return torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else psutil.virtual_memory().available


def _said(error: Exception, reads: str) -> str:
    """In one line what stopped the reading of this part of a model. A library's stumble says little but its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, ImportError):  # a quantised model, or an old tokenizer
        return f"{reads} cannot be read without a package that is not installed: {lines[0]}"
    if isinstance(error, OSError | ValueError):
        return lines[0]
    why = ": ".join([type(error).__name__, *lines])
    return f"{reads} cannot be read ({why}). Save or download it again."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _why_not(name: str, found: bool, reads: str, error: Exception) -> str:
    """One clear sentence for what stands in the way of a model, and what to do."""
    if name == "lab":
        return (
            "lab is not here yet: `python -m rlcourse.bookmaking.pretrain lab` makes it, in minutes on a GPU."
        )
    known = f"The models that need no download are {', '.join(pockets())}."
    if isinstance(error, TooLittleMemory):
        return str(error)
    if any(isinstance(cause, GatedRepoError) for cause in _causes(error)):
        return (
            f"{name} is gated: accept its owner's terms at https://huggingface.co/{name}, then `hf auth login` "
            f"and `hf download {name}`. {known}"
        )
    if found or not isinstance(error, OSError | ValueError):  # a hub without the model says one of these
        kind = "The folder" if Path(name).is_dir() else "What was downloaded as"
        return (
            f"{kind} {name} does not hold a causal language model with its tokenizer "
            f"(config.json, tokenizer.json, model.safetensors): {_said(error, reads)} {known}"
        )
    return (
        f"No model {name!r}: it is not a local folder, and the hub cannot give it (no network, not downloaded before, "
        f"gated, or misspelt). With a network: `hf download {name}` once, then it works offline. {known}"
    )
