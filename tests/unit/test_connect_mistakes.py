"""What `connect` says to whom forgot to await it, or awaits it where nothing runs it."""

from __future__ import annotations

import asyncio

import pytest
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.testing import MemoryReactorClock

from msgservice.client.connect import connect

NODE = "tcp:127.0.0.1:7410"


def test_the_client_that_is_not_there_yet_says_what_is_missing() -> None:
    dialling = connect(MemoryReactorClock(), NODE, name="shop")
    with pytest.raises(AttributeError, match=r"'send': connect\(\) gives a Deferred .*: await it"):
        dialling.send("orders.new", "x")  # type: ignore[attr-defined]  # the mistake
    with pytest.raises(AttributeError, match=r"has no attribute 'sned'$"):
        dialling.sned("orders.new", "x")  # type: ignore[attr-defined]  # another one
    assert not hasattr(dialling, "nothing")


def test_a_coroutine_of_asyncio_is_told_what_is_made_for_it() -> None:
    reactor = SelectReactor()

    async def main() -> None:
        await connect(reactor, NODE, name="shop")

    try:
        with pytest.raises(RuntimeError, match=r"use msgservice\.aio\.connect\(address, name="):
            asyncio.run(main())
    finally:
        for reader in reactor.removeAll():
            reader.connectionLost(None)


def test_a_reactor_of_tests_is_no_reactor_that_has_to_run() -> None:
    async def main() -> bool:
        return connect(MemoryReactorClock(), NODE, name="shop").called

    assert asyncio.run(main()) is False
