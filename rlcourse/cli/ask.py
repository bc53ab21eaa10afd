"""`rlcourse sample` and `eval`: what a model says, and how good it is."""

import argparse
from pathlib import Path

from rlcourse.cli.parser import Parser, add_json, columns, command, positive, rate, say, understood


def add(commands) -> None:
    sample = command(
        commands,
        "sample",
        run_sample,
        help="see what a model says",
        description="Ask a model, or the model of a run, and print its answers. Without --prompt it is asked "
        "problems of a task, and its answers are marked.",
        example="rlcourse sample pocket --task 'Sums(terms=4)' --problems 2 -n 3",
    )
    add_asked(sample)
    sample.add_argument("--prompt", action="append", metavar="TEXT", help="ask this; more than once for more")
    sample.add_argument("--problems", type=positive, default=1, help="problems of the task to ask (1)")
    sample.add_argument("-n", type=positive, default=4, help="answers to each (4)")
    sample.add_argument(
        "--greedy", action="store_true", help="the likeliest token each time: one answer to each"
    )

    evaluate = command(
        commands,
        "eval",
        run_eval,
        help="accuracy, pass@k and maj@k of a model",
        description="Accuracy with its 95% interval; pass@k, the chance that one of k answers is right; maj@k, the "
        "chance that the commonest of k answers is.",
        example="rlcourse eval runs/first --task Sums --problems 256 --samples 16 --k 1 4 16",
    )
    add_asked(evaluate)
    evaluate.add_argument("--problems", type=positive, default=256, help="problems of the task to ask (256)")
    evaluate.add_argument("--samples", type=positive, default=16, help="answers to each (16)")
    evaluate.add_argument("--k", type=positive, nargs="+", help="for pass@k and maj@k (1 4 16)")


def add_asked(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="a pocket, a hub name, a folder or a run")
    parser.add_argument(
        "--task", help="default: what the run learned; Helpdesk for an offline run; else Sums"
    )
    parser.add_argument("--temperature", type=rate, default=1.0)
    parser.add_argument("--max-tokens", type=positive, help="length of an answer; default: the task's, or 64")
    parser.add_argument("--seed", type=int, default=0)
    add_json(parser)


def speaker(options: argparse.Namespace):
    """The model that is asked."""
    from rlcourse.lm import checkpoints, load_policy

    folder = Path(options.model)
    if any((each / "score_head.safetensors").exists() for each in (folder, *checkpoints(folder))):
        raise ValueError(f"{options.model} is a scorer: it judges answers and gives none.")
    return load_policy(options.model)


def asked(options: argparse.Namespace, policy):
    """The task to ask, as this policy should be asked it."""
    from rlcourse import documents
    from rlcourse.tasks.ask import suited

    config = Path(options.model) / "config.json"
    task = options.task
    needs = {"task": str | None, "kind": str | None}
    remedy = "Say which task to ask with --task."
    run = documents.read(config, needs, remedy) if config.is_file() and not task else {}
    usual = run.get("task") or ("Helpdesk" if run.get("kind") == "fit" else "Sums")
    return suited(understood(options, "task", task or usual), policy)


def run_sample(options: argparse.Namespace) -> int:
    import random

    from rlcourse.tasks import ask

    if options.prompt and options.task:
        options.parser.error("--task asks its own problems, and --prompt yours: give one of them")
    policy = speaker(options)
    n = 1 if options.greedy else options.n
    sampling = {name: getattr(options, name) for name in ("max_tokens", "temperature", "greedy", "seed")}
    if options.prompt:
        rollout = policy.sample(options.prompt, n, **sampling | {"max_tokens": options.max_tokens or 64})
        marks = [None] * len(rollout)
    else:
        task, rng = asked(options, policy), random.Random(options.seed)
        problems = [task.draw(rng) for _ in range(options.problems)]
        rollout, _ = ask(policy, task, problems, n, **sampling)
        marks = rollout.correct.tolist()
    answers = [
        {"prompt": rollout.prompts[owner], "text": text, "correct": correct, "tokens": length, "logp": logp}
        for owner, text, correct, length, logp in zip(
            rollout.owner.tolist(),
            rollout.texts,
            marks,
            rollout.lengths.tolist(),
            rollout.logp.sum(1).tolist(),
        )
    ]
    lines = []
    for number, answer in enumerate(answers):
        if number % n == 0:
            lines += [*([""] if lines else []), answer["prompt"]]
        mark = {None: " ", True: "✓", False: "✗"}[answer["correct"]]
        first, *more = answer["text"].split("\n")
        lines += [f"  {mark} {first}", *(f"    {line}" for line in more)]
    return say(options, {"model": policy.name, "answers": answers}, *lines)


def run_eval(options: argparse.Namespace) -> int:
    from statistics import fmean

    from rlcourse.evaluate import pass_at_k
    from rlcourse.evaluate.interval import share_interval
    from rlcourse.evaluate.majority import majority_at_k
    from rlcourse.evaluate.tries import tries

    ks = sorted(set(options.k or [k for k in (1, 4, 16) if k <= options.samples]))
    if ks[-1] > options.samples:
        options.parser.error(f"--k {ks[-1]} needs --samples {ks[-1]} or more, got {options.samples}")
    policy = speaker(options)
    task = asked(options, policy)
    sampling = dict(max_tokens=options.max_tokens, temperature=options.temperature)
    found = tries(policy, task, options.problems, options.samples, options.seed, **sampling)
    shares = [fmean(each.correct) for each in found]
    low, high = share_interval(shares, options.samples)
    passed = {k: fmean(pass_at_k(options.samples, sum(each.correct), k) for each in found) for k in ks}
    voted = {}
    if found[0].answers is not None:
        voted = {k: fmean(majority_at_k(each.answers, each.correct, k) for each in found) for k in ks}
    document = {
        "model": policy.name,
        "task": repr(task),
        "problems": options.problems,
        "samples": options.samples,
        "temperature": options.temperature,
        "accuracy": fmean(shares),
        "interval": [low, high],
        "pass": passed,
        "maj": voted or None,
    }
    rows = [["k", "pass@k", "maj@k"]]
    rows += [[str(k), f"{passed[k]:.3f}", f"{voted[k]:.3f}" if voted else "-"] for k in ks]
    return say(
        options,
        document,
        f"{policy.name} on {task}: {options.problems} problems, {options.samples} answers to each",
        f"accuracy {fmean(shares):.3f}, 95% interval {low:.3f} to {high:.3f}",
        "",
        *columns(rows),
        *([] if voted else ["no maj@k: this task's answers have no final answer to vote over"]),
    )
