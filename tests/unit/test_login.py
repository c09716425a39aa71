"""A login on a connection, at both ends: what is said, in which order, and when it is refused."""

from __future__ import annotations

import pytest

from msgservice.core.frames import Auth, ErrorFrame, Frame, Hello, ResumeFrame
from msgservice.core.session import State
from msgservice.errors import ConnectionLimit, NotAuthenticated, UnexpectedFrame
from msgservice.limits import Limits
from tests.kit.node_wire import Wire
from tests.kit.nodes import NodeWorld

SMALL = Limits(unauthenticated_bytes=4096)


# --- the node


def refused(wire: Wire) -> tuple[int, str]:
    (frame,) = wire.sent
    assert isinstance(frame, ErrorFrame)
    assert wire.is_closed
    return frame.code, frame.reason


def test_a_node_without_users_says_that_it_offers_no_login() -> None:
    wire = Wire(NodeWorld())
    wire.say(Auth(b"SCRAM-SHA-256\0n,,n=shop,r=x"))
    assert (NotAuthenticated.wire_code, "no login is offered here") == refused(wire)
    assert wire.connection.session.state is State.CLOSED


@pytest.mark.parametrize(
    "behind", [Hello(1, "shop", "i1"), ResumeFrame(1, [])], ids=["hello", "resume"]
)
def test_a_login_that_is_refused_changes_nothing_of_what_comes_behind(behind: Frame) -> None:
    world = NodeWorld()
    wire = Wire(world)
    wire.say(Auth(b"x"), behind)
    world.settle()
    assert NotAuthenticated.wire_code == refused(wire)[0]
    (peer,) = world.node.parts.connections.peers
    assert ("", None) == (peer.name, peer.ingress)  # it was not greeted


def test_an_auth_behind_hello_is_out_of_its_time() -> None:
    world = NodeWorld()
    wire = Wire(world)
    wire.say(Hello(1, "shop", "i1"))
    world.settle()
    wire.sent.clear()
    wire.say(Auth(b"x"))
    assert UnexpectedFrame.wire_code == refused(wire)[0]


def test_an_auth_counts_as_all_that_a_stranger_says() -> None:
    wire = Wire(NodeWorld(SMALL))
    wire.say(Auth(b"x" * 4097))
    assert ConnectionLimit.wire_code == refused(wire)[0]
