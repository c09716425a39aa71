"""The bytes that are loaded for all receivers of a node together, and how much more each may hold.

A receiver may hold as much as is left of the limit for all (`loaded_bytes`): one alone half of it,
many that lag equal parts, and the sum is never above it but for their least parts. Its least part
each has whatever the others hold, so who keeps up goes on beside any number of receivers that do
not answer. Nobody queues for room: who has none holds more than its part, and what it holds itself
gives room when it is answered.

What is held is looked at once in each turn of a receiver and for each page, not for each batch.
Bytes that several receivers hold are counted for each: they part when one of them falls behind.
"""

from __future__ import annotations

PARTS = 1000  # a receiver's least part is the limit by this
RUN_OVERHEAD = 512  # of a run besides its messages: between one of the tail's, and one of its own


class LoadedBytes:
    """The bytes that the receivers of a node hold, as of each one's last look."""

    __slots__ = ("least", "limit", "total")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.least = max(2, limit // PARTS)
        self.total = 0


class Share:
    """The part of one receiver."""

    __slots__ = ("_all", "_held")

    def __init__(self, loaded: LoadedBytes) -> None:
        self._all = loaded
        self._held = 0

    def look(self, held: int) -> int:
        """So many bytes are held now; return how many more may be, below 1: none."""
        loaded = self._all
        total = loaded.total = loaded.total + held - self._held
        self._held = held
        left = loaded.limit - total
        if left < loaded.least:
            left = loaded.least
        # Each byte more is also one less that is left: half of what lies between makes both equal.
        return (left - held) // 2
