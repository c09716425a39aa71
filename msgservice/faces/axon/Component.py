"""The base class of components: boxes with names, and a `main` that is run beside all others.

`main` is a generator, as in Axon: `yield 1` means *run me again*, and `self.pause()` before it *run
me again when something has arrived*. Or it is a coroutine: then `self.recv`, `self.send` and
`self.pause` are awaited, and so is any Deferred.

Either way a component waits, at its next `yield` or `await`, while what it sent to has no room (see
`mailbox`), unless its `control` has a message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Self

from twisted.internet.error import ReactorNotRunning

from msgservice.faces.axon.AxonExceptions import Closed
from msgservice.faces.axon.mailbox import Mailbox, Outbox
from msgservice.faces.axon.process import Message, Process, Receive, Room
from msgservice.faces.axon.scheduler import Scheduler, current_scheduler, scheduler_for

if TYPE_CHECKING:
    from twisted.python.failure import Failure

_numbers = count(1)


class Linkage:
    """A link from one box to another; what `link` returns and `unlink` takes."""

    __slots__ = ("passthrough", "sink", "sinkbox", "source", "sourcebox")

    def __init__(
        self, source: component, sourcebox: str, sink: component, sinkbox: str, passthrough: int
    ) -> None:
        self.source, self.sourcebox = source, sourcebox
        self.sink, self.sinkbox = sink, sinkbox
        self.passthrough = passthrough

    def source_mailbox(self) -> Mailbox:
        """Return the box that messages are put into."""
        inward = self.passthrough == 1
        boxes: Mapping[str, Mailbox] = self.source.inboxes if inward else self.source.outboxes
        return boxes[self.sourcebox]

    def sink_mailbox(self) -> Mailbox:
        """Return the box that they come to."""
        outward = self.passthrough == 2
        boxes: Mapping[str, Mailbox] = self.sink.outboxes if outward else self.sink.inboxes
        return boxes[self.sinkbox]


class Messages:
    """The messages of one box, for `for` (those there are) and `async for` (until the end)."""

    __slots__ = ("_box", "_component")

    def __init__(self, owner: component, box: str) -> None:
        self._component, self._box = owner, box

    def __iter__(self) -> Iterator[Any]:
        while self._component.dataReady(self._box):
            yield self._component.recv(self._box)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            try:
                message = await self._component.recv(self._box)
            except Closed:
                return
            yield message


class component:
    """A component; keywords given to the constructor become attributes.

    `Inboxes` and `Outboxes` name the boxes: a sequence of names, or a mapping to descriptions.
    """

    Inboxes: ClassVar[Mapping[str, str] | Sequence[str]] = {
        "inbox": "data to be processed",
        "control": "what ends it: producerFinished, shutdownMicroprocess",
    }
    Outboxes: ClassVar[Mapping[str, str] | Sequence[str]] = {
        "outbox": "data that was processed",
        "signal": "that it has ended, or wants others to",
    }
    Usescomponents: ClassVar[Sequence[type[component]]] = []

    def __init__(self, *args: Any, **argd: Any) -> None:
        self._process = Process(self)
        self.inboxes = {name: Mailbox(name, self._process) for name in self.Inboxes}
        self.outboxes: dict[str, Mailbox] = {n: Outbox(n, self._process) for n in self.Outboxes}
        # Boxes that are looked at on every step.
        self._control = self.inboxes.get("control")
        self.id = next(_numbers)
        self._parent: component | None = None
        self._children: list[component] | None = None
        self._linkages: list[Linkage] | None = None
        self.__dict__.update(argd)

    # --- Getters ----------------------------------------------------------------------------------

    @cached_property
    def name(self) -> str:
        """A name that no other component of this process has."""
        return f"{type(self).__module__}.{type(self).__qualname__}_{self.id}"

    def dataReady(self, boxname: str = "inbox") -> int:
        """Return how many messages wait in inbox `boxname`; `KeyError` if there is no such box."""
        queue = self.inboxes[boxname].queue
        return len(queue) if queue is not None else 0

    def anyReady(self) -> bool:
        """Return whether a message waits in any inbox."""
        for box in self.inboxes.values():  # noqa: SIM110 - a loop, as this is asked on idle steps
            if box.queue:
                return True
        return False

    def has_control(self) -> bool:
        """Return whether a message waits in `control`."""
        return self._control is not None and len(self._control) > 0

    def childComponents(self) -> list[component]:
        """Return the components that were added as children and are not removed."""
        return list(self._children or ())

    # --- Messages ---------------------------------------------------------------------------------

    def recv(self, boxname: str = "inbox") -> Any:
        """Return the next message of inbox `boxname`; `IndexError` if there is none.

        In a component whose `main` is a coroutine this is awaited, and waits for one. It raises
        `Closed`, having taken the message that says so, when the inbox is empty and a
        `producerFinished` or `shutdownMicroprocess` stands in `control`.
        """
        process = self._process
        if process.is_coroutine:
            process.progress = True
            return Receive(process, boxname, self.inboxes[boxname], self._control)
        message = self.inboxes[boxname].take()
        process.progress = True
        return message

    def send(self, message: object, boxname: str = "outbox") -> Any:
        """Put `message` where outbox `boxname` leads.

        The message is sent, whether this is awaited or not. In a coroutine it may be: that waits
        until the place it went to has room for more. Raises `noSpaceInBox` if that place has a
        size (`setInboxSize`) and is full; the message was not sent then.
        """
        process = self._process
        box = self.outboxes[boxname].deliver(message)
        process.progress = True
        if box.full and process.blocked_on is None:
            process.block(box)
        return Room(process) if process.is_coroutine else None

    def Inbox(self, boxname: str = "inbox") -> Messages:
        """Return the messages of an inbox, for a loop: `for` takes those that are there.

        In a coroutine, `async for` takes those to come, until the end is announced in `control`.
        """
        return Messages(self, boxname)

    def pause(self) -> Any:
        """Do not resume this component, after its next `yield`, until a message arrives."""
        self._process.pausing = True
        return Message(self._process) if self._process.is_coroutine else None

    def unpause(self) -> None:
        """Resume this component, as if a message had arrived."""
        self._process.wake()

    def setInboxSize(self, boxname: str, size: int | None) -> None:
        """Let senders to `boxname` get `noSpaceInBox` when it holds `size` messages."""
        self.inboxes[boxname].messages_max = size

    def _deliver(self, message: object, boxname: str = "inbox") -> None:
        self.inboxes[boxname].deliver(message)

    # --- Links and children -----------------------------------------------------------------------

    def link(
        self, source: tuple[component, str], sink: tuple[component, str], passthrough: int = 0
    ) -> Linkage:
        """Let what is put into one box arrive in another, and return the linkage.

        `passthrough` 0 leads from an outbox to an inbox; 1 from an inbox of a component to an
        inbox of its child; 2 from an outbox of a child to an outbox of the component.
        """
        linkage = Linkage(*source, *sink, passthrough)
        linkage.source_mailbox().link_to(linkage.sink_mailbox())
        if self._linkages is None:
            self._linkages = []
        self._linkages.append(linkage)
        return linkage

    def unlink(
        self, thecomponent: component | None = None, thelinkage: Linkage | None = None
    ) -> None:
        """Undo a linkage that this component made, or all that touch `thecomponent`."""
        for linkage in list(self._linkages or ()):
            if linkage is thelinkage or (
                thecomponent is not None and thecomponent in (linkage.source, linkage.sink)
            ):
                linkage.source_mailbox().target = None
                assert self._linkages is not None
                self._linkages.remove(linkage)

    def addChildren(self, *children: component) -> None:
        """Count `children` as parts of this component. They are activated apart from that."""
        if self._children is None:
            self._children = []
        self._children.extend(children)
        for child in children:
            child._parent = self  # noqa: SLF001 - of its own class

    def removeChild(self, child: component) -> None:
        """No longer count `child` as a part; undoes the links to it."""
        if self._children is not None and child in self._children:
            self._children.remove(child)
            child._parent = None
        self.unlink(thecomponent=child)

    # --- Life -------------------------------------------------------------------------------------

    def activate(
        self, Scheduler: Scheduler | None = None, Tracker: object = None, mainmethod: str = "main"
    ) -> Self:
        """Start `main`, beside all other components, and return self. Twice is once.

        It runs on `Scheduler`; else on that of the component whose step this is; else on the
        installed reactor's. `Tracker` is for callers of the original, and unused.
        """
        if not self._process.started:
            self._process.start(getattr(self, mainmethod), Scheduler or _default_scheduler())
        return self

    def run(self, reactor: Any = None) -> None:
        """Activate this component and run the reactor until all components have ended.

        Raises what this component's `main` raises. A reactor runs once in a process, so this is
        for programs that do nothing else; others call `activate`.
        """
        if reactor is None:
            from twisted.internet import reactor  # noqa: TID251 - run() is an entry point
        scheduler = scheduler_for(reactor)
        failures: list[Failure] = []

        def ended(failure: Failure | None) -> bool:
            if failure is not None:
                failures.append(failure)
                stop()
            return True  # raised below

        def stop() -> None:
            with suppress(ReactorNotRunning):  # it is being stopped already, by a signal say
                reactor.stop()

        self.activate(scheduler)
        self._process.watch(ended)
        scheduler.when_quiet(stop)
        reactor.run()
        for failure in failures:
            failure.raiseException()

    def stop(self) -> Any:
        """End this component where it stands."""
        self._process.stop()

    def _isStopped(self) -> bool:
        return self._process.stopped

    def main(self) -> Any:
        """The work of the component: a generator or a coroutine. Overridden, or of three parts:

        `initialiseComponent` once, `mainBody` until it returns something false, and
        `closeDownComponent`.
        """
        yield self.initialiseComponent() or 1
        while self.mainBody():
            yield 1
        self.closeDownComponent()

    def initialiseComponent(self) -> Any:
        """Do what comes first. To be overridden."""

    def mainBody(self) -> Any:
        """Do one step, and return whether there is another. To be overridden."""

    def closeDownComponent(self) -> Any:
        """Do what comes last. To be overridden."""

    def clear_boxes(self) -> None:
        """Drop what is left in the inboxes. The process calls this when it stops."""
        for box in self.inboxes.values():
            box.clear()

    def __repr__(self) -> str:
        return f"<{self.name} {self._process.state.value}>"


def process_of(of: component) -> Process:
    """Return what runs `of`: for those who drive components; a component itself has no use for it.

    The attribute is private because subclasses use names like `process` for their own methods.
    """
    return of._process  # noqa: SLF001 - of its own class


def _default_scheduler() -> Scheduler:
    current = current_scheduler()
    if current is not None:
        return current
    from twisted.internet import reactor  # noqa: TID251 - activate() is an entry point

    return scheduler_for(reactor)
