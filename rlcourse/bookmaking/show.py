"""Show the library's own source in a notebook, so that text and code cannot drift."""

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

from IPython import get_ipython
from IPython.display import display

from rlcourse.bookmaking import stamps
from rlcourse.bookmaking.stamps import ROOT, source_of

PROTOCOL = "rlcourse.methods.protocol"  # what all methods share is nobody's invention


class Source:
    """A piece of library source: highlighted in a notebook, plain text in a terminal."""

    def __init__(self, path: str, name: str, code: str, inherited: dict[str, list[str]]):
        self.path, self.name, self.code, self.inherited = path, name, code, inherited

    def caption(self) -> str:
        where = f"`{self.name}` in `{self.path}`." if self.name else f"`{self.path}`."
        origins = [
            f"Inherited from `{file}`: `{'`, `'.join(names)}`." for file, names in self.inherited.items()
        ]
        return " ".join([where, *origins])

    def _repr_markdown_(self) -> str:
        longest = max([2] + [len(ticks) for ticks in re.findall("`+", self.code)])
        fence = "`" * (longest + 1)
        return f"{self.caption()}\n\n{fence}python\n{self.code}\n{fence}\n"

    def __repr__(self) -> str:
        return f"<source of {self.path}:{self.name}>"  # short: it is stored beside the Markdown

    def __str__(self) -> str:
        return f"# {self.caption().replace('`', '')}\n{self.code}"


def inherited_names(text: str, code: str) -> dict[str, list[str]]:
    """Which names in `code` its file imports from other methods, by the file they come from."""
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(text)):
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.ImportFrom) and module.startswith("rlcourse.methods.") and module != PROTOCOL:
            names = [alias.asname or alias.name for alias in node.names]
            if names := [name for name in names if name in used]:
                found.setdefault(f"{module.split('.')[-1]}.py", []).extend(names)
    return found


def source(thing: object, inherited: bool = True) -> Source:
    """The source of a function, class, method or module of the library."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    path = Path(inspect.getsourcefile(thing)).resolve().relative_to(ROOT).as_posix()
    name = "" if isinstance(thing, ModuleType) else thing.__qualname__
    text = (ROOT / path).read_text()
    code = source_of(text, name)
    stamps.USED.update({f"{path}:{name}", "rlcourse/bookmaking/show.py"})
    return Source(path, name, code, inherited_names(text, code) if inherited else {})


def show(*things: object, inherited: bool = True) -> None:
    """Display the source of library functions or classes.

    The caption names what the code inherits from other methods, read off its file's imports, so that what a
    method adds stands out. `inherited=False` leaves that out.
    """
    for thing in things:
        piece = source(thing, inherited)
        display(piece) if get_ipython() else print(piece)
