"""Explorers: one knob each, live in JupyterLab and on a static page without a kernel."""

from importlib import import_module

# Looked up when first asked for: a chapter loads, and is stamped with, the explorer that it uses.
_WHERE = {
    "answer_length_explorer": "answer_length",
    "clip_room_explorer": "clip_room",
    "credit_explorer": "credit",
    "group_advantages_explorer": "group_advantages",
    "slider_over": "frames",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(f"rlcourse.explore.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'rlcourse.explore' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_WHERE])
