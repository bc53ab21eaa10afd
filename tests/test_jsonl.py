"""A reader's own data: JSONL files of questions and of feedback, and what is said of a file that is wrong."""

import json
import re
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_boxed import OTHER, POCKET, answers

from rlcourse.tasks import Demonstration, Pair, Questions, Ranking, Verdict, preferences
from rlcourse.tasks.ask import suited
from rlcourse.tasks.jsonl import Question, final, normal, only_number

quickly = settings(max_examples=100, deadline=None)
GSM8K = {"question": "Ann has 3 apples and buys 4. How many has she?", "answer": "3+4=<<3+4=7>>7\n#### 7"}
PAIR = {"prompt": "Where is my parcel?", "chosen": "It comes tomorrow.", "rejected": "No idea."}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Writes a file of these lines: objects, text or bytes."""
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"

    def write(*lines):
        lines = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return str(path)

    return write


# ---- lines

GOOD = [{"prompt": "1+1?", "answer": 2}]


@pytest.mark.parametrize(
    "lines, line, what",
    [
        ([b""], None, "is empty: it must hold one JSON object a line"),
        ([b"\n \n\r\n"], None, "is empty"),
        ([*GOOD, "", "{"], 3, "is not JSON: at column 2, Expecting property name"),
        ([*GOOD, '{"prompt": "a"} {"prompt": "b"}'], 2, "is not JSON: at column 17, Extra data"),
        ([*GOOD, "[" * 100_000], 2, "is not JSON: maximum recursion depth"),
        ([*GOOD, '{"a": ' + "9" * 5000 + "}"], 2, "is not JSON: Exceeds the limit"),
        ([*GOOD, "[1, 2]"], 2, r"must be an object, {...}; it is [1, 2]"),
        ([*GOOD, '"text"'], 2, "must be an object"),
        ([*GOOD, '{"prompt": "a", "answer": "b", "prompt": "c"}'], 2, 'it has "prompt" twice'),
        ([*GOOD, b'{"prompt": "caf\xe9"}'], 2, "is not UTF-8: byte 16 of it is 0xe9"),
        (['{"prompt": "a"}'.encode("utf-16")], 1, "is not UTF-8: byte 1 of it is 0xff"),
        ([*GOOD, {"prompt": "a", "solution": "b"}], 2, 'lacks one of "answer"; it has "prompt", "solution"'),
        ([*GOOD, {"problem": "a", "answer": "b"}], 2, 'lacks one of "prompt", "question"; it has "problem", "answer"'),
        ([*GOOD, "{}"], 2, 'lacks one of "prompt", "question"; it has nothing'),
        ([*GOOD, {"prompt": 5, "answer": "b"}], 2, '"prompt" must be a text, or a conversation of one turn'),
        ([*GOOD, {"prompt": " ", "answer": "b"}], 2, '"prompt" is empty'),
        ([*GOOD, r'{"prompt": "a\ud800", "answer": "b"}'], 2, '"prompt" holds half a character'),
        *(([*GOOD, {"prompt": "a", "answer": bad}], 2, '"answer" must be a number or a text')
          for bad in (None, True, [1], {}, "", " ", "#### ", "...")),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_with_its_line(file, lines, line, what):
    path = file(*lines)
    where = f"line {line} of {path}" if line else path
    with pytest.raises(ValueError, match=f"^{re.escape(where)}:? .*{re.escape(what)}"):
        Questions(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for wrong in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(ValueError, match=f"{re.escape(str(wrong))} cannot be read: "):
            Questions(str(wrong))


def test_blank_lines_a_bom_and_windows_line_ends_do_no_harm(file):
    path = file(
        b"\xef\xbb\xbf" + json.dumps(GSM8K).encode() + b"\r", b"", b"  \r", json.dumps(PAIR | {"answer": "7"})
    )
    assert [q.answer for q in Questions(path).questions] == ["7", "7"]


def test_a_line_separator_within_a_text_ends_no_line(file):
    path = file('{"prompt": "one\u2028two\u0085three", "answer": "x"}')
    assert Questions(path, instruction="").questions[0].prompt == "one\u2028two\u0085three"


@quickly
@given(st.lists(st.binary(max_size=40) | st.text(alphabet='{}[]",: \\pra\n', max_size=40).map(str.encode)))
def test_no_file_at_all_fails_but_with_a_sentence_that_names_it(file, lines):
    path = file(*lines)
    for read in (Questions, preferences):
        try:
            read(path)
        except ValueError as error:
            assert path in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "a"]), inner)
    ),
    max_leaves=6,
)
NAMES = [
    "prompt",
    "question",
    "answer",
    "chosen",
    "rejected",
    "response",
    "responses",
    "completion",
    "good",
    "label",
]


@quickly
@given(st.dictionaries(st.sampled_from(NAMES), json_values))
def test_no_object_at_all_fails_but_with_a_sentence_that_names_its_line(file, row):
    path = file(row)
    for read in (Questions, preferences):
        try:
            read(path)
        except ValueError as error:
            assert f"line 1 of {path}" in str(error)


# ---- questions


def graded(file, answer, *texts):
    task = Questions(file({"question": "?", "answer": answer}))
    return task.grade(answers(task.questions[0], *texts))


def test_gsm8k_is_understood(file):
    task = Questions(file(GSM8K))
    (question,) = task.questions
    assert question.answer == "7" and task.draw(Random(0)) is question
    assert question.prompt == GSM8K["question"] + "\n" + task.instruction
    found = task.grade(answers(question, r"She has 3 + 4 = 7 apples. \boxed{7}", r"\boxed{8}", "No idea"))
    assert found["correct"].tolist() == [True, False, False]
    assert found["boxed"].tolist() == [True, True, False]


def test_an_instruction_may_be_ones_own_or_none(file):
    path = file(GSM8K)
    assert Questions(path, instruction="").questions[0].prompt == GSM8K["question"]
    assert Questions(path, instruction="Be brief.").questions[0].prompt.endswith("?\nBe brief.")


@pytest.mark.parametrize(
    "answer, text, right",
    [
        ("1,234", r"\boxed{1234}", True),
        (1234, r"\boxed{\$1,234.00}", True),
        (0.5, r"\boxed{\frac{1}{2}}", True),
        ("18", r"\boxed{18 \text{ dollars}}", True),
        ("18", r"\boxed{x = 18}", True),
        ("18", r"\boxed{17 \text{ or } 18}", False),
        ("18", r"\boxed{-18}", False),
        ("18", r"\boxed{180}", False),
        ("18", r"\boxed{18.5}", False),
        ("18", r"\boxed{17} then \boxed{18}", True),
        ("18", r"\boxed{18} then \boxed{17}", False),
        ("18", r"so 18. \boxed{18", False),
        ("18", "9 + 9 = 18\n#### 18", True),
        ("18", "9 + 9 is easy.\nThe answer is 18.", True),
        ("18", "The answer is 18.\nOr is it?", False),
        ("18", "9 + 9 = 18", False),
        ("Paris", r"\boxed{paris}", True),
        ("Paris", r"\boxed{\text{Paris}}", True),
        ("Paris", "Of France?\nParis.", True),
        ("Paris", r"\boxed{London}", False),
        ("Paris", "", False),
        ("(B)", r"\boxed{b}", True),
        ("Apollo 11", r"\boxed{11}", False),
        ("x + 1", r"\boxed{x  + 1}", True),
    ],
)
def test_an_answer_is_the_same_number_or_the_same_text(file, answer, text, right):
    assert graded(file, answer, text)["correct"].item() == right


@quickly
@given(st.text() | st.text(alphabet="\\boxed{}#0123456789.,-/ \n$", max_size=60))
def test_no_response_at_all_raises(text):
    task = object.__new__(Questions)
    assert len(normal(final(text))) <= 3 * len(text)  # ß is casefolded to ss, ΐ to three
    for wanted in ("7", "Paris"):
        task.read(Question("?", wanted), text)
        assert task.answer_of(Question("?", wanted), text) != ""


@pytest.mark.parametrize(
    "piece", ["1", "1,", "1 ", "-", "#", "\n", "$", "{", "a", "(", r"\text{", "1/", "1."]
)
def test_a_megabyte_takes_no_time(piece):
    text, start = piece * (1_000_000 // len(piece)), time.process_time()
    for hostile in (text, r"\boxed{" + text + "}"):
        only_number(final(hostile)), normal(hostile)
    assert time.process_time() - start < 2


def test_equal_answers_cast_the_same_vote(file):
    task, paris = Questions(file(GSM8K)), Question("Of France?", "Paris")
    (seven,) = task.questions
    numbers = (r"\boxed{7}", "#### 7.0", "So:\n$7", r"\boxed{7 \text{ apples}}", "She has 7 apples.")
    assert {task.answer_of(seven, text) for text in numbers} == {"7"}
    assert {task.answer_of(seven, text) for text in ("8 apples", r"\boxed{8}")} == {"8"}
    texts = (r"\boxed{Paris}", "PARIS.", r"\boxed{\text{paris}}")
    assert {task.answer_of(paris, text) for text in texts} == {"paris"}
    assert task.answer_of(Question("Which one landed?", "Apollo 11"), "11") == "11"
    for nothing in ("", "7 or 8", "No idea"):
        assert task.answer_of(seven, nothing) is None


@quickly
@given(st.text(alphabet="18.,$/ aA(\n", max_size=8), st.text(alphabet="18.,$/ aA(\n", max_size=8))
@pytest.mark.parametrize("wanted", ["18", "1/8", "a", "A 18"])
def test_who_votes_together_is_right_together_and_the_right_all_vote_together(wanted, one, other):
    task, question = object.__new__(Questions), Question("?", wanted)
    votes = [task.answer_of(question, text) for text in (one, other)]
    right = [task.read(question, text)["correct"] for text in (one, other)]
    assert None not in [vote for vote, is_right in zip(votes, right) if is_right]
    if all(right):
        assert votes[0] == votes[1]
    if None not in votes and votes[0] == votes[1]:
        assert right[0] == right[1]


@pytest.mark.parametrize(
    "number, said",
    [
        ("0.00005", "0.00005"),
        ("1e-7", r"\boxed{0.0000001}"),
        ("1e16", "10000000000000000"),
        ("1E+2", "100"),
        ("2.5e20", "250,000,000,000,000,000,000"),
        ("-0.0", "0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
    ],
)
def test_a_json_number_is_the_number_that_people_write(file, number, said):
    task = Questions(file(f'{{"question": "?", "answer": {number}}}'))
    assert task.read(task.questions[0], said)["correct"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1e300", "1e-80"])
def test_a_json_number_that_no_response_can_be_is_refused_with_its_line(file, number):
    path = file(*GOOD, f'{{"question": "?", "answer": {number}}}')
    with pytest.raises(ValueError, match=f'^line 2 of {re.escape(path)}: "answer" '):
        Questions(path)
    other = f'{{"question": "?", "answer": 1, "id": {number}}}'  # what nobody reads harms nobody
    assert len(Questions(file(other)).questions) == 1


def test_the_parts_are_disjoint_and_stay_what_they_are(file):
    many = [{"question": f"What is {i} + 1?", "answer": i + 1} for i in range(1000)]
    path = file(*many)
    train, test, everything = (
        {q.prompt for q in Questions(path, part=part).questions} for part in ("train", "test", "all")
    )
    assert train | test == everything and not train & test
    assert 60 < len(test) < 140
    path = file(*reversed(many[:500]), *({"question": f"New {i}", "answer": 0} for i in range(100)))
    now = {q.prompt for q in Questions(path, part="test").questions}
    assert {prompt for prompt in now if "New" not in prompt} == test & {
        q.prompt for q in Questions(path).questions
    }
    other = {q.prompt for q in Questions(path, part="test", instruction="").questions}
    assert other == {prompt.split("\n")[0] for prompt in now}  # whatever is asked for beside


def test_a_part_that_is_empty_or_unknown_is_said(file):
    with pytest.raises(ValueError, match="of the 1 questions in .* none falls into part='test'"):
        Questions(file(GSM8K), part="test")
    with pytest.raises(ValueError, match="part='valid': a file of questions has the parts"):
        Questions(file(GSM8K), part="valid")


def test_its_repr_rebuilds_it_and_a_pocket_is_turned_away(file):
    task = Questions(file(GSM8K), part="train", max_tokens=99)
    assert (
        eval(repr(task), {"Questions": Questions})
        == task
        == Questions(Path(task.path), "train", max_tokens=99)
    )
    assert suited(task, OTHER) is task
    with pytest.raises(ValueError, match="Questions is asked in plain English"):
        suited(task, POCKET)


# ---- feedback


def chat(*turns):
    return [{"role": role, "content": text} for role, text in turns]


ASKED, SAID, WORSE = ("user", "Hi?"), ("assistant", "Yes."), ("assistant", "No.")


@pytest.mark.parametrize(
    "row, found",
    [
        (PAIR, Pair(*PAIR.values())),
        ({"prompt": "Hi?", "response": "Yes."}, Demonstration("Hi?", "Yes.")),
        ({"prompt": "Hi?", "completion": "Yes.", "id": 7}, Demonstration("Hi?", "Yes.")),
        ({"prompt": "Hi?", "response": "Yes.", "good": True}, Verdict("Hi?", "Yes.", True)),
        ({"prompt": "Hi?", "completion": "Yes.", "label": False}, Verdict("Hi?", "Yes.", False)),
        ({"prompt": "Hi?", "responses": ["Yes.", "No.", "?"]}, Ranking("Hi?", ("Yes.", "No.", "?"))),
        ({"prompt": chat(ASKED), "chosen": chat(SAID), "rejected": chat(WORSE)}, Pair("Hi?", "Yes.", "No.")),
        ({"chosen": chat(ASKED, SAID), "rejected": chat(ASKED, WORSE)}, Pair("Hi?", "Yes.", "No.")),
        ({"prompt": "Hi?", "chosen": chat(ASKED, SAID), "rejected": "No."}, Pair("Hi?", "Yes.", "No.")),
        ({"messages": chat(ASKED, SAID)}, Demonstration("Hi?", "Yes.")),
        ({"prompt": chat(ASKED), "completion": chat(SAID), "label": True}, Verdict("Hi?", "Yes.", True)),
    ],
)
def test_every_kind_of_feedback_is_read(file, row, found):
    assert preferences(file(row, "", row)) == [found, found]
    assert type(preferences(file(row))[0]) is type(found)


@pytest.mark.parametrize(
    "row, what",
    [
        ({"prompt": "a", "chosen": "b"}, 'lacks one of "rejected"; it has "prompt", "chosen"'),
        ({"chosen": "b", "rejected": "c"}, 'lacks one of "prompt"'),
        ({"prompt": "a"}, 'lacks one of "response", "completion", "messages"; it has "prompt"'),
        ({"prompt": "a", "response": ""}, '"response" is empty'),
        ({"prompt": "a", "responses": ["b"]}, '"responses" must be a list of two or more, the best first'),
        ({"prompt": "a", "responses": "bc"}, '"responses" must be a list of two or more'),
        ({"prompt": "a", "response": "b", "good": 1}, '"good" must be true or false; it is 1'),
        ({"prompt": "a", "completion": "b", "label": "yes"}, '"label" must be true or false; it is "yes"'),
        (
            {"prompt": chat(("system", "Be kind."), ASKED), "response": "b"},
            '"prompt" must be a text, or a conversation',
        ),
        ({"prompt": chat(ASKED, SAID, ASKED), "response": "b"}, "conversation of one turn"),
        (
            {"messages": chat(ASKED, SAID, ASKED, SAID)},
            '"messages" must be a text, or a conversation of one turn',
        ),
        (
            {"prompt": "a", "chosen": chat(ASKED), "rejected": "c"},
            '"chosen" must be a text, or a conversation of one',
        ),
        ({"prompt": "Who?", "messages": chat(ASKED, SAID)}, "answers two questions: 'Hi?' and 'Who?'"),
        ({"chosen": chat(ASKED, SAID), "rejected": chat(("user", "Who?"), SAID)}, "answers two questions"),
    ],
)
def test_feedback_that_cannot_be_read_is_named(file, row, what):
    first = {"prompt": "a", "response": "b"}
    path = file(first, "", row)
    with pytest.raises(ValueError, match=f"^line 3 of {re.escape(path)}:? .*{re.escape(what)}"):
        preferences(path)


def test_a_file_holds_one_kind(file):
    path = file(PAIR, PAIR, {"prompt": "a", "response": "b"})
    with pytest.raises(
        ValueError, match="^line 3 of .* is a Demonstration, and the lines before it are Pairs"
    ):
        preferences(path)
