"""Logging over TCP under its old names, with real sockets, threads and the standard library."""

from __future__ import annotations

import logging
import logging.handlers
import pickle
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import provider

from msgservice.errors import CannotListen
from msgservice.faces.sessions import (
    RemoteMessagingError,
    RemoteMessagingSender,
    RemoteMessagingServer,
)
from msgservice.faces.sessions.errors import RemoteLeft
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.names import NAME_MAX, handle_by_name
from tests.kit.ports import free_port

pytestmark = pytest.mark.timeout(60)


class Came(logging.Handler):
    """What comes in, and a Deferred of the number that is waited for."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.all: list[Any] = []
        self._count = count
        self.enough: Deferred[None] = Deferred()

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record.msg)
        if len(self.all) == self._count:
            self.enough.callback(None)


@pytest.fixture
def above() -> Iterator[Came]:
    logger, came = logging.getLogger("tests.names"), Came()
    logger.addHandler(came)
    logger.addFilter(lambda record: record.name == logger.name)
    yield came
    logger.removeHandler(came)
    logger.filters.clear()


def named(name: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": name, "msg": str(name)[:20], "levelno": logging.INFO})


def test_names_that_others_choose_make_no_loggers_and_go_to_the_nearest_above(above: Came) -> None:
    known = set(logging.root.manager.loggerDict)
    for number in range(100):
        handle_by_name(named(f"tests.names.{number}"))
    long = "tests.names" + ".a" * 12_000
    handle_by_name(named(long))
    handle_by_name(named(long[: NAME_MAX - 1]))
    for odd in ("", ".", "..", "tests.namesake", 5, None):
        handle_by_name(named(odd))
    assert set(logging.root.manager.loggerDict) == known
    assert len(above.all) == 101  # as of any logger below: its filters are not asked
    handle_by_name(named("tests.names"))
    assert len(above.all) == 102
    logging.getLogger("tests.names").filters[:] = [lambda record: False]
    handle_by_name(named("tests.names"))
    assert len(above.all) == 102


@pytest_twisted.ensureDeferred
async def test_what_looks_like_a_control_message_is_a_record_at_a_server_of_records() -> None:
    messages: list[Any] = [
        "one",
        '{"type": "heartbeat", "seq": 1, "time": 1.0}',
        '{"type": "heartbeat"}',
        {"type": "shutdown", "reason": "disk"},
        {"type": "hello", "port": -1},
        "two",
    ]
    came = Came(len(messages))
    server = RemoteMessagingServer(came.handle, reactor=reactor)
    await server.start()

    def log() -> None:
        maker = logging.handlers.SocketHandler("h", 1)
        with socket.create_connection((server.serverIP, server.serverPort), 5) as client:
            for message in messages[:3]:
                record = logging.LogRecord("shop", logging.INFO, "", 1, message, None, None)
                client.sendall(maker.makePickle(record))
            for message in messages[3:]:  # as before Python 3: no text is made of them
                payload = pickled({"name": "shop", "msg": message})
                client.sendall(len(payload).to_bytes(4, "big") + payload)

    await deferToThread(log)
    await came.enough
    assert came.all == messages
    await server.stop()


def pickled(value: Any) -> bytes:
    return pickle.dumps(value, 1)


@pytest_twisted.ensureDeferred
async def test_what_a_thread_has_logged_before_close_is_sent_and_nothing_stays_open() -> None:
    came = Came(2)
    server = RemoteMessagingServer(came.handle, reactor=reactor)
    await server.start()
    assert server.serverAddress is not None
    logger = RemoteMessagingSender("shop", *server.serverAddress, reactor=reactor)

    def log() -> None:
        logger.info("one")
        logger.info("two")

    thread = threading.Thread(target=log)
    thread.start()
    thread.join()
    closed = [logger.close(), logger.close()]
    for each in closed:
        await each
    await came.enough
    assert came.all == ["one", "two"]
    assert not logger.handler._sender.is_connected
    with pytest.raises(RemoteMessagingError, match="closed"):
        logger.info("three")
    await logger.close()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_close_may_be_called_on_a_thread() -> None:
    came = Came(1)
    server = RemoteMessagingServer(came.handle, reactor=reactor)
    await server.start()
    assert server.serverAddress is not None
    logger = RemoteMessagingSender("shop", *server.serverAddress, reactor=reactor)
    closed: list[Deferred[None]] = []

    def log() -> None:
        logger.info("one")
        closed.append(logger.close())

    thread = threading.Thread(target=log)
    thread.start()
    thread.join()  # the reactor turns only now
    await closed[0]
    await came.enough
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_record_that_cannot_be_pickled_is_an_error_of_logging_not_of_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = RemoteMessagingSender("shop", "127.0.0.1", free_port(), reactor=reactor)
    errors: list[str] = []
    monkeypatch.setattr(logger.handler, "handleError", lambda record: errors.append(record.msg))
    logger.info("one", extra={"guard": threading.Lock()})
    logger.info("%d", "x")
    assert errors == ["one", "%d"]
    await logger.close()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("limit", [{"queue_messages": 100}, {"queue_bytes": 50_000}])
async def test_what_threads_hand_over_is_bounded_while_the_reactor_is_busy(
    limit: dict[str, int],
) -> None:
    limits = SessionLimits(**limit, stop_seconds=0.1)
    logger = RemoteMessagingSender("shop", "127.0.0.1", free_port(), reactor=reactor, limits=limits)
    refused: list[RemoteMessagingError] = []

    def log() -> None:
        for _ in range(1_000):
            try:
                logger.info("x")
            except RemoteMessagingError as error:
                refused.append(error)

    thread = threading.Thread(target=log)
    thread.start()
    thread.join()  # the reactor does not turn meanwhile
    assert 0 < 1_000 - len(refused) == logger.handler.queued <= 200
    with pytest.raises(RemoteMessagingError, match="full"):
        logger.info("x")
    warnings: list[LogEvent] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        warnings.append(event)

    globalLogPublisher.addObserver(observe)
    flushed = logger.handler.flushed()
    await logger.close()
    globalLogPublisher.removeObserver(observe)
    with pytest.raises(RemoteLeft):
        await flushed
    assert [event["count"] for event in warnings if "count" in event] == [1_000 - len(refused)]


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_started_twice_leaves_no_port_open() -> None:
    server = RemoteMessagingServer(lambda record: None, reactor=reactor)
    await server.start()
    port = server.serverPort
    with pytest.raises(CannotListen, match="listens already"):
        await server.start()
    assert server.serverPort == port
    await server.stop()
    with pytest.raises(ConnectionRefusedError):
        await deferToThread(socket.create_connection, ("127.0.0.1", port), 5)


@pytest_twisted.ensureDeferred
async def test_a_server_whose_port_was_taken_starts_once_it_is_free() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = RemoteMessagingServer(
            lambda record: None, reactor=reactor, listen=f"tcp:{port}:interface=127.0.0.1"
        )
        with pytest.raises(CannotListen):
            await server.start()
    await server.start()
    assert server.serverPort == port
    await server.stop()
