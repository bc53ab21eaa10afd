"""Where all chance of a run comes from: its seed, and the name of each use."""

import hashlib


def stream(*parts) -> int:
    """A seed of its own for every use, from names and numbers."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "big")
