"""Delayed messages by every way in: sockets, acknowledged UDP, in process, a file, a command."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

import msgservice.clock
from msgservice import Client, Limits, Node, Receiver, connect
from msgservice.errors import BadValue, Expired, NotDelivered, UnknownMessage
from msgservice.limits import TIME_DAYS_MAX
from msgservice.message import Status
from tests.integration.command import Command
from tests.integration.daemon import running
from tests.kit.ports import free_port

LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.2, stop_timeout=5)
SOON = 1.0
DELAY_MAX = TIME_DAYS_MAX * 24 * 3600
AWAY = 3600.0  # seconds between two programs: far more than a busy machine needs for all else


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


class Handler:
    """What came, and when by the wall clock; `came(count)` fires when so many have."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, float]] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def __call__(self, message: Any) -> None:
        self.got.append((message.body, time.time()))
        for count, waiter in self._waiting:
            if len(self.got) >= count and not waiter.called:
                waiter.callback(None)

    def came(self, count: int) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._waiting.append((count, waiter))
        if len(self.got) >= count:
            waiter.callback(None)
        return waiter


@run
async def test_43_a_delay_by_every_way_in_and_over_a_restart(tmp_path: Path) -> None:
    from twisted.internet import reactor

    tcp, udp = free_port(), free_port()
    listen = (f"tcp:{tcp}:interface=127.0.0.1", f"udp:{udp}:interface=127.0.0.1")
    addresses = (f"tcp:127.0.0.1:{tcp}", f"udp:127.0.0.1:{udp}")
    node = await node_on(reactor, tmp_path / "node", *listen)
    handler = Handler()
    receiver = Receiver(reactor, name="billing", handler=handler, limits=LIMITS)
    receiver.attach(addresses[0], subjects=["orders.>"])
    outbox = tmp_path / "outbox.db"
    clients = [
        *[await connect(reactor, where, name="shop", limits=LIMITS) for where in addresses],
        await connect(reactor, addresses[0], name="file", limits=LIMITS, outbox=outbox),
        node.client("inside"),
    ]
    began = time.time()
    receipts = []
    for number, client in enumerate(clients):
        receipt = await client.send("orders.late", b"%d" % number, delay=4 * SOON)
        await receipt.accepted
        assert (receipt.position, receipt.receivers) == (None, ())
        assert receipt.due is not None
        assert began + 4 * SOON - 0.01 <= receipt.due
        receipts.append(receipt)
    many = await clients[0].send_many("orders.many", [b"a", b"b"], delay=4 * SOON)
    assert handler.got == []
    await clients[3].close()  # it is inside the process of the node, and goes with it
    await node.stopService()
    node = await node_on(reactor, tmp_path / "node", *listen)
    for receipt in receipts[:3]:
        await receipt.acknowledged("billing")
        assert receipt.due is None
        assert receipt.position is not None
        assert {"billing": Status.ACKNOWLEDGED} == receipt.statuses
    await many.acknowledged("billing")
    await handler.came(6)
    assert sorted(body for body, _ in handler.got) == [b"0", b"1", b"2", b"3", b"a", b"b"]
    assert min(at for _, at in handler.got) >= began + 4 * SOON - 0.01
    await receiver.stop()
    for client in clients[:3]:
        await client.close()
    await node.stopService()


@run
async def test_44_a_delay_counts_from_the_hand_over_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is there, and the program ends; another hands it on when the delay is nearly over."""
    from twisted.internet import reactor

    port = free_port()
    address = f"tcp:127.0.0.1:{port}"
    outbox = tmp_path / "outbox.db"
    with monkeypatch.context() as patch:  # by its clock, the first one lives so long ago
        long_ago = lambda _: lambda: int((time.time() - AWAY) * 1000)  # noqa: E731
        patch.setattr(msgservice.clock, "wall_of", long_ago)
        client = await Deferred.fromCoroutine(unconnected(reactor, address, outbox))
    handed = time.time() - AWAY
    await client.send("orders.late", b"late", delay=AWAY + 2 * SOON)
    await client.send("orders.late", b"long over", delay=0.001)
    await client.close()
    node = await node_on(reactor, tmp_path / "node", f"tcp:{port}:interface=127.0.0.1")
    handler = Handler()
    receiver = Receiver(reactor, name="billing", handler=handler, limits=LIMITS)
    receiver.attach(address, subjects=["orders.>"])
    client = await connect(reactor, address, name="shop", limits=LIMITS, outbox=outbox)
    await handler.came(2)  # in an hour, if it began when the node got it
    came = dict(handler.got)
    assert came.keys() == {b"long over", b"late"}
    assert came[b"late"] >= handed + AWAY + 2 * SOON - 0.01
    await receiver.stop()
    await client.close()
    await node.stopService()


async def unconnected(reactor: Any, address: str, outbox: Path) -> Client:
    """Return a client with this file that dials a node which is not there."""
    limits = Limits(link_delay_min=0.05, link_delay_max=0.2, stop_timeout=0.2)
    return await connect(reactor, address, name="shop", limits=limits, outbox=outbox)


@run
async def test_44_a_delay_with_a_ttl_by_every_way_in_and_over_a_restart(tmp_path: Path) -> None:
    """One is due while a receiver is there, and expires at one that is away."""
    for scale in (1.0, 4.0, 16.0):  # of a machine that is slower than that nothing is known
        if await delayed_with_a_ttl(tmp_path / f"{scale:g}", scale * SOON):
            return
    pytest.fail("the receiver was not there in time, though it had a minute and a half")


async def delayed_with_a_ttl(folder: Path, soon: float) -> bool:
    """Play it; return whether the receiver had all before it expired."""
    from twisted.internet import reactor

    folder.mkdir()
    tcp, udp = free_port(), free_port()
    listen = (f"tcp:{tcp}:interface=127.0.0.1", f"udp:{udp}:interface=127.0.0.1")
    addresses = (f"tcp:127.0.0.1:{tcp}", f"udp:127.0.0.1:{udp}")
    outbox = folder / "outbox.db"
    early = await unconnected(reactor, addresses[0], outbox)
    handed = time.time()
    await early.send("orders.late", b"left", delay=4 * soon, ttl=6 * soon)
    over = await early.send("orders.late", b"over", delay=0.1 * SOON, ttl=0.3 * SOON)
    with pytest.raises(Expired):
        await over.accepted
    await early.close()
    node = await node_on(reactor, folder / "node", *listen)
    await node.add_receiver("away", ["orders.>"])
    handler = Handler()
    receiver = Receiver(reactor, name="billing", handler=handler, limits=LIMITS)
    receiver.attach(addresses[0], subjects=["orders.>"])
    clients = [
        *[await connect(reactor, where, name="shop", limits=LIMITS) for where in addresses],
        await connect(reactor, addresses[0], name="shop", limits=LIMITS, outbox=outbox),
        node.client("inside"),
    ]
    receipts = []
    for number, client in enumerate(clients):
        receipt = await client.send("orders.late", b"%d" % number, delay=4 * soon, ttl=6 * soon)
        await receipt.accepted
        receipts.append(receipt)
    await clients[3].close()
    await node.stopService()
    node = await node_on(reactor, folder / "node", *listen)
    settled = [await receipt.settled() for receipt in receipts[:3]]
    assert {Status.EXPIRED} == {each["away"] for each in settled}
    assert {"away", "billing"} == {name for each in settled for name in each}
    is_in_time = {Status.ACKNOWLEDGED} == {each["billing"] for each in settled}
    if is_in_time:
        await handler.came(5)
        assert sorted(body for body, _ in handler.got) == [b"0", b"1", b"2", b"3", b"left"]
        (left,) = [at for body, at in handler.got if body == b"left"]
        assert left >= handed + 4 * soon - 0.01
        assert await node.log.audit() == []
    await receiver.stop()
    for client in clients[:3]:
        await client.close()
    await node.stopService()
    return is_in_time


@run
async def test_49_what_is_cancelled_is_delivered_to_nobody(tmp_path: Path) -> None:
    from twisted.internet import reactor

    node = await node_on(reactor, tmp_path / "node")
    client = node.client("shop")
    handler = Handler()
    receiver = Receiver(reactor, name="billing", handler=handler, limits=LIMITS)
    node.attach(receiver, subjects=["orders.>"])
    one = await client.send("orders.late", b"one", delay=AWAY, id="mine")
    two = await client.send("orders.late", b"two", delay=SOON)
    three = await client.send("orders.late", b"three", delay=AWAY)
    await client.cancel("mine", "paid")
    await client.cancel(three)
    for receipt in (one, three):
        assert {"$delayed": Status.CANCELLED} == await receipt.settled()
        with pytest.raises(NotDelivered, match="cancelled"):
            await receipt.acknowledged()
        assert (receipt.receivers, receipt.position) == (("$delayed",), None)
    await two.acknowledged("billing")
    for gone in ("mine", two, three, "nobody's", "log:1"):
        with pytest.raises(UnknownMessage, match="waits until it is due"):
            await client.cancel(gone)
    assert [b"two"] == [body for body, _ in handler.got]
    await receiver.stop()
    await client.close()
    await node.stopService()


@run
async def test_44_delays_that_cannot_be_fail_before_anything_is_sent(tmp_path: Path) -> None:
    from twisted.internet import reactor

    node = await node_on(reactor, tmp_path / "node")
    client = node.client("shop")
    wrong: list[Any] = [-1, -0.001, DELAY_MAX + 1, math.nan, math.inf, -math.inf, "soon", True]
    for delay in wrong:
        with pytest.raises(BadValue, match="delay"):
            await client.send("orders.late", b"x", delay=delay)
        with pytest.raises(BadValue, match="delay"):
            await client.send_many("orders.late", [b"x"], delay=delay)
    for ttl in (0, 0.5, 1):
        with pytest.raises(BadValue, match=r"ttl of [0-9.]+ s is over when the delay of 1 s is"):
            await client.send("orders.late", b"x", delay=1, ttl=ttl)
        with pytest.raises(BadValue, match=r"ttl of [0-9.]+ s is over when the delay of 1 s is"):
            await client.send_many("orders.late", [b"x"], delay=1, ttl=ttl)
    receipt = await client.send("orders.late", b"x", delay=0)
    assert receipt.position is not None
    latest = await client.send("orders.late", b"x", delay=DELAY_MAX)
    assert latest.due is not None
    await client.close()
    await node.stopService()


def test_43_the_commands_and_kill_9(tmp_path: Path) -> None:
    command = ("twist", "--log-format=text", "msgservice", "--listen", "unix:node.sock")
    msgservice = Command(f"unix:{tmp_path}/node.sock", tmp_path)
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        msgservice("receivers", "add", "billing", ">")
        sent = msgservice.data("send", "orders.late", "one", "--delay", "3600", "--id", "mine")
        assert (sent["position"], sent["receivers"]) == (None, {})
        assert sent["due"] > time.time() * 1000
        msgservice("send", "orders.soon", "two", "--delay", "0.001")
        three = ("orders.late", "three", "--delay", "2h", "--ttl", "3h")
        assert msgservice("send", *three).code == 0
        for ttl in ("1h", "7200s"):
            refused = msgservice("send", *three[:4], "--ttl", ttl)
            assert (refused.code, "delay of 7200" in refused.err) == (2, True)
        node.send(signal.SIGKILL)
        node.ended()
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        listed = msgservice.data("delayed", "list")["delayed"]
        assert [("orders.late", "mine"), ("orders.late", None)] == [
            (one["subject"], one["message_id"]) for one in listed
        ]
        apart = [one["expires"] and one["expires"] - one["due"] for one in listed]
        assert apart[0] is None
        assert abs(apart[1] - 3600_000) <= 1  # each is rounded by itself
        status = msgservice.data("status", "mine")
        assert status["due"] == listed[0]["due"]
        assert "delayed until" in msgservice("status", "mine").out
        assert "nobody has it yet" in msgservice("status", "mine").out
        assert msgservice("delayed", "cancel", "mine", "--reason", "paid").out == (
            "1 message of orders.late is cancelled\n"
        )
        assert msgservice("delayed", "cancel", "mine").code == 1
        for one in ("mine", listed[0]["sender"]):
            said = msgservice("status", one).out
            assert ("cancelled" in said, "paid (by " in said, "1970" in said) == (True, True, False)
        hint = msgservice("status", "3080192")
        assert (hint.code, "the position 3080192 is said as log:3080192" in hint.err) == (1, True)
        node.send(signal.SIGKILL)
        node.ended()
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        assert "paid" in msgservice("status", "mine").out
        left = msgservice.data("delayed", "list")["delayed"]
        assert listed[1:] == left
        assert 1 == msgservice.receiver("billing")["queued"]
        assert msgservice("delayed", "cancel", left[0]["sender"]).code == 0
        assert "nothing waits" in msgservice("delayed", "list").out
        for wrong in ("-1", "nan", "31622401", "soon"):
            assert msgservice("send", "orders.late", "x", "--delay", wrong).code == 2, wrong
        for wrong in ("nobody", "log:1", f"x/{'0' * 16}/1"):
            assert msgservice("delayed", "cancel", wrong).code == 1
