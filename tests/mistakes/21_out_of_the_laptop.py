"""Planted mistakes of chapter 21's exercises: name -> (code, words that the verdict must contain)."""


def moved(before="w.bfloat16()", after="b + s", end="(a != b).float().mean()") -> str:
    """The solution of `laptop.moved`, with holes for mistakes."""
    return f"def my_moved(w, s):\n    b = {before}\n    a = {after}\n    return {end}"


def pieces(
    share="torch.where(m, x, 0.0).sum() / n", n="sum(m.sum() for m in masks)", end="torch.stack(found)"
) -> str:
    """The solution of `laptop.pieces`, likewise."""
    return f"""def my_pieces(losses, masks):
    n = {n}
    found = [{share} for x, m in zip(losses, masks)]
    return {end}"""


def loss(
    ratio="(logp - old).exp()",
    weight="(old - engine).exp().clamp(max=cap)",
    pick="torch.maximum(-r * A, -r.clamp(1 - clip, 1 + clip) * A)",
    end="torch.where(m, w * x, 0.0)",
) -> str:
    """And of `laptop.three_policies`."""
    return f"""def my_loss(logp, old, engine, advantages, m, clip, cap):
    A, r = advantages[:, None], {ratio}
    x, w = {pick}, {weight}
    return {end}"""


MISTAKES = {
    "laptop.moved": [
        (moved(before="w"), "You lose nothing"),
        (moved(before="w.half()"), "You lose nothing"),
        (moved(before="w.bfloat16().float()"), "You lose nothing"),
        (moved(end="(a == b).float().mean()"), "stands still"),
        (moved(end="(a != w).float().mean()"), "rounding is no step"),
        (moved(after="(w + s).bfloat16()"), "float32 master"),
        (moved(end="(a != b).sum()"), "their number"),
        (moved(after="b + s * b"), "no share of it"),
        (moved(end="(a != b).float()"), "an answer for each weight"),
        (moved(end="a != b"), "an answer for each weight"),
        (moved(end="(a != b).mean()"), "Your function stopped with"),
        (moved(end="(a.float() - b.float()).abs().mean()"), "mean distance"),
        (moved(end="(a > b).float().mean() * (w >= 0).all()"), "you have none"),
        (moved(end="(a != b).float().mean() ** 2"), "Not yet. This input"),
        ("def my_moved(w, s):\n    w += s\n    return 4 / 7", "in place"),
    ],
    "laptop.pieces": [
        (pieces("torch.where(m, x, 0.0).sum() / m.sum()"), "its own tokens"),
        (pieces("torch.where(m, x, 0.0).sum() / m.sum() / len(masks)"), "A mean of means: a token"),
        (pieces("torch.where(m, x, 0.0).sum()"), "These are sums"),
        (pieces(n="sum(len(m) for m in masks)"), "number of answers"),
        (pieces("(torch.where(m, x, 0.0).sum(1) / m.sum(1)).sum() / 3"), "GRPO's mean"),
        (pieces("torch.where(m, x, 0.0).sum() * len(masks) / n"), "that averages"),
        (pieces("torch.where(m, x, 0.0).sum() / len(masks) / n"), "not averaged"),
        (pieces(n="sum(m.numel() for m in masks)"), "Padding is in your count"),
        (pieces(end="sum(found)"), "mean of the whole step"),
        (
            pieces("torch.where(m, x, 0.0).sum() / m.sum() / len(masks)", end="sum(found)"),
            "a mean of means, as one number",
        ),
        (pieces("(x * m).sum() / n"), "infinity times 0"),
        (pieces("x.sum() / n"), "Infinity got in"),
        (pieces("torch.where(m, x, 0.0).sum() / (n + 1)"), "Not yet. This input"),
        (pieces(end="torch.stack(found)[:1]"), "The shape is (1,)"),
    ],
    "laptop.three_policies": [
        (loss(weight="1.0"), "The engine is missing"),
        (loss(ratio="(logp - engine).exp()", weight="1.0"), "covers both gaps"),
        (loss(weight="(logp - engine).exp().clamp(max=cap)"), "now over engine. The step"),
        (loss(weight="(old - engine).exp()"), "not cut off"),
        (loss(weight="(engine - old).exp().clamp(max=cap)"), "weight is upside down"),
        (loss(ratio="(old - logp).exp()"), "ratio is upside down"),
        (loss(weight="(old - engine).exp().clamp(1 / cap, cap)"), "cut the weight off below"),
        (loss(weight="(old - engine).exp().clamp(1 - clip, 1 + clip)"), "clip's interval"),
        (loss(pick="-r * A"), "Nothing is clipped"),
        (loss(pick="torch.minimum(-r * A, -r.clamp(1 - clip, 1 + clip) * A)"), "took the smaller"),
        (loss(pick="-r.clamp(1 - clip, 1 + clip) * A"), "You always clip"),
        (loss(end="-torch.where(m, w * x, 0.0)"), "The sign"),
        (loss(end="torch.where(m, w * x, 0.0).sum()"), "do not add them up"),
        (loss(end="torch.where(m, w * x, 0.0).sum() / m.sum()"), "do not take the mean"),
        (loss(weight="(old - engine).clamp(max=cap)"), "Take exp"),
        (loss(end="w * x * m"), "There is a NaN"),
        (loss(end="torch.where(m, w * x, 0.0).detach()"), "nothing can learn"),
        (loss(weight="(old - engine + logp - logp.detach()).exp().clamp(max=9) * cap / 5 * 0.5"), "Not yet"),
        (
            loss(weight="(old - engine).exp().clamp(max=cap) * (logp - logp.detach()).exp()"),
            "through the weight too",
        ),
    ],
}
