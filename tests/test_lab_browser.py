"""A reader's evening in JupyterLab, started by `make lab`'s own command and driven in a real browser."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_site_browser import browser  # noqa: F401 (a fixture; and without Chromium all of this is skipped)

from rlcourse.practice.cards import cards
from rlcourse.practice.quiz import queue, steps

ROOT = Path(__file__).resolve().parents[1]

OPEN = """async (path) => {
    const panel = await jupyterapp.commands.execute("docmanager:open", {path, factory: "Notebook"});
    await panel.context.ready;
    await panel.sessionContext.ready;
    while (!panel.sessionContext.session?.kernel) await new Promise((done) => setTimeout(done, 50));
}"""
RUN = """async () => {
    await jupyterapp.commands.execute("notebook:run-all-cells");
    const cells = [...jupyterapp.shell.currentWidget.content.model.cells].filter((cell) => cell.type === "code");
    return cells.map((cell) => cell.outputs.toJSON());
}"""
WRITE = """([old, text]) => {
    const cells = [...jupyterapp.shell.currentWidget.content.model.cells];
    cells.find((cell) => cell.sharedModel.getSource().includes(old)).sharedModel.setSource(text);
}"""
SHOW = """(text) => {
    const notebook = jupyterapp.shell.currentWidget.content;
    const number = [...notebook.model.cells].findIndex((cell) => cell.sharedModel.getSource().includes(text));
    notebook.activeCellIndex = number;
    return notebook.scrollToItem(number, "start");
}"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab in a copy of the repository, and the address at which it answers."""
    home = tmp_path_factory.mktemp("clone")
    for folder in ("book", "rlcourse", "benchmarks/evidence"):
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    recipe = subprocess.run(
        ["make", "-n", "lab", f"VENV={sys.prefix}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    lay_out, start = re.findall(r"^.*-m (?:rlcourse\.bookmaking\.workbook|jupyterlab).*$", recipe, re.M)
    # a reader's shell: nothing of pytest in it, and this copy's library before the installed one
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env |= {
        "PYTHONPATH": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "jupyter"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    subprocess.run(shlex.split(lay_out), cwd=home, env=env, check=True, capture_output=True)
    port = free_port()
    for_the_test = ["--no-browser", f"--port={port}", "--expose-app-in-browser", "--IdentityProvider.token="]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [*shlex.split(start), *for_the_test], cwd=home, env=env, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            try:
                urllib.request.urlopen(f"{address}/api")
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail(f"JupyterLab did not start: {(home / 'log').read_text()}")
        yield home / "workbook", address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def tab(browser, lab):  # noqa: F811
    """One tab for all that follows: Lab as it opens, at the contents page."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{lab[1]}/lab/workspaces/fresh?reset")
    page.wait_for_function("() => window.jupyterapp?.shell && document.querySelector('#jp-main-dock-panel')")
    yield page
    page.context.close()


def texts(outputs: list[dict]) -> str:
    """What a cell has printed and shown, as text."""
    return "\n".join(
        "".join(each.get("text", "")) or "".join(each.get("data", {}).get("text/plain", ""))
        for each in outputs
    )


def errors(cells: list[list[dict]]) -> list[str]:
    return [each["evalue"] for outputs in cells for each in outputs if each["output_type"] == "error"]


def test_make_lab_opens_at_the_contents_page(browser, lab):  # noqa: F811
    page = browser.new_context().new_page()
    page.goto(lab[1])
    page.wait_for_url(re.compile(r"/lab/tree/index\.ipynb"))
    page.get_by_role("heading", name="Reinforcement learning for language models").first.wait_for()
    page.context.close()


def test_a_chapter_runs_to_its_end(tab):
    tab.set_default_timeout(300_000)
    tab.evaluate(OPEN, "chapters/13_grpo.ipynb")
    cells = tab.evaluate(RUN)
    assert errors(cells) == []
    assert any("✓" in texts(outputs) for outputs in cells)
    tab.set_default_timeout(60_000)


def test_an_explorers_slider_changes_the_picture(tab):
    tab.evaluate(OPEN, "appendix/explorers.ipynb")
    assert errors(tab.evaluate(RUN)) == []
    tab.evaluate(SHOW, "group_advantages_explorer()")
    picture = tab.locator("img[alt^='Bar chart of the advantages']:visible").first
    before = picture.get_attribute("alt")
    tab.locator(".widget-vbox", has=picture).last.locator(".noUi-handle").focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function(
        "(before) => [...document.querySelectorAll('img[alt]')].some((it) => it.checkVisibility() && it.alt != before"
        " && it.alt.startsWith('Bar chart of the advantages'))",
        arg=before,
    )


WRONG = """def my_advantages(rewards):
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True, correction=0) + 1e-4)"""
RIGHT = """def my_advantages(rewards):
    centred = rewards - rewards.mean(1, keepdim=True)
    tied = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return (centred / (rewards.std(1, keepdim=True) + 1e-4)).masked_fill(tied, 0.0)"""


def test_a_wrong_answer_is_told_its_mistake_and_a_right_one_why_it_is_right(tab):
    tab.evaluate(OPEN, "exercises/13_grpo.ipynb")
    for answer, said in ((WRONG, "squares by G"), (RIGHT, "ties exactly 0")):
        tab.evaluate(WRITE, ["def my_advantages", answer])
        cells = tab.evaluate(RUN)
        assert errors(cells) == [] and said in texts(cells[2])
        tab.evaluate(SHOW, 'check("grpo.advantages"')
        tab.locator("[role=status]:visible", has_text=said).first.wait_for()


def test_the_quiz_widget_records_an_answer(tab, lab):
    tab.evaluate(OPEN, "interview/practice.ipynb")
    assert errors(tab.evaluate(RUN)) == []
    tab.evaluate(SHOW, "quiz_widget()")
    card = queue(cards(), [], datetime.now(UTC))[0]
    said = (
        "(n) => (document.body.innerText.match(/They go on asking|Often said, and wrong/g) || []).length >= n"
    )
    for number, _ in enumerate(
        steps(card), 1
    ):  # the answer, and each follow-up: one click, and wait for its text
        tab.get_by_role("button", name=re.compile("Show the answer|Go on")).click()
        tab.wait_for_function(said, arg=number)
    tab.get_by_role("button", name="3 good").click()
    tab.get_by_role("button", name="Show the answer").wait_for()
    ratings = json.loads((lab[0] / "quiz.json").read_text())
    assert [each["rating"] for each in ratings] == [3]
