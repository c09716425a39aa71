"""Plain Perspective Broker programs at a node: Twisted's client factory, and nothing of ours."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.cred.credentials import Anonymous, UsernamePassword
from twisted.internet import reactor as installed_reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.spread import pb
from twisted.spread.jelly import unjellyableRegistry

from msgservice import Receiver
from msgservice.identity.rules import Rules
from msgservice.identity.users import User, Users
from msgservice.limits import Limits
from msgservice.node.node import Node
from msgservice.transport.pb.channel import PbChannel
from msgservice.transport.pb.expressions import encode
from tests.kit.certificates import Authority

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
LIMITS = Limits(close_timeout=1.0, stop_timeout=4.0, login_delay=0.3)


def user(name: str, send: tuple[str, ...] = ()) -> User:
    return User(name=name, rules=Rules(send=send))


def users(*those: User) -> Users:
    digests = {one.name: hashlib.md5(f"{one.name}!".encode()).digest() for one in those}
    return Users(those, secret=bytes(32), digests=digests)


class House:
    """A node, and plain clients of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.factories: list[pb.PBClientFactory] = []

    async def start(self, listen: str = "pb:0", **options: Any) -> None:
        self.node = Node(reactor, self.folder, listen=[listen], limits=LIMITS, **options)
        self.node.startService()
        await self.node.when_ready()
        self.port = int(self.node.listeners[0].split(":")[2])

    def dial(self, context: Any = None) -> pb.PBClientFactory:
        factory = pb.PBClientFactory()
        if context is None:
            reactor.connectTCP("127.0.0.1", self.port, factory)
        else:
            reactor.connectSSL("localhost", self.port, factory, context)
        self.factories.append(factory)
        return factory

    async def login(self, name: str = "", password: str | None = None) -> Any:
        if not name:
            return await self.dial().login(Anonymous())
        said = f"{name}!" if password is None else password
        return await self.dial().login(UsernamePassword(name.encode(), said.encode()))

    async def end(self) -> None:
        for factory in self.factories:
            factory.disconnect()
        await self.node.stopService()


@pytest_twisted.async_yield_fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path / "data")
    yield house
    await house.end()


async def failure_of(call: Any) -> Exception:
    try:
        await call
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


def kind_of(error: Any) -> str:
    kind = getattr(error, "remoteType", type(error).__name__)
    return str((kind.decode() if isinstance(kind, bytes) else kind).rpartition(".")[2])


@pytest_twisted.ensureDeferred
async def test_a_message_is_on_disk_when_the_call_is_answered_with_its_position(
    house: House,
) -> None:
    await house.start()
    got: list[bytes] = []
    receiver = Receiver(reactor, name="billing", handler=lambda m: got.append(bytes(m.body)))
    house.node.attach(receiver, subjects=["orders.>"])
    await receiver.when_connected()
    perspective = await house.login()
    position = await perspective.callRemote("send", "orders.new", b"one")
    later = await perspective.callRemote(
        "send", "orders.new", "two", {"id": "2", "headers": {"a": "b"}, "to": ["billing"]}
    )
    assert 0 < position < later
    status = await perspective.callRemote("status", f"log:{position}")
    assert "billing" in repr(status)
    assert (await perspective.callRemote("status", "2"))["position"] == later
    await receiver.stop()
    assert got == [b"one", b"two"]


@pytest_twisted.ensureDeferred
async def test_55_a_perspective_has_a_promise_and_asks_what_became_of_it(house: House) -> None:
    await house.start()
    handled: Deferred[None] = Deferred()
    receiver = Receiver(reactor, name="billing", handler=lambda _: handled)
    house.node.attach(receiver, subjects=["orders.>"])
    await receiver.when_connected()
    perspective = await house.login()
    options = {"promise": {b"within": 600, "need": b"any", "otherwise": "cancel"}}
    position = await perspective.callRemote("send", "orders.new", b"one", options)
    told = (await perspective.callRemote("status", f"log:{position}"))["promise"]
    assert (told["outcome"], told["need"], told["otherwise"]) == ("open", 1, "cancel")
    decided: Deferred[None] = Deferred()

    def wake() -> None:
        if not decided.called:
            decided.callback(None)

    house.node.parts.tracker.follow(position, wake)
    handled.callback(None)
    while told["outcome"] == "open":
        await decided
        decided = Deferred()
        told = (await perspective.callRemote("status", f"log:{position}"))["promise"]
    assert ("kept", 1) == (told["outcome"], told["acknowledged"])
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_what_can_be_asked_of_a_session_can_be_asked_of_a_perspective(house: House) -> None:
    await house.start()
    perspective = await house.login()
    info = await perspective.callRemote("request", "$node.info")
    assert info["name"] == house.node.node_name
    await perspective.callRemote("request", "$node.receivers.add", {"name": "x", "subjects": [">"]})
    page = await perspective.callRemote("request", "$node.receivers.list", {})
    assert ["x"] == [one["name"] for one in page["receivers"]]
    error = await failure_of(perspective.callRemote("request", "$node.nothing"))
    assert "NoResponder" == kind_of(error)


WRONG: dict[str, tuple[str, list[Any], str]] = {
    "a subject that is none": ("send", ["a..b", b"x"], "BadSubject"),
    "a reserved subject": ("send", ["$node.info", b"x"], ""),
    "a body that is a list": ("send", ["a", [1]], "BadValue"),
    "a subject that is a number": ("send", [1, b"x"], "BadValue"),
    "an option that is not there": ("send", ["a", b"x", {"ttll": 1}], "BadValue"),
    "options that are a list": ("send", ["a", b"x", [1]], "BadValue"),
    "headers of numbers": ("send", ["a", b"x", {"headers": {"a": 1}}], "BadValue"),
    "a receiver that is not there": ("send", ["a", b"x", {"to": ["nobody"]}], "UnknownReceiver"),
    "a name that is none": ("send", ["a", b"x", {"to": [""]}], "BadName"),
    "a promise of nobody": ("send", ["a", b"x", {"promise": {"within": 1}}], "TooFewReceivers"),
    "a promise without a time": ("send", ["a", b"x", {"promise": {"need": 1}}], "BadValue"),
    "a promise of nought": ("send", ["a", b"x", {"promise": {"within": 1, "need": 0}}], "BadValue"),
    "a promise within nothing": ("send", ["a", b"x", {"promise": {"within": 0}}], "BadValue"),
    "a promise for years": ("send", ["a", b"x", {"promise": {"within": 10**9}}], "BadValue"),
    "a promise with more": ("send", ["a", b"x", {"promise": {"within": 1, "or": 1}}], "BadValue"),
    "a promise that is text": ("send", ["a", b"x", {"promise": "60"}], "BadValue"),
    "a promise and a key": ("send", ["a", b"x", {"promise": {"within": 1}, "key": "k"}], "Refused"),
    "too few arguments": ("send", ["a"], "BadValue"),
    "a method that is not there": ("sendd", ["a", b"x"], "BadValue"),
    "a private method": ("_check", [], "BadValue"),
    "content with a number as key": ("request", ["$node.info", {1: 2}], "BadValue"),
    "a message that is not there": ("status", ["log:1"], "UnknownMessage"),
    "arguments of another shape": ("request", ["$node.status", {"no": "id"}], "BadValue"),
    "a receiver that is to be paused and is not there": (
        "request",
        ["$node.receivers.pause", {"name": "nobody"}],
        "UnknownReceiver",
    ),
    "too large": ("send", ["a", bytes(630 * 1024)], ""),
}


def say_frames(port: int) -> None:
    """Speak as a client of msgservice does at `tcp:`, until the other side ends it."""
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(b"\x00\x00\x00\x35\x93\r\x03\xd9\x30" + b"x" * 48)
        with contextlib.suppress(ConnectionError):
            while peer.recv(65536):
                pass


@pytest_twisted.ensureDeferred
async def test_who_speaks_something_else_is_told_of_once(house: House) -> None:
    await house.start()
    with capturedLogs() as events:
        for _ in range(5):
            await deferToThread(say_frames, house.port)
    lines = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
    (line,) = lines
    assert line.startswith("pb:127.0.0.1:")
    assert "was turned away: the other side does not speak Perspective Broker" in line


@pytest.mark.parametrize("what", WRONG)
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_done_is_an_error_for_the_caller_alone(
    house: House, what: str, logged_failures: list[LogEvent]
) -> None:
    method, arguments, kind = WRONG[what]
    await house.start()
    perspective = await house.login()
    if what == "too large":
        assert await perspective.callRemote(method, *arguments)
        return
    error = await failure_of(perspective.callRemote(method, *arguments))
    assert kind in ("", kind_of(error))
    assert await perspective.callRemote("send", "orders.new", b"goes on")
    assert [] == logged_failures


class Point(pb.Copyable):
    """A class that the client may send, and that is registered here for something else."""


class PointCopy(pb.RemoteCopy):
    """What it becomes."""


pb.setUnjellyableForClass(Point, PointCopy)


@pytest_twisted.ensureDeferred
async def test_instances_and_references_are_an_error_for_the_caller(house: House) -> None:
    await house.start()
    perspective = await house.login()
    for value in (Point(), [Point()], {"a": Point()}):
        error = await failure_of(perspective.callRemote("send", "a", value))
        assert "not taken here" in str(error)
    assert await perspective.callRemote("send", "orders.new", b"goes on")


@pytest_twisted.ensureDeferred
async def test_many_calls_at_once_are_each_answered_with_their_own_position(house: House) -> None:
    await house.start()
    perspective = await house.login()
    positions = await gatherResults(
        [perspective.callRemote("send", "a.b", b"%d" % n) for n in range(500)]
    )
    assert sorted(set(positions)) == positions


# --- who may


@pytest_twisted.ensureDeferred
async def test_a_login_has_the_rights_of_its_user_and_no_others(house: House) -> None:
    await house.start(users=users(user("shop", send=("orders.>",)), user("other")))
    perspective = await house.login("shop")
    assert await perspective.callRemote("send", "orders.new", b"x")
    error = await failure_of(perspective.callRemote("send", "bills.new", b"x"))
    assert "Forbidden" == kind_of(error)
    error = await failure_of(perspective.callRemote("request", "$node.info"))
    assert "Forbidden" == kind_of(error)


@pytest_twisted.ensureDeferred
async def test_a_key_is_its_users_by_every_door(house: House) -> None:
    await house.start(users=users(user("shop", send=("orders.>",))))
    perspective = await house.login("shop")
    client = house.node.client("shop.web", principal="shop")
    receipt = await client.send("orders.paid", b"paid", idempotency_key="order-1")
    again = await perspective.callRemote("send", "orders.paid", b"paid", {"key": "order-1"})
    assert receipt.position == again
    error = await failure_of(
        perspective.callRemote("send", "orders.paid", b"owed", {"key": "order-1"})
    )
    assert "KeyReused" == kind_of(error)
    await client.close()


@pytest_twisted.ensureDeferred
async def test_a_key_of_what_waits_is_answered_with_what_that_is(house: House) -> None:
    await house.start(users=users(user("shop", send=("orders.>",))))
    perspective = await house.login("shop")
    client = house.node.client("shop.web", principal="shop")
    await client.send("orders.paid", b"paid", idempotency_key="order-1", delay=3600, id="first")
    again = await perspective.callRemote("send", "orders.paid", b"paid", {"key": "order-1"})
    found = await house.node.log.find_delayed(again)
    assert found is not None
    assert ("shop.web", 1) == (found.sender, found.sequence)
    await client.close()


def unfinished(item: Callable[[int], bytes], count: int) -> bytes:
    """Return the beginning of a list of so many items, without the last."""
    return encode([0] * count)[: -2 * count] + b"".join(map(item, range(1, count)))


# As much of each as a stranger may say; one more than a few, and the connection ends.
UNFINISHED = {
    "numbers": unfinished(lambda n: encode(2**440 + n), 500),
    "short strings": unfinished(lambda n: encode(b"%d" % n), 950),
    "empty lists": unfinished(lambda _: encode([]), 330),
    "lists in lists": unfinished(lambda n: encode([[[b"%d" % n]]]), 95),
    "one string": encode(bytes(64_000))[:-1],
}


@pytest.mark.parametrize("kind", UNFINISHED)
@pytest_twisted.ensureDeferred
async def test_strangers_take_no_more_memory_than_is_said(house: House, kind: str) -> None:
    """Measured at live connections: beside what a connection takes that says nothing."""
    await house.start()
    count = 16

    def all_channels() -> list[PbChannel]:
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, PbChannel)]

    before = {id(one): one for one in all_channels()}  # of tests before this one

    def channels() -> list[PbChannel]:
        return [one for one in all_channels() if id(one) not in before]

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            await deferLater(reactor, 0.01)

    opened = [socket.create_connection(("127.0.0.1", house.port)) for _ in range(count)]
    try:
        for one in opened:
            one.sendall(encode(b"pb") + encode([b"version", 6]))
        await until(lambda: len([one for one in channels() if one._expressions.completed]) == count)
        tracemalloc.start()
        for one in opened:
            await deferToThread(one.sendall, UNFINISHED[kind])
        want = len(UNFINISHED[kind])
        await until(lambda: all(one._expressions.partial == want for one in channels()))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
        assert 16 * 1024 < taken / count < 64 * 1024
        for one in opened:
            await deferToThread(one.sendall, encode([bytes(500)] * 10) * 2)
        for one in opened:
            one.settimeout(10)
            while await deferToThread(one.recv, 65536):
                pass  # until it is closed
    finally:
        tracemalloc.stop()
        for one in opened:
            one.close()


@pytest.mark.parametrize(
    ("name", "password"), [("shop", "wrong"), ("nobody", "x"), ("keyless", "")]
)
@pytest_twisted.ensureDeferred
async def test_a_wrong_login_fails_after_a_while_in_the_same_words(
    house: House, name: str, password: str
) -> None:
    keyless = user("keyless")
    digests = {"shop": hashlib.md5(b"right").digest()}
    await house.start(users=Users([user("shop"), keyless], secret=bytes(32), digests=digests))
    began = reactor.seconds()
    error = await failure_of(house.login(name, password))
    assert reactor.seconds() - began >= LIMITS.login_delay - 0.01
    assert "NotAuthenticated" == kind_of(error)
    assert "wrong user or password" in str(error)


@pytest_twisted.ensureDeferred
async def test_logins_are_not_tried_without_end(house: House) -> None:
    await house.start(users=users(user("shop")))
    factory = house.dial()
    for _ in range(5):
        wrong = UsernamePassword(b"shop", b"wrong")
        assert "NotAuthenticated" == kind_of(await failure_of(factory.login(wrong)))
    error = await failure_of(factory.login(UsernamePassword(b"shop", b"shop!")))
    assert kind_of(error) in ("NotAuthenticated", "PBConnectionLost")


@pytest_twisted.ensureDeferred
async def test_nobody_gets_in_without_a_login_where_there_are_users(house: House) -> None:
    await house.start(users=users(user("shop", send=(">",))))
    error = await failure_of(house.login())
    assert "NotAuthenticated" == kind_of(error)


@pytest_twisted.ensureDeferred
async def test_a_listener_without_login_says_whom_all_are(house: House) -> None:
    await house.start(users=users(user("shop", send=("orders.>",))), without_login={"pb:0": "shop"})
    perspective = await house.login()
    assert await perspective.callRemote("send", "orders.new", b"x")
    assert "Forbidden" == kind_of(await failure_of(perspective.callRemote("send", "b", b"x")))


@pytest_twisted.ensureDeferred
async def test_a_user_that_is_gone_is_sent_away(house: House) -> None:
    await house.start(users=users(user("shop", send=(">",)), user("other")))
    perspective = await house.login("shop")
    assert await perspective.callRemote("send", "orders.new", b"x")
    left: Deferred[None] = Deferred()
    perspective.notifyOnDisconnect(lambda _: left.callback(None))
    sent = perspective.callRemote("send", "orders.new", b"x")
    house.node.reload_users(users(user("other")))
    error = await failure_of(sent)
    assert kind_of(error) in ("NotAuthenticated", "PBConnectionLost")
    await left


@pytest_twisted.ensureDeferred
async def test_of_two_logins_of_one_connection_the_first_counts_too(house: House) -> None:
    await house.start(users=users(user("shop"), user("other")))
    factory = house.dial()
    perspective = await factory.login(UsernamePassword(b"shop", b"shop!"))
    assert await factory.login(UsernamePassword(b"other", b"other!"))
    left: Deferred[None] = Deferred()
    perspective.notifyOnDisconnect(lambda _: left.callback(None))
    house.node.reload_users(users(user("other")))
    await left.addTimeout(10, reactor)


@pytest_twisted.ensureDeferred
async def test_with_tls_a_login_is_taken(house: House, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    await house.start(
        authority.listener().replace("tls:", "pbs:"), users=users(user("shop", send=(">",)))
    )
    trusted = ssl.Certificate.loadPEM(Path(authority.ca_file).read_bytes())
    factory = house.dial(ssl.optionsForClientTLS("localhost", trustRoot=trusted))
    perspective = await factory.login(UsernamePassword(b"shop", b"shop!"))
    assert await perspective.callRemote("send", "orders.new", b"x")


@pytest_twisted.ensureDeferred
async def test_a_challenge_is_answered_once(house: House) -> None:
    await house.start(users=users(user("shop", send=(">",))))
    root = await house.dial().getRootObject()
    challenge, challenger = await root.callRemote("login", "shop")
    answer = pb.respond(challenge, b"shop!")
    assert await challenger.callRemote("respond", answer, None)
    error = await failure_of(challenger.callRemote("respond", answer, None))
    assert "answered once" in str(error)


@pytest_twisted.ensureDeferred
async def test_a_node_that_stops_ends_the_connections_of_plain_clients(house: House) -> None:
    await house.start()
    perspective = await house.login()
    assert await perspective.callRemote("send", "a", b"x")
    await house.node.stopService()
    with pytest.raises(pb.DeadReferenceError):
        perspective.callRemote("send", "a", b"y")


class PlainView(pb.RemoteCache):
    """What a plain program makes of a node's view."""

    rows: dict[str, Any]
    is_complete: bool

    def observe_rows(self, rows: Any, gone: Any, is_complete: bool) -> None:
        self.rows.update(rows)
        for name in gone:
            del self.rows[name]
        self.is_complete = is_complete


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await deferLater(reactor, 0.01)


@pytest_twisted.ensureDeferred
async def test_a_view_updates_itself_and_is_one_for_all(house: House) -> None:
    tag = "msgservice.ReceiversView"
    registry: dict[Any, Any] = unjellyableRegistry
    ours = registry.get(tag.encode())
    pb.setUnjellyableForClass(tag, PlainView)
    try:
        await house.start()
        first, second = await house.login(), await house.login()
        await first.callRemote("request", "$node.receivers.add", {"name": "x", "subjects": [">"]})
        view, other = await first.callRemote("watch"), await second.callRemote("watch")
        await until(lambda: view.is_complete and other.is_complete)
        assert ["x"] == [*view.rows] == [*other.rows]
        assert {"connected": False, "paused": False} == {
            key: view.rows["x"][key] for key in ("connected", "paused")
        }
        assert 2 == house.node.parts.perspectives.view.watchers
        await first.callRemote("request", "$node.receivers.pause", {"name": "x"})
        await until(lambda: bool(view.rows["x"]["paused"] and other.rows["x"]["paused"]))
        house.factories[1].disconnect()
        await until(lambda: house.node.parts.perspectives.view.watchers == 1)
        await first.callRemote("request", "$node.receivers.remove", {"name": "x", "confirm": 0})
        await until(lambda: not view.rows)
        view.broker = None  # or it would say, when it is collected, that it is let go
    finally:
        if ours is not None:
            registry[tag.encode()] = ours


@pytest_twisted.ensureDeferred
async def test_a_view_is_for_who_may_list_receivers(house: House) -> None:
    await house.start(users=users(user("shop", send=(">",))))
    perspective = await house.login("shop")
    error = await failure_of(perspective.callRemote("watch"))
    assert "Forbidden" == kind_of(error)
    assert 0 == house.node.parts.perspectives.view.watchers
