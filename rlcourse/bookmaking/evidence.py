"""Evidence files: what takes longer than a chapter may, run once over several seeds and kept as small JSON.

A script records, a chapter reads and asserts:

    record("grpo_seeds", {"grpo": [0.81, 0.79]}, command="python benchmarks/grpo_evidence.py")
    evidence("grpo_seeds")["grpo"]
"""

import json
import re
from collections.abc import Iterable

from rlcourse.bookmaking import atomic, stamps

FOLDER = stamps.ROOT / "benchmarks" / "evidence"


def record(
    name: str,
    result: dict,
    command: str,
    modules: Iterable[str] | None = None,
    checkpoints: Iterable[str] | None = None,
) -> None:
    """Write `benchmarks/evidence/NAME.json`: the result, the command that makes it, and its stamp.

    `modules` ("rlcourse.methods.grpo") and `checkpoints` ("pocket") default to those this process has loaded.
    """
    keys = stamps.loaded()
    if modules is not None:
        keys = {key for key in keys if key.endswith(".safetensors")} | set(map(module_key, modules))
    if checkpoints is not None:
        keys = {key for key in keys if key.endswith(".py")} | set(map(stamps.checkpoint_key, checkpoints))
    write(name, result, command, keys)


def write(name: str, result: dict, command: str, keys: Iterable[str]) -> None:
    """The same, stamped with just these keys."""
    stamp = stamps.stamp(set(keys))
    if missing := [key for key, value in stamp.items() if value is None]:
        raise FileNotFoundError(f"cannot stamp {name}: there is no {', '.join(missing)}")
    atomic.write(FOLDER / f"{name}.json", as_text({"command": command, "result": result, "stamp": stamp}))


def evidence(name: str) -> dict:
    """The recorded result of this name."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        if not FOLDER.exists():
            raise FileNotFoundError(
                f"{FOLDER} does not exist: evidence files come with the repository. "
                "Install from a clone of it with `make setup` (or pip install -e .)."
            )
        recorded = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json"))) or "none"
        raise FileNotFoundError(
            f"no evidence file {name}.json; `make evidence` makes it. Recorded: {recorded}."
        )
    stamps.USED.add(path.relative_to(stamps.ROOT).as_posix())
    return json.loads(path.read_text())["result"]


def recorded(name: str) -> dict | None:
    """As `evidence`, or None where nobody has measured it yet: a notebook built without it is stale when it comes."""
    path = FOLDER / f"{name}.json"
    stamps.USED.add(path.relative_to(stamps.ROOT).as_posix())
    return evidence(name) if path.exists() else None


def module_key(module: str) -> str:
    """rlcourse.methods.grpo -> rlcourse/methods/grpo.py, rlcourse.lm -> rlcourse/lm/__init__.py"""
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (stamps.ROOT / path).is_dir() else f"{path}.py"


def as_text(content: dict) -> str:
    """JSON that reads well in a diff: sorted, six digits, a list of numbers on one line."""
    text = json.dumps(rounded(content), indent=1, sort_keys=True)
    numbers = re.compile(r'\[\n([^\[\]{}"]*)\]')  # no string holds a raw line break: only layout is touched
    return numbers.sub(lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"


def rounded(value: object) -> object:
    if hasattr(value, "tolist"):  # a tensor or an array
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
