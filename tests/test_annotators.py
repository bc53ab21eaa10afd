"""Simulated people: they choose as Bradley and Terry say, and what they give is what was asked for."""

import math
from collections import Counter
from dataclasses import fields
from functools import cache
from itertools import permutations
from random import Random

import pytest
import torch

from rlcourse import Scorer, load_policy, train
from rlcourse.evaluate.report import report
from rlcourse.methods import GRPO
from rlcourse.tasks import Annotator, Demonstration, Helpdesk, Pair, Ranking, Verdict, annotators, desk
from rlcourse.tasks.annotators import demonstrated, near_duplicate, overlap
from rlcourse.tasks.helpdesk import Facets, Ticket, draw_ticket, gold_score, read_facets

LAMP = Ticket(
    "damaged_item", "calm", "The lamp from order 4821 came broken.", {"order": "4821", "product": "lamp"}
)
SENT = "I have sent a new lamp for order 4821 today."
PERFECT = f"Hello! I am sorry about this. {SENT} Have a nice day."  # 3.0
FAIR = f"Hello! {SENT} Have a nice day."  # 2.2: no apology
PLAIN = SENT  # 1.6: nor a greeting, nor a closing
BAD = "This is not our problem."
N = 4000


@pytest.fixture(autouse=True)
def gold_read_once(monkeypatch):
    """The same replies are judged thousands of times here: each is read once."""
    monkeypatch.setattr(annotators, "gold_score", cache(gold_score))


@pytest.fixture(scope="module")
def pocket():
    return load_policy("pocket")


def near(found, expected, n=N):
    """Within four standard errors of a share."""
    assert abs(found - expected) < 4 * math.sqrt(max(expected * (1 - expected), 0.25 / n) / n)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def chosen_first(annotator, first, second, seed=0):
    rng = Random(seed)
    return Counter(annotator.compare(LAMP, first, second, rng) for _ in range(N))


def test_the_replies_that_are_compared_here_are_worth():
    assert [gold_score(LAMP, reply) for reply in (PERFECT, FAIR, PLAIN)] == [3.0, 2.2, 1.6]


# ---- how they choose


@pytest.mark.parametrize("temperature", [0.3, 0.5, 2.0])
@pytest.mark.parametrize(
    ("first", "second"),
    [(PERFECT, FAIR), (PLAIN, FAIR), (PERFECT, PLAIN), (FAIR, FAIR)],
    ids=lambda r: str(len(r)),
)
def test_the_better_reply_is_chosen_with_the_sigmoid_of_the_difference_over_the_temperature(
    first, second, temperature
):
    choices = chosen_first(Annotator(temperature=temperature), first, second)
    lead = gold_score(LAMP, first) - gold_score(LAMP, second)
    near(choices[1] / N, sigmoid(lead / temperature))
    assert choices[0] == 0


def test_rankings_are_plackett_and_luces():
    replies, rng = [PLAIN, PERFECT, FAIR], Random(0)
    found = Counter(tuple(Annotator(temperature=1.0).rank(LAMP, replies, rng)) for _ in range(N))
    worth = {reply: math.exp(gold_score(LAMP, reply)) for reply in replies}
    for a, b, c in permutations(replies):
        near(found[a, b, c] / N, worth[a] / sum(worth.values()) * worth[b] / (worth[b] + worth[c]))


@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
def test_noise_is_the_share_of_choices_rankings_and_verdicts_that_are_turned(noise):
    surely, rng = Annotator(temperature=0.0, noise=noise, bar=2.5), Random(1)
    near(chosen_first(surely, FAIR, PERFECT)[1] / N, noise)
    near(chosen_first(surely, PERFECT, FAIR)[-1] / N, noise)
    orders = Counter(tuple(surely.rank(LAMP, [FAIR, PERFECT, PLAIN], rng)) for _ in range(N))
    assert set(orders) <= {(PERFECT, FAIR, PLAIN), (PLAIN, FAIR, PERFECT)}
    near(orders[PLAIN, FAIR, PERFECT] / N, noise)
    near(sum(surely.approves(LAMP, FAIR, rng) for _ in range(N)) / N, noise)
    near(sum(not surely.approves(LAMP, PERFECT, rng) for _ in range(N)) / N, noise)


def test_without_temperature_or_noise_an_annotator_is_always_right():
    surely, rng = Annotator(temperature=0.0), Random(2)
    for _ in range(50):
        assert surely.feels(LAMP, FAIR, rng) == 2.2
        assert surely.compare(LAMP, FAIR, PLAIN, rng) == 1 and surely.compare(LAMP, PLAIN, FAIR, rng) == -1
        assert surely.rank(LAMP, [PLAIN, BAD, PERFECT, FAIR], rng) == [PERFECT, FAIR, PLAIN, BAD]
        assert surely.approves(LAMP, FAIR, rng) and not surely.approves(LAMP, BAD, rng)
        assert surely.compare(LAMP, FAIR, FAIR, rng) == 0


def test_what_feels_less_than_a_tie_apart_is_equally_good_and_noise_turns_no_tie():
    blunt, rng = Annotator(temperature=0.0, tie=0.7, noise=1.0), Random(3)
    assert blunt.compare(LAMP, FAIR, PLAIN, rng) == 0  # 0.6 apart
    assert blunt.compare(LAMP, PERFECT, FAIR, rng) == -1  # 0.8 apart, and turned
    # of two equal replies the difference of the noise is logistic: within t of 0 with 2 sigmoid(t / T) - 1
    near(chosen_first(Annotator(temperature=0.5, tie=0.4), FAIR, FAIR)[0] / N, 2 * sigmoid(0.8) - 1)


@pytest.mark.parametrize("per_word", [0.0, 0.05, 0.2, -0.1])
def test_a_taste_for_words_is_added_for_every_word(per_word):
    taste, rng = Annotator(temperature=0.0, per_word=per_word), Random(4)
    words = len(PERFECT.split())
    assert words == 20 and taste.feels(LAMP, PERFECT, rng) == pytest.approx(3.0 + 20 * per_word)
    lead = 3.0 - 1.6 + per_word * (words - len(PLAIN.split()))
    near(chosen_first(Annotator(temperature=1.0, per_word=per_word), PERFECT, PLAIN)[1] / N, sigmoid(lead))


def test_a_strong_taste_for_words_prefers_the_longer_and_worse_reply():
    rambling = f"{FAIR} We value your time. Many people like our shop."
    assert gold_score(LAMP, rambling) < gold_score(LAMP, FAIR)
    for per_word, choice in [(0.0, -1), (0.5, 1)]:
        judge = Annotator(temperature=0.0, per_word=per_word)
        assert judge.compare(LAMP, rambling, FAIR, Random(0)) == choice


@pytest.mark.parametrize(("bar", "temperature"), [(0.0, 1.0), (1.6, 0.5), (2.0, 0.5)])
def test_thumbs_go_up_for_what_feels_better_than_the_bar(bar, temperature):
    judge, rng = Annotator(temperature=temperature, bar=bar), Random(5)
    # Gumbel's noise is below x with exp(-exp(-x))
    expected = 1 - math.exp(-math.exp(-(bar - 1.6) / temperature))
    near(sum(judge.approves(LAMP, PLAIN, rng) for _ in range(N)) / N, expected)
    surely = Annotator(temperature=0.0, bar=1.6)
    assert not surely.approves(LAMP, PLAIN, rng) and surely.approves(LAMP, FAIR, rng)


# ---- twins


def test_overlap_by_hand():
    # ab bc cd and ab bc ce: two of four in common
    assert overlap("a b c d", "a b c e") == 0.5
    assert overlap("a b c", "c b a") == 0 and overlap("a b c", "a b c") == 1
    assert overlap("a b a b", "a b") == 0.5  # ab ba and ab
    assert (
        overlap("a", "a") == 1
        and overlap("a", "b") == 0
        and overlap("", "") == 1
        and overlap("a", "a b") == 0
    )


def test_near_duplicates_share_more_than_they_may():
    assert near_duplicate("a b c d", ["x y", "a b c e"], at_most=0.4)
    assert not near_duplicate("a b c d", ["x y", "a b c e"], at_most=0.5)
    assert not near_duplicate("a b c d", [])
    assert near_duplicate(FAIR, [FAIR]) and not near_duplicate(FAIR, [PERFECT])


# ---- what people give

GIVEN = [
    ("demonstrations", Demonstration, {}),
    ("pairs", Pair, {}),
    ("rankings", Ranking, {"k": 3}),
    ("thumbs", Verdict, {}),
]


@pytest.fixture
def known(monkeypatch):
    """Every customer who was drawn, by what they wrote."""
    found = {}

    def noted(rng):
        ticket = draw_ticket(rng)
        return found.setdefault(ticket.prompt, ticket)

    monkeypatch.setattr(desk, "draw_ticket", noted)
    return found


@pytest.mark.parametrize(("name", "kind", "rest"), GIVEN)
def test_as_many_are_given_as_were_asked_for_and_the_same_seed_gives_the_same(name, kind, rest):
    give = getattr(Helpdesk(), name)
    found = give(30, **rest)
    assert len(found) == 30 and {type(each) for each in found} == {kind} and give(0, **rest) == []
    assert found == give(30, **rest)
    assert [each.prompt for each in found[:10]] == [each.prompt for each in give(10, **rest)]
    other = give(30, seed=1, **rest)
    assert len({each.prompt for each in found} & {each.prompt for each in other}) < 3


def test_no_two_kinds_of_feedback_are_about_the_same_customers():
    prompts = [{each.prompt for each in getattr(Helpdesk(), name)(30, **rest)} for name, _, rest in GIVEN]
    assert sum(map(len, prompts)) - len(set.union(*prompts)) < 5


def test_answers_are_the_feedback_in_its_own_order():
    assert Demonstration("p", "a").answers == ("a",) and Verdict("p", "a", False).answers == ("a",)
    assert Pair("p", "good", "bad").answers == ("good", "bad")
    assert Ranking("p", ("a", "b", "c")).answers == ("a", "b", "c")


def test_demonstrations_are_replies_to_their_own_customer_with_nothing_wrong_in_them():
    found = Helpdesk().demonstrations(60)
    rng = Random("demonstrations/0")
    tickets = [draw_ticket(rng) for _ in range(60)]
    assert [each.prompt for each in found] == [ticket.prompt for ticket in tickets]
    for ticket, each in zip(tickets, found):
        facets = read_facets(ticket, each.response)
        assert facets.served and facets.greeting and facets.closing and facets.filler == facets.repeats == 0


def test_a_sure_annotators_pairs_and_rankings_stand_in_the_order_of_gold(known):
    surely = Annotator(temperature=0.0)
    pairs, rankings = Helpdesk().pairs(40, annotator=surely), Helpdesk().rankings(40, k=4, annotator=surely)
    for each in [*pairs, *rankings]:
        scores = [gold_score(known[each.prompt], reply) for reply in each.answers]
        assert scores == sorted(scores, reverse=True)
        assert type(each) is Ranking or scores[0] > scores[1]
    turned = Helpdesk().pairs(40, noise=1.0, annotator=surely)
    assert turned == [Pair(each.prompt, each.rejected, each.chosen) for each in pairs]


def test_the_first_reply_is_chosen_about_as_often_as_the_second():
    asked = []

    class Remembers(Annotator):
        def compare(self, ticket, first, second, rng):
            asked.append(super().compare(ticket, first, second, rng))
            return asked[-1]

    pairs = Helpdesk().pairs(150, annotator=Remembers(tie=0.3))
    counts = Counter(asked)
    assert counts[1] + counts[-1] == len(pairs) == 150 < len(asked)  # ties were asked, and left out
    near(counts[1] / 150, 0.5, 150)


def test_noise_given_to_pairs_overrides_the_annotators_and_is_theirs_otherwise():
    give, noisy = Helpdesk().pairs, Annotator(temperature=0.0, noise=1.0)
    assert give(20, annotator=noisy) == give(20, noise=1.0, annotator=Annotator(temperature=0.0))
    assert give(20, noise=0.0, annotator=noisy) == give(20, annotator=Annotator(temperature=0.0))
    assert give(20) == give(20, annotator=Annotator()) != give(20, annotator=noisy)


@pytest.mark.parametrize(("n", "up", "expected"), [(40, 0.5, 20), (40, 0.1, 4), (40, 0.0, 0), (7, 0.3, 2)])
def test_the_share_of_thumbs_up_is_exactly_what_was_asked_for(n, up, expected):
    found = Helpdesk().thumbs(n, up=up)
    assert len(found) == n and sum(verdict.good for verdict in found) == expected


def test_thumbs_up_are_better_than_thumbs_down_and_come_as_they_come(known):
    found = Helpdesk().thumbs(60, annotator=Annotator(temperature=0.0, bar=0.5))
    assert all(
        verdict.good == (gold_score(known[verdict.prompt], verdict.response) > 0.5) for verdict in found
    )
    assert 10 < sum(verdict.good for verdict in found) < 50


def test_a_share_that_never_occurs_is_an_error_and_no_endless_loop():
    never = Annotator(temperature=0.0, bar=9.0)
    with pytest.raises(
        ValueError, match=r"after 401 tickets there are 0 of the 1 thumbs asked for.*hardly occurs"
    ):
        Helpdesk().thumbs(1, up=1.0, annotator=never)


def test_no_two_replies_to_compare_are_almost_the_same(monkeypatch):
    replies = [PERFECT, f"{PERFECT} Hello!", FAIR, f"{FAIR} Hello!", BAD, "We value your time.", "Hello!"]
    assert overlap(*replies[:2]) > 0.8 < overlap(*replies[2:4])
    monkeypatch.setattr(desk, "noisy_reply", lambda ticket, rng: rng.choice(replies))
    for ranking in Helpdesk().rankings(60, k=4):
        assert len(ranking.responses) == 4
        for i, reply in enumerate(ranking.responses):
            assert all(overlap(reply, other) <= 0.8 for other in ranking.responses[:i])


# ---- of a policy


def test_a_policys_own_replies_can_be_judged(pocket, monkeypatch):
    sample, said = pocket.sample, set()

    def noted(*args, **rest):
        rollout = sample(*args, **rest)
        said.update((rollout.prompts[p], text) for p, text in zip(rollout.owner.tolist(), rollout.texts))
        return rollout

    monkeypatch.setattr(pocket, "sample", noted)
    found = Helpdesk(max_tokens=24).pairs(10, policy=pocket)
    assert all((pair.prompt, answer) in said for pair in found for answer in pair.answers)
    assert all(overlap(pair.chosen, pair.rejected) <= 0.8 for pair in found)
    assert found == Helpdesk(max_tokens=24).pairs(10, policy=pocket)
    (verdict,) = Helpdesk(max_tokens=24).thumbs(1, policy=pocket)
    assert (verdict.prompt, verdict.response) in said


class Parrot:
    """A policy that says the same to everybody."""

    def sample(self, prompts, group_size, *_, **__):
        self.texts = ["Hello! Have a nice day."] * (len(prompts) * group_size)
        return self


def test_a_policy_that_always_says_the_same_gives_nothing_to_choose_between(monkeypatch, pocket):
    monkeypatch.setattr(pocket, "sample", Parrot().sample)
    with pytest.raises(ValueError, match="of 4 replies to a customer no 2 differ, for any of 64 customers"):
        Helpdesk().pairs(3, policy=pocket)
    with pytest.raises(ValueError, match="of 8 replies to a customer no 4 differ"):
        Helpdesk().rankings(3, policy=pocket)
    assert [v.response for v in Helpdesk().thumbs(3, policy=pocket)] == ["Hello! Have a nice day."] * 3


def test_a_policys_own_answers_as_demonstrations():
    policy = load_policy("pocket-direct")
    rollout = policy.sample(["1+1=", "2+3="], 2, max_tokens=4)
    found = demonstrated(rollout, [1, 2])
    assert found == [Demonstration("1+1=", rollout.texts[1]), Demonstration("2+3=", rollout.texts[2])]


# ---- grading


def graded(policy, replies, **desk):
    rollout = policy.answered([LAMP.prompt] * len(replies), replies)
    rollout.problems = [LAMP] * len(replies)
    return rollout, Helpdesk(**desk).grade(rollout)


REPLIES = [PERFECT, SENT, BAD, "I have sent a new lamp for order 4812 today.", f"{SENT} {BAD}", "", "a b c"]


def test_without_a_judge_the_rewards_are_gold_and_correct_is_who_was_served(pocket):
    _, grades = graded(pocket, REPLIES)
    assert grades["rewards"].tolist() == pytest.approx([gold_score(LAMP, reply) for reply in REPLIES])
    assert grades["correct"].tolist() == [True, True, False, False, False, False, False]
    assert grades.keys() == {"rewards", "correct"}


def test_who_was_cut_off_is_not_served(pocket):
    rollout, grades = graded(pocket, [SENT, SENT])
    rollout.finished = torch.tensor([True, False])
    assert grades["correct"].tolist() == [True, True]
    assert Helpdesk().grade(rollout)["correct"].tolist() == [True, False]


def test_rewards_belong_to_the_customer_whose_reply_it_is(pocket):
    password = Ticket("lost_password", "calm", "I lost my password.", {})
    rollout = pocket.sample([LAMP.prompt, password.prompt], 2, 16)
    link = "I have sent you a link to set a new password."
    rollout.problems, rollout.texts = [LAMP, password], [SENT, "a", SENT, link]
    rollout.finished = torch.ones(4, dtype=torch.bool)
    assert Helpdesk().grade(rollout)["correct"].tolist() == [True, False, False, True]


def test_with_a_judge_the_rewards_are_its_and_gold_is_only_watched(pocket):
    judge = Scorer(pocket.copy())
    with torch.no_grad():
        judge.head.weight.copy_(
            torch.randn(1, judge.head.in_features, generator=torch.Generator().manual_seed(0))
        )
    rollout, grades = graded(pocket, REPLIES, judge=judge, watch="gold")
    with torch.no_grad():
        torch.testing.assert_close(grades["rewards"], judge(rollout))
    assert not grades["rewards"].requires_grad
    assert grades["gold"].tolist() == pytest.approx([gold_score(LAMP, reply) for reply in REPLIES])
    assert grades["correct"].tolist() == [True, True, False, False, False, False, False]


def test_what_is_watched_is_noted_beside_the_reward(pocket):
    sorry = f"I am sorry about this. I am sorry about this. {SENT}"
    _, grades = graded(
        pocket, [sorry, SENT], watch=("apologies", "extra_apologies", "words", "repeats", "gold")
    )
    assert grades.keys() == {"rewards", "correct", "apologies", "extra_apologies", "words", "repeats", "gold"}
    assert grades["apologies"].tolist() == [2, 0] and grades["extra_apologies"].tolist() == [1, 0]
    assert grades["words"].tolist() == [20, 10] and grades["repeats"].tolist() == [1, 0]
    everything = {f.name for f in fields(Facets)} - {"order", "apology"} | {"excess_words"}
    assert graded(pocket, [sorry], watch=tuple(everything))[1].keys() >= everything


@pytest.mark.parametrize("watch", ["goold", ("gold", "order"), ("apology",)])
def test_what_cannot_be_watched_is_named(watch):
    with pytest.raises(
        ValueError, match="Helpdesk cannot watch (goold|order|apology): it knows gold, apologies, "
    ):
        Helpdesk(watch=watch)


def test_a_run_on_the_helpdesk_logs_gold_beside_the_judges_reward(pocket):
    asked = []

    def judge(rollout):
        asked.append(rollout)
        return rollout.lengths.float() / 10

    task = Helpdesk(judge=judge, watch=("gold", "words"))
    run = train(pocket.copy(), task, GRPO(group_size=4), steps=1, responses=16, lr=1e-4, quiet=True)
    (rollout,) = [each for each in asked if len(each) == 16]
    tickets = [rollout.problems[p] for p in rollout.owner.tolist()]
    gold = [gold_score(ticket, text) for ticket, text in zip(tickets, rollout.texts)]
    assert run.history[0]["gold"] == pytest.approx(sum(gold) / 16, abs=1e-5)
    assert run.history[0]["reward"] == pytest.approx(rollout.lengths.float().mean().item() / 10, abs=1e-5)
    assert run.history[0]["words"] == pytest.approx(sum(len(t.split()) for t in rollout.texts) / 16, abs=1e-5)


# ---- one look at a policy


def test_a_report_is_the_mean_of_everything_the_task_says_and_the_kl_from_a_reference(pocket):
    asked = []

    class Asked(Helpdesk):
        def grade(self, rollout):
            asked.append(rollout)
            return super().grade(rollout)

    found = report(pocket, Asked(watch="gold"), problems=24)
    (rollout,) = asked
    assert found.keys() == {"rewards", "correct", "gold", "length"} and len(rollout) == 24
    assert found["gold"] == found["rewards"] == pytest.approx(rollout.rewards.mean().item(), abs=1e-5)
    assert found["correct"] == pytest.approx(rollout.correct.float().mean().item())
    assert found["length"] == pytest.approx(rollout.mask.sum().item() / 24)
    assert report(pocket, Helpdesk(watch="gold"), problems=24) == found
    assert report(pocket, Helpdesk(watch="gold"), problems=24, seed=1) != found
    own = report(pocket, Helpdesk(), problems=24, reference=pocket)
    assert own["kl"] == pytest.approx(0, abs=1e-4)
    other = load_policy("pocket-direct")
    with torch.no_grad():
        drift = (
            (pocket.score(rollout) - other.score(rollout)).masked_fill(~rollout.mask, 0).sum(1).mean().item()
        )
    assert (
        report(pocket, Helpdesk(), problems=24, reference=other)["kl"] == pytest.approx(drift, abs=1e-3) != 0
    )


@pytest.mark.parametrize("up", [-0.1, 1.5])
def test_a_share_is_from_0_to_1(up):
    with pytest.raises(ValueError, match="from 0 to 1"):
        Helpdesk().thumbs(10, up=up)
