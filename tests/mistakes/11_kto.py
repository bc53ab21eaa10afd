"""Planted mistakes of chapter 11's exercises: name -> (code, words that the verdict must contain)."""


def kto(
    z="z.detach().clamp(min=0)",
    gain="b * (rho - z)",
    value="torch.sigmoid(torch.where(good, gain, -gain))",
    end="(w * (1 - value)).mean()",
    w="torch.where(good, w_good, w_bad)",
) -> str:
    """The solution of `kto.loss`, with holes for mistakes."""
    return f"""def my_kto_loss(rho, good, z, b, w_good, w_bad):
    z = {z}
    gain = {gain}
    w = {w}
    value = {value}
    return {end}"""


def weights(
    good_rarer="(n_bad / n_good, 4 / 3 * n_bad / n_good)",
    bad_rarer="(3 / 4 * n_good / n_bad, n_good / n_bad)",
) -> str:
    """The solution of `kto.weights`, likewise."""
    return f"""def weights(n_good, n_bad):
    if n_good <= n_bad:
        return {good_rarer}
    return {bad_rarer}"""


MISTAKES = {
    "kto.loss": [
        (kto(end="(w * (1 - value)).sum()"), "That is the sum"),
        (kto(end="w * (1 - value)"), "one number for the batch"),
        (kto(end="(w * value).mean()"), "wrong way round"),
        (kto(value="torch.sigmoid(torch.where(good, -gain, gain))"), "wrong way round"),
        (kto(end="-(w * value).mean()"), "minus the value"),
        (kto(value="torch.sigmoid(gain)"), "like a thumbs up"),
        (kto(end="w_good * (1 - value[good]).mean() + w_bad * (1 - value[~good]).mean()"), "added the mean"),
        (kto(end="(w_good * (1 - value[good]).mean() + w_bad * (1 - value[~good]).mean()) / 2"), "by itself"),
        (kto(end="-(w * value.log()).mean()"), "DPO's shape"),
        (kto(gain="b * rho"), "no reference point"),
        (kto(z="z.detach().clamp(max=0)"), "no reference point"),
        (kto(gain="b * rho", end="-(w * value.log()).mean()"), "half a DPO pair"),
        (kto(gain="b * rho - z"), "beta scales z too"),
        (kto(gain="rho - z"), "beta is missing"),
        (kto(gain="(rho - z) / b"), "beta multiplies"),
        (kto(gain="b * (rho + z)"), "z is added"),
        (kto(z="rho.detach().mean().clamp(min=0)"), "z is given"),
        (kto(gain="b * (rho.detach() - z)"), "rho must not be detached"),
        (kto(end="(w * (1 - value)).mean().item()"), "rho must not be detached"),
        (kto(z="z.clamp(min=0)"), "gradient passes through z"),
        (kto(z="z.detach()"), "A negative z counts as 0"),
        (kto(z="z.detach().abs()"), "absolute value"),
        (kto(w="torch.where(good, w_bad, w_good)"), "swapped"),
        (kto(w="1.0"), "weights are missing"),
        (kto(end="(w * (1 - value)).sum() / w.sum()"), "sum of the weights"),
        (
            kto(value="torch.sigmoid(w * torch.where(good, gain, -gain))", end="(1 - value).mean()"),
            "not the argument of the sigmoid",
        ),
        (kto(w="torch.where(good, w_good, 1.0)"), "thumbs down have no weight"),
        (kto(value="torch.sigmoid(torch.where(good, gain, -gain)) ** 2"), "Not yet. This input"),
        (
            kto(z="torch.zeros(3)[0].item() - z.detach().clamp(min=0) / z.detach().clamp(min=0).sqrt()"),
            "Not yet. This input",
        ),
        (kto(value="torch.sigmoid(torch.where(good[:2], gain, -gain))"), "Your function stopped with"),
    ],
    "kto.mismatched": [
        ("def my_mismatched(x, y): return list(zip(x, y))", "still has its own"),
        ("def my_mismatched(x, y): return list(zip(x, y[::-1]))", "in the middle keeps its own"),
        (
            "import random\nr = random.Random(0)\ndef my_mismatched(x, y): return list(zip(x, r.sample(y, len(y))))",
            "A shuffle does that",
        ),
        ("def my_mismatched(x, y): return [(a, y[0]) for a in x]", "used once"),
        ("def my_mismatched(x, y): return list(zip(x, y[1:] + y[1:2]))", "used once"),
        ("def my_mismatched(x, y): return list(zip(x, y[1:]))", "every prompt needs one"),
        (
            "def my_mismatched(x, y): return list(zip(x[1:] + x[:1], y))",
            "The prompts must come in their order",
        ),
        ("def my_mismatched(x, y): return y[1:] + y[:1]", "list of pairs of a prompt and an answer"),
        ("def my_mismatched(x, y): return list(zip(y[1:] + y[:1], x))", "first the prompt, then the answer"),
        ("def my_mismatched(x, y): return list(zip(x, y[2:] + y[:2]))", "got its own answer back"),
        (
            "def my_mismatched(x, y): return list(zip(x, [y[i ^ 1] for i in range(len(y))]))",
            "stopped with IndexError",
        ),
        (
            "def my_mismatched(x, y):\n    y.append(y.pop(0))\n    return list(zip(x, y))",
            "changes its input in place",
        ),
        ("def my_mismatched(x, y): return zip(x, y[1:] + y[:1])", "a list of pairs"),
        (
            "def my_mismatched(x, y): return [(a, a + b) for a, b in zip(x, y)]",
            "not an answer that was given",
        ),
    ],
    "kto.weights": [
        (weights("(4 / 3 * n_bad / n_good, n_bad / n_good)"), "in the wrong order"),
        (weights("(n_good / n_bad, 4 / 3 * n_good / n_bad)"), "upside down"),
        (weights("(3 / 4 * n_good / n_bad, n_good / n_bad)"), "upside down"),
        (weights("(3 / 4 * n_bad / n_good, n_bad / n_good)"), "not at 3/4 to 1"),
        (weights("(n_bad / n_good, 1.5 * n_bad / n_good)"), "latest version"),
        (weights("(n_bad / n_good, n_bad / n_good)"), "perfect balance"),
        (weights("(n_bad / n_good, 1.33 * n_bad / n_good)"), "1.33 is rounded"),
        (weights("((n_bad + n_good) / n_good, 4 / 3 * (n_bad + n_good) / n_good)"), "share of all verdicts"),
        (weights("n_bad / n_good"), "Two numbers"),
        (weights("(n_bad - n_good, 4 / 3 * (n_bad - n_good))"), "Not yet. This input"),
        (weights(bad_rarer="(n_good / n_bad, 4 / 3 * n_good / n_bad)"), "must not outweigh the good"),
        (weights(bad_rarer="(n_bad / n_good, 4 / 3 * n_bad / n_good)"), "rarer kind is the bad one"),
        (weights(bad_rarer="(n_good / n_bad, 3 / 4 * n_good / n_bad)"), "belongs to the smaller weight"),
        (weights(bad_rarer="(2 / 3 * n_good / n_bad, n_good / n_bad)"), "latest version"),
        (weights(bad_rarer="(n_good / n_bad, n_good / n_bad)"), "perfect balance"),
        (weights(bad_rarer="(n_bad / n_good, n_good / n_bad)"), "Not yet. This input"),
    ],
}
