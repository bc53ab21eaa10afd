"""Models as the hub gives them: loaded offline by name, sampled, scored, trained, adapted, saved.

They are tiny copies of real ones (see hub.py), laid out as a hub cache lays them out.
"""

import http.server
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import hub
import pytest
import torch
from huggingface_hub import constants
from tiny import build, characters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForMaskedLM, LlamaModel, T5Config, T5ForConditionalGeneration
from transformers.modeling_layers import GradientCheckpointingLayer

from rlcourse import fit, train
from rlcourse.lm import Policy, Scorer, llama, load_policy, loading
from rlcourse.lm import policy as policy_module
from rlcourse.lm.caches import StaticCache, TransformersCache, can_be_recorded
from rlcourse.lm.critic import Critic
from rlcourse.methods import DPO, GRPO
from rlcourse.tasks import Questions as ReadQuestions
from rlcourse.tasks.annotators import Pair

NAMES = list(hub.MODELS)
QWEN2, QWEN3, SMOL, LLAMA = NAMES
PROMPTS = ["What is 17 + 25?", "Sorry", "What is 17 + 25 + 48? Put the answer in \\boxed{}."]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("hf")
    for name in NAMES:
        hub.download(home / "hub", name)
    return home


@pytest.fixture(autouse=True)
def offline(home, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))


@pytest.fixture(params=NAMES)
def policy(request, offline):
    return load_policy(request.param)


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


def near(dtype):
    """bfloat16 has 8 bits of mantissa: what is rounded in another order is another number."""
    return {"atol": 1e-5, "rtol": 1e-5} if dtype == "float32" else {"atol": 0.15, "rtol": 0.02}


def weights(policy):
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def changed(before, policy):
    return {name for name, p in policy.model.named_parameters() if not torch.equal(before[name], p)}


def gradients(policy, rollout):
    policy.model.zero_grad()
    policy.score(rollout).square().sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def scripted(monkeypatch, script):
    """The n-th step gives row r the token `script[n][r]`, whatever the model says."""
    steps = iter(script)
    monkeypatch.setattr(policy_module, "draw", lambda p, generator: torch.tensor(next(steps)))


class Letters:
    """Right is an answer with an `e` in it."""

    max_tokens = 8

    def draw(self, rng):
        return SimpleNamespace(prompt=rng.choice(PROMPTS))

    def grade(self, rollout):
        rewards = torch.tensor([float(text.count("e")) for text in rollout.texts])
        return {"rewards": rewards, "correct": rewards > 0}


def grpo_step(policy):
    return train(policy, Letters(), GRPO(), steps=1, responses=32, lr=1e-2, quiet=True)


def dpo_step(policy, reference=None):
    pairs = [Pair(prompt, " The answer is 42.", " You are late.") for prompt in PROMPTS]
    return fit(policy, pairs, DPO(), lr=1e-2, batch=3, epochs=1, quiet=True, reference=reference)


# ---- by name


def test_a_name_in_the_cache_is_loaded_offline(home):
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    script = f"from rlcourse import load_policy\nfor name in {NAMES}: print(load_policy(name))"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split("'")[1] for line in done.stdout.splitlines()] == NAMES


def test_only_the_llama_without_scaled_positions_takes_the_lean_path():
    assert [name for name in NAMES if llama.fits(load_policy(name).model)] == [SMOL]


def test_only_ours_are_pockets(policy, tmp_path):
    assert not policy.pocket
    ours = load_policy("pocket")
    ours.save(tmp_path / "anything")
    assert ours.pocket and load_policy(tmp_path / "anything").pocket


def test_the_prompt_goes_through_the_models_own_template(policy):
    text = policy.tokenizer.decode(policy.encode("What is 17 + 25?"))
    if policy.name == LLAMA:
        assert text.startswith("<|begin_of_text|><|start_header_id|>system") and text.count("<|begin") == 1
        assert text.endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    else:
        expected = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
        assert text == expected


def test_a_template_that_writes_the_date_writes_the_same_one_every_day():
    assert "Today Date: 26 Jul 2024<" in load_policy(LLAMA).tokenizer.decode(load_policy(LLAMA).encode("x"))


# ---- sampling and scoring


@pytest.mark.parametrize("name", NAMES)
def test_the_log_probs_of_sampling_are_those_of_scoring_and_are_float32(name, dtype):
    policy = load_policy(name, dtype=dtype)
    assert policy.model.dtype == getattr(torch, dtype)
    rollout = policy.sample(PROMPTS, 4, max_tokens=12, temperature=0.8, seed=1)
    score = policy.score(rollout)
    assert score.dtype == rollout.logp.dtype == torch.float32
    torch.testing.assert_close(score.detach(), rollout.logp, **near(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_padding_on_the_left_does_nothing(name, dtype):
    policy = load_policy(name, dtype=dtype)
    given = policy.answered(PROMPTS, [" The answer is 42.", " late", ""])
    with torch.no_grad():
        together = policy.score(given)
        for row, (prompt, text) in enumerate(zip(PROMPTS, given.texts)):
            alone = policy.score(policy.answered([prompt], [text]))[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, **near(dtype))


def test_an_answer_ends_at_every_eos_that_the_checkpoint_names(policy, monkeypatch):
    eos = policy.tokenizer.convert_tokens_to_ids(hub.MODELS[policy.name][2]["eos"])
    assert policy.ends == set(eos) and policy.eos_id == policy.tokenizer.eos_token_id
    word = policy.tokenizer(" answer")["input_ids"][0]
    scripted(monkeypatch, [[word] * (len(eos) + 1), [*eos, word], [word], [word]])
    rollout = policy.sample(["Sorry"], len(eos) + 1, max_tokens=4)
    assert rollout.lengths.tolist() == [2] * len(eos) + [4]
    assert rollout.finished.tolist() == [True] * len(eos) + [False]
    assert set(rollout.texts[:-1]) == {policy.tokenizer.decode([word])}


def test_where_pad_is_an_eos_the_eos_counts_and_the_padding_does_not(policy, monkeypatch):
    assert policy.pad_id in policy.ends
    word, pad = policy.tokenizer(" answer")["input_ids"][0], policy.pad_id
    scripted(monkeypatch, [[pad, word], [word], [word]])
    rollout = policy.sample(["Sorry"], 2, max_tokens=3)
    assert rollout.mask.tolist() == [[True, False, False], [True, True, True]]
    given = policy.answered(["Sorry", "Sorry"], ["", " answer answer"])
    with torch.no_grad():
        alone = policy.score(policy.answered(["Sorry"], [""]))[0, 0]
        assert policy.score(given)[0, 0].item() == pytest.approx(alone.item(), abs=1e-5)
        assert policy.score(rollout)[0, 0] != 0 and policy.score(rollout)[0, 1] == 0


def test_a_row_of_the_embedding_without_a_token_may_be_drawn(policy, monkeypatch):
    assert len(policy.tokenizer) < policy.model.config.vocab_size
    scripted(monkeypatch, [[hub.VOCABULARY - 1], [policy.eos_id]])
    assert policy.sample(["Sorry"], max_tokens=4).texts == [""]


def test_logits_are_computed_where_a_token_is_scored_and_nowhere_else():
    policy, rows = load_policy(QWEN2), []
    rollout = policy.answered(PROMPTS, [" 42", " late, and sorry for that. We will send it again.", ""])
    policy.model.lm_head.register_forward_hook(lambda head, inputs, output: rows.append(output.shape))
    policy.score(rollout)
    assert rows == [(int(rollout.mask.sum()), hub.VOCABULARY)]
    # of what judges or values answers, nowhere at all
    Scorer(policy)(rollout)
    Critic(policy, shared=True)(rollout)
    assert rows[1:] == [(0, hub.VOCABULARY)] * 2


def test_no_more_rows_are_scored_at_once_than_a_piece_has():
    policy, pieces = load_policy(QWEN2), []
    pairs = [Pair(prompt, " The answer is 42.", " You are late.") for prompt in PROMPTS] * 2
    policy.model.lm_head.register_forward_hook(lambda head, inputs, output: pieces.append(len(inputs[0])))
    whole = policy.answered([pair.prompt for pair in pairs], [pair.chosen for pair in pairs])
    fit(policy, pairs, DPO(), batch=6, micro_batch=1, quiet=True)
    assert len(pieces) > 12 and max(pieces[:12]) <= 2 * int(
        whole.lengths.max()
    )  # a pair at a time: the reference too


def test_autocast_computes_in_bfloat16_with_float32_weights_and_log_probs(policy):
    mixed = load_policy(policy.name, autocast="bfloat16")
    assert mixed.model.dtype == torch.float32 and mixed.autocast == torch.bfloat16
    rollout = mixed.sample(PROMPTS, 4, max_tokens=8, seed=1)
    assert rollout.logp.dtype == torch.float32
    score, exact = mixed.score(rollout).detach(), policy.score(rollout).detach()
    torch.testing.assert_close(score, rollout.logp, **near("bfloat16"))
    for logp in (score, rollout.logp):
        torch.testing.assert_close(logp, exact, **near("bfloat16"))
        assert not torch.allclose(logp, exact, atol=1e-5)
    grpo_step(mixed)
    assert mixed.model.dtype == torch.float32


# ---- training, saving


@pytest.mark.parametrize("step", [grpo_step, dpo_step])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_training_changes_every_weight_and_the_saved_policy_is_the_same(
    name, step, dtype, tmp_path
):
    policy = load_policy(name, dtype=dtype)
    before = weights(policy)
    step(policy)
    assert changed(before, policy) == before.keys()
    policy.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved", dtype=dtype)
    assert changed(weights(policy), again) == set() and again.ends == policy.ends
    first, second = (p.sample(PROMPTS, 2, max_tokens=8, seed=3) for p in (policy, again))
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.logp, second.logp)


def test_a_runs_folder_gives_its_newest_checkpoint(tmp_path):
    policy = load_policy(SMOL)
    for step in (50, 100):
        with torch.no_grad():
            policy.model.model.norm.weight.fill_(step)
        policy.save(tmp_path / "run" / f"step-{step:06d}")
    found = load_policy(tmp_path / "run")
    assert found.name == str(tmp_path / "run") and found.model.model.norm.weight[0] == 100


# ---- an adapter


@pytest.mark.parametrize(
    "step, dtype",
    [(grpo_step, "bfloat16"), (lambda policy: dpo_step(policy, policy.base()), "float32")],
    ids=["grpo", "dpo"],
)
@pytest.mark.parametrize("name", NAMES)
def test_with_lora_only_the_adapter_trains_and_the_reference_is_exactly_the_model_before(name, step, dtype):
    policy, plain = load_policy(name, dtype=dtype, lora=4), load_policy(name, dtype=dtype)
    before = weights(policy)
    assert policy.adapted and not plain.adapted
    rollout = plain.sample(PROMPTS, 2, max_tokens=8, seed=2)
    step(policy)
    moved = changed(before, policy)
    assert moved and all("lora_" in name for name in moved)
    assert {id(p) for p in policy.parameters()} == {
        id(p) for n, p in policy.model.named_parameters() if "lora_" in n
    }
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    with torch.no_grad():
        exact = without_lean_path(plain).score(rollout)
        assert torch.equal(policy.base().score(rollout), exact)
        assert not torch.equal(policy.score(rollout), exact)
        assert policy.score(rollout).dtype == torch.float32


def without_lean_path(policy):
    """An adapter's model is run by transformers: to be compared bit by bit, so must the plain one."""
    policy.model.__class__ = type("Llama", (type(policy.model),), {})
    return policy


def test_a_base_shares_the_adapters_memory_and_leaves_it_on_afterwards():
    policy = load_policy(QWEN2, lora=4)
    grpo_step(policy)
    base, rollout = policy.base(), policy.answered(PROMPTS, [" 42", " late", ""])
    before = policy.score(rollout).detach()
    base.sample(PROMPTS, max_tokens=2)
    assert base.model is policy.model and torch.equal(policy.score(rollout), before)
    assert len(list(policy.parameters())) > 0
    with pytest.raises(ValueError, match="has no adapter to leave off: keep a copy()"):
        load_policy(QWEN2).base()


@pytest.mark.parametrize("name", [QWEN2, SMOL])
def test_a_saved_adapter_is_merged_and_saving_leaves_the_policy_as_it_is(name, tmp_path):
    policy = load_policy(name, lora=4)
    grpo_step(policy)
    before, rollout = weights(policy), policy.answered(PROMPTS, [" 42", " late", ""])
    policy.save(tmp_path / "merged")
    policy.base().save(tmp_path / "base")
    assert changed(before, policy) == set()
    merged, base = load_policy(tmp_path / "merged"), load_policy(tmp_path / "base")
    assert not merged.adapted and changed(weights(load_policy(name)), base) == set()
    torch.testing.assert_close(merged.score(rollout), policy.score(rollout), atol=1e-4, rtol=1e-4)


def test_a_run_with_an_adapter_goes_on_in_another_process_to_the_same_weights_and_draws_no_bars(
    tmp_path, capfd
):
    def adapted(steps, out=None):
        torch.manual_seed(steps)  # whatever has been drawn before
        policy = load_policy(QWEN2, lora=4)
        settings = dict(responses=8, lr=1e-2, max_tokens=4, quiet=True, out=out, resume=True)
        train(policy, Letters(), GRPO(beta=0.1), steps=steps, **settings)
        return policy

    for steps in (1, 2):
        resumed = adapted(steps, tmp_path)
    assert changed(weights(adapted(2)), resumed) == set() and changed(
        weights(load_policy(QWEN2, lora=4)), resumed
    )
    assert capfd.readouterr().err == ""


def test_a_file_of_questions_that_was_edited_is_other_data(tmp_path):
    file = tmp_path / "mine.jsonl"

    def trained(answer, steps):
        file.write_text(json.dumps({"question": "What is 1 + 2?", "answer": answer}) + "\n")
        settings = dict(responses=8, max_tokens=4, quiet=True, out=tmp_path / "run", resume=True)
        train(load_policy(QWEN2), ReadQuestions(str(file)), GRPO(), steps=steps, **settings)

    for steps in (1, 2):
        trained("3", steps)
    with pytest.raises(ValueError, match="was run with data="):
        trained("4", 3)


def test_a_copy_of_an_adapted_policy_is_independent():
    policy = load_policy(QWEN2, lora=4)
    twin, before = policy.copy(), weights(policy)
    grpo_step(twin)
    assert changed(before, policy) == set() and changed(before, twin) and "M to train" in repr(twin)


def test_without_peft_lora_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="lora needs the package peft: pip install"):
        load_policy(QWEN2, lora=4)
    with pytest.raises(ValueError, match="lora is the rank of the adapter, at least 1; got 0"):
        load_policy(QWEN2, lora=0)


def test_loading_the_library_does_not_import_peft():
    script = "import sys, rlcourse.lm, rlcourse.training; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- recomputing layers in the backward pass


def kept(policy, rollout):
    """Bytes that the forward pass keeps for the backward pass, beside the weights."""
    mine = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    sizes = {}

    def note(x):
        if x.untyped_storage().data_ptr() not in mine:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        score = policy.score(rollout)
    return sum(sizes.values()), score


@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize("name", NAMES)
def test_recomputed_layers_give_the_same_gradient_and_keep_less(name, lora):
    policy = load_policy(name, lora=lora)
    rollout = policy.answered(PROMPTS, [" The answer is 42.", " late", " We will send it again today."])
    before, (bytes_, _) = gradients(policy, rollout), kept(policy, rollout)
    policy.checkpoint_layers()
    policy.checkpoint_layers()  # a second time changes nothing
    assert gradients(policy, rollout).keys() == before.keys()
    for name, gradient in gradients(policy, rollout).items():
        torch.testing.assert_close(gradient, before[name], atol=1e-6, rtol=1e-5)
    assert kept(policy, rollout)[0] < 0.75 * bytes_
    assert gradients(policy.copy(), rollout).keys() == before.keys()  # and a copy recomputes itself
    assert policy.sample(PROMPTS, max_tokens=4).lengths.max() > 0


def test_recomputing_runs_each_layer_twice_and_leaves_dropout_off():
    policy = Policy(build("gpt2"), characters())
    assert policy.model.config.resid_pdrop > 0
    rollout, calls = policy.answered(["1+2=", "3="], ["3", "33"]), []
    before = gradients(policy, rollout)
    policy.checkpoint_layers()
    for layer in policy.model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.attn.register_forward_hook(lambda *_: calls.append(1))
    after = gradients(policy, rollout)
    assert len(calls) == 2 * policy.model.config.n_layer
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_a_routing_is_not_replayed_over_recomputed_layers():
    policy = Policy(build("qwen3-moe"), characters())
    rollout = policy.sample(["1+2="], 2, max_tokens=4)
    policy.route(rollout)
    policy.score(rollout, replay=True)
    policy.checkpoint_layers()
    with pytest.raises(ValueError, match="routing cannot be replayed together with gradient checkpointing"):
        policy.score(rollout, replay=True)


# ---- steps that can be recorded


def any_policy(name):
    if name in NAMES:
        return load_policy(name)
    return Policy(build(name), characters())


def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(Policy, "_cache", lambda self: StaticCache)


@pytest.mark.parametrize("name", [*NAMES, "llama", "gpt2"])
def test_a_step_of_fixed_shape_gives_the_growing_caches_logits(name):
    policy = any_policy(name)
    assert can_be_recorded(policy.model)
    tokens, mask = policy.left_padded(PROMPTS if name in NAMES else ["1+2=", "7=", "10+20="])
    owner = torch.tensor([0, 0, 1, 2, 2])
    with torch.no_grad():
        fixed, growing = (c(policy.model, tokens, mask, owner, 8) for c in (StaticCache, TransformersCache))
        torch.testing.assert_close(fixed.logits, growing.logits)
        addresses = [layer.keys.data_ptr() for layer in fixed.cache.layers]
        for step in range(6):
            if step == 3:
                rows = torch.tensor([0, 3, 4])
                fixed.keep(rows)
                growing.keep(rows)
                addresses = [layer.keys.data_ptr() for layer in fixed.cache.layers]
            token = (torch.arange(5 if step < 3 else 3) * 7 + step) % 15
            torch.testing.assert_close(fixed.step(token), growing.step(token), atol=1e-5, rtol=1e-5)
            assert addresses == [layer.keys.data_ptr() for layer in fixed.cache.layers]


@pytest.mark.parametrize("name", NAMES)
def test_fixed_shapes_take_autocast_too(name, monkeypatch):
    mixed = load_policy(name, autocast="bfloat16")
    as_on_a_gpu(monkeypatch)
    rollout = mixed.sample(PROMPTS, 4, max_tokens=8, seed=1)
    torch.testing.assert_close(mixed.score(rollout).detach(), rollout.logp, **near("bfloat16"))


@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
def test_sampling_in_fixed_shapes_says_the_same(name, monkeypatch):
    policy = any_policy(name)
    prompts = PROMPTS if name in NAMES else ["1+2=", "7=", "10+20="]
    # with the same seed the same tokens, for as long as no answer ends: dropping rows moves the random numbers
    policy.eos = policy.eos[:0]
    greedy, drawn = dict(greedy=True, max_tokens=40), dict(group_size=3, max_tokens=12, seed=4)
    usual = [policy.sample(prompts, **how) for how in (greedy, drawn)]
    as_on_a_gpu(monkeypatch)
    for before, how in zip(usual, (greedy, drawn)):
        rollout = policy.sample(prompts, **how)
        assert torch.equal(rollout.tokens, before.tokens) and torch.equal(rollout.mask, before.mask)
        torch.testing.assert_close(rollout.logp, before.logp, atol=1e-5, rtol=1e-5)


def test_answers_that_have_ended_go_on_unseen_and_are_dropped_in_time(monkeypatch):
    policy, rows = any_policy("gpt2"), []
    as_on_a_gpu(monkeypatch)
    step = StaticCache.step
    monkeypatch.setattr(StaticCache, "step", lambda c, tokens: rows.append(len(tokens)) or step(c, tokens))
    rollout = policy.sample(["1+2=", "7="], 32, max_tokens=60, seed=7)
    with torch.no_grad():
        torch.testing.assert_close(policy.score(rollout), rollout.logp, atol=1e-5, rtol=1e-5)
    ends = torch.isin(rollout.tokens, policy.eos) & rollout.mask
    assert ends.sum(1).max() == 1 and torch.equal(ends.any(1), rollout.finished)
    assert rollout.tokens[~rollout.mask].eq(policy.pad_id).all() and rollout.mask[:, -1].any()
    # rows are dropped every 16 tokens, once half of them have ended
    changes = [t + 1 for t in range(1, len(rows)) if rows[t] != rows[t - 1]]
    assert changes and all(t % 16 == 0 for t in changes) and rows[-1] <= 32


class Questions(TorchDispatchMode):
    """Notes what makes Python wait for the device's answer."""

    asked = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        if name in self.asked or any(i is not None and i.dtype == torch.bool for i in indices):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
def test_the_token_loop_asks_the_device_for_nothing(name, monkeypatch):
    policy, seen = any_policy(name), []
    as_on_a_gpu(monkeypatch)
    step = StaticCache.step

    def watched(cache, tokens):
        seen.append(len(questions.seen))
        return step(cache, tokens)

    monkeypatch.setattr(StaticCache, "step", watched)
    with Questions() as questions:
        policy.sample(["1+2="], 4, max_tokens=15, top_k=8, top_p=0.9)
        assert len(seen) == 14 and seen[0] == seen[-1]
        for question in (lambda x: x.item(), bool, lambda x: x[x > 0], torch.nonzero):  # it would notice
            before = len(questions.seen)
            question(torch.ones(1))
            assert len(questions.seen) > before


def test_what_cannot_be_recorded_takes_the_growing_cache():
    assert not can_be_recorded(build("qwen3-moe"))
    model = build("qwen2")
    model.config.sliding_window = 16
    assert not can_be_recorded(model)
    model = build("qwen2")
    model.set_attn_implementation("eager")
    assert not can_be_recorded(model)
    model = build("llama-gqa")
    assert can_be_recorded(model)
    model.config.rope_parameters["rope_type"] = "dynamic"
    assert not can_be_recorded(model)


# ---- what stands in the way


def sentence(name, **how):
    with pytest.raises(ValueError) as error:
        load_policy(name, **how)
    text = str(error.value)
    assert "\n" not in text and (error.value.__suppress_context__ or error.value.__context__ is None)
    return text


def test_a_name_that_is_not_in_the_cache_says_how_to_get_it():
    text = sentence("Qwen/Qwen2.5-7B-Instruct")
    assert "No model 'Qwen/Qwen2.5-7B-Instruct'" in text and "hf download Qwen/Qwen2.5-7B-Instruct" in text


class Gated(http.server.BaseHTTPRequestHandler):
    """A hub that answers as the real one does when a model's terms have not been accepted."""

    def do_GET(self):
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_a_gated_model_says_whose_terms_to_accept(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": here, "HF_HUB_OFFLINE": "0"}
    environment.pop("HF_HUB_CACHE", None)
    script = "from rlcourse import load_policy\nload_policy('meta-llama/Llama-3.2-1B-Instruct')"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    server.shutdown()
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"ValueError: {LLAMA} is gated: accept its owner's terms at")
    assert "hf auth login" in said


def bert(folder):
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=19, **shape)).save_pretrained(folder)


def t5(folder):
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=19, **shape, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def headless(folder):
    LlamaModel(build("llama").config).save_pretrained(folder)


@pytest.mark.parametrize("make", [bert, t5, headless])
@pytest.mark.parametrize("named", [True, False])
def test_what_is_no_causal_model_says_what_it_is(make, named, home, tmp_path):
    folder = hub.snapshot(home / "hub", f"someone/{make.__name__}") if named else tmp_path / "folder"
    make(folder)
    characters().save_pretrained(folder)
    text = sentence(f"someone/{make.__name__}" if named else folder)
    made = {"bert": "BertForMaskedLM", "t5": "T5ForConditionalGeneration", "headless": "LlamaModel"}
    assert f"it holds a {made[make.__name__]}, which does not continue a text" in text
    assert ("What was downloaded as someone/" if named else "The folder ") in text


def truncated_file(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def no_header(folder):
    (folder / "model.safetensors").write_bytes(b"x" * 200)


def a_weight_missing(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("damage", [truncated_file, no_header, a_weight_missing])
@pytest.mark.parametrize("named", [True, False])
def test_damaged_weights_are_one_sentence(damage, named, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = hub.download(tmp_path, SMOL)
    damage(folder)
    text = sentence(SMOL if named else folder)
    assert "does not hold a causal language model with its tokenizer" in text
    assert "No model" not in text
    if damage is a_weight_missing:
        assert "its files lack weights, model.norm.weight among them" in text


def test_too_little_memory_says_so_before_loading_and_what_would_fit(policy, monkeypatch):
    size = sum(p.numel() for p in policy.model.parameters())
    monkeypatch.setattr(loading, "_free", lambda place: 3 * size)
    text = sentence(policy.name)
    assert policy.name in text and "in float32, and cpu has" in text
    assert "dtype='bfloat16' takes" in text and "lora=16" in text
    assert load_policy(policy.name, dtype="bfloat16").model.dtype == torch.bfloat16
    monkeypatch.setattr(loading, "_free", lambda place: size)
    text = sentence(policy.name, dtype="bfloat16")
    assert "dtype='bfloat16' takes" not in text and "take a smaller model" in text


def test_memory_that_runs_out_while_loading_is_one_sentence(monkeypatch):
    def full(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    text = sentence(QWEN2, dtype="bfloat16")
    assert f"Out of memory while {QWEN2} was loaded in bfloat16" in text and "lora=16" in text


def test_an_unknown_dtype_or_device_is_named():
    assert "one of float32, bfloat16, float16; got 'int3'" in sentence(SMOL, dtype="int3")
    assert "one of float32, bfloat16, float16; got 'fp8'" in sentence(SMOL, autocast="fp8")
    assert "There is no device 'gpu5' here" in sentence(SMOL, device="gpu5")
    if not torch.cuda.is_available():
        assert "There is no device 'cuda' here" in sentence(SMOL, device="cuda")
