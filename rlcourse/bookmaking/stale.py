"""Which notebooks and evidence files were made by other code or checkpoints than today's?

python -m rlcourse.bookmaking.stale     lists them, with what changed; exit code 1 if there are any
"""

import json
import sys
from pathlib import Path

from rlcourse.bookmaking import build, stamps
from rlcourse.bookmaking.stamps import ROOT


def stale(root: Path = ROOT) -> dict[str, list[str]]:
    """For each stale notebook and evidence file the keys that changed since it was made."""
    found = {}
    for source in build.sources(root / "book"):
        found[source.with_suffix(".ipynb")] = build.stale(source, root)
    for path in sorted((root / "benchmarks" / "evidence").glob("*.json")):
        found[path] = stamps.changed(json.loads(path.read_text())["stamp"], root)
    return {path.relative_to(root).as_posix(): keys for path, keys in found.items() if keys}


def main() -> int:
    found = stale()
    for name, keys in found.items():
        print(f"{name}\n    changed since: {', '.join(keys)}")
    if not found:
        print("Nothing is stale: today's code and checkpoints made every notebook and evidence file.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
