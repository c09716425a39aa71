"""Idempotency keys by every way in: sockets, acknowledged UDP, in process, and as a command."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from msgservice import Client, Limits, Node, Receipt, Receiver, Status, connect
from msgservice.errors import KeyReused
from msgservice.records import identity_of
from tests.integration.command import Command
from tests.integration.daemon import running
from tests.kit.ports import free_port

LIMITS = Limits(link_delay_min=0.05, stop_timeout=5)


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


async def node_on(reactor: Any, folder: Path, *listen: str) -> Node:
    node = Node(
        reactor,
        folder,
        listen=listen,
        limits=LIMITS,
        failed=lambda error: pytest.fail(str(error)),
    )
    node.startService()
    await node.when_ready()
    return node


async def paid(client: Client, body: bytes = b"paid", *, accepted: bool = False) -> Receipt:
    receipt = await client.send("orders.paid", body, idempotency_key="order-1")
    if accepted:
        await receipt.accepted
    return receipt


@run
async def test_45_a_key_is_one_message_by_every_way_in_and_after_a_restart(
    tmp_path: Path,
) -> None:
    from twisted.internet import reactor

    tcp, udp = free_port(), free_port()
    listen = (f"tcp:{tcp}:interface=127.0.0.1", f"udp:{udp}:interface=127.0.0.1")
    addresses = (f"tcp:127.0.0.1:{tcp}", f"udp:127.0.0.1:{udp}")
    positions: list[int | None] = []
    for _ in range(2):
        node = await node_on(reactor, tmp_path / "node", *listen)
        clients = [
            *[await connect(reactor, where, name="shop", limits=LIMITS) for where in addresses],
            await connect(
                reactor,
                addresses[0],
                name="shop",
                limits=LIMITS,
                outbox=tmp_path / f"outbox{len(positions)}.db",
            ),
            node.client("shop"),
        ]
        for client in clients:
            receipt = await paid(client, accepted=client is clients[2])
            positions.append(receipt.position)
            with pytest.raises(KeyReused, match="order-1"):
                await paid(client, b"owed", accepted=True)
        for client in clients:
            await client.close()
        await node.stopService()
    assert len(positions) == 8
    assert len(set(positions)) == 1
    assert positions[0] is not None


@run
async def test_45_a_key_with_a_delay_is_one_message_by_every_way_in_and_after_a_restart(
    tmp_path: Path,
) -> None:
    from twisted.internet import reactor

    tcp, udp = free_port(), free_port()
    listen = (f"tcp:{tcp}:interface=127.0.0.1", f"udp:{udp}:interface=127.0.0.1")
    addresses = (f"tcp:127.0.0.1:{tcp}", f"udp:127.0.0.1:{udp}")
    dues: set[float | None] = set()
    taken_as: list[str | None] = []
    node = await node_on(reactor, tmp_path / "node", *listen)
    await node.add_receiver("billing", ["orders.>"])
    for turn in range(2):
        clients = [
            *[await connect(reactor, where, name="shop", limits=LIMITS) for where in addresses],
            await connect(
                reactor,
                addresses[0],
                name="shop",
                limits=LIMITS,
                outbox=tmp_path / f"outbox{turn}.db",
            ),
            node.client("shop"),
        ]
        receipts = []
        for client in clients:
            receipt = await client.send(
                "orders.paid", b"paid", idempotency_key="order-1", delay=6, ttl=3600
            )
            await receipt.accepted
            dues.add(receipt.due)
            assert receipt.position is None
            receipts.append(receipt)
            taken_as.append(receipt.taken_as)
        if turn:
            break
        for client in clients:
            await client.close()
        await node.stopService()
        node = await node_on(reactor, tmp_path / "node", *listen)
    assert (len(dues), None in dues) == (1, False)
    (waits,) = await node.log.delayed((0, 0), 10)
    assert taken_as == [None] + [identity_of(waits.sender, waits.incarnation, waits.first)] * 7
    receiver = Receiver(reactor, name="billing", handler=lambda message: None, limits=LIMITS)
    receiver.attach(addresses[0])
    for receipt in receipts:
        await receipt.acknowledged("billing")
    assert 1 == len({receipt.position for receipt in receipts})
    assert {None} == {receipt.taken_as for receipt in receipts}
    assert {1} == {account.routed for account in await node.log.accounts()}
    # Of one that was cancelled a repeat is told that.
    for again in range(2):
        for client in clients:
            receipt = await client.send(
                "orders.paid", b"paid", idempotency_key="order-2", delay=3600
            )
            await receipt.accepted
            if not again and client is clients[-1]:
                await client.cancel(receipt)
            elif again:
                assert {"$delayed": Status.CANCELLED} == await receipt.settled()
    assert await node.log.audit() == []
    await receiver.stop()
    for client in clients:
        await client.close()
    await node.stopService()


def test_45_a_command_with_a_delay_that_is_repeated_after_a_kill_is_one_message(
    tmp_path: Path,
) -> None:
    command = ("twist", "--log-format=text", "msgservice", "--listen", "unix:node.sock")
    msgservice = Command(f"unix:{tmp_path}/node.sock", tmp_path)
    words = ("send", "orders.paid", "paid", "--key", "order-1", "--delay", "3600", "--ttl", "2h")
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        assert msgservice("receivers", "add", "billing", ">").code == 0
        first = msgservice.data(*words)
        (listed,) = msgservice.data("delayed", "list")["delayed"]
        assert first | {"taken_as": listed["sender"]} == msgservice.data(*words)
        node.send(signal.SIGKILL)
        node.ended()
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        (listed,) = msgservice.data("delayed", "list")["delayed"]
        assert first | {"taken_as": listed["sender"]} == msgservice.data(*words)
        assert listed["sender"] in msgservice(*words).out
        assert listed["due"] == first["due"]
        assert 1 == msgservice.data("delayed", "cancel", listed["sender"])["cancelled"]
        node.send(signal.SIGKILL)
        node.ended()
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        again = msgservice("send", "orders.paid", "paid", "--key", "order-1", "--delay", "3600")
        assert again.code in (0, 1), again
        assert [] == msgservice.data("delayed", "list")["delayed"]
        other = msgservice("send", "orders.paid", "owed", "--key", "order-1", "--delay", "3600")
        assert (other.code, "order-1" in other.err) == (1, True)


def test_45_a_command_that_is_repeated_after_a_kill_is_one_message(tmp_path: Path) -> None:
    command = ("twist", "--log-format=text", "msgservice", "--listen", "unix:node.sock")
    msgservice = Command(f"unix:{tmp_path}/node.sock", tmp_path)
    words = ("send", "orders.paid", "paid", "--key", "order-1")
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        msgservice("receivers", "add", "billing", ">")
        first = msgservice.data(*words)
        node.send(signal.SIGKILL)
        node.ended()
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        assert msgservice.data(*words) == first
        assert msgservice.receiver("billing")["queued"] == 1
        assert msgservice.data("listen", "billing", "--count", "1")
        waited = msgservice.data(*words, "--wait")
        assert waited == {"position": first["position"], "receivers": {"billing": "acknowledged"}}
        other = msgservice("send", "orders.paid", "owed", "--key", "order-1")
        assert (other.code, "order-1" in other.err) == (1, True)
        for wrong in (("--key", ""), ("--key", "k" * 256)):
            assert msgservice("send", "orders.paid", "paid", *wrong).code == 2
        assert msgservice("send", "orders.paid", "--key", "k", stdin=b"one\ntwo\n").code == 2
