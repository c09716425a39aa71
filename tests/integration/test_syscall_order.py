"""Syncs before answers, by the system calls of real processes (RELIABILITY I1, I7; SEMANTICS 26).

What the node says of a message on a socket, and what an outbox says to its program, comes after the
sync of the write that holds it. The kernel's own order is looked at, not what the product believes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from msgservice import Receiver, connect
from msgservice.core.framing import FrameSplitter
from msgservice.limits import Limits
from tests.integration.daemon import running
from tests.kit.syscalls import Call, durable_at, read_calls, trace, works

pytestmark = pytest.mark.skipif(not works(), reason="strace is not there, or may not trace")

BURST, BURSTS = 10, 100
COUNT = BURST * BURSTS
TRANSFER, ACK, STATUS, ROUTED = 2, 3, 5, 6
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
                else:
                    self.read.append((call.ended, decoded))

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


@pytest_twisted.ensureDeferred
async def test_rule_i1_and_i7_no_answer_leaves_before_the_sync_of_what_it_says(
    tmp_path: Path,
) -> None:
    from twisted.internet import reactor

    output = tmp_path / "calls"
    node = ("twist", "--log-format=text", "msgservice", "--listen", "tcp:0")
    program = Path(sys.executable).parent / node[0]
    with running(*trace(output), program, *node[1:], cwd=tmp_path) as daemon:
        address = f"tcp:127.0.0.1:{daemon.ports()[0]}"
        receiver = Receiver(reactor, name="taker", handler=lambda message: None)
        receiver.attach(address, subjects=["marked"])
        while not receiver.connected:
            await deferLater(reactor, 0.01)
        client = await connect(reactor, address, name="marker")
        receipts = []
        for burst in range(BURSTS):
            receipts += await gatherResults(
                [client.send("marked", mark(burst * BURST + i + 1)) for i in range(BURST)]
            )
        for receipt in receipts:
            await receipt.acknowledged("taker")
        await client.close()
        await receiver.stop()
        # strace keeps a signal to itself: the node is its child.
        os.kill(child_of(daemon.pid), signal.SIGTERM)
        daemon.ended()
        assert "] stopped" in daemon.said

    with output.open() as lines:
        calls = read_calls(lines)
    output.unlink()  # it is large
    frames = Frames(calls)
    marks = {number: mark(number) for number in range(1, COUNT + 1)}
    durable = durable_at(calls, "log.db-wal", marks.values())
    acked = {
        number: when
        for number, when in frames.answers(ACK, 1).items()
        if number <= COUNT  # what the node answers to `marker`, whose sequences these are
    }
    assert set(marks) == set(acked)
    assert [] == [n for n in marks if not durable[marks[n]] < acked[n]], "ACK before the sync"
    # The receiver's answer, the sync of what it changes, then the status that says so.
    syncs = [c for c in calls if c.name == "fdatasync" and c.path.endswith("log.db-wal")]
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
