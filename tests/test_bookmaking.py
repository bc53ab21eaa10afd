import json
import re
import sys

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from rlcourse.bookmaking import build, evidence, show, stale, stamps
from rlcourse.bookmaking.stamps import ROOT, canonical, changed, fingerprint, source_of, stamp

SOURCE = """\
---
kernelspec: {display_name: Python 3, language: python, name: python3}
---

# A chapter

With $x$.

+++

Another cell.

```{code-cell} ipython3
:tags: [nbval-check-output]

import sys, time
print("one", flush=True); time.sleep(0.05); print("two")
print("noise", file=sys.stderr)
print(FOLDER + "/13_grpo.md")
```

```{code-cell} ipython3
import ipywidgets as widgets
slider, page = widgets.IntSlider(max=2), widgets.Stack([widgets.HTML("a"), widgets.HTML("b")])
widgets.jslink((slider, "value"), (page, "selected_index"))
widgets.VBox([slider, page])
```

```{code-cell} ipython3
from rlcourse.bookmaking.show import show
from rlcourse.bookmaking.stamps import ROOT as FOLDER, canonical
import rlcourse.kl
show(canonical)
```
"""


@pytest.fixture
def chapter(tmp_path):
    source = tmp_path / "13_grpo.md"
    source.write_text(SOURCE.replace("import sys, time", f"import sys, time; FOLDER = {str(ROOT)!r}"))
    return source


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source, and its notebook's bytes after a first and a second build."""
    source = tmp_path_factory.mktemp("book") / "13_grpo.md"
    source.write_text(SOURCE.replace("import sys, time", f"import sys, time; FOLDER = {str(ROOT)!r}"))
    return source, build.build(source).read_bytes(), build.build(source).read_bytes()


# The notebook


def test_a_second_build_gives_the_same_bytes(built):
    _, first, second = built
    assert first == second


def test_nothing_of_the_machine_or_the_clock_is_kept(built):
    notebook = nbformat.reads(built[1].decode(), as_version=4)
    outputs = json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert str(ROOT) not in outputs and "book/" not in outputs
    assert "noise" not in outputs
    assert notebook.cells[2].outputs[0].text == "one\ntwo\n13_grpo.md\n"
    assert notebook.metadata.language_info == build.LANGUAGE
    assert not any("execution" in cell.metadata for cell in notebook.cells)


def test_cells_have_fixed_ids_counts_and_tags(built):
    notebook = nbformat.reads(built[1].decode(), as_version=4)
    assert [cell.id for cell in notebook.cells] == ["c000", "c001", "c002", "c003", "c004"]
    assert [cell.execution_count for cell in notebook.cells[2:]] == [1, 2, 3]
    assert notebook.cells[2].metadata.tags == ["nbval-check-output"]


def test_widget_models_are_renumbered_and_none_is_pruned(built):
    notebook = nbformat.reads(built[1].decode(), as_version=4)
    state = notebook.metadata.widgets[build.WIDGETS]["state"]
    assert list(state) == [f"{number:032x}" for number in range(len(state))]
    assert "LinkModel" in {model.model_name for model in state.values()}, "jslink needs its model"
    mentioned = set(re.findall(r"IPY_MODEL_(\w+)", built[1].decode()))
    assert mentioned <= state.keys()
    shown = notebook.cells[3].outputs[0].data["application/vnd.jupyter.widget-view+json"].model_id
    assert state[shown].model_name == "VBoxModel"


def test_a_failing_cell_leaves_the_old_notebook(chapter, capsys):
    target = chapter.with_suffix(".ipynb")
    target.write_text("old")
    chapter.write_text("```{code-cell} ipython3\nhidden = 1\n1 / 0\n```\n")
    with pytest.raises(CellExecutionError):
        build.build(chapter)
    assert build.main([str(chapter)]) == 1
    told = capsys.readouterr().out
    assert "hidden = 1" in told and "ZeroDivisionError" in told and "\x1b" not in told
    assert target.read_text() == "old"
    assert [path.name for path in sorted(chapter.parent.iterdir())] == ["13_grpo.ipynb", "13_grpo.md"]


def test_a_page_without_code_starts_no_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "NotebookClient", None)
    (tmp_path / "glossary.md").write_text("# Glossary\n\nWords.\n")
    notebook = json.loads(build.build(tmp_path / "glossary.md").read_text())
    assert notebook["metadata"]["rlcourse"] == {"stamp": {}}


def test_sources_are_found_below_a_hidden_folder_but_not_in_one(tmp_path):
    book = tmp_path / ".work" / "book"
    for folder in (book, book / ".ipynb_checkpoints"):
        folder.mkdir(parents=True)
        (folder / "index.md").write_text("")
    assert build.sources(book) == [book / "index.md"]


# Source equality


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ("# A chapter", "# One chapter", "cell 0 has another source"),
        ('print("one"', 'print("1"', "cell 2 has another source"),
        ("nbval-check-output", "hide-input", "cell 2 has another tags"),
        ("Another cell.\n", "Another cell.\n\n+++\n\nAnd one.\n", "cell 2 has another type"),
        ("(canonical)\n```\n", "(canonical)\n```\n\nThe end.\n", "has 5 cells, its source 6"),
    ],
)
def test_the_check_finds_what_differs(built, tmp_path, capsys, old, new, reason):
    source, notebook, _ = built
    copy = tmp_path / source.name
    copy.write_text(source.read_text())
    copy.with_suffix(".ipynb").write_bytes(notebook)
    assert build.main(["--check", str(copy)]) == 0
    assert old in copy.read_text()
    copy.write_text(copy.read_text().replace(old, new))
    capsys.readouterr()
    assert build.main(["--check", str(copy)]) == 1
    assert f"13_grpo.ipynb: {reason}" in capsys.readouterr().out


def test_the_check_finds_missing_broken_and_orphaned_notebooks(chapter, capsys):
    assert build.check([chapter]) == [f"{chapter.with_suffix('.ipynb')}: has not been built"]
    chapter.with_suffix(".ipynb").write_text("<<<<<<< HEAD")
    (chapter.parent / "14_old.ipynb").write_text("{}")
    assert [line.rsplit(": ")[1] for line in build.check([chapter])] == ["is not a notebook", "has no source"]


# Stamps

CODE = '''\
"""A module."""
import math

def area(r):
    """Of a circle."""
    # pi r squared
    return math.pi * r ** 2
'''


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("# pi r squared", "# a comment", True),
        ('"""Of a circle."""', '"""Of a disc."""', True),
        ("r ** 2", "r**2", True),
        ("r ** 2", "r ** 3", False),
        ("import math", "import cmath as math", False),
        ("def area(r)", "def area(r, *, unit=None)", False),
    ],
)
def test_a_stamp_sees_code_and_not_comments(tmp_path, old, new, same):
    (tmp_path / "m.py").write_text(CODE)
    stamped = stamp({"m.py"}, tmp_path)
    (tmp_path / "m.py").write_text(CODE.replace(old, new))
    assert changed(stamped, tmp_path) == ([] if same else ["m.py"])


def test_a_stamp_of_shown_source_sees_comments_but_only_there(tmp_path):
    (tmp_path / "m.py").write_text(CODE)
    stamped = stamp({"m.py:area"}, tmp_path)
    (tmp_path / "m.py").write_text("\n\n" + CODE.replace("A module", "The module"))
    assert changed(stamped, tmp_path) == []
    (tmp_path / "m.py").write_text(CODE.replace("# pi r squared", "# a comment"))
    assert changed(stamped, tmp_path) == ["m.py:area"]
    (tmp_path / "m.py").write_text(CODE.replace("area", "surface"))
    assert changed(stamped, tmp_path) == ["m.py:area"]


def test_a_stamp_of_weights_sees_bytes_and_absence(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\0\1")
    stamped = stamp({"model.safetensors"}, tmp_path)
    assert changed(stamped, tmp_path) == []
    (tmp_path / "model.safetensors").write_bytes(b"\0\2")
    assert changed(stamped, tmp_path) == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    assert changed(stamped, tmp_path) == ["model.safetensors"]


def test_the_syntax_tree_hash_does_not_depend_on_the_python_version():
    """`type_params` (3.12) and shown-or-not empty lists (3.13) must not show: pin the text."""
    import ast

    assert canonical(ast.parse("def f(x): return x + 1")) == (
        "Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='x')]), "
        "body=[Return(value=BinOp(left=Name(id='x', ctx=Load()), op=Add(), right=Constant(value=1)))])])"
    )


def test_a_notebook_is_stamped_with_what_it_used(built):
    stamped = json.loads(built[1])["metadata"]["rlcourse"]["stamp"]
    shown = {"rlcourse/bookmaking/show.py", "rlcourse/bookmaking/stamps.py:canonical"}
    assert shown | {"rlcourse/kl.py"} <= stamped.keys()
    assert not changed(stamped)


def test_loaded_names_modules_and_checkpoints(monkeypatch):
    import types

    from rlcourse import kl

    policy = types.ModuleType("rlcourse.lm.loading")
    policy.LOADED = {"pocket"}
    policy.__file__ = kl.__file__
    monkeypatch.setitem(sys.modules, "rlcourse.lm.loading", policy)
    found = stamps.loaded()
    assert {"rlcourse/kl.py", "rlcourse/lm/pockets/pocket/model.safetensors"} <= found
    assert not any("bookmaking" in key for key in found) and "rlcourse/__init__.py" not in found


@pytest.fixture
def tree(tmp_path):
    """A small repository: a module, a chapter stamped with it, an evidence file stamped with it."""
    (tmp_path / "book").mkdir()
    (tmp_path / "benchmarks" / "evidence").mkdir(parents=True)
    (tmp_path / "m.py").write_text(CODE)
    source = tmp_path / "book" / "13_grpo.md"
    source.write_text("# GRPO\n")
    notebook = json.loads(build.build(source).read_text())
    notebook["metadata"]["rlcourse"]["stamp"] = stamp({"m.py"}, tmp_path)
    source.with_suffix(".ipynb").write_text(json.dumps(notebook))
    content = {"command": "", "result": {}, "stamp": stamp({"m.py"}, tmp_path)}
    (tmp_path / "benchmarks" / "evidence" / "seeds.json").write_text(json.dumps(content))
    return tmp_path


def test_stale_lists_notebooks_and_evidence_with_what_changed(tree):
    assert stale.stale(tree) == {}
    (tree / "m.py").write_text(CODE.replace("** 2", "** 3"))
    both = {"book/13_grpo.ipynb": ["m.py"], "benchmarks/evidence/seeds.json": ["m.py"]}
    assert stale.stale(tree) == both
    (tree / "book" / "13_grpo.md").write_text("# GRPO, again\n")
    assert stale.stale(tree) == both | {"book/13_grpo.ipynb": ["book/13_grpo.md"]}


@pytest.mark.parametrize("found", [{}, {"book/13_grpo.ipynb": ["rlcourse/kl.py"]}])
def test_stale_exits_with_1_if_anything_is(monkeypatch, capsys, found):
    monkeypatch.setattr(stale, "stale", lambda: found)
    assert stale.main() == bool(found)
    assert ("rlcourse/kl.py" if found else "Nothing is stale") in capsys.readouterr().out


def test_stale_only_builds_what_changed_and_nothing_else(tree, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tree)
    source, built = tree / "book" / "13_grpo.md", []
    monkeypatch.setattr(build, "stale", lambda source: stale.build.differs(source))
    monkeypatch.setattr(build, "build", lambda source: built.append(source) or source)
    build.main(["--stale-only", str(source)])
    assert built == []
    source.write_text("# GRPO, again\n")
    build.main(["--stale-only", str(source)])
    assert built == [source]


def test_where_only_prose_changed_the_outputs_stay_and_nothing_is_executed(built, tmp_path):
    source, target = tmp_path / "13_grpo.md", tmp_path / "13_grpo.ipynb"
    target.write_bytes(built[1])
    source.write_text(built[0].read_text().replace("Another cell.", "New words.\n\n+++\n\nAnd a cell."))
    assert build.retell(source) and build.differs(source) is None
    before, after = json.loads(built[1]), json.loads(target.read_text())
    assert [c["outputs"] for c in before["cells"] if c["cell_type"] == "code"] == [
        c["outputs"] for c in after["cells"] if c["cell_type"] == "code"
    ]
    assert before["metadata"] == after["metadata"] and "New words." in target.read_text()


@pytest.mark.parametrize("old, new", [('print("one"', 'print("1"'), ("nbval-check-output", "other")])
def test_where_code_or_tags_changed_it_has_to_be_executed(built, tmp_path, old, new):
    source = tmp_path / "13_grpo.md"
    source.with_suffix(".ipynb").write_bytes(built[1])
    source.write_text(built[0].read_text().replace(old, new))
    assert not build.retell(source)
    assert source.with_suffix(".ipynb").read_bytes() == built[1]


def test_new_prose_beside_outputs_of_other_code_than_todays_is_not_enough(tree):
    (tree / "book" / "13_grpo.md").write_text("# GRPO, again\n")
    assert build.retell(tree / "book" / "13_grpo.md", tree)
    (tree / "m.py").write_text(CODE.replace("** 2", "** 3"))
    (tree / "book" / "13_grpo.md").write_text("# GRPO, once more\n")
    assert not build.retell(tree / "book" / "13_grpo.md", tree)


# Evidence


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "evidence")
    monkeypatch.setattr(evidence.stamps, "ROOT", ROOT)
    return tmp_path / "evidence"


def test_evidence_is_small_diffable_and_stamped(shelf):
    import numpy

    result = {"grpo": [0.81234567, 1 / 3], "table": numpy.eye(2), "steps": 100, "name": "a [b,  c]"}
    evidence.record("seeds", result, command="python x.py", modules=["rlcourse.kl"], checkpoints=[])
    text = (shelf / "seeds.json").read_text()
    assert '"grpo": [0.812346, 0.333333]' in text and '"a [b,  c]"' in text
    content = json.loads(text)
    assert content["stamp"] == stamp({"rlcourse/kl.py"}) and content["command"] == "python x.py"
    assert content["result"]["table"] == [[1.0, 0.0], [0.0, 1.0]]
    evidence.record("seeds", result, command="python x.py", modules=["rlcourse.kl"], checkpoints=[])
    assert (shelf / "seeds.json").read_text() == text


def test_evidence_is_read_back_and_joins_the_notebooks_stamp(monkeypatch):
    monkeypatch.setattr(stamps, "USED", set())
    evidence.FOLDER.mkdir(parents=True, exist_ok=True)
    path = evidence.FOLDER / "a_test_of_evidence.json"
    try:
        evidence.record("a_test_of_evidence", {"x": 1}, command="", modules=["rlcourse.kl"], checkpoints=[])
        assert evidence.evidence("a_test_of_evidence") == {"x": 1}
    finally:
        path.unlink()
    assert stamps.USED == {"benchmarks/evidence/a_test_of_evidence.json"}


def test_missing_evidence_says_what_to_do(shelf):
    with pytest.raises(FileNotFoundError, match="Install from a clone"):
        evidence.evidence("seeds")
    evidence.record("other", {}, command="", modules=[], checkpoints=[])
    with pytest.raises(
        FileNotFoundError, match="no evidence file seeds.json; `make evidence` makes it. Recorded: other"
    ):
        evidence.evidence("seeds")


def test_evidence_cannot_be_stamped_with_what_does_not_exist(shelf):
    with pytest.raises(FileNotFoundError, match="no rlcourse/lm/pockets/none/model.safetensors"):
        evidence.record("seeds", {}, command="", modules=[], checkpoints=["none"])
    assert not shelf.exists()


# Showing source

METHOD = '''\
"""A method."""
from rlcourse.kl import exact_kl, kl_estimate
from rlcourse.methods.ppo import clipped_surrogate, gae
from rlcourse.methods.protocol import Paper as no_grad
import torch

@torch.no_grad()
def loss(x):
    """Fenced: ```python"""
    return clipped_surrogate(x) + kl_estimate(x)  # why

class Method(no_grad):
    def loss(self, x):
        return loss(x)
'''


def test_source_is_taken_with_its_decorators_and_comments():
    loss = source_of(METHOD, "loss")
    assert loss.startswith("@torch.no_grad()\ndef loss") and "# why" in loss
    assert source_of(METHOD, "Method.loss") == "def loss(self, x):\n    return loss(x)"
    assert source_of(METHOD, "") == METHOD.strip()
    with pytest.raises(LookupError):
        source_of(METHOD, "gone")


def test_what_is_inherited_is_read_off_the_imports():
    inherited = show.inherited_names(METHOD, source_of(METHOD, "loss"))
    assert inherited == {"ppo.py": ["clipped_surrogate"]}
    assert show.inherited_names(METHOD, source_of(METHOD, "Method")) == {}
    piece = show.Source("rlcourse/methods/grpo.py", "loss", source_of(METHOD, "loss"), inherited)
    assert (
        piece.caption()
        == "`loss` in `rlcourse/methods/grpo.py`. Inherited from `ppo.py`: `clipped_surrogate`."
    )
    assert piece._repr_markdown_().count("````") == 2, "a longer fence than the one inside"


def test_show_prints_the_installed_source(capsys, monkeypatch):
    monkeypatch.setattr(stamps, "USED", set())
    show.show(stamps.changed, build.sources)
    told = capsys.readouterr().out
    assert "# changed in rlcourse/bookmaking/stamps.py.\ndef changed(" in told
    assert "# sources in rlcourse/bookmaking/build.py.\ndef sources(" in told
    assert "rlcourse/bookmaking/stamps.py:changed" in stamps.USED


# Figures


def test_figures_are_legible_at_half_size_and_the_same_bytes_every_time(tmp_path):
    import matplotlib.pyplot as plt

    from rlcourse.bookmaking.style import COLOURS, use_style

    with plt.rc_context():
        use_style()
        assert [colour["color"] for colour in plt.rcParams["axes.prop_cycle"]] == list(COLOURS)
        figure, axes = plt.subplots()
        axes.plot([1, 2], label="GRPO")
        ticks, legend = axes.get_xticklabels(), axes.legend().get_texts()
        texts = [axes.xaxis.label, axes.yaxis.label, axes.title, *ticks, *legend]
        assert min(text.get_size() for text in texts) >= 11
        for name in ("a.png", "b.png"):
            figure.savefig(tmp_path / name)
        plt.close(figure)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert fingerprint("rlcourse/bookmaking/rlcourse.mplstyle")
