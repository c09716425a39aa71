"""Receivers that are away for too long: over TCP, by commands, and over a kill (DELIVERY 49)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest_twisted
from twisted.internet.threads import deferToThread

from msgservice import Limits, Node, Receiver, connect
from msgservice.errors import NotDelivered
from tests.integration.command import Command
from tests.integration.daemon import running
from tests.kit.ports import free_port

QUICK = Limits(link_delay_min=0.01, link_delay_max=0.05, hello_timeout=0.5, stop_timeout=5)
CONFIG = """
[node]
data = "data"

[listen]
tcp = "tcp:{port}:interface=127.0.0.1"

[limits]
link_delay_min = 0.01
link_delay_max = 0.05
hello_timeout = 0.5
away_max = {away_max}

[[receiver]]
name = "fixed"
subjects = ["orders.>"]
"""


@pytest_twisted.ensureDeferred
async def test_49_a_receiver_that_stopped_is_removed_and_its_producer_told(tmp_path: Path) -> None:
    from twisted.internet import reactor

    listen = f"tcp:{free_port()}:interface=127.0.0.1"
    node = Node(reactor, tmp_path / "n", listen=[listen], limits=QUICK)
    node.startService()
    await node.when_ready()
    client = await connect(reactor, node.listeners[0], name="shop", limits=QUICK)
    receiver = Receiver(reactor, name="billing", handler=lambda message: None, limits=QUICK)
    try:
        receiver.attach(node.listeners[0], subjects=["orders.>"])
        await receiver.when_connected()
        receipt = await client.send("orders.new", b"1")
        await receipt.acknowledged("billing")
        await node.change_receiver("billing", away_max=1)
        await receiver.stop()
        kept = await client.send("orders.new", b"2")
        assert kept.receivers == ("billing",)
        try:
            await kept.acknowledged()
        except NotDelivered as error:
            told = (error.receiver, error.state)
        assert told == ("billing", "removed")
        assert (await client.send("orders.new", b"3")).receivers == ()
        assert await node.log.audit() == []
    finally:
        await receiver.stop()
        await client.close()
        await node.stopService()


@pytest_twisted.ensureDeferred
async def test_49_kill_9_ends_no_time_away_and_the_command_line_shows_it(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "node.toml"
    file.write_text(CONFIG.format(port=port, away_max="1_000_000.0"))
    msgs = Command(f"tcp:127.0.0.1:{port}", tmp_path)
    words = ("twist", "--log-format=text", "msgservice", "--config", file)
    with running(*words, cwd=tmp_path) as daemon:
        await deferToThread(daemon.ports)
        for name, more in (("gone", ("--away-max", "500000")), ("slow", ())):
            added = await deferToThread(msgs, "receivers", "add", name, "orders.>", *more)
            assert added.code == 0, added
        changed = await deferToThread(msgs, "receivers", "change", "fixed", "--away-max", "3")
        assert changed.code == 1
        assert "never removed" in changed.err
        assert (await deferToThread(msgs, "send", "orders.new", "text", "--id", "one")).code == 0
        names = ("gone", "slow", "fixed")
        while True:
            rows = {name: await deferToThread(msgs.receiver, name) for name in names}
            if rows["gone"]["away_s"] >= 2:  # it only grows
                break
        assert [500_000, 1_000_000, 0] == [row["away_max"] for row in rows.values()]
        assert [True, True, False] == [row["away_s"] is not None for row in rows.values()]
        shown = await deferToThread(msgs, "receivers", "list")
        assert " s of 5 d" in shown.out
        assert " s of 11 d" in shown.out
        # Whatever is stored says how old the log is.
        assert (await deferToThread(msgs, "send", "orders.new", "text")).code == 0
        daemon.send(signal.SIGKILL)
        assert await deferToThread(daemon.ended) == -signal.SIGKILL
    with running(*words, cwd=tmp_path) as daemon:
        await deferToThread(daemon.ports)
        row = await deferToThread(msgs.receiver, "gone")
        assert row["away_s"] > rows["gone"]["away_s"] - 1
        assert row["queued"] == 2
        changed = await deferToThread(msgs, "receivers", "change", "gone", "--away-max", "1")
        assert changed.code == 0
        said = await deferToThread(daemon.wait_for, r"receiver gone was away for longer.*")
        assert "its away_max of 1 s: it is removed, and 2 message(s)" in said[0]
        listed = await deferToThread(msgs.data, "receivers", "list")
        assert ["fixed", "slow"] == [row["name"] for row in listed["receivers"]]
        status = await deferToThread(msgs.data, "status", "one")
        assert status["receivers"]["gone"]["status"] == "removed"
        assert {"queued"} == {status["receivers"][name]["status"] for name in ("fixed", "slow")}
        assert {0} == {row["unaccounted"] for row in listed["receivers"]}
