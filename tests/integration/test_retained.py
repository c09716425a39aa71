"""Retained messages by every way in, over a restart, and as a command (DELIVERY 48)."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from msgservice import Limits, Node, Receiver, connect
from tests.integration.command import Command
from tests.integration.daemon import Daemon, running
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


@run
async def test_48_what_each_way_in_has_retained_comes_first_after_a_restart_too(
    tmp_path: Path,
) -> None:
    from twisted.internet import reactor

    tcp, udp = free_port(), free_port()
    listen = (f"tcp:{tcp}:interface=127.0.0.1", f"udp:{udp}:interface=127.0.0.1")
    addresses = (f"tcp:127.0.0.1:{tcp}", f"udp:127.0.0.1:{udp}")
    node = await node_on(reactor, tmp_path / "node", *listen)
    clients = [
        await connect(reactor, addresses[0], name="shop", limits=LIMITS),
        await connect(reactor, addresses[1], name="shop", limits=LIMITS),
        await connect(
            reactor, addresses[0], name="shop", limits=LIMITS, outbox=tmp_path / "outbox.db"
        ),
        node.client("shop"),
    ]
    for at, client in enumerate(clients):
        for body in (b"before", b"last"):
            receipt = await client.send(f"prices.{at}", body, retain=True)
            await receipt.accepted
        await client.close()
    await node.stopService()

    node = await node_on(reactor, tmp_path / "node", *listen)
    for address in addresses:
        handled: list[tuple[str, bytes, bool]] = []
        all_of_them: Deferred[None] = Deferred()

        def handle(
            message: Any,
            handled: list[tuple[str, bytes, bool]] = handled,
            all_of_them: Deferred[None] = all_of_them,
        ) -> None:
            handled.append((message.subject, message.body, message.retained))
            if len(handled) == len(clients) + 1:
                all_of_them.callback(None)

        name = f"late-{address[:3]}"
        receiver = Receiver(reactor, name=name, handler=handle, limits=LIMITS)
        receiver.attach(address, subjects=["prices.*"])
        await receiver.when_connected()
        sender = node.client("shop")
        await sender.send("prices.0", b"now")
        await all_of_them
        await sender.close()
        await receiver.stopService()
        first = [(f"prices.{at}", b"last", True) for at in range(len(clients))]
        assert handled == [*first, ("prices.0", b"now", False)]
    await node.stopService()


def test_48_a_command_retains_and_another_ends_it_also_over_a_kill(tmp_path: Path) -> None:
    command = ("twist", "--log-format=text", "msgservice", "--listen", "unix:node.sock")
    msgservice = Command(f"unix:{tmp_path}/node.sock", tmp_path)
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        assert msgservice("send", "prices.a", "one", "--retain").code == 0
        assert msgservice("send", "prices.b", "two", "--retain").code == 0
        node.send(signal.SIGKILL)
        node.ended()
    with running(*command, cwd=tmp_path) as node:
        node.wait_for("listening on unix")
        assert msgservice("receivers", "add", "late", "prices.>").code == 0
        assert msgservice("listen", "late", "--count", "2").out == "one\ntwo\n"
        assert msgservice("send", "prices.a", "", "--retain").code == 0
        assert msgservice("receivers", "add", "later", "prices.>").code == 0
        assert msgservice.receiver("later")["queued"] == 1
        rows = msgservice.data("retained", "list")["retained"]
        assert [row["subject"] for row in rows] == ["prices.b"]
        assert msgservice("retained", "show", "prices.b", "--body").out == "two"
        later = msgservice.data("send", "prices.b", "in a while", "--retain", "--delay", "2s")
        assert later["due"]
        assert msgservice("retained", "show", "prices.b", "--body").out == "two"
        assert msgservice("listen", "late", "--count", "2").out == "\nin a while\n"
        assert msgservice("retained", "show", "prices.b", "--body").out == "in a while"
        was = msgservice.receiver("late")["routed"]
        only = msgservice.data("send", "prices.c", "three", "--retain-only")
        assert only["receivers"] == {}
        said = msgservice("send", "prices.c", "three", "--retain-only").out
        assert said.endswith(", for who is made later; delivered to nobody now\n")
        assert msgservice.receiver("late")["routed"] == was
        assert msgservice("retained", "show", "prices.c", "--body").out == "three"
        assert msgservice("send", "prices.c", "x", "--retain-only", "--to", "late").code != 0
        assert msgservice("send", "prices.c", "--retain-only", stdin=b"one\n").code == 2
        assert msgservice("send", "prices.c", "x", "--retain-only", "--retain").code == 2
        assert msgservice("send", "prices.c", "", "--retain").code == 0
        late = Daemon(
            "msgservice",
            "listen",
            "without",
            "prices.>",
            "--no-retained",
            "--count",
            "1",
            cwd=tmp_path,
            environment={"MSGSERVICE_NODE": msgservice.node},
        )
        try:
            while not any(
                row["name"] == "without"
                for row in msgservice.data("receivers", "list")["receivers"]
            ):
                pass  # it attaches
            assert msgservice("send", "prices.z", "sent since").code == 0
            late.wait_for("^sent since$")
            assert late.output == ["sent since\n"]
            assert late.ended() == 0
        finally:
            late.close()
        assert "in a while" in msgservice("retained", "show", "prices.b").out
        assert msgservice("retained", "show", "prices.a").code == 1
        would = msgservice.data("retained", "clear", "prices.>", "--dry-run")
        assert (would["would"]["count"], would["done"]) == (1, None)
        assert msgservice("retained", "clear", "prices.>").code != 0  # nobody has said yes
        done = msgservice.data("retained", "clear", "prices.>", "--yes")
        assert done["done"] == {"cleared": 1}
        assert msgservice("retained", "list").out == "nothing is retained\n"
        assert msgservice("send", "prices.a", "x", "--retain", "--to", "late").code != 0
        assert msgservice("send", "prices.a", "--retain", stdin=b"one\n").code == 2
