"""Programs of all three kinds: with Twisted, with asyncio, and blocking ones have the same calls.

Each scenario of `programs_child` is played by each of them, with a real node, and says the same.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.command import Command
from tests.integration.daemon import Daemon, running
from tests.kit.ports import free_port

CHILD = Path(__file__).with_name("programs_child.py")
WAYS = ("twisted", "aio", "blocking")
pytestmark = pytest.mark.parametrize("way", WAYS)

TOLD = {
    "on_disk": ["stored 65536 1 o-17"],
    "receipts": [
        "('billing',) {'billing': <Status.ACKNOWLEDGED: 3>} None",
        "{'billing': <Status.ACKNOWLEDGED: 3>}",
        "NotDelivered billing dead no such customer",
        "{'billing': <Status.DEAD: 5>}",
        "1000 1003 1003 {'billing': {<Status.ACKNOWLEDGED: 3>: 1000}}",
        "PromiseOutcome(kept=True, reason='', receivers={'billing': <Status.ACKNOWLEDGED: 3>})",
    ],
    "errors": [
        "BadSubject 14 bad subject 'orders..new': empty token",
        "TypeError - object cannot be sent as JSON: Encoding objects of type object is unsupported;"
        " bytes are sent as they are",
        "BadValue 12 ttl is 0 to 366 days in seconds, not -1",
        "MessageTooLarge 1 message of 2000000 bytes, at most 1047552 allowed"
        " (max_batch, of the node and of who sends)",
        "NoReceiver 3 no receiver for subject 'orders.new'",
        "UnknownReceiver 2 unknown receiver 'nobody'",
        "UnknownReceiver 2 unknown receiver 'nobody'",
        "NoResponder 7 nobody answers requests on 'nobody.answers'",
        "NoResponder 7 nobody answers requests on '$node.nothing'",
        "ValueError - timeout must be above 0, at most 86400 s, not -1",
        "UnknownMessage 11 no message 'no such message' waits until it is due"
        " (an id is the sender's own, or SENDER/HASH/SEQUENCE)",
        "UnknownMessage 11 no message 'no such message' in the log (an id is the sender's own,"
        " or SENDER/HASH/SEQUENCE, or log:POSITION)",
        "TypeError - undo takes a message or a key, one of both",
        "TypeError - message is one receipt of these: receipts[0], say",
        "ClientClosed 0 the client was closed",
        "ClientClosed 0 the client was closed",
    ],
    "acts": [
        "True False",
        "None {'$delayed': <Status.CANCELLED: 6>}",
        "acts away ['away']",
        "UndoTold(sender='shop/HASH/2', subject='acts.now', messages=1,"
        " receivers={'acts': {'cancelled': 1}}, next=None, left=0)",
        "{'acts': <Status.CANCELLED: 6>}",
        "shop True False 2 0",
        "True",
    ],
    "requests": ["True 0 True", "{'of': {'sku': 'x'}}", "True", "NoResponder"],
    "given_up": ["TimeoutError", "{'late': <Status.ACKNOWLEDGED: 3>}"],
    "left_open": ["acknowledged"],
}


class Place:
    """A folder, and a port to which a node comes back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"tcp:127.0.0.1:{self.port}"

    @contextmanager
    def node(self) -> Iterator[Daemon]:
        command = ("twist", "--log-format=text", "msgservice", "--listen", f"tcp:{self.port}")
        with running(*command, cwd=self.folder) as daemon:
            daemon.ports()
            yield daemon

    @contextmanager
    def program(self, way: str, scenario: str) -> Iterator[Daemon]:
        command = (sys.executable, str(CHILD), way, scenario, self.address)
        with running(*command, cwd=self.folder) as daemon:
            yield daemon


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("scenario", TOLD)
def test_a_program_learns_the_same(place: Place, way: str, scenario: str) -> None:
    with place.node(), place.program(way, scenario) as program:
        assert program.ended() == 0, program.said
        told = [re.sub(r"'shop/\w+/", "'shop/HASH/", line.strip()) for line in program.output]
    assert [*TOLD[scenario], "done"] == told


def test_what_is_sent_is_on_disk_when_it_fires(place: Place, way: str) -> None:
    with place.node() as node, place.program(way, "on_disk") as program:
        program.wait_for("stored")
        node.close()  # which kills it
        program.ended()
    with place.node():
        status = Command(place.address, place.folder)("status", "o-17")
    assert (status.code, "orders.new" in status.out) == (0, True), status


def test_a_node_that_is_killed_and_comes_back_gets_what_was_handed_over(
    place: Place, way: str
) -> None:
    with place.node() as node, place.program(way, "node_killed") as program:
        program.wait_for("connected")
        node.close()
        program.wait_for("handed over")
        with place.node():
            program.wait_for(r"stored \d+")
            program.wait_for(r"acknowledged \[b'while it is away'\]")
            assert program.ended() == 0, program.said


def test_what_is_pending_when_a_client_is_closed_fails(place: Place, way: str) -> None:
    with place.node() as node, place.program(way, "closing") as program:
        program.wait_for("connected")
        node.close()
        program.wait_for("ClientClosed the client was closed")
        assert program.ended() == 0, program.said


def test_a_program_waits_for_a_node_that_is_not_there(place: Place, way: str) -> None:
    with place.program(way, "not_there") as program:
        program.wait_for(f"no connection to {place.address}")
        with place.node():
            assert program.ended() == 0, program.said
