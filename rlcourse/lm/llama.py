"""A lean forward pass over a transformers Llama's own weights.

Nothing here changes what is computed: a test holds it to `LlamaForCausalLM` in values and
gradients. It exists because, at the size of the pocket models, most of a training step is not
arithmetic but padding and bookkeeping. Two ideas, both about not doing work twice:

- Every layer's token-by-token work (norms, projections, MLP) runs on one flat list of *real*
  tokens, [N, D]. Only attention needs rows and columns, so only attention pads.
- The G responses to a prompt share it. Its keys and values are computed once and looked up by
  `owner`, when sampling and when scoring alike, gradients included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def fits(model) -> bool:
    """Is this a plain Llama: SiLU, no biases, no scaled rotary embedding, full attention?

    By the class's own name: weights that an adapter or an engine for many GPUs has wrapped, or that are quantised,
    are not read as they lie.
    """
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model).__name__ == "LlamaForCausalLM"  # and not what an adapter or FSDP has made of it
        and getattr(config, "quantization_config", None) is None  # packed weights are no matrices
        and config.hidden_act == "silu"
        and not (config.attention_bias or config.mlp_bias)
        and rope.get("rope_type", "default") == "default"
    )


class Weights:
    """One view of the model's parameters, q/k/v and gate/up laid side by side: fewer, larger products."""

    def __init__(self, model):
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self.embedding, self.norm = model.model.embed_tokens.weight, model.model.norm.weight
        self.padding_idx = (
            model.model.embed_tokens.padding_idx
        )  # a token without gradient, as in transformers
        self.head = model.lm_head.weight
        self.inv_freq = model.model.rotary_emb.inv_freq
        self.layers = []
        for layer in model.model.layers:
            a, m = layer.self_attn, layer.mlp
            self.layers.append(
                (
                    layer.input_layernorm.weight,
                    torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]),
                    a.o_proj.weight,
                    layer.post_attention_layernorm.weight,
                    torch.cat([m.gate_proj.weight, m.up_proj.weight]),
                    m.down_proj.weight,
                )
            )

    def rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None].float() * self.inv_freq
        angles = torch.cat([angles, angles], -1)[:, None]  # [N 1 head_dim]: the same for every head
        return angles.cos().to(self.embedding.dtype), angles.sin().to(self.embedding.dtype)

    def qkv(self, x: Tensor, norm: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[N D] -> queries [N heads head_dim], and keys and values together [N 2 kv_heads head_dim]."""
        n, rotated = len(x), self.heads + self.kv_heads
        projected = F.linear(self.rms(x, norm), weight).view(n, -1, self.head_dim)
        qk = projected[:, :rotated]
        half = self.head_dim // 2
        qk = qk * cos + torch.cat([-qk[..., half:], qk[..., :half]], -1) * sin
        kv = torch.stack([qk[:, self.heads :], projected[:, rotated:]], 1)
        return qk[:, : self.heads], kv

    def mlp(self, x: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = F.linear(self.rms(x, norm), gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, down)

    def attend(self, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        """q [B T heads d], kv [B K 2 kv_heads d], mask [B T K] -> [B T heads*d]."""
        k, v = kv.unbind(2)
        if self.kv_heads < self.heads:
            repeat = self.heads // self.kv_heads
            k, v = k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask[:, None]
        )
        return out.transpose(1, 2).flatten(2)


def causal(mask: Tensor) -> Tensor:
    """[B T] -> [B T T]: a token sees the real tokens up to itself; padding sees itself, or its softmax were 0/0."""
    T = mask.shape[1]
    seen = torch.ones(T, T, dtype=torch.bool, device=mask.device).tril()
    return seen & mask[:, None] | torch.eye(T, dtype=torch.bool, device=mask.device)


def response_states(
    model, prompt_tokens, prompt_mask, owner, tokens, mask, recompute: bool = False, head: bool = True
) -> tuple[Tensor, Tensor | None]:
    """For every real response token, in the order of `tokens[mask]`: the last hidden state that it is
    drawn from, [N D], and the logits, [N V]. With `recompute` the backward pass computes each layer again."""
    w = Weights(model)
    predicted, before_another = mask, F.pad(mask[:, 1:], (0, 1))
    mask = before_another if before_another.any() else mask  # a last token predicts nothing: not run
    (P, S), (B, T), device = prompt_tokens.shape, tokens.shape, tokens.device
    n_prompt = int(prompt_mask.sum())

    # The flat list: prompt tokens, then response tokens. slot[p, s] and slot[b, t] say where each is;
    # padding borrows slot 0, which no mask lets anyone see.
    p_slot = torch.zeros(P, S, dtype=torch.long, device=device)
    p_slot[prompt_mask] = torch.arange(n_prompt, device=device)
    r_slot = torch.zeros(B, T, dtype=torch.long, device=device)
    r_slot[mask] = torch.arange(int(mask.sum()), device=device)
    p_position = prompt_mask.cumsum(1) - 1
    r_position = prompt_mask.sum(1)[owner, None] + torch.arange(T, device=device)
    cos, sin = w.rotary(torch.cat([p_position[prompt_mask], r_position[mask]]))

    p_sees = causal(prompt_mask)
    r_sees = torch.cat([prompt_mask[owner, None].expand(B, T, S), causal(torch.ones_like(mask))], -1)

    def layer(x, norm, qkv, o, mlp_norm, gate_up, down):
        q, kv = w.qkv(x, norm, qkv, cos, sin)
        p_q, r_q, p_kv, r_kv = (
            *q.split([n_prompt, len(x) - n_prompt]),
            *kv.split([n_prompt, len(x) - n_prompt]),
        )
        p_kv = p_kv[p_slot]
        p_out = w.attend(p_q[p_slot], p_kv, p_sees)[prompt_mask]
        r_out = w.attend(r_q[r_slot], torch.cat([p_kv[owner], r_kv[r_slot]], 1), r_sees)[mask]
        x = x + F.linear(torch.cat([p_out, r_out]), o)
        return x + w.mlp(x, mlp_norm, gate_up, down)

    x = F.embedding(torch.cat([prompt_tokens[prompt_mask], tokens[mask]]), w.embedding, w.padding_idx)
    for weights in w.layers:
        x = checkpoint(layer, x, *weights, use_reentrant=False) if recompute else layer(x, *weights)

    # A response's first token is predicted by its prompt's last, every other one by the token before it.
    last = p_slot.gather(1, p_position.argmax(1, keepdim=True))[owner]
    before = torch.cat([last, n_prompt + r_slot[:, :-1]], 1)[predicted]
    states = w.rms(x[before], w.norm)
    return states, F.linear(states, w.head) if head else None


class Cache:
    """Keys and values of B rows: the prompt's, then one column a step. Allocated once."""

    def __init__(self, model, prompt_tokens, prompt_mask, owner, max_tokens: int):
        self.w = w = Weights(model)
        (P, S), B, device = prompt_tokens.shape, len(owner), owner.device
        positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
        cos, sin = w.rotary(positions.flatten())
        sees = causal(prompt_mask)
        x = F.embedding(prompt_tokens.flatten(), w.embedding)
        self.kv = []
        for norm, qkv, o, mlp_norm, gate_up, down in w.layers:
            q, kv = w.qkv(x, norm, qkv, cos, sin)
            q, kv = q.view(P, S, *q.shape[1:]), kv.view(P, S, *kv.shape[1:])
            x = x + F.linear(w.attend(q, kv, sees).flatten(0, 1), o)
            x = x + w.mlp(x, mlp_norm, gate_up, down)
            rows = kv.new_empty(2, B, w.kv_heads, S + max_tokens, w.head_dim)
            rows[:, :, :, :S] = kv.permute(2, 0, 3, 1, 4)[:, owner]
            self.kv.append(rows)
        last = x.view(P, S, -1)[:, -1]  # left-padded: the last column is every prompt's last token
        self.logits = F.linear(w.rms(last, w.norm), w.head)[owner]
        # added to the attention scores: 0 where there is a token, -inf where there is prompt padding
        self.bias = torch.zeros(B, 1, 1, S + max_tokens, dtype=x.dtype, device=device)
        self.bias[..., :S].masked_fill_(~prompt_mask[owner, None, None], -torch.inf)
        self.position, self.columns = positions[owner, -1], S

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token a row; the logits of the next."""
        w, self.position = self.w, self.position + 1
        cos, sin = w.rotary(self.position)
        here, self.columns = self.columns, self.columns + 1
        bias = self.bias[..., : self.columns]
        x = F.embedding(tokens, w.embedding)
        for (norm, qkv, o, mlp_norm, gate_up, down), cache in zip(w.layers, self.kv, strict=True):
            q, kv = w.qkv(x, norm, qkv, cos, sin)
            cache[:, :, :, here] = kv.transpose(0, 1)
            keys, values = cache[:, :, :, : self.columns]
            # one query a row: plain products beat the fused kernel here; heads that share a key stand together
            q = q.view(len(q), w.kv_heads, -1, w.head_dim) * w.head_dim**-0.5
            out = (q @ keys.transpose(-1, -2) + bias).softmax(-1) @ values
            x = x + F.linear(out.flatten(1), o)
            x = x + w.mlp(x, mlp_norm, gate_up, down)
        return F.linear(w.rms(x, w.norm), w.head)

    def keep(self, rows: Tensor) -> None:
        """Forget the rows that have finished, so that they cost nothing more."""
        self.kv = [cache[:, rows] for cache in self.kv]
        self.bias, self.position = self.bias[rows], self.position[rows]
