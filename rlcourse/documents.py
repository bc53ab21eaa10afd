"""The JSON that a run keeps: every reader of JSON takes it, and what is broken in it is said in one sentence.

JSON knows no NaN: a number that is none is written as null, and in a row of numbers null is read as NaN.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import NoneType
from typing import get_args

REMEDY = "Put a copy of it back, or begin a new run in another folder."


class Count:
    """What a file needs in some places: a whole number of 1 or more."""


TYPES = {
    Count: "a whole number of 1 or more",
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


def text(value, indent: int | None = None) -> str:
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value):
    """JSON knows no NaN: null says as much."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(file: Path, needs: dict | None = None, remedy: str = REMEDY) -> dict:
    """An object that has what is needed: of each name the type of its value."""
    try:
        content = json.loads(file.read_bytes().decode())
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}. {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is broken: {error}. {remedy}") from None
    return checked(content, needs or {}, str(file), remedy)


def lines(file: Path, needs: dict, remedy: str) -> list[dict]:
    """The objects of a JSONL file, one a line; a last line that a kill has cut is none."""
    found = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1] if file.exists() else [], 1):
        where = f"line {number} of {file}"
        try:
            content = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is broken: {error}. {remedy}") from None
        found.append(checked(content, needs, where, remedy))
    return found


def row(content, where: str, remedy: str) -> dict:
    """What was measured in a step: numbers, and NaN where there was none."""
    checked(content, {"step": Count}, where, remedy)
    checked(content, dict.fromkeys(content, float | None), where, remedy)
    return {name: math.nan if value is None else value for name, value in content.items()}


def checked(content, needs: dict, where: str, remedy: str = REMEDY) -> dict:
    if type(content) is not dict:
        raise ValueError(f"{where} holds {content!r:.40}, and no object in {{}}. {remedy}")
    for name, kind in needs.items():
        if name not in content and not fits(None, kind):
            raise ValueError(f"{where} has no {name!r}. {remedy}")
        if not fits(value := content.get(name), kind):
            wanted = " or ".join(TYPES[each] for each in get_args(kind) or (kind,))
            raise ValueError(f"{where} says {name}={value!r:.40}, and that should be {wanted}. {remedy}")
    return content


def fits(value, kind) -> bool:
    """Is it of this type? A whole number is a float too, and True is no number."""
    kinds = get_args(kind) or (kind,)
    if type(value) is int:
        return int in kinds or float in kinds or Count in kinds and value > 0
    return type(value) in kinds
