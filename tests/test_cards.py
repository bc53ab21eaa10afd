"""Interview cards: what is missing in one is said, and every proof of every card in the book stands."""

import json

import pytest

from rlcourse.practice import cards as module
from rlcourse.practice.cards import FOLDER, TOPICS, Card, Faulty, Proof, Unknown, cards, parse, proofs, stands
from rlcourse.practice.rendering import PARSER, plain

FILES = sorted(FOLDER.glob("*.md"))

PAGE = r"""---
jupytext:
  text_representation:
    format_name: myst
---

# Cards: KL

What they ask about distance.

+++

## What is $k_3$?

`kl.k3` · medium · tags: kl, estimators · asked: Baidu, second round, 2025-04-15 (reported)

<details><summary>Answer</summary>

**In 30 seconds.** It is $r - 1 - \log r$.

**In full.** Never negative.

| k1 | k3 |
|---|---|
| 1. | 3. |

**They go on asking.**

1. *Is it biased?* No.
2. *What of $\beta * k_3$?* As a loss it has another gradient.

   That of another KL.
3. *And off-policy?* Then it is biased.

**Often said, and wrong.** "A modified k3." It is k3.

**Proof.** [chapter 13](page.ipynb): "k3; it is"; `tests/test_kl.py::test_k3`; `rlcourse.kl.kl_estimate`.

</details>

+++

## Why?

`kl.why` · easy · tags: kl

<details><summary>Answer</summary>

**In 30 seconds.** So.

**In full.** Because.

**They go on asking.**

1. *One?* 1.
2. *Two?* 2.
3. *Three?* 3.

**Often said, and wrong.** "Else." No.

**Proof.** `tests/test_kl.py::test_why`

</details>
"""


@pytest.fixture
def page(tmp_path):
    def write(text: str = PAGE, name: str = "kl"):
        file = tmp_path / f"{name}.md"
        file.write_text(text)
        return file

    return write


def test_a_topic_file_is_read_field_by_field(page):
    first, second = parse(page())
    assert first == Card(
        id="kl.k3",
        topic="kl",
        question="What is $k_3$?",
        difficulty="medium",
        tags=("kl", "estimators"),
        asked="Baidu, second round, 2025-04-15 (reported)",
        short=r"It is $r - 1 - \log r$.",
        full="Never negative.\n\n| k1 | k3 |\n|---|---|\n| 1. | 3. |",
        follow_ups=(
            ("Is it biased?", "No."),
            (r"What of $\beta * k_3$?", "As a loss it has another gradient.\n\n   That of another KL."),
            ("And off-policy?", "Then it is biased."),
        ),
        wrong='"A modified k3." It is k3.',
        proof='[chapter 13](page.ipynb): "k3; it is"; `tests/test_kl.py::test_k3`; `rlcourse.kl.kl_estimate`.',
    )
    assert proofs(first) == [
        Proof("claim", "page.ipynb", "k3; it is"),
        Proof("test", "tests/test_kl.py", "test_k3"),
        Proof("name", "rlcourse.kl.kl_estimate"),
    ]
    assert (second.id, second.difficulty, second.asked) == ("kl.why", "easy", "")


@pytest.mark.parametrize(
    ("planted", "instead", "says"),
    [
        ("`kl.k3`", "", "its id should be `kl.name`"),
        ("`kl.k3`", "`grpo.k3`", "its id should be `kl.name`"),
        ("`kl.k3`", "`kl.why`", "another card has this id"),
        (" medium ", " moderate ", "its difficulty should be one of easy, medium, hard"),
        (" · tags: kl, estimators", "", "no `tags: one, another`"),
        (
            "<details><summary>Answer</summary>\n\n**In 30",
            "**In 30",
            "no `<details><summary>Answer</summary>`",
        ),
        ("**In 30 seconds.**", "In short.", "no **In 30 seconds.**"),
        (
            "**In full.** Never negative.\n\n| k1 | k3 |\n|---|---|\n| 1. | 3. |",
            "**In full.**",
            "no **In full.**",
        ),
        ("They go on asking.", "Then.", "no **They go on asking.**"),
        ("3. *And off-policy?* Then it is biased.", "", "2 follow-ups, at least 3 wanted"),
        ("*And off-policy?* Then", "And off-policy? Then", "a follow-up is not `1. *Question?* Answer`"),
        ("*And off-policy?* Then it is biased.", "*And off-policy?*", "a follow-up is not"),
        ("Often said, and wrong.", "Wrong.", "no **Often said, and wrong.**"),
        ("**Proof.** [chapter", "[chapter", "no **Proof.**"),
        ("; `rlcourse.kl.kl_estimate`.", "; by hand", ": by hand"),
        ("`tests/test_kl.py::test_k3`", "`tests/test_kl.py`", "nor `rlcourse.name`: `tests/test_kl.py`"),
        (
            '[chapter 13](page.ipynb): "k3; it is"; `tests/test_kl.py::test_k3`; ',
            "",
            "neither a claim nor a test",
        ),
    ],
)
def test_what_is_missing_is_said_with_file_and_card(page, planted, instead, says):
    assert PAGE.count(planted) >= 1
    with pytest.raises(Faulty) as told:
        parse(page(PAGE.replace(planted, instead, 1)))
    named = "kl.md, What is $k_3$?: " if instead == "" and planted == "`kl.k3`" else "kl.md, "
    assert says in str(told.value) and str(told.value).startswith(named)


def test_all_that_is_missing_is_said_at_once(page):
    with pytest.raises(Faulty) as told:
        parse(page(PAGE.replace("tags: kl", "").replace("2. *Two?* 2.\n", "").replace(" · easy", "")))
    lines = str(told.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["kl.md, kl.k3"] + 3 * ["kl.md, kl.why"]


# Choosing


@pytest.fixture
def shelf(page, monkeypatch):
    page()
    page(PAGE.replace("`kl.", "`ppo."), "ppo")
    monkeypatch.setattr(module, "FOLDER", page().parent)


def test_cards_come_in_the_order_in_which_one_learns_them(shelf):
    assert [card.id for card in cards()] == ["ppo.k3", "ppo.why", "kl.k3", "kl.why"]


def test_topic_difficulty_and_tag_choose_together(shelf):
    assert [card.id for card in cards("kl", "easy")] == ["kl.why"]
    assert [card.id for card in cards(tag="estimators")] == ["ppo.k3", "kl.k3"]
    assert cards("kl", "easy", "estimators") == []


def test_an_unknown_name_brings_the_nearest(shelf):
    with pytest.raises(
        Unknown, match="No card has the topic 'pop'. Did you mean 'ppo'\\? There are: kl, ppo."
    ):
        cards("pop")
    with pytest.raises(Unknown, match="the tag 'zzz'. There are: estimators, kl"):
        cards(tag="zzz")
    with pytest.raises(Unknown, match="Did you mean 'easy'"):
        cards(difficulty="eas")


def test_no_cards_at_all_says_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="clone of the repository"):
        cards()


# Proofs


@pytest.fixture
def proves(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(
        "def test_one():\n    pass\n\nclass TestB:\n    def test_two(self):\n        def test_three(): pass\n"
    )
    printed = {
        "output_type": "stream",
        "text": ["before\n", "✓ it falls\n", "✓ it rises: 0.2 < 0.3 < 1e+05\n", "✓ a: b: -3 < 0\n"],
    }
    cells = [
        {"source": ["claim('it is said', True)\n✓ it is said"], "outputs": [printed]},
        {"source": ["# text"]},
    ]
    (tmp_path / "page.ipynb").write_text(json.dumps({"cells": cells}))
    return lambda *proof: stands(Proof(*proof), root=tmp_path, folder=tmp_path)


def test_a_claim_stands_when_the_executed_notebook_printed_it(proves):
    assert proves("claim", "page.ipynb", "it falls") == proves("claim", "page.ipynb#cell", "it falls") == ""
    assert proves("claim", "page.ipynb", "it rises") == proves("claim", "page.ipynb", "a: b") == ""
    assert proves("claim", "page.ipynb", "a") and proves("claim", "page.ipynb", "it rises: 0.2")
    assert proves("claim", "page.ipynb", "it is said") == 'page.ipynb does not print "✓ it is said"'
    assert proves("claim", "page.ipynb", "it") and "No such file" in proves("claim", "none.ipynb", "it falls")


def test_a_test_stands_when_its_file_defines_it(proves):
    assert (
        proves("test", "tests/test_a.py", "test_one")
        == proves("test", "tests/test_a.py", "TestB::test_two")
        == ""
    )
    assert "no test_two in this file" in proves("test", "tests/test_a.py", "test_two")
    assert proves("test", "tests/test_a.py", "TestB::test_three") and proves(
        "test", "tests/none.py", "test_one"
    )


def test_a_name_stands_when_it_imports(proves):
    assert (
        proves("name", "rlcourse.kl.kl_estimate") == proves("name", "rlcourse.methods.grpo.GRPO.loss") == ""
    )
    assert proves("name", "rlcourse.kl.k4") and proves("name", "rlcourse.kk.kl_estimate")


# The book's own cards


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_card_of_the_book_is_whole(file):
    assert file.stem in TOPICS and parse(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_proof_of_the_book_stands(file):
    checked = [(card.id, stands(proof)) for card in parse(file) for proof in proofs(card)]
    assert checked and [(name, why) for name, why in checked if why] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_all_mathematics_of_the_cards_can_be_read_as_plain_text(file):
    tokens = [child for token in PARSER.parse(file.read_text()) for child in [token, *(token.children or [])]]
    spelt = [plain(token.content) for token in tokens if token.type.startswith("math_")]
    assert [text for text in spelt if "\\" in text or "$" in text] == []


def test_there_are_eighty_cards():
    assert len({card.id for card in cards()}) >= 80
