"""`rlcourse compare`: the same budget for several methods, several seeds each, and how sure the differences are."""

import argparse
import ast
import re
import sys
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

from rlcourse import documents
from rlcourse.cli.parser import (
    add_json,
    columns,
    command,
    hidden,
    place,
    plain,
    positive,
    rate,
    say,
    understood,
)
from rlcourse.cli.runs import free_folder

# `all` on a pocket: where a paper's own setting makes no sense at its size, the one that the chapters use.
# A critic this small is pretrained in 10 steps; alpha 0.05 means lambda 0 below 20 tokens; GSPO's clip is for answers
# of thousands of tokens; 16 optimizer steps on one rollout want a gentler rate, as DAPO and CISPO have it here, or are
# PPO's four, as for VC-PPO and VAPO.
POCKET = {
    "VCPPO": "VCPPO(pretrain=10, epochs=4, minibatches=1)",
    "VAPO": "VAPO(pretrain=10, alpha=1.0, epochs=4, minibatches=1)",
    "GSPO": "GSPO(clip_low=0.03, clip_high=0.04)",
}
POCKET_LR = {"DAPO": 1e-4, "CISPO": 1e-4}


def add(commands) -> None:
    parser = command(
        commands,
        "compare",
        run_compare,
        help="several methods, the same budget, several seeds",
        description="Train with each METHOD for the same budget and several seeds; a table with 95% intervals and "
        "a figure. `all` means every online method. A comparison that was stopped goes on with `rlcourse resume`.",
        example="rlcourse compare GRPO DAPO 'GRPO(beta=0.04)' --seeds 3 --tokens 40_000 --lr DAPO=1e-4",
    )
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="the others are compared with the first")
    parser.add_argument("--all", action="store_true", help="every online method")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each method (3)")
    parser.add_argument("--task", default="Sums", help="Sums, Helpdesk, Countdown, ...")
    parser.add_argument("--model", help="a pocket, a hub name, a folder or a run; default: pocket")
    parser.add_argument(
        "--lr", action="append", default=[], metavar="[METHOD=]RATE", help="of all, or of one"
    )
    parser.add_argument("--problems", type=positive, default=512, help="to measure accuracy on (512)")
    parser.add_argument("--out", type=place, metavar="FOLDER", help="default: runs/compare-NUMBER")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=positive, help="of each run (100)")
    budget.add_argument("--tokens", type=positive, help="sampled by each run")
    parser.add_argument("--responses", type=positive, help="answers sampled a step")
    add_json(parser)


def run_compare(options: argparse.Namespace) -> int:
    from rlcourse.lm import load_policy
    from rlcourse.tasks.ask import suited
    from rlcourse.training.folder import writing
    from rlcourse.training.online import prompts_a_step
    from rlcourse.training.presets import preset

    task = understood(options, "task", options.task)
    texts = asked(options)
    policy = load_policy(options.model)
    suited(task, policy)  # what cannot work is said before anything is kept
    arms = {}
    for text in texts:
        ours = policy.pocket and text not in options.methods  # typed by nobody: `all` has put it there
        method = understood(options, "method", POCKET.get(text, text) if ours else text)
        if hasattr(method, "data"):
            options.parser.error(
                f"{text} learns from what people have said: compare takes methods that sample"
            )
        label = called(text, method)
        if label in arms:
            options.parser.error(f"{label} is named twice")
        prompts_a_step(options.responses or preset(policy).responses, method)
        arms[label] = {"method": repr(method), "lr": POCKET_LR.get(label) if ours else None}
    for label, lr in rates(options, arms).items():
        arms[label]["lr"] = lr
    for label, arm in arms.items():
        if (other := next(name for name in arms if arms[name] == arm)) != label:
            options.parser.error(f"{other} is named twice, the second time as {label}")
    settings = {
        "model": policy.name,
        "task": repr(task),
        "methods": arms,
        "budget": {"tokens": options.tokens} if options.tokens else {"steps": options.steps or 100},
        "responses": options.responses,
        "seeds": options.seeds,
        "problems": options.problems,
    }
    out = options.out or free_folder("compare")
    with writing(out, fresh=options.out is None):
        hold(out, settings)
        return go_on(options, out)


def called(text: str, method) -> str:
    """A method's name with the settings that were typed, whatever spaces were between them."""
    _, bracket, settings = ast.unparse(ast.parse(text.strip(), mode="eval")).partition("(")
    return type(method).__name__ + bracket + settings


def asked(options: argparse.Namespace) -> list[str]:
    """The methods' names; `all` stands for all that are not named beside it, in the order of their papers."""
    named = [text for text in options.methods if text.lower() != "all"]
    if options.all or len(named) < len(options.methods):
        known = {text.partition("(")[0].lower() for text in named}
        named += [name for name in online_methods() if name.lower() not in known]
    if len(named) < 2:
        options.parser.error("give two methods or more, or `all`")
    return named


def online_methods() -> list[str]:
    """By the dates of their papers. A correction is no method: it wraps one."""
    from rlcourse import methods
    from rlcourse.methods.corrections import Correction
    from rlcourse.methods.protocol import OnlineMethod

    every = [getattr(methods, name) for name in methods.__all__]
    online = [each for each in every if issubclass(each, OnlineMethod) and not issubclass(each, Correction)]
    return [
        each.__name__ for each in sorted(online, key=lambda each: sys.modules[each.__module__].PAPER.date)
    ]


def rates(options: argparse.Namespace, arms: dict) -> dict[str, float]:
    """--lr 1e-4 is everybody's, --lr DAPO=1e-4 is one method's."""

    def key(label: str) -> str:
        return "".join(label.lower().split())

    labels, found = {key(label): label for label in arms}, {}
    for text in sorted(options.lr, key=lambda text: "=" in text):  # what is said of one method counts last
        name, _, number = text.rpartition("=")
        try:
            value = rate(number)
        except argparse.ArgumentTypeError as error:
            options.parser.error(f"--lr {text}: {error}")
        if name and key(name) not in labels:
            options.parser.error(f"--lr {text}: {name!r} is not compared here; there are {', '.join(arms)}")
        found |= dict.fromkeys([labels[key(name)]] if name else arms, value)
    return found


def hold(out: Path, settings: dict) -> None:
    """Write down what is compared; a folder that compares something else is left alone."""
    from rlcourse.bookmaking import atomic
    from rlcourse.lm import checkpoints

    file = out / "compare.json"
    if file.exists():
        theirs = settings_in(out)
        if changed := [name for name in settings if theirs.get(name) != settings[name]]:
            name = changed[0]
            raise ValueError(
                f"{out} compares something else: its {name} is {theirs.get(name)!r}, and now {settings[name]!r}. "
                "Another --out keeps both."
            )
    elif checkpoints(out) or (out / "config.json").exists():
        raise ValueError(f"{out} holds a run or a model, not a comparison: give another --out.")
    else:
        atomic.write(file, documents.text(settings, indent=1) + "\n")


def settings_in(out: Path) -> dict:
    """What compare.json asks for."""
    file, counted = out / "compare.json", documents.Count
    needs = {
        "model": str,
        "task": str,
        "methods": dict,
        "budget": dict,
        "seeds": counted,
        "problems": counted,
    }
    found = documents.read(file, needs | {"responses": counted | None})
    for label, arm in found["methods"].items():
        documents.checked(arm, {"method": str, "lr": float | None}, f"{file}, of {label!r},")
    if not found["methods"] or found["budget"].keys() not in ({"steps"}, {"tokens"}):
        raise ValueError(f"{file} names no methods, or no budget of steps or tokens. {documents.REMEDY}")
    documents.checked(found["budget"], dict.fromkeys(found["budget"], counted), f"the budget in {file}")
    return found


def go_on(options: argparse.Namespace, out: Path) -> int:
    """Do what compare.json asks for and is not there yet; then compare."""
    settings = settings_in(out)
    jobs = [(label, seed) for seed in range(settings["seeds"]) for label in settings["methods"]]
    results: dict[str, list[dict]] = {label: [] for label in settings["methods"]}
    try:
        right = {"accuracy": float}
        before = once(out / "before.json", right, lambda: {"accuracy": accuracy_of(settings)})["accuracy"]
        for number, (label, seed) in enumerate(jobs, 1):
            folder = folder_of(out, settings["methods"], label, seed)
            needs = right | {"step": int, "sampled_tokens": int, "seconds": float}
            result = once(folder / "result.json", needs, lambda: measured(folder, settings, label, seed))  # noqa: B023
            results[label].append(result)
            if not hidden():
                name = plain(label)
                print(f"{number}/{len(jobs)} {name}, seed {seed}: {result['accuracy']:.3f}", file=sys.stderr)
    except KeyboardInterrupt:
        done = sum(map(len, results.values()))
        raise KeyboardInterrupt(
            f"stopped. {done} of {len(jobs)} runs are done and kept; go on with: rlcourse resume {out}"
        ) from None
    table = compared(before, results)
    draw(out, settings)
    rows = [HEAD, *map(line, table)]
    rows[0] = [head.format(first=table[0]["method"]) for head in HEAD]
    document = settings | {
        "before": before,
        "results": table,
        "runs": str(out),
        "figure": str(out / "compare.png"),
    }
    return say(
        options,
        document,
        *map(plain, columns(rows)),
        "",
        f"Accuracy on {settings['problems']} problems, the same for all. Intervals: 95%, Student's t over "
        f"{settings['seeds']} seeds; differences are paired by seed.",
        f"runs and compare.png in {out}",
    )


def once(file: Path, needs: dict, measure) -> dict:
    """What was measured before somebody stopped us is not measured again."""
    from rlcourse.bookmaking import atomic

    if not file.exists():
        atomic.write(file, documents.text(measure()) + "\n")
    return documents.read(file, needs, "Take the file away, and it is measured again.")


def folder_of(out: Path, labels: Iterable[str], label: str, seed: int) -> Path:
    """Each label's own: those that differ in signs only, which a folder's name has not, are told apart by a number."""
    names: dict[str, str] = {}
    for each in labels:
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", each).strip("-")
        taken = {other.lower() for other in names.values()}
        numbered = chain([name], (f"{name}-{i}" for i in count(2)))
        names[each] = next(free for free in numbered if free.lower() not in taken)
    return out / f"{names[label]}-seed{seed}"


def accuracy_of(settings: dict, policy=None) -> float:
    """Of a policy; without one, of the model as it is before training."""
    from rlcourse.evaluate import accuracy
    from rlcourse.lm import load_policy
    from rlcourse.training import named

    policy = policy or load_policy(settings["model"])
    return accuracy(policy, named.task(settings["task"]), settings["problems"])


def measured(folder: Path, settings: dict, label: str, seed: int) -> dict:
    """One run, from its last checkpoint if it has one, and how good it made the model."""
    from rlcourse.lm import checkpoints, load_policy
    from rlcourse.training import named, train

    arm, policy = settings["methods"][label], load_policy(settings["model"])
    more = {"responses": settings["responses"]} if settings["responses"] else {}
    run = train(
        policy,
        named.task(settings["task"]),
        named.method(arm["method"]),
        **settings["budget"],
        **more,
        lr=arm["lr"],
        seed=seed,
        out=folder,
        resume=bool(checkpoints(folder)),
        quiet=hidden(),
    )
    last = {name: run.history[-1][name] for name in ("step", "sampled_tokens", "seconds")}
    return {"accuracy": accuracy_of(settings, policy), **last}


# ---- what came out


def compared(before: float, results: dict[str, list[dict]]) -> list[dict]:
    """Of each method its mean, how sure that is, and its difference to the first, seed by seed."""
    from statistics import mean

    from rlcourse.evaluate.interval import mean_and_margin

    first, table = [each["accuracy"] for each in next(iter(results.values()))], []
    for label, runs in results.items():
        after = [each["accuracy"] for each in runs]
        value, margin = mean_and_margin(after)
        row = {"method": label, "before": before, "after": value, "margin": margin, "seeds": after}
        row |= {name: mean(each[name] for each in runs) for name in ("sampled_tokens", "seconds")}
        if table:
            value, margin = mean_and_margin([ours - theirs for ours, theirs in zip(after, first)])
            row |= {"difference": value, "difference_margin": margin, "verdict": verdict(value, margin)}
        table.append(row)
    return table


def verdict(difference: float, margin: float | None) -> str:
    if margin is None or abs(difference) <= margin:
        return "inconclusive"
    return "better" if difference > 0 else "worse"


HEAD = ["method", "before", "after", "each seed", "minus {first}", "", "tokens", "seconds"]


def line(row: dict) -> list[str]:
    def interval(value: float | None, margin: float | None, sign: str = "") -> str:
        return (
            "" if value is None else f"{value:{sign}.3f}" + (f" ± {margin:.3f}" if margin is not None else "")
        )

    return [
        row["method"],
        f"{row['before']:.3f}",
        interval(row["after"], row["margin"]),
        " ".join(f"{value:.2f}" for value in row["seeds"]),
        interval(row.get("difference"), row.get("difference_margin"), "+"),
        row.get("verdict", ""),
        f"{row['sampled_tokens']:,.0f}",
        f"{row['seconds']:.0f}",
    ]


def draw(out: Path, settings: dict) -> None:
    """Every run as a thin line over sampled tokens, and the mean of a method's seeds as a thick one."""
    import matplotlib.pyplot as plt
    import numpy as np

    from rlcourse.bookmaking.style import use_style
    from rlcourse.training.run import LABELS, Run, smoothed

    use_style()
    figure, axis = plt.subplots(figsize=(8, 4.5))
    for number, label in enumerate(settings["methods"]):
        look = {"color": f"C{number}", "linestyle": ("-", "--", "-.", ":")[number // 7 % 4]}
        runs = [
            Run.load(folder_of(out, settings["methods"], label, seed)) for seed in range(settings["seeds"])
        ]
        curves = [
            (np.array(run.column("sampled_tokens")) / 1000, smoothed(run.column("correct"), 5))
            for run in runs
        ]
        for x, y in curves:
            axis.plot(x, y, alpha=0.3, linewidth=0.8, **look)
        shared = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 100)
        axis.plot(shared, np.mean([np.interp(shared, x, y) for x, y in curves], 0), label=label, **look)
    axis.set(xlabel=LABELS["sampled_tokens"], ylabel=LABELS["correct"])
    figure.legend(loc="outside right upper")
    figure.savefig(out / "compare.png")
    plt.close(figure)
