"""Reasons: what the other side, or a handler, says to people. Here it becomes fit to be shown.

It reaches logs, terminals and answers of `$node.*`. Who says it may be anybody, so what a terminal
would obey, and what would begin a line of a log, is shown instead. Called where frames are made
and decoded (`core.frames`), and by whoever shows it in one line; calls nothing.
"""

from __future__ import annotations

REASON_CHARS_MAX = 4096  # PROTOCOL: NACK
REASON_KEPT_MAX = 1000  # characters of what is kept of each


def shown(text: str) -> str:
    """The text with its control characters as they are written in source; lines and tabs stay."""
    if text.isprintable():
        return text
    lines = text.replace("\r\n", "\n")
    return "".join([c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in lines])


def one_line(text: str) -> str:
    """The text as `shown`, in one line: what a log or a sentence holds."""
    return text if text.isprintable() else " ".join(shown(text).split())


def first_line(text: str) -> str:
    """The first line of the text, as `shown`: of an error and its traceback, the error."""
    return one_line(shown(text).strip().partition("\n")[0])
