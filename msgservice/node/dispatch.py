"""Brings what was stored to the receivers that are connected, and judges who is too far behind.

A batch costs one list operation for each *live* receiver of its audience; receivers that are
away cost nothing here, however many they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from msgservice.limits import Limits
from msgservice.node.outlet import Outlet
from msgservice.node.tail import Tail
from msgservice.records import Audience, Batch

JUDGE_EVERY = 0.1  # seconds between two judgements of the backlogs (SEMANTICS 18)


class Dispatch:
    """See the module."""

    def __init__(self, tail: Tail, limits: Limits, clock: Any) -> None:
        self.outlets: dict[int, Outlet] = {}  # by receiver number
        self._tail = tail
        self._limits = limits
        self._clock = clock
        self._live: dict[int, list[Outlet]] = {}  # by audience number
        self._audiences: dict[int, Audience] = {}
        self._stored_bytes: dict[int, int] = {}  # by audience number, since the last judgement
        self._full: set[int] = set()  # numbers of receivers
        self._full_audiences: dict[int, str] = {}  # audience number -> name of one that is full
        self._judging: IDelayedCall | None = None

    def __iter__(self) -> Iterator[Outlet]:
        return iter(list(self.outlets.values()))

    # --- who is there

    def add(self, outlet: Outlet) -> None:
        """A receiver that the directory knows."""
        self.outlets[outlet.row.number] = outlet

    def remove(self, outlet: Outlet) -> None:
        """A receiver that was removed; it was disconnected before."""
        outlet.stop()
        self.outlets.pop(outlet.row.number, None)
        self._full.discard(outlet.row.number)
        self._mark_audiences()

    def audience_made(self, audience: Audience) -> None:
        """An audience is used for the first time."""
        self._audiences[audience.number] = audience
        live = self._live[audience.number] = []
        for number in audience.members:
            outlet = self.outlets.get(number)
            if outlet is not None:
                outlet.audiences.add(audience.number)
                if outlet.connection is not None:
                    live.append(outlet)
        if self._full:
            self._mark_audiences()

    def connected(self, outlet: Outlet) -> None:
        """Its connection stands: it is fed from now on."""
        for number in outlet.audiences:
            self._live[number].append(outlet)

    def disconnected(self, outlet: Outlet) -> None:
        """Its connection has gone."""
        for number in outlet.audiences:
            live = self._live[number]
            if outlet in live:
                live.remove(outlet)

    # --- what was stored

    def stored(self, batches: list[Batch]) -> None:
        """These are on disk, rising: to the tail, and to who follows."""
        tail, live, sizes = self._tail, self._live, self._stored_bytes
        touched: dict[Outlet, None] = {}
        for batch in batches:
            tail.append(batch)
            number = batch.audience.number
            sizes[number] = sizes.get(number, 0) + batch.size
            for outlet in live[number]:
                if outlet.following:
                    outlet.feed(batch)
                touched[outlet] = None
        for outlet in touched:
            outlet.pump()
        if batches and self._judging is None:
            self._judging = self._clock.callLater(JUDGE_EVERY, self._judge)

    # --- who is too far behind

    def full(self, audience: Audience) -> str | None:
        """The name of a receiver of this audience whose backlog is at its limit, or None."""
        return self._full_audiences.get(audience.number) if self._full_audiences else None

    def _judge(self) -> None:
        self._judging = None
        sizes, self._stored_bytes = self._stored_bytes, {}
        for number, size in sizes.items():
            for member in self._audiences[number].members:
                outlet = self.outlets.get(member)
                if outlet is not None:
                    outlet.queued_bytes += size
        limit = self._limits.backlog_bytes_max
        full = {n for n, outlet in self.outlets.items() if outlet.queued_bytes >= limit}
        if full != self._full:
            self._full = full
            self._mark_audiences()
        if full:
            self._judging = self._clock.callLater(JUDGE_EVERY, self._judge)

    def _mark_audiences(self) -> None:
        self._full_audiences = {}
        for number in self._full:
            outlet = self.outlets.get(number)
            if outlet is not None:
                for audience in outlet.audiences:
                    self._full_audiences[audience] = outlet.name

    def stop(self) -> None:
        """No timer is left behind."""
        if self._judging is not None:
            self._judging.cancel()
            self._judging = None
        for outlet in self.outlets.values():
            outlet.stop()
