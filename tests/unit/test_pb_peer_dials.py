"""Two peers that dial each other: one connection stays, in whatever order things arrive."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.errors import Ambiguous, NotConnected
from msgservice.limits import Limits
from msgservice.pb import PbPeer, PeerBroker, ReceiversView
from msgservice.transport.owners import Nobody
from msgservice.transport.pb.broker import State

LIMITS = Limits()


class Pipe:
    """One end's transport: what it writes waits to be delivered, and so does its end."""

    def __init__(self) -> None:
        self.sent: deque[bytes | None] = deque()
        self.is_cut = False

    def write(self, data: bytes) -> None:
        if not self.is_cut:
            self.sent.append(data)

    def writeSequence(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def loseConnection(self) -> None:
        if not self.is_cut:
            self.is_cut = True
            self.sent.append(None)

    abortConnection = loseConnection

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    def registerProducer(self, producer: Any, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...


class Line:
    """One connection between two peers, which the first has dialled."""

    def __init__(self, world: World, dialler: PbPeer, listener: PbPeer) -> None:
        self.near, self.far = Pipe(), Pipe()
        self.dialled = world.broker(dialler, ("", ""))
        self.accepted = world.broker(listener, None)
        self.accepted.makeConnection(self.far)
        self.dialled.makeConnection(self.near)
        self.ends = [
            (self.near, self.dialled, self.accepted),
            (self.far, self.accepted, self.dialled),
        ]

    def deliver(self, direction: int) -> None:
        pipe, _, to = self.ends[direction]
        item = pipe.sent.popleft()
        if item is not None:
            to.dataReceived(item)
            return
        for other, broker, _ in self.ends:  # whoever closes, both are told
            other.is_cut = True
            if broker.state is not State.LOST and (broker is to or broker.state is not State.OPEN):
                broker.connectionLost(Failure(ConnectionDone()))

    def waiting(self) -> list[int]:
        return [n for n, (pipe, _, _) in enumerate(self.ends) if pipe.sent]


class World:
    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.lines: list[Line] = []
        self.calls: list[str] = []
        self.small = self.peer("small", "1")
        self.large = self.peer("large", "2")

    def peer(self, name: str, instance: str) -> PbPeer:
        peer = PbPeer(self.clock, name=name, limits=LIMITS, instance=instance)
        peer.expose("who", lambda: self.calls.append(name) or name)  # type: ignore[func-returns-value]  # both
        return peer

    def broker(self, peer: PbPeer, login: tuple[str, str] | None) -> PeerBroker:
        return PeerBroker(
            peer,
            owner=Nobody(),
            reactor=self.clock,
            limits=LIMITS,
            turn=peer.turn,
            login=login,
        )

    def dial(self, dialler: PbPeer, listener: PbPeer) -> Line:
        self.lines.append(Line(self, dialler, listener))
        return self.lines[-1]

    def step(self) -> bool:
        """Deliver one thing of those that could come next; return whether there was any."""
        ready = [(line, n) for line in self.lines for n in line.waiting()]
        if not ready:
            return False
        line, direction = self.random.choice(ready)
        line.deliver(direction)
        self.clock.advance(0)
        return True

    def settle(self) -> None:
        self.clock.advance(0)
        while self.step():
            pass

    def stays(self) -> Line:
        """Return the connection that both hold, which is one."""
        (one,) = [line for line in self.lines if self.small._live in (line.dialled, line.accepted)]
        assert self.large._live in (one.dialled, one.accepted)
        assert all(
            end.state is not State.OPEN
            for line in self.lines
            if line is not one
            for end in (line.dialled, line.accepted)
        )
        return one

    def both_call(self) -> list[Any]:
        said: list[Any] = []
        for peer in (self.small, self.large):
            peer.call("who").addBoth(said.append)
        self.settle()
        return sorted(said)


def test_either_may_dial_and_each_calls_the_other() -> None:
    for turn in (0, 1):
        world = World()
        pair = [world.small, world.large]
        world.dial(pair[turn], pair[1 - turn])
        world.settle()
        assert ["large", "small"] == world.both_call()
        assert (world.small.other, world.large.other) == ("2", "1")


@pytest.mark.parametrize("seed", range(150))
def test_of_two_that_cross_the_one_stays_that_the_smaller_has_dialled(seed: int) -> None:
    world = World(seed)
    world.dial(world.small, world.large)
    for _ in range(world.random.randrange(4)):
        world.step()
    world.dial(world.large, world.small)
    world.settle()
    assert world.stays()
    assert ["large", "small"] == world.both_call()


@pytest.mark.parametrize("seed", range(150))
def test_both_dial_and_a_third_time_one_whose_connection_is_dead_dials_again(seed: int) -> None:
    world = World(seed)
    pair = [world.small, world.large]
    world.random.shuffle(pair)
    first = world.dial(*pair)
    world.settle()
    # The end of one has gone, and the other's does not know: half-open.
    first.near.is_cut = first.far.is_cut = True
    lost = world.random.choice((first.dialled, first.accepted))
    lost.connectionLost(Failure(ConnectionDone()))
    first.near.sent.clear()
    first.far.sent.clear()
    (other,) = [peer for peer in pair if peer is not lost.peer]
    second = world.dial(lost.peer, other)
    while world.step():
        pass
    assert second is not first
    assert {world.small._live, world.large._live} == {second.dialled, second.accepted}
    assert ["large", "small"] == world.both_call()


def test_who_was_dialled_may_call_as_soon_as_it_is_told_that_the_other_is_there() -> None:
    world = World()
    said: list[Any] = []
    world.large.when_connected().addCallback(lambda _: world.large.call("who")).addBoth(said.append)
    world.dial(world.small, world.large)
    world.settle()
    assert ["small"] == said


def test_whoever_dials_itself_is_refused() -> None:
    world = World()
    line = world.dial(world.small, world.small)
    world.settle()
    assert not world.small.connected
    assert "dialled itself" in str(line.dialled.refusal)


def test_another_instance_takes_the_place_of_the_one_before() -> None:
    world = World()
    world.dial(world.large, world.small)
    world.settle()
    third = world.peer("third", "0")
    world.dial(third, world.small)
    world.settle()
    assert "0" == world.small.other
    assert not world.large.connected


def test_before_the_hello_nothing_is_called() -> None:
    world = World()
    line = world.dial(world.small, world.large)
    said: list[Any] = []

    async def early() -> None:
        far = await line.dialled.remoteForName("root").callRemote(
            "loginAnonymous", line.dialled.end
        )
        await far.callRemote("who")

    line.dialled._login = None  # it says no hello
    world.settle()
    Deferred.fromCoroutine(early()).addErrback(said.append)
    world.settle()
    assert "said hello" in str(said[0].value)
    assert [] == world.calls


def test_a_call_whose_connection_ends_is_ambiguous_and_one_without_any_is_not() -> None:
    world = World()
    failed: list[Any] = []
    world.small.call("who").addErrback(failed.append)
    line = world.dial(world.small, world.large)
    world.settle()
    world.small.call("who").addErrback(failed.append)
    line.dialled.connectionLost(Failure(ConnectionDone()))
    assert [NotConnected, Ambiguous] == [one.type for one in failed]


HELLOS: list[list[Any]] = [
    [],
    [1, 1, None, None],
    ["", 1, None, None],
    ["x" * 65, 1, None, None],
    ["3", 0, None, None],
    ["3", 2**60, None, None],
    ["3", True, None, None],
    ["3", 1, "x", None],
    ["3", 1, None, 5],
    ["3", 1, None, ["x"]],
    ["3", 1, None, [1, "x"]],
    ["3", 1, None, {}],
]


@pytest.mark.parametrize("hello", HELLOS)
def test_a_hello_that_is_none_is_an_error_for_who_says_it(hello: list[Any]) -> None:
    world = World()
    line = world.dial(world.large, world.small)
    line.dialled._login = None
    world.settle()
    said: list[Any] = []

    async def talk() -> None:
        root = line.dialled.remoteForName("root")
        far = await root.callRemote("loginAnonymous", line.dialled.end)
        await far.callRemote("hello", *hello)

    Deferred.fromCoroutine(talk()).addErrback(said.append)
    world.settle()
    assert ["BadValue"] == [one.value.kind.rpartition(".")[2] for one in said]
    assert not world.small.connected


def test_who_is_not_heard_for_long_is_gone() -> None:
    world = World()
    world.dial(world.small, world.large)
    world.settle()
    for _ in range(8):
        world.clock.advance(LIMITS.heartbeat / 2)
        world.settle()
    assert world.small.connected
    for line in world.lines:
        line.near.is_cut = line.far.is_cut = True
    for _ in range(10):
        world.clock.advance(LIMITS.heartbeat / 2)
    assert all(line.dialled.state is State.ABORTED for line in world.lines)


def test_what_a_view_s_program_raises_when_it_is_over_keeps_nothing_from_ending(
    logged_failures: list[Any],
) -> None:
    world = World()
    line = world.dial(world.small, world.large)
    world.settle()
    gone: list[None] = []
    line.accepted.when_gone().addCallback(gone.append)
    views = [ReceiversView() for _ in range(2)]
    for view in views:
        view.setCopyableState({"rows": {}, "is_complete": True})
        world.large._watching(view, world.large._live)
        world.large._watching(view, world.large._live)
    assert 2 == len(world.large._views)

    def changed(names: list[str]) -> None:
        raise RuntimeError("of the program")

    views[0].changed = changed
    line.dialled.close()
    world.settle()
    assert [True, True] == [view.is_over for view in views]
    assert [None] == gone
    assert not world.large.connected
    (event,) = logged_failures
    assert "of the program" == str(event["log_failure"].value)
    logged_failures.clear()
