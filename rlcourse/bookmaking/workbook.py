"""The reader's own copy of the book: `workbook/`, laid out from `book/` and never overwritten.

    python -m rlcourse.bookmaking.workbook                                 lay out, refresh what is untouched
    python -m rlcourse.bookmaking.workbook --reset chapters/13_grpo.ipynb  the book's version again

The reader's work is the source, outputs and tags of cells, and cells added, moved or taken away. Outputs
count because a run can be hours on a GPU. Opening and saving changes none of these (JupyterLab rewrites other
metadata and execution counts), so such a notebook is still refreshed.

`workbook/.manifest.json` holds, for each file, the fingerprints of every version that was laid there. It is
written before the files are: after a kill each file is one of ours, known as such, or the reader's.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from rlcourse.bookmaking import atomic
from rlcourse.bookmaking.stamps import ROOT

MANIFEST = ".manifest.json"


def fingerprint(path: Path) -> str:
    """The hash of what a reader can change in a file: of a notebook its cells and outputs, else the bytes."""
    data = path.read_bytes()
    if path.suffix == ".ipynb":
        try:
            data = json.dumps([work(cell) for cell in json.loads(data)["cells"]], sort_keys=True).encode()
        except (ValueError, LookupError, TypeError, AttributeError):
            pass  # not a notebook any more: the reader's, whatever it is
    return hashlib.sha256(data).hexdigest()[:16]


def work(cell: dict) -> object:
    """The part of a cell that is somebody's work."""
    outputs = [{**output, "execution_count": None} for output in cell.get("outputs", [])]
    tags = cell["metadata"].get("tags", [])
    return joined([cell["cell_type"], cell["source"], cell.get("attachments", {}), {"tags": tags}, outputs])


def joined(value: object) -> object:
    """A notebook file may hold a text as one string or as a list of its lines: here always as one."""
    if isinstance(value, dict):
        return {key: joined(item) for key, item in value.items()}
    if isinstance(value, list):
        texts = all(isinstance(item, str) for item in value)
        return "".join(value) if texts else [joined(item) for item in value]
    return value


def pages(book: Path) -> list[Path]:
    """What a reader gets, relative to the book: everything but the sources; the contents page first."""
    files = [path.relative_to(book) for path in book.rglob("*") if path.is_file() and path.suffix != ".md"]
    shown = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    return sorted(shown, key=lambda path: (path != Path("index.ipynb"), path))


def read_manifest(workbook: Path) -> dict[str, list[str]]:
    """What we have laid there. Whatever else the file says is passed over: no page of ours lies outside of the
    workbook."""
    try:
        laid = json.loads((workbook / MANIFEST).read_text())
    except (FileNotFoundError, ValueError):
        laid = {}  # what equals the book is ours, anything else is taken for the reader's
    return {
        name: versions
        for name, versions in (laid.items() if isinstance(laid, dict) else ())
        if ".." not in Path(name).parts
        and inside(workbook / name, workbook)
        and isinstance(versions, list)
        and all(isinstance(each, str) for each in versions)
    }


def inside(page: Path, workbook: Path) -> bool:
    """Is the page in the workbook, and not behind a link that leads out of it?"""
    try:
        return page.parent.resolve().is_relative_to(workbook.resolve())
    except (ValueError, OSError):  # no path at all
        return False


def write_manifest(workbook: Path, laid: dict[str, list[str]]) -> None:
    atomic.write(workbook / MANIFEST, json.dumps(laid, indent=1, sort_keys=True) + "\n")


def lay_out(book: Path, workbook: Path) -> dict[str, list[str]]:
    """Bring the workbook up to date: which pages are "new", "refreshed", "removed", and which are "kept".

    Kept are the reader's own versions of pages that the book has changed since. A page that left the book
    goes only if it is untouched.
    """
    laid = read_manifest(workbook)
    done: dict[str, list[str]] = {"new": [], "refreshed": [], "removed": [], "kept": []}
    here = {page.as_posix(): page for page in pages(book)}
    for name, page in here.items():
        versions = laid.setdefault(name, [])
        ours = fingerprint(book / page)
        theirs = fingerprint(workbook / page) if (workbook / page).exists() else None
        if theirs not in (None, ours, *versions):
            if versions[-1:] != [ours]:
                done["kept"].append(name)
            continue
        if theirs != ours:
            done["new" if theirs is None else "refreshed"].append(name)
        laid[name] = [version for version in versions if version != ours] + [ours]
    write_manifest(workbook, laid)
    for name in done["new"] + done["refreshed"]:
        atomic.write(workbook / name, (book / name).read_bytes())

    for name in laid.keys() - here.keys():
        if (workbook / name).is_file() and fingerprint(workbook / name) in laid[name]:
            (workbook / name).unlink()
            done["removed"].append(name)
    return done


def reset(notebook: str, book: Path, workbook: Path) -> str:
    """The book's version of one notebook again, the reader's kept beside it under a new name."""
    name = notebook.removeprefix("./").removeprefix(f"{workbook.name}/").removeprefix(f"{book.name}/")
    known = [page.as_posix() for page in pages(book) if page.suffix == ".ipynb"]
    if name not in known:
        raise SystemExit("Which one? make reset NOTEBOOK=" + "\n                    NOTEBOOK=".join(known))
    here, kept = workbook / name, ""
    ours = [*read_manifest(workbook).get(name, []), fingerprint(book / name)]
    if here.exists() and fingerprint(here) not in ours:
        mine = atomic.set_aside(here, "mine")
        kept = f"; yours is {mine.relative_to(workbook).as_posix()}"
    lay_out(book, workbook)
    return f"{name} is the book's again{kept}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rlcourse.bookmaking.workbook")
    parser.add_argument(
        "--reset", metavar="NOTEBOOK", help="bring one of the book's back; yours stays beside it"
    )
    options = parser.parse_args(arguments)
    book, workbook = ROOT / "book", ROOT / "workbook"
    try:
        if options.reset is not None:
            print(reset(options.reset, book, workbook))
            return
        done = lay_out(book, workbook)
    except OSError as error:
        raise SystemExit(
            f"The workbook cannot be brought up to date: {error.filename}: {error.strerror}. {workbook} must be a "
            "folder that you may write to, with the book's pages as files in it. Mend that, or rename what is in the "
            "way, and try again: nothing of yours is lost."
        ) from None
    if counts := [f"{len(names)} {what}" for what, names in done.items() if names]:
        print(f"workbook/: {', '.join(counts)}")
    for name in done["kept"]:
        print(f"    {name}: the book has a newer one, yours is kept (make reset NOTEBOOK={name})")


if __name__ == "__main__":
    sys.exit(main())
