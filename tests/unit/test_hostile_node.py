"""A client with a login against a node that is none: it says nothing of itself, and loses nothing.

The node says any frames in any order, and goes through a login as far as one can who does not know
the password: it may even ask for iterations, answer with a proof that it made up, or hang up.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.client.client import Client
from msgservice.core.frames import (
    Ack,
    AudienceFrame,
    Auth,
    Bye,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    Ping,
    Pong,
    Request,
    ResumeFrame,
    Routed,
    StatusFrame,
    decode_frame,
    encode_frame,
)
from msgservice.limits import Limits
from msgservice.message import WireMessage
from msgservice.receiver.receiver import Receiver
from tests.kit.channels import Recorder
from tests.kit.knock import run_of
from tests.kit.logins import PASSWORD, QuickProver
from tests.kit.node_double import MemoryConnector

INCARNATION = "the-secret-of-this-sender"
SALT = b64encode(b"s" * 16).decode()
Says = Callable[[str], Frame]  # given what the client has begun its login with


class HostileNode:
    """A node that says what it was told to, a step for each turn; `heard`: all frames that came."""

    is_up = True

    def __init__(self, clock: Clock, says: Sequence[Says]) -> None:
        self.clock, self.limits = clock, Limits()
        self.says = says
        self.heard: list[Frame] = []
        self.raw: list[bytes] = []

    def make_user(self) -> Recorder:
        user = Recorder()

        def take(frames: list[bytes]) -> None:
            self.raw += frames
            self.heard += map(decode_frame, frames)

        def go_on(number: int) -> None:
            if number < len(self.says) and not user.is_lost:
                user.send(encode_frame(self.says[number](nonce_in(user.frames))))
                self.clock.callLater(0, go_on, number + 1)

        user.on_frames = take
        # When what the client says first has come.
        user.on_opened = lambda channel: self.clock.callLater(0.1, go_on, 0)
        return user


def nonce_in(frames: list[bytes]) -> str:
    for said in frames:
        if found := re.search(rb"r=([^,]+)", said):
            return found[1].decode()
    return "none"


def frame(said: Any) -> Says:
    return lambda nonce: said


def asks(iterations: object, *, nonce: str = "{}more", salt: str = SALT) -> Says:
    """The server's first message, which anybody can make."""
    return lambda mine: Auth(f"r={nonce.format(mine)},s={salt},i={iterations}".encode())


STEPS: list[Says] = [
    *(
        frame(one)
        for one in [
            Hello(1, "node", "i1"),
            Hello(1, "node", "i1", HelloOptions(auth=[])),
            Hello(1, "node", "i1", HelloOptions(auth=["PLAIN", "ANONYMOUS"])),
            ResumeFrame(1, []),
            ResumeFrame(100, [(200, 300)]),
            Ack([(1, 1)]),
            Nack(1, 1, 3, 0, "no"),
            Routed(1, 1, 1, 65536),
            StatusFrame(INCARNATION, "audit", 3, [(1, 1)]),
            AudienceFrame(1, ["audit"]),
            Request(1, "$node.info", run_of(WireMessage(b"{}"))),
            Ping(1),
            Pong(1),
            Bye(),
            ErrorFrame(13, "wrong user or password"),
            ErrorFrame(6, "Auth frame while greeting"),
            Auth(b""),
            Auth(b"v=" + b64encode(bytes(32))),
            Auth(b"e=other-error"),
            Auth(b"\xff\xfe"),
            Auth(b"r=,s=,i="),
            Auth(bytes(100_000)),
            Auth(b"m=ext,r=abc,s=AAAA,i=4096"),
        ]
    ),
    asks(4096),
    asks(4096, nonce="another"),
    asks(4096, nonce="{}"),
    asks(4096, salt=""),
    asks(4096, salt="not base64"),
]
NUMBERS = [0, 1, 4095, 1_000_001, 10**9, 10**30, -1, "", "4096x", "0x1000", "1e5"]


class World:
    """A producer and a receiver with a login, which dial a hostile node."""

    def __init__(self, says: Sequence[Says], **secret: str) -> None:
        self.clock = Clock()
        self.node = node = HostileNode(self.clock, says)
        self.prover = QuickProver(**(secret or {"password": PASSWORD}))
        self.computed = 0
        compute = self.prover.compute

        def counted(work: Callable[[], str]) -> Any:
            self.computed += 1
            return compute(work)

        self.prover.compute = counted  # type: ignore[method-assign] # counted as it goes by
        self.client = Client(
            reactor=self.clock,
            name="shop",
            connector_factory=lambda make_user: MemoryConnector(node, make_user),  # type: ignore[arg-type] # all that it uses of a NodeDouble
            limits=self.node.limits,
            new_incarnation=lambda: INCARNATION,
            prover=self.prover,
        )
        self.told: list[Any] = []
        self.handled: list[object] = []
        self.client.start()
        self.client.send("orders.new", b"the secret body").addBoth(self.told.append)
        self.receiver = Receiver(self.clock, name="billing", handler=self.handled.append)
        self.receiver.attach_through(
            lambda make_user: MemoryConnector(node, make_user),  # type: ignore[arg-type] # … as above
            address="memory",
            subjects=["orders.>"],
            prover=self.prover,
        )
        self.receiver.startService()

    def play(self) -> None:
        for delay in [0.0] * 5 + [0.1] + [0.0] * 20:
            self.clock.advance(delay)

    def stop(self) -> None:
        self.client.close().addErrback(lambda failure: None)
        self.receiver.stopService()
        for _ in range(100):
            self.clock.advance(1)

    def check(self) -> None:
        """Nothing that tells who it is, and nothing of what it has, was said to anybody."""
        kinds = {type(one) for one in self.node.heard}
        assert kinds <= {Auth, ErrorFrame, Bye, Ping, Pong}, kinds
        said = b"".join(self.node.raw)
        for secret in (INCARNATION, PASSWORD, "the secret body", "orders.new"):
            assert secret.encode() not in said
        assert not self.client.connected
        assert [] == [one for one in self.told if not isinstance(one, Failure)]
        assert [] == self.handled


@settings(max_examples=150)
@given(says=st.lists(st.sampled_from(STEPS), max_size=6))
@example([asks(4096), STEPS[17]])
def test_nothing_is_said_to_a_node_that_has_not_proved_itself(says: Sequence[Says]) -> None:
    world = World(says)
    world.play()
    world.check()
    assert [] == world.told  # what was handed over is held
    world.stop()
    world.check()


@settings(max_examples=50)
@given(
    iterations=st.one_of(
        st.sampled_from(NUMBERS), st.integers(-5, 4095), st.integers(1_000_001, 10**12)
    )
)
def test_no_iterations_are_computed_beyond_what_is_allowed(iterations: object) -> None:
    world = World([asks(iterations)])
    world.play()
    world.check()
    assert 0 == world.computed
    world.stop()


def test_as_many_as_are_allowed_are_computed_and_the_proof_is_looked_at() -> None:
    """Else the tests above would find nothing, whatever a client does."""
    world = World([asks(4096), frame(Auth(b"v=" + b64encode(bytes(32))))])
    world.play()
    world.check()
    assert world.computed
    assert any(b"p=" in one.data for one in world.node.heard if isinstance(one, Auth))
    world.stop()


def test_the_answer_to_a_token_is_a_login_and_nothing_else_is() -> None:
    """A token is only said where nobody reads along; who gets it may let the client in."""
    token = "ms_" + "a" * 12 + "_" + "b" * 43
    for answer in (b"x", b"v=AAAA"):
        world = World([frame(Auth(answer))], token=token)
        world.play()
        world.check()
        world.stop()
