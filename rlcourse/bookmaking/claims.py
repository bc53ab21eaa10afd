"""Claims: what a chapter says a cell shows, checked where it was measured.

    claim("accuracy rises by 0.3 or more", after - before, above=0.3)
    claim("every seed ends above 0.9", ends, above=0.9)               # the worst of them counts
    claim("the two are about alike", ours - theirs, above=-0.1, below=0.1)
    claim("tied groups get exactly nothing", (advantages == 0).all())   # a fact has no margin

Another processor rounds differently, so a number that training has made needs room to its bound. What was measured,
and against which bound, is printed, and noted in the file that $RLCOURSE_CLAIMS names: `make elsewhere` reads it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

POCKETS = Path(__file__).resolve().parents[1] / "lm" / "pockets"


def claim(says: str, measured, *, above: float | int | None = None, below: float | int | None = None) -> None:
    """Fails if it does not hold for the pocket models. On another model it is reported, not enforced.

    `measured` is a number, or several of which each must lie strictly within the bounds; without bounds it is true
    or false.
    """
    note = {"says": says}
    if above is None and below is None:
        holds, shown = fact(says, measured), says
    else:
        values = numbers(measured)
        if not values:
            raise ValueError(f"{says}: nothing was measured")
        worst = min(values, key=lambda value: margin(value, above, below))
        note |= {"measured": worst, "above": above, "below": below}
        holds, shown = margin(worst, above, below) > 0, f"{says}: {compared(worst, above, below)}"
    noted(note | {"holds": holds})
    if holds:
        print(f"✓ {shown}")
    elif on_a_pocket():
        raise AssertionError(f"{shown}: that does not hold")
    else:
        print(f"✗ {shown}: not with {os.environ['RLCOURSE_MODEL']}, in this run")


def fact(says: str, measured) -> bool:
    """True or false. A number or a list would count as true, whatever it says."""
    value = measured.item() if getattr(measured, "shape", None) == () else measured
    if not isinstance(value, bool):
        raise ValueError(
            f"{says}: {value!r} is neither true nor false; say above= or below= what it has to be"
        )
    return value


def numbers(measured) -> list[float]:
    """A number, or any nesting of lists, arrays and tensors of them, as a flat list; of a dictionary its values."""
    measured = measured.tolist() if hasattr(measured, "tolist") else measured
    measured = measured.values() if isinstance(measured, dict) else measured
    if isinstance(measured, Iterable):
        return [value for each in measured for value in numbers(each)]
    return [float(measured)]


def margin(value: float, above: float | int | None, below: float | int | None) -> float:
    """How far a number is from its nearer bound; NaN is as wrong as can be."""
    if math.isnan(value):
        return -math.inf
    return min(
        value - above if above is not None else math.inf, below - value if below is not None else math.inf
    )


def compared(value: float, above: float | int | None, below: float | int | None) -> str:
    if above is not None and below is not None:
        return f"{above:g} < {value:.3g} < {below:g}"
    return f"{value:.3g} > {above:g}" if below is None else f"{value:.3g} < {below:g}"


def on_a_pocket() -> bool:
    """As `load_policy` reads it: no name, or an empty one, is the pocket."""
    name = os.environ.get("RLCOURSE_MODEL") or "pocket"
    return name in {folder.name for folder in POCKETS.iterdir()}


def noted(note: dict) -> None:
    if file := os.environ.get("RLCOURSE_CLAIMS"):
        with open(file, "a") as lines:
            lines.write(json.dumps(note) + "\n")
