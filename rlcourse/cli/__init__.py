"""`rlcourse`, the command. Every group of commands is a file here, and imports its work when it runs."""

import os
import sys
import warnings
from pathlib import Path

from rlcourse import methods
from rlcourse.cli import ask, compare, doctor, quiz, runs, training
from rlcourse.cli.parser import TOO_LARGE, Parser, command, place, sentence
from rlcourse.terminal import visible_lines


def parser() -> Parser:
    whole = Parser(
        prog="rlcourse",
        description="Reinforcement learning for language models, a textbook that runs.",
        epilog="`rlcourse COMMAND --help` shows an example of each. Exit codes: 0 done, 1 it could not be done, "
        "2 the command line asks for something that there is not, 130 stopped with ctrl-C.",
    )
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (doctor, training, compare, ask, runs, quiz):
        group.add(commands)
    add_completion(commands, whole)
    return whole


def add_completion(commands, whole: Parser) -> None:
    completion = command(
        commands,
        "completion",
        lambda options: print_completion(whole, options.shell),
        help="print a script that completes commands with TAB",
        description="Print a script with which the shell completes commands, options and files.",
        example='eval "$(rlcourse completion bash)"',
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])


def print_completion(whole: Parser, shell: str) -> int:
    import shtab

    names = " ".join(methods.__all__)
    listed = {"bash": "_rlcourse_methods", "zsh": f"({names})", "fish": names}
    listed["preamble"] = {"bash": f"_rlcourse_methods() {{ compgen -W '{names}' -- \"$1\"; }}"}
    commands = next(action for action in whole._actions if isinstance(action.choices, dict))
    for action in (action for each in commands.choices.values() for action in each._actions):
        if action.type in (Path, place):
            action.complete = shtab.FILE
        elif action.dest in ("method", "methods"):
            action.complete = listed
    print(shtab.complete(whole, shell))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """0: done. 1: it could not be done. 2: the command line asks for something that there is not."""
    options = parser().parse_args(arguments)
    for library in ("TRANSFORMERS", "HF_HUB"):  # what they warn of, we say in our own words
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):  # what libraries tell each other
                warnings.simplefilter("ignore", category)
            warnings.showwarning = lambda message, *_, **__: complain(message)
            code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `rlcourse quiz --list | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stopped:
        print(file=sys.stderr)
        complain(str(stopped) or "stopped.")
        return 130
    except (ValueError, OSError, MemoryError) as error:
        complain(sentence(error))
        return 1
    except RuntimeError as error:  # a GPU that is full, a CPU that is: torch says it in its own words
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        complain(TOO_LARGE)
        return 1


def complain(message: object) -> None:
    """What went wrong may quote a model or a file."""
    print(visible_lines(f"rlcourse: {message}"), file=sys.stderr)
