"""Purges over TCP, on the command line, and over the death of a node (DELIVERY 49)."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.threads import deferToThread

from msgservice import Limits, Node, connect
from msgservice.errors import NotDelivered
from tests.integration.command import Command
from tests.integration.daemon import running
from tests.kit.ports import free_port


def test_49_what_waits_is_named_and_cancelled_by_a_command(msgservice: Command) -> None:
    msgs = msgservice
    assert msgs("receivers", "add", "full", "full.>", "--paused").code == 0
    for subject in ("full.a", "full.b", "full.b"):
        assert msgs("send", subject, "text").code == 0
    would = msgs("purge", "full", "--subject", "full.b", "--dry-run")
    assert (would.code, would.err) == (0, "")
    assert would.out.startswith("2 messages for full with subject full.b, ")
    assert would.out.endswith(" bytes, would be cancelled\n")
    asked = msgs("purge", "full")
    assert asked.code == 1
    assert asked.err.startswith("msgservice: nothing was done: 3 messages for full, ")
    assert msgs.receiver("full")["queued"] == 3
    told = msgs.data("purge", "full", "--subject", "full.b", "--yes")
    assert (told["would"]["count"], told["done"]["count"]) == (2, 2)
    assert (told["would"]["receiver"], told["done"]["in_flight"]) == ("full", 0)
    row = msgs.receiver("full")
    assert (row["queued"], row["settled"]["cancelled"], row["unaccounted"]) == (1, 2, 0)
    assert msgs("purge", "full", "--yes").out == "cancelled: 1 message for full\n"
    nothing = msgs("purge", "full")
    assert (nothing.code, nothing.out) == (0, "nothing waits for full that could be cancelled\n")


def test_49_what_cannot_be_purged_is_told_so(msgservice: Command) -> None:
    for words, code, said in (
        (("nobody", "--yes"), 1, "receivers add makes one"),
        (("a b",), 2, "bad name 'a b'"),
        (("nobody", "--subject", "a..b"), 2, "bad subject 'a..b'"),
        (("nobody", "--yes", "--dry-run"), 2, "--dry-run does nothing"),
    ):
        told = msgservice("purge", *words)
        assert told.code == code, (words, told)
        assert said in told.err, (words, told)


@pytest_twisted.ensureDeferred
async def test_49_producers_over_tcp_are_told_cancelled(tmp_path: Path) -> None:
    from twisted.internet import reactor

    port = free_port()
    limits = Limits(link_delay_min=0.05, stop_timeout=5)
    node = Node(reactor, tmp_path / "n", listen=[f"tcp:{port}:interface=127.0.0.1"], limits=limits)
    node.startService()
    await node.when_ready()
    await node.add_receiver("away", ["s.>"])
    client = await connect(reactor, f"tcp:127.0.0.1:{port}", name="shop", limits=limits)
    try:
        receipt = await client.send("s.a", b"1")
        kept = await client.send("s.b", b"2")
        await kept.accepted
        settled: Any = receipt.acknowledged()
        done = await node.purge("away", "s.a")
        assert (done.count, done.in_flight) == (1, 0)
        try:
            await settled
        except NotDelivered as error:
            told = (error.receiver, error.state, error.reason)
        assert told == ("away", "cancelled", "purged")
        assert (await node.purge("away", dry_run=True)).count == 1
        assert await node.log.audit() == []
    finally:
        await client.close()
        await node.stopService()


@pytest_twisted.ensureDeferred
async def test_49_kill_9_between_two_pages_leaves_the_rest_waiting(tmp_path: Path) -> None:
    from twisted.internet import reactor

    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    words = ("twist", "--log-format=text", "msgservice", "--listen", f"tcp:{port}")
    msgs = Command(address, tmp_path)
    count = 3000  # batches: more than a page
    with running(*words, cwd=tmp_path) as daemon:
        await deferToThread(daemon.ports)
        added = await deferToThread(msgs, "receivers", "add", "full", "full.>", "--paused")
        assert added.code == 0, added
        client = await connect(reactor, address, name="shop")
        try:
            for at in range(count):  # subjects that change: each is a batch of its own
                receipt = await client.send(f"full.{at % 2}", b"%d" % at)
            await receipt.accepted
            page: Any = await client.request("$node.receivers.purge", {"name": "full"})
            daemon.send(signal.SIGKILL)
            assert await deferToThread(daemon.ended) == -signal.SIGKILL
        finally:
            await client.close()
    assert 0 < page["count"] < count
    assert page["next"] is not None
    with running(*words, cwd=tmp_path) as daemon:
        await deferToThread(daemon.ports)
        row = await deferToThread(msgs.receiver, "full")
        left = count - page["count"]
        assert (row["queued"], row["unaccounted"]) == (left, 0)
        assert row["settled"]["cancelled"] == page["count"]
