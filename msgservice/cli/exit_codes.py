"""The exit codes of `msgservice`: how a command ends, for programs, and what each code means.

The words of the help, and of the page of the command line, are those that stand here. What fails
how is decided in `session`. Nothing else is imported: the help needs no more than this.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """The exit code of a command."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    NO_ANSWER = 3
    BROKEN = 4
    INTERRUPTED = 130
    UNREAD = 141


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.REFUSED: "the node refused, the message was not delivered, a webhook did not take a"
    " test, an audit found what does not add up, or nothing can be printed",
    ExitCode.USAGE: "a wrong option, name, subject, address or configuration; nothing was done",
    ExitCode.NO_ANSWER: "no node there, no answer in time, or none that can come any more;"
    " what was asked may have been done",
    ExitCode.BROKEN: "the message is stored, and its promise (`send --within`) was broken",
    ExitCode.INTERRUPTED: "interrupted by a signal",
    ExitCode.UNREAD: "who reads standard output has gone, as `head` does",
}
