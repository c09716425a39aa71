"""The sampler of a node: how it and its receivers are, looked at for whoever shows that.

One for all: the page, `/v1/events`, `/metrics`, `msgservice top` and `$node.observe` show what was
looked at here, and how old that is. It looks while somebody wants it and a while longer, at some
receivers in each turn and so many a second at most; when nobody wants it, it costs nothing. What
is in trouble, and what would help, is said by `troubles`.

    look()             fires with a whole round that is not older than `FRESH`
    watch(watcher)     tells of each page that was looked at: what has changed in it
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.administration import (
    NodeInfo,
    Observed,
    ObservedNode,
    ObservedPage,
    ReceiverState,
)
from msgservice.clock import Time
from msgservice.limits import Limits
from msgservice.node.troubles import LETTERS, troubles_of, troubles_of_node
from msgservice.records import Room
from msgservice.waiters import Waiters

EVERY = 1.0  # seconds between the beginnings of two rounds, at least
FRESH = 2.0  # seconds that what was looked at is good enough for who asks once
KEEP = 15.0  # seconds that it goes on looking after somebody asked
PAGE = 100  # receivers of one turn
SAME = 1_000  # ms that two moments may differ which were computed from how long ago they are
Page = tuple[list[ReceiverState], bool]


class Asked(Protocol):
    """The operations of a node, as far as they are looked at (`operations`)."""

    def info(self) -> NodeInfo:
        """Return what the node is."""

    def receivers(self, after: str, count: int, *, left_out_too: bool) -> Awaitable[Page]:
        """Return up to `count` receivers behind a name, and whether there are more."""


class Counts(Protocol):
    """The counts of what was stored since the start (`dispatch`)."""

    messages: int


class Watcher(Protocol):
    """The watcher of a node: it is told what has changed, a page at a time. It must not raise."""

    def observed(self, node: ObservedNode, changed: list[Observed], gone: list[str]) -> None:
        """The node was looked at, and some receivers: these have changed, and these are gone."""


class Seen(msgspec.Struct, frozen=True):
    """The node and all its receivers, by name, as they were seen in the last round."""

    node: ObservedNode
    receivers: dict[str, Observed]


class Observer:
    """The sampler. `refused`: runs that found no room; `is_held`: nothing falls due now;
    `stored_bytes`: since the start.
    """

    _logger = Logger()

    def __init__(
        self,
        operations: Asked,
        *,
        counts: Counts,
        stored_bytes: Callable[[], int],
        refused: Callable[[], int],
        is_held: Callable[[], bool],
        time: Time,
        limits: Limits,
    ) -> None:
        self._operations = operations
        self._counts, self._stored_bytes = counts, stored_bytes
        self._refused, self._is_held = refused, is_held
        self._time, self._limits = time, limits
        self._started_at = time.wall()
        self._receivers: dict[str, Observed] = {}
        self._totals: dict[str, tuple[float, int]] = {}  # name -> when, and what was settled then
        self._node: ObservedNode | None = None
        self._node_then: tuple[float, int] | None = None  # when, and what was stored then
        self._watchers: dict[Watcher, None] = {}
        self._wanted_until = 0.0
        self._round_at: float | None = None  # when the last whole round ended
        self._is_looking = False
        self._in_haste = False  # somebody waits for this round
        self._timer: IDelayedCall | None = None  # until the next round
        self._pause: tuple[IDelayedCall, Deferred[None]] | None = None  # within one
        self._waiting: Waiters[Seen] = Waiters()
        self._is_stopped = False

    # --- who wants it

    def look(self) -> Deferred[Seen]:
        """Fire with how all are: as they were seen within `FRESH`, or in a round that begins now.

        With what was seen last where the node stops.
        """
        self._wanted_until = self._time.now() + KEEP
        at = self._round_at
        if self._is_stopped or (at is not None and self._time.now() - at <= FRESH):
            return succeed(self._seen())
        waiting = self._waiting.wait()
        self._in_haste = True
        if self._pause is not None:
            self._pause[0].reset(0)
        self._begin()
        return waiting

    def watch(self, watcher: Watcher) -> Seen:
        """Tell a watcher of what changes from now on; returns what is known, and may be old."""
        self._watchers[watcher] = None
        if self._timer is None:
            self._begin()
        return self._seen()

    def unwatch(self, watcher: Watcher) -> None:
        """Tell it nothing any more."""
        self._watchers.pop(watcher, None)

    async def page(self, after: str, count: int) -> ObservedPage:
        """Return up to `count` receivers by name, behind this one, and the node."""
        seen = await self.look()
        names = sorted(name for name in seen.receivers if name > after)
        rows = [seen.receivers[name] for name in names[:count]]
        more = len(names) > count
        return ObservedPage(node=seen.node, receivers=rows, next=rows[-1].name if more else None)

    def stop(self) -> None:
        """Look no more; whoever waits gets what there is."""
        self._is_stopped = True
        self._cancel()
        if self._pause is not None:
            call, waiting = self._pause
            call.cancel()
            waiting.callback(None)
        self._waiting.fire(self._seen())

    def _seen(self) -> Seen:
        return Seen(self._node or self._look_at_node(), self._receivers)

    # --- rounds

    @property
    def _is_wanted(self) -> bool:
        return bool(self._watchers) or self._time.now() < self._wanted_until

    def _begin(self) -> None:
        self._cancel()
        if self._is_looking or self._is_stopped:
            return
        self._is_looking = True
        Deferred.fromCoroutine(self._round()).addErrback(self._failed).addBoth(self._ended)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _failed(self, failure: Failure) -> None:
        self._logger.failure("looking at the receivers", failure)

    def _ended(self, _: object) -> None:
        self._is_looking = False
        self._in_haste = False
        self._waiting.fire(self._seen())
        if self._is_stopped or not self._is_wanted:
            return
        self._timer = self._time.clock.callLater(EVERY, self._timed)

    def _timed(self) -> None:
        self._timer = None
        if self._is_wanted:
            self._begin()

    async def _round(self) -> None:
        """Look at the node and at all receivers, a page at a time."""
        names: set[str] = set()
        after, more = "", True
        while more and not self._is_stopped:
            node = self._look_at_node()
            states, more = await self._operations.receivers(after, PAGE, left_out_too=False)
            if not states:
                break
            after = states[-1].name
            names.update([state.name for state in states])
            changed = self._take(states)
            self._tell(node, changed, [])
            if more:
                pause = 0.0 if self._in_haste else len(states) / self._limits.observed_a_second
                await self._after(pause)
        if self._is_stopped:
            return
        gone = [name for name in self._receivers if name not in names]
        for name in gone:
            del self._receivers[name], self._totals[name]
        self._round_at = self._time.now()
        self._tell(self._look_at_node(), [], gone)

    def _after(self, seconds: float) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()

        def over() -> None:
            self._pause = None
            waiting.callback(None)

        self._pause = self._time.clock.callLater(seconds, over), waiting
        return waiting

    def _take(self, states: list[ReceiverState]) -> list[Observed]:
        """Take what was looked at; return what of it has changed, but for how old it is."""
        now, wall = self._time.now(), self._time.wall()
        changed = []
        for state in states:
            before = self._receivers.get(state.name)
            total = sum(state.settled.values())
            at, then = self._totals.get(state.name, (now, total))
            self._totals[state.name] = now, total
            rate = max(0, total - then) / (now - at) if now > at else 0.0
            seen = _observed(state, before, round(rate, 1), wall)
            self._receivers[state.name] = seen
            if before is None or replace_at(before, wall) != seen:
                changed.append(seen)
        return changed

    def _tell(self, node: ObservedNode, changed: list[Observed], gone: list[str]) -> None:
        for watcher in list(self._watchers):
            try:
                watcher.observed(node, changed, gone)
            except Exception:
                self._logger.failure("telling what was observed")
                self.unwatch(watcher)

    def _look_at_node(self) -> ObservedNode:
        info, now = self._operations.info(), self._time.now()
        stored = self._counts.messages
        before, then = self._node, self._node_then
        stored_rate = before.stored_rate if before is not None else 0.0
        if then is None or now - then[0] >= EVERY / 2:
            if then is not None:
                stored_rate = round((stored - then[1]) / (now - then[0]), 1)
            self._node_then = now, stored
        held, room = self._is_held(), info.room
        self._node = ObservedNode(
            name=info.name,
            version=info.version,
            log_id=info.log_id,
            listeners=info.listeners,
            at=self._time.wall(),
            started_at=self._started_at,
            connections=info.connections,
            receivers=len(self._receivers),
            room=_steady_room(room),
            loaded_bytes=info.loaded_bytes,
            looped=info.looped,
            dead_letters=info.dead_letters,
            promises=info.promises,
            stored=stored,
            stored_bytes=self._stored_bytes(),
            stored_rate=stored_rate,
            settled_rate=round(sum([one.rate for one in self._receivers.values()]), 1),
            refused=self._refused(),
            troubles=troubles_of_node(room, clock_is_held=held, looped=info.looped),
        )
        return self._node


S = TypeVar("S", Observed, ObservedNode)


def replace_at(seen: S, at: int) -> S:
    """Return what was observed as if it had been at another time."""
    return msgspec.structs.replace(seen, at=at)


def _steady_room(room: Room) -> Room:
    """Return the room with what is free on the disk in whole MiB: others write to it too."""
    return replace(room, free=room.free >> 20 << 20)


def _observed(state: ReceiverState, before: Observed | None, rate: float, wall: int) -> Observed:
    since = wall - round(state.since_s * 1000)
    if before is not None and abs(before.since - since) < SAME:
        since = before.since  # as it was: it is computed from two clocks
    health_since = None if state.health_s is None else wall - round(state.health_s * 1000)
    if health_since is not None and before is not None and before.health_since is not None:
        same = abs(before.health_since - health_since) < SAME
        health_since = before.health_since if same else health_since
    dead_since = None if state.dead_s is None else wall - round(state.dead_s * 1000)
    told = [one.since for one in before.troubles if one.kind == LETTERS] if before else []
    if dead_since is not None and told and told[0] is not None:
        dead_since = told[0] if abs(told[0] - dead_since) < SAME else dead_since
    next_try = None if state.next_try_s is None else wall + round(state.next_try_s * 1000)
    if next_try is not None and before is not None and before.next_try_at is not None:
        next_try = before.next_try_at if abs(before.next_try_at - next_try) < SAME else next_try
    return Observed(
        name=state.name,
        at=wall,
        health=state.health,
        since=since,
        connected=state.connected,
        address=state.address,
        subjects=state.subjects,
        queued=state.queued,
        queued_bytes=state.queued_bytes,
        backlog_bytes=getattr(state, "backlog_bytes", 0),
        oldest=state.oldest,
        rate=rate,
        settled=state.settled,
        dead=state.dead,
        dead_bytes=state.dead_bytes,
        attempts=state.attempts,
        last_error=state.last_error,
        next_try_at=next_try,
        unaccounted=state.unaccounted,
        replay=state.replay,
        troubles=troubles_of(state, health_since, dead_since),
        shared=bool(getattr(state, "shared", False)),
        workers=state.workers,
        health_since=health_since,
    )
