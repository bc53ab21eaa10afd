"""The rules of the house that a machine can hold."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "rlcourse"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# An import goes to the right in this list, or stays in its own package.
ORDER = [
    *("cli", "practice", "explore", "bookmaking", "export", "training", "evaluate"),
    *("methods", "tasks", "lm", "kl", "tensors", "documents", "terminal", "door"),
]


def module_name(path: Path, root: Path = LIBRARY) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path = LIBRARY) -> dict[str, ast.Module]:
    return {module_name(path, root): ast.parse(path.read_text()) for path in sorted(root.rglob("*.py"))}


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """The library's modules that a module names in an import, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole name, imports are read as a map"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in whole}
    return {name for name in found if name.split(".")[0] == "rlcourse"}


def uphill(tree: dict[str, ast.Module]) -> list[str]:
    """Imports that go up the list, or through the front door."""
    wrong = []
    for name, module in tree.items():
        if name == "rlcourse":
            continue  # the front door reaches every room, lazily
        here = name.split(".")[1]
        for imported in imports(module, set(tree)):
            there = imported.split(".")[1] if "." in imported else None
            if there is None or (there != here and ORDER.index(there) < ORDER.index(here)):
                wrong.append(f"{name} imports {imported}")
    return wrong


def circle(tree: dict[str, ast.Module]) -> list[str]:
    """A chain of modules in which each imports the next and the last the first, if there is one."""
    graph = {name: imports(module, set(tree)) & set(tree) - {name} for name, module in tree.items()}
    done: set[str] = set()

    def visit(name: str, chain: list[str]) -> list[str]:
        if name in chain:
            return [*chain[chain.index(name) :], name]
        if name in done:
            return []
        found = next(filter(None, (visit(other, [*chain, name]) for other in graph[name])), [])
        done.add(name)
        return found

    return next(filter(None, (visit(name, []) for name in graph if name != "rlcourse")), [])


def tree_of(**sources: str) -> dict[str, ast.Module]:
    return {"rlcourse." + name.replace("__", "."): ast.parse(source) for name, source in sources.items()}


def test_every_package_has_its_place_in_the_order():
    rooms = {name.split(".")[1] for name in modules() if "." in name}
    assert rooms <= set(ORDER)


def test_imports_point_down():
    assert uphill(modules()) == []


def test_there_is_no_circle():
    assert circle(modules()) == []


@pytest.mark.parametrize(
    "tree",
    [
        tree_of(kl="from rlcourse.methods.ppo import gae", methods__ppo=""),
        tree_of(kl="def f():\n    import rlcourse.lm", lm=""),
        tree_of(tensors="from rlcourse import kl", kl=""),
        tree_of(tensors="from rlcourse import load_policy"),
    ],
)
def test_an_import_that_goes_up_is_found(tree):
    assert len(uphill(tree)) == 1


def test_a_circle_is_found():
    tree = tree_of(
        lm__a="import rlcourse.lm.b", lm__b="from rlcourse.lm import c", lm__c="import rlcourse.lm.a"
    )
    assert uphill(tree) == [] and sorted(circle(tree)[1:]) == [
        "rlcourse.lm.a",
        "rlcourse.lm.b",
        "rlcourse.lm.c",
    ]


# Methods: the imports are the genealogy


NO_PAPER = {
    "__init__",
    "protocol",
    "offline",
    "corrections",
}  # what methods share, and what corrects an engine


def paper_dates(methods: Path) -> dict[str, str]:
    """The date in each method file's `PAPER = Paper(title, where, date)`; "" where there is none."""
    dates = {}
    for path in methods.glob("*.py"):
        if path.stem in NO_PAPER:
            continue
        papers = [
            node.value
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["PAPER"]
        ]
        strings = [n.value for paper in papers for n in ast.walk(paper) if isinstance(n, ast.Constant)]
        isos = [text for text in strings if re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(text))]
        dates[path.stem] = isos[0] if len(isos) == 1 else ""
    return dates


def anachronisms(methods: Path) -> list[str]:
    dates = paper_dates(methods)
    wrong = []
    for name, date in dates.items():
        tree = ast.parse((methods / f"{name}.py").read_text())
        for imported in imports(tree, {f"rlcourse.methods.{stem}" for stem in dates}):
            other = imported.removeprefix("rlcourse.methods.")
            if imported == "rlcourse.methods":
                wrong.append(f"{name} imports all methods at once")
            elif other in dates and dates[other] >= date:
                wrong.append(f"{name} ({date}) imports {other} ({dates[other]})")
    return wrong


def test_every_method_names_its_paper_and_date():
    assert {name for name, date in paper_dates(LIBRARY / "methods").items() if not date} == set()


def test_a_method_imports_only_earlier_papers():
    assert anachronisms(LIBRARY / "methods") == []


def test_an_anachronism_and_a_missing_paper_are_found(tmp_path):
    (tmp_path / "ppo.py").write_text('PAPER = Paper("P", "1707.06347", date="2017-07-20")\n')
    (tmp_path / "grpo.py").write_text('PAPER = Paper("G", "2402.03300", "2024-02-05")\n')
    assert anachronisms(tmp_path) == [] and set(paper_dates(tmp_path).values()) == {
        "2017-07-20",
        "2024-02-05",
    }
    (tmp_path / "ppo.py").write_text(
        (tmp_path / "ppo.py").read_text() + "from rlcourse.methods.grpo import x\n"
    )
    (tmp_path / "dapo.py").write_text("PAPER = None\n")
    assert anachronisms(tmp_path) == ["ppo (2017-07-20) imports grpo (2024-02-05)"]
    assert paper_dates(tmp_path)["dapo"] == ""


# Safety and size


def forbidden(tree: ast.Module) -> list[str]:
    """Model output is data: nothing that runs text as code, unpickles, or trusts downloaded code."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" as name)):
                found.append(name)
            case ast.Import(names=names) if any(alias.name in ("pickle", "dill") for alias in names):
                found.append("pickle")
            case ast.ImportFrom(module="pickle" | "dill"):
                found.append("pickle")
            case ast.keyword(arg="trust_remote_code", value=value) if (
                getattr(value, "value", True) is not False
            ):
                found.append("trust_remote_code")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords):
                if not any(k.arg == "weights_only" and k.value.value is True for k in keywords):
                    found.append("torch.load")
    return found


def test_the_library_never_runs_or_unpickles_data():
    assert {name: found for name, tree in modules().items() if (found := forbidden(tree))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import load",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "torch.load(path)",
    ],
)
def test_running_or_unpickling_data_is_found(line):
    assert len(forbidden(ast.parse(line))) == 1


def test_what_is_safe_is_not_reported():
    safe = "model.eval()\nf(trust_remote_code=False)\ntorch.load(path, weights_only=True)\nre.compile('x')"
    assert forbidden(ast.parse(safe)) == []


def code_lines(text: str) -> int:
    """Lines that hold code: without blank lines, comments and docstrings, which are there to be read faster."""
    tree, said = ast.parse(text), set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            said |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and line[0] != "#" and number not in said for number, line in lines)


def test_code_is_counted_without_what_explains_it():
    assert (
        code_lines('"""Doc.\n\nMore."""\n\n# why\nx = 1  # so\ndef f():\n    "doc"\n    return "text"\n') == 3
    )


ROOMS = ("tensors.py", "kl.py", "lm", "tasks", "methods", "training", "evaluate")


def lines_of(paths: Iterable[Path]) -> dict[str, int]:
    """Without blanks, comments and docstrings. By path: there are two files called offline.py."""
    return {path.relative_to(LIBRARY).as_posix(): code_lines(path.read_text()) for path in paths}


def promised(words: str) -> int:
    """What README says."""
    text = " ".join((ROOT / "README.md").read_text().split())
    return int(re.search(words.replace("N", r"([\d,]+)"), text)[1].replace(",", ""))


def test_the_library_stays_readable_in_a_weekend():
    files = [
        path for room in ROOMS for path in [LIBRARY / room, *(LIBRARY / room).rglob("*.py")] if path.is_file()
    ]
    lines = lines_of(files)
    assert sum(lines.values()) < promised("under N lines of code"), lines


def test_what_one_run_of_grpo_imports_stays_readable_in_a_day():
    code = """
from rlcourse import load_policy, train
from rlcourse.methods import GRPO
from rlcourse.tasks import Sums
train(load_policy("pocket"), Sums(), GRPO(group_size=2), steps=1, responses=2, quiet=True)
import sys
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("rlcourse.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    files = [Path(file) for file in done.stdout.split()]
    lines = lines_of(path for path in files if path.relative_to(LIBRARY).parts[0] in ROOMS)
    assert sum(lines.values()) < promised("one run of GRPO imports under N of them"), lines


def test_no_file_is_a_drawer():
    names = {path.stem for path in LIBRARY.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_importing_the_library_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'numpy', 'matplotlib', 'IPython'}"
    code = f"import sys, rlcourse; print(*sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "\n"
    )


# One list of packages


def normal(requirement: str) -> str:
    """The name of a package in a requirement: `PyYAML>=6` is pyyaml."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


EXTRAS = [
    *PROJECT["dependencies"],
    *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
]


def test_conda_installs_the_project_and_nothing_that_it_lacks():
    *tools, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {normal(tool) for tool in tools} <= {"python", "pip", "make", "git"} | set(map(normal, EXTRAS))
    assert pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    assert "python=3.11" in tools and PROJECT["requires-python"] == ">=3.11"


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_requirement_is_pinned_to_a_version_in_its_range():
    pinned = {normal(name): version for name, version in pins().items()}
    for requirement in map(Requirement, EXTRAS):
        assert Version(pinned[normal(requirement.name)]) in requirement.specifier


def test_every_pin_installs_on_the_oldest_python_that_we_promise():
    """A Debian 12 has Python 3.11.2, and one pin that wants 3.11.5 makes pip fail with a page of riddles."""
    for name, version in pins().items():
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a pin does not install anything by itself
        if installed.version.split("+")[0] == version:
            assert "3.11.0" in SpecifierSet(installed.metadata["Requires-Python"] or ""), (name, version)


def test_pins_name_no_local_build_and_no_path():
    assert not re.search(r"[+@/]", (ROOT / "constraints.txt").read_text().split("\n", 1)[1])


def test_the_version_is_said_once():
    assert importlib.import_module("rlcourse").__version__ == PROJECT["version"]


def test_the_readme_shows_the_two_commands_first():
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "make lab" in first_screen and "make test" in first_screen


def test_every_paper_that_the_book_cites_is_in_the_bibliography():
    book, paper = ROOT / "book", re.compile(r"(?<![\d.])\d{4}\.\d{5}(?!\d)")
    listed = set(paper.findall((book / "appendix" / "bibliography.md").read_text()))
    cited = {number for page in book.rglob("*.md") for number in paper.findall(page.read_text())}
    assert cited - listed == set()
