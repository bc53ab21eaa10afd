"""A stamp sees each change of what made an output, evidence is what was recorded, `show` shows the thing itself."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
import textwrap

import pytest
import torch

from rlcourse import methods
from rlcourse.bookmaking import evidence, show, stamps
from rlcourse.bookmaking.stamps import ROOT, changed, fingerprint, source_of, stamp
from rlcourse.methods import DAPO, GRPO

# ---- what a stamp sees

CODE = '''\
"""A module."""

LIMIT = 3


@cached
def area(r, unit="m", *, scale=1.0):
    """Of a circle."""
    total = 0
    for i in range(LIMIT):
        if i > 1 and not unit:
            total += i
    return total * r**2 if r is not None else None


class Disc(Shape):
    """Round."""

    edges: int = 0

    async def draw(self):
        """Once."""
        return [x for x in self.points if x]
'''
CHANGES = [
    ("LIMIT = 3", "LIMIT = 4"), ("@cached\n", ""), ("@cached", "@cache"), ('unit="m"', 'unit="km"'),
    ("scale=1.0", "scale=1"), ("total = 0", "total = None"), ("i > 1", "i >= 1"), ("and not unit", "or not unit"),
    ("not unit", "unit"), ("+=", "-="), ("total * r", "total / r"), ("r is not None", "r is None"),
    ("else None", "else 0"), ("Disc(Shape)", "Disc"), ("int = 0", "int = 1"), ("edges: int", "edges: float"),
    ("async def", "def"), (" if x]", "]"), ("self.points", "self.spots"), ("range(LIMIT)", "range(LIMIT - 1)"),
]  # fmt: skip


@pytest.mark.parametrize("old, new", CHANGES)
def test_a_stamp_sees_each_change_of_code(tmp_path, old, new):
    assert CODE.count(old) == 1
    (tmp_path / "m.py").write_text(CODE)
    stamped = stamp({"m.py"}, tmp_path)
    (tmp_path / "m.py").write_text(CODE.replace(old, new))
    assert changed(stamped, tmp_path) == ["m.py"]


@pytest.mark.parametrize("old", ['"""A module."""', '"""Of a circle."""', '"""Round."""', '"""Once."""'])
def test_a_docstring_of_a_module_function_class_or_coroutine_is_no_code(tmp_path, old):
    (tmp_path / "m.py").write_text(CODE)
    stamped = stamp({"m.py"}, tmp_path)
    (tmp_path / "m.py").write_text(CODE.replace(old, '"""Said otherwise.\n\n    At length."""'))
    assert changed(stamped, tmp_path) == []


def test_a_string_that_is_no_docstring_is_code(tmp_path):
    (tmp_path / "m.py").write_text('x = 1\n"a"\n')
    stamped = stamp({"m.py"}, tmp_path)
    (tmp_path / "m.py").write_text('x = 1\n"b"\n')
    assert changed(stamped, tmp_path) == ["m.py"]


def test_of_several_keys_those_that_changed_are_named_and_a_file_that_came_or_went(tmp_path):
    for name in ("a.py", "b.py", "c.json"):
        (tmp_path / name).write_text("1")
    stamped = stamp(["c.json", "b.py", "a.py", "d.py"], tmp_path)
    assert list(stamped) == ["a.py", "b.py", "c.json", "d.py"] and stamped["d.py"] is None
    assert len({len(value) for value in stamped.values() if value}) == 1
    assert changed(stamped, tmp_path) == []
    (tmp_path / "b.py").write_text("2")
    (tmp_path / "c.json").write_text("1 ")
    (tmp_path / "d.py").write_text("1")
    assert changed(stamped, tmp_path) == ["b.py", "c.json", "d.py"]
    (tmp_path / "a.py").unlink()
    assert changed(stamped, tmp_path) == ["a.py", "b.py", "c.json", "d.py"]
    (tmp_path / "a.py").write_text("def broken(")
    assert fingerprint("a.py", tmp_path) is None


def test_a_key_with_a_name_hashes_that_text_alone_and_one_without_the_whole(tmp_path):
    (tmp_path / "m.py").write_text(CODE)
    stamped = stamp({"m.py:area", "m.py:Disc.draw", "m.py:", "m.py:gone"}, tmp_path)
    assert stamped.pop("m.py:gone") is None and len(set(stamped.values())) == 3
    (tmp_path / "m.py").write_text(CODE.replace("if x]", "if y]"))
    assert changed(stamped, tmp_path) == ["m.py:", "m.py:Disc.draw"]


def test_a_name_is_looked_for_where_it_stands():
    text = "def f():\n    def g():\n        return 1\n\ndef g():\n    return 2\n"
    text += "\nclass A:\n    @p\n    def g(self): return 3\n"
    assert source_of(text, "g") == "def g():\n    return 2"
    assert source_of(text, "f.g") == "def g():\n    return 1"
    assert source_of(text, "A.g") == "@p\ndef g(self): return 3"
    assert source_of("def f(): 1\n\ndef f():\n    2\n", "f") == "def f():\n    2"  # the one that counts
    with pytest.raises(LookupError, match="no A.f in this file"):
        source_of(text, "A.f")


def test_what_is_loaded_is_every_module_of_the_library_but_doors_and_the_books_tools():
    code = """
        import sys
        from rlcourse.bookmaking import stamps
        from rlcourse import fit, load_policy
        from rlcourse.methods import DPO
        assert not any("pockets" in key for key in stamps.loaded())
        load_policy("pocket-moe")
        print(*sorted(stamps.loaded()), sep="\\n")
        print("--", *sorted(name for name in sys.modules if name.startswith("rlcourse")), sep="\\n")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found, names = done.stdout.split("--\n")
    expected = {"rlcourse/lm/pockets/pocket-moe/model.safetensors"}
    for name in names.split():
        module = importlib.import_module(name)
        if name != "rlcourse" and "bookmaking" not in name and not hasattr(module, "__getattr__"):
            expected.add(evidence.module_key(name))
    assert set(found.split()) == expected
    assert {"rlcourse/methods/dpo.py", "rlcourse/training/offline.py", "rlcourse/tensors.py"} < expected


# ---- evidence


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A repository of two modules and a checkpoint, and its evidence."""
    for name in ("rlcourse/kl.py", "rlcourse/lm/__init__.py", "rlcourse/lm/pockets/one/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    folder = tmp_path / "benchmarks" / "evidence"
    monkeypatch.setattr(stamps, "ROOT", tmp_path)
    monkeypatch.setattr(stamps, "USED", set())
    monkeypatch.setattr(stamps, "stamp", lambda keys: stamp(keys, tmp_path))
    monkeypatch.setattr(stamps, "loaded", lambda: set(LOADED))
    monkeypatch.setattr(evidence, "FOLDER", folder)
    return folder


LOADED = {"rlcourse/kl.py", "rlcourse/lm/pockets/one/model.safetensors"}


@pytest.mark.parametrize(
    "given, keys",
    [
        ({}, LOADED),
        (
            dict(modules=["rlcourse.lm"]),
            {"rlcourse/lm/__init__.py", "rlcourse/lm/pockets/one/model.safetensors"},
        ),
        (dict(checkpoints=[]), {"rlcourse/kl.py"}),
        (
            dict(modules=["rlcourse.lm"], checkpoints=["one"]),
            {"rlcourse/lm/__init__.py", *LOADED} - {"rlcourse/kl.py"},
        ),
        (dict(modules=[], checkpoints=[]), set()),
    ],
)
def test_evidence_is_stamped_with_what_is_loaded_or_with_what_is_named(shelf, given, keys):
    evidence.record("seeds", {"x": 1}, command="python x.py", **given)
    written = json.loads((shelf / "seeds.json").read_text())
    assert written == {"command": "python x.py", "result": {"x": 1}, "stamp": stamp(keys, shelf.parents[1])}


def test_evidence_that_is_stamped_anew_changes_no_notebook_and_another_number_does(shelf):
    root, key = shelf.parents[1], "benchmarks/evidence/seeds.json"
    evidence.record("seeds", {"x": 1}, command="python x.py", modules=[], checkpoints=[])
    before = stamps.stamp({key})
    file = json.loads((root / key).read_text())
    (root / key).write_text(json.dumps(file | {"stamp": {"rlcourse/kl.py": "0"}, "reproduced": ["x"]}))
    assert changed(before, root) == []
    evidence.record("seeds", {"x": 2}, command="python x.py", modules=[], checkpoints=[])
    assert changed(before, root) == [key]


def test_evidence_lies_in_the_repositorys_own_folder():
    assert evidence.FOLDER == ROOT / "benchmarks" / "evidence" and (evidence.FOLDER / "grpo.json").exists()
    written = json.loads((evidence.FOLDER / "grpo.json").read_text())
    assert evidence.evidence("grpo") == written["result"] and evidence.recorded("grpo") == written["result"]


def test_evidence_of_one_name_is_not_that_of_another(shelf):
    for number, name in enumerate(("seeds", "seeds_2")):
        evidence.record(name, {"x": number}, command="", modules=[], checkpoints=[])
    assert (evidence.evidence("seeds"), evidence.evidence("seeds_2")) == ({"x": 0}, {"x": 1})
    assert stamps.USED == {"benchmarks/evidence/seeds.json", "benchmarks/evidence/seeds_2.json"}


def test_what_nobody_has_measured_yet_is_none_and_the_notebook_knows_when_it_comes(shelf):
    assert evidence.recorded("speed") is None
    key = "benchmarks/evidence/speed.json"
    assert stamps.USED == {key}
    without = stamp(stamps.USED, shelf.parents[1])
    evidence.record("speed", {"x": 1}, command="", modules=[], checkpoints=[])
    assert evidence.recorded("speed") == {"x": 1} and changed(without, shelf.parents[1]) == [key]


def test_names_of_modules_become_the_files_that_hold_them():
    assert evidence.module_key("rlcourse.methods.grpo") == "rlcourse/methods/grpo.py"
    assert evidence.module_key("rlcourse.lm") == "rlcourse/lm/__init__.py"
    assert stamps.checkpoint_key("pocket") == "rlcourse/lm/pockets/pocket/model.safetensors"
    assert (ROOT / stamps.checkpoint_key("pocket")).exists()


def test_numbers_are_kept_to_six_digits_wherever_they_stand():
    found = evidence.rounded(
        {1: (1 / 3, [2 / 3, 5]), "t": torch.tensor([[1.23456789]]), "n": None, "b": True}
    )
    assert found == {"1": [0.333333, [0.666667, 5]], "t": [[1.23457]], "n": None, "b": True}
    assert evidence.rounded(123456789.0) == 123457000.0 and evidence.rounded(1e-12 / 3) == 3.33333e-13


def test_the_text_is_sorted_and_has_a_list_of_numbers_on_one_line():
    text = evidence.as_text({"b": [1, 2.5, [3, 4]], "a": ["x", "y"], "c": []})
    assert text == '{\n "a": [\n  "x",\n  "y"\n ],\n "b": [\n  1,\n  2.5,\n  [3, 4]\n ],\n "c": []\n}\n'


# ---- show


def things():
    """The functions and classes of the library's formulas, and the methods of its method objects."""
    for path in [
        *(ROOT / "rlcourse" / "methods").glob("*.py"),
        ROOT / "rlcourse/kl.py",
        ROOT / "rlcourse/tensors.py",
    ]:
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        module = importlib.import_module(name.removesuffix(".__init__"))
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                thing = getattr(module, node.name)
                yield thing, path
                if isinstance(node, ast.ClassDef):
                    functions = (each.name for each in node.body if isinstance(each, ast.FunctionDef))
                    yield from ((vars(thing)[each], path) for each in functions)


def test_what_is_shown_is_what_python_itself_calls_the_source_of_that_very_thing():
    count = 0
    for thing, path in things():
        if isinstance(thing, property):
            continue
        piece = show.source(thing)
        thing = inspect.unwrap(thing)
        lines = inspect.getsource(thing)
        assert piece.code == textwrap.dedent(lines).rstrip(), piece
        assert (piece.path, piece.name) == (path.relative_to(ROOT).as_posix(), thing.__qualname__)
        count += 1
    assert count > 100


def test_an_inherited_method_is_shown_where_it_is_written(monkeypatch):
    monkeypatch.setattr(stamps, "USED", set())
    piece = show.source(DAPO.loss)
    assert (piece.path, piece.name) == ("rlcourse/methods/dapo.py", "DAPO.loss")
    inherited = show.source(DAPO.init)
    assert inherited.path != "rlcourse/methods/dapo.py" and inherited.name.endswith(".init")
    assert f"{piece.path}:DAPO.loss" in stamps.USED and f"{inherited.path}:{inherited.name}" in stamps.USED
    assert "rlcourse/bookmaking/show.py" in stamps.USED


def test_a_module_is_shown_whole():
    from rlcourse import kl

    piece = show.source(kl)
    assert piece.code == (ROOT / "rlcourse/kl.py").read_text().strip()
    assert (piece.path, piece.name, piece.caption()) == ("rlcourse/kl.py", "", "`rlcourse/kl.py`.")


def test_the_caption_names_what_is_inherited_unless_it_is_not_wanted(capsys, monkeypatch):
    monkeypatch.setattr(stamps, "USED", set())
    assert show.source(methods.GRPO.loss).inherited and not show.source(GRPO.loss, inherited=False).inherited
    show.show(GRPO, inherited=False)
    show.show(GRPO)
    without, with_it = capsys.readouterr().out.split("# GRPO in rlcourse/methods/grpo.py.")[1:]
    assert "Inherited from" not in without and "Inherited from ppo.py: " in with_it.splitlines()[0]
    # a protocol that all share is nobody's invention
    assert "protocol.py" not in with_it.splitlines()[0] and "OnlineMethod" in with_it


def test_in_a_notebook_it_is_displayed_as_markdown_fenced_longer_than_what_is_inside(monkeypatch):
    displayed = []
    monkeypatch.setattr(show, "get_ipython", lambda: object())
    monkeypatch.setattr(show, "display", displayed.append)
    show.show(source_of, changed)
    assert [piece.name for piece in displayed] == ["source_of", "changed"]
    text = displayed[0]._repr_markdown_()
    assert text.startswith("`source_of` in `rlcourse/bookmaking/stamps.py`.\n\n```python\ndef source_of(")
    assert text.endswith("\n```\n") and displayed[0].code in text
    assert repr(displayed[0]) == "<source of rlcourse/bookmaking/stamps.py:source_of>"
    inside = show.Source("m.py", "f", 'def f():\n    """````"""', {"ppo.py": ["a", "b"], "grpo.py": ["c"]})
    assert inside._repr_markdown_().splitlines()[2] == "`````python"
    assert (
        inside.caption() == "`f` in `m.py`. Inherited from `ppo.py`: `a`, `b`. Inherited from `grpo.py`: `c`."
    )


def test_a_name_that_is_inherited_under_another_is_named_as_it_is_used_here():
    text = "from rlcourse.methods.ppo import gae as old, clip\nfrom rlcourse.methods.grpo import group\n"
    text += "from rlcourse.kl import k\n"
    assert show.inherited_names(text, "old(group, k)") == {"ppo.py": ["old"], "grpo.py": ["group"]}
    assert show.inherited_names(text + "from rlcourse.methods.ppo import gae\n", "old + gae") == {
        "ppo.py": ["old", "gae"]
    }
