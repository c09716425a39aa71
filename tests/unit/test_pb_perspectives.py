"""Perspectives at a node's door: how much one connection may ask for at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.spread.jelly import jelly

from msgservice.core.frames import Reply, Request
from msgservice.errors import RequestTimeout
from msgservice.limits import Limits
from msgservice.message import WireMessage
from msgservice.node.gate import LISTENER
from msgservice.node.perspectives import ASKED_BYTES, Perspectives
from msgservice.node.replies import refusal
from msgservice.node.view import ReceiversView
from msgservice.transport.pb.expressions import encode
from msgservice.transport.pb.jellied import plain, security
from tests.kit.passes import a_gate
from tests.unit.test_pb_broker import Peer

ANSWERING = 3


class Asking:
    """A plain program that has logged in, and the requests that its node answers when told."""

    def __init__(self, answer: Callable[[], Deferred[Reply]] | None = None) -> None:
        self.asked: list[Deferred[Reply]] = []
        self.house: Any = None
        self.make = answer
        limits = Limits(answering=ANSWERING)
        self.peer = Peer(limits, make_root=lambda channel: self.begin(channel, limits))
        self.peer.call(b"root", b"loginAnonymous", [b"None"])
        ((_, _, (_, self.end)),) = self.peer.heard()

    def begin(self, channel: Any, limits: Limits) -> Any:
        clock: Any = channel._reactor
        self.house = Perspectives(
            instance="node",
            gate=a_gate(clock=clock, insecure=True),
            intake=self,  # nothing is handed in
            requests=self,
            view=ReceiversView(clock=clock, rows=list, here=set, look=lambda *_: None),
            limits=limits,
        )
        return self.house.root(LISTENER, channel)

    def sender(self, name: str, user: str) -> Any:
        return None

    def answer(self, request: Request, who: Any) -> Deferred[Reply]:
        if self.make is not None:
            return self.make()
        self.asked.append(Deferred())
        return self.asked[-1]

    def ask(self, count: int, size: int = 2) -> None:
        for number in range(count):
            content = [b"list", bytes(b"x" * size)]
            self.peer.call(self.end, b"request", b"$node.info", content, number=number)

    @property
    def answered(self) -> list[int]:
        self.peer.clock.advance(0)
        return [answer[1] for answer in self.peer.heard()]


def reply(value: Any = None) -> Reply:
    message = msgspec.msgpack.encode(WireMessage(msgspec.json.encode(value)))
    return Reply([(1, True, msgspec.Raw(message))])


def test_no_more_than_answering_are_answered_at_once_and_the_others_in_their_order() -> None:
    asking = Asking()
    asking.ask(10)
    assert ANSWERING == len(asking.asked)
    asking.asked[1].callback(reply())
    assert ANSWERING + 1 == len(asking.asked)
    assert [1] == asking.answered
    for number in (0, *range(2, 10)):
        asking.asked[number].callback(reply())
    assert [0, *range(2, 10)] == asking.answered


def test_nothing_more_is_answered_while_answers_are_not_read() -> None:
    asking = Asking()
    asking.ask(10)
    asking.peer.channel.transport_full()
    for one in list(asking.asked):
        one.callback(reply())
    assert ANSWERING == len(asking.asked)
    asking.peer.channel.transport_drained()
    assert 2 * ANSWERING == len(asking.asked)


def test_what_waits_and_is_large_stops_the_reading_until_it_is_answered() -> None:
    asking = Asking()
    asking.ask(ANSWERING)
    size = 300_000
    asking.ask(ASKED_BYTES // size, size)
    assert "producing" == asking.peer.wire.producerState
    asking.ask(1, size)
    assert "paused" == asking.peer.wire.producerState
    asking.asked[0].callback(reply())
    assert "producing" == asking.peer.wire.producerState


def test_requests_that_take_long_leave_others_their_turn() -> None:
    asking: Any = None
    taken: list[float] = []

    def answer() -> Deferred[Reply]:
        taken.append(asking.peer.clock.seconds())
        asking.peer.clock.rightNow += 0.006
        done: Deferred[Reply] = Deferred()
        done.callback(reply())
        return done

    asking = Asking(answer)
    data = b"".join(
        encode([b"message", n, asking.end, b"request", 1, [b"tuple", b"a"], [b"dictionary"]])
        for n in range(20)
    )
    asking.peer.channel.dataReceived(data)
    assert 2 == len(taken)
    for _ in range(20):
        asking.peer.clock.advance(0)
    assert 20 == len(taken)


def test_who_has_gone_is_answered_nothing_more() -> None:
    asking = Asking()
    asking.ask(10)
    asking.peer.channel.abort()
    asking.peer.channel.connectionLost()
    for one in list(asking.asked):
        one.callback(reply())
    assert ANSWERING == len(asking.asked)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        [1, -1, 2**53, 2.5, "a", "\u00fc" * 100, True, False, None],
        {"a": {"b": [{"c": ""}] * 3}, "\u00fc": [[]]},
        "x" * 70_000,
    ],
)
def test_a_value_of_json_is_encoded_as_jelly_and_banana_do(value: Any) -> None:
    copied = msgspec.json.decode(msgspec.json.encode(value))
    assert encode(jelly(copied, security())) == encode(plain(value))


def test_who_leaves_waits_no_longer_for_what_others_answer() -> None:
    cancelled: list[Deferred[Reply]] = []
    made: list[Deferred[Reply]] = []

    def make() -> Deferred[Reply]:
        made.append(Deferred(cancelled.append))
        return made[-1]

    asking = Asking(make)
    for subject in (b"prices.get", b"$node.info"):
        asking.peer.call(asking.end, b"request", subject, [b"None"])
    assert 2 == len(made)
    asking.peer.channel.connectionLost(Failure(ConnectionDone()))
    assert [made[0]] == cancelled  # the node's own work is done to its end
    made[1].callback(reply())


def test_a_request_that_was_not_answered_says_how_long_it_waited() -> None:
    asking = Asking()
    asking.peer.call(asking.end, b"request", b"prices.get", [b"None"])
    error = RequestTimeout("prices.get", 30)
    said = Reply([(1, False, refusal(str(error), error.refusal_code))])
    asking.asked[0].callback(said)
    asking.peer.clock.advance(0)
    assert "within 30 s" in str(asking.peer.heard())
