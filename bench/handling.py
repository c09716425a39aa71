"""What a receiver costs per message, without a socket: the time of one process, in nanoseconds.

    python -m bench.handling [MESSAGES]

Runs of 200 messages of 256 bytes go in as frames, answers come out as frames. Compared with a
bare loop that decodes the same frames, calls the same handler and encodes an answer for each run.
Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.task import Clock

from msgservice.core.frames import (
    VERSION,
    Ack,
    Hello,
    HelloOptions,
    ReceiveOptions,
    ResumeFrame,
    Transfer,
    encode_frame,
)
from msgservice.credentials import THIS_PROCESS
from msgservice.message import BareMessage, encode_messages
from msgservice.receiver.receiver import Receiver
from msgservice.records import Origin

RUN, BODY, ROUNDS = 200, b"x" * 256, 5
_decode_run = msgspec.msgpack.Decoder(list[BareMessage]).decode
_decode_transfer = msgspec.msgpack.Decoder(Transfer).decode


class Sink:
    """A channel that swallows what is sent."""

    peer = "bench"
    credentials = THIS_PROCESS

    def __init__(self) -> None:
        self.frames = 0

    def send(self, frame: bytes) -> None:
        self.frames += 1

    def established(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


def frames_of(runs: int) -> list[bytes]:
    messages = msgspec.Raw(encode_messages([BareMessage(BODY) for _ in range(RUN)]))
    origin = Origin("shop", 1, "0123456789abcdef")
    return [
        encode_frame(
            Transfer(n * RUN + 1, "orders.new", messages, None, 1, 0, None, None, None, 0, origin)
        )
        for n in range(runs)
    ]


def receiver_on(handler: Callable[..., Any], **more: Any) -> tuple[Any, Clock, Sink]:
    """Return the user of a channel whose session is open."""
    clock, sink = Clock(), Sink()
    users: list[Any] = []

    def dial(make_user: Callable[[], Any]) -> Service:
        users.append(make_user())
        return Service()

    receiver = Receiver(clock, name="r", handler=handler, **more)
    receiver.attach_through(dial, address="bench")
    user = users[0]
    user.channel_opened(sink)
    hello = Hello(VERSION, "n", "i", HelloOptions(receive=ReceiveOptions(order="strict")))
    user.frames_received([encode_frame(hello), encode_frame(ResumeFrame(1, []))])
    return user, clock, sink


def bare(frames: list[bytes], handler: Callable[[Any], None]) -> None:
    for frame in frames:
        transfer = _decode_transfer(frame)
        for message in _decode_run(transfer.messages):
            handler(message)
        encode_frame(Ack([(transfer.sequence, transfer.sequence + RUN - 1)]))


def best(measure: Callable[[], None], messages: int) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        measure()
        times.append(time.process_time() - began)
    return min(times) / messages * 1e9


def main() -> None:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    frames = frames_of(messages // RUN)
    seen = 0

    def plain(message: Any) -> None:
        nonlocal seen
        seen += 1

    async def coroutine(message: Any) -> None:
        nonlocal seen
        seen += 1

    def whole_run(messages: list[Any]) -> None:
        nonlocal seen
        seen += len(messages)

    def through(handler: Callable[..., Any], **more: Any) -> Callable[[], None]:
        def measure() -> None:
            user, clock, _ = receiver_on(handler, **more)
            for frame in frames:
                user.frames_received([frame])
                clock.advance(0)

        return measure

    found = {
        "bare_ns": best(lambda: bare(frames, plain), messages),
        "plain_ns": best(through(plain), messages),
        "batch_ns": best(through(whole_run, batch=True), messages),
        "coroutine_ns": best(through(coroutine), messages),
    }
    print(json.dumps({name: round(value) for name, value in found.items()} | {"seen": seen}))


if __name__ == "__main__":
    main()
