"""Framing: ours against Twisted's `Int32StringReceiver`, and frames through a loopback socket.

    python -m bench.framing

One frame that arrives in pieces, many small frames in one piece, and whole channels in one
process (both ends share it, so a node alone does better than half of that). Ratios are of this
run; single figures are of this machine.
"""

from __future__ import annotations

import json
import time
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import Int32StringReceiver
from zope.interface import implementer

from msgservice.core.framing import FrameSplitter, encode_prefix
from msgservice.errors import ProtocolError
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.transport.registry import Transports

reactor: Any = installed_reactor
MIB = 1024 * 1024


class Theirs(Int32StringReceiver):
    MAX_LENGTH = 64 * MIB
    count = 0

    def stringReceived(self, string: bytes) -> None:
        self.count += 1


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def ours(pieces: list[bytes]) -> float:
    splitter = FrameSplitter(64 * MIB)
    start = time.perf_counter()
    count = sum(len(splitter.feed(piece)) for piece in pieces)
    taken = time.perf_counter() - start
    assert count
    return taken


def theirs(pieces: list[bytes]) -> float:
    receiver = Theirs()
    receiver.makeConnection(StringTransport())
    start = time.perf_counter()
    for piece in pieces:
        receiver.dataReceived(piece)
    taken = time.perf_counter() - start
    assert receiver.count
    return taken


def split_large(size: int, piece: int) -> dict[str, Any]:
    pieces = pieces_of(encode_prefix(size) + bytes(size), piece)
    mine, other = ours(pieces), theirs(pieces)
    return {"ms": round(mine * 1e3, 2), "twisted_ms": round(other * 1e3, 2)}


def split_small(size: int) -> dict[str, Any]:
    frame = encode_prefix(size) + bytes(size)
    pieces = pieces_of(frame * 300_000, 64 * 1024)
    mine, other = ours(pieces), theirs(pieces)
    return {
        "frames_s": round(300_000 / mine),
        "twisted_frames_s": round(300_000 / other),
        "ratio": round(other / mine, 2),
    }


@implementer(IChannelUser)
class Sender:
    """Sends `count` frames, as fast as the channel lets it."""

    def __init__(self, frame: bytes, count: int) -> None:
        self.frame, self.count = frame, count
        self.writable = True

    def channel_opened(self, channel: IChannel) -> None:
        self.channel = channel
        self.go()

    def go(self) -> None:
        if self.writable and self.count:
            burst = min(self.count, max(1, 64 * 1024 // len(self.frame)))
            for _ in range(burst):
                self.channel.send(self.frame)
            self.count -= burst
            if self.count:
                reactor.callLater(0, self.go)

    def channel_writable(self, writable: bool) -> None:
        self.writable = writable
        if writable:
            self.go()

    def frames_received(self, frames: list[bytes]) -> None: ...
    def channel_failed(self, error: ProtocolError) -> None: ...
    def channel_lost(self, reason: str) -> None: ...


@implementer(IChannelUser)
class Taker:
    """Counts frames and fires `done` with the seconds since the first."""

    def __init__(self, count: int, done: Deferred[float]) -> None:
        self.left, self.done = count, done
        self.start = 0.0
        self.deliveries = 0

    def channel_opened(self, channel: IChannel) -> None:
        channel.established()
        self.start = time.perf_counter()

    def frames_received(self, frames: list[bytes]) -> None:
        self.left -= len(frames)
        self.deliveries += 1
        if not self.left:
            self.done.callback(time.perf_counter() - self.start)

    def channel_writable(self, writable: bool) -> None: ...
    def channel_failed(self, error: ProtocolError) -> None: ...
    def channel_lost(self, reason: str) -> None: ...


async def through_socket(size: int, count: int) -> dict[str, Any]:
    limits = Limits()
    transport = Transports().tcp
    done: Deferred[float] = Deferred()
    taker = Taker(count, done)
    port: Any = await transport.listen(reactor, "tcp:0", lambda: taker, limits)
    address = f"tcp:127.0.0.1:{port.getHost().port}"
    connector = transport.connector(reactor, address, lambda: Sender(bytes(size), count), limits)
    connector.startService()
    seconds = await done
    await connector.stopService()
    await port.stopListening()
    return {
        "frames_s": round(count / seconds),
        "mib_s": round(count * size / seconds / MIB),
        "frames_per_delivery": round(count / taker.deliveries, 1),
    }


async def run() -> None:
    results: dict[str, Any] = {}
    for size in (1, 4, 16):
        for piece in (64 * 1024, 1460):
            results[f"split {size} MiB in {piece}"] = split_large(size * MIB, piece)
            if size == 16 and piece == 64 * 1024:
                break  # the rest takes Twisted's a quarter of a minute
    for size in (16, 256):
        results[f"split frames of {size}"] = split_small(size)
    for size, count in ((64, 400_000), (1024, 200_000), (50 * 1024, 10_000), (MIB, 500)):
        results[f"socket frames of {size}"] = await through_socket(size, count)
    for name, result in results.items():
        print(f"{name:28} {result}")
    print(json.dumps(results))


def main() -> None:
    finished: list[Any] = []

    def start() -> None:
        Deferred.fromCoroutine(run()).addErrback(finished.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run()
    if finished:
        finished[0].raiseException()


if __name__ == "__main__":
    main()
