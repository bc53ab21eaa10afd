"""Small random models and their tokenizer, peaked enough that a wrong token shows in the log-probs."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

CHARACTERS = ["<pad>", "<bos>", "<eos>", *"0123456789+=# ab"]
CONTEXT = 96


def characters(**special):
    """One token a character; PAD, BOS and EOS differ unless told otherwise."""
    vocabulary = {token: i for i, token in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in names.items() if v})


def build(kind, seed=0):
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(CHARACTERS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, tie_word_embeddings=True, **shape))
    if kind == "llama-gqa":  # two heads share keys and values; a head is wider than hidden / heads
        rope = {"rope_type": "default", "rope_theta": 500.0}
        return LlamaForCausalLM(
            LlamaConfig(num_key_value_heads=2, head_dim=12, rope_parameters=rope, rms_norm_eps=1e-3, **shape)
        )
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **shape))
    if kind == "qwen3-moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(num_key_value_heads=2, head_dim=8, **experts, **shape))
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48}
    rest = {name: shape[name] for name in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")}
    return GPT2LMHeadModel(GPT2Config(**sizes, **rest))
