"""Events over HTTP: the view of a node, and what becomes of a message (Server-Sent Events).

    /v1/events                  `state`, the node and all receivers, in pages; then `change`: the
                                receivers that changed, those that are gone, and the node
    /v1/messages/{id}/events    `state`; then `change`: the receivers whose state is another; `end`

It is a view, not a history: who comes back with an id that is still in the ring gets what was
missed, everybody else a `reset` and the state anew. What is seen comes from the node's sampler
(`observe`). Nothing is queued for a reader: who has not read goes on behind, in the ring, and who
does not read at all is cut off by its channel.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from zope.interface import implementer

from msgservice.administration import OBSERVE, Observed, ObservedNode, PromiseTold
from msgservice.clock import Time
from msgservice.errors import LimitReached
from msgservice.limits import Limits
from msgservice.node.gate import Pass
from msgservice.node.observe import Seen, Watcher, replace_at
from msgservice.node.web.answers import Answer, Ask
from msgservice.node.web.following import Following, States, Tracker
from msgservice.node.web.operations import Requests
from msgservice.node.web.paths import PathAt
from msgservice.transport.http.channel import HttpRequest

EVENTS = b"text/event-stream"
PAGE = 100  # receivers of one event
LINGER = 15.0  # seconds that what changes is kept after the last reader has gone, for its return
QUIET = 10.0  # seconds without an event, after which a reader is told that nothing has ended
ROUND = 200  # events that are written to one reader in a row, at most

_to_json = msgspec.json.Encoder().encode


class Observer(Protocol):
    """The sampler of a node (`observe`)."""

    def look(self) -> Deferred[Seen]:
        """Fire with a whole round that is not old."""

    def watch(self, watcher: Watcher) -> Seen:
        """Tell a watcher of what changes from now on."""

    def unwatch(self, watcher: Watcher) -> None:
        """Tell it nothing any more."""


class Listener(Protocol):
    """The web listener (`listener`)."""

    def head_of(self, answer: Answer) -> bytes:
        """Return the lines that an answer's head has besides its length."""

    def ends_with(self, end: Callable[[], None]) -> Callable[[], None]:
        """Have `end` called when the listener ends; return what takes that back."""


class State(msgspec.Struct, frozen=True):
    """The event `state`: the node, and a page of its receivers. `more`: another page follows."""

    node: ObservedNode
    receivers: list[Observed]
    more: bool


class Change(msgspec.Struct, frozen=True):
    """The event `change`: the node, receivers that changed, and names of those that are gone."""

    node: ObservedNode
    changed: list[Observed]
    gone: list[str]


class MessageChange(msgspec.Struct, frozen=True):
    """The event `change` of a message: the receivers whose state is another, and its promise."""

    receivers: dict[str, object]
    due: int | None = None
    promise: PromiseTold | None = None


def event(name: str, value: object, id_: str = "") -> bytes:
    """Return an event as it is sent."""
    head = f"id: {id_}\nevent: {name}\ndata: " if id_ else f"event: {name}\ndata: "
    return b"%b%b\n\n" % (head.encode(), _to_json(value))


class Events:
    """The events of a node, and who reads them."""

    def __init__(
        self,
        *,
        observer: Observer,
        tracker: Tracker,
        requests: Requests,
        holds: Callable[[Pass], bool],
        time: Time,
        limits: Limits,
    ) -> None:
        self.listener: Listener | None = None
        self.number = 0  # of the newest event
        self.start = secrets.token_hex(4)
        self.ring: deque[bytes] = deque()
        self.ring_bytes = 0  # of the events in it
        self.observer = observer
        self.holds = holds
        self._tracker = tracker
        self._requests = requests
        self.time = time
        self._limits = limits
        self._readers: dict[_ViewReader, None] = {}
        self._reading = 0  # of both kinds
        self._is_watching = False
        self._told: ObservedNode | None = None  # the node as the newest event has it
        self._linger: IDelayedCall | None = None

    def paths(self, listener: Listener) -> list[PathAt]:
        """Return the paths of events."""
        self.listener = listener
        return [
            PathAt(
                method="GET",
                path="/v1/events",
                answer=self._view,
                sentence="Tells how the node and its receivers are, and what changes.",
                streams=True,
                query={"last_event_id": "Where to go on, for who cannot say Last-Event-ID."},
            ),
            PathAt(
                method="GET",
                path="/v1/messages/{id}/events",
                answer=self._message,
                sentence="Tells what becomes of a message, until nothing of it will change.",
                streams=True,
            ),
        ]

    # --- the view

    def observed(self, node: ObservedNode, changed: list[Observed], gone: list[str]) -> None:
        """See `Watcher`. That time has passed is no event: who reads has a clock."""
        told, self._told = self._told, node
        if not (changed or gone) and told is not None and replace_at(told, node.at) == node:
            return
        self.number += 1
        change = Change(node, changed, gone)
        self._keep(event("change", change, f"{self.start}.{self.number}"))
        for reader in list(self._readers):
            reader.pump()

    def _keep(self, data: bytes) -> None:
        """Keep an event for who reads it later: the newest always, those before within bounds."""
        ring, limits = self.ring, self._limits
        ring.append(data)
        self.ring_bytes += len(data)
        while len(ring) > 1 and (
            len(ring) > limits.http_events or self.ring_bytes > limits.http_event_bytes
        ):
            self.ring_bytes -= len(ring.popleft())

    async def _view(self, ask: Ask) -> Answer:
        query = ask.only("last_event_id")
        if not ask.who.allows("request", OBSERVE.right):
            raise ask.who.refusal(OBSERVE.right)
        last = ask.request.header("last-event-id") or query.get("last_event_id")
        self._enter()
        reader: _ViewReader | None = None
        try:
            await self.observer.look()
            if not self._is_watching:
                self._is_watching = True
                self.observer.watch(self)
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            if not ask.request.is_over:
                reader = _ViewReader(self, ask.request, ask.who, self._place_of(last), last)
                self._readers[reader] = None
                await reader.read()
        finally:
            if reader is not None:
                self._readers.pop(reader, None)
            self._leave()
        return Answer(200)

    def seen(self) -> Seen:
        """Return the node and its receivers as they are known now."""
        return self.observer.watch(self)

    def _place_of(self, last: str | None) -> int | None:
        """Return the number behind which a reader goes on; None: it needs the state."""
        start, _, number = (last or "").partition(".")
        if start != self.start or not (number.isascii() and number.isdigit()):
            return None
        place = int(number[:20])
        oldest = self.number - len(self.ring)
        return place if oldest <= place <= self.number else None

    def _enter(self) -> None:
        if self._reading >= self._limits.http_readers:
            raise LimitReached("http_readers", self._limits.http_readers)
        self._reading += 1

    def _leave(self) -> None:
        self._reading -= 1
        if not self._readers and self._is_watching and self._linger is None:
            self._linger = self.time.clock.callLater(LINGER, self._unwatch)

    def _unwatch(self) -> None:
        """Nobody reads: what changes is not looked at, so what was before leads nowhere."""
        self._linger = None
        self._is_watching = False
        self.observer.unwatch(self)
        self.ring.clear()
        self.ring_bytes = 0
        self._told = None
        self.number += 1

    def stop(self) -> None:
        """Leave no timer."""
        if self._linger is not None:
            self._linger.cancel()
            self._unwatch()

    # --- a message

    async def _message(self, ask: Ask) -> Answer:
        ask.only()
        self._enter()
        following = Following(self._requests, self._tracker, ask.who)
        try:
            states = await following.first(ask.parts["id"])
            if not ask.request.is_over:
                reader = _Reader(self, ask.request, ask.who)
                reader.on_end = following.stop
                reader.begin()
                reader.write(event("state", states))
                await self._follow(following, states, reader)
                reader.finish()
        finally:
            following.stop()
            self._leave()
        return Answer(200)

    async def _follow(self, following: Following, states: States, reader: _Reader) -> None:
        while not states.is_final and await following.news():
            await reader.room()
            if reader.is_over:
                return
            before, states = states, await following.again()
            other = {
                name: one
                for name, one in states.receivers.items()
                if before.receivers.get(name) != one
            }
            if other or (before.due, before.promise) != (states.due, states.promise):
                change = MessageChange(dict(other), states.due, states.promise)
                reader.write(event("change", change))
        if states.is_final:
            reader.write(event("end", {}))


@implementer(IPushProducer)
class _Reader:
    """A reader of events: its request, and whether it reads."""

    def __init__(self, events: Events, request: HttpRequest, who: Pass) -> None:
        self.is_over = False
        self.is_paused = False
        self.on_end: Callable[[], None] = lambda: None
        self._events = events
        self._request = request
        self._who = who
        self._room: Deferred[None] | None = None
        self._beat: IDelayedCall | None = None  # until it is told that nothing has ended
        self._stays: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Say the head of the answer."""
        listener = self._events.listener
        assert listener is not None
        self._stays = listener.ends_with(self.end)
        self._request.notifyFinish().addBoth(lambda _: self.end())
        self._request.begin_answer(200, listener.head_of(Answer(200, b"", EVENTS)))
        self._request.registerProducer(self, True)
        self._beat = self._events.time.clock.callLater(QUIET, self._say_nothing)

    def write(self, data: bytes) -> None:
        """Write an event."""
        if not self._events.holds(self._who):
            self.finish()
        if not self.is_over:
            self._request.write(data)
            if self._beat is not None:
                self._beat.reset(QUIET)

    def _say_nothing(self) -> None:
        """Write a comment: a peer that has vanished is noticed, one in between does not give up."""
        self._beat = self._events.time.clock.callLater(QUIET, self._say_nothing)
        if not self.is_paused:
            self.write(b":\n\n")

    async def room(self) -> None:
        """Return when the reader reads, or has gone."""
        if self.is_paused and not self.is_over:
            self._room = Deferred()
            await self._room

    def finish(self) -> None:
        """End the answer, in an orderly way."""
        if not self.is_over:
            self.end()

    def end(self) -> None:
        """Nothing is written any more."""
        if self.is_over:
            return
        self.is_over = True
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        self._stays()
        request = self._request
        if not request.is_over:
            request.unregisterProducer()
            request.channel.persistent = False
            request.finish()
        self._wake()
        self.on_end()

    def _wake(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self.is_paused = True

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self.is_paused = False
        self._wake()

    def stopProducing(self) -> None:
        """See `IPushProducer`."""
        self.is_paused = True


class _ViewReader(_Reader):
    """A reader of the view. `place`: the number of the last event that it has; None: none."""

    def __init__(
        self, events: Events, request: HttpRequest, who: Pass, place: int | None, last: str | None
    ) -> None:
        super().__init__(events, request, who)
        self._place = place
        self._was_elsewhere = last is not None and place is None
        self._news: Deferred[None] | None = None

    async def read(self) -> None:
        """Write what there is, until the reader has gone."""
        self.begin()
        if self._was_elsewhere:
            self.write(event("reset", {}))
        while not self.is_over:
            place, events = self._place, self._events
            if place is not None and events.number - place > len(events.ring):
                self.write(event("reset", {}))
                place = self._place = None
            if place is None:
                await self._state()
            elif place < events.number:
                behind = events.number - place
                for data in [events.ring[-at] for at in range(behind, max(0, behind - ROUND), -1)]:
                    if self.is_over or self.is_paused:
                        break
                    self.write(data)
                    self._place = place = place + 1
                await self.room()
            else:
                self._news = Deferred()
                await self._news

    async def _state(self) -> None:
        """Write the state, a page at a time; what changes meanwhile comes behind it."""
        events = self._events
        seen, place = events.seen(), events.number
        names = sorted(seen.receivers)
        for begin in range(0, max(1, len(names)), PAGE):
            await self.room()
            if self.is_over:
                return
            page = [
                seen.receivers[name]
                for name in names[begin : begin + PAGE]
                if name in seen.receivers
            ]
            more = begin + PAGE < len(names)
            id_ = "" if more else f"{events.start}.{place}"
            self.write(event("state", State(events.seen().node, page, more), id_))
        self._place = place

    def pump(self) -> None:
        """There is another event."""
        news, self._news = self._news, None
        if news is not None:
            news.callback(None)

    def end(self) -> None:
        """Nothing is written any more."""
        super().end()
        self.pump()
