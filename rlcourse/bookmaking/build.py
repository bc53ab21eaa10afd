"""From a MyST source (`13_grpo.md`) to its executed notebook (`13_grpo.ipynb`), the same bytes every time.

    python -m rlcourse.bookmaking.build [SOURCE ...]     execute these, or the whole book
    python -m rlcourse.bookmaking.build --stale-only     only those whose source, code or checkpoints changed;
                                                         where that is prose alone, nothing is executed
    python -m rlcourse.bookmaking.build --check          only compare the cells of sources and notebooks

Standard error is not kept in a notebook: what a reader should see is printed or displayed.
"""

import argparse
import json
import os
import re
import sys
import sysconfig
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from rlcourse.bookmaking import atomic, exercises, stamps
from rlcourse.bookmaking.stamps import ROOT

LARGEST = 1_500_000  # bytes; GitHub stops showing bigger notebooks long before it stops storing them
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"}  # no version: it differs
INSTALLED = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))
WIDGETS = "application/vnd.jupyter.widget-state+json"

# Runs as one more cell behind the last: the kernel alone knows what it has loaded.
ASK_FOR_STAMP = "from rlcourse.bookmaking import stamps; print(*stamps.loaded() | stamps.USED)"


def sources(book: Path = ROOT / "book") -> list[Path]:
    found = sorted(book.rglob("*.md"))
    return [path for path in found if not any(part[0] == "." for part in path.relative_to(book).parts)]


def read_source(source: Path) -> NotebookNode:
    """The notebook that a source describes: not executed, with fixed cell ids and our metadata only."""
    notebook = exercises.student(jupytext.read(source, fmt="md:myst"))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"c{number:03d}"
        cell.metadata = NotebookNode(tags=cell.metadata.tags) if cell.metadata.get("tags") else NotebookNode()
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def cells(notebook: NotebookNode) -> list[tuple[str, str, list[str]]]:
    """What must be equal in a source and its notebook."""
    return [(cell.cell_type, cell.source.strip(), cell.metadata.get("tags", [])) for cell in notebook.cells]


def differs(source: Path) -> str | None:
    """Where a notebook departs from its source; None if it does not."""
    notebook = source.with_suffix(".ipynb")
    if not notebook.exists():
        return "has not been built"
    try:
        ours, theirs = cells(read_source(source)), cells(nbformat.read(notebook, as_version=4))
    except nbformat.reader.NotJSONError:
        return "is not a notebook"
    for number, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            what = next(name for name, x, y in zip(("type", "source", "tags"), a, b) if x != y)
            return f"cell {number} has another {what}"
    return None if len(ours) == len(theirs) else f"has {len(theirs)} cells, its source {len(ours)}"


def stale(source: Path, root: Path = ROOT) -> list[str]:
    """What changed since the notebook was built: its source, or keys of its stamp."""
    if differs(source):
        return [source.relative_to(root).as_posix()]
    metadata = nbformat.read(source.with_suffix(".ipynb"), as_version=4).metadata
    return stamps.changed(metadata.get("rlcourse", {}).get("stamp", {}), root)


def execute(notebook: NotebookNode, folder: Path, timeout: int = 600, go_on: bool = False) -> set[str]:
    """Run a notebook in its own folder, with this interpreter; returns the keys of what it used.

    A cell that fails ends it, or, with `go_on`, leaves its error among the outputs.
    """
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's python3 kernel, not one of the user's
    os.environ.setdefault("PYTHONHASHSEED", "0")
    notebook.cells.append(nbformat.v4.new_code_cell(ASK_FOR_STAMP, id="stamp"))
    try:
        NotebookClient(
            notebook,
            timeout=timeout,
            allow_errors=go_on,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--log-level=40"],  # ipykernel warns of an unencrypted loopback at every start
            resources={"metadata": {"path": str(folder)}},
        ).execute()
    finally:
        asked = notebook.cells.pop()
    return {key for output in asked.outputs if output.get("name") == "stdout" for key in output.text.split()}


def tidy(notebook: NotebookNode) -> None:
    """Take out what differs between two runs or two machines: versions, stderr, chunks, paths, widget ids."""
    notebook.metadata.language_info = nbformat.from_dict(LANGUAGE)
    executed = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in executed:
        if noise := "".join(output.text for output in cell.outputs if output.get("name") == "stderr").strip():
            print(f"    {cell.id} wrote to stderr, which is not kept: {noise.splitlines()[0]}")
        cell.outputs = joined(output for output in cell.outputs if output.get("name") != "stderr")

    text = json.dumps([cell.outputs for cell in executed] + [notebook.metadata])
    for place in (*INSTALLED, ROOT):
        text = text.replace(json.dumps(f"{place}/")[1:-1], "")
    text = text.replace(json.dumps(f"{Path.home()}/")[1:-1], "~/")
    # begun only where a word begins: at every letter of a figure's megabyte of base64 it takes minutes
    text = re.sub(r"(?<![^\s\"])[^\s\"]*ipykernel_\d+/\d+\.py", "cell.py", text)
    models = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    for number, model in enumerate(models):
        text = text.replace(model, f"{number:032x}")
    *outputs, notebook.metadata = nbformat.from_dict(json.loads(text))
    for cell, output in zip(executed, outputs):
        cell.outputs = output


def joined(outputs) -> list[NotebookNode]:
    """Outputs with neighbouring pieces of the same stream as one: where it is cut depends on the clock."""
    whole: list[NotebookNode] = []
    for output in outputs:
        if whole and output.output_type == whole[-1].output_type == "stream":
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def build(source: Path) -> Path:
    """Execute one source and replace its notebook. A failing cell raises, and the old notebook stays."""
    notebook = read_source(source)
    used: set[str] = set()
    if any(cell.cell_type == "code" for cell in notebook.cells):
        used = execute(notebook, source.parent)
    tidy(notebook)
    notebook.metadata["rlcourse"] = {"stamp": stamps.stamp(used)}
    nbformat.validate(notebook)
    target = source.with_suffix(".ipynb")
    atomic.write(target, nbformat.writes(notebook) + "\n")
    return target


def retell(source: Path, root: Path = ROOT) -> bool:
    """Where nothing but prose changed, put it into the notebook beside the outputs that are there."""
    try:
        notebook, old = read_source(source), nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    except (FileNotFoundError, nbformat.reader.NotJSONError):
        return False
    ours, theirs = ([cell for cell in cells(page) if cell[0] == "code"] for page in (notebook, old))
    if ours != theirs or stamps.changed(old.metadata.get("rlcourse", {}).get("stamp", {}), root):
        return False
    code, ran = ((cell for cell in page.cells if cell.cell_type == "code") for page in (notebook, old))
    for cell, before in zip(code, ran):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    notebook.metadata = old.metadata
    atomic.write(source.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")
    print(f"{source}: new prose beside the same outputs")
    return True


def failure(notebook_error: Exception) -> str:
    """What the author needs: the failing cell's source and its error, without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(notebook_error)).strip()


def check(chosen: list[Path]) -> list[str]:
    """A line for each notebook that is not its source's, and for each that has no source."""
    wrong = [f"{source.with_suffix('.ipynb')}: {reason}" for source in chosen if (reason := differs(source))]
    folders = {source.parent for source in chosen}
    notebooks = sorted(notebook for folder in folders for notebook in folder.glob("*.ipynb"))
    return wrong + [f"{path}: has no source" for path in notebooks if not path.with_suffix(".md").exists()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rlcourse.bookmaking.build", description=__doc__.split("\n")[0]
    )
    parser.add_argument("sources", nargs="*", type=Path, help="MyST sources; all of book/ if none is named")
    parser.add_argument("--stale-only", action="store_true", help="only what changed since it was built")
    parser.add_argument("--check", action="store_true", help="compare sources and notebooks, execute nothing")
    options = parser.parse_args(arguments)

    chosen = [path.resolve().with_suffix(".md") for path in options.sources] or sources()
    for source in chosen:
        if not source.exists():
            parser.error(f"there is no {source}")
    if options.check:
        wrong = check(chosen)
        print(*wrong, "Run `make book`." if wrong else "Every notebook has its source's cells.", sep="\n")
        return bool(wrong)
    if options.stale_only:
        chosen = [source for source in chosen if stale(source) and not retell(source)]
    if not chosen:
        print("Nothing to execute.")
    failed = 0
    for source in chosen:
        start = time.perf_counter()
        try:
            target = build(source)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed += 1
            print(f"{source}: not built\n{failure(error)}\n")
            continue
        size = target.stat().st_size
        print(f"{target}: {time.perf_counter() - start:.0f} s, {size / 1e6:.2f} MB")
        if size > LARGEST:
            print(f"    warning: more than {LARGEST / 1e6} MB; use fewer or smaller figures")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
