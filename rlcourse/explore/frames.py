"""A slider over precomputed figures: the browser switches them, no kernel has to answer."""

from __future__ import annotations

from io import BytesIO

MOST = 12  # frames: each is a picture inside the notebook


def slider_over(values: list, draw, description: str, alt: str, start: int = 0):
    """`draw(value)` returns a figure; `alt`, a format string for one value, says what it shows."""
    import ipywidgets as widgets
    import matplotlib.pyplot as plt

    if len(values) > MOST:
        raise ValueError(f"{len(values)} frames are too many for one notebook: at most {MOST}")
    frames = []
    for value in values:
        figure, buffer = draw(value), BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        plt.close(figure)
        frames.append(
            widgets.Image(
                value=buffer.getvalue(), format="png", tooltip=alt.format(value), layout={"max_width": "100%"}
            )
        )
    # A slider of positions, labelled by its values: a Stack knows its frames by position.
    slider = widgets.SelectionSlider(
        options=[(str(value), position) for position, value in enumerate(values)],
        index=start,
        description=description,
        style={"description_width": "initial"},
        layout={"width": "24em"},
    )
    stack = widgets.Stack(frames, selected_index=start)
    widgets.jslink((slider, "index"), (stack, "selected_index"))
    return widgets.VBox([slider, stack])
