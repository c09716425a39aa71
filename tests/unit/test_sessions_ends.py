"""The ends of a session: who is dialled and for how long, who may join, and what stops them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.address import IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from zope.interface import implementer

from msgservice.errors import CannotListen, InsecureListener, MessageTooLarge
from msgservice.faces.sessions.central import Central
from msgservice.faces.sessions.content.safe import SafeCodec
from msgservice.faces.sessions.envelope import Hello
from msgservice.faces.sessions.errors import NotJoined, RemoteLeft
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.remote import Ended, Remote
from msgservice.faces.sessions.sender import _Wire
from tests.kit.sessions_world import HOST, End, Process, SessionsWorld, _Client, _Port, _Server
from tests.unit.test_sessions_abuse import Peer, Peers, dial, joined, listen, message


class Closes(Peer):
    """A server that accepts a connection and closes it."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.loseConnection()  # type: ignore[union-attr]  # it is connected


class ClosingPeers(Peers):
    def buildProtocol(self, addr: Any) -> Peer:
        self.all.append(Closes())
        return self.all[-1]


def accept_and_close(world: SessionsWorld, port: int) -> list[Peer]:
    peers = ClosingPeers()
    _Server(world.net, Process(), port).listen(peers)
    return peers.all


# --- dialling is bounded until joined


@pytest.mark.parametrize("acks", [True, False])
def test_redialling_a_server_that_accepts_and_closes_is_bounded_in_time(acks: bool) -> None:
    world = SessionsWorld(limits=SessionLimits(redial_seconds=30.0))
    accepted = accept_and_close(world, 20_000)
    dial(world).say(Hello(20_000, acks=acks))
    world.run(0.5)
    receipt = world.done(world.central.send((HOST, 20_000), 1)).acknowledged()
    left = world.central.when_left((HOST, 20_000))
    world.done(left, 40.0)
    assert world.central.remotes == {}
    with pytest.raises((NotJoined, RemoteLeft)):
        world.done(receipt)
    dials = len(accepted)
    assert dials < 40  # it waits for longer and longer, though each connection came about
    world.run(120.0, step=0.5)
    assert len(accepted) == dials


def test_another_process_on_the_port_of_a_dead_remote_does_not_keep_it_here() -> None:
    world = SessionsWorld()
    world.begin_remote("a", 20_001, id="a")
    world.until(lambda: "a" in world.central.remotes and world.central.remotes["a"].is_joined)
    world.kill("a")
    other = world.begin_remote("b", 20_001, id="b")
    receipt = world.done(world.central.send("a", "x")).acknowledged()
    world.done(world.central.when_left("a"), 60.0)
    with pytest.raises((NotJoined, RemoteLeft)):
        world.done(receipt)
    assert list(world.central.remotes) == ["b"]
    assert other.is_joined


@pytest.mark.parametrize("acks", [True, False])
def test_a_remote_that_is_reached_each_time_is_dialled_for_as_long_as_that(acks: bool) -> None:
    world = SessionsWorld(heartbeat=1.0)
    left = world.central.when_left()
    remote = world.begin_remote("shop", 20_001, id="shop", acks=acks, heartbeat_timeout=20.0)
    stands = 1.0 if acks else 12.0  # without an answer it is who was meant once it has stood
    for _ in range(60 if acks else 10):
        world.until(
            lambda: "shop" in world.central.remotes and world.central.remotes["shop"].is_joined
        )
        world.run(stands, step=0.05)
        for end in world.net.live():  # the client of the central is cut
            if end.getPeer().port == 20_001:
                world.net.break_off(end)
        world.run(0.1)
    assert not left.called
    world.until(lambda: remote.is_joined)


def test_a_connection_is_of_one_remote() -> None:
    """One connection cannot take the places of many."""
    world = SessionsWorld()
    peer = dial(world)
    for port in range(20_000, 20_010):
        peer.say(Hello(port, acks=True))
    world.run(1.0)
    assert list(world.central.remotes) == [(HOST, 20_000)]
    assert not peer.is_open


def test_remotes_of_one_host_that_never_join_leave_half_of_the_places_to_others() -> None:
    world = SessionsWorld(limits=SessionLimits(remotes_max=4), accept_hosts=["10.0.0.7"])
    peers = [dial(world) for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.say(Hello(20_000 + number, acks=True))
        world.run(0.2)
    assert [peer.is_open for peer in peers] == [True, True, False]
    other = dial(world)
    other.say(Hello(20_000, host="10.0.0.7", acks=True))
    world.run(0.2)
    assert other.is_open
    assert ("10.0.0.7", 20_000) in world.central.remotes
    world.run(45.0, step=0.05)  # and their places are free again
    joined(world)


def test_one_host_has_no_more_remotes_than_remotes_per_host_whatever_their_ids(
    logged: list[LogEvent],
) -> None:
    """A server at one port could be that of any number of remotes, and in turns for ever."""
    world = SessionsWorld(limits=SessionLimits(remotes_per_host=3), accept_hosts=["10.0.0.7"])
    remotes = [joined(world, name) for name in "abc"]
    moved = dial(world)
    moved.say(Hello(20_000, host="10.0.0.7", id="d", acks=True))
    world.run(0.2)
    assert moved.is_open
    for hello in (Hello(20_001, id="e"), Hello(20_009, acks=True), Hello(20_009, id="d")):
        peer = dial(world)
        peer.say(hello)
        world.run(0.2)
        assert not peer.is_open
    refused = [str(event["reason"]) for event in logged if "hello is" in str(event.get("reason"))]
    assert refused == ["hello is refused: remotes_per_host = 3 reached"] * 3
    assert set(world.central.remotes) == {"a", "b", "c", "d"}
    for end in world.net.live():  # who has a place may come back, and each that is free is one
        if end.getPeer().port == world.CENTRAL_PORT:
            world.net.break_off(end)
    world.run(2.0)
    world.until(lambda: all(remote.is_joined for remote in remotes))
    world.done(world.central.shutdown("a"))
    world.done(remotes[0].when_shut_down())
    joined(world, "e")
    assert "e" in world.central.remotes


def test_who_never_joins_does_not_let_the_sessions_of_others_be_forgotten() -> None:
    world = SessionsWorld(limits=SessionLimits(sessions_kept=2, redial_seconds=3.0))
    remote = joined(world, heartbeat_timeout=1e6)
    world.done(world.done(remote.send("first")).acknowledged())
    server = world.net.servers.pop(20_001)
    left = world.central.when_left("shop")
    break_all(world)
    world.done(left)
    for number in range(5):
        dial(world).say(Hello(30_000 + number, acks=True))
    world.run(10.0, step=0.05)
    assert set(world.central.remotes) <= {"shop"}
    world.net.servers[20_001] = server
    break_all(world)
    world.until(lambda: "shop" in world.central.remotes and world.central.remotes["shop"].is_joined)
    world.done(world.done(remote.send("second")).acknowledged())
    assert [(m.content, m.number) for m in world.at_central] == [("first", 1), ("second", 2)]


def break_all(world: SessionsWorld) -> None:
    for end in world.net.live():
        world.net.break_off(end)


# --- a remote that acknowledges nothing proves nothing


@pytest.mark.parametrize("id_", ["till", None])
def test_a_hello_without_acks_replaces_one_without_acks_at_once_and_gets_what_waits(
    id_: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may say hello may be it: that is what `accept` and the address are for."""
    monkeypatch.setattr(_Wire, "waits", lambda wire: wire.transport._out_bytes)
    world = SessionsWorld()
    first = listen(world, 20_000)
    dial(world).say(Hello(20_000, id=id_))
    key = id_ or (HOST, 20_000)
    world.until(lambda: key in world.central.remotes and world.central.remotes[key].is_joined)
    receipt = world.done(world.central.send(key, "to the first"))
    world.done(receipt.acknowledged(), 1.0)  # its kernel has it: nothing is known of its handler
    world.net.servers.pop(20_000)
    break_all(world)
    world.run(0.1)
    waiting = world.done(world.central.send(key, "to who comes"))
    port = 20_001 if id_ else 20_000
    second = listen(world, port)
    dial(world).say(Hello(port, id=id_))
    world.done(waiting.acknowledged(), 5.0)
    third = listen(world, 20_002) if id_ else second
    if id_:
        dial(world).say(Hello(20_002, id=id_))  # though the second is there, and reads
        world.until(lambda: world.central.remotes[key].address[1] == 20_002)
        world.until(lambda: world.central.remotes[key].is_joined)
        world.run(0.5)
        assert not second[0].is_open
    world.done(world.done(world.central.send(key, "to the last")).acknowledged(), 1.0)
    told = [
        [getattr(item, "content", item) for peer in peers for item in peer.items()]
        for peers in ([first, second, third] if id_ else [first, second])
    ]
    words: list[list[str]] = [["to the first"], ["to who comes"], ["to the last"]]
    assert told == (words if id_ else [words[0], words[1] + words[2]])


def test_a_hello_with_acks_ends_the_session_of_one_without_and_what_waits_for_it_fails() -> None:
    left: list[str] = []
    world = SessionsWorld(on_left=lambda member, reason: left.append(reason))
    (server, *_) = [listen(world, 20_000)]
    dial(world).say(Hello(20_000, id="till"))
    world.until(lambda: "till" in world.central.remotes and world.central.remotes["till"].is_joined)
    server[0].transport.pauseProducing()  # type: ignore[union-attr]  # it is connected
    receipts = [world.done(world.central.send("till", "x" * 300_000)) for _ in range(3)]
    remote = world.begin_remote("till", 20_001, id="till")
    world.until(lambda: remote.is_joined)
    assert left == ["it came back with acks changed"]
    for receipt in receipts[1:]:
        with pytest.raises((NotJoined, RemoteLeft)):
            world.done(receipt.acknowledged())
    world.done(world.done(world.central.send("till", "new")).acknowledged())
    assert [m.content for m in world.at["till"]] == ["new"]


def test_what_one_process_took_at_once_says_nothing_of_another_without_acks() -> None:
    world = SessionsWorld()
    first = joined(world, limits=SessionLimits(payload_bytes=3_000))
    with pytest.raises(MessageTooLarge):
        world.done(world.central.send("shop", "x" * 5_000))
    left = world.central.when_left("shop")
    world.done(world.central.shutdown("shop"))
    world.done(first.when_shut_down())
    world.done(left)
    world.begin_remote("shop", 20_005, id="shop", acks=False)
    world.until(lambda: "shop" in world.central.remotes and world.central.remotes["shop"].is_joined)
    world.done(world.central.send("shop", "x" * 5_000))
    world.until(lambda: [m.content for m in world.at["shop"]] == ["x" * 5_000])


def test_who_is_not_heard_any_more_leaves_though_it_is_reached() -> None:
    """`accept` has changed its mind, say: a remote that cannot answer is none."""
    may_join = True
    left: list[str] = []
    world = SessionsWorld(
        heartbeat=1.0,
        accept=lambda hello, inbound: may_join,
        on_left=lambda member, reason: left.append(reason),
    )
    remote = joined(world, heartbeat_timeout=5.0)
    may_join = False
    for end in world.net.live():
        if end.getPeer().port == world.CENTRAL_PORT:
            world.net.break_off(end)
    world.run(1.0)
    receipt = world.done(world.central.send("shop", "secret")).acknowledged()
    with pytest.raises(RemoteLeft):
        world.done(receipt, 45.0)
    assert world.central.remotes == {}
    assert "it said no other hello for 40.0 s" in left[0]
    assert world.done(remote.when_shut_down(), 10.0).by == "silence"


def test_a_remote_whose_process_stood_still_reads_before_it_ends_by_silence() -> None:
    world = SessionsWorld(heartbeat=1.0)
    remote = joined(world, heartbeat_timeout=5.0)
    for _ in range(3):
        world.run(2.0)
        world.net.clock.advance(60.0)  # it is stopped, say
    world.run(2.0)
    assert remote.is_joined
    world.kill("central")
    world.net.clock.advance(60.0)
    assert world.done(remote.when_shut_down(), 8.0).by == "silence"


def kernel_waits(wire: Any) -> int:
    """What the other end has not read: it has nothing more once it has ended the connection."""
    written: int = wire.written
    waiting: int = wire.transport._out_bytes
    return written if wire.transport.other.is_over else waiting


@pytest.mark.parametrize("ahead", [0, 3, 250])
@pytest.mark.parametrize(("size", "is_given_up"), [(200_000, True), (20_000, False)])
def test_without_acks_a_large_message_that_ends_connections_does_not_stand_before_others(
    size: int,
    is_given_up: bool,
    ahead: int,
    logged: list[LogEvent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that does not take it ends the connection at its prefix, and cannot say why."""
    monkeypatch.setattr(_Wire, "waits", kernel_waits)
    world = SessionsWorld()
    world.kill("central")
    peers = refuse_above(world, 10_000)
    remote = world.begin_remote("shop", 20_001, acks=False, heartbeat_timeout=1e6)
    contents = [*(f"{number} ahead" for number in range(ahead)), "x" * size, "behind"]
    receipts = [world.done(remote.send(content)) for content in contents]
    world.run(150.0, step=0.05)
    got = [getattr(item, "content", None) for peer in peers for item in peer.items()]
    assert ("behind" in got) is is_given_up
    if is_given_up:
        assert len(peers) <= (5 if ahead < 100 else 10)
        with pytest.raises(RemoteLeft, match="2 connections ended with its 200"):
            world.done(receipts[-2].acknowledged())
        assert [event["tries"] for event in logged if "tries" in event] == [2]
        assert [content for content in dict.fromkeys(got) if content is not None] == [
            *contents[:-2],
            "behind",
        ]
        world.done(receipts[-1].acknowledged())
    world.done(remote.stopService())
    for receipt in receipts:
        receipt.acknowledged().addErrback(lambda _: None)


def test_without_acks_connections_that_end_by_themselves_cost_no_large_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a proxy whose server is away: it accepts, and closes."""
    monkeypatch.setattr(_Wire, "waits", kernel_waits)
    world = SessionsWorld(limits=SessionLimits(thread_bytes=1_000_000))
    world.kill("central")
    accepted = accept_and_close(world, SessionsWorld.CENTRAL_PORT)
    remote = world.begin_remote("shop", 20_001, acks=False, heartbeat_timeout=1e6)
    receipts = [world.done(remote.send(content)) for content in ("x" * 200_000, "behind")]
    world.run(100.0, step=0.05)
    assert len(accepted) > 5
    world.net.servers.pop(SessionsWorld.CENTRAL_PORT)
    world.begin_central()
    for receipt in receipts:
        world.done(receipt.acknowledged())
    assert [len(message.content) for message in world.at_central] == [200_000, 6]


def refuse_above(world: SessionsWorld, size_max: int) -> list[Peer]:
    """Listen as a server of records that ends a connection for a payload above a size."""

    class Refuses(Peer):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            at = 0
            while len(self.heard) - at >= 4:
                size = int.from_bytes(self.heard[at : at + 4], "big")
                if size > size_max:
                    del self.heard[at:]
                    self.transport.abortConnection()  # type: ignore[union-attr]  # it is connected
                    return
                at += 4 + size

    class RefusingPeers(Peers):
        def buildProtocol(self, addr: Any) -> Peer:
            self.all.append(Refuses())
            return self.all[-1]

    peers = RefusingPeers()
    _Server(world.net, Process(), world.CENTRAL_PORT).listen(peers)
    return peers.all


def test_what_a_hello_says_that_nobody_stands_behind_fails_nothing_that_waits() -> None:
    world = SessionsWorld()
    joined(world)
    world.kill("shop")
    world.run(0.5)
    waiting = [world.done(world.central.send("shop", "x" * 5_000)) for _ in range(3)]
    liar = dial(world)
    liar.say(Hello(20_009, id="shop", acks=True, nonce="n", payload_bytes=1_024))
    world.run(2.0)
    again = world.begin_remote("shop", 20_001, id="shop")
    world.done(again.when_joined(), 30.0)
    for receipt in waiting:
        world.done(receipt.acknowledged())
    assert [m.content for m in world.at["shop"]][-3:] == ["x" * 5_000] * 3


# --- a remote dials often enough to be there in time


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("timeout", "away"), [(8.0, 4.0), (15.0, 8.0), (3.0, 1.0)])
def test_a_central_that_comes_back_within_the_timeout_is_found_by_its_remotes(
    seed: int, timeout: float, away: float
) -> None:
    world = SessionsWorld(seed, heartbeat=timeout / 10)
    remote = joined(world, heartbeat_timeout=timeout)
    receipt = world.done(remote.send("early"))
    world.run(timeout / 9)
    world.kill("central")
    world.run(away, step=0.05)
    world.begin_central()
    world.until(lambda: "shop" in world.central.remotes, timeout)
    world.until(lambda: world.central.remotes["shop"].is_joined and remote.is_joined)
    world.done(receipt.acknowledged())


@pytest.mark.parametrize("seed", range(10))
def test_a_remote_that_began_before_its_central_finds_it_soon(
    seed: int,
) -> None:
    world = SessionsWorld(seed)
    world.kill("central")
    remote = world.begin_remote("shop", 20_001, id="shop")
    world.run(60.0, step=0.1)
    world.begin_central()
    world.until(lambda: remote.is_joined, 3.0)


# --- only True lets in


async def _answer(value: object) -> object:
    return value


@pytest.mark.parametrize("value", [False, None, 1, "yes", True])
@pytest.mark.parametrize("way", ["at once", "Deferred", "coroutine", "later"])
def test_accept_may_answer_later_and_only_true_lets_in(value: object, way: str) -> None:
    later: Deferred[object] = Deferred()
    answers = {
        "at once": lambda hello, inbound: value,
        "Deferred": lambda hello, inbound: succeed(value),
        "coroutine": lambda hello, inbound: _answer(value),
        "later": lambda hello, inbound: later,
    }
    world = SessionsWorld(accept=answers[way])
    peer = dial(world)
    peer.say(Hello(20_000), message("behind"))
    world.run(1.0)
    if way == "later":
        assert (world.central.remotes, world.at_central, peer.is_open) == ({}, [], True)
        later.callback(value)
        world.run(1.0)
    if value is True:
        assert list(world.central.remotes) == [(HOST, 20_000)]
        assert [(m.key, m.content) for m in world.at_central] == [((HOST, 20_000), "behind")]
    else:
        assert not peer.is_open
        assert (world.central.remotes, world.at_central) == ({}, [])


def test_accept_that_never_answers_refuses_after_a_while(logged: list[LogEvent]) -> None:
    world = SessionsWorld(
        accept=lambda hello, inbound: Deferred(), limits=SessionLimits(join_timeout=3.0)
    )
    peer = dial(world)
    peer.say(Hello(20_000))
    world.run(2.5)
    assert peer.is_open
    world.run(1.0)
    assert not peer.is_open
    assert any("join_timeout = 3.0" in str(event.get("reason")) for event in logged)
    dial(world).say(Hello(20_001))
    world.run(0.5)
    world.done(world.central.stopService())
    assert world.net.clock.getDelayedCalls() == []


def test_accept_that_answers_though_it_is_cancelled_is_not_waited_for() -> None:
    later: Deferred[object] = Deferred()

    async def accept(hello: Hello, inbound: Any) -> bool:
        try:
            await Deferred()
        except BaseException:
            await later
        return True

    world = SessionsWorld(accept=accept, limits=SessionLimits(join_timeout=3.0))
    peer = dial(world)
    peer.say(Hello(20_000))
    world.run(4.0)
    assert not peer.is_open
    assert not world.central._asked
    later.callback(None)
    assert not world.central.remotes


@pytest.mark.parametrize("answer", [True, False, ValueError("no")])
def test_accept_may_give_one_answer_to_many(answer: Any, logged_failures: list[LogEvent]) -> None:
    shared: Deferred[object] = Deferred()
    world = SessionsWorld(accept=lambda hello, inbound: shared)
    peers = [dial(world) for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.say(Hello(20_000 + number))
    world.run(0.5)
    if isinstance(answer, Exception):
        shared.errback(answer)
    else:
        shared.callback(answer)
    world.run(0.5)
    assert len(world.central.remotes) == (3 if answer is True else 0)
    assert [peer.is_open for peer in peers] == [answer is True] * 3
    logged_failures.clear()


@pytest.mark.parametrize("closes", [False, True])
def test_many_hellos_of_one_connection_are_dialled_one_after_the_other(closes: bool) -> None:
    """All at once they would hold up everybody; of who is gone no more than one is asked about."""
    asked: list[Hello] = []

    def accept(hello: Hello, inbound: Any) -> bool:
        asked.append(hello)
        return True

    world = SessionsWorld(accept=accept)
    peer = dial(world)
    peer.say(*[Hello(20_000)] * 20, message("behind"))
    if closes:
        world.until(lambda: asked)
        peer.transport.loseConnection()  # type: ignore[union-attr]  # it is connected
    world.run(0.5)
    assert 1 <= len(asked) <= 6
    world.run(3.0)
    assert len(asked) <= 6 if closes else len(asked) == 20
    assert [m.content for m in world.at_central] == ["behind"]
    assert not world.central._asked


def test_a_pause_between_hellos_takes_nothing_of_the_time_to_answer_them() -> None:
    world = SessionsWorld(limits=SessionLimits(join_timeout=0.05))
    peer = dial(world)
    peer.say(Hello(20_000), Hello(20_000), message("behind"))
    world.run(0.3)
    assert [m.content for m in world.at_central] == ["behind"]


@pytest.mark.parametrize("closes", [False, True])
def test_what_comes_behind_a_hello_that_accept_is_asked_about_is_bounded(closes: bool) -> None:
    later: Deferred[object] = Deferred()
    world = SessionsWorld(
        accept=lambda hello, inbound: later, limits=SessionLimits(unhandled_messages=5)
    )
    peer = dial(world)
    peer.say(Hello(20_000))
    world.run(0.5)
    for number in range(50):
        peer.say(message(number))
        world.run(0.05)
    ((_, waited),) = world.central._asked.values()
    assert len(waited) < 10
    if closes:
        peer.transport.loseConnection()  # type: ignore[union-attr]  # it is connected
        world.run(1.0)
    later.callback(True)
    world.run(5.0)
    assert [m.content for m in world.at_central] == list(range(50))


@pytest.mark.parametrize("ends", ["refused", "failed", "too late", "gone", "let in", "stopped"])
def test_what_came_behind_a_hello_is_counted_until_accept_has_answered_and_no_longer(
    ends: str, logged_failures: list[LogEvent]
) -> None:
    later: Deferred[object] = Deferred()
    world = SessionsWorld(
        accept=lambda hello, inbound: later, limits=SessionLimits(join_timeout=3.0)
    )
    budget = world.central._listener.budget
    peer = dial(world)
    peer.say(Hello(20_000))
    for number in range(20):
        peer.say(message(["x" * 1000, number]))
    world.run(0.5)
    assert budget.used > 20_000
    if ends == "gone":
        peer.transport.loseConnection()  # type: ignore[union-attr]  # it is connected
        world.run(0.5)
        later.callback(False)
    elif ends == "failed":
        later.errback(ValueError("no"))
    elif ends == "stopped":
        world.done(world.central.stopService())
    elif ends != "too late":
        later.callback(ends == "let in")
    world.run(4.0)
    logged_failures.clear()  # of `accept`
    assert budget.used == 0
    assert len(world.at_central) == (20 if ends == "let in" else 0)


# --- a side that speaks as the original did


def test_a_remote_without_acknowledgements_sends_at_once_to_who_never_answers() -> None:
    world = SessionsWorld()
    world.kill("central")
    server = listen(world, SessionsWorld.CENTRAL_PORT)
    events: list[str] = []
    remote = world.begin_remote(
        "shop", 20_001, acks=False, on_joined=lambda: events.append("joined")
    )
    world.done(remote.send(0))
    world.done(remote.when_joined(), 1.0)
    for number in range(1, 5):
        world.done(remote.send(number))
    world.run(1.0)
    hello, *items = server[0].items()
    assert hello == Hello(20_001)
    assert [item.content for item in items] == list(range(5))  # type: ignore[union-attr]  # messages
    assert events == ["joined"]
    ended = world.done(remote.when_shut_down(), 20.0)
    assert ended.by == "silence"  # nobody beats there, either


def test_who_connects_first_to_a_remote_and_says_nothing_is_not_its_central() -> None:
    world = SessionsWorld(heartbeat=1.0)
    world.kill("central")
    options: dict[str, Any] = {"heartbeat_timeout": 3.0, "limits": SessionLimits(first_seconds=1e6)}
    remote = world.begin_remote("shop", 20_001, id="shop", acks=False, **options)
    world.run(0.5)
    idle = dial(world, 20_001)
    world.begin_central()
    world.until(lambda: "shop" in world.central.remotes)
    world.run(30.0, step=0.05)
    assert remote.is_joined
    assert idle.is_open
    world.done(world.central.send("shop", 1))
    world.done(world.central.shutdown("shop", "enough"), 20.0)
    assert world.done(remote.when_shut_down()) == Ended("central", "enough")
    assert [(m.key, m.content) for m in world.at["shop"]] == [("central", 1)]


def test_the_time_of_a_remote_that_nobody_beats_is_not_begun_anew_by_each_connection() -> None:
    world = SessionsWorld()
    world.kill("central")
    accept_and_close(world, SessionsWorld.CENTRAL_PORT)
    remote = world.begin_remote("shop", 20_001, acks=False, heartbeat_timeout=5.0)
    assert world.done(remote.when_shut_down(), 8.0).by == "silence"


# --- stops


def test_a_remote_ends_though_its_callback_of_the_end_never_does(
    logged_failures: list[LogEvent],
) -> None:
    world = SessionsWorld(limits=SessionLimits(stop_seconds=5.0))
    remote = joined(
        world,
        on_shutdown=lambda ended: Deferred(),
        limits=SessionLimits(stop_seconds=5.0),
    )
    world.done(world.central.shutdown("shop", "enough"), 30.0)
    assert world.done(remote.when_shut_down(), 30.0) == Ended("central", "enough")
    assert world.net.live() == []
    assert len(logged_failures) == 1
    logged_failures.clear()


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_waits_for_what_cannot_come_any_more_is_told(when: str) -> None:
    world = SessionsWorld()
    world.kill("central")
    remote = world.begin_remote("shop", 20_001)
    world.begin_central()
    central = world.central
    waits: list[Callable[[], Deferred[Any]]] = [
        remote.when_joined,
        central.when_joined,
        lambda: central.when_joined("x"),
    ]
    waits += [central.when_left, lambda: central.when_left("x")]
    waiting = [wait() for wait in waits] if when == "before" else []
    world.done(central.stopService())
    world.done(remote.stopService())
    waiting = waiting or [wait() for wait in waits]
    for waiter in waiting:
        with pytest.raises(NotJoined):
            world.done(waiter, 0.1)


def test_a_central_begins_once() -> None:
    world = SessionsWorld()
    with pytest.raises(RuntimeError, match="a central begins once"):
        world.done(world.central.listen())
    joined(world)
    world.done(world.central.stopService())
    assert SessionsWorld.CENTRAL_PORT not in world.net.servers
    with pytest.raises(RuntimeError, match="a central begins once"):
        world.done(world.central.listen())


def test_a_stop_whose_wait_is_cancelled_goes_on() -> None:
    gate: Deferred[None] = Deferred()
    left: list[str] = []
    world = SessionsWorld(
        on_message=lambda message: gate, on_left=lambda member, reason: left.append(reason)
    )
    remote = joined(world)
    world.done(remote.send(1))
    world.run(0.5)
    waiting = world.central.when_left("x")
    world.central.stopService().addErrback(lambda _: None).cancel()
    world.run(0.5)
    gate.callback(None)
    world.run(5.0)
    assert left == ["the central ends"]
    world.done(world.central.stopService(), 0.1)
    assert left == ["the central ends"]
    with pytest.raises(NotJoined):
        world.done(waiting)


def test_a_central_that_could_not_listen_may_try_again() -> None:
    central = Central(Clock(), listen="tcp:0")
    for _ in range(2):
        with pytest.raises(InsecureListener):
            SessionsWorld().done(central.listen())


@pytest.mark.parametrize("side", ["central", "remote"])
def test_a_stop_while_the_server_begins_is_told(side: str) -> None:
    begun: Deferred[Any] = Deferred()
    world = SessionsWorld()

    @implementer(IStreamServerEndpoint)
    class Slow:
        def listen(self, factory: Any) -> Deferred[Any]:
            return begun

    if side == "central":
        central = Central(world.net.clock, listen=Slow())
        starting, stopped = central.listen(), central.stopService()
    else:
        remote = Remote(world.net.clock, _Client(world.net, Process(), 1), listen=Slow())
        starting, stopped = remote.start(), remote.stopService()
    world.done(stopped)
    world.net.servers[20_000] = (Process(), None)
    begun.callback(_Port(world.net, 20_000))
    with pytest.raises(CannotListen, match="stopped meanwhile"):
        world.done(starting)
    assert world.net.servers.keys() == {SessionsWorld.CENTRAL_PORT}  # it is closed again


# --- who says to be a remote that is joined has to prove it


@pytest.mark.parametrize(
    "hello",
    [
        Hello(20_001, acks=True),
        Hello(20_001),  # and would have nothing to prove
        Hello(20_001, acks=True, nonce="guessed"),
        Hello(20_009, id="shop", acks=True),  # where nobody is
        Hello(20_009, id="shop"),
    ],
    ids=str,
)
def test_a_hello_of_a_stranger_does_not_replace_a_remote_that_is_joined(hello: Hello) -> None:
    left: list[str] = []
    world = SessionsWorld(heartbeat=1.0, on_left=lambda member, reason: left.append(reason))
    remote = world.begin_remote("shop", 20_001, id=hello.id, heartbeat_timeout=5.0)
    world.until(lambda: [m for m in world.central.remotes.values() if m.is_joined])
    ((key, member),) = world.central.remotes.items()
    stranger = dial(world)
    stranger.say(hello)
    for number in range(60):
        receipt = world.done(world.central.send(key, number))
        world.done(receipt.acknowledged(), 1.0)
        world.run(1.0, step=0.05)
    assert remote.is_joined
    assert (world.central.remotes, left) == ({key: member}, [])
    assert not stranger.is_open  # it may say hello again
    assert not world.central._candidates
    world.done(world.done(remote.send("up")).acknowledged(), 1.0)
    assert [m.content for m in world.at["shop"]] == list(range(60))


def test_a_stranger_who_hangs_up_leaves_nothing_behind() -> None:
    world = SessionsWorld()
    remote = joined(world)
    for _ in range(20):
        stranger = dial(world)
        stranger.say(Hello(20_009, id="shop", acks=True))
        world.run(0.1)
        stranger.transport.loseConnection()  # type: ignore[union-attr]  # it is connected
        world.run(0.1)
    assert not world.central._candidates
    dials = world.net.ports
    world.run(30.0, step=0.05)
    assert world.net.ports == dials
    assert remote.is_joined
    for end in world.net.live():  # and the remote itself may come back by the session that it has
        if end.getPeer().port == world.CENTRAL_PORT:
            world.net.break_off(end)
    receipts = [world.done(world.central.send("shop", n)) for n in range(20)]
    for receipt in receipts:
        world.done(receipt.acknowledged())
    assert [m.content for m in world.at["shop"]] == list(range(20))


def test_a_stop_while_somebody_has_to_prove_who_he_is_leaves_nothing_in_the_clock() -> None:
    world = SessionsWorld()
    remote = joined(world)
    dial(world).say(Hello(20_009, id="shop", acks=True))
    world.run(0.5)
    assert world.central._candidates
    world.done(world.central.stopService())
    world.done(remote.stopService())
    assert world.net.clock.getDelayedCalls() == []


# --- addresses


@pytest.mark.parametrize(
    ("comes_from", "named", "is_let_in"),
    [
        ("::ffff:127.0.0.1", HOST, True),
        ("::ffff:127.0.0.1", None, True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("::ffff:127.0.0.1", "127.0.0.2", False),
        ("::1", HOST, False),
    ],
)
def test_an_address_has_one_spelling(
    comes_from: str, named: str | None, is_let_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a server of both families the address of an IPv4 client is written as one of IPv6."""
    monkeypatch.setattr(End, "getPeer", lambda end: IPv6Address("TCP", comes_from, end._peer))
    world = SessionsWorld()
    peer = dial(world)
    peer.say(Hello(20_000, host=named))
    world.run(0.5)
    expected = "::1" if comes_from == "::1" else HOST
    assert list(world.central.remotes) == ([(expected, 20_000)] if is_let_in else [])
    assert peer.is_open is is_let_in


# --- a remote listens where its central dials it


@pytest.mark.parametrize(
    ("dialled", "announced", "listens", "is_told"),
    [
        ("::1", None, HOST, True),
        ("::1", None, "0.0.0.0", True),
        ("::1", None, "::", False),
        (HOST, None, HOST, False),
        ("::ffff:127.0.0.1", None, HOST, False),
        (HOST, None, "::", False),
        (HOST, None, "0.0.0.0", False),
        ("10.0.0.6", None, HOST, True),
        ("10.0.0.6", HOST, HOST, False),
        (HOST, "10.0.0.6", HOST, True),
        (HOST, "till.example", HOST, False),  # a name may be any address
        ("/run/central", None, HOST, False),
    ],
)
def test_a_remote_says_where_its_central_will_dial_what_it_does_not_listen_at(
    dialled: str,
    announced: str | None,
    listens: str,
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[LogEvent],
) -> None:
    world = SessionsWorld()
    monkeypatch.setattr(End, "getHost", lambda end: IPv6Address("TCP", dialled, end._host))
    monkeypatch.setattr(_Port, "getHost", lambda port: IPv6Address("TCP", listens, port._port))
    world.begin_remote("shop", 20_001, announce_host=announced, insecure=True)
    world.run(0.5)
    told = [event for event in logged if "will dial" in str(event.get("log_format"))]
    expected = [(announced or dialled, listens)] if is_told else []
    assert {(event["dialled"], event["server"]) for event in told} == set(expected)


# --- arguments are looked at where they are given


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "objects"},
        {"codec": SafeCodec},
        {"limits": {}},
        {"tls": True},
        {"insecure": "no"},
        {"listen": 1602},
        {"accept": True},
        {"accept_hosts": HOST},
        {"dial": 3},
        {"node": "x"},
        {"on_joined": 3},
        {"on_left": "x"},
        {"heartbeat": float("inf")},
        {"logged_hello": 1},
    ],
    ids=str,
)
def test_a_central_refuses_an_argument_that_is_none(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=name):
        Central(Clock(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"central": f"tcp:{HOST}:1602"},
        {"central": None},
        {"central": (HOST, "1602")},
        {"central": (HOST, 0)},
        {"central": (HOST, 70_000)},
        {"central": (HOST,)},
        {"codec": SafeCodec},
        {"limits": {}},
        {"listen": 1602},
        {"listen": "unix:/run/remote"},
        {"on_joined": 3},
        {"on_shutdown": 3},
        {"heartbeat_timeout": float("nan")},
    ],
    ids=str,
)
def test_a_remote_refuses_an_argument_that_is_none(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=name):
        Remote(Clock(), **{"central": (HOST, 1_602), **options})


def test_a_remote_that_nobody_beats_may_have_no_timeout() -> None:
    world = SessionsWorld(heartbeat=1e9)
    remote = joined(world, heartbeat_timeout=float("inf"))
    world.run(60.0, step=0.1)
    assert remote.is_joined


@pytest.mark.parametrize("key", [None, 3, (), ("a",)])
def test_what_is_no_key_is_of_nobody_who_has_joined(key: Any) -> None:
    world = SessionsWorld()
    for outcome in (world.central.send(key, 1), world.central.shutdown(key)):
        with pytest.raises(NotJoined):
            world.done(outcome)
