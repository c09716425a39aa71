"""A login on a connection, at both ends: what is said, in which order, and when it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from msgservice.connection import Connection
from msgservice.core.frames import (
    VERSION,
    Auth,
    Bye,
    ErrorFrame,
    Frame,
    Hello,
    ReceiveOptions,
    ResumeFrame,
    decode_frame,
    encode_frame,
)
from msgservice.core.session import State
from msgservice.credentials import Credentials
from msgservice.errors import ConnectionLimit, NotAuthenticated, UnexpectedFrame
from msgservice.identity.steps import Say
from msgservice.limits import Limits
from msgservice.receiver.ways import Listening
from msgservice.records import Resume
from tests.kit.clients import ClientWorld, now
from tests.kit.logins import PASSWORD, LoginGate, QuickProver, users_with, users_with_a_token
from tests.kit.node_double import Pipe
from tests.kit.node_wire import Wire as NodeEnd
from tests.kit.nodes import NodeWorld
from tests.kit.receiver_world import Wire, World

SMALL = Limits(unauthenticated_bytes=4096)


# --- the node


def refused(wire: NodeEnd) -> tuple[int, str]:
    (frame,) = wire.sent
    assert isinstance(frame, ErrorFrame)
    assert wire.is_closed
    return frame.code, frame.reason


def test_a_node_without_users_says_that_it_offers_no_login() -> None:
    wire = NodeEnd(NodeWorld())
    wire.say(Auth(b"SCRAM-SHA-256\0n,,n=shop,r=x"))
    assert (NotAuthenticated.wire_code, "no login is offered here") == refused(wire)
    assert wire.connection.session.state is State.CLOSED


@pytest.mark.parametrize(
    "behind", [Hello(1, "shop", "i1"), ResumeFrame(1, [])], ids=["hello", "resume"]
)
def test_a_login_that_is_refused_changes_nothing_of_what_comes_behind(behind: Frame) -> None:
    world = NodeWorld()
    wire = NodeEnd(world)
    wire.say(Auth(b"x"), behind)
    world.settle()
    assert NotAuthenticated.wire_code == refused(wire)[0]
    (peer,) = world.node.parts.connections.peers
    assert ("", None) == (peer.name, peer.ingress)  # it was not greeted


def test_an_auth_behind_hello_is_out_of_its_time() -> None:
    world = NodeWorld()
    wire = NodeEnd(world)
    wire.say(Hello(1, "shop", "i1"))
    world.settle()
    wire.sent.clear()
    wire.say(Auth(b"x"))
    assert UnexpectedFrame.wire_code == refused(wire)[0]


def test_an_auth_counts_as_all_that_a_stranger_says() -> None:
    wire = NodeEnd(NodeWorld(SMALL))
    wire.say(Auth(b"x" * 4097))
    assert ConnectionLimit.wire_code == refused(wire)[0]


# --- both ends


def a_world(gate_users: Any = None, prover: Any = None, **options: Any) -> ClientWorld:
    """A producer with a login, and a node with a gate; not yet connected."""
    world = ClientWorld(start=False, prover=prover or QuickProver(), **options)
    world.node.gate = LoginGate(world.clock, gate_users)
    return world


def begun(world: ClientWorld) -> ClientWorld:
    world.client.start()
    world.settle()
    return world


@pytest.fixture(scope="module")
def users() -> Any:
    return users_with(shop=PASSWORD, billing="another one")


def test_a_producer_logs_in_and_sends(users: Any) -> None:
    world = begun(a_world(users))
    assert world.client.connected
    ((connection, principal),) = world.node.logged_in.items()
    channel: Any = connection.channel
    assert channel.is_identified  # by the login: this node does not say it of a HELLO
    assert ("shop", "password") == (principal.user, principal.how)
    sent = world.client.send("orders.new", b"one")
    world.settle()
    assert now(sent).position
    assert [b"one"] == world.node.bodies()


def test_a_producer_logs_in_anew_on_each_connection(users: Any) -> None:
    world = begun(a_world(users))
    world.node.cut()
    world.advance(1)
    assert world.client.connected
    assert 2 == len(world.node.logged_in)


def test_a_token_is_a_login_without_a_name() -> None:
    users, token = users_with_a_token("shop")
    world = begun(a_world(users, QuickProver("", token=token)))
    assert world.client.connected
    (principal,) = world.node.logged_in.values()
    assert "shop" == principal.user
    assert principal.how.startswith("token ")


def test_a_wrong_password_is_said_in_one_sentence_and_nothing_that_is_held_is_lost(
    users: Any,
) -> None:
    prover = QuickProver(password="wrong")
    world = begun(a_world(users, prover))
    sent = world.client.send("orders.new", b"one")
    world.advance(2)  # the node says it a second later
    assert not world.client.connected
    why = world.client.why()
    assert "the other side says: wrong user or password (code 13)" == why.error
    assert 1 == why.unanswered
    assert [] == world.node.hellos  # it has not said who it is
    world.node.gate.users = users_with(shop="wrong")  # type: ignore[union-attr]
    world.advance(3)
    assert world.client.connected
    assert now(sent).position
    assert [b"one"] == world.node.bodies()


def test_a_login_where_none_is_offered_is_an_error_and_nothing_is_said_without_one() -> None:
    world = begun(a_world(None))
    assert not world.client.connected
    assert "the other side says: no login is offered here (code 13)" == world.client.why().error
    assert [] == world.node.hellos


def test_a_node_from_before_there_were_logins_is_told_apart() -> None:
    world = ClientWorld(start=False, prover=QuickProver())

    def old(connection: Connection) -> Any:
        def hear(data: bytes) -> None:  # as it answered an AUTH
            raise UnexpectedFrame("Auth", "greeting")

        connection.auth_received = hear
        return connection

    make = world.node.make_user
    world.node.make_user = lambda: old(make())  # type: ignore[method-assign]
    begun(world)
    said = "the other side says: Auth frame while greeting (code 6)"
    assert f"no login is offered there: {said}" == world.client.why().error
    assert [] == world.node.hellos


def test_a_producer_without_a_login_is_told_that_it_needs_one(users: Any) -> None:
    world = ClientWorld(start=False)
    world.node.gate = LoginGate(world.clock, users)
    begun(world)
    assert "the other side says: this node asks for a login (code 13)" == world.client.why().error


def test_closing_while_a_login_runs_ends_at_once(users: Any) -> None:
    with_a_token, token = users_with_a_token("shop")  # whose first answer is a welcome
    for side in ("node", "client"):
        prover = QuickProver("", token=token) if side == "node" else QuickProver()
        world = a_world(with_a_token if side == "node" else users, prover)
        assert world.node.gate is not None
        waiting = world.node.gate.waiting if side == "node" else prover.waiting
        world.node.gate.is_slow = side == "node"
        prover.is_slow = side == "client"
        begun(world)
        closed = world.client.close()
        world.settle()
        now(closed)
        (late,) = waiting
        late()  # it finds nobody any more
        world.settle()
        assert {} == world.node.logged_in
        assert [] == world.node.hellos


@pytest.mark.parametrize("turns", range(14))
def test_a_connection_that_is_lost_at_any_moment_of_a_login_begins_another(
    users: Any, turns: int
) -> None:
    world = a_world(users)
    sent = world.client.send("orders.new", b"one")
    world.client.start()
    for _ in range(turns):
        world.clock.advance(0)
    world.node.cut()
    world.advance(3)
    assert world.client.connected
    assert now(sent).position
    assert [b"one"] == world.node.bodies()
    assert {hello.name for hello in world.node.hellos} == {"shop"}


def test_an_exchange_that_takes_too_long_ends_with_its_deadline(users: Any) -> None:
    world = a_world(users, limits=Limits(hello_timeout=2))
    assert world.node.gate is not None
    world.node.gate.is_slow = True
    begun(world).advance(2.4)
    assert "the login not within 2 s" == world.client.why().error


def test_a_password_is_not_used_where_others_can_read(users: Any, monkeypatch: Any) -> None:
    far = Credentials(how="plain", is_local=False, address="192.0.2.1")
    monkeypatch.setattr(Pipe, "credentials", far)
    world = begun(a_world(users))
    assert "a password is not used" in str(world.client.why().error)
    assert world.node.gate is not None
    assert [] == world.node.gate.heard
    assert [] == world.node.hellos


# --- a receiver


def test_a_receiver_logs_in_before_it_says_its_name_and_gets_its_messages(users: Any) -> None:
    world = World(attach=False)
    world.node.gate = LoginGate(world.clock, users)
    world.attach(world.node, prover=QuickProver())
    world.run()
    ((principal,), (hello,)) = world.node.logged_in, world.node.hellos
    assert ("shop", "r") == (principal.user, hello.name)
    world.node.offer([b"one"])
    world.run()
    assert [b"one"] == world.handled


def test_a_receiver_whose_login_fails_says_why_and_comes_again(users: Any) -> None:
    world = World(attach=False)
    gate = world.node.gate = LoginGate(world.clock, users)
    attachment = world.attach(world.node, prover=QuickProver(password="wrong"))
    world.run(1.5)
    assert "the other side says: wrong user or password (code 13)" == attachment.error
    assert [] == world.node.hellos
    gate.users = users_with(shop="wrong")
    world.run(3)
    assert attachment.connected
    assert "" == attachment.error


def a_way_in(world: World) -> Any:
    """What stands behind a connection that somebody has dialled to a receiver."""
    reception = world.receiver._reception
    return Listening(
        reception, world.receiver.transports, "tcp:0", ReceiveOptions(order="strict")
    ).make_user()


def test_a_receiver_is_asked_for_no_login_by_who_dials_it() -> None:
    world = World(attach=False)
    node = Wire(world.clock, a_way_in(world), world.node.make_user(), world.limits)
    node.far.send(encode_frame(Auth(b"who are you?")))
    world.run()
    assert [] == [frame for frame in node.near.sent if isinstance(frame, Auth)]
    assert isinstance(node.near.sent[-1], ErrorFrame)
    assert UnexpectedFrame.wire_code == node.near.sent[-1].code


# --- a hostile node


class Silent:
    """A client's owner that says HELLO at once, as every one does."""

    def __init__(self) -> None:
        self.lost_because = ""

    def channel_up(self, connection: Connection) -> None:
        connection.hello(Hello(VERSION, "shop", "the incarnation"))

    def greeted(self, connection: Connection, hello: Hello) -> None:
        connection.resume(Resume())

    def opened(self, connection: Connection, resume: Resume) -> None: ...
    def received(self, connection: Connection, frame: Frame) -> None: ...
    def turn_ended(self, connection: Connection) -> None: ...
    def writable(self, connection: Connection) -> None: ...
    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None: ...

    def lost(self, connection: Connection, reason: str) -> None:
        self.lost_because = reason


class FarEnd:
    """The far end of a client that logs in: the test is the node."""

    def __init__(self, prover: Any = None, limits: Limits | None = None) -> None:
        clock, limits = Clock(), limits or Limits()
        self.clock, self.frames = clock, list[Frame]()
        self.channel = Pipe(clock, "node", limits.frame_bytes)
        far = Pipe(clock, "client", limits.frame_bytes)
        self.channel.other, far.other = far, self.channel
        far.user = self  # type: ignore[assignment]  # as far as it is called here
        self.connection = Connection(
            Silent(), clock=clock, now=clock.seconds, limits=limits, prover=prover or QuickProver()
        )
        self.channel.user = self.connection
        self.connection.channel_opened(self.channel)
        self.settle()

    def settle(self) -> None:
        for _ in range(5):
            self.clock.advance(0)

    def frames_received(self, frames: list[bytes]) -> None:
        self.frames += [decode_frame(frame) for frame in frames]

    def channel_lost(self, reason: str) -> None: ...

    def say(self, *frames: Frame) -> None:
        self.connection.frames_received([encode_frame(frame) for frame in frames])
        self.settle()

    @property
    def is_given_away(self) -> bool:
        return any(isinstance(frame, Hello) for frame in self.frames)


def test_a_client_whose_login_may_not_begin_says_nothing_but_why(monkeypatch: Any) -> None:
    far_away = Credentials(how="plain", is_local=False, address="192.0.2.1")
    monkeypatch.setattr(Pipe, "credentials", far_away)
    far = FarEnd()
    (said,) = far.frames
    assert isinstance(said, ErrorFrame)
    assert NotAuthenticated.wire_code == said.code


FORGED = [
    [],
    [Auth(b"")],
    [Auth(b"v=AAAA")],
    [Auth(b"r=guessed,s=AAAA,i=4096")],
    [Auth(b"r=%s,s=AAAAAAAAAAAAAAAAAAAAAA==,i=1")],
    [Auth(b"r=%s,s=AAAAAAAAAAAAAAAAAAAAAA==,i=4096"), Auth(b"v=" + b"A" * 43 + b"=")],
    [Auth(b"r=%s,s=AAAAAAAAAAAAAAAAAAAAAA==,i=4096"), Auth(b"e=other-error")],
    [Auth(b"r=%s,s=AAAAAAAAAAAAAAAAAAAAAA==,i=99999999")],
    [Auth(b"r=%s,s=AAAAAAAAAAAAAAAAAAAAAA==,i=4096"), Auth(b"")],
    [Auth(b"\xff" * 2049)],
]


@pytest.mark.parametrize("said", FORGED, ids=range(len(FORGED)))
@pytest.mark.parametrize("then", [Hello(VERSION, "node", "log"), ResumeFrame(1, []), Bye()])
def test_nothing_that_a_node_without_the_record_says_makes_a_client_say_who_it_is(
    said: list[Auth], then: Frame
) -> None:
    far = FarEnd()
    (first,) = far.frames
    assert isinstance(first, Auth)
    nonce = first.data.rpartition(b"r=")[2] + b"more"
    for step in said:
        far.say(Auth(step.data.replace(b"%s", nonce)))
    far.say(then)
    assert not far.is_given_away
    assert far.connection.session.state in (State.CLOSED, State.CLOSING)


def test_a_token_that_was_said_is_no_reason_to_believe_more_than_an_empty_answer() -> None:
    _, token = users_with_a_token("shop")
    far = FarEnd(QuickProver("", token=token))
    far.say(Auth(b"well done"))
    assert not far.is_given_away
    assert isinstance(far.connection.session.failed, NotAuthenticated)


def test_a_node_that_goes_on_and_on_is_cut_off_by_bytes() -> None:
    class Patient(QuickProver):
        """A prover that would go on for ever."""

        def exchange(self, credentials: Credentials) -> Any:
            class Endless:
                def begin(self) -> bytes:
                    return b"x"

                def receive(self, data: bytes) -> Say:
                    return Say(b"x")

            return Endless()

    far = FarEnd(Patient(), SMALL)
    for _ in range(3):
        far.say(Auth(b"x" * 1000))
    assert far.connection.session.failed is None
    far.say(Auth(b"x" * 2000))
    assert isinstance(far.connection.session.failed, ConnectionLimit)


def test_what_is_computed_wrong_ends_this_connection_alone(logged_failures: Any) -> None:
    class Broken(QuickProver):
        def compute(self, work: Any) -> Any:
            return super().compute(lambda: str(1 // 0))

    far = FarEnd(Broken())
    (first,) = far.frames
    assert isinstance(first, Auth)
    nonce = first.data.rpartition(b"r=")[2] + b"more"
    far.say(Auth(b"r=" + nonce + b",s=AAAAAAAAAAAAAAAAAAAAAA==,i=4096"))
    assert far.connection.session.failed is not None
    assert not far.is_given_away
    assert 1 == len(logged_failures)
    logged_failures.clear()
