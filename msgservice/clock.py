"""Where time comes from: one place that decides between a real clock and a test's.

`reactor.seconds()` of Twisted's real reactors is the wall clock, which jumps, and with it
`callLater`: set back by an hour, nothing that waits happens for an hour. So intervals are measured
with a monotonic clock, and whoever waits does so through `timed(reactor)`: the same reactor, whose
time is monotonic. A test's `Clock` is that already, and the only time there is.

A part that waits says `clock: IReactorTime`, the command line `reactor: Reactor`. A part that is
given a reactor says `reactor: IReactorTime`, which a test's `Clock` is too, and says where it needs
what only some reactors have, as threads and UDP.

Twisted's own ports, connectors and transports wait too (to connect, to time out, to close), by the
reactor that made them: so what is dialled or listened at through `timed(reactor)` waits by it. Only
the limit of `reactor.resolve` stays on the reactor's clock: whoever asks has a limit of his own.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heapify, heappop, heappush
from types import MethodType
from typing import Any, TypeVar, cast

from twisted.internet._resolver import GAIResolver  # Twisted's own, where nobody chose another
from twisted.internet.base import DelayedCall, ReactorBase
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorCore,
    IReactorFDSet,
    IReactorFromThreads,
    IReactorTime,
    IReadDescriptor,
)
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, directlyProvides, implementer, providedBy

from msgservice.arguments import check_methods
from msgservice.lookups import Lookups

TICK = 0.5  # seconds between two looks whether the reactor's clock has jumped
REACTOR = ("callLater", "seconds")  # what every reactor has, a test's clock too
JUMP = 0.05  # seconds by which it has, more than a clock that is only being adjusted
VOID_MAX = 64  # what was cancelled, or moved, is kept until it is so many, and half of all

R = TypeVar("R", bound=IReactorTime)


def monotonic_of(reactor: IReactorTime) -> Callable[[], float]:
    """Return the function that measures intervals beside this reactor, in seconds."""
    if not isinstance(reactor, TimedReactor | AroundReactor):
        _check(reactor)
        if IReactorCore.providedBy(reactor):
            return time.monotonic
    seconds: Callable[[], float] = reactor.seconds
    return seconds


def wall_of(reactor: IReactorTime) -> Callable[[], int]:
    """Return the function that tells the wall clock beside this reactor, in milliseconds."""
    if IReactorCore.providedBy(reactor):
        return lambda: time.time_ns() // 1_000_000
    return lambda: int(reactor.seconds() * 1000)


def timed(reactor: R) -> R:
    """Return the reactor, on whose `callLater` and `seconds` the wall clock has no influence.

    The same one each time, so that all of a process share its timers. A `Clock` is returned as
    it is. Raises `TypeError` for what is no reactor.
    """
    if isinstance(reactor, TimedReactor | AroundReactor | Clock):
        return reactor
    _check(reactor)
    if not IReactorCore.providedBy(reactor):
        return reactor
    made: TimedReactor | None = vars(reactor).get(_KEPT)
    if made is None:
        made = TimedReactor(reactor, MonotonicTimers(reactor))
        setattr(reactor, _KEPT, made)
    return cast("R", made)  # it passes on all else


_KEPT = "_msgservice_timed"


def _check(reactor: object) -> None:
    if IReactorFromThreads.providedBy(reactor):
        return  # one that only takes calls from threads: its owner asks it for nothing else
    check_methods("a reactor is needed, as twisted.internet has it", REACTOR, reactor=reactor)


def check_reactor_runs(reactor: object, instead: str) -> None:
    """Raise `RuntimeError` in a coroutine of asyncio, where this reactor does not run.

    `instead`: what is made for such coroutines.
    """
    if not isinstance(reactor, ReactorBase) or reactor.running:
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"an event loop of asyncio runs here, and this reactor of Twisted does not: use {instead}"
        " in coroutines that asyncio runs, or let twisted.internet.task.react run this one"
    )


class Reactor(IReactorCore, IReactorTime, IReactorFromThreads):
    """The reactor of a process: its time, its start and end, and calls from other threads."""


class Time:
    """The time beside one reactor, for parts that need more of it than timers.

    `clock`: its timers; `now`: a monotonic clock, seconds; `wall`: the wall clock, milliseconds.
    """

    __slots__ = ("clock", "now", "wall")

    def __init__(self, reactor: IReactorTime) -> None:
        self.clock = timed(reactor)
        self.now = monotonic_of(reactor)
        self.wall = wall_of(reactor)


# What is added before the rest of a millisecond is cut off: a timer that is set for one fires at a
# float that may lie a little before it, and must not find itself early for ever.
ROUNDING = 1e-3


def milliseconds_of(seconds: float) -> int:
    """Return an interval in whole milliseconds, cut off; what only rounding lacks of one counts."""
    return int(seconds * 1000 + ROUNDING)


class SteadyClock:
    """The wall clock as it was at the start, gone on by what has passed since: it never goes back.

    What expires, or is due, is so by it: no jump of the wall clock meanwhile changes that.
    """

    __slots__ = ("_began", "_seconds", "_wall")

    is_held = False  # it is believed

    def __init__(self, reactor: IReactorTime) -> None:
        self._seconds = monotonic_of(reactor)
        self._began, self._wall = self._seconds(), wall_of(reactor)()

    def now(self) -> int:
        """The time, in ms since the epoch."""
        return self._wall + milliseconds_of(self._seconds() - self._began)


# The methods of a reactor that hand it on to what they make …
MAKERS = (
    "connectTCP",
    "connectUNIX",
    "listenTCP",
    "listenUNIX",
    "listenUDP",
    "listenMulticast",
    "adoptStreamPort",
    "adoptStreamConnection",
    "adoptDatagramPort",
)
# … and those that the made ones call for each write.
WATCHERS = ("addReader", "removeReader", "addWriter", "removeWriter")


class TimedReactor:
    """A reactor with other timers, also for what it makes, and other lookups of names.

    All else is the reactor's own.
    """

    def __init__(self, reactor: IReactorTime, timers: MonotonicTimers) -> None:
        self._reactor: Any = reactor
        self.seconds = timers.seconds
        self.callLater = timers.callLater
        self.getDelayedCalls = timers.getDelayedCalls
        for name in MAKERS:
            if isinstance(made := getattr(reactor, name, None), MethodType):
                setattr(self, name, MethodType(made.__func__, self))
        for name in WATCHERS:
            if (watch := getattr(reactor, name, None)) is not None:
                setattr(self, name, watch)
        directlyProvides(self, providedBy(reactor))
        self._lookups = Lookups(cast("IReactorFromThreads", reactor))

    @property
    def nameResolver(self) -> Any:
        """The lookups of names: ours, unless the program has installed some of its own."""
        installed = self._reactor.nameResolver
        return self._lookups if isinstance(installed, GAIResolver) else installed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


class AroundReactor:
    """A reactor around another, which does some things in its own way: timed as the other is."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor: Any = timed(reactor)
        directlyProvides(self, providedBy(self._reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IReadDescriptor)
class Ticks:
    """A timer of the kernel that the reactor reads: every `TICK` seconds, whatever the time is.

    Where there is none (it is Linux's), a jump is noticed when the reactor does anything at all.
    """

    def __init__(self, reactor: IReactorTime, tick: Callable[[], None]) -> None:
        self._reactor = reactor
        self._tick = tick
        self._fd = -1
        self._is_read = False

    def start(self) -> None:
        """Begin to tick."""
        if not self._is_read and IReactorFDSet.providedBy(self._reactor):
            if self._fd < 0:
                self._fd = _timer_of_kernel(TICK)
                if IReactorCore.providedBy(self._reactor):
                    # A process may have one reactor after the other, with an event loop each.
                    core = IReactorCore(self._reactor)
                    core.addSystemEventTrigger("after", "shutdown", self._close)
            if self._fd >= 0:
                self._is_read = True
                IReactorFDSet(self._reactor).addReader(self)

    def stop(self) -> None:
        """Tick no more."""
        if self._is_read:
            self._is_read = False
            IReactorFDSet(self._reactor).removeReader(self)

    def fileno(self) -> int:
        """See `IFileDescriptor`."""
        return self._fd

    def doRead(self) -> None:
        """See `IReadDescriptor`."""
        os.read(self._fd, 8)
        self._tick()

    def logPrefix(self) -> str:
        """See `ILoggingContext`."""
        return "msgservice.clock"

    def connectionLost(self, reason: Failure) -> None:
        """Take note that the reactor has stopped."""
        self._is_read = False
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _TimerSpec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


def _timer_of_kernel(seconds: float) -> int:
    """Return a file descriptor that can be read every so many seconds; -1 where there is none."""
    try:
        libc = ctypes.CDLL(None)
        create, settime = libc.timerfd_create, libc.timerfd_settime
    except (OSError, AttributeError):
        return -1
    fd = int(create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
    if fd >= 0:
        whole, part = int(seconds), int(seconds % 1 * 1e9)
        spec = _TimerSpec(whole, part, whole, part)
        settime(fd, 0, ctypes.byref(spec), None)
    return fd


class TurnsEnd:
    """A call that is made when a turn of the reactor is over, unless it is cancelled before."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not make it."""
        self._call = None

    def come(self) -> None:
        """The turn is over: make it, once."""
        call, self._call = self._call, None
        if call is not None:
            call()


class IAtTurnsEnd(Interface):
    """A reactor that makes calls when a turn is over, without a timer for each of them."""

    def at_turns_end(call: Callable[[], None]) -> TurnsEnd:
        """Make a call when this turn is over, before anything is waited for."""


@implementer(IReactorTime)
class MonotonicTimers:
    """Delayed calls by a monotonic clock, made in a reactor that may have another.

    The reactor is asked to call when the first is due. Should its clock jump meanwhile, a tick
    notices it, makes the calls that are due, and asks anew: a jump delays nothing by more than
    `TICK`. What is to be called at once has a queue of its own, since that is most of it: it costs
    one delayed call of the reactor for all of a turn.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        make_ticks: Callable[[IReactorTime, Callable[[], None]], Ticks] = Ticks,
    ) -> None:
        self.seconds = monotonic
        self._reactor = reactor
        # When each is due, in which order it came, and the call: void where that was cancelled, or
        # has another time by now.
        self._heap: list[tuple[float, int, DelayedCall]] = []
        self._count = itertools.count()
        self._soon: deque[DelayedCall] = deque()
        self._running: deque[DelayedCall] = deque()  # those of it whose turn it is
        self._active = 0  # calls, in both
        self._void = 0  # of the heap, or more
        # Of the reactor, for the first of the heap, and for one that is due later: it stays where
        # it is while something that is sooner comes and goes …
        self._waking: IDelayedCall | None = None
        self._waking_later: IDelayedCall | None = None
        self._waking_at = self._waking_later_at = 0.0
        # … and for what is to be called at once; the same at the last tick.
        self._waking_soon: IDelayedCall | TurnsEnd | None = None
        self._was_waking_soon: IDelayedCall | TurnsEnd | None = None
        self._at_turns_end: Callable[[Callable[[], None]], IDelayedCall | TurnsEnd] = (
            IAtTurnsEnd(reactor).at_turns_end
            if IAtTurnsEnd.providedBy(reactor)
            else partial(reactor.callLater, 0)
        )
        self._is_running = False
        self._ahead = 0.0  # of the monotonic clock: the reactor's
        self._ticks = make_ticks(reactor, self._tick)

    # --- IReactorTime

    def callLater(
        self,
        delay: float,
        callable: Callable[..., Any],  # noqa: A002  # the interface's name for it
        *args: object,
        **kwargs: object,
    ) -> IDelayedCall:
        """See `IReactorTime`."""
        if not delay >= 0:
            raise ValueError(f"a delay of {delay} s is in the past")
        due = self.seconds() + delay
        call = DelayedCall(
            due,
            callable,
            args,
            kwargs,
            self._was_cancelled,
            self._is_sooner,
            self.seconds,
        )
        if not self._active:
            self._ahead = self._reactor.seconds() - self.seconds()
            self._ticks.start()
        self._active += 1
        if delay == 0:
            self._soon.append(call)
            if self._waking_soon is None:
                self._waking_soon = self._at_turns_end(self._wake_soon)
        else:
            self._push(call)
        return call

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """See `IReactorTime`."""
        calls = (*self._running, *self._soon, *(call for _, _, call in self._heap))
        return [call for call in dict.fromkeys(calls) if call.active()]

    # --- from the calls

    def _was_cancelled(self, call: DelayedCall) -> None:
        self._active -= 1
        self._is_void()
        if not self._active:
            self._rest()

    def _is_sooner(self, call: DelayedCall) -> None:
        self._push(call)
        self._is_void()

    def _is_void(self) -> None:
        self._void += 1
        if self._void > VOID_MAX and 2 * self._void > len(self._heap):
            self._heap = [
                entry for entry in self._heap if entry[2].active() and entry[2].time == entry[0]
            ]
            heapify(self._heap)
            self._void = 0

    # --- from the reactor

    def _wake_soon(self) -> None:
        self._waking_soon = None
        self._run_soon()
        if not self._active:
            self._rest()

    def _wake(self) -> None:
        # Where the reactor's clock was set forward, the one that was asked for before comes first.
        if self._waking is None or not self._waking.active():
            self._waking, self._waking_at = self._waking_later, self._waking_later_at
        self._waking_later = None
        self._run_due()
        if not self._active:
            self._rest()

    def _tick(self) -> None:
        now = self.seconds()
        ahead = self._reactor.seconds() - now
        has_jumped = abs(ahead - self._ahead) > JUMP
        self._ahead = ahead
        # A clock that was set forward and back since the last tick looks as if it had never been,
        # but what was asked of the reactor in between is waited for by the time that is gone.
        is_late = self._heap and self._heap[0][0] + JUMP < now
        was_waking, self._was_waking_soon = self._was_waking_soon, self._waking_soon
        if has_jumped or is_late or (was_waking is not None and was_waking is self._waking_soon):
            self._wake_no_more()
            self._run_soon()
            self._run_due()
        if not self._active:
            self._rest()

    # --- inside

    def _run_soon(self) -> None:
        soon, self._soon = self._soon, deque()  # what these ask for is of the next turn
        self._running = soon
        while soon:  # one of them may take the others back
            call = soon.popleft()
            if not call.cancelled:
                self._call(call)

    def _run_due(self) -> None:
        now = self.seconds()
        self._is_running = True
        try:
            while self._heap and self._heap[0][0] <= now:
                due, _, call = heappop(self._heap)
                if call.active() and call.time == due:
                    self._call(call)
                elif self._void:
                    self._void -= 1
        finally:
            self._is_running = False
            self._wake_at_first()

    def _call(self, call: DelayedCall) -> None:
        if call.delayed_time > 0:
            call.activate_delay()
            self._push(call)
            return
        self._active -= 1
        call.called = 1
        try:
            call.func(*call.args, **call.kw)
        except BaseException:  # as Twisted does: one call's fault is not the others'
            self._log.failure("a delayed call failed")

    def _push(self, call: DelayedCall) -> None:
        heappush(self._heap, (call.time, next(self._count), call))
        if self._waking is None or call.time < self._waking_at:
            self._wake_at_first()

    def _wake_at_first(self) -> None:
        """Let the reactor call when the first is due, unless it will anyway."""
        if self._is_running or not self._heap:
            return
        first = self._heap[0][0]
        if self._waking is not None:
            if self._waking_at <= first:
                return
            if self._waking_later is not None:
                self._waking_later.cancel()
            self._waking_later, self._waking_later_at = self._waking, self._waking_at
        self._waking_at = first
        self._waking = self._reactor.callLater(max(0.0, first - self.seconds()), self._wake)

    def _rest(self) -> None:
        """Leave nothing behind in the reactor: there is nothing to wait for."""
        self._ticks.stop()
        self._soon.clear()
        self._heap.clear()
        self._void = 0
        self._wake_no_more()

    def _wake_no_more(self) -> None:
        for waking in (self._waking, self._waking_later, self._waking_soon):
            if waking is not None:
                waking.cancel()
        self._waking = self._waking_later = self._waking_soon = None
