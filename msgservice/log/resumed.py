"""The senders that are told their marks while a pass of retention looks for whom to forget.

Who is connected is looked at on the reactor's thread, when the pass is asked for; whom to forget is
decided on the writer's, later. Who comes in between is told a RESUME, and must find those marks
again. What a RESUME says, and who may be forgotten at all, is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from msgservice.core.marks import Key


class Resumed:
    """The senders that were told their marks since a pass of retention was asked for.

    Of two that meet, who was first holds: a sender that was told its marks stays, and one that is
    being forgotten is told that it is not known. Empty while no pass runs.
    """

    def __init__(self) -> None:
        self._lock = Lock()  # never held while anything waits
        self._passes = 0
        self._told: set[Key] = set()
        self._going: set[Key] = set()

    def begin(self) -> None:
        """A pass is asked for: its caller has counted all who were told theirs before."""
        with self._lock:
            self._passes += 1

    def tell(self, key: Key) -> bool:
        """Return whether this sender may be told its marks: they stay then, while a pass runs."""
        with self._lock:
            if key in self._going:
                return False
            if self._passes:
                self._told.add(key)
            return True

    def let_go(self, keys: Sequence[Key]) -> list[Key]:
        """Return those of these senders that were not told their marks: they are not any more."""
        with self._lock:
            going = [key for key in keys if key not in self._told]
            self._going.update(going)
            return going

    def end(self) -> None:
        """A pass is over: its entries are stored, or failed."""
        with self._lock:
            self._passes -= 1
            self._going.clear()
            if not self._passes:
                self._told.clear()
