"""What an offline method is to `fit`: a loss over examples that somebody else has made.

    feedback -> answers in a batch -> method.loss -> optimizer

The batch is a `Rollout`. An example's answers are its group, in the order of the feedback: the best first.
What a method compares are the answers' log-probabilities, or a scorer's scores of them.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from rlcourse.lm import Rollout
from rlcourse.methods.protocol import check_settings
from rlcourse.tensors import only


class OfflineMethod:
    """What an offline method may say of itself; every default is the plainest choice.

    A method object is a frozen dataclass of hyperparameters. `needs` says what `fit` fills in:

        "ref_logp"      log-probs under the reference: computed once, before the first step
        "reference_kl"  `batch.metrics["reference_kl"]`: the policy's mean log-ratio on answers to *other* prompts
    """

    needs: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[str] = "Policy"  # or "Scorer"
    lr: ClassVar[float] = 1e-6  # where `fit` is given none: for real models as in the papers,
    pocket_lr: ClassVar[float] = 3e-4  # and for the pockets as it was found to work
    data: ClassVar[tuple[str, ...]] = ()  # the kinds of feedback that it learns from

    def __post_init__(self):
        check_settings(self)
        if getattr(self, "beta", 1) == 0:
            raise ValueError(
                f"{type(self).__name__} with beta={self.beta}: it scales what is learned, so it is positive"
            )

    def size(self, batch: Rollout) -> int:
        """What the loss is a mean over: examples. So that parts of a batch can be put together again."""
        return len(batch.prompts)

    def loss(self, batch: Rollout) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The mean loss over the batch, to minimise, and what else is worth seeing, one number an example.

        `batch.logp` of a policy, or `batch.rewards` of a scorer, carries the gradient.
        """
        raise NotImplementedError


def whole(logp: Float[Tensor, "B T"], batch: Rollout) -> Float[Tensor, "P G"]:
    """log pi of whole answers: the sum over their tokens, by example."""
    return batch.grouped(only(logp, batch.mask).sum(1))
