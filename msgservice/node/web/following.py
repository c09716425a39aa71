"""`Following`: the states of one message, for who waits for it over HTTP, or is told as it happens.

The log is asked, by `$node.status` and with the rights of who asks; the tracker says when to ask
again. So what is told is always stored, and no final state is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred

from msgservice.administration import STATUS, PromiseTold, StatusTold
from msgservice.message import Status
from msgservice.node.gate import Pass
from msgservice.node.operations import word_of
from msgservice.node.tracker import WAITING
from msgservice.node.web.operations import Requests
from msgservice.records import number_of, position_of

FINAL = frozenset(word_of(status) for status in Status if status.final)


class Tracker(Protocol):
    """The tracker of a node, as far as it is asked here (`tracker`)."""

    def follow(self, first: int, told: Callable[[], None]) -> None:
        """Call `told` whenever something of a batch was settled, by its first position."""

    def unfollow(self, first: int, told: Callable[[], None]) -> None:
        """Call it no more."""


class States(msgspec.Struct, frozen=True):
    """The state of a message at each of its receivers. `due`: when it is, wall clock in ms."""

    id: str
    position: int
    subject: str
    receivers: dict[str, StatusTold]
    due: int | None = None
    promise: PromiseTold | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing of it will change any more."""
        return (
            not self.due
            and all(one.status in FINAL for one in self.receivers.values())
            and (self.promise is None or self.promise.outcome != "open")
        )


class _Page(msgspec.Struct):
    position: int
    subject: str
    receivers: dict[str, StatusTold]
    next: int | None
    due: int | None = None
    promise: PromiseTold | None = None


_page = msgspec.json.Decoder(_Page).decode


async def states_of(requests: Requests, id_: str, who: Pass) -> States:
    """Return the states of a message, as who asks may know them. Raises `UnknownMessage`."""
    receivers: dict[str, StatusTold] = {}
    after: int | None = 0
    promise: PromiseTold | None = None
    while True:
        asked = msgspec.json.encode({"id": id_, "after": after})
        page = _page(await requests.ask(STATUS.right, asked, who))
        receivers |= page.receivers
        promise = promise or page.promise
        after = page.next
        if after is None:
            return States(id_, page.position, page.subject, receivers, page.due, promise)


class Following:
    """The states of a message, from now on. `next` gives them whenever they may have changed."""

    def __init__(self, requests: Requests, tracker: Tracker, who: Pass) -> None:
        self._requests = requests
        self._tracker = tracker
        self._id = ""
        self._who = who
        self._followed: int | None = None
        self._is_news = False
        self._waiter: Deferred[None] | None = None
        self._is_over = False

    async def first(self, id_: str) -> States:
        """Return the present states of a message; what changes from then on is known by `news`."""
        self._id = id_
        states = await states_of(self._requests, self._id, self._who)
        self._follow(states)
        if states.is_final:
            return states
        # What was settled while the log was read is in what is read now.
        return await self.again()

    async def again(self) -> States:
        """Return the states as they are now."""
        self._is_news = False
        states = await states_of(self._requests, self._id, self._who)
        self._follow(states)
        return states

    async def news(self) -> bool:
        """Return True when there may be other states; False when it was told to stop."""
        if not self._is_news and not self._is_over:
            self._waiter = Deferred()
            await self._waiter
        return not self._is_over

    def stop(self) -> None:
        """Wait no more."""
        self._is_over = True
        if self._followed is not None:
            self._tracker.unfollow(self._followed, self._told)
            self._followed = None
        self._wake()

    def _follow(self, states: States) -> None:
        first = WAITING if states.due else position_of(number_of(states.position))
        if first != self._followed and not self._is_over:
            if self._followed is not None:
                self._tracker.unfollow(self._followed, self._told)
                self._is_news = True  # it was moved, and is another's to tell of
            self._followed = first
            self._tracker.follow(first, self._told)

    def _told(self) -> None:
        self._is_news = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)
