"""Requests between programs: DELIVERY 57 over real sockets, with processes that really die."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from socket import SOCK_DGRAM
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.threads import deferToThread

from msgservice import Client, Limits, Node, connect
from msgservice.errors import Ambiguous, Busy, NoResponder, RequestTimeout, ResponderLost
from tests.integration.command import Command
from tests.integration.daemon import Daemon, running
from tests.kit.certificates import Authority
from tests.kit.ports import free_port

CHILD = Path(__file__).with_name("responder_child.py")
LIMITS = Limits(link_delay_min=0.05, stop_timeout=5)


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


class World:
    """A node with a listener of each kind, and clients of it that are closed at the end."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.reactor, self.folder = reactor, folder
        self.closing: list[Callable[[], Deferred[None]]] = []

    async def start(self) -> None:
        authority = Authority(self.folder)
        key, certificate = authority.issue("localhost")
        socket = self.folder / "node.sock"
        ports = {scheme: free_port() for scheme in ("tcp", "tls", "pb")}
        ports["udp"] = free_port(SOCK_DGRAM)
        here = "interface=127.0.0.1"
        self.node = Node(
            self.reactor,
            self.folder / "node",
            listen=[
                f"tcp:{ports['tcp']}:{here}",
                f"tls:{ports['tls']}:privateKey={key}:certificate={certificate}:{here}",
                f"unix:{socket}",
                f"udp:{ports['udp']}:{here}",
                f"pb:{ports['pb']}:{here}",
            ],
            limits=LIMITS,
            failed=lambda error: pytest.fail(str(error)),
        )
        self.node.startService()
        await self.node.when_ready()
        self.addresses = {
            "tcp": f"tcp:127.0.0.1:{ports['tcp']}",
            "tls": f"tls:localhost:{ports['tls']}:trustRoots={authority.ca_file}",
            "unix": f"unix:{socket}",
            "udp": f"udp:127.0.0.1:{ports['udp']}",
            "pb": f"pb:127.0.0.1:{ports['pb']}",
        }

    async def client(self, name: str, scheme: str = "tcp") -> Client:
        if scheme == "local":
            client = self.node.client(name)
        else:
            address = self.addresses[scheme]
            client = await connect(self.reactor, address, name=name, limits=LIMITS)
        self.closing.append(client.close)
        return client

    async def stop(self) -> None:
        for close in reversed(self.closing):
            await close()
        await self.node.stopService()


@pytest_twisted.async_yield_fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    from twisted.internet import reactor

    made = World(reactor, tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("scheme", ["tcp", "tls", "unix", "udp", "pb", "local"])
@run
async def test_57_requests_go_over_each_transport_both_ways(world: World, scheme: str) -> None:
    answers = await world.client("prices", scheme)
    await answers.respond("prices.*", lambda asked: [asked.subject, asked.content]).when_ready()
    shop = await world.client("shop", scheme)
    asking = [shop.request("prices.get", n, timeout=60) for n in range(100)]
    assert [["prices.get", n] for n in range(100)] == await gatherResults(asking)
    large = "x" * 200_000
    assert ["prices.put", large] == await shop.request("prices.put", large, timeout=60)
    other = await world.client("other", "local" if scheme == "tcp" else "tcp")
    assert ["prices.a", 1] == await other.request("prices.a", 1, timeout=60)


@run
async def test_57_three_who_answer_share_the_work(world: World) -> None:
    def answering(name: str) -> Callable[[Any], str]:
        return lambda asked: name

    for name in ("one", "two", "three"):
        client = await world.client(name)
        await client.respond("work", answering(name)).when_ready()
    shop = await world.client("shop")
    answers = [await shop.request("work", b"", timeout=60) for _ in range(6)]
    assert ["one", "two", "three"] * 2 == answers
    together = await gatherResults([shop.request("work", b"", timeout=60) for _ in range(300)])
    # One that takes nothing at a moment is passed over, and has no more than the others later.
    shares = {name: together.count(name) for name in answers}
    assert (300, True) == (sum(shares.values()), min(shares.values()) >= 90), shares


async def said(process: Daemon, pattern: str) -> None:
    await deferToThread(process.wait_for, pattern)


@run
async def test_57_one_who_dies_in_a_call_fails_that_call_and_the_next_goes_elsewhere(
    world: World,
) -> None:
    shop = await world.client("shop")
    address = world.addresses["tcp"]
    with running(sys.executable, CHILD, address, "first", cwd=world.folder) as first:
        await said(first, "ready")
        waits = shop.request("work", b"wait", timeout=60)
        await said(first, "got wait")
        with running(sys.executable, CHILD, address, "second", cwd=world.folder) as second:
            await said(second, "ready")
            kills = [shop.request("work", b"die", timeout=60) for _ in range(2)]
            for one in (*kills, waits):
                with pytest.raises(ResponderLost):
                    await one
            await deferToThread(first.ended)
            await deferToThread(second.ended)
            assert 1 == (first.said + second.said).count("got wait")  # never tried elsewhere
    with pytest.raises(NoResponder):
        await shop.request("work", b"echo", timeout=60)


@run
async def test_57_one_who_dies_before_it_answers_at_all_is_never_asked(world: World) -> None:
    shop = await world.client("shop")
    address = world.addresses["tcp"]
    with running(sys.executable, CHILD, address, "w", "greeted", cwd=world.folder) as process:
        assert -signal.SIGKILL == await deferToThread(process.ended)
    with pytest.raises(NoResponder):
        await shop.request("work", b"echo", timeout=60)


@run
async def test_57_one_who_stands_still_times_out_and_may_die_then(world: World) -> None:
    shop = await world.client("shop")
    address = world.addresses["tcp"]
    with running(sys.executable, CHILD, address, "w", cwd=world.folder) as process:
        await said(process, "ready")
        assert "w" == await shop.request("work", b"echo", timeout=60)
        process.send(signal.SIGSTOP)
        with pytest.raises(RequestTimeout):
            await shop.request("work", b"echo", timeout=0.3)
        process.send(signal.SIGKILL)
        process.send(signal.SIGCONT)
        await deferToThread(process.ended)
    info = await shop.request("$node.info", {}, timeout=60)
    assert 0 == info["requests"]["pending"]


@run
async def test_57_a_node_that_is_killed_fails_what_was_sent_and_responders_come_back(
    world: World,
) -> None:
    folder = world.folder / "other"
    folder.mkdir()
    port = free_port()
    command = ("twist", "--log-format=text", "msgservice", "--listen", f"tcp:{port}")
    address = f"tcp:127.0.0.1:{port}"
    reactor = world.reactor
    with running(*command, cwd=folder) as node:
        await deferToThread(node.ports)
        worker = await connect(reactor, address, name="worker", limits=LIMITS)
        shop = await connect(reactor, address, name="shop", limits=LIMITS)
        began: Deferred[None] = Deferred()
        calls: list[bytes] = []

        def handle(asked: Any) -> Any:
            calls.append(asked.body)
            if asked.body == b"wait":
                began.callback(None)
                return Deferred()
            return b"answered"

        responder = worker.respond("work", handle)
        await responder.when_ready()
        waits = shop.request("work", b"wait", timeout=60)
        await began
        node.send(signal.SIGKILL)
        with pytest.raises(Ambiguous):
            await waits
        await deferToThread(node.ended)
    parked = shop.request("work", b"parked", timeout=60)
    with running(*command, cwd=folder) as node:
        await deferToThread(node.ports)
        await shop.when_connected()
        with_luck = await parked.addErrback(lambda failure: failure.trap(NoResponder))
        assert with_luck in (b"answered", NoResponder)  # whoever comes back first
        await responder.when_ready()
        assert b"answered" == await shop.request("work", b"again", timeout=60)
        assert 1 == calls.count(b"wait")  # nothing is asked twice
        await gatherResults([worker.close(), shop.close()])


@run
async def test_57_who_answers_slowly_is_given_no_more_than_it_takes(world: World) -> None:
    worker, shop = await world.client("worker"), await world.client("shop")
    waiting: list[Deferred[Any]] = []

    def handle(asked: Any) -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    await worker.respond("work", handle, concurrency=2).when_ready()
    asked = [shop.request("work", b"", timeout=60) for _ in range(3)]
    with pytest.raises(Busy):
        await asked[2]
    for one in waiting:
        one.callback("done")
    assert ["done", "done"] == await gatherResults(asked[:2])


@run
async def test_57_a_plain_program_of_perspective_broker_asks_too(world: World) -> None:
    from twisted.cred.credentials import Anonymous
    from twisted.spread import pb

    worker = await world.client("worker")
    await worker.respond("prices.get", lambda asked: {"price": asked.content["n"]}).when_ready()
    port = int(world.addresses["pb"].rpartition(":")[2])
    factory = pb.PBClientFactory()
    world.reactor.connectTCP("127.0.0.1", port, factory)
    perspective = await factory.login(Anonymous())
    assert {"price": 7} == await perspective.callRemote("request", "prices.get", {"n": 7})
    failing = perspective.callRemote("request", "other", {"n": 7})
    kind = await failing.addErrback(lambda failure: failure.type)
    assert "msgservice.errors.NoResponder" == (kind if isinstance(kind, str) else kind.decode())
    gone: Deferred[None] = Deferred()
    perspective.broker.notifyOnDisconnect(lambda: gone.callback(None))
    factory.disconnect()
    await gone


class Held:
    """A handler that answers nothing that it is asked, until told to."""

    def __init__(self) -> None:
        self.came = self.cancelled = 0
        self.waiting: list[Deferred[Any]] = []
        self._until: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def __call__(self, asked: Any) -> Any:
        if asked.body == b"echo":
            return b"answered"
        self.came += 1
        self.waiting.append(Deferred(lambda _: self._cancelled()))
        self._look()
        return self.waiting[-1]

    def _cancelled(self) -> None:
        self.cancelled += 1
        self._look()

    def _look(self) -> None:
        for condition, waiter in self._until:
            if not waiter.called and condition():
                waiter.callback(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until this is so, as it may be whenever something comes or is cancelled."""
        waiter: Deferred[None] = Deferred()
        self._until.append((condition, waiter))
        self._look()
        await waiter


async def counts(client: Client) -> dict[str, int]:
    info = await client.request("$node.info", {}, timeout=60)
    found: dict[str, int] = info["requests"]
    return found


def given_up(failure: Any) -> None:
    failure.trap(CancelledError)


@pytest.mark.parametrize("scheme", ["tcp", "tls", "unix", "udp", "pb", "local"])
@run
async def test_57_a_thousand_that_are_cancelled_take_no_place(world: World, scheme: str) -> None:
    """They wait a day; a node that kept them would refuse all more until then."""
    held = Held()
    answers = await world.client("answers", scheme)
    responder = answers.respond("work", held)
    await responder.when_ready()
    shop = await world.client("shop", scheme)
    for again in (1, 2):
        asked = [
            shop.request("work", b"wait", timeout=86_400).addErrback(given_up)
            for _ in range(LIMITS.requests)
        ]
        await held.until(lambda: held.came == again * LIMITS.requests)  # noqa: B023  # awaited here
        for one in asked:
            one.cancel()
        assert b"answered" == await shop.request("work", b"echo", timeout=60)
        told = await counts(shop)
        assert (0, again * LIMITS.requests) == (told["pending"], told["given_up"])
        await held.until(lambda: held.cancelled == again * LIMITS.requests)  # noqa: B023
        assert 0 == responder.unanswered
        assert 0 == told["late"]  # who was asked has heard it, and answers none


@run
async def test_57_what_was_sent_by_a_connection_that_is_lost_is_forgotten_with_it(
    world: World,
) -> None:
    held = Held()
    answers, shop = await world.client("answers"), await world.client("shop")
    await answers.respond("work", held).when_ready()
    asked = [shop.request("work", b"wait", timeout=86_400) for _ in range(100)]
    await held.until(lambda: held.came == 100)
    for one in asked[:50]:
        one.addErrback(given_up)
        one.cancel()
    connection = shop._hop.connection
    assert connection is not None
    connection.abort()  # before the turn is over in which they were given up: nothing is said
    for one in asked[50:]:
        with pytest.raises(Ambiguous):
            await one
    await shop.when_connected()
    assert b"answered" == await shop.request("work", b"echo", timeout=60)
    await held.until(lambda: held.cancelled == 100)
    told = await counts(shop)
    assert (0, 100) == (told["pending"], told["given_up"])


@run
async def test_57_a_plain_program_of_perspective_broker_that_goes_waits_no_more(
    world: World,
) -> None:
    from twisted.cred.credentials import Anonymous
    from twisted.spread import pb

    held = Held()
    answers = await world.client("answers")
    await answers.respond("work", held).when_ready()
    port = int(world.addresses["pb"].rpartition(":")[2])
    factory = pb.PBClientFactory()
    world.reactor.connectTCP("127.0.0.1", port, factory)
    perspective = await factory.login(Anonymous())
    asking = perspective.callRemote("request", "work", {"n": 7})
    asking.addErrback(lambda failure: failure.trap(pb.PBConnectionLost, pb.DeadReferenceError))
    await held.until(lambda: held.came == 1)
    factory.disconnect()
    await held.until(lambda: held.cancelled == 1)
    await asking
    told = await counts(answers)
    assert (0, 1) == (told["pending"], told["given_up"])


def test_57_the_command_asks_and_prints_the_answer(msgservice: Command) -> None:
    with running(sys.executable, CHILD, msgservice.node, "w", cwd=msgservice.folder) as process:
        process.wait_for("ready")
        asked = msgservice("request", "work", "echo")
        assert (0, "w\n", "") == (asked.code, asked.out, asked.err)
        told = msgservice.data("request", "work", "echo", "--header", "trace=t1")
        assert {"subject": "work", "answer": "w"} == told
        body = msgservice.folder / "body"
        body.write_bytes(b"bytes")
        assert {"subject": "work", "text": "bytes"} == msgservice.data(
            "request", "work", "--file", "body"
        )
        dies = msgservice("request", "work", "die", "--json")
        assert (3, "ResponderLost") == (dies.code, json.loads(dies.err)["error"])
        process.ended()
    nobody = msgservice("request", "work", "echo")
    assert (3, "") == (nobody.code, nobody.out)
    assert "nobody answers requests on 'work'" in nobody.err
    info = msgservice("request", "$node.info")
    assert 0 == info.code
    assert 0 == info.data["requests"]["pending"]


def test_57_the_command_says_what_failed_and_what_is_wrong(msgservice: Command) -> None:
    with running(sys.executable, CHILD, msgservice.node, "w", cwd=msgservice.folder) as process:
        process.wait_for("ready")
        failed = msgservice("request", "work", "fail")
        assert (1, "") == (failed.code, failed.out)
        assert "msgservice: no such thing\n" == failed.err
        waits = msgservice("request", "work", "wait", "--timeout", "0.5")
        assert 3 == waits.code
        assert "no answer on 'work' within 0.5 s" in waits.err
        for wrong in (["a..b"], ["a", "b", "--header", "c"], ["a", "b", "--file", "/dev/null"]):
            assert 2 == msgservice("request", *wrong).code
