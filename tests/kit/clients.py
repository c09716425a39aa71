"""A client, a `NodeDouble` and a `Clock`, together; and what tests ask of Deferreds."""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from msgservice.client.client import Client
from msgservice.limits import Limits
from msgservice.message import Status
from tests.kit.node_double import MemoryConnector, NodeDouble

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


def now(deferred: Deferred[T]) -> T:
    """The result, which must be there."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "has not fired"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    result: T = results[0]
    deferred.addCallback(lambda _: result)
    return result


def error_of(deferred: Deferred[Any], kind: type[E]) -> E:
    """The error, which must be there and of this kind."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "has not fired"
    assert isinstance(results[0], Failure), results[0]
    assert isinstance(results[0].value, kind), results[0].value
    return results[0].value


def errors_logged(events: list[LogEvent]) -> list[str]:
    """The `error` of each event of that level."""
    return [str(event.get("error")) for event in events if event["log_level"].name == "error"]


class ClientWorld:
    """See the module. The client is connected, unless `start` is False."""

    def __init__(self, *, limits: Limits | None = None, start: bool = True, **options: Any) -> None:
        self.clock = Clock()
        self.limits = limits or Limits()
        self.node = NodeDouble(self.clock, self.limits)
        self._incarnations = (f"incarnation-{n}" for n in itertools.count(1))
        self._options = options
        self.client = self.another_client(start=False)
        if start:
            self.start()

    def another_client(self, *, start: bool = True) -> Client:
        client = Client(
            reactor=self.clock,
            name="shop",
            connector_factory=lambda make_user: MemoryConnector(self.node, make_user),
            limits=self.limits,
            new_incarnation=lambda: next(self._incarnations),
            **self._options,
        )
        if start:
            client.start()
        return client

    def start(self) -> None:
        self.client.start()
        self.settle()
        assert self.client.connected

    def settle(self) -> None:
        """Let all happen that needs no time."""
        for _ in range(12):
            self.clock.advance(0)

    def settled(self, deferred: Deferred[T]) -> Deferred[T]:
        self.settle()
        return deferred

    def advance(self, seconds: float) -> ClientWorld:
        """Let time pass, in small steps."""
        for _ in range(20):
            self.clock.advance(seconds / 20)
            self.settle()
        return self

    def say_acknowledged(self, first: int, last: int | None = None) -> None:
        """Both receivers have acknowledged these."""
        for name in ("r1", "r2"):
            self.node.say(name, Status.ACKNOWLEDGED, (first, last or first))
        self.settle()
