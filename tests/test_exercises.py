"""Every chapter's exercises: the solution passes, the blank fails politely, each planted mistake is named."""

import re
from pathlib import Path

import pytest
import torch

CHAPTERS = Path(__file__).parents[1] / "book" / "chapters"


class Exercises:
    def __init__(self, chapter: str):
        source = (CHAPTERS / f"{chapter}.md").read_text()
        cells = re.findall(r"```\{code-cell\} ipython3\n(.*?)```", source, re.S)
        self.solutions = re.findall(r"<summary>Solution</summary>\n\n```python\n(.*?)```", source, re.S)
        self.checks = [cell for cell in cells if cell.startswith("def check_")]
        self.blanks = [cells[cells.index(check) - 1] for check in self.checks]


EXERCISES = {
    path.stem: Exercises(path.stem)
    for path in sorted(CHAPTERS.glob("*.md"))
    if "def check_" in path.read_text()
}


def dapo(end="(x * mask).sum() / mask.sum()", low=0.2, high=0.28, pick="maximum") -> str:
    """Exercise 2 of chapter 15, with a hole for a mistake."""
    return f"""def my_dapo_loss(a, b, A, mask):
    r, A = (a - b).exp(), A[:, None]
    x = torch.{pick}(-r * A, -r.clamp(1 - {low}, 1 + {high}) * A)
    return {end}"""


def gspo(
    end="x.mean()",
    tokens="m.sum(1)",
    log_s="torch.where(m, a - b, 0.0).sum(1) / {tokens}",
    clipped="s.clamp(1 - low, 1 + high)",
    pick="maximum",
) -> str:
    """Exercise 2 of chapter 16, likewise."""
    return f"""def my_gspo_loss(a, b, A, m, low, high):
    s = ({log_s.format(tokens=tokens)}).exp()
    x = torch.{pick}(-s * A, -{clipped} * A)
    return {end}"""


def token(end: str) -> str:
    """Exercise 3 of chapter 16."""
    return f"""def my_token_ratio(a, b, m):
    s = (((a - b) * m).sum(1, keepdim=True) / m.sum(1, keepdim=True)).exp()
    return {end}"""


MEAN_RATIO = "def my_log_s(a, b, m): return (torch.where(m, (a - b).exp(), 0.0).sum(1) / m.sum(1))"
GRPO = """def my_gspo_loss(a, b, A, m, low, high):
    r = (a - b).exp()
    x = torch.maximum(-r * A[:, None], -r.clamp(1 - low, 1 + high) * A[:, None])
    return {}"""


def instead(number: int, piece: str, by: str) -> str:
    """A solution of chapter 07 with a piece of it taken for another."""
    solution = EXERCISES["07_critic"].solutions[number]
    assert solution.count(piece) == 1
    return solution.replace(piece, by)


WHITE = "white = (advantages - advantages[mask].mean()) / advantages[mask].std()\n    "

FROM_THE_FRONT = """def my_gae(r, v, m, g, l):
    v, A, last = v.detach(), torch.zeros_like(r), torch.zeros(len(r))
    for t in range(r.shape[1]):
        after = v[:, t + 1] if t + 1 < r.shape[1] else 0.0
        last = A[:, t] = r[:, t] + g * after - v[:, t] + g * l * last
    return A, A + v"""
BY_ANSWER = """def my_explained_variance(v, r, m):
    each = [1 - (r[i, m[i]] - v[i, m[i]]).var() / r[i, m[i]].var() for i in range(len(r))]
    return sum(each) / len(each)"""
ZEROED_FIRST = """def my_whiten(a, m):
    c = a * m - a[m].mean()
    return c * torch.rsqrt(c.square().sum() / (m.sum() - 1) + 1e-8) * m"""

MISTAKES = {  # chapter: (number of the exercise from 0, what a reader writes, what the answer says)
    "07_critic": [
        (0, instead(0, "gamma * lam * next_advantage", "gamma * next_advantage"), "Lambda is missing"),
        (0, instead(0, " + gamma * lam * next_advantage", ""), "TD errors alone"),
        (
            0,
            instead(0, "gamma * lam * next_advantage", "lam * next_advantage"),
            "Gamma is missing in the recursion",
        ),
        (0, instead(0, "gamma * next_value", "next_value"), "Gamma is missing in the TD error"),
        (0, instead(0, "gamma * next_value", "lam * next_value"), "Gamma and lambda are swapped"),
        (
            0,
            instead(0, "+ gamma * next_value", "+ gamma * values[:, min(t + 1, values.shape[1] - 1)]"),
            "V is 0 there",
        ),
        (0, instead(0, "- values[:, t]\n", "- (values[:, t - 1] if t else 0)\n"), "expected [1/16"),
        (
            0,
            instead(
                0,
                "gamma * next_value - values[:, t]\n",
                "gamma * values[:, t] - (values[:, t - 1] if t else 0)\n",
            ),
            "shifted by one",
        ),
        (
            0,
            instead(
                0,
                "    advantages = torch.zeros_like(values)\n",
                "    values = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], 1)\n"
                "    advantages = torch.zeros_like(values)\n",
            ),
            "shifted by one",
        ),
        (
            0,
            instead(
                0,
                "delta = rewards[:, t] + gamma * next_value - values[:, t]",
                "delta = values[:, t] - rewards[:, t] - gamma * next_value",
            ),
            "The sign",
        ),
        (0, instead(0, "delta = rewards[:, t] + ", "delta = "), "reward is missing"),
        (0, instead(0, "values.detach()", "values"), "carries gradient"),
        (
            0,
            instead(
                0,
                "values.detach().masked_fill(~mask, 0.0)\n    advantages",
                "values.detach()\n    mask = torch.ones_like(mask)\n    advantages",
            ),
            "runs over the padding",
        ),
        (0, instead(0, "return advantages, ", "return advantages + 3.0 * ~mask, "), "it must be 0"),
        (
            0,
            instead(0, "return advantages, advantages + values", "return advantages, advantages"),
            "you returned the advantages",
        ),
        (0, instead(0, "return advantages, advantages + values", "return advantages"), "Return two tensors"),
        (
            0,
            instead(0, "return advantages, advantages + values", "return advantages[0], values[0]"),
            "needs an advantage and a return",
        ),
        (
            0,
            instead(
                0,
                "return advantages, advantages + values",
                WHITE + "return advantages, white + values",
            ),
            "made after whitening",
        ),
        (
            0,
            instead(
                0,
                "return advantages, advantages + values",
                WHITE + "return white, advantages + values",
            ),
            "You have whitened",
        ),
        (
            0,
            instead(
                0,
                "return advantages, advantages + values",
                "return advantages, rewards.flip(1).cumsum(1).flip(1)",
            ),
            "not the sum of the rewards",
        ),
        (
            0,
            instead(0, "return advantages, advantages + values", "return advantages, 2 * values"),
            "Returns: expected",
        ),
        (1, instead(1, "return 1 - ", "return "), "*not* explained"),
        (1, instead(1, "(returns - values).var() /", "values.var() /"), "the variance of the values"),
        (
            1,
            instead(1, "(returns - values).var()", "(returns - values).square().mean()"),
            "mean squared error",
        ),
        (
            1,
            instead(
                1, "(returns - values).var() / returns.var()", "returns.var() / (returns - values).var()"
            ),
            "upside down",
        ),
        (1, instead(1, "    values, returns = values[mask], returns[mask]\n", ""), "over padding"),
        (
            1,
            instead(
                1,
                "1 - (returns - values).var() / returns.var()",
                "torch.corrcoef(torch.stack([values, returns]))[0, 1] ** 2",
            ),
            "correlation",
        ),
        (1, instead(1, "(returns - values).var()", "(returns - values).std()"), "Expected 0.8875"),
        (2, instead(2, "(mask.sum() - 1)", "mask.sum()"), "by n - 1"),
        (
            2,
            instead(2, "torch.rsqrt(variance + 1e-8)", "1 / (variance + 1e-8)"),
            "You divided by the variance",
        ),
        (
            2,
            instead(2, "return centred *", "return advantages[mask].mean() * mask + centred *"),
            "put the mean back",
        ),
        (2, instead(2, "return centred *", "return advantages *"), "not centred"),
        (2, instead(2, " * torch.rsqrt(variance + 1e-8)", ""), "not scaled"),
        (
            2,
            instead(2, "torch.rsqrt(variance + 1e-8)", "torch.rsqrt(variance)"),
            "Equal advantages must give zeros",
        ),
        (
            2,
            instead(2, "return centred *", "return (advantages - advantages[mask].mean()) *"),
            "Padded positions must be 0",
        ),
        (2, instead(2, "return centred *", "return centred[mask] *"), "every token keeps its place"),
        (
            2,
            instead(2, "torch.rsqrt(variance + 1e-8)", "torch.rsqrt(variance + 0.03)"),
            "expected -1, 0 and 1",
        ),
        (2, "def my_whiten(a, mask): return (a - a.mean()) / a.std() * mask", "Padding is in your mean"),
        (
            2,
            "def my_whiten(a, mask): return (a * mask - (a * mask).mean()) / (a * mask).std()",
            "Padding is in your mean",
        ),
        (
            2,
            "def my_whiten(a, mask):\n"
            "    rows = [row[on] - row[on].mean() for row, on in zip(a, mask)]\n"
            "    rows = [row / row.std() if len(row) > 1 else row for row in rows]\n"
            "    return torch.zeros_like(a).masked_scatter(mask, torch.cat(rows))",
            "each answer by itself",
        ),
        (0, FROM_THE_FRONT, "walked from the front"),
        (0, instead(0, "+ gamma * next_value", "+ gamma * torch.roll(values, -1, 1)[:, t]"), "V is 0 there"),
        (
            0,
            instead(0, "delta = rewards[:, t] + ", "delta = rewards[:, t] * (t == values.shape[1] - 1) + "),
            "in the middle",
        ),
        (
            1,
            instead(
                1, "(returns - values).var() / returns.var()", "(returns - values).std() / returns.std()"
            ),
            "variances that add up",
        ),
        (
            1,
            "def my_explained_variance(v, r, m): return 1 - ((r - v) * m).var() / (r * m).var()",
            "zeros count as values",
        ),
        (1, "def my_explained_variance(v, r, m): return 1 - (r - v).var(1) / r.var(1)", "One number"),
        (1, BY_ANSWER, "answer by answer"),
        (2, ZEROED_FIRST, "in your variance"),
    ],
    "13_grpo": [
        (0, "def my_advantages(r): return r - r.mean()", "over the group, or over the batch"),
        (
            0,
            "def my_advantages(r): return (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)",
            "exactly 0",
        ),
        (
            0,
            "def my_advantages(r): return (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 0.1)",
            "expected",
        ),
        (0, "def my_advantages(r): return (r - r.mean(1, keepdim=True))[:, 0]", "own advantage"),
        (
            0,
            "def my_advantages(r):\n"
            "    a = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True, correction=0) + 1e-4)\n"
            "    return a.masked_fill(r.amax(1, keepdim=True) == r.amin(1, keepdim=True), 0)",
            "squares by G",
        ),
        (
            0,
            "def my_advantages(r):\n"
            "    a = (r - r.mean(1, keepdim=True)) / (r.var(1, keepdim=True) + 1e-4)\n"
            "    return a.masked_fill(r.amax(1, keepdim=True) == r.amin(1, keepdim=True), 0)",
            "divided by the variance",
        ),
        (
            0,
            "def my_advantages(r):\n"
            "    a = (r - r.mean()) / (r.std(1, keepdim=True) + 1e-4)\n"
            "    return a.masked_fill(r.amax(1, keepdim=True) == r.amin(1, keepdim=True), 0)",
            "over the group, or over the batch",
        ),
        (
            0,
            "def my_advantages(r):\n"
            "    a = r - r.mean(1, keepdim=True)\n"
            "    return a.masked_fill(r.amax(1, keepdim=True) == r.amin(1, keepdim=True), 0)",
            "expected",
        ),
        (1, "def dead_share(p, G): return (1 - p) ** G\nsmallest_G = 14", "one of the two cases"),
        (1, "def dead_share(p, G): return 1 - p**G - (1 - p)**G\nsmallest_G = 14", "p = 0.25"),
        (1, "def dead_share(p, G): return p**G + (1 - p)**G\nsmallest_G = 13", "smallest_G = 13 is not"),
        (1, "def dead_share(p, G): return p * (1 - p) * G\nsmallest_G = 14", "p = 0.25"),
        (1, "def dead_share(p, G): return 1 - (1 - p)**G\nsmallest_G = 14", "half of all groups"),
        (
            2,
            "def loss_at_start(A, T, how): return -A.sum() if how == 'token' else -A.mean()",
            "over 35 tokens",
        ),
        (2, "def loss_at_start(A, T, how): return -(A * T).sum() / T.sum()", "each answer counts the same"),
        (
            2,
            "def loss_at_start(A, T, how):\n"
            "    w = torch.ones_like(T) if how == 'sequence' else T\n"
            "    return (A * w).sum() / w.sum()",
            "The sign",
        ),
        (
            2,
            "def loss_at_start(A, T, how):\n"
            "    w = torch.ones_like(T) if how == 'sequence' else 1 / T\n"
            "    return -(A * w).sum() / w.sum()",
            "over 35 tokens",
        ),
        (
            2,
            "def loss_at_start(A, T, how): return -(A * (1 if how == 'sequence' else T)).mean()",
            "over 35 tokens",
        ),
    ],
    "15_dapo": [
        (
            0,
            "def my_penalty(n, limit, cache): return -((limit - cache - n) / cache).clamp(-1, 0)",
            "The sign",
        ),
        (
            0,
            "def my_penalty(n, limit, cache): return ((limit - cache - n) / cache).clamp(min=-1)",
            "earn a bonus",
        ),
        (
            0,
            "def my_penalty(n, limit, cache): return ((limit - cache - n) / cache).clamp(max=0)",
            "goes on growing",
        ),
        (
            0,
            "def my_penalty(n, limit, cache): return ((limit - n) / cache).clamp(-1, 0)",
            "begins at the limit",
        ),
        (
            0,
            "def my_penalty(n, limit, cache): return ((limit - cache - n) / limit).clamp(-1, 0)",
            "divided by the limit",
        ),
        (0, "def my_penalty(n, limit, cache): return -(n > limit - cache).float()", "a cliff"),
        (
            0,
            "def my_penalty(n, limit, cache): return -(((n - limit + cache) / cache).clamp(0, 1) ** 2)",
            "expected",
        ),
        (
            0,
            "def my_penalty(n, limit, cache): return ((limit - cache - n) / cache).clamp(-1, 0).mean()",
            "own penalty",
        ),
        (1, dapo("-(x * mask).sum() / mask.sum()"), "The sign"),
        (1, dapo("((x * mask).sum(1) / mask.sum(1)).mean()"), "mean of means"),
        (1, dapo("((x * mask).sum(1) / mask.sum(1)).sum() / mask.sum()"), "divided twice"),
        (1, dapo(high=0.2), "0.2 on both sides"),
        (1, dapo("x.mean()"), "over padding"),
        (1, dapo("(x * mask).mean()"), "all six places"),
        (1, dapo("(x * mask).sum() / len(x)"), "number of answers"),
        (1, dapo("(x * mask).sum()"), "That is the sum"),
        (1, dapo(pick="minimum"), "took the smaller"),
        (1, dapo(low=9, high=9), "Nothing is clipped"),
        (1, dapo(high=0.4), "ratio 5"),
        (1, dapo("x"), "one number"),
        (2, "def cost(p, G): return (1 / (1 - p**G - (1 - p) ** G)).mean()", "the same question again"),
        (2, "def cost(p, G): return (1 - p**G - (1 - p) ** G).mean()", "The cost is one over it"),
        (2, "def cost(p, G): return 1 / (1 - (1 - p) ** G).mean()", "all right is dead too"),
        (2, "def cost(p, G): return 1 / (1 - p**G).mean()", "all wrong is dead too"),
        (2, "def cost(p, G): return 1 / (p**G + (1 - p) ** G).mean()", "cost of a dead group"),
        (2, "def cost(p, G): return 1 / (1 - p.mean() ** G - (1 - p.mean()) ** G)", "mean of p first"),
        (2, "def cost(p, G): return G / (1 - p**G - (1 - p) ** G).mean()", "counts answers"),
        (2, "def cost(p, G): return 1 / (1 - p**G - (1 - p) ** G)", "One number for the whole set"),
        (0, "def my_penalty(n, limit, cache): return -(n > limit).float()", "a cliff"),
        (0, "def my_penalty(n, limit, cache): return ((12 - n) / 8).clamp(-1, 0)", "limit 10 and cache 5"),
        (1, dapo(low=0.28), "clip below is 0.28"),
        (1, dapo(low=0.28, high=0.2), "two clips are swapped"),
        (1, dapo("((x * mask).sum() / mask.sum()).detach()"), "nothing can learn"),
        (1, dapo("((a / b) * mask).sum() / mask.sum()"), "You have nan"),
        (2, "def cost(p, G): return 1 / (1 - p**G - (1 - p) ** G).mean() - 1", "what is thrown away"),
        (2, "def cost(p, G): return 1 / (G * p * (1 - p)).mean()", "at G = 2 and 3 only"),
    ],
    "16_gspo": [
        (0, "def my_log_s(a, b, m): return torch.where(m, b - a, 0.0).sum(1) / m.sum(1)", "Upside down"),
        (0, "def my_log_s(a, b, m): return torch.where(m, a - b, 0.0).sum(1)", "log of the product"),
        (0, "def my_log_s(a, b, m): return torch.where(m, a - b, 0.0).mean(1)", "padding is no token"),
        (
            0,
            "def my_log_s(a, b, m): return torch.where(m, a - b, 0.0).sum(1) / m.sum()",
            "all tokens of the batch",
        ),
        (0, "def my_log_s(a, b, m): return torch.where(m, a, 0.0).sum(1) / m.sum(1)", "the old policy"),
        (0, "def my_log_s(a, b, m): return (a - b).mean(1)", "use torch.where"),
        (0, "def my_log_s(a, b, m): return ((a - b) * m).sum(1) / m.sum(1)", "use torch.where"),
        (0, MEAN_RATIO + ".log()", "averaged the ratios"),
        (0, MEAN_RATIO, "averaged the ratios"),
        (
            0,
            "def my_log_s(a, b, m): return (torch.where(m, a - b, 0.0).sum(1) / m.sum(1)).exp()",
            "asks for its log",
        ),
        (0, "def my_log_s(a, b, m): return torch.where(m, a - b, 0.0)", "one number for each answer"),
        (
            0,
            "def my_log_s(a, b, m): return torch.where(m, a - b, 0.0).sum(1) / m.sum(1) ** 0.5",
            "expected 0.1",
        ),
        (1, gspo("-x.mean()"), "The sign"),
        (1, gspo(clipped="s"), "Nothing is clipped"),
        (1, gspo(clipped="s.clamp(1 - high, 1 + low)"), "clips are swapped"),
        (1, gspo(clipped="s.clamp(low, high)"), "expected 1.1"),
        (1, gspo(pick="minimum"), "took the smaller"),
        (1, gspo("(x * m.sum(1)).sum() / m.sum()"), "over tokens"),
        (1, gspo("x.sum()"), "Take the mean"),
        (1, gspo("x"), "one number"),
        (1, gspo(tokens="m.shape[1]"), "width of the tensor"),
        (1, gspo(tokens="1"), "the product"),
        (1, gspo(log_s="(a - b).mean(1)"), "Padding is in your mean"),
        (1, gspo(log_s="torch.where(m, a, 0.0).sum(1) / m.sum(1)"), "the old policy"),
        (
            1,
            gspo(log_s="(torch.where(m, (a - b).exp(), 0.0).sum(1) / m.sum(1)).log()"),
            "the mean of the ratios",
        ),
        (1, gspo(log_s="(torch.where(m, a - b, 0.0).sum(1) / m.sum(1)).detach()"), "nothing can learn"),
        (
            1,
            "def my_gspo_loss(a, b, A, m, low, high):\n"
            "    s = (torch.where(m, a - b, 0.0).sum(1) / m.sum(1)).exp()\n"
            "    return (-s.clamp(1 - low, 1 + high) * A).mean()",
            "You always clip",
        ),
        (1, GRPO.format("((x * m).sum(1) / m.sum(1)).mean()"), "That is GRPO"),
        (1, GRPO.format("(x * m).sum() / m.sum()"), "DAPO's loss"),
        (2, "def my_token_ratio(a, b, m): return (a - b).exp()", "tokens' own ratios"),
        (2, "def my_token_ratio(a, b, m): return (a - a.detach()).exp()", "All your values are 1"),
        (2, token("s.detach() * (a - a.detach())"), "Where is exp?"),
        (2, token("(((a - b) * m).sum(1, keepdim=True)).exp().expand_as(a)"), "the product"),
        (2, token("s.expand_as(a)"), "that is GSPO"),
        (2, token("s.expand_as(a).detach()"), "carries a gradient"),
        (2, token("s * (a - a.detach()).exp()"), "Two gradients"),
        (2, token("s.detach() + a - a.detach()"), "you added where you should multiply"),
        (2, token("s.detach() * (1 + 3 * (a - a.detach()))"), "should be 2 at token 1"),
        (2, token("s.log().expand_as(a)"), "Take exp"),
        (2, token("s[:, 0]"), "a ratio for each token"),
        (
            2,
            "def my_token_ratio(a, b, m): return (a - b).mean(1, keepdim=True).exp().expand_as(a)",
            "padding is in",
        ),
        (
            2,
            token("(a * m).sum(1, keepdim=True).div(m.sum(1, keepdim=True)).exp().expand_as(a)"),
            "the old policy",
        ),
    ],
}


NUMBERED = [(chapter, n) for chapter, each in EXERCISES.items() for n in range(len(each.checks))]


def answer(code: str, check: str, capsys) -> str:
    """What the reader sees who writes `code` into the cell and runs the check below it."""
    exec(f"{code}\n{check}", {"torch": torch})
    return capsys.readouterr().out


def test_every_chapter_with_exercises_is_here():
    assert set(EXERCISES) == set(MISTAKES)


@pytest.mark.parametrize("chapter, number", NUMBERED)
def test_the_solution_passes(chapter, number, capsys):
    exercises = EXERCISES[chapter]
    assert answer(exercises.solutions[number], exercises.checks[number], capsys).startswith("Right")


@pytest.mark.parametrize("chapter, number", NUMBERED)
def test_the_blank_fails_politely(chapter, number, capsys):
    exercises = EXERCISES[chapter]
    assert answer(exercises.blanks[number], exercises.checks[number], capsys) == "Not answered yet.\n"


@pytest.mark.parametrize("chapter, number", NUMBERED)
def test_five_mistakes_or_more_are_planted(chapter, number):
    assert sum(n == number for n, _, _ in MISTAKES[chapter]) >= 5


@pytest.mark.parametrize(
    "chapter, number, code, named", [(chapter, *each) for chapter in MISTAKES for each in MISTAKES[chapter]]
)
def test_each_planted_mistake_is_named(chapter, number, code, named, capsys):
    said = answer(code, EXERCISES[chapter].checks[number], capsys)
    assert named in said and not said.startswith("Right")
