"""Fixtures of the callback protocol: `pytest_plugins = ["tests.kit.callbacks_fixtures"]`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from tests.kit.callbacks_world import World


@pytest.fixture
def reactor() -> Any:
    from twisted.internet import reactor

    return reactor


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Lines that were logged, as text."""
    lines: list[str] = []

    @implementer(ILogObserver)
    class Observer:
        def __call__(self, event: LogEvent) -> None:
            lines.append(str(event.get("log_format", "")).format(**event))

    observe = Observer()
    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def world(reactor: Any, tmp_path: Path) -> Iterator[World]:
    made = World(reactor, tmp_path)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))
