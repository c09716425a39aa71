"""The client's page: its programs do what it says, with a real node."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor as installed_reactor

from msgservice import Node, Receiver, Reject
from tests.docs.test_code_blocks import blocks
from tests.integration.command import Command
from tests.integration.daemon import PATIENCE

reactor: Any = installed_reactor
PROGRAMS = [program for page, program in blocks("python") if page == "docs/client.md"]
IN_THREAD = """
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread

from msgservice import connect


def work(client):
{program}
    print(receipt.position)


async def main():
    client = await connect(reactor, {node!r}, name="shop")
    await deferToThread(work, client)
    await client.close()


ensureDeferred(main()).addErrback(lambda f: f.printTraceback()).addBoth(lambda _: reactor.stop())
reactor.run()
"""


WITH_ASYNCIO = """
import asyncio

from twisted.internet import asyncioreactor


async def main():
    loop = asyncio.get_running_loop()
    asyncioreactor.install(loop)
    from twisted.internet import reactor

    from msgservice import Receiver, connect

    reactor.startRunning(installSignalHandlers=False)
    receiver = Receiver(reactor, name="billing", handler=handle)
    receiver.attach({node!r}, subjects=["prices"])
    await receiver.when_connected().asFuture(loop)
    client = await connect(reactor, {node!r}, name="shop").asFuture(loop)
    receipt = await client.send("prices", {{"sku": 17}}).asFuture(loop)
    await receipt.acknowledged("billing").asFuture(loop)
    print(receipt.position)
    await client.close().asFuture(loop)
    await receiver.stop().asFuture(loop)


asyncio.run(main())
"""


def position_printed(program: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return int(done.stdout)


def test_the_program_with_a_node_in_itself_prints_what_it_says(tmp_path: Path) -> None:
    (program,) = (each for each in PROGRAMS if "when_ready" in each)
    (said,) = (text for page, text in blocks("text") if page == "docs/client.md")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert (tmp_path / "data").is_dir()


def test_a_handler_awaits_asyncio_as_the_page_on_receivers_says(msgservice: Command) -> None:
    (handler,) = (
        program
        for page, program in blocks("python")
        if page == "docs/receiver.md" and "fromFuture" in program
    )
    assert position_printed(handler + WITH_ASYNCIO.format(node=msgservice.node)) > 0


def test_a_thread_sends_as_the_page_says(msgservice: Command) -> None:
    (program,) = (each for each in PROGRAMS if "blockingCallFromThread" in each)
    indented = "".join(f"    {line}\n" for line in program.splitlines())
    assert position_printed(IN_THREAD.format(program=indented, node=msgservice.node)) > 0


@pytest_twisted.ensureDeferred
async def test_what_a_program_does_with_a_node_of_its_own(tmp_path: Path) -> None:
    (program,) = [one for one in PROGRAMS if "dead_letters" in one]
    names: dict[str, Any] = {}
    exec(program, names)
    node = Node(reactor, tmp_path / "node", listen=[])
    node.startService()
    await node.when_ready()

    def handle(message: Any) -> None:
        raise Reject("no such customer" if message.subject == "orders.new" else "a test")

    receiver = Receiver(reactor, name="billing", handler=handle)
    node.attach(receiver, subjects=["orders.>"])
    client = node.client("shop")
    await node.add_receiver("report-42", ["reports.>"])
    for subject in ("orders.new", "orders.test.a", "orders.test.b"):
        receipt = await client.send(subject, b"x")
        await receipt.settled()
    await receiver.stop()
    await client.send("reports.a", b"x")
    assert (1, 2, 1) == await names["tidy"](node)
    rows = {account.receiver: account.queued for account in await node.log.accounts()}
    assert sorted(rows.values()) == [0, 1]  # one is sent again; nothing waits for the report
    await client.close()
    await node.stopService()
