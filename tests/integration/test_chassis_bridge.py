"""The example bridge: real lines through a real node on disk, and out again as lines."""

import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor as installed

from examples.chassis_bridge import LINE_BYTES_MAX, from_node, to_node
from msgservice import Node
from tests.integration.chassis_peer import Peer, Stage
from tests.integration.daemon import running
from tests.kit.ports import free_port

pytest_plugins = ("tests.integration.chassis_stage",)

ROOT = Path(__file__).resolve().parents[2]
PROCESS = """
import sys
from twisted.internet import reactor
from examples.chassis_bridge import Bridge

Bridge(reactor, sys.argv[1], (0, 0)).run()
"""
reactor: Any = installed
HERE: dict[str, Any] = {"port": 0, "interface": "127.0.0.1"}


@pytest_twisted.async_yield_fixture
async def node(tmp_path: Path) -> AsyncIterator[Any]:
    """A node on a folder of its own, that listens on loopback."""
    made = Node(reactor, tmp_path / "data", name="bridged", listen=["tcp:0:interface=127.0.0.1"])
    made.startService()
    await made.when_ready()
    yield made
    await made.stopService()


def address_of(node: Any) -> str:
    return f"tcp:127.0.0.1:{node.ports[0].getHost().port}"


def lines(peer: Peer) -> list[bytes]:
    return bytes(peer.received).split(b"\r\n")[:-1]


async def to_server(stage: Stage, node: Any) -> tuple[Any, Peer]:
    client = node.client("bridge")
    server = await stage.start(to_node(client, "lines", **HERE))
    return client, await stage.connect(server)


async def from_server(stage: Stage, node: Any) -> Any:
    return await stage.start(from_node(reactor, address_of(node), "lines", **HERE))


async def receiver(stage: Stage, server: Any, node: Any, name: bytes) -> Peer:
    """Return a peer that is attached to the node as `name`."""
    peer = await stage.connect(server)
    peer.transport.write(name + b"\r\n")
    await stage.until(lambda: node.parts.directory.get(name.decode()) is not None)
    return peer


@pytest_twisted.ensureDeferred
async def test_every_line_is_answered_when_it_is_on_disk(stage: Stage, node: Any) -> None:
    client, peer = await to_server(stage, node)
    peer.transport.write(b"".join(b"line %d\r\n" % n for n in range(500)))
    peer.half_close()
    answers = (await peer.end()).split(b"\r\n")[:-1]
    positions = [int(answer.removeprefix(b"OK ")) for answer in answers]
    assert len(positions) == 500
    assert positions == sorted(set(positions))
    await client.close()


@pytest_twisted.ensureDeferred
async def test_lines_go_in_and_come_out_in_order(stage: Stage, node: Any) -> None:
    server = await from_server(stage, node)
    out = await receiver(stage, server, node, b"billing")
    client, peer = await to_server(stage, node)
    sent = [b"line %d" % number for number in range(20)]
    peer.transport.write(b"".join(line + b"\n" for line in sent))
    for number in range(20):
        await out.until(lambda number=number: len(lines(out)) > number)  # type: ignore[misc] # a default binds the loop's value
        out.transport.write(b"ACK\r\n")
    assert lines(out) == sent
    await client.close()


@pytest_twisted.ensureDeferred
async def test_what_a_peer_has_not_answered_comes_again_under_its_name(
    stage: Stage, node: Any
) -> None:
    server = await from_server(stage, node)
    first = await receiver(stage, server, node, b"billing")
    client, peer = await to_server(stage, node)
    peer.transport.write(b"one\ntwo\n")
    await first.until(lambda: len(lines(first)) >= 1)
    first.transport.write(b"ACK\n")
    await first.until(lambda: len(lines(first)) >= 2)
    first.transport.abortConnection()
    await first.lost()
    again = await stage.connect(server)
    again.transport.write(b"billing\r\n")
    await again.until(lambda: len(lines(again)) >= 1)
    assert lines(again)[0] == b"two"
    again.transport.write(b"ACK\r\n")
    await client.close()


@pytest_twisted.ensureDeferred
async def test_a_line_that_is_too_long_and_a_name_that_is_none_are_refused(
    stage: Stage, node: Any
) -> None:
    client, peer = await to_server(stage, node)
    peer.transport.write(b"x" * (LINE_BYTES_MAX + 70_000))
    assert await peer.end() == b"REFUSED line of more than 65536 bytes\r\n"
    bad = await stage.connect(await from_server(stage, node))
    bad.transport.write(b"no name at all!\r\n")
    assert (await bad.end()).startswith(b"REFUSED bad name")
    await client.close()


def test_the_process_says_whom_it_asks_and_which_of_its_ports_takes_lines(tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    twist = ("twist", "--log-format=text", "msgservice", "--listen", f"tcp:{port}")
    with running(sys.executable, "-c", PROCESS, address, cwd=ROOT) as bridge:
        bridge.wait_for(f"asking {address} who it is")
        with running(*twist, cwd=tmp_path):
            taking = int(bridge.wait_for(r"port (\d+) takes lines")[1])
            bridge.wait_for(r"port \d+ gives lines")
            with socket.create_connection(("127.0.0.1", taking), timeout=60) as peer:
                peer.sendall(b"one\n")
                assert peer.recv(100).startswith(b"OK ")
            bridge.send(signal.SIGINT)
            assert bridge.ended() == 0
