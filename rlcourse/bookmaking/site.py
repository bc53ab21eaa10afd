"""The web edition: the whole book as pages in `site/`, and `site/rlcourse.epub` for an e-reader.

    python -m rlcourse.bookmaking.site [FOLDER]

The pages are made from the executed notebooks; nothing is executed again. What a browser loads lies in `site/`:
mathematics, widgets and fonts come from npm once, are checked against the hashes below and kept in `build/vendor/`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import nbformat
from bs4 import BeautifulSoup
from docutils import nodes
from latex2mathml.converter import convert
from myst_parser.slugs import github_slugify
from nbformat import NotebookNode
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from rlcourse.bookmaking import atomic
from rlcourse.bookmaking.family import family
from rlcourse.bookmaking.stamps import ROOT

STATIC = Path(__file__).with_name("static")
WORK = ROOT / "build" / "site"
VENDOR = ROOT / "build" / "vendor"
EPUB = "rlcourse.epub"

# Package: npm's hash of it, and the parts that the pages load.
VENDORED = {
    "mathjax@3.2.2": (
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        ("es5/tex-mml-chtml.js", "es5/output/chtml/fonts/woff-v2/", "es5/input/tex/extensions/", "LICENSE"),
    ),
    "requirejs@2.3.7": (
        "DouTG8T1WanGok6Qjg2SXuCMzszOo0eHeH9hDZ5Y4x8Je+9JB38HdTLT4/VA8OaUhBa0JPVHJ0pyBkM1z+pDsw==",
        ("require.js",),
    ),
    "@jupyter-widgets/html-manager@1.0.14": (
        "wglgQQ+VMj+MBKkTttdeoMtOah/H2A1w5GU1OAVXmDQqZYTK6C+oHZjQMxcNezIpiqUjC1YHKOo5XdP3ENvBng==",
        ("dist/embed-amd.js", "LICENSE"),
    ),
}

# The parts of the book in reading order: the title over the list of pages, and its folder.
PARTS = {
    "Chapters": "chapters",
    "Exercises": "exercises",
    "Interview": "interview",
    "Interview cards": "interview/cards",
    "Appendix": "appendix",
    "The library": "library",
}
ROOMS = ["tensors", "kl", "lm", "tasks", "methods", "training", "evaluate", "export", "explore", "practice"]

CONFIG = {
    "project": "Reinforcement learning for language models",
    "author": "the authors of rlcourse",
    "copyright": "the authors of rlcourse. Text and figures CC BY 4.0, code MIT",
    "version": version("rlcourse"),
    "release": version("rlcourse"),
    "extensions": [
        "myst_nb",
        "sphinx.ext.autodoc",
        "sphinx.ext.mathjax",
        "sphinx_book_theme",
        "rlcourse.bookmaking.site",
    ],
    "autodoc_preserve_defaults": True,  # as they are written: a path would be that of the machine that built this
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "myst",  # tables and formulas in what cells print, too
    "nb_ipywidgets_js": {
        "requirejs/require.js": {},
        "html-manager/dist/embed-amd.js": {"data-jupyter-widgets-cdn": "./"},  # and never a CDN
    },
    # Where no widget can run, its picture stands in: see `with_pictures_for_all`.
    "nb_mime_priority_overrides": [("epub", "image/png", 0)],
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_heading_anchors": 3,
    "mathjax_path": "mathjax/es5/tex-mml-chtml.js",
    "html_theme": "sphinx_book_theme",
    "html_title": "RL for language models",
    "html_static_path": [str(STATIC), str(VENDOR)],
    "html_css_files": ["book.css"],
    "html_js_files": [("book.js", {"priority": 900})],
    "html_context": {"default_mode": "auto"},  # light or dark as the reader's system is, until they choose
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_theme_options": {
        "navbar_start": [],  # with the next line: one search button, not two
        "navbar_persistent": [],
        "home_page_in_toc": True,
        "show_toc_level": 2,
        "use_download_button": False,
        "use_fullscreen_button": False,
    },
    "autodoc_default_options": {"members": True, "undoc-members": True, "member-order": "bysource"},
    "autodoc_use_type_comments": False,
    "toc_object_entries": False,
    "highlight_language": "none",
    "python_maximum_signature_line_length": 80,
    "add_module_names": False,
    "default_role": "code",
    "epub_basename": "rlcourse",
    "epub_theme_options": {"relbar1": False},
    "epub_show_urls": "no",
    "epub_tocdepth": 2,
    "epub_exclude_files": ["_static/*", ".nojekyll"],
}


# ---- what the pages load


def vendor(folder: Path = VENDOR) -> None:
    """Fetch what `folder` lacks of VENDORED; a package that is not the one we know is refused."""
    for package, (expected, parts) in VENDORED.items():
        name, wanted = package.rpartition("@")[::2]
        home = folder / name.rpartition("/")[2]
        if (home / ".version").exists() and (home / ".version").read_text() == wanted:
            continue
        shutil.rmtree(home, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / fetch(package, folder)
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != expected:
            raise SystemExit(f"{package} has the hash sha512-{found}, expected sha512-{expected}: not used")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                name = member.name.partition("/")[2]  # npm puts everything under package/
                if name.startswith(parts):
                    atomic.write(home / name, tar.extractfile(member).read())
        archive.unlink()
        atomic.write(home / ".version", wanted)  # last: after a kill the package is fetched again


def fetch(package: str, folder: Path) -> str:
    """The name of the archive that npm has put into `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(
            "The web edition takes MathJax and the widgets' scripts from npm, once, and npm is not here. "
            "Install Node.js (nodejs.org, Homebrew, your distribution) and run make site again."
        )
    done = subprocess.run(
        [npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"npm could not fetch {package}:\n{done.stderr.strip()}")
    return done.stdout.split()[-1]


# ---- the sources of the pages


def stage(book: Path, folder: Path) -> None:
    """The book's notebooks, a contents list for the margin, and the pages about the library."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted(book.rglob("*.ipynb")):
        if any(part.startswith(".") for part in path.relative_to(book).parts):
            continue
        notebook = with_pictures_for_all(nbformat.read(path, as_version=4))
        if path == book / "index.ipynb":
            notebook.cells.append(nbformat.v4.new_markdown_cell(contents(book)))
        atomic.write(folder / path.relative_to(book), nbformat.writes(notebook))
    if topics := sorted((book / "interview" / "cards").glob("*.ipynb")):
        rows = "".join(map(card_rows, topics))
        atomic.write(folder / "interview" / "cards" / "all.md", ALL_CARDS.format(rows))
    for name, text in library_pages().items():
        atomic.write(folder / "library" / f"{name}.rst", text)


def contents(book: Path) -> str:
    """The list of pages, by part; only parts that have a page."""
    lists = []
    for title, part in PARTS.items():
        names = [path.stem for path in sorted((book / part).glob("*.ipynb"))]
        if part == "interview/cards" and names:
            names = ["all", *names]
        if part == "library":
            names = ["index", *ROOMS]
        if names:
            entries = "\n".join(f"{part}/{name}" for name in names)
            lists.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{entries}\n```")
    return "\n\n".join(lists)


NEEDS_KERNEL = (
    "*This one computes as you choose, so it needs a running kernel: `make lab`, and open this page there.*"
)


def with_pictures_for_all(notebook: NotebookNode) -> NotebookNode:
    """A figure's caption as its alternative text; beside each explorer the picture that it starts with."""
    bundle = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    models = bundle.get("state", {})
    for cell, after in zip(notebook.cells, [*notebook.cells[1:], NotebookNode(source="")]):
        caption = re.match(r"\*([^*]+)\*", after.source)
        cell.metadata["mystnb"] = {"image": {"alt": " ".join(caption[1].split()) if caption else "Figure"}}
        for output in cell.get("outputs", []):
            view = output.get("data", {}).get("application/vnd.jupyter.widget-view+json")
            if view and (picture := first_picture(models, view["model_id"])):
                output.data["image/png"] = picture
            elif view:
                output.data = NotebookNode({"text/markdown": NEEDS_KERNEL})
    return notebook


def first_picture(models: dict, model: str) -> str | None:
    """The base64 of the picture that a widget shows: of a stack the selected one."""
    state = models[model]["state"]
    if embedded := re.search(r"data:image/png;base64,([^\"]+)", str(state.get("value", ""))):
        return embedded[1]
    children = [child.removeprefix("IPY_MODEL_") for child in state.get("children", [])]
    if models[model]["model_name"] == "StackModel":
        children = children[state["selected_index"] :][:1]
    return next(filter(None, (first_picture(models, child) for child in children)), None)


# ---- the list of all cards

ALL_CARDS = """# All cards

Every interview card of the book. Choose a topic or a difficulty; a question leads to its card.

| question | topic | difficulty |
|---|---|---|
{}"""
CARD = re.compile(r"^## (?P<question>.+)\n+`[\w.]+` · (?P<difficulty>\w+)", re.M)


def card_rows(notebook: Path) -> str:
    """A row of the list for each card of a topic."""
    text = "\n\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells)
    rows = []
    for card in CARD.finditer(text):
        question, anchor = card["question"].replace("|", r"\|"), github_slugify(spoken(card["question"]))
        rows.append(f"| [{question}]({notebook.name}#{anchor}) | {notebook.stem} | {card['difficulty']} |\n")
    return "".join(rows)


def spoken(question: str) -> str:
    """The words and the code of a heading, of which its anchor is made; formulas are not among them."""
    return re.sub(r"\$[^$]*\$|[`*]", "", question)


# ---- the pages about the library


def library_pages() -> dict[str, str]:
    """reST by page name: one page a room of the house, one section a module."""
    pages = {room: library_page(room) for room in ROOMS}
    rooms = "".join(f":doc:`{room}`\n   {first_line(f'rlcourse.{room}')}\n\n" for room in ROOMS)
    pages["index"] = f"{headline('The front door')}{FRONT_DOOR}{headline('Rooms', '-')}{rooms}"
    return pages


FRONT_DOOR = """\
What a reader may call, from the docstrings. The source is short: read it beside the chapters.

.. code-block:: python

   from rlcourse import Scorer, fit, load_policy, train
   from rlcourse.tasks import Helpdesk, Sums
   from rlcourse.methods import DPO, GRPO, PPO, SFT, BradleyTerry

   run = train(load_policy(), Sums(), GRPO(), steps=100, seed=0)

:func:`~rlcourse.training.online.train` improves a policy by its own answers, and
:func:`~rlcourse.training.offline.fit` learns from examples. :func:`~rlcourse.lm.loading.load_policy` reads a
:class:`~rlcourse.lm.policy.Policy`, and a :class:`~rlcourse.lm.scorer.Scorer` is a judge that can be trained.

"""


def library_page(room: str) -> str:
    place = ROOT / "rlcourse" / room
    if not place.is_dir():
        return f"{headline(room)}.. automodule:: rlcourse.{room}\n"
    names = sorted(path.stem for path in place.glob("[!_]*.py"))
    if room == "methods":  # the family in the order of its papers, what they share first
        born = [member.name for member in family()]
        names = [name for name in names if name not in born] + born
    modules = [f"{headline(name, '-')}.. automodule:: rlcourse.{room}.{name}\n" for name in names]
    return f"{headline(room)}{first_line(f'rlcourse.{room}')}\n\n" + "\n".join(modules)


def headline(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


def first_line(module: str) -> str:
    return import_module(module).__doc__.splitlines()[0]


FIELD = re.compile(
    r"^(\w[\w -]*?) {2,}(\S.*\n(?: .*\n)*)", re.M
)  # "idea       sample a group of answers ..."


def as_rest(app, what, name, thing, options, lines) -> None:
    """Our docstrings are plain text: `code`, paragraphs, lists of "name   what it is", and blocks laid out by hand."""
    text = "\n".join(lines).strip()
    if what == "class" and text.startswith(f"{thing.__name__}("):
        text = ""  # what dataclass puts where there is no docstring: the signature, a second time
    lines[:] = []
    for paragraph in text.split("\n\n"):
        if fields := FIELD.findall(f"{paragraph}\n"):
            lines += [f":{name}: {plain(' '.join(words.split()))}" for name, words in fields] + [""]
        elif re.search("^  ", paragraph, re.M):
            lines += ["::", "", *(f"   {line}" for line in paragraph.splitlines()), ""]
        elif paragraph.startswith(">>>"):
            lines += [*paragraph.splitlines(), ""]
        else:
            lines += [*plain(paragraph).splitlines(), ""]


def plain(text: str) -> str:
    """Text whose only mark-up is `code`: everything else that reST would read is escaped."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        f"`{piece}`" if piece[:1] == "`" else re.sub(r"([*_|\\])", r"\\\1", piece) for piece in pieces
    )


def as_written(app, what, name, thing, options, signature, returns):
    """A dataclass signs with its annotations in quotes."""
    if signature:
        signature = re.sub(r"""(: )(["'])(.+?)\2(?= =|,|\))""", r"\1\3", signature)
    return signature, returns


def fields_are_in_the_signature(app, what, name, thing, skip, options) -> bool | None:
    """Of a class only methods and properties with a docstring are shown: its fields stand in its signature."""
    if what != "class":
        return None
    return not (thing.__doc__ and (callable(thing) or isinstance(thing, property)))


def shapes(app, doctree) -> None:
    """Shapes in the quotes that the source has, without the blank that a one-letter shape needs."""
    for shape in list(doctree.findall(addnodes.desc_sig_literal_string)):
        shape[:] = [nodes.Text('"' + shape.astext().strip("'").strip() + '"')]


# ---- what is done to each page


def report_link(app, page, template, context, doctree) -> None:
    """At the foot of a page: where to say that something on it is wrong."""
    if doctree is None:
        return
    tracker = issue_tracker(origin())
    if tracker:
        href = f"{tracker}?title={quote(f'On the page {page}: ')}"
    else:
        href = context["pathto"]("index").rstrip("#") + "#something-is-wrong"
    context["body"] += f'<p class="report"><a href="{href}">Report an error on this page</a></p>'


def origin() -> str:
    """Where this clone came from; "" if nowhere."""
    asked = subprocess.run(
        ["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()


def issue_tracker(remote: str) -> str | None:
    """The page for a new issue of a repository on the web, without any name or password of the remote.

    >>> issue_tracker("git@github.com:someone/rlcourse.git")
    'https://github.com/someone/rlcourse/issues/new'
    >>> issue_tracker("https://name:secret@github.com/someone/rlcourse")
    'https://github.com/someone/rlcourse/issues/new'
    >>> issue_tracker("/home/someone/rlcourse")
    """
    found = re.fullmatch(r"(?:https://(?:[^@/]*@)?|git@)([\w.-]+)[:/]([\w./-]+?)(?:\.git)?/?", remote)
    return f"https://{found[1]}/{found[2]}/issues/new" if found else None


def for_e_readers(app, doctree, page) -> None:
    """The EPUB is read without scripts: mathematics is MathML, and what is folded on the site stands open."""
    if app.builder.name != "epub":
        return
    for raw in list(doctree.findall(nodes.raw)):
        text = re.sub(r"<summary>(.*?)</summary>", r"<p><strong>\1</strong></p>", raw.astext(), flags=re.S)
        text = re.sub(r"</?details>", "", text)
        text = str(BeautifulSoup(text, "html.parser"))  # every tag closed, as XML asks
        raw.replace_self(nodes.raw("", text, format="html"))
    for formula in list(doctree.findall(lambda node: isinstance(node, nodes.math | nodes.math_block))):
        display = "block" if isinstance(formula, nodes.math_block) else "inline"
        formula.replace_self(nodes.raw("", convert(formula.astext(), display=display), format="html"))


def setup(app: Sphinx) -> dict:
    """This module is its own Sphinx extension."""
    app.connect("autodoc-process-docstring", as_rest)
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-skip-member", fields_are_in_the_signature)
    app.connect("doctree-read", shapes)
    app.connect("html-page-context", report_link)
    app.connect("doctree-resolved", for_e_readers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# ---- building


def build(target: Path, book: Path = ROOT / "book") -> None:
    """Make the pages and the EPUB, and put them in the place of the old ones."""
    if target.exists() and not (target / EPUB).exists():
        raise SystemExit(
            f"{target} is no web edition of this book, and would be replaced: move it away first."
        )
    vendor()
    stage(book, WORK / "source")
    sphinx("html")
    sphinx("epub", html_static_path=[], html_css_files=[], html_js_files=[])
    shutil.copy(WORK / "epub" / EPUB, WORK / "html")
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(WORK / "html", target)


def sphinx(builder: str, **more: object) -> None:
    """Run one of Sphinx's builders; a warning is an error. What the first has read, the second reads no more."""
    out = WORK / builder
    shutil.rmtree(out, ignore_errors=True)
    with docutils_namespace():  # what one builder registers is not there for the next
        app = Sphinx(
            WORK / "source", None, out, WORK / "doctrees", builder,
            confoverrides=CONFIG | more, status=None, warningiserror=True, freshenv=builder == "html",
        )  # fmt: skip
        app.build()
    if app.statuscode:
        raise SystemExit("The web edition has not been built: see the warnings above.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rlcourse.bookmaking.site")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ROOT / "site", help="where it goes; site/ by default"
    )
    folder = parser.parse_args(arguments).folder.resolve()
    start = time.perf_counter()
    build(folder)
    pages = len(list(folder.rglob("*.html")))
    print(f"{pages} pages in {time.perf_counter() - start:.0f} s. Open {folder / 'index.html'}")
    print(f"For an e-reader: {folder / EPUB}")


if __name__ == "__main__":
    main()
