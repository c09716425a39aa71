"""Senders of log records under their old names: what may log while they send, on one `Clock`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
from twisted.internet.task import Clock

from msgservice.faces.sessions import names
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.names import RemoteMessagingError, RemoteMessagingSocketHandler
from msgservice.faces.sessions.outgoing import Entry
from tests.kit.sessions_world import Net, Process, _Client


class Reactor(Clock):
    """A clock that other threads may give calls to."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Callable[[], object]] = []

    def callFromThread(self, function: Callable[[], object]) -> None:
        self.given.append(function)

    def turn(self) -> None:
        given, self.given = self.given, []
        for function in given:
            function()


def a_handler(**limits: Any) -> tuple[RemoteMessagingSocketHandler, Reactor]:
    reactor: Any = Reactor()
    endpoint = _Client(Net(0), Process(), 20_000)
    handler = RemoteMessagingSocketHandler(
        "shop", reactor=reactor, endpoint=endpoint, limits=SessionLimits(**limits)
    )
    return handler, reactor


def named(text: str) -> logging.LogRecord:
    return logging.LogRecord("shop", logging.INFO, "till.py", 1, text, None, None)


def on_a_thread(function: Callable[[], object]) -> None:
    """Call what must not stand for ever."""
    thread = Thread(target=function, daemon=True)
    thread.start()
    thread.join(20.0)
    assert not thread.is_alive()


def waiting(handler: RemoteMessagingSocketHandler) -> list[str]:
    entries = handler._account.outgoing._waiting
    return [handler._codec._load(entry.prepared + b".")["msg"] for entry in entries]


def test_what_is_collected_while_records_are_sent_may_log(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, reactor = a_handler()
    collected = ["inner", "another"]

    def make(prepared: bytes) -> Entry:  # an object whose end logs is collected as one is made
        if collected:
            handler.handle(named(collected.pop(0)))
        return Entry(prepared)

    monkeypatch.setattr(names, "Entry", make)
    handler.handle(named("outer"))
    on_a_thread(reactor.turn)
    assert waiting(handler) == ["outer", "inner", "another"]
    assert handler.queued == 3
    reactor.turn()  # what came while they were taken made it due again
    assert waiting(handler) == ["outer", "inner", "another"]


def test_what_is_collected_while_a_record_is_let_in_may_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler, reactor = a_handler(queue_messages=3)
    check, collected = handler._check, ["inner", "another"]

    def checked(size: int) -> None:
        check(size)
        if collected:
            handler.handle(named(collected.pop(0)))

    monkeypatch.setattr(handler, "_check", checked)
    on_a_thread(lambda: handler.handle(named("outer")))
    with pytest.raises(RemoteMessagingError, match="full"):
        handler.handle(named("refused"))
    reactor.turn()
    assert sorted(waiting(handler)) == ["another", "inner", "outer"]


def test_the_reactor_does_not_wait_for_a_record_that_is_being_made() -> None:
    """Its text may come of what waits for the reactor."""
    handler, reactor = a_handler()
    handler.handle(named("first"))

    class Text:
        def __str__(self) -> str:
            on_a_thread(reactor.turn)  # as `blockingCallFromThread` waits for its turn
            return "second"

    handler.handle(named(Text()))  # type: ignore[arg-type]  # whatever has a text
    assert waiting(handler) == ["first"]
    reactor.turn()
    assert waiting(handler) == ["first", "second"]


def test_a_record_that_is_logged_where_it_is_sent_leaves_in_another_turn() -> None:
    """The hop may be within anything then, since whatever it does may collect."""
    handler, reactor = a_handler()
    handler.handle(named("one"))
    handler.handle(named("two"))
    assert waiting(handler) == []
    assert len(reactor.given) == 1
    reactor.turn()
    assert waiting(handler) == ["one", "two"]
    assert reactor.given == []


def test_queues_are_bounded_by_what_was_handed_over_too() -> None:
    handler, reactor = a_handler(queue_bytes=2_500)
    count = 0

    def log() -> None:
        nonlocal count
        while True:
            handler.handle(named("x" * 100))
            count += 1
            if count == 2:
                reactor.turn()

    with pytest.raises(RemoteMessagingError, match="queue_bytes"):
        log()
    assert handler.queued == count
    assert count > 2
    reactor.turn()
    assert handler._account.outgoing.bytes <= 2_500
    with pytest.raises(RemoteMessagingError, match="queue_bytes"):
        handler.handle(named("x" * 100))
