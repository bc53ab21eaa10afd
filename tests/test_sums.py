"""The sums: what a response says, whatever it says; the text that the pockets read; the rule that pays."""

import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcourse.lm import Rollout
from rlcourse.tasks import Sums
from rlcourse.tasks.sums import DIGITS, SLIP, TERMS, WORKED, corpus, guess, read, worked

quickly = settings(max_examples=150, deadline=None)  # a busy machine is no failure
numbers = st.integers(0, 10**12 - 1)
terms = st.lists(st.integers(0, 10**9), min_size=2, max_size=9).map(tuple)
# Text that looks like an answer, and text that does not.
near = st.text(alphabet="0123456789+=# -.", max_size=40)


# ---- the grammar


@quickly
@given(st.text() | near)
def test_no_text_at_all_raises_and_only_numbers_come_out(text):
    found = read(text)
    assert found.answer is None or 0 <= found.answer < 10**12
    assert all(isinstance(n, int) and 0 <= n < 10**12 for step in found.steps for n in step)


@quickly
@given(near, numbers)
def test_the_answer_is_the_number_after_the_only_hash(work, answer):
    expected = answer if "#" not in work else None
    assert read(f"{work}#{answer}").answer == expected


@quickly
@given(near, near)
def test_what_stands_after_the_hash_must_be_a_number_and_nothing_else(work, tail):
    plain = "#" not in work and 1 <= len(tail) <= 12 and set(tail) <= set("0123456789")
    assert (read(f"{work}#{tail}").answer is not None) == plain


@pytest.mark.parametrize(
    "text",
    [
        "", "#", "137", "=137", "#137#", "##137", "#137#137", "# 137", "#137 ", "#137\n", "#-137", "#+137",
        "#1e2", "#0x89", "#13.7", "#1_000", "#1,000", "#137<|eos|>", "#" + "9" * 13,
        "#٣", "#१३७", "#１３７", "#²", "#①", "#Ⅷ", "#1\u200b37",
        "#" + "1" * 100_000,
    ],
)  # fmt: skip
def test_these_give_no_answer(text):
    assert read(text).answer is None


def test_leading_zeros_are_read_as_a_reader_would():
    assert read("#007").answer == 7


def test_digits_of_other_scripts_are_no_step_either():
    assert read("٣+٤=٧#7").steps == ()


def test_a_huge_text_is_read_at_once():
    assert read("1+2=3 " * 50_000 + "#3").answer == 3
    assert read("1" * 1_000_000 + "+" * 1_000_000).answer is None


def test_steps_are_whole_words_of_number_plus_number_equals_number():
    found = read("59+63=122 122+15=137#137")
    assert found.steps == ((59, 63, 122), (122, 15, 137)) and found.answer == 137
    assert read("1+2=3#3").steps == ((1, 2, 3),)
    for text in ("1+2=3+4#7", "1 +2=3#3", "x1+2=3#3", "1+2=#3", "1+2+3=6#6", "#1+2=3"):
        assert read(text).steps == (), text
    assert read("hm 1+2=3  3+4=7 so#7").steps == ((1, 2, 3), (3, 4, 7))


def test_a_step_says_what_it_claims_and_not_what_is_true():
    assert read("2+2=5#5").steps == ((2, 2, 5),)


# ---- what the corpus is made of


@quickly
@given(terms)
def test_a_worked_answer_reads_back_right_step_by_step(terms):
    found = read(worked(terms))
    assert found.answer == sum(terms)
    assert len(found.steps) == len(terms) - 1
    total = terms[0]
    for term, (a, b, claimed) in zip(terms[1:], found.steps):
        assert (a, b, claimed) == (total, term, total + term)
        total += term


@quickly
@given(terms, st.integers(0, 10_000))
def test_after_a_slip_the_rest_follows_from_it(terms, seed):
    found = read(worked(terms, random.Random(seed), slip=0.5))
    for (_, _, claimed), (a, _, _) in zip(found.steps, found.steps[1:]):
        assert a == claimed
    assert found.answer == found.steps[-1][2]
    assert [b for _, b, _ in found.steps] == list(terms[1:])
    for a, b, claimed in found.steps:
        assert claimed - (a + b) in (-10, -1, 0, 1, 10) or claimed == 0


def test_steps_slip_as_often_as_asked():
    rng, n = random.Random(0), 10_000
    steps = [step for _ in range(n) for step in read(worked((50, 60, 70), rng, slip=0.1)).steps]
    slipped = sum(a + b != claimed for a, b, claimed in steps)
    assert abs(slipped - 0.1 * len(steps)) < 4 * (len(steps) * 0.1 * 0.9) ** 0.5


@quickly
@given(terms, st.integers(0, 10_000))
def test_a_guess_shows_no_work_and_is_near(terms, seed):
    found = read(guess(terms, random.Random(seed)))
    assert found.steps == ()
    assert abs(found.answer - sum(terms)) <= len(terms) + len(str(max(terms))) - 1


def test_guesses_have_no_favourite():
    # three terms of two digits: 3 + 2 - 1 = 4 either way, nine errors of 1/9 each
    rng, n = random.Random(0), 9_000
    errors = [read(guess((50, 60, 70), rng)).answer - 180 for _ in range(n)]
    for error in range(-4, 5):
        assert abs(errors.count(error) - n / 9) < 4 * (n * (1 / 9) * (8 / 9)) ** 0.5
    assert set(errors) == set(range(-4, 5))


@pytest.fixture(scope="module")
def documents():
    rng = random.Random(0)
    return [corpus(rng) for _ in range(20_000)]


def parsed(prompt):
    assert prompt.endswith("=")
    return tuple(map(int, prompt[:-1].split("+")))


def near_share(count, n, share):
    return abs(count - n * share) < 4 * (n * share * (1 - share)) ** 0.5


def test_the_corpus_mixes_what_it_says_it_mixes(documents):
    n = len(documents)
    problems = [parsed(prompt) for prompt, _ in documents]
    for count, share in TERMS.items():
        assert near_share(sum(len(p) == count for p in problems), n, share)
    for digits, share in DIGITS.items():
        assert near_share(sum(all(len(str(t)) == digits for t in p) for p in problems), n, share)
    answers = [read(response) for _, response in documents]
    assert near_share(sum(bool(a.steps) for a in answers), n, WORKED)
    assert sum(TERMS.values()) == pytest.approx(1) and sum(DIGITS.values()) == pytest.approx(1)


def test_worked_answers_are_mostly_right_and_guesses_mostly_wrong(documents):
    right = {True: [], False: []}
    for prompt, response in documents:
        found = read(response)
        right[bool(found.steps)].append(found.answer == sum(parsed(prompt)))
    # a worked answer is right when none of its steps slips (two slips may cancel, but seldom)
    expected = sum(share * (1 - SLIP) ** (count - 1) for count, share in TERMS.items())
    assert sum(right[True]) / len(right[True]) == pytest.approx(expected, abs=0.02)
    # a guess is right once in 2 * spread + 1, spread = terms + digits - 1
    expected = sum(
        Fraction(1, 2 * (count + digits - 1) + 1) * Fraction(share).limit_denominator(100)
        * Fraction(rest).limit_denominator(100)
        for count, share in TERMS.items() for digits, rest in DIGITS.items()
    )  # fmt: skip
    assert sum(right[False]) / len(right[False]) == pytest.approx(float(expected), abs=0.02)
    assert expected < Fraction(1, 5)


def test_the_control_corpus_holds_not_one_worked_answer():
    rng = random.Random(0)
    assert not any(read(corpus(rng, worked_share=0.0)[1]).steps for _ in range(2000))


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
    first, again, other = ([corpus(random.Random(s)) for s in range(a, a + 50)] for a in (0, 0, 50))
    assert first == again != other


# ---- the task


@pytest.mark.parametrize("digits", [1, 2, 3, 9])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_problems_have_the_terms_and_digits_that_were_asked_for(count, digits):
    task = Sums(count, digits)
    drawn = [task.draw(random.Random(s)) for s in range(200)]
    for problem in drawn:
        assert len(problem.terms) == count and all(len(str(t)) == digits and t > 0 for t in problem.terms)
        assert parsed(problem.prompt) == problem.terms and problem.answer == sum(problem.terms)
    assert drawn == [task.draw(random.Random(s)) for s in range(200)]
    assert len(set(drawn)) > 30


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_longest_worked_answer_fits_with_its_end(count, digits):
    longest = worked((10**digits - 1,) * count)
    assert len(longest) + 1 <= Sums(count, digits).max_tokens <= len(longest) + count * 4 + 8


@pytest.mark.parametrize(("count", "digits"), [(1, 2), (0, 2), (3, 0), (3, 10)])
def test_a_dial_turned_too_far_says_so(count, digits):
    with pytest.raises(ValueError, match=f"got {count} of {digits}"):
        Sums(count, digits)


def answered(texts, finished=None):
    """17+25+48=90, asked once and answered by these."""
    n = len(texts)
    task = Sums()
    problem = type(task.draw(random.Random(0)))((17, 25, 48))
    return Rollout(
        prompts=[problem.prompt],
        prompt_tokens=torch.zeros(1, 1, dtype=torch.long),
        prompt_mask=torch.ones(1, 1, dtype=torch.bool),
        owner=torch.zeros(n, dtype=torch.long),
        tokens=torch.zeros(n, 1, dtype=torch.long),
        mask=torch.ones(n, 1, dtype=torch.bool),
        logp=torch.zeros(n, 1),
        finished=torch.tensor(finished or [True] * n),
        texts=texts,
        problems=[problem],
    )


def test_only_the_number_is_paid_for_and_not_the_work():
    grades = Sums().grade(
        answered(["#90", "17+25=42 42+48=90#90", "17+25=1 1+1=9#90", "17+25=42 42+48=90#91", "90"])
    )
    assert grades["rewards"].tolist() == [1, 1, 1, 0, 0]
    assert grades["correct"].tolist() == [True, True, True, False, False]
    assert grades["worked"].tolist() == [False, True, True, True, False]
    assert grades["rewards"].dtype == torch.float32


def test_an_answer_cut_at_the_limit_is_wrong_even_where_it_reads_right():
    grades = Sums().grade(answered(["#90", "#90"], finished=[True, False]))
    assert grades["rewards"].tolist() == [1, 0] and grades["correct"].tolist() == [True, False]


def test_a_judge_replaces_the_rule_for_rewards_and_not_for_correctness():
    task = Sums(judge=lambda rollout: torch.tensor([float(len(text)) for text in rollout.texts]))
    grades = task.grade(answered(["#90", "#91", "nothing"]))
    assert grades["rewards"].tolist() == [3, 3, 7]
    assert grades["correct"].tolist() == [True, False, False]


def test_each_answer_is_held_against_its_own_problem():
    rollout = answered(["#90", "#12", "#90", "#12"])
    rollout.problems = [rollout.problems[0], type(rollout.problems[0])((5, 7))]
    rollout.prompts = [problem.prompt for problem in rollout.problems]
    rollout.owner = torch.tensor([0, 0, 1, 1])
    assert Sums().grade(rollout)["rewards"].tolist() == [1, 0, 0, 1]
