"""The conversation on docs/protocol.md; `python -m tests.kit.protocol_vectors` prints it."""

from __future__ import annotations

import textwrap

import msgspec

from msgservice.core.frames import (
    Ack,
    AudienceFrame,
    Bye,
    Cancel,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    Ping,
    Pong,
    ReceiveOptions,
    Reply,
    Request,
    ResumeFrame,
    Routed,
    StatusFrame,
    Transfer,
    encode_frame,
)
from msgservice.message import WireMessage, encode_messages

LOG = "9f2c4b7a"
POSITION = 7 << 16


def run(*bodies: bytes) -> msgspec.Raw:
    """Messages of bodies alone."""
    return msgspec.Raw(encode_messages([WireMessage(body) for body in bodies]))


def answer(ok: bool, body: bytes, **headers: str) -> Reply:
    """The answer to call 1."""
    message = msgspec.msgpack.encode(WireMessage(body, headers or None))
    return Reply([(1, ok, msgspec.Raw(message))])


NODE = HelloOptions(max_batch=1 << 20, heartbeat=20_000, window=(65_536, 16 << 20), requests=1000)
TO_RECEIVER = msgspec.structs.replace(NODE, receive=ReceiveOptions(order="strict"))

# name, what is said of it, frames
CONVERSATION: list[tuple[str, str, list[Frame]]] = [
    ("producer-hello", "A producer greets the node",
     [Hello(1, "shop", "5f01c1d2e3", HelloOptions(status_from=1))]),
    ("node-hello", "the node answers, and says that it has taken nothing",
     [Hello(1, "node", LOG, NODE), ResumeFrame(0, [])]),
    ("producer-resume", "the producer has taken nothing either, and sends two messages",
     [ResumeFrame(0, []), Transfer(1, "orders.new", run(b"one", b"two"), after=0)]),
    ("node-ack", "they are on disk: who receives them, where they stand, and the answer",
     [AudienceFrame(1, ["billing"]), Routed(1, 2, 1, POSITION), Ack([(1, 2)])]),
    ("receiver-hello", "A receiver attaches",
     [Hello(1, "billing", "77aa01bb02", HelloOptions(
         window=(1000, 1 << 20), receive=ReceiveOptions(subjects=["orders.>"], order="strict")))]),
    ("node-to-receiver", "the node answers as the sender to this receiver",
     [Hello(1, "node", LOG + ".1", TO_RECEIVER), ResumeFrame(0, [])]),
    ("receiver-resume", "it has taken nothing", [ResumeFrame(0, [])]),
    ("node-transfer", "both messages; nothing lies between position 0 and theirs",
     [Transfer(POSITION, "orders.new", run(b"one", b"two"), after=0)]),
    ("receiver-answers", "the first is handled; the second is to come again in a second",
     [Ack([(1, POSITION)]), Nack(POSITION + 1, POSITION + 1, 1, 1000, "later")]),
    ("node-again", "it comes again, and shows that the NACK was acted on",
     [Transfer(POSITION + 1, "orders.new", run(b"two"), after=POSITION, floor=POSITION + 1,
               nacks=1)]),
    ("receiver-ack", "and is handled", [Ack([(POSITION + 1, POSITION + 1)])]),
    ("node-status", "The producer is told", [StatusFrame("5f01c1d2e3", "billing", 3, [(1, 2)])]),
    ("request", "A call, and a sign of life",
     [Request(1, "$node.info", run(b"{}"), 5000), Ping(7)]),
    ("too-many", "the answers, where too many calls were made at once",
     [answer(False, b"wait", limit="requests"), Pong(7)]),
    ("cancel", "Two calls are given up, the second and the last of three, and one is made",
     [Cancel([(3, 3), (5, 5)]), Request(6, "prices.get", run(b"x"), 5000)]),
    ("bye", "A goodbye", [Bye(0, "goodbye")]),
    ("bye-settled", "A producer that has heard all its answers, and never comes again", [Bye(4)]),
    ("error", "The end of one who spoke another version",
     [ErrorFrame(4, "protocol version 2, this side speaks version 1")]),
]  # fmt: skip


def encoded(frames: list[Frame]) -> bytes:
    """The frames as they travel on TCP."""
    return b"".join(
        len(data).to_bytes(4, "big") + data for data in (encode_frame(frame) for frame in frames)
    )


VECTORS = {name: encoded(frames) for name, _, frames in CONVERSATION}


def blocks() -> str:
    """The section of the page."""
    return "\n\n".join(
        f"{text[0].upper()}{text[1:]}:\n\n```{{code-block}} text\n:name: wire-{name}\n\n"
        + "\n".join(textwrap.wrap(encoded(frames).hex(" ", -4), 72))
        + "\n```"
        for name, text, frames in CONVERSATION
    )


if __name__ == "__main__":
    print(blocks())
