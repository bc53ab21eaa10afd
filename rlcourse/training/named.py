"""Methods and tasks by name: `GRPO`, or `GRPO(clip=0.1)`, the text that their repr gives.

The text is read as data and never run: a name that we know, and literals.
"""

from __future__ import annotations

import ast
import dataclasses
from difflib import get_close_matches
from types import NoneType
from typing import get_args, get_type_hints

from rlcourse import methods, tasks


def method(text: str):
    """
    >>> method("GRPO(clip=0.1)").clip
    0.1
    """
    return _made(text, "method", {name: getattr(methods, name) for name in methods.__all__})


def task(text: str):
    """
    >>> task("Sums(terms=4)").terms
    4
    """
    known = {name: getattr(tasks, name) for name in tasks.__all__}
    return _made(text, "task", {name: cls for name, cls in known.items() if hasattr(cls, "grade")})


def _made(text: str, kind: str, known: dict):
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        tree = None
    if not isinstance(tree, ast.Name | ast.Call):
        example = {"method": "GRPO(clip=0.1)", "task": "Sums(terms=4)"}[kind]
        raise ValueError(f"{text!r} is no {kind}: write a name, or a name with settings, such as {example}")
    return _value(tree, text, kind, known)


def _value(tree: ast.expr, text: str, kind: str, known: dict):
    """A name, a call of one, or a literal."""
    if not isinstance(tree, ast.Name | ast.Call):
        return ast.literal_eval(tree)
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    name = ast.unparse(call.func)
    if name not in known:
        there = ", ".join(sorted(known))
        raise ValueError(f"there is no {kind} {name!r}{_nearest(name, known)} There are {there}.")
    fields = [field.name for field in dataclasses.fields(known[name]) if field.init]
    if len(call.args) > len(fields):
        raise ValueError(f"{name} takes {len(fields)} settings, and {text!r} gives it {len(call.args)}")
    given = dict(zip(fields, call.args, strict=False))
    given |= {word.arg or "**": word.value for word in call.keywords}
    values, hints = {}, get_type_hints(known[name])
    for field, value in given.items():
        if field not in fields:
            there = ", ".join(fields)
            raise ValueError(f"{name} has no setting {field!r}{_nearest(field, fields)} It has {there}.")
        try:
            values[field] = _value(value, text, kind, known if isinstance(value, ast.Call) else {})
        except ValueError as error:
            if isinstance(value, ast.Call) and ast.unparse(value.func) in known:
                raise
            raise ValueError(
                f"{name}({field}={ast.unparse(value)}) cannot be read from text: only numbers, words in quotes, True, "
                "False, None and tuples can. Make the object in Python and hand it to train(), also to resume a run."
            ) from error
        if not _fits(values[field], hints[field]):
            wanted = getattr(hints[field], "__name__", hints[field])
            raise ValueError(f"{name}({field}={ast.unparse(value)}): {field} is of type {wanted}")
    try:
        return known[name](**values)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _fits(value, hint) -> bool:
    """Is it of a field's type? Of plain types only, and a whole number is a float too."""
    kinds = get_args(hint) or (hint,)
    plain = {int, float, bool, str, NoneType}.issuperset(kinds)
    return not plain or type(value) in kinds or type(value) is int and float in kinds


def _nearest(word: str, known) -> str:
    """The end of a sentence: what may have been meant, if something is near."""
    spelled = {each.lower(): each for each in known}
    near = get_close_matches(word.lower(), spelled)
    return f"; did you mean {' or '.join(spelled[each] for each in near)}?" if near else "."
