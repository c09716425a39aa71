"""Lookups of names with real threads: nobody waits for a name that no name server answers for."""

from __future__ import annotations

import socket
import threading
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, gatherResults

from msgservice.clock import timed
from msgservice.lookups import LOOKUPS_MAX, Lookups

real = socket.getaddrinfo


class Names:
    """A resolver of the system that answers for no name below `silent` until it is let."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, *more: Any) -> Any:
        self.asked.append(host)
        if host.endswith(".silent"):
            self.goes_on.wait(120)
            raise socket.gaierror(socket.EAI_AGAIN, "no name server")
        if host == "both.example":
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
            ]
        return real(host, *more)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    yield found
    found.goes_on.set()


class Found:
    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.done: Deferred[list[Any]] = Deferred()

    def resolutionBegan(self, resolution: Any) -> None:
        assert resolution.name

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self.done.callback(self.addresses)


def look_up(resolver: Any, host: str, **more: Any) -> Deferred[list[Any]]:
    found = Found()
    resolver.resolveHostName(cast("Any", found), host, 7410, **more)
    return found.done


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


@run
async def test_names_that_nobody_answers_for_keep_no_other_waiting(names: Names) -> None:
    from twisted.internet import reactor

    resolver = timed(cast("Any", reactor)).nameResolver
    silent = [look_up(resolver, f"n{number}.silent") for number in range(30)]
    address = look_up(resolver, "192.0.2.7")
    assert address.called
    assert [IPv4Address("TCP", "192.0.2.7", 7410)] == await address
    both = [IPv6Address("TCP", "2001:db8::1", 7410), IPv4Address("TCP", "192.0.2.1", 7410)]
    assert both == await look_up(resolver, "both.example")
    assert not any(one.called for one in silent)
    names.goes_on.set()
    assert [[]] * 30 == await gatherResults(silent)


@run
async def test_a_name_is_looked_up_once_for_all_who_ask_meanwhile(names: Names) -> None:
    from twisted.internet import reactor

    resolver = Lookups(cast("Any", reactor))
    asked = [look_up(resolver, "one.silent") for _ in range(5)]
    names.goes_on.set()
    assert [[]] * 5 == await gatherResults(asked)
    assert ["one.silent"] == names.asked
    await look_up(resolver, "one.silent")
    assert 2 == len(names.asked)


@run
async def test_more_names_than_threads_wait_in_line(names: Names) -> None:
    from twisted.internet import reactor

    resolver = Lookups(cast("Any", reactor))
    count = LOOKUPS_MAX + 20
    asked = [look_up(resolver, f"n{number}.silent") for number in range(count)]
    last = look_up(resolver, "both.example")
    assert len(names.asked) <= LOOKUPS_MAX
    names.goes_on.set()
    assert [[]] * count == await gatherResults(asked)
    assert 2 == len(await last)
    assert count + 1 == len(names.asked)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "\udcff"])
@run
async def test_a_name_that_cannot_be_has_no_address(host: str) -> None:
    from twisted.internet import reactor

    assert [] == await look_up(Lookups(cast("Any", reactor)), host)


@run
async def test_an_address_of_the_other_kind_is_none() -> None:
    from twisted.internet import reactor

    resolver = Lookups(cast("Any", reactor))
    assert [] == await look_up(resolver, "::1", addressTypes=[IPv4Address])
    found = await look_up(resolver, "::1", addressTypes=[IPv6Address], transportSemantics="UDP")
    assert [IPv6Address("UDP", "::1", 7410)] == found


@run
async def test_lookups_that_the_program_has_installed_are_asked() -> None:
    from twisted.internet import reactor

    here: Any = reactor
    before = here.installNameResolver(installed := object())
    try:
        assert installed is timed(here).nameResolver
    finally:
        here.installNameResolver(before)
