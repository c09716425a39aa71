"""The pages on asyncio and on blocking programs, and their examples, do what they say."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_code_blocks import CHECKOUT, blocks
from tests.integration.command import Command
from tests.integration.daemon import PATIENCE, running
from tests.kit.nest import run

JSON = "content-type=application/json"
NODE = "tcp:127.0.0.1:7410"
CONSUMED = {
    "asyncio.md": "import asyncio\nasyncio.run(consume({node!r}, print))",
    "blocking.md": "consume({node!r}, print)",
}
CLOSED = """
async def main():
    async with aio.connect({node!r}, name="liner") as client:
        await hand_over(client, map(str, range(1000)))
        print(client.sequence, await ask({node!r}))
asyncio.run(main())
"""
CLIENT = """
print(client().send("of.this.process", b"x").sequence, client() is client())
"""


@pytest.fixture(autouse=True)
def no_billing(msgservice: Command) -> Iterator[None]:
    """Remove the receiver that all programs have made, with what waits for it."""
    yield
    msgservice("receivers", "remove", "billing", "--yes")


def program_of(page: str, part: str) -> str:
    (found,) = [text for one, text in blocks("python") if one == f"docs/{page}" and part in text]
    return found


def printed(program: str, folder: Path) -> list[str]:
    done = run([sys.executable, "-c", program], cwd=folder, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("page", ["asyncio.md", "blocking.md"])
def test_the_program_that_sends_and_the_one_that_receives(
    msgservice: Command, tmp_path: Path, page: str
) -> None:
    receives = program_of(page, "handler=handle").replace(NODE, msgservice.node)
    sends = program_of(page, "receipt.statuses").replace(NODE, msgservice.node)
    program = (sys.executable, "-c", receives)
    with running(*program, cwd=tmp_path) as receiver:
        # Who sends before billing is known has sent to nobody.
        while "billing" not in msgservice("receivers", "list").out:
            pass
        assert printed(sends, tmp_path) == ["{'billing': <Status.ACKNOWLEDGED: 3>}"]
        receiver.wait_for("orders.new")


@pytest.mark.parametrize("page", ["asyncio.md", "blocking.md"])
def test_messages_one_by_one(msgservice: Command, tmp_path: Path, page: str) -> None:
    assert msgservice("receivers", "add", "billing", "orders.>").code == 0
    for order in ('{"id": 1}', '{"number": 2}', '{"id": 3, "last": true}'):
        assert msgservice("send", "orders.new", order, "--header", JSON).code == 0
    consume = program_of(page, "def consume") + CONSUMED[page].format(node=msgservice.node)
    assert printed(consume, tmp_path) == ["1", "3"]
    assert "an order without an id" in msgservice("dead", "list", "billing").out


def test_lines_are_handed_over_and_requests_answered(msgservice: Command, tmp_path: Path) -> None:
    program = program_of("asyncio.md", "hand_over") + CLOSED.format(node=msgservice.node)
    assert printed(program, tmp_path) == ["1000 {'price': 5}"]


def test_a_node_inside_an_asyncio_program(tmp_path: Path) -> None:
    (said,) = [text for page, text in blocks("text") if page == "docs/asyncio.md"]
    assert printed(program_of("asyncio.md", "aio.awaited"), tmp_path) == said.splitlines()


def test_a_client_for_each_process(msgservice: Command, tmp_path: Path) -> None:
    program = program_of("blocking.md", "os.getpid()").replace(NODE, msgservice.node) + CLIENT
    assert printed(program, tmp_path) == ["1 True"]


def test_the_example_of_asyncio_follows_its_orders(msgservice: Command) -> None:
    done = run(
        [sys.executable, "-m", "examples.asyncio_orders", msgservice.node],
        cwd=CHECKOUT,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    told = sorted(done.stdout.decode().splitlines())
    assert len(told) == 10
    assert "order 7: dead, nobody books the seventh" in told
    assert "order 8: booked" in told


def test_the_example_of_a_web_server_stores_orders(msgservice: Command) -> None:
    program = (sys.executable, "-m", "examples.blocking_web", msgservice.node, "0")
    with running(*program, cwd=CHECKOUT) as server:
        where = server.wait_for(r"http://\S+")[0]
        for body, expected in ((b'{"sku": "espresso"}', 201), (b"{", 400)):
            try:
                with urllib.request.urlopen(where, body, PATIENCE) as answer:
                    status, content = answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                status, content = error.code, json.load(error)
            assert status == expected, content
        assert content == {"error": "an order is JSON"}
