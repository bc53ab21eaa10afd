"""Explorers: one knob each, live in JupyterLab and on a static page without a kernel."""

from rlcourse.explore.frames import slider_over
from rlcourse.explore.group_advantages import group_advantages_explorer

__all__ = ["group_advantages_explorer", "slider_over"]
