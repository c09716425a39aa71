"""Limits as a central keeps them: sessions that it remembers, and a remote that reads nothing."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from msgservice.faces.sessions.departed import Departed
from msgservice.faces.sessions.handlers import SessionMessage
from msgservice.faces.sessions.hop import Account
from msgservice.faces.sessions.incoming import Incoming
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.remote import Remote
from tests.kit.sessions_world import HOST, SessionsWorld


def joined(world: SessionsWorld, name: str, port: int, **options: Any) -> Remote:
    remote = world.begin_remote(name, port, id=name, heartbeat_timeout=1e6, **options)
    world.until(lambda: remote.is_joined)
    return remote


def cut_all(world: SessionsWorld, name: str) -> None:
    process = world.processes[name]
    for end in world.net.live():
        if world.net.ends[end] is process:
            world.net.break_off(end)


@pytest.mark.parametrize(("kept", "numbers"), [(1, {"a": 1, "b": 2}), (2, {"a": 2, "b": 2})])
def test_of_sessions_that_ended_sessions_kept_are_remembered_and_the_oldest_is_forgotten_first(
    kept: int, numbers: dict[str, int]
) -> None:
    """A remote whose process lives comes back: its numbers go on, or all is numbered anew."""
    may_join = True
    world = SessionsWorld(
        limits=SessionLimits(sessions_kept=kept, redial_seconds=3.0),
        accept=lambda hello, inbound: may_join,
    )
    ports = {"a": 20_001, "b": 20_002}
    remotes = {name: joined(world, name, port) for name, port in ports.items()}
    for name, remote in remotes.items():
        world.done(world.done(remote.send([name, "first"])).acknowledged())
    may_join = False
    for name, port in ports.items():
        server = world.net.servers.pop(port)
        left = world.central.when_left(name)
        cut_all(world, name)
        world.done(left)
        world.net.servers[port] = server
    assert not world.central.remotes
    may_join = True
    for name, remote in remotes.items():
        cut_all(world, name)  # it says hello again
        world.until(lambda name=name: name in world.central.remotes)  # type: ignore[misc]
        world.done(world.central.when_joined(name))
        world.done(world.done(remote.send([name, "second"])).acknowledged())
    found = {
        message.content[0]: message.number
        for message in world.at_central
        if message.content[1] == "second"
    }
    assert found == numbers
    assert [message.content for message in world.at_central] == [
        [name, word] for word in ("first", "second") for name in ports
    ]


@pytest.mark.parametrize(("write_timeout", "is_cut_off"), [(5.0, True), (1_000.0, False)])
def test_a_remote_that_takes_nothing_for_write_timeout_is_cut_off_and_gets_the_rest_later(
    write_timeout: float, is_cut_off: bool
) -> None:
    world = SessionsWorld(limits=SessionLimits(write_timeout=write_timeout))
    got: list[int] = []
    joined(world, "shop", 20_001, on_message=lambda message: got.append(message.content[0]))
    member = world.done(world.central.when_joined("shop"))
    (server,) = [end for end in world.net.live() if end.getHost().port == 20_001]
    server.pauseProducing()
    receipts = [world.done(world.central.send("shop", [n, b"x" * 50_000])) for n in range(20)]
    ends = len(world.net.ends)
    left = world.central.when_left("shop")
    world.run(12.0, step=0.1)
    assert (len(world.net.ends) > ends) is is_cut_off
    assert (got != []) is is_cut_off  # by another connection
    assert not left.called
    server.resumeProducing()
    for receipt in receipts:
        world.done(receipt.acknowledged())
    assert got == list(range(20))
    assert world.central.remotes["shop"] is member


@pytest.mark.parametrize(("size", "kept"), [(500, {"b"}), (600, {"a", "b"})])
def test_of_failures_that_who_left_has_not_heard_of_queue_bytes_are_kept_over_all(
    size: int, kept: set[str], logged_failures: list[LogEvent]
) -> None:
    """Each failed one has 264 bytes of its own; who is forgotten begins anew."""
    may_join = True
    failing: dict[str, Deferred[None]] = {}
    seen: list[str] = []

    def handle(message: SessionMessage) -> Deferred[None] | None:
        name, what = message.content
        if what == "fails":
            failing[name] = Deferred()
            return failing[name]
        seen.append(name)
        return None

    world = SessionsWorld(
        limits=SessionLimits(queue_bytes=size, redial_seconds=3.0),
        accept=lambda hello, inbound: may_join,
        on_message=handle,
    )
    ports = {"a": 20_001, "b": 20_002}
    remotes = {name: joined(world, name, port) for name, port in ports.items()}
    for name, remote in remotes.items():
        world.done(remote.send([name, "fails"]))
    world.until(lambda: len(failing) == 2)
    may_join = False
    for name, port in ports.items():
        server = world.net.servers.pop(port)
        left = world.central.when_left(name)
        cut_all(world, name)
        world.run(0.5)
        failing[name].errback(ValueError("x" * 200))  # nobody hears of that
        world.done(left)
        world.net.servers[port] = server
    logged_failures.clear()
    may_join = True
    for name, remote in remotes.items():
        cut_all(world, name)  # it says hello again
        world.done(world.central.when_joined(name))
        sent = world.done(remote.send([name, "second"]))
        if name not in kept:  # to a central that has forgotten the first comes again
            world.until(lambda name=name: not failing[name].called)  # type: ignore[misc]
            failing[name].callback(None)
        world.done(sent.acknowledged())
    assert seen == ["a", "b"]


class Counted(Incoming):
    """An account of failures that counts who looks how many there are."""

    looks = 0

    @property
    def failed_bytes(self) -> int:
        Counted.looks += 1
        return self._failed_bytes

    @failed_bytes.setter
    def failed_bytes(self, size: int) -> None:
        self._failed_bytes = size


class Leaving:
    """A member that leaves with a failure of which its remote has not heard."""

    is_ending, is_durable = True, False
    address = HOST, 20_000

    def __init__(self, key: str) -> None:
        self.key = key
        self.account = Account(SessionLimits())
        self.account.was_confirmed = True
        self.account.incoming = Counted()
        self.account.incoming.done(1, "failed")


def test_a_departure_with_failures_costs_the_same_however_many_have_left_before() -> None:
    world, count = SessionsWorld(), 500
    Counted.looks = 0
    for number in range(count):
        member: Any = Leaving(str(number))
        world.central._put(member.key, member)
        world.central.member_left(member, "gone")
    assert count <= Counted.looks <= 10 * count


def test_failures_that_come_when_their_remote_has_left_count_as_those_before() -> None:
    departed = Departed(SessionLimits(queue_bytes=500))
    accounts = {}
    for key in ("a", "b", "c"):
        accounts[key] = Account(SessionLimits())
        departed.keep(key, accounts[key])
    for key in ("a", "b", "c", "a"):
        accounts[key].incoming.done(1, "x" * 100)  # 164 bytes each
        departed.count_failures(key, accounts[key])
    assert [key for key in accounts if departed.get(key)] == ["b", "c"]
    departed.forget("b")
    accounts["c"].incoming.done(1, "x" * 100)
    departed.count_failures("c", accounts["c"])
    departed.count_failures("b", accounts["b"])  # it is back: no longer of those
    assert [key for key in accounts if departed.get(key)] == ["c"]
    departed.keep("c", accounts["c"])
    assert departed._failed_bytes == accounts["c"].incoming.failed_bytes == 328
