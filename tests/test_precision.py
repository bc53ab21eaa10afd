"""Updates that bfloat16 would round away are kept in float32, and a float32 weight is its own master."""

import pytest
import torch
from test_train import Ones, fresh, same_weights, timeless, weights

from rlcourse import fit, train
from rlcourse.methods import GRPO, PPO, SFT
from rlcourse.tasks import Demonstration
from rlcourse.training import precision

SETTINGS = {"responses": 16, "quiet": True}


def low(policy):
    policy.model.to(torch.bfloat16)
    return policy


def run_once(policy, lr=1e-6, steps=20, **rest):
    return train(policy, Ones(), GRPO(group_size=4), steps=steps, lr=lr, **SETTINGS | rest).policy


def test_a_float32_weight_is_its_own_master_and_a_lower_one_has_a_twin():
    weight = torch.nn.Parameter(torch.randn(3))
    assert precision.master(weight) is weight
    rounded = torch.nn.Parameter(weight.detach().bfloat16())
    twin = precision.master(rounded)
    assert twin.dtype == torch.float32 and torch.equal(twin, rounded.float())
    optimizer = precision.adamw([([weight, rounded], 1e-3)])
    assert list(precision.masters(optimizer)) == [1]


def test_weights_that_learn_nothing_do_not_decay():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = precision.adamw([([weight], 0.1)])
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert weight.tolist() == [1.0] * 3


def test_gradients_of_micro_batches_are_added_in_float32():
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = precision.adamw([([weight], 1e-3)])
    for _ in range(300):  # in bfloat16 the sum stands still at 256: next to it comes 258
        weight.sum().backward()
        precision.collect(optimizer)
        assert weight.grad is None
    assert precision.masters(optimizer)[0].grad == 300


def test_a_thousand_steps_of_a_millionth_move_masters_and_not_bfloat16():
    """The demonstration: what `lr = 1e-6` does to weights around 1, by Adam, with and without masters."""
    start = torch.linspace(0.5, 2, 100)

    def walked(parameter, groups):
        optimizer = groups(parameter)
        for _ in range(1000):
            optimizer.zero_grad()
            parameter.float().sum().backward()
            precision.collect(optimizer)
            optimizer.step()
        return parameter.detach().float()

    def plain(p):
        return torch.optim.AdamW([p], lr=1e-5, weight_decay=0.0)

    def ours(p):
        return precision.adamw([([p], 1e-5)])

    exact = walked(torch.nn.Parameter(start.clone()), ours)
    lost = walked(torch.nn.Parameter(start.bfloat16()), plain)
    kept = walked(torch.nn.Parameter(start.bfloat16()), ours)
    assert torch.equal(lost, start.bfloat16().float())  # not one of a hundred weights has moved
    assert (exact - (start - 0.01)).abs().max() < 1e-3  # and each was to go down by 0.01
    assert (kept - exact).abs().max() <= 2**-8 * exact.abs().max()  # as near as bfloat16 can say it
    assert ((kept - exact).abs().mean()) < 0.5 * (lost - exact).abs().mean()


def test_training_by_small_steps_moves_bfloat16_weights_only_through_masters(monkeypatch):
    before = weights(low(fresh()))
    with_masters = weights(run_once(low(fresh()), lr=1e-5))
    monkeypatch.setattr(precision, "master", lambda weight: weight)
    without = weights(run_once(low(fresh()), lr=1e-5))

    def moved(after):
        return sum((after[name] != before[name]).sum().item() for name in before)

    assert moved(without) < 0.6 * moved(with_masters)


def test_published_weights_are_the_masters_rounded(monkeypatch):
    made = []
    adamw = precision.adamw
    monkeypatch.setattr(precision, "adamw", lambda *given: made.append(adamw(*given)) or made[-1])
    policy = run_once(low(fresh()), lr=1e-3, steps=2)
    twins = precision.masters(made[0]).values()
    assert len(twins) == len(list(policy.parameters()))
    for twin, weight in zip(twins, policy.parameters(), strict=True):
        assert torch.equal(twin.bfloat16(), weight) and not torch.equal(twin, weight.float())


def test_masters_are_kept_in_checkpoints(tmp_path):
    straight = run_once(low(fresh()), steps=4)
    run_once(low(fresh()), steps=2, out=tmp_path)
    again = run_once(low(fresh()), steps=4, out=tmp_path, resume=True)
    assert same_weights(weights(straight), weights(again))
    assert next(again.parameters()).dtype == torch.bfloat16


def test_a_critic_and_the_offline_loop_have_masters_too(tmp_path):
    runs = [train(low(fresh()), Ones(), PPO(), steps=2, lr=1e-3, **SETTINGS) for _ in range(2)]
    assert timeless(runs[0].history) == timeless(runs[1].history)
    trunk = runs[0].state["critic"].trunk
    assert any(
        not torch.equal(a, b) for a, b in zip(trunk.parameters(), low(fresh()).parameters(), strict=True)
    )
    policy = low(fresh())
    fit(policy, [Demonstration("1+2=", "3")] * 4, SFT(), lr=1e-3, quiet=True)
    assert not same_weights(weights(policy), weights(low(fresh())))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_optimizer_is_one_kernel():
    weight = torch.nn.Parameter(torch.ones(2, device="cuda"))
    assert precision.adamw([([weight], 1e-3)]).defaults["fused"]
