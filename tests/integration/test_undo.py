"""`msgservice undo` and `client.undo` over real sockets, and over kill -9."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from msgservice import Limits, Node, connect
from msgservice.core.frames import Hello
from msgservice.errors import NotDelivered, UnknownMessage
from msgservice.transport.registry import Transports
from tests.integration.command import Command
from tests.integration.daemon import running
from tests.kit.knock import Knock
from tests.kit.logs import recounted
from tests.kit.ports import free_port


def test_a_command_undoes_and_gives_the_account(msgservice: Command) -> None:
    msgs = msgservice
    for name in ("billing", "archive"):
        assert msgs("receivers", "add", name, "orders.>").code == 0
    assert msgs("send", "orders.new", "text", "--id", "o-1").code == 0
    told = msgs("undo", "o-1", "--reason", "wrong price")
    assert (told.code, told.err) == (0, "")
    assert [line.split() for line in told.out.splitlines()] == [
        ["receiver", "outcome"],
        ["billing", "1", "cancelled"],
        ["archive", "1", "cancelled"],
    ]
    page = msgs.data("undo", "o-1")
    assert page["receivers"] == {
        "billing": {"cancelled_before": 1},
        "archive": {"cancelled_before": 1},
    }
    status = msgs.data("status", "o-1")["receivers"]["billing"]
    assert status["status"] == "cancelled"
    assert status["reason"].startswith("wrong price (by ")
    assert msgs.receiver("billing")["unaccounted"] == 0
    assert msgs("send", "orders.new", "text", "--key", "order-17").code == 0
    sender = msgs.data("status", "o-1")["sender"].split("/")[0]
    unknown = msgs("undo", "--key", "order-17", "--sender", "other")
    assert (unknown.code, "no message with the key" in unknown.err) == (1, True)
    assert "--sender" in msgs("undo", "--key", "order-17").err
    by_key = msgs.data("undo", "--key", "order-17", "--sender", sender)
    assert by_key["receivers"] == {"billing": {"cancelled": 1}, "archive": {"cancelled": 1}}
    for wrong in (["undo"], ["undo", "o-1", "--key", "k"], ["undo", "o-1", "--sender", "s"]):
        assert msgs(*wrong).code == 2
    nothing = msgs("undo", "nothing")
    assert (nothing.code, "no message 'nothing'" in nothing.err) == (1, True)
    assert msgs("send", "nobody.listens", "text", "--id", "o-2").code == 0
    assert msgs("undo", "o-2").out == "it was for nobody\n"


@pytest_twisted.ensureDeferred
async def test_a_producer_undoes_its_own_and_its_receipts_say_so(tmp_path: Path) -> None:
    from twisted.internet import reactor

    port = free_port()
    limits = Limits(link_delay_min=0.05, stop_timeout=5)
    node = Node(reactor, tmp_path / "n", listen=[f"tcp:{port}:interface=127.0.0.1"], limits=limits)
    node.startService()
    await node.when_ready()
    await node.add_receiver("away", ["orders.>"])
    client = await connect(reactor, f"tcp:127.0.0.1:{port}", name="shop", limits=limits)
    try:
        receipts = [await client.send("orders.new", b"%d" % number) for number in range(100)]
        told: Any = await client.undo(receipts[10], count=80)
        assert (told.messages, told.receivers) == (80, {"away": {"cancelled": 80}})
        with pytest.raises(NotDelivered, match="cancelled"):
            await receipts[10].acknowledged()
        assert receipts[9].statuses["away"].name == "QUEUED"
        paid = await client.send("orders.paid", b"p", idempotency_key="order-17")
        told = await client.undo(key="order-17", reason="twice")
        assert (told.messages, told.receivers) == (1, {"away": {"cancelled": 1}})
        with pytest.raises(NotDelivered, match="twice"):
            await paid.acknowledged()
        everything = await client.undo(receipts[0], count=1_000_000)
        assert (everything.messages, everything.receivers) == (
            101,
            {"away": {"cancelled": 20, "cancelled_before": 81}},
        )
        with pytest.raises(UnknownMessage, match="order-18"):
            await client.undo(key="order-18")
        wrongs: list[dict[str, Any]] = [{}, {"message": "o-1", "key": "k"}]
        for wrong in wrongs:
            with pytest.raises(TypeError):
                await client.undo(**wrong)
        with pytest.raises(UnknownMessage):
            await client.undo("nothing")
        with pytest.raises(ValueError, match="count = 0"):
            await client.undo(receipts[0], count=0)
        with pytest.raises(TypeError):
            await client.undo(5)  # type: ignore[arg-type]  # what is tested
    finally:
        await client.close()
        await node.stopService()


@pytest_twisted.ensureDeferred
async def test_what_was_told_to_be_undone_is_after_kill_9_too(tmp_path: Path) -> None:
    from twisted.internet import reactor

    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    data = tmp_path / "data"
    words = ("twist", "--log-format=text", "msgservice", "--data", data, "--listen", f"tcp:{port}")
    msgs = Command(address, tmp_path)
    undone: set[bytes] = set()
    with running(*words, cwd=tmp_path) as daemon:
        await deferToThread(daemon.ports)
        added = await deferToThread(msgs, "receivers", "add", "away", "orders.>")
        assert added.code == 0, added
        client = await connect(reactor, address, name="shop")
        try:
            receipts = [await client.send("orders.new", b"%d" % number) for number in range(40)]
            for number in range(0, 40, 2):
                told = await client.undo(receipts[number])
                assert told.receivers == {"away": {"cancelled": 1}}
                undone.add(b"%d" % number)
            daemon.send(signal.SIGKILL)
            assert await deferToThread(daemon.ended) == -signal.SIGKILL
        finally:
            await client.close()
    with running(*words, cwd=tmp_path) as daemon:
        await deferToThread(daemon.ports)
        got = await deferToThread(msgs, "listen", "away", "--count", "20", "--json")
        assert got.code == 0, got
        assert len(got.out.splitlines()) == 20
        row = await deferToThread(msgs.receiver, "away")
        assert (row["settled"], row["queued"]) == ({"acknowledged": 20, "cancelled": 20}, 0)
    assert recounted(data) == []


USERS = """
[[listen]]
address = "unix:node.sock"

[[listen]]
address = "tcp:0:interface=127.0.0.1"
login = "none"
user = "shop"

[[listen]]
address = "tcp:0:interface=localhost"
login = "none"
user = "thief"

[[user]]
name = "ops"
uid = {uid}
names = ["ops", "msgservice-cli"]
request = ["$node.>"]

[[user]]
name = "shop"
send = ["orders.>"]

[[user]]
name = "thief"
names = ["thief", "knocks", "msgservice-cli"]
send = ["orders.>"]
"""


@pytest_twisted.ensureDeferred
async def test_undo_of_a_foreign_message_is_refused_by_every_way_and_changes_nothing(
    tmp_path: Path,
) -> None:
    """By API, by frames over TCP and by command, as of a message that there is not."""
    from twisted.internet import reactor

    (tmp_path / "node.toml").write_text(USERS.format(uid=os.getuid()))
    words = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    limits = Limits(link_delay_min=0.05)
    with running(*words, cwd=tmp_path) as daemon:
        ports = await deferToThread(daemon.ports, 2)
        its, foreign = (f"tcp:127.0.0.1:{port}" for port in ports)
        ops = Command(f"unix:{tmp_path}/node.sock", tmp_path)
        assert (await deferToThread(ops, "receivers", "add", "billing", "orders.>")).code == 0
        shop = await connect(reactor, its, name="shop", limits=limits)
        thief = await connect(reactor, foreign, name="thief", limits=limits)
        transports = Transports()
        knock = Knock(
            lambda made: transports.find(foreign).connector(reactor, foreign, made, limits)
        )
        try:
            receipt = await shop.send("orders.new", b"1", id="o-1", idempotency_key="order-1")
            later = await shop.send("orders.new", b"2", id="o-2", delay=3600)
            await thief.send("orders.new", b"3", idempotency_key="order-3")
            before = await deferToThread(ops.data, "status", "o-1")
            names = ["o-1", "o-2", f"log:{receipt.position}", before["sender"]]
            keys = [{"key": "order-1"}, {"key": "order-1", "sender": "shop"}]
            # By the API.
            for name in names:
                with pytest.raises(UnknownMessage, match="no message"):
                    await thief.undo(name)
                with pytest.raises(UnknownMessage, match="no message"):
                    await thief.undo(name, count=1000)
            for message in (receipt, later):
                for act in (thief.undo, thief.explain, thief.cancel):
                    with pytest.raises(UnknownMessage, match="no message of this client, 'thief'"):
                        await act(message)
            with pytest.raises(UnknownMessage, match="no message"):
                await thief.undo(key="order-1")
            # By frames.
            assert isinstance(await knock.come("knocks"), Hello)
            for asked in [*({"id": name} for name in names), *keys]:
                for more in ({}, {"count": 1000}, {"reason": "mine"}):
                    body = json.dumps({**asked, **more}).encode()
                    ok, code, said = await knock.ask("$node.undo", body)
                    wanted = (False, UnknownMessage.refusal_code, True)
                    assert (ok, code, b"no message" in said) == wanted, (asked, said)
            # By command.
            theft = Command(foreign, tmp_path)
            for line in [
                *([name] for name in names),
                [before["sender"], "--count", "1000"],
                ["--key", "order-1", "--sender", "shop"],
            ]:
                told = await deferToThread(theft, "undo", *line)
                assert (told.code, told.out, "no message" in told.err) == (1, "", True), told
            # It is as it was, for its sender as for who may ask for all.
            assert before == await deferToThread(ops.data, "status", "o-1")
            assert receipt.statuses["billing"].name == "QUEUED"
            row = await deferToThread(ops.receiver, "billing")
            assert (row["queued"], row["settled"]) == (2, {})
            account = (await shop.undo(receipt, count=2)).receivers
            assert account == {"billing": {"cancelled": 1}, "$delayed": {"cancelled": 1}}
            # Its own it may undo.
            own = await thief.undo(key="order-3")
            assert own.receivers == {"billing": {"cancelled": 1}}
        finally:
            await knock.go()
            await shop.close()
            await thief.close()
