"""Receipts that survive their process (DELIVERY 53): real files, real sockets, kill -9."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.threads import deferToThread

from msgservice import Client, Limits, Receiver, Reject, Status, connect
from msgservice.client.receipt import Receipt
from tests.integration.command import Command
from tests.integration.daemon import Daemon, running
from tests.kit.ports import free_port

CHILD = Path(__file__).with_name("receipts_child.py")
LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.2, stop_timeout=5)
POINTS = ("before commit", "after commit", "kept", "accepted", "told", "deleted")
reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(240)


def node_at(port: int, folder: Path) -> Any:
    """A node in a process of its own, on its data folder, and on this port each time."""
    folder.mkdir(exist_ok=True)
    return running("msgservice", "node", "--listen", f"tcp:{port}", cwd=folder)


async def listed(client: Client, **options: Any) -> list[Receipt]:
    """All open receipts, by small pages."""
    found: list[Receipt] = []
    while page := await client.receipts(found[-1].sequence if found else 0, 3, **options):
        found += page
    return found


def attached(address: str, name: str, subject: str, handler: Callable[[Any], Any]) -> Receiver:
    receiver = Receiver(reactor, name=name, handler=handler, limits=LIMITS)
    receiver.attach(address, subjects=[subject])
    return receiver


async def called(command: Command, *words: str) -> None:
    done = await deferToThread(command, *words)
    assert 0 == done.code, done


def told(child: Daemon, word: str) -> set[int]:
    return {int(line.split()[1]) for line in child.output if line.startswith(f"{word} ")}


@pytest.mark.parametrize("point", POINTS)
@pytest_twisted.ensureDeferred
async def test_53_a_producer_that_is_killed_learns_of_each_message(
    point: str, tmp_path: Path
) -> None:
    """Killed at each named point, its node as well while it is away."""
    port, subject = free_port(), "survive"
    address = f"tcp:127.0.0.1:{port}"
    handled: list[bytes] = []

    def handle(message: Any) -> None:
        handled.append(message.body)
        if message.body == b"2":
            raise Reject("not this one")

    outbox, command = tmp_path / "outbox.db", Command(address, tmp_path)
    with node_at(port, tmp_path / "node") as node:
        await deferToThread(node.ports)
        receiver = attached(address, "billing", subject, handle)
        await receiver.when_connected()
        away = attached(address, "away", subject, lambda message: None)
        await away.when_connected()
        await away.stopService()
        if point in ("told", "deleted"):
            await called(command, "receivers", "remove", "away", "--yes")
        words = (sys.executable, CHILD, address, outbox, subject, point, "6")
        with running(*words, cwd=tmp_path) as child:
            assert -signal.SIGKILL == await deferToThread(child.ended), child.said
        node.send(signal.SIGKILL)
        await deferToThread(node.ended)
    with node_at(port, tmp_path / "node") as node:
        await deferToThread(node.ports)
        client = await connect(reactor, address, name="survivor", limits=LIMITS, outbox=outbox)
        receipts = await listed(client)
        numbers = [receipt.sequence for receipt in receipts]
        sent, final = told(child, "sent"), told(child, "final")
        # What was handed over is listed, unless its process was told all: then it may be.
        assert sent - final <= set(numbers) <= set(range(1, client.sequence + 1)), child.said
        assert [f"m-{number}" for number in numbers] == [receipt.id for receipt in receipts]
        if point not in ("told", "deleted"):
            away = attached(address, "away", subject, lambda message: None)
        for receipt in receipts:
            statuses = await receipt.settled()
            wanted = Status.DEAD if receipt.sequence == 2 else Status.ACKNOWLEDGED
            assert wanted is statuses["billing"], receipt
            assert Status.ACKNOWLEDGED is statuses.get("away", Status.ACKNOWLEDGED)
            changes = [change async for change in receipt.changes()]
            assert ("not this one" in str(changes)) == (receipt.sequence == 2)
        assert [] == await listed(client)
        assert {b"%d" % number for number in range(1, client.sequence + 1)} == set(handled)
        await client.close()
        again = await connect(reactor, address, name="survivor", limits=LIMITS, outbox=outbox)
        assert [] == await listed(again)
        for closing in (again.close, receiver.stopService, away.stopService):
            await closing()


@pytest_twisted.ensureDeferred
async def test_53_what_operators_do_meanwhile_is_told(tmp_path: Path) -> None:
    """Removed, purged, undone, cancelled before it was due; and taken by the key of another."""
    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    outbox = tmp_path / "outbox.db"
    command = Command(address, tmp_path)
    with node_at(port, tmp_path / "node") as node:
        await deferToThread(node.ports)
        for name in ("removed", "purged", "undone"):
            await called(command, "receivers", "add", name, name)
        await called(command, "receivers", "add", "keyed", "keyed")
        client = await connect(reactor, address, name="shop", limits=LIMITS, outbox=outbox)
        other = await connect(reactor, address, name="shop", limits=LIMITS)
        for name in ("removed", "purged", "undone"):
            await client.send(name, b"x", id=name)
        await client.send("undone", b"x", id="delayed", delay=3600)
        await other.send("keyed", b"x", idempotency_key="one")
        keyed = await client.send("keyed", b"x", idempotency_key="one", id="keyed")
        await keyed.accepted
        del keyed
        await client.close()
        await called(command, "receivers", "remove", "removed", "--yes")
        await called(command, "purge", "purged", "--yes")
        await called(command, "undo", "undone")
        await called(command, "delayed", "cancel", "delayed")
    with node_at(port, tmp_path / "node") as node:
        await deferToThread(node.ports)
        keyed_receiver = attached(address, "keyed", "keyed", lambda message: None)
        client = await connect(reactor, address, name="shop", limits=LIMITS, outbox=outbox)
        states = {one.id: await one.settled() for one in await listed(client, keep=True)}
        assert {
            "removed": {"removed": Status.REMOVED},
            "purged": {"purged": Status.CANCELLED},
            "undone": {"undone": Status.CANCELLED},
            "delayed": {"$delayed": Status.CANCELLED},
            "keyed": {"keyed": Status.ACKNOWLEDGED},
        } == states
        for receipt in await listed(client):
            await receipt.settled()
        assert [] == await listed(client)
        for closing in (client.close, other.close, keyed_receiver.stopService):
            await closing()


def test_53_send_and_receipts_on_the_command_line(tmp_path: Path) -> None:
    port = free_port()
    command = Command(f"tcp:127.0.0.1:{port}", tmp_path)
    kept = command("send", "a", "1", "--id", "one", "--outbox", "o.db", "--timeout", "0.5")
    assert (3, "") == (kept.code, kept.out)
    assert "kept in o.db" in kept.err
    assert kept.err.endswith(": msgservice receipts --outbox o.db\n")
    assert 1 == kept.err.count("\n"), kept.err
    named = ("--outbox", "n.db", "--name", "shop", "--timeout", "0.5")
    by_name = command("send", "a", "1", *named)
    assert by_name.err.endswith(": msgservice receipts --outbox n.db --name shop\n")
    lines = command(
        "send", "a", "--outbox", "n.db", "--name", "shop", "--timeout", "0.5", stdin=b"x\n"
    )
    assert 1 == lines.err.count("\n"), lines.err
    told = command("receipts", "--outbox", "o.db", "--timeout", "0.5")
    assert (3, ["1", "a", "one", "-", "not", "known", "yet"]) == (
        told.code,
        told.out.splitlines()[1].split(),
    )
    with node_at(port, tmp_path / "node") as node:
        node.ports()
        assert 0 == command("receivers", "add", "billing", "a").code
        sent = command("send", "a", "2", "--outbox", "o.db")
        assert (0, True) == (sent.code, sent.out.startswith("stored at log:"))
        lines = command("send", "a", "--outbox", "o.db", stdin=b"3\n4\n")
        assert (0, True) == (lines.code, lines.out.startswith("2 messages stored")), lines
        other = command("receipts", "--outbox", "o.db", "--name", "shop")
        assert (1, True) == (other.code, "Be 'msgservice-cli', or use another file" in other.err)
        found = command.data("receipts", "--outbox", "o.db")["receipts"]
        assert [1, 2, 3, 4] == [row["sequence"] for row in found]
        assert {"billing": {"status": "queued", "reason": ""}} == found[0]["receivers"]
        assert not any(row["final"] for row in found)
        assert "1\n2\n3\n4\n" == command("listen", "billing", "--count", "4").out
        waited = command("receipts", "--outbox", "o.db", "--wait", "--forget", "final")
        assert (0, "4 receipts forgotten") == (waited.code, waited.out.splitlines()[-1])
        assert 4 == waited.out.count("billing: acknowledged")
        assert "no receipt is open\n" == command("receipts", "--outbox", "o.db").out
        assert {"receipts": []} == command.data("receipts", "--outbox", "o.db")
        for body in ("5", "6"):
            command("send", "a", body, "--id", body, "--outbox", "o.db")
        forgotten = command("receipts", "--outbox", "o.db", "--forget", "5")
        assert "1 receipt forgotten" in forgotten.out
        (left,) = command.data("receipts", "--outbox", "o.db")["receipts"]
        assert (6, "6") == (left["sequence"], left["id"])
        words = ("send", "a", "7", "--id", "7", "--delay", "1h", "--outbox", "o.db", "--json")
        due = json.loads(command(*words).out)["due"]
        later = command.data("receipts", "--outbox", "o.db")["receipts"][-1]
        assert ("7", due, None) == (later["id"], later["due"], later["position"])
        assert "waits until it is due, at " in command("receipts", "--outbox", "o.db").out


def test_53_what_is_no_outbox_ends_with_a_sentence(tmp_path: Path) -> None:
    command = Command("tcp:127.0.0.1:1", tmp_path)
    assert 2 == command("receipts", "--outbox", "none.db").code
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "other.db").write_bytes(b"no database" * 100)
    damaged = command("receipts", "--outbox", "other.db", "--json")
    assert (1, True) == (damaged.code, '"error":"LogDamaged"' in damaged.err), damaged
