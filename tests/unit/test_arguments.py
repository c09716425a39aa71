"""Arguments of a wrong type, at each door: which one is wrong is said there, and nothing begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.testing import MemoryReactorClock

from msgservice import JellyCodec, Node, PbPeer, Receiver, connect
from msgservice.arguments import check_counts, check_port, check_seconds
from msgservice.errors import BadValue
from msgservice.faces.callbacks import Connection
from msgservice.faces.callbacks.protocol.events import CallbackLimits
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.faces.callbacks.service import CallbackClient, CallbackServer
from msgservice.faces.sessions import Central, Remote, SessionLimits
from msgservice.faces.streams import (
    MessageStream,
    NodeStreams,
    RemoteStream,
    StreamLimits,
    StreamServer,
    register,
    serve,
)


class Thing:
    """Nothing that any of them takes."""


def clock() -> Any:
    """Return a reactor of which nothing is asked but time and doors."""
    return MemoryReactorClock()


def _remote(**options: Any) -> RemoteStream:
    return RemoteStream("127.0.0.1", 7412, clock(), **options)


def _receiver(**options: Any) -> Receiver:
    return Receiver(clock(), name="r", handler=print, **options)


def _peer(**options: Any) -> PbPeer:
    return PbPeer(clock(), name="a", **options)


def _connect(**options: Any) -> Deferred[Any]:
    return connect(clock(), "tcp:127.0.0.1:1", name="a", **options)


ANY: Any = Thing()
REMOTE = _remote()
# What is wrong, and a door that takes it.
DOORS: list[tuple[str, Callable[[Any], Any]]] = [
    ("port", lambda x: serve(x, clock(), MessageStream())),
    ("reactor", lambda x: serve(0, x, MessageStream())),
    ("stream", lambda x: serve(0, clock(), x)),
    ("codec", lambda x: serve(0, clock(), MessageStream(), codec=x)),
    ("limits", lambda x: serve(0, clock(), MessageStream(), limits=x)),
    ("tls", lambda x: serve(0, clock(), MessageStream(), tls=x)),
    ("insecure", lambda x: serve(0, clock(), MessageStream(), insecure=x)),
    ("is_strict", lambda x: serve(0, clock(), MessageStream(), is_strict=x)),
    ("listen", lambda x: StreamServer(clock(), MessageStream(), listen=x)),
    ("described", lambda x: serve(0, clock(), MessageStream(), described=x)),
    ("host", lambda x: RemoteStream(x, 7412, clock())),
    ("port", lambda x: RemoteStream("127.0.0.1", x, clock())),
    ("reactor", lambda x: RemoteStream("127.0.0.1", 7412, x)),
    ("endpoint", lambda x: _remote(endpoint=x)),
    ("codec", lambda x: _remote(codec=x)),
    ("limits", lambda x: _remote(limits=x)),
    ("reconnect", lambda x: _remote(reconnect=x)),
    ("rng", lambda x: _remote(rng=x)),
    ("stream", lambda x: REMOTE.listen(x, DeferredQueue())),
    ("queue", lambda x: REMOTE.listen("k", x)),
    ("resume", lambda x: REMOTE.listen("k", DeferredQueue(), resume=x)),
    ("stream", lambda x: REMOTE.hangup(x, DeferredQueue())),
    ("stream", lambda x: REMOTE.put(x, 1)),
    ("stream", lambda x: REMOTE.header(x, 1)),
    ("stream", lambda x: REMOTE.delete(x)),
    ("stream", lambda x: REMOTE.close(x)),
    ("queue", lambda x: MessageStream().listen("k", x)),
    ("node", lambda x: NodeStreams(clock(), x)),
    ("reactor", lambda x: NodeStreams(x, Node(clock(), ANY))),
    ("principal", lambda x: NodeStreams(clock(), Node(clock(), ANY), principal=x)),
    ("name", lambda x: NodeStreams(clock(), Node(clock(), ANY), name=x)),
    ("cls", lambda x: register(x)),
    ("name", lambda x: register(Thing, x)),
    ("version", lambda x: register(Thing, "", x)),
    ("line_bytes", lambda x: StreamLimits(line_bytes=x)),
    ("queue_bytes", lambda x: SessionLimits(queue_bytes=x)),
    ("pending_max", lambda x: CallbackLimits(pending_max=x)),
    ("reactor", lambda x: PbPeer(x, name="a")),
    ("name", lambda x: PbPeer(clock(), name=x)),
    ("limits", lambda x: _peer(limits=x)),
    ("classes", lambda x: _peer(classes=x)),
    ("classes", lambda x: _peer(classes=[x])),
    ("classes", lambda x: JellyCodec(x)),
    ("instance", lambda x: _peer(instance=x)),
    ("transports", lambda x: _peer(transports=x)),
    ("address", lambda x: _peer().dial(x)),
    ("user", lambda x: _peer().dial("pb:127.0.0.1:1", user=x)),
    ("password", lambda x: _peer().dial("pb:127.0.0.1:1", user="a", password=x)),
    ("address", lambda x: _peer().listen(x)),
    ("users", lambda x: _peer().listen("pb:1", users=x)),
    ("insecure", lambda x: _peer().listen("pb:1", insecure=x)),
    ("name", lambda x: _peer().expose(x, print)),
    ("function", lambda x: _peer().expose("x", x)),
    ("name", lambda x: _peer().call(x)),
    ("subject", lambda x: _peer().send(x, b"")),
    ("reactor", lambda x: connect(x, "tcp:127.0.0.1:1", name="a")),
    ("address", lambda x: connect(clock(), x, name="a")),
    ("limits", lambda x: _connect(limits=x)),
    ("require", lambda x: _connect(require=x)),
    ("outbox", lambda x: _connect(outbox=x)),
    ("transports", lambda x: _connect(transports=x)),
    ("reactor", lambda x: Receiver(x, name="r", handler=print)),
    ("batch", lambda x: _receiver(batch=x)),
    ("shared", lambda x: _receiver(shared=x, order="none")),
    ("inbox", lambda x: _receiver(inbox=x)),
    ("limits", lambda x: _receiver(limits=x)),
    ("decode", lambda x: _receiver(decode=x)),
    ("transports", lambda x: _receiver(transports=x)),
    ("incarnation", lambda x: _receiver(incarnation=x)),
    ("address", lambda x: _receiver().attach(x)),
    ("retained", lambda x: _receiver().attach("tcp:127.0.0.1:1", subjects=["a"], retained=x)),
    ("insecure", lambda x: _receiver().listen("tcp:0", insecure=x)),
    ("limits", lambda x: Node(clock(), ANY, limits=x)),
    ("insecure", lambda x: Node(clock(), ANY, insecure=x)),
    ("registry", lambda x: Connection(clock(), registry=x)),
    ("limits", lambda x: Connection(clock(), limits=x)),
    ("files", lambda x: Connection(clock(), files=x)),
    ("announce", lambda x: Connection(clock(), announce=x)),
    ("first_id", lambda x: Connection(clock(), first_id=x)),
    ("on_file", lambda x: Connection(clock(), on_file=x)),
    ("reactor", lambda x: CallbackServer(x)),
    ("endpoint", lambda x: CallbackServer(clock(), x)),
    ("tls", lambda x: CallbackServer(clock(), tls=x)),
    ("connections_max", lambda x: CallbackServer(clock(), connections_max=x)),
    ("host", lambda x: CallbackClient(clock(), x)),
    ("port", lambda x: CallbackClient(clock(), "127.0.0.1", x)),
    ("endpoint", lambda x: CallbackClient(clock(), endpoint=x)),
    ("watch", lambda x: CallbackClient(clock(), watch=x)),
    ("pause_seconds", lambda x: CallbackClient(clock(), pause_seconds=x)),
    ("name", lambda x: CallbackRegistry().message_callback(x)(print)),
    ("callback", lambda x: CallbackRegistry().request_callback("x")(x)),
    ("heartbeat", lambda x: Central(clock(), heartbeat=x)),
    ("rng", lambda x: Central(clock(), rng=x)),
    ("acks", lambda x: Remote(clock(), ("127.0.0.1", 1), acks=x)),
    ("threads", lambda x: Remote(clock(), ("127.0.0.1", 1), threads=x)),
]


def _enter(door: Callable[[Any], Any], given: Thing) -> None:
    """Raise what a door raises, or what it fails with at once."""
    came = door(given)
    if isinstance(came, Deferred):
        failures: list[Any] = []
        came.addErrback(failures.append)
        failures[0].raiseException()


@pytest.mark.parametrize(("name", "door"), DOORS)
def test_an_argument_of_another_type_is_refused_by_its_name(
    name: str, door: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError) as raised:
        _enter(door, Thing())
    assert name in str(raised.value)


def test_a_dict_is_no_stream_and_a_list_no_queue() -> None:
    with pytest.raises(TypeError, match=r"stream = \{\}: a MessageStream or NodeStreams"):
        serve(0, clock(), {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"queue = \[\]: something with put"):
        MessageStream().listen("k", [])  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="an instance of Thing, which is not registered"):
        REMOTE.put("k", ANY)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_number_that_is_no_port_is_refused_by_its_name(port: int) -> None:
    for door in (
        lambda: serve(port, clock(), MessageStream()),
        lambda: RemoteStream("127.0.0.1", port, clock()),
        lambda: CallbackClient(clock(), "127.0.0.1", port),
    ):
        with pytest.raises(ValueError, match=f"port = {port}: "):
            door()


def test_half_a_login_of_a_peer_is_refused() -> None:
    with pytest.raises(BadValue, match="password"):
        _peer().dial("pb:127.0.0.1:1", user="a")
    with pytest.raises(BadValue, match="user"):
        _peer().dial("pb:127.0.0.1:1", password="secret")


def test_booleans_are_no_numbers_and_texts_that_say_no_are_no_flags() -> None:
    for check in (lambda: check_counts(0, n=True), lambda: check_seconds(n=True)):
        with pytest.raises(TypeError, match="n = True"):
            check()
    with pytest.raises(TypeError):
        check_port(True)
    with pytest.raises(TypeError, match="require = 'no': True or False is needed"):
        _connect(require="no")
