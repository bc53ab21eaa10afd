"""What a model has read, kept so that the next token costs one step: for any causal model of transformers.

`llama.Cache` is the same for a plain Llama on a CPU, where every operation's overhead counts. A GPU wants the
opposite of what a CPU wants. To launch a step's thousand small kernels one by one takes it longer than
to run them; so they are recorded once, as a CUDA graph, and launched together from then on. A recording holds
addresses and shapes: nothing in a step may change either, or ask the GPU for a number to decide by.
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import StaticLayer

from rlcourse.lm.routing import has_experts


class TransformersCache:
    """Through transformers' own cache, which grows by a column a step."""

    def __init__(self, model, prompt_tokens, prompt_mask, owner, max_tokens: int):
        self.model = model
        positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
        out = model(
            prompt_tokens,
            attention_mask=prompt_mask.long(),
            position_ids=positions,
            logits_to_keep=1,
            use_cache=True,
        )
        self.cache, self.logits = out.past_key_values, out.logits[owner, -1]
        self.cache.batch_select_indices(owner)
        self.mask, self.position = prompt_mask[owner], positions[owner, -1]

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token a row; the logits of the next."""
        self.position = self.position + 1
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        out = self.model(
            tokens[:, None],
            attention_mask=self.mask.long(),
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Forget the rows that have finished, so that they cost nothing more."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


def divided(model) -> bool:
    """Do several processes hold a part of it each (FSDP2)?"""
    return hasattr(model, "unshard")


def can_be_recorded(model) -> bool:
    """Is a step of this model the same kernels always?

    Not with sliding windows, nor where tokens choose experts, nor where weights lie on several GPUs, nor where
    the rotary embedding looks how long the text has become.
    """
    config = model.config
    rope = str(getattr(config, "rope_parameters", None))
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config._attn_implementation == "sdpa"
        and model._can_compile_fullgraph
        and kinds == {"full_attention"}
        and not getattr(config, "sliding_window", None)
        and not has_experts(model)
        and not ("dynamic" in rope or "longrope" in rope)
        and not divided(model)
    )


class Columns(StaticLayer):
    """A layer's keys and values, in the precision that attention computes in.

    Under autocast the keys come in float32, as the rotary embedding is, and the values do not.
    """

    def update(self, keys: Tensor, values: Tensor, *rest) -> tuple[Tensor, Tensor]:
        if torch.is_autocast_enabled(keys.device.type):
            dtype = torch.get_autocast_dtype(keys.device.type)
            keys, values = keys.to(dtype), values.to(dtype)
        return super().update(keys, values, *rest)


class StaticCache(TransformersCache):
    """All columns allocated at the start, and what changes from step to step is in tensors that stay.

    On a GPU the first step runs as it is written, the second is recorded, and from then on the recording
    is replayed. On a CPU every step runs as it is written: the same code, and so testable.
    """

    def __init__(self, model, prompt_tokens, prompt_mask, owner, max_tokens: int):
        super().__init__(model, prompt_tokens, prompt_mask, owner, max_tokens)
        width = -(-(prompt_tokens.shape[1] + max_tokens) // 64) * 64  # kernels like round numbers
        read, self.cache = self.cache, transformers.Cache([Columns(width) for _ in self.cache.layers])
        for layer, prompt in zip(self.cache.layers, read.layers, strict=True):
            layer.update(prompt.keys, prompt.values)
        self.seen = pad(self.mask, (0, width - self.mask.shape[1]))[:, None, None]  # [B 1 1 width]
        self.column = torch.tensor([self.mask.shape[1]], device=owner.device)
        self.tokens, self.steps, self.graph = owner[:, None].clone(), 0, None

    def step(self, tokens: Tensor) -> Tensor:
        self.tokens.copy_(tokens[:, None])
        self.steps += 1
        if self.graph is None and tokens.is_cuda and self.steps == 2:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # recorded, not run
                self.logits = self._step()
        if self.graph is None:
            self.logits = self._step()
        else:
            self.graph.replay()
        return self.logits

    def _step(self) -> Tensor:
        self.seen.index_fill_(-1, self.column, True)  # from now on this token can be seen
        self.column += 1
        self.position += 1
        out = self.model(
            self.tokens,
            attention_mask=self.seen,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.tokens, self.seen, self.position = self.tokens[rows], self.seen[rows], self.position[rows]
        self.steps, self.graph = 0, None  # other shapes and addresses: recorded anew
