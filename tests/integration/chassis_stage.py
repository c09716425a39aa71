"""A pytest plugin: the stage of the chassis tests. Apart, as it is pytest that imports plugins."""

from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from twisted.internet import reactor as installed

from tests.integration.chassis_peer import Stage


@pytest_twisted.async_yield_fixture
async def stage() -> AsyncIterator[Stage]:
    """Servers of the chassis, and peers for them; no delayed call is left behind."""
    reactor: Any = installed
    before = set(reactor.getDelayedCalls())
    made = Stage(reactor)
    yield made
    await made.close()
    assert [c for c in reactor.getDelayedCalls() if c not in before and c.active()] == []
