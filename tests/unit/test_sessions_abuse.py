"""A central and a remote towards who says what he must not: refused, bounded, and logged."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogEvent

from msgservice.errors import HandlerFailed
from msgservice.faces.sessions.content.safe import SafeCodec
from msgservice.faces.sessions.envelope import (
    Ack,
    Heartbeat,
    Hello,
    Item,
    Joined,
    Shutdown,
    Welcome,
)
from msgservice.faces.sessions.errors import NotJoined, QueueFull
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.remote import Ended, Remote
from tests.kit.sessions_world import HOST, Process, SessionsWorld, _Client, _Server

CODEC = SafeCodec()


class Peer(Protocol):
    """One end that speaks by hand, and hears what is written to it."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.is_open = False

    def connectionMade(self) -> None:
        self.is_open = True

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Any = None) -> None:
        self.is_open = False

    def say(self, *items: Item | bytes) -> None:
        for item in items:
            payload = item if isinstance(item, bytes) else CODEC.control(item)  # type: ignore[arg-type]  # no message
            self.transport.write(struct.pack(">L", len(payload)) + payload)  # type: ignore[union-attr]

    def items(self) -> list[Item]:
        """What came whole."""
        found, data = [], bytes(self.heard)
        while len(data) >= 4:
            (size,) = struct.unpack_from(">L", data)
            if len(data) < 4 + size:
                break
            found.append(CODEC.decode(data[4 : 4 + size]))
            data = data[4 + size :]
        return found


class Peers(Factory):
    def __init__(self) -> None:
        self.all: list[Peer] = []

    def buildProtocol(self, addr: Any) -> Peer:
        self.all.append(Peer())
        return self.all[-1]


def message(content: object, session: str | None = None, number: int | None = None) -> bytes:
    return CODEC.message(CODEC.prepare(content), session, number)


def dial(world: SessionsWorld, port: int = SessionsWorld.CENTRAL_PORT) -> Peer:
    """Connect by hand."""
    peers = Peers()
    _Client(world.net, Process(), port).connect(peers)
    world.until(lambda: peers.all and peers.all[0].is_open)
    return peers.all[0]


def listen(world: SessionsWorld, port: int) -> list[Peer]:
    """Listen by hand."""
    peers = Peers()
    _Server(world.net, Process(), port).listen(peers)
    return peers.all


def joined(world: SessionsWorld, name: str = "shop", **options: Any) -> Remote:
    remote = world.begin_remote(name, 20_001 + len(world.at), id=name, **options)
    world.until(lambda: remote.is_joined and name in world.central.remotes)
    world.until(lambda: world.central.remotes[name].is_joined)
    return remote


# --- hello


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(20_000, host="10.0.0.7"), "host"),
        (Hello(20_000, host="localhost"), "host"),
        (Hello(1_023), "port_min"),
        (Hello(80, host=HOST), "port_min"),
    ],
)
def test_a_hello_is_refused_and_nobody_is_dialled(
    hello: Hello, reason: str, logged: list[LogEvent]
) -> None:
    """The host must be the connection's own address unless allowed; ports are 1024 or above."""
    world = SessionsWorld()
    peer = dial(world)
    dials = world.net.ports
    peer.say(hello)
    world.until(lambda: not peer.is_open)
    world.run(5.0)
    assert (world.central.remotes, world.net.ports) == ({}, dials)
    assert any(reason in str(event.get("reason")) for event in logged)


def test_a_host_in_accept_hosts_may_be_named_though_it_is_not_the_connections_own() -> None:
    world = SessionsWorld(accept_hosts=["10.0.0.7"])
    dial(world).say(Hello(20_000, host="10.0.0.7"))
    world.run(1.0)
    assert list(world.central.remotes) == [("10.0.0.7", 20_000)]


def test_an_empty_host_is_that_of_the_connection() -> None:
    world = SessionsWorld()
    dial(world).say(Hello(20_000, host=None))
    world.run(1.0)
    assert list(world.central.remotes) == [(HOST, 20_000)]


def test_who_is_not_accepted_is_not_dialled() -> None:
    world = SessionsWorld(accept=lambda hello, inbound: hello.id == "shop")
    peer = dial(world)
    peer.say(Hello(20_000, id="other"))
    world.until(lambda: not peer.is_open)
    joined(world)
    assert list(world.central.remotes) == ["shop"]


def test_remotes_max_refuses_new_remotes_and_not_those_that_are_known() -> None:
    world = SessionsWorld(limits=SessionLimits(remotes_max=2))
    joined(world, "a")
    joined(world, "b")
    peer = dial(world)
    peer.say(Hello(20_000))
    world.run(0.2)
    assert not peer.is_open
    world.kill("b")
    again = world.begin_remote("b", 20_010, id="b")
    world.until(lambda: again.is_joined)
    assert set(world.central.remotes) == {"a", "b"}


def test_redialling_is_bounded_in_time() -> None:
    left: list[str] = []
    world = SessionsWorld(
        limits=SessionLimits(redial_seconds=10.0), on_left=lambda member, why: left.append(why)
    )
    dial(world).say(Hello(20_000))  # where nobody listens
    world.run(9.5, step=0.1)
    assert list(world.central.remotes) == [(HOST, 20_000)]
    world.run(1.0, step=0.1)
    assert world.central.remotes == {}
    assert len(left) == 1
    assert left[0].startswith("not reached for 10.0 s")
    attempts = world.net.ports
    world.run(120.0, step=0.5)
    assert world.net.ports == attempts


def test_who_is_dialled_and_does_not_say_joined_has_left() -> None:
    """Stored messages leave only after the dialled remote has confirmed over its own client."""
    world = SessionsWorld(limits=SessionLimits(join_timeout=3.0))
    server = listen(world, 20_000)
    dial(world).say(Hello(20_000, acks=True))
    world.run(1.0)
    world.done(world.central.send((HOST, 20_000), "secret"))
    other = dial(world)
    other.say(Joined(world.central.remotes[HOST, 20_000].session))  # over a client not its own
    world.run(4.0)
    assert world.central.remotes == {}
    assert [type(item) for item in server[0].items()] == [Welcome]
    assert not other.is_open


@pytest.mark.parametrize("fails", ["accept", "dial"])
def test_a_function_of_the_program_that_raises_refuses_this_hello_only(
    fails: str, logged_failures: list[LogEvent]
) -> None:
    is_broken = False
    world = SessionsWorld()

    def accept(hello: Hello, inbound: Any) -> bool:
        return not is_broken or 1 / 0 > 0

    world.central._accept = accept if fails == "accept" else world.central._accept
    real = world.central._dial
    if fails == "dial":
        world.central._dial = lambda host, port: 1 / 0 if is_broken else real(host, port)  # type: ignore[assignment,return-value]
    remote = joined(world)
    member = world.central.remotes["shop"]
    is_broken = True
    peer = dial(world)
    peer.say(Hello(20_000, id="shop"))
    world.until(lambda: not peer.is_open)
    assert [event["log_failure"].type for event in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()
    assert world.central.remotes == {"shop": member}
    world.done(world.done(world.central.send("shop", 1)).acknowledged())
    assert remote.is_joined


@pytest.mark.parametrize(
    "item",
    [
        Joined("s"),
        Ack("s", 1),
        Heartbeat(1, 1.0),
        Shutdown("s", 1),
        Welcome("s"),
        message("x", "s", 1),
        b"\xc1",
    ],
    ids=lambda item: type(item).__name__,
)
def test_a_central_ends_a_connection_that_says_what_has_no_meaning_there(item: Any) -> None:
    world = SessionsWorld()
    remote = joined(world)
    peer = dial(world)
    peer.say(item)
    world.until(lambda: not peer.is_open)
    world.done(world.done(world.central.send("shop", 1)).acknowledged())
    assert remote.is_joined
    assert bytes(peer.heard) == b""  # the server sends nothing


def test_an_answer_to_what_was_never_sent_ends_the_connection() -> None:
    world = SessionsWorld()
    listen(world, 20_000)
    peer = dial(world)
    peer.say(Hello(20_000, acks=True))
    world.run(1.0)
    session = world.central.remotes[HOST, 20_000].session
    peer.say(Joined(session), Ack(session, 0))
    world.run(1.0)
    assert peer.is_open
    peer.say(Ack(session, 1))
    world.until(lambda: not peer.is_open)


def test_acks_of_an_older_session_are_dropped() -> None:
    world = SessionsWorld()
    servers = listen(world, 20_000)
    peer = dial(world)
    peer.say(Hello(20_000, acks=True, id="shop"))
    world.run(1.0)
    older = world.central.remotes["shop"].session
    peer.say(Joined(older))
    receipt = world.done(world.central.send("shop", 1))
    world.run(1.0)
    second = dial(world)
    second.say(Hello(20_000, acks=True, id="shop"))
    world.run(1.0)
    (welcome,) = servers[-1].items()
    assert isinstance(welcome, Welcome)
    session = welcome.session
    assert session != older
    assert world.central.remotes["shop"].session == older  # it has not proven to be the same yet
    second.say(Joined(session))
    world.run(1.0)
    assert world.central.remotes["shop"].session == session
    second.say(Ack(older, 1))
    world.run(1.0)
    assert world.central.remotes["shop"].queued == 1
    second.say(Ack(session, 1))
    world.done(receipt.acknowledged())


# --- at a remote


def test_a_welcome_with_a_wrong_nonce_is_refused() -> None:
    world = SessionsWorld()
    remote = joined(world)
    session = remote.session
    address = remote.address
    assert address is not None
    for nonce in ("wrong", None):
        peer = dial(world, address[1])
        peer.say(Welcome("mine", nonce=nonce))
        world.until(lambda peer=peer: not peer.is_open)  # type: ignore[misc]
    assert (remote.session, remote.is_joined) == (session, True)
    world.done(world.done(world.central.send("shop", 1)).acknowledged())


def test_a_shutdown_of_another_session_or_by_a_stranger_is_ignored() -> None:
    world = SessionsWorld()
    remote = joined(world)
    address, session = remote.address, remote.session
    assert address is not None
    peer = dial(world, address[1])
    peer.say(Shutdown(session, 1), Shutdown(None, None), Shutdown("other", 1))
    member = world.central.remotes["shop"]
    member._hop.control(Shutdown("other", 1))
    member._hop.control(Shutdown(None, None))
    world.run(2.0)
    assert remote.is_joined
    world.done(world.done(world.central.send("shop", 1)).acknowledged())


def test_heartbeats_of_strangers_keep_nobody_alive() -> None:
    world = SessionsWorld(heartbeat=1.0)
    remote = joined(world, heartbeat_timeout=3.0)
    address = remote.address
    assert address is not None
    peer = dial(world, address[1])
    world.kill("central")
    for number in range(40):
        peer.say(Heartbeat(number, 1.0), message("alive"))
        world.run(0.1)
    assert world.done(remote.when_shut_down(), 1.0).by == "silence"


def test_other_messages_are_no_sign_of_life() -> None:
    """Only heartbeats are required, and only they count."""
    world = SessionsWorld(heartbeat=1e6)
    remote = joined(world, heartbeat_timeout=3.0)
    began = world.net.clock.seconds()
    ended = remote.when_shut_down()
    while not ended.called:
        world.done(world.central.send("shop", 1))
        world.run(0.2)
        assert world.net.clock.seconds() - began < 5.0
    assert world.done(ended).by == "silence"


@pytest.mark.parametrize("seed", range(5))
def test_a_remote_whose_hello_is_refused_each_time_ends_by_silence(seed: int) -> None:
    """The time counts from the first hello that has no answer, not from each that is repeated."""
    world = SessionsWorld(seed, accept=lambda hello, inbound: False)
    remote = world.begin_remote("shop", 20_001, id="shop", heartbeat_timeout=5.0)
    ended = world.done(remote.when_shut_down(), 8.0)
    assert ended == Ended("silence", "no heartbeat for 5.0 s")


# --- heartbeats, and the timer


def test_heartbeats_go_ahead_of_what_waits_in_a_queue() -> None:
    world = SessionsWorld(heartbeat=1.0)
    server = listen(world, 20_000)
    peer = dial(world)
    peer.say(Hello(20_000, acks=True, id="shop"))
    world.until(lambda: world.central.remotes.get("shop") and server)
    world.run(0.5)
    peer.say(Joined(world.central.remotes["shop"].session))
    world.until(lambda: world.central.remotes["shop"].is_joined)
    transport = server[0].transport
    transport.pauseProducing()  # type: ignore[union-attr]
    big = "x" * 100_000
    for _ in range(20):
        world.done(world.central.send("shop", big))
    world.until(lambda: world.central.remotes["shop"].last_heartbeat is not None)
    before = len(server[0].items())
    transport.resumeProducing()  # type: ignore[union-attr]
    world.run(5.0)
    kinds = [type(item) for item in server[0].items()[before:]]
    messages = [n for n, kind in enumerate(kinds) if kind is not Heartbeat]
    assert len(messages) == 20
    assert kinds.index(Heartbeat) < messages[-1]


def test_heartbeats_go_only_to_connected_remotes() -> None:
    world = SessionsWorld(heartbeat=0.5)
    server = listen(world, 20_000)
    dial(world).say(Hello(20_000, acks=True, id="shop"))
    world.run(5.0)
    assert [type(item) for item in server[0].items()] == [Welcome]


def test_the_timer_stands_still_while_bytes_of_a_large_message_arrive() -> None:
    world = SessionsWorld(heartbeat=1e6)
    remote = joined(world, heartbeat_timeout=3.0)
    inbound = remote._from_central
    assert inbound is not None
    for _ in range(100):  # 20 s of a message that is 200 bytes long
        inbound.dataReceived(struct.pack(">L", 10_000) if _ == 0 else b"x")
        world.run(0.2)
    assert remote.is_joined
    ended = world.done(remote.when_shut_down(), 5.0)  # the bytes have stopped
    assert ended.by == "silence"


def test_the_timer_stands_still_while_reading_is_paused() -> None:
    gate: Deferred[None] = Deferred()
    world = SessionsWorld(heartbeat=1.0)
    remote = joined(
        world,
        heartbeat_timeout=3.0,
        on_message=lambda message: gate,
        limits=SessionLimits(unhandled_messages=2),
    )
    for number in range(10):
        world.done(world.central.send("shop", number))
    world.run(20.0, step=0.1)
    assert remote.is_joined
    gate.callback(None)
    world.run(20.0, step=0.1)
    assert remote.is_joined
    assert world.central.remotes["shop"].queued == 0


# --- queues and handlers


def test_a_full_queue_refuses_and_what_it_has_arrives() -> None:
    world = SessionsWorld(limits=SessionLimits(queue_messages=5))
    joined(world)
    receipts = [world.central.send("shop", number) for number in range(6)]
    with pytest.raises(QueueFull) as raised:
        world.done(receipts.pop())
    assert raised.value.limit == "queue_messages"
    for receipt in receipts:
        world.done(world.done(receipt).acknowledged())
    assert [m.content for m in world.at["shop"]] == list(range(5))


def test_a_broadcast_tells_the_outcome_for_each_remote() -> None:
    world = SessionsWorld(limits=SessionLimits(queue_messages=1))
    joined(world, "a")
    joined(world, "b")
    world.central.send("a", "fills the queue")
    told = world.done(world.central.broadcast("to all"))
    assert set(told) == {"a", "b"}
    assert isinstance(told["a"], QueueFull)
    world.done(told["b"].acknowledged())
    assert [m.content for m in world.at["b"]] == ["to all"]


@pytest.mark.parametrize("direction", ["to the remote", "to the central"])
def test_a_handler_that_raises_fails_the_receipt_with_its_reason(
    direction: str, logged_failures: list[LogEvent]
) -> None:
    def handle(message: Any) -> None:
        if message.content == 1:
            raise ValueError("no ones")

    world = SessionsWorld(on_message=handle)
    remote = joined(world, on_message=handle)
    send = remote.send if direction == "to the central" else lambda n: world.central.send("shop", n)
    receipts = [world.done(send(number)) for number in range(3)]
    world.done(receipts[0].acknowledged())
    with pytest.raises(HandlerFailed) as raised:
        world.done(receipts[1].acknowledged())
    assert raised.value.reason == "ValueError: no ones"
    world.done(receipts[2].acknowledged())
    assert len(logged_failures) == 1
    logged_failures.clear()


def test_nothing_is_sent_by_a_remote_that_has_ended() -> None:
    world = SessionsWorld()
    remote = joined(world)
    world.done(remote.stopService())
    assert world.done(remote.when_shut_down()) == Ended("stop")
    with pytest.raises(NotJoined):
        world.done(remote.send(1))


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_a_stop_at_any_moment_leaves_nothing_in_the_clock(steps: int) -> None:
    world = SessionsWorld(steps)
    remote = world.begin_remote("shop", 20_001, id="shop")
    world.done(remote.send("early"))
    world.run(steps / 1000, step=0.001)
    first, second = (remote, world.central) if steps % 2 else (world.central, remote)
    ends = [first.stopService(), second.stopService()]
    for end in ends:
        world.done(end)
    world.run(60.0, step=0.1)
    assert world.net.clock.getDelayedCalls() == []
    assert world.net.live() == []
