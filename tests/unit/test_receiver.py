"""What a handler's outcome does to its message, whatever carries it: SEMANTICS 2, 3, 14."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.core.frames import Ack, Nack, Transfer
from msgservice.errors import MalformedFrame, Reject, Retry
from msgservice.limits import BATCH_MESSAGES_MAX
from msgservice.message import Action, Status, WireMessage
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from msgservice.records import Origin
from tests.kit.receiver_world import Node, World, results_of


class Waiting:
    """A handler whose Deferreds the test fires."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self.open: dict[bytes, Deferred[None]] = {}
        self.cancelled: list[bytes] = []

    def __call__(self, message: ReceivedMessage) -> Deferred[None]:
        body = message.body
        self.given.append(body)
        self.open[body] = Deferred(lambda _: self.cancelled.append(body))
        return self.open[body]

    def end(self, body: bytes) -> None:
        self.open.pop(body).callback(None)

    def fail(self, body: bytes, error: Exception) -> None:
        self.open.pop(body).errback(error)


# --- where it begins


@pytest.mark.parametrize("start", [5.5, None, True, "nww", b"first"])
def test_a_start_that_is_none_is_refused_at_once(start: Any) -> None:
    receiver = Receiver(Clock(), name="billing", handler=print)
    with pytest.raises(ValueError, match=r'^start must be "new", "first", a position or a time'):
        receiver.attach("tcp:127.0.0.1:1", start=start)


# --- plain handlers


def test_a_plain_handler_gets_every_message_and_the_run_is_acknowledged_whole() -> None:
    world = World()
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    assert world.handled == [b"1", b"2", b"3"]
    assert [Ack([(1, 3)])] == world.node.answers


def test_runs_of_one_turn_are_acknowledged_in_one_frame() -> None:
    world = World()
    for subject in ("a", "b", "c"):
        world.node.offer([b"1", b"2"], subject)
    world.run()
    assert [Ack([(1, 6)])] == world.node.answers


def test_long_runs_are_acknowledged_whole() -> None:
    world = World(node=None)
    world.node.offer([b"%d" % n for n in range(1000)])
    world.run()
    assert [b"%d" % n for n in range(1000)] == world.handled
    assert [Ack([(1, 1000)])] == world.node.answers


@pytest.mark.parametrize("more", [0, 1])
def test_a_run_of_more_messages_than_are_allowed_is_refused_before_it_is_decoded(more: int) -> None:
    world = World(node=None)
    count = BATCH_MESSAGES_MAX + more
    world.node.offer([b""] * count)
    world.run()
    if more:
        said = f"TRANSFER of {count} messages, from 1 to {BATCH_MESSAGES_MAX} are allowed"
        assert world.fails(MalformedFrame(said))
    else:
        assert [Ack([(1, count)])] == world.node.answers


def test_what_a_plain_handler_returns_is_no_business_of_the_receiver() -> None:
    world = World(lambda message: 17)
    world.node.offer([b"1"])
    world.run()
    assert world.node.acknowledged == [(1, 1)]


async def some_async(message: object) -> AsyncIterator[object]:
    yield message


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("kind", ["generator", "async_generator"])
def test_14_a_handler_that_returns_a_generator_has_not_run_and_failed(
    kind: str, threads: int, batch: bool, logged_failures: list[LogEvent]
) -> None:
    """Nothing that could be seen when the receiver was made."""

    def handle(message: object) -> object:
        return (one for one in [message]) if kind == "generator" else some_async(message)

    world = World(handle, threads=threads, batch=batch)
    world.node.offer([b"1"])
    world.until(lambda: world.node.answers)
    [nack] = world.node.nacks
    assert nack.action == Action.RETRY
    assert nack.reason.startswith(f"TypeError: a handler returned a {kind}")
    assert "inlineCallbacks" in nack.reason
    assert len(logged_failures) == 1
    logged_failures.clear()
    world.stop()


def test_a_deferred_that_fails_has_failed_for_all_messages_that_it_was_returned_for(
    logged_failures: list[LogEvent],
) -> None:
    """Of a database that all of them wait for, say: none of them was handled."""
    ready: Deferred[None] = Deferred()
    world = World(lambda message: ready, order="none")
    world.node.offer([b"1", b"2"])
    world.run()
    ready.errback(RuntimeError("no database"))
    world.run()
    world.node.offer([b"3"])  # and when it has failed before
    world.run()
    assert [] == world.node.acknowledged
    reasons = [nack.reason.splitlines()[0] for nack in world.node.nacks]
    assert ["RuntimeError: no database"] * 3 == reasons
    logged_failures.clear()


@pytest.mark.parametrize("order", ["strict", "none"])
def test_a_retry_asks_for_the_message_again_after_its_delay(order: str) -> None:
    seen: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        seen.append(message.body)
        if seen.count(b"2") == 1 and message.body == b"2":
            raise Retry(5.0, "busy")

    world = World(handle, order=order)
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    assert [Nack(2, 2, Action.RETRY, 5000, "busy")] == world.node.nacks
    world.run(4.9)
    assert seen.count(b"2") == 1
    world.run(0.2)
    assert seen.count(b"2") == 2
    assert world.node.backlog.cursor == 3


def test_strict_order_3_nothing_behind_a_retried_message_is_handled_before_it() -> None:
    seen: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        seen.append(message.body)
        if seen == [b"1", b"2"]:
            raise Retry(1.0)

    world = World(handle)
    world.node.offer([b"1", b"2", b"3"])
    world.node.offer([b"4"])
    world.node.offer([b"other"], "b")
    world.run(2)
    assert seen == [b"1", b"2", b"other", b"2", b"3", b"4"]
    assert world.node.backlog.cursor == 5


def test_without_order_the_others_go_on() -> None:
    seen: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        seen.append(message.body)
        if seen.count(b"2") == 1 and message.body == b"2":
            raise Retry(1.0)

    world = World(handle, order="none")
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    assert seen == [b"1", b"2", b"3"]
    assert [Ack([(1, 1), (3, 3)])] == [a for a in world.node.answers if isinstance(a, Ack)]


@pytest.mark.parametrize(
    ("delay", "milliseconds"),
    [(None, 0), (0, 1), (-1.0, 1), (0.0004, 1), (1.5, 1500), (float("inf"), 0), (1e300, 2**53 - 1)],
)
def test_a_retry_says_its_delay_in_milliseconds_and_0_for_the_senders_own(
    delay: float | None, milliseconds: int
) -> None:
    def handle(message: ReceivedMessage) -> None:
        raise Retry(delay)

    world = World(handle)
    world.node.offer([b"1"])
    world.run()
    assert [milliseconds] == [nack.delay for nack in world.node.nacks]


@pytest.mark.parametrize("order", ["strict", "none"])
def test_a_rejected_message_is_dead_and_the_others_go_on(order: str) -> None:
    seen: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        seen.append(message.body)
        if message.body == b"2":
            raise Reject("no such customer")

    world = World(handle, order=order)
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    assert seen == [b"1", b"2", b"3"]
    assert [Nack(2, 2, Action.DEAD, 0, "no such customer")] == world.node.nacks
    assert [s.first for s in world.node.settled if s.status is Status.DEAD] == [2]
    assert world.node.backlog.cursor == 3


def test_14_any_other_error_is_a_retry_with_the_traceback_and_is_logged_once(
    logged_failures: list[LogEvent],
) -> None:
    def handle(message: ReceivedMessage) -> None:
        raise KeyError("customer")

    world = World(handle, node=None)
    world.node.offer([b"1"])
    world.run()
    [nack] = world.node.nacks
    assert (nack.action, nack.delay) == (Action.RETRY, 0)
    assert nack.reason.startswith("KeyError: 'customer'\n")
    assert "in handle" in nack.reason
    assert len(logged_failures) == 1
    logged_failures.clear()


def test_a_reason_is_cut_to_what_a_frame_takes_and_has_characters_that_it_takes() -> None:
    def handle(message: ReceivedMessage) -> None:
        raise Reject("\udcff" + "ä" * 10_000)

    world = World(handle)
    world.node.offer([b"1"])
    world.run()
    [nack] = world.node.nacks
    assert 4000 >= len(nack.reason.encode()) > 3990


def test_a_handler_that_exits_fails_like_any_other(logged_failures: list[LogEvent]) -> None:
    def handle(message: ReceivedMessage) -> None:
        raise SystemExit(3)

    world = World(handle)
    world.node.offer([b"1"])
    world.run()
    assert [nack.action for nack in world.node.nacks] == [Action.RETRY]
    logged_failures.clear()


def test_after_so_many_attempts_the_message_is_dead_and_the_lane_goes_on(
    logged_failures: list[LogEvent],
) -> None:
    tries: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        tries.append(message.body)
        if message.body == b"bad":
            raise ValueError("poison")

    world = World(handle, attach=False)
    world.node.backlog.max_attempts = 3
    world.attach(world.node)
    world.run()
    world.node.offer([b"bad", b"good"])
    world.run(10)
    assert tries == [b"bad", b"bad", b"bad", b"good"]
    logged_failures.clear()


# --- asynchronous handlers


def coroutine_of(waiting: Waiting) -> Callable[[ReceivedMessage], Any]:
    async def handle(message: ReceivedMessage) -> None:
        await waiting(message)

    return handle


@pytest.fixture(params=["deferred", "coroutine"])
def kind(request: pytest.FixtureRequest) -> Callable[[Waiting], Callable[[ReceivedMessage], Any]]:
    return coroutine_of if request.param == "coroutine" else lambda waiting: waiting


Kind = Callable[[Waiting], Callable[[ReceivedMessage], Any]]


def test_2_a_message_is_acknowledged_when_its_deferred_fires_and_not_before(kind: Kind) -> None:
    waiting = Waiting()
    world = World(kind(waiting))
    world.node.offer([b"1", b"2"])
    world.run(5)
    assert (waiting.given, world.node.answers) == ([b"1"], [])
    waiting.end(b"1")
    world.run()
    assert ([b"1", b"2"], [Ack([(1, 1)])]) == (waiting.given, world.node.answers)


def test_lanes_run_side_by_side_each_in_its_order(kind: Kind) -> None:
    waiting = Waiting()
    world = World(kind(waiting))
    world.node.offer([b"a1", b"a2"], "a")
    world.node.offer([b"b1", b"b2"], "b")
    world.run()
    assert waiting.given == [b"a1", b"b1"]
    waiting.end(b"b1")
    waiting.end(b"b2")
    world.run()
    assert world.node.acknowledged == [(3, 4)]


def test_without_order_messages_run_side_by_side_and_end_each_on_its_own(kind: Kind) -> None:
    waiting = Waiting()
    world = World(kind(waiting), order="none")
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    assert waiting.given == [b"1", b"2", b"3"]
    waiting.end(b"2")
    world.run()
    assert [Ack([(2, 2)])] == world.node.answers
    waiting.fail(b"1", Retry(60.0))
    waiting.end(b"3")
    world.run()
    assert world.node.acknowledged == [(2, 2), (3, 3)]


def test_no_more_handlers_run_at_once_than_concurrency_says(kind: Kind) -> None:
    waiting = Waiting()
    world = World(kind(waiting), order="none", concurrency=2)
    world.node.offer([b"1", b"2", b"3", b"4"])
    world.run()
    assert waiting.given == [b"1", b"2"]
    waiting.end(b"2")
    world.run()
    assert waiting.given == [b"1", b"2", b"3"]


def test_lanes_wait_for_their_turn_beyond_concurrency() -> None:
    waiting = Waiting()
    world = World(waiting, concurrency=2)
    for subject in "abc":
        world.node.offer([subject.encode() + b"1", subject.encode() + b"2"], subject)
    world.run()
    assert waiting.given == [b"a1", b"b1"]
    waiting.end(b"a1")
    world.run()
    assert waiting.given == [b"a1", b"b1", b"c1"]


def test_a_deferred_that_has_fired_already_is_as_good_as_none() -> None:
    world = World(lambda message: succeed(None))
    world.node.offer([b"%d" % n for n in range(3000)])
    world.run()
    assert world.node.backlog.cursor == 3000


def test_an_asynchronous_handler_that_fails_is_retried(kind: Kind) -> None:
    waiting = Waiting()
    world = World(kind(waiting))
    world.node.offer([b"1", b"2"])
    world.run()
    waiting.fail(b"1", Retry(1.0))
    world.run(1)
    assert waiting.given == [b"1", b"1"]
    waiting.end(b"1")
    world.run()
    waiting.end(b"2")
    world.run()
    assert world.node.backlog.cursor == 2


def test_an_asynchronous_handler_that_rejects_lets_the_lane_go_on(kind: Kind) -> None:
    waiting = Waiting()
    world = World(kind(waiting))
    world.node.offer([b"1", b"2"])
    world.run()
    waiting.fail(b"1", Reject("no"))
    world.run()
    assert waiting.given == [b"1", b"2"]


def test_answers_of_handlers_that_end_in_one_turn_are_one_frame() -> None:
    waiting = Waiting()
    world = World(waiting, order="none")
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    for body in (b"3", b"1", b"2"):
        waiting.end(body)
    world.run()
    assert [Ack([(1, 3)])] == world.node.answers


# --- batches


def test_a_batch_handler_gets_a_whole_run() -> None:
    got: list[list[bytes]] = []
    world = World(lambda messages: got.append([m.body for m in messages]), batch=True)
    world.node.offer([b"1", b"2"])
    world.node.offer([b"3"])
    world.run()
    assert got == [[b"1", b"2"], [b"3"]]
    assert world.node.acknowledged == [(1, 2), (3, 3)]


@pytest.mark.parametrize("order", ["strict", "none"])
def test_a_batch_that_fails_is_sent_again_as_one(order: str) -> None:
    got: list[list[bytes]] = []

    def handle(messages: list[ReceivedMessage]) -> None:
        got.append([m.body for m in messages])
        if len(got) == 1:
            raise Retry(1.0)

    world = World(handle, batch=True, order=order)
    world.node.offer([b"1", b"2"])
    world.run(1)
    assert got == [[b"1", b"2"], [b"1", b"2"]]
    assert world.node.backlog.cursor == 2


def test_a_batch_that_is_rejected_is_dead_as_one() -> None:
    def handle(messages: list[ReceivedMessage]) -> None:
        raise Reject("no")

    world = World(handle, batch=True)
    world.node.offer([b"1", b"2"])
    world.run()
    assert [Nack(1, 2, Action.DEAD, 0, "no")] == world.node.nacks


def test_a_batch_handler_may_be_asynchronous() -> None:
    done: Deferred[None] = Deferred()
    world = World(lambda messages: done, batch=True)
    world.node.offer([b"1", b"2"])
    world.run()
    assert world.node.answers == []
    done.callback(None)
    world.run()
    assert [Ack([(1, 2)])] == world.node.answers


# --- what the handler gets


def message_of(world_message: WireMessage, **more: Any) -> ReceivedMessage:
    got: list[ReceivedMessage] = []
    world = World(got.append)
    world.node.offer([b"first", world_message], **more)
    world.run()
    assert len(got) == 2
    return got[1]


def test_a_message_knows_what_it_came_with() -> None:
    origin = Origin("shop", 7, "hash")
    message = message_of(
        WireMessage(b"[1]", {"content-type": "application/json"}, "o-17"),
        subject="orders.new",
        sequence=100,
        after=50,
        origin=origin,
    )
    assert message.body == b"[1]"
    assert message.subject == "orders.new"
    assert message.headers == {"content-type": "application/json"}
    assert message.content == [1]
    assert message.content is message.content
    assert message.id == "o-17"
    assert (message.sender, message.sequence, message.position) == ("shop", 8, 101)
    assert origin == message.origin
    assert message.identity == "shop/hash/8"
    assert not message.replay


def test_a_bare_message_has_no_headers_and_its_content_is_its_body() -> None:
    message = message_of(WireMessage(b"x"), flags=2)
    assert (message.headers, message.content, message.id) == ({}, b"x", None)
    assert (message.sender, message.sequence, message.origin) == ("node", 2, None)
    assert message.replay


def test_content_that_is_not_what_it_says_is_the_handlers_business() -> None:
    message = message_of(WireMessage(b"{", {"content-type": "application/json"}))
    with pytest.raises(ValueError, match="body is no JSON"):
        message.content  # noqa: B018  # reading it is the point


def test_a_messages_text_form_does_not_show_its_body() -> None:
    assert "secret" not in repr(message_of(WireMessage(b"secret")))


def test_elements_that_a_peer_adds_to_a_message_change_nothing_that_a_handler_sees() -> None:
    got: list[ReceivedMessage] = []
    world = World(got.append)
    node = world.node
    forged = msgspec.msgpack.encode(
        [[b"x", None, None, None, "run", "number", "content", 1], [b"y"], [b"z", {}, "", "", {}]]
    )
    assert node.connection is not None
    node.connection.send(Transfer(1, "a", msgspec.Raw(forged)))
    world.run()
    seen = [(m.subject, m.content, m.position) for m in got]
    assert seen == [("a", b"x", 1), ("a", b"y", 2), ("a", b"z", 3)]


# --- turns


class SlowWorld(World):
    """A world whose plain handler takes `seconds` of its clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__()

    def handle(self, message: ReceivedMessage) -> None:
        self.clock.rightNow += self.seconds
        super().handle(message)


def test_a_slow_plain_handler_leaves_the_reactor_its_turns() -> None:
    world = SlowWorld(0.01)
    world.node.offer([b"%d" % n for n in range(1000)])
    world.run()
    assert len(world.handled) == 1000
    assert len(world.node.answers) > 4
    assert world.node.backlog.cursor == 1000


def test_a_handler_that_sets_off_more_work_does_not_run_inside_itself() -> None:
    depth, deepest = 0, 0
    waiting: list[Deferred[None]] = []

    def handle(message: ReceivedMessage) -> Deferred[None]:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        for each in waiting[:]:
            waiting.remove(each)
            each.callback(None)  # another lane may go on now
        waiting.append(Deferred())
        depth -= 1
        return waiting[-1]

    world = World(handle)
    for subject in "abcdefgh":
        world.node.offer([b"%d" % n for n in range(50)], subject)
    world.run()
    assert deepest == 1


def test_the_order_that_the_node_answers_holds() -> None:
    waiting = Waiting()
    node = Node(World(attach=False).clock, order="none")
    world = World(waiting, node=node, order="strict")
    node.offer([b"1", b"2"])
    world.run()
    assert waiting.given == [b"1", b"2"]


def run_one_call(clock: Clock) -> None:
    """Have what is due first happen, and nothing that it brings: `advance` goes on with that."""
    call = clock.calls.pop(0)
    call.called = 1
    clock.rightNow = max(clock.rightNow, call.getTime())
    call.func(*call.args, **call.kw)


@pytest.mark.parametrize("size", [1, 40])
def test_a_slow_handler_has_one_slice_of_a_turn_however_many_runs_a_read_brought(size: int) -> None:
    turns: list[int] = []

    def handle(message: ReceivedMessage) -> None:
        world.clock.rightNow += 0.02
        turns[-1] += 1

    world = World(handle)
    turns.append(0)
    for n in range(0, 80, size):  # before anything is delivered: they come in one read
        world.node.offer([b"%d" % (n + k) for k in range(size)], "abcd"[n % 4])
    while sum(turns) < 80:
        run_one_call(world.clock)
        turns.append(0)
    assert sum(turns) == 80
    assert max(turns) <= 4  # a slice, and the message in which it ends


@pytest.mark.parametrize("waits", [True, False])
def test_calls_that_end_together_have_one_slice_of_their_turn(waits: bool) -> None:
    """`waits`: what they make room for are calls that last as well, begun in 20 ms."""
    pending: list[Deferred[None]] = []
    slow = 0

    def handle(message: ReceivedMessage) -> Deferred[None] | None:
        nonlocal slow
        if message.body == b"slow":
            slow += 1
            world.clock.rightNow += 0.02
            if not waits:
                return None
        pending.append(Deferred())
        return pending[-1]

    world = World(handle, concurrency=40)
    for n in range(40):
        world.node.offer([b"waits"], f"lane{n}")
    for n in range(80):
        world.node.offer([b"slow"], f"other{n}")
    world.run()
    assert (len(pending), slow) == (40, 0)
    ended = pending.copy()
    pending.clear()
    before = world.clock.rightNow
    for call in ended:
        call.callback(None)
    assert world.clock.rightNow - before <= 0.08
    while slow < (40 if waits else 80):  # nothing is forgotten for that
        before = world.clock.rightNow
        run_one_call(world.clock)
        assert world.clock.rightNow - before <= 0.08


def test_runs_of_one_message_say_nothing_of_how_fast_a_long_run_is() -> None:
    slow = False
    longest = 0.0

    def handle(message: ReceivedMessage) -> None:
        if slow:
            world.clock.rightNow += 0.02

    world = World(handle)
    for _ in range(500):
        world.node.offer([b"x"])
    world.run()
    slow = True
    world.node.offer([b"x"] * 200)
    while world.node.backlog.cursor < 700:
        before = world.clock.rightNow
        run_one_call(world.clock)
        longest = max(longest, world.clock.rightNow - before)
    assert longest <= 0.08


class Deaf(Deferred[None]):
    """One that does not listen when it is cancelled."""

    def cancel(self) -> None:
        pass


def test_a_call_that_a_stop_gave_up_takes_no_place_of_a_new_one() -> None:
    hanging = Deaf()

    def handle(message: ReceivedMessage) -> Deferred[None] | None:
        world.handled.append(message.body)
        return hanging if message.body == b"hangs" else None

    world = World(handle, concurrency=1)
    others = [b"%d" % n for n in range(4)]  # a quarter of the flight that is lost is two messages
    lanes = [("a", b"hangs"), ("b", b"other"), ("c", b"third"), *[("d", one) for one in others]]
    for lane, body in (*lanes, ("a", b"behind it")):
        world.node.offer([body], lane)
    world.run()
    stopped = results_of(world.receiver.stop())
    world.run(world.limits.stop_timeout + 1)
    assert stopped == [None]
    assert world.handled == [b"hangs"]
    world.receiver.startService()
    world.run(3)
    # Its own lane waits for it.
    assert world.handled == [b"hangs", b"other", b"third", *others]
    hanging.callback(None)
    world.run(60)
    assert world.handled[-1] == b"behind it"
