"""The numbers that nobody passes: every method object has its paper's, and its functions have the object's."""

import dataclasses
import inspect
import sys

import pytest

from rlcourse import methods
from rlcourse.methods import GRPO, grpo
from rlcourse.methods.grpo import group_advantages

# What a file adds or sets anew, with the place in the paper where it is not obvious.
OWN = {
    "REINFORCE": dict(group_size=1, baseline="none", memory=0.9, gamma=1.0),
    "ReMax": dict(group_size=1),
    "RLOO": dict(group_size=4, beta=0.0),
    "PPO": dict(
        group_size=1, clip=0.2, value_clip=0.2, vf=0.1, lam=0.95, gamma=1.0, beta=0.05, target_kl=None,
        horizon=10_000, entropy_bonus=0.0, whiten=True, critic="alone", critic_lr=None, epochs=4, minibatches=1,
    ),
    "GRPO": dict(group_size=8, clip=0.2, beta=0.0, scale=True, epochs=1, minibatches=1),
    "DrGRPO": dict(scale=False, max_length=None),
    "DAPO": dict(
        group_size=16, minibatches=16, clip_low=0.2, clip_high=0.28, dynamic_sampling=True, refills=8,
        token_mean=True, overlong=0.2,
    ),
    "GSPO": dict(minibatches=4, clip_low=3e-4, clip_high=4e-4, token=False),  # section 5.1
    "CISPO": dict(minibatches=16, clip_low=1.0, clip_high=4.0),
    "SAPO": dict(minibatches=4, tau_positive=1.0, tau_negative=1.05),
    "ScalingGRPO": dict(beta=0.0, scale=False, minibatches=4, delta=0.1, keep_routing=True),
    "VAPO": dict(group_size=16, alpha=0.05, clip_low=0.2, clip_high=0.28, imitation=0.1),
    "VCPPO": dict(critic_lam=1.0, pretrain=50),
    "DPO": dict(beta=0.1, label_smoothing=0.0),
    "IPO": dict(beta=0.1),
    "KTO": dict(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0),
    "OnlineDPO": dict(beta=0.1, group_size=2),
    "BradleyTerry": dict(margin=0.0, centring=0.0),
    "TIS": dict(cap=2.0),
}  # fmt: skip


# Where `fit` is given no learning rate: of a real model, and of a pocket.
LR = {
    "SFT": (2e-5, 1e-3), "BradleyTerry": (1e-5, 1e-3), "PlackettLuce": (1e-5, 1e-3),
    "DPO": (1e-6, 3e-4), "IPO": (1e-6, 3e-4), "KTO": (1e-6, 3e-4),
}  # fmt: skip


def defaults(kind) -> dict:
    return {field.name: field.default for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", OWN)
def test_a_method_object_has_its_papers_numbers(name):
    found = defaults(getattr(methods, name))
    assert {field: found[field] for field in OWN[name]} == OWN[name]


def test_no_methods_own_number_is_left_out_of_this_table():
    for name in methods.__all__:
        kind = getattr(methods, name)
        own = {field for field in kind.__dict__.get("__annotations__", {}) if field in defaults(kind)}
        has = {field for field in own if defaults(kind)[field] is not dataclasses.MISSING}
        missing = has - OWN.get(name, {}).keys()
        assert name in ("VAPO", "VCPPO") or not missing, (name, missing)  # theirs are set beside PPO's


def test_what_is_no_longer_a_field_cannot_be_given():
    for name, gone in (
        ("DAPO", "clip"),
        ("DAPO", "beta"),
        ("CISPO", "clip"),
        ("CISPO", "beta"),
        ("GSPO", "clip"),
    ):
        kind = getattr(methods, name)
        assert gone not in defaults(kind) and not getattr(kind, gone)


@pytest.mark.parametrize("name", [name for name in methods.__all__ if name != "VCPPO"])
def test_a_function_takes_what_its_method_object_takes_where_nothing_is_said(name):
    """Functions of the object's file, by the names of its fields; IPO is a guest in DPO's file."""
    kind = getattr(methods, name)
    module = sys.modules[kind.__module__]
    for function_name, function in vars(module).items():
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            for argument, parameter in inspect.signature(function).parameters.items():
                if parameter.default is not parameter.empty and argument in defaults(kind):
                    assert parameter.default == defaults(kind)[argument], (function_name, argument)
                if argument in ("weights", "ref_logp"):
                    assert parameter.default in (None, parameter.empty)


def test_a_ten_thousandth_is_added_to_a_groups_std():
    assert inspect.signature(group_advantages).parameters["eps"].default == 1e-4
    assert inspect.signature(grpo.grpo_per_token).parameters["clip"].default == GRPO().clip


def test_the_usual_learning_rates_of_what_is_fitted():
    assert {name: (made.lr, made.pocket_lr) for name in LR if (made := getattr(methods, name)())} == LR
