"""Requests: SEMANTICS 30, seen from the one who asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import msgspec
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.client.requests import CALLS_SPARE, DUES_SPARE, EARLY_CALLS, Requests
from msgservice.connection import Connection
from msgservice.core.features import CANCEL
from msgservice.core.frames import CANCEL_RANGES_SAID, Cancel, Reply, Request
from msgservice.errors import (
    Ambiguous,
    BadSubject,
    ClientClosed,
    LimitReached,
    MessageTooLarge,
    NoResponder,
    RequestFailed,
    RequestTimeout,
)
from msgservice.limits import Limits
from msgservice.message import WireMessage, count_of, decode_messages
from tests.kit.clients import ClientWorld, error_of, now

JSON = {"content-type": "application/json"}


def reply(connection: Connection, number: int, ok: bool, message: WireMessage) -> None:
    raw = msgspec.Raw(msgspec.msgpack.encode(message))
    connection.send(Reply([(number, ok, raw)]))


def echo(connection: Connection, request: Request) -> None:
    (message,) = decode_messages(request.messages)
    reply(connection, request.id, True, message)


def refuse(text: str, world: ClientWorld, code: str | None = None) -> None:
    headers = None if code is None else {"msgservice-error": code}
    message = WireMessage(text.encode(), headers)
    world.node.on_request = lambda c, r: reply(c, r.id, False, message)


@pytest.mark.parametrize("content", [b"bytes", "text", {"sku": "x"}, [1, 2]])
def test_an_answer_is_given_as_content(content: object) -> None:
    world = ClientWorld()
    world.node.on_request = echo
    asked = world.client.request("prices.get", content)
    world.settle()
    assert content == now(asked)


@pytest.mark.parametrize(
    ("timeout", "kind", "said"),
    [
        ("5", TypeError, "timeout is a number of seconds, not '5'"),
        (None, TypeError, "timeout is a number of seconds, not None"),
        (-1, ValueError, "timeout must be above 0, at most 86400 s, not -1"),
    ],
)
def test_a_timeout_that_cannot_be_is_named(
    timeout: object, kind: type[Exception], said: str
) -> None:
    asked = ClientWorld().client.request("prices.get", b"", timeout=timeout)  # type: ignore[arg-type]
    assert said == str(error_of(asked, kind))


def test_30_answers_in_any_order_reach_each_its_own_request() -> None:
    world = ClientWorld()
    asked = [world.client.request("prices.get", b"%d" % number) for number in range(3)]
    world.settle()
    (request,) = world.node.requests  # those of one turn share a frame
    messages = decode_messages(request.messages)
    asked[0].addErrback(lambda failure: failure.trap(CancelledError))
    asked[0].cancel()
    for at in (2, 0, 1):
        reply(world.node.connection, request.id + at, True, messages[at])
    world.settle()
    assert [b"1", b"2"] == [now(asked[1]), now(asked[2])]


def test_57_calls_of_one_turn_share_a_frame_where_their_subject_and_time_are_the_same() -> None:
    world = ClientWorld()
    said = [("a", 5), ("b", 5), ("a", 5), ("a", 9), ("b", 5)]
    asked = [
        world.client.request(subject, b"", timeout=timeout).addErrback(lambda _: None)
        for subject, timeout in said
    ]
    gone = world.client.request("a", b"never sent", timeout=5)
    gone.addErrback(lambda failure: failure.trap(CancelledError))
    gone.cancel()
    world.settle()
    frames = [
        (request.subject, request.timeout, len(decode_messages(request.messages)))
        for request in world.node.requests
    ]
    assert [("a", 5000, 2), ("b", 5000, 2), ("a", 9000, 1)] == frames
    assert len(asked) == len({r.id + at for r in world.node.requests for at in range(2)} - {6})
    world.client.close()


def test_57_a_frame_has_no_more_calls_and_bytes_than_the_node_takes() -> None:
    world = ClientWorld(limits=Limits(max_batch=4096))
    asked = [world.client.request("a", b"x" * 1000) for _ in range(9)]
    world.settle()
    assert [4, 4, 1] == [len(decode_messages(r.messages)) for r in world.node.requests]
    assert all(len(bytes(r.messages)) <= 4096 for r in world.node.requests)
    for one in asked:
        one.addErrback(lambda _: None)
    world.client.close()


def test_57_what_waits_for_a_node_and_is_given_up_is_not_kept() -> None:
    clock = Clock()
    requests = Requests(clock=clock, now=clock.seconds, pending_max=10, bytes_max=1000)
    for _ in range(100):
        requests.call("a", b"", 3, 1.0).addErrback(lambda _: None)
        clock.advance(0)
        clock.advance(1.5)
    assert not len(requests)
    assert not requests._parked
    assert not clock.getDelayedCalls()


def test_30_nobody_answers() -> None:
    world = ClientWorld()
    refuse("nobody", world, "7")
    asked = world.client.request("prices.get", b"")
    world.settle()
    assert "prices.get" == error_of(asked, NoResponder).subject


def test_30_the_other_side_may_say_that_it_took_too_long() -> None:
    world = ClientWorld()
    refuse("late", world, "8")
    asked = world.client.request("prices.get", b"")
    world.settle()
    error_of(asked, RequestTimeout)


@pytest.mark.parametrize("code", [None, "", "x", "-7", "\u0667", "999", "9" * 5000])
@pytest.mark.parametrize("text", ["no such sku", str(NoResponder("prices.get"))])
def test_an_error_is_told_with_its_sentence(text: str, code: str | None) -> None:
    world = ClientWorld()
    refuse(text, world, code)
    asked = world.client.request("prices.get", b"")
    world.settle()
    failed = error_of(asked, RequestFailed)
    assert (RequestFailed, text) == (type(failed), str(failed))


def test_an_answer_that_is_not_what_it_says_fails_that_request_alone() -> None:
    world = ClientWorld()
    world.node.on_request = lambda c, r: reply(c, r.id, True, WireMessage(b"{", JSON))
    asked = world.client.request("a", b"")
    world.settle()
    assert "cannot be read" in str(error_of(asked, RequestFailed))
    assert world.client.connected


def test_an_answer_that_is_no_message_ends_the_connection() -> None:
    world = ClientWorld()
    world.node.on_request = lambda c, r: c.send(Reply([(r.id, True, msgspec.Raw(b"\x01"))]))
    asked = world.client.request("a", b"")
    world.settle()
    error_of(asked, Ambiguous)
    assert "message" in str(world.client.why().error)


def test_30_a_timeout_fails_and_a_late_answer_is_dropped() -> None:
    world = ClientWorld()
    slow = world.client.request("a", b"", timeout=5)
    quick = world.client.request("a", b"", timeout=1)
    world.settle()
    assert [5000, 1000] == [request.timeout for request in world.node.requests]
    world.advance(1.1)
    assert 1 == error_of(quick, RequestTimeout).seconds
    assert not slow.called
    for request in world.node.requests:
        echo(world.node.connection, request)
    world.settle()
    assert b"" == now(slow)
    assert world.client.connected


def test_30_pending_ones_are_bounded() -> None:
    world = ClientWorld(limits=Limits(requests=2))
    asked = [world.client.request("a", b"") for _ in range(2)]
    assert "requests" == error_of(world.client.request("a", b""), LimitReached).limit
    asked[0].cancel()
    error_of(asked[0], CancelledError)
    world.client.request("a", b"").addErrback(lambda _: None)
    world.client.close()
    world.settle()
    error_of(asked[1], ClientClosed)


def test_30_pending_ones_are_bounded_in_bytes() -> None:
    world = ClientWorld(limits=Limits(window_bytes=1000))
    asked = [world.client.request("a", b"x" * 600) for _ in range(2)]
    assert 1000 == error_of(asked[1], LimitReached).value
    asked[0].addErrback(lambda _: None)
    world.client.close()


def test_one_that_waits_for_a_connection_is_sent_when_there_is_one() -> None:
    world = ClientWorld(start=False)
    world.node.on_request = echo
    asked = world.client.request("a", "x", timeout=10)
    world.advance(1.0)
    assert not asked.called
    world.start()
    assert "x" == now(asked)
    assert world.node.requests[0].timeout <= 9000


def test_one_that_was_sent_is_ambiguous_when_the_connection_is_lost() -> None:
    world = ClientWorld()
    asked = world.client.request("a", b"")
    world.settle()
    world.node.cut()
    world.settle()
    assert "may have been handled" in str(error_of(asked, Ambiguous))
    world.advance(1.0)
    assert 1 == len(world.node.requests)


def test_the_nodes_own_subjects_may_be_asked_and_bad_ones_not() -> None:
    world = ClientWorld(limits=Limits(max_batch=4096))
    world.node.on_request = echo
    asked = world.client.request("$node.info", b"1")
    world.settle()
    assert b"1" == now(asked)
    error_of(world.client.request("a..b", b""), BadSubject)
    error_of(world.client.request("a", b"x" * 4096), MessageTooLarge)
    error_of(world.client.request("a", b"", timeout=0), ValueError)
    error_of(world.client.request("a", b"", timeout=float("nan")), ValueError)
    error_of(world.client.request("a", object()), TypeError)


def test_one_that_fails_may_cancel_others_that_fail_with_it() -> None:
    world = ClientWorld()
    first, second = world.client.request("a", 1), world.client.request("a", 2)
    world.settle()
    first.addErrback(lambda failure: second.cancel())
    world.node.cut()
    world.settle()
    assert now(first) is None
    error_of(second, CancelledError)
    third = world.client.request("a", 3)
    world.advance(30.0)
    error_of(third, RequestTimeout)


def test_the_deadlines_of_requests_that_have_gone_are_bounded() -> None:
    clock = Clock()
    requests = Requests(clock=clock, now=clock.seconds, pending_max=10, bytes_max=1000)
    first = requests.call("a", b"", 3, 1000.0)
    for _ in range(1000):
        other = requests.call("a", b"", 3, 2000.0)
        other.addErrback(lambda failure: failure.trap(CancelledError))
        other.cancel()
    assert len(requests._dues) <= 2 + 1 + DUES_SPARE
    clock.advance(1001.0)
    error_of(first, RequestTimeout)


class Wire:
    """What `Requests` needs of a connection: what was sent, and when it was pushed, in order."""

    def __init__(self, events: list[object], *, takes_cancel: bool) -> None:
        self.session = self
        self.peer_hello = None
        self.peer_features = frozenset({CANCEL} if takes_cancel else ())
        self.events = events

    def send_now(self, frames: list[Request | Cancel]) -> None:
        for frame in frames:
            if isinstance(frame, Cancel):
                self.events.append(frame)
            else:
                self.events.append(range(frame.id, frame.id + count_of(frame.messages)))

    def push(self) -> None:
        self.events.append("push")


class Asking:
    """`Requests` on a wire, and a clock."""

    def __init__(self, size_max: int = 10_000, *, takes_cancel: bool = False) -> None:
        self.clock = Clock()
        self.events: list[object] = []
        self.requests = Requests(
            clock=self.clock, now=self.clock.seconds, pending_max=10_000, bytes_max=100_000
        )
        self.connection = cast("Connection", Wire(self.events, takes_cancel=takes_cancel))
        self.requests.opened(self.connection, size_max)

    def call(self, timeout: float = 30.0, size: int = 3) -> Deferred[Any]:
        return self.requests.call("a", b"", size, timeout)

    def answer(self, numbers: Iterable[int]) -> None:
        raw = msgspec.Raw(msgspec.msgpack.encode((b"",)))
        self.requests.replied(Reply([(number, True, raw) for number in numbers]))

    def keep_asking(self) -> None:
        """Make a call, and when it is answered another one."""
        self.call().addCallbacks(self._answered, lambda failure: failure.trap(ClientClosed))

    def _answered(self, _: object) -> None:
        self.events.append("answered")
        self.keep_asking()


@pytest.mark.parametrize("pending", [2 * EARLY_CALLS, 6 * EARLY_CALLS])
def test_half_of_the_calls_leave_while_the_answers_of_the_others_are_looked_at(
    pending: int,
) -> None:
    asking = Asking()
    for _ in range(pending):
        asking.keep_asking()
    asking.clock.advance(0)
    asking.events.clear()
    asking.answer(range(1, pending + 1))
    half = pending // 2
    first = range(pending + 1, pending + half + 1)
    assert [*["answered"] * half, first, "push", *["answered"] * half] == asking.events
    asking.clock.advance(0)
    assert range(pending + half + 1, 2 * pending + 1) == asking.events[-1]
    asking.requests.close(ClientClosed("over"))
    assert not asking.requests


def test_few_calls_of_one_turn_share_a_frame_whatever_is_answered() -> None:
    asking = Asking()
    for _ in range(EARLY_CALLS):
        asking.keep_asking()
    asking.clock.advance(0)
    asking.answer(range(1, EARLY_CALLS + 1))
    assert "push" not in asking.events
    asking.clock.advance(0)
    assert range(EARLY_CALLS + 1, 2 * EARLY_CALLS + 1) == asking.events[-1]


def test_calls_that_share_a_frame_fail_when_their_own_time_is_over_and_not_before() -> None:
    asking = Asking()
    first = asking.call(1.001)
    asking.clock.rightNow = 0.004  # a turn that takes its time
    second = asking.call(1.001)
    asking.clock.advance(0)
    assert [range(1, 3)] == asking.events
    asking.clock.advance(1.000)
    assert not second.called
    asking.clock.advance(0.01)
    for one in (first, second):
        error_of(one, RequestTimeout)
    assert not asking.requests
    assert not asking.clock.getDelayedCalls()


def test_one_that_is_too_large_may_close_the_client_and_all_others_fail_with_that() -> None:
    asking = Asking(size_max=20)
    large, small = asking.call(size=21), asking.call()
    closed = ClientClosed("over")
    large.addErrback(lambda _: asking.requests.close(closed))
    asking.clock.advance(0)
    assert now(large) is None
    assert closed is error_of(small, ClientClosed)
    assert not asking.requests
    assert not asking.events
    assert not asking.clock.getDelayedCalls()


def test_what_waits_for_a_connection_is_sent_once_there_is_one_and_cancelled_ones_are_not() -> None:
    asking = Asking()
    asking.requests.lost()
    calls = [asking.call() for _ in range(1000)]
    asking.clock.advance(0)
    for one in calls[1:]:
        one.addErrback(lambda failure: failure.trap(CancelledError))
        one.cancel()
    (group,) = asking.requests._parked
    assert len(group.calls) <= 2 + CALLS_SPARE
    asking.requests.opened(asking.connection, 10_000)
    asking.clock.advance(0)
    assert [range(1, 2)] == asking.events
    asking.answer([1])
    assert b"" == now(calls[0])


def trap(failure: Failure) -> None:
    failure.trap(CancelledError, RequestTimeout, Ambiguous)


def test_cancels_of_one_turn_are_one_frame_ahead_of_what_the_turn_asks() -> None:
    asking = Asking(takes_cancel=True)
    calls = [asking.call().addErrback(trap) for _ in range(6)]
    asking.clock.advance(0)
    asking.events.clear()
    asking.call()
    for at in (0, 4, 3, 1):
        calls[at].cancel()
    asking.answer([6])
    never_sent = asking.call().addErrback(trap)
    never_sent.cancel()
    calls[5].cancel()  # it was answered
    asking.clock.advance(0)
    assert [Cancel([(1, 2), (4, 5)]), range(7, 8)] == asking.events
    asking.answer([1, 2, 4, 5])  # they crossed
    asking.clock.advance(0)
    assert 2 == len(asking.requests)
    assert 2 == len(asking.events)


def test_very_many_cancels_are_as_many_frames_as_any_node_takes() -> None:
    asking = Asking(takes_cancel=True)
    calls = [asking.call().addErrback(trap) for _ in range(2 * CANCEL_RANGES_SAID + 2)]
    asking.clock.advance(0)
    asking.events.clear()
    for call in calls[::2]:
        call.cancel()
    asking.clock.advance(0)
    said = [event for event in asking.events if isinstance(event, Cancel)]
    assert [CANCEL_RANGES_SAID, 1] == [len(each.ranges) for each in said]


def test_what_was_sent_and_is_over_its_time_is_given_up_and_said_once() -> None:
    asking = Asking(takes_cancel=True)
    first, second = asking.call(1.0), asking.call(1.0)
    first.addErrback(lambda failure: second.cancel())
    second.addErrback(trap)
    asking.clock.advance(0)
    asking.events.clear()
    asking.clock.advance(1.0)
    asking.clock.advance(0)
    assert [Cancel([(1, 2)])] == asking.events
    assert not asking.requests
    assert not asking.clock.getDelayedCalls()


def test_a_node_that_does_not_take_it_is_not_told() -> None:
    asking = Asking()
    call = asking.call().addErrback(trap)
    asking.clock.advance(0)
    call.cancel()
    asking.clock.advance(0)
    assert [range(1, 2)] == asking.events


def test_what_was_given_up_is_not_said_on_the_next_connection() -> None:
    asking = Asking(takes_cancel=True)
    call, other = asking.call().addErrback(trap), asking.call().addErrback(trap)
    asking.clock.advance(0)
    call.cancel()
    asking.requests.lost()
    other.cancel()  # it has failed already
    asking.events.clear()
    asking.requests.opened(asking.connection, 10_000)
    asking.clock.advance(0)
    assert [] == asking.events
    asking.call()
    asking.clock.advance(0)
    assert [range(3, 4)] == asking.events
