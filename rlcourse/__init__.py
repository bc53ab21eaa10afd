"""rlcourse: reinforcement learning for language models, from scratch, in a library that a person can read.

from rlcourse import load_policy, train
from rlcourse.tasks import Sums
from rlcourse.methods import GRPO

run = train(load_policy(), Sums(), GRPO(), steps=100)
"""

from importlib import import_module

__version__ = "0.1.0"

# Imported when first asked for: `import rlcourse` alone loads no torch.
_WHERE = {
    "load_policy": "rlcourse.lm",
    "Policy": "rlcourse.lm",
    "Rollout": "rlcourse.lm",
    "train": "rlcourse.training",
    "Run": "rlcourse.training",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'rlcourse' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_WHERE])
