"""Chapter 21."""

import torch

from rlcourse.practice.checking import Wrong, compare


def moved(mine) -> str:
    # near 1 numbers are 1/128 apart above, near 0.5 half of that: 1/512 is lost on the first three, 0.5 by a tie
    weights = torch.tensor([1.001, 1.003, 0.5, 0.25, 2**-8, 0.001, 0.0])
    compare(mine, (weights, 2**-9), 4 / 7, {
        "You lose nothing. Round the weights to bfloat16, and keep the sum in it: it has 8 bits.": 1.0,
        "That is the share that stands still. How many move?": 3 / 7,
        "You compared with the weights before they were rounded: rounding is no step.":
            lambda w, s: (w.bfloat16() + s != w).float().mean(),
        "You added before you rounded: that is what a float32 master does. Here the weights are bfloat16 already.":
            lambda w, s: ((w + s).bfloat16() != w.bfloat16()).float().mean(),
        "That is their number. The share is the mean.": 4.0,
        "The step is a number, the same for every weight, and no share of it.": 0.0,
        "That is an answer for each weight. The share is their mean.":
            lambda w, s: (w.bfloat16() + s != w.bfloat16()).float(),
        "That is an answer for each weight. The share is their mean, as floats.":
            lambda w, s: w.bfloat16() + s != w.bfloat16(),
        "You have the mean distance. Count the weights that moved.":
            lambda w, s: ((w.bfloat16() + s).float() - w.bfloat16().float()).abs().mean(),
    })  # fmt: skip
    compare(mine, (torch.tensor([-1.0, -0.001]), 2**-9), 0.5, {
        "Of weights -1 and -0.001 the second moves. Negative weights count by their size.": 1.0,
        "Of weights -1 and -0.001 the second moves; you have none.": 0.0,
    })  # fmt: skip
    return "what is added and rounded away is lost, however often it is added."


def pieces(mine) -> str:
    losses = [torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.inf, 7.0]]), torch.tensor([[20.0, torch.inf, 8.0]])]
    masks = [torch.tensor([[1, 1, 1], [1, 0, 0]]).bool(), torch.tensor([[1, 0, 0]]).bool()]
    # 10 and 20, of five tokens
    compare(mine, (losses, masks), torch.tensor([2.0, 4.0]), {
        "Each piece divided by its own tokens. Added up, these are no mean: count the tokens of the whole step.":
            torch.tensor([2.5, 20.0]),
        "A mean of means: a token of a short piece counts more. Count the tokens of the whole step.":
            torch.tensor([1.25, 10.0]),
        "These are sums. Divide each by the tokens of the whole step.": torch.tensor([10.0, 20.0]),
        "You divided by the number of answers. The mean is over tokens.": torch.tensor([10 / 3, 20 / 3]),
        "Every answer counts the same here: that is GRPO's mean, and wanted is the mean over tokens.":
            torch.tensor([2.0, 20 / 3]),
        "You multiplied by the number of pieces: right for an engine that averages. These are added.":
            torch.tensor([4.0, 8.0]),
        "You divided by the number of pieces as well. They are added up, not averaged.": torch.tensor([1.0, 2.0]),
        "Padding is in your count of tokens: use the masks.": torch.tensor([10 / 9, 20 / 9]),
        "That is the mean of the whole step. Wanted is each piece's share in it.": 6.0,
        "That is a mean of means, as one number. Count the tokens of the whole step, and give each piece's share.":
            11.25,
        "You have infinity times 0 from behind the mask, which is no number. Choose with torch.where.":
            lambda x, m: torch.stack([(a * b).sum() / 5 for a, b in zip(x, m)]),
        "Infinity got in from behind the mask. Take the garbage out with torch.where before you add.":
            lambda x, m: torch.stack([a.sum() / 5 for a in x]),
    })  # fmt: skip
    empty = [torch.tensor([[3.0]]), torch.tensor([[7.0]])], [torch.tensor([[True]]), torch.tensor([[False]])]
    compare(mine, empty, torch.tensor([3.0, 0.0]))
    return "decided once for the whole step, and then the pieces just add up."


def three_policies(mine) -> str:
    ratio = torch.tensor([[1.5, 0.9], [2.0, 9.0]])  # now over then
    other = torch.tensor([[1.25, 5.0], [0.25, 9.0]])  # then over engine
    mask, A = torch.tensor([[True, True], [True, False]]), torch.tensor([1.0, -2.0])
    old = torch.full((2, 2), -0.5)
    logp, engine = old + ratio.log(), old - other.log()
    engine[1, 1] = torch.nan  # garbage
    # 1.2 and 0.9, weighed 1.25 and 2; a bad token that became likelier counts in full, weighed 0.25
    right = torch.tensor([[-1.5, -1.8], [1.0, 0.0]])

    weight = other.clamp(max=2)

    def of(r, w=weight, clip=0.2, pick=torch.maximum):
        loss = pick(-r * A[:, None], -r.clamp(1 - clip, 1 + clip) * A[:, None])
        return torch.where(mask, w * loss, 0.0)

    compare(mine, (logp, old, engine, A, mask, 0.2, 2.0), right, {
        "The engine is missing: without the weight this is GRPO on tokens that it did not sample.": of(ratio, w=1.0),
        "One ratio, now over engine, covers both gaps, and the clip cuts for the wrong reason. Keep two.":
            of(ratio * other, w=1.0),
        "Your weight is now over engine. The step since then is in the ratio already: take old_logp.":
            of(ratio, w=(ratio * other).clamp(max=2)),
        "Your weight is not cut off: of the second token it is 5, and the cap is 2.": of(ratio, w=other),
        "Your weight is upside down: the trainer's probability over the engine's.":
            of(ratio, w=(1 / other).clamp(max=2)),
        "Your ratio is upside down: now over then.": of(1 / ratio),
        "You cut the weight off below as well. Only large weights do harm.": of(ratio, w=other.clamp(0.5, 2)),
        "You put the clip's interval around the weight. It has a cap of its own.": of(ratio, w=other.clamp(0.8, 1.2)),
        "Nothing is clipped. The first token's ratio is 1.5 and counts 1.2.": of(ratio, clip=9.0),
        "Of a token's two losses the larger counts; you took the smaller.": of(ratio, pick=torch.minimum),
        "You always clip. A bad token that became likelier counts in full.":
            of(ratio.clamp(0.8, 1.2)),
        "The sign: this is the objective. A loss is minimised.": -right,
        "A loss for each token: do not add them up.": right.sum(),
        "A loss for each token: do not take the mean.": right.sum() / 3,
        "The weight is a log-ratio here. Take exp.": of(ratio, w=other.log().clamp(max=2)),
    })  # fmt: skip
    learning = logp.clone().requires_grad_()
    got = mine(learning, old, engine, A, mask, 0.2, 2.0)
    if not getattr(got, "requires_grad", False):
        raise Wrong("The values are right and nothing can learn from them: the ratio must carry a gradient.")
    (slope,) = torch.autograd.grad(got[mask].sum(), learning)
    if abs(slope[0, 1].item() + 1.8) > 1e-3:  # -r A times the weight
        raise Wrong("The gradient runs through the weight too. Detach it.", ("slope", slope[0, 1]))
    return "the ratio for what the trainer has learned since, the weight for what the engine is not."
