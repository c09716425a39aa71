"""Sessions with a node behind the central: what is for a remote with an id outlives it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent

from msgservice.errors import NotDelivered, UnknownReceiver
from msgservice.faces.sessions.central import Central
from msgservice.faces.sessions.content.records import RecordsCodec
from msgservice.faces.sessions.durable import DurableRemotes
from msgservice.faces.sessions.envelope import ID_BYTES_MAX
from msgservice.faces.sessions.errors import NotJoined
from msgservice.faces.sessions.handlers import SessionMessage
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.remote import Remote
from msgservice.limits import Limits
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver

pytestmark = pytest.mark.timeout(120)


class Unknown:
    pass


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest_twisted.async_yield_fixture
async def node(tmp_path: Path, limits: Limits) -> AsyncIterator[Node]:
    made = Node(reactor, tmp_path / "node", limits=limits, failed=lambda error: None)
    made.startService()
    await made.when_ready()
    yield made
    await made.stopService()


@pytest_twisted.async_yield_fixture
async def central(node: Node) -> AsyncIterator[Central]:
    made = await begin_central(node, "central")
    yield made
    await end(made)


async def begin_central(node: Node, name: str, **options: Any) -> Central:
    def attach(receiver: Receiver) -> None:
        receiver.attach_through(
            lambda make_user: node.connector(make_user, receiver.name), address="in this process"
        )

    made = Central(
        reactor,
        codec=RecordsCodec(classes=(Unknown,)),  # at the central only
        node=DurableRemotes(reactor, node.client(name), attach),
        limits=SessionLimits(**{"redial_seconds": 0.2, **options}),
    )
    await made.listen()
    return made


async def end(central: Central) -> None:
    durable = central._durable
    assert durable is not None
    await central.stopService()
    await durable._client.close()


def begin(central: Central, on_message: Any, **options: Any) -> Remote:
    address = central.address
    assert address is not None
    options = {"id": "shop", "codec": RecordsCodec(), **options}
    remote = Remote(reactor, address, on_message=on_message, **options)
    remote.start()
    return remote


def hang(calls: list[Deferred[None]]) -> Deferred[None]:
    calls.append(Deferred())
    return calls[-1]


async def kill(remote: Remote) -> None:
    """End a remote as SIGKILL does: nothing more is written, or answered."""
    remote._hop.close()
    remote._sender.abort()
    if remote._silence is not None:
        remote._silence.cancel()
    await remote._listener.stop()


@pytest_twisted.ensureDeferred
async def test_an_id_that_was_never_seen_is_unknown(central: Central) -> None:
    with pytest.raises(UnknownReceiver):
        await central.send("shop", 1)


@pytest_twisted.ensureDeferred
async def test_killed_while_messages_are_in_flight_all_come_in_order_and_only_unanswered_twice(
    central: Central,
) -> None:
    first: list[int] = []
    reached: Deferred[None] = Deferred()

    def handle(message: Any) -> Any:
        first.append(message.content)
        if message.content == 7:
            reached.callback(None)
            return Deferred()  # it is at work when it is killed
        return None

    remote = begin(central, handle)
    await central.when_joined("shop")
    receipts = [await central.send("shop", number) for number in range(20)]
    await reached
    await kill(remote)
    second: list[int] = []
    # At another address: the same receiver, with what waits for it.
    again = begin(central, lambda message: second.append(message.content))
    for receipt in receipts:
        await receipt.acknowledged()
    assert again.address != remote.address
    assert first == list(range(8))
    assert second == list(range(second[0], 20))
    assert second[0] <= 7
    assert central.remotes["shop"].address == again.address
    await again.stopService()


@pytest_twisted.ensureDeferred
async def test_a_handler_that_fails_at_a_durable_remote_is_tried_again(
    central: Central, logged_failures: list[LogEvent]
) -> None:
    got: list[str] = []

    def handle(message: Any) -> None:
        got.append(message.content)
        if got == ["a"]:
            raise ValueError("not now")

    remote = begin(central, handle)
    await central.when_joined("shop")
    receipts = [await central.send("shop", text) for text in ("a", "b")]
    for receipt in receipts:
        await receipt.acknowledged()
    assert got == ["a", "a", "b"]
    assert logged_failures
    logged_failures.clear()
    await remote.stopService()


@pytest_twisted.ensureDeferred
async def test_what_is_for_a_remote_without_id_ends_with_its_session(central: Central) -> None:
    address = central.address
    assert address is not None
    got: list[int] = []
    remote = Remote(
        reactor,
        address,
        codec=RecordsCodec(),
        on_message=lambda message: got.append(message.content),
    )
    member_waits = central.when_joined()
    key = await remote.start()
    member = await member_waits
    assert member.key == key
    await (await central.send(key, 1)).acknowledged()
    left = central.when_left(key)
    await central.shutdown(key)
    await left
    with pytest.raises(Exception, match="is not joined"):
        await central.send(key, 2)
    assert got == [1]


@pytest_twisted.ensureDeferred
async def test_a_shutdown_comes_behind_all_that_is_stored_for_the_remote(central: Central) -> None:
    got: list[int] = []
    begun: Deferred[None] = Deferred()

    async def handle(message: Any) -> None:
        if message.content == 0:
            begun.callback(None)
        await deferLater(reactor, 0.03)
        got.append(message.content)

    remote = begin(central, handle)
    await central.when_joined("shop")
    for number in range(10):
        await central.send("shop", number)
    await begun
    await central.shutdown("shop", "enough")
    assert got == list(range(10))
    assert (await remote.when_shut_down()).reason == "enough"


@pytest_twisted.ensureDeferred
async def test_a_shutdown_whose_remote_left_before_its_turn_is_nothing_to_the_next_process(
    central: Central,
) -> None:
    begun: Deferred[None] = Deferred()

    def never(message: Any) -> Deferred[None]:
        begun.callback(None)
        return Deferred()

    remote = begin(central, never)
    await central.when_joined("shop")
    await central.send("shop", 0)
    await begun
    told = central.shutdown("shop")
    left = central.when_left("shop")
    await kill(remote)
    with pytest.raises(NotJoined, match="it left before"):
        await told
    await left
    got: list[int] = []
    again = begin(central, lambda message: got.append(message.content))
    await (await central.send("shop", 1)).acknowledged()  # it is behind the shutdown
    assert got == [0, 1]
    assert again.is_joined
    await again.stopService()


@pytest_twisted.ensureDeferred
async def test_what_is_stored_does_not_go_to_a_remote_that_acknowledges_nothing(
    central: Central,
) -> None:
    remote = begin(central, lambda message: None)
    await central.when_joined("shop")
    left = central.when_left("shop")
    await kill(remote)
    await left
    stored = await central.send("shop", "stored")
    dumb: list[str] = []
    other = begin(central, lambda message: dumb.append(message.content), acks=False)
    await central.when_joined("shop")
    await (await central.send("shop", "in memory")).acknowledged()
    came: list[str] = []
    again = begin(central, lambda message: came.append(message.content))
    await stored.acknowledged()
    assert came == ["stored"]
    assert dumb in ([], ["in memory"])  # its kernel had it, and that is all this wire can tell
    await other.stopService()
    await again.stopService()


@pytest_twisted.ensureDeferred
async def test_the_first_message_of_a_new_remote_can_be_answered(tmp_path: Path) -> None:
    node = Node(reactor, tmp_path / "node")
    node.startService()
    await node.when_ready()
    client = node.client("central")

    def attach(receiver: Receiver) -> None:
        receiver.attach_through(
            lambda make_user: node.connector(make_user, receiver.name), address="in this process"
        )

    async def answer(message: Any) -> None:
        for number in range(3):
            await made.send(message.key, number)

    made = Central(reactor, on_message=answer, node=DurableRemotes(reactor, client, attach))
    await made.listen()
    assert made.address is not None
    for name in ("one", "two", "three"):
        got: list[SessionMessage] = []
        remote = Remote(reactor, made.address, id=name, on_message=got.append)
        asked = await remote.send("question")
        await remote.start()
        await asked.acknowledged()
        await (await made.send(name, 3)).acknowledged()
        assert [message.content for message in got] == [0, 1, 2, 3]
        await remote.stopService()
    await made.stopService()
    with pytest.raises(NotJoined, match="the central has ended"):
        await made.send("one", 4)
    await client.close()
    await node.stopService()
    with pytest.raises(NotJoined, match="the central has ended"):
        await made.send("one", 5)


@pytest.mark.parametrize("limits", [Limits(retry_delay_min=90.0, retry_delay_max=90.0)])
@pytest_twisted.ensureDeferred
async def test_a_remote_that_is_back_gets_at_once_what_it_had_when_it_went_away(
    central: Central, limits: Limits
) -> None:
    receipt = None
    for _ in range(4):
        begun: list[Deferred[None]] = []
        remote = begin(central, lambda message, begun=begun: hang(begun))
        await central.when_joined("shop")
        receipt = receipt or await central.send("shop", "work")
        while not begun:
            await deferLater(reactor, 0)
        left = central.when_left("shop")
        await kill(remote)
        await left
    last = begin(central, lambda message: None)
    assert receipt is not None
    await receipt.acknowledged()
    await last.stopService()


@pytest.mark.parametrize("limits", [Limits(max_attempts=1)])
@pytest_twisted.ensureDeferred
async def test_a_departure_with_a_message_that_was_not_sent_is_no_attempt(
    central: Central, limits: Limits
) -> None:
    got: list[str] = []
    remote = begin(central, None)
    await central.when_joined("shop")
    left = central.when_left("shop")
    await kill(remote)
    member = central.remotes["shop"]
    while member.is_joined:
        await deferLater(reactor, 0)
    receipt = await central.send("shop", "work")  # handed over, and nobody is there
    durable = central._durable
    assert durable is not None
    while not durable._awaited:
        await deferLater(reactor, 0)
    await left
    last = begin(central, lambda message: got.append(message.content))
    await receipt.acknowledged()
    assert got == ["work"]
    await last.stopService()


@pytest.mark.parametrize("limits", [Limits(max_attempts=2, retry_delay_min=0.01)])
@pytest_twisted.ensureDeferred
async def test_a_failure_whose_answer_is_lost_with_its_connection_is_no_acknowledgement(
    central: Central, limits: Limits, logged_failures: list[LogEvent]
) -> None:
    calls: list[Deferred[None]] = []
    remote = begin(central, lambda message: hang(calls))
    await central.when_joined("shop")
    receipt = await central.send("shop", "work")
    for attempt in range(2):
        while len(calls) <= attempt:
            await deferLater(reactor, 0)
        wire: Any = remote._sender._wire
        wire.transport.abortConnection()
        while remote._sender.is_connected:
            await deferLater(reactor, 0)
        calls[attempt].errback(ValueError("not now"))
    with pytest.raises(NotDelivered, match="ValueError: not now"):
        await receipt.acknowledged()
    behind = await central.send("shop", "behind")
    while len(calls) < 3:
        await deferLater(reactor, 0)
    calls[2].callback(None)
    await behind.acknowledged()
    assert len(logged_failures) == 2
    logged_failures.clear()
    await remote.stopService()


@pytest_twisted.ensureDeferred
async def test_a_message_that_the_remote_does_not_take_for_its_size_is_dead_and_the_next_comes(
    central: Central,
) -> None:
    got: list[str] = []
    remote = begin(
        central,
        lambda message: got.append(message.content),
        limits=SessionLimits(payload_bytes=8192),
    )
    await central.when_joined("shop")
    large = await central.send("shop", "x" * 10_000)
    next_one = await central.send("shop", "next")
    with pytest.raises(NotDelivered, match="message of 10"):
        await large.acknowledged()
    await next_one.acknowledged()
    assert got == ["next"]
    await remote.stopService()


@pytest.mark.parametrize("limits", [Limits(max_attempts=3, retry_delay_min=0.01)])
@pytest_twisted.ensureDeferred
async def test_a_message_that_the_remote_cannot_read_is_a_dead_letter_and_the_next_comes(
    central: Central, limits: Limits
) -> None:
    got: list[str] = []
    remote = begin(central, lambda message: got.append(message.content))
    await central.when_joined("shop")
    session = remote.session
    unread = await central.send("shop", Unknown())
    behind = await central.send("shop", "behind")
    with pytest.raises(NotDelivered, match="BadPayload"):
        await unread.acknowledged()
    await behind.acknowledged()
    assert got == ["behind"]
    assert remote.session == session  # no connection has ended of it
    await remote.stopService()


@pytest.mark.parametrize("limits", [Limits(max_attempts=3, retry_delay_min=0.01)])
@pytest_twisted.ensureDeferred
async def test_a_message_that_kills_each_process_which_gets_it_is_a_dead_letter(
    node: Node, limits: Limits
) -> None:
    central = await begin_central(node, "central", redial_seconds=30.0)  # nobody leaves meanwhile
    got: list[str] = []
    killed: list[Deferred[None]] = []

    def handle(message: Any) -> Any:
        if message.content != "poison":
            got.append(message.content)
            return None
        had, killed[-1] = killed[-1], Deferred()
        had.callback(None)
        return Deferred()

    dies: Deferred[None] = Deferred()
    killed.append(dies)
    remote = begin(central, handle)
    await central.when_joined("shop")
    poison = await central.send("shop", "poison")
    behind = await central.send("shop", "behind")
    for _ in range(limits.max_attempts):
        await dies
        dies = killed[-1]
        await kill(remote)
        remote = begin(central, handle)  # as its supervisor does
    with pytest.raises(NotDelivered):
        await poison.acknowledged()
    await behind.acknowledged()
    assert got == ["behind"]
    await remote.stopService()
    await end(central)


# --- the receiver of a remote, and who else has a hand in it


async def cut(central: Central, name: str = "shop") -> None:
    """Break off what the central has dialled; fires when the remote is there again."""
    wire = central.remotes[name]._sender._wire
    assert wire is not None
    joining = central.when_joined()  # before: it may be back before anybody looks
    wire.transport.abortConnection()  # type: ignore[union-attr]  # it is connected
    while (await joining).id != name:
        joining = central.when_joined()


@pytest_twisted.ensureDeferred
async def test_a_receiver_that_was_removed_is_made_again_when_its_remote_joins_again(
    central: Central, node: Node
) -> None:
    got: list[Any] = []
    remote = begin(central, lambda message: got.append(message.content))
    await central.when_joined("shop")
    await (await central.send("shop", 1)).acknowledged()
    await node.parts.receivers.remove("session.shop", 0)  # as an operator does
    with pytest.raises(UnknownReceiver):
        await central.send("shop", 2)
    await cut(central)
    await (await central.send("shop", 3)).acknowledged()
    assert got == [1, 3]
    await remote.stopService()


@pytest_twisted.ensureDeferred
async def test_a_shutdown_says_that_the_receiver_was_removed_while_it_waited(
    central: Central, node: Node
) -> None:
    remote = begin(central, lambda message: None)
    await central.when_joined("shop")
    await (await central.send("shop", 1)).acknowledged()
    await node.parts.receivers.pause("session.shop", True, "an operator's")
    told = central.shutdown("shop")
    while not (await node.parts.receivers.account("session.shop")).queued:
        await deferLater(reactor, 0.01)
    await node.parts.receivers.remove("session.shop")
    with pytest.raises(NotJoined, match="removed"):
        await told
    await remote.stopService()


@pytest_twisted.ensureDeferred
async def test_a_remote_that_was_at_another_central_of_the_node_gets_its_messages_here_again(
    node: Node,
) -> None:
    a = await begin_central(node, "a", redial_seconds=30.0)
    b = await begin_central(node, "b", redial_seconds=30.0)
    got: list[Any] = []

    def handle(message: Any) -> None:
        got.append(message.content)

    for number, central in enumerate((a, b, a, b)):  # within redial_seconds
        remote = begin(central, handle)
        await central.when_joined("shop")
        receipt = await central.send("shop", number)
        await receipt.acknowledged().addTimeout(20, reactor)
        await kill(remote)
    assert got == list(range(4))
    await end(a)
    await end(b)


@pytest_twisted.ensureDeferred
async def test_a_shutdown_that_comes_out_at_another_central_fails_where_it_was_asked_for(
    node: Node,
) -> None:
    a, b = await begin_central(node, "a"), await begin_central(node, "b")
    first = begin(a, lambda message: None)
    await a.when_joined("shop")
    second = begin(b, lambda message: None)
    await b.when_joined("shop")
    await (await b.send("shop", 1)).acknowledged()
    told = a.shutdown("shop").addTimeout(20, reactor)
    with pytest.raises(NotJoined, match="another central"):
        await told
    assert (first.is_joined, second.is_joined) == (True, True)
    for remote in (first, second):
        await remote.stopService()
    await end(a)
    await end(b)


@pytest_twisted.ensureDeferred
async def test_a_shutdown_whose_turn_comes_while_the_connection_is_broken_is_told_behind_that(
    central: Central,
) -> None:
    gates: list[Deferred[None]] = []
    remote = begin(central, lambda message: hang(gates), heartbeat_timeout=60.0)
    member = await central.when_joined("shop")
    receipt = await central.send("shop", 1)
    while not gates:
        await deferLater(reactor, 0.01)
    told = central.shutdown("shop", "enough")
    await deferLater(reactor, 0.1)
    durable = central._durable
    assert durable is not None
    real = durable._members[member.account]

    class Away:
        """The member while its connection is broken: for as long as the test says."""

        is_joined = False

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    durable._members[member.account] = Away()  # type: ignore[assignment]  # it stands for it
    gates[0].callback(None)
    await receipt.acknowledged()
    await deferLater(reactor, 0.2)
    assert not told.called
    durable.attach(real)
    await told
    assert (await remote.when_shut_down()).reason == "enough"


@pytest.mark.parametrize(
    "limits",
    [Limits(max_bytes=4 * 1024**2, backlog_bytes=256 * 1024, max_batch=2**16, window_bytes=2**16)],
)
@pytest_twisted.ensureDeferred
async def test_a_remote_that_is_away_and_full_holds_up_no_other(central: Central) -> None:
    gone = begin(central, lambda message: None, id="shop_a")
    await central.when_joined("shop_a")
    left = central.when_left("shop_a")
    await gone.stopService()
    await left
    got: list[Any] = []
    waiting: list[Deferred[Any]] = []
    while not waiting or waiting[-1].called:  # until its backlog is full
        waiting.append(central.send("shop_a", b"x" * 10_000).addErrback(lambda _: None))
        await deferLater(reactor, 0.05)
        assert len(waiting) < 100
    largest = "\u00fc" * 123 + "x"
    assert len(largest.encode()) == ID_BYTES_MAX
    # Each can be part of a subject, and that of no other.
    names = ["shop", "shop.a", "shop*a", "shop>a", "shop*", largest, "." * 200]
    for name in names:
        remote = begin(central, lambda message: got.append(message.content), id=name)
        await central.when_joined(name)
        await (await central.send(name, "on").addTimeout(20, reactor)).acknowledged()
        await central.shutdown(name).addTimeout(20, reactor)
        await remote.when_shut_down()
    assert got == ["on"] * len(names)


@pytest_twisted.ensureDeferred
async def test_what_a_process_takes_is_asked_of_the_one_that_is_there(node: Node) -> None:
    """What is larger waits while its connection is broken, for who takes it."""
    central = await begin_central(node, "central", redial_seconds=30.0)
    got: list[Any] = []
    small = begin(central, lambda message: None, limits=SessionLimits(payload_bytes=3_000))
    await central.when_joined("shop")
    with pytest.raises(NotDelivered, match="message of 5"):
        await (await central.send("shop", "x" * 5_000)).acknowledged()
    await kill(small)
    while central.remotes["shop"].is_joined:
        await deferLater(reactor, 0.01)
    receipt = await central.send("shop", "y" * 5_000)
    await deferLater(reactor, 0.3)  # its receiver is attached still
    assert "shop" in central.remotes
    again = begin(central, lambda message: got.append(message.content))
    await receipt.acknowledged().addTimeout(20, reactor)
    assert got == ["y" * 5_000]
    await again.stopService()
    await end(central)
