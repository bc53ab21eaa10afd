"""The benchmark compares like with like, and counts what it says it counts."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]' brings it")
import floor
import growth
import speed
from speed import PAIRS, TINY, OurDPO, OurGRPO, Setting, TheirDPO, TheirGRPO

TALK = Setting(shape=TINY, prompts=4, group=4, max_tokens=6, lr=1e-3)
CHOICES = replace(PAIRS, shape=TINY, prompts=6, lr=1e-3)


@pytest.fixture(autouse=True)
def _quiet():
    speed.quiet(threads=1)


@pytest.fixture(scope="module")
def grpo():
    return OurGRPO(TALK), TheirGRPO(TALK)


def same_weights(ours, theirs, **tolerance):
    for mine, other in zip(ours.policy.model.parameters(), theirs.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


def test_both_sides_of_grpo_begin_with_the_same_weights_and_prompts(grpo):
    ours, theirs = grpo
    same_weights(ours, theirs, atol=0, rtol=0)
    texts = [ours.policy.tokenizer.decode(ours.policy.encode(problem.prompt)) for problem in ours.problems]
    assert [row["prompt"] for row in theirs.rows] == [text for text in texts for _ in range(TALK.group)]


def test_both_sides_of_grpo_sample_and_learn_from_the_same_number_of_tokens(grpo):
    seen = {}
    for side in grpo:
        with torch.random.fork_rng():
            generation, whole = side.step(seed=0)
        assert 0 < generation < whole
        seen[type(side)] = side.length
    assert seen == {OurGRPO: TALK.max_tokens, TheirGRPO: TALK.max_tokens}
    inputs = theirs_last(grpo[1])
    rollout = grpo[0].rollout
    assert inputs["completion_mask"].sum() == rollout.mask.sum() == 16 * 6
    assert inputs["prompt_mask"].sum() == TALK.group * rollout.prompt_mask.sum()


def theirs_last(theirs):
    return theirs.trainer._buffered_inputs[0]


def test_both_sides_of_grpo_have_the_same_loss_and_gradient_on_one_batch():
    ours, theirs = OurGRPO(TALK), TheirGRPO(TALK)
    ours.collect(seed=0)
    batch = ours.rollout
    noise = torch.Generator().manual_seed(0)
    batch.logp = batch.logp + 0.2 * torch.randn(batch.logp.shape, generator=noise) * batch.mask
    batch.advantages = torch.randn(
        len(batch), generator=noise
    )  # a rule finds nothing right in random answers
    inputs = {
        "prompt_ids": batch.prompt_tokens[batch.owner],
        "prompt_mask": batch.prompt_mask[batch.owner].long(),
        "completion_ids": batch.tokens,
        "completion_mask": batch.mask.long(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.logp,
        "num_items_in_batch": batch.mask.sum(),
    }
    trls = theirs.trainer.compute_loss(theirs.trainer.model, inputs)
    trls.backward()
    clipped = torch.nn.utils.clip_grad_norm_(theirs.trainer.model.parameters(), 1.0)
    measured = ours.learn(seed=0)
    assert measured["loss"] == pytest.approx(trls.item(), abs=1e-6) and abs(trls.item()) > 0.01
    assert measured["grad_norm"] == pytest.approx(clipped.item(), rel=1e-4)
    theirs.trainer.optimizer.step()
    same_weights(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_both_sides_of_dpo_have_the_same_loss_step_after_step(micro_batch):
    setting = replace(CHOICES, micro_batch=micro_batch)
    sides = OurDPO(setting), TheirDPO(setting)
    same_weights(*sides, atol=0, rtol=0)
    losses = [[float((side.step(seed), side.loss)[1]) for seed in range(4)] for side in sides]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][0] - losses[0][-1] > 0.05  # and not because nothing moves
    assert sides[0].length == pytest.approx(sides[1].length) and sides[0].length > 20


def test_micro_batches_are_the_same_step_of_grpo_on_trls_side():
    """In tied groups nothing would move, so longer texts earn more."""
    weights = []
    for micro_batch in (None, 4):
        theirs = TheirGRPO(replace(TALK, micro_batch=micro_batch))
        theirs.trainer.reward_funcs = [lambda completions, **_: [float(len(text)) for text in completions]]
        theirs.step(seed=0)
        assert theirs.length == TALK.max_tokens
        weights.append([p.detach().clone() for p in theirs.trainer.model.parameters()])
    for whole, parts in zip(*weights, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpu", "gpu, pairs"])
def test_the_settings_for_a_gpu_run_at_a_tiny_size_on_the_cpu(name):
    setting = speed.SETTINGS[name]
    assert (setting.device, setting.dtype, setting.micro_batch) == ("cuda", "bfloat16", 16)
    shape = speed.QWEN | dict(hidden_size=28, intermediate_size=16, num_hidden_layers=1, vocab_size=700)
    setting = replace(setting, device="cpu", shape=shape, prompts=4, max_tokens=3, micro_batch=2)
    for side in speed.SIDES[setting.method].values():
        made = side(setting)
        made.step(seed=0)
        assert made.policy.model.dtype == torch.bfloat16 and made.policy.model.config.vocab_size == 700
        assert made.length == 3 if setting.method == "GRPO" else made.length > 20


# ---- the floor


def lengths(prompts, answers):
    work = floor.Work(prompts, answers)
    return work, LlamaConfig(
        hidden_size=12, num_attention_heads=6, num_key_value_heads=6, head_dim=4, intermediate_size=20,
        num_hidden_layers=3, vocab_size=17, attn_implementation="eager",
    )  # fmt: skip


def one_token_at_a_time(model, prompts, answers):
    """A pass that computes nothing in vain: no padding, no masked pair, a prompt once for its whole group."""
    total = 0.0
    for size, group in zip(prompts, answers, strict=True):
        cache = DynamicCache(config=model.config)
        for position in range(size):
            states = model.model(torch.tensor([[position]]), past_key_values=cache).last_hidden_state
        total = total + model.lm_head(states).sum()
        cache.batch_repeat_interleave(len(group))
        assert len(set(group)) == 1
        for _ in range(group[0] - 1):
            states = model.model(torch.ones(len(group), 1).long(), past_key_values=cache).last_hidden_state
            total = total + model.lm_head(states).sum()
    return total


@pytest.mark.parametrize("prompts, answers", [([3], [[4]]), ([3, 5], [[4, 4], [1, 1]]), ([2, 1], [[1], [6]])])
def test_the_floor_counts_the_operations_of_a_pass_that_computes_nothing_in_vain(prompts, answers):
    """Autograd goes only where a gradient is wanted: backward is twice the forward that cannot be avoided."""
    work, config = lengths(prompts, answers)
    with FlopCounterMode(display=False) as forward:
        total = one_token_at_a_time(LlamaForCausalLM(config), prompts, answers)
    with FlopCounterMode(display=False) as backward:
        total.backward()
    once = sum(product.operations for product in floor.generation(config, work))
    assert 2 * once == backward.get_total_flops()
    assert sum(product.operations for product in floor.training(config, work)) == 3 * once
    assert 0.8 * forward.get_total_flops() < once <= forward.get_total_flops()


def test_shared_keys_are_fewer_products_and_the_same_attention():
    work, config = lengths([3], [[4, 2]])
    grouped = LlamaConfig(**{**config.to_dict(), "num_key_value_heads": 2})
    all_heads, fewer = ({p.name: p.operations for p in floor.training(c, work)} for c in (config, grouped))
    assert {name for name in all_heads if all_heads[name] != fewer[name]} == {
        name for name in all_heads if name.startswith("q, k, v")
    }


def test_the_lengths_are_read_off_a_rollout(grpo):
    ours = grpo[0]
    ours.collect(seed=3)
    work = floor.Work.of(ours.rollout)
    assert work.prompts == [len(ours.policy.encode(problem.prompt)) for problem in ours.problems]
    assert work.answers == [[6] * 4] * 4 and work.rows == 16 and work.fed == 16 * 5


def test_the_floor_is_below_what_we_take(grpo):
    ours = grpo[0]
    found = floor.floor(ours.policy.model, ours.rollout, sampled=True)
    assert 0 < found["seconds"]["whole step"] < min(ours.step(seed)[1] for seed in range(3))


def test_our_time_by_kind_adds_up_to_what_was_measured(grpo):
    kinds = floor.where_time_goes(grpo[0].learn, 0.5, speed.now, cuda=False)
    assert sum(kinds.values()) == pytest.approx(0.5)
    assert all(seconds > 0 for seconds in kinds.values())


@pytest.mark.parametrize(
    "name, expected",
    [
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::index", "moving and indexing"),
        ("aten::silu", "element-wise"),
        ("aten::view", "dispatch"),
        ("Optimizer.step#AdamW.step", "dispatch"),
    ],
)
def test_the_kinds_of_operations(name, expected):
    assert floor.kind(name) == expected


# ---- memory


def test_peak_memory_sees_what_a_step_needs_for_a_moment():
    class Hungry(SimpleNamespace):
        def __init__(self, setting):
            self.size = 0 if setting.prompts == 2 else 64 << 20

        def step(self, seed):
            torch.zeros(self.size // 4)

    peak, _ = speed.peak_of(Hungry, CHOICES)
    assert 63 << 20 < peak < 80 << 20


# ---- growth


def test_the_exponent_of_a_power_is_found():
    assert growth.exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_a_point_of_the_growth_curves_is_measured():
    point = growth.measure(TALK, steps=3)
    assert point["generation"] > 0 and point["training"] > 0 and point["memory"] >= 0


def test_growth_is_shown(capsys):
    columns = {"dial": [1, 2], "generation": [0.1, 0.2], "training": [0.3, 0.4], "memory": [2**20, 2**21]}
    fits = dict.fromkeys(growth.MEASURED, 1.0)
    growth.show("group", {**columns, "exponent": fits, "exponent at the end": fits})
    assert "generation, ms         100     200        1.00" in capsys.readouterr().out


def test_growth_turns_one_dial_at_a_time():
    for name, settings in growth.dials().items():
        for setting in settings.values():
            same = {k: v for k, v in vars(growth.BASE).items() if k not in growth.TURNED[name]}
            assert same.items() <= vars(setting).items()
        assert growth.BASE in settings.values()


# ---- the command


def test_the_result_is_json_with_everything_in_it(capsys, monkeypatch):
    monkeypatch.setattr(
        speed, "SETTINGS", {"fixed": replace(TALK, rounds=2), "pairs": replace(CHOICES, rounds=2)}
    )
    monkeypatch.setattr(speed, "memory", lambda name, setting: 1)
    monkeypatch.setattr(
        speed, "one_process_each", lambda function, *columns, at_once: list(map(function, *columns))
    )
    monkeypatch.setattr(speed, "quiet", lambda threads: None)
    monkeypatch.setattr(speed, "WARM_UP", 0)
    monkeypatch.setattr(floor, "rate", lambda product, like: 1e9)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--json"])
    speed.main()
    result = json.loads(capsys.readouterr().out)
    assert result["fixed"]["ratio"].keys() == {"generation", "training", "whole step"}
    assert result["pairs"]["ratio"].keys() == {"training"}
    assert result["fixed"]["memory"] == {"rlcourse": 1, "TRL": 1}
    for name in ("fixed", "pairs"):
        speed.show(name, speed.SETTINGS[name], result[name])
    assert "rlcourse / TRL" in capsys.readouterr().out


def test_help_tells_what_there_is(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        speed.main()
    said = capsys.readouterr().out
    assert "--record" in said and all(name in said for name in speed.SETTINGS)
