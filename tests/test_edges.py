"""Where a bound, a guard or an axis decides: the cases that lie exactly on them."""

import pytest
import torch
from torch import tensor

from rlcourse.methods import PPO, REINFORCE
from rlcourse.methods.ppo import clip_active, clipped_surrogate


def test_a_ratio_on_the_bound_is_not_beyond_it():
    logp = torch.zeros(2, 1)  # the ratio is 1, and the bounds too
    assert not clip_active(logp, logp, tensor([1.0, -1.0]), 0.0, 0.0).any()


def test_a_token_without_an_advantage_has_lost_no_gradient_to_the_clip():
    far = tensor([[3.0], [-3.0]])
    assert not clip_active(far, torch.zeros(2, 1), tensor([0.0, 0.0]), 0.2, 0.2).any()
    assert clip_active(far, torch.zeros(2, 1), tensor([1.0, -1.0]), 0.2, 0.2).all()
    assert not clip_active(far, torch.zeros(2, 1), tensor([-1.0, 1.0]), 0.2, 0.2).any()


def test_one_answer_alone_may_have_one_number_for_its_advantage():
    logp = tensor([0.0, 0.1, -0.1])
    alone = clipped_surrogate(logp, torch.zeros(3), tensor(2.0), 0.2, 0.2)
    torch.testing.assert_close(
        alone, clipped_surrogate(logp[None], torch.zeros(1, 3), tensor([2.0]), 0.2, 0.2)[0]
    )


def test_ppo_knows_two_critics():
    assert [PPO(critic=name).critic for name in ("alone", "shared")] == ["alone", "shared"]
    with pytest.raises(ValueError, match='critic is "alone" or "shared", got \'none\''):
        PPO(critic="none")


@pytest.mark.parametrize("given", [dict(beta=0.0, target_kl=6.0), dict(target_kl=0.0), dict(target_kl=-1.0)])
def test_a_target_of_the_kl_wants_a_beta_to_steer_and_lies_above_0(given):
    with pytest.raises(ValueError, match="target_kl steers beta, so both must be positive"):
        PPO(**given)
    assert PPO(beta=0.1, target_kl=6.0).target_kl == 6.0 and PPO(beta=0.0).target_kl is None


def test_reinforce_knows_three_baselines():
    for name in ("none", "batch", "running"):
        assert REINFORCE(baseline=name).baseline == name
    with pytest.raises(ValueError, match='baseline is "none", "batch" or "running", got \'mean\''):
        REINFORCE(baseline="mean")
