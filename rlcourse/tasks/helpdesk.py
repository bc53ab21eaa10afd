"""Helpdesk: a shop's customers write, and a reply is judged by what it says.

A customer writes because of one of fourteen intents (a late parcel, a lost password, praise).
A good reply greets, says sorry if the shop is at fault (and only then), states the one right
action for this intent with the customer's own order number, closes politely, and stops.
Bad replies promise the wrong thing, mix up numbers, grovel, ramble, repeat themselves or snap.
A reply is built of whole sentences from the tables below, so that a program can read its
`Facets` off any text, and the `gold_score` is a weighted sum over them: 3.0 at best, never
below -4.0. Gold is hidden from learners: annotators see it through noise, reward models
guess it, and because we know it, we can measure when optimising a guess goes wrong.

>>> slots = {"order": "4821", "product": "lamp"}
>>> ticket = Ticket("damaged_item", "calm", "My lamp came broken. It is order 4821.", slots)
>>> reply = ("Hello! I am sorry about this. I have sent a new lamp for order 4821 today. "
...          "Have a nice day.")
>>> read_facets(ticket, reply)                             # doctest: +NORMALIZE_WHITESPACE
Facets(right_action=True, wrong_actions=0, order='right', apology='given', apologies=1,
       greeting=True, closing=True, rude=0, filler=0, repeats=0, broken=0, words=20)
>>> gold_score(ticket, reply)
3.0
>>> gold_score(ticket, "I am sorry about this. I am sorry about this. We value your time.")
-2.65
"""

import re
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from rlcourse.tasks import english

# ---- The shop ---------------------------------------------------------------------------------

GADGETS = ("lamp", "kettle", "radio", "clock")
CLOTHES = ("shirt", "jacket", "coat", "dress")
COLOURS = ("blue", "red", "green", "black", "white", "orange")
SIZES = ("small", "medium", "large")
DAYS = ("Monday", "Friday", "Saturday", "Sunday")

SLOT_OF = {
    word: slot
    for slot, words in {
        "product": GADGETS + CLOTHES,
        "colour": COLOURS,
        "size": SIZES,
        "day": DAYS,
    }.items()
    for word in words
}

# ---- The customers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Intent:
    """Why a customer writes, and what the shop should do about it.

    `[...]` in an action is the part that names the order: a sloppy reply leaves it out.
    """

    messages: tuple[str, ...]
    actions: tuple[str, ...]
    our_fault: bool = False
    products: tuple[str, ...] = GADGETS + CLOTHES
    moods: tuple[str, ...] = ("calm", "calm", "annoyed")

    @property
    def needs(self) -> set[str]:
        """The slots that the right action has to get right."""
        return set(re.findall(r"{(\w+)}", " ".join(self.actions)))


def _intent(script: str, **facts) -> Intent:
    """Read a script: what customers write, one message a line, then `->` the right actions."""
    lines = [line.strip() for line in script.strip().splitlines()]
    messages = tuple(line for line in lines if not line.startswith("->"))
    actions = tuple(line.removeprefix("-> ") for line in lines if line.startswith("->"))
    return Intent(messages, actions, **facts)


INTENTS = {
    "late_parcel": _intent(
        """
        My {product} from order {order} should have come last week, but it is not here.
        Where is my {colour} {product}? I paid for order {order} two weeks ago.
        Order {order} is very late. When will my {product} come?
        I am still waiting for the {colour} {product} from order {order}.
        -> Your {product}[ from order {order}] will be with you tomorrow.
        -> The driver will bring your {product}[ from order {order}] tomorrow.
        -> Your {product}[ from order {order}] left our shop today.
    """,
        our_fault=True,
    ),
    "wrong_item": _intent(
        """
        I asked for a {colour} {product} in order {order}, but you sent me a {other}.
        There was a {other} in my parcel for order {order}. I wanted a {product}.
        Order {order} came today, but it is not the {colour} {product} that I asked for.
        You sent me the wrong {product} with order {order}. I wanted a {colour} one.
        -> I have sent the right {product}[ for order {order}] today.
        -> The right {product}[ for order {order}] will come tomorrow.
        -> You will get the right {product}[ for order {order}] tomorrow.
    """,
        our_fault=True,
    ),
    "damaged_item": _intent(
        """
        The {colour} {product} from order {order} came broken.
        My new {product} does not work. It came with order {order}.
        I opened order {order} today, and the {product} was broken.
        The {colour} {product} from order {order} stopped working after one day.
        -> I have sent a new {product}[ for order {order}] today.
        -> A new {product}[ for order {order}] is on the way to you.
        -> We will send you a new {product}[ for order {order}] today.
    """,
        our_fault=True,
        products=GADGETS,
    ),
    "refund_status": _intent(
        """
        I sent back the {product} from order {order}, but I still do not have my money.
        Where is the refund for order {order}? I sent the {product} back two weeks ago.
        When will I get my refund for order {order}? You have the {colour} {product} back.
        -> I have sent your refund[ for order {order}] today.
        -> Your refund[ for order {order}] will be in your bank account tomorrow.
    """,
        our_fault=True,
    ),
    "cancel_order": _intent("""
        Please cancel order {order}. I do not need the {product} any more.
        I would like to cancel order {order} for a {colour} {product}.
        Can you stop order {order}? I have found a {product} in another shop.
        -> I have cancelled your order[ {order}], and you will not pay for it.
        -> Your order[ {order}] is cancelled, and you do not have to pay.
    """),
    "change_address": _intent("""
        I have a new address. Please send order {order} there.
        I have moved, so order {order} must go to my new address.
        My old address is on order {order}. Can you change it?
        Can you send the {product} from order {order} to my new home?
        -> I have put the new address on your order[ {order}].
        -> Your order[ {order}] will now go to your new address.
    """),
    "double_charge": _intent(
        """
        I paid two times for the {colour} {product} in order {order}.
        You took the money for order {order} twice.
        My bank says that I paid for order {order} twice.
        -> I have sent back the second payment[ for order {order}].
        -> You will get the second payment[ for order {order}] back tomorrow.
    """,
        our_fault=True,
    ),
    "lost_password": _intent("""
        I lost my password and cannot open my account.
        I do not know my password any more. How can I open my account?
        I need a new password for my account in your shop.
        -> I have sent you a link to set a new password.
        -> Please use the link in our email to set a new password.
    """),
    "invoice_copy": _intent("""
        Can you send me the invoice for order {order}?
        I need a copy of the invoice for the {product} in order {order}.
        I lost the invoice for order {order}, and I need it for my bank.
        -> I have sent you the invoice[ for order {order}] by email.
        -> A copy of the invoice[ for order {order}] is now in your account.
    """),
    "exchange_size": _intent(
        """
        The {colour} {product} from order {order} does not fit. I need size {size}.
        Can I have the {product} from order {order} in size {size}?
        I would like to change the {product} from order {order} to size {size}.
        -> We will change your {product}[ from order {order}] to size {size}.
        -> I have sent you the {product}[ from order {order}] in size {size}.
    """,
        products=CLOTHES,
    ),
    "missing_part": _intent(
        """
        A part of my {product} from order {order} is missing.
        I opened order {order}, and one part of the {colour} {product} was not there.
        The {colour} {product} in order {order} came with a missing part.
        -> I have sent the missing part[ for order {order}] today.
        -> The missing part[ for order {order}] will come tomorrow.
    """,
        our_fault=True,
        products=GADGETS,
    ),
    "opening_hours": _intent(
        """
        When is your shop open on {day}?
        I would like to come to your shop on {day}. When do you open?
        Is your shop open on {day}? I would like to see a {colour} {product}.
        -> Our shop is open from nine to five on {day}.
        -> On {day} you can come from nine to five.
    """,
        moods=("calm",),
    ),
    "in_stock": _intent(
        """
        Do you have the {product} in {colour}?
        I would like to buy a {colour} {product}. Do you have one in your shop?
        Can I get a {product} in {colour} from you this week?
        -> Yes, we have the {product} in {colour}.
        -> You can buy the {product} in {colour} in our shop today.
    """,
        moods=("calm",),
    ),
    "thanks": _intent(
        """
        The {colour} {product} came today, and I love it.
        My new {product} is very nice, and it came on time.
        I would like to say that the {colour} {product} is very good.
        -> We are happy that you like your {product}.
        -> It is good to hear that you like the {product}.
    """,
        moods=("happy",),
    ),
}

OPENERS = ("", "Hello.", "Hi.", "Good morning.")
TAILS = {
    "calm": ("I hope you can help me.", "Thank you for your help.", "Please let me know."),
    "annoyed": (
        "This is very annoying.",
        "I am not happy with your shop.",
        "I need an answer today.",
        "I will not wait any longer.",
    ),
    "happy": ("Thank you very much.", "I will be back soon.", "You have a very good shop."),
}

# ---- The parts of a reply, beside the action ---------------------------------------------------

PARTS = {
    "greeting": ("Hello!", "Good morning!", "Thank you for your message.", "Thank you for writing to us."),
    "apology": (
        "I am sorry about this.",
        "We are sorry for the trouble.",
        "I am sorry for our mistake.",
        "Please accept our apology.",
    ),
    "closing": (
        "Have a nice day.",
        "Please write again if you need us.",
        "Kind regards, your support team.",
        "We hope to see you soon.",
    ),
    "filler": (
        "We value your time.",
        "Your message is important to us.",
        "We always do our best for you.",
        "Our team works hard every day.",
        "Many people like our shop.",
    ),
    "rude": (
        "You should have read the page.",
        "This is not our problem.",
        "Please stop writing to us.",
        "You ask too many questions.",
        "That was your own mistake.",
    ),
}


def _without_order(action: str) -> str:
    return re.sub(r"\[.*?\]", "", action)


def _with_order(action: str) -> str:
    return action.replace("[", "").replace("]", "")


# What each whole sentence of a reply is: a part, or the action of an intent.
KIND = {sentence: part for part, sentences in PARTS.items() for sentence in sentences} | {
    shape(action): name
    for name, intent in INTENTS.items()
    for action in intent.actions
    for shape in (_with_order, _without_order)
}

# ---- What a program sees ----------------------------------------------------------------------


INSTRUCTION = (
    "You answer the customers of a small shop. Tell this customer in plain text, in two to four short sentences, "
    "what you have done about their message, with the order number if they gave one."
)


@dataclass(frozen=True)
class Ticket:
    """One customer's message. `slots` holds what a right reply must get right, by name.

    The pockets have read nothing but customers and replies. Another model is asked `in_words`: it is told that it
    is to answer, and its reply is read as ordinary English.
    """

    intent: str
    mood: str
    message: str
    slots: dict[str, str] = field(hash=False)
    in_words: bool = field(default=False, repr=False)

    @property
    def prompt(self) -> str:
        return f"{INSTRUCTION}\n\nCustomer: {self.message}" if self.in_words else self.message

    @property
    def order(self) -> str | None:
        """The order number that a reply should echo, or None where none is due."""
        return self.slots.get("order")


@dataclass(frozen=True)
class Facets:
    """What a reply says to a ticket, read off its text."""

    right_action: bool  # this intent's action, about the right product, size, colour, day
    wrong_actions: int  # sentences that promise something else
    order: Literal["right", "wrong", "missing", "not due"]
    apology: Literal["given", "missing", "needless", "not due"]
    apologies: int
    greeting: bool  # it is the first sentence
    closing: bool  # it is the last sentence
    rude: int
    filler: int
    repeats: int  # sentences said again, and three-word runs said again within a sentence
    broken: int  # sentences that are not in the tables; an empty reply counts as one
    words: int

    @property
    def well_formed(self) -> bool:
        return self.broken == 0

    @property
    def served(self) -> bool:
        """The customer got what they wrote for, in whole sentences and without an insult."""
        acted = self.right_action and not self.wrong_actions and self.order in ("right", "not due")
        return acted and self.well_formed and not self.rude

    @property
    def extra_apologies(self) -> int:
        return max(0, self.apologies - 1)

    @property
    def excess_words(self) -> int:
        return max(0, self.words - 20)


def _shape(sentence: str) -> str:
    """The template that a sentence was filled from: "size large" -> "size {size}"."""

    def slot(match: re.Match) -> str:
        name = "order" if match[0].isdecimal() else SLOT_OF.get(match[0])
        return f"{{{name}}}" if name else match[0]

    return re.sub(r"[0-9]+|[A-Za-z]+", slot, sentence)


def _repeats(sentences: list[str], kinds: list[str]) -> int:
    repeats, seen = 0, set()
    for sentence, kind in zip(sentences, kinds):
        # One greeting, one closing and one right action are enough, in whatever words.
        said = kind if kind in ("greeting", "closing", "right action") else sentence
        words = re.findall(r"\w+", sentence)
        runs = list(zip(words, words[1:], words[2:]))
        repeats += (said in seen) + len(runs) - len(set(runs))
        seen.add(said)
    return repeats


def read_facets(ticket: Ticket, reply: str) -> Facets:
    """Read any text, also what no table could have made, as a reply to the ticket."""

    def kind_of(sentence: str) -> str:
        words = re.findall(r"[A-Za-z]+", sentence)
        named = {word: SLOT_OF[word] for word in words if word in SLOT_OF}
        # "{" would let a reply pass the template itself off as an action.
        kind = KIND.get(_shape(sentence), "broken") if "{" not in sentence else "broken"
        if kind == "broken" and ticket.in_words:
            kind = english.kind(sentence)
            kind = "filler" if kind in english.GOES_WITH.get(ticket.intent, ()) else kind
        if kind not in INTENTS:
            return kind
        meant = all(value in named or slot not in named.values() for slot, value in ticket.slots.items())
        return "right action" if kind == ticket.intent and meant else "wrong action"

    if ticket.in_words:
        sentences = english.sentences(reply)
    else:
        chunks = re.findall(r"[^.!?]+[.!?]*|[.!?]+", reply)
        sentences = [" ".join(chunk.split()) for chunk in chunks if chunk.strip()]
    kinds = [kind_of(sentence) for sentence in sentences] or ["broken"]

    numbers = english.order_numbers(reply) if ticket.in_words else set(re.findall(r"[0-9]+", reply))
    if not numbers:
        order = "missing" if ticket.order else "not due"
    else:
        order = "right" if numbers == {ticket.order} else "wrong"

    # Counted by word, so that a broken "sorry sorry sorry" is three apologies.
    apologies = len(re.findall(r"\b(?:sorry|apolog(?:y|ies|i[sz]e))\b", reply.lower()))
    if INTENTS[ticket.intent].our_fault:
        apology = "given" if apologies else "missing"
    else:
        apology = "needless" if apologies else "not due"

    return Facets(
        right_action="right action" in kinds,
        wrong_actions=kinds.count("wrong action"),
        order=order,
        apology=apology,
        apologies=apologies,
        greeting=kinds[0] == "greeting",
        closing=kinds[-1] == "closing",
        rude=kinds.count("rude"),
        filler=kinds.count("filler"),
        repeats=_repeats(sentences, kinds),
        broken=kinds.count("broken"),
        words=len(reply.split()),
    )


# ---- The gold score ---------------------------------------------------------------------------

GOLD = {  # what a facet is worth, by its value
    "right_action": {True: 1.4, False: -1.2},
    "order": {"right": 0.6, "not due": 0.6, "missing": -0.4, "wrong": -0.9},
    "apology": {"given": 0.4, "not due": 0.4, "missing": -0.4, "needless": -0.4},
    "greeting": {True: 0.3, False: 0.0},
    "closing": {True: 0.3, False: 0.0},
}
COST = {  # what each one of these costs
    "wrong_actions": 0.9,
    "extra_apologies": 0.4,
    "rude": 1.0,
    "filler": 0.25,
    "repeats": 0.8,
    "broken": 0.8,
    "excess_words": 0.05,
}
WORST = -4.0  # below this, all text is equally useless


def gold_score(ticket: Ticket, reply: str) -> float:
    """How good the reply truly is: 3.0 is perfect, `WORST` the floor. A learner never sees it."""
    facets = read_facets(ticket, reply)
    worth = sum(values[getattr(facets, name)] for name, values in GOLD.items())
    cost = sum(each * getattr(facets, name) for name, each in COST.items())
    return max(WORST, round(worth - cost, 6))


# ---- The generator ----------------------------------------------------------------------------


def _fill(template: str, slots: dict[str, str]) -> str:
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", template.format(**slots))


def _draw_slots(products: tuple[str, ...], rng: Random) -> dict[str, str]:
    product, other = rng.choice(products), rng.choice(GADGETS + CLOTHES)
    while other == product:
        other = rng.choice(GADGETS + CLOTHES)
    return {
        "order": str(rng.randrange(100, 10_000)),
        "product": product,
        "other": other,
        "colour": rng.choice(COLOURS),
        "size": rng.choice(SIZES),
        "day": rng.choice(DAYS),
    }


def draw_ticket(rng: Random) -> Ticket:
    """A customer's message: an opener, the matter, and a word in the customer's mood."""
    # Most customers write because something went wrong.
    weights = [2 if intent.our_fault else 1 for intent in INTENTS.values()]
    name = rng.choices(list(INTENTS), weights)[0]
    intent = INTENTS[name]
    slots, mood = _draw_slots(intent.products, rng), rng.choice(intent.moods)
    matter = _fill(rng.choice(intent.messages), slots)
    message = f"{rng.choice(OPENERS)} {matter} {rng.choice(TAILS[mood])}".strip()
    return Ticket(name, mood, message, {k: v for k, v in slots.items() if k in intent.needs})


def _action(intent: Intent, slots: dict[str, str], rng: Random) -> str:
    template = rng.choice(intent.actions)
    return _fill((_with_order if "order" in slots else _without_order)(template), slots)


def good_reply(ticket: Ticket, rng: Random) -> str:
    """A reply with nothing wrong in it; only its length keeps it from the top score."""
    intent = INTENTS[ticket.intent]
    reply = [rng.choice(PARTS["greeting"])]
    if intent.our_fault:
        reply.append(rng.choice(PARTS["apology"]))
    reply.append(_action(intent, ticket.slots, rng))
    reply.append(rng.choice(PARTS["closing"]))
    return " ".join(reply)


def noisy_reply(ticket: Ticket, rng: Random) -> str:
    """A reply as an untrained desk would write it: some agents take care, some do not.

    Careful agents are right more often, and also apologise more, greet more and write more. So
    apologies, politeness and length go with quality here without being quality: a reward model
    that learns them instead of the facts looks right, until a policy optimises against it.
    """
    care = rng.random()

    def chance(careless: float, careful: float) -> bool:
        return rng.random() < careless + (careful - careless) * care

    intent = INTENTS[ticket.intent]
    acted = intent if chance(0.4, 0.95) else INTENTS[rng.choice(list(INTENTS))]
    slots = _draw_slots(acted.products, rng) | ticket.slots
    if ticket.order is None or not chance(0.45, 0.95):
        slots["order"] = str(rng.randrange(100, 10_000))
        if rng.random() < 0.6:
            del slots["order"]

    reply = []
    if chance(0.15, 0.95) if intent.our_fault else chance(0.05, 0.3):
        reply += rng.sample(PARTS["apology"], 2 if chance(0.05, 0.25) else 1)
    if chance(0.75, 1.0):
        reply.append(_action(acted, slots, rng))
    if chance(0.05, 0.35):
        reply.insert(rng.randrange(len(reply) + 1), rng.choice(PARTS["filler"]))
    if chance(0.5, 0.0) or not reply:
        reply.append(rng.choice(PARTS["rude"]))
    if chance(0.15, 0.08):
        again = rng.randrange(len(reply))
        reply.insert(again, reply[again])
    if chance(0.25, 0.95):
        reply.insert(0, rng.choice(PARTS["greeting"]))
    if chance(0.2, 0.95):
        reply.append(rng.choice(PARTS["closing"]))
    while len(" ".join(reply).split()) > 42:  # keeps every reply within 60 tokens
        del reply[rng.randrange(len(reply))]
    return " ".join(reply)


def corpus(rng: Random) -> tuple[str, str]:
    """One (message, what follows it) to pretrain on.

    One in eight is followed by another customer's message: a base model continues the page, and
    does not know yet that it is to answer.
    """
    ticket = draw_ticket(rng)
    if rng.random() < 0.12:
        return ticket.message, draw_ticket(rng).message
    return ticket.message, noisy_reply(ticket, rng)


def vocabulary() -> set[str]:
    """Every word, as written, that messages and replies can hold; numbers are not words."""
    sentences = [s for part in PARTS.values() for s in part] + list(OPENERS)
    sentences += [s for tails in TAILS.values() for s in tails] + list(SLOT_OF) + ["an"]
    sentences += [s for i in INTENTS.values() for s in i.messages + i.actions]
    return set(re.findall(r"[A-Za-z]+", re.sub(r"{\w+}", "", " ".join(sentences))))
