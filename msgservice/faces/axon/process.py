"""One component's `main` under way: a generator or a coroutine, resumed step by step.

The states and what ends them:

* NEW: not activated.
* READY: in the scheduler's queue, there exactly once.
* RUNNING: inside its step.
* PAUSED: a generator that yielded with nothing to do; ended by a message, or by its pause.
* WAITING: waits for a message (`self.pause()`, `await self.recv(...)`); ended by nothing else.
* BLOCKED: what it filled is full (`mailbox`); ended by room there, or by a message in `control`.
* AWAITING: a coroutine that awaits a Deferred; ended by its result.
* STOPPED: `main` has returned or failed, or the process was stopped.

In a ring of components, each of which has filled the next, nobody would ever run again; so a
process is not blocked by a box whose owner is, by such a chain, waiting for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from enum import Enum
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.faces.axon.AxonExceptions import BadComponent, Closed
from msgservice.faces.axon.Ipc import WaitComplete, is_closing, newComponent
from msgservice.faces.axon.mailbox import Mailbox, Owner
from msgservice.faces.axon.scheduler import PAUSES_S, Scheduler

# Steps that a generator may take without doing anything, while a message lies unread in one of its
# boxes, before it is paused like an idle one. Enough for a `main` that yields between its phases.
FRUITLESS_STEPS_MAX = 100
LAST_PAUSE = len(PAUSES_S) - 1


class State(Enum):
    """The state of a process (table of the module)."""

    NEW = "new"
    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    WAITING = "waiting"
    BLOCKED = "blocked"
    AWAITING = "awaiting"
    STOPPED = "stopped"


# Module globals: one lookup instead of two, on every step.
READY, RUNNING, PAUSED, WAITING = State.READY, State.RUNNING, State.PAUSED, State.WAITING
BLOCKED, AWAITING, STOPPED = State.BLOCKED, State.AWAITING, State.STOPPED


class Host(Protocol):
    """The component whose `main` a process runs."""

    @property
    def name(self) -> str:
        """A name that no other component of this process has."""

    def has_control(self) -> bool:
        """Return whether a message waits in `control`."""

    def anyReady(self) -> bool:
        """Return whether a message waits in any inbox."""

    def clear_boxes(self) -> None:
        """Drop what its inboxes hold: nobody takes it any more."""


class Wait:
    """A coroutine's wait for a message or for room, as it hands it to its process."""

    __slots__ = ()


WAIT = Wait()


class Receive:
    """The awaitable of `self.recv`, for a coroutine: await it for the next message."""

    __slots__ = ("_box", "_control", "_name", "_process")

    def __init__(self, process: Process, name: str, box: Mailbox, control: Mailbox | None) -> None:
        self._process, self._name, self._box, self._control = process, name, box, control

    def __await__(self) -> Generator[Wait, None, Any]:
        if self._process.is_blocked():
            yield WAIT
        while not len(self._box):
            if self._name != "control" and self._control is not None:
                closing = self._control.take_first(is_closing)
                if closing is not None:
                    raise Closed(self._name, closing)
            yield WAIT
        return self._box.take()


class Room:
    """The awaitable of `self.send`: await it until what was filled has room again."""

    __slots__ = ("_process",)

    def __init__(self, process: Process) -> None:
        self._process = process

    def __await__(self) -> Generator[Wait, None, None]:
        while self._process.is_blocked():
            yield WAIT


class Message:
    """The awaitable of `self.pause`: await it for something to arrive in any box."""

    __slots__ = ("_process",)

    def __init__(self, process: Process) -> None:
        self._process = process

    def __await__(self) -> Generator[Wait, None, None]:
        yield WAIT


class Process:
    """Runs `main` of one component."""

    __slots__ = (
        "_awaited",
        "_callers",
        "_component",
        "_fruitless",
        "_main",
        "_scheduler",
        "_send",
        "_stop_asked",
        "_woken",
        "after_step",
        "blocked_on",
        "is_coroutine",
        "pause_number",
        "pausing",
        "progress",
        "state",
        "watchers",
    )

    _log = Logger()

    def __init__(self, owner: Host) -> None:
        self._component = owner
        self.state = State.NEW
        self.is_coroutine = False
        self.blocked_on: Mailbox | None = None
        # Whether this step took or sent anything, and whether it asked for a pause.
        self.progress = self.pausing = False
        self.pause_number = 0
        # Called after each step, by the scheduler.
        self.after_step: Callable[[], None] | None = None
        # Called once, when it stops: with the failure, or None.
        self.watchers: list[Callable[[Failure | None], object]] | None = None
        # Both set by `start`; Any, as `step` is no place for checks.
        self._scheduler: Any = None
        self._send: Any = None
        self._main: Any = None
        self._callers: list[Any] | None = None
        self._awaited: Deferred[Any] | None = None
        self._fruitless = 0
        self._woken = self._stop_asked = False

    # --- Getters ----------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether the component was activated, be it stopped by now."""
        return self.state is not State.NEW

    @property
    def stopped(self) -> bool:
        """Whether nothing of it will run any more."""
        return self.state is STOPPED

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler that runs it. Only once it is started."""
        assert self._scheduler is not None
        return cast("Scheduler", self._scheduler)

    def is_blocked(self) -> bool:
        """Return whether it must wait for room; not if `control` has something to say."""
        return self.blocked_on is not None and not self._component.has_control()

    # --- Verbs ------------------------------------------------------------------------------------

    def start(self, main: Callable[[], Any], scheduler: Scheduler) -> None:
        """Call `main` and run what it returns, a generator or a coroutine, on `scheduler`."""
        self._scheduler = scheduler
        self.state = READY
        try:
            self._main = main()
        except Exception:
            failure = Failure()
            scheduler.started(self)
            self._finish(failure)
            return
        if self._main is None:
            self._main = iter(())  # a plain function: it has done all that it does
        self.is_coroutine = hasattr(self._main, "__await__")
        self._use(self._main)
        scheduler.started(self)

    def watch(self, call: Callable[[Failure | None], object]) -> None:
        """Call `call` once, when it stops: with its failure, or None.

        A failure is logged, unless one of those called returns true: it has told somebody.
        """
        if self.watchers is None:
            self.watchers = [call]
        else:
            self.watchers.append(call)

    def wake(self) -> None:
        """Something has arrived in one of its boxes."""
        state = self.state
        if state is RUNNING:
            self._woken = True
        elif state is PAUSED or state is WAITING:
            self.pause_number = 0
            self._fruitless = 0
            if self.blocked_on is not None and not self._component.has_control():
                self.state = BLOCKED
            else:
                self._ready()
        elif state is BLOCKED and self._component.has_control():
            self._ready()

    def pause_over(self, number: int) -> bool:
        """The pause is over, unless it was woken from that one before; return whether it was."""
        if self.state is PAUSED and self.pause_number == number:
            if number < LAST_PAUSE:
                self.pause_number = number + 1
            self.state = READY
            return True
        return False

    def block(self, box: Mailbox) -> None:
        """Let it wait for room in `box`, which it has filled, when its step ends."""
        owner: Owner | None = box.owner
        while owner is not None:
            if owner is self:
                return
            owner = owner.blocked_on.owner if owner.blocked_on is not None else None
        self.blocked_on = box
        box.when_room(self._unblock)

    def stop(self) -> None:
        """End it: `main` is closed where it stands, and its `finally` clauses run.

        One that stops itself ends with its step. A Deferred that it awaits is cancelled.
        """
        if self.state is RUNNING:
            self._stop_asked = True
        elif self.state is State.NEW:
            self.state = STOPPED
        elif self.state is not STOPPED:
            self._close()

    def step(self) -> None:
        """Resume `main` once, and decide what it waits for next. Only the scheduler calls this."""
        if self.state is not READY:
            return  # stopped while in the queue
        self.state = RUNNING
        self._woken = self.progress = self.pausing = False
        try:
            yielded = self._send(None)
        except StopIteration:
            if self._callers:
                self._use(self._callers.pop())
                self._ready()
            else:
                self._finish(None)
        except Closed:
            self._finish(None)
        except Exception:
            self._finish(Failure())
        except BaseException:  # SystemExit and the like go on to the reactor
            self._finish(None)
            raise
        else:
            if self._stop_asked:
                self._close()
            elif self.is_coroutine:
                self._after_await(yielded)
            else:
                self._after_yield(yielded)

    # --- Within -----------------------------------------------------------------------------------

    def _use(self, main: Any) -> None:
        self._main = main
        self._send = main.send if hasattr(main, "send") else lambda _: next(main)

    def _ready(self) -> None:
        self.state = READY
        self._scheduler.ready(self)

    def _unblock(self) -> None:
        self.blocked_on = None
        if self.state is BLOCKED:
            self._ready()

    def _after_yield(self, yielded: object) -> None:
        if yielded.__class__ is not int:
            self._obey(yielded)
        if self.progress:
            self.pause_number = 0
            self._fruitless = 0
        if self.blocked_on is not None and not self._component.has_control():
            self.state = BLOCKED
        elif self._woken:
            self._ready()
        elif self.pausing:
            # What is left unread after a fruitful step is taken first: else it would lie until
            # the next message.
            if self.progress and self._component.anyReady():
                self._ready()
            else:
                self.state = WAITING
        elif self.progress:
            self._ready()
        elif self._fruitless < FRUITLESS_STEPS_MAX and self._component.anyReady():
            self._fruitless += 1
            self._ready()
        else:
            self.state = PAUSED
            self._scheduler.pause(self)

    def _obey(self, yielded: object) -> None:
        if isinstance(yielded, WaitComplete):
            self._callers = self._callers or []
            self._callers.append(self._main)
            self._use(yielded.generator)
            self.progress = True
        elif isinstance(yielded, newComponent):
            for each in yielded.components():
                each.activate(self._scheduler)
            self.progress = True

    def _after_await(self, yielded: object) -> None:
        if isinstance(yielded, Wait):
            if self.blocked_on is not None and not self._component.has_control():
                self.state = BLOCKED
            elif self._woken:
                self._ready()
            else:
                self.state = WAITING
        elif isinstance(yielded, Deferred):
            self.state = AWAITING
            self._awaited = yielded
            yielded.addBoth(self._result)
        else:
            self._main.close()
            reason = f"awaited {type(yielded).__name__}: only boxes and Deferreds can be awaited"
            self._finish(Failure(BadComponent(self._component, reason)))

    def _result(self, result: object) -> object:
        if self.state is AWAITING:
            self._awaited = None
            self._ready()
        return result

    def _close(self) -> None:
        awaited, self._awaited = self._awaited, None
        for main in [self._main, *reversed(self._callers or ())]:
            if not hasattr(main, "close"):
                continue
            try:
                main.close()
            except Exception:
                name = self._component.name
                self._log.failure("component {component} failed in its stop", component=name)
        self._finish(None)
        if awaited is not None:
            awaited.addErrback(lambda _: None)  # its outcome is nobody's any more
            awaited.cancel()

    def _finish(self, failure: Failure | None) -> None:
        self.state = STOPPED
        # Drop the frame: a stopped component may be kept by others.
        self._main = self._send = self._callers = None
        self._component.clear_boxes()
        self.scheduler.ended()
        watchers, self.watchers = self.watchers, None
        told = [call(failure) for call in watchers or ()]
        if failure is not None and not any(told):
            name = self._component.name
            self._log.failure("component {component} failed", failure, component=name)
