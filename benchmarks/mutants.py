"""Which mistake would no test notice? One small change of the library at a time, and the tests that should fail.

    python benchmarks/mutants.py                         every file of TESTS that is another than when it was scored
    python benchmarks/mutants.py rlcourse/kl.py          this one: again where it survived, if the tests are others now
    python benchmarks/mutants.py --seconds 500           stops in time, and goes on from there the next time

A mutant is run in a child of a process that has torch imported already, in a copy of the repository, against the
tests that call the changed function, the quickest first; it is killed by the first that fails, or by the clock.
benchmarks/evidence/mutants.json holds the score of each file and its stamp: a file that changes is scored anew.
What changes nothing that can be observed is called so, with its reason, in benchmarks/equivalent.json. What has been
run is kept in runs/mutants/.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rlcourse.bookmaking import atomic
from rlcourse.bookmaking.evidence import as_text
from rlcourse.bookmaking.stamps import ROOT, changed, fingerprint, stamp

STATE = ROOT / "runs" / "mutants"
SCORES = ROOT / "benchmarks" / "evidence" / "mutants.json"
EQUIVALENT = ROOT / "benchmarks" / "equivalent.json"

FORMULAS = ["tensors", "kl", "grpo_family", "ppo_family", "methods", "preferences", "defaults", "edges"]
FORMULAS += ["properties", "enumeration", "verl", "trl"]
TESTS = {
    "rlcourse/tensors.py": FORMULAS,
    "rlcourse/kl.py": FORMULAS,
    **{
        f"rlcourse/methods/{name}.py": [*FORMULAS, "fit"]
        for name in ("dpo", "kto", "offline", "reward_model", "sft")
    },
    "rlcourse/methods/[a-z]*.py": FORMULAS,
    "rlcourse/export/*.py": ["exported", "export_fields", "export"],
    "rlcourse/practice/memory.py": ["memory"],
    "rlcourse/bookmaking/claims.py": ["claims"],
    "rlcourse/bookmaking/evidence.py": ["stamps", "bookmaking"],
    "rlcourse/bookmaking/stamps.py": ["stamps", "bookmaking"],
    "rlcourse/bookmaking/show.py": ["stamps", "bookmaking"],
}

# ---- the mutants of a file

OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
BUDGET = 15.0  # seconds of tests, the quickest first: what only others would see counts as one that survives
# What is told to people or to a type checker, and what is in no formula.
LEFT_OUT = (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)
UNSEEN = ("annotation", "returns", "decorator_list")


def others(node: ast.AST, modules: set[str]) -> Iterator[ast.AST | None]:
    """What may stand in a node's place; None for nothing at all."""
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.Constant(value=str(value)) if re.fullmatch(
            r"[\w./+-]+", value
        ):  # a word, and not a sentence
            yield ast.Constant(value + "_")
        case ast.UnaryOp():  # -1 -> 1, ~mask -> mask
            yield node.operand
        case ast.Compare(ops=[op]) if type(op) in OTHER:
            yield ast.Compare(node.left, [OTHER[type(op)]()], node.comparators)
        case ast.BinOp(op=op) if type(op) in OTHER:
            yield ast.BinOp(node.left, OTHER[type(op)](), node.right)
        case ast.BoolOp():
            yield ast.BoolOp(OTHER[type(node.op)](), node.values)
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.If(body=[ast.Raise()], orelse=[]):  # a guard
            yield ast.Pass()
        case ast.If(test=ast.Name() | ast.Attribute() | ast.Call() | ast.NamedExpr() as test):
            yield ast.If(ast.UnaryOp(ast.Not(), test), node.body, node.orelse)
        case ast.comprehension(ifs=[_, *_]):
            yield ast.comprehension(node.target, node.iter, [], node.is_async)
        case ast.Call(func=ast.Attribute(value=receiver)) if getattr(receiver, "id", None) not in modules:
            yield receiver  # x.detach() -> x
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.keyword():
            yield None
        case ast.Dict(keys=keys, values=values):
            for i in range(len(keys)):
                yield ast.Dict(keys[:i] + keys[i + 1 :], values[:i] + values[i + 1 :])


def mutants(source: str) -> Iterator[tuple[str, str, str]]:
    """Of each mutant the function it is in, what it changes, and the whole file with it."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    seen: Counter[str] = Counter()

    def below(node: ast.AST, where: str, statement: ast.AST) -> Iterator[tuple[str, str, str]]:
        for name, value in ast.iter_fields(node):
            if name in UNSEEN:
                continue
            places = [(value, i) for i in range(len(value))] if isinstance(value, list) else [(node, name)]
            for owner, place in places:
                child = owner[place] if isinstance(owner, list) else getattr(owner, place)
                if not isinstance(child, ast.AST) or isinstance(child, LEFT_OUT) or said(node, name, child):
                    continue
                inside = ".".join(filter(None, [where, getattr(child, "name", None)]))
                inside = inside if isinstance(child, ast.FunctionDef | ast.ClassDef) else where
                around = child if isinstance(child, ast.stmt) else statement
                before = head(around)
                for new in list(others(child, modules)):
                    put(owner, place, child, new)
                    shown = difference(before, head(new if around is child else around))
                    seen[inside + shown] += 1
                    again = f" (#{seen[inside + shown]})" if seen[inside + shown] > 1 else ""
                    yield inside, shown + again, ast.unparse(ast.fix_missing_locations(tree))
                    put(owner, place, new, child)
                yield from below(child, inside, around)

    return below(tree, "", tree)


def put(owner: ast.AST | list, place: int | str, old: ast.AST | None, new: ast.AST | None) -> None:
    """Into a list or a field; None takes the item out of a list, and brings it back."""
    if not isinstance(owner, list):
        setattr(owner, place, new)
    elif new is None:
        del owner[place]
    elif old is None:
        owner.insert(place, new)
    else:
        owner[place] = new


def said(parent: ast.AST, field: str, node: ast.AST) -> bool:
    """What has its mutant already (the number of -1, a key whose whole entry is left out), and what is read by people:
    docstrings, the paper's name, the names that are exported."""
    if isinstance(node, ast.Constant):
        compared = isinstance(parent, ast.Compare) and isinstance(node.value, str)
        return compared or isinstance(parent, ast.UnaryOp | ast.Expr) or field == "keys"
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("PAPER", "__all__")


def head(statement: ast.AST) -> str:
    """A statement without what stands below it."""
    text = ast.unparse(statement)
    return text.splitlines()[0] if getattr(statement, "body", None) else text


def difference(old: str, new: str, around: int = 24) -> str:
    """The part of a statement that changes, with a little of what stands around it."""
    old, new = (" ".join(text.split()) for text in (old, new))
    start = len(os.path.commonprefix([old, new]))
    end = len(os.path.commonprefix([old[start:][::-1], new[start:][::-1]]))
    left = max(0, start - around)
    return " -> ".join(text[left : max(start, len(text) - end) + around].strip() for text in (old, new))


# ---- running the tests


class Watch:
    """A pytest plugin: keeps the tests that are wanted, the quickest first; or notes of all of them who calls what."""

    def __init__(self, wanted: list[str] = (), folder: Path | None = None):
        self.wanted, self.folder = wanted, f"{folder}/"
        self.failed: list[str] = []
        self.called: dict[str, set[str]] = {}
        self.seconds: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items):
        if self.wanted:
            order = {name: i for i, name in enumerate(self.wanted)}
            kept = [item for item in items if item.nodeid in order]
            items[:] = sorted(kept, key=lambda item: order[item.nodeid])

    def pytest_runtest_logstart(self, nodeid):
        if not self.wanted:
            called, start = self.called.setdefault(nodeid, set()), len(self.folder)

            def trace(frame, *_):  # returns nothing, so no lines are traced
                code = frame.f_code
                if code.co_filename.startswith(self.folder):
                    called.add(f"{code.co_filename[start:]}:{code.co_qualname.replace('.<locals>', '')}")

            sys.settrace(trace)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_logfinish(self):
        sys.settrace(None)


def run_tests(folder: Path, files: list[str], limit: int, watch: Watch, shapes: bool = True) -> int | None:
    """In a child: pytest's exit code, None where the clock ran out. What the plugin saw is in told.json.

    `shapes=False`: without the checks of shapes and types, which take longer to set up than most tests to run.
    """
    child = os.fork()
    if child == 0:
        # of the processor's time, for a busy machine is no failure; the signals' handling by default is death
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.alarm(10 * limit)  # for what waits for ever
        output = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.dont_write_bytecode = bool(watch.wanted)  # a mutant's would outlive it
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "rlcourse"]:
            del sys.modules[name]
        import jaxtyping
        import pytest

        if not shapes:
            jaxtyping.install_import_hook = lambda *_: None
        options = ["-x"] if watch.wanted else []
        code = pytest.main(
            ["-q", "-p", "no:cacheprovider", "-o", "addopts=", *options, *files], plugins=[watch]
        )
        called = {test: sorted(names) for test, names in watch.called.items() if test not in watch.failed}
        (folder / "told.json").write_text(json.dumps({"called": called, "seconds": watch.seconds}))
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if status in (-signal.SIGPROF, -signal.SIGALRM) else status


def import_what_is_not_ours() -> None:
    """Once, for all children: what takes seconds to import and is no part of the library."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # nbval's alone takes two seconds
    }
    import beartype  # noqa: F401
    import jaxtyping  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from hypothesis import Phase, settings

    torch.set_num_threads(1)
    # the same examples every time, and the first that fails is enough
    settings.register_profile(
        "mutants", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
    )
    settings.load_profile("mutants")
    gc.freeze()  # or every child would go through all of this again


def copy_the_repository(folder: Path) -> None:
    for path in ROOT.iterdir():
        if path.name in ("rlcourse", "tests", "benchmarks"):
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.name not in ("runs", ".git"):
            (folder / path.name).symlink_to(path)


# ---- scores


def measure(file: str, folder: Path, until: float) -> dict:
    """Runs those mutants of a file that have not been run; what is known of it then, kept in runs/mutants/."""
    names = next(names for pattern, names in TESTS.items() if Path(file).match(pattern))
    source, copy, kept = (ROOT / file).read_text(), folder / file, STATE / f"{file.replace('/', '.')}.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("stamp") != fingerprint(file, ROOT):
        known = {"stamp": fingerprint(file, ROOT), "tests": None, "verdicts": {}}
    asked = {
        name: hashlib.sha256((ROOT / f"tests/test_{name}.py").read_bytes()).hexdigest() for name in names
    }
    if known["tests"] != asked:
        known["tests"] = asked
        known["verdicts"] = {key: said for key, said in known["verdicts"].items() if said != "survived"}

    calling = {}
    for name in names:
        for test, (called, seconds) in calls(name, folder).items():
            functions = [each.split(":")[1] for each in called if each.startswith(f"{file}:")]
            # a test that calls nothing may look at the fields of a class, or at the defaults of a function
            looks = all(each.startswith(("rlcourse/door.py:", "tests/")) for each in called)
            if functions or looks:
                calling[test] = (functions, looks, seconds)
    for cached in copy.parent.glob(f"__pycache__/{copy.stem}.*"):
        cached.unlink()
    found = {f"{where}: {shown}": (where, text) for where, shown, text in mutants(source)}
    known["mutants"] = len(found)
    for key, (where, text) in found.items():
        if time.time() > until:
            break
        if key in known["verdicts"]:
            continue
        # what no test calls, as what stands outside of functions, is run with every test of the file
        chosen = {test: n for test, (functions, looks, n) in calling.items() if looks or where in functions}
        if not any(where in functions for functions, *_ in calling.values()):
            chosen = {test: n for test, (*_, n) in calling.items()}
        chosen = within_budget(chosen)
        copy.write_text(text)
        files = list(dict.fromkeys(test.split("::")[0] for test in chosen))
        limit = 20 + 3 * int(BUDGET)
        code = run_tests(folder, files, limit, Watch(chosen), shapes=False)
        if code == 0:
            code = run_tests(folder, files, limit, Watch(chosen))
        if code in (4, 5):
            raise RuntimeError(f"{file}: no test was run, see {folder / 'output.txt'}")
        known["verdicts"][key] = "survived" if code == 0 else "out of time" if code is None else "killed"
        if code == 0:
            print(f"{file}  {key}", flush=True)
        atomic.write(kept, json.dumps(known, indent=1))
    copy.write_text(source)
    return known


def within_budget(seconds: dict[str, float]) -> list[str]:
    """The quickest of these tests, as many as the budget allows, and one at least."""
    order = sorted(seconds, key=seconds.get)
    spent = itertools.accumulate(seconds[test] for test in order)
    return [test for test, so_far in zip(order, spent) if so_far <= BUDGET] or order[:1]


def calls(name: str, folder: Path) -> dict[str, tuple[list[str], float]]:
    """Of the tests that pass as it is, the functions that they call and their seconds."""
    kept, file = STATE / f"calls-{name}.json", f"tests/test_{name}.py"
    known = json.loads(kept.read_text()) if kept.exists() else {"stamp": {}}
    if changed(known["stamp"], ROOT) or not known["stamp"]:
        run_tests(folder, [file], 900, Watch(folder=folder))
        told = json.loads((folder / "told.json").read_text())
        called = {test: (functions, told["seconds"][test]) for test, functions in told["called"].items()}
        files = {each.split(":")[0] for functions, _ in called.values() for each in functions}
        known = {"stamp": stamp({file, *files}, ROOT), "calls": called}
        atomic.write(kept, json.dumps(known))
    return known["calls"]


def score(file: str, known: dict) -> dict:
    """How many there are, were killed, and are called equivalent; and those that are neither."""
    reasons = json.loads(EQUIVALENT.read_text()).get(file, {})
    survived = [key for key, said in known["verdicts"].items() if said == "survived"]
    if wrong := [key for key in reasons if key not in survived]:
        print(f"{file}: benchmarks/equivalent.json names what does not survive: {wrong}")
    return {
        "mutants": known["mutants"],
        "killed": known["mutants"] - len(survived),
        "equivalent": sum(key in reasons for key in survived),
        "survived": [key for key in survived if key not in reasons],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "files", nargs="*", help="run what has not been run of these, or survived other tests"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    given = parser.parse_args()
    until = time.time() + given.seconds
    scores = json.loads(SCORES.read_text()) if SCORES.exists() else {"result": {}, "stamp": {}}
    every = dict.fromkeys(
        path.relative_to(ROOT).as_posix() for pattern in TESTS for path in sorted(ROOT.glob(pattern))
    )
    files = given.files or [file for file in every if scores["stamp"].get(file) != fingerprint(file, ROOT)]
    import_what_is_not_ours()
    with tempfile.TemporaryDirectory() as folder:
        copy_the_repository(Path(folder))
        for file in files:
            known = measure(file, Path(folder), until)
            if len(known["verdicts"]) < known["mutants"]:
                print(f"{file}: {len(known['verdicts'])} of {known['mutants']} so far; run it again to go on")
                return 1
            scores["result"][file], scores["stamp"][file] = score(file, known), known["stamp"]
            atomic.write(SCORES, as_text({**scores, "command": "make mutants"}))
            print(file, {name: value for name, value in scores["result"][file].items() if name != "survived"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
