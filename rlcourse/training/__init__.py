"""The loops: online (act, judge, learn), and the pretraining of the pocket models."""

from rlcourse.training.online import train
from rlcourse.training.run import Run, Table

__all__ = ["Run", "Table", "train"]
