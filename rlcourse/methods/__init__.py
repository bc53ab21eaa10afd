"""The family tree of methods: one file a paper, and the imports are the genealogy."""

from rlcourse.methods.grpo import GRPO
from rlcourse.methods.reinforce import REINFORCE

__all__ = ["GRPO", "REINFORCE"]
