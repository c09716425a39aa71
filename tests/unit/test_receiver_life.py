"""Connections come and go, the receiver stays: SEMANTICS 1, 2, 3, 5, 27; stopping; bounds."""

from __future__ import annotations

import functools
import types
from collections.abc import AsyncIterator, Generator, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, fail, inlineCallbacks, succeed
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from msgservice.core.frames import (
    BYE_PAUSED,
    BYE_REMOVED,
    BYE_REPLACED,
    Ack,
    Hello,
    Nack,
    Request,
    Transfer,
    encode_frame,
)
from msgservice.errors import BadName, BadSubject, CannotListen, LimitReached, Reject, Retry
from msgservice.limits import Limits
from msgservice.message import Action, BareMessage, WireMessage, encode_messages
from msgservice.receiver import Receiver
from msgservice.receiver.received import ReceivedMessage
from tests.kit.receiver_world import Node, World, results_of
from tests.unit.test_receiver import Waiting


def hello_of(world: World) -> Hello:
    return world.node.hellos[-1]


# --- who it says it is


def test_hello_says_who_it_is_and_how_much_it_takes() -> None:
    world = World(window=(100, 5000), attach=False)
    world.attach(world.node, subjects=["a.>", "b"], start="first")
    world.run()
    hello = hello_of(world)
    options = hello.options
    receive = options.receive
    assert receive is not None
    assert (hello.name, hello.incarnation) == ("r", world.receiver.incarnation)
    assert options.window == (100, 5000)
    assert options.max_batch == Limits().max_batch
    assert options.heartbeat == 20_000
    assert receive.subjects == ["a.>", "b"]
    assert (receive.start, receive.order, options.inbox) == ("first", "strict", None)


def test_a_start_in_time_is_said_as_iso_8601() -> None:
    world = World(attach=False)
    world.attach(world.node, start=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    world.run()
    receive = hello_of(world).options.receive
    assert receive is not None
    assert receive.start == "@2026-01-02T03:04:00+00:00"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "no/slash"}, BadName),
        ({"order": "loose"}, ValueError),
        ({"shared": True}, ValueError),
        ({"threads": -1}, ValueError),
        ({"concurrency": 0}, ValueError),
        ({"window": 0}, ValueError),
        ({"window": (1, 0)}, ValueError),
        ({"handler": None}, TypeError),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], error: type) -> None:
    wanted: dict[str, Any] = {"name": "r", "handler": print} | arguments
    with pytest.raises(error):
        Receiver(Clock(), **wanted)


def test_a_coroutine_function_cannot_run_on_threads() -> None:
    async def handle(message: ReceivedMessage) -> None:
        pass

    with pytest.raises(TypeError, match="coroutine"):
        Receiver(Clock(), name="r", handler=handle, threads=2)


def generator(message: ReceivedMessage) -> Iterator[Any]:
    """A handler that somebody forgot to decorate with inlineCallbacks."""
    yield Deferred()


async def async_generator(message: ReceivedMessage) -> AsyncIterator[Any]:
    yield message


@types.coroutine
def old_coroutine(message: ReceivedMessage) -> Iterator[Any]:
    yield message


class Called:
    def __call__(self, message: ReceivedMessage) -> Iterator[Any]:
        yield message

    def method(self, message: ReceivedMessage) -> Iterator[Any]:
        yield message


def with_transaction(message: ReceivedMessage, transaction: Any) -> Iterator[Any]:
    yield message


@pytest.mark.parametrize("more", [{}, {"threads": 2}, {"batch": True}, {"inbox": "inbox.db"}])
@pytest.mark.parametrize(
    "handler",
    [
        generator,
        async_generator,
        old_coroutine,
        functools.partial(generator),
        Called(),
        Called().method,
        with_transaction,
    ],
)
def test_a_handler_whose_body_would_never_run_is_refused(
    handler: Any, more: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match=r"generator function.*inlineCallbacks"):
        Receiver(Clock(), name="r", handler=handler, **more)


def test_a_handler_that_inline_callbacks_runs_is_none_of_these() -> None:
    seen: list[bytes] = []

    @inlineCallbacks
    def handle(message: ReceivedMessage) -> Generator[Deferred[None], None, None]:
        yield succeed(None)
        seen.append(message.body)

    world = World(handle)
    world.node.offer([b"1", b"2"])
    world.run()
    assert seen == [b"1", b"2"]
    assert world.node.acknowledged == [(1, 2)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"subjects": ["a..b"]}, BadSubject),
        ({"subjects": []}, ValueError),
        ({"subjects": "a.>"}, TypeError),
        ({"subjects": ["a"] * 1001}, LimitReached),
        ({"start": "sometime"}, ValueError),
        ({"start": -1}, ValueError),
        ({"start": datetime(2026, 1, 1)}, ValueError),  # noqa: DTZ001  # that is what is refused
    ],
)
def test_an_attachment_that_cannot_be_is_refused(arguments: dict[str, Any], error: type) -> None:
    world = World(attach=False)
    with pytest.raises(error):
        world.attach(world.node, **arguments)
    assert world.receiver.ways == []


# --- connections


def test_an_attachment_says_whether_it_is_connected_and_why_not() -> None:
    world = World()
    assert world.attachment.connected
    assert (world.attachment.error, world.attachment.node) == ("", "node")
    world.wire.cut()
    world.run()
    assert not world.attachment.connected
    assert world.attachment.error == "aborted"
    assert "aborted" in repr(world.attachment)
    world.run(2)
    assert world.attachment.connected
    assert "connected" in repr(world.attachment)


def test_1_what_was_taken_is_told_to_the_next_connection() -> None:
    world = World()
    world.node.offer([b"1", b"2"], sequence=5, after=2)
    world.run()
    world.reconnect()
    resume = world.node.resumes[-1]
    assert resume.ranges == ((3, 6),)
    assert resume.last is not None
    assert resume.last[:2] == (5, 6)


def test_2_a_repeat_of_what_is_being_handled_is_answered_when_that_ends() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1", b"2"])
    world.run()
    world.reconnect()
    assert waiting.given == [b"1"]  # not given again
    assert world.node.answers == []
    waiting.end(b"1")
    world.run()
    waiting.end(b"2")
    world.run()
    assert waiting.given == [b"1", b"2"]
    assert world.node.backlog.cursor == 2


def test_2_what_ended_while_there_was_no_connection_is_not_sent_again() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1"])
    world.run()
    world.wire.cut()
    world.run()
    waiting.end(b"1")
    world.run(2)
    assert (waiting.given, world.node.backlog.cursor) == ([b"1"], 1)
    assert world.node.answers == []  # its RESUME said it


def test_3_a_message_that_failed_while_there_was_no_connection_comes_again_in_order() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1", b"2"])
    world.node.offer([b"3"])
    world.run()
    world.wire.cut()
    world.run()
    waiting.fail(b"1", Retry(1.0))
    world.run(2)
    for body in (b"1", b"2", b"3"):
        waiting.end(body)
        world.run()
    assert waiting.given == [b"1", b"1", b"2", b"3"]
    assert world.node.backlog.cursor == 3


def test_a_rejection_that_was_not_heard_is_repeated_and_not_handled_again() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1"])
    world.run()
    world.wire.cut()
    world.run()
    from msgservice.errors import Reject

    waiting.fail(b"1", Reject("no"))
    world.run(2)
    assert waiting.given == [b"1"]
    assert [nack.action for nack in world.node.nacks] == [Action.DEAD]


def test_5_another_incarnation_of_the_node_has_marks_of_its_own() -> None:
    world = World()
    world.node.offer([b"1"])
    world.run()
    other = Node(world.clock, incarnation="log.2")
    world.attach(other)
    world.run()
    other.offer([b"again 1"])
    world.run()
    assert world.handled == [b"1", b"again 1"]
    assert other.resumes[-1].ranges == ()


def test_several_nodes_feed_one_receiver() -> None:
    world = World()
    other = Node(world.clock, name="other", incarnation="log.o")
    world.attach(other)
    world.run()
    world.node.offer([b"1"])
    other.offer([b"2"])
    world.run()
    assert sorted(world.handled) == [b"1", b"2"]
    assert (world.node.backlog.cursor, other.backlog.cursor) == (1, 1)


def test_27_one_that_was_replaced_says_so_and_does_not_come_back_by_itself() -> None:
    world = World()
    assert world.node.connection is not None
    world.node.connection.bye(BYE_REPLACED, "replaced")
    world.run(60)
    assert world.diallers[0].dialled == 1
    assert world.attachment.is_over
    assert world.attachment.is_replaced
    assert "newer connection" in world.attachment.error
    world.attachment.start()
    world.run()
    assert world.attachment.connected


def test_it_has_stopped_when_the_node_has_said_goodbye() -> None:
    world = World()
    world.node.says_goodbye = False
    world.node.offer([b"1"])
    world.run()
    stopped = results_of(world.receiver.stop())
    world.run(1)
    assert (world.node.byes, world.node.backlog.cursor, stopped) == ([(0, "")], 1, [])
    assert world.node.connection is not None
    world.node.connection.bye(0, "goodbye")
    world.run()
    assert stopped == [None]
    world.run(60)
    assert world.diallers[0].dialled == 1


def test_a_node_that_says_no_goodbye_is_waited_for_so_long_as_a_limit_says() -> None:
    world = World(limits=Limits(close_timeout=3.0))
    world.node.says_goodbye = False
    world.node.offer([b"1"])
    world.run()
    stopped = results_of(world.receiver.stop())
    world.run(2.9)
    assert stopped == []
    world.run(0.1)
    assert stopped == [None]
    assert world.node.losses == ["aborted"]  # nor does its end wait for the node once more
    world.run(60)
    assert world.diallers[0].dialled == 1


def test_a_node_that_goes_while_its_goodbye_is_waited_for_is_not_dialled_again() -> None:
    world = World()
    world.node.says_goodbye = False
    world.node.offer([b"1"])
    world.run()
    stopped = results_of(world.receiver.stop())
    world.run(1)
    world.wire.cut()
    world.run()
    assert stopped == [None]
    world.run(60)
    assert world.diallers[0].dialled == 1


def test_no_goodbye_is_waited_for_where_nothing_was_answered() -> None:
    world = World()
    world.node.says_goodbye = False
    stopped = results_of(world.receiver.stop())
    world.run()
    assert (world.node.byes, stopped) == ([(0, "")], [None])


def test_a_goodbye_is_heard_behind_more_than_is_taken_and_none_of_that_is_handled() -> None:
    waiting = Waiting()
    world = World(waiting, window=1)
    world.node.knows = False
    world.node.offer([b"1"])
    world.run()
    world.node.window = (1000, 1 << 20)
    assert world.node.connection is not None
    for sequence in (2, 3, 4):  # it pays no heed to the window, and is read no more
        messages = msgspec.Raw(encode_messages([WireMessage(b"%d" % sequence)]))
        world.node.connection.send(Transfer(sequence, "a", messages, after=sequence - 1))
        world.run()
    assert world.wire.near.is_paused
    world.node.knows = True
    stopped = results_of(world.receiver.stop())
    world.run()
    waiting.end(b"1")
    world.run()
    assert stopped == [None]
    assert (waiting.given, world.node.backlog.cursor) == ([b"1"], 1)


def test_one_that_is_started_again_while_it_stops_works_when_it_has_stopped() -> None:
    ends: list[Deferred[None]] = []

    def handle(message: ReceivedMessage) -> Deferred[None]:
        ends.append(Deferred())
        return ends[-1]

    world = World(handle)
    world.node.offer([b"1"])
    world.run()
    stopped = results_of(world.receiver.stop())
    world.run()
    world.receiver.startService()
    late = world.attach(Node(world.clock, name="late"))
    world.run()
    assert (stopped, world.receiver.running, late.connected) == ([], 1, False)
    ends[0].callback(None)
    world.run(2)
    assert (stopped, world.receiver.running) == ([None], 1)
    assert (world.attachment.connected, late.connected) == (True, True)
    assert world.node.backlog.cursor == 1
    again = results_of(world.receiver.stop())
    world.receiver.startService()
    both = results_of(world.receiver.stop())
    world.run(2)
    assert (again, both, world.receiver.running) == ([None], [None], 0)
    assert not world.attachment.connected


def test_stopping_an_attachment_waits_for_a_connection_that_is_closing_already() -> None:
    class Closing(Service):
        def __init__(self) -> None:
            self.gone: list[Deferred[None]] = []

        def stopService(self) -> Deferred[None]:
            super().stopService()
            self.gone.append(Deferred())
            return self.gone[-1]

    closing = Closing()
    receiver = Receiver(Clock(), name="r", handler=print)
    attachment = receiver.attach_through(lambda make_user: closing, address="here")
    stopped = [results_of(attachment.stop()), results_of(attachment.stop())]
    assert stopped == [[], []]
    for gone in closing.gone:
        gone.callback(None)
    assert stopped == [[None], [None]]


def test_one_that_was_removed_does_not_come_back_by_itself_to_be_made_again() -> None:
    world = World()
    assert world.node.connection is not None
    world.node.connection.bye(BYE_REMOVED, "removed")
    world.run(60)
    assert world.diallers[0].dialled == 1
    assert world.attachment.is_over
    assert not world.attachment.is_replaced
    assert "removed" in world.attachment.error


def test_one_that_is_paused_comes_back() -> None:
    world = World()
    assert world.node.connection is not None
    world.node.connection.bye(BYE_PAUSED, "paused")
    world.run(3)
    assert world.attachment.connected


def test_27_the_newest_connection_of_one_node_wins_and_the_marks_go_on() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1"])
    world.run()
    newer = world.attach(world.node)
    world.run(5)
    assert newer.connected
    assert not world.attachment.connected
    assert world.attachment.is_replaced
    waiting.end(b"1")
    world.run()
    assert (waiting.given, world.node.backlog.cursor) == ([b"1"], 1)


def test_a_node_that_closes_is_answered_first() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1"])
    world.run()
    assert world.node.connection is not None
    world.node.connection.bye(0, "stopping")
    world.run(1)
    assert not world.wire.near.is_gone
    waiting.end(b"1")
    world.run()
    assert world.node.backlog.cursor == 1
    assert world.wire.near.is_gone
    assert "stopping" in world.attachment.error
    world.run(2)
    assert world.attachment.connected


def test_a_node_that_closes_when_nothing_is_owed_is_let_go_at_once() -> None:
    world = World()
    assert world.node.connection is not None
    world.node.connection.bye()
    world.run()
    assert world.wire.near.is_gone


# --- bad input


def send_raw(world: World, frame: Any) -> None:
    assert world.node.connection is not None
    world.node.knows = False
    world.node.connection.send(frame)
    world.run()


def transfer(sequence: int, *bodies: bytes, **more: Any) -> Transfer:
    messages = encode_messages([BareMessage(body) for body in bodies])
    return Transfer(sequence, "a", msgspec.Raw(messages), **more)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (transfer(1), "sequence without messages"),
        (Transfer(1, "a", msgspec.Raw(b"\x91\x01")), "messages: Expected"),
        # Counted before they are decoded.
        (Transfer(1, "a", msgspec.Raw(b"\xdc\xff\xff" + b"\x01" * 65_535)), "65535 messages, from"),
        (transfer(2**53 - 1, b"1", b"2"), "pass 2^53"),
        (transfer(5, b"1", nacks=1), "nacks 1, only 0 were sent"),
        (transfer(5, b"1", after=5), "after 5 is not below"),
        (Ack([(1, 1)]), "Ack frame while a receiver listens"),
    ],
)
def test_a_frame_that_cannot_be_ends_the_connection_with_the_reason(
    frame: Any, reason: str
) -> None:
    world = World()
    send_raw(world, frame)
    world.run()
    assert any(reason in loss for loss in world.node.losses), world.node.losses
    assert reason in world.attachment.error
    world.run(2)
    assert world.attachment.connected


def test_4_other_content_under_a_sequence_that_was_taken_ends_the_connection() -> None:
    world = World()
    send_raw(world, transfer(1, b"1"))
    send_raw(world, transfer(1, b"other"))
    assert "were sent before with other content" in world.node.losses[0]
    assert world.handled == [b"1"]


def test_one_that_does_not_send_to_receivers_is_refused() -> None:
    world = World(attach=False)
    world.node.says_receive = False
    attachment = world.attach(world.node)
    world.run()
    assert "does not send to receivers" in attachment.error


def test_requests_are_refused_not_ignored() -> None:
    world = World()
    messages = msgspec.Raw(encode_messages([BareMessage(b"1"), BareMessage(b"2")]))
    send_raw(world, Request(7, "a", messages))
    [reply] = world.node.replies
    assert [(id_, ok) for id_, ok, _ in reply.replies] == [(7, False), (8, False)]


def test_requests_are_refused_by_their_number_before_anything_is_answered() -> None:
    world = World(limits=Limits(max_batch=8192))
    calls = [BareMessage(b"")] * 4096
    send_raw(world, Request(1, "a", msgspec.Raw(encode_messages(calls))))
    assert 4096 == sum(len(reply.replies) for reply in world.node.replies)
    world.node.replies.clear()
    send_raw(world, Request(1, "a", msgspec.Raw(encode_messages([*calls, calls[0]]))))
    assert "4097 calls in a REQUEST, 1 to 4096 allowed" in world.attachment.error
    assert not world.node.replies


# --- bounds


def test_a_node_that_does_not_read_its_answers_is_not_read() -> None:
    def handler(message: ReceivedMessage) -> None:
        raise Reject("no" * 500)

    world = World(handler, limits=Limits(answer_bytes=20_000))
    messages = msgspec.Raw(encode_messages([BareMessage(b"1")]))
    world.node.offer([b"1"])
    world.run()
    connection = next(iter(world.attachment.connections)).connection
    connection.channel_writable(False)
    before = len(world.wire.near.sent)
    again = Transfer(1, "a", msgspec.Raw(encode_messages([WireMessage(b"1")])))
    for _ in range(100):
        send_raw(world, again)  # rejected: its answer is given again
    (node,) = world.receiver.handling.nodes.values()
    assert world.wire.near.is_paused
    assert 20_000 < node.inbox.answers.refused_bytes < 22_000
    for n in range(100):
        send_raw(world, Request(n, "a", messages))
    assert len(world.wire.near.sent) == before
    connection.channel_writable(True)
    world.run()
    assert not world.wire.near.is_paused
    assert len(world.node.replies) == 100
    assert len(world.node.nacks) == 101


def test_one_read_of_many_requests_makes_no_more_answers_than_the_limit() -> None:
    world = World(limits=Limits(answer_bytes=1000))
    messages = msgspec.Raw(encode_messages([BareMessage(b"1")]))
    connection = next(iter(world.attachment.connections)).connection
    near = world.wire.near
    before = len(near.sent)

    def send(frame: bytes) -> None:
        type(near).send(near, frame)
        near.unsent += len(frame)

    near.send = send  # type: ignore[method-assign]  # nothing of it is read
    connection.frames_received([encode_frame(Request(n, "a", messages)) for n in range(500)])
    connection.channel_writable(False)
    world.clock.advance(0)
    assert near.is_paused
    assert len(near.sent) - before < 30


def test_beyond_its_window_it_stops_reading_until_handlers_have_ended() -> None:
    waiting = Waiting()
    world = World(waiting, window=(3, 1000))
    for n in range(1, 6):
        send_raw(world, transfer(n, b"%d" % n))
    assert world.wire.near.is_paused
    for n in range(1, 6):
        waiting.end(b"%d" % n)
        world.run()
    assert not world.wire.near.is_paused
    assert waiting.given == [b"1", b"2", b"3", b"4", b"5"]
    node = next(iter(world.receiver.handling.nodes.values()))
    assert (node.works, node.held_messages, node.held_bytes) == (0, 0, 0)


def test_one_run_larger_than_the_window_is_read_whatever_the_window() -> None:
    waiting = Waiting()
    world = World(waiting, window=(3, 1000))
    send_raw(world, transfer(1, b"1", b"2", b"3", b"4"))
    assert not world.wire.near.is_paused


def test_answers_wait_for_a_transport_that_has_no_room_and_leave_as_one() -> None:
    world = World()
    near = world.wire.near.user
    assert near is not None
    near.channel_writable(False)
    world.node.offer([b"1"])
    world.run()
    world.node.offer([b"2"])
    world.run()
    assert (world.handled, world.node.answers) == ([b"1", b"2"], [])
    near.channel_writable(True)
    world.run()
    assert world.node.answers == [Ack([(1, 2)])]


def test_marks_of_incarnations_that_are_away_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgservice.receiver.reception.NODES_MAX", 2)
    world = World()
    for number in range(5):
        world.receiver._reception.node("node", f"other.{number}")
    assert list(world.receiver.handling.nodes) == [("node", "log.1"), ("node", "other.4")]


# --- starting and stopping


def test_it_is_a_service_that_dials_when_its_parent_starts() -> None:
    world = World(attach=False)
    parent = MultiService()
    world.receiver.setServiceParent(parent)
    assert verifyObject(IService, world.receiver)
    attachment = world.attach(world.node)
    world.run()
    assert not attachment.connected
    parent.startService()
    world.run()
    assert attachment.connected
    stopped = results_of(Deferred.fromCoroutine(_wait(parent.stopService())))
    world.run()
    assert stopped == [None]
    assert not attachment.connected
    parent.startService()
    world.run()
    assert attachment.connected


async def _wait(deferred: Any) -> None:
    await deferred


def test_stopping_lets_handlers_end_sends_their_answers_says_bye_and_closes() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1", b"2"])
    world.run()
    stopped = results_of(world.receiver.stop())
    world.run(3)
    assert (stopped, waiting.cancelled) == ([], [])
    waiting.end(b"1")
    world.run()
    assert stopped == [None]
    assert waiting.given == [b"1"]
    assert world.node.answers == [Ack([(1, 1)])]
    assert world.node.byes == [(0, "")]
    assert world.wire.near.is_gone
    world.run(60)
    assert world.diallers[0].dialled == 1


@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize("batch", [False, True])
def test_the_last_of_a_run_that_ends_while_the_receiver_stops_is_acknowledged(
    order: str, batch: bool
) -> None:
    ends: list[Deferred[None]] = []

    def handle(message: Any) -> Deferred[None]:
        ends.append(Deferred())
        return ends[-1]

    world = World(handle, batch=batch, order=order)
    world.node.offer([b"1"])
    world.run()
    stopped = results_of(world.receiver.stop())
    ends[0].callback(None)
    world.run()
    assert stopped == [None]
    assert world.node.answers == [Ack([(1, 1)])]
    world.receiver.startService()
    world.node.offer([b"2"])
    world.run(2)
    assert len(ends) == 2


@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize("kind", ["plain", "coroutine", "Deferred"])
def test_what_was_handled_before_a_handler_stops_the_receiver_is_acknowledged(
    kind: str, order: str
) -> None:
    handled: list[bytes] = []
    stopped: list[Any] = []

    def plain(message: ReceivedMessage) -> Deferred[None] | None:
        handled.append(message.body)
        if message.body == b"4":
            stopped.append(results_of(world.receiver.stop()))
        return succeed(None) if kind == "Deferred" else None

    async def coroutine(message: ReceivedMessage) -> None:
        plain(message)

    world = World(coroutine if kind == "coroutine" else plain, order=order)
    world.node.offer([b"1", b"2"], "a")
    world.node.offer([b"3", b"4", b"5"], "b")
    world.node.offer([b"6"], "c")
    world.run()
    assert handled == [b"1", b"2", b"3", b"4"]
    assert world.node.answers == [Ack([(1, 4)])]
    assert (stopped, world.node.byes) == ([[None]], [(0, "")])
    assert world.wire.near.is_gone
    assert world.receiver.handling._calls == set()
    # What was not begun comes again.
    assert (world.node.backlog.cursor, world.node.backlog.open_runs) == (4, 2)


def test_a_batch_that_stops_the_receiver_is_acknowledged_and_the_next_comes_again() -> None:
    handled: list[int] = []

    def handle(messages: list[ReceivedMessage]) -> None:
        handled.append(len(messages))
        world.receiver.stop()

    world = World(handle, batch=True)
    world.node.offer([b"1", b"2"], "a")
    world.node.offer([b"3"], "a")
    world.run()
    assert (handled, world.node.answers) == ([2], [Ack([(1, 2)])])
    assert world.wire.near.is_gone


def test_a_handler_that_stops_the_receiver_and_fails_is_answered_too() -> None:
    def handle(message: ReceivedMessage) -> None:
        if message.body == b"2":
            world.receiver.stop()
            raise Retry(7)

    world = World(handle)
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    ack, nack = world.node.answers
    assert ack == Ack([(1, 1)])
    assert isinstance(nack, Nack)
    assert (nack.first, nack.last, nack.action, nack.delay) == (2, 2, Action.RETRY, 7000)
    assert world.wire.near.is_gone


def test_stopping_waits_for_handlers_in_flight_when_another_handler_asks_for_it() -> None:
    waiting = Waiting()

    def handle(message: ReceivedMessage) -> Deferred[None] | None:
        if message.body != b"2":
            return waiting(message)
        stopped.append(results_of(world.receiver.stop()))
        waiting.end(b"1")  # inside the step: the flight that this lands is not the last of it
        return None

    stopped: list[Any] = []
    world = World(handle, order="none")
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    assert (stopped, waiting.given) == ([[None]], [b"1"])
    assert world.node.answers == [Ack([(1, 2)])]
    assert world.wire.near.is_gone


def test_the_last_answers_leave_though_the_transport_has_no_room() -> None:
    world = World()
    [link] = world.attachment.connections
    link.connection.channel_writable(False)
    world.node.offer([b"1"])
    world.run()
    assert (world.handled, world.node.answers) == ([b"1"], [])
    world.receiver.stop()
    world.run()
    assert world.node.answers == [Ack([(1, 1)])]


def test_stopping_takes_nothing_that_still_arrives() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1"], "a")
    world.run()
    world.receiver.stop()
    world.node.offer([b"2"], "b")
    world.run()
    assert waiting.given == [b"1"]
    waiting.end(b"1")
    world.run()


def test_a_handler_that_does_not_end_in_time_is_cancelled_and_not_counted() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1"])
    world.run()
    stopped = results_of(world.receiver.stop())
    world.run(9)
    assert stopped == []
    world.run(2)
    assert (stopped, waiting.cancelled) == ([None], [b"1"])
    [nack] = world.node.nacks
    assert (nack.action, nack.first) == (Action.LATER, 1)
    assert [run.attempts for run in world.node.backlog.waiting_runs] == [0]


def test_a_coroutine_that_waits_is_cancelled_where_it_waits_and_may_clean_up() -> None:
    never: Deferred[None] = Deferred()
    seen: list[str] = []

    async def handle(message: ReceivedMessage) -> None:
        try:
            await never
        except CancelledError:
            seen.append("cancelled")
            raise
        finally:
            seen.append("cleaned up")

    world = World(handle)
    world.node.offer([b"1"])
    world.run()
    stopped = results_of(world.receiver.stop())
    world.run(11)
    assert (stopped, seen) == ([None], ["cancelled", "cleaned up"])
    assert [nack.action for nack in world.node.nacks] == [Action.LATER]


def test_after_a_restart_of_the_service_what_was_given_up_comes_again() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1", b"2"])
    world.run()
    world.receiver.stop()
    waiting.end(b"1")
    world.run()
    world.receiver.startService()
    world.run(5)
    waiting.end(b"2")
    world.run()
    assert waiting.given == [b"1", b"2"]
    assert world.node.backlog.cursor == 2


def test_stopping_twice_and_stopping_what_never_started_is_safe() -> None:
    idle = Receiver(Clock(), name="r", handler=print)
    assert results_of(idle.stop()) == [None]
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1"])
    world.run()
    first, second = results_of(world.receiver.stop()), results_of(world.receiver.stop())
    waiting.end(b"1")
    world.run()
    assert (first, second) == ([None], [None])


def test_a_cancelled_stop_goes_on() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1"])
    world.run()
    stopping = world.receiver.stop()
    results_of(stopping)
    stopping.cancel()
    waiting.end(b"1")
    world.run()
    assert world.wire.near.is_gone


def test_detaching_closes_one_connection_and_keeps_what_runs() -> None:
    waiting = Waiting()
    world = World(waiting)
    world.node.offer([b"1"])
    world.run()
    world.attachment.stop()
    world.run(10)
    assert not world.attachment.connected
    waiting.end(b"1")
    world.attachment.start()
    world.run(2)
    assert (waiting.given, world.node.backlog.cursor) == ([b"1"], 1)


def test_a_port_that_does_not_open_again_says_why_and_is_tried_until_it_does() -> None:
    class Ports:
        taken = False
        opened = 0

        def find(self, address: str) -> Any:
            return self

        def check_listen(self, address: str) -> None:
            return None

        def listen(self, *arguments: Any) -> Deferred[Any]:
            if self.taken:
                return fail(CannotListen("tcp:1", "the port is taken"))
            self.opened += 1
            return succeed(types.SimpleNamespace(stopListening=lambda: None))

    ports = Ports()
    clock = Clock()
    receiver = Receiver(clock, name="r", handler=print, transports=ports)
    (listening,) = results_of(receiver.listen("tcp:1"))
    receiver.stop()
    ports.taken = True
    receiver.startService()
    assert "the port is taken" in listening.error
    clock.advance(60)
    assert "the port is taken" in listening.error
    receiver.stop()
    assert clock.getDelayedCalls() == []
    receiver.startService()
    ports.taken = False
    clock.advance(5)
    assert (listening.error, ports.opened) == ("", 2)
    receiver.stop()
    assert clock.getDelayedCalls() == []
