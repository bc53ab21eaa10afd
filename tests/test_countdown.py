"""Countdown: puzzles that can be solved, and a grammar that reads expressions and runs nothing."""

import time
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_boxed import answers

from rlcourse.tasks import Countdown
from rlcourse.tasks.countdown import Puzzle, read

quickly = settings(max_examples=200, deadline=None)
PUZZLE = Puzzle((1, 2, 3), 9, "(1 + 2) * 3")


def value(text):
    found = read(text)
    return found and found.value


# ---- the grammar


def joined(parts):
    (left, a, used), sign, (right, b, more) = parts
    if a is None or b is None or (sign == "/" and b == 0):
        return f"({left}{sign}{right})", None, used + more
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign]
    return f"({left} {sign} {right})", result, used + more


trees = st.recursive(
    st.integers(0, 99).map(lambda n: (str(n), Fraction(n), [n])),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(joined),
    max_leaves=8,
)


@quickly
@given(trees)
def test_an_expression_has_its_exact_value_and_its_numbers(tree):
    text, expected, used = tree
    found = read(text)
    assert (found and found.value) == expected
    assert found is None or list(found.numbers) == used


@quickly
@given(st.lists(st.integers(1, 9), min_size=2, max_size=7), st.data())
def test_precedence_is_pythons(numbers, data):
    text = str(numbers[0])
    for n in numbers[1:]:
        text += f"{data.draw(st.sampled_from('+-*/'))}{'-' * data.draw(st.integers(0, 2))}{n}"
    assert value(text) == eval("".join(f"Fraction({c})" if c.isdigit() else c for c in text))  # our own text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("7", 7), ("2+3*4", 14), ("(2+3)*4", 20), ("10-4-3", 3), ("24/4/2", 3), ("1/3*3", 1), ("-3+5", 2), ("2--3", 5),
        ("2 × 3 ÷ 6", 1), ("5 − 2", 3), ("3 x 4", 12), (r"3 \times (8 \div 2)", 12), (r"\left(1+2\right)\cdot 3", 9),
        (" 1\n+ 2 ", 3),
    ],
)  # fmt: skip
def test_value_by_hand(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "+", "1+", "*1", "(1", "1)", "()", "(1))", "1 2", "1(2)", "(1)(2)", "1//2", "2**3", "1.5", "1e3", "1_0",
     "1,000", "a", "__import__('os')", "1 if 1 else 2", "１+２", "٣", "1/0", "1/(2-2)", "1" * 10,
     "(" * 21 + "1" + ")" * 21, "-" * 22 + "1", "1" + "+1" * 100, "1=1", "[1]", "1;2", "1\x00"],
)  # fmt: skip
def test_this_is_no_expression(text):
    assert read(text) is None


@quickly
@given(st.text() | st.text(alphabet="0123456789+-*/()x×÷− ", max_size=40))
def test_no_text_at_all_raises(text):
    read(text)
    found = Countdown().read(PUZZLE, rf"\boxed{{{text}}}")
    assert found["valid"] or not found["correct"]


@pytest.mark.parametrize("piece", ["(", "-", "1+", "9", "9*", " ", "x", "="])
def test_a_megabyte_takes_no_time(piece):
    start = time.process_time()
    Countdown().read(PUZZLE, r"\boxed{" + piece * (1_000_000 // len(piece)) + "}")
    assert time.process_time() - start < 1


# ---- the puzzles


@quickly
@given(
    st.integers(2, 8), st.integers(1, 120), st.integers(0, 120), st.integers(0, 900), st.integers(0, 10**6)
)
def test_every_puzzle_can_be_solved(numbers, low, wider, room, seed):
    task = Countdown(numbers, low, low + wider, low + wider + room)
    puzzle = task.draw(Random(seed))
    assert len(puzzle.numbers) == numbers and all(low <= n <= low + wider for n in puzzle.numbers)
    assert 1 <= puzzle.target <= task.most
    assert task.read(puzzle, rf"\boxed{{{puzzle.solution}}}") == {"correct": True, "valid": True}
    assert all(str(n) in puzzle.prompt for n in (*puzzle.numbers, puzzle.target))


def test_puzzles_differ_and_use_every_sign():
    puzzles = [Countdown().draw(Random(seed)) for seed in range(500)]
    assert len({puzzle.numbers for puzzle in puzzles}) > 490
    assert len({puzzle.target for puzzle in puzzles}) > 150
    assert all(sum(sign in puzzle.solution for puzzle in puzzles) > 20 for sign in "+-*/")


@pytest.mark.parametrize(
    "dials", [{"numbers": 1}, {"numbers": 9}, {"low": 0}, {"low": 9, "high": 8}, {"high": 100, "most": 99}]
)
def test_dials_that_make_no_game_are_refused(dials):
    with pytest.raises(ValueError, match=f"got .*{list(dials)[-1]}={list(dials.values())[-1]}"):
        Countdown(**dials)


# ---- the reward


@pytest.mark.parametrize(
    "answer, right, valid",
    [
        (r"\boxed{(1 + 2) * 3}", True, True),
        (r"\boxed{3 × (2 + 1)}", True, True),
        (r"\boxed{(1 + 2) * 3 = 9}", True, True),
        (r"\boxed{(1 + 2) * 3 = 8}", False, True),
        (r"\boxed{1 + 2 * 3}", False, True),
        (r"\boxed{9}", False, False),
        (r"\boxed{3 * 3}", False, False),
        (r"\boxed{(1 + 2) * 3 + 1 - 1}", False, False),
        (r"\boxed{12 - 3}", False, False),
        (r"\boxed{(1 + 2) * 3 / (1 - 1)}", False, False),
        (r"(1 + 2) * 3", False, False),
    ],
)
def test_only_a_right_expression_of_exactly_the_given_numbers_is_paid(answer, right, valid):
    found = Countdown().grade(answers(PUZZLE, answer))
    assert (found["correct"].item(), found["valid"].item()) == (right, valid)
    assert found["rewards"].item() == float(right)
    assert found["boxed"].item() == ("boxed" in answer)


def test_a_number_that_is_given_twice_is_used_twice():
    twice = Puzzle((2, 2, 3), 12, "2 * 2 * 3")
    assert Countdown().read(twice, r"\boxed{2*2*3}")["correct"]
    assert not Countdown().read(twice, r"\boxed{2*3*2*1}")["valid"]
    assert not Countdown().read(twice, r"\boxed{(3+3)*2}")["valid"]


def test_the_answer_is_the_expression():
    puzzle = Puzzle((1, 2, 3), 9, "(1 + 2) * 3")
    assert Countdown().answer_of(puzzle, r"\boxed{1} \boxed{(1 + 2)  * 3}") == "(1+2)*3"
    assert Countdown().answer_of(puzzle, "9") is None
