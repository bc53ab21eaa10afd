"""Planted mistakes of chapter 01's exercises: (code, words that the verdict must contain)."""

REST = "Not yet. This input"


def mask(test: str) -> str:
    return f"def my_mask(p, r, w): return [{test} for i in range(w)]"


def rewards(charge: str = "-b * (x - y)", end: str = "out[-1] += s") -> str:
    return (
        f"def my_rewards(s, p, r, b):\n    out = [{charge} for x, y in zip(p, r)]\n    {end}\n    return out"
    )


def tilted(weights: str, end: str = "w / w.sum()", best: str = "0.1") -> str:
    return f"def tilted(ref, scores, beta):\n    w = {weights}\n    return {end}\nbest_beta = {best}"


MISTAKES = {
    "rlhf.mask": [
        (mask("p <= i < p + r"), "The EOS is missing"),
        (mask("i < p + r + 1"), "train on the prompt too"),
        (mask("i < p + r"), "train on the prompt, and the EOS is missing"),
        (mask("i >= p"), "Padding counts"),
        (mask("not p <= i < p + r + 1"), "turned round"),
        (mask("p - 1 <= i < p + r"), "Shifted to the left"),
        (mask("p + 1 <= i < p + r + 2"), "Shifted to the right"),
        ("def my_mask(p, r, w): return [True] * (r + 1)", "One entry for every position"),
        (mask("2 <= i < 6"), "the first case's numbers"),
        (mask("p <= i < p + r + 1 and i < w - 1"), "need not be any padding"),
        (mask("i and p <= i < p + r + 1"), "need not be any prompt"),
        (
            "def my_mask(p, r, w): return [p <= i < p + r + 1 for i in range(p + r + 1)]",
            "The shape is 6 items",
        ),
        (mask("i == p + r"), REST),
        (mask("True"), REST),
    ],
    "rlhf.token_rewards": [
        (rewards("b * (x - y)"), "you pay the policy for leaving"),
        (rewards("s - b * (x - y)", "pass"), "paid once, on the last token"),
        (rewards("s / len(p) - b * (x - y)", "pass"), "not spread over"),
        (rewards(end="out[0] += s"), "on the first token"),
        (rewards(end="out.append(s)"), "stands behind the reply"),
        (rewards(end="pass"), "The score is missing"),
        (rewards(end="out[-1] = s"), "is not charged"),
        (rewards("y - x"), "beta is missing"),
        (rewards(end="out[-1] += b * s"), "weighs the penalty only"),
        (
            "def my_rewards(s, p, r, b): return [0.0] * (len(p) - 1) + [s - b * sum(x - y for x, y in zip(p, r))]",
            "the whole penalty at the end",
        ),
        (rewards("-b * abs(x - y)"), "without its sign"),
        (rewards("-b * max(0.0, x - y)"), "cut the distance off at 0"),
        (rewards("-b * (2.718281828**x - 2.718281828**y)"), "differences of probabilities"),
        (rewards("-b * (2.718281828 ** (y - x) - 1 - (y - x))"), "That is k3"),
        ("def my_rewards(s, p, r, b): return -b * (p - r)", "stopped with TypeError"),
        ("def my_rewards(s, p, r, b):\n    p[-1] += s\n    return p", "changes its input in place"),
        (rewards("-b * (x - y) ** 2 / 2"), REST),
        (rewards("-b * x"), REST),
    ],
    "rlhf.tilted": [
        (tilted("ref * (scores / beta).exp()", "w"), "Divide by the sum"),
        (tilted("(scores / beta).exp()"), "The reference is missing"),
        (tilted("ref * scores.exp()"), "beta is missing"),
        (tilted("ref * (beta * scores).exp()"), "multiplied by beta"),
        (tilted("ref * (-scores / beta).exp()"), "The sign"),
        (tilted("((ref.log() + scores) / beta).exp()"), "log-probabilities by beta too"),
        (tilted("(ref + scores / beta).exp()"), "is its logarithm"),
        (tilted("ref * scores / beta"), "goes into the exponent"),
        (tilted("(scores == scores.max()).float()"), "what beta = 0 gives"),
        (tilted("ref"), "the reference itself"),
        (tilted("ref.log() + scores / beta"), REST),
        (tilted("ref * 2 ** (scores / beta)"), REST),
        (tilted("ref * (scores / beta).exp()", best="0.02"), "pleases the judge most"),
        (tilted("ref * (scores / beta).exp()", best="1.0"), "closest to the reference"),
        (tilted("ref * (scores / beta).exp()", best="0.05"), "best_beta is not"),
    ],
}
