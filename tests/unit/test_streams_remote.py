"""A `RemoteStream` over a transport in memory: how its connections end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.errors import Ambiguous, BadValue
from msgservice.faces.streams import Closed, RemoteStream, StreamLimits
from tests.kit.streams_world import Reactor


class Far:
    """The far end of a connection, which ends only when it is told to, or is cut off."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.written = b""
        self.is_asked_to_end = self.is_lost = self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def loseConnection(self) -> None:
        self.is_asked_to_end = True

    def abortConnection(self) -> None:
        self.is_aborted = True
        self.lose(ConnectionAborted())

    def lose(self, why: Exception | None = None) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.protocol.connectionLost(Failure(why or ConnectionDone()))

    def say(self, **line: Any) -> None:
        self.protocol.dataReceived(json.dumps(line).encode() + b"\n")


@implementer(IStreamClientEndpoint)
class Place:
    """A server's address: each connection to it is kept."""

    def __init__(self) -> None:
        self.made: list[Far] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        protocol = factory.buildProtocol(None)
        far = Far(protocol)
        self.made.append(far)
        protocol.makeConnection(far)
        return succeed(protocol)


class Kept(list[Any]):
    """A queue that keeps what is put."""

    def put(self, message: Any) -> None:
        self.append(message)


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def remote(reactor: Reactor, place: Place) -> RemoteStream:
    return RemoteStream("", 0, reactor, endpoint=place, limits=StreamLimits(write_seconds=5))


def fired(waiter: Deferred[Any]) -> list[Any]:
    found: list[Any] = []
    waiter.addBoth(found.append)
    return found


def test_closing_is_over_when_every_connection_has_ended_and_may_be_asked_again(
    remote: RemoteStream, place: Place, reactor: Reactor
) -> None:
    remote.listen("k", Kept())
    remote.put("k", 1)
    listening, writing = place.made
    first, second = fired(remote.close()), fired(remote.close())
    assert listening.is_asked_to_end
    assert writing.is_asked_to_end
    writing.lose()
    assert (first, second) == ([], [])
    listening.lose()
    assert (first, second) == ([None], [None])
    assert fired(remote.close()) == [None]
    assert not reactor.getDelayedCalls()
    with pytest.raises(BadValue, match="is closed"):
        remote.put("k", 2)


def test_a_connection_that_does_not_end_is_cut_off(
    remote: RemoteStream, place: Place, reactor: Reactor
) -> None:
    remote.listen("k", Kept())
    closed = fired(remote.close())
    reactor.advance(4)
    assert closed == []
    reactor.advance(2)
    assert place.made[0].is_aborted
    assert closed == [None]


def test_what_could_not_be_written_is_said_to_each_who_asks(
    remote: RemoteStream, place: Place, reactor: Reactor
) -> None:
    remote.put("k", 1)
    (writing,) = place.made
    writing.producer.pauseProducing()
    remote.put("k", 2)
    first = fired(remote.close())
    reactor.advance(6)
    second = fired(remote.close())
    for found in (first, second):
        assert isinstance(found[0].value, Ambiguous)
    assert writing.is_aborted


def test_what_the_server_does_not_take_is_logged(
    remote: RemoteStream, place: Place, logged: list[Any]
) -> None:
    remote.put("k", 1)
    (writing,) = place.made
    writing.protocol.dataReceived(b"no line\n")
    writing.say(action="close", stream="k", reason="refused: too large")
    (told,) = [event for event in logged if "is not taken" in event["log_format"]]
    assert (told["key"], told["why"]) == ("k", "refused: too large")


def test_a_queue_that_hangs_up_in_the_midst_of_what_came_gets_nothing_more(
    remote: RemoteStream, place: Place
) -> None:
    class Once(Kept):
        def put(self, message: Any) -> None:
            super().put(message)
            remote.hangup("k", self)

    once, other = Once(), Kept()
    remote.listen("k", once)
    remote.listen("k", other)
    for far in place.made:
        far.protocol.dataReceived(
            b'{"action":"put","stream":"k","message":1}\n{"action":"put","stream":"k","message":2}\n'
        )
    assert (once, other) == ([1], [1, 2])
    place.made[0].lose()
    assert once == [1]


def test_a_listener_that_resumes_says_its_last_token_and_hears_of_no_loss(
    remote: RemoteStream, place: Place, reactor: Reactor
) -> None:
    kept = Kept()
    remote.listen("k", kept, resume=True)
    place.made[0].say(action="put", stream="k", message=1, token="log:1")
    place.made[0].say(action="put", stream="k", message=2, token="log:2")
    place.made[0].lose()
    reactor.pump([1.0] * 60)
    asked = [json.loads(far.written) for far in place.made]
    assert [line["from"] for line in asked] == [None, "log:2"]
    place.made[1].say(action="close", stream="k", reason="gap")
    assert kept == [1, 2, Closed("k", "gap")]
    place.made[1].lose()
    reactor.pump([1.0] * 60)
    assert len(place.made) == 2
