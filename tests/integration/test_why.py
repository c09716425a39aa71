"""`msgservice why`, `client.explain` and `node.why`, over real sockets (DELIVERY 56)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from msgservice import Cause, Limits, Node, Receiver, Retry, connect
from msgservice.errors import UnknownMessage
from tests.integration.command import Command
from tests.kit.ports import free_port


def test_56_a_command_says_what_would_unblock_it(msgservice: Command) -> None:
    msgs = msgservice
    assert msgs("receivers", "add", "billing", "orders.>").code == 0
    assert msgs("send", "orders.new", "text", "--id", "o-1").code == 0
    told = msgs("why", "o-1")
    assert (told.code, told.err) == (0, "")
    first, *others = told.out.splitlines()
    assert first.startswith("msgservice-cli/")
    assert first.endswith(", orders.new")
    assert others[0].startswith("billing (queued): billing is away. Since 20")
    assert "  $ msgservice peek billing" in others
    (page,) = [msgs.data("why", "o-1")]
    (cause,) = page["causes"]
    assert ("billing", "queued", "away") == (cause["receiver"], cause["status"], cause["kind"])
    how = msgs("why", "--receiver", "billing")
    assert how.out.startswith("billing is away, since 20")
    assert "1 message waits for it" in how.out
    assert "away" == msgs.data("why", "--receiver", "billing")["health"]
    assert msgs("send", "orders.new", "text", "--id", "o-2", "--delay", "500").code == 0
    waiting = msgs("why", "o-2")
    assert "It waits until it is due" in waiting.out
    assert "$ msgservice delayed cancel msgservice-cli/" in waiting.out


def test_56_what_is_not_there_is_told_so(msgservice: Command) -> None:
    for words, code, said in (
        (("nothing",), 1, "no message 'nothing'"),
        ((), 2, "say the ID of a message, or --receiver NAME"),
        (("o-1", "--receiver", "billing"), 2, "say the ID of a message, or --receiver NAME"),
        (("--receiver", "a b"), 2, "bad name 'a b'"),
        (("--receiver", "nobody"), 1, "nobody"),
    ):
        told = msgservice("why", *words)
        assert told.code == code, (words, told)
        assert said in told.err, (words, told)


@pytest_twisted.ensureDeferred
async def test_56_a_producer_and_the_nodes_own_process_ask_for_causes(tmp_path: Path) -> None:
    from twisted.internet import reactor

    port = free_port()
    limits = Limits(link_delay_min=0.05, stop_timeout=5)
    node = Node(reactor, tmp_path / "n", listen=[f"tcp:{port}:interface=127.0.0.1"], limits=limits)
    node.startService()
    await node.when_ready()
    address = f"tcp:127.0.0.1:{port}"
    client = await connect(reactor, address, name="shop", limits=limits)

    def handle(message: Any) -> None:
        raise Retry(600, "no database")

    receiver = Receiver(reactor, name="billing", handler=handle, limits=limits)
    receiver.attach(address, subjects=["orders.>"])
    try:
        await receiver.when_connected()
        first = await client.send("orders.new", b"1")
        second = await client.send("orders.new", b"2", id="o-2")
        causes: list[Cause] = []
        while [cause.kind for cause in causes] != ["retrying"]:
            causes = await client.explain(first)
        assert causes[0].sentence == "billing has failed with it once: no database."
        (behind,) = await client.explain("o-2")
        assert ("behind", f"msgservice why log:{first.position}") == (behind.kind, behind.command)
        (same,) = await node.why(f"log:{second.position}")
        assert (behind.kind, behind.sentence) == (same.kind, same.sentence)
        with pytest.raises(UnknownMessage):
            await client.explain("nothing")
        with pytest.raises(UnknownMessage):
            await node.why("nothing")
        with pytest.raises(TypeError):
            await client.explain(5)  # type: ignore[arg-type]  # what is tested
    finally:
        await receiver.stop()
        await client.close()
        await node.stopService()


@pytest_twisted.ensureDeferred
async def test_56_of_a_chain_the_next_nodes_say_what_became_of_it(tmp_path: Path) -> None:
    from twisted.internet import reactor

    limits = Limits(link_delay_min=0.05, stop_timeout=5)
    nodes: dict[str, Node] = {}
    ports: dict[str, int] = {}
    for name in ("edge", "centre", "archive"):
        ports[name] = free_port()
        nodes[name] = Node(
            reactor,
            tmp_path / name,
            name=name,
            listen=[f"tcp:{ports[name]}:interface=127.0.0.1"],
            limits=limits,
        )
        nodes[name].startService()
        await nodes[name].when_ready()
    edge, centre, archive = nodes.values()
    for node, far in ((centre, "archive"), (edge, "centre")):
        await node.add_receiver(far, [">"], address=f"node:tcp:127.0.0.1:{ports[far]}")
    await centre.add_receiver("books", ["orders.>"])
    await archive.add_receiver("shelf", ["orders.>"])
    client = await connect(reactor, f"tcp:127.0.0.1:{ports['edge']}", name="shop", limits=limits)
    try:
        receipt = await client.send("orders.new", b"1", id="o-1")
        await receipt.acknowledged()
        seen: dict[tuple[str, str], Cause] = {}
        kinds: dict[tuple[str, str], str] = {}
        # It may be there before the node in between has heard so.
        while ("centre/archive", "shelf") not in seen or kinds["centre", "archive"] == "in_flight":
            seen = {(one.node, one.receiver): one for one in await client.explain(receipt)}
            kinds = {place: one.kind for place, one in seen.items()}
        assert kinds == {
            ("", "centre"): "acknowledged",
            ("centre", "archive"): "acknowledged",
            ("centre", "books"): "away",
            ("centre/archive", "shelf"): "away",
        }
        await archive.stopService()
        while ("centre/archive", "shelf") in seen:
            seen = {(one.node, one.receiver): one for one in await client.explain(receipt)}
        assert seen["centre", "books"].kind == "away"
        await centre.stopService()
        while len(seen) > 1:
            seen = {(one.node, one.receiver): one for one in await client.explain(receipt)}
        assert seen["", "centre"].kind == "acknowledged"
    finally:
        await client.close()
        for node in nodes.values():
            await node.stopService()
