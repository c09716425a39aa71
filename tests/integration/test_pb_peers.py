"""Peers on real sockets: both dial, each calls the other, with logins, classes and errors."""

from __future__ import annotations

import gc
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent
from twisted.spread import pb

from msgservice import Limits, Node, PbPeer
from msgservice.errors import (
    BadValue,
    InsecureListener,
    NotAuthenticated,
    NotConnected,
    RemoteFailed,
)
from msgservice.transport.pb import broker
from msgservice.transport.tcp.shown import credentials_of
from tests.kit.certificates import Authority
from tests.kit.ports import free_port

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
LIMITS = Limits(
    link_delay_min=0.01, link_delay_max=0.05, close_timeout=1.0, stop_timeout=4.0, login_delay=0.2
)


class Point(pb.Copyable):
    def __init__(self, x: int) -> None:
        self.x = x


class PointCopy(pb.RemoteCopy):
    x: int


class Other(pb.Copyable):
    pass


class OtherCopy(pb.RemoteCopy):
    pass


pb.setUnjellyableForClass(Point, PointCopy)
pb.setUnjellyableForClass(Other, OtherCopy)


class Pair:
    def __init__(self) -> None:
        self.peers: list[PbPeer] = []

    def peer(self, name: str, **options: Any) -> PbPeer:
        peer = PbPeer(reactor, name=name, limits=LIMITS, **options)
        self.peers.append(peer)
        return peer

    async def connected(self, **options: Any) -> tuple[PbPeer, PbPeer]:
        east, west = self.peer("east", **options), self.peer("west", **options)
        port = await west.listen("pb:0")
        east.dial(f"pb:127.0.0.1:{port.getHost().port}")  # type: ignore[attr-defined]  # of its address
        await east.when_connected()
        await west.when_connected()
        return east, west


@pytest_twisted.async_yield_fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    for peer in pair.peers:
        await peer.stop()


async def failure_of(call: Deferred[Any]) -> Exception:
    with pytest.raises(Exception) as caught:
        await call
    return caught.value


@pytest_twisted.ensureDeferred
async def test_each_calls_what_the_other_exposes_over_the_one_connection(pair: Pair) -> None:
    east, west = await pair.connected()
    east.expose("where", lambda: "east")

    @west.expose("add")
    def add(a: int, b: int, *, c: int = 0) -> int:
        return a + b + c

    @west.expose("later")
    async def later(value: Any) -> Any:
        await deferLater(reactor, 0.01)
        return value

    assert 6 == await east.call("add", 1, 2, c=3)
    assert "east" == await west.call("where")
    value = {"a": [1, 2.5, b"x", "ü", None, True], "b": (1,)}
    assert value == await east.call("later", value)


@pytest_twisted.ensureDeferred
async def test_errors_cross_by_their_type_and_only_ours_with_what_they_say(
    pair: Pair, logged_failures: list[LogEvent]
) -> None:
    east, west = await pair.connected()

    def ours() -> None:
        raise BadValue("x", "is too small")

    def theirs() -> None:
        raise KeyError("a secret")

    west.expose("ours", ours)
    west.expose("theirs", theirs)
    west.expose("object", object)
    for name, kind, said in (
        ("ours", "msgservice.errors.BadValue", "x is too small"),
        ("theirs", "builtins.KeyError", ""),
        ("nothing", "msgservice.errors.BadValue", "not exposed"),
    ):
        error = await failure_of(east.call(name))
        assert isinstance(error, RemoteFailed)
        assert kind == error.kind
        assert said in error.reason
        assert "secret" not in str(error)
    assert 1 == len(logged_failures)
    logged_failures.clear()
    for arguments in ([1], [1, 2]):
        assert "arguments" in str(await failure_of(east.call("ours", *arguments)))
    assert [] == logged_failures


@pytest_twisted.ensureDeferred
async def test_what_is_twice_in_a_call_or_a_result_crosses_twice(pair: Pair) -> None:
    east, west = await pair.connected()
    west.expose("echo", lambda *args, **kw: [*args, *kw.values()])
    same, point = {"a": [1]}, (0, 0)
    west.expose("rows", lambda: (same, same, [point, point]))
    expected = [(0, 0), (0, 0), {"a": [1]}, [{"a": [1]}]]
    assert expected == await east.call("echo", point, point, same, last=[same])
    assert (same, same, [point, point]) == await east.call("rows")


def nested(depth: int) -> list[Any]:
    return [] if not depth else [nested(depth - 1)]


def bomb() -> list[Any]:
    made: list[Any] = []
    for _ in range(25):
        made = [made, made]
    return made


def itself() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


CROSSES_NOT: dict[str, tuple[Callable[[], Any], str]] = {
    "a large integer": (lambda: 2**500, "448 bits"),
    "a set": (lambda: {1}, "type set"),
    "an object": (object, "is of builtins.object, which has no form"),
    "very deep": (lambda: nested(40), "lists in each other"),
    "deeper than python goes": (lambda: nested(900), "form|lists in each other"),
    "large": (lambda: b"x" * 5_000_000, "takes 500"),
    "many": (lambda: list(range(100_000)), "takes"),
    "itself": (itself, "itself"),
    "many times itself": (bomb, "parts"),
    "a surrogate": (lambda: "\ud800", "surrogates"),
    "another instance": (Other, "Other"),
}


@pytest.mark.parametrize("what", CROSSES_NOT)
@pytest_twisted.ensureDeferred
async def test_what_cannot_cross_is_an_error_for_the_caller_and_hurts_no_connection(
    pair: Pair, what: str, logged_failures: list[LogEvent]
) -> None:
    east, west = await pair.connected()
    make, said = CROSSES_NOT[what]
    west.expose("echo", lambda value: value)
    west.expose("make", make)

    @west.expose("later")
    async def later() -> Any:
        await deferLater(reactor, 0)
        return make()

    there = west.other, east.other
    error = await failure_of(east.call("echo", make()))
    assert isinstance(error, BadValue)
    assert re.search(said, str(error))
    for name in ("make", "later"):
        error = await failure_of(east.call(name))
        assert isinstance(error, RemoteFailed)
        assert "msgservice.errors.BadValue" == error.kind
        assert re.search(said, error.reason)
    assert "name" in str(await failure_of(east.call("x" * 65)))
    assert 1 == await east.call("echo", 1)
    assert (west.other, east.other) == there
    assert [] == logged_failures


@pytest_twisted.ensureDeferred
async def test_instances_of_classes_that_both_have_named_cross_and_no_others(pair: Pair) -> None:
    east, west = await pair.connected(classes=[Point])
    west.expose("twice", lambda point: Point(2 * point.x))
    found = await east.call("twice", Point(4))
    assert (PointCopy, 8) == (type(found), found.x)
    west.expose("take", lambda value: None)
    assert "not taken here" in str(await failure_of(east.call("take", Other())))
    assert await east.call("take", [Point(1)]) is None
    west.expose("give", Other)
    error = await failure_of(east.call("give"))
    assert "not taken here" in str(error)
    assert await east.call("take", 1) is None


@pytest_twisted.ensureDeferred
async def test_both_listen_and_dial_and_one_connection_stays(pair: Pair) -> None:
    ports = [free_port(), free_port()]
    one, two = pair.peer("one"), pair.peer("two")
    for peer in (one, two):
        peer.expose("name", lambda name=peer.name: name)
    await one.listen(f"pb:{ports[0]}")
    await two.listen(f"pb:{ports[1]}")
    one.dial(f"pb:127.0.0.1:{ports[1]}")
    two.dial(f"pb:127.0.0.1:{ports[0]}")
    await one.when_connected()
    await two.when_connected()
    await until(lambda: one.other == two.instance and two.other == one.instance)
    assert ["two", "one"] == [await one.call("name"), await two.call("name")]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await deferLater(reactor, 0.005)


@pytest_twisted.ensureDeferred
async def test_a_peer_that_comes_back_is_dialled_again(pair: Pair) -> None:
    port = free_port()
    east, west = pair.peer("east"), pair.peer("west")
    east.dial(f"pb:127.0.0.1:{port}")
    await west.listen(f"pb:{port}")
    await east.when_connected()
    await west.stop()
    await until(lambda: not east.connected)
    again = pair.peer("west")
    again.expose("name", lambda: "again")
    await again.listen(f"pb:{port}")
    await east.when_connected()
    assert "again" == await east.call("name")


@pytest_twisted.ensureDeferred
async def test_a_login_that_is_right_comes_in_and_a_wrong_one_waits_and_does_not(
    pair: Pair,
) -> None:
    west = pair.peer("west")
    port = (await west.listen("pb:0", users={"east": "right"})).getHost().port  # type: ignore[attr-defined]  # of its address
    address = f"pb:127.0.0.1:{port}"
    for login in ({"user": "east", "password": "wrong"}, {"user": "x", "password": "right"}, {}):
        wrong = pair.peer("wrong")
        wrong.dial(address, **login)
        connector = wrong._connector
        assert connector is not None
        await until(lambda one=connector: one.last_error is not None)  # type: ignore[misc]  # bound
        why = wrong.why()
        assert isinstance(why, NotAuthenticated)
        assert why.refusal_code
        assert str(why) in ("wrong user or password", "this peer asks for a login")
        assert str(why) in str(await failure_of(wrong.call("add", 1, 2)))
        await wrong.stop()
    assert not west.connected
    east = pair.peer("east")
    east.dial(address, user="east", password="right")
    await east.when_connected()
    assert west.connected


@pytest_twisted.ensureDeferred
async def test_beyond_loopback_a_listener_needs_tls_and_users(pair: Pair) -> None:
    west = pair.peer("west")
    for options in ({}, {"users": {"east": "x"}}):
        assert isinstance(
            await failure_of(west.listen("pb:0:interface=", **options)),  # type: ignore[arg-type]  # as above
            InsecureListener,
        )


@pytest_twisted.ensureDeferred
async def test_with_tls_peers_log_in_and_call(pair: Pair, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    west, east = pair.peer("west"), pair.peer("east")
    west.expose("name", lambda: "west")
    listening = await west.listen(
        authority.listener().replace("tls:", "pbs:"), users={"east": "right"}
    )
    port = listening.getHost().port  # type: ignore[attr-defined]  # of its address
    east.dial(f"pbs:localhost:{port}:trustRoots={authority.ca_file}", user="east", password="right")
    await east.when_connected()
    assert "west" == await east.call("name")


@pytest_twisted.ensureDeferred
async def test_a_peer_hands_messages_to_a_node(pair: Pair, tmp_path: Path) -> None:
    node = Node(reactor, tmp_path / "data", listen=["pb:0"], limits=LIMITS)
    node.startService()
    await node.when_ready()
    east = pair.peer("east")
    east.dial(f"pb:127.0.0.1:{node.listeners[0].split(':')[2]}")
    await east.when_connected()
    position = await east.send("orders.new", b"one", id="1")
    assert position == (await east.call("status", "1"))["position"]
    error = await failure_of(east.send("orders..new", b"two"))
    assert isinstance(error, RemoteFailed)
    assert "msgservice.errors.BadSubject" == error.kind
    await east.stop()
    await node.stopService()


@pytest_twisted.ensureDeferred
async def test_a_peer_watches_the_receivers_of_a_node(pair: Pair, tmp_path: Path) -> None:
    node = Node(reactor, tmp_path / "data", listen=["pb:0"], limits=LIMITS)
    node.startService()
    await node.when_ready()
    for number in range(450):
        await node.add_receiver(f"r{number}", [f"a.{number}"])
    east = pair.peer("east")
    east.dial(f"pb:127.0.0.1:{node.listeners[0].split(':')[2]}")
    await east.when_connected()
    view = await east.watch()
    changes: list[str] = []
    view.changed = changes.extend
    await until(lambda: bool(view.is_complete))
    assert 450 == len(view.rows)
    await node.pause_receiver("r7", True)
    await until(lambda: bool(view.rows["r7"]["paused"]))
    assert "r7" == changes[-1]
    again = await east.watch()  # it is there already
    assert again.rows is view.rows
    del view, again
    gc.collect()
    await until(lambda: node.parts.perspectives.view.watchers == 0)
    view = await east.watch()
    await until(lambda: bool(view.is_complete))
    assert 1 == len(node.parts.perspectives._here)  # the connection that it had
    await east.stop()
    await until(lambda: node.parts.perspectives.view.watchers == 0)
    await node.stopService()


@pytest_twisted.ensureDeferred
async def test_a_view_says_when_its_connection_has_ended(pair: Pair, tmp_path: Path) -> None:
    port = free_port()
    node = Node(reactor, tmp_path / "data", listen=[f"pb:{port}"], limits=LIMITS)
    node.startService()
    await node.when_ready()
    await node.add_receiver("billing", ["orders.>"])
    east = pair.peer("east")
    east.dial(f"pb:127.0.0.1:{port}")
    await east.when_connected()
    view = await east.watch()
    await until(lambda: bool(view.is_complete))
    told: list[list[str]] = []
    view.changed = told.append
    await node.stopService()
    await until(lambda: bool(view.is_over))
    assert (False, [[]], ["billing"]) == (view.is_complete, told, list(view.rows))
    node.startService()
    await node.when_ready()
    await node.add_receiver("audit", ["orders.>"])
    await east.when_connected()
    again = await east.watch()
    await until(lambda: bool(again.is_complete))
    assert {"audit", "billing"} == set(again.rows)
    assert (False, True) == (again.is_over, view.is_over)
    await east.stop()
    assert again.is_over
    await node.stopService()


def reason_of_no_connection(peer: PbPeer) -> str:
    why = peer.why()
    assert isinstance(why, NotConnected)
    assert why.reason in str(why)
    return why.reason


@pytest_twisted.ensureDeferred
async def test_a_peer_says_why_it_is_not_connected_for_as_long_as_it_is_not(pair: Pair) -> None:
    east, west = pair.peer("east"), pair.peer("west")
    assert reason_of_no_connection(east) == "it neither dials nor listens"
    number = free_port()
    east.dial(f"pb:127.0.0.1:{number}")
    assert reason_of_no_connection(east) == f"pb:127.0.0.1:{number}: it is being dialled"
    while "refused" not in reason_of_no_connection(east):
        await deferLater(reactor, 0.01)
    port = await west.listen(f"pb:{number}")
    assert reason_of_no_connection(west) == "nobody has dialled yet"
    await east.when_connected()
    await west.when_connected()
    assert east.why() is west.why() is None
    await port.stopListening()  # type: ignore[misc]  # a Deferred, of a port of TCP
    await west.stop()
    assert reason_of_no_connection(west) == "it was stopped"
    while east.connected:
        await deferLater(reactor, 0.01)
    assert reason_of_no_connection(east)


@pytest_twisted.ensureDeferred
async def test_a_password_that_may_not_be_said_there_is_why_there_is_no_connection(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    west = pair.peer("west")
    port = await west.listen("pb:0", users={"east": "right"})
    # As to another machine without TLS.
    monkeypatch.setattr(
        broker,
        "credentials_of",
        lambda *args, **kw: replace(credentials_of(*args, **kw), is_private=False),
    )
    east = pair.peer("east")
    east.dial(f"pb:127.0.0.1:{port.getHost().port}", user="east", password="right")  # type: ignore[attr-defined]  # of its address
    while not isinstance(why := east.why(), NotAuthenticated):
        await deferLater(reactor, 0.01)
    assert str(why) == "a password is said over TLS and on this machine alone"
