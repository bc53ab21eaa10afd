"""`rlcourse plot` and `export`, and what they, training and comparing know of the folders of runs."""

import argparse
from contextlib import suppress
from itertools import count
from pathlib import Path

from rlcourse.cli.parser import add_json, command, place, say


def add(commands) -> None:
    plot = command(
        commands,
        "plot",
        run_plot,
        help="draw the curves of one run or several",
        description="Draw the curves of one run, or of several in one figure.",
        example="rlcourse plot runs/grpo-sums-1 runs/dapo-sums-1 --y reward length --x sampled_tokens",
    )
    plot.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    plot.add_argument("--y", nargs="+", default=[], metavar="NAME", help="default: what to look at first")
    plot.add_argument("--x", default="step", metavar="NAME", help="step (default), sampled_tokens, kl, ...")
    plot.add_argument(
        "--out", type=place, metavar="FIGURE.png", help="default: RUN/plot.png; of several: plot.png"
    )
    add_json(plot)

    export = command(
        commands,
        "export",
        run_export,
        help="the same experiment for a large library",
        description="Write the same experiment for TRL, verl or OpenRLHF, field by field.",
        example="rlcourse export trl runs/first --out first-in-trl",
    )
    export.add_argument("library", choices=["trl", "verl", "openrlhf"])
    export.add_argument("folder", type=Path, metavar="RUN")
    export.add_argument("--out", type=place, required=True, metavar="FOLDER")
    add_json(export)


def free_folder(*names: str) -> Path:
    """runs/grpo-sums-1, or the first number that is free; made here, for two commands may start at once."""
    for number in count(1):
        folder = Path("runs") / f"{'-'.join(names).lower()}-{number}"
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def run_file(folder: Path, name: str) -> Path:
    """A file that a run has."""
    if not (folder / name).is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no {name}.")
    return folder / name


def run_plot(options: argparse.Namespace) -> int:
    import matplotlib.pyplot as plt

    from rlcourse.bookmaking.style import use_style
    from rlcourse.training import Run

    use_style()
    runs = [Run.load(run_file(folder, "config.json").parent) for folder in options.runs]
    names = list(map(str, options.runs))
    first, *others = runs
    try:
        figure = first.plot(*options.y, against=options.x, also=dict(zip(names[1:], others)))
    except KeyError as unknown:
        options.parser.error(unknown.args[0])
    if others:
        lines, _ = figure.axes[0].get_legend_handles_labels()
        figure.axes[0].get_legend().remove()
        figure.legend(lines, names, loc="outside upper left")
    out = options.out or (options.runs[0] if len(runs) == 1 else Path()) / "plot.png"
    try:
        figure.savefig(out)
    except ValueError as error:  # a suffix that is no format of a figure
        options.parser.error(str(error).partition(" (")[0] + ": give --out FIGURE.png, .svg or .pdf")
    plt.close(figure)
    return say(options, {"figure": str(out), "runs": names}, str(out))


def run_export(options: argparse.Namespace) -> int:
    run_file(options.folder, "budget.json")  # a model has a config.json too

    from rlcourse.export import export
    from rlcourse.tasks import preferences

    data = options.folder / "data.jsonl"
    written = export(options.folder, options.library, options.out, preferences(data) if data.exists() else ())
    files = list(map(str, written.files))
    different = [f"  {each}" for each in written.differences]
    return say(
        options,
        {"library": options.library, "files": files, "differences": written.differences},
        *files,
        *(["", f"Not the same in {options.library}:", *different] if different else []),
    )
