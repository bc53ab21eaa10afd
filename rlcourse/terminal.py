"""What may be written to a terminal: text that only says something, and does nothing."""

from unicodedata import category

# Control and format characters, halves of characters, and separators that end a line
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"  # of Persian letters and of emoji: without them these read wrong


def visible(text: str) -> str:
    r"""A text with every character that a terminal would obey written as its escape.

    A model may say any of them, and a file may hold them: an escape sequence rewrites what stands above it, a
    carriage return or a backspace what stands before it, and a bidi override turns the rest of a line around.

    >>> print(visible("4\x1b[2K2\r\n"))
    4\x1b[2K2\r\n
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in UNSEEN and c not in JOINERS else c for c in text
    )


def visible_lines(text: str) -> str:
    """The same, but for line ends: they stay."""
    return "\n".join(map(visible, text.split("\n")))
