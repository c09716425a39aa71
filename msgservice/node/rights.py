"""The rights of whoever acts at a node, as its parts ask for them: who has which is elsewhere."""

from __future__ import annotations

from typing import Literal, Protocol

Verb = Literal["send", "to"]


class Rights(Protocol):
    """The rights of whoever hands messages in."""

    def allows(self, verb: Verb, name: str, /) -> bool:
        """Whether it may: `send` on a subject, or address a receiver (`to`) by its name."""


class Anyone:
    """The rights of peers that nobody asks who they are (`Rights`): everything."""

    def allows(self, verb: Verb, name: str, /) -> bool:
        """See `Rights`."""
        return True


ANYONE = Anyone()
