"""The work of the engine: nodes, lanes, the units in them, and the calls of the handler.

State and its small rules only; who does what when is decided in `receiver.handling.engine`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from msgservice.connection import WINDOW, Connection
from msgservice.core.inbox import Arrival, Inbox
from msgservice.receiver.received import ReceivedMessage


class NodeIncarnation:
    """One incarnation of one node: what was taken of it, what is being handled, the connection."""

    __slots__ = (
        "connection",
        "dirty",
        "held_bytes",
        "held_messages",
        "inbox",
        "incarnation",
        "is_changing",
        "is_leaving",
        "is_paused",
        "lanes",
        "name",
        "window",
        "works",
    )

    def __init__(self, name: str, incarnation: str, inbox: Inbox, window: tuple[int, int]) -> None:
        self.name, self.incarnation = name, incarnation
        self.inbox = inbox
        self.connection: Connection | None = None
        self.lanes: dict[Hashable, Lane] = {}
        self.dirty: set[Work] = set()  # has ended messages that the inbox was not told of
        self.window = window
        self.works = 0
        self.held_messages = 0
        self.held_bytes = 0
        self.is_paused = False
        # Its order is another now: what still runs is in lanes of the order before, and the runs
        # that come wait for it.
        self.is_changing = False
        self.is_leaving = False  # the node has said BYE: close when all is answered

    @property
    def log_id(self) -> str:
        """The id of the node's log: of its incarnation what stands before the receiver's number."""
        return self.incarnation.partition(".")[0]

    def hold(self, work: Work) -> None:
        """Count messages that are not handled yet; beyond the window, stop reading.

        A single run is never beyond it: the node may send that whatever the window.
        """
        self.works += 1
        self.held_messages += work.open
        self.held_bytes += work.size
        if self.works > 1 and not self.is_paused and not self._has_room():
            self.is_paused = True
            if self.connection is not None:
                self.connection.pause(WINDOW)

    def release(self, work: Work, count: int) -> None:
        """Messages of the work ended, or were given up: the window has their room again."""
        work.open -= count
        self.held_messages -= count
        if not work.open:
            self.works -= 1
            self.held_bytes -= work.size

    def start_over(self, calls: Sequence[HandlerCall]) -> None:
        """Nothing of it counts but these calls, which have not ended."""
        works: dict[Work, int] = {}
        taking = []
        for call in calls:
            work, base = call.work, call.work.base
            works[work] = works.get(work, 0) + call.stop - call.first
            taking.append((base + call.first, base + call.stop - 1))
            if call.lane.key is not None:  # it is the only one of its work
                work.at = work.told = call.first
                work.stop = call.stop
            else:
                work.stop = work.at
        for work, count in works.items():
            work.open = count
        self.dirty.clear()
        self.works = len(works)
        self.held_messages = sum(works.values())
        self.held_bytes = sum(work.size for work in works)
        for lane in self.lanes.values():
            kept = [work for work in lane.queue if work in works and lane.key is not None]
            lane.queue.clear()
            lane.queue.extend(kept)
        self.inbox.abandon_all_but(taking)

    def cut(self, work: Work, first: int, stop: int) -> Work:
        """Return messages `first` to `stop` (exclusive) of the work as work of their own."""
        base = work.base
        rest = Work(self, work.arrival, work.messages, base + first, base + stop - 1, 0)
        self.hold(rest)
        self.release(work, stop - first)
        return rest

    def go_on(self) -> None:
        """Read again if there is room. What arrived meanwhile may arrive inside this call."""
        if self.is_changing:
            if self.works:
                return
            self.end_change()
            if self.connection is not None:
                self.connection.go_on_soon()
        if self.is_paused and (self.works <= 1 or self._has_room()):
            self.is_paused = False
            if self.connection is not None:
                self.connection.resume_reading(WINDOW)

    def end_change(self) -> None:
        """Nothing of the order before is left: the lanes take work again."""
        self.is_changing = False
        for lane in self.lanes.values():
            lane.is_over = False

    def _has_room(self) -> bool:
        messages, size = self.window
        return self.held_messages <= messages and self.held_bytes <= size

    def flush(self, *, is_last: bool = False) -> None:
        """Send the answers that are owed, as soon as the transport has room for them.

        `is_last`: now, for the connection is closed next. They are one ACK and the NACKs of what
        was taken, so the window bounds them.
        """
        connection = self.connection
        if connection is None or not (connection.is_writable or is_last):
            return
        answers = self.inbox.answers.take_frames()
        if answers:
            connection.send_all(answers)
        if self.is_leaving and not self.works:
            connection.close()


class Work:
    """A new part of a run: messages `at` … `stop - 1` are to be handled, in that order.

    In a lane with order everything below `at` has ended. Below `told` the inbox knows.
    """

    __slots__ = (
        "arrival",
        "at",
        "base",
        "messages",
        "node",
        "open",
        "size",
        "stop",
        "told",
    )

    def __init__(
        self,
        node: NodeIncarnation,
        arrival: Arrival,
        messages: list[ReceivedMessage],
        first: int,
        last: int,
        size: int,
    ) -> None:
        self.node = node
        self.arrival = arrival
        self.messages = messages
        self.base = arrival.transfer.sequence
        self.at = self.told = first - self.base
        self.stop = last - self.base + 1
        self.open = self.stop - self.at  # messages that have not ended
        self.size = size


class Lane:
    """The work of one lane, in the order in which it arrived."""

    __slots__ = ("behind", "followers", "is_over", "is_ready", "key", "node", "queue", "running")

    def __init__(self, node: NodeIncarnation, key: Hashable) -> None:
        self.node = node
        self.key = key
        self.queue: deque[Work] = deque()
        self.running = 0  # calls
        self.is_ready = False  # waits for its step
        # Of an earlier incarnation, or order: nothing is begun; threads read it.
        self.is_over = False
        # Lanes of earlier incarnations of the node that still have calls: how many this waits
        # for, and those that wait for this.
        self.behind = 0
        self.followers: tuple[Lane, ...] = ()


class HandlerCall:
    """A call of the handler that has not ended: messages `first` … `stop - 1` of the work."""

    __slots__ = ("deferred", "first", "lane", "outcome", "stop", "work")

    def __init__(self, lane: Lane, work: Work, first: int, stop: int) -> None:
        self.lane, self.work, self.first, self.stop = lane, work, first, stop
        self.deferred: Deferred[Any] | None = None
        self.outcome: Any = None
