"""What a node says when it says no: codes that tell "later" from "never", and no ERROR for busy."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed

from msgservice import Limits, errors
from msgservice.connection import Connection
from msgservice.core.frames import BYE_PAUSED, Hello, ReceiveOptions, Reply, Request, Transfer
from msgservice.message import WireMessage, encode_messages
from msgservice.node.peer import PAUSED_STAY
from tests.kit.nodes import NodeWorld, ScriptedPeer


class Mute(ScriptedPeer):
    """Says HELLO, and nothing else."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        pass


ORDERS = {"subjects": ["orders.>"]}


def calls(first: int, count: int) -> Request:
    messages = encode_messages([WireMessage(b"{}")] * count)
    return Request(first, "$node.info", msgspec.Raw(messages))


def test_calls_beyond_what_is_answered_at_once_are_told_so_and_the_connection_goes_on() -> None:
    world = NodeWorld(Limits(requests=1000, max_batch=4096))
    shop = world.peer("shop")
    assert shop.node_hello is not None
    assert 1000 == shop.node_hello.options.requests
    takes_its_time: Deferred[Any] = Deferred()
    admin = world.node.parts.admin
    at_once = admin.answer
    admin.answer = lambda frame, local: takes_its_time  # type: ignore[method-assign,assignment]  # a double
    shop.connection.send(calls(1, 1))
    shop.connection.send(calls(2, 1000))
    world.settle()
    replies = [each for reply in shop.take(Reply) for each in reply.replies]  # more than one frame
    assert [(number, False) for number in range(2, 1002)] == [each[:2] for each in replies]
    message = msgspec.msgpack.decode(replies[0][2], type=WireMessage)
    assert message.headers is not None
    assert "requests" == message.headers["limit"]

    assert shop.lost_because is None
    admin.answer = at_once  # type: ignore[method-assign]  # a double
    takes_its_time.callback(Reply([]))
    shop.connection.send(calls(2000, 5))
    world.settle()
    assert all(ok for reply in shop.take(Reply) for _, ok, _ in reply.replies)


def test_more_calls_in_one_frame_than_are_ever_answered_are_an_error() -> None:
    world = NodeWorld(Limits(requests=5))
    shop, other = world.peer("shop"), world.peer("other")
    shop.connection.send(calls(1, 6))
    world.settle()
    assert "6 calls in a REQUEST, 1 to 5 allowed" in str(shop.lost_because)
    assert errors.MalformedFrame.wire_code == shop.connection.peer_error
    assert not shop.take(Reply)
    assert other.lost_because is None
    world = NodeWorld(Limits(requests=100_000))
    shop = world.peer("shop")
    shop.connection.send(calls(1, 4097))  # more than any frame may have
    world.settle()
    assert "4097 calls in a REQUEST, 1 to 4096 allowed" in str(shop.lost_because)


def test_an_answer_that_is_too_large_says_so_to_each_call() -> None:
    world = NodeWorld(Limits(max_batch=4096))
    shop = world.peer("shop")
    no = msgspec.Raw(msgspec.msgpack.encode([b"x" * 20]))
    large = Reply([(number, True, no) for number in range(1, 1001)])
    world.node.parts.admin.answer = lambda frame, local: succeed(large)  # type: ignore[method-assign,assignment]  # a double
    shop.connection.send(calls(1, 1000))
    world.settle()
    assert shop.lost_because is None
    replies = [each[:2] for reply in shop.take(Reply) for each in reply.replies]
    assert [(number, False) for number in range(1, 1001)] == replies


def test_calls_count_until_they_are_answered() -> None:
    world = NodeWorld(Limits(requests=5))
    shop = world.peer("shop")
    waiting: list[Deferred[Any]] = []

    def answer(frame: Request, local: bool) -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    world.node.parts.admin.answer = answer  # type: ignore[method-assign,assignment]  # one that takes its time
    shop.connection.send(calls(1, 3))
    shop.connection.send(calls(4, 3))
    world.settle()
    (busy,) = shop.take(Reply)
    assert [4, 5, 6] == [number for number, _, _ in busy.replies]
    waiting.pop().callback(Reply([]))
    shop.connection.send(calls(7, 3))
    world.settle()
    assert 1 == len(waiting)


def test_who_attaches_while_paused_is_told_so_stays_a_while_and_changes_nothing() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    world.peer("billing", receive=ORDERS).connection.abort()
    assert shop.request("$node.receivers.pause", {"name": "billing"})[0]
    billing = world.peer("billing", receive={"subjects": ["other.>"]})
    assert billing.node_hello is not None
    assert billing.node_hello.options.receive == ReceiveOptions(order="strict", paused=True)
    world.settle(PAUSED_STAY - 1)
    assert billing.bye is None
    world.settle(2)
    assert billing.bye == (BYE_PAUSED, "paused")
    assert billing.connection.peer_error == 0
    _, listed = shop.request("$node.receivers.list", {})
    assert ["orders.>"] == listed["receivers"][0]["subjects"]

    assert shop.request("$node.receivers.resume", {"name": "billing"})[0]
    again = world.peer("billing", receive={})
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert [b"one"] == again.bodies()


def test_a_program_that_comes_back_is_not_taken_for_two() -> None:
    # Over UDP no close travels: the last connection of one that was killed seems to live.
    world = NodeWorld()
    for _ in range(world.limits.replacements + 3):
        last = world.peer("billing", receive=ORDERS)
        world.settle(0.1)
        assert last.lost_because is None


def test_a_name_that_is_held_is_an_error_that_passes() -> None:
    world = NodeWorld()
    for number in range(world.limits.replacements + 3):
        last = world.peer("billing", incarnation=f"i{number % 2}", receive=ORDERS)
    assert errors.NameHeld.wire_code == last.connection.peer_error
    assert errors.NameHeld.passes


def test_too_many_receivers_are_an_error_that_passes_and_names_the_limit() -> None:
    world = NodeWorld(Limits(receivers=1))
    world.peer("billing", receive=ORDERS)
    other = world.peer("archive", receive=ORDERS)
    assert errors.ConnectionLimit.wire_code == other.connection.peer_error
    assert other.lost_because is not None
    assert "receivers = 1" in other.lost_because


def test_silence_counts_from_the_first_second_on() -> None:
    world = NodeWorld()
    shop = world.peer("shop", kind=Mute, heartbeat=1000)
    world.clock.pump([0.5] * 6)
    assert shop.lost_because is not None
    assert errors.HalfOpen.wire_code == shop.connection.peer_error
    assert world.clock.seconds() < world.limits.hello_timeout


def test_a_transfer_behind_a_bye_is_refused() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    shop.connection.channel.send(msgspec.msgpack.encode([12, 0]))  # type: ignore[union-attr]  # it stands
    shop.transfer(2, "orders.new", [b"two"])
    world.settle()
    assert errors.UnexpectedFrame.wire_code == shop.connection.peer_error
    assert not shop.take(Transfer)


def test_messages_are_counted_before_they_are_decoded() -> None:
    undecodable = msgspec.Raw(b"\xdc\x13\x88" + b"\x01" * 5000)
    world = NodeWorld()
    shop = world.peer("shop")
    shop.connection.send(Transfer(1, "orders.new", undecodable))
    world.settle()
    assert "5000 messages in a run, 1 to 4096 allowed" in str(shop.lost_because)
    other = world.peer("other")
    other.connection.send(Request(1, "$node.info", undecodable))
    world.settle()
    assert "5000 calls in a REQUEST, 1 to 1000 allowed" in str(other.lost_because)
    assert not other.take(Reply)


def test_a_receiver_whose_hello_says_no_bytes_has_said_nothing() -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive=ORDERS, max_batch=0, heartbeat=0)
    world.peer("shop").transfer(1, "orders.new", [b"x" * 9000, b"y"])
    world.settle()
    assert [b"x" * 9000, b"y"] == billing.bodies()
