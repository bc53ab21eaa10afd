"""The quiz in a notebook: buttons that the keyboard reaches, the scheduler and the file of the terminal's quiz."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import ipywidgets as widgets

from rlcourse.practice import quiz
from rlcourse.practice.cards import Card, cards
from rlcourse.practice.rendering import html


def quiz_widget(topic: str | None = None, difficulty: str | None = None, tag: str | None = None) -> "Quiz":
    """Practise the cards of a topic, a difficulty and a tag; None is all of them."""
    return Quiz(cards(topic, difficulty, tag), quiz.PROGRESS)


class Quiz(widgets.VBox):
    """A page of text, a button that goes on, and the four ratings in its place once all has been shown."""

    def __init__(self, cards: list[Card], file: Path, now: Callable[[], datetime] = quiz.clock):
        self.cards, self.file, self.now = cards, file, now
        self.page = widgets.HTMLMath()
        self.onward = widgets.Button(button_style="primary")
        self.ratings = [widgets.Button(description=f"{n} {name}") for n, name in quiz.RATINGS.items()]
        super().__init__([self.page, widgets.HBox([self.onward, *self.ratings])])
        self.onward.on_click(lambda button: self.go_on())
        for rating, button in enumerate(self.ratings, 1):
            button.on_click(lambda button, rating=rating: self.rate(rating))
        self.draw_card()

    def draw_card(self) -> None:
        """The next card's question, or when there will be one."""
        ratings = quiz.load(self.file)
        waiting = quiz.queue(self.cards, ratings, self.now())
        self.card = waiting[0] if waiting else None
        self.steps = list(quiz.steps(self.card)) if self.card else []
        if self.card:
            self.page.value = html(quiz.heading(self.card, len(waiting)))
        else:
            back = quiz.comes_back(self.cards, ratings, self.now())
            self.page.value = html(f"Nothing is due. The next card comes back {back}.")
        self.onward.description = "Show the answer" if self.card else "Look again"
        self.offer([self.onward])

    def offer(self, buttons: list[widgets.Button]) -> None:
        for button in (self.onward, *self.ratings):
            button.layout.display = "" if button in buttons else "none"

    def go_on(self) -> None:
        """One step further; with the last one the full answer, folded, and the ratings."""
        if self.card is None:
            self.draw_card()
            return
        self.page.value += html(self.steps.pop(0))
        self.onward.description = "Go on"
        if not self.steps:
            full = f"<details><summary>The full answer</summary>\n\n{self.card.full}\n\n</details>"
            self.page.value += html(full)
            self.offer(self.ratings)
            self.ratings[0].focus()  # the button that had the keyboard is gone

    def rate(self, rating: int) -> None:
        try:
            quiz.rate(self.card, rating, self.file, self.now())
        except (OSError, quiz.Later) as error:  # a callback's traceback is seen by nobody
            self.page.value += html(f"**Your rating could not be kept:** {error}")
            return
        self.draw_card()
        self.onward.focus()
