"""Stamps: which code and which checkpoints an output was made by.

A stamp maps keys to fingerprints, and a key says what is hashed:

    rlcourse/methods/grpo.py               the syntax tree: comments, docstrings and layout change nothing
    rlcourse/methods/grpo.py:grpo_loss     the source text as `show` printed it: here comments do matter
    benchmarks/evidence/x.json             its result: a new stamp of the same numbers changes nothing
    rlcourse/lm/pockets/pocket/model.safetensors, ...    the bytes
"""

import ast
import hashlib
import json
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USED: set[str] = set()  # keys that `show`, `evidence` and `use_style` add in the running kernel


def source_of(text: str, qualname: str) -> str:
    """The lines of one function or class (`grpo_loss`, `GRPO.loss`); the whole file for an empty name."""
    if not qualname:
        return text.strip()
    node = ast.parse(text)
    for name in qualname.split("."):
        found = [child for child in node.body if getattr(child, "name", None) == name]
        if not found:
            raise LookupError(f"no {qualname} in this file")
        node = found[-1]
    first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


def canonical(node: object) -> str:
    """A syntax tree as text, the same on every Python version (`ast.dump` is not), without docstrings."""
    if isinstance(node, list):
        return "[" + ", ".join(map(canonical, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        has_docstring = ast.get_docstring(node, clean=False) is not None
        fields["body"] = node.body[has_docstring:]
    shown = [f"{name}={canonical(value)}" for name, value in fields.items() if value not in (None, [])]
    return f"{type(node).__name__}({', '.join(shown)})"


def fingerprint(key: str, root: Path = ROOT) -> str | None:
    """The hash that a key has now; None if there is no such thing any more."""
    path, _, qualname = key.partition(":")
    try:
        data = (root / path).read_bytes()
        if ":" in key:
            data = source_of(data.decode(), qualname).encode()
        elif path.endswith(".py"):
            data = canonical(ast.parse(data)).encode()
        elif path.startswith("benchmarks/evidence/"):
            data = json.dumps(json.loads(data)["result"], sort_keys=True).encode()
    except (OSError, LookupError, SyntaxError, ValueError):
        return None
    return hashlib.sha256(data).hexdigest()[:16]


def stamp(keys: set[str] | list[str], root: Path = ROOT) -> dict[str, str | None]:
    return {key: fingerprint(key, root) for key in sorted(keys)}


def changed(stamped: dict[str, str | None], root: Path = ROOT) -> list[str]:
    """The keys whose fingerprint is another one today."""
    return [key for key, value in stamped.items() if fingerprint(key, root) != value]


def loaded() -> set[str]:
    """Keys of the library modules and checkpoints in this process.

    Without the book's machinery, and without doors, which know names and compute nothing.
    """
    files = {
        Path(module.__file__).resolve()
        for name, module in list(sys.modules.items())
        if re.match(r"rlcourse\.(?!bookmaking)", name)
        and getattr(module, "__file__", None)
        and not getattr(module, "__getattr__", None)
    }
    policy = sys.modules.get("rlcourse.lm.loading")
    pockets = set(map(checkpoint_key, getattr(policy, "LOADED", ())))
    return {path.relative_to(ROOT).as_posix() for path in files} | pockets


def checkpoint_key(pocket: str) -> str:
    return f"rlcourse/lm/pockets/{pocket}/model.safetensors"
