"""Claims: what a chapter says a cell shows, checked where it was measured."""

import os


def claim(says: str, holds: bool) -> None:
    """Fails if the claim does not hold for the pocket models. On another model it is reported, not enforced."""
    if holds:
        print(f"✓ {says}")
    elif os.environ.get("RLCOURSE_MODEL", "pocket").startswith("pocket"):
        raise AssertionError(says)
    else:
        print(f"✗ {says}: not with {os.environ['RLCOURSE_MODEL']}, in this run")
