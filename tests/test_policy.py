"""Sampling and scoring are the same distribution, whatever the model, the padding, the batch or the seed.

The models are small and random, and peaked enough that a wrong token is seen in the log-probs.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import CHARACTERS, CONTEXT, build, characters
from torch import tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from rlcourse.lm import Policy, Rollout, llama, load_policy
from rlcourse.lm.caches import TransformersCache
from rlcourse.lm.loading import POCKETS
from rlcourse.lm.policy import truncated

KINDS = ["llama", "llama-gqa", "qwen2", "qwen3-moe", "gpt2"]
LEAN = ["llama", "llama-gqa"]
PROMPTS = ["1+2=", "10+20+33=", "7=", "400+5="]  # 4, 9, 2 and 6 tokens


@pytest.fixture(scope="module")
def policies():
    """One of each kind, shared: tests that change a policy take a copy."""
    return {kind: Policy(build(kind), characters(), kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def policy(request, policies):
    return policies[request.param]


@pytest.fixture(params=LEAN)
def lean(request, policies):
    return policies[request.param]


def slowly(policy, rollout):
    """Log-probs row by row through transformers' own forward: no padding, no cache, nothing shared."""
    logp = torch.zeros(rollout.mask.shape)
    for row, p in enumerate(rollout.owner.tolist()):
        prompt = rollout.prompt_tokens[p][rollout.prompt_mask[p]]
        answer = rollout.tokens[row][rollout.mask[row]]
        logits = policy.model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        every = (logits / rollout.temperature).log_softmax(-1)
        logp[row, : len(answer)] = every[torch.arange(len(answer)), answer]
    return logp


def gradients(policy, logp):
    """Of a loss in which every token counts differently, so that no two mistakes cancel."""
    weights = torch.linspace(0.5, 1.5, logp.numel()).view_as(logp)
    policy.model.zero_grad()
    (logp * weights).sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        assert (found[name] - theirs).norm() <= 1e-5 * max(theirs.norm(), 1), name


def without_sharing(rollout):
    """The same rows, each with a prompt of its own."""
    return Rollout(
        prompts=[rollout.prompts[p] for p in rollout.owner.tolist()],
        prompt_tokens=rollout.prompt_tokens[rollout.owner],
        prompt_mask=rollout.prompt_mask[rollout.owner],
        owner=torch.arange(len(rollout)),
        **{name: getattr(rollout, name) for name in ("tokens", "mask", "logp", "finished", "texts")},
        temperature=rollout.temperature,
    )


# ---- scoring


def test_which_models_take_the_lean_path(policies):
    assert {kind for kind in KINDS if llama.fits(policies[kind].model)} == set(LEAN)


def test_a_llama_with_biases_or_a_scaled_rotary_embedding_does_not_take_the_lean_path():
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for change in (
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ):
        assert not llama.fits(LlamaForCausalLM(LlamaConfig(vocab_size=8, **shape, **change)))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_scores_are_those_of_transformers_row_by_row(policy, temperature):
    rollout = policy.sample(PROMPTS, 3, max_tokens=12, temperature=temperature, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(policy.score(rollout), slowly(policy, rollout), atol=1e-5, rtol=1e-5)


def test_the_lean_path_has_transformers_gradients(lean):
    rollout = lean.sample(PROMPTS, 3, max_tokens=12, seed=2)
    found = gradients(lean, lean.score(rollout))
    assert_same_gradients(found, gradients(lean, slowly(lean, rollout)))
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_the_lean_path_equals_the_padded_path(lean, monkeypatch):
    rollout = lean.sample(PROMPTS, 3, max_tokens=12, seed=2)
    score = lean.score(rollout)
    found = gradients(lean, score)
    monkeypatch.setattr(llama, "fits", lambda model: False)
    padded = lean.score(rollout)
    torch.testing.assert_close(score, padded, atol=1e-5, rtol=1e-5)
    assert_same_gradients(found, gradients(lean, padded))


def test_a_prompt_shared_by_its_group_gives_the_gradient_of_unshared_rows(policy):
    rollout = policy.sample(PROMPTS, 4, max_tokens=10, seed=3)
    alone = without_sharing(rollout)
    shared, unshared = policy.score(rollout), policy.score(alone)
    torch.testing.assert_close(shared, unshared, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients(policy, shared), gradients(policy, unshared))


def test_any_rows_of_a_rollout_score_as_they_did_in_the_whole(policy):
    rollout = policy.sample(PROMPTS, 3, max_tokens=10, seed=4)
    with torch.no_grad():
        whole = policy.score(rollout)
        for rows in ([5], [11, 0, 7], slice(2, 9)):
            torch.testing.assert_close(policy.score(rollout[rows]), whole[rows], atol=1e-5, rtol=1e-5)


def test_scores_are_zero_behind_the_mask_and_an_empty_row_harms_nobody(policy):
    rollout = policy.sample(PROMPTS, 2, max_tokens=10, seed=4)
    with torch.no_grad():
        whole = policy.score(rollout)
        rollout.mask[3] = False
        emptied = policy.score(rollout)
    assert emptied[~rollout.mask].eq(0).all()
    torch.testing.assert_close(emptied[rollout.mask], whole[rollout.mask], atol=1e-5, rtol=1e-5)


def test_the_tokens_behind_the_mask_do_not_matter(policy):
    rollout = policy.sample(PROMPTS, 4, max_tokens=16, seed=5)
    assert (~rollout.mask).any() and (~rollout.prompt_mask).any()
    with torch.no_grad():
        before = policy.score(rollout)
        rollout.tokens[~rollout.mask] = 7
        rollout.prompt_tokens[~rollout.prompt_mask] = 9
        assert torch.equal(policy.score(rollout), before)


def test_a_prompt_scores_the_same_alone_and_beside_a_longer_one(policy):
    beside = policy.answered(PROMPTS, ["12", "3#4", "5", ""])
    with torch.no_grad():
        together = policy.score(beside)
        for i, (prompt, text) in enumerate(zip(PROMPTS, beside.texts)):
            alone = policy.score(policy.answered([prompt], [text]))[0]
            torch.testing.assert_close(together[i, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_log_probs_come_in_float32_and_near(folder, policies):
    exact, rounded = policies["llama-gqa"], load_policy(folder, dtype="bfloat16")
    assert rounded.model.dtype == torch.bfloat16
    rollout = exact.sample(PROMPTS, 2, max_tokens=6, seed=0)
    sampled = rounded.sample(PROMPTS, 2, max_tokens=6)
    with torch.no_grad():
        scores, again = rounded.score(rollout), rounded.score(sampled)
    assert scores.dtype == sampled.logp.dtype == torch.float32
    assert (scores - rollout.logp).abs().max() < 0.5
    assert (again - sampled.logp).abs().max() < 0.5


def test_answers_by_others_are_scored_with_their_eos(policies):
    rollout = policies["llama"].answered(["1+2="], ["#3"])
    assert rollout.tokens.tolist() == [[CHARACTERS.index("#"), CHARACTERS.index("3"), 2]]
    assert rollout.mask.tolist() == [[True, True, True]]


# ---- sampling


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_sampled_logp_is_the_score(policy, temperature):
    rollout = policy.sample(PROMPTS, 8, max_tokens=20, temperature=temperature, seed=6)
    with torch.no_grad():
        torch.testing.assert_close(policy.score(rollout), rollout.logp, atol=1e-5, rtol=1e-5)
        every = policy.logits(rollout).log_softmax(-1)
    entropy = -(every.exp() * every).sum(-1)
    torch.testing.assert_close(rollout.entropy[rollout.mask], entropy, atol=1e-5, rtol=1e-5)


def assert_ends_at_eos_and_at_nothing_else(rollout, eos, max_tokens):
    lengths = rollout.lengths
    assert torch.equal(rollout.mask, torch.arange(rollout.mask.shape[1]) < lengths[:, None])
    ends = torch.isin(rollout.tokens, tensor(eos)) & rollout.mask
    last = torch.arange(rollout.mask.shape[1]) == lengths[:, None] - 1
    assert not (ends & ~last).any()
    assert torch.equal((ends & last).any(1), rollout.finished)
    assert (lengths[~rollout.finished] == max_tokens).all()
    assert rollout.logp[~rollout.mask].eq(0).all() and rollout.entropy[~rollout.mask].eq(0).all()


class Watch:
    """Counts the rows that each step of the cache computes."""

    def __init__(self, monkeypatch):
        self.rows = []
        for cache in (llama.Cache, TransformersCache):
            monkeypatch.setattr(cache, "step", self.counted(cache.step))

    def counted(self, step):
        def count(cache, tokens):
            self.rows.append(len(tokens))
            return step(cache, tokens)

        return count


def test_answers_that_end_early_stop_costing_and_change_nothing(policy, monkeypatch):
    watch = Watch(monkeypatch)
    rollout = policy.sample(PROMPTS, 24, max_tokens=32, seed=7)
    assert_ends_at_eos_and_at_nothing_else(rollout, [2], 32)
    assert rollout.finished.any() and rollout.lengths.min() < rollout.lengths.max() / 2
    with torch.no_grad():
        torch.testing.assert_close(slowly(policy, rollout), rollout.logp, atol=1e-5, rtol=1e-5)
    # a row is computed at most until a fifth of its neighbours have ended too
    going = [int((rollout.lengths > t + 1).sum()) for t in range(len(watch.rows))]
    assert watch.rows[0] <= 96 and watch.rows[-1] < 96
    assert all(computed * 0.8 <= alive or computed == alive for computed, alive in zip(watch.rows, going))


def test_answers_by_several_eos_tokens_end_at_any_of_them(policies):
    policy = policies["llama"].copy()
    policy.model.generation_config.eos_token_id = [2, CHARACTERS.index("a"), CHARACTERS.index("b")]
    policy = Policy(policy.model, policy.tokenizer)
    rollout = policy.sample(PROMPTS, 32, max_tokens=32, seed=8)
    eos = [2, CHARACTERS.index("a"), CHARACTERS.index("b")]
    assert_ends_at_eos_and_at_nothing_else(rollout, eos, 32)
    last = rollout.tokens[torch.arange(len(rollout)), rollout.lengths - 1]
    assert set(eos) <= set(last[rollout.finished].tolist())
    assert policy.eos_id == 2


@pytest.mark.parametrize("pad", ["<eos>", None])
def test_where_pad_is_eos_or_missing_the_eos_stays_in_the_mask(policies, pad):
    policy = Policy(policies["llama"].copy().model, characters(pad_token=pad))
    assert policy.pad_id == 2
    rollout = policy.sample(PROMPTS, 16, max_tokens=24, seed=7)
    assert_ends_at_eos_and_at_nothing_else(rollout, [2], 24)
    with torch.no_grad():
        torch.testing.assert_close(slowly(policy, rollout), rollout.logp, atol=1e-5, rtol=1e-5)
    given = policy.answered(PROMPTS[:2], ["1", "123"])
    assert given.lengths.tolist() == [2, 4]
    same = policies["llama"].sample(PROMPTS, 16, max_tokens=24, seed=7)
    assert torch.equal(same.tokens[same.mask], rollout.tokens[rollout.mask])


def test_a_model_without_any_eos_is_refused():
    model = build("llama")
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="nameless: neither the model nor its tokenizer names an EOS"):
        Policy(model, characters(eos_token=None), "nameless")


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(policy):
    first = policy.sample(PROMPTS, 4, max_tokens=12, seed=9)
    torch.manual_seed(123)  # the state of torch's own generator plays no part
    again, other = (policy.sample(PROMPTS, 4, max_tokens=12, seed=seed) for seed in (9, 10))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.logp, again.logp)
    assert first.texts == again.texts != other.texts


def test_sampling_leaves_torchs_own_generator_alone(policies):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    policies["llama"].sample(PROMPTS, 2, max_tokens=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_of_a_prompt_stand_together_in_the_prompts_order(policies):
    rollout = policies["llama"].sample(PROMPTS, 3, max_tokens=4)
    assert rollout.owner.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert rollout.group_size == 3 and len(rollout) == 12
    assert rollout.grouped(torch.arange(12)).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_texts_are_the_decoded_answers_without_their_eos(policies):
    rollout = policies["llama"].sample(PROMPTS, 8, max_tokens=16, seed=3)
    for tokens, mask, text in zip(rollout.tokens, rollout.mask, rollout.texts):
        assert text == "".join(CHARACTERS[i] for i in tokens[mask].tolist() if i != 2)


def test_greedy_takes_the_likeliest_token_whatever_the_seed(policy):
    rollout = policy.sample(PROMPTS, 2, max_tokens=12, greedy=True, seed=1)
    with torch.no_grad():
        assert torch.equal(policy.logits(rollout).argmax(-1), rollout.tokens[rollout.mask])
    assert torch.equal(rollout.tokens, policy.sample(PROMPTS, 2, max_tokens=12, greedy=True, seed=2).tokens)


def test_a_prompt_is_answered_the_same_alone_and_beside_a_longer_one(policy):
    together = policy.sample(PROMPTS, 1, max_tokens=12, greedy=True)
    for i, prompt in enumerate(PROMPTS):
        alone = policy.sample([prompt], 1, max_tokens=12, greedy=True)
        assert alone.texts[0] == together.texts[i]
        n = int(alone.lengths[0])
        torch.testing.assert_close(alone.logp[0, :n], together.logp[i, :n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_pairs_of_tokens_are_drawn_as_often_as_their_probability_says(policies, kind, temperature):
    policy, n, V = policies[kind], 20_000, len(CHARACTERS)
    rollout = policy.sample(["1+2="], n, max_tokens=2, temperature=temperature, seed=0)
    # exact: the first token, then for each first token the second, as answers of two given tokens
    with torch.no_grad():
        firsts = Rollout(
            prompts=["1+2="],
            prompt_tokens=rollout.prompt_tokens,
            prompt_mask=rollout.prompt_mask,
            owner=torch.zeros(V, dtype=torch.long),
            tokens=torch.arange(V)[:, None].expand(V, 2).contiguous(),
            mask=torch.ones(V, 2, dtype=torch.bool),
            logp=torch.zeros(V, 2),
            finished=torch.ones(V, dtype=torch.bool),
            texts=[""] * V,
            temperature=temperature,
        )
        p = policy.logits(firsts).softmax(-1).view(V, 2, V).double()
    exact = p[0, 0][:, None] * p[:, 1]
    exact[2] = 0  # after EOS there is no second token: the cell (EOS, PAD) holds all of it
    exact[2, 0] = p[0, 0, 2]
    counts = torch.zeros(V, V, dtype=torch.double)
    counts.index_put_((rollout.tokens[:, 0], rollout.tokens[:, 1]), torch.ones(n, dtype=torch.double), True)
    expected = n * exact
    common = expected >= 5
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    hoped = torch.cat([expected[common], expected[~common].sum()[None]])
    chi2, freedom = ((seen - hoped).square() / hoped).sum().item(), len(hoped) - 1
    assert freedom > 20
    assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5


# ---- truncation


def test_top_k_and_top_p_keep_the_likeliest_tokens():
    # shares 0.05, 0.5, 0.15, 0.3
    logits = tensor([[0.05, 0.5, 0.15, 0.3]]).log()

    def kept(**how):
        return truncated(logits, how.get("top_k"), how.get("top_p")).isfinite().nonzero()[:, 1].tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=1) == [1] and kept(top_k=2) == [1, 3] and kept(top_k=99) == [0, 1, 2, 3]
    # the fewest whose shares reach p: 0.5, then 0.5 + 0.3, then 0.95, then all
    assert kept(top_p=0.4) == [1] and kept(top_p=0.7) == [1, 3]
    assert (
        kept(top_p=0.9) == [1, 2, 3] and kept(top_p=0.99) == [0, 1, 2, 3] and kept(top_p=1.0) == [0, 1, 2, 3]
    )
    # both: of the three likeliest, renormalised to 0.526, 0.316, 0.158, two reach 0.8
    assert kept(top_k=3, top_p=0.8) == [1, 3]


@pytest.mark.parametrize("how", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.8}])
def test_truncated_sampling_stays_in_its_support_with_renormalised_logp(policy, how):
    rollout = policy.sample(PROMPTS, 8, max_tokens=10, temperature=1.5, seed=11, **how)
    with torch.no_grad():
        every = policy.logits(rollout).softmax(-1)
    token = rollout.tokens[rollout.mask]
    for shares, chosen, logp in zip(every, token.tolist(), rollout.logp[rollout.mask].tolist()):
        order = shares.sort(descending=True).indices[: how.get("top_k", len(shares))].tolist()
        total, support = sum(shares[i].item() for i in order), []
        for i in order:
            support.append(i)
            if sum(shares[j].item() for j in support) >= how.get("top_p", 1.0) * total:
                break
        assert chosen in support
        mass = sum(shares[j].item() for j in support)
        assert logp == pytest.approx((shares[chosen] / mass).log().item(), abs=1e-4)


def test_after_truncation_scoring_disagrees_with_sampling(policies):
    rollout = policies["llama"].sample(PROMPTS, 8, max_tokens=10, top_k=3, seed=11)
    with torch.no_grad():
        score = policies["llama"].score(rollout)
    assert (rollout.logp - score)[rollout.mask].min() > -1e-5  # truncation makes what is left likelier
    assert (rollout.logp - score).max() > 0.1


# ---- errors and copies


def test_a_prompt_that_passes_the_context_is_named(policies):
    long = "1+" * 40 + "2="
    with pytest.raises(ValueError) as error:
        policies["llama"].sample(["1+2=", long, "3="], max_tokens=20)
    for part in ("prompt 1 has 82 tokens", "max_tokens=20", str(CONTEXT), "1+1+1+1+"):
        assert part in str(error.value)
    assert len(policies["llama"].sample(["1+2=", long], max_tokens=CONTEXT - 82)) == 2


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_zero_is_refused_with_what_to_do_instead(policies, temperature):
    with pytest.raises(ValueError, match="must be positive.*greedy=True"):
        policies["llama"].sample(PROMPTS, temperature=temperature)


def test_a_copy_is_independent(policies):
    policy = policies["llama"].copy()
    policy.trained.append("something")
    twin = policy.copy()
    before = policy.sample(PROMPTS, 2, max_tokens=8)
    assert torch.equal(before.tokens, twin.sample(PROMPTS, 2, max_tokens=8).tokens)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    twin.trained.append("more")
    after = policy.sample(PROMPTS, 2, max_tokens=8)
    assert torch.equal(before.tokens, after.tokens) and torch.equal(before.logp, after.logp)
    assert policy.trained == ["something"] and twin.trained == ["something", "more"]


def test_a_policy_takes_its_model_out_of_train_mode():
    model = build("gpt2")
    assert model.training and model.config.resid_pdrop > 0
    policy = Policy(model, characters())
    rollout = policy.sample(PROMPTS, 2, max_tokens=8)
    assert not policy.model.training
    with torch.no_grad():
        assert torch.equal(policy.score(rollout), policy.score(rollout))


# ---- rollouts


def test_groups_keeps_whole_prompts_and_cat_puts_rollouts_of_any_width_together(policies):
    policy = policies["llama"]
    one, two = (
        policy.sample(PROMPTS[:2], 3, max_tokens=5, seed=1),
        policy.sample(PROMPTS[2:3], 3, max_tokens=9, seed=2),
    )
    one.problems, two.problems = [10, 11], [12]
    both = Rollout.cat([one, two])
    assert (
        both.prompts == PROMPTS[:3] and both.problems == [10, 11, 12] and both.texts == one.texts + two.texts
    )
    assert both.owner.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with torch.no_grad():
        torch.testing.assert_close(policy.score(both), both.logp, atol=1e-5, rtol=1e-5)
    kept = both.groups(tensor([True, False, True]))
    assert kept.prompts == [PROMPTS[0], PROMPTS[2]] and kept.problems == [10, 12]
    assert kept.owner.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(kept.tokens, both.tokens[[0, 1, 2, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(policy.score(kept), kept.logp, atol=1e-5, rtol=1e-5)


def test_cat_with_a_rollout_of_which_nothing_was_kept(policies):
    policy = policies["llama"]
    one, two = (policy.sample(PROMPTS[:2], 2, max_tokens=5, seed=seed) for seed in (1, 2))
    one.problems, two.problems = [10, 11], [12, 13]
    both = Rollout.cat([one.groups(tensor([False, False])), two])
    assert both.problems == [12, 13] and both.texts == two.texts and both.owner.tolist() == [0, 0, 1, 1]


# ---- loading


def without_traceback_chain(error):
    return error.value.__cause__ is None and (
        error.value.__context__ is None or error.value.__suppress_context__
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, policies):
    where = tmp_path_factory.mktemp("saved") / "model"
    policies["llama-gqa"].save(where)
    return where


def test_a_saved_policy_loads_from_its_folder_and_says_the_same(folder, policies):
    loaded = load_policy(folder)
    assert loaded.name == str(folder) and not loaded.model.training
    first, again = (policy.sample(PROMPTS, 2, max_tokens=8) for policy in (policies["llama-gqa"], loaded))
    assert torch.equal(first.tokens, again.tokens) and first.texts == again.texts


def test_the_environment_names_the_model_when_the_call_does_not(folder, monkeypatch):
    monkeypatch.setenv("RLCOURSE_MODEL", str(folder))
    assert load_policy().name == str(folder)


def test_a_model_in_the_hub_cache_loads_offline_by_its_name(folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(folder, target_is_directory=True)
    script = (
        "from rlcourse import load_policy\n"
        "print(load_policy('someone/tiny').sample(['1+2='], greedy=True).texts)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(load_policy(folder).sample(["1+2="], greedy=True).texts)


@pytest.mark.parametrize("name", ["no-such-model", "someone/no-such-model", "a/b/c", "white space"])
def test_an_unknown_name_is_one_clear_sentence(name):
    with pytest.raises(ValueError, match="No model .*not a local folder") as error:
        load_policy(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    assert without_traceback_chain(error)


def empty(where, policies):
    pass


def no_tokenizer(where, policies):
    policies["llama"].model.save_pretrained(where)


def no_weights(where, policies):
    policies["llama"].save(where)
    (where / "model.safetensors").unlink()


def broken_weights(where, policies):
    policies["llama"].save(where)
    (where / "model.safetensors").write_bytes(b"not a safetensors file")


def broken_config(where, policies):
    policies["llama"].save(where)
    (where / "config.json").write_text("{")


def not_causal(where, policies):
    config = T5Config(
        vocab_size=19, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(where)
    policies["llama"].tokenizer.save_pretrained(where)


def code_of_its_own(where, policies):
    policies["llama"].save(where)
    config = (where / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "mine"')
    (where / "config.json").write_text(
        config.replace("{", '{"auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"},', 1)
    )
    (where / "m.py").write_text(f"open({str(where / 'was-run')!r}, 'w')\n")


def pickled(where, policies):
    """Weights as a pickle that leaves a trace when it is opened."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (where / "was-run",))

    policies["llama"].save(where)
    (where / "model.safetensors").unlink()
    (where / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))


def honestly_pickled(where, policies):
    policies["llama"].save(where)
    (where / "model.safetensors").unlink()
    torch.save(policies["llama"].model.state_dict(), where / "pytorch_model.bin")


@pytest.mark.parametrize(
    "content",
    [
        empty,
        no_tokenizer,
        no_weights,
        broken_weights,
        broken_config,
        not_causal,
        code_of_its_own,
        pickled,
        honestly_pickled,
    ],
)
def test_a_folder_without_a_causal_model_in_safetensors_is_one_clear_sentence(content, tmp_path, policies):
    where = tmp_path / "folder"
    where.mkdir()
    content(where, policies)
    with pytest.raises(ValueError, match="does not hold a causal language model with its tokenizer") as error:
        load_policy(where)
    assert str(where) in str(error.value) and "\n" not in str(error.value)
    assert without_traceback_chain(error)
    assert not (where / "was-run").exists()


# ---- the models that ship

needs = {
    name: pytest.mark.skipif(
        not (POCKETS / name / "model.safetensors").exists(),
        reason=f"{name} has not been built: make pockets",
    )
    for name in ("pocket", "pocket-moe")
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in needs.items()])
def test_a_shipped_model_loads_by_name_and_scores_what_it_samples(name):
    policy = load_policy(name)
    assert policy.name == name and policy.model.dtype == torch.float32
    rollout = policy.sample(["59+63+15=", "7+8="], 8, max_tokens=40, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(policy.score(rollout), rollout.logp, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(slowly(policy, rollout), rollout.logp, atol=1e-5, rtol=1e-5)
    assert rollout.finished.float().mean() > 0.9
    assert_ends_at_eos_and_at_nothing_else(rollout, [policy.tokenizer.eos_token_id], 40)


@pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in needs.items()])
def test_a_shipped_model_is_small_in_safetensors_and_its_special_tokens_differ(name):
    files = {file.name: file.stat().st_size for file in (POCKETS / name).iterdir()}
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert files["model.safetensors"] <= 6e6
    tokenizer = load_policy(name).tokenizer
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    special += tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    assert None not in special and len(set(special)) == 5


@needs["pocket"]
def test_the_pocket_is_the_default_and_has_a_token_for_each_digit(monkeypatch):
    monkeypatch.delenv("RLCOURSE_MODEL", raising=False)
    policy = load_policy()
    assert policy.name == "pocket"
    ids = policy.tokenizer("17+25=42#90", add_special_tokens=False)["input_ids"]
    assert len(ids) == 11 and policy.decode(ids) == "17+25=42#90"
    assert policy.encode("7+8=")[0] == policy.tokenizer.bos_token_id


@needs["pocket"]
def test_the_pocket_equals_transformers_own_generate():
    policy = load_policy("pocket")
    rollout = policy.sample(["59+63+15="], greedy=True, max_tokens=40)
    model = AutoModelForCausalLM.from_pretrained(POCKETS / "pocket")
    theirs = model.generate(rollout.prompt_tokens, do_sample=False, max_new_tokens=40)
    assert rollout.tokens[0].tolist() == theirs[0, rollout.prompt_tokens.shape[1] :].tolist()


FORKS = """
import os, threading
import torch
import rlcourse.lm.loading
torch.set_num_threads(1)
torch.ones(300, 300).sum()

def child():
    together, failed = threading.Barrier(8), []

    def ask():
        together.wait()
        try:
            torch.ones(200, 200).to(torch.float64).sum()
        except RuntimeError:
            failed.append(1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    os._exit(bool(failed))

print(sum(os.waitpid(os.fork() or child(), 0)[1] != 0 for _ in range(20)))
"""


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no fork here")
def test_many_threads_may_use_torch_at_once_in_a_forked_process():
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True)
    assert done.stdout.strip() == "0", done.stderr  # 19 of 20 without what loading.py does at a fork
