"""Sessions towards those who wait: what was promised comes or fails, whatever else goes on."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from msgservice.errors import MessageTooLarge
from msgservice.faces.sessions.durable import PREFIX
from msgservice.faces.sessions.envelope import (
    ID_BYTES_MAX,
    Heartbeat,
    Hello,
    Joined,
    Welcome,
    check_id,
    control_of,
)
from msgservice.faces.sessions.errors import BadControl, NotJoined, RemoteLeft
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.limits import NAME_BYTES_MAX
from tests.kit.sessions_world import HOST, SessionsWorld
from tests.unit.test_sessions_abuse import dial, joined, listen, message


def break_off(world: SessionsWorld, process: object, port: int) -> None:
    """Break off the connections of a process to a port."""
    for end in world.net.live():
        if world.net.ends[end] is world.processes[process] and end.getPeer().port == port:
            world.net.break_off(end)


# --- who leaves


@pytest.mark.parametrize(
    "ends", ["it is killed", "the central stops", "it comes back without acks"]
)
def test_who_sends_again_as_soon_as_a_receipt_fails_is_told_what_becomes_of_that(ends: str) -> None:
    world = SessionsWorld(limits=SessionLimits(redial_seconds=3.0))
    joined(world, on_message=lambda message: Deferred())
    told: list[Any] = []

    def again(failure: Failure) -> Any:
        told.append(failure.type)
        d = world.central.send("shop", "again")
        return d.addCallback(lambda receipt: receipt.acknowledged().addErrback(again))

    world.done(world.central.send("shop", "first")).acknowledged().addErrback(again).addErrback(
        lambda failure: told.append(failure.type)
    )
    world.run(0.5)
    if ends == "it is killed":
        world.kill("shop")
    elif ends == "the central stops":
        world.done(world.central.stopService())
    else:
        world.kill("shop")
        world.run(0.5)
        dial(world).say(Hello(20_050, id="shop"))
    world.until(lambda: len(told) == 2 or told[2:], 60.0)
    assert set(told) <= {RemoteLeft, NotJoined}
    if ends != "it comes back without acks":
        assert told == [RemoteLeft, NotJoined]


@pytest.mark.parametrize("timeout", [60.0, float("inf")])
def test_a_remote_that_the_central_did_not_reach_for_a_while_says_hello_again(
    timeout: float,
) -> None:
    """Its own connection stood all the time: it cannot know that it has left, unless that ends."""
    world = SessionsWorld(heartbeat=1.0, limits=SessionLimits(redial_seconds=3.0))
    remote = joined(world, heartbeat_timeout=timeout)
    server = world.net.servers.pop(20_001)
    left = world.central.when_left("shop")
    break_off(world, "central", 20_001)
    world.done(left)
    late = world.done(remote.send("while it had left"))
    world.net.servers[20_001] = server
    world.until(lambda: "shop" in world.central.remotes and world.central.remotes["shop"].is_joined)
    world.done(late.acknowledged())
    world.done(world.done(remote.send("later")).acknowledged())
    assert [m.content for m in world.at_central] == ["while it had left", "later"]


@pytest.mark.parametrize("was_there", [True, False])
def test_the_time_of_a_joined_stands_still_while_a_message_of_who_was_there_arrives(
    was_there: bool,
) -> None:
    world = SessionsWorld(heartbeat=1.0, limits=SessionLimits(join_timeout=5.0))
    servers = listen(world, 20_000)
    peer = dial(world)
    peer.say(Hello(20_000, id="shop", acks=True))
    world.until(lambda: servers and servers[0].items())
    session = world.central.remotes["shop"].session
    if was_there:
        peer.say(Joined(session))
        world.until(lambda: world.central.remotes["shop"].is_joined)
        break_off(world, "central", 20_000)
        world.until(lambda: len(servers) == 2 and servers[1].items())
    payload = message("x" * 1_000, session, 1)
    data = len(payload).to_bytes(4, "big") + payload
    for at in range(0, len(data), 50):
        peer.transport.write(data[at : at + 50])  # type: ignore[union-attr]  # it is connected
        world.run(1.0, step=0.05)
    assert ("shop" in world.central.remotes) is was_there
    beats = [item for item in servers[-1].items() if isinstance(item, Heartbeat)]
    assert len(beats) > 10 if was_there else not beats  # or it would end by silence meanwhile
    if was_there:
        peer.say(Joined(session))
        world.until(lambda: world.central.remotes["shop"].is_joined)
        assert [m.content for m in world.at_central] == ["x" * 1_000]
        break_off(world, "central", 20_000)
        world.until(lambda: "shop" not in world.central.remotes, 30.0)  # and it is dialled in vain


@pytest.mark.parametrize("broken", ["what is dialled", "both"])
@pytest.mark.parametrize("handling", [0.0, 8.0])
def test_a_shutdown_that_may_be_lost_with_its_connection_is_told_again(
    handling: float, broken: str
) -> None:
    """Where the remote's own connection stands, who was not told takes itself for joined."""
    limits = SessionLimits(join_timeout=3.0)
    world = SessionsWorld(heartbeat=1.0, limits=limits)
    handled: list[Any] = []
    at_work: list[Deferred[None]] = []

    def handle(message: Any) -> Any:
        handled.append(message.content)
        if handling:
            at_work.append(Deferred())
            return at_work[0]
        return None

    remote = joined(world, on_message=handle, heartbeat_timeout=float("inf"), limits=limits)
    receipt = world.done(world.central.send("shop", "before"))
    told = world.central.shutdown("shop", "enough")
    if handling:  # it has all of it when the connection breaks, and is slow to answer
        world.until(lambda: at_work)
        world.run(0.5)
    break_off(world, "central", 20_001)
    if broken == "both":
        break_off(world, "shop", SessionsWorld.CENTRAL_PORT)
    world.run(handling)
    if handling:
        at_work[0].callback(None)
    world.done(told)
    world.done(receipt.acknowledged())
    ended = world.done(remote.when_shut_down())
    assert (ended.by, ended.reason) == ("central", "enough")
    assert handled == ["before"]
    assert not world.central.remotes


@pytest.mark.parametrize("is_there", [True, False])
def test_a_remote_that_is_told_to_end_says_so_when_its_client_is_back(is_there: bool) -> None:
    world = SessionsWorld(heartbeat=1.0)
    at_work: list[Deferred[None]] = []

    def handle(message: Any) -> Deferred[None]:
        at_work.append(Deferred())
        return at_work[0]

    remote = joined(world, on_message=handle, limits=SessionLimits(stop_seconds=5.0))
    receipt = world.done(world.central.send("shop", "before"))
    told = world.central.shutdown("shop")
    world.until(lambda: at_work)
    world.run(0.5)
    if is_there:
        break_off(world, "shop", SessionsWorld.CENTRAL_PORT)
    else:
        world.kill("central")
    world.until(lambda: not remote.is_joined)
    ended = remote.when_shut_down()
    at_work[0].callback(None)
    if is_there:
        world.done(told)
        world.done(receipt.acknowledged())
    assert world.done(ended, 6.0).by == "central"  # for stop_seconds it waits, and no longer


def test_a_remote_that_says_nothing_any_more_when_it_is_to_end_has_left() -> None:
    world = SessionsWorld(heartbeat=1.0, limits=SessionLimits(join_timeout=3.0))
    servers = listen(world, 20_000)
    peer = dial(world)
    peer.say(Hello(20_000, id="shop", acks=True))
    world.until(lambda: servers and servers[0].items())
    peer.say(Joined(world.central.remotes["shop"].session))
    world.until(lambda: world.central.remotes["shop"].is_joined)
    told = world.central.shutdown("shop")
    break_off(world, "central", 20_000)
    with pytest.raises(RemoteLeft):
        world.done(told, 7.0)
    assert not world.central.remotes


def test_who_waits_for_a_key_is_not_held_up_by_others_who_join_and_leave() -> None:
    world = SessionsWorld()
    joined(world)
    member = world.central.remotes["shop"]
    waits: list[Deferred[Any]] = [world.central.when_joined("z"), world.central.when_left("z")]
    for _ in range(3_000):
        world.central.member_joined(member)
        world.central._leaves.fire("shop", (member, "why"))
    for wait in waits:
        told: list[Any] = []
        wait.addErrback(told.append)
        wait.cancel()
        assert told[0].check(CancelledError)
    for n in range(1_000):
        world.central.when_joined(f"z{n}").addErrback(lambda _: None).cancel()
    assert len(world.central._joins._waiting) < 50
    other = world.central.when_joined("other")
    any_one, left = world.central.when_joined(), world.central.when_left("other")
    joined(world, "other")
    assert world.done(other).key == world.done(any_one).key == "other"
    world.done(world.central.shutdown("other"))
    assert world.done(left)[0].key == "other"


# --- who speaks


def test_who_says_to_be_a_remote_and_has_not_proven_it_speaks_for_himself_only() -> None:
    world = SessionsWorld()
    remote = joined(world)
    impostor = dial(world)
    impostor.say(Hello(20_009, id="shop", acks=True), message("I am the shop"))
    stranger = dial(world)
    stranger.say(Hello(20_010, id="till", acks=True), message("I am the till"))
    world.run(1.0)
    world.done(world.done(remote.send("the shop")).acknowledged())
    assert [(m.key, m.content) for m in sorted(world.at_central, key=lambda m: m.content)] == [
        (None, "I am the shop"),
        (None, "I am the till"),
        ("shop", "the shop"),
    ]


@pytest.mark.parametrize(("count", "is_one"), [(82, True), (83, False)])
def test_an_id_is_so_short_that_a_receiver_can_have_it(count: int, is_one: bool) -> None:
    id_ = "\u20ac" * count
    fields = {"type": "hello", "port": 5_000, "id": id_}
    assert ID_BYTES_MAX == NAME_BYTES_MAX - len(PREFIX)
    if is_one:
        assert check_id(id_) == id_
        assert control_of(fields) == Hello(5_000, id=id_)
    else:
        for check in (lambda: check_id(id_), lambda: control_of(fields)):
            with pytest.raises(BadControl, match="id: 249 bytes, at most 247"):
                check()


# --- who ends


@pytest.mark.parametrize("side", ["remote", "central"])
def test_what_handlers_send_while_a_side_ends_leaves_however_much_that_is(side: str) -> None:
    gate: Deferred[None] = Deferred()
    begun: list[Any] = []

    async def handle(message: Any) -> None:
        begun.append(message)
        await gate
        for number in range(100):
            await send([number, "x" * 50_000])

    at_central: dict[str, Any] = {"on_message": handle} if side == "central" else {}
    at_remote: dict[str, Any] = {"on_message": handle} if side == "remote" else {}
    world = SessionsWorld(**at_central)
    remote = joined(world, **at_remote)
    send: Any = remote.send if side == "remote" else lambda c: world.central.send("shop", c)
    ask: Any = remote.send if side == "central" else lambda c: world.central.send("shop", c)
    ends = remote if side == "remote" else world.central
    world.done(ask("go"))
    world.until(lambda: begun)
    stopped = ends.stopService()
    world.run(0.5)
    gate.callback(None)
    world.done(stopped)
    world.run(2.0)
    got = world.at_central if side == "remote" else world.at["shop"]
    assert [m.content[0] for m in got] == list(range(100))


def test_what_is_sent_without_acknowledgements_while_nobody_is_there_waits_for_the_next() -> None:
    world = SessionsWorld()
    remote = joined(world, acks=False, heartbeat_timeout=1e6)
    for number in range(3):
        world.done(remote.send(number))
    world.run(0.5)
    world.kill("central")
    world.run(0.5)
    world.done(remote.send(3))
    world.run(1.0)  # nobody looks at the kernel of no connection
    world.begin_central()
    world.at_central.clear()
    world.until(lambda: [m.content for m in world.at_central] == [0, 1, 2, 3], 60.0)


def test_a_welcome_is_answered_by_nobody_else() -> None:
    """A session's name is the proof: it is said over the connection that was dialled back only."""
    world = SessionsWorld()
    servers = listen(world, 20_000)
    dial(world).say(Hello(20_000, acks=True))
    world.until(lambda: servers and servers[0].items())
    (welcome,) = servers[0].items()
    assert isinstance(welcome, Welcome)
    stranger = dial(world)
    stranger.say(Joined(welcome.session))
    world.run(0.5)
    assert not world.central.remotes[HOST, 20_000].is_joined
    assert not stranger.is_open


# --- acknowledgements are heard, whoever waits for them


@pytest.mark.parametrize("side", ["central", "remote"])
@pytest.mark.parametrize(
    "limits",
    [
        SessionLimits(unhandled_messages=20),
        SessionLimits(unhandled_messages=1),
        SessionLimits(unhandled_bytes=3_000),
        SessionLimits(unhandled_bytes=3_000, thread_bytes=5_000),
    ],
    ids=str,
)
def test_a_handler_that_waits_for_the_answer_of_who_has_much_to_say_gets_it(
    side: str, limits: SessionLimits
) -> None:
    async def handle(message: Any) -> None:
        receipt = await answer(message.content[0])
        await receipt.acknowledged()

    here: dict[str, Any] = {"limits": limits, "on_message": handle}
    there: dict[str, Any] = {"limits": SessionLimits()}
    world = SessionsWorld(**(here if side == "central" else there))
    remote = joined(world, **(there if side == "central" else here))
    answer: Any = remote.send if side == "remote" else lambda c: world.central.send("shop", c)
    ask: Any = remote.send if side == "central" else lambda c: world.central.send("shop", c)
    receipts = [world.done(ask([n, "x" * (n % 7) * 700])) for n in range(200)]
    for receipt in receipts:
        world.done(receipt.acknowledged())
    if side == "remote":
        assert [m.content for m in world.at_central] == list(range(200))


def test_a_remote_that_waits_for_a_central_that_is_gone_ends_by_silence(
    logged_failures: list[LogEvent],
) -> None:
    world = SessionsWorld(heartbeat=1.0)

    async def handle(message: Any) -> None:
        receipt = await remote.send(message.content)
        await receipt.acknowledged()

    limits = SessionLimits(unhandled_messages=5)
    remote = joined(world, heartbeat_timeout=5.0, limits=limits, on_message=handle)
    world.central._handlers._function = lambda message: Deferred()
    for number in range(50):
        world.done(world.central.send("shop", number))
    world.run(2.0)
    world.kill("central")
    assert world.done(remote.when_shut_down(), 20.0).by == "silence"
    assert {event["log_failure"].type for event in logged_failures} == {RemoteLeft}
    logged_failures.clear()


def test_handlers_that_wait_for_another_remote_hear_of_it_however_much_is_unhandled() -> None:
    limits = SessionLimits(decoding_bytes=20_000, unhandled_bytes=10_000)
    gate: Deferred[None] = Deferred()

    async def handle(message: Any) -> None:
        receipt = await world.central.send("slow", message.content[0])
        await receipt.acknowledged()

    async def slowly(message: Any) -> None:
        await gate

    world = SessionsWorld(limits=limits, on_message=handle)
    remotes = [joined(world, name) for name in "abcdef"]
    slow = joined(world, "slow", on_message=slowly)
    receipts = [world.done(remote.send([n, "x" * 3_000])) for n in range(9) for remote in remotes]
    receipts += [world.done(slow.send([n, "y" * 3_000])) for n in range(9)]
    world.run(2.0)
    held = sum(inbound._held_bytes for inbound in world.central._listener._connections)
    assert held > limits.decoding_bytes
    late = joined(world, "late")  # and others join meanwhile
    receipts.append(world.done(late.send([0, "z"])))
    gate.callback(None)
    for receipt in receipts:
        world.done(receipt.acknowledged())
    assert world.central._listener.budget.used == 0


def test_by_coming_back_nobody_has_more_unhandled_than_before() -> None:
    """Of one connection each, but what is unhandled of the last is on the way once more."""
    limits = SessionLimits(unhandled_messages=10, decoding_bytes=1_000_000)
    gate: Deferred[None] = Deferred()
    world = SessionsWorld(limits=limits, on_message=lambda message: gate)
    remote = joined(world, heartbeat_timeout=1e6)
    receipts = [world.done(remote.send([n, "x" * 1_000])) for n in range(100)]
    for _ in range(8):
        world.run(3.0)
        break_off(world, "shop", world.CENTRAL_PORT)
    world.run(3.0)
    account = world.central.remotes["shop"].account
    assert account.incoming._taken - account.incoming.handled <= 10
    gate.callback(None)
    for receipt in receipts:
        world.done(receipt.acknowledged())
    assert len(world.at_central) == 0  # its handler was another one
    assert world.central._listener.budget.used == 0


def test_a_peer_that_says_more_than_its_window_is_not_read_from() -> None:
    limits = SessionLimits(unhandled_messages=10)
    world = SessionsWorld(limits=limits, on_message=lambda message: Deferred())
    servers = listen(world, 20_000)
    peer = dial(world)
    peer.say(Hello(20_000, id="shop", acks=True))
    world.until(lambda: servers and servers[0].items())
    (welcome,) = servers[0].items()
    assert isinstance(welcome, Welcome)
    assert welcome.window == (10, limits.unhandled_bytes)
    session = welcome.session
    peer.say(Joined(session))
    for number in range(1, 50):
        peer.say(message(number, session, number))
        world.run(0.05)
    (inbound,) = world.central._listener._connections
    assert inbound.is_proven
    assert inbound.is_paused
    assert inbound._held_messages <= 12


@pytest.mark.parametrize("window", [5, [], [1], [0, 1], [1, 0], ["1", 1], [1, 2, 3], [True, 5], {}])
def test_a_window_that_can_be_none_is_refused(window: Any) -> None:
    for fields in ({"type": "hello", "port": 5_000}, {"type": "welcome", "session": "s"}):
        with pytest.raises(BadControl, match="window"):
            control_of({**fields, "window": window})


# --- what the other side takes


@pytest.mark.parametrize("acks", [True, False])
def test_what_a_process_took_binds_nobody_who_comes_after_it(acks: bool) -> None:
    small = SessionLimits(payload_bytes=3_000, unhandled_messages=1)
    world = SessionsWorld()
    joined(world, limits=small)
    with pytest.raises(MessageTooLarge):
        world.done(world.central.send("shop", "x" * 5_000))
    world.kill("shop")
    world.run(0.5)
    got: list[Any] = []
    world.begin_remote("shop", 20_002, id="shop", acks=acks, on_message=got.append)
    world.until(lambda: world.central.remotes["shop"].address[1] == 20_002)
    for _ in range(3):  # as soon as it has said hello
        world.done(world.central.send("shop", "x" * 5_000))
    world.until(lambda: len(got) == 3, 20.0)


# --- a stop has an end


@pytest.mark.parametrize("side", ["central", "remote"])
def test_what_waits_for_the_budget_makes_a_stop_no_longer(side: str) -> None:
    limits = SessionLimits(stop_seconds=3.0, decoding_bytes=1_000)
    gates: list[Deferred[None]] = []

    def hang(message: Any) -> Deferred[None]:
        gates.append(Deferred())
        return gates[-1]

    world = SessionsWorld(limits=limits, on_message=hang)
    remote = joined(world, limits=limits, on_message=hang)
    port = SessionsWorld.CENTRAL_PORT if side == "central" else 20_001
    for _ in range(2):
        stranger = dial(world, port)
        payload = message("x" * 600)
        data = (len(payload).to_bytes(4, "big") + payload) * 5
        stranger.transport.write(data)  # type: ignore[union-attr]  # it is connected
        world.run(0.5)
    assert len(gates) == 1
    stranger.transport.abortConnection()  # type: ignore[union-attr]  # it is connected
    world.run(0.5)
    began = world.net.clock.seconds()
    world.done((world.central if side == "central" else remote).stopService())
    assert 2.9 < world.net.clock.seconds() - began < 3.5


def test_a_central_whose_stop_goes_wrong_has_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent]
) -> None:
    world = SessionsWorld()
    joined(world)
    waits: list[Deferred[Any]] = [
        world.central.when_joined("other"),
        world.central.when_left("other"),
    ]
    monkeypatch.setattr(world.central._listener, "stop", lambda: 1 / 0)
    world.done(world.central.stopService())
    for wait in waits:
        with pytest.raises(NotJoined):
            world.done(wait)
    assert [event["log_failure"].type for event in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()


# --- who may be silent


def test_a_central_that_beats_seldom_is_not_cut_off_by_a_remote_without_acknowledgements() -> None:
    """It says nothing to that one before, and it does not end for having nothing to say."""
    world = SessionsWorld(heartbeat=100.0)
    joined(world, acks=False, heartbeat_timeout=300.0)
    joins: list[Any] = []
    world.central._on_joined = joins.append
    world.run(200.0, step=0.1)
    assert joins == []
    assert world.central.remotes["shop"].last_heartbeat is not None
