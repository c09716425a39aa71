"""A central and its remotes over a network that cuts, delays and kills, from seeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from msgservice.errors import BadName, HandlerFailed, MessageTooLarge
from msgservice.faces.sessions.content.records import RecordsCodec
from msgservice.faces.sessions.content.safe import SafeCodec
from msgservice.faces.sessions.errors import BadControl, NotJoined, RemoteLeft
from msgservice.faces.sessions.handlers import SessionMessage
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.remote import Ended, Remote, State
from tests.kit.sessions_world import SessionsWorld


def contents(messages: list[Any]) -> list[Any]:
    return [message.content for message in messages]


def joined(world: SessionsWorld, name: str = "shop", **options: Any) -> Remote:
    remote = world.begin_remote(name, 20_001 + len(world.at), id=name, **options)
    world.until(lambda: remote.is_joined and name in world.central.remotes)
    world.until(lambda: world.central.remotes[name].is_joined)
    return remote


@pytest.mark.parametrize("seed", range(60))
def test_resent_on_reconnect_once_and_in_order_between_living_processes(seed: int) -> None:
    world = SessionsWorld(seed, heartbeat=1.0)
    remotes = {name: joined(world, name, heartbeat_timeout=1e6) for name in ("a", "b")}
    dice = random.Random(seed)
    sent: dict[str, int] = dict.fromkeys(remotes, 0)
    back: dict[str, int] = dict.fromkeys(remotes, 0)
    receipts = []
    for _ in range(200):
        name = dice.choice(("a", "b"))
        match dice.randrange(10):
            case 0 | 1 | 2 if name in world.central.remotes:
                for _ in range(dice.randrange(1, 20)):
                    receipts.append(world.done(world.central.send(name, sent[name])))
                    sent[name] += 1
            case 3 | 4 | 5:
                for _ in range(dice.randrange(1, 20)):
                    receipts.append(world.done(remotes[name].send([name, back[name]])))
                    back[name] += 1
            case 6 | 7:
                world.net.cut()
            case _:
                world.run(dice.random() * dice.choice((0.01, 0.1, 3.0)))
    world.until(lambda: set(world.central.remotes) == {"a", "b"})
    for receipt in receipts:
        world.done(receipt.acknowledged())
    for name in remotes:
        assert contents(world.at[name]) == list(range(sent[name]))
        from_it = [item[1] for item in contents(world.at_central) if item[0] == name]
        assert from_it == list(range(back[name]))
        assert world.central.remotes[name].queued == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_remote_that_is_killed_and_comes_back_joins_and_gets_what_waits(seed: int) -> None:
    world = SessionsWorld(seed)
    joined(world)
    dice = random.Random(seed)
    sent = 0
    for _ in range(6):
        for _ in range(dice.randrange(1, 10)):
            world.done(world.central.send("shop", sent))
            sent += 1
        world.run(dice.random() * 0.05)
        world.kill("shop")
        world.begin_remote("shop", 20_100 + dice.randrange(1_000), id="shop")
        world.run(dice.random() * 0.5)
        world.until(lambda: "shop" in world.central.remotes)
    receipt = world.done(world.central.send("shop", "last"))
    world.done(receipt.acknowledged())
    got = contents(world.at["shop"])
    # Those that a killed process had and had not acknowledged come again.
    assert set(got) >= {*range(sent), "last"}
    firsts = sorted({value: got.index(value) for value in got if value != "last"}.items())
    assert [at for _, at in firsts] == sorted(at for _, at in firsts)


@pytest.mark.parametrize("milliseconds", range(0, 60, 2))
def test_kills_of_the_remote_at_each_of_the_four_steps_leave_a_state_that_recovers(
    milliseconds: int,
) -> None:
    world = SessionsWorld(milliseconds)
    world.begin_remote("shop", 20_001, id="shop")
    world.run(milliseconds / 1000, step=0.001)
    world.kill("shop")
    again = world.begin_remote("shop", 20_002, id="shop")
    world.until(lambda: again.is_joined)
    world.until(lambda: world.central.remotes["shop"].is_joined)
    assert world.central.remotes["shop"].address[1] == 20_002
    world.done(world.done(world.central.send("shop", 1)).acknowledged())
    world.done(world.done(again.send(2)).acknowledged())


@pytest.mark.parametrize("milliseconds", range(0, 60, 2))
def test_kills_of_the_central_at_each_of_the_four_steps_leave_a_state_that_recovers(
    milliseconds: int,
) -> None:
    world = SessionsWorld(milliseconds)
    remote = world.begin_remote("shop", 20_001, id="shop", heartbeat_timeout=60.0)
    receipt = world.done(remote.send("early"))
    world.run(milliseconds / 1000, step=0.001)
    world.kill("central")
    world.run(0.2)
    world.begin_central()
    world.until(lambda: "shop" in world.central.remotes)
    world.until(lambda: world.central.remotes["shop"].is_joined and remote.is_joined)
    world.done(receipt.acknowledged())
    world.done(world.done(world.central.send("shop", 1)).acknowledged())
    assert contents(world.at_central).count("early") in (1, 2)  # twice if the first central had it


def test_hello_creates_a_client_stored_in_a_dictionary_by_remote_address() -> None:
    world = SessionsWorld()
    remote = world.begin_remote("x", 20_001)
    world.until(lambda: remote.is_joined)
    assert list(world.central.remotes) == [("127.0.0.1", 20_001)]


def test_a_second_hello_replaces_and_what_is_in_flight_goes_on_in_order() -> None:
    world = SessionsWorld()
    remote = joined(world)
    first = world.central.remotes["shop"]
    receipts = [world.done(world.central.send("shop", n)) for n in range(50)]
    for end in world.net.live():  # the remote's client is cut, so it says hello again
        if end.getPeer().port == world.CENTRAL_PORT:
            world.net.break_off(end)
    for receipt in receipts:
        world.done(receipt.acknowledged())
    second = world.central.remotes["shop"]
    assert second is not first
    assert second.session != first.session
    assert contents(world.at["shop"]) == list(range(50))
    assert remote.session == second.session


def test_heartbeats_keep_alive_and_their_absence_past_the_timeout_shuts_the_remote_down() -> None:
    world = SessionsWorld(heartbeat=1.0)
    remote = joined(world, heartbeat_timeout=3.0)
    world.run(30.0, step=0.1)
    assert remote.is_joined
    assert world.central.remotes["shop"].last_heartbeat is not None
    world.kill("central")
    began = world.net.clock.seconds()
    ended = world.done(remote.when_shut_down())
    assert ended == Ended("silence", "no heartbeat for 3.0 s")
    assert world.net.clock.seconds() - began <= 3.0 + 1.0 + 0.2
    assert remote.state is State.ENDED
    assert not world.net.live()  # client and server


def test_a_shutdown_is_acknowledged_with_all_before_it_after_their_handlers_ended() -> None:
    world = SessionsWorld()
    ends: list[str] = []
    remote = joined(world, on_shutdown=lambda ended: ends.append(ended.reason))
    for n in range(20):
        world.done(world.central.send("shop", n))
    told = world.central.shutdown("shop", "enough")
    behind = world.done(world.central.send("shop", "behind"))
    world.done(told)
    assert contents(world.at["shop"]) == list(range(20))
    assert ends == ["enough"]
    assert world.done(remote.when_shut_down()) == Ended("central", "enough")
    assert world.central.remotes == {}
    with pytest.raises(NotJoined):  # it was never sent
        world.done(behind.acknowledged())
    dials = world.net.ports
    world.run(60.0, step=0.1)
    assert world.net.ports == dials  # until the next hello nobody dials


@pytest.mark.parametrize("seed", range(40))
def test_a_shutdown_is_acknowledged_however_its_two_connections_end(seed: int) -> None:
    world = SessionsWorld(seed)
    remote = joined(world)
    receipts = [world.done(world.central.send("shop", n)) for n in range(3)]
    world.done(world.central.shutdown("shop"))
    for receipt in receipts:
        world.done(receipt.acknowledged())
    assert world.done(remote.when_shut_down()) == Ended("central")


def test_a_shutdown_for_an_absent_remote_is_not_kept() -> None:
    world = SessionsWorld()
    with pytest.raises(NotJoined):
        world.done(world.central.shutdown("shop"))
    joined(world)
    world.kill("shop")
    world.run(1.0)
    with pytest.raises(NotJoined):
        world.done(world.central.shutdown("shop"))
    remote = joined(world, "shop")
    world.run(5.0)
    assert remote.is_joined


def test_who_is_away_for_too_long_has_left_and_what_waited_for_it_fails() -> None:
    world = SessionsWorld()
    joined(world)
    world.kill("shop")
    left = world.central.when_left("shop")
    world.run(1.0)
    receipt = world.done(world.central.send("shop", 1))
    member, reason = world.done(left)
    assert (member.key, "not reached for 30.0 s" in reason) == ("shop", True)
    with pytest.raises((NotJoined, RemoteLeft)):
        world.done(receipt.acknowledged())
    with pytest.raises(NotJoined):
        world.done(world.central.send("shop", 1))


def test_nothing_waits_in_the_clock_when_all_have_stopped() -> None:
    world = SessionsWorld()
    remotes = [joined(world, name) for name in ("a", "b")]
    world.done(world.central.send("a", 1))
    for remote in remotes:
        world.done(remote.stopService())
    world.done(world.central.stopService())
    world.run(60.0, step=0.1)
    assert world.net.clock.getDelayedCalls() == []


def test_a_hello_that_says_more_was_handled_than_was_sent_changes_nothing() -> None:
    world = SessionsWorld()
    remote = joined(world)
    member = world.central.remotes["shop"]
    account = remote._account
    account.incoming.handled = 1_000
    for end in world.net.live():  # its client is cut, so it says hello again
        if end.getPeer().port == world.CENTRAL_PORT:
            world.net.break_off(end)
    world.run(5.0)
    assert world.central.remotes["shop"] is member
    assert member.is_joined
    world.done(world.central.send("shop", 1))
    account.incoming.handled = 0
    world.until(lambda: world.central.remotes.get("shop") is not member)
    world.done(world.done(world.central.send("shop", 2)).acknowledged())
    assert contents(world.at["shop"]) == [1, 2]


def test_who_has_proven_to_be_a_remote_but_says_what_cannot_be_is_no_remote_that_left() -> None:
    left: list[str] = []
    world = SessionsWorld(on_left=lambda member, reason: left.append(reason))
    remote = joined(world)
    waiting = world.central.when_left("shop")
    member = world.central.remotes["shop"]
    remote._account.incoming.handled = 1_000  # beyond what was sent
    for end in world.net.live():  # its client is cut, so it says hello again
        if end.getPeer().port == world.CENTRAL_PORT:
            world.net.break_off(end)
    world.run(world.central._limits.join_timeout + 5.0)
    assert (left, waiting.called, world.central._candidates) == ([], False, {})
    assert world.central.remotes["shop"] is member
    assert member.is_joined


def test_what_a_callback_of_the_program_raises_leaves_no_connection_behind(
    logged_failures: list[LogEvent],
) -> None:
    answers: list[Any] = [True]

    def accept(hello: object, inbound: object) -> bool:
        if not answers:
            return True
        answers.pop()
        raise SystemExit

    def leave(ended: Ended) -> None:
        raise KeyboardInterrupt

    world = SessionsWorld(accept=accept)
    remote = joined(world, on_shutdown=leave)  # by its second hello
    assert answers == []
    world.done(world.central.shutdown("shop"))
    world.done(remote.when_shut_down())
    world.done(world.central.stopService(), 5.0)
    assert not world.net.live()
    logged_failures.clear()


def test_a_handler_that_raises_system_exit_has_failed_and_the_next_message_is_handled(
    logged_failures: list[LogEvent],
) -> None:
    def leave(message: SessionMessage) -> None:
        if message.content == 1:
            raise SystemExit(1)

    world = SessionsWorld(on_message=leave)
    remote = joined(world, on_message=leave)
    for send in (remote.send, lambda content: world.central.send("shop", content)):
        receipts = [world.done(send(n)) for n in range(3)]
        world.done(receipts[0].acknowledged())
        with pytest.raises(HandlerFailed, match="SystemExit: 1"):
            world.done(receipts[1].acknowledged())
        world.done(receipts[2].acknowledged())
    logged_failures.clear()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "id: 0 characters, 1 to 200 are needed"),
        ("x" * 201, "id: 201 characters, 1 to 200 are needed"),
        (3, "id: text is needed, not int"),
        ("a b", "bad name 'a b'"),
        ("a/b", "bad name 'a/b'"),
        ("$a", "bad name"),
    ],
)
def test_an_id_that_no_remote_can_have_is_refused_where_it_is_given(name: Any, why: str) -> None:
    world = SessionsWorld()
    with pytest.raises((BadControl, BadName)) as raised:
        world.begin_remote("x", 20_001, id=name)
    assert why in str(raised.value)
    joined(world, "x" * 200)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"announce_host": "a b"}, BadControl, "host: characters that no host has"),
        ({"announce_host": "x" * 256}, BadControl, "host: 256 characters, 1 to 255 are needed"),
        ({"announce_host": 5}, BadControl, "host: text is needed, not int"),
        ({"threads": 1.5}, TypeError, "threads = 1.5: an integer is needed"),
    ],
)
def test_what_no_central_would_let_in_is_refused_where_a_remote_is_made(
    options: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error) as raised:
        SessionsWorld().begin_remote("shop", 20_001, **options)
    assert str(raised.value) == why


def test_what_would_let_nobody_in_is_refused_where_it_is_given() -> None:
    with pytest.raises(TypeError, match="accept = None"):
        SessionsWorld(accept=None)
    for name in ("unhandled_messages", "unhandled_bytes", "payload_bytes", "queue_messages"):
        half: dict[str, Any] = {name: 0.5}
        with pytest.raises(ValueError, match=f"{name} = 0.5: 1 or more are needed"):
            SessionLimits(**half)
    assert SessionLimits(first_seconds=0.5).first_seconds == 0.5


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("r" * 1_001, "reason: 1001 characters, 1 to 1000 are needed"),
        (5, "reason: text is needed, not int"),
        ("\ud800", "reason: text that is no UTF-8"),
    ],
)
def test_a_reason_that_cannot_be_said_is_refused_where_it_is_given(reason: Any, why: str) -> None:
    world = SessionsWorld()
    remote = joined(world)
    with pytest.raises(BadControl) as raised:
        world.done(world.central.shutdown("shop", reason))
    assert str(raised.value) == why
    world.run(1.0)
    assert remote.is_joined
    world.done(world.central.shutdown("shop", "é" * 1_000))
    assert world.done(remote.when_shut_down()).reason == "é" * 1_000


class Gates:
    """A handler whose messages wait until the test says how they end."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[None]] = []

    def __call__(self, message: SessionMessage) -> Deferred[None]:
        self.waiting.append(Deferred())
        return self.waiting[-1]


def cut_client(world: SessionsWorld, key: str, port: int) -> None:
    """Break off the connections of a process to a port."""
    for end in world.net.live():
        if world.net.ends[end] is world.processes[key] and end.getPeer().port == port:
            world.net.break_off(end)


def test_a_failure_survives_the_connection_of_its_acknowledgement_to_the_central(
    logged_failures: list[LogEvent],
) -> None:
    world, gates = SessionsWorld(1), Gates()
    joined(world, on_message=gates)
    receipts = [world.done(world.central.send("shop", n)) for n in range(2)]
    world.until(lambda: gates.waiting)
    cut_client(world, "shop", world.CENTRAL_PORT)
    world.run(0.05)
    gates.waiting[0].errback(ValueError("no"))
    gates.waiting[1].callback(None)
    with pytest.raises(HandlerFailed, match="ValueError: no"):
        world.done(receipts[0].acknowledged())
    world.done(receipts[1].acknowledged())
    assert world.central.remotes["shop"].account.outgoing.messages == 0
    logged_failures.clear()


@pytest.mark.parametrize("also_its_client", [False, True])
def test_a_failure_survives_the_connection_of_its_acknowledgement_to_the_remote(
    also_its_client: bool, logged_failures: list[LogEvent]
) -> None:
    gates = Gates()
    world = SessionsWorld(2, on_message=gates)
    remote = joined(world)
    receipts = [world.done(remote.send(n)) for n in range(2)]
    world.until(lambda: gates.waiting)
    cut_client(world, "central", 20_001)
    world.run(0.03)
    gates.waiting[0].errback(ValueError("no"))
    if also_its_client:
        cut_client(world, "shop", world.CENTRAL_PORT)
    gates.waiting[1].callback(None)
    with pytest.raises(HandlerFailed, match="ValueError: no"):
        world.done(receipts[0].acknowledged())
    world.done(receipts[1].acknowledged())
    logged_failures.clear()


def test_an_acknowledgement_that_is_lost_with_its_connection_is_said_on_the_next() -> None:
    world = SessionsWorld()
    remote = joined(world)
    (server,) = [end for end in world.net.live() if end.getHost().port == 20_001]
    server.pauseProducing()  # the acknowledgement is written, and does not arrive
    receipt = world.done(remote.send(1))
    world.run(1.0)
    assert contents(world.at_central) == [1]
    cut_client(world, "central", 20_001)
    world.done(receipt.acknowledged(), 10.0)
    assert contents(world.at_central) == [1]


@pytest.mark.parametrize("seed", range(20))
def test_each_failure_is_told_however_connections_end(
    seed: int, logged_failures: list[LogEvent]
) -> None:
    def handle(message: SessionMessage) -> None:
        if message.content % 3 == 0:
            raise ValueError(message.content)

    world = SessionsWorld(seed, on_message=handle)
    remote = joined(world, on_message=handle, heartbeat_timeout=1e6)
    dice = random.Random(seed)
    outcomes: list[tuple[int, object]] = []
    for n in range(300):
        if "shop" in world.central.remotes:
            receipt = world.done(dice.choice((remote.send, partial(world.central.send, "shop")))(n))
            d = receipt.acknowledged()
            d.addBoth(lambda result, n=n: outcomes.append((n, result)))
        if dice.random() < 0.1:
            world.net.cut()
        world.run(dice.random() * 0.02)
    world.until(lambda: len(outcomes) == 300)
    for n, result in outcomes:
        assert isinstance(result, Failure) == (n % 3 == 0)
        if isinstance(result, Failure):
            result.trap(HandlerFailed)
            assert result.getErrorMessage().endswith(f"ValueError: {n}")
    account = world.central.remotes["shop"].account
    world.run(2.0)
    assert account.incoming.failed_bytes == 0  # all were heard, so none is kept
    logged_failures.clear()


def test_more_failures_than_the_other_side_takes_at_once_are_all_told(
    logged_failures: list[LogEvent],
) -> None:
    def handle(message: SessionMessage) -> None:
        raise ValueError("x" * 500)

    limits = SessionLimits(payload_bytes=4_096)
    world = SessionsWorld(limits=limits, on_message=handle)
    remote = joined(world, on_message=handle, limits=limits, heartbeat_timeout=1e6)
    session = remote.session
    receipts = [world.done(remote.send(n)) for n in range(300)]
    receipts += [world.done(world.central.send("shop", n)) for n in range(300)]
    for receipt in receipts:
        with pytest.raises(HandlerFailed):
            world.done(receipt.acknowledged())
    assert remote.session == session  # nothing ended a connection
    logged_failures.clear()


def test_what_the_other_side_does_not_take_is_refused_where_it_is_sent() -> None:
    small = SessionLimits(payload_bytes=10_000)
    world = SessionsWorld()
    remote = joined(world, limits=small)
    with pytest.raises(MessageTooLarge) as raised:
        world.done(world.central.send("shop", "x" * 10_000))
    assert raised.value.size_max < 10_000 < raised.value.size
    told = world.done(world.central.broadcast("x" * 10_000))
    assert isinstance(told["shop"], MessageTooLarge)
    world.done(world.done(world.central.send("shop", "x" * 8_000)).acknowledged())
    world.done(world.done(remote.send("x" * 8_000)).acknowledged())

    world = SessionsWorld(limits=small)
    remote = world.begin_remote("shop", 20_001, id="shop")
    early = [world.done(remote.send("x" * size)) for size in (1, 10_000, 2)]
    world.until(lambda: remote.is_joined)
    with pytest.raises(MessageTooLarge):
        world.done(remote.send("x" * 10_000))
    world.done(early[0].acknowledged())
    with pytest.raises(MessageTooLarge):
        world.done(early[1].acknowledged())
    world.done(early[2].acknowledged())


def test_what_a_process_may_have_had_is_not_told_as_never_sent() -> None:
    gates = Gates()
    world = SessionsWorld(5)
    joined(world, on_message=gates)
    receipt = world.done(world.central.send("shop", 1))
    world.until(lambda: gates.waiting)
    world.kill("shop")
    world.begin_remote("shop", 20_002, id="shop")
    world.until(lambda: world.central.remotes["shop"].address[1] == 20_002)
    world.kill("shop")
    with pytest.raises(RemoteLeft):
        world.done(receipt.acknowledged())

    world = SessionsWorld(6, on_message=gates)
    remote = joined(world)
    receipt = world.done(remote.send(1))
    world.until(lambda: len(gates.waiting) == 2)
    session = remote.session
    world.kill("central")
    world.begin_central()
    world.until(lambda: remote.session != session)
    world.kill("central")
    with pytest.raises(RemoteLeft):
        world.done(receipt.acknowledged())


def test_a_shutdown_is_not_carried_to_the_next_process_of_its_remote() -> None:
    world = SessionsWorld(4)
    joined(world)
    world.processes["shop"].is_alive = False
    del world.net.servers[20_001]  # nor will anybody: its connections stay half open
    told = world.central.shutdown("shop", "the old one")
    behind = world.done(world.central.send("shop", "behind"))
    world.run(0.02)
    remote = world.begin_remote("shop", 20_002, id="shop")
    with pytest.raises(RemoteLeft):
        world.done(told)
    world.done(behind.acknowledged())
    world.run(5.0)
    assert remote.is_joined
    assert contents(world.at["shop"]) == ["behind"]


def test_hellos_without_an_answer_do_not_make_the_central_forget_a_session() -> None:
    gates = Gates()
    world = SessionsWorld(on_message=gates)
    remote = joined(world, heartbeat_timeout=1e6)
    for _ in range(3):  # those that were joined are not all kept, the last one is
        session = remote.session
        cut_client(world, "shop", world.CENTRAL_PORT)
        world.until(lambda: remote.session != session)  # noqa: B023
    receipt = world.done(remote.send(1))
    world.until(lambda: gates.waiting)
    server = world.net.servers.pop(20_001)
    session = remote.session
    cut_client(world, "central", 20_001)
    for _ in range(40):
        member = world.central.remotes["shop"]
        cut_client(world, "shop", world.CENTRAL_PORT)
        world.until(lambda: world.central.remotes["shop"] is not member)  # noqa: B023
    assert remote.session == session
    world.net.servers[20_001] = server
    world.until(lambda: remote.session != session)
    world.run(1.0)
    assert len(gates.waiting) == 1
    gates.waiting[0].callback(None)
    world.done(receipt.acknowledged())


def test_who_does_not_read_acknowledgements_is_not_written_them_without_end(
    logged_failures: list[LogEvent],
) -> None:
    def handle(message: SessionMessage) -> None:
        raise ValueError("x" * 500)

    world = SessionsWorld(on_message=handle, limits=SessionLimits(write_timeout=1_000.0))
    remote = joined(world, heartbeat_timeout=1e6)
    (server,) = [end for end in world.net.live() if end.getHost().port == 20_001]
    server.pauseProducing()
    receipts = [world.done(remote.send(n)) for n in range(2_000)]
    failures = world.central.remotes["shop"].account.incoming._failures
    world.until(lambda: len(failures) == SessionLimits().unhandled_messages, 300)
    world.run(10.0)  # and no more come before those are answered
    assert len(failures) == SessionLimits().unhandled_messages
    assert server.other._out_bytes < 400_000
    server.resumeProducing()
    for receipt in receipts:
        with pytest.raises(HandlerFailed):
            world.done(receipt.acknowledged())
    logged_failures.clear()


class Point:
    """A type that one side has registered."""


def with_point() -> SafeCodec:
    codec = SafeCodec()
    codec.register(Point, "point", lambda point: 1, lambda one: Point())
    return codec


def refuse(plain: object) -> object:
    raise SystemExit


def with_point_that_nobody_can_make() -> SafeCodec:
    codec = SafeCodec()
    codec.register(Point, "point", lambda point: 1, refuse)
    return codec


@pytest.mark.parametrize("other", [SafeCodec, with_point_that_nobody_can_make])
@pytest.mark.parametrize("from_central", [False, True])
def test_a_message_that_the_other_side_cannot_read_has_failed_and_nothing_else_has(
    from_central: bool, other: Callable[[], SafeCodec], logged_failures: list[LogEvent]
) -> None:
    codecs = (with_point(), other()) if from_central else (other(), with_point())
    world = SessionsWorld(codec=codecs[0])
    remote = joined(world, codec=codecs[1])
    session = remote.session
    send = partial(world.central.send, "shop") if from_central else remote.send
    receipts = [world.done(send(content)) for content in (1, Point(), 2)]
    world.done(receipts[0].acknowledged())
    with pytest.raises(HandlerFailed, match="BadPayload: "):
        world.done(receipts[1].acknowledged())
    world.done(receipts[2].acknowledged())
    got = world.at["shop"] if from_central else world.at_central
    assert contents(got) == [1, 2]
    assert remote.session == session  # no connection ended
    logged_failures.clear()


def test_an_unreadable_message_is_answered_in_its_turn() -> None:
    gates = Gates()
    world = SessionsWorld(codec=with_point())
    joined(world, on_message=gates)
    first, second = (world.done(world.central.send("shop", content)) for content in (1, Point()))
    world.until(lambda: gates.waiting)
    told: list[object] = []
    second.acknowledged().addBoth(told.append)
    world.run(1.0)
    assert told == []
    gates.waiting[0].callback(None)
    world.done(first.acknowledged())
    world.until(lambda: told)
    assert isinstance(told[0], Failure)


@pytest.mark.parametrize("from_central", [False, True])
def test_a_message_larger_than_the_other_side_takes_fails_alone_and_by_its_number(
    from_central: bool,
) -> None:
    small, large = SessionLimits(payload_bytes=100_000), SessionLimits()
    world = SessionsWorld(heartbeat=1.0, limits=large if from_central else small)
    remote = joined(world, limits=small if from_central else large)
    account = world.central.remotes["shop"].account if from_central else remote._account
    account.outgoing.size_max = 2**30  # as if the other side did not say what it takes
    send = partial(world.central.send, "shop") if from_central else remote.send
    dials = world.net.ports
    receipts = [world.done(send(content)) for content in (1, "x" * 200_000, 2)]
    world.done(receipts[0].acknowledged())
    with pytest.raises(HandlerFailed, match="BadPayload: "):
        world.done(receipts[1].acknowledged())
    world.done(receipts[2].acknowledged())
    got = world.at["shop"] if from_central else world.at_central
    assert contents(got) == [1, 2]
    assert remote.state is State.JOINED
    # One connection ends with it, and a remote that comes back is dialled back; more do only where
    # its number came in another piece than its prefix.
    assert world.net.ports - dials <= 6


def test_of_messages_that_are_too_large_each_fails_and_all_others_are_handled_once() -> None:
    world = SessionsWorld(limits=SessionLimits(payload_bytes=100_000, unhandled_messages=2))
    remote = joined(world)
    account = remote._account
    account.outgoing.size_max = 2**30  # as if the central did not say what it takes
    account.confirmed = lambda payload_bytes, window: None  # type: ignore[method-assign]
    contents_sent = [n if n % 3 else "x" * 200_000 for n in range(1, 40)]
    receipts = [world.done(remote.send(content)) for content in contents_sent]
    for content, receipt in zip(contents_sent, receipts, strict=True):
        if isinstance(content, int):
            world.done(receipt.acknowledged())
        else:
            with pytest.raises(HandlerFailed, match="BadPayload: frame of 2000"):
                world.done(receipt.acknowledged())
    assert contents(world.at_central) == [n for n in contents_sent if isinstance(n, int)]


GARBAGE = [b"\xc1", b"no msgpack and no pickle", b"\x94\x00", b"\x80\x04", b"}q\0"]


@pytest.mark.parametrize("payload", GARBAGE, ids=repr)
@pytest.mark.parametrize("make_codec", [SafeCodec, RecordsCodec])
@pytest.mark.parametrize("from_central", [False, True])
@pytest.mark.parametrize("is_under_way", [False, True])
def test_a_payload_that_is_none_fails_nothing_but_itself_however_often_it_comes(
    payload: bytes, make_codec: Callable[[], Any], from_central: bool, is_under_way: bool
) -> None:
    gates = Gates()
    world = SessionsWorld(heartbeat=1.0, codec=make_codec(), on_message=gates)
    remote = joined(world, codec=make_codec(), on_message=gates)
    send = partial(world.central.send, "shop") if from_central else remote.send
    receipts = [world.done(send("handled later"))] if is_under_way else []
    for _ in range(5):
        sender = world.central.remotes["shop"]._sender if from_central else remote._sender
        sender.write([payload])
        world.run(3.0)
        assert remote.state is State.JOINED
    receipts.append(world.done(send("innocent")))
    for number in range(len(receipts)):
        world.until(lambda number=number: len(gates.waiting) > number)  # type: ignore[misc]
        gates.waiting[number].callback(None)
    for receipt in receipts:
        world.done(receipt.acknowledged())


def test_a_control_message_that_is_none_fails_no_message_however_often_it_comes() -> None:
    world = SessionsWorld(heartbeat=1.0)
    remote = joined(world)
    for _ in range(4):
        remote._sender.write([msgspec.msgpack.encode((1, {"type": "of a later version"}))])
        world.run(4.0)
        assert remote.state is State.JOINED
    world.done(world.done(remote.send("innocent")).acknowledged())
    assert contents(world.at_central) == ["innocent"]


def test_a_remote_that_stops_lets_running_handlers_end_and_answers_them() -> None:
    world, gate = SessionsWorld(), Deferred[None]()
    begun: list[Any] = []

    async def handle(message: SessionMessage) -> None:
        begun.append(message.content)
        await gate
        await remote.send(["from", message.content])

    remote = joined(world, on_message=handle)
    receipts = [world.done(world.central.send("shop", n)) for n in range(2)]
    world.until(lambda: begun)
    stopped = remote.stopService()
    world.run(1.0)
    assert not stopped.called
    late = world.done(world.central.send("shop", 2))
    gate.callback(None)
    world.done(receipts[0].acknowledged(), 2.0)
    world.done(stopped, 2.0)
    assert begun == [0]
    world.run(0.5)
    assert contents(world.at_central) == [["from", 0]]
    again = world.begin_remote("shop", 20_002, id="shop")
    for receipt in (receipts[1], late):
        world.done(receipt.acknowledged())
    assert contents(world.at["shop"]) == [1, 2]  # what had begun does not come twice
    assert again.is_joined


def test_a_central_that_stops_lets_running_handlers_end_and_answers_them() -> None:
    gates = Gates()
    world = SessionsWorld(on_message=gates)
    remote = joined(world)
    receipts = [world.done(remote.send(n)) for n in range(2)]
    world.until(lambda: gates.waiting)
    stopped = world.central.stopService()
    world.run(1.0)
    assert not stopped.called
    gates.waiting[0].callback(None)
    world.done(receipts[0].acknowledged(), 2.0)
    world.done(stopped, 2.0)
    assert len(gates.waiting) == 1


def test_a_stop_waits_no_longer_for_handlers_than_stop_seconds() -> None:
    limits = SessionLimits(stop_seconds=2.0)
    world = SessionsWorld(limits=limits, on_message=Gates())
    remote = joined(world, limits=limits, on_message=Gates())
    world.done(remote.send(1))
    receipt = world.done(world.central.send("shop", 1))
    world.run(1.0)
    world.done(remote.stopService(), 4.0)
    world.done(world.central.stopService(), 4.0)
    with pytest.raises(RemoteLeft):
        world.done(receipt.acknowledged())


def test_silence_closes_both_connections_at_once_though_a_handler_runs() -> None:
    world, gates = SessionsWorld(heartbeat=1.0), Gates()
    remote = joined(world, on_message=gates, heartbeat_timeout=3.0)
    world.done(world.central.send("shop", 1))
    world.until(lambda: gates.waiting)
    world.kill("central")
    world.run(4.5)
    assert not world.net.live()
    assert remote.state is State.ENDING
    gates.waiting[0].callback(None)
    assert world.done(remote.when_shut_down()).by == "silence"
