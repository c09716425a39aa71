"""`Connection` on real sockets: with another of ours, and with a peer that only knows the vectors.

The latter is a bare socket protocol: what it sees is every byte that leaves us.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from twisted.internet import defer, ssl
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent
from zope.interface.verify import verifyObject

from msgservice.errors import (
    Ambiguous,
    CannotListen,
    ClientClosed,
    LimitReached,
    Refused,
    RequestFailed,
    RequestTimeout,
)
from msgservice.faces.callbacks.connection import Connection
from msgservice.faces.callbacks.protocol.events import CallbackLimits
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.faces.callbacks.service import CallbackClient, CallbackServer
from msgservice.faces.callbacks.stream import CallbackProtocol
from tests.kit.callbacks_vectors import CUT_OFF, EMPTY, VECTORS
from tests.kit.callbacks_world import ENCODER, HELLO, World, failure_of, in_reactor

pytest_plugins = ["tests.kit.callbacks_fixtures"]


# --- bytes ----------------------------------------------------------------------------------------


@in_reactor
async def test_after_the_hello_every_byte_is_the_originals(world: World) -> None:
    got: list[Any] = []
    world.registry.request_callback("time")(lambda connection, n, k: 1234.5)
    world.registry.message_callback("stop")(lambda connection: got.append(connection))
    (world.server_folder / "src.bin").write_bytes(b"\x00\x01\xffhello\n")
    await world.serve()
    raw = await world.raw()
    await raw.gets(HELLO)
    raw.send(VECTORS["request"] + EMPTY + VECTORS["get_file_request"])
    await raw.gets(VECTORS["response_json"] + VECTORS["get_file_reply"])
    assert len(got) == 1
    got[0].send_message("test_command", (1, "two"), {"a": 3, "b": [True, None]})
    await raw.gets(VECTORS["message_args_kwargs"])
    got[0].send_file(world.server_folder / "src.bin", "dst.bin")
    await raw.gets(VECTORS["send_file"])


@in_reactor
async def test_without_announcing_every_byte_is_the_originals(world: World) -> None:
    got: list[Connection] = []
    await world.serve(announce=False, first_id=5305, on_connected=got.append)
    raw = await world.raw()
    await world.until(lambda: got)
    answer = got[0].request("time", [1], {"k": "v"})
    await raw.gets(VECTORS["request"])
    raw.send(VECTORS["response_json"])
    assert await answer == 1234.5


@in_reactor
async def test_bytes_one_at_a_time_are_understood(world: World) -> None:
    world.registry.request_callback("time")(lambda connection, n, k: 1234.5)
    await world.serve()
    raw = await world.raw()
    await raw.gets(HELLO)
    for number in range(len(VECTORS["request"])):
        raw.send(VECTORS["request"][number : number + 1])
        await deferLater(world.reactor, 0)
    await raw.gets(VECTORS["response_json"])


# --- requests and actions -------------------------------------------------------------------------


@in_reactor
async def test_request_is_answered(world: World) -> None:
    @world.registry.request_callback("echo")
    def echo(connection: Connection, *args: Any, **kwargs: Any) -> Any:
        return [args, kwargs]

    await world.serve()
    client = await world.client()
    args, kwargs = [1, "zwölf", None, [2.5]], {"k": {"nested": "€"}}
    assert [args, kwargs] == await client.request("echo", args, kwargs)


@in_reactor
async def test_null_is_an_answer(world: World) -> None:
    world.registry.request_callback("nothing")(lambda connection: None)
    await world.serve()
    assert await (await world.client()).request("nothing") is None


@in_reactor
async def test_server_asks_the_client_too(world: World) -> None:
    @world.registry.request_callback("ask back")
    async def ask_back(connection: Connection) -> Any:
        return [await connection.request("name"), "asked"]

    world.registry.request_callback("name")(lambda connection: "client")
    await world.serve()
    assert await (await world.client()).request("ask back") == ["client", "asked"]


@in_reactor
async def test_callback_may_return_a_deferred_and_answers_overtake(world: World) -> None:
    waiting: dict[int, Deferred[Any]] = {}
    world.registry.request_callback("wait")(lambda connection, n: waiting.setdefault(n, Deferred()))
    await world.serve()
    client = await world.client()
    order: list[int] = []
    answers = [client.request("wait", [n]).addCallback(order.append) for n in range(3)]
    await world.until(lambda: len(waiting) == 3)
    for n in (2, 0, 1):
        waiting[n].callback(n)
        await answers[n]
    assert order == [2, 0, 1]


@in_reactor
async def test_callback_style_gets_its_own_arguments(world: World) -> None:
    world.registry.request_callback("v")(lambda connection: 5)
    await world.serve()
    client = await world.client()
    got: list[Any] = []
    client.get_response(
        "v",
        lambda *args, **kwargs: got.append((args, kwargs)),
        callback_args=(1, 2),
        callback_kwargs={"k": 3},
    )
    client.get_response("v", None)
    await world.until(lambda: got)
    assert [((client, 5, 1, 2), {"k": 3})] == got


@in_reactor
async def test_registries_are_per_application(world: World) -> None:
    fallback = CallbackRegistry()
    other = CallbackRegistry(fallback)
    fallback.request_callback("a")(lambda connection: "fallback")
    fallback.request_callback("b")(lambda connection: "fallback")
    other.request_callback("a")(lambda connection: "own")
    await world.serve(registry=other)
    client = await world.client()
    assert await client.request("a") == "own"
    assert await client.request("b") == "fallback"
    await failure_of(client.request("c"), RequestFailed)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "callback-failed: ZeroDivisionError"),
        ("exits", "callback-failed: SystemExit"),
        ("unknown", "no-callback"),
        ("misfit", "callback-failed: TypeError"),
        ("unwritable", "bad-result"),
        ("later", "callback-failed: KeyError"),
    ],
)
@in_reactor
async def test_failure_is_told_to_our_own_peers_and_silence_to_others(
    world: World, name: str, reason: str, logged_failures: list[LogEvent]
) -> None:
    async def later(connection: Connection) -> None:
        raise KeyError(name)

    world.registry.requests.update(
        {
            "raises": lambda connection: 1 / 0,
            "exits": lambda connection: sys.exit(3),
            "misfit": lambda connection, needed: needed,
            "unwritable": lambda connection: {1, 2},
            "later": later,
            "fine": lambda connection: "fine",
        }
    )
    await world.serve()
    client = await world.client()
    assert reason in await failure_of(client.request(name), RequestFailed)
    raw = await world.raw()
    await raw.gets(HELLO)
    raw.send(ENCODER.request(name, "0001") + ENCODER.request("fine", "0002"))
    await raw.gets(ENCODER.response("fine", "0002", "fine"))
    logged_failures.clear()


@pytest.mark.parametrize("action", ["raises", "exits", "unknown", "later"])
@in_reactor
async def test_failure_of_an_action_is_told_to_our_own_peers_and_silence_to_others(
    world: World, action: str, warnings: list[str], logged_failures: list[LogEvent]
) -> None:
    async def later(connection: Connection) -> None:
        raise KeyError(action)

    world.registry.messages.update(
        {
            "raises": lambda connection: 1 / 0,
            "exits": lambda connection: sys.exit(3),
            "later": later,
        }
    )
    world.registry.request_callback("fine")(lambda connection: "fine")
    await world.serve()
    client = await world.ours()
    client.send_message(action)
    await client.request("fine")
    await world.until(lambda: any(f"of {action}" in line for line in warnings))
    raw = await world.raw()
    await raw.gets(HELLO)
    raw.send(ENCODER.action(action) + ENCODER.request("fine", "0002"))
    await raw.gets(ENCODER.response("fine", "0002", "fine"))
    logged_failures.clear()


@in_reactor
async def test_request_times_out_and_the_late_answer_is_ignored(
    world: World, warnings: list[str]
) -> None:
    late: Deferred[Any] = Deferred()
    world.registry.request_callback("late")(lambda connection: late)
    world.registry.request_callback("v")(lambda connection: 1)
    await world.serve()
    client = await world.client()
    text = await failure_of(client.request("late", timeout=0.05), RequestTimeout)
    assert text == "no answer on 'late' within 0.05 s"
    late.callback(1)
    assert await client.request("v") == 1
    assert any("response nobody asked for" in line for line in warnings)


@in_reactor
async def test_cancelled_request_is_not_waited_for(world: World) -> None:
    world.registry.request_callback("never")(lambda connection: Deferred())
    await world.serve()
    client = await world.client()
    d = client.request("never")
    d.cancel()
    await failure_of(d, defer.CancelledError)
    assert client.pending_count == 0


@in_reactor
async def test_calls_from_another_thread_arrive(world: World) -> None:
    got: list[int] = []
    world.registry.message_callback("n")(lambda connection, n: got.append(n))
    world.registry.request_callback("v")(lambda connection: 5)
    await world.serve()
    client = await world.client()
    answers: list[tuple[Any, int]] = []

    def send() -> None:
        for n in range(100):
            client.send_message("n", [n])
        client.get_response(
            "v", lambda connection, value: answers.append((value, threading.get_ident()))
        )

    await deferToThread(send)
    await world.until(lambda: answers)
    assert list(range(100)) == got
    assert [(5, threading.get_ident())] == answers


@in_reactor
async def test_arguments_that_are_no_json_are_refused_at_the_call(world: World) -> None:
    await world.serve()
    client = await world.client()
    with pytest.raises(TypeError):
        client.send_message("a", [object()])
    with pytest.raises(TypeError):
        client.request("a", [object()])
    with pytest.raises(ValueError, match="JSON"):
        client.send_message("a", [float("nan")])
    assert client.pending_count == 0
    error = await deferToThread(lambda: raised(lambda: client.send_message("a", [object()])))
    assert isinstance(error, TypeError)


def raised(do: Callable[[], Any]) -> Exception | None:
    try:
        do()
    except Exception as error:
        return error
    return None


# --- bad input ------------------------------------------------------------------------------------


NAN = EMPTY.replace(b": 26,", b": 29,").replace(b"[]", b"[NaN]")
BAD = CUT_OFF | {"nan": NAN}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
@in_reactor
async def test_bad_input_ends_that_connection_only(
    world: World, data: bytes, warnings: list[str]
) -> None:
    world.registry.request_callback("v")(lambda connection: 1)
    await world.serve()
    client = await world.client()
    raw = await world.raw()
    raw.send(data)
    await world.until(lambda: raw.is_lost)
    assert any(line.startswith("dropping") for line in warnings)
    assert await client.request("v") == 1
    await world.until(lambda: len(world.server.connections) == 1)


@in_reactor
async def test_peer_that_trickles_is_dropped_and_others_are_not(
    world: World, warnings: list[str]
) -> None:
    world.registry.request_callback("v")(lambda connection: 1)
    await world.serve(limits=CallbackLimits(message_seconds_max=0.1))
    client = await world.client()
    raw = await world.raw()
    for number in range(1000):
        raw.send(VECTORS["request"][number : number + 1])
        await deferLater(world.reactor, 0.01)
        if raw.is_lost:
            break
    assert raw.is_lost
    assert any("message not within 0.1 s" in line for line in warnings)
    assert await client.request("v") == 1


@in_reactor
async def test_peer_that_asks_and_does_not_read_is_dropped(
    world: World, warnings: list[str]
) -> None:
    world.registry.request_callback("much")(lambda connection: "x" * 100_000)
    world.registry.request_callback("v")(lambda connection: 1)
    await world.serve(limits=CallbackLimits(answer_bytes_max=2_000_000))
    client = await world.client()
    raw = await world.raw()
    raw.transport.pauseProducing()
    for number in range(2_000):
        raw.send(ENCODER.request("much", f"{number:04d}"))
    await world.until(lambda: any("does not read" in line for line in warnings))
    assert await client.request("v") == 1


@in_reactor
async def test_peer_that_asks_faster_than_it_reads_gets_every_answer(world: World) -> None:
    world.registry.request_callback("much")(lambda connection: "x" * 100_000)
    await world.serve()
    client = await world.client()
    answers = await defer.gatherResults([client.request("much") for _ in range(300)])
    assert {100_000} == {len(answer) for answer in answers}


@in_reactor
async def test_limit_of_pending_requests_is_named(world: World) -> None:
    world.registry.request_callback("never")(lambda connection: Deferred())
    await world.serve()
    client = await world.client(limits=CallbackLimits(pending_max=2))
    waiting = [client.request("never") for _ in range(2)]
    with pytest.raises(LimitReached, match="pending_max = 2"):
        client.request("never")
    for d in waiting:
        d.addErrback(lambda f: f.trap(ClientClosed))


@in_reactor
async def test_callbacks_beyond_the_limit_are_refused(world: World) -> None:
    world.registry.request_callback("never")(lambda connection: Deferred())
    await world.serve(limits=CallbackLimits(running_max=1))
    client = await world.ours()
    waiting = [client.request("never") for _ in range(10)]
    assert "busy" in await failure_of(client.request("never"), RequestFailed)
    for d in waiting:
        d.addErrback(lambda f: f.trap(ClientClosed))


@in_reactor
async def test_connections_beyond_the_limit_are_dropped(world: World, warnings: list[str]) -> None:
    world.registry.request_callback("v")(lambda connection: 1)
    await world.serve(connections_max=1)
    client = await world.client()
    raw = await world.raw()
    await world.until(lambda: raw.is_lost)
    assert await client.request("v") == 1
    assert any("connections_max = 1" in line for line in warnings)


# --- connecting again, closing --------------------------------------------------------------------


@in_reactor
async def test_request_is_sent_again_on_the_next_connection(world: World) -> None:
    asked: list[Any] = []

    @world.registry.request_callback("v")
    def answer(connection: Connection, *args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        if len(asked) < 3:
            connection.abort()
            return Deferred()
        return "third"

    await world.serve()
    client = await world.client()
    assert await client.request("v", [1], {"k": 2}) == "third"
    assert asked == [((1,), {"k": 2})] * 3


@in_reactor
async def test_request_made_while_away_is_sent_when_back(world: World) -> None:
    world.registry.request_callback("v")(lambda connection: 1)
    await world.serve()
    client = await world.client()
    client.abort()
    await world.until(lambda: not client.is_connected)
    assert await client.request("v") == 1


@in_reactor
async def test_without_resending_a_lost_request_is_ambiguous(world: World) -> None:
    world.registry.request_callback("v")(lambda connection: connection.abort())
    await world.serve()
    client = await world.client(resend_requests=False)
    await failure_of(client.request("v"), Ambiguous)


def is_away(client: Connection) -> bool:
    return not client.is_connected


@in_reactor
async def test_message_while_away_is_refused_or_kept(world: World) -> None:
    got: list[int] = []
    world.registry.message_callback("n")(lambda connection, n: got.append(n))
    await world.serve()
    for resume in (False, True):
        client = await world.client(resume_queue=resume)
        client.abort()
        await world.until(functools.partial(is_away, client))
        if not resume:
            with pytest.raises(Refused, match="resume_queue"):
                client.send_message("n", [0])
            await failure_of(client.push_file("x", "x"), Refused)
        else:
            for n in range(5):
                client.send_message("n", [n])
    await world.until(lambda: len(got) == 5)
    assert got == [0, 1, 2, 3, 4]


@in_reactor
async def test_close_sends_what_is_queued_first(world: World) -> None:
    got: list[int] = []
    world.registry.message_callback("n")(lambda connection, n: got.append(n))
    await world.serve()
    client = await world.client()
    for n in range(5_000):
        client.send_message("n", [n])
    await client.close()
    await world.until(lambda: len(got) == 5_000)
    assert list(range(5_000)) == got


@in_reactor
async def test_close_does_not_wait_for_ever(world: World) -> None:
    connections: list[Connection] = []
    await world.serve(on_connected=connections.append, limits=CallbackLimits(close_seconds_max=0.1))
    raw = await world.raw()
    raw.transport.pauseProducing()
    await world.until(lambda: connections)
    for _ in range(100):
        connections[0].send_message("much", ["x" * 200_000])
    await connections[0].close()
    raw.transport.resumeProducing()


@in_reactor
async def test_close_fails_what_waits_and_what_comes_after(world: World) -> None:
    world.registry.request_callback("never")(lambda connection: Deferred())
    await world.serve()
    client = await world.client()
    waiting = client.request("never")
    await client.close()
    await client.close()
    await failure_of(waiting, ClientClosed)
    with pytest.raises(ClientClosed):
        client.send_message("x")
    with pytest.raises(ClientClosed):
        client.request("x")
    await failure_of(client.push_file("x", "x"), ClientClosed)


@in_reactor
async def test_connection_can_be_waited_for(world: World) -> None:
    await world.serve()
    waiting = CallbackClient(world.reactor, port=world.port)
    world.clients.append(waiting)
    d = waiting.connection.when_connected()
    cancelled = waiting.connection.when_connected()
    cancelled.cancel()
    await failure_of(cancelled, defer.CancelledError)
    waiting.startService()
    assert waiting.connection is await d
    assert waiting.connection is await waiting.connection.when_connected()
    never = CallbackClient(world.reactor, port=world.port)
    d = never.connection.when_connected()
    await never.stopService()
    await failure_of(d, ClientClosed)
    await failure_of(never.connection.when_connected(), ClientClosed)


@in_reactor
async def test_new_connection_from_the_same_host_replaces_the_older_if_so_configured(
    world: World,
) -> None:
    await world.serve(one_per_host=True)
    first = await world.raw()
    await first.gets(HELLO)
    second = await world.raw()
    await second.gets(HELLO)
    await world.until(lambda: first.is_lost)
    await world.until(lambda: len(world.server.connections) == 1)
    assert not second.is_lost


@in_reactor
async def test_port_in_use_is_said_clearly(world: World) -> None:
    await world.serve()
    other = CallbackServer(world.reactor, f"tcp:{world.port}:interface=127.0.0.1")
    text = await failure_of(other.listen(), CannotListen)
    assert str(world.port) in text


@pytest.mark.filterwarnings("ignore::BytesWarning")  # Twisted compares bytes and str there
@in_reactor
async def test_unix_socket_works(world: World, tmp_path: Path) -> None:
    world.registry.request_callback("v")(lambda connection: 1)
    await world.serve(endpoint=f"unix:{tmp_path / 'socket'}")
    client = await world.client(endpoint=f"unix:{tmp_path / 'socket'}")
    assert await client.request("v") == 1


@in_reactor
async def test_keepalive_and_nodelay_are_set(world: World) -> None:
    import socket

    await world.serve()
    client = await world.client()
    wire = client._driver.wire
    assert wire is not None
    transport: Any = wire.transport
    sock = transport.getHandle()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 3
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


# --- TLS ------------------------------------------------------------------------------------------


tls_tests = pytest.mark.filterwarnings(
    "ignore:Passing pyOpenSSL:DeprecationWarning",  # Twisted 26.10 does
)


def tls_options(authority: trustme.CA) -> tuple[Any, Any]:
    issued = authority.issue_cert("127.0.0.1")
    certificate = ssl.PrivateCertificate.loadPEM(
        issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
    )
    trust = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(authority.cert_pem.bytes())])
    return certificate.options(), ssl.optionsForClientTLS("127.0.0.1", trustRoot=trust)


@tls_tests
@in_reactor
async def test_everything_works_over_tls(world: World) -> None:
    import socket

    server_tls, client_tls = tls_options(trustme.CA())
    content = os.urandom(5_000_000)
    (world.client_folder / "source").write_bytes(content)
    world.registry.request_callback("double")(lambda connection, n: 2 * n)
    await world.serve(tls=server_tls)
    client = await world.ours(tls=client_tls)
    answers = await defer.gatherResults([client.request("double", [n]) for n in range(200)])
    assert [2 * n for n in range(200)] == answers
    assert (await client.push_file("source", "copy")).confirmed
    path = await client.fetch_file("copy", "back")
    assert content == path.read_bytes()
    wire: Any = client._driver.wire
    sock = wire.transport.transport.getHandle()
    if isinstance(sock, socket.socket):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@tls_tests
@in_reactor
async def test_untrusted_server_is_not_talked_to_and_nothing_is_lost(
    world: World, warnings: list[str]
) -> None:
    got: list[int] = []
    world.registry.message_callback("n")(lambda connection, n: got.append(n))
    server_tls, _ = tls_options(trustme.CA())
    _, client_tls = tls_options(trustme.CA())
    await world.serve(tls=server_tls)
    client = CallbackClient(
        world.reactor, port=world.port, tls=client_tls, resume_queue=True, pause_seconds=0.01
    )
    world.clients.append(client)
    client.connection.send_message("n", [1])
    client.startService()
    await world.until(lambda: any("certificate verify" in line for line in warnings))
    assert not client.connection.is_connected
    assert client.connection.queued_bytes > 0
    assert not got


def test_protocol_implements_what_it_says() -> None:
    from twisted.internet.interfaces import IHandshakeListener, IPullProducer, IPushProducer

    class Owner:
        def wire_opened(self, wire: CallbackProtocol) -> None: ...
        def wire_received(self, data: bytes) -> None: ...
        def wire_lost(self, reason: Any) -> None: ...
        def wire_failed(self, reason: Any) -> None: ...
        def wire_output(self) -> bytes:
            return b""

        def wire_sent(self, count: int) -> None: ...

    protocol = CallbackProtocol(Owner())
    for interface in (IHandshakeListener, IPullProducer, IPushProducer):
        assert verifyObject(interface, protocol)
