"""What was measured on a GPU, or the plain statement that nothing was.

`python benchmarks/gpu.py --out FOLDER --record` writes it, and a chapter shows it:

    found = record()
    display(table(found, "sampling") if found else not_run_here())
"""

from __future__ import annotations

from rlcourse.bookmaking import evidence
from rlcourse.training import Table

FILE = "benchmarks/evidence/gpu.json"


def record() -> dict | None:
    """What every part found, by the part's name; None where no GPU has run them."""
    return evidence.recorded("gpu")


def table(found: dict, part: str) -> Table:
    """The rows of a part, "sampling" or "training", as one looks at them."""
    rows = found[part]["result"]["rows"]
    head = list(dict.fromkeys(name for row in rows for name in row))
    return Table(head, [[_cell(row.get(name, "")) for name in head] for row in rows])


def _cell(value: object) -> str:
    return str(value) if not isinstance(value, float) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def not_run_here():
    """The box that stands where the numbers would."""
    from IPython.display import Markdown

    return Markdown(
        "> **Not run here.** What belongs here needs a GPU, and none was at hand when this page was made. Not one "
        "number on it is a GPU's. Everything was tested on a CPU with small shapes. With a GPU, "
        "`python benchmarks/gpu.py --out runs/gpu --record` runs all of it in under ten minutes and puts the record "
        f"in `{FILE}`, and `make book` then shows that in place of this box."
    )
