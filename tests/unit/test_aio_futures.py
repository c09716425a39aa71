"""Futures of Deferreds, and what is cancelled at the very moment when it comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from msgservice.aio.client import Connecting
from msgservice.aio.loop import awaited, deferred_of, future_of


class Closing:
    """A client that notes that it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("is_entered", [True, False])
def test_a_client_that_comes_as_its_connect_is_cancelled_is_closed(is_entered: bool) -> None:
    client: Any = Closing()

    async def wait(connecting: Connecting) -> None:
        if is_entered:
            async with connecting:
                pytest.fail("entered")
        await connecting
        pytest.fail("connected")

    async def main() -> None:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(wait(Connecting(future)))
        await asyncio.sleep(0)
        future.set_result(client)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    asyncio.run(main())
    assert client.closed == 1


def test_a_connect_that_fails_or_is_cancelled_closes_nothing() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        failing: asyncio.Future[Any] = loop.create_future()
        failing.set_exception(KeyError("no"))
        with pytest.raises(KeyError):
            await Connecting(failing)
        future: asyncio.Future[Any] = loop.create_future()

        async def wait() -> None:
            await Connecting(future)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert future.cancelled()

    asyncio.run(main())


def test_what_comes_between_a_cancel_and_its_turn_is_not_wanted() -> None:
    unwanted: list[int] = []

    async def main() -> None:
        deferred: Deferred[int] = Deferred()
        future = future_of(deferred, asyncio.get_running_loop(), str, unwanted.append)
        future.cancel()
        deferred.callback(5)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert unwanted == [5]


def test_a_cancel_reaches_the_deferred_and_back() -> None:
    cancelled: list[object] = []

    async def main() -> None:
        future: asyncio.Future[None] = awaited(Deferred(cancelled.append))
        future.cancel()
        await asyncio.sleep(0)
        running: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        deferred = deferred_of(running)
        deferred.addErrback(lambda failure: cancelled.append(failure.type))
        deferred.cancel()
        await asyncio.sleep(0)
        assert running.cancelled()

    asyncio.run(main())
    assert [type(cancelled[0]), cancelled[1]] == [Deferred, CancelledError]


def test_results_and_errors_come_through() -> None:
    async def main() -> None:
        done: Deferred[int] = Deferred()
        done.callback(5)
        assert await awaited(done) == 5
        failed: Deferred[int] = Deferred()
        failed.errback(KeyError("no"))
        with pytest.raises(KeyError, match="no"):
            await awaited(failed)
        results: list[object] = []
        for outcome in (5, KeyError("no")):
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            deferred_of(future).addBoth(results.append)
            if isinstance(outcome, int):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        await asyncio.sleep(0)
        assert results[0] == 5
        assert getattr(results[1], "type", None) is KeyError

    asyncio.run(main())
