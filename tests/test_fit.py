"""The offline loop: what a scorer reads, what a step learns from, and the same numbers every time."""

import dataclasses
import json
import math
import random
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_train import same_weights, timeless
from tiny import CONTEXT, build, characters

from rlcourse import Policy, Scorer, fit, train
from rlcourse import methods as m
from rlcourse.lm import Rollout, checkpoints
from rlcourse.methods.dpo import dpo_loss, ipo_loss
from rlcourse.methods.kto import kto_loss
from rlcourse.methods.offline import OfflineMethod
from rlcourse.methods.online_dpo import online_dpo_advantages
from rlcourse.methods.reward_model import bradley_terry_loss, plackett_luce_loss
from rlcourse.tasks import Demonstration, Helpdesk, Pair, Ranking, Verdict
from rlcourse.tasks.helpdesk import Ticket
from rlcourse.tasks.sums import Sum
from rlcourse.training import Run, offline
from rlcourse.training.offline import as_rollout, batches, mismatched, picked

quickly = settings(max_examples=25, deadline=None)
KINDS = ["llama", "llama-gqa", "qwen2", "qwen3-moe", "gpt2"]  # gpt2: positions are learnt, so padding shows
SETTINGS = {"lr": 1e-2, "batch": 4, "quiet": True}
UNCLIPPED = {"lr": 1.0, "max_grad_norm": 1e9, "quiet": True}  # for Descent: the change is the gradient


class Descent(torch.optim.SGD):
    """Plain steps, of size 1 unless the loop says otherwise: the change of the weights is the gradient."""

    def __init__(self, parameters, **_):
        super().__init__(parameters, lr=1.0)
        self.param_groups[0]["lr"] = 1.0


def fresh(kind="llama", seed=0):
    return Policy(build(kind, seed), characters(), "tiny")


def scorer(kind="llama", seed=0):
    """One whose head is not 0 any more, so that its trunk learns too."""
    found = Scorer(fresh(kind, seed))
    with torch.no_grad():
        found.head.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return found


def text(rng, low=1, high=9):
    return "".join(rng.choice("0123456789+=") for _ in range(rng.randint(low, high)))


def demonstrations(n=8, seed=0):
    rng = random.Random(seed)
    return [Demonstration(text(rng), text(rng)) for _ in range(n)]


def pairs(n=8, seed=0):
    rng = random.Random(seed)
    return [Pair(text(rng), text(rng), text(rng)) for _ in range(n)]


def rankings(n=8, seed=0, k=3):
    rng = random.Random(seed)
    return [Ranking(text(rng), tuple(text(rng) for _ in range(k))) for _ in range(n)]


def verdicts(n=8, seed=0):
    rng = random.Random(seed)
    return [Verdict(text(rng), text(rng), i % 3 > 0) for i in range(n)]


def weights(model):
    module = model if isinstance(model, Scorer) else model.model
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def moved(before, model):
    """What one step of Descent took away: the gradient."""
    return {name: before[name] - after for name, after in weights(model).items()}


def assert_gradient(found, module, atol=1e-6):
    """`module` has just been through backward()."""
    for name, p in module.named_parameters():
        expected = p.grad if p.grad is not None else torch.zeros_like(p)
        torch.testing.assert_close(
            found[name], expected, atol=atol, rtol=1e-4, msg=lambda s, n=name: f"{n}: {s}"
        )
    assert max(g.abs().max() for g in found.values()) > 1e-3


def read(policy, prompt, response, end=True):
    """transformers' own pass over one prompt and its response, nothing padded: states, logits, response tokens."""
    first, then = policy.encode(prompt), policy.encode_response(response)[: None if end else -1]
    out = policy.model(torch.tensor([first + then]), output_hidden_states=True, use_cache=False)
    return out.hidden_states[-1][0], out.logits[0, len(first) - 1 : -1], torch.tensor(then)


def logp_of(policy, prompt, response):
    """log pi of a whole answer, by transformers' own pass."""
    _, logits, tokens = read(policy, prompt, response)
    return logits.log_softmax(-1).gather(1, tokens[:, None]).sum()


# ---- the scorer


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_head_on_transformers_own_state_after_the_eos(kind):
    judge, data = scorer(kind), pairs(6)
    with torch.no_grad():
        found = judge(as_rollout(judge.policy, data))
        for row, (example, answer) in enumerate((e, a) for e in data for a in e.answers):
            states, *_ = read(judge.policy, example.prompt, answer)
            scores = (states @ judge.head.weight.T).squeeze(1)
            assert found[row].item() == pytest.approx(scores[-1].item(), abs=1e-4)
            assert abs(scores[-1] - scores[-2]) > 1e-3  # one place earlier is another score


@pytest.mark.parametrize("kind", KINDS)
def test_neither_wider_padding_nor_garbage_in_it_changes_a_score(kind):
    judge = scorer(kind)
    rows = as_rollout(judge.policy, pairs(5))

    def widened(x, left, by, filler):
        extra = torch.full((len(x), by), filler, dtype=x.dtype)
        return torch.cat([extra, x] if left else [x, extra], 1)

    wide = Rollout(
        prompts=rows.prompts, owner=rows.owner, finished=rows.finished, texts=rows.texts,
        prompt_tokens=widened(rows.prompt_tokens, True, 3, 9), prompt_mask=widened(rows.prompt_mask, True, 3, False),
        tokens=widened(rows.tokens, False, 4, 9).where(widened(rows.mask, False, 4, False), torch.tensor(9)),
        mask=widened(rows.mask, False, 4, False), logp=widened(rows.logp, False, 4, 0.0),
    )  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(judge(wide), judge(rows), atol=1e-4, rtol=1e-4)
        for row in range(len(rows)):  # nor does the company in the batch
            torch.testing.assert_close(judge(rows[[row]])[0], judge(rows)[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_cut_answer_is_read_at_its_last_token(kind):
    judge = scorer(kind)
    rollout = judge.policy.sample(["1+1=", "23+4="], 12, max_tokens=8)
    assert 0 < rollout.finished.sum() < len(rollout)
    with torch.no_grad():
        scores = judge(rollout)
        for row in range(len(rollout)):
            said = rollout.tokens[row, : rollout.lengths[row]].tolist()
            prompt = judge.policy.encode(rollout.prompts[rollout.owner[row]])
            states = judge.policy.model(
                torch.tensor([prompt + said]), output_hidden_states=True
            ).hidden_states
            assert scores[row].item() == pytest.approx(judge.head(states[-1][0, -1]).item(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_may_fill_the_context_to_its_last_place(kind):
    judge, full = scorer(kind), Pair("1" * 50, "2" * (CONTEXT - 51), "3")
    with torch.no_grad():
        found = judge(as_rollout(judge.policy, [full]))
        states, *_ = read(judge.policy, full.prompt, full.chosen)
    assert len(states) == CONTEXT
    assert found[0].item() == pytest.approx(judge.head(states[-1]).item(), abs=1e-4)


def test_texts_are_scored_as_their_rollout_is():
    judge, data = scorer("llama"), pairs()
    found = judge.scores([x.prompt for x in data], [x.chosen for x in data])
    assert not found.requires_grad
    torch.testing.assert_close(found, judge(as_rollout(judge.policy, data)).detach().view(-1, 2)[:, 0])


def test_a_scorer_starts_at_0_for_every_answer_and_so_its_first_loss_is_log_2():
    judge = Scorer(fresh())
    with torch.no_grad():
        assert judge(as_rollout(judge.policy, pairs())).tolist() == [0.0] * 16
    run = fit(judge, pairs(), m.BradleyTerry(), **SETTINGS)
    assert run.history[0]["loss"] == pytest.approx(math.log(2)) and run.history[0]["margin"] == 0
    run = fit(Scorer(fresh()), rankings(), m.PlackettLuce(), **SETTINGS)
    assert run.history[0]["loss"] == pytest.approx(math.log(6))  # one of 3! orders


def test_a_scorer_takes_the_policy_that_it_is_given_and_trains_its_trunk_too():
    policy = fresh()
    before, judge = weights(policy), Scorer(policy)
    assert judge.trunk is policy.model and sum(1 for _ in judge.parameters()) == len(before) + 1
    fit(judge, pairs(), m.BradleyTerry(), **SETTINGS)
    assert not same_weights(before, weights(policy))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_saved_scorer_comes_back_and_gives_the_same_scores(kind, tmp_path):
    judge, rows = scorer(kind), as_rollout(fresh(kind), pairs(3))
    judge.save(tmp_path)
    again = Scorer.load(tmp_path)
    assert same_weights(weights(judge), weights(again))
    with torch.no_grad():
        torch.testing.assert_close(again(rows), judge(rows))
        assert again(rows).unique().numel() == 6


def test_a_folder_without_a_score_head_is_refused_by_name(tmp_path):
    fresh().save(tmp_path)
    with pytest.raises(
        ValueError, match="holds no scorer: there is no score_head.safetensors.*Scorer.save writes one"
    ):
        Scorer.load(tmp_path)


def test_a_scorers_copy_is_independent():
    judge = scorer()
    twin, before = judge.copy(), weights(judge)
    assert same_weights(weights(twin), before)
    fit(twin, pairs(), m.BradleyTerry(), **SETTINGS)
    assert same_weights(weights(judge), before)
    assert not torch.equal(twin.head.weight, judge.head.weight)


# ---- a scorer as judge


@dataclass(frozen=True)
class Short(Helpdesk):
    """The helpdesk with customers short enough for a tiny model."""

    max_tokens: int = 8

    def draw(self, rng):
        return Ticket("thanks", "happy", f"{rng.randint(1, 99)}+", {"product": "lamp"})


@pytest.mark.parametrize(
    "method",
    [m.GRPO(group_size=4), m.RLOO(group_size=4), m.PPO(), m.PPO(critic="shared", epochs=2), m.OnlineDPO()],
    ids=repr,
)
def test_a_scorer_pays_rewards_that_carry_no_gradient_and_stays_as_it_is(method):
    judge, asked = scorer(seed=3), []

    def noted(rollout):
        asked.append((rollout, judge(rollout)))
        return asked[-1][1]

    policy, before = fresh(), weights(judge)
    start = weights(policy)
    run = train(policy, Short(judge=noted), method, steps=2, responses=16, lr=1e-2, quiet=True)
    trained = [(rollout, said) for rollout, said in asked if len(rollout) == 16]
    assert len(trained) == 2
    for row, (rollout, said) in zip(run.history, trained):
        assert row["reward"] == pytest.approx(said.mean().item(), abs=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(rollout.rewards, judge(rollout))
        assert not said.requires_grad and said.std() > 0.01
    assert same_weights(before, weights(judge)) and all(p.grad is None for p in judge.parameters())
    assert not same_weights(start, weights(policy))


# ---- SFT beside transformers and TRL


def labelled(policy, data):
    """Token ids, right-padded, and labels that are -100 on prompts and padding: transformers' convention."""
    rows = [(policy.encode(p), policy.encode_response(r)) for p, r in data]
    width = max(len(p) + len(r) for p, r in rows)
    ids, labels = torch.full((len(rows), width), policy.pad_id), torch.full((len(rows), width), -100)
    for i, (p, r) in enumerate(rows):
        ids[i, : len(p + r)] = torch.tensor(p + r)
        labels[i, len(p) : len(p + r)] = torch.tensor(r)
    attention = (torch.arange(width) < torch.tensor([[len(p + r)] for p, r in rows])).long()
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_sfts_first_step_is_transformers_own_loss_and_gradient(kind, micro_batch, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    policy, theirs, data = fresh(kind), fresh(kind), demonstrations()
    before = weights(policy)
    run = fit(policy, data, m.SFT(), micro_batch=micro_batch, **UNCLIPPED)
    expected = theirs.model(**labelled(theirs, data)).loss
    expected.backward()
    assert run.history[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert_gradient(moved(before, policy), theirs.model, atol=3e-6)


def test_sfts_first_step_on_the_batch_that_trl_makes_of_the_same_demonstrations(monkeypatch):
    pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]' brings it")
    from datasets import Dataset
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    policy, theirs, data = fresh(), fresh(), demonstrations()
    args = SimpleNamespace(
        dataset_num_proc=None, dataset_text_field="text", assistant_only_loss=False, max_length=CONTEXT,
        truncation_mode="keep_start", shuffle_dataset=False,
    )  # fmt: skip
    it = SimpleNamespace(_tokenizer=theirs.tokenizer, chat_template=None, completion_only_loss=True)
    table = Dataset.from_list([{"prompt": d.prompt, "completion": d.response} for d in data])
    rows = SFTTrainer._prepare_dataset(it, table, theirs.tokenizer, args, False, None, "train")
    batch = DataCollatorForLanguageModeling(theirs.pad_id)(
        [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
    )
    ours = labelled(policy, data)
    assert torch.equal(batch["labels"], ours["labels"]) and torch.equal(batch["input_ids"], ours["input_ids"])
    before = weights(policy)
    run = fit(policy, data, m.SFT(), **UNCLIPPED)
    expected = theirs.model(**batch).loss
    expected.backward()
    assert run.history[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert_gradient(moved(before, policy), theirs.model, atol=3e-6)


# ---- micro-batches

ALL = [
    (m.SFT(), demonstrations), (m.BradleyTerry(), pairs), (m.BradleyTerry(margin=0.5, centring=0.1), pairs),
    (m.PlackettLuce(), rankings), (m.PlackettLuce(), pairs), (m.DPO(), pairs), (m.DPO(label_smoothing=0.2), pairs),
    (m.IPO(), pairs), (m.KTO(), verdicts), (m.KTO(beta=0.5, desirable_weight=0.7), verdicts),
]  # fmt: skip
EVERY = pytest.mark.parametrize(("method", "data"), ALL, ids=[f"{a!r}-{b.__name__}" for a, b in ALL])


def model_for(method):
    return scorer() if method.trains == "Scorer" else fresh()


def test_no_offline_method_is_missing_here():
    offline_ones = {name for name in m.__all__ if issubclass(getattr(m, name), OfflineMethod)}
    assert {type(method).__name__ for method, _ in ALL} == offline_ones
    assert {(type(method).__name__, type(data()[0]).__name__) for method, data in ALL} == {
        (name, kind) for name in offline_ones for kind in getattr(m, name).data
    }


@pytest.mark.parametrize("size", [1, 3])
@EVERY
def test_micro_batches_change_the_gradient_by_no_more_than_rounding(method, data, size, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    reference = fresh(seed=1) if method.trains == "Policy" else None
    whole, parts, start = model_for(method), model_for(method), weights(model_for(method))
    rest = {"reference": reference, "lr": 1.0, "max_grad_norm": 0.01, "quiet": True}
    row = fit(whole, data(), method, **rest).history[0]
    others = fit(parts, data(), method, micro_batch=size, **rest).history[0]
    for name in row.keys() - {"seconds"}:
        assert others[name] == pytest.approx(row[name], rel=1e-4, abs=1e-5), name
    one, other = moved(start, whole), moved(start, parts)
    assert max((one[name] - other[name]).abs().max() for name in one) < 1e-6
    assert max(g.abs().max() for g in one.values()) > 1e-4


def test_the_gradient_is_clipped_to_the_norm_that_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    policy, before = fresh(), weights(fresh())
    run = fit(policy, demonstrations(), m.SFT(), lr=1.0, max_grad_norm=0.1, quiet=True)
    norm = sum(g.square().sum() for g in moved(before, policy).values()).sqrt().item()
    assert run.history[0]["grad_norm"] > 0.1 and norm == pytest.approx(0.1, rel=1e-3)


@EVERY
def test_a_steps_gradient_is_its_own_and_not_the_steps_before_it_too(method, data):
    run = fit(model_for(method), data(), method, epochs=3, lr=1e-30, batch=8, quiet=True)
    assert run.column("grad_norm") == pytest.approx([run.history[0]["grad_norm"]] * 3, rel=1e-4)
    assert run.column("loss") == pytest.approx([run.history[0]["loss"]] * 3)


def test_the_learning_rate_falls_to_0_in_even_steps(monkeypatch):
    rates = []

    class Noted(Descent):
        def step(self):
            rates.append(self.param_groups[0]["lr"])

    monkeypatch.setattr(torch.optim, "AdamW", Noted)
    fit(fresh(), demonstrations(), m.SFT(), epochs=2, lr=0.8, batch=4, quiet=True)
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(("vocabulary", "expected"), [(99, 1e-3), (150_000, 2e-5)])
def test_without_a_learning_rate_the_methods_own_is_taken_a_pockets_for_a_pocket(
    vocabulary, expected, tmp_path
):
    policy = fresh()
    policy.model.config.vocab_size = vocabulary
    fit(policy, demonstrations(4), m.SFT(), out=tmp_path, quiet=True)
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == expected


# ---- batches


@quickly
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 2, 3]), st.integers(0, 99))
def test_every_example_occurs_once_an_epoch_and_no_batch_is_larger_than_asked(n, size, k, seed):
    found = batches(as_rollout(POLICY, rankings(n, seed, k)), size, seed)
    assert sorted(i for batch in found for i in batch) == list(range(n))
    assert len(found) == math.ceil(n / size)
    assert sorted(map(len, found))[1:] == [size] * (len(found) - 1)


POLICY = fresh()


def test_batches_of_like_length_pad_less_than_half_of_what_random_ones_do():
    rng = random.Random(0)
    data = [
        Pair("1" * rng.randint(1, 20), "2" * rng.randint(1, 20), "3" * rng.randint(1, 20)) for _ in range(256)
    ]
    rows = as_rollout(POLICY, data)
    longest = (rows.grouped(rows.lengths).amax(1) + rows.prompt_mask.sum(1)).tolist()

    def padding(found):
        return sum(max(longest[i] for i in batch) - longest[j] for batch in found for j in batch)

    ours = batches(rows, 8, seed=1)
    order = rng.sample(range(256), 256)
    assert padding(ours) < 0.5 * padding([order[i : i + 8] for i in range(0, 256, 8)])
    assert ours != batches(rows, 8, seed=2) and ours == batches(rows, 8, seed=1)
    first = [max(longest[i] for i in batch) for batch in batches(as_rollout(POLICY, data[:64]), 8, seed=1)]
    assert first != sorted(first) != first[::-1]  # and no epoch goes from short to long


def test_an_epoch_sees_every_example_once_and_the_next_in_another_order():
    spy = Spy()
    fit(fresh(), pairs(41), spy, epochs=3, **SETTINGS | {"batch": 2})
    epochs = [[tuple(batch.texts) for batch in spy.batches[21 * e : 21 * e + 21]] for e in range(3)]
    everything = sorted(text for pair in pairs(41) for text in pair.answers)
    for epoch in epochs:
        assert sorted(text for batch in epoch for text in batch) == everything
        assert sorted(map(len, epoch)) == [2] + [4] * 20
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 3  # other companies, not just another order


@quickly
@given(st.integers(0, 99), st.sets(st.integers(0, 7), min_size=1))
def test_picked_examples_keep_their_answers_together_and_lose_padding_only(seed, chosen):
    data = pairs(8, seed)
    rows = as_rollout(POLICY, data)
    with torch.no_grad():
        rows.ref_logp = POLICY.score(rows)
        few = picked(rows, list(chosen))
        assert few.texts == [text for i in sorted(chosen) for text in data[i].answers]
        assert [few.prompts[p] for p in few.owner.tolist()] == [
            data[i].prompt for i in sorted(chosen) for _ in "ab"
        ]
        assert few.mask.any(0).all() and few.prompt_mask.any(0).all()  # no column of padding alone
        torch.testing.assert_close(POLICY.score(few), few.ref_logp, atol=1e-4, rtol=1e-4)


def test_answers_stand_in_the_order_of_the_feedback_the_best_first():
    rows = as_rollout(POLICY, [Ranking("1+", ("a", "bb", "1")), Ranking("2+", ("22", "b", "0"))])
    assert rows.texts == ["a", "bb", "1", "22", "b", "0"] and rows.owner.tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.prompts == ["1+", "2+"] and rows.group_size == 3
    assert rows.lengths.tolist() == [2, 3, 2, 3, 2, 2]  # the EOS included
    assert as_rollout(POLICY, verdicts(4)).correct.tolist() == [False, True, True, False]


# ---- the reference


class Spy(OfflineMethod):
    """DPO that keeps its batches."""

    needs = ("ref_logp",)
    data = ("Pair",)

    def __init__(self):
        self.batches = []

    def loss(self, batch):
        self.batches.append(dataclasses.replace(batch, logp=batch.logp.detach()))
        return m.DPO().loss(batch)


def test_the_reference_is_asked_once_for_every_answer_and_stays_as_it_is():
    reference, rows = fresh(seed=1), []
    score, before = reference.score, weights(reference)
    reference.score = lambda rollout: rows.extend(rollout.texts) or score(rollout)
    fit(fresh(), pairs(), m.DPO(), epochs=3, micro_batch=1, reference=reference, **SETTINGS)
    assert sorted(rows) == sorted(text for pair in pairs() for text in pair.answers)
    assert same_weights(before, weights(reference)) and all(p.grad is None for p in reference.parameters())


@pytest.mark.parametrize("seed", [None, 1])
def test_the_reference_is_the_policy_as_it_came_in_or_the_one_that_was_given(seed):
    spy, reference = Spy(), fresh(seed=seed or 0)
    fit(fresh(), pairs(), spy, epochs=3, reference=reference if seed else None, **SETTINGS)
    for batch in spy.batches:
        with torch.no_grad():
            torch.testing.assert_close(batch.ref_logp, reference.score(batch), atol=1e-5, rtol=1e-5)
        assert not batch.ref_logp.requires_grad
    assert (spy.batches[-1].logp - spy.batches[-1].ref_logp).abs().max() > 0.1


@pytest.mark.parametrize(
    ("method", "data", "expected"),
    [
        (m.DPO(beta=0.3), pairs, math.log(2)),
        (m.DPO(label_smoothing=0.3), pairs, math.log(2)),
        (m.IPO(beta=0.2), pairs, 1 / (4 * 0.2**2)),
        (m.KTO(), verdicts, 0.5),
    ],
)
def test_a_policy_that_is_its_own_reference_starts_at(method, data, expected):
    (row,) = fit(fresh(), data(), method, lr=1e-2, quiet=True).history
    assert row["loss"] == pytest.approx(expected, abs=1e-5)
    assert all(abs(row[name]) < 1e-4 for name in row if "moved" in name or name == "reference_kl")


# ---- one step beside autograd


def test_a_step_of_dpo_is_autograds_through_its_loss_on_answers_scored_one_by_one(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    policy, theirs, reference, data = fresh(), fresh(), fresh(seed=1), pairs()
    before = weights(policy)
    method = m.DPO(beta=0.3, label_smoothing=0.1)
    (row,) = fit(policy, data, method, reference=reference, micro_batch=3, **UNCLIPPED).history
    chosen = torch.stack([logp_of(theirs, pair.prompt, pair.chosen) for pair in data])
    rejected = torch.stack([logp_of(theirs, pair.prompt, pair.rejected) for pair in data])
    with torch.no_grad():
        ref_chosen = torch.stack([logp_of(reference, pair.prompt, pair.chosen) for pair in data])
        ref_rejected = torch.stack([logp_of(reference, pair.prompt, pair.rejected) for pair in data])
    loss, *_ = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3, 0.1)
    loss.backward()
    assert_gradient(moved(before, policy), theirs.model, atol=1e-5)
    up, down = (chosen - ref_chosen).detach(), (rejected - ref_rejected).detach()
    expected = {"loss": loss.item(), "chosen_moved": up.mean().item(), "rejected_moved": down.mean().item()}
    expected |= {"margin": (up - down).mean().item(), "accuracy": (up > down).float().mean().item()}
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert 0 < row["accuracy"] < 1


def test_a_step_of_ipo_compares_means_over_tokens_the_eos_included(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    policy, theirs, reference, data = fresh(), fresh(), fresh(seed=1), pairs()
    before = weights(policy)
    (row,) = fit(policy, data, m.IPO(beta=0.4), reference=reference, **UNCLIPPED).history

    def means(model, name):
        answers = [(pair.prompt, getattr(pair, name)) for pair in data]
        return torch.stack([logp_of(model, prompt, answer) / (len(answer) + 1) for prompt, answer in answers])

    loss = ipo_loss(
        *(means(model, name) for model in (theirs, reference) for name in ("chosen", "rejected")), 0.4
    )
    loss.backward()
    assert row["loss"] == pytest.approx(loss.item(), abs=1e-4)
    assert_gradient(moved(before, policy), theirs.model, atol=1e-5)
    with torch.no_grad():  # and the margin is seen in nats of whole answers, as for DPO
        lead = [
            logp_of(model, pair.prompt, pair.chosen) - logp_of(model, pair.prompt, pair.rejected)
            for model in (fresh(), reference)
            for pair in data
        ]
    assert row["margin"] == pytest.approx((sum(lead[:8]) - sum(lead[8:])).item() / 8, abs=1e-4)


@pytest.mark.parametrize(("method", "data"), [ALL[2], ALL[3]], ids=["BradleyTerry", "PlackettLuce"])
def test_a_step_of_a_reward_model_is_autograds_through_states_after_the_eos(method, data, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    judge, theirs, before = scorer(), scorer(), weights(scorer())
    (row,) = fit(judge, data(), method, micro_batch=3, **UNCLIPPED).history
    scores = torch.stack(
        [
            torch.cat([theirs.head(read(theirs.policy, example.prompt, a)[0][-1]) for a in example.answers])
            for example in data()
        ]
    )
    ranking = data is rankings
    loss = plackett_luce_loss(scores) if ranking else bradley_terry_loss(*scores.unbind(1), 0.5, 0.1)
    loss.backward()
    assert row["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert row["accuracy"] == pytest.approx((scores[:, 0] == scores.amax(1)).float().mean().item())
    if not ranking:
        assert row["margin"] == pytest.approx((scores[:, 0] - scores[:, 1]).mean().item(), abs=1e-5)
    assert_gradient(moved(before, judge), theirs)


# ---- KTO's reference point


@quickly
@given(st.integers(2, 40), st.integers(0, 99))
def test_mismatched_answers_are_everybodys_once_and_nobodys_own(n, seed):
    data = [Verdict(f"{i}=", f"{i}", True) for i in range(n)]
    others = mismatched(POLICY, data, seed)
    assert others.prompts == [verdict.prompt for verdict in data]
    assert all(other != verdict.response for other, verdict in zip(others.texts, data))
    assert sorted(others.texts) == sorted(verdict.response for verdict in data)


def test_another_seed_gives_other_mismatched_answers():
    assert mismatched(POLICY, verdicts(), 0).texts == mismatched(POLICY, verdicts(), 0).texts
    assert mismatched(POLICY, verdicts(), 0).texts != mismatched(POLICY, verdicts(), 1).texts


@quickly
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 99))
def test_a_mismatched_answer_was_given_to_another_prompt_where_prompts_have_several_answers(asked, seed):
    assume(len(set(asked)) > 1)
    data = [Verdict(f"{prompt}=", f"{i}", True) for i, prompt in enumerate(asked)]
    order = list(range(len(data)))
    random.Random(offline.stream(seed, "mismatched")).shuffle(order)
    half = order[len(order) // 2 :] + order[: len(order) // 2]
    for i, partner in enumerate(map(int, mismatched(POLICY, data, seed).texts)):
        assert asked[partner] != asked[i]
        first = half[order.index(i)]  # half the circle further on, where that is another prompt's
        assert partner == first or asked[first] == asked[i]


@pytest.mark.parametrize("n", [1, 4])
def test_verdicts_on_one_prompt_have_no_other_answer_to_be_measured_on(n):
    data = [Verdict("1=", str(i), True) for i in range(n)]
    with pytest.raises(
        ValueError, match="KTO measures its reference point on answers to .other. prompts.*two or more"
    ):
        fit(fresh(), data, m.KTO(), **SETTINGS)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_mismatched_answer_that_would_not_fit_the_context_is_cut(kind):
    data = [Verdict("1" * 80, "2", True), Verdict("1", "2" * 80, False)]
    others = mismatched(fresh(kind), data, 0)
    assert others.lengths.tolist() == [CONTEXT - 80, 2]
    row = fit(fresh(kind), data, m.KTO(), reference=fresh(kind, seed=1), **SETTINGS).history[0]
    assert math.isfinite(row["reference_kl"])


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_a_step_of_kto_stands_on_the_mean_log_ratio_of_the_whole_steps_mismatched_answers(
    micro_batch, monkeypatch
):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    seen, learn = [], offline.learn

    def noted(model, optimizer, method, batch, *rest):
        seen.append(batch.prompts)
        return learn(model, optimizer, method, batch, *rest)

    monkeypatch.setattr(offline, "learn", noted)
    policy, theirs, reference, data = fresh(), fresh(), fresh(seed=1), verdicts(8, seed=2)
    before, method = weights(policy), m.KTO(beta=0.3, desirable_weight=0.7, undesirable_weight=1.3)
    shared = {"reference": reference, "batch": 5, "micro_batch": micro_batch}
    monkeypatch.setattr(offline, "batches", lambda *_: [[6, 1, 3, 0, 5]])
    (row,) = fit(policy, data, method, **shared, **UNCLIPPED).history
    theirs_of = dict(zip((v.prompt for v in data), mismatched(theirs, data, 0).texts))
    step = [verdict for verdict in data if verdict.prompt in seen[0]]
    assert [verdict.prompt for verdict in step] == seen[0] and len(step) == 5

    def logps(model, answers):
        return torch.stack([logp_of(model, verdict.prompt, answer) for verdict, answer in zip(step, answers)])

    with torch.no_grad():
        strange, own = [theirs_of[v.prompt] for v in step], [v.response for v in step]
        z = (logps(theirs, strange) - logps(reference, strange)).mean()
        ref = logps(reference, own)
    good = torch.tensor([verdict.good for verdict in step])
    logp = logps(theirs, own)
    loss = kto_loss(logp, ref, good, z, 0.3, 0.7, 1.3)
    loss.backward()
    assert row["reference_kl"] == pytest.approx(z.item(), abs=1e-4) and z > 0.5
    assert row["loss"] == pytest.approx(loss.item(), abs=1e-5)
    change = (logp - ref).detach()
    assert row["good_moved"] == pytest.approx(change[good].mean().item(), abs=1e-4)
    assert row["bad_moved"] == pytest.approx(change[~good].mean().item(), abs=1e-4)
    assert_gradient(moved(before, policy), theirs.model, atol=1e-5)


def test_the_reference_point_is_where_the_policy_stands_before_the_step():
    history = fit(fresh(), verdicts(), m.KTO(), epochs=4, **SETTINGS).history
    assert history[0]["reference_kl"] == pytest.approx(0, abs=1e-5)
    assert all(abs(row["reference_kl"]) > 1e-3 for row in history[1:])


# ---- online DPO


def test_online_dpos_advantages_by_hand():
    # beta 1/2, log-ratios 2 ln 3 and 0: the first leads by ln 3, and is expected to be chosen with 3/4
    logp, ref = torch.tensor([[2 * math.log(3) - 1, -2.0]]), torch.tensor([[-1.0, -2.0]])
    for rewards, expected in [((5.0, 1.0), 1 / 8), ((1.0, 1.5), -3 / 8), ((2.0, 2.0), 0)]:
        found = online_dpo_advantages(torch.tensor([rewards]), logp, ref, 0.5)
        assert found[0].tolist() == pytest.approx([expected, -expected])
    carries = online_dpo_advantages(torch.tensor([[1.0, 0.0]]), logp.requires_grad_(), ref, 0.5)
    assert not carries.requires_grad


@dataclass(frozen=True)
class Coarse:
    """Pays by length, in steps of four: some pairs tie."""

    max_tokens: int = 12
    asked: list = dataclasses.field(default_factory=list, repr=False)

    def draw(self, rng):
        return Sum((rng.randint(1, 99), rng.randint(1, 99)))

    def grade(self, rollout):
        self.asked.append(rollout)
        rewards = (rollout.lengths // 4).float()
        return {"rewards": rewards, "correct": rewards > 1}


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_step_of_online_dpo_is_dpos_on_the_pairs_that_do_not_tie_the_higher_reward_chosen(
    micro_batch, monkeypatch
):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    policy, theirs, reference, task = fresh(), fresh(), fresh(seed=1), Coarse()
    before = weights(policy)
    rest = {"steps": 1, "responses": 24, "reference": reference, "micro_batch": micro_batch}
    run = train(policy, task, m.OnlineDPO(beta=0.3), **rest, max_grad_norm=1e9, quiet=True)
    rollout = next(r for r in task.asked if len(r) == 24)
    kept = [p for p in range(12) if rollout.rewards[2 * p] != rollout.rewards[2 * p + 1]]
    assert 0 < len(kept) < 12 and run.history[0]["prompts_kept"] == len(kept)
    best = [2 * p + int(rollout.rewards[2 * p] < rollout.rewards[2 * p + 1]) for p in kept]
    worst = [4 * p + 1 - row for p, row in zip(kept, best)]
    assert {row % 2 for row in best} == {0, 1}

    def whole(model, rows):
        return model.score(rollout)[rows].sum(1)

    loss, *_ = dpo_loss(
        whole(theirs, best), whole(theirs, worst), whole(reference, best), whole(reference, worst), 0.3
    )
    loss.backward()
    assert_gradient(moved(before, policy), theirs.model, atol=1e-5)


@pytest.mark.parametrize("size", [1, 4])
def test_online_dpo_compares_two_answers_and_no_other_number(size):
    with pytest.raises(ValueError, match=f"two answers to a prompt; got group_size={size}"):
        m.OnlineDPO(group_size=size)


# ---- what a run says


def test_a_runs_history_counts_steps_epochs_and_examples():
    run = fit(fresh(), pairs(10), m.DPO(), epochs=2, **SETTINGS)
    assert run.column("step") == [1, 2, 3, 4, 5, 6]
    assert run.column("epoch") == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    examples = run.column("examples")
    assert examples[2] == 10 and examples[-1] == 20
    assert {b - a for a, b in zip([0, *examples], examples)} == {2, 4}
    assert run.history[0].keys() == {
        "step", "loss", "chosen_moved", "rejected_moved", "margin", "accuracy", "grad_norm", "epoch", "examples",
        "seconds",
    }  # fmt: skip
    assert run.column("seconds") == sorted(run.column("seconds"))


@pytest.mark.parametrize(
    ("method", "data", "names", "headline"),
    [
        (m.SFT(), demonstrations, set(), ["loss"]),
        (m.BradleyTerry(), pairs, {"accuracy", "margin"}, ["loss", "accuracy", "margin"]),
        (m.PlackettLuce(), rankings, {"accuracy"}, ["loss", "accuracy"]),
        (
            m.IPO(),
            pairs,
            {"chosen_moved", "rejected_moved", "margin", "accuracy"},
            ["loss", "accuracy", "margin"],
        ),
        (m.KTO(), verdicts, {"good_moved", "bad_moved", "reference_kl"}, ["loss"]),
    ],
    ids=lambda x: repr(x) if isinstance(x, OfflineMethod) else "",
)
def test_every_method_says_what_is_worth_seeing_and_its_run_can_be_printed_and_drawn(
    method, data, names, headline
):
    import matplotlib.pyplot as plt

    run = fit(model_for(method), data(), method, **SETTINGS)
    assert run.history[0].keys() == names | {"step", "loss", "grad_norm", "epoch", "examples", "seconds"}
    assert run.headline == headline
    first, last = run.column("loss")[0], run.column("loss")[-1]
    assert repr(run) == f"Run({method!r}, 2 steps, 8 examples, loss {first:.2f} -> {last:.2f})"
    figure = run.plot(*headline, *names - set(headline))
    assert len(figure.axes) == len(headline) + len(names - set(headline))
    plt.close(figure)


def test_a_batch_without_a_good_answer_has_no_mean_of_them():
    data = [Verdict(f"{i}=", "1" * (1 + i), i > 3) for i in range(8)]
    run = fit(fresh(), data, m.KTO(), epochs=2, **SETTINGS | {"batch": 1})
    good, bad = run.column("good_moved"), run.column("bad_moved")
    assert [math.isnan(g) for g in good] == [not math.isnan(b) for b in bad]
    assert sum(map(math.isnan, good)) == 8 and math.isfinite(run.mean("good_moved"))


def test_a_policys_run_shows_the_same_prompts_before_and_after():
    policy = fresh()
    run = fit(policy, demonstrations(10), m.SFT(), epochs=8, **SETTINGS)
    assert run.policy is policy and sorted(run.samples) == [0, 24]
    assert run.prompts == [example.prompt for example in demonstrations(10)[:8]]
    table = run.before_after(3)
    assert table.head == ["prompt", "step 0", "step 24"] and len(table.rows) == 3
    assert [row[1] for row in table.rows] == [text for text, _ in run.samples[0][:3]]
    assert run.samples[0] != run.samples[24] and not any(
        cell.startswith(("✓", "✗")) for cell in table.rows[0]
    )


def test_a_scorers_run_has_nothing_to_show_and_says_so():
    run = fit(Scorer(fresh()), pairs(), m.BradleyTerry(), **SETTINGS)
    assert run.samples == {} and run.prompts == []
    with pytest.raises(ValueError, match="a scorer says nothing that could be shown"):
        run.before_after()


def test_a_long_prompt_beside_a_long_answer_to_another_is_no_obstacle():
    data = [Demonstration("1" * 80, "2"), Demonstration("1", "2" * 60)]
    run = fit(fresh(), data, m.SFT(), **SETTINGS)
    assert len(run.samples[0]) == 2 and max(len(text) for text, _ in run.samples[0]) <= CONTEXT - 80


# ---- it learns


def test_demonstrations_become_likelier_and_chosen_answers_lead():
    assert fit(fresh(), demonstrations(), m.SFT(), epochs=15, **SETTINGS).history[-1]["loss"] < 0.5
    for method in (m.DPO(beta=0.5), m.IPO(beta=0.5)):
        run = fit(fresh(), pairs(), method, epochs=10, **SETTINGS)
        assert run.mean("accuracy", last=2) == 1 and run.history[-1]["margin"] > 1
    judge = Scorer(fresh())
    fit(judge, pairs(), m.BradleyTerry(), epochs=15, **SETTINGS)
    with torch.no_grad():
        rows = as_rollout(judge.policy, pairs())
        chosen, rejected = rows.grouped(judge(rows)).unbind(1)
    assert (chosen > rejected + 1).all()
    run = fit(fresh(), verdicts(), m.KTO(beta=0.5), epochs=10, **SETTINGS)
    assert run.mean("good_moved", last=4) > 1 > -1 > run.mean("bad_moved", last=4)


# ---- the same numbers every time


@pytest.mark.parametrize(
    ("method", "data"), [ALL[0], ALL[1], ALL[5], ALL[8]], ids=["SFT", "RM", "DPO", "KTO"]
)
def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_one_another(method, data):
    runs = []
    for torchs, seed in [(1, 5), (2, 5), (1, 6)]:
        model = model_for(method)
        torch.manual_seed(torchs)  # torch's own generator and Python's play no part
        random.seed(torchs)
        runs.append(fit(model, data(), method, seed=seed, **SETTINGS))
    first, again, other = runs
    first_, again_, other_ = (repr(timeless(run.history)) for run in runs)  # by repr: a NaN is a NaN
    assert first_ == again_ != other_
    assert same_weights(weights(first.policy), weights(again.policy))
    assert first.samples == again.samples and first.prompts == other.prompts


class Killed(BaseException):
    pass


def interrupted(monkeypatch, at, *args, **rest):
    """A run that dies in the middle of step `at`."""
    learn, steps = offline.learn, []

    def dies(*given_):
        steps.append(1)
        if len(steps) == at:
            raise Killed
        return learn(*given_)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(offline, "learn", dies)
        fit(*args, **rest)


RESUMABLE = [
    (m.SFT(), demonstrations, "llama"), (m.DPO(), pairs, "llama"), (m.DPO(), pairs, "qwen2"),
    (m.KTO(), verdicts, "gpt2"), (m.BradleyTerry(), pairs, "llama"), (m.PlackettLuce(), rankings, "qwen2"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "data", "kind"), RESUMABLE, ids=lambda x: getattr(x, "__name__", str(x)))
def test_an_interrupted_run_resumes_to_the_same_numbers(method, data, kind, tmp_path, monkeypatch):
    def new():
        return scorer(kind) if method.trains == "Scorer" else fresh(kind)

    rest = {"epochs": 3, "checkpoint_every": 2} | SETTINGS
    straight = fit(new(), data(), method, **rest)
    interrupted(monkeypatch, 4, new(), data(), method, out=tmp_path, **rest)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000002"]
    again = fit(new(), data(), method, out=tmp_path, resume=True, **rest)
    for history in (again.history, Run.load(tmp_path).history):
        assert repr(timeless(history)) == repr(timeless(straight.history))  # by their text: NaN is not NaN
    assert same_weights(weights(again.policy), weights(straight.policy))
    assert again.samples == straight.samples and again.prompts == straight.prompts
    assert again.column("seconds") == sorted(again.column("seconds"))


def test_a_finished_run_resumes_to_itself_with_its_table(tmp_path):
    done = fit(fresh(), pairs(), m.DPO(), out=tmp_path, **SETTINGS)
    again = fit(fresh(), pairs(), m.DPO(), out=tmp_path, resume=True, **SETTINGS)
    assert again.history == done.history and same_weights(weights(again.policy), weights(done.policy))
    assert repr(again.before_after()) == repr(done.before_after()) and len(again.before_after().rows) == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 3e-3}, "lr=0.01, and now lr=0.003"),
        ({"seed": 7}, "seed=0, and now seed=7"),
        ({"batch": 2}, "batch=4, and now batch=2"),
        ({"epochs": 5}, "epochs=1, and now epochs=5"),
        ({"max_grad_norm": 0.5}, "max_grad_norm=1.0, and now max_grad_norm=0.5"),
        ({"method": m.DPO(beta=0.2)}, "beta=0.1.*beta=0.2"),
        ({"data": pairs(8, seed=1)}, "data="),
        ({"data": pairs()[::-1]}, "data="),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_resuming_with_another_setting_or_other_data_is_refused_by_name(change, says, tmp_path):
    given_ = {"data": pairs(), "method": m.DPO(), "out": tmp_path} | SETTINGS
    fit(fresh(), **given_)
    with pytest.raises(ValueError, match=says):
        fit(fresh(), **given_ | change, resume=True)


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path):
    fit(fresh(), pairs(), m.DPO(), out=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="holds a run, up to step-000002. resume=True"):
        fit(fresh(), pairs(), m.DPO(), out=tmp_path, **SETTINGS)


# ---- fitted twice


def test_fitting_the_very_same_model_by_the_same_method_again_warns_and_nothing_else_does(tmp_path):
    policy = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(policy, demonstrations(), m.SFT(), **SETTINGS)
        fit(policy, pairs(), m.DPO(), **SETTINGS)  # another method: the usual order of things
        fit(policy.copy(), demonstrations(), m.SFT(), **SETTINGS)
        fit(Scorer(policy.copy()), pairs(), m.BradleyTerry(), **SETTINGS)
    for method, data in [(m.SFT(), demonstrations()), (m.DPO(beta=0.2), pairs())]:
        name = type(method).__name__
        with pytest.warns(UserWarning, match=f"{name} has been fitted to this very model already.*copy"):
            fit(policy, data, method, **SETTINGS)
    with warnings.catch_warnings():  # going on with a run is not doing it again
        warnings.simplefilter("error")
        fit(policy, pairs(), m.DPO(), out=tmp_path, resume=True, reference=fresh(), **SETTINGS)
    with pytest.raises(ValueError, match="would be taken for the reference"):
        fit(policy, pairs(), m.DPO(), out=tmp_path, resume=True, **SETTINGS)


def test_fit_leaves_its_trace_in_the_policy_and_in_a_scorers_trunk_also_where_it_is_interrupted(monkeypatch):
    policy, judge = fresh(), scorer()
    fit(policy, demonstrations(), m.SFT(), epochs=2, **SETTINGS)
    fit(policy, pairs(4), m.DPO(), **SETTINGS)
    assert policy.trained == policy.copy().trained == ["SFT on 16 examples", "DPO on 4 examples"]
    fit(judge, pairs(), m.BradleyTerry(), **SETTINGS)
    assert judge.policy.trained == judge.copy().policy.trained == ["BradleyTerry on 8 examples"]
    policy = fresh()
    interrupted(monkeypatch, 2, policy, demonstrations(), m.SFT(), **SETTINGS)
    assert policy.trained == ["SFT on 4 examples"]


def test_resuming_with_another_reference_is_refused(tmp_path):
    fit(fresh(), pairs(), m.DPO(), out=tmp_path, reference=fresh(seed=1), **SETTINGS)
    for other in (fresh(seed=2), None):
        with pytest.raises(ValueError, match="this is another model"):
            fit(fresh(), pairs(), m.DPO(), out=tmp_path, reference=other, resume=True, **SETTINGS)


def test_an_online_method_is_sent_to_train():
    with pytest.raises(ValueError, match="train.policy, task, GRPO"):
        offline._check(fresh(), demonstrations(), m.GRPO(), "GRPO", 1, 8)


def test_what_was_refused_has_not_been_fitted():
    policy = fresh()
    with pytest.raises(ValueError, match="the context"):
        fit(policy, [Demonstration("1" * CONTEXT, "1")], m.SFT(), **SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(policy, demonstrations(), m.SFT(), **SETTINGS)


# ---- errors before any step

TWINS = Pair("6", "42", "42")


@pytest.mark.parametrize(
    ("model", "data", "method", "rest", "says"),
    [
        (fresh, pairs(), m.BradleyTerry(), {}, r"BradleyTerry trains a Scorer, and this is a Policy: fit\(Scorer\("),
        (scorer, pairs(), m.DPO(), {}, r"DPO trains a Policy, and this is a Scorer: fit\(policy, "),
        (fresh, [], m.SFT(), {}, "0 examples, epochs=1, batch=4: there is nothing to learn from"),
        (fresh, pairs(), m.DPO(), {"epochs": 0}, "8 examples, epochs=0"),
        (fresh, pairs(), m.DPO(), {"batch": 0}, "batch=0: there is nothing to learn from"),
        (fresh, verdicts(), m.SFT(), {}, "SFT learns from Demonstrations, all of one kind; got Verdict.*annotators"),
        (scorer, demonstrations(), m.PlackettLuce(), {}, "learns from Ranking or Pairs.*got Demonstration"),
        (fresh, [*pairs(2), *verdicts(2)], m.DPO(), {}, "DPO learns from Pairs, all of one kind; got Pair, Verdict"),
        (scorer, [*pairs(2), *rankings(2)], m.PlackettLuce(), {}, "all of one kind; got Pair, Ranking"),
        (fresh, [("1", "2", "3")], m.DPO(), {}, "got tuple"),
        (scorer, [*rankings(2, k=3), *rankings(2, k=4)], m.PlackettLuce(), {}, "as many answers to each prompt"),
        (fresh, [*pairs(2), TWINS], m.DPO(), {}, "example 2 compares an answer with itself, '42' in reply to '6'"),
        (scorer, [TWINS, *pairs(2)], m.BradleyTerry(), {}, "example 0 compares an answer with itself"),
        (scorer, [*rankings(1), Ranking("6", ("42", "7", "42"))], m.PlackettLuce(), {}, "example 1 compares.*'42'"),
        *[
            (fresh, pairs(), m.DPO(), {name: value}, f"{name}={value}: give a positive number")
            for names, values in [
                (("lr", "max_grad_norm"), (0.0, -1.0, math.nan)),
                (("micro_batch", "checkpoint_every"), (0, -1)),
            ]
            for name in names
            for value in values
        ],
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_computed(model, data, method, rest, says):
    model = model()
    before = weights(model)
    with pytest.raises(ValueError, match=says):
        fit(model, data, method, **SETTINGS | rest)
    assert same_weights(before, weights(model))


def test_an_example_longer_than_the_context_is_named_with_its_length_and_its_beginning():
    data = [*pairs(3), Pair("12+" * 20, "3", "4" * 50), *pairs(3)]
    with pytest.raises(
        ValueError, match=r"example 3 has 111 tokens.*context of tiny is 96.*begins: '12\+12\+"
    ):
        fit(fresh(), data, m.DPO(), **SETTINGS)


@pytest.mark.parametrize("data", [demonstrations, pairs, rankings, verdicts], ids=lambda f: f.__name__)
@pytest.mark.parametrize("method", sorted({a for a, _ in ALL}, key=repr), ids=repr)
def test_a_method_takes_the_feedback_that_it_names_and_no_other(method, data):
    model, kind = model_for(method), type(data()[0]).__name__
    if kind in method.data:
        assert len(fit(model, data(), method, **SETTINGS).history) == 2
    else:
        with pytest.raises(ValueError, match=f"{type(method).__name__} learns from .*got {kind}"):
            fit(model, data(), method, **SETTINGS)
