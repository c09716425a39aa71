"""Programs that answer requests: DELIVERY 57, from `client.respond` to `client.request`.

Clients of a node in this process, with its Clock; what the node does is in `test_node_responders`.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent

from msgservice.client.client import Client
from msgservice.client.responding import ANSWERS_SECONDS, SLICE_SECONDS, Asked, Responder
from msgservice.errors import (
    Ambiguous,
    BadSubject,
    BadValue,
    Busy,
    ClientClosed,
    LimitReached,
    NoResponder,
    NotSupported,
    RequestFailed,
    RequestTimeout,
    ResponderLost,
)
from msgservice.limits import Limits
from tests.kit.clients import ClientWorld, error_of, now
from tests.kit.nodes import NodeWorld


class World(NodeWorld):
    """A node, a client that asks, and one that answers."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits)
        self.shop = self.client("shop")
        self.prices = self.client("prices")

    def client(self, name: str) -> Client:
        client = self.node.client(name)
        self.settle()
        return client

    def respond(self, handler: Any, subject: Any = "prices.get", **options: Any) -> Responder:
        responder = self.prices.respond(subject, handler, **options)
        waiting = responder.when_ready()
        self.settle()
        assert responder is now(waiting)
        return responder

    def ask(self, content: Any = b"", subject: str = "prices.get", **options: Any) -> Deferred[Any]:
        asked = self.shop.request(subject, content, **options)
        self.settle()
        return asked

    def close(self) -> None:
        """End all; nothing is left to be done by a timer then."""
        for client in (self.shop, self.prices):
            client.close()
        self.settle(1)
        self.node.stopService()
        self.settle(1)
        assert [] == self.clock.getDelayedCalls()


def test_57_a_handler_gets_what_was_asked_and_its_content_is_the_answer() -> None:
    world = World()
    seen: list[Asked] = []

    def handle(asked: Asked) -> Any:
        seen.append(asked)
        return {"price": 7}

    world.respond(handle)
    asked = world.ask({"sku": "x"}, headers={"trace": "t1"}, timeout=5)
    assert {"price": 7} == now(asked)
    (one,) = seen
    assert ("prices.get", {"sku": "x"}, "t1") == (one.subject, one.content, one.headers["trace"])
    assert 0 < one.seconds_left <= 5
    world.close()


@pytest.mark.parametrize("content", [b"bytes", "text", [1, 2], None, 0, False])
def test_57_what_a_handler_returns_is_content(content: object) -> None:
    world = World()
    world.respond(lambda asked: content)
    assert content == now(world.ask())
    world.close()


def test_57_calls_and_answers_of_one_turn_share_a_frame() -> None:
    world = World()
    responder = world.respond(lambda asked: asked.body)
    sent: list[bytes] = []
    connection = responder._connection
    assert connection is not None
    assert connection.channel is not None
    send = connection.channel.send_now
    connection.channel.send_now = lambda frames: [sent.extend(frames), send(frames)]  # type: ignore[method-assign,assignment,func-returns-value]  # a spy
    asked = [world.shop.request("prices.get", b"%d" % n) for n in range(50)]
    world.settle()
    assert [b"%d" % n for n in range(50)] == [now(one) for one in asked]
    assert 1 == len(sent)
    world.close()


def test_57_answers_leave_while_handlers_that_take_their_time_go_on() -> None:
    world = World()
    handled: list[bytes] = []
    left: list[int] = []  # how many were handled by then

    def handle(asked: Asked) -> bytes:
        world.clock.rightNow += ANSWERS_SECONDS / 2
        handled.append(asked.body)
        return asked.body

    responder = world.respond(handle)
    connection = responder._connection
    assert connection is not None
    push = connection.push
    connection.push = lambda: [left.append(len(handled)), push()]  # type: ignore[method-assign,assignment,func-returns-value]  # a spy
    asked = [world.shop.request("prices.get", b"%d" % n) for n in range(8)]
    world.settle()
    assert [b"%d" % n for n in range(8)] == [now(one) for one in asked] == handled
    assert [2, 4, 6] == left
    world.close()


def test_57_coroutines_and_deferreds_are_waited_for_and_answers_come_as_they_end() -> None:
    world = World()
    waiting: dict[bytes, Deferred[Any]] = {}

    async def handle(asked: Asked) -> Any:
        if asked.body == b"now":
            return "at once"
        waiting[asked.body] = Deferred()
        return await waiting[asked.body]

    world.respond(handle)
    first, second, third = world.ask(b"1"), world.ask(b"2"), world.ask(b"now")
    assert "at once" == now(third)
    waiting[b"2"].callback("two")
    world.settle()
    assert "two" == now(second)
    assert not first.called
    waiting[b"1"].callback("one")
    world.settle()
    assert "one" == now(first)
    world.close()


def kinds(logged: list[Any]) -> list[str]:
    """The types of the failures that were logged, taken out."""
    found = [event["log_failure"].type.__name__ for event in logged]
    logged.clear()
    return found


def test_57_a_failed_handler_tells_what_it_means_to_tell_and_else_only_its_kind(
    logged_failures: list[Any],
) -> None:
    world = World()
    busy = Busy("prices.get")
    errors: list[Exception] = [RequestFailed("no such sku", 404), KeyError("secret"), busy]

    def handle(asked: Asked) -> Any:
        raise errors.pop(0)

    world.respond(handle)
    meant = error_of(world.ask(), RequestFailed)
    assert ("no such sku", 404) == (str(meant), meant.code)
    told = error_of(world.ask(), RequestFailed)
    assert "KeyError where it was to be answered" == str(told)
    error_of(world.ask(), Busy)
    assert ["KeyError"] == kinds(logged_failures)
    # What a request of its own has failed with says nothing of whether it was asked itself.
    errors += [Busy("other"), RequestFailed("gone", NoResponder.refusal_code)]
    assert "Busy where it was to be answered" == str(error_of(world.ask(), RequestFailed))
    passed_on = error_of(world.ask(), RequestFailed)
    assert ("gone", 0) == (str(passed_on), passed_on.code)
    assert ["Busy"] == kinds(logged_failures)
    world.respond(lambda asked: object(), subject="no.form")
    assert "TypeError" in str(error_of(world.ask(subject="no.form"), RequestFailed))
    assert ["TypeError"] == kinds(logged_failures)
    world.close()


def test_57_an_answer_that_is_too_large_is_said() -> None:
    world = World(Limits(max_batch=4096))
    world.respond(lambda asked: b"x" * int(asked.body))
    assert 1 == error_of(world.ask(b"5000"), RequestFailed).code
    assert b"x" * 3000 == now(world.ask(b"3000"))
    world.close()


def test_57_a_handler_is_cancelled_when_its_askers_time_is_over() -> None:
    world = World()
    ended: list[str] = []

    async def handle(asked: Asked) -> Any:
        try:
            await Deferred()
        except CancelledError:
            ended.append("cancelled")
            raise

    responder = world.respond(handle)
    asked = world.ask(timeout=3)
    assert 1 == responder.unanswered
    world.settle(3.1)
    assert 3 == error_of(asked, RequestTimeout).seconds
    assert ["cancelled"] == ended
    assert 0 == responder.unanswered
    world.close()


def test_57_one_that_cannot_be_cancelled_takes_no_place() -> None:
    world = World()
    stuck: list[Deferred[Any]] = []

    def handle(asked: Asked) -> Deferred[Any]:
        stuck.append(Deferred(lambda one: one.callback("late")))
        return stuck[-1]

    responder = world.respond(handle, concurrency=1)
    world.ask(timeout=1).addErrback(lambda _: None)
    error_of(world.ask(timeout=1), Busy)
    world.settle(1.1)
    assert 0 == responder.unanswered
    world.ask(timeout=1).addErrback(lambda _: None)
    assert 2 == len(stuck)
    world.settle(1.1)
    info = now(world.ask({}, subject="$node.info"))["requests"]
    assert (1, 0, 0, 0) == tuple(info[each] for each in ("responders", "pending", "late", "stray"))
    world.close()


def test_57_what_it_takes_at_once_is_said_to_the_node() -> None:
    world = World()
    responder = world.respond(lambda asked: Deferred(), concurrency=2)
    asked = [world.shop.request("prices.get", b"") for _ in range(3)]
    world.settle()
    error_of(asked[2], Busy)
    assert 2 == responder.unanswered
    for one in asked[:2]:
        one.addErrback(lambda _: None)
    world.close()


def test_57_handlers_share_the_reactor_with_others() -> None:
    world = World()
    by_then: list[int] = []
    handled = 0

    def handle(asked: Asked) -> None:
        nonlocal handled
        handled += 1
        world.clock.rightNow += 0.02  # so long it takes

    world.respond(handle)
    asked = [world.shop.request("prices.get", b"") for _ in range(20)]
    world.clock.callLater(0.03, lambda: by_then.append(handled))
    world.settle()
    assert [None] * 20 == [now(one) for one in asked]
    assert by_then[0] <= 4
    world.close()


def test_57_closing_answers_what_came_and_takes_nothing_more() -> None:
    world = World()
    waiting: list[Deferred[Any]] = []

    def handle(asked: Asked) -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    responder = world.respond(handle)
    first = world.ask()
    closing = responder.close()
    world.settle()
    assert not closing.called
    error_of(world.ask(), NoResponder)
    waiting[0].callback("answered")
    world.settle()
    assert "answered" == now(first)
    assert now(closing) is None
    assert not responder.connected
    assert now(responder.close()) is None
    error_of(responder.when_ready(), ClientClosed)
    world.close()


def test_57_closing_does_not_wait_for_ever() -> None:
    world = World(Limits(stop_timeout=4))
    responder = world.respond(lambda asked: Deferred())
    asked = world.ask()
    closing = responder.close()
    world.settle(2.1)
    assert now(closing) is None
    error_of(asked, ResponderLost)
    world.close()


def test_57_closing_the_client_closes_its_responders() -> None:
    world = World()
    one, two = world.respond(lambda asked: 1), world.respond(lambda asked: 2, subject="other")
    closing = world.prices.close()
    world.settle(1)
    assert now(closing) is None
    assert not one.connected
    assert not two.connected
    error_of(world.ask(), NoResponder)
    with pytest.raises(ClientClosed):
        world.prices.respond("a", lambda asked: 1)
    world.close()


def test_57_one_that_is_lost_comes_back_and_what_it_had_fails_at_once() -> None:
    world = World()
    cancelled: list[object] = []
    responder = world.respond(lambda asked: Deferred(cancelled.append))
    asked = world.ask()
    connection = responder._connection
    assert connection is not None
    connection.abort()
    world.settle()
    assert isinstance(error_of(asked, ResponderLost), Ambiguous)
    assert 1 == len(cancelled)
    error_of(world.ask(), NoResponder)
    world.settle(5)
    assert responder.connected
    again = world.ask()
    assert 1 == responder.unanswered
    again.addErrback(lambda _: None)
    world.close()


def test_57_the_asker_fails_at_once_where_it_is_lost_itself_and_nothing_comes_twice() -> None:
    world = World()
    seen: list[bytes] = []

    def handle(asked: Asked) -> Deferred[Any]:
        seen.append(asked.body)
        return Deferred()

    world.respond(handle)
    asked = world.ask(b"1")
    hop = world.shop._hop
    assert hop.connection is not None
    hop.connection.abort()
    waits = world.shop.request("prices.get", b"2")
    world.settle()
    assert type(error_of(asked, Ambiguous)) is Ambiguous
    world.settle(5)
    assert [b"1", b"2"] == seen
    waits.addErrback(lambda _: None)
    world.close()


def test_57_a_node_that_stops_fails_what_waits_and_responders_come_back() -> None:
    world = World()
    responder = world.respond(lambda asked: asked.body or Deferred())
    asked = world.ask(b"")
    world.node.stopService()
    world.settle(20)
    error_of(asked, Ambiguous)
    world.node.startService()
    world.settle(60)
    assert responder.connected
    assert b"again" == now(world.ask(b"again"))
    world.close()


@pytest.mark.parametrize("subject", ["$node.info", "$", "a..b", "", ["good", "$node.>"], []])
def test_57_wrong_subjects_are_refused_at_once(subject: Any) -> None:
    world = World()
    with pytest.raises((BadSubject, BadValue)):
        world.prices.respond(subject, lambda asked: 1)
    assert not world.prices._responders
    world.close()


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, "2", 2**60])
def test_57_wrong_numbers_are_refused_at_once(concurrency: Any) -> None:
    world = World()
    with pytest.raises(BadValue, match="concurrency"):
        world.prices.respond("a", lambda asked: 1, concurrency=concurrency)
    world.close()


def test_57_a_handler_that_would_never_run_is_refused() -> None:
    world = World()

    def generator(asked: Asked) -> Any:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        world.prices.respond("a", generator)
    with pytest.raises(TypeError, match="handler must be callable, not 'price'"):
        world.prices.respond("a", "price")  # type: ignore[arg-type]  # the mistake
    world.close()


def test_57_a_pattern_answers_all_that_it_matches_and_nothing_of_the_nodes() -> None:
    world = World()
    world.respond(lambda asked: asked.subject, subject=[">"])
    assert "any.thing" == now(world.ask(subject="any.thing"))
    assert "name" in now(world.ask({}, subject="$node.info"))
    error_of(world.ask(subject="$else"), NoResponder)
    world.close()


def test_40_a_node_that_passes_no_requests_on_is_told_so() -> None:
    world = ClientWorld()
    world.node.features = ["codes"]
    responder = world.client.respond("a", lambda asked: 1)
    ready = responder.when_ready()
    world.settle()
    assert not responder.connected
    assert NotSupported("answering requests at node 'node'").args[0] in responder.last_error
    world.client.close()
    world.advance(1)
    error_of(ready, ClientClosed)


def test_57_a_client_that_is_told_it_has_too_many_pending_says_so() -> None:
    world = World(Limits(requests=2))
    world.respond(lambda asked: Deferred())
    asked = [world.ask() for _ in range(3)]
    error_of(asked[2], LimitReached)
    for one in asked[:2]:
        one.addErrback(lambda _: None)
    world.close()


def test_57_it_is_ready_when_the_node_passes_requests_on_and_not_before() -> None:
    world = World()
    responder = world.prices.respond("prices.get", lambda asked: 7)
    ready = responder.when_ready()
    while not ready.called:
        assert not responder.connected
        (call, *_) = sorted(world.clock.getDelayedCalls(), key=lambda call: call.getTime())
        if call.getTime() > world.clock.seconds():
            break
        one_turn(world)
    assert ready.called
    assert 1 == len(world.node.parts.responders)
    world.close()


def one_turn(world: World) -> None:
    """Let one call happen that is due."""
    clock = world.clock
    call = clock.calls.pop(0)
    call.called = 1
    call.func(*call.args, **call.kw)


class Held:
    """A handler whose calls wait, each until it is cancelled or answered here."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.waiting: dict[bytes, Deferred[Any]] = {}
        self.cancelled: list[bytes] = []
        self.stubborn = stubborn

    def __call__(self, asked: Asked) -> Deferred[Any]:
        body = asked.body
        self.waiting[body] = Deferred(lambda _: self._cancel(body))
        return self.waiting[body]

    def _cancel(self, body: bytes) -> None:
        self.cancelled.append(body)
        if self.stubborn:
            raise ValueError("no")


def test_57_a_handler_whose_asker_gives_up_is_cancelled_and_its_place_is_free() -> None:
    world = World()
    held = Held()
    responder = world.respond(held, concurrency=3)
    asked = [world.ask(b"%d" % n) for n in range(3)]
    error_of(world.ask(b"busy"), Busy)
    asked[1].cancel()
    error_of(asked[1], CancelledError)
    more = world.ask(b"more")  # in the same turn of the node
    assert [b"1"] == held.cancelled
    assert 3 == responder.unanswered
    for body in (b"0", b"2", b"more"):
        held.waiting[body].callback(body)
    world.settle()
    assert [b"0", b"2", b"more"] == [now(one) for one in (asked[0], asked[2], more)]
    told = now(world.ask({}, subject="$node.info"))["requests"]
    assert (0, 1, 0) == (told["pending"], told["given_up"], told["late"])
    world.close()


def test_57_a_call_that_waits_for_its_turn_is_not_handled_when_it_was_given_up() -> None:
    world = World()
    seen: list[bytes] = []

    def handle(asked: Asked) -> bytes:
        seen.append(asked.body)
        world.clock.rightNow += SLICE_SECONDS  # one fills a turn
        if len(seen) == 1:
            for one in calls[60:80]:
                one.addErrback(lambda failure: failure.trap(CancelledError))
                one.cancel()
        return asked.body

    responder = world.respond(handle)
    calls = [world.shop.request("prices.get", b"%d" % n) for n in range(100)]
    world.settle()
    kept = [*range(60), *range(80, 100)]
    assert [b"%d" % n for n in kept] == seen
    assert [b"%d" % n for n in kept] == [now(calls[n]) for n in kept]
    assert 0 == responder.unanswered
    world.close()


def test_57_a_canceller_that_fails_ends_nothing_but_its_own_call(
    logged_failures: list[LogEvent],
) -> None:
    world = World()
    held = Held(stubborn=True)
    responder = world.respond(held)
    first, second, slow = world.ask(b"1"), world.ask(b"2"), world.ask(b"slow", timeout=1)
    first.cancel()
    error_of(first, CancelledError)
    world.settle(1.1)
    error_of(slow, RequestTimeout)
    assert [b"1", b"slow"] == held.cancelled
    assert responder.connected
    held.waiting[b"2"].callback("done")
    world.settle()
    assert "done" == now(second)
    assert ["no", "no"] == [str(event["log_failure"].value) for event in logged_failures]
    logged_failures.clear()
    world.close()
