"""A language model as a policy: load it, sample from it, score what it said."""

from rlcourse.lm.loading import checkpoints, load_policy, pockets
from rlcourse.lm.policy import Policy
from rlcourse.lm.rollout import Rollout
from rlcourse.lm.scorer import Scorer

__all__ = ["Policy", "Rollout", "Scorer", "checkpoints", "load_policy", "pockets"]
