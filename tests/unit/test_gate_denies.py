"""Nothing gets past the gate: whoever it does not let in reaches neither the log nor the directory.

A log and a directory that note each call are put into a node whose gate denies all, or which asks
for a login that nobody has; then peers come by all doors and say whatever there is, in any order.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

import msgservice
from msgservice import Receiver
from msgservice.administration import OPERATIONS
from msgservice.core.frames import (
    Ack,
    AudienceFrame,
    Auth,
    Bye,
    Cancel,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    Note,
    Ping,
    Pong,
    ReceiveOptions,
    Reply,
    Request,
    ResumeFrame,
    Routed,
    StatusFrame,
    Transfer,
)
from msgservice.credentials import NOBODY, THIS_PROCESS, Credentials
from msgservice.errors import Forbidden, MsgServiceError, NotAllowed, NotAuthenticated
from msgservice.identity.client_exchange import ClientExchange, Login
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.rules import Rules
from msgservice.identity.steps import Compute
from msgservice.identity.users import User, Users
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import WireMessage
from msgservice.node.gate import Door, Gate
from msgservice.records import Origin, ReceiverRow
from tests.kit.knock import run_of
from tests.kit.node_wire import Wire
from tests.kit.nodes import NodeWorld

LIMITS = Limits(login_delay=0.001)
PASSWORD = "the right one"
RECORD = PasswordRecord.of(PASSWORD, iterations=ITERATIONS_MIN)
ALL = Rules(send=[">"], to=[">"], receive=[">"], request=[">", "$node.>"])
USERS = Users(
    [User(name="shop", password=RECORD, rules=ALL, names=(">",)), User(name="mute")],
    secret=b"s" * 32,
)
# What a node does by itself, for nobody: asking whether there is room, and each second retention.
BY_ITSELF = {"room", "retain", "take_forgotten", "dead_bytes", "collect", "close"}


# All that is said to who is nobody: that it is there, why it ends, and that it does.
TOLD = ErrorFrame | Pong | Bye


class Noted:
    """An object whose methods are noted in `calls`, by name, before they are called."""

    def __init__(self, of: Any, calls: list[str]) -> None:
        self._of, self._calls = of, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if not callable(found) or name in BY_ITSELF:
            return found

        @functools.wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._calls.append(name)
            return found(*args, **kwargs)

        return call


class Guarded(NodeWorld):
    """A node with users and one receiver; `reached`: the calls of its log and directory."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.reached: list[str] = []
        clock = Clock()
        row = ReceiverRow(number=0, name="audit", patterns=("log.>",), owner="shop", cursor=-1)
        super().__init__(
            limits,
            log=Noted(MemoryLog(reactor=clock, limits=limits), self.reached),
            clock=clock,
            users=USERS,
            configured=[row],
        )

    def start(self) -> None:
        super().start()
        directory = self.node.parts.directory
        for name in dir(type(directory)):
            method = getattr(directory, name)
            if not name.startswith("_") and callable(method) and name not in BY_ITSELF:
                setattr(directory, name, getattr(Noted(directory, self.reached), name))
        self.reached.clear()

    def holds(self) -> object:
        """What the log and the directory hold: another value where anything has changed."""
        parts = self.node.parts
        rows = [(row.name, row.patterns, row.owner, row.cursor) for row in parts.directory]
        return rows, parts.tail.next_number, parts.directory.version


class DoorWire(Wire):
    """A connection to the node by a door, with what it shows of its peer."""

    def __init__(
        self, world: NodeWorld, credentials: Credentials, door: Door | None = None
    ) -> None:
        self.credentials = credentials
        super().__init__(world)
        if door is not None:
            peer: Any = self.connection.owner
            peer.door = door


ONE = run_of(WireMessage(b"{}"))
LOOPBACK = Credentials(how="plain", is_local=True, address="127.0.0.1", is_private=True)
SHOWN = {
    "loopback": LOOPBACK,
    "elsewhere": NOBODY,
    "tls": Credentials(
        how="tls", is_local=False, address="10.0.0.1", binding=b"b" * 32, is_private=True
    ),
    "tls, a certificate of nobody's": Credentials(
        how="tls", is_local=False, address="10.0.0.1", certificate=b"no certificate"
    ),
    "unix, another user id": Credentials(
        how="unix", is_local=True, address="uid 4711", uid=4711, is_private=True
    ),
    "udp, a key of nobody's": Credentials(
        how="udp", is_local=True, address="10.0.0.1", key_id=9, is_private=True
    ),
}
REQUESTS = [
    Request(1, subject, ONE) for subject in [f"$node.{operation.name}" for operation in OPERATIONS]
]


def receiving(name: str, *patterns: str, **more: Any) -> Hello:
    receive = ReceiveOptions(list(patterns) or None, **more)
    return Hello(1, name, "i1", HelloOptions(receive=receive))


FRAMES: list[Frame] = [
    Hello(1, "shop", "i1"),
    Hello(1, "shop", "i1", HelloOptions(status_from=1)),
    Hello(1, "mute", "i1"),
    Hello(1, "", "i1"),
    Hello(9, "shop", "i1"),
    receiving("audit"),
    receiving("audit", ">"),
    receiving("nobody", "log.>"),
    receiving("shop", "a.>", start="first"),
    ResumeFrame(1, []),
    ResumeFrame(10**6, [(10**6 + 5, 10**6 + 9)]),
    Transfer(1, "orders.new", ONE),
    Transfer(1, "orders.new", ONE, to=("audit",)),
    Transfer(1, "orders.new", ONE, origin=Origin("shop", 1, "0" * 16, ())),
    Ack([(1, 9)]),
    Nack(1, 9, 3, 0, "no"),
    Routed(1, 1, 1, 65536),
    StatusFrame("i1", "audit", 3, [(1, 1)]),
    AudienceFrame(1, ["audit"]),
    Note(1, 3, "slow"),
    Reply([]),
    Cancel([(1, 9)]),
    Ping(1),
    Pong(1),
    Bye(),
    ErrorFrame(13, "no"),
    Auth(b""),
    Auth(b"SCRAM-SHA-256\0"),
    Auth(b"SCRAM-SHA-256\0n,,n=shop,r=abc"),
    Auth(b"SCRAM-SHA-256-PLUS\0p=tls-server-end-point,,n=shop,r=abc"),
    Auth(b"SCRAM-SHA-256\0y,,n=shop,r=abc"),
    Auth(b"SCRAM-SHA-256\0n,a=shop,n=mute,r=abc"),
    Auth(b"TOKEN\0ms_abc_def"),
    Auth(b"TOKEN\0"),
    Auth(b"PLAIN\0\0shop\0the right one"),
    Auth(b"ANONYMOUS\0"),
    Auth(b"c=biws,r=abc,p=AAAA"),
    Auth(bytes(3000)),
    *REQUESTS,
]


class Guess:
    """A login by SCRAM with the client's own code: right but for the password, or cut short."""

    def __init__(self, wire: Wire, password: str) -> None:
        self.wire = wire
        self.exchange = ClientExchange(Login(user="shop", password=password), wire.credentials)
        self.heard = 0

    def begin(self) -> None:
        self.wire.say(Auth(self.exchange.begin()))

    def go_on(self) -> None:
        said = self.wire.take(Auth)
        if len(said) <= self.heard:
            return
        step = self.exchange.receive(said[self.heard].data)
        self.heard += 1
        if isinstance(step, Compute):
            self.wire.say(Auth(self.exchange.resume(step.work()).data))


# --- a node that asks for a login


@settings(max_examples=200)
@given(shown=st.sampled_from(list(SHOWN)), said=st.lists(st.sampled_from(FRAMES), max_size=8))
def test_who_has_not_logged_in_reaches_nothing(shown: str, said: Sequence[Frame]) -> None:
    world = guarded()
    before = world.holds()
    wire = DoorWire(world, SHOWN[shown])
    for frame in said:
        if not wire.is_closed:
            wire.say(frame)
    world.settle()
    assert ([], before) == (world.reached, world.holds())
    assert [] == [frame for frame in wire.sent if not isinstance(frame, TOLD | Auth)]
    assert all("internal" not in frame.reason for frame in wire.take(ErrorFrame))
    wire.connection.channel_lost("the test is over")


@functools.cache
def guarded() -> Guarded:
    """One world for all: what it holds is looked at, and nothing changes it."""
    return Guarded()


@settings(max_examples=100)
@given(
    shown=st.sampled_from(["loopback", "tls"]),
    guess=st.sampled_from([("wrong", 2), (PASSWORD, 1)]),
    behind=st.lists(st.sampled_from(FRAMES), min_size=1, max_size=4),
)
def test_a_login_that_fails_or_is_cut_short_reaches_nothing(
    shown: str, guess: tuple[str, int], behind: Sequence[Frame]
) -> None:
    password, steps = guess
    world = Guarded()
    before = world.holds()
    wire = DoorWire(world, SHOWN[shown])
    login = Guess(wire, password)
    login.begin()
    world.settle()
    if steps > 1:
        login.go_on()
    for frame in behind:
        if not wire.is_closed:
            wire.say(frame)
    world.settle(1)
    assert ([], before) == (world.reached, world.holds())
    assert [] == [frame for frame in wire.sent if not isinstance(frame, TOLD | Auth)]


def test_the_same_peer_gets_in_with_the_right_password() -> None:
    """Else the tests above would find nothing, whatever the gate does."""
    world = Guarded()
    wire = DoorWire(world, LOOPBACK)
    guess = Guess(wire, PASSWORD)
    guess.begin()
    world.settle()
    guess.go_on()
    world.settle()
    wire.say(receiving("shop", "orders.>"))
    world.settle()
    wire.say(ResumeFrame(1, []), Transfer(1, "orders.new", ONE))
    world.settle()
    assert {"append", "new_row"} <= set(world.reached)
    assert wire.take(Hello)


# --- a gate that denies all


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch) -> Guarded:
    """A node whose gate lets nobody in, from after its start on."""
    world = Guarded()

    def deny(*args: object, **kwargs: object) -> None:
        raise NotAuthenticated("nobody is let in")

    for name in ("login", "admit", "admit_dialled", "acting_for"):
        monkeypatch.setattr(Gate, name, deny)
    return world


DOORS = {"of the program": Door(asks=False), "of a user": Door(asks=False, user="shop")}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("shown", [*SHOWN, "this process"])
def test_a_gate_that_denies_all_leaves_nothing_to_any_door(
    denied: Guarded, shown: str, door: str
) -> None:
    before = denied.holds()
    credentials = SHOWN.get(shown, THIS_PROCESS)
    for frame in FRAMES:
        wire = DoorWire(denied, credentials, DOORS[door])
        wire.say(frame)
        if not wire.is_closed:
            wire.say(Hello(1, "shop", "i1"))
        denied.settle()
        assert [] == [frame for frame in wire.sent if not isinstance(frame, TOLD)]
    assert ([], before) == (denied.reached, denied.holds())


@pytest.mark.parametrize("principal", ["", "shop", "mute", "unknown"])
def test_a_gate_that_denies_all_leaves_nothing_to_faces_of_the_process(
    denied: Guarded, principal: str
) -> None:
    before = denied.holds()
    if principal == "unknown":  # no client is made of one
        unknown = Receiver(denied.clock, name="shop", handler=lambda message: None)
        with pytest.raises(NotAuthenticated):
            denied.node.client("shop", principal=principal)
        with pytest.raises(NotAuthenticated):
            denied.node.attach(unknown, ["orders.>"], principal=principal)
    name = principal if principal == "mute" else "shop"
    acts_for = "" if principal == "unknown" else principal
    client = denied.node.client(name, principal=acts_for)
    told: list[object] = []
    client.send("orders.new", b"x").addBoth(told.append)
    client.request("$node.info", {}, timeout=1).addBoth(told.append)
    receiver = Receiver(denied.clock, name="shop", handler=lambda message: None)
    denied.node.attach(receiver, ["orders.>"], principal=acts_for)
    receiver.startService()
    denied.settle(5)
    assert ([], before) == (denied.reached, denied.holds())
    assert not any(isinstance(one, Ack) for one in told)
    client.close().addErrback(lambda failure: failure.trap(MsgServiceError))
    receiver.stopService()
    denied.settle(60)


# --- a user that may nothing


@settings(max_examples=60)
@given(said=st.lists(st.sampled_from(FRAMES), max_size=10))
@example(said=[Transfer(1, "orders.new", ONE)])  # also where none of those drawn begins with it
def test_a_user_without_rules_changes_nothing_whatever_it_says(said: Sequence[Frame]) -> None:
    world = Guarded()
    before = world.holds()
    wire = DoorWire(world, LOOPBACK, Door(asks=False, user="mute"))
    wire.say(Hello(1, "mute", "i1"))
    world.settle()
    assert wire.take(Hello)
    wire.say(ResumeFrame(1, []))
    world.settle()
    for frame in said:
        if not wire.is_closed:
            wire.say(frame)
            world.settle()
    assert before == world.holds()
    assert [] == wire.take(Ack)
    for nack in wire.take(Nack):
        assert nack.code in (Forbidden.refusal_code, 0)  # 0: what nodes alone may say


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if not one.own])
def test_a_user_without_rules_asks_nothing_of_the_node(operation: Any) -> None:
    world = Guarded()
    wire = DoorWire(world, LOOPBACK, Door(asks=False, user="mute"))
    wire.say(Hello(1, "mute", "i1"))
    world.settle()
    wire.say(ResumeFrame(1, []))
    world.settle()
    world.reached.clear()
    wire.say(Request(1, f"$node.{operation.name}", ONE))
    world.settle()
    (reply,) = wire.take(Reply)
    ((_, ok, _),) = reply.replies
    assert (False, []) == (ok, world.reached)


def test_a_user_without_rules_receives_nothing() -> None:
    world = Guarded()
    before = world.holds()
    for hello in (receiving("mute", "log.>"), receiving("audit"), receiving("mute.r", "x")):
        wire = DoorWire(world, LOOPBACK, Door(asks=False, user="mute"))
        wire.say(hello)
        world.settle()
        (error,) = wire.take(ErrorFrame)
        assert NotAllowed.wire_code == error.code
    assert before == world.holds()


# --- who knows what, in the source

PACKAGE = Path(msgservice.__file__).parent


def known(path: Path) -> Iterator[str]:
    """Yield each module of the node that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("msgservice.node"):
            yield (node.module or "").removeprefix("msgservice.node.")
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("msgservice.node.")
                for alias in node.names
                if alias.name.startswith("msgservice.node.")
            )


# Outside the node, all that may know a part of it: these start and stop it.
EDGES = {"node", "service", "process"}


def test_nothing_outside_the_node_knows_a_part_of_it_that_the_gate_stands_before() -> None:
    for path in PACKAGE.rglob("*.py"):
        if "node" not in path.relative_to(PACKAGE).parts:
            assert set(known(path)) <= EDGES, path


# Who may make what others are let in with, or go past it: each new name here is a new door.
MAKERS = {
    "admit": {"greeting.py"},
    "admit_dialled": {"greeting.py"},
    "login": {"peer.py", "login.py"},
}


@pytest.mark.parametrize("method", MAKERS)
def test_a_connection_is_let_in_at_one_place(method: str) -> None:
    found = {
        path.name
        for path in (PACKAGE / "node").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
        and "gate" in ast.unparse(node.func.value)
    }
    assert found
    assert found <= MAKERS[method]
