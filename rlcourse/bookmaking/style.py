"""The house style of every figure: one style file, colour-blind safe, legible at half its size.

In a chapter the first colour (blue) is the method of the chapter and the second (orange) its parent.
"""

from pathlib import Path

from rlcourse.bookmaking import stamps

STYLE = Path(__file__).with_name("rlcourse.mplstyle")

# Okabe and Ito's colours, in the order of the style's cycle; yellow is left out, it cannot be seen on white.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip


def use_style() -> None:
    """Apply the house style to every figure from here on, in a notebook and outside."""
    import matplotlib.pyplot as plt
    from IPython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    plt.style.use(STYLE)
    if get_ipython() is not None:  # the same bytes from every version of matplotlib
        set_matplotlib_formats("png", bbox_inches="tight", metadata={"Software": None})
    stamps.USED.update({"rlcourse/bookmaking/style.py", "rlcourse/bookmaking/rlcourse.mplstyle"})
