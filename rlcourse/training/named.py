"""Methods and tasks by name: `GRPO(clip=0.1)`, read as data."""

from __future__ import annotations

import ast
import difflib

from rlcourse import methods, tasks


def method(text: str):
    return _named(text, methods, "method")


def task(text: str):
    return _named(text, tasks, "task")


def _named(text: str, room, kind: str):
    tree = ast.parse(text, mode="eval").body
    name = tree.func.id if isinstance(tree, ast.Call) else getattr(tree, "id", text)
    if name not in room.__all__:
        near = difflib.get_close_matches(name, room.__all__, 1)
        raise ValueError(f"no {kind} {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    fields = {
        word.arg: _named(ast.unparse(word.value), room, kind)
        if isinstance(word.value, ast.Call)
        else ast.literal_eval(word.value)
        for word in (tree.keywords if isinstance(tree, ast.Call) else [])
    }
    return getattr(room, name)(**fields)
