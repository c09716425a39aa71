"""The scheduler of a reactor: the process that runs next, and the pauses of those that wait.

A component that something arrived for runs at once, inside the call that brought it
(`Scheduler.enter`), so that an echo costs no extra turn of the reactor. At most `STEPS_PER_TURN`
steps run before the reactor has its turn, whatever the components do.

A component that yields although it has nothing to do is resumed after a pause that doubles from
1 ms to about 1 s. All that pause equally long share one delayed call, so 5,000 idle components cost
one timer and 5,000 generator steps a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol
from weakref import WeakValueDictionary

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from msgservice.clock import timed

# About 2 ms of small steps: what an event of the network may have to wait for components.
STEPS_PER_TURN = 1000
# 1 ms, 2 ms, ... 1.024 s.
PAUSES_S = tuple(0.001 * 2**n for n in range(11))


class Steps(Protocol):
    """A process, as its scheduler sees it: resumed step by step, pausing in between."""

    @property
    def pause_number(self) -> int:
        """Which of `PAUSES_S` it waits for."""

    @property
    def after_step(self) -> Callable[[], None] | None:
        """The call after each of its steps."""

    def step(self) -> None:
        """Run until it waits for something."""

    def pause_over(self, number: int) -> bool:
        """The pause is over, unless it was woken before; return whether it was."""


# The schedulers whose steps are under way, the innermost last. Not a class attribute: setting one
# makes the interpreter forget what it knows of the class, twice for every event.
_entered: list[Scheduler] = []


class Scheduler:
    """Runs the components of one reactor; `clock` is that reactor."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self._ready: deque[Steps] = deque()
        self._running = False
        self._stepping = False
        self._turn: IDelayedCall | None = None
        self._paused: list[list[Steps]] = [[] for _ in PAUSES_S]
        self._pauses: list[IDelayedCall | None] = [None for _ in PAUSES_S]
        self._after_step: list[Callable[[], None]] = []
        self._alive = 0
        self._when_quiet: list[Callable[[], None]] = []

    # --- From the world ---------------------------------------------------------------------------

    def enter(self, call: Callable[..., object], *arguments: object) -> None:
        """Call `call`, then run whoever it made ready. Events of the network come in here."""
        if self._running:
            call(*arguments)
            return
        self._running = True
        _entered.append(self)
        try:
            call(*arguments)
            self._run_ready()
        finally:
            self._running = self._stepping = False
            _entered.pop()
            if self._ready:
                self._ask_for_turn()

    def after_step(self, call: Callable[[], None]) -> None:
        """Call `call` when the step under way has ended; at once if none is."""
        if self._stepping:
            self._after_step.append(call)
        else:
            call()

    def when_quiet(self, call: Callable[[], None]) -> None:
        """Call `call` once, when no component is alive any more."""
        self._when_quiet.append(call)

    # --- From the processes -----------------------------------------------------------------------

    def started(self, process: Steps) -> None:
        """Count a process that begins, and let it run."""
        self._alive += 1
        self.ready(process)

    def ended(self) -> None:
        """Forget a process that has ended."""
        self._alive -= 1
        if self._alive:
            return
        self._ready.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        for number, call in enumerate(self._pauses):
            if call is not None:
                call.cancel()
                self._pauses[number] = None
            self._paused[number].clear()
        quiet, self._when_quiet = self._when_quiet, []
        for each in quiet:
            each()

    def ready(self, process: Steps) -> None:
        """Run `process` as soon as it is its turn."""
        self._ready.append(process)
        if not self._running:
            self._ask_for_turn()

    def pause(self, process: Steps) -> None:
        """Resume `process` after the pause that its `pause_number` names, unless it is woken."""
        number = process.pause_number
        self._paused[number].append(process)
        if self._pauses[number] is None:
            self._pauses[number] = self.clock.callLater(PAUSES_S[number], self._pause_over, number)

    # --- Within -----------------------------------------------------------------------------------

    def _run_ready(self) -> None:
        ready = self._ready
        for _ in range(STEPS_PER_TURN):
            if not ready:
                return
            process = ready.popleft()
            self._stepping = True
            process.step()
            self._stepping = False
            if process.after_step is not None:
                process.after_step()
            if self._after_step:
                self._run_after_step()

    def _run_after_step(self) -> None:
        calls, self._after_step = self._after_step, []
        for call in calls:
            call()

    def _ask_for_turn(self) -> None:
        if self._turn is None:
            self._turn = self.clock.callLater(0, self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        self.enter(lambda: None)

    def _pause_over(self, number: int) -> None:
        self._pauses[number] = None
        paused, self._paused[number] = self._paused[number], []
        self.enter(self._resume, paused, number)

    def _resume(self, paused: list[Steps], number: int) -> None:
        for process in paused:
            # Entries of those who were woken meanwhile are stale; they lie in another list by now.
            if process.pause_over(number):
                self._ready.append(process)


_schedulers: WeakValueDictionary[int, Scheduler] = WeakValueDictionary()


def scheduler_for(reactor: IReactorTime) -> Scheduler:
    """Return the scheduler of `reactor`: the same one as long as anything runs on it."""
    reactor = timed(reactor)  # by whichever of its two names it came
    # Keyed by id, which stays the reactor's own while the scheduler holds it.
    scheduler = _schedulers.get(id(reactor))
    if scheduler is None:
        scheduler = _schedulers[id(reactor)] = Scheduler(reactor)
    return scheduler


def current_scheduler() -> Scheduler | None:
    """Return the scheduler whose step is under way: for what one component starts of others."""
    return _entered[-1] if _entered else None
