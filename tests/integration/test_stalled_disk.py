"""A disk that stands still in the midst of a commit: nothing is lost, and nobody healthy is cut."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent

from msgservice import Message, Receipt, Receiver, connect
from msgservice.limits import Limits
from msgservice.log.inline import VARIABLE
from tests.integration.daemon import running
from tests.integration.stalling_child import STALL

CHILD = ("-m", "tests.integration.stalling_child")
ROOT = Path(__file__).resolve().parents[2]
STALL_SECONDS = 2.0
ENDS = ("connection-failed", "peer-error")
# Of those at the other end: by what they have said, the node takes them for gone after 1.75 s.
IMPATIENT = Limits(heartbeat=0.7)
AROUND = 20  # messages before the one that stalls, and as many with it


@pytest.mark.parametrize("how", ["auto", "on", "off"])
@pytest_twisted.ensureDeferred
async def test_a_disk_that_stands_still_breaks_no_promise_and_cuts_nobody(
    how: str, tmp_path: Path, logged: list[LogEvent]
) -> None:
    from twisted.internet import reactor

    environment = {VARIABLE: how, "PYTHONPATH": str(ROOT)}
    command = (sys.executable, *CHILD, str(tmp_path / "data"), str(STALL_SECONDS))
    with running(*command, cwd=tmp_path, environment=environment) as daemon:
        address = f"tcp:127.0.0.1:{daemon.ports()[0]}"
        taken: dict[str, list[bytes]] = {"one": [], "other": []}
        receivers: list[Receiver] = []
        for name, bodies in taken.items():

            def handle(message: Message, bodies: list[bytes] = bodies) -> None:
                bodies.append(bytes(message.body))

            receiver = Receiver(reactor, name=name, handler=handle, limits=IMPATIENT)
            receiver.attach(address, subjects=["jobs.>"])
            receivers.append(receiver)
        while not all(receiver.connected for receiver in receivers):
            await deferLater(reactor, 0.01)
        client = await connect(reactor, address, name="shop", limits=IMPATIENT)
        idle = await connect(reactor, address, name="idle", limits=IMPATIENT)
        bodies = [b"%03d" % number for number in range(AROUND)]
        receipts = [await client.send("jobs.new", body) for body in bodies]
        bodies.append(STALL)
        stalled = client.send("jobs.new", STALL)
        # While its group is written, the rest comes.
        # By itself the node may have left it to the thread: other commits were slow.
        where = {"on": "reactor", "off": "writer", "auto": "reactor|writer"}[how]
        await deferToThread(daemon.wait_for, f"stalled ({where})")
        rest: list[Deferred[Receipt]] = []
        for number in range(AROUND):
            bodies.append(b"%03d" % (AROUND + number))
            rest.append(client.send("jobs.new", bodies[-1]))
        receipts.append(await stalled)
        receipts += await gatherResults(rest)
        for receipt in receipts:
            await receipt.acknowledged()
        assert {"one": bodies, "other": bodies} == taken
        await client.close()
        await idle.close()
        for receiver in receivers:
            await receiver.stop()
        assert 0 == daemon.stop(), daemon.said
    # Neither side took the other for gone: no connection has ended but by a goodbye.
    assert "nothing heard" not in daemon.said, daemon.said
    assert [] == [event for event in logged if event.get("line") in ENDS]
