"""What one page says of another: chapters that are written and those that are not, titles, minutes, links, sizes."""

import json
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from rlcourse.bookmaking.stamps import ROOT
from rlcourse.lm import load_policy

BOOK = ROOT / "book"
CHAPTERS = {source.name[:2]: source for source in sorted((BOOK / "chapters").glob("*.md"))}
INDEX, README = BOOK / "index.md", ROOT / "README.md"
PAGES = [*sorted(BOOK.rglob("*.md")), README, ROOT / "CONTRIBUTING.md"]
CELL = re.compile(r"^```\{code-cell\}.*?^```$", re.M | re.S)
UNWRITTEN = re.compile(r"written yet|unwritten|(?:comes?|coming) with chapter")


# Which chapters a text names, and which of them it calls unwritten


def numbers(text: str) -> set[str]:
    """`chapter 03`, `Chapters 03, 04 and 14`, `chapters 01 to 04`."""
    found = set()
    for listed in re.findall(r"\b[Cc]hapters?[ \n](\d\d\b(?:(?:,? (?:and|to) |, )\d\d\b)*)", text):
        for first, last in re.findall(r"(\d\d)(?: to (\d\d))?", listed):
            found |= {f"{n:02d}" for n in range(int(first), int(last or first) + 1)}
    return found


def called_unwritten(text: str) -> set[str]:
    """The chapters in a clause that says so; "Neither is written yet" speaks of the clause before."""
    found = set()
    for paragraph in re.split(r"\n\n|\n(?=\|)", text):
        before = set()
        for clause in re.split(r"[.;]\s|[()|]", paragraph):
            named = numbers(clause)
            if UNWRITTEN.search(clause):
                found |= named or before
            before = named or before
    return found


@pytest.mark.parametrize(
    "text, expected",
    [
        ("You need PPO (chapter 08). Neither of them is written yet.", {"08"}),
        ("Asking them in words comes with chapter 21.", {"21"}),
        (
            "The reward model (chapter 06), and a KL (chapter 04 is not written yet; a sentence recalls it).",
            {"04"},
        ),
        ("Chapters 03, 04 and 14 are not written yet. Chapter 13 is.", {"03", "04", "14"}),
        ("What is used of chapter 14 (not written yet), how a loss is divided, is said.", {"14"}),
        ("See chapters 01 to 03.", set()),
    ],
)
def test_a_chapter_that_is_called_unwritten_is_found(text, expected):
    assert called_unwritten(text) == expected


def test_lists_and_ranges_of_chapters_are_read():
    assert numbers("chapters 01 to 03, and chapter 13; Chapters 06, 07 and 10") == {
        *("01", "02", "03", "13", "06", "07", "10")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_chapter_that_exists_is_called_unwritten(page):
    assert called_unwritten(page.read_text()) & CHAPTERS.keys() == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_that_names_a_chapter_links_to_one_that_exists_or_says_that_it_does_not_exist_yet(page):
    text = page.read_text()
    assert numbers(text) - CHAPTERS.keys() - called_unwritten(text) == set()


def test_the_code_names_chapters_that_exist():
    files = [*(ROOT / "rlcourse").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    assert {number for file in files for number in numbers(file.read_text())} - CHAPTERS.keys() == set()


# The contents page and the chapters' own words


def contents() -> list[tuple[str, str, str, int, bool]]:
    """Number, title, file, minutes, ready: a row of the contents page each."""
    row = re.compile(
        r"^\| (?:\*\*\[)?(\d\d) ([^|\]]*?)(?:\]\(([^)]*)\)\*\*)? \|.*\| (\d+) \| (ready|\*not written yet\*) \|$",
        re.M,
    )
    return [
        (number, title, file, int(minutes), state == "ready")
        for number, title, file, minutes, state in row.findall(INDEX.read_text())
    ]


def first_lines(chapter: Path) -> tuple[str, int]:
    """The title and the minutes that a chapter itself states."""
    text = chapter.read_text()
    title = re.search(r"^# \d\d\. (.*)$", text, re.M)
    minutes = re.search(r"^\*\*Time\*\*: (\d+) minutes to read, about a minute to run\.", text, re.M)
    assert title and minutes, (
        f"{chapter.name} needs `# NN. title` and `**Time**: N minutes to read, about a minute to run.`"
    )
    return title[1], int(minutes[1])


def test_the_contents_page_has_a_row_for_every_number_once():
    listed = [number for number, *_ in contents()]
    assert listed == [f"{n:02d}" for n in range(len(listed))]
    assert {number for number, *_, ready in contents() if ready} == CHAPTERS.keys()


def test_titles_and_minutes_on_the_contents_page_are_the_chapters_own():
    listed = {number: (file, title, minutes) for number, title, file, minutes, ready in contents() if ready}
    stated = {
        number: (source.relative_to(BOOK).with_suffix(".ipynb").as_posix(), *first_lines(source))
        for number, source in CHAPTERS.items()
    }
    assert listed == stated


def test_routes_and_what_to_read_first_name_chapters_of_the_contents():
    text, listed = INDEX.read_text(), {number for number, *_ in contents()}
    routes = text[text.index("## Routes") : text.index("## Contents")]
    assert {"02", "03", "13"} <= set(re.findall(r"\b\d\d\b", routes)) <= listed
    for row in re.findall(r"^\| \S*\d\d .*$", text, re.M):
        assert set(re.findall(r"\d\d", row.split("|")[3])) <= listed


def test_the_lines_that_are_ready_today_are_all_chapters_that_exist():
    (ready,) = re.findall(r"^Ready today: (.*)$", INDEX.read_text(), re.M)
    assert sorted(re.findall(r"\b\d\d\b", ready)) == sorted(CHAPTERS)


def test_the_readme_and_the_contents_page_count_the_chapters_right():
    counts = [
        "no",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
    count = counts[len(CHAPTERS)] if len(CHAPTERS) < len(counts) else str(len(CHAPTERS))
    readme, index = README.read_text(), INDEX.read_text()
    (ready,) = re.findall(r"^\| (chapters .*) \| ready \|$", readme, re.M)
    assert set(re.findall(r"\b(\d\d) \(", ready)) == CHAPTERS.keys()
    assert f"each of the {count} chapters" in readme and f"{count.capitalize()} chapters exist today" in index
    assert f"the other {len(contents()) - len(CHAPTERS)} chapters | not written yet" in readme


def reading_minutes(chapter: Path) -> float:
    """200 words a minute, 12 lines of code; what is folded away is for the curious, what `show` displays is read."""
    body = chapter.read_text().split("---\n", 2)[2]
    prose = re.sub(r"<details>.*?</details>", "", CELL.sub("", body), flags=re.S)
    outputs = [
        "".join(output.get("data", {}).get("text/markdown", ""))
        for cell in json.loads(chapter.with_suffix(".ipynb").read_text())["cells"]
        for output in cell.get("outputs", [])
    ]
    cells = [cell.split("\n", 1)[1].rsplit("```", 1)[0] for cell in CELL.findall(body)]
    shown = [code for text in outputs for code in re.findall(r"^```+python\n(.*?)^```+$", text, re.M | re.S)]
    lines = [
        line
        for code in cells + shown
        for line in code.splitlines()
        if line.strip() and not line.startswith(":tags:")
    ]
    return len(prose.split()) / 200 + len(lines) / 12


@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda chapter: chapter.stem)
def test_the_minutes_that_a_chapter_states_are_honest(chapter):
    honest, (_, stated) = reading_minutes(chapter), first_lines(chapter)
    assert abs(stated - honest) <= honest / 4, f"says {stated} minutes, and words and lines make {honest:.0f}"


# Links and sizes


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def dead_links(page: Path) -> list[str]:
    dead = []
    for block in MarkdownIt().enable("table").parse(page.read_text()):
        for token in block.children or []:
            link = token.attrGet("href") or token.attrGet("src") or ""
            path, _, name = str(link).partition("#")
            if not link or re.match(r"\w+:", path):
                continue
            target = (page.parent / path).resolve() if path else page
            source = target.with_suffix(".md") if target.suffix == ".ipynb" else target
            headings = re.findall(r"^#+ (.*)$", source.read_text(), re.M) if name and source.is_file() else []
            if not source.exists() or (name and name not in map(anchor, headings)):
                dead.append(str(link))
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_to_a_source_and_a_heading_that_exist(page):
    assert dead_links(page) == []


def test_a_dead_link_a_dead_anchor_and_a_notebook_without_source_are_found(tmp_path):
    (tmp_path / "b.md").write_text("# See it, twice\n")
    page = tmp_path / "a.md"
    page.write_text("[a](b.ipynb#see-it-twice) [b](b.md#gone) [c](c.ipynb)\n\n| t |\n|---|\n| [d](d.md) |\n")
    assert dead_links(page) == ["b.md#gone", "c.ipynb", "d.md"]


def sizes(text: str) -> set[str]:
    return set(re.findall(r"(\S+) million (?:parameters|weights)", text))


def test_the_size_that_pages_say_of_the_pocket_is_its_parameter_count():
    pocket, moe = (
        f"{sum(p.numel() for p in load_policy(name).parameters()) / 1e6:.1f}"
        for name in ("pocket", "pocket-moe")
    )
    said = {page.relative_to(BOOK).as_posix(): sizes(page.read_text()) for page in BOOK.rglob("*.md")}
    assert said["index.md"] == said["chapters/13_grpo.md"] == {pocket}
    assert said["chapters/16_gspo.md"] == {moe}
    smaller_than_ten = r"one|a|[0-9](\.[0-9])?"  # larger ones are other models
    assert {size for each in said.values() for size in each if re.fullmatch(smaller_than_ten, size)} <= {
        pocket,
        moe,
        "8",
    }
