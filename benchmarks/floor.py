"""How fast could a step be? The matrix products that nothing can avoid, and where the rest of the time goes.

What is counted: every prompt goes through the model once, however many answers it has, and so does every
answer token but the last, after which nothing is predicted. Of a prompt's tokens before its last one, the
last layer needs the keys and values alone. When sampling that is one forward pass in
all, through keys and values that are kept; in the update a forward pass, and a backward pass of twice its
operations. Attention counts the tokens that are seen and no others. A multiplication and the addition
after it are two operations, as torch's `FlopCounterMode` has it.

What is not: everything else, so nothing reaches the floor. Norms, activations, softmax, the optimizer,
all that moves numbers, and Python cost time too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from rlcourse.lm import Rollout


@dataclass(frozen=True)
class Product:
    """[m k] @ [k n], `batch` of them at once: how often a step needs it, in operations."""

    name: str
    batch: int
    m: int
    k: int
    n: int
    operations: int


@dataclass(frozen=True)
class Work:
    """The lengths that the operations follow from: of each prompt, and of the answers to it."""

    prompts: list[int]
    answers: list[list[int]]

    @staticmethod
    def of(rollout: Rollout) -> Work:
        prompts, lengths = rollout.prompt_mask.sum(1).tolist(), rollout.lengths.tolist()
        answers: list[list[int]] = [[] for _ in prompts]
        for owner, length in zip(rollout.owner.tolist(), lengths, strict=True):
            answers[owner].append(length)
        return Work(prompts, answers)

    @property
    def fed(self) -> int:
        """Answer tokens that go through the model."""
        return sum(length - 1 for group in self.answers for length in group)

    @property
    def rows(self) -> int:
        return sum(map(len, self.answers))

    @property
    def steps(self) -> int:
        """Of the longest answer."""
        return max(1, max(length - 1 for group in self.answers for length in group))

    @property
    def seen_by_prompts(self) -> int:
        """Pairs of a prompt's token and one that it attends to, itself included."""
        return sum(size * (size + 1) // 2 for size in self.prompts)

    @property
    def seen_by_answers(self) -> int:
        return sum(
            (length - 1) * size + length * (length - 1) // 2
            for size, group in zip(self.prompts, self.answers, strict=True)
            for length in group
        )


def head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def linear(config, tokens: int, predicting: int) -> dict[str, tuple[int, int, int]]:
    """Inputs, outputs and operations of every linear map, for so many tokens of which so many predict another.

    Of those that do not, the last layer needs the keys and values alone.
    """
    hidden, inner, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    queries = config.num_attention_heads * head_size(config)
    keys = 2 * config.num_key_value_heads * head_size(config)
    passes = (depth - 1) * tokens + predicting
    return {
        "q, k, v": (hidden, queries + keys, 2 * hidden * (passes * queries + depth * tokens * keys)),
        "o": (queries, hidden, 2 * passes * queries * hidden),
        "gate, up": (hidden, 2 * inner, 2 * passes * hidden * 2 * inner),
        "down": (inner, hidden, 2 * passes * inner * hidden),
        "logits": (hidden, config.vocab_size, 2 * predicting * hidden * config.vocab_size),
    }


def attention(config, work: Work) -> tuple[int, int]:
    """Operations of the scores, and as many again of what they weigh: among prompts, and by answers."""
    depth, each = config.num_hidden_layers, 2 * config.num_attention_heads * head_size(config)
    among_prompts = (depth - 1) * work.seen_by_prompts + sum(
        work.prompts
    )  # in the last layer, by the last token
    return each * among_prompts, each * depth * work.seen_by_answers


def generation(config, work: Work) -> list[Product]:
    """The prompts once, then a token a row at a time; timed at the mean number of rows and columns."""
    P, heads, size = len(work.prompts), config.num_attention_heads, head_size(config)
    rows, columns = (
        max(1, round(work.fed / work.steps)),
        max(1, round(work.seen_by_answers / max(1, work.fed))),
    )
    longest, (prompts, answers) = max(work.prompts), attention(config, work)
    return [
        *(
            Product(f"{name} of prompts", 1, P if name == "logits" else sum(work.prompts), *shape)
            for name, shape in linear(config, sum(work.prompts), P).items()
        ),
        *(Product(name, 1, rows, *shape) for name, shape in linear(config, work.fed, work.fed).items()),
        Product("scores of prompts", P * heads, longest, size, longest, prompts),
        Product("values of prompts", P * heads, longest, longest, size, prompts),
        Product("scores", rows * heads, 1, size, columns, answers),
        Product("values", rows * heads, 1, columns, size, answers),
    ]


def training(config, work: Work) -> list[Product]:
    """Forward, and two products backward for each one: the gradient of what came in, and of what it met."""
    P, heads, size = len(work.prompts), config.num_attention_heads, head_size(config)
    tokens, predicting = sum(work.prompts) + work.fed, P + work.fed
    found = []
    for name, (k, n, operations) in linear(config, tokens, predicting).items():
        m = predicting if name == "logits" else tokens
        found += [
            Product(name, 1, m, k, n, operations),
            Product(f"{name}, backward to inputs", 1, m, n, k, operations),
            Product(f"{name}, backward to weights", 1, n, m, k, operations),
        ]
    longest, (prompts, answers) = max(work.prompts), attention(config, work)
    for of, batch, m, n, operations in (
        (" of prompts", P * heads, longest, longest, prompts),
        ("", work.rows * heads, work.steps, longest + work.steps, answers),
    ):
        found += [  # two of each kind: one forward and one backward, or both backward
            Product(f"scores{of}", batch, m, size, n, 2 * operations),
            Product(f"values{of}", batch, m, n, size, 2 * operations),
            Product(f"keys and values{of}, backward", batch, n, m, size, 2 * operations),
        ]
    return found


def rate(product: Product, like: Tensor) -> float:
    """Operations a second of this product on this machine: the best of three tries of 10 ms or more."""
    a = like.new_empty(product.batch, product.m, product.k).normal_()
    b = like.new_empty(product.batch, product.k, product.n).normal_()
    if product.batch == 1:
        a, b = a[0], b[0]
    done = torch.cuda.synchronize if like.is_cuda else lambda: None

    def seconds(times: int) -> float:
        done()
        started = time.perf_counter()
        for _ in range(times):
            a @ b
        done()
        return time.perf_counter() - started

    times = 1
    while seconds(times) < 0.01:
        times *= 2
    once = 2 * product.batch * product.m * product.k * product.n
    return times * once / min(seconds(times) for _ in range(3))


@torch.no_grad()
def floor(model, rollout: Rollout, sampled: bool) -> dict[str, dict[str, float]]:
    """Operations and seconds of the products that a step on this rollout cannot avoid."""
    work, like = Work.of(rollout), next(model.parameters())
    parts = {"generation": generation, "training": training} if sampled else {"training": training}
    products = {part: count(model.config, work) for part, count in parts.items()}
    operations = {part: sum(each.operations for each in found) for part, found in products.items()}
    seconds = {
        part: sum(each.operations / rate(each, like) for each in found if each.operations)
        for part, found in products.items()
    }
    return {"operations": operations, "seconds": {**seconds, "whole step": sum(seconds.values())}}


# ---- where the time goes

# By what the name of an operation begins with; the first that fits counts, and the others are element-wise.
KINDS = {
    "matrix products": "mm|addmm",  # of linear maps
    "attention": "bmm|baddbmm|_scaled_dot_product",
    "moving and indexing": "cat|stack|copy|clone|embedding|_?index|gather|scatter|masked|nonzero|fill|zero_|repeat"
    "|constant_pad|slice_backward|select_backward|searchsorted|sort|arange|where|_unique|_local_scalar",
    "dispatch": "view|_unsafe_view|_?reshape|as_strided|expand|slice|select|split|chunk|unbind|narrow|t$|transpose"
    "|permute|squeeze|unsqueeze|flatten|unflatten|alias|detach|contiguous|empty|new_|zeros|ones|full|to$|_to_copy"
    "|linear$|matmul$|item|resolve|lift|is_|result_type|resize",
}
SHOWN = ("matrix products", "attention", "element-wise", "moving and indexing")


def kind(name: str) -> str:
    """The kind of work that an event of the profiler is; what only arranges for others is dispatch."""
    if not name.startswith("aten::"):
        return "dispatch"
    name = name.removeprefix("aten::")
    return next((kind for kind, begins in KINDS.items() if re.match(begins, name)), "element-wise")


def where_time_goes(
    work: Callable[[int], object], measured: float, now: Callable[[], float], cuda: bool
) -> dict[str, float]:
    """The measured seconds of some work by kind. What no operation accounts for is Python and dispatch.

    The profiler times the operations, of three runs; it slows Python down, so the whole is what was
    measured without it. On a GPU a recorded step's kernels belong to no operation: they are a kind of their own.
    """
    work(0)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        for seed in range(3):
            work(seed)
        now()
    found = dict.fromkeys(SHOWN, 0.0)
    events = profiler.key_averages()
    for event in events:
        if (name := kind(event.key)) in found:
            microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
            found[name] += microseconds / 1e6 / 3
    if cuda:
        kernels = [event for event in events if event.device_type == DeviceType.CUDA]
        whole = sum(event.self_device_time_total for event in kernels) / 1e6 / 3
        found["recorded steps"] = max(0.0, whole - sum(found.values()))
    return {**found, "Python and dispatch": max(0.0, measured - sum(found.values()))}
