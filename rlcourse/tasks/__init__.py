"""Where rewards come from: sums, Countdown and questions (checked by a rule), and helpdesk (judged by preference)."""

from rlcourse.door import door
from rlcourse.tasks.ask import ask  # not through the door: its module has the same name

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "Annotator": "annotators",
        "Countdown": "countdown",
        "Demonstration": "annotators",
        "Helpdesk": "desk",
        "Pair": "annotators",
        "Questions": "jsonl",
        "Ranking": "annotators",
        "Sums": "sums",
        "SumsInWords": "sums",
        "Verdict": "annotators",
        "preferences": "jsonl",
    },
)
__all__ += ["ask"]
