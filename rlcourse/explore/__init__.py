"""Explorers: one knob each, live in JupyterLab and on a static page without a kernel."""

from rlcourse.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "adaptive_lambda_explorer": "adaptive_lambda",
        "answer_length_explorer": "answer_length",
        "best_of_explorer": "best_of",
        "clip_and_min_explorer": "clip_and_min",
        "clip_room_explorer": "clip_room",
        "credit_explorer": "credit",
        "denominators_explorer": "denominators",
        "estimators_explorer": "estimators",
        "group_advantages_explorer": "group_advantages",
        "margin_pull_explorer": "margin_pull",
        "overlong_explorer": "overlong",
        "rounding_explorer": "rounding",
        "slider_over": "frames",
        "still": "palette",
        "temperature_explorer": "temperature",
        "window_explorer": "window",
    },
)
