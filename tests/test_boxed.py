"""Answers in a box: what a model that reads English is asked, and how what it says is read."""

import time
from fractions import Fraction
from functools import partial
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcourse.lm import Policy, Rollout
from rlcourse.tasks import Countdown, Helpdesk, Sums, SumsInWords
from rlcourse.tasks.ask import suited
from rlcourse.tasks.boxed import boxed, number
from rlcourse.tasks.countdown import Puzzle
from rlcourse.tasks.sums import SumInWords

quickly = settings(max_examples=200, deadline=None)
near = st.text(alphabet="\\boxed{}$ 0123456789.,-−/frac%x", max_size=60)
balanced = st.recursive(
    st.text(alphabet="ab1 ", max_size=4),
    lambda inner: st.lists(inner).map(lambda parts: "{" + "".join(parts) + "}"),
)


class Pocket(Policy):
    pocket, name = True, "pocket"

    def __init__(self):
        pass


class Other(Pocket):
    pocket, name = False, "other"


POCKET, OTHER = Pocket(), Other()


def answers(problem, *texts, finished=True):
    """A rollout in which every text answers the one problem."""
    nothing = torch.zeros(len(texts), 1)
    return Rollout(
        prompts=[problem.prompt],
        prompt_tokens=torch.zeros(1, 1, dtype=torch.long),
        prompt_mask=torch.ones(1, 1, dtype=torch.bool),
        owner=torch.zeros(len(texts), dtype=torch.long),
        tokens=nothing.long(),
        mask=nothing == 0,
        logp=nothing,
        finished=torch.full((len(texts),), finished),
        texts=list(texts),
        problems=[problem],
    )


# ---- the box


@quickly
@given(st.text(), balanced, st.text(alphabet="ab{} "))
def test_the_last_box_is_read_whatever_stands_around_it(before, inside, after):
    assert boxed(rf"{before}\boxed{{{inside}}}{after}") == inside.strip()


@pytest.mark.parametrize(
    "text, inside",
    [
        ("42", None),
        (r"\boxed{42", None),
        (r"\boxed{1}, no: \boxed{4", None),  # cut on its way
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{}", ""),
        (r"\boxed{1} or \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}} {", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"boxed{7} \boxed 7", None),
    ],
)
def test_box_by_hand(text, inside):
    assert boxed(text) == inside


# ---- numbers


@pytest.mark.parametrize(
    "text, value",
    [
        ("1,234", 1234), ("1,234,567.5", Fraction(2469135, 2)), ("-3.5", Fraction(-7, 2)), ("+7", 7), ("−7", -7),
        ("$12", 12), (r"\$1,000", 1000), ("-$5", -5), ("€ 9", 9), ("$12$", 12), ("50%", 50), (r"50\%", 50),
        ("12.", 12), (".5", Fraction(1, 2)), ("0012", 12), (" 3 / 4 ", Fraction(3, 4)), ("-3/4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)), (r"-\dfrac{6}{8}", Fraction(-3, 4)), ("0.1", Fraction(1, 10)),
    ],
)  # fmt: skip
def test_number_by_hand(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    ["", ".", "-", "$", "/", "3/", "/4", "3/0", r"\frac{1}{0}", "1,23", "12,34", ",123", "1_000", "1e5", "0x10", "1 2",
     "--1", "1.2.3", "1/2/3", "inf", "nan", "٣", "１", "twelve", "12 apples", "9" * 61],
)  # fmt: skip
def test_this_is_no_number(text):
    assert number(text) is None


@quickly
@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_a_number_is_read_exactly_with_commas_or_without(units, places):
    value = Fraction(units, 10**places)
    digits = f"{abs(units):0{places + 1}d}"
    whole, point = digits[: len(digits) - places], digits[len(digits) - places :]
    sign = "-" if units < 0 else ""
    assert number(f"{sign}{whole}.{point}") == number(f"{sign}${int(whole):,}.{point}") == value


@quickly
@given(st.text() | near)
def test_no_text_at_all_raises(text):
    boxed(text)
    assert isinstance(number(text), Fraction | None)
    problem = SumInWords((1, 2))
    SumsInWords().answer_of(problem, text)
    Countdown().answer_of(Puzzle((1, 2), 3, "1 + 2"), text)
    assert set(SumsInWords().read(problem, text)) == {"correct", "worked"}


@pytest.mark.parametrize(
    "piece", [r"\boxed{", "{", "}", "1", "1,", "1 + ", " ", "-", "$", r"\frac{", "1 + 1 = "]
)
def test_a_megabyte_takes_no_time(piece):
    text, start = piece * (1_000_000 // len(piece)), time.process_time()
    for hostile in (text, r"\boxed{" + text, r"\boxed{" + text + "}"):
        boxed(hostile), number(hostile), SumsInWords().read(SumInWords((1, 2)), hostile)
    assert time.process_time() - start < 3


# ---- sums in words


def test_sums_are_asked_in_words_with_the_same_dials():
    problem = SumsInWords(terms=4, digits=1).draw(Random(0))
    assert problem.terms == Sums(terms=4, digits=1).draw(Random(0)).terms
    assert (
        problem.prompt.startswith(f"What is {' + '.join(map(str, problem.terms))}? ")
        and r"\boxed{}" in problem.prompt
    )


def test_sums_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="2 terms or more, of 1 to 9 digits; got 1 of 2"):
        SumsInWords(terms=1)


def test_what_is_paid_is_the_right_number_in_a_box_and_nothing_else():
    texts = [
        r"17 + 25 = 42, 42 + 48 = 90. \boxed{90}", r"\boxed{90.0}", r"17 + 25 + 48 = 90", r"\boxed{91}",
        r"17 + 25 + 48 = 90, so \boxed{90}", r"\boxed{90 or 91}",
    ]  # fmt: skip
    found = SumsInWords().grade(answers(SumInWords((17, 25, 48)), *texts))
    assert found["correct"].tolist() == [True, True, False, False, True, False]
    assert found["rewards"].tolist() == [1, 1, 0, 0, 1, 0]
    assert found["worked"].tolist() == [True, False, False, False, False, False]
    assert found["boxed"].tolist() == [True, True, False, True, True, True]


def test_an_answer_that_was_cut_is_not_right():
    found = SumsInWords().grade(answers(SumInWords((1, 2)), r"\boxed{3}", finished=False))
    assert not found["correct"].any() and not found["rewards"].any()


def test_a_judge_replaces_the_rule_and_finds_what_the_rule_says():
    task = SumsInWords(judge=lambda rollout: rollout.correct + 0.5)
    assert task.grade(answers(SumInWords((1, 2)), r"\boxed{3}", "no"))["rewards"].tolist() == [1.5, 0.5]


def test_equal_answers_cast_the_same_vote():
    problem = SumInWords((400, 600))
    votes = {SumsInWords().answer_of(problem, rf"\boxed{{{same}}}") for same in ("1,000", "$1000", "1000.0")}
    assert votes == {"1000"}
    assert SumsInWords().answer_of(problem, "1000") is None
    assert (Sums().answer_of(problem, "1+1=2#2"), Sums().answer_of(problem, "2")) == ("2", None)


# ---- who is asked how


def judge(rollout):
    return rollout.correct.float()


def test_every_policy_is_asked_in_what_it_has_read():
    sums = Sums(terms=4, digits=1, judge=judge)
    assert suited(sums, POCKET) is sums
    assert suited(sums, OTHER) == SumsInWords(terms=4, digits=1, judge=judge)
    desk = Helpdesk(judge=judge, watch="gold")
    assert suited(desk, POCKET) is desk
    assert suited(desk, OTHER) == Helpdesk(judge=judge, watch="gold", max_tokens=128, in_words=True)
    own = SimpleNamespace(draw=None)  # a reader's own task need not know of this
    assert suited(own, OTHER) is own
    for task in (SumsInWords(), Countdown()):
        assert suited(task, OTHER) is task
        with pytest.raises(
            ValueError, match=rf"{type(task).__name__} is asked in plain English, and pocket has read"
        ):
            suited(task, POCKET)


@pytest.mark.parametrize("task", [Sums, SumsInWords, Countdown, Helpdesk])
def test_a_judge_goes_by_its_name_and_what_has_none_can_be_rebuilt(task):
    assert "judge=judge" in repr(task(judge=judge))
    assert repr(task(judge=judge.__get__(object()))) == repr(task(judge=judge.__get__(object())))
    assert " at 0x" not in repr(task(judge=partial(judge)))
    plain = task(max_tokens=99) if task is not Sums else task(terms=4)
    assert eval(repr(plain), {task.__name__: task}) == plain
