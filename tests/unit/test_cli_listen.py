"""`msgservice listen` ends where its connection is over, and says why."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.cli.listen import WATCH_SECONDS, Watch
from msgservice.errors import Refused


class Attached:
    """An attachment as `Watch` sees it."""

    node: object = object()
    is_over = False
    connected = True
    error = ""


def test_what_is_over_is_told_with_its_reason_once_the_connection_has_closed() -> None:
    clock, attached = Clock(), Attached()
    done: Deferred[None] = Deferred()
    failed: list[BaseException | None] = []

    def note(failure: Failure) -> None:
        failed.append(failure.value)

    done.addErrback(note)
    made: Any = attached
    Watch(clock, done).start(made)  # type: ignore[arg-type]  # a clock is enough of a reactor
    attached.is_over = True  # and its connection closes
    clock.advance(WATCH_SECONDS)
    assert failed == []
    attached.connected, attached.error = False, "a newer connection has this receiver's name"
    clock.advance(WATCH_SECONDS)
    (error,) = failed
    assert error is not None
    with pytest.raises(Refused, match="a newer connection has this receiver's name"):
        raise error
