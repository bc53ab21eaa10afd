"""The reward model (Christiano et al., 2017): learn from choices which answer people prefer.

idea       give every answer a score; the chance that one is preferred to another depends on the
           difference of their scores alone (Bradley and Terry, 1952)
objective  mean over pairs of  -log sigmoid(chosen - rejected)
fixes      nobody can write down what a good answer is, and anybody can say which of two is better
breaks     the scores are free up to a constant for each prompt; what is measured is what
           annotators choose, their taste for long answers included
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlcourse.methods.protocol import Paper

PAPER = Paper("Deep Reinforcement Learning from Human Preferences", "arXiv 1706.03741", "2017-06-12")


def bradley_terry_loss(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margin: float | Float[Tensor, " B"] = 0.0,
    centring: float = 0.0,
) -> Float[Tensor, ""]:
    """Minus the mean log-probability of the choices. `margin`: by how much the chosen one should lead.

    `centring` pulls the scores of a pair towards 0, which the choices leave free.
    """
    # logsigmoid, because log(1 + exp(-x)) overflows where the choice is least expected
    return (-logsigmoid(chosen - rejected - margin) + centring * (chosen + rejected) ** 2).mean()


def plackett_luce_loss(scores: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Minus the mean log-probability of rankings, best first: the first of all, then the first of the rest.

    For two answers that is Bradley-Terry.
    """
    rest = scores.flip(1).logcumsumexp(1).flip(1)  # log of the summed exp of this score and all behind it
    return (rest - scores).sum(1).mean()
