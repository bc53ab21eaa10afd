"""Where rewards come from: sums (checked by a rule) and helpdesk (judged by preference)."""

from rlcourse.tasks.ask import ask
from rlcourse.tasks.sums import Sums

__all__ = ["Sums", "ask"]
