"""The memory calculator against published sizes, against transformers and torch, and by hand."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlcourse.practice.memory import (
    BYTES,
    METHODS,
    MODELS,
    Architecture,
    Table,
    compute,
    memory,
    memory_widget,
    readable,
)

# The parameters that each model's safetensors index on the Hub counts.
PUBLISHED = {
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen3-0.6B": 596_049_920,
    "Llama-3.2-1B": 1_235_814_400,
    "Qwen2.5-7B": 7_615_616_512,
    "Llama-3-8B": 8_030_261_248,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Llama-3-70B": 70_553_706_496,
}
STATES = ("weights", "gradients", "moments", "master")
# so small that autograd can be watched at it, and no two of its numbers alike
TINY = Architecture(48, 2, 6, 2, 80, 50, head_size=16)


def config(shape: Architecture) -> dict:
    """The numbers of an architecture, as transformers calls them."""
    return dict(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, intermediate_size=shape.ffn, vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied, head_dim=shape.q // shape.heads,
    )  # fmt: skip


def built(shape: Architecture, **more):
    """The model itself, of the family that has these features."""
    if shape.experts > 1:
        return Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **config(shape),
                moe_intermediate_size=shape.ffn,
                num_experts=shape.experts,
                num_experts_per_tok=shape.experts_per_token,
                **more,
            )  # fmt: skip
        )
    if shape.qk_norm:
        return Qwen3ForCausalLM(Qwen3Config(**config(shape), **more))
    if shape.qkv_bias:
        return Qwen2ForCausalLM(Qwen2Config(**config(shape), **more))
    return LlamaForCausalLM(LlamaConfig(**config(shape), **more))


# Parameters


def test_every_model_has_its_published_size():
    assert {name: shape.parameters for name, shape in MODELS.items()} == PUBLISHED


@pytest.mark.parametrize("name", MODELS)
def test_transformers_counts_the_same(name):
    with torch.device("meta"):
        assert built(MODELS[name]).num_parameters() == MODELS[name].parameters


def test_a_critic_has_no_output_layer():
    for name in ("Llama-3.2-1B", "Llama-3-8B"):
        with torch.device("meta"):
            critic = LlamaForSequenceClassification(LlamaConfig(**config(MODELS[name]), num_labels=1))
        assert critic.num_parameters() == MODELS[name].scalar_parameters


def test_the_smallest_decoder_by_hand():
    # q, o 2x2, k, v 2x1, three 2x3 of the ffn, two norms of 2, a last norm of 2, and 5 words of 2 twice
    shape = Architecture(hidden=2, layers=1, heads=2, kv_heads=1, ffn=3, vocabulary=5)
    assert shape.parameters == 4 + 4 + 2 + 2 + 3 * 6 + 2 * 2 + 2 + 10 + 10
    # LoRA of rank 1: in + out of each of the seven
    assert shape.adapter(1) == 4 + 4 + 3 + 3 + 3 * 5


def test_a_mixture_uses_a_part_of_itself():
    shape = MODELS["Qwen3-30B-A3B"]
    active = shape.trunk(shape.experts_per_token) + 2 * shape.embedding
    assert active == pytest.approx(3.3e9, rel=0.02)  # as published: "30.5B in total and 3.3B activated"


# Memory


def test_what_a_70b_critic_costs():
    critic = memory("Llama-3-70B", "PPO").cells["critic"]
    assert critic["weights"] == pytest.approx(140e9, rel=0.02)
    assert sum(critic[kind] for kind in STATES) == 8 * critic["weights"]  # 16 bytes a parameter, and not 2
    assert sum(critic[kind] for kind in STATES) == pytest.approx(1.1e12, rel=0.02)


@pytest.mark.parametrize("precision", BYTES)
def test_what_learns_takes_sixteen_bytes_a_parameter(precision):
    assert sum(BYTES[precision].values()) == 16


def test_grpo_drops_the_critic_and_nothing_else():
    ppo, grpo = memory("Llama-3-8B", "PPO"), memory("Llama-3-8B", "GRPO")
    assert grpo.cells == {name: row for name, row in ppo.cells.items() if name != "critic"}
    assert ppo.total - grpo.total == ppo.row("critic")


def test_the_frozen_models_have_weights_only():
    for method in METHODS:
        cells = memory("Qwen2.5-0.5B", method).cells
        assert all(set(cells[name]) == {"weights"} for name in ("reference", "reward") if name in cells)


def kept_by_autograd(shape: Architecture, dtype: torch.dtype, sequences: int = 2, length: int = 32) -> float:
    """Bytes a token that the layers of a real model leave for the backward pass, weights not counted."""
    model = built(shape, attn_implementation="sdpa").to(dtype)
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    tokens = torch.arange(sequences * length).view(sequences, length) % shape.vocabulary
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(tokens, use_cache=False).logits
    assert logits.requires_grad
    return sum(storage.nbytes() for storage in kept.values()) / tokens.numel()


@pytest.mark.parametrize("dtype, number", [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_layer_keeps_for_the_backward_pass_what_autograd_keeps(dtype, number, qk_norm):
    shapes = [Architecture(48, layers, 6, 2, 80, 50, head_size=16, qk_norm=qk_norm) for layers in (1, 2)]
    one, two = (kept_by_autograd(shape, dtype) for shape in shapes)
    assert two - one == shapes[0].activations(number)


def test_a_mixture_keeps_about_what_autograd_keeps():
    shapes = [
        Architecture(48, layers, 6, 2, 80, 50, head_size=16, qk_norm=True, experts=8, experts_per_token=2)
        for layers in (1, 2)
    ]
    one, two = (kept_by_autograd(shape, torch.float32) for shape in shapes)
    assert two - one == pytest.approx(shapes[0].activations(4), rel=0.02)  # the router's numbers are left out


def test_checkpointing_keeps_a_layers_input_and_one_layer_by_hand():
    given = dict(batch=3, prompt=5, response=2, precision="fp32")
    every = memory(TINY, "DAPO", checkpointing=False, **given).cells["policy"]["activations"]
    some = memory(TINY, "DAPO", checkpointing=True, **given).cells["policy"]["activations"]
    assert every == 21 * 2 * TINY.activations(4)
    assert some == 21 * (TINY.activations(4) + 2 * 48 * 4)


def test_the_cache_is_transformers_own():
    with torch.no_grad():
        cache = built(TINY)(
            torch.zeros(3, 7, dtype=torch.long), past_key_values=DynamicCache()
        ).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 3 * 7 * TINY.cache(4)
    assert memory(TINY, "GRPO", precision="fp32", batch=3, prompt=5, response=2).column("KV cache") == held


def test_the_cache_of_an_8b_model_by_hand():
    # 2 (keys, values) x 32 layers x 8 heads x 128 numbers x 2 bytes: 128 KiB a token; with 32 key heads four times that
    assert MODELS["Llama-3-8B"].cache(2) == 128 * 1024
    assert Architecture(4096, 32, 32, 32, 14336, 128256).cache(2) == 512 * 1024


def test_logits_by_hand():
    # 3 answers of 2 tokens, 50 words, float32, and the gradient again
    assert memory(TINY, "KTO", batch=3, prompt=5, response=2).column("logits") == 3 * 2 * 50 * 4 * 2


def test_a_pair_is_two_sequences_and_nothing_is_sampled_for_it():
    pairs, verdicts = (memory(TINY, method, batch=4).cells["policy"] for method in ("DPO", "KTO"))
    assert pairs["activations"] == 2 * verdicts["activations"] and pairs["logits"] == 2 * verdicts["logits"]
    assert "KV cache" not in pairs and "KV cache" not in verdicts


@pytest.mark.parametrize("precision", BYTES)
def test_each_zero_stage_divides_one_thing_more(precision):
    alone = memory("Llama-3-8B", "PPO", precision=precision)
    for stage, divided in enumerate([(), ("moments", "master"), ("moments", "master", "gradients"), STATES]):
        table = memory("Llama-3-8B", "PPO", precision=precision, zero=stage, devices=64)
        for name, row in alone.cells.items():
            for kind, size in row.items():
                expected = size / 64 if kind in divided else size
                assert table.cells[name][kind] == pytest.approx(expected, abs=1), (stage, name, kind)


def test_zero_over_one_device_saves_nothing():
    assert len({memory(TINY, zero=stage).total for stage in range(4)}) == 1


def test_zero_stages_by_the_paper():
    # 7.5 billion parameters on 64 devices: 120, 31.4, 16.6 and 1.9 GB (Rajbhandari et al. 2020, figure 1)
    for stage, gigabytes in enumerate([120, 31.4, 16.6, 1.9]):
        row = memory("Llama-3-8B", "DAPO", zero=stage, devices=64).cells["policy"]
        a_parameter = sum(row[kind] for kind in STATES) / MODELS["Llama-3-8B"].parameters
        assert 7.5 * a_parameter == pytest.approx(gigabytes, abs=0.05)


def test_lora_leaves_no_optimizer_state_for_frozen_weights():
    whole, lora = memory("Llama-3-8B", "PPO"), memory("Llama-3-8B", "PPO", lora=16)
    adapter = MODELS["Llama-3-8B"].adapter(16)
    for name in ("policy", "critic"):
        row = lora.cells[name]
        assert (row["gradients"], row["moments"], row["master"]) == (2 * adapter, 8 * adapter, 4 * adapter)
        assert row["weights"] == whole.cells[name]["weights"] + 2 * adapter
        assert (
            row["activations"] == whole.cells[name]["activations"]
        )  # gradients still flow through every layer
    assert lora.row("reference") == 0  # the policy with its adapter off
    assert lora.row("reward") == whole.row("reward")


def test_the_peak_is_of_sampling_or_of_learning():
    learns = memory("Qwen2.5-0.5B", "GRPO")
    rest = learns.total - learns.column("KV cache")
    assert learns.note.startswith(f"At most {rest / 1e9:.1f} GB at one time")
    ungrouped = Architecture(4096, 32, 32, 32, 14336, 128256)  # its cache is four times as large
    samples = memory(ungrouped, "GRPO", batch=64, response=0)
    rest = samples.total - samples.column("activations")
    assert samples.note.startswith(f"At most {rest / 1e9:.0f} GB at one time")
    assert memory("Qwen2.5-0.5B", "DPO").note == ""  # nothing is sampled


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(model="Llama-4"), "There is no model 'Llama-4' here: SmolLM2-135M"),
        (dict(method="TRPO"), "There is no method 'TRPO' here: choose one of PPO, GRPO"),
        (dict(zero=4), "zero a stage from 0 to 3; got precision='bf16', zero=4"),
        (dict(precision="int4"), "bf16 or fp32"),
        (dict(devices=0), "at least 1, lengths and rank at least 0; got {'devices': 0}"),
        (dict(response=-1), "got {'response': -1}"),
    ],
)
def test_a_question_without_an_answer_is_told_what_is_wrong(wrong, said):
    with pytest.raises(ValueError) as told:
        memory(**{"model": "Llama-3-8B", **wrong})
    assert said in str(told.value)


# Compute


def counted(shape: Architecture, backward: bool) -> dict[str, int]:
    """What torch counts over 2 x 32 tokens, by kind of product; attention is spelled out to be counted."""
    model = built(shape, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(2, 32, dtype=torch.long), use_cache=False).logits
        if backward:
            logits.sum().backward()
    return {
        str(kind).removeprefix("aten."): flops for kind, flops in counter.get_flop_counts()["Global"].items()
    }


def test_forward_is_two_operations_a_weight_and_a_token():
    norms = (2 * TINY.layers + 1) * TINY.hidden  # weights that are in no matrix product
    assert counted(TINY, backward=False)["mm"] == TINY.forward(64, 0) - 2 * 64 * norms


def test_causal_attention_is_half_of_what_eager_code_computes():
    assert counted(TINY, backward=False)["bmm"] == 2 * (TINY.forward(64, 32) - TINY.forward(64, 0))


def test_learning_is_three_times_forward():
    forward, learning = counted(TINY, backward=False), counted(TINY, backward=True)
    assert {kind: flops / forward[kind] for kind, flops in learning.items()} == {"mm": 3, "bmm": 3}
    row = compute(TINY, "DAPO", batch=2, prompt=16, response=16, checkpointing=False).cells["policy"]
    assert row["learning"] == 3 * row["sampling"] == 3 * row["scoring"] == 3 * TINY.forward(64, 32)
    row = compute(TINY, "DAPO", batch=2, prompt=16, response=16).cells["policy"]
    assert row["learning"] == 4 * row["sampling"]  # forward is run once more


def test_six_n_d():
    model, tokens = MODELS["Llama-3-70B"], 8 * 1024
    row = compute("Llama-3-70B", "DAPO", checkpointing=False).cells["policy"]
    assert row["learning"] == pytest.approx(6 * model.parameters * tokens, rel=0.02)
    assert row["sampling"] == pytest.approx(2 * model.parameters * tokens, rel=0.02)


def test_lora_spares_the_gradients_of_the_weights():
    whole, lora = (
        compute(TINY, "GRPO", prompt=16, response=0, checkpointing=False, lora=rank).cells["policy"][
            "learning"
        ]
        for rank in (0, 8)
    )
    assert whole - lora == TINY.forward(8 * 16, 0)


def test_nothing_is_sampled_offline_and_only_learners_learn():
    dpo, ppo = compute(TINY, "DPO"), compute(TINY, "PPO")
    assert (
        dpo.column("sampling") == 0
        and dpo.cells["policy"]["scoring"] == 0 < dpo.cells["reference"]["scoring"]
    )
    assert [name for name, row in ppo.cells.items() if row["learning"]] == ["policy", "critic"]
    assert [name for name, row in ppo.cells.items() if row["sampling"]] == ["policy"]
    assert ppo.cells["critic"]["scoring"] < ppo.cells["reference"]["scoring"]  # no output layer


# What a reader sees


def test_a_table_adds_up():
    table = Table("sums", "B", {"a": {"x": 10**9, "y": 2 * 10**9}, "b": {"x": 4 * 10**9}}, "a note")
    assert (table.row("a"), table.column("x"), table.total) == (3e9, 5e9, 7e9)
    assert str(table).split("\n") == [
        "sums",
        "                x        y  together",
        "       a  1.00 GB  2.00 GB   3.00 GB",
        "       b  4.00 GB        –   4.00 GB",
        "together  5.00 GB  2.00 GB   7.00 GB",
        "a note",
    ]
    shown = table._repr_html_()
    assert [re.findall(r">([^<]*)</t[hd]>", row) for row in shown.split("<tr>")[1:]] == table.lines()
    assert "sums" in shown and "a note" in shown


def test_the_widget_follows_its_choices():
    grid, tables = memory_widget().children
    choices = {choice.description: choice for choice in grid.children}
    assert "1.13 TB" in tables.value and "critic" in tables.value  # a 70B critic and what it keeps
    choices["method"].value = "GRPO"
    assert "critic" not in tables.value
    choices["model"].value = "Qwen2.5-0.5B"
    expected = memory("Qwen2.5-0.5B", "GRPO")._repr_html_() + compute("Qwen2.5-0.5B", "GRPO")._repr_html_()
    assert tables.value == expected


# The whole tables, by hand

# q = 6 x 16 = 96, k and v 2 x 16 = 32: a layer's matrices 48x96 + 2 48x32 + 96x48 + 3 48x80 = 23,808, two norms of 48;
# two layers and a last norm 47,856; an embedding and an output layer of 50 x 48. LoRA: 832 numbers a layer and rank.
# A layer keeps of a token, in bf16, 776 bytes for its norms, 536 for attention, 640 for the ffn; in fp32 3,488 in all.
SMALL = dict(batch=3, prompt=5, response=2)
POLICY, CRITIC, ADAPTER = 47_856 + 4_800, 47_856 + 2_400 + 48, 2 * 4 * 832
KEPT = 21 * (2 * 48 * 2 + 776 + 536 + 640)


def test_memory_of_ppo_by_hand_cell_by_cell():
    table = memory(TINY, "PPO", **SMALL)
    assert table.cells == {
        "policy": {
            "weights": 2 * POLICY, "gradients": 2 * POLICY, "moments": 8 * POLICY, "master": 4 * POLICY,
            "activations": KEPT, "logits": 3 * 2 * 50 * (4 + 4), "KV cache": 21 * (2 * 2 * 32 * 2),
        },
        "critic": {
            "weights": 2 * CRITIC, "gradients": 2 * CRITIC, "moments": 8 * CRITIC, "master": 4 * CRITIC,
            "activations": KEPT,
        },
        "reference": {"weights": 2 * POLICY},
        "reward": {"weights": 2 * CRITIC},
    }  # fmt: skip
    assert table.total == 1_951_104 and table.title == "PPO, bf16, ZeRO 0 on 1: memory of one device"
    assert table.note == "At most 1.95 MB at one time: it samples, or it learns." and table.unit == "B"


def test_memory_in_float32_has_no_second_copy_and_activations_of_twice_the_size():
    row = memory(TINY, "DAPO", precision="fp32", checkpointing=False, **SMALL).cells["policy"]
    assert row == {
        "weights": 4 * POLICY, "gradients": 4 * POLICY, "moments": 8 * POLICY, "master": 0,
        "activations": 21 * 2 * 3488, "logits": 2400, "KV cache": 21 * (2 * 2 * 32 * 4),
    }  # fmt: skip


def test_memory_with_lora_by_hand():
    cells = memory(TINY, "PPO", lora=4, **SMALL).cells
    assert cells["reference"] == {"weights": 0} and cells["reward"] == {"weights": 2 * CRITIC}
    for name, parameters in (("policy", POLICY), ("critic", CRITIC)):
        states = [cells[name][kind] for kind in STATES]
        assert states == [2 * (parameters + ADAPTER), 2 * ADAPTER, 8 * ADAPTER, 4 * ADAPTER]


def test_a_share_that_does_not_divide_is_rounded_up():
    row = memory(TINY, "DAPO", zero=3, devices=5, **SMALL).cells["policy"]
    assert [row[kind] for kind in STATES] == [21_063, 21_063, 84_250, 42_125]  # 105,312 / 5 = 21,062.4


def test_arithmetic_of_ppo_by_hand_cell_by_cell():
    # a token of the policy multiplies 47,856 + 2,400 weights, of a critic 47,856 + 48; it looks at 7 / 2 others
    policy, critic = (21 * (2 * (47_856 + last) + 2 * 2 * 96 * 7) for last in (2_400, 48))
    table = compute(TINY, "PPO", **SMALL)
    assert table.cells == {
        "policy": {"sampling": policy, "scoring": policy, "learning": 4 * policy},
        "critic": {"sampling": 0, "scoring": critic, "learning": 4 * critic},
        "reference": {"sampling": 0, "scoring": policy, "learning": 0},
        "reward": {"sampling": 0, "scoring": critic, "learning": 0},
    }
    assert (table.title, table.unit) == ("PPO: arithmetic of one batch of 21 tokens", "FLOP")
    spared = compute(TINY, "PPO", lora=4, **SMALL).cells
    assert spared["policy"]["learning"] == 4 * policy - 21 * 2 * (47_856 + 2_400)
    assert spared["critic"]["learning"] == 4 * critic - 21 * 2 * (47_856 + 48)
    assert spared["policy"]["scoring"] == policy
    pairs = compute(TINY, "DPO", **SMALL)
    assert pairs.cells["policy"] == {"sampling": 0, "scoring": 0, "learning": 8 * policy}
    assert pairs.cells["reference"]["scoring"] == 2 * policy and "42 tokens" in pairs.title


def test_a_mixture_keeps_and_multiplies_what_its_experts_of_a_token_do():
    # the same, with 3 experts of which 2 see a token, and a router of 48 x 3
    shape = Architecture(48, 2, 6, 2, 80, 50, head_size=16, experts=3, experts_per_token=2)
    assert shape.parameters - TINY.parameters == 2 * (2 * 3 * 48 * 80 + 48 * 3)
    assert shape.activations(2) == 776 + 536 + 2 * 2 * (4 * 80 + 2 * 48)
    assert shape.forward(1, 0) - TINY.forward(1, 0) == 2 * 2 * (3 * 48 * 80 + 48 * 3)
    assert shape.adapter(1) - TINY.adapter(1) == 2 * 2 * 3 * (48 + 80)


def test_who_stands_beside_the_policy():
    assert {method: list(memory(TINY, method).cells) for method in METHODS} == {
        "PPO": ["policy", "critic", "reference", "reward"],
        "GRPO": ["policy", "reference", "reward"],
        "DAPO": ["policy"],
        "DPO": ["policy", "reference"],
        "KTO": ["policy", "reference"],
    }
    sampled = {method for method in METHODS if compute(TINY, method).column("sampling")}
    assert sampled == {method for method in METHODS if memory(TINY, method).column("KV cache")}
    assert sampled == {"PPO", "GRPO", "DAPO"}


def test_what_is_taken_where_nothing_is_said():
    said = dict(batch=8, prompt=512, response=512, checkpointing=True, lora=0)
    assert memory(TINY) == memory(TINY, "PPO", precision="bf16", zero=0, devices=1, **said)
    assert compute(TINY) == compute(TINY, "PPO", **said)
    plain = Architecture(48, 2, 6, 2, 80, 50)
    assert plain == Architecture(48, 2, 6, 2, 80, 50, False, None, False, False, 1, 1) and plain.q == 48


@pytest.mark.parametrize(
    "number, told",
    [
        (0, "–"), (1, "1 B"), (999, "999 B"), (1000, "1.00 kB"), (9_600, "9.60 kB"), (9_994, "9.99 kB"),
        (9_996, "10.0 kB"), (12_340, "12.3 kB"), (99_600, "99.6 kB"), (99_960, "100 kB"), (123_400, "123 kB"),
        (999_400, "999 kB"), (999_600, "1.00 MB"), (25 * 10**8, "2.50 GB"), (14 * 10**10, "140 GB"),
        (3 * 10**12, "3.00 TB"), (421 * 10**13, "4.21 PB"), (505 * 10**16, "5.05 EB"), (7 * 10**20, "700 EB"),
    ],
)  # fmt: skip
def test_three_digits_and_a_prefix(number, told):
    assert readable(number, "B") == told


@pytest.mark.parametrize("name", ["batch", "devices"])
def test_one_is_enough_where_there_must_be_one(name):
    memory(TINY, **{name: 1})
    with pytest.raises(ValueError, match=f"got {{'{name}': 0}}"):
        memory(TINY, **{name: 0})


@pytest.mark.parametrize("name", ["prompt", "response", "lora"])
def test_none_is_enough_where_there_may_be_none(name):
    memory(TINY, **{name: 0})
    for question in (memory, compute):
        with pytest.raises(ValueError, match=f"got {{'{name}': -1}}"):
            question(TINY, **{name: -1})


def test_the_widget_asks_for_everything_that_the_calculator_takes():
    grid, tables = memory_widget().children
    choices = {choice.description: choice for choice in grid.children}
    for name, value in {
        "precision": "fp32", "devices": 64, "ZeRO stage": 3, "batch": 16, "prompt": 1024, "response": 2048,
        "checkpointing": False, "LoRA rank": 16,
    }.items():  # fmt: skip
        before = tables.value
        choices[name].value = value
        assert tables.value != before, name
    work = dict(batch=16, prompt=1024, response=2048, checkpointing=False, lora=16)
    expected = memory("Llama-3-70B", "PPO", "fp32", 3, 64, **work)._repr_html_()
    assert tables.value == expected + compute("Llama-3-70B", "PPO", **work)._repr_html_()
