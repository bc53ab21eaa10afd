"""The web edition in a real browser, which is allowed to ask nobody but the site for anything."""

# ruff: noqa: F811 (the fixture `site` is imported, and then an argument)
import functools
import http.server
import shutil
import threading

import pytest
from website import pages, site  # noqa: F401

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium here: apt-get install chromium, and these tests run", allow_module_level=True)
sync_playwright = pytest.importorskip(
    "playwright.sync_api", reason="no Playwright here: pip install -e '.[site]'"
).sync_playwright

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

# Formulas set and widgets drawn: what a page does after it has loaded.
SETTLED = """async () => {
    const waiting = () => new Promise((done) => setTimeout(done, 20));
    if (document.querySelector("article .math")) {
        while (!window.MathJax?.startup?.promise) await waiting();
        await MathJax.startup.promise;
    }
    const views = document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']");
    const drawn = () => document.querySelectorAll(".widget-subarea > *").length;
    for (let n = 0; n < 250 && drawn() < views.length; n++) await waiting();
    await Promise.all([...document.images].map((it) => it.decode().catch(() => {})));
}"""
SEEN = """() => {
    const formulas = [...document.querySelectorAll("article .math")];
    return {
        formulas: formulas.length,
        unset: formulas.filter((it) => !it.querySelector("mjx-container")).length,
        wrong: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
        widgets: document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']").length,
        drawn: [...document.querySelectorAll(".widget-subarea > *")].filter((it) => it.offsetHeight > 20).length,
        pictures: [...document.querySelectorAll(".widget-subarea img")]
            .filter((it) => it.checkVisibility() && it.naturalWidth).length,
        broken: [...document.images].filter((it) => it.complete && !it.naturalWidth).map((it) => it.src),
    };
}"""
# How far to the right the page reaches, and the numbers behind its sliders.
WIDEST = """() => Math.max(document.documentElement.scrollWidth,
    ...[...document.querySelectorAll(".widget-readout")].map((it) => Math.ceil(it.getBoundingClientRect().right)))"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(site):
    """The site, served on this machine."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A fresh reader: no cookies, nothing stored."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield watched(context.new_page())
    context.close()


def watched(tab):
    """Everything that goes wrong in a tab is noted in `tab.wrong`, and what it asks of others is blocked."""
    tab.wrong = []

    def guard(route):
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            return route.continue_()
        tab.wrong.append(f"asked another host: {route.request.url}")
        return route.abort()

    tab.route("**/*", guard)
    tab.on("console", lambda said: said.type == "error" and tab.wrong.append(f"console: {said.text}"))
    tab.on("pageerror", lambda error: tab.wrong.append(f"error: {error}"))
    tab.on("response", lambda got: got.status >= 400 and tab.wrong.append(f"{got.status}: {got.url}"))
    return tab


@pytest.fixture(scope="module")
def visits(site, address, browser):
    """What was seen on each page: on a screen, and then as wide as a phone."""
    seen = {}
    context = browser.new_context()
    for path in pages(site):
        name = path.relative_to(site).as_posix()
        tab = watched(context.new_page())
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.goto(f"{address}/{name}")
        tab.evaluate(SETTLED)
        facts = tab.evaluate(SEEN)
        tab.set_viewport_size({"width": 390, "height": 844})
        facts["phone"] = tab.evaluate(WIDEST)
        seen[name] = facts | {"went wrong": tab.wrong}
        tab.close()
    context.close()
    return seen


def test_every_page_loads_without_an_error_a_missing_file_or_a_request_to_others(visits):
    assert len(visits) > 20
    found = {name: [*seen["went wrong"], *seen["broken"]] for name, seen in visits.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_what_goes_wrong_on_a_page_is_noticed(tab, address):
    tab.goto(f"{address}/index.html")
    tab.evaluate("""async () => {
        await fetch("https://example.org/").catch(() => {});
        await fetch("gone.html");
        console.error("oh");
        setTimeout(() => { throw new Error("thrown") });
    }""")
    tab.wait_for_timeout(200)
    for sign in ("asked another host: https://example.org/", "404", "console: oh", "error: thrown"):
        assert any(sign in line for line in tab.wrong), (sign, tab.wrong)


def test_every_formula_is_set(visits):
    assert sum(seen["formulas"] for seen in visits.values()) > 300
    assert {name: seen for name, seen in visits.items() if seen["unset"] or seen["wrong"]} == {}


def test_every_widget_is_drawn_and_every_explorer_shows_its_picture_without_a_kernel(visits):
    assert {name: seen for name, seen in visits.items() if seen["drawn"] < seen["widgets"]} == {}
    chapters = {name: seen["pictures"] for name, seen in visits.items() if name.startswith("chapters/")}
    assert {name for name, pictures in chapters.items() if not pictures} <= {
        "chapters/01_rlhf.html"
    }  # it has none


def test_no_page_is_wider_than_a_phone(visits):
    assert {name: seen["phone"] for name, seen in visits.items() if seen["phone"] > 390} == {}


PICTURE = "[...document.querySelectorAll('.widget-vbox img')].find((it) => it.checkVisibility()).src"


def test_the_slider_of_an_explorer_changes_its_picture_by_mouse_and_by_keyboard(tab, address):
    tab.goto(f"{address}/chapters/13_grpo.html")
    tab.evaluate(SETTLED)
    handle = tab.locator(".widget-slider .noUi-handle").first
    handle.scroll_into_view_if_needed()
    first = tab.evaluate(PICTURE)
    box = handle.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 150, box["y"] + box["height"] / 2, steps=8)
    tab.mouse.up()
    dragged = tab.evaluate(PICTURE)
    handle.press("ArrowRight")
    pressed = tab.evaluate(PICTURE)
    assert len({first, dragged, pressed}) == 3 and tab.wrong == []


def test_it_all_works_from_a_folder_too_without_a_server(site, browser):
    tab = browser.new_context().new_page()
    wrong = []
    tab.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda asked: asked.url.startswith("http") and wrong.append(asked.url))
    tab.goto((site / "chapters" / "13_grpo.html").as_uri())
    tab.evaluate(SETTLED)
    seen = tab.evaluate(SEEN)
    assert wrong == [] and seen["unset"] == 0 and seen["drawn"] == seen["widgets"] == 1


def test_search_finds_clip_higher_in_the_chapter_on_dapo(tab, address):
    tab.goto(f"{address}/search.html?q=clip-higher")
    tab.wait_for_selector("#search-results li")
    tab.wait_for_function("document.querySelector('.search-summary').innerText.includes('found')")
    links = tab.locator("#search-results li a").evaluate_all(
        "all => all.map((it) => it.getAttribute('href'))"
    )
    assert any("chapters/15_dapo.html" in link for link in links) and tab.wrong == []


def test_a_reader_searches_from_any_page(tab, address):
    tab.goto(f"{address}/chapters/13_grpo.html")
    tab.keyboard.press("Control+k")
    tab.keyboard.type("routing replay")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=routing+replay*")
    tab.wait_for_selector("#search-results li a[href*='16_gspo']")


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_the_button_switches_to_the_dark_and_the_next_page_stays_dark(tab, address):
    tab.emulate_media(color_scheme="light")
    tab.goto(f"{address}/chapters/13_grpo.html")
    light = tab.evaluate(BACKGROUND)
    tab.get_by_role("button", name="Color mode").click()
    tab.locator(".theme-switch-container").get_by_text("Dark", exact=True).click()
    tab.wait_for_timeout(500)  # colours fade over
    assert brightness(light) == 255 and brightness(tab.evaluate(BACKGROUND)) < 60
    tab.goto(f"{address}/index.html")
    assert brightness(tab.evaluate(BACKGROUND)) < 60 and tab.wrong == []


def brightness(colour: str) -> int:
    return max(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def test_a_reader_whose_system_is_dark_gets_the_dark_pages(tab, address):
    tab.emulate_media(color_scheme="dark")
    tab.goto(f"{address}/index.html")
    assert brightness(tab.evaluate(BACKGROUND)) < 60


def test_a_solution_unfolds_by_a_click(tab, address):
    tab.goto(f"{address}/exercises/13_grpo.html")
    fold = tab.locator("article details", has_text="Solution").first
    assert not fold.locator("pre").is_visible()
    fold.locator("summary").click()
    assert fold.locator("pre").is_visible()


def test_cards_are_chosen_by_topic_and_difficulty(tab, address, site):
    if not (site / "interview" / "cards" / "all.html").exists():
        pytest.skip("no card page has been built yet")
    tab.goto(f"{address}/interview/cards/all.html")
    everything = shown(tab)
    topic, difficulty = everything[-1][1:]
    tab.get_by_label("Topic").select_option(topic)
    assert shown(tab) == [card for card in everything if card[1] == topic]
    tab.get_by_label("Difficulty").select_option(difficulty)
    chosen = [card for card in everything if card[1:] == [topic, difficulty]]
    assert shown(tab) == chosen != everything
    assert tab.locator(".card-filter output").inner_text() == f"{len(chosen)} of {len(everything)} cards"


def shown(tab) -> list[list[str]]:
    """Question, topic and difficulty of each card that can be seen."""
    rows = tab.locator("#all-cards tbody tr:visible")
    return rows.evaluate_all("all => all.map((row) => [...row.cells].map((cell) => cell.innerText.trim()))")
