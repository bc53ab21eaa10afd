"""Planted mistakes of chapter 06: what a reader may hand in, and words that the verdict must hold."""


def loss(end: str) -> str:
    """Exercise 1: what is returned, `ls` being logsigmoid."""
    return f"""def my_loss(c, r):
    ls = torch.nn.functional.logsigmoid
    return {end}"""


def auc(
    tie="(better > worse).float() + 0.5 * (better == worse)",
    only="better.numel() and worse.numel()",
    worse="row[~is_good]",
    end="sum(shares) / len(shares)",
) -> str:
    """Exercise 2, with a hole for a mistake."""
    return f"""def my_auc(scores, good):
    shares = []
    for row, is_good in zip(scores, good):
        better, worse = row[is_good][:, None], {worse}
        if {only}:
            shares.append(({tie}).mean())
    return {end}"""


def best(
    probabilities="up_to**n - (up_to - p) ** n",
    kl="(best * (best / p).log()).sum()",
    smallest="8",
    up_to="p.cumsum(0)",
) -> str:
    """Exercise 3, with a hole for a mistake."""
    return f"""def best_probabilities(p, n):
    up_to = {up_to}
    return {probabilities}

def kl_to(best, p):
    return {kl}

smallest_n = {smallest}"""


MISTAKES = {
    "reward_model.loss": [
        (loss("-ls(c - r)"), "one number a pair"),
        (loss("-ls(c - r).sum()"), "the sum over the pairs"),
        (loss("ls(c - r).mean()"), "The sign"),
        (loss("-ls(r - c).mean()"), "the wrong way round"),
        (loss("(1 - torch.sigmoid(c - r)).mean()"), "1 - sigmoid"),
        (loss("torch.sigmoid(c - r).mean()"), "You averaged the sigmoid"),
        (loss("-torch.sigmoid(c - r).mean().log()"), "the logarithm of the mean probability"),
        (loss("-torch.sigmoid(c - r).log2().mean()"), "to base 2"),
        (loss("-(ls(c) + ls(-r)).mean()"), "judged by itself"),
        (loss("-(ls(c) - ls(r)).mean()"), "Take the difference first"),
        (loss("-ls(torch.sigmoid(c - r)).mean()"), "taken twice"),
        (loss("-ls(c.mean() - r.mean())"), "averaged before the logsigmoid"),
        (loss("-torch.log(torch.sigmoid(c - r)).mean()"), "Use logsigmoid"),
        (loss("torch.log(1 + torch.exp(r - c)).mean()"), "Use logsigmoid"),
        (loss("-torch.log(torch.sigmoid(c - r) + 1e-8).mean()"), "no longer counts for what it is"),
        (loss("-ls(c - r).mean().item()"), "Leave out item()"),
        (loss("-ls(c - r).mean().detach()"), "carries no gradient"),
        (loss("-ls(c - r.detach()).mean()"), "only the chosen score gets a gradient"),
        (loss("-ls(c.detach() - r).mean()"), "only the rejected score gets a gradient"),
        (loss("-ls(c.sub_(r)).mean()"), "in place"),
        (loss("-ls(c - d).mean()"), "stopped with NameError"),
        (loss("(1 - (c - r)).clamp(min=0).mean()"), "Not yet. This input"),  # a hinge: unknown to the checker
    ],
    "reward_model.auc": [
        (auc(tie="(better < worse).float() + 0.5 * (better == worse)"), "The wrong way round"),
        (auc(worse="row"), "itself included"),
        (auc(tie="(better >= worse).float()"), "counted the tie as a win"),
        (auc(tie="(better > worse).float()"), "counted the tie as a loss"),
        (
            "def my_auc(s, g):\n    pairs = [(a, b) for x, y in zip(s, g) for a in x[y] for b in x[~y]]\n"
            "    return sum(float(a > b) + 0.5 * float(a == b) for a, b in pairs) / len(pairs)",
            "You averaged over all pairs",
        ),
        (auc(end="sum(shares) / len(scores)"), "divided by all three prompts"),
        (auc(only="True", end="torch.stack(shares).nan_to_num(1.0).mean()"), "counts as 1"),
        (auc(only="True", end="torch.stack(shares).nan_to_num(0.5).mean()"), "counts as one half"),
        (auc(only="True"), "the mean of no pairs"),
        (
            "def my_auc(s, g):\n    a, b = s[g][:, None], s[~g]\n    return ((a > b).float() + 0.5 * (a == b)).mean()",
            "You pooled all prompts",
        ),
        (auc(tie="(better.max() > worse.max()).float()"), "the best good answer"),
        (auc(tie="(better.mean() > worse.mean()).float()"), "the mean of the good ones"),
        (auc(end="torch.stack(shares)"), "The shape is (1,)"),
        ("def my_auc(scores, good): return 0.5", "Not yet. This input"),
        (
            auc(tie="torch.sigmoid(better - worse)"),
            "Not yet. This input",
        ),  # a soft AUC: unknown to the checker
    ],
    "reward_model.best_of_n": [
        (best("up_to**n"), "Take their differences"),
        (best("p**n"), "do not add up to 1"),
        (best("p**n / (p**n).sum()"), "sharpens the policy"),
        (best(up_to="p.flip(0).cumsum(0).flip(0)"), "the worst of n"),
        (best("1 - (1 - p) ** n"), "i is among the n"),
        (best("n * p * (1 - p) ** (n - 1)"), "exactly one of the n"),
        (best("up_to**2 - (up_to - p) ** 2"), "the 2 must be n"),
        (best("p.max()"), "The shape is a number"),
        (best("p * n"), "Not yet. This input"),
        (best(kl="(p * (p / best).log()).sum()"), "the other way round"),
        (best(kl="(best * (p / best).log()).sum()"), "The sign"),
        (best(kl="best * (best / p).log()"), "These are the terms"),
        (best(kl="(best * (best / p).log()).mean()"), "the mean of the terms"),
        (best(kl="torch.nn.functional.kl_div(p.log(), best)"), "the mean of the terms"),
        (best(kl="torch.nn.functional.kl_div(best.log(), p, reduction='sum')"), "the other way round"),
        (best(kl="(best / p).log().sum()"), "without their weights"),
        (best(kl="(best * (best / p).log2()).sum()"), "to base 2"),
        (best(kl="torch.tensor(2.0).log() - 1 / 2"), "That is the bound"),
        (best(kl="-(best * best.log()).sum()"), "The entropy alone"),
        (best(kl="(best - p).abs().sum() / 2"), "Not yet. This input"),  # total variation: unknown
        (best(smallest="7"), "where the bound passes 1"),
        (best(smallest="9"), "smallest_n is not"),
    ],
}
