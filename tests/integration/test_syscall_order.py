"""Syncs before answers, by the system calls of real processes (RELIABILITY I1, I7; SEMANTICS 26).

What the node says of a message on a socket, whichever of its threads writes, and what an outbox
says to its program, comes after the sync of the write that holds it. The kernel's own order is
looked at, not what the product believes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from msgservice import Receiver, Status, connect
from msgservice.core.framing import FrameSplitter
from msgservice.core.runs import EXPIRED_REASON
from msgservice.limits import Limits
from msgservice.log.inline import VARIABLE
from tests.integration.daemon import running
from tests.kit.syscalls import Call, durable_at, read_calls, trace, works

pytestmark = pytest.mark.skipif(not works(), reason="strace is not there, or may not trace")

BURST, BURSTS = 10, 100
COUNT = BURST * BURSTS
NODE_BURSTS = 40  # in each of the ways to write
TRANSFER, ACK, STATUS, ROUTED, REQUEST, REPLY = 2, 3, 5, 6, 7, 8
MODES = ("auto", "on", "off")
ACTS = 5  # undos, removals, and messages that expire
RECEIVING = ("recvfrom", "read", "recvmsg")
SENDING = ("sendto", "sendmsg", "write", "writev")


def mark(number: int) -> bytes:
    return b"<marked %06d>" % number


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


class Frames:
    """What crossed one node's sockets, with the places where it was read or begun to be sent."""

    def __init__(self, calls: list[Call]) -> None:
        self.read: list[tuple[int, list[object]]] = []
        self.sent: list[tuple[int, list[object]]] = []
        self.asked: dict[tuple[str, object], tuple[int, object]] = {}  # by socket and id
        self.replied: dict[tuple[str, object], int] = {}
        splitters: dict[tuple[str, bool], FrameSplitter] = {}
        for call in calls:
            if not call.path.startswith("socket:") and not call.path.startswith("TCP:"):
                continue
            is_sent = call.name in SENDING
            splitter = splitters.setdefault(
                (call.path, is_sent), FrameSplitter(Limits().max_batch + 8192)
            )
            for frame in splitter.feed(call.data):
                decoded: list[object] = msgspec.msgpack.decode(frame)
                if is_sent:
                    self.sent.append((call.begun, decoded))
                    if decoded[0] == REPLY:
                        for one in decoded[1]:  # type: ignore[attr-defined]  # a decoded list
                            self.replied[call.path, one[0]] = call.begun
                else:
                    self.read.append((call.ended, decoded))
                    if decoded[0] == REQUEST:
                        self.asked[call.path, decoded[1]] = call.ended, decoded[2]

    def told(self, status: Status) -> list[int]:
        """Return when each frame that tells this state began to be sent."""
        return [when for when, one in self.sent if one[0] == STATUS and one[3] == status]

    def acts(self, operation: str) -> list[tuple[int, int]]:
        """Return when each of these requests was read, and its answer began to be sent."""
        return [
            (when, self.replied[key])
            for key, (when, subject) in self.asked.items()
            if subject == f"$node.{operation}"
        ]

    def answers(self, kind: int, place: int) -> dict[int, int]:
        """Return sequence -> when the first frame of this kind that names it began to be sent."""
        return _first(self.sent, kind, place)

    def taken(self, kind: int, place: int) -> dict[int, int]:
        """Return sequence -> when the first frame of this kind that names it was read."""
        return _first(self.read, kind, place)


def _first(frames: list[tuple[int, list[object]]], kind: int, place: int) -> dict[int, int]:
    first: dict[int, int] = {}
    for when, frame in frames:
        if frame[0] == kind:
            ranges = frame[place]
            assert isinstance(ranges, list)
            for low, high in ranges:
                for number in range(low, high + 1):
                    first.setdefault(number, when)
    return first


@contextmanager
def traced(folder: Path, how: str) -> Iterator[tuple[str, list[Call]]]:
    """A node under strace: its address, and its calls, which are there when it is over."""
    output = folder / "calls"
    calls: list[Call] = []
    node = ("twist", "--log-format=text", "msgservice", "--listen", "tcp:0")
    program = Path(sys.executable).parent / node[0]
    with running(
        *trace(output), program, *node[1:], cwd=folder, environment={VARIABLE: how}
    ) as daemon:
        yield f"tcp:127.0.0.1:{daemon.ports()[0]}", calls
        # strace keeps a signal to itself: the node is its child.
        os.kill(child_of(daemon.pid), signal.SIGTERM)
        daemon.ended()
        assert "] stopped" in daemon.said
    with output.open() as lines:
        calls += read_calls(lines)
    output.unlink()  # it is large


async def attached(address: str, name: str, subject: str) -> Receiver:
    from twisted.internet import reactor

    receiver = Receiver(reactor, name=name, handler=lambda message: None)
    receiver.attach(address, subjects=[subject])
    while not receiver.connected:
        await deferLater(reactor, 0.01)
    return receiver


def syncs_in(calls: list[Call]) -> list[Call]:
    return [c for c in calls if c.name == "fdatasync" and c.path.endswith("log.db-wal")]


@pytest.mark.parametrize("how", MODES)
@pytest_twisted.ensureDeferred
async def test_rule_i1_and_i7_no_answer_leaves_before_the_sync_of_what_it_says(
    how: str, tmp_path: Path
) -> None:
    from twisted.internet import reactor

    count = BURST * NODE_BURSTS
    with traced(tmp_path, how) as (address, calls):
        receiver = await attached(address, "taker", "marked")
        client = await connect(reactor, address, name="marker")
        receipts = []
        for burst in range(NODE_BURSTS):
            # Some come alone, as a node has them most of the time.
            some = [burst * BURST + i + 1 for i in range(BURST)]
            receipts += [await client.send("marked", mark(number)) for number in some[:2]]
            sending = [client.send("marked", mark(number)) for number in some[2:]]
            receipts += await gatherResults(sending)
        for receipt in receipts:
            await receipt.acknowledged("taker")
        await client.close()
        await receiver.stop()

    frames = Frames(calls)
    marks = {number: mark(number) for number in range(1, count + 1)}
    durable = durable_at(calls, "log.db-wal", marks.values())
    acked = {
        number: when
        for number, when in frames.answers(ACK, 1).items()
        if number <= count  # what the node answers to `marker`, whose sequences these are
    }
    assert set(marks) == set(acked)
    assert [] == [n for n in marks if not durable[marks[n]] < acked[n]], "ACK before the sync"
    # The receiver's answer, the sync of what it changes, then the status that says so.
    syncs = syncs_in(calls)
    positions = {
        frame[1] + i: frame[4] + i  # type: ignore[operator]  # decoded integers
        for _, frame in frames.sent
        if frame[0] == ROUTED
        for i in range(frame[2] - frame[1] + 1)  # type: ignore[operator]  # decoded integers
    }
    handled = frames.taken(ACK, 1)
    told = frames.answers(STATUS, 4)
    assert set(marks) == set(told)
    for number in marks:
        answered = handled[positions[number]]
        assert any(answered < c.begun and c.ended < told[number] for c in syncs), number


@pytest.mark.parametrize("how", MODES)
@pytest_twisted.ensureDeferred
async def test_rule_i7_what_ends_without_an_answer_is_told_after_its_sync(
    how: str, tmp_path: Path
) -> None:
    from twisted.internet import reactor

    reasons = [b"taken back %06d" % number for number in range(ACTS)]
    with traced(tmp_path, how) as (address, calls):
        client = await connect(reactor, address, name="marker")
        await (await attached(address, "away", "marked")).stop()
        for reason in reasons:
            receipt = await client.send("marked", mark(1))
            undone = await client.undo(receipt, reason=reason.decode())
            assert {"away": {"cancelled": 1}} == undone.receivers
            await receipt.settled()
        receipt = await client.send("marked", mark(1), ttl=0.1)
        assert {"away": Status.EXPIRED} == await receipt.settled()
        for number in range(ACTS):
            await (await attached(address, f"gone{number}", "left")).stop()
            receipt = await client.send("left", mark(1))
            asked = {"name": f"gone{number}", "confirm": 1}
            await client.request("$node.receivers.remove", asked)
            assert {f"gone{number}": Status.REMOVED} == await receipt.settled()
        await client.close()

    frames, syncs = Frames(calls), syncs_in(calls)
    expired = EXPIRED_REASON.encode()
    durable = durable_at(calls, "log.db-wal", [*reasons, expired])
    undos = frames.acts("undo")
    assert ACTS == len(undos)
    cancelled = frames.told(Status.CANCELLED)
    for reason, (_, answered), told in zip(reasons, undos, cancelled, strict=True):
        assert durable[reason] < min(answered, told), "told before the sync"
    (told,) = frames.told(Status.EXPIRED)
    assert durable[expired] < told
    removals = frames.acts("receivers.remove")
    assert ACTS == len(removals)
    gone = frames.told(Status.REMOVED)
    for (asked_at, answered), told in zip(removals, gone, strict=True):
        first = min(answered, told)
        assert any(asked_at < c.begun and c.ended < first for c in syncs), "told before the sync"


def test_semantics_26_an_outbox_says_that_it_has_a_message_after_its_sync(tmp_path: Path) -> None:
    output = tmp_path / "calls"
    child = Path(__file__).with_name("outbox_marks.py")
    with running(*trace(output), sys.executable, child, "outbox.db", cwd=tmp_path) as producer:
        assert 0 == producer.ended(), producer.said
    with output.open() as lines:
        calls = read_calls(lines)
    output.unlink()  # it is large
    marks = {number: mark(number) for number in range(1, COUNT + 1)}
    durable = durable_at(calls, "outbox.db-wal", marks.values())
    told: dict[int, int] = {}
    for call in calls:
        for word in call.data.split() if call.name == "write" else ():
            if word.startswith(b"told:"):
                told.setdefault(int(word[5:]), call.begun)
    assert set(marks) == set(told)
    assert [] == [n for n in marks if not durable[marks[n]] < told[n]], "told before the sync"


def test_the_order_of_interrupted_calls_is_read_right() -> None:
    path = "".join(f"\\x{byte:02x}" for byte in b"/d/log.db-wal")
    data = "".join(f"\\x{byte:02x}" for byte in b"abc")
    lines = [
        f'7 pwrite64(3<{path}>, "{data}", 3, 0) = 3',
        f"7 fdatasync(3<{path}> <unfinished ...>",
        f'8 write(4<{path}>, "{data}", 3 <unfinished ...>',
        "7 <... fdatasync resumed>) = 0",
        "8 <... write resumed>) = 3",
        "9 +++ exited with 0 +++",
    ]
    calls = read_calls(lines)
    assert [("pwrite64", 0, 0), ("fdatasync", 1, 3), ("write", 2, 4)] == [
        (call.name, call.begun, call.ended) for call in calls
    ]
    assert {b"abc": 3} == durable_at(calls, "log.db-wal", [b"abc"])
    # A sync that had begun before the write ended proves nothing of it.
    assert {} == durable_at(calls[1:], "log.db-wal", [b"abc"])
