"""The family tree of methods: one file a paper, and the imports are the genealogy."""

from importlib import import_module

# Looked up when first asked for: a chapter loads, and is stamped with, the methods that it uses.
_WHERE = {
    "CISPO": "cispo",
    "DAPO": "dapo",
    "DrGRPO": "dr_grpo",
    "GRPO": "grpo",
    "GSPO": "gspo",
    "PPO": "ppo",
    "REINFORCE": "reinforce",
    "RLOO": "rloo",
    "ReMax": "remax",
    "RoutingReplay": "corrections",
    "SAPO": "sapo",
    "ScalingGRPO": "scaling_grpo",
    "TIS": "corrections",
    "VAPO": "vapo",
    "VCPPO": "vc_ppo",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(f"rlcourse.methods.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'rlcourse.methods' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_WHERE])
