"""The driver under a connection of the callback protocol, without sockets."""

from typing import Any, get_args

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.errors import ClientClosed
from msgservice.faces.callbacks.dispatch import Call, awaited
from msgservice.faces.callbacks.driver import Driver
from msgservice.faces.callbacks.protocol.events import Event, MessageReceived
from msgservice.faces.callbacks.protocol.peer import CallbackPeer
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.node.node import Node
from tests.kit.callbacks_world import ENCODER
from tests.kit.doubles import double


class Wire:
    """A wire that keeps what was sent on it."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.transport: Any = double(getPeer=lambda: "there")
        self.sent = b""
        self.ended: list[str] = []

    def flush(self) -> None:
        while data := self.driver.wire_output():
            self.sent += data
            self.driver.wire_sent(len(data))

    def finish(self) -> None:
        self.ended.append("finished")

    def abort(self) -> None:
        self.ended.append("aborted")

    def detach(self) -> None:
        self.ended.append("detached")


class Alone:
    """A driver and what it says."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.registry = CallbackRegistry()
        self.core = CallbackPeer(byteorder="little", first_id=1, announce=False)
        self.driver = Driver(
            self,
            self.registry,
            self.core,
            Clock(),
            files=None,
            run_in_thread=None,
            opened=lambda: self.said.append("opened"),
            lost=lambda: self.said.append("lost"),
            received=self.said.append,
        )

    def connect(self) -> Any:
        wire: Any = Wire(self.driver)
        self.driver.wire_opened(wire)
        return wire


def test_every_event_of_the_core_has_somebody_to_handle_it() -> None:
    assert set(get_args(Event)) - {MessageReceived} == set(Alone().driver._handlers)


def test_callbacks_get_the_connection_and_not_its_driver() -> None:
    alone, got = Alone(), []
    alone.registry.message_callback("do")(lambda connection, n: got.append((connection, n)))
    alone.connect()
    alone.driver.wire_received(ENCODER.action("do", [7], None))
    assert [(alone, 7)] == got


async def an_async_generator(*args: Any) -> Any:
    yield args


def a_generator(*args: Any) -> Any:
    yield args


@pytest.mark.parametrize("callback", [a_generator, an_async_generator])
@pytest.mark.parametrize(
    "door",
    [
        lambda callback: CallbackRegistry().message_callback("do")(callback),
        lambda callback: CallbackRegistry().request_callback("ask")(callback),
        lambda callback: Call(callback, (), None),
        lambda callback: Node(Clock(), "data", failed=callback),
    ],
    ids=["action", "request", "answer", "failed"],
)
def test_a_function_whose_body_would_never_run_is_refused(callback: Any, door: Any) -> None:
    with pytest.raises(TypeError, match="is a generator function: its body does not run by itself"):
        door(callback)


@pytest.mark.parametrize("returned", [a_generator, an_async_generator])
def test_a_callback_that_returns_a_generator_has_not_run_and_failed(
    returned: Any, logged_failures: list[LogEvent]
) -> None:
    alone = Alone()
    alone.registry.message_callback("do")(lambda connection: returned())
    alone.registry.request_callback("ask")(lambda connection: returned())
    alone.connect()
    alone.driver.wire_received(ENCODER.action("do", [], None))
    alone.driver.wire_received(ENCODER.request("ask", "0001", [], None))
    with pytest.raises(TypeError, match="a callback returned"):
        awaited(returned)  # hooks
    told = [event["log_failure"].getErrorMessage() for event in logged_failures]
    assert 2 == len(told)
    assert all(line.startswith("a callback returned a") for line in told)
    logged_failures.clear()


def test_one_deferred_for_several_requests_answers_each_of_them(
    logged_failures: list[LogEvent],
) -> None:
    """The first alone had the value, and the others had None for it."""
    alone = Alone()
    found: Deferred[str] = Deferred()
    missing: Deferred[str] = Deferred()
    alone.registry.request_callback("find")(lambda connection: found)
    alone.registry.request_callback("miss")(lambda connection: missing)
    alone.registry.message_callback("do")(lambda connection: missing)
    wire = alone.connect()
    before = len(wire.sent)
    for number in ("0001", "0002"):
        alone.driver.wire_received(ENCODER.request("find", number, [], None))
        alone.driver.wire_received(ENCODER.request("miss", number, [], None))
    alone.driver.wire_received(ENCODER.action("do", [], None))
    found.callback("here")
    missing.errback(KeyError("gone"))
    answers = b"".join(ENCODER.response("find", number, "here") for number in ("0001", "0002"))
    assert answers == wire.sent[before:]
    assert 3 == len(logged_failures)
    logged_failures.clear()


def test_a_newer_wire_takes_the_place_of_the_one_before() -> None:
    alone = Alone()
    first, second = alone.connect(), alone.connect()
    assert ["detached"] == first.ended
    assert ["opened", "lost", "opened"] == alone.said
    assert (second, 2) == (alone.driver.wire, alone.driver.generation)


def test_a_driver_that_is_told_to_finish_sends_all_first() -> None:
    alone = Alone()
    wire = alone.connect()
    alone.core.send_message("do", [1], None)
    alone.driver.finish()
    assert ENCODER.action("do", [1], None) == wire.sent
    assert {"finished"} == set(wire.ended)


def test_what_waits_for_answers_fails_when_the_driver_ends() -> None:
    alone = Alone()
    failed: list[Any] = []
    waiting: Deferred[Any] = Deferred()
    waiting.addErrback(lambda failure: failed.append(failure.value))
    alone.core.request("v", (), None, token=waiting)
    alone.driver.end(ClientClosed("over"))
    assert ["over"] == [str(error) for error in failed]
