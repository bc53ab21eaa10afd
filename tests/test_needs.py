"""What the loop fills in for a method beside the rewards: critic, greedy twin, entropy, engine, experts."""

import copy
import math

import pytest
import torch
from test_train import GRADED, SETTINGS, Ones, Spy, fresh, run_once, same_weights, timeless, weights
from tiny import build, characters
from torch import tensor

from rlcourse import Policy, methods, train
from rlcourse.lm import routing
from rlcourse.lm.critic import Critic
from rlcourse.methods import GRPO, GSPO, PPO, TIS, VCPPO, ReMax, RoutingReplay, ScalingGRPO
from rlcourse.methods.ppo import explained_variance
from rlcourse.methods.remax import remax_advantages
from rlcourse.tasks import ask
from rlcourse.tensors import masked_mean, token_logprobs


@pytest.fixture(autouse=True)
def nothing_graded():
    GRADED.clear()


def answers(kind="llama", n=6, **sampling):
    policy = fresh(kind)
    rollout = policy.sample(["1+2=", "12+34=", "5+5+5="], n // 3, max_tokens=8, seed=1, **sampling)
    return policy, rollout


# ---- hidden states


@pytest.mark.parametrize("kind", ["llama", "llama-gqa", "qwen2", "qwen3-moe", "gpt2"])
def test_the_states_are_the_ones_that_the_logits_are_read_from(kind):
    policy, rollout = answers(kind)
    with torch.no_grad():
        states, logits = policy.states_and_logits(rollout)
        read = policy.model.get_output_embeddings()(states)
    torch.testing.assert_close(read, logits, atol=1e-5, rtol=1e-5)
    assert len(states) == int(rollout.mask.sum())


# ---- the critic


def with_head(policy, shared=False):
    critic = Critic(policy, shared)
    torch.manual_seed(0)
    torch.nn.init.normal_(critic.head.weight)
    return critic


@pytest.mark.parametrize("shared", [False, True])
def test_a_new_critic_expects_nothing(shared):
    policy, rollout = answers()
    assert (Critic(policy, shared)(rollout) == 0).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_value_is_of_the_state_before_its_token(kind):
    policy, rollout = answers(kind)
    critic, t = with_head(policy), 2
    row = int((rollout.lengths > t + 1).nonzero()[0])
    with torch.no_grad():
        before = critic(rollout)
        changed = copy.deepcopy(rollout)
        changed.tokens[row, t] = 3 + (changed.tokens[row, t] - 2) % 10  # another token, no special one
        after = critic(changed)
    torch.testing.assert_close(after[row, : t + 1], before[row, : t + 1], atol=1e-5, rtol=1e-5)
    assert (after[row, t + 1] - before[row, t + 1]).abs() > 1e-3
    assert (before[~rollout.mask] == 0).all()


def test_all_answers_to_a_prompt_begin_with_the_same_value():
    policy, rollout = answers()
    with torch.no_grad():
        first = rollout.grouped(with_head(policy)(rollout)[:, 0].contiguous())
    torch.testing.assert_close(first, first[:, :1].expand_as(first), atol=1e-5, rtol=1e-5)
    assert first[:, 0].std() > 1e-3


def test_a_critic_alone_leaves_the_policy_and_a_shared_one_moves_it():
    for shared in (False, True):
        policy, rollout = answers()
        critic = with_head(policy, shared)
        states, _ = policy.states_and_logits(rollout)
        critic(rollout, states).sum().backward()
        grads = [p.grad for p in policy.parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in grads) == shared
        assert len(list(critic.parameters())) == (2 if shared else 2 + len(list(policy.parameters())))


def test_a_shared_critic_reads_the_states_that_scoring_computed():
    policy, rollout = answers()
    critic = with_head(policy, shared=True)
    with torch.no_grad():
        states, _ = policy.states_and_logits(rollout)
        torch.testing.assert_close(critic(rollout, states), critic(rollout))


@pytest.mark.parametrize("critic", ["alone", "shared"])
def test_ppo_teaches_its_critic(critic):
    # a policy that hardly moves: what is to be expected of it stays the same while the critic learns it
    method = PPO(critic=critic, beta=0.0, vf=1.0, critic_lr=1e-2)
    run = run_once(method, steps=25, responses=64, lr=1e-6)
    values = run.column("value_loss")
    assert sum(values[-5:]) < 0.5 * 5 * values[0]


def test_the_first_value_loss_of_a_critic_that_expects_nothing_is_half_the_mean_squared_return():
    run = run_once(PPO(beta=0.0, epochs=1, lam=1.0), steps=1)
    rollout = next(r for r in GRADED if len(r) == 16)
    squares = rollout.rewards[:, None].expand(rollout.mask.shape).square()
    assert run.history[0]["value_loss"] == pytest.approx(0.5 * masked_mean(squares, rollout.mask).item())
    assert run.history[0]["explained_variance"] == pytest.approx(0, abs=1e-6)


def test_the_policy_stands_still_while_vc_ppo_pretrains_its_critic():
    before = weights(fresh())
    run = run_once(VCPPO(pretrain=3), steps=3)
    assert same_weights(before, weights(run.policy))
    assert run.history[2]["value_loss"] < run.history[0]["value_loss"] and run.history[2]["grad_norm"] == 0
    assert not same_weights(before, weights(run_once(VCPPO(pretrain=3), steps=4).policy))


def test_a_trunk_cannot_be_shared_while_it_stands_still():
    with pytest.raises(ValueError, match="cannot share a trunk"):
        VCPPO(critic="shared")


def test_a_critic_has_a_learning_rate_of_its_own():
    still = run_once(PPO(critic_lr=1e-12), steps=2).state["critic"]
    moved = run_once(PPO(), steps=2).state["critic"]
    assert still.head.weight.abs().max() < 1e-9 < 1e-3 < moved.head.weight.abs().max()


def test_beta_follows_the_kl():
    # ten answers a step over a horizon of 100: at most 2 % a step, down while the KL is below its target
    run = run_once(PPO(target_kl=1e6, beta=0.5, horizon=100), steps=3, responses=10)
    assert run.column("beta") == pytest.approx([0.5, 0.5 * 0.98, 0.5 * 0.98**2], rel=1e-4)
    run = run_once(PPO(target_kl=1e-9, beta=0.5, horizon=100), steps=3, responses=10)
    assert run.column("beta")[2] > run.column("beta")[1]


def test_an_entropy_bonus_keeps_entropy():
    # so large that it outweighs the reward
    plain, with_bonus = run_once(PPO(), steps=8), run_once(PPO(entropy_bonus=3.0), steps=8)
    assert with_bonus.history[-1]["entropy"] > plain.history[-1]["entropy"] + 0.1


@pytest.mark.parametrize("method", [PPO(), PPO(critic="shared", target_kl=0.1), VCPPO(pretrain=2)])
def test_a_run_with_a_critic_resumes_to_the_same_numbers(method, tmp_path):
    straight = train(fresh(), Ones(), method, steps=4, **SETTINGS)
    train(fresh(), Ones(), method, steps=3, out=tmp_path, **SETTINGS)
    again = train(fresh(), Ones(), method, steps=4, out=tmp_path, resume=True, **SETTINGS)
    assert timeless(again.history) == timeless(straight.history)
    assert same_weights(weights(again.policy), weights(straight.policy))
    for name, part in straight.state.items():
        theirs = again.state[name]
        if isinstance(part, Critic):
            assert same_weights(part.state_dict(), theirs.state_dict())
        else:
            assert torch.equal(part, theirs)


def test_explained_variance_by_hand():
    # returns 0 and 1 have variance 1/2; errors 1/4 and -1/4 have 1/8
    mask = tensor([[True, True, False]])
    returns, values = tensor([[0.0, 1.0, 9.0]]), tensor([[-0.25, 1.25, float("nan")]])
    assert explained_variance(values, returns, mask) == pytest.approx(0.75)


def test_where_every_answer_earns_the_same_no_nan_reaches_the_metrics():
    class Flat(Ones):
        def grade(self, rollout):
            return super().grade(rollout) | {"rewards": torch.full((len(rollout),), 0.7)}

    run = train(fresh(), Flat(), PPO(beta=0.0, lam=1.0), steps=3, **SETTINGS)
    assert run.column("explained_variance") == [0.0] * 3
    assert all(math.isfinite(value) for row in run.history for value in row.values())


# ---- the greedy twin


def test_remax_compares_with_the_greedy_answer_and_pays_for_it():
    seen = []

    class Looking(ReMax):
        def advantages(self, rollout, state):
            seen.append(rollout)
            return super().advantages(rollout, state)

    policy = fresh()
    run = run_once(Looking(group_size=2), steps=1, policy=policy)
    (rollout,) = seen
    problems = rollout.problems
    greedy, _ = ask(fresh(), Ones(), problems, greedy=True)
    torch.testing.assert_close(rollout.greedy_rewards, greedy.rewards.repeat_interleave(2))
    expected = remax_advantages(rollout.rewards, rollout.greedy_rewards)
    torch.testing.assert_close(rollout.advantages, expected)
    assert run.history[0]["sampled_tokens"] == int(rollout.mask.sum()) + int(greedy.mask.sum())


# ---- an engine that differs


def blurred(policy):
    """An engine whose weights are a little off, as those in a lower precision are."""
    twin = policy.copy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return twin


def test_tis_weighs_by_the_engine_and_starts_at_ratio_one():
    spy = Spy(needs=("engine_logp",))
    run_once(spy, steps=1, engine=blurred)
    (batch,) = spy.batches
    policy, engine = fresh(), blurred(fresh())
    with torch.no_grad():
        torch.testing.assert_close(batch.engine_logp, engine.score(batch), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.old_logp, policy.score(batch), atol=1e-5, rtol=1e-5)
    assert (batch.engine_logp - batch.old_logp)[batch.mask].abs().max() > 0.01
    run = run_once(TIS(GRPO(group_size=4)), steps=1, engine=blurred)
    assert run.history[0]["clip_fraction"] == 0 and 0.9 < run.history[0]["tis_weight"] < 1.1


def test_without_a_correction_the_engines_log_probs_are_the_old_ones():
    spy = Spy()
    run_once(spy, steps=1, engine=blurred)
    with torch.no_grad():
        torch.testing.assert_close(spy.batches[0].old_logp, blurred(fresh()).score(spy.batches[0]))


def test_an_engine_that_is_the_policy_changes_nothing():
    plain = run_once(GRPO(group_size=4))
    wrapped = run_once(TIS(GRPO(group_size=4)), engine=lambda policy: policy)
    for name, values in weights(plain.policy).items():
        torch.testing.assert_close(weights(wrapped.policy)[name], values, atol=1e-4, rtol=1e-4)


def test_a_correction_hands_through_what_it_does_not_change():
    inner = methods.DAPO(group_size=4, minibatches=2, refills=3)
    wrapped = TIS(RoutingReplay(inner), cap=3.0)
    assert (wrapped.group_size, wrapped.minibatches, wrapped.refills, wrapped.epochs) == (4, 2, 3, 1)
    assert wrapped.needs == ("routing", "engine_logp")
    assert repr(wrapped).startswith("TIS(method=RoutingReplay(method=DAPO(")


# ---- experts


def test_the_route_is_the_one_that_sampling_took():
    policy = fresh("qwen3-moe")
    steps = []
    with routing.recorded(policy.model) as chosen:
        handle = policy.model.register_forward_hook(lambda *_: steps.append(chosen()))
        rollout = policy.sample(["1+2="], 1, max_tokens=8, seed=1)
        handle.remove()
    policy.route(rollout)
    length = int(rollout.lengths[0])
    taken = torch.cat(steps[1:])[: length - 1]  # the last token is never run when sampling
    assert torch.equal(rollout.prompt_routing[0], steps[0])
    assert torch.equal(rollout.routing[0, : length - 1], taken)
    assert rollout.routing.shape == (1, length, 2, 2)


def test_a_replay_changes_nothing_while_the_policy_is_the_same():
    policy, rollout = answers("qwen3-moe")
    policy.route(rollout)
    with torch.no_grad():
        torch.testing.assert_close(policy.score(rollout, replay=True), policy.score(rollout))


def test_a_replay_keeps_the_experts_and_computes_the_gates_anew():
    policy, rollout = answers("qwen3-moe")
    policy.route(rollout)
    routers = routing.routers(policy.model)
    with torch.no_grad():
        for router in routers:
            router.weight.neg_()  # the unlikeliest experts are now the likeliest
    moved = copy.deepcopy(rollout)
    policy.route(moved)
    assert routing.experts_changed(rollout.routing, moved.routing)[rollout.mask].mean() > 0.5
    taken = []
    block = next(m for m in policy.model.modules() if type(m).__name__.endswith("Experts"))
    handle = block.register_forward_pre_hook(lambda _, args: taken.append(args))
    replayed = policy.score(rollout, replay=True)
    handle.remove()
    x, experts, gates = taken[0]
    sent = torch.cat([rollout.prompt_routing[rollout.owner], rollout.routing], 1)[:, :, 0].flatten(0, 1)
    assert torch.equal(experts, sent)
    torch.testing.assert_close(gates, (x @ routers[0].weight.T).softmax(-1).gather(1, sent))
    assert (replayed - policy.score(rollout))[rollout.mask].abs().max() > 0.01
    replayed.sum().backward()
    assert all(router.weight.grad.abs().sum() > 0 for router in routers)


def test_experts_changed_by_hand():
    # layer 1: {0, 1} -> {1, 0} is no change; layer 2: {2, 3} -> {3, 5} changes one of two
    old, new = tensor([[[0, 1], [2, 3]]]), tensor([[[1, 0], [3, 5]]])
    assert routing.experts_changed(old, new).tolist() == [[0.0, 0.5]]


def test_a_dense_model_has_no_experts_and_the_error_says_so():
    with pytest.raises(ValueError, match="'llama' has no experts"):
        run_once(RoutingReplay(GRPO(group_size=4)))
    run_once(ScalingGRPO(group_size=4), steps=1)  # it keeps a routing where there is one


def test_a_run_replays_the_route_of_its_rollout():
    spy = Spy(needs=("routing",), epochs=2)
    run_once(spy, fresh("qwen3-moe"), steps=1)
    first, second = spy.batches
    assert torch.equal(first.routing, second.routing) and first.routing.shape[:2] == first.tokens.shape
    torch.testing.assert_close(first.logp.detach(), first.old_logp, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second.logp.detach(), spy.batches[1].logp.detach())


def test_routing_survives_refills_of_other_widths():
    policy = fresh("qwen3-moe")
    short, long = policy.sample(["1+2="], 2, max_tokens=3), policy.sample(["11+22+33="], 2, max_tokens=8)
    for rollout in (short, long):
        policy.route(rollout)
    both = type(short).cat([short, long])
    with torch.no_grad():
        torch.testing.assert_close(policy.score(both, replay=True), policy.score(both), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            policy.score(both[[3, 1]], replay=True), policy.score(both)[[3, 1]], atol=1e-5, rtol=1e-5
        )


def test_gspo_with_replay_trains_a_mixture_of_experts():
    method = RoutingReplay(GSPO(group_size=4, clip_low=0.1, clip_high=0.1))
    run = run_once(method, Policy(build("qwen3-moe"), characters(), "tiny"), steps=2)
    assert run.history[-1]["grad_norm"] > 0


def test_entropy_in_a_batch_is_the_present_policys_and_carries_gradient():
    spy = Spy(needs=("entropy",))
    run_once(spy, steps=1)
    (batch,) = spy.batches
    assert batch.entropy.requires_grad
    logits = fresh().logits(batch)
    p = logits.softmax(-1)
    torch.testing.assert_close(
        batch.entropy[batch.mask].detach(), -(p * p.log()).sum(-1).detach(), atol=1e-4, rtol=1e-4
    )
    assert token_logprobs(logits, batch.tokens[batch.mask]).shape == batch.entropy[batch.mask].shape
