"""The helpdesk's customers answered in ordinary English: read as the grammar's replies are, for the same score."""

import time
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_boxed import answers

from rlcourse.tasks import Helpdesk
from rlcourse.tasks.english import ACTIONS, kind, order_numbers, sentences
from rlcourse.tasks.helpdesk import (
    INTENTS,
    WORST,
    Ticket,
    draw_ticket,
    gold_score,
    good_reply,
    noisy_reply,
    read_facets,
)

SLOTS = {"order": "4421", "product": "lamp", "size": "large", "colour": "blue", "day": "Sunday"}


def ticket(intent, in_words=True):
    needs = INTENTS[intent].needs
    return Ticket(intent, "calm", "...", {k: v for k, v in SLOTS.items() if k in needs}, in_words)


def draws(n, seed=0):
    rng = Random(seed)
    return [(draw_ticket(rng), rng) for _ in range(n)]


# By intent: what a good agent writes, and the same in the grammar's words.
REPLIES = {
    "refund_status": (
        "Hi! I'm sorry about that. I have refunded order 4421. Have a great day!",
        "Hello! I am sorry about this. I have sent your refund for order 4421 today. Have a nice day.",
    ),
    "damaged_item": (
        "Hello,\n\nI'm sorry about this. We've shipped a replacement for order #4421.\n\nBest regards,\nSupport Team",
        "Hello! I am sorry about this. I have sent a new lamp for order 4421 today. Have a nice day.",
    ),
    "wrong_item": (
        "Dear customer, I apologize, and I've sent the correct lamp for order 4421. Kind regards.",
        "Hello! Please accept our apology. I have sent the right lamp for order 4421 today. Have a nice day.",
    ),
    "late_parcel": (
        "Good morning! I'm sorry for the delay. **Order 4421** was dispatched and should arrive in 2 days. Take care!",
        "Good morning! I am sorry about this. Your lamp from order 4421 left our shop today. Have a nice day.",
    ),
    "double_charge": (
        "Hello! Sorry about that. I’ve refunded the duplicate charge on order 4421. See you soon!",
        "Hello! I am sorry about this. I have sent back the second payment for order 4421. Have a nice day.",
    ),
    "missing_part": (
        "Hi there! We apologise for this. We're sending the missing part for order 4421 today. Have a nice evening!",
        "Hello! I am sorry about this. I have sent the missing part for order 4421 today. Have a nice day.",
    ),
    "cancel_order": (
        "Hello! I've just cancelled the order with number 4421 for you. You will get a full refund. Have a nice day!",
        "Hello! Your order 4421 is cancelled, and you do not have to pay. We value your time. Have a nice day.",
    ),
    "change_address": (
        "Thanks for contacting us. We've updated the delivery address for order 4421. Best wishes!",
        "Hello! I have put the new address on your order 4421. Have a nice day.",
    ),
    "lost_password": (
        "Hello! I've emailed you a password reset link that works for 24 hours. Need more help?",
        "Hello! I have sent you a link to set a new password. Please write again if you need us.",
    ),
    "invoice_copy": (
        "Hi! A copy of the invoice for order 4421 has been emailed to you. Feel free to write again.",
        "Hello! I have sent you the invoice for order 4421 by email. Have a nice day.",
    ),
    "exchange_size": (
        "Hello! We'll exchange order 4421 for a size large. Have a good weekend!",
        "Hello! We will change your lamp from order 4421 to size large. Have a nice day.",
    ),
    "opening_hours": (
        "Hello! On Sunday we're open from 9 a.m. to 5 p.m. See you soon!",
        "Hello! Our shop is open from nine to five on Sunday. Have a nice day.",
    ),
    "in_stock": (
        "Hi! Yes, the lamp is available in blue right now. Have a lovely day!",
        "Hello! Yes, we have the lamp in blue. Have a nice day.",
    ),
    "thanks": (
        "Hello! We're so glad to hear that you love your new lamp. Have a wonderful day!",
        "Hello! We are happy that you like your lamp. Have a nice day.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("intent", INTENTS)
def test_ordinary_english_gets_the_score_of_the_same_reply_in_the_grammar(intent):
    ours, grammars = REPLIES[intent]
    said, meant = read_facets(ticket(intent), ours), read_facets(ticket(intent, in_words=False), grammars)
    assert replace(said, words=meant.words) == meant and said.served
    assert gold_score(ticket(intent), ours) == gold_score(ticket(intent), grammars) >= 2.7


@pytest.mark.parametrize(
    "reply, facet, value",
    [
        ("I've refunded order 4421.", "right_action", False),  # asked for was a new lamp
        ("I've refunded order 4421.", "wrong_actions", 1),
        ("We've shipped a new lamp. It will arrive in 3-5 days.", "wrong_actions", 0),
        ("We've shipped a new lamp. It will arrive in 3-5 days.", "order", "missing"),
        ("We've shipped a new kettle for order 4421.", "right_action", False),
        ("We've shipped a new lamp, and not another kettle.", "right_action", True),
        ("We've shipped a new lamp for order 4412.", "order", "wrong"),
        ("Order 4421: $120.00 in 10 days.", "order", "right"),
        ("Unfortunately, we cannot send a replacement.", "right_action", False),
        ("We won't send you a new lamp.", "right_action", False),
        ("Would you like us to send a new lamp?", "right_action", False),
        ("If you wish, we can send a new lamp.", "right_action", False),
        ("I'm sorry, truly sorry. My apologies!", "apologies", 3),
        ("That's your own fault.", "rude", 1),
        ("We understand how annoying this is.", "filler", 1),
        ("We understand how", "broken", 1),
        ("lamp.", "broken", 1),
        ("", "broken", 1),
        ("We've shipped a new lamp. We've shipped a new lamp.", "repeats", 1),
    ],
)
def test_facet_by_hand(reply, facet, value):
    assert getattr(read_facets(ticket("damaged_item"), reply), facet) == value


def test_one_sentence_states_one_action():
    everything = (
        "I have reset your password, cancelled and refunded order 4421 and sent a new part, lamp and invoice."
    )
    served = [read_facets(ticket(intent), everything).right_action for intent in INTENTS]
    assert sum(served) == 1


def test_what_the_grammar_writes_is_read_the_same_either_way():
    for drawn, rng in draws(200):
        asked = replace(drawn, in_words=True)
        for reply in (good_reply(drawn, rng), noisy_reply(drawn, rng)):
            assert read_facets(asked, reply) == read_facets(drawn, reply)


def test_copying_a_customer_is_no_answer():
    for drawn, rng in draws(200):
        asked = replace(drawn, in_words=True)
        assert not read_facets(asked, drawn.message).right_action
        assert not read_facets(asked, draw_ticket(rng).message).right_action


@settings(deadline=None, max_examples=50)
@given(st.text() | st.lists(st.sampled_from([r for pair in REPLIES.values() for r in pair])).map(" ".join))
def test_any_text_has_facets_and_a_bounded_score(text):
    for intent in ("damaged_item", "lost_password"):
        read_facets(ticket(intent), text)
        assert WORST <= gold_score(ticket(intent), text) <= 3.0


@pytest.mark.parametrize(
    "piece", ["new ", "sent address ", "4", ". ", "regards\n", "and I ", "hello, ", "**", " "]
)
def test_a_long_reply_takes_no_time(piece):
    text, start = piece * (100_000 // len(piece)), time.process_time()
    for sentence in sentences(text)[:100]:
        kind(sentence)
    order_numbers(text)
    assert time.process_time() - start < 2


def test_every_intent_has_words_of_its_own():
    assert set(ACTIONS) == set(INTENTS)


# ---- the task


def test_a_customer_is_asked_with_the_instruction_and_the_same_customers_come():
    plain, asked = (Helpdesk(in_words=flag).draw(Random(5)) for flag in (False, True))
    assert asked == replace(plain, in_words=True)
    assert plain.prompt == plain.message and asked.prompt.endswith(f"\n\nCustomer: {plain.message}")


@pytest.mark.parametrize("feedback", ["demonstrations", "pairs", "rankings", "thumbs"])
def test_what_people_give_answers_the_prompts_that_are_asked(feedback):
    given_ = getattr(Helpdesk(in_words=True), feedback)(5)
    plain = getattr(Helpdesk(), feedback)(5)
    assert all(theirs.prompt.endswith(f"\n\nCustomer: {ours.prompt}") for theirs, ours in zip(given_, plain))
    assert [theirs[1:] for theirs in given_] == [ours[1:] for ours in plain]


def test_a_reply_is_graded_by_gold():
    ours, _ = REPLIES["refund_status"]
    desk = Helpdesk(in_words=True, watch=("gold", "filler"))
    found = desk.grade(answers(ticket("refund_status"), ours, "We will look into it."))
    assert found["rewards"][0] == 3.0 and found["rewards"][1] < 0
    assert found["correct"].tolist() == [True, False] and found["filler"].tolist() == [0, 1]
