"""What a stranger's connection to the web listener costs: memory of its heads and bodies.

Whoever is not known may open `connections` of them, so each is to be small, however slowly or long
it says what it says. A turn beyond 50 ms raises by itself (`meter`).
"""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import nullcontext
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.bounds.meter import Meter
from tests.fuzz.http_target import HOST, JSON, Serving, Wire, channel_of

CHANNELS = 30
STRANGER_BYTES = 64 * 1024  # of one connection that says a head without end
READ = 64 * 1024
GB = 1 << 30
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"


def opened(serving: Serving) -> tuple[Any, Wire]:
    wire = Wire()
    channel = channel_of(serving, Clock())
    channel.makeConnection(wire)
    return channel, wire


def hear(channel: Any, wire: Wire, data: bytes, meter: Meter | None) -> None:
    for at in range(0, len(data), READ):
        if not wire.is_closed:
            with nullcontext() if meter is None else meter.turn("a read"):
                channel.dataReceived(data[at : at + READ])


def gone(channel: Any) -> None:
    channel.connectionLost(Failure(ConnectionLost()))


def test_heads_without_end_cost_little_and_are_refused() -> None:
    serving, meter = Serving(), Meter()
    heads = {
        "many lines": b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 20_000,
        "one line": b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000,
        "a first line": b"GET /" + b"x" * 200_000,
        "empty lines": b"\r\n" * 100_000,
    }
    for name, head in heads.items():
        small = opened(serving)  # what is made once is made
        hear(*small, head, meter)
        gc.collect()
        tracemalloc.start()
        try:
            channels = [opened(serving) for _ in range(CHANNELS)]
            for channel in channels:
                hear(*channel, head, None)
            gc.collect()
            each = tracemalloc.get_traced_memory()[0] / CHANNELS
        finally:
            tracemalloc.stop()
        assert each < STRANGER_BYTES, (name, each)
        for channel, _ in [small, *channels]:
            gone(channel)
    assert [] == serving.served


def test_a_gigabyte_in_chunks_is_refused_once_and_kept_nowhere() -> None:
    serving, meter = Serving(), Meter()
    channel, wire = opened(serving)
    channel.dataReceived(CHUNKED)
    chunk = b"%x\r\n%b\r\n" % (READ, b"x" * READ)
    tracemalloc.start()
    try:
        for _ in range(GB // READ):  # whatever is said of closing: it goes on
            with meter.turn("a read"):
                channel.dataReceived(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert wire.value().startswith(b"HTTP/1.1 413 ")
    assert 1 == wire.value().count(b"HTTP/1.1 ")
    assert (0, []) == (serving.held_bytes, serving.served)
    assert peak < 20 * READ, peak
    gone(channel)


def test_bodies_of_all_together_are_bounded() -> None:
    serving = Serving()
    head = b"POST / HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 300\r\n\r\n"
    channels = [opened(serving) for _ in range(400)]
    for channel in channels:
        hear(*channel, head + b"x" * 299, None)
    held = serving.held_bytes
    assert 0 < held <= 64 * 1024
    for (channel, wire), status in ((channels[0], b" 200 "), (channels[-1], b" 503 ")):
        channel.dataReceived(b"x")
        assert status in wire.value().partition(b"\r\n")[0]
    for channel, _ in channels:
        gone(channel)
    assert 0 == serving.held_bytes
