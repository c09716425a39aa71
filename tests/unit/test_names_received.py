"""Names and subjects of the other side have their form, or the connection ends (PROTOCOL: values).

A node looks at those of its peers wherever they come in; here are those that come from a node.
"""

from __future__ import annotations

import msgspec
import pytest

from msgservice.core.frames import AudienceFrame, Frame, StatusFrame, Transfer
from msgservice.core.subjects import Checked, check_subject
from msgservice.errors import BadName, BadSubject
from msgservice.limits import MAX_BATCH_MIN
from msgservice.message import encode_bodies
from msgservice.records import Origin
from tests.kit.clients import ClientWorld
from tests.kit.nodes import NodeWorld
from tests.kit.receiver_world import Node, ThreadedClock, World

ONE = msgspec.Raw(encode_bodies([b"x"]))
BAD_NAMES = ["$n\0", "n\x1b[2J", "a b", "", "a/b"]


# --- a client


def client_error(world: ClientWorld) -> str:
    return world.client.why().error or ""


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_client_takes_no_node_of_a_name_that_cannot_be(name: str) -> None:
    world = ClientWorld(start=False)
    world.node.name = name
    world.client.start()
    world.settle()
    assert not world.client.connected
    assert "bad name" in client_error(world)


@pytest.mark.parametrize("size", [1, 1024, MAX_BATCH_MIN - 1])
def test_a_node_takes_runs_of_a_smallest_size_at_least(size: int) -> None:
    world = ClientWorld(start=False)
    world.node.max_batch = size
    world.client.start()
    world.settle()
    assert not world.client.connected
    assert f"max_batch {size}" in client_error(world)


def test_a_node_of_the_smallest_max_batch_is_sent_what_fits() -> None:
    world = ClientWorld(start=False)
    world.node.max_batch = MAX_BATCH_MIN
    world.client.start()
    world.settle()
    world.client.send("a", b"x" * (MAX_BATCH_MIN - 1024))
    world.settle()
    assert [MAX_BATCH_MIN - 1024] == [len(body) for body in world.node.bodies()]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", [StatusFrame, AudienceFrame])
def test_a_client_hears_of_no_receiver_whose_name_cannot_be(kind: type[Frame], name: str) -> None:
    world = ClientWorld()
    connection = world.client._hop.connection
    assert connection is not None
    frames: dict[type[Frame], Frame] = {
        StatusFrame: StatusFrame("incarnation-1", name, 3, [(1, 1)]),
        AudienceFrame: AudienceFrame(7, ["r1", name]),
    }
    world.node.connection.send(frames[kind])
    world.settle()
    assert isinstance(connection.session.failed, BadName)


# --- a receiver


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_receiver_takes_no_node_of_a_name_that_cannot_be(name: str) -> None:
    world = World(node=Node(ThreadedClock(), name=name))
    assert not world.receiver.handling.nodes
    assert any("bad name" in loss for loss in world.node.losses)


@pytest.mark.parametrize("subject", ["a..b\0\x1b", "", "a b", "a.*", "a.>", "a" * 256])
def test_a_receiver_handles_nothing_of_a_subject_that_cannot_be(subject: str) -> None:
    world = World()
    world.node.knows = False
    assert world.node.connection is not None
    world.node.connection.send(Transfer(1, "a", ONE))
    world.node.connection.send(Transfer(2, subject, ONE))
    world.run()
    assert any("bad subject" in loss or "Expected `str`" in loss for loss in world.node.losses)
    assert [b"x"] == world.handled


GOOD_HASH = "0" * 16


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        (Origin("shop\x1b", 1, GOOD_HASH, ("log",)), "bad name"),
        (Origin("shop", 1, "\x1b[2J", ("log",)), "bad name"),
        (Origin("shop", 1, GOOD_HASH + "0", ("log",)), "Expected `str` of length"),
        (Origin("shop", 0, GOOD_HASH, ("log",)), "Expected `int`"),
        (Origin("shop", 1 << 53, GOOD_HASH, ("log",)), "Expected `int`"),
        (Origin("shop", 1, GOOD_HASH, ("log",) * 17), "Expected `array` of length"),
        (Origin("shop", 1, GOOD_HASH, ("x" * 65,)), "Expected `str` of length"),
    ],
)
def test_a_receiver_handles_nothing_of_an_origin_that_cannot_be(origin: Origin, told: str) -> None:
    """What it says is kept beside each message, and counted nowhere: so it is bounded."""
    world = World()
    world.node.knows = False
    assert world.node.connection is not None
    world.node.connection.send(Transfer(1, "a", ONE, origin=origin))
    world.run()
    assert any(told in loss for loss in world.node.losses)
    assert [] == world.handled


# --- a node


def test_a_node_takes_no_inbox_whose_id_cannot_be() -> None:
    world = NodeWorld()
    peer = world.peer("r", receive={"subjects": ["a"]}, inbox="i\x1b")
    assert peer.lost_because is not None
    assert "bad name" in peer.lost_because


def test_what_was_checked_is_kept_up_to_a_number() -> None:
    checked = Checked(check_subject, 2)
    for subject in ("a", "b", "c"):
        checked.look(subject)
    assert {"c"} == checked.known
    with pytest.raises(BadSubject):
        checked.look("a..b")
    assert {"c"} == checked.known
