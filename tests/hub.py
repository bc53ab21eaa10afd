"""Small models under the names of real ones, laid out as a hub cache: their architecture, tokenizer and template.

What is like the real ones is what has bitten somebody: several EOS ids, a PAD that is one of them or is
missing, more rows in the embedding than tokens in the tokenizer, a tied head, keys shared by heads, a scaled rotary
embedding, a template that writes today's date.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VOCABULARY = 1024

TEXT = [
    "What is 17 + 25 + 48? Put the answer in \\boxed{}.",
    "17 + 25 is 42, and 42 + 48 is 90. The answer is \\boxed{90}.",
    "Sorry that your order 4711 is late. We will send it again today.",
    "You are a helpful assistant.",
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: ' }}"
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

QWEN = {
    "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "named": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "template": CHATML,
    "eos": ["<|im_end|>", "<|endoftext|>"],
}
SMOL = QWEN | {
    "named": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "eos": ["<|im_end|>"],
}
META = {
    "special": [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        *("<|start_header_id|>", "<|end_header_id|>"),
    ],
    "named": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "template": HEADERS,
    "eos": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "Qwen/Qwen2.5-0.5B-Instruct": (Qwen2Config, Qwen2ForCausalLM, QWEN, {}),
    "Qwen/Qwen3-0.6B": (Qwen3Config, Qwen3ForCausalLM, QWEN, {"head_dim": 12}),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (LlamaConfig, LlamaForCausalLM, SMOL, {}),
    "meta-llama/Llama-3.2-1B-Instruct": (
        *(LlamaConfig, LlamaForCausalLM, META),
        {"head_dim": 8, "rope_parameters": LLAMA3_ROPE},
    ),
}


def tokenizer_of(style: dict) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(style["special"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=style["template"], **style["named"]
    )


def snapshot(hub: Path, name: str) -> Path:
    """The folder that a download of `name` fills in the cache `hub`."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def download(hub: Path, name: str) -> Path:
    """As if `name` had been downloaded; the weights are random and peaked."""
    configuration, architecture, style, more = MODELS[name]
    tokenizer, folder = tokenizer_of(style), snapshot(hub, name)
    eos = tokenizer.convert_tokens_to_ids(style["eos"])
    config = configuration(
        vocab_size=VOCABULARY,
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos[0],
        **more,
    )
    torch.manual_seed(0)
    model = architecture(config)
    model.generation_config.eos_token_id = eos if len(eos) > 1 else eos[0]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
