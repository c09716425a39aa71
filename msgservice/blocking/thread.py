"""The reactor of programs that block: in a thread of its own, and the calls that cross to it.

One for each process, made when it is first needed, and stopped at the end of the process. It is
installed nowhere: a program whose main thread runs another reactor, or an event loop, has both.

A call that crosses is noted in a queue, and the reactor is woken for the first of them only: what
many threads ask in one turn is one wake-up. A call belongs to who gets its ticket: its thread,
which gives it up, or the reactor's, which has its outcome; so no outcome is lost between the two.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure

from msgservice.clock import Reactor
from msgservice.errors import ClientClosed, ForkedProcess
from msgservice.threads import DaemonThreads, begin_daemon

T = TypeVar("T")
# For the end of a process: each client and receiver has its `limits.stop_timeout`, all together.
END_SECONDS = 30.0


class ThreadReactor(DaemonThreads, EPollReactor):
    """A reactor beside whatever the main thread runs."""

    _registerAsIOThread = False


class Call(Generic[T]):
    """A call that crosses to the reactor's thread, and what came of it."""

    __slots__ = ("_asked", "_deferred", "_done", "_outcome", "_ticket", "_unwanted")

    def __init__(self, asked: Callable[[], object], unwanted: Callable[[T], object] | None) -> None:
        self._asked = asked
        self._unwanted = unwanted  # what is done with an outcome that nobody waits for any more
        self._ticket = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()
        self._deferred: Deferred[Any] | None = None
        self._outcome: Any = None

    # --- on the thread that asks

    def wait(self, timeout: float | None) -> bool:
        """Wait for the outcome; return whether there is one."""
        return self._done.acquire(timeout=-1 if timeout is None else max(0.0, timeout))

    def give_up(self) -> bool:
        """Want it no more, unless the outcome has come; return whether it has not."""
        return self._ticket.acquire(blocking=False)

    def result(self) -> T:
        """Return what came of it, or raise that."""
        outcome = self._outcome
        if isinstance(outcome, Failure):
            assert outcome.value is not None
            raise outcome.value
        return cast("T", outcome)

    # --- on the reactor's

    def begin(self) -> None:
        """Ask."""
        if self._ticket.locked():
            return  # given up before it began
        try:
            result = self._asked()
        except BaseException:
            self._ended(Failure())
            return
        if isinstance(result, Deferred):
            self._deferred = result
            result.addBoth(self._ended)
        else:
            self._ended(result)

    def cancel(self) -> None:
        """End what it waits for: it was given up."""
        if self._deferred is not None:
            self._deferred.cancel()

    def drop(self) -> None:
        """The outcome came, and its thread was interrupted: it has nobody."""
        if self._unwanted is not None and not isinstance(self._outcome, Failure):
            self._unwanted(self._outcome)

    def _ended(self, outcome: Any) -> None:
        self._outcome = outcome
        if self._ticket.acquire(blocking=False):
            self._done.release()
        else:
            self.drop()


class ReactorThread:
    """A reactor in a thread; `call` is for all other threads of this process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._reactor = ThreadReactor()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_woken = False
        self._is_over = False
        # What is closed at the end of the process unless it was before; on the reactor's thread.
        self.closes_at_end: dict[object, Callable[[], Deferred[None]]] = {}
        self._reactor.addSystemEventTrigger("before", "shutdown", self._close)
        begun = threading.Event()
        self._reactor.callWhenRunning(begun.set)
        self._thread = begin_daemon("msgservice reactor", self._run)
        begun.wait()

    def _run(self) -> None:
        self._reactor.run(installSignalHandlers=False)

    @property
    def reactor(self) -> Reactor:
        """The reactor, for what is made on its thread."""
        return cast("Reactor", self._reactor)

    @property
    def is_here(self) -> bool:
        """Whether it is of this process, and not of one that this was forked from."""
        return self._pid == os.getpid()

    @property
    def is_usable(self) -> bool:
        """Whether calls of this process can cross to it."""
        return not self._is_over and self.is_here

    def call(self, asked: Callable[[], T]) -> T:
        """Call this on the reactor's thread, and return what it returns, which is no Deferred.

        Errors are those of `wait`.
        """
        return self._call(Call[T](asked, None), None)

    def wait(
        self,
        asked: Callable[[], Deferred[T]],
        timeout: float | None = None,
        unwanted: Callable[[T], object] | None = None,
    ) -> T:
        """Call this on the reactor's thread, wait for its Deferred, return its result or raise.

        After `timeout` seconds it is cancelled, with `TimeoutError`; so it is where the thread is
        interrupted (Ctrl-C). `unwanted` is called on the reactor's thread with a result that came
        too late. Raises `ForkedProcess`, `ClientClosed` at the end of the process, and
        `RuntimeError` on the reactor's thread.
        """
        return self._call(Call(asked, unwanted), timeout)

    def _call(self, call: Call[T], timeout: float | None) -> T:
        self._check()
        self._cross(call.begin)
        try:
            is_done = call.wait(timeout)
        except BaseException:
            self._cross(call.cancel if call.give_up() else call.drop)
            raise
        if not is_done:
            if call.give_up():
                self._cross(call.cancel)
                raise TimeoutError(f"not within {timeout:g} s; what was begun may still happen")
            call.wait(None)  # it comes this very moment
        return call.result()

    def tell(self, told: Callable[[], None]) -> None:
        """Call this on the reactor's thread, and wait for nothing."""
        if not self.is_here:
            raise ForkedProcess(self._pid, os.getpid())
        if not self._is_over:
            self._cross(told)

    def stop(self) -> None:
        """Close what is open, as far as its limits let it wait, and end."""
        if self.is_usable:
            self._is_over = True
            self._reactor.callFromThread(self._reactor.stop)
            self._thread.join(END_SECONDS)

    def _close(self) -> Deferred[Any]:
        return gatherResults([close() for close in self.closes_at_end.values()])

    def _check(self) -> None:
        if self._pid != (here := os.getpid()):
            raise ForkedProcess(self._pid, here)
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError(
                "a call of msgservice.blocking on the thread of its reactor would wait for itself"
            )
        if self._is_over:
            raise ClientClosed("the process is ending")

    def _cross(self, told: Callable[[], None]) -> None:
        self._calls.append(told)
        if not self._is_woken:
            self._is_woken = True
            self._reactor.callFromThread(self._run_calls)

    def _run_calls(self) -> None:
        self._is_woken = False  # before looking: who comes meanwhile wakes it again
        while self._calls:
            self._calls.popleft()()


class _Process:
    """The reactor's thread of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: ReactorThread | None = None
        # Those of the processes that this was forked from: what they hold, SQLite files among it,
        # must not be closed here.
        self._elsewhere: list[ReactorThread] = []
        atexit.register(self.stop)
        os.register_at_fork(after_in_child=self._forked)

    def thread(self) -> ReactorThread:
        """Return it, begun."""
        with self._lock:
            if self._thread is None or not self._thread.is_usable:
                self._thread = ReactorThread()
            return self._thread

    def stop(self) -> None:
        """Stop it at the end of the process."""
        if self._thread is not None:
            self._thread.stop()

    def _forked(self) -> None:
        self._lock = threading.Lock()  # another thread may have held it
        if self._thread is not None:
            self._elsewhere.append(self._thread)
            self._thread = None


reactor_thread = _Process().thread
