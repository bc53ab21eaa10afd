"""What verl and OpenRLHF make of the configurations that `rlcourse.export` writes, recorded for the tests.

`make peers` runs this. Here the examples are exported; in .venv-peers, where verl lives, the script runs a second
time and lets verl's Hydra compose each of them, turn it into its dataclasses and check it. A field that verl does
not have ends that with its own error. tests/peers/verl_config.json holds what it was told, what it would have
taken without, and what it understood.

OpenRLHF cannot be imported without a GPU's packages. But each of its commands builds its argument parser in plain
sight, under `if __name__ == "__main__"`: those statements, up to the parsing, are run as they are in its wheel,
and tests/peers/openrlhf_arguments.json holds the arguments of the parsers that come of it.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "tests" / "peers"
POCKET = ROOT / "rlcourse" / "lm" / "pockets" / "pocket"
OPENRLHF = "0.11.2"


def compose_examples(examples: dict[str, list[str]]) -> None:
    """Print each example as verl understands it. Runs in verl's environment."""
    import verl
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from verl.utils.config import validate_config

    def plain(config, name: str):
        value = OmegaConf.select(config, name.lstrip("+"))
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value

    found = {}
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        default = compose("ppo_trainer")
        for example, overrides in examples.items():
            config = compose("ppo_trainer", overrides)
            names = [override.split("=")[0] for override in overrides]
            found[example] = {name: [plain(default, name), plain(config, name)] for name in names}
            config.critic.model.path = str(POCKET)  # which it looks into
            validate_config(
                config, use_reference_policy=True, use_critic=config.algorithm.adv_estimator == "gae"
            )
    print(json.dumps({"verl": verl.__version__, "examples": found}))


def parser_of(source: str) -> argparse.ArgumentParser:
    """The parser that a command builds before it parses."""
    main = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    built = []
    for statement in main.body:
        if "parse_args" in ast.unparse(statement):
            break
        built.append(statement)
    room = {"argparse": argparse, "datetime": datetime.datetime}
    exec(compile(ast.Module(built, []), "openrlhf", "exec"), room)
    return room["parser"]


def arguments(parser: argparse.ArgumentParser) -> dict[str, dict]:
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        told = {
            "nargs": action.nargs,
            "type": getattr(action.type, "__name__", None),
            "choices": action.choices,
        }
        default = action.default if action.dest != "logger.wandb.run_name" else None  # today's date
        found[action.option_strings[0]] = told | {"default": default if default != float("inf") else "inf"}
    return found


def openrlhf_arguments() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet"]
        subprocess.run([*pip, "--dest", folder, f"openrlhf=={OPENRLHF}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            commands = sorted(name for name in files.namelist() if "/cli/train_" in name)
            return {Path(name).stem: arguments(parser_of(files.read(name).decode())) for name in commands}


def write(name: str, version: tuple[str, str], kind: str, groups: dict[str, dict]) -> None:
    """A line for each field, so that a change is a readable diff."""

    def table(fields: dict) -> str:
        return ",\n  ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items())

    parts = ",\n ".join(
        f"{json.dumps(group)}: {{\n  {table(fields)}\n }}" for group, fields in groups.items()
    )
    (PEERS / name).write_text(f'{{"{version[0]}": "{version[1]}", "{kind}": {{\n {parts}\n}}}}\n')
    print(f"{name}: {(PEERS / name).stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    if sys.argv[1:] == ["composed"]:
        compose_examples(json.load(sys.stdin))
    else:
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        from test_export import overrides, verl_examples

        examples = {name: overrides(config) for name, config in verl_examples().items()}
        python = sys.argv[1] if sys.argv[1:] else ROOT / ".venv-peers" / "bin" / "python"
        told = dict(input=json.dumps(examples), stdout=subprocess.PIPE, text=True, check=True)
        ran = subprocess.run([python, __file__, "composed"], **told)
        found = json.loads(ran.stdout.splitlines()[-1])  # verl says more before
        write("verl_config.json", ("verl", found["verl"]), "examples", found["examples"])
        write("openrlhf_arguments.json", ("openrlhf", OPENRLHF), "commands", openrlhf_arguments())
