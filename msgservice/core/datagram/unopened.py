"""Hellos that no key here opens: what is to be told of them, bounded whoever sends them.

They are never answered, so a peer with another key looks like one that is not there, at both ends.
Told is each host once in a while, and so many hosts at most: an address of a stranger may be a lie.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgservice.core.datagram.cookie import Address

TOLD_SECONDS = 60.0  # in which a host is told once …
TOLD_HOSTS = 16  # … and so many of them


@dataclass(frozen=True, slots=True)
class Unopened:
    """A hello that did not open. `untold`: how many there were since the one told before."""

    address: Address
    key_id: int
    is_known: bool  # whether there is a key of this number here
    untold: int


class UnopenedHellos:
    """The hellos that did not open; `due` has what is to be told, until somebody takes it."""

    def __init__(self) -> None:
        self.due: list[Unopened] = []
        self._hosts: set[str] = set()
        self._since: float | None = None
        self._untold = 0

    def add(self, address: Address, key_id: int, *, is_known: bool, now: float) -> None:
        """Take note of one."""
        if self._since is None or now >= self._since + TOLD_SECONDS:
            self._hosts.clear()
            self._since = now
        # A dialling peer has another port for each attempt.
        if address[0] in self._hosts or len(self._hosts) >= TOLD_HOSTS:
            self._untold += 1
            return
        self._hosts.add(address[0])
        self.due.append(Unopened(address, key_id, is_known, self._untold))
        self._untold = 0

    def take(self) -> list[Unopened]:
        """Return what is to be told, once."""
        due = self.due[:]
        self.due.clear()  # its driver holds on to it
        return due
