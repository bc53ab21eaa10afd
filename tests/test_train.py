"""The online loop: the same numbers every time, also after a kill; errors before any step; honest counts."""

import json
import os
import random
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CHARACTERS, build, characters

from rlcourse import Policy, fit, train
from rlcourse import methods as m
from rlcourse.lm import Rollout, checkpoints, loading
from rlcourse.methods import GRPO, REINFORCE
from rlcourse.methods.offline import OfflineMethod
from rlcourse.methods.protocol import OnlineMethod
from rlcourse.tasks import Demonstration
from rlcourse.tasks.sums import Sum
from rlcourse.training import checkpoint


@dataclass(frozen=True)
class Ones:
    """Pays for the share of ones in an answer, and a little for any: every step learns something."""

    max_tokens: int = 8
    die_at: int = 0  # the process kills itself when it is asked to grade for this many-th time

    def draw(self, rng):
        return Sum((rng.randint(1, 99), rng.randint(1, 99)))

    def grade(self, rollout):
        GRADED.append(rollout)
        if len(GRADED) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        shares = [0.1 + text.count("1") / (1 + len(text)) for text in rollout.texts]
        return {
            "rewards": torch.tensor(shares),
            "correct": torch.tensor(["1" in text for text in rollout.texts]),
        }

    def __repr__(self):
        return "Ones()"


GRADED: list[Rollout] = []
SETTINGS = {"responses": 16, "lr": 1e-2, "quiet": True}


@pytest.fixture(autouse=True)
def nothing_graded():
    GRADED.clear()


def fresh(kind="llama"):
    return Policy(build(kind), characters(), "tiny")


def run_once(method=None, policy=None, **changes):
    policy = policy or fresh()
    changes = SETTINGS | changes
    if "tokens" not in changes:
        changes.setdefault("steps", 3)
    return train(policy, Ones(), method or GRPO(group_size=4), **changes)


def timeless(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def weights(policy):
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- the same numbers every time

METHODS = [
    GRPO(group_size=4),
    GRPO(group_size=4, beta=0.1, epochs=2, minibatches=2),
    REINFORCE(baseline="batch"),
]


@pytest.mark.parametrize("kind", ["llama", "qwen3-moe"])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_run_bit_for_bit(method, kind):
    torch.manual_seed(1)
    first = run_once(method, fresh(kind), seed=5)
    torch.manual_seed(2)  # torch's own generator and Python's play no part
    random.seed(2)
    again = run_once(method, fresh(kind), seed=5)
    assert timeless(first.history) == timeless(again.history)
    assert first.samples == again.samples and first.prompts == again.prompts
    assert same_weights(weights(first.policy), weights(again.policy))
    assert not same_weights(weights(first.policy), weights(fresh(kind)))


def test_another_seed_gives_another_run_on_the_same_watched_prompts():
    first, other = run_once(seed=0), run_once(seed=1)
    assert timeless(first.history) != timeless(other.history)
    assert first.prompts == other.prompts


def test_a_longer_run_begins_as_the_shorter_one():
    assert timeless(run_once(steps=4).history)[:2] == timeless(run_once(steps=2).history)


def test_no_two_steps_and_no_two_offers_see_the_same_problems_or_the_same_noise():
    policy, seeds = fresh(), []
    sample = policy.sample

    def noted(*args, seed, **rest):
        seeds.append(seed)
        return sample(*args, seed=seed, **rest)

    policy.sample = noted
    for seed in (0, 1):
        train(policy, Ones(), Picky(2), steps=3, seed=seed, resume=True, **SETTINGS)
    offers = [r for r in GRADED if len(r) == 16]  # the others are the watched prompts
    assert len(offers) == 2 * 3 * 2
    assert len({tuple(r.prompts) for r in offers}) == len(offers)
    watched = {seed for seed in seeds if seeds.count(seed) > 1}
    assert len(watched) == 1 and len(set(seeds) - watched) == len(offers)


# ---- micro-batches


class Descent(torch.optim.SGD):
    """Plain steps of size 1, so that the change of the weights is the gradient."""

    def __init__(self, groups, **_):
        super().__init__([parameter for group in groups for parameter in group["params"]], lr=1.0)


ALL = [
    m.REINFORCE(), m.REINFORCE(baseline="running", gamma=0.9), m.ReMax(), m.RLOO(beta=0.1),
    m.PPO(epochs=2, minibatches=2, entropy_bonus=0.01), m.PPO(critic="shared"), m.VCPPO(pretrain=0, minibatches=2),
    m.VAPO(group_size=4, pretrain=0, alpha=1.0, minibatches=2),
    m.GRPO(group_size=4), m.GRPO(group_size=4, beta=0.1, minibatches=2),
    m.DrGRPO(group_size=4), m.DAPO(group_size=4, minibatches=2), m.GSPO(group_size=4), m.GSPO(group_size=4, token=True),
    m.CISPO(group_size=4, minibatches=2), m.SAPO(group_size=4), m.ScalingGRPO(group_size=4, beta=0.1),
    m.TIS(m.GRPO(group_size=4)), m.OnlineDPO(),
]  # fmt: skip


def test_no_method_is_missing_here():
    online = {name for name in m.__all__ if not issubclass(getattr(m, name), OfflineMethod)}
    assert {type(method).__name__ for method in ALL} | {"RoutingReplay"} == online


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("method", ALL, ids=repr)
def test_micro_batches_change_the_gradient_by_no_more_than_rounding(method, size, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    whole = run_once(method, steps=1, max_grad_norm=0.01)
    parts = run_once(method, steps=1, max_grad_norm=0.01, micro_batch=size)
    for name, value in whole.history[0].items():
        if name != "seconds":
            assert parts.history[0][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    before, after, other = weights(fresh()), weights(whole.policy), weights(parts.policy)
    for name in before:
        assert (other[name] - after[name]).abs().max() < 1e-6, name
    assert max((after[name] - before[name]).abs().max() for name in before) > 1e-4


def test_the_gradient_is_clipped_to_the_norm_that_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    run = run_once(steps=1, max_grad_norm=0.1)
    before, after = weights(fresh()), weights(run.policy)
    moved = sum((after[name] - before[name]).square().sum() for name in before).sqrt().item()
    assert run.history[0]["grad_norm"] > 0.1
    assert moved == pytest.approx(0.1, rel=1e-3)


# ---- what a step learns from


def test_training_earns_more():
    run = run_once(steps=30, responses=32)
    rewards = run.column("reward")
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


class Spy(OnlineMethod):
    """REINFORCE that keeps what it is given to learn from, and its place in the loop."""

    def __init__(self, **attributes):
        self.batches, self.minibatch_sizes = [], []
        self.__dict__.update(attributes)

    def advantages(self, rollout, state):
        return rollout.rewards

    def weights(self, batch):
        self.minibatch_sizes.append(len(batch))
        return super().weights(batch)

    def loss(self, batch, state):
        self.batches.append(batch)
        return -batch.advantages[:, None] * batch.logp, {"one": torch.ones(batch.mask.shape)}


def test_at_the_first_update_the_score_is_what_was_sampled_and_only_it_carries_gradient():
    spy = Spy()
    run_once(spy, steps=1)
    (batch,) = spy.batches
    torch.testing.assert_close(batch.logp.detach(), batch.old_logp, atol=1e-5, rtol=1e-5)
    assert batch.logp.requires_grad and not batch.old_logp.requires_grad
    assert batch.ref_logp is None


def test_a_method_that_needs_a_reference_gets_the_policy_as_it_came_in():
    spy = Spy(needs=("ref_logp",))
    run = run_once(spy, steps=2)
    first, second = spy.batches
    torch.testing.assert_close(first.ref_logp, first.old_logp, atol=1e-5, rtol=1e-5)
    assert (second.ref_logp - second.old_logp).abs().max() > 1e-3
    before = fresh()
    with torch.no_grad():
        torch.testing.assert_close(second.ref_logp, before.score(second), atol=1e-5, rtol=1e-5)
    assert run.history[0]["kl"] == pytest.approx(0, abs=1e-4)
    # the mean over answers of the summed log-ratio of their tokens
    d = (second.old_logp - second.ref_logp).masked_fill(~second.mask, 0).sum(1).mean().item()
    assert run.history[1]["kl"] == pytest.approx(d, abs=1e-5)


def test_kl_is_measured_from_a_given_reference_also_where_the_method_needs_none():
    assert "kl" not in run_once(steps=1).history[0]
    assert run_once(steps=1, reference=fresh()).history[0]["kl"] == pytest.approx(0, abs=1e-4)
    other = Policy(build("llama", seed=1), characters())
    assert abs(run_once(steps=1, reference=other).history[0]["kl"]) > 0.1


def test_epochs_and_minibatches_see_every_row_once_a_pass():
    spy = Spy(group_size=2, epochs=3, minibatches=4)
    run_once(spy, steps=1, responses=16)
    assert spy.minibatch_sizes == [4] * 12
    for i in range(3):
        seen = [text for batch in spy.batches[4 * i : 4 * i + 4] for text in batch.texts]
        assert sorted(seen) == sorted(GRADED[1].texts)
    orders = [tuple(text for b in spy.batches[4 * i : 4 * i + 4] for text in b.texts) for i in range(3)]
    assert len(set(orders)) == 3  # shuffled anew


def test_every_step_and_every_pass_shuffles_in_its_own_way(monkeypatch):
    orders, randperm = [], torch.randperm

    def noted(n, **how):
        orders.append(randperm(n, **how).tolist())
        return torch.tensor(orders[-1])

    monkeypatch.setattr(torch, "randperm", noted)
    for seed in (0, 1):
        run_once(Spy(epochs=2, minibatches=2), steps=3, seed=seed)
    assert len(orders) == 12 == len(set(map(tuple, orders)))


def test_one_minibatch_keeps_the_rows_in_order():
    spy = Spy(group_size=2)
    run_once(spy, steps=1)
    assert spy.batches[0].texts == GRADED[1].texts


def test_history_says_what_happened():
    run = run_once(GRPO(group_size=4), steps=2)
    rollout = [r for r in GRADED if len(r) == 16][1]
    row = run.history[1]
    assert row["step"] == 2
    assert row["reward"] == pytest.approx(rollout.rewards.mean().item())
    assert row["correct"] == pytest.approx(rollout.correct.float().mean().item())
    assert row["length"] == pytest.approx(rollout.mask.sum().item() / 16)
    assert row["entropy"] == pytest.approx(rollout.entropy[rollout.mask].mean().item(), rel=1e-5)
    assert row["finished"] == pytest.approx(rollout.finished.float().mean().item())
    groups = rollout.rewards.view(4, 4)
    assert row["tied_groups"] == pytest.approx((groups == groups[:, :1]).all(1).float().mean().item())
    assert row["sampled_tokens"] == sum(int(r.mask.sum()) for r in GRADED if len(r) == 16)
    assert row["clip_fraction"] == 0
    assert abs(row["loss"]) < 1e-5 < row["grad_norm"]  # on policy: the value is 0, the gradient is not


# ---- budgets


def test_a_token_budget_stops_after_the_first_step_that_passes_it():
    run = run_once(tokens=300)
    spent = run.column("sampled_tokens")
    assert spent[-1] >= 300 > spent[-2]


def test_steps_or_tokens_must_be_given_and_not_both():
    for budget in ({"steps": None}, {"steps": 3, "tokens": 100}):
        with pytest.raises(ValueError, match="steps=.*tokens=.*one of them"):
            run_once(**budget)
    assert not GRADED


@pytest.mark.parametrize("budget", [{"steps": 0}, {"steps": -1}, {"tokens": 0}])
def test_a_budget_of_nothing_is_refused(budget):
    with pytest.raises(ValueError, match="give a positive number"):
        run_once(**budget)


@pytest.mark.parametrize("responses", [18, 3, 0])
def test_responses_that_do_not_divide_into_groups_are_refused_with_a_number_that_does(responses):
    with pytest.raises(ValueError, match=f"{responses} responses.*groups of 4.*responses=") as error:
        run_once(responses=responses)
    assert int(str(error.value).rsplit("=", 1)[1]) % 4 == 0
    assert not GRADED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(["lr", "temperature", "max_grad_norm"], [0.0, -1.0, float("nan")]),
        *product(["max_tokens", "micro_batch", "checkpoint_every", "sample_every"], [0, -1]),
    ],
)
def test_a_setting_that_is_not_positive_is_refused_by_name_before_anything_is_done(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"{name}={value}: give a positive number"):
        run_once(out=tmp_path / "run", **{name: value})
    assert not GRADED and not (tmp_path / "run").exists()


# ---- errors before any optimizer step


class Poison(Ones):
    def __init__(self, reward, at):
        object.__setattr__(self, "max_tokens", 8)
        object.__setattr__(self, "die_at", 0)
        object.__setattr__(self, "reward", reward)
        object.__setattr__(self, "at", at)

    def grade(self, rollout):
        grades = super().grade(rollout)
        if len(rollout) == 16:
            grades["rewards"][self.at] = self.reward
        return grades


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_no_number_is_named_with_its_prompt_and_answer_before_any_step(reward):
    policy = fresh()
    before = weights(policy)
    with pytest.raises(ValueError) as error:
        train(policy, Poison(reward, at=6), GRPO(group_size=4), steps=2, **SETTINGS)
    rollout = GRADED[-1]
    for part in ("response 6", str(reward), repr(rollout.prompts[1]), repr(rollout.texts[6])):
        assert part in str(error.value)
    assert same_weights(before, weights(policy))


def test_rewards_of_a_wrong_shape_are_refused_before_any_step():
    class Short(Ones):
        def grade(self, rollout):
            grades = super().grade(rollout)
            return grades | {"rewards": grades["rewards"][:-1]} if len(rollout) == 16 else grades

    policy = fresh()
    before = weights(policy)
    with pytest.raises(ValueError, match=r"\(15,\) for 16 responses"):
        train(policy, Short(), GRPO(group_size=4), steps=2, **SETTINGS)
    assert same_weights(before, weights(policy))


def test_a_prompt_longer_than_the_context_is_named_before_any_step():
    class Long(Ones):
        def draw(self, rng):
            return Sum((1,) * 60)

    with pytest.raises(ValueError, match="prompt 0 has 120 tokens"):
        train(fresh(), Long(), GRPO(group_size=4), steps=2, **SETTINGS)


# ---- keeping and refilling


REFILLS = 8


class Picky(Spy):
    """Keeps the first `keeps` prompts of every offer."""

    def __init__(self, keeps, **attributes):
        super().__init__(group_size=4, refills=REFILLS, **attributes)
        self.keeps, self.offers, self.learnt = keeps, [], []

    def keep(self, rollout):
        self.offers.append(rollout)
        return torch.arange(len(rollout.prompts)) < self.keeps

    def advantages(self, rollout, state):
        self.learnt.append(rollout)
        return rollout.rewards


@pytest.mark.parametrize(("keeps", "offers", "learnt"), [(4, 1, 4), (3, 2, 4), (2, 2, 4), (1, 4, 4)])
def test_dropped_groups_are_replaced_by_fresh_ones_and_counted(keeps, offers, learnt):
    picky = Picky(keeps)
    run = run_once(picky, steps=1)
    assert len(picky.offers) == offers
    row, (rollout,) = run.history[0], picky.learnt
    assert row["prompts_drawn"] == 4 * offers
    assert row["sampled_tokens"] == sum(int(offer.mask.sum()) for offer in picky.offers)
    assert row["reward"] == pytest.approx(sum(o.rewards.mean().item() for o in picky.offers) / offers)
    assert len(rollout.prompts) == learnt and len(rollout) == 4 * learnt
    kept = [prompt for offer in picky.offers for prompt in offer.prompts[:keeps]][:learnt]
    assert rollout.prompts == kept
    assert len({tuple(offer.prompts) for offer in picky.offers}) == offers
    with torch.no_grad():
        torch.testing.assert_close(fresh().score(rollout), rollout.logp, atol=1e-5, rtol=1e-5)


def test_refilling_stops_at_the_cap_and_learns_from_what_there_is():
    picky = Picky(1)
    run = run_once(picky, steps=1, responses=64)
    assert len(picky.offers) == 1 + REFILLS < 16
    assert run.history[0]["prompts_drawn"] == 16 * (1 + REFILLS)
    assert len(picky.learnt[0].prompts) == 1 + REFILLS


def test_where_nothing_is_kept_the_run_stops_and_says_so_and_nothing_is_lost(tmp_path):
    policy = fresh()
    before = weights(policy)
    with pytest.warns(UserWarning, match=f"step 1: Picky kept none of the {4 * (1 + REFILLS)} prompts"):
        run = run_once(Picky(0), policy, steps=5, out=tmp_path)
    assert same_weights(before, weights(policy))
    (row,) = run.history
    assert row["prompts_drawn"] == 4 * (1 + REFILLS) and row["prompts_kept"] == 0 and "loss" not in row
    assert run.samples.keys() == {0, 1} and (tmp_path / "step-000001").is_dir()


def test_a_token_budget_counts_what_was_dropped():
    picky = Picky(2)
    run = run_once(picky, tokens=300)
    assert run.history[-1]["sampled_tokens"] == sum(int(offer.mask.sum()) for offer in picky.offers)


@pytest.mark.parametrize(("responses", "updates"), [(16, 4), (10, 4), (6, 3), (3, 3)])
def test_metrics_are_means_over_the_updates_that_there_were(responses, updates):
    spy = Spy(minibatches=4, epochs=2)  # 6 rows in 4 parts are parts of 2, and there are 3 of them
    run = run_once(spy, steps=1, responses=responses)
    assert len(spy.minibatch_sizes) == 2 * updates and sum(spy.minibatch_sizes) == 2 * responses
    assert run.history[0]["one"] == pytest.approx(1)


# ---- trained twice


def test_training_a_policy_again_warns_and_says_what_to_do():
    policy = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_once(steps=1, policy=policy)
    assert policy.trained == ["GRPO for 1 steps"]
    with pytest.warns(UserWarning, match="trained already \\(GRPO for 1 steps\\).*policy.copy"):
        run_once(steps=1, policy=policy)
    with pytest.warns(UserWarning, match="trained already"):
        run_once(steps=1, policy=policy.copy())


def with_adapter(rank=4):
    pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[lora]' brings it")
    return Policy(loading._with_adapter(build("llama"), rank), characters(), "tiny")


DEMONSTRATIONS = [Demonstration(f"{i}+1=", "11") for i in range(8)]


@pytest.mark.parametrize("before", ["nothing", "fit", "train"])
def test_the_reference_of_an_adapter_is_the_policy_as_it_comes_in_whatever_trained_it_before(before):
    policy, spy = with_adapter(), Spy(needs=("ref_logp",))
    if before == "fit":
        fit(policy, DEMONSTRATIONS, m.SFT(), lr=1e-2, batch=4, quiet=True)
    elif before == "train":
        run_once(policy=policy, steps=2)
    came_in = policy.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_once(spy, policy, steps=1)
    (batch,) = spy.batches
    with torch.no_grad():
        torch.testing.assert_close(batch.ref_logp, came_in.score(batch), atol=1e-5, rtol=1e-5)
        moved = (batch.ref_logp - fresh().score(batch)).abs().max()
    assert (moved > 1e-2) == (before != "nothing")


def test_an_adapters_alpha_is_twice_its_rank():
    for rank in (2, 8):
        model = with_adapter(rank).model
        scalings = [layer.scaling["default"] for layer in model.modules() if hasattr(layer, "lora_A")]
        assert model.peft_config["default"].lora_alpha == 2 * rank and set(scalings) == {2.0}


def test_training_after_fitting_is_the_usual_order_and_both_are_remembered():
    policy = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(policy, DEMONSTRATIONS, m.SFT(), lr=1e-2, batch=4, quiet=True)
        run_once(steps=1, policy=policy)
    assert policy.trained == ["SFT on 8 examples", "GRPO for 1 steps"]
    with pytest.warns(UserWarning, match=r"trained already \(GRPO for 1 steps\)"):
        run_once(steps=1, policy=policy)


def test_an_interrupted_run_has_trained_the_policy_and_one_that_never_began_has_not():
    class Interrupted(Ones):
        def grade(self, rollout):
            if len(GRADED) == 3:  # the watched prompts, step 1, step 2
                raise KeyboardInterrupt
            return super().grade(rollout)

    policy = fresh()
    with pytest.raises(KeyboardInterrupt):
        train(policy, Interrupted(), GRPO(group_size=4), steps=9, **SETTINGS)
    assert policy.trained == ["GRPO for 2 steps"]
    policy = fresh()
    with pytest.raises(ValueError):
        train(policy, Poison(float("nan"), at=0), GRPO(group_size=4), steps=2, **SETTINGS)
    assert policy.trained == []


# ---- runs


def test_a_run_has_columns_samples_and_tables():
    run = run_once(steps=5, sample_every=2)
    assert sorted(run.samples) == [0, 2, 4, 5]
    assert run.column("step") == [1, 2, 3, 4, 5]
    assert run.mean("step", last=2) == 4.5
    with pytest.raises(KeyError, match="no 'speed'; it has .*reward"):
        run.column("speed")
    table = run.before_after(3)
    assert table.head == ["prompt", "step 0", "step 5"] and len(table.rows) == 3
    text, correct = run.samples[5][0]
    assert table.rows[0] == [run.prompts[0], table.rows[0][1], f"{'✓' if correct else '✗'} {text}"]


# ---- killed and resumed

KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_train import *
train(fresh({kind!r}), Ones(die_at={die_at}), {method}, steps=6, out={out!r}, checkpoint_every=2, **SETTINGS)
"""


def killed(out, kind="llama", method="GRPO(group_size=4, beta=0.1)", die_at=6):
    """A process of its own that dies by SIGKILL while it grades: at 6 in step 5, the first being step 0's."""
    script = KILLED.format(
        tests=str(Path(__file__).parent), kind=kind, method=method, die_at=die_at, out=str(out)
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | threads, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def resumed(out, kind="llama", method=None, **changes):
    method = method or GRPO(group_size=4, beta=0.1)
    changes = SETTINGS | {"steps": 6, "out": out, "checkpoint_every": 2, "resume": True} | changes
    return train(fresh(kind), Ones(), method, **changes)


def assert_same_run(found, expected):
    assert timeless(found.history) == timeless(expected.history)
    assert found.samples == expected.samples
    assert same_weights(weights(found.policy), weights(expected.policy))


@pytest.fixture(scope="module")
def straight():
    return train(fresh(), Ones(), GRPO(group_size=4, beta=0.1), steps=6, **SETTINGS)


def test_a_run_killed_by_sigkill_resumes_to_the_same_numbers(tmp_path, straight):
    killed(tmp_path)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000004"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    again = resumed(tmp_path)
    assert len([r for r in GRADED if len(r) == 16]) == 2  # steps 5 and 6, and no other
    assert_same_run(again, straight)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert timeless(rows) == timeless(straight.history)
    assert again.column("seconds") == sorted(again.column("seconds"))


def test_a_mixture_of_experts_resumes_to_the_same_numbers_too(tmp_path):
    method = GRPO(group_size=4, epochs=2, minibatches=2)
    straight = train(fresh("qwen3-moe"), Ones(), method, steps=4, **SETTINGS)
    train(fresh("qwen3-moe"), Ones(), method, steps=2, out=tmp_path, checkpoint_every=2, **SETTINGS)
    again = resumed(tmp_path, "qwen3-moe", method, steps=4)
    assert timeless(again.history) == timeless(straight.history)
    assert same_weights(weights(again.policy), weights(straight.policy))


class Killed(BaseException):
    pass


def dies(*_, **__):
    raise Killed


@pytest.mark.parametrize(
    "where",
    ["save_file", "json.dumps", "Path.rename", "shutil.rmtree"],
)
def test_a_kill_anywhere_in_a_checkpoint_leaves_one_that_resumes(where, tmp_path, monkeypatch, straight):
    real_save, saved = checkpoint.save, []

    def save(out, step, *rest):
        saved.append(step)
        with monkeypatch.context() as patch:
            if step == 4 and where == "save_file":  # after the weights, before the optimizer
                real_file, written = checkpoint.save_file, []
                patch.setattr(
                    checkpoint,
                    "save_file",
                    lambda *a, **how: dies() if written else written.append(real_file(*a, **how)),
                )
            elif step == 4 and where == "json.dumps":  # after all tensors, before the record
                patch.setattr(checkpoint.documents.json, "dumps", dies)
            elif step == 4 and where == "Path.rename":  # everything written, not yet in place
                patch.setattr(Path, "rename", dies)
            elif step == 4:  # in place, the older one half deleted
                real_rmtree = checkpoint.shutil.rmtree

                def rmtree(folder, **how):
                    if (tmp_path / "step-000004").exists():
                        (Path(folder) / "model.safetensors").unlink()
                        dies()
                    real_rmtree(folder, **how)

                patch.setattr(checkpoint.shutil, "rmtree", rmtree)
            real_save(out, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Killed):
            resumed(tmp_path, resume=False)
    assert saved == [2, 4]
    last = checkpoints(tmp_path)[-1].name
    assert last == ("step-000004" if where == "shutil.rmtree" else "step-000002")
    assert_same_run(resumed(tmp_path), straight)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000006"]


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes_away(tmp_path, straight):
    resumed(tmp_path, steps=2, resume=False)
    draft = tmp_path / ".draft-99999999"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"half of it")
    again = resumed(tmp_path)
    assert timeless(again.history) == timeless(straight.history)
    assert same_weights(weights(again.policy), weights(straight.policy))
    assert not draft.exists()


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, straight):
    killed(tmp_path, die_at=2)
    assert checkpoints(tmp_path) == []
    assert_same_run(resumed(tmp_path), straight)


def test_a_finished_run_resumes_to_itself_and_can_be_made_longer(tmp_path, straight):
    resumed(tmp_path, steps=4, resume=False)
    GRADED.clear()
    assert timeless(resumed(tmp_path, steps=4).history) == timeless(straight.history)[:4]
    assert not [r for r in GRADED if len(r) == 16]
    assert timeless(resumed(tmp_path, steps=6).history) == timeless(straight.history)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 3e-3}, "lr=0.01, and now lr=0.003"),
        ({"seed": 7}, "seed=0, and now seed=7"),
        ({"responses": 32}, "responses=16, and now responses=32"),
        ({"temperature": 0.5}, "temperature=1.0, and now temperature=0.5"),
        ({"method": GRPO(group_size=8)}, "group_size=4.*group_size=8"),
    ],
)
def test_resuming_with_another_setting_is_refused_by_name(change, says, tmp_path):
    resumed(tmp_path, steps=1, resume=False)
    with pytest.raises(ValueError, match=says):
        resumed(tmp_path, **change)


def test_resuming_with_another_model_is_refused(tmp_path):
    resumed(tmp_path, steps=1, resume=False)
    with pytest.raises(ValueError, match="another model"):
        resumed(tmp_path, kind="llama-gqa")


def test_a_checkpoint_that_lacks_a_tensor_is_refused_with_its_name(tmp_path):
    resumed(tmp_path, steps=2, resume=False)
    file = tmp_path / "step-000002" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match="model.norm.weight"):
        resumed(tmp_path)


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path):
    resumed(tmp_path, steps=2, resume=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds a run, up to step-000002. resume=True"):
        resumed(tmp_path, resume=False)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(tmp_path):
    run = resumed(tmp_path, steps=2, resume=False)
    files = sorted(path.name for path in (tmp_path / "step-000002").iterdir())
    ours = ["model.safetensors", "optimizer.safetensors", "record.json"]
    models = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert files == sorted(ours + models)
    run_files = [".lock", "budget.json", "config.json", "metrics.jsonl", "samples.jsonl", "step-000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == run_files
    twin = fresh()
    optimizer = torch.optim.AdamW(twin.parameters())
    record = checkpoint.load(tmp_path / "step-000002", twin, optimizer, {})
    assert record["step"] == 2 and record["history"] == run.history
    assert same_weights(weights(twin), weights(run.policy))
    assert CHARACTERS[0] == "<pad>" and len(optimizer.state_dict()["state"]) == len(list(twin.parameters()))


def test_what_a_method_remembers_is_saved_with_the_run(tmp_path):
    class Remembers(Spy):
        def init(self, policy):
            return {"average": torch.zeros(()), "critic": torch.nn.Linear(2, 1)}

        def advantages(self, rollout, state):
            state["average"] += rollout.rewards.mean()
            with torch.no_grad():
                state["critic"].weight += 1
            return rollout.rewards - state["average"]

        def __repr__(self):
            return "Remembers()"

    torch.manual_seed(0)
    straight = train(fresh(), Ones(), Remembers(), steps=4, **SETTINGS)
    torch.manual_seed(0)
    resumed(tmp_path, method=Remembers(), steps=2, resume=False)
    torch.manual_seed(1)  # another critic at first: the checkpoint's must replace it
    again = resumed(tmp_path, method=Remembers(), steps=4)
    assert timeless(again.history) == timeless(straight.history)
