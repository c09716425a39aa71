"""A mailbox: a queue in front of one component, or a mere name for another mailbox.

A box with a `target` keeps nothing: what is put into it lies in the box at the end of the chain.
So a component's outbox, linked to another's inbox, costs one hop and no copy.

A box is bounded softly. Beyond its limit it is `full`: nothing is refused, but whoever fills it is
not resumed (a component) or read from (a socket) until the box is half empty again. The overshoot
is what one step of a component sends, or one read from a socket. `messages_max` is the hard limit
that `setInboxSize` sets, and raises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from msgservice.faces.axon.AxonExceptions import BoxAlreadyLinkedToDestination, noSpaceInBox

# Four reads of a socket. A server of 10,000 connections with every box full holds 2.5 GiB; a box
# is full only while its component is slower than its peer.
BOX_BYTES_MAX = 256 * 1024
# Messages that are not bytes count by number only. 4,096 one-byte reads are about 200 KiB of RAM.
BOX_MESSAGES_MAX = 4096


class Owner(Protocol):
    """The component behind a box, as the box sees it."""

    after_step: Callable[[], None] | None  # called after each of its steps

    @property
    def started(self) -> bool:
        """Whether it was activated, be it stopped by now."""

    @property
    def stopped(self) -> bool:
        """Whether nothing of it will run any more."""

    @property
    def blocked_on(self) -> Mailbox | None:
        """The box that it has filled and waits for."""

    def wake(self) -> None:
        """Something has arrived in one of its boxes."""


class Mailbox:
    """A queue of messages, first in first out."""

    __slots__ = (
        "_waiters",
        "bytes_held",
        "bytes_max",
        "full",
        "messages_max",
        "name",
        "on_take",
        "owner",
        "queue",
        "taken",
        "target",
    )

    def __init__(self, name: str, owner: Owner | None, *, bytes_max: int = BOX_BYTES_MAX) -> None:
        self.name = name
        self.owner = owner
        self.target: Mailbox | None = None
        self.bytes_max = bytes_max
        self.bytes_held = 0
        self.messages_max: int | None = None
        self.full = False
        self.taken = 0
        self.on_take: Callable[[], None] | None = None
        # Made with the first message: an empty deque costs 600 bytes, and most boxes stay empty.
        self.queue: deque[Any] | None = None
        self._waiters: list[Callable[[], None]] | None = None

    def __len__(self) -> int:
        return len(self.queue) if self.queue is not None else 0

    def __iter__(self) -> Iterator[Any]:
        return iter(self.queue or ())

    def final(self) -> Mailbox:
        """Return the box in which messages for this one really lie."""
        box = self
        while box.target is not None:
            box = box.target
        return box

    def deliver(self, message: object) -> Mailbox:
        """Put `message` at the end of the chain, and return the box that is there."""
        box = self
        while box.target is not None:
            box = box.target
        box.put(message)
        return box

    def put(self, message: object) -> None:
        """Append `message` and wake the owner. One whose owner has stopped is dropped."""
        owner = self.owner
        if owner is None:
            self._append(message)
        elif not owner.stopped:
            self._append(message)
            owner.wake()

    def take(self) -> Any:
        """Return the first message. Raises `IndexError` when there is none."""
        if not self.queue:
            raise IndexError(f"box {self.name!r} is empty")
        return self._taken(self.queue.popleft())

    def take_first(self, wanted: Callable[[object], bool]) -> Any | None:
        """Return the first message that is `wanted`, out of its turn; None if there is none."""
        for message in self.queue or ():
            if wanted(message):
                assert self.queue is not None
                self.queue.remove(message)
                return self._taken(message)
        return None

    def when_room(self, call: Callable[[], None]) -> None:
        """Call `call` once, when the box is no longer full. At once if it is not."""
        if not self.full:
            call()
        elif self._waiters is None:
            self._waiters = [call]
        else:
            self._waiters.append(call)

    def make_room(self) -> None:
        """Say that the box is no longer full, to those who wait for it."""
        self.full = False
        waiters, self._waiters = self._waiters, None
        for call in waiters or ():
            call()

    def clear(self) -> None:
        """Drop everything: nobody will take it any more."""
        self.queue = None
        self.bytes_held = 0
        self.make_room()

    def link_to(self, target: Mailbox) -> None:
        """Make this box a name for `target`; what it holds already goes there."""
        if self.target is not None:
            raise BoxAlreadyLinkedToDestination(self.name, f"it leads to {self.target.name!r}")
        if target.final() is self:
            raise BoxAlreadyLinkedToDestination(self.name, "the link would lead back to it")
        self.target = target
        held, self.queue = self.queue, None
        self.bytes_held = 0
        for message in held or ():
            target.deliver(message)
        if target.final().full and self._waiters is not None:
            final = target.final()
            for call in self._waiters:
                final.when_room(call)
            self._waiters, self.full = None, False
        else:
            self.make_room()

    def _append(self, message: object) -> None:
        queue = self.queue
        if queue is None:
            queue = self.queue = deque()
        elif self.messages_max is not None and len(queue) >= self.messages_max:
            raise noSpaceInBox(self.name, len(queue), self.messages_max)
        queue.append(message)
        if type(message) is bytes:
            self.bytes_held += len(message)
            if self.bytes_held >= self.bytes_max:
                self.full = True
        if len(queue) >= BOX_MESSAGES_MAX:
            self.full = True

    def _taken(self, message: Any) -> Any:
        self.taken += 1
        if type(message) is bytes:
            self.bytes_held -= len(message)
        if (
            self.full
            and 2 * self.bytes_held <= self.bytes_max
            and 2 * len(self) <= BOX_MESSAGES_MAX
        ):
            self.make_room()
        if self.on_take is not None:
            self.on_take()
        return message


class Outbox(Mailbox):
    """A box that leads outwards. Unlinked, it keeps what is sent before its owner is activated.

    After that it drops it, as the original's does: an outbox that nobody asked for would grow
    for ever.
    """

    __slots__ = ()

    def put(self, message: object) -> None:
        """Keep `message` if it may still be linked."""
        if self.owner is None or not self.owner.started:
            self._append(message)
