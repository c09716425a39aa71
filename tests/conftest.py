"""For every test: a Failure that is only logged, or a Deferred that is dropped, fails the test.

So does a test that waits in the reactor for longer than its time.

A dropped failed Deferred is reported when it is collected, so the fixture collects (Twisted
reports it as a log event, which a plain pytest run would not notice).
"""

import gc
import os
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings
from twisted.internet.defer import Deferred
from twisted.logger import (
    ILogObserver,
    LogEvent,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.kit.limits import for_operators

# How long an example takes tells of the machine and who else is at work there, not of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_configure() -> None:
    """Let the programs under test hear an interrupt and a hangup, where this one does not.

    A shell starts what runs in its background with SIGINT ignored, `nohup` with SIGHUP, and
    children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # Ignored by a handler: a program that is started from here has the default again.
        signal.signal(signal.SIGHUP, lambda *_: None)


SELECTING = frozenset({"test_messaging.py"})
_stopped: list[bool] = []


def pytest_sessionstart() -> None:
    """Note when the reactor stops; it cannot be started again. Keep nothing of what is logged.

    Until somebody begins, Twisted keeps all events for who comes late, and with each what logged
    it: whole worlds that the tests before have done with.
    """
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    from twisted.internet import reactor  # not before pytest-twisted has chosen one

    reactor.addSystemEventTrigger("before", "shutdown", _stopped.append, True)


@pytest.fixture(autouse=True, scope="session")
def told_of_the_end(pytestconfig: pytest.Config) -> Iterator[None]:
    """Write why a node ends this process, which takes all tests that are left with it."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    @implementer(ILogObserver)
    class Observer:
        def __call__(self, event: LogEvent) -> None:
            if event.get("line") == "node-ends":
                test = os.environ.get("PYTEST_CURRENT_TEST")
                with capture.global_and_fixture_disabled():
                    sys.stderr.write(f"{formatEvent(event)}, in {test}\n")

    observe = Observer()
    globalLogPublisher.addObserver(observe)
    yield
    globalLogPublisher.removeObserver(observe)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item) -> Generator[None, object, object]:
    """Hand a timeout that the reactor hears to the test that waits for it, and as often as needed.

    Raised in the reactor it would be logged, and the test would wait for ever; so it would where
    what is raised is swallowed, as in a finaliser, or by a log's observer.
    """
    timer: object = yield
    theirs = signal.getsignal(signal.SIGALRM)
    if callable(theirs):
        again = signal.getitimer(signal.ITIMER_REAL)[0]

        def alarm(number: int, frame: FrameType | None) -> None:
            signal.setitimer(signal.ITIMER_REAL, again)  # until the test has ended
            try:
                theirs(number, frame)
            except BaseException as timeout:
                reactors = pytest_twisted._instances.gr_twisted
                if pytest_twisted.greenlet.getcurrent() is not reactors or _is_in(item, frame):
                    raise
                if _waited and not _waited[-1].called:
                    _waited[-1].errback(Failure(timeout))  # and goes on when the next test waits

        signal.signal(signal.SIGALRM, alarm)
    return timer


def _block_on(awaited: Deferred[object]) -> object:
    """`pytest_twisted.blockon_default`, which a timeout ends: what comes later goes nowhere."""
    waited: Deferred[object] = Deferred()
    awaited.addBoth(lambda result: None if waited.called else waited.callback(result))
    _waited.append(waited)
    try:
        return _block_on_theirs(waited)
    finally:
        _waited.remove(waited)


_waited: list[Deferred[object]] = []
_block_on_theirs = pytest_twisted.blockon_default
pytest_twisted.blockon_default = _block_on


def _is_in(item: pytest.Item, frame: FrameType | None) -> bool:
    """Tell whether the test's own code is running, which takes what is raised."""
    while frame is not None and frame.f_code.co_filename != str(item.path):
        frame = frame.f_back
    return frame is not None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """End the session where the reactor has stopped: each further test would fail by that alone.

    A SIGTERM to this process does it, for the reactor takes that for its own.
    """
    if _stopped:
        reason = "the reactor was stopped, by SIGTERM or a test: no other test can run"
        if hasattr(item.config, "workeroutput"):
            item.session.shouldstop = reason  # what a worker of xdist tells its controller
        pytest.exit(reason, returncode=3)


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, object]:
    """Note which tests pass: their folders are not kept."""
    report = yield
    item.stash[PASSED] = item.stash.get(PASSED, True) and not report.failed
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Remove the folder of a test that passed: a log sets room aside, of all some ten GB.

    Not by pytest's own policy: that removes it in the order of the fixtures, under sockets and logs
    of those that were set up before it and are still open.
    """
    done = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if folder is not None and item.stash.get(PASSED, False):
        shutil.rmtree(folder, ignore_errors=True)
    return done


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of `select` come first: it takes no descriptor above 1,023.

    Simulations leave files of the processes that they have killed open, hundreds in a worker.
    """
    items.sort(key=lambda item: item.path.name not in SELECTING)


def pytest_collection_finish() -> None:
    """Leave out of every later collection what all tests share: modules, and the tests themselves.

    There is a collection after each test, and half a second of it would be spent on these.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def failures_logged() -> Iterator[list[LogEvent]]:
    """Note the failures that are logged inside, and those that show when it is collected."""
    failures: list[LogEvent] = []

    @implementer(ILogObserver)
    class Observer:
        def __call__(self, event: LogEvent) -> None:
            if "log_failure" in event:
                failures.append(event)

    observe = Observer()
    globalLogPublisher.addObserver(observe)
    try:
        yield failures
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(observe)
    if failures:
        pytest.fail("logged: " + "\n".join(str(e["log_failure"]) for e in failures))


@pytest.fixture(autouse=True, scope="module")
def nothing_left_to_collect() -> Iterator[None]:
    """Leave out of every later collection what the tests of a file have left for good.

    Worlds that a test abandons while they are busy stay: some of their objects refer to each other
    and are none of the collector's (`gc=False`). After thousands of tests each collection would
    take a quarter of a second for them, far more than most tests.
    """
    yield
    with failures_logged():
        pass  # what the fixtures of the file have dropped
    gc.freeze()


@pytest.fixture(autouse=True)
def logged_failures() -> Iterator[list[LogEvent]]:
    """Return the list of failures logged so far; a test that expects some clears it."""
    with failures_logged() as failures:
        yield failures


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    """Return all that is logged in the test, as it comes."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    class Observer:
        def __call__(self, event: LogEvent) -> None:
            events.append(event)

    observe = Observer()
    globalLogPublisher.addObserver(observe)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observe)


@pytest.fixture
def operators_limits() -> Iterator[None]:
    """Give `Limits` the bounds that operators have; tests are without them (`tests.kit.limits`)."""
    with for_operators():
        yield
