"""`rlcourse quiz`: the interview cards in a terminal."""

import argparse
import sys
from pathlib import Path

from rlcourse.cli.parser import command


def add(commands) -> None:
    parser = command(
        commands,
        "quiz",
        run_quiz,
        help="practise the interview cards",
        description="Practise the interview cards, with spaced repetition. workbook/quiz.json keeps your ratings.",
        example="rlcourse quiz --topic grpo --difficulty hard",
    )
    parser.add_argument("--topic", help="only this topic: ppo, kl, grpo, preferences or systems")
    parser.add_argument("--difficulty", help="only these: easy, medium or hard")
    parser.add_argument("--tag", help="only the cards with this tag")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="one card a line, and no quiz")
    instead.add_argument("--export", type=Path, metavar="DECK.apkg", help="write an Anki deck, and no quiz")


def run_quiz(options: argparse.Namespace) -> int:
    from rlcourse.practice.cards import Faulty, Unknown, cards

    try:
        chosen = cards(options.topic, options.difficulty, options.tag)
    except Unknown as unknown:
        options.parser.error(str(unknown))
    except Faulty as faulty:
        print(faulty, file=sys.stderr)
        return 1
    if not chosen:
        print("No card is all of that at once.", file=sys.stderr)
        return 1
    if options.list:
        from rlcourse.practice.rendering import line

        width = max(len(card.id) for card in chosen)
        for card in chosen:
            print(f"{card.id:{width}}  {card.difficulty:6}  {line(card.question)}")
    elif options.export:
        from rlcourse.practice.deck import export

        if options.export.suffix != ".apkg":
            options.parser.error(f"Anki imports files that end in .apkg, not {options.export.name!r}.")
        export(chosen, options.export)
        print(f"{len(chosen)} cards in {options.export}. In Anki: File, Import.")
    else:
        from rlcourse.practice import quiz

        quiz.session(chosen, quiz.PROGRESS)
    return 0
