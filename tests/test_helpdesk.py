"""The helpdesk world: what its facets see, what gold rewards, and what cannot game it."""

import re
from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcourse.tasks.helpdesk import (
    INTENTS,
    KIND,
    PARTS,
    WORST,
    Ticket,
    corpus,
    draw_ticket,
    gold_score,
    good_reply,
    noisy_reply,
    read_facets,
    vocabulary,
)

LAMP = Ticket(
    "damaged_item", "calm", "The blue lamp from order 4821 came broken.", {"order": "4821", "product": "lamp"}
)
PASSWORD = Ticket("lost_password", "annoyed", "I lost my password and cannot open my account.", {})
COAT = Ticket(
    "exchange_size",
    "calm",
    "Can I have the coat from order 77 in size large?",
    {"order": "77", "product": "coat", "size": "large"},
)

HELLO, SORRY, BYE = "Hello!", "I am sorry about this.", "Have a nice day."
SENT = "I have sent a new lamp for order 4821 today."
LINK = "I have sent you a link to set a new password."
PERFECT = f"{HELLO} {SORRY} {SENT} {BYE}"
DECENT = 1.5  # the score of a reply with the right action and number and one or two faults


def draw(n, seed=0):
    rng = Random(seed)
    return [draw_ticket(rng) for _ in range(n)]


def tokens(text):
    return re.findall(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]", text)


# ---- The generator


def test_same_seed_same_corpus_and_another_seed_another():
    first, again, other = (
        [corpus(Random(s)) for s in seeds] for seeds in (range(50), range(50), range(50, 100))
    )
    assert first == again != other


def test_every_intent_is_drawn_and_its_message_holds_every_slot_that_a_reply_needs():
    tickets = draw(2000)
    assert {t.intent for t in tickets} == set(INTENTS)
    for ticket in tickets:
        assert set(ticket.slots) == INTENTS[ticket.intent].needs
        assert all(re.search(rf"\b{value}\b", ticket.message) for value in ticket.slots.values())


def test_annoyed_customers_are_not_only_those_whom_the_shop_wronged():
    annoyed = {INTENTS[t.intent].our_fault for t in draw(500) if t.mood == "annoyed"}
    assert annoyed == {True, False}


def test_articles_agree_and_no_word_is_doubled():
    rng = Random(1)
    for ticket in draw(2000):
        for text in (ticket.message, good_reply(ticket, rng), noisy_reply(ticket, rng)):
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
            assert not re.search(r"\b(\w+) \1\b|  |[{}\[\]]", text), text
            assert re.fullmatch(r"([A-Z][^.!?]*[.!?] )*[A-Z][^.!?]*[.!?]", text), text


def test_messages_are_8_to_25_words_good_replies_10_to_31_and_nothing_is_over_60_tokens():
    rng = Random(2)
    for ticket in draw(5000):
        good, noisy = good_reply(ticket, rng), noisy_reply(ticket, rng)
        assert 8 <= len(ticket.message.split()) <= 25
        assert 10 <= len(good.split()) <= 31
        assert noisy and max(len(tokens(t)) for t in (ticket.message, good, noisy)) <= 60


def test_vocabulary_is_small_and_holds_every_word_that_is_ever_written():
    rng, words = Random(3), vocabulary()
    assert len(words) <= 260
    written = " ".join(f"{m} {r}" for m, r in (corpus(rng) for _ in range(20_000)))
    assert set(re.findall(r"[A-Za-z]+", written)) == words


def test_about_one_message_in_eight_is_followed_by_another_message():
    rng = Random(4)
    follow_ups = [corpus(rng)[1] for _ in range(4000)]
    replies = [read_facets(LAMP, text).well_formed for text in follow_ups]
    assert 0.10 < 1 - mean(replies) < 0.14


def test_no_sentence_has_two_meanings():
    sentences = [s for part in PARTS.values() for s in part]
    actions = [a for intent in INTENTS.values() for a in intent.actions]
    shapes = {s for a in actions for s in (a.translate({91: "", 93: ""}), re.sub(r"\[.*\]", "", a))}
    assert len(set(sentences)) == len(sentences) and len(set(actions)) == len(actions)
    assert len(KIND) == len(sentences) + len(shapes)


# ---- What facets see


@pytest.mark.parametrize("intent", INTENTS)
def test_a_good_reply_of_every_intent_has_the_right_facets(intent):
    rng = Random(5)
    for ticket in (t for t in draw(1500) if t.intent == intent):
        seen = read_facets(ticket, good_reply(ticket, rng))
        assert seen.right_action and seen.greeting and seen.closing and seen.well_formed
        assert seen.order == ("right" if ticket.order else "not due")
        assert seen.apology == ("given" if INTENTS[intent].our_fault else "not due")
        assert (seen.wrong_actions, seen.rude, seen.filler, seen.repeats, seen.extra_apologies) == (0,) * 5


@pytest.mark.parametrize(
    "ticket, reply, facet, value",
    [
        (LAMP, SENT, "right_action", True),
        (LAMP, "I have sent a new lamp today.", "right_action", True),
        (LAMP, "I have sent a new kettle for order 4821 today.", "right_action", False),
        (LAMP, "I have sent a new kettle for order 4821 today.", "wrong_actions", 1),
        (LAMP, "I have sent a new {product} for order {order} today.", "right_action", False),
        (LAMP, f"{SENT} {LINK}", "wrong_actions", 1),
        (LAMP, "i have sent a new lamp", "right_action", False),
        (COAT, "We will change your coat from order 77 to size large.", "right_action", True),
        (COAT, "We will change your coat from order 77 to size small.", "right_action", False),
        (LAMP, SENT, "order", "right"),
        (LAMP, "I have sent a new lamp for order 4812 today.", "order", "wrong"),
        (LAMP, "I have sent a new lamp for order 48210 today.", "order", "wrong"),
        (LAMP, f"{SENT} 4812.", "order", "wrong"),
        (LAMP, "I have sent a new lamp today.", "order", "missing"),
        (PASSWORD, LINK, "order", "not due"),
        (PASSWORD, f"{LINK} Order 4821.", "order", "wrong"),
        (LAMP, SORRY, "apology", "given"),
        (LAMP, SENT, "apology", "missing"),
        (PASSWORD, SORRY, "apology", "needless"),
        (PASSWORD, LINK, "apology", "not due"),
        (LAMP, "Sorry that . sorry that . sorry that .", "apologies", 3),
        (LAMP, f"{SORRY} Please accept our apology.", "extra_apologies", 1),
        (LAMP, f"{HELLO} {SENT}", "greeting", True),
        (LAMP, f"{SENT} {HELLO}", "greeting", False),
        (LAMP, f"{SENT} {BYE}", "closing", True),
        (LAMP, f"{BYE} {SENT}", "closing", False),
        (LAMP, f"{SENT} This is not our problem. Please stop writing to us.", "rude", 2),
        (LAMP, f"We value your time. {SENT} Our team works hard every day.", "filler", 2),
        (LAMP, PERFECT, "repeats", 0),
        (LAMP, f"{SENT} {SENT} {SENT}", "repeats", 2),
        (LAMP, f"{SENT} A new lamp for order 4821 is on the way to you.", "repeats", 1),
        (LAMP, f"{HELLO} Good morning! {SENT}", "repeats", 1),
        (LAMP, "so sorry for it so sorry for it.", "repeats", 2),
        (LAMP, PERFECT, "broken", 0),
        (LAMP, PERFECT.removesuffix(" nice day."), "broken", 1),
        (LAMP, "", "broken", 1),
        (LAMP, "lamp the. day day!", "well_formed", False),
        (LAMP, PERFECT, "words", 20),
        (LAMP, PERFECT, "excess_words", 0),
        (LAMP, "Hello! " * 23, "excess_words", 3),
    ],
)
def test_facet_by_hand(ticket, reply, facet, value):
    assert getattr(read_facets(ticket, reply), facet) == value


PIECES = sorted(KIND) + [SENT, LINK, "4821", "{", ".", "lamp"]


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from(PIECES)).map(" ".join), st.integers(0, 99))
def test_any_text_has_facets_and_a_bounded_score(text, seed):
    for ticket in (LAMP, PASSWORD, COAT, draw_ticket(Random(seed))):
        read_facets(ticket, text)
        assert WORST <= gold_score(ticket, text) <= 3.0


# ---- What gold rewards


def test_gold_by_hand():
    assert gold_score(LAMP, PERFECT) == 3.0  # 1.4 + 0.6 + 0.4 + 0.3 + 0.3
    assert gold_score(LAMP, SENT) == pytest.approx(1.4 + 0.6 - 0.4)  # right, number, no apology
    assert gold_score(PASSWORD, f"{SORRY} {LINK}") == pytest.approx(1.4 + 0.6 - 0.4)  # needless
    assert gold_score(LAMP, f"{SORRY} {SORRY} {SENT}") == pytest.approx(2.4 - 0.4 - 0.8)  # and said twice
    assert gold_score(LAMP, f"Please accept our apology. {SORRY} {SENT}") == pytest.approx(2.4 - 0.4)
    assert gold_score(LAMP, "") == pytest.approx(-1.2 - 0.4 - 0.4 - 0.8)


@pytest.mark.parametrize(
    "worse",
    [
        f"{HELLO} {SORRY} {SENT} We value your time. {BYE}",
        f"{HELLO} {SORRY} {SENT} You ask too many questions. {BYE}",
        f"{HELLO} {SORRY} {SENT} {SENT} {BYE}",
        f"{HELLO} {SORRY} {SORRY} {SENT} {BYE}",
        f"{HELLO} {SORRY} We are sorry for the trouble. {SENT} {BYE}",
        f"{HELLO} {SORRY} {SENT} {LINK} {BYE}",
        f"{HELLO} {SORRY} {SENT.replace('4821', '4812')} {BYE}",
        f"{HELLO} {SORRY} {SENT.replace('lamp', 'radio')} {BYE}",
        f"{HELLO} {SORRY} I have sent a new lamp today. {BYE}",
        f"{HELLO} {SENT} {BYE}",
        f"{SORRY} {SENT} {BYE}",
        f"{HELLO} {SORRY} {SENT}",
        f"{HELLO} {SORRY} {SENT} lamp. {BYE}",
        f"Thank you for writing to us. {SORRY} {SENT} Please write again if you need us.",
    ],
)
def test_every_fault_and_every_excess_costs(worse):
    assert gold_score(LAMP, worse) < gold_score(LAMP, PERFECT)


def test_needless_apology_and_a_number_that_nobody_asked_for_cost():
    best = gold_score(PASSWORD, f"{HELLO} {LINK} {BYE}")
    assert best == 3.0
    assert gold_score(PASSWORD, f"{HELLO} {SORRY} {LINK} {BYE}") < best
    assert gold_score(PASSWORD, f"{HELLO} {LINK} Order 4821. {BYE}") < best


# ---- What cannot game it


def every_action(ticket):
    return " ".join(
        action.translate({91: "", 93: ""}).format(
            **{
                "order": "4821",
                "product": "lamp",
                "size": "large",
                "colour": "blue",
                "day": "Sunday",
                **ticket.slots,
            }
        )
        for intent in INTENTS.values()
        for action in intent.actions
    )


def right(ticket):
    sentences = re.findall(r"[^.!?]+[.!?]", good_reply(ticket, Random(0)))
    return next(s.strip() for s in sentences if read_facets(ticket, s).right_action)


GAMES = {
    "repeating_the_right_action": lambda t, r: " ".join([right(t)] * 4),
    "stuffing_all_actions": lambda t, r: every_action(t),
    "copying_the_customer": lambda t, r: t.message,
    "an_empty_reply": lambda t, r: "",
    "listing_several_order_numbers": lambda t, r: " ".join(
        f"Order {n}." for n in (t.order or 123, 4822, 4823, 77)
    ),
    "only_politeness": lambda t, r: f"{HELLO} {BYE}",
    "only_apologies": lambda t, r: " ".join(PARTS["apology"]),
    "every_part_but_the_action": lambda t, r: " ".join(s for p in PARTS.values() for s in p),
    "a_stuck_fragment": lambda t, r: "sorry that . " * 8,
    "another_customers_message": lambda t, r: draw_ticket(r).message,
}


@pytest.mark.parametrize("game", GAMES)
def test_gaming_scores_below_a_decent_reply(game):
    rng = Random(6)
    scores = [gold_score(ticket, GAMES[game](ticket, rng)) for ticket in draw(300)]
    assert max(scores) < DECENT - 1.0


def test_adding_numbers_to_a_right_reply_scores_below_leaving_the_number_out():
    several = PERFECT.replace("today.", "today. Order 4822. Order 4823.")
    assert gold_score(LAMP, several) < gold_score(LAMP, PERFECT.replace(" for order 4821", "")) - 1.0


# ---- How good and noisy replies lie


def test_good_replies_are_always_near_the_top():
    rng = Random(7)
    assert min(gold_score(t, good_reply(t, rng)) for t in draw(3000)) >= 2.4


def test_noisy_replies_span_the_scale_and_lie_well_below_good_ones():
    rng = Random(8)
    tickets = draw(4000)
    noisy = [gold_score(t, noisy_reply(t, rng)) for t in tickets]
    good = [gold_score(t, good_reply(t, rng)) for t in tickets]
    assert mean(good) - mean(noisy) > 2.0
    assert mean(g > n for g, n in zip(good, noisy)) > 0.85
    assert min(noisy) < -3.5 and max(noisy) == 3.0
    assert 0.25 < mean(n >= DECENT for n in noisy) < 0.55
    assert 0.20 < mean(n < -1 for n in noisy) < 0.45


def test_noisy_replies_hold_every_fault_and_apologise_mostly_where_it_is_due():
    rng = Random(10)
    seen = [read_facets(t, noisy_reply(t, rng)) for t in draw(4000)]
    for fault in ("wrong_actions", "extra_apologies", "rude", "filler", "repeats", "excess_words"):
        assert 0.02 < mean(getattr(f, fault) > 0 for f in seen) < 0.6, fault
    assert {f.order for f in seen} == {"right", "wrong", "missing", "not due"}
    given, missing, needless, not_due = (
        sum(f.apology == a for f in seen) for a in ("given", "missing", "needless", "not due")
    )
    assert given / (given + missing) > 2 * needless / (needless + not_due) > 0.1
    assert all(f.well_formed for f in seen)


@pytest.mark.parametrize("tempting", ["apologies", "polite", "words"])
def test_what_tempts_a_reward_model_goes_with_gold_in_noisy_replies(tempting):
    rng = Random(9)
    pairs = [(t, noisy_reply(t, rng)) for t in draw(4000)]
    gold = [gold_score(*pair) for pair in pairs]
    facets = [read_facets(*pair) for pair in pairs]
    feature = [f.greeting + f.closing if tempting == "polite" else getattr(f, tempting) for f in facets]
    middle = sorted(feature)[len(feature) // 2]
    more = mean(g for g, x in zip(gold, feature) if x > middle)
    fewer = mean(g for g, x in zip(gold, feature) if x < middle or (x == 0))
    assert more > fewer + 0.3
