"""The pocket models' shapes and their one tokenizer. `bookmaking/pretrain.py` fills them with text."""

from __future__ import annotations

import torch

SPECIAL = {
    "pad": "<|pad|>",
    "bos": "<|bos|>",
    "eos": "<|eos|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
}

CHAT = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|eos|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(texts: list[str]):
    """One token for every word that the texts hold (its leading space included), one for every digit.

    Anything else is spelled in bytes, so that no text is unknown and decoding gives back what went in.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    words = {piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = [*SPECIAL.values(), *sorted(alphabet), *sorted(words - set(alphabet))]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pieces, decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL["pad"],
        bos_token=SPECIAL["bos"],
        eos_token=SPECIAL["eos"],
        extra_special_tokens={"user_token": SPECIAL["user"], "assistant_token": SPECIAL["assistant"]},
        chat_template=CHAT,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer, experts: int = 0, seed: int = 0):
    """A Llama of 128 units and 3 layers; with `experts`, a Qwen3 mixture of experts, 2 a token."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = dict(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    if not experts:
        return LlamaForCausalLM(LlamaConfig(intermediate_size=384, **shape))
    mixture = dict(
        num_experts=experts,
        num_experts_per_tok=2,
        moe_intermediate_size=112,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        router_aux_loss_coef=0.01,
    )
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(intermediate_size=384, **mixture, **shape))
