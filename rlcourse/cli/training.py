"""`rlcourse train` and `resume`."""

import argparse
import json
import os
import sys
from pathlib import Path

from rlcourse import documents, methods
from rlcourse.cli import compare
from rlcourse.cli.parser import (
    Parser,
    add_json,
    command,
    hidden,
    place,
    positive,
    rate,
    say,
    sentence,
    understood,
)
from rlcourse.cli.runs import free_folder, run_file

FEEDBACK = {  # what a method learns from, and what the helpdesk's simulated people call it
    "Demonstration": "demonstrations",
    "Pair": "pairs",
    "Ranking": "rankings",
    "Verdict": "thumbs",
}


def add(commands) -> None:
    train = command(
        commands,
        "train",
        run_train,
        help="train a model with a method",
        description="Train a model with METHOD, a name or an expression: GRPO, 'GRPO(clip=0.1, beta=0.04)'. Online "
        "methods sample answers to a task and learn from their rewards. SFT, DPO, IPO, KTO, BradleyTerry and "
        "PlackettLuce learn from --data, or from what the helpdesk's simulated people say.",
        example="rlcourse train 'GRPO(clip=0.1)' --task 'Sums(terms=4)' --steps 100 --out runs/first",
    )
    train.add_argument("method", metavar="METHOD", help=", ".join(methods.__all__))
    add_model(train)
    add_budget(train)
    train.add_argument(
        "--task", help="what to learn, online: Sums, Helpdesk, Countdown, 'Questions(\"my.jsonl\")'"
    )
    train.add_argument("--data", type=Path, metavar="FILE.jsonl", help="what to learn from, offline")
    train.add_argument(
        "--examples", type=positive, help="offline without --data: ask so many (600) of the helpdesk"
    )
    train.add_argument("--out", type=place, metavar="FOLDER", help="default: runs/METHOD-TASK-NUMBER")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--lr", type=rate, help="learning rate; default: by method and model")
    train.add_argument("--responses", type=positive, help="answers sampled a step, online")
    train.add_argument("--epochs", type=positive, help="passes over the data, offline (1)")
    train.add_argument("--batch", type=positive, help="examples a step, offline")
    train.add_argument("--max-tokens", type=positive, help="length of an answer, online; default: the task's")
    train.add_argument("--micro-batch", type=positive, help="answers in memory at once while learning")
    train.add_argument("--shard", action="store_true", help="divide the model among the processes (FSDP)")
    train.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    train.add_argument("--tensorboard", action="store_true", help="write event files for TensorBoard too")
    train.add_argument("--checkpoint-every", type=positive, help="steps between checkpoints (50)")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json(train)

    resume = command(
        commands,
        "resume",
        run_resume,
        help="go on with a run that was stopped",
        description="Go on with a run, or a comparison, from its last checkpoint, as its config.json says. "
        "A larger budget makes a finished online run longer.",
        example="rlcourse resume runs/first --steps 200",
    )
    resume.add_argument("folder", type=Path, metavar="FOLDER")
    add_budget(resume)
    resume.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json(resume)


def add_model(parser: Parser) -> None:
    parser.add_argument(
        "--model", help="a pocket, a hub name, a folder or a run; default: $RLCOURSE_MODEL, or pocket"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the weights")
    parser.add_argument("--lora", type=positive, metavar="RANK", help="train an adapter of this rank only")


def add_budget(parser: Parser) -> None:
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=positive, help="online: so many steps (100)")
    budget.add_argument("--tokens", type=positive, help="online: so many sampled tokens")


# ---- train


def run_train(options: argparse.Namespace) -> int:
    method = understood(options, "method", options.method)
    offline = hasattr(method, "data")
    refuse_what_does_not_apply(options, type(method).__name__, offline)
    task = None if offline else understood(options, "task", options.task or "Sums")
    for kind in ("run", "comparison"):
        if options.out and holds(options.out, kind):
            raise ValueError(
                f"{options.out} holds a {kind} already: `rlcourse resume {options.out}` goes on with it, and "
                "another --out keeps both."
            )
    model = loaded(method, options.model, dtype=options.dtype, lora=options.lora)
    settings = chosen(options, "lr", "micro_batch", "checkpoint_every", "seed", "shard", "tensorboard")
    settings |= chosen(options, "gradient_checkpointing")
    if offline:
        data = feedback(method, options)
        settings |= chosen(options, "batch", "epochs")
    else:
        data = task
        settings |= chosen(options, "responses", "max_tokens", "steps", "tokens")
        settings |= {} if options.tokens or options.steps else {"steps": 100}
    out = options.out or free_folder(type(method).__name__, type(task).__name__ if task else source(options))
    settings |= {"quiet": options.quiet or hidden(), "fresh": options.out is None}
    return finished(options, out, go(method, model, data, out, **settings))


def holds(folder: Path, kind: str) -> bool:
    from rlcourse.lm import checkpoints

    return bool(checkpoints(folder)) if kind == "run" else (folder / "compare.json").exists()


def refuse_what_does_not_apply(options: argparse.Namespace, name: str, offline: bool) -> None:
    """An option that would be ignored is a misunderstanding, and said before anything is loaded."""
    online_only = ("task", "steps", "tokens", "responses", "max_tokens")
    offline_only = ("data", "examples", "epochs", "batch")
    for option in online_only if offline else offline_only:
        if getattr(options, option) is not None:
            how = (
                "learns from what people have said: --data FILE.jsonl or --examples N, --epochs N, --batch N"
                if offline
                else "samples its own answers: --task says to what (for a file of questions: "
                "--task 'Questions(\"FILE.jsonl\")'), and --steps or --tokens how long"
            )
            options.parser.error(f"--{option.replace('_', '-')} is not for {name}, which {how}")
    if options.data and options.examples:
        options.parser.error(
            "--examples asks the helpdesk's people, and --data is a file of your own: give one"
        )
    if not options.out and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        options.parser.error("several processes must agree on one folder: give --out")


def source(options: argparse.Namespace) -> str:
    return options.data.stem if options.data else "Helpdesk"


def chosen(options: argparse.Namespace, *names: str) -> dict:
    """Those of the options that were given: for the others the library has its presets."""
    return {name: value for name in names if (value := getattr(options, name)) not in (None, False)}


def loaded(method, name: str | None, **how):
    """What the method trains: a policy, or a scorer on top of one."""
    from rlcourse.lm import Scorer, load_policy

    policy = load_policy(name, **{key: value for key, value in how.items() if value is not None})
    return Scorer(policy) if getattr(method, "trains", "Policy") == "Scorer" else policy


def feedback(method, options: argparse.Namespace) -> list:
    """The reader's file, or what the helpdesk's simulated people say."""
    from rlcourse.tasks import Helpdesk, preferences

    if options.data:
        return preferences(options.data)
    return getattr(Helpdesk(), FEEDBACK[method.data[0]])(options.examples or 600, seed=options.seed)


def go(method, model, data, out: Path, fresh: bool = False, **settings):
    """Train or fit, as the method wants it. Whatever stops a run, the reader is told how to go on."""
    from rlcourse.training import fit, train
    from rlcourse.training.folder import writing

    with writing(out, fresh):
        try:
            if hasattr(method, "data"):
                keep_data(out, data)
                return fit(model, data, method, out=out, **settings)
            return train(model, data, method, out=out, **settings)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped. {kept(out)}") from None
        except OSError as error:
            raise OSError(f"{sentence(error)} {kept(out)}") from None


def keep_data(out: Path, examples: list) -> None:
    """What an offline run learns from, in its folder: a resumed run needs it, and a reader's file may change."""
    from rlcourse.bookmaking import atomic
    from rlcourse.lm import checkpoints

    if checkpoints(out):
        return
    file, text = out / "data.jsonl", "".join(json.dumps(each._asdict()) + "\n" for each in examples)
    if file.exists() and not (out / "budget.json").exists() and file.read_text() != text:
        raise ValueError(f"{file} is there already, and no run has written it: give another --out.")
    atomic.write(file, text)


def kept(out: Path) -> str:
    from rlcourse.lm import checkpoints

    last = next(reversed(checkpoints(out)), None)
    if last is None:
        return f"There is no checkpoint in {out} yet, and nothing to go on from."
    return f"{last} is kept; go on with: rlcourse resume {out}"


def finished(options: argparse.Namespace, out: Path, run) -> int:
    first, last, name = run.history[0], run.history[-1], run.headline[0]
    amount = f"{last['sampled_tokens']:,} sampled tokens" if run.online else f"{last['examples']:,} examples"
    steps = last["step"]
    some = max(1, min(10, steps // 2))  # the first step is none of the last
    document = {"run": str(out), "method": repr(run.method), "first": first, "last": last}
    return say(
        options,
        document,
        f"{run.method}: {steps} step{'s' * (steps > 1)}, {amount}, {last['seconds']:.0f} s",
        f"{name} {first[name]:.3f} in step 1, {run.mean(name, some):.3f} at the end"
        + (f" (mean of the last {some} steps)" if some > 1 else ""),
        f"kept in {out}",
    )


# ---- resume


def run_resume(options: argparse.Namespace) -> int:
    out = options.folder
    longer = chosen(options, "steps", "tokens")
    if (out / "compare.json").exists():
        if longer:
            options.parser.error(
                f"{out} is a comparison, whose budget stays as it is: --{next(iter(longer))}"
            )
        from rlcourse.training.folder import writing

        with writing(out):
            return compare.go_on(options, out)
    from rlcourse.lm import checkpoints

    config = documents.read(
        run_file(out, "config.json"),
        {"policy": str, "method": str, "dtype": str | None, "lora": documents.Count | None},
    )
    budget = documents.read(run_file(out, "budget.json"))
    last = next(reversed(checkpoints(out)), None)
    if last is None:
        raise ValueError(
            f"{out} has no checkpoint yet, and nothing to resume: start it again with `rlcourse train`."
        )

    from inspect import signature
    from typing import get_type_hints

    from rlcourse.tasks import preferences
    from rlcourse.training import fit, named, train

    method = named.method(config["method"])
    offline = hasattr(method, "data")
    if offline and longer:
        options.parser.error(
            f"{out} is offline, and as long as its data: its learning rate has fallen to 0 at the end. For more, "
            f"train again with more --epochs, or from where it stands with --model {out}"
        )
    documents.checked(config, {} if offline else {"task": str}, str(out / "config.json"))
    data = preferences(run_file(out, "data.jsonl")) if offline else named.task(config["task"])
    if config.get("engine"):
        raise ValueError(
            f"{out} samples with an engine made in Python, {config['engine']!r}: resume it there."
        )
    ours = {"out", "resume", "quiet", "engine", "reference"}
    loop = fit if offline else train
    can_be_set = {p.name for p in signature(loop).parameters.values() if p.kind is p.KEYWORD_ONLY} - ours
    hints = {name: kind for name, kind in get_type_hints(loop).items() if name in can_be_set}
    counted = {int: documents.Count, int | None: documents.Count | None}  # every whole number but the seed
    hints = {name: counted.get(kind, kind) for name, kind in hints.items()} | {"seed": int}
    settings = {}
    for file, content in (("config.json", config), ("budget.json", budget)):
        known = {name: kind for name, kind in hints.items() if name in content}
        documents.checked(content, known, str(out / file))
        settings |= {name: content[name] for name in known}
    if longer:
        settings = {
            name: value for name, value in settings.items() if name not in ("steps", "tokens")
        } | longer
    if not offline and not {"steps", "tokens"} & settings.keys():
        raise ValueError(f"{out / 'budget.json'} has neither steps nor tokens: say --steps N or --tokens N.")
    model = loaded(method, config["policy"], dtype=config.get("dtype"), lora=config.get("lora"))
    run = go(method, model, data, out, resume=True, quiet=options.quiet or hidden(), **settings)
    if run.history[-1]["step"] == int(last.name.removeprefix("step-")):
        more = "" if offline else "; a larger --steps or --tokens makes more of it"
        print(f"rlcourse: {out} was done already, at {last.name}{more}.", file=sys.stderr)
    return finished(options, out, run)
