"""`Principal`: the user that a peer was found to be, and how it showed that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The user that a peer acts for.

    `how`: by what it was known, as `password`, `token ID`, `certificate NAME`, `unix UID`.
    `generation`: a number that is another one as soon as the user's rights, names, or what it was
    known by are others (`Users.holds`). `until`: when the login ends by itself, in milliseconds of
    the wall clock, as a token expires; None: it does not.
    """

    user: str
    how: str
    generation: int
    until: int | None = None

    def __str__(self) -> str:
        return f"{self.user} ({self.how})"
