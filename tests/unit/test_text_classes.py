"""What a program hands over may be of a class derived from `str`, `int` or `bytes`.

numpy.str_ and markupsafe.Markup are such classes, and msgpack has no form for them. What comes in
by a public door is `exact` from there on; what is no frame all the same fails alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from msgservice.client.client import Client
from msgservice.client.handed import HandedRun, joined
from msgservice.core.frames import AudienceFrame
from msgservice.core.runs import Run
from msgservice.core.subjects import check_name, check_pattern, check_subject, check_word, exact
from msgservice.errors import BadName, Refused
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import PLAIN, RunOptions, encode_bodies
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import ReceiverRow
from tests.kit.clients import ClientWorld, error_of, now
from tests.kit.nodes import NodeWorld


class Text(str):
    """A text with odd ideas of itself."""

    def __str__(self) -> str:
        return "something else"

    def __repr__(self) -> str:
        return "Text"


class Number(int):
    """A number of a class of its own."""


class Octets(bytes):
    """Bytes of a class of their own."""


@pytest.mark.parametrize("check", [check_subject, check_pattern, check_name, check_word, exact])
def test_a_checked_text_is_exact_with_the_characters_it_has(check: Callable[[str], str]) -> None:
    checked = check(Text("orders"))
    assert str is type(checked)
    assert "orders" == checked


@pytest.mark.parametrize("check", [check_subject, check_pattern, check_name, check_word, exact])
@pytest.mark.parametrize("value", [b"orders", 5, None, ["orders"]])
def test_what_is_no_text_is_a_type_error(check: Callable[[Any], str], value: Any) -> None:
    with pytest.raises(TypeError, match=r"^(text|subject|pattern|name) is a str, not"):
        check(value)


doing = Deferred.fromCoroutine


# --- a client

SENDS: dict[str, Callable[[Client], Deferred[Any]]] = {
    "subject": lambda client: client.send(Text("orders.new"), b"one"),
    "to": lambda client: client.send("orders.new", b"one", to=[Text("r1")]),
    "header": lambda client: client.send("orders.new", b"one", headers={Text("a"): Text("b")}),
    "id": lambda client: client.send("orders.new", b"one", id=Text("o-1")),
    "body": lambda client: client.send("orders.new", Octets(b"one")),
    "subject of many": lambda client: client.send_many(Text("orders.new"), [b"one"]),
    "to of many": lambda client: client.send_many("orders.new", [b"one"], to=[Text("r1")]),
    "bodies of many": lambda client: client.send_many("orders.new", [Octets(b"one")]),
}


@pytest.mark.parametrize("door", SENDS)
def test_a_message_goes_its_way_and_so_does_what_is_behind_it(door: str) -> None:
    world = ClientWorld()
    sent = SENDS[door](world.client)
    behind = world.client.send("orders.new", b"behind")
    world.advance(1)
    now(sent)
    now(behind)
    assert [b"one", b"behind"] == world.node.bodies()
    assert 1 == len(world.node.hellos)  # the connection it had


def test_a_subject_that_was_sent_to_before_is_exact_too() -> None:
    world = ClientWorld()
    now(world.settled(world.client.send("orders.new", b"one")))
    now(world.settled(world.client.send(Text("orders.new"), b"two", require=True)))
    assert [b"one", b"two"] == world.node.bodies()


def test_a_request_is_asked() -> None:
    world = NodeWorld()
    client = world.node.client("shop")
    asked = client.request(Text("$node.info"), {}, timeout=Number(5))
    world.settle()
    assert world.node.log_id == now(asked)["log_id"]


def test_a_client_has_an_exact_name() -> None:
    world = NodeWorld()
    client = world.node.client(Text("shop"))
    world.settle()
    assert client.connected
    assert str is type(client.name)


def test_what_has_no_form_in_a_frame_fails_alone() -> None:
    world = ClientWorld()
    hop, node = world.client._hop, world.node
    nobody: Any = object()
    messages = encode_bodies([b"x"])
    runs = [
        Run(0, 1, s, s, messages, len(messages), 0, HandedRun(s, 1, None, cost=10), options)
        for s, options in (("a", PLAIN), ("b", RunOptions((nobody,))), ("b", PLAIN), ("c", PLAIN))
    ]
    fates = [joined([run.source]) for run in runs]
    hop.number(runs)
    hop.offer(runs)
    hop.pump()
    world.advance(1)
    assert "cannot be sent" in str(error_of(fates[1], Refused))
    for fate in (fates[0], fates[2], fates[3]):
        now(fate)
    assert ["a", "b", "c"] == [one.subject for one in node.stored]
    assert 1 == len(node.hellos)
    assert 0 == hop.backlog.in_flight.messages


# --- a receiver


def test_a_receiver_attaches_with_what_it_was_given() -> None:
    world = NodeWorld()
    got: list[bytes] = []
    receiver = Receiver(
        world.clock,
        name=Text("billing"),
        handler=lambda message: got.append(message.body),
        order=Text("strict"),
        window=(Number(10), Number(10_000)),
        limits=Limits(max_batch=Number(100_000)),
        incarnation=Text("i1"),
    )
    attachment = world.node.attach(receiver, [Text("orders.>")])
    world.settle()
    assert attachment.connected
    assert str is type(receiver.name)
    client = world.node.client("shop")
    sent = client.send("orders.new", b"one")
    world.settle(1)
    now(sent)
    assert [b"one"] == got
    receiver.stop()
    world.settle()


# --- a node


def test_a_receiver_of_a_program_is_named_to_producers_and_listed() -> None:
    world = NodeWorld()
    added = doing(
        world.node.add_receiver(
            Text("archive"),
            [Text("orders.>")],
            ReceiverOptions(order=Text("none"), backlog_bytes=Number(10**6)),
            address=Text("tcp:127.0.0.1:1"),
        )
    )
    world.settle()
    row = now(added)
    told = (row.name, *row.patterns, row.address, row.options.order)
    assert [str] * 4 == [type(text) for text in told]
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert ["archive"] == shop.take(AudienceFrame)[0].receivers
    assert shop.lost_because is None
    changed = doing(
        world.node.change_receiver(
            Text("archive"),
            patterns=[Text("a.>")],
            address=Text("tcp:127.0.0.1:2"),
            on_full=Text("suspend"),
        )
    )
    paused = doing(world.node.pause_receiver(Text("archive"), True, Text("for now")))
    world.settle()
    now(changed)
    now(paused)
    ok, answer = shop.request("$node.receivers.list", {})
    assert ok, answer
    (listed,) = answer["receivers"]
    assert "tcp:127.0.0.1:2" == listed["address"]
    assert "suspend" == listed["on_full"]
    removed = doing(world.node.remove_receiver(Text("archive")))
    world.settle()
    now(removed)


def test_a_node_and_its_configured_receivers_have_exact_texts() -> None:
    world = NodeWorld()
    log = MemoryLog(reactor=world.clock, limits=world.limits)
    row = ReceiverRow(
        number=0, name=Text("archive"), patterns=(Text("orders.>"),), address=Text("tcp:[::1]:1")
    )
    for _ in range(2):  # made, and found in the log at the next start
        node = Node(
            world.clock, log, name=Text("here"), receivers=[row], failed=world.failures.append
        )
        node.startService()
        world.settle()
        (known,) = node.parts.directory
        texts = (node.node_name, known.name, *known.patterns, known.address)
        assert [str] * 4 == [type(text) for text in texts]
        stopped = node.stopService()
        world.settle(1)
        now(stopped)
    assert not world.failures


def test_a_node_cannot_have_a_name_that_nobody_would_take() -> None:
    world = NodeWorld()
    with pytest.raises(BadName):
        Node(world.clock, world.log, name="no name")
