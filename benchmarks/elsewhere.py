"""Is it true on another machine? The numeric tests and all notebooks, under other roundings and other seeds.

    python benchmarks/elsewhere.py                       what is not there yet: hours, and it may be stopped at any time
    python benchmarks/elsewhere.py book/chapters/13_grpo.md --settings avx2        only this
    python benchmarks/elsewhere.py --report              what the pieces that are there say
    python benchmarks/elsewhere.py --record              the same, into benchmarks/evidence/elsewhere.json

Processors add numbers up in different orders, and training makes of a last digit another number. Variables of torch
and MKL let one processor play several. Other seeds are no rounding: they show what a claim owes to luck. A piece is a
page, or a file of tests, under one setting; what it gave stands in runs/elsewhere/ and counts until the code that it
ran on changes. A page goes on after a cell that fails, so that every claim is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from statistics import stdev
from xml.etree import ElementTree

from rlcourse.bookmaking import atomic, build, evidence, stamps
from rlcourse.bookmaking.claims import compared, margin

ROOT = stamps.ROOT
HERE = ROOT / "runs" / "elsewhere"

ROUNDINGS = {
    "one thread": {},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    "MKL avx2": {"MKL_CBWR": "AVX2"},
}
# Every run's chance comes from one function: here it is told to give other seeds for the same names.
SEEDS = {
    f"other seeds {n}": ("rlcourse/training/seeds.py", "map(str, parts)", f"map(str, ({n}, *parts))")
    for n in (1, 2)
}
SETTINGS = [*ROUNDINGS, *SEEDS]

NUMERIC = (
    *("tensors", "kl", "methods", "grpo_family", "ppo_family", "preferences", "precision", "properties"),
    *(
        "enumeration",
        "policy",
        "sums",
        "helpdesk",
        "annotators",
        "agreement",
        "evaluate",
        "intervals",
        "pockets",
    ),
    *("train", "fit", "needs", "runs", "processes", "real_models", "evidence", "explore", "more_explorers"),
    *("rounding_explorer", "trl", "verl", "memory"),
)


def pieces() -> list[str]:
    """Pages first: they take longest."""
    pages = [source for source in build.sources() if "```{code-cell}" in source.read_text()]
    tests = [ROOT / "tests" / f"test_{name}.py" for name in NUMERIC]
    return [path.relative_to(ROOT).as_posix() for path in [*pages, *tests]]


def planted(tree: Path, file: str, old: str, new: str) -> Path:
    """A copy of what a page needs, with one text in one file replaced."""
    shutil.rmtree(tree, ignore_errors=True)
    for part in ("rlcourse", "book", "benchmarks", "tests"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("*.ipynb", "__pycache__"))
    text = (tree / file).read_text()
    if text.count(old) != 1:
        raise ValueError(
            f"{old!r} stands {text.count(old)} times in {file}, and once is what can be replaced"
        )
    (tree / file).write_text(text.replace(old, new))
    return tree


# ---- one piece


def ran(piece: str, tree: Path = ROOT, **environment: str) -> dict:
    """What a page or a file of tests gave in a process of its own."""
    notes = HERE / f".claims-{os.getpid()}-{time.monotonic_ns()}.jsonl"
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.touch()
    more = {"PYTHONPATH": str(tree), "RLCOURSE_CLAIMS": str(notes), "OMP_NUM_THREADS": "1", **environment}
    kept = {
        k: v for k, v in os.environ.items() if k not in ("RLCOURSE_MODEL", "MKL_CBWR", "ATEN_CPU_CAPABILITY")
    }
    began = time.monotonic()
    try:
        if piece.endswith(".md"):
            code = "import sys, elsewhere; elsewhere.page(sys.argv[1])"
            path = os.pathsep.join([str(tree), str(tree / "benchmarks")])
            done = subprocess.run(
                [sys.executable, "-c", code, piece], cwd=tree, env=kept | more | {"PYTHONPATH": path},
                capture_output=True, text=True,
            )  # fmt: skip
            found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
            found = found or {"failed": [done.stderr.strip().splitlines()[-1][:300]], "keys": []}
            found["claims"] = [json.loads(line) for line in notes.read_text().splitlines()]
        else:
            found = tested(piece, tree, kept | more, notes)
    finally:
        notes.unlink()
    return found | {"seconds": round(time.monotonic() - began)}


def page(piece: str) -> None:
    """In the process of its own: execute, and print what failed and what the page has used."""
    source = ROOT / piece
    notebook = build.read_source(source)
    keys = build.execute(notebook, source.parent, go_on=True)
    failed = [
        f"{cell.id}: {output.ename}: {build.failure(output.evalue).splitlines()[0][:300]}"
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    ]
    print("\n" + json.dumps({"failed": failed, "keys": sorted(keys)}))


def tested(piece: str, tree: Path, environment: dict, notes: Path) -> dict:
    report = notes.with_suffix(".xml")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", piece]
    subprocess.run(command, cwd=tree, env=environment, capture_output=True)
    cases = list(ElementTree.parse(report).iter("testcase"))
    report.unlink()
    failed = [
        case.get("name")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    rooms = (
        "tensors.py",
        "kl.py",
        "lm",
        "tasks",
        "methods",
        "training",
        "evaluate",
        "explore",
        "export",
        "practice",
    )
    files = [
        path
        for room in rooms
        for path in [ROOT / "rlcourse" / room, *(ROOT / "rlcourse" / room).rglob("*.py")]
    ]
    keys = [path.relative_to(ROOT).as_posix() for path in files if path.is_file()]
    return {"failed": failed, "passed": len(cases) - len(failed) - skipped, "skipped": skipped, "keys": keys}


def place(setting: str, piece: str) -> Path:
    return HERE / setting.replace(" ", "-") / f"{re.sub(r'[^A-Za-z0-9]+', '-', piece)}.json"


def there(setting: str, piece: str) -> dict | None:
    """What was measured, if it was measured on today's code."""
    file = place(setting, piece)
    found = json.loads(file.read_text()) if file.exists() else {"stamp": {}}
    return found if found.get("code") == code_of(piece) and not stamps.changed(found["stamp"]) else None


@cache
def code_of(piece: str) -> str:
    """The hash of what of a piece is executed: new prose around the same cells changes nothing."""
    if piece.endswith(".py"):
        return stamps.fingerprint(piece)
    cells = build.read_source(ROOT / piece).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def do(setting: str, piece: str) -> dict:
    tree = HERE / f"tree-{setting[-1]}" if setting in SEEDS else ROOT
    found = ran(piece, tree, **ROUNDINGS.get(setting, {}))
    found |= {"code": code_of(piece), "stamp": stamps.stamp(found.pop("keys"))}
    atomic.write(place(setting, piece), json.dumps(found))
    print(
        f"{setting}: {piece}: {found['seconds']} s, {len(found['failed'])} failed",
        *found["failed"],
        sep="\n    ",
        flush=True,
    )
    return found


# ---- what all of them say


def claims_of(results: dict[tuple[str, str], dict]) -> list[dict]:
    """Each claim of each page with a bound: what was measured under each setting, and how much room it has.

    `room` is the distance to the bound on this machine as it is, in standard deviations over the roundings.
    """
    seen: dict[tuple, dict[str, float]] = defaultdict(dict)
    for (setting, piece), result in results.items():
        counts: Counter = Counter()
        for note in result.get("claims", ()):
            if "measured" not in note:
                continue
            counts[note["says"]] += 1  # a claim in a loop is several
            seen[piece, note["says"], counts[note["says"]], note["above"], note["below"]][setting] = note[
                "measured"
            ]
    rows = []
    for (piece, says, _, above, below), measured in seen.items():
        rounded = [measured[name] for name in ROUNDINGS if name in measured]
        if len(rounded) < 2:
            continue
        spread = stdev(rounded)
        distance = margin(measured.get("one thread", rounded[0]), above, below)
        rows.append(
            {
                "page": piece,
                "claim": says,
                "measured": compared(measured.get("one thread", rounded[0]), above, below),
                "spread": spread,
                "room": distance / spread if spread else float("inf"),
                "worst rounding": min(margin(value, above, below) for value in rounded),
                "other seeds": [margin(measured[name], above, below) for name in SEEDS if name in measured],
            }
        )
    return sorted(rows, key=lambda row: row["room"])


def summary() -> dict:
    results = {(s, p): found for s in SETTINGS for p in pieces() if (found := there(s, p))}
    rows, settings = claims_of(results), {}
    for setting in SETTINGS:
        mine = {piece: found for (s, piece), found in results.items() if s == setting}
        pages = [found for piece, found in mine.items() if piece.endswith(".md")]
        tests = [found for piece, found in mine.items() if piece.endswith(".py")]
        settings[setting] = {
            "pages": len(pages),
            "claims held": sum(note["holds"] for found in pages for note in found["claims"]),
            "claims failed": sum(not note["holds"] for found in pages for note in found["claims"]),
            "tests passed": sum(found["passed"] for found in tests),
            "tests failed": sum(len(found["failed"]) for found in tests),
            "failed": {piece: found["failed"] for piece, found in mine.items() if found["failed"]},
            "seconds": sum(found["seconds"] for found in mine.values()),
        }
    thin = [row for row in rows if row["room"] < 3]
    lucky = [row for row in rows if any(each <= 0 for each in row["other seeds"])]
    return {
        "settings": settings,
        "claims with a bound": len(rows),
        "thinnest": rows[:10],
        "below three standard deviations": [f"{row['page']}: {row['claim']}" for row in thin],
        "not on another seed": [f"{row['page']}: {row['claim']}" for row in lucky],
    }


def report(found: dict) -> None:
    for setting, counts in found["settings"].items():
        print(f"{setting:16}", *(f"{name} {n:,}" for name, n in counts.items() if name != "failed"), sep="  ")
        for piece, failed in counts["failed"].items():
            print(f"    {piece}", *failed, sep="\n        ")
    print(
        f"\n{found['claims with a bound']} claims with a bound; the ten with least room, in standard deviations:"
    )
    for row in found["thinnest"]:
        print(
            f"{row['room']:6.1f}  {row['page']}: {row['claim']}: {row['measured']}, spread {row['spread']:.2g}"
        )
    for name in ("below three standard deviations", "not on another seed"):
        print(f"\n{name}: {len(found[name])}", *found[name], sep="\n    ")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pieces", nargs="*", help="pages (.md) or files of tests; all if none is named")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--record", action="store_true", help="run nothing, write the evidence file")
    parser.add_argument("--at-once", type=int, default=2, help="processes of one thread at a time (2)")
    options = parser.parse_args()
    chosen = options.pieces or pieces()
    if not (options.report or options.record):
        todo = [
            (s, p)
            for s in options.settings
            for p in chosen
            if not there(s, p) and (s not in SEEDS or p.endswith(".md"))
        ]
        print(f"{len(todo)} pieces to run", flush=True)
        for setting in {setting for setting, _ in todo} & SEEDS.keys():
            planted(HERE / f"tree-{setting[-1]}", *SEEDS[setting])
        alone = [job for job in todo if job[0] == "two threads"]
        with ThreadPoolExecutor(options.at_once) as pool:
            list(pool.map(lambda job: do(*job), [job for job in todo if job not in alone]))
        for job in alone:
            do(*job)
    found = summary()
    report(found)
    if options.record:
        keys = {key for s in SETTINGS for p in pieces() for key in (there(s, p) or {"stamp": {}})["stamp"]}
        evidence.write("elsewhere", found, "python benchmarks/elsewhere.py --record", keys)
    return bool(any(counts["failed"] for name, counts in found["settings"].items() if name in ROUNDINGS))


if __name__ == "__main__":
    sys.exit(main())
