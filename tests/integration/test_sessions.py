"""Sessions on real sockets: both ends, a real node, and the standard library at the other end."""

from __future__ import annotations

import json
import logging
import logging.handlers
import pickle
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.logger import LogEvent

from msgservice.errors import HandlerFailed, UnknownReceiver
from msgservice.faces.sessions.central import Central
from msgservice.faces.sessions.content.records import RecordsCodec
from msgservice.faces.sessions.durable import DurableRemotes
from msgservice.faces.sessions.envelope import (
    Ack,
    Control,
    Heartbeat,
    Hello,
    Joined,
    Shutdown,
    Welcome,
    fields_of,
)
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.names import RemoteMessagingSender, RemoteMessagingServer
from msgservice.faces.sessions.remote import Ended, Remote
from msgservice.faces.sessions.sender import Sender
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver

SECONDS = 30


class Cookbook:
    """The receiver of log records that the logging cookbook describes: a thread per connection."""

    def __init__(self) -> None:
        records: list[logging.LogRecord] = []
        self.records = records
        self.came = threading.Condition()
        came = self.came

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while len(prefix := self.rfile.read(4)) == 4:
                    (length,) = struct.unpack(">L", prefix)
                    body = self.rfile.read(length)
                    if len(body) < length:
                        break
                    record = logging.makeLogRecord(pickle.loads(body))
                    logging.Formatter("%(asctime)s %(name)s %(process)d %(message)s").format(record)
                    with came:
                        records.append(record)
                        came.notify_all()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def wait(self, count: int) -> list[logging.LogRecord]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.records) >= count, SECONDS)
        return self.records

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def cookbook() -> Iterator[Cookbook]:
    made = Cookbook()
    yield made
    made.stop()


class Came:
    """A handler that fires when so many have come."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._waiting: list[tuple[int, Deferred[list[Any]]]] = []

    def __call__(self, one: Any) -> None:
        self.all.append(one)
        for pair in list(self._waiting):
            if len(self.all) >= pair[0]:
                self._waiting.remove(pair)
                pair[1].callback(self.all)

    def wait(self, count: int) -> Deferred[list[Any]]:
        d: Deferred[list[Any]] = Deferred()
        d.addTimeout(SECONDS, reactor)
        self._waiting.append((count, d))
        if len(self.all) >= count:
            self._waiting.pop()
            d.callback(self.all)
        return d


@pytest_twisted.ensureDeferred
async def test_both_sides_send_and_acknowledge_and_the_central_ends_the_remote() -> None:
    at_central, at_remote = Came(), Came()
    central = Central(reactor, on_message=at_central)
    address = await central.listen()
    remote = Remote(reactor, address, id="shop", on_message=at_remote)
    await remote.start()
    await remote.when_joined()
    receipts = [await central.send("shop", {"n": n}) for n in range(500)]
    receipts += [await remote.send(n) for n in range(500)]
    for receipt in receipts:
        await receipt.acknowledged()
    assert [m.content for m in at_remote.all] == [{"n": n} for n in range(500)]
    assert [m.content for m in at_central.all] == list(range(500))
    assert at_central.all[0].key == "shop"
    await central.shutdown("shop", "enough")
    assert await remote.when_shut_down() == Ended("central", "enough")
    await central.stopService()


@pytest_twisted.ensureDeferred
async def test_handlers_on_threads_may_block_and_keep_the_order_of_their_remote(
    logged_failures: list[LogEvent],
) -> None:
    both = threading.Barrier(2, timeout=SECONDS)
    order: dict[str, list[int]] = {"a": [], "b": []}
    of_reactor = threading.get_ident()
    where: set[int] = set()

    def handle(message: Any) -> None:
        both.wait()  # it breaks unless a message of the other remote is handled at the same time
        where.add(threading.get_ident())
        order[message.key].append(message.content)
        if message.content == 7:
            raise ValueError("seven")

    central = Central(reactor, on_message=handle, threads=2)
    address = await central.listen()
    remotes = [Remote(reactor, address, id=name) for name in order]
    receipts = []
    for remote in remotes:
        await remote.start()
        await remote.when_joined()
    for n in range(50):
        receipts += [await remote.send(n) for remote in remotes]
    outcomes = await DeferredList([one.acknowledged() for one in receipts], consumeErrors=True)
    assert order == {"a": list(range(50)), "b": list(range(50))}
    assert len(where) == 2
    assert of_reactor not in where
    failed = [index // 2 for index, (is_well, _) in enumerate(outcomes) if not is_well]
    assert failed == [7, 7]
    assert len(logged_failures) == 2
    logged_failures.clear()
    for remote in remotes:
        await remote.stopService()
    await central.stopService()


@pytest_twisted.ensureDeferred
async def test_a_thread_of_handlers_sends_through_the_reactor_and_not_by_itself(
    logged_failures: list[LogEvent],
) -> None:
    at_central = Came()

    def handle(message: Any) -> None:
        if message.content == "by itself":
            remote.send("never")
        send: Any = remote.send
        blockingCallFromThread(cast("IReactorFromThreads", reactor), send, message.content)

    central = Central(reactor, on_message=at_central)
    remote = Remote(reactor, await central.listen(), id="shop", on_message=handle, threads=2)
    await remote.start()
    await remote.when_joined()
    receipts = [await central.send("shop", n) for n in range(50)]
    wrong = await central.send("shop", "by itself")
    for receipt in receipts:
        await receipt.acknowledged()
    with pytest.raises(HandlerFailed, match="RuntimeError: this is a thread of handlers"):
        await wrong.acknowledged()
    await at_central.wait(50)
    assert [m.content for m in at_central.all] == list(range(50))
    assert len(logged_failures) == 1
    logged_failures.clear()
    await remote.stopService()
    await central.stopService()


@pytest_twisted.ensureDeferred
async def test_all_else_of_a_side_is_refused_on_a_thread_of_handlers_too() -> None:
    allowed: list[str] = []
    refused: list[str] = []
    tried: Deferred[None] = Deferred()

    def handle(message: Any) -> None:
        for name, call in calls.items():
            try:
                call()
                allowed.append(name)
            except RuntimeError as error:
                refused.append(name)
                if "this is a thread of handlers" not in str(error):
                    allowed.append(name)
        cast("IReactorFromThreads", reactor).callFromThread(tried.callback, None)

    central = Central(reactor)
    remote = Remote(reactor, await central.listen(), id="shop", on_message=handle, threads=1)
    other = Remote(reactor, ("127.0.0.1", 1602))
    await remote.start()
    await remote.when_joined()
    receipt = await remote.send("before")
    calls: dict[str, Callable[[], object]] = {
        "receipt": receipt.acknowledged,
        "remote.start": other.start,
        "remote.stop": remote.stopService,
        "remote.when_joined": remote.when_joined,
        "remote.when_shut_down": remote.when_shut_down,
        "central.listen": Central(reactor).listen,
        "central.stop": central.stopService,
        "central.when_joined": central.when_joined,
        "central.when_left": central.when_left,
        "central.shutdown": lambda: central.shutdown("nobody"),
    }
    await central.send("shop", "try it")
    await tried
    assert (allowed, refused) == ([], list(calls))
    await remote.stopService()
    await central.stopService()


@pytest_twisted.ensureDeferred
async def test_standard_socket_handlers_send_to_a_central_unchanged() -> None:
    came = Came()
    central = Central(reactor, codec=RecordsCodec(), on_message=came)
    host, port = await central.listen()

    def log(number: int) -> None:
        logger = logging.getLogger(f"tests.shop{number}")
        logger.propagate, logger.level = False, logging.INFO
        handler = logging.handlers.SocketHandler(host, port)
        logger.addHandler(handler)
        for n in range(100):
            logger.info("loop %d", n)
        try:
            raise ValueError("no")
        except ValueError:
            logger.exception("it failed")
        logger.removeHandler(handler)
        handler.close()

    for number in range(3):
        await deferToThread(log, number)
    messages = await came.wait(303)
    for number in range(3):
        mine = [m for m in messages if m.record["name"] == f"tests.shop{number}"]
        assert [m.content for m in mine] == [*(f"loop {n}" for n in range(100)), "it failed"]
        assert "ValueError: no" in mine[-1].record["exc_text"]
    await central.stopService()


class Logging:
    """A `SocketHandler` of the standard library, which has one connection to a server."""

    def __init__(self, host: str, port: int) -> None:
        self._handler = logging.handlers.SocketHandler(host, port)
        self.close = self._handler.close

    async def log(self, *messages: object) -> None:
        for message in messages:
            record = logging.LogRecord("tests", logging.INFO, "", 1, message, None, None)
            await deferToThread(self._handler.handle, record)


def look_alikes(session: str) -> list[str]:
    """Return what is each of the control messages, as text in both spellings."""
    items: list[Control] = [
        Hello(45_001),
        Hello(45_001, id="shop", acks=True, nonce="n"),
        Welcome(session, nonce="n"),
        Joined(session),
        Heartbeat(1, 1.0),
        Ack(session, 1, ((1, "ValueError: no"),)),
        Shutdown(session, 1, "enough"),
        Shutdown(),
    ]
    return [write(fields_of(item)) for item in items for write in (json.dumps, str)]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("first", range(0, 16, 2))
async def test_a_record_that_reads_as_a_control_message_is_a_message_at_a_central(
    first: int,
) -> None:
    """Whoever may have a text logged makes no central dial, and costs no record behind it."""
    came, at_remote = Came(), Came()
    central = Central(reactor, codec=RecordsCodec(), on_message=came)
    address = await central.listen()
    before = Logging(*address)  # any session
    texts = look_alikes("0123456789abcdef")
    texts = texts[first:] + texts[:first]
    await before.log(*texts, "behind")
    assert [m.content for m in await came.wait(17)] == [*texts, "behind"]
    assert {m.key for m in came.all} == {None}
    assert central.remotes == {}
    came.all.clear()

    remote = Remote(reactor, address, id="shop", codec=RecordsCodec(), on_message=at_remote)
    await remote.start()
    member = await central.when_joined("shop")
    receipt = await central.send("shop", 1)
    texts = look_alikes(member.session)
    await before.log(*texts)
    other = Logging(*address)  # and one that begins while the session is open
    await other.log(*texts)
    await came.wait(32)
    assert sorted(m.content for m in came.all) == sorted([*texts, *texts])
    await receipt.acknowledged()
    for text in texts:  # and as messages of the session
        await (await remote.send(text)).acknowledged()
        await (await central.send("shop", text)).acknowledged()
    assert [m.content for m in came.all[32:]] == texts
    assert [m.content for m in at_remote.all] == [1, *texts]
    assert central.remotes == {"shop": member}
    assert member.is_joined
    before.close()
    other.close()
    await remote.stopService()
    await central.stopService()


@pytest_twisted.ensureDeferred
async def test_a_remote_that_says_hello_through_a_logger_joins_where_that_is_allowed() -> None:
    came = Came()
    central = Central(reactor, codec=RecordsCodec(), on_message=came, logged_hello=True)
    address = await central.listen()
    heard: list[Any] = []
    server = RemoteMessagingServer(lambda record: heard.append(record.msg), reactor=reactor)
    await server.start()
    texts = [text for text in look_alikes("s") if "45001" not in text or "acks" in text]
    remote = Logging(*address)
    await remote.log("early", *texts)
    await came.wait(15)
    assert central.remotes == {}  # but a hello that says no more than a logger can stand by
    joined = central.when_joined()
    await remote.log({"type": "hello", "port": server.serverPort})
    member = await joined
    assert member.key == server.serverAddress
    await remote.log(*look_alikes("s"), "behind")  # one says hello once
    messages = (await came.wait(32))[15:]
    assert [m.content for m in messages] == [*look_alikes("s"), "behind"]
    assert {m.key for m in messages} == {member.key}
    assert list(central.remotes.values()) == [member]
    await (await central.send(member.key, "down")).acknowledged()
    remote.close()
    await central.stopService()
    await server.stop()
    assert "down" in heard


@pytest_twisted.ensureDeferred
async def test_a_server_under_its_old_name_hands_records_on_and_writes_nothing() -> None:
    came = Came()
    server = RemoteMessagingServer(came, reactor=reactor)
    await server.start()
    assert server.serverAddress == (server.serverIP, server.serverPort)

    def log() -> bytes:
        record = logging.LogRecord("shop", logging.INFO, "", 1, "x %s", ("y",), None)
        with socket.create_connection((server.serverIP, server.serverPort), 5) as client:
            client.sendall(logging.handlers.SocketHandler("h", 1).makePickle(record))
            client.shutdown(socket.SHUT_WR)
            return client.recv(100)

    assert await deferToThread(log) == b""
    (record,) = await came.wait(1)
    assert (record.name, record.getMessage(), record.levelno) == ("shop", "x y", logging.INFO)
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_sender_under_its_old_name_logs_to_the_receiver_of_the_cookbook(
    cookbook: Cookbook,
) -> None:
    logger = RemoteMessagingSender("shop", "127.0.0.1", cookbook.port, reactor=reactor)
    for n in range(200):
        logger.info("loop %d", n)
    await deferToThread(logger.warning, "from a %s", "thread")
    records = await deferToThread(cookbook.wait, 201)
    assert [r.getMessage() for r in records] == [
        *(f"loop {n}" for n in range(200)),
        "from a thread",
    ]
    await logger.handler.flushed()
    assert logger.handler.queued == 0
    await logger.close()


@pytest_twisted.ensureDeferred
async def test_a_remote_without_acknowledgements_speaks_with_the_receiver_of_the_cookbook(
    cookbook: Cookbook,
) -> None:
    remote = Remote(reactor, ("127.0.0.1", cookbook.port), codec=RecordsCodec(), acks=False)
    _, port = await remote.start()
    receipts = [await remote.send({"number": n}) for n in range(10)]
    hello, *records = await deferToThread(cookbook.wait, 11)
    assert hello.msg == {"type": "hello", "port": port}
    assert [record.msg for record in records] == [{"number": n} for n in range(10)]
    for receipt in receipts:
        await receipt.acknowledged()  # its kernel has them
    await remote.stopService()


@pytest_twisted.ensureDeferred
async def test_what_is_for_a_remote_that_is_away_waits_in_a_node(tmp_path: Path) -> None:
    node = Node(reactor, tmp_path / "node", failed=lambda error: None)
    node.startService()
    await node.when_ready()

    def attach(receiver: Receiver) -> None:
        receiver.attach_through(
            lambda make_user: node.connector(make_user, receiver.name), address="in this process"
        )

    client = node.client("central")
    central = Central(reactor, node=DurableRemotes(reactor, client, attach))
    address = await central.listen()
    with pytest.raises(UnknownReceiver):
        await central.send("shop", 1)
    first = Came()
    remote = Remote(reactor, address, id="shop", on_message=first)
    await remote.start()
    await central.when_joined("shop")
    await (await central.send("shop", "there")).acknowledged()
    left = central.when_left("shop")
    await central.shutdown("shop")
    await left
    receipts = [await central.send("shop", n) for n in range(20)]
    second = Came()
    again = Remote(reactor, address, id="shop", on_message=second)
    await again.start()
    for receipt in receipts:
        await receipt.acknowledged()
    assert [m.content for m in first.all] == ["there"]
    assert [m.content for m in second.all] == list(range(20))
    await again.stopService()
    await central.stopService()
    await client.close()
    await node.stopService()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("host", ["::1", "0:0:0:0:0:0:0:1"])
async def test_a_remote_listens_by_default_where_a_central_of_ipv6_dials_it(host: str) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    central = Central(reactor, listen=r"tcp6:0:interface=\:\:1")
    remote = Remote(reactor, (host, (await central.listen())[1]), id="shop")
    assert (await remote.start())[0] == "::1"
    await central.when_joined("shop").addTimeout(SECONDS, reactor)
    await (await remote.send("up")).acknowledged()
    await (await central.send("shop", "down")).acknowledged()
    await remote.stopService()
    await central.stopService()


@pytest.mark.parametrize("host", ["10.0.0.5", "2001:db8::1", "::ffff:10.0.0.5"])
def test_a_remote_of_a_central_elsewhere_is_told_to_say_where_it_listens(host: str) -> None:
    with pytest.raises(ValueError, match=f"^listen: .* at {host} cannot dial it"):
        Remote(reactor, (host, 1_602))
    others: list[dict[str, Any]] = [{"announce_host": "10.0.0.6"}, {"acks": False}]
    for options in ({"listen": "tcp:0"}, *others):
        Remote(reactor, (host, 1_602), **options)


@pytest_twisted.ensureDeferred
async def test_a_remote_that_comes_over_a_unix_socket_is_dialled_on_this_machine(
    tmp_path: Path,
) -> None:
    path = tmp_path / "central"
    central = Central(reactor, listen=f"unix:{path}")
    assert await central.listen() == (str(path), 0)
    remote = Remote(reactor, clientFromString(reactor, f"unix:{path}"))
    address = await remote.start()
    await central.when_joined(address)
    await (await remote.send("up")).acknowledged()
    await (await central.send(address, "down")).acknowledged()
    await remote.stopService()
    await central.stopService()


class Told:
    """The owner of a sender: when it is connected, and when that is lost."""

    def __init__(self) -> None:
        self.connected: Deferred[None] = Deferred()
        self.lost: Deferred[str] = Deferred()

    def sender_connected(self) -> None:
        self.connected.callback(None)

    def sender_writable(self) -> None:
        pass

    def sender_lost(self, reason: str) -> None:
        self.lost.callback(reason)

    def sender_gave_up(self, reason: str) -> None:
        pass


@pytest.mark.parametrize("reads", [True, False])
@pytest_twisted.ensureDeferred
async def test_who_takes_nothing_is_cut_off_though_little_waits_for_it(reads: bool) -> None:
    limits = SessionLimits(write_timeout=0.5)
    told = Told()
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        server.bind(("127.0.0.1", 0))
        server.listen()
        endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{server.getsockname()[1]}")
        sender = Sender(reactor, endpoint, told, limits=limits, redial_seconds=None)
        sender.start()
        peer, _ = await deferToThread(server.accept)
        await told.connected
        if reads:
            reading = deferToThread(read_all, peer)
            writing = LoopingCall(sender.write, [b"x" * 1_000])
            writing.start(0.01)
            await deferLater(reactor, 4 * limits.write_timeout)
            writing.stop()
            assert not told.lost.called
            await sender.stop()
            assert await reading > 10_000
        else:
            sender.write([b"x" * 100_000])  # the kernel has room for it, the peer's has none
            await told.lost.addTimeout(SECONDS, reactor)
            sender.abort()
        peer.close()


def read_all(peer: socket.socket) -> int:
    """Read until the end; return how many bytes came."""
    size = 0
    while data := peer.recv(65_536):
        size += len(data)
    return size
