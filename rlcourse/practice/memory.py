"""What RLHF takes: bytes in memory by model and by kind, and arithmetic by phase.

Does it fit, what does the critic cost, what does ZeRO or LoRA save? Bytes are those of one device, 1 GB = 10^9.
Left out: fragments, buffers of communication, the layer that ZeRO 3 gathers, what CUDA itself takes.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from math import ceil


@dataclass(frozen=True)
class Architecture:
    """A Llama-shaped decoder, by the numbers in its `config.json`."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int  # of one expert, where there are several
    vocabulary: int
    tied: bool = False  # the output layer is the embedding
    head_size: int | None = None  # hidden / heads, unless the config says otherwise
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    experts: int = 1
    experts_per_token: int = 1

    @property
    def q(self) -> int:
        return self.heads * (self.head_size or self.hidden // self.heads)

    @property
    def kv(self) -> int:
        return self.q // self.heads * self.kv_heads

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    def linears(self, experts: int) -> list[tuple[int, int]]:
        """(in, out) of each matrix of one layer: q, k, v, o, and gate, up, down of each expert."""
        h, f = self.hidden, self.ffn
        return [(h, self.q), (h, self.kv), (h, self.kv), (self.q, h)] + experts * [(h, f), (h, f), (f, h)]

    def trunk(self, experts: int | None = None) -> int:
        """The layers and the last norm, without embedding and output layer, with this many experts."""
        layer = sum(i * o for i, o in self.linears(experts or self.experts)) + 2 * self.hidden
        layer += (self.q + 2 * self.kv) * self.qkv_bias + 2 * (self.q // self.heads) * self.qk_norm
        layer += self.hidden * self.experts * (self.experts > 1)  # the router
        return self.layers * layer + self.hidden

    @property
    def parameters(self) -> int:
        return self.trunk() + self.embedding * (1 if self.tied else 2)

    @property
    def scalar_parameters(self) -> int:
        """The same with one number for an output, as critics and reward models have it."""
        return self.trunk() + self.embedding + self.hidden

    def adapter(self, rank: int) -> int:
        """LoRA on every matrix of the layers: A is rank x in, B is out x rank."""
        return self.layers * rank * sum(i + o for i, o in self.linears(self.experts))

    def activations(self, number: int) -> int:
        """Bytes that one token leaves in one layer for the backward pass, at `number` bytes a number.

        Counted on transformers' layers with SDPA or FlashAttention, which do not keep the T x T scores; tests
        measure it. A norm keeps its input in float32. Fused kernels keep less. GPT's layer with dropout keeps
        34 hidden + 5 heads T bytes in 16 bits (Korthikanti et al. 2022, arXiv 2205.05198, equation 1).
        """
        norms = 2 * (self.hidden * (4 + 2 * number) + 4)
        attention = number * 2 * (self.q + self.kv) + 4 * self.heads  # q, out, k, v; a log-sum-exp a head
        if self.qk_norm:
            norms += (self.q + self.kv) * (4 + number) + 4 * (self.heads + self.kv_heads)
        expert = 4 * self.ffn + 2 * self.hidden * (
            self.experts > 1
        )  # gate, silu, up, product; own in and out
        return norms + attention + number * expert * self.experts_per_token

    def cache(self, number: int) -> int:
        """Bytes of keys and values that one token leaves in the sampler, over all layers."""
        return 2 * self.layers * self.kv * number

    def forward(self, tokens: int, length: int, scalar: bool = False) -> int:
        """Floating-point operations of a forward pass over `tokens`, in sequences of `length`.

        2 for each weight that multiplies a token (looking up an embedding is none), and the attention: scores and
        weighted values, 4 q a layer for each token looked at, of which there are length / 2 on average.
        """
        multiplied = self.trunk(self.experts_per_token) + (self.hidden if scalar else self.embedding)
        return tokens * (2 * multiplied + 2 * self.layers * self.q * length)


MODELS = {
    "SmolLM2-135M": Architecture(576, 30, 9, 3, 1536, 49152, tied=True),
    "SmolLM2-360M": Architecture(960, 32, 15, 5, 2560, 49152, tied=True),
    "Qwen2.5-0.5B": Architecture(896, 24, 14, 2, 4864, 151936, tied=True, qkv_bias=True),
    "Qwen3-0.6B": Architecture(1024, 28, 16, 8, 3072, 151936, tied=True, head_size=128, qk_norm=True),
    "Llama-3.2-1B": Architecture(2048, 16, 32, 8, 8192, 128256, tied=True),
    "Qwen2.5-7B": Architecture(3584, 28, 28, 4, 18944, 152064, qkv_bias=True),
    "Llama-3-8B": Architecture(4096, 32, 32, 8, 14336, 128256),
    "Qwen3-30B-A3B": Architecture(
        2048, 48, 32, 4, 768, 151936, head_size=128, qk_norm=True, experts=128, experts_per_token=8
    ),
    "Llama-3-70B": Architecture(8192, 80, 64, 8, 28672, 128256),
}

# Which models stand beside the policy. GRPO as in its paper; DAPO judges by a rule and has no KL.
METHODS = {
    "PPO": ("critic", "reference", "reward"),
    "GRPO": ("reference", "reward"),
    "DAPO": (),
    "DPO": ("reference",),
    "KTO": ("reference",),
}
ONLINE = ("PPO", "GRPO", "DAPO")

# Bytes a parameter. In mixed precision Adam works on a float32 copy (ZeRO's paper, arXiv 1910.02054, section 3.1).
# Where gradients are accumulated in float32 it is 18 and not 16.
BYTES = {
    "bf16": {"weights": 2, "gradients": 2, "moments": 8, "master": 4},
    "fp32": {"weights": 4, "gradients": 4, "moments": 8, "master": 0},
}
# What each ZeRO stage divides among the devices.
SHARDED = [
    (),
    ("moments", "master"),
    ("moments", "master", "gradients"),
    ("moments", "master", "gradients", "weights"),
]


def readable(number: int, unit: str) -> str:
    """Three digits and a prefix.

    >>> readable(1_128_800_000_000, "B"), readable(140 * 10**9, "B"), readable(0, "B")
    ('1.13 TB', '140 GB', '–')
    """
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 0.9995 * 10**power:
            value = number / 10**power
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0  # behind the point, after rounding
            return f"{value:.{digits}f} {prefix}{unit}"
    return f"{number:.0f} {unit}" if number else "–"


@dataclass(frozen=True)
class Table:
    """Numbers by row and column, with their sums; a notebook shows it as a table."""

    title: str
    unit: str
    cells: dict[str, dict[str, int]]
    note: str = ""

    def row(self, name: str) -> int:
        return sum(self.cells[name].values())

    def column(self, name: str) -> int:
        return sum(row.get(name, 0) for row in self.cells.values())

    @property
    def total(self) -> int:
        return sum(map(self.row, self.cells))

    def lines(self) -> list[list[str]]:
        columns = list(dict.fromkeys(name for row in self.cells.values() for name in row))
        rows = [[name, *(row.get(c, 0) for c in columns), self.row(name)] for name, row in self.cells.items()]
        rows.append(["together", *map(self.column, columns), self.total])
        told = [[name, *(readable(number, self.unit) for number in numbers)] for name, *numbers in rows]
        return [["", *columns, "together"], *told]

    def __str__(self) -> str:
        lines = self.lines()
        widths = [max(map(len, column)) for column in zip(*lines)]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
        return "\n".join([self.title, *table, *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        (_, *head), *body = self.lines()
        style = "style='padding: 0.1em 0.7em; text-align: right; white-space: nowrap'"  # a widget brings none
        rows = ["<td></td>" + "".join(f"<th scope='col' {style}>{cell}</th>" for cell in head)]
        for name, *cells in body:
            numbers = "".join(f"<td {style}>{cell}</td>" for cell in cells)
            rows.append(f"<th scope='row' {style}>{name}</th>{numbers}")
        title = f"<caption style='text-align: left'>{html.escape(self.title)}</caption>"
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        return (
            f"<table style='border-collapse: collapse'>{title}{table}</table><p>{html.escape(self.note)}</p>"
        )


def described(model: str | Architecture, method: str, **sizes: int) -> Architecture:
    """The model's numbers; or what is wrong with the question."""
    if wrong := {name: size for name, size in sizes.items() if size < (name in ("batch", "devices"))}:
        raise ValueError(f"A batch and the devices are at least 1, lengths and rank at least 0; got {wrong}.")
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r} here: choose one of {', '.join(METHODS)}.")
    if isinstance(model, str) and model not in MODELS:
        raise ValueError(
            f"There is no model {model!r} here: {', '.join(MODELS)}; or describe an Architecture."
        )
    return MODELS[model] if isinstance(model, str) else model


def memory(
    model: str | Architecture,
    method: str = "PPO",
    precision: str = "bf16",
    zero: int = 0,
    devices: int = 1,
    batch: int = 8,
    prompt: int = 512,
    response: int = 512,
    checkpointing: bool = True,
    lora: int = 0,
) -> Table:
    """Bytes on each device, every model as large as the policy.

    `batch` is what one device samples, and learns from, at a time: sequences, for DPO pairs. `lora` is the rank,
    0 for none. ZeRO divides what is learned; at stage 3 the weights of frozen models too.

    >>> critic = memory("Llama-3-70B", "PPO").cells["critic"]
    >>> states = sum(critic[kind] for kind in ("weights", "gradients", "moments", "master"))
    >>> readable(critic["weights"], "B"), readable(states, "B")
    ('139 GB', '1.11 TB')
    """
    sizes = dict(devices=devices, batch=batch, prompt=prompt, response=response, lora=lora)
    shape = described(model, method, **sizes)
    if precision not in BYTES or zero not in range(4):
        raise ValueError(
            f"precision is {' or '.join(BYTES)} and zero a stage from 0 to 3; got {precision=}, {zero=}."
        )
    each, number = BYTES[precision], BYTES[precision]["weights"]

    def stored(kind: str, parameters: int) -> int:
        return ceil(each[kind] * parameters / (devices if kind in SHARDED[zero] else 1))

    sequences = batch * (2 if method == "DPO" else 1)
    tokens = sequences * (prompt + response)
    cells: dict[str, dict[str, int]] = {}
    for name in ("policy", *METHODS[method]):
        parameters = shape.scalar_parameters if name in ("critic", "reward") else shape.parameters
        learns = name in ("policy", "critic")
        adapter = shape.adapter(lora) if learns else 0
        if name == "reference" and lora:
            parameters = 0  # it is the policy with its adapter off
        cells[name] = row = {"weights": stored("weights", parameters + adapter)}
        if not learns:
            continue
        for kind in ("gradients", "moments", "master"):
            row[kind] = stored(kind, adapter if lora else parameters)
        # Checkpointing keeps each layer's input, and one layer in full while it is computed again.
        kept = shape.layers * shape.hidden * number + shape.activations(number)
        row["activations"] = tokens * (kept if checkpointing else shape.layers * shape.activations(number))
        if name == "policy":
            # float32 log-probabilities of every word, and their gradient
            row["logits"] = sequences * response * shape.vocabulary * 8
            if method in ONLINE:
                row["KV cache"] = tokens * shape.cache(number)
    table = Table(f"{method}, {precision}, ZeRO {zero} on {devices}: memory of one device", "B", cells)
    learning, sampling = table.column("activations") + table.column("logits"), table.column("KV cache")
    peak = readable(table.total - min(learning, sampling), "B")
    return (
        replace(table, note=f"At most {peak} at one time: it samples, or it learns.") if sampling else table
    )


def compute(
    model: str | Architecture,
    method: str = "PPO",
    batch: int = 8,
    prompt: int = 512,
    response: int = 512,
    checkpointing: bool = True,
    lora: int = 0,
) -> Table:
    """Floating-point operations of one pass over a batch: to sample it, to score it, to learn from it once.

    Learning is 6 N D: 2 N D forward, and backward 2 N D for what comes in and 2 N D for the weights, which LoRA
    spares. Checkpointing runs forward once more. How long it takes is another matter: a sampler reads all weights
    for every token, and waits for memory, not for arithmetic.
    """
    shape = described(model, method, batch=batch, prompt=prompt, response=response, lora=lora)
    length, online = prompt + response, method in ONLINE
    tokens = batch * (2 if method == "DPO" else 1) * length
    cells = {}
    for name in ("policy", *METHODS[method]):
        scalar, policy = name in ("critic", "reward"), name == "policy"
        forward, spared = shape.forward(tokens, length, scalar), shape.forward(tokens, 0, scalar) * (lora > 0)
        cells[name] = {
            "sampling": forward * (policy and online),
            # The policy's own log-probabilities too: those of a sampling engine are not quite the trainer's.
            "scoring": forward * (online or not policy),
            "learning": (forward * (3 + checkpointing) - spared) * (name in ("policy", "critic")),
        }
    return Table(f"{method}: arithmetic of one batch of {tokens:,} tokens", "FLOP", cells)


def memory_widget():
    """The calculator: choose, and the tables follow."""
    import ipywidgets as widgets

    choices = {
        "model": widgets.Dropdown(options=list(MODELS), value="Llama-3-70B"),
        "method": widgets.Dropdown(options=list(METHODS)),
        "precision": widgets.Dropdown(options=list(BYTES)),
        "zero": widgets.Dropdown(options=[0, 1, 2, 3], description="ZeRO stage"),
        "devices": widgets.Dropdown(options=[2**k for k in range(11)]),
        "batch": widgets.Dropdown(options=[2**k for k in range(9)], value=8),
        "prompt": widgets.Dropdown(options=[2**k for k in range(6, 15)], value=512),
        "response": widgets.Dropdown(options=[2**k for k in range(6, 16)], value=512),
        "checkpointing": widgets.Checkbox(value=True),
        "lora": widgets.Dropdown(options=[0, 8, 16, 64, 256], description="LoRA rank"),
    }
    for name, choice in choices.items():
        choice.description = choice.description or name
    tables = widgets.HTML()

    def update(_=None) -> None:
        chosen = {name: choice.value for name, choice in choices.items()}
        work = {name: value for name, value in chosen.items() if name not in ("precision", "zero", "devices")}
        tables.value = memory(**chosen)._repr_html_() + compute(**work)._repr_html_()

    for choice in choices.values():
        choice.observe(update, "value")
    update()
    grid = widgets.GridBox(list(choices.values()), layout={"grid_template_columns": "repeat(2, 22em)"})
    return widgets.VBox([grid, tables])
