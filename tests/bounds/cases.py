"""The worst that may be said, of each kind of frame, to a node, a client and a receiver."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import msgspec

from msgservice.core.frames import (
    CANCEL_RANGES_MAX,
    KINDS,
    VERSION,
    Ack,
    AudienceFrame,
    Auth,
    Bye,
    Cancel,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    Note,
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
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.message import Action, Status, WireMessage, encode_messages

READ_BYTES = 64 * 1024  # of small frames that one read brings
PREFIX_BYTES = 4
LIMITS = Limits()
ROOM = LIMITS.max_batch - 4096


def reads(frames: Iterable[Frame]) -> list[bytes]:
    """As many of these as fit into one read."""
    size, found = 0, []
    for frame in frames:
        data = encode_frame(frame)
        size += len(data) + PREFIX_BYTES
        if size > READ_BYTES:
            break
        found.append(data)
    return found


def _messages(count: int) -> msgspec.Raw:
    return msgspec.Raw(encode_messages([WireMessage(b"")] * count))


def _ranges(count: int) -> list[tuple[int, int]]:
    return [(2 * n + 1, 2 * n + 1) for n in range(count)]


def _names(count: int) -> list[str]:
    return [f"n{n}" for n in range(count)]


@cache
def largest() -> dict[type, list[Frame]]:
    """Of each kind, frames as large as a frame may be, each large in another way.

    They take long to make and hundreds of megabytes, so only who runs these tests has them.
    """
    many = ROOM // 12
    headers = {f"h{n}": "v" for n in range(ROOM // 16)}
    heavy = msgspec.Raw(encode_messages([WireMessage(b"", headers)]))
    subjects = ReceiveOptions(subjects=_names(ROOM // 8))
    patterns = ReceiveOptions(subjects=[f"a.b.c{n}.*.>" for n in range(LIMITS.patterns)])
    return {
        Hello: [
            Hello(VERSION, "peer", "i1", HelloOptions(receive=subjects)),
            Hello(VERSION, "peer", "i1", HelloOptions(receive=patterns)),
            Hello(VERSION, "peer", "i1", HelloOptions(auth=_names(ROOM // 8))),
            Hello(VERSION, "peer", "i1", HelloOptions(features=_names(ROOM // 8))),
        ],
        Transfer: [
            Transfer(1, "a", _messages(ROOM // 4)),
            Transfer(1, "a", _messages(LIMITS.batch_messages)),
            Transfer(1, "a", heavy),
            Transfer(1, "a", _messages(1), to=tuple(_names(ROOM // 8))),
            Transfer(1, "a.*." * 50 + "b", _messages(LIMITS.batch_messages)),
        ],
        Ack: [Ack(_ranges(many)), Ack(_ranges(many)[::-1]), Ack([(1, INTEGER_MAX)])],
        Nack: [
            Nack(1, INTEGER_MAX, int(action), 1, "r" * 4000)
            for action in (Action.RETRY, Action.DEAD, Action.REFUSED, Action.LATER)
        ],
        StatusFrame: [
            StatusFrame("i1", "r1", int(Status.ACKNOWLEDGED), _ranges(many)),
            StatusFrame("i1", "r1", int(Status.DEAD), _ranges(many), "r" * 4000),
            StatusFrame("i1", "r1", int(Status.SENT), [(1, INTEGER_MAX)]),
        ],
        Routed: [Routed(1, INTEGER_MAX, 1, 1)],
        Request: [
            Request(1, "$node.info", _messages(ROOM // 4)),
            Request(1, "$node.info", _messages(LIMITS.requests)),
            Request(1, "prices.get", _messages(LIMITS.requests)),
        ],
        Reply: [Reply([(n, True, msgspec.Raw(b"\x91\xc4\x00")) for n in range(ROOM // 16)])],
        Ping: [Ping(INTEGER_MAX)],
        Pong: [Pong(INTEGER_MAX)],
        Auth: [Auth(b"x" * ROOM)],
        Bye: [Bye(0, "r" * 4096)],
        ErrorFrame: [ErrorFrame(1, "r" * 4096)],
        AudienceFrame: [AudienceFrame(1, _names(ROOM // 8))],
        Note: [Note(1, INTEGER_MAX, "r" * 4096)],
        ResumeFrame: [
            ResumeFrame(1, _ranges(many)),
            ResumeFrame(1, _ranges(many)[::-1]),
            ResumeFrame(INTEGER_MAX, []),
        ],
        Cancel: [
            Cancel(_ranges(many)),
            Cancel(_ranges(CANCEL_RANGES_MAX)),
            Cancel([(0, INTEGER_MAX)]),
        ],
    }


def smallest(kind: type) -> Iterator[Frame]:
    """The smallest frames of a kind, one after the other, as a read may be full of."""
    one = _messages(1)
    make: dict[type, Callable[[int], Frame]] = {
        Hello: lambda n: Hello(VERSION, "peer", "i1"),
        Transfer: lambda n: Transfer(n, f"s{n}", one),
        Ack: lambda n: Ack([(n, n)]),
        Nack: lambda n: Nack(n, n, 1 + n % 4),
        StatusFrame: lambda n: StatusFrame("i1", "r1", 3 + n % 3, [(n, n)]),
        Routed: lambda n: Routed(n, n, 1, n),
        Request: lambda n: Request(n, "$node.info", one),
        Reply: lambda n: Reply([(n, True, msgspec.Raw(b"\x91\xc4\x00"))]),
        Ping: Ping,
        Pong: Pong,
        Auth: lambda n: Auth(b""),
        Bye: lambda n: Bye(),
        ErrorFrame: lambda n: ErrorFrame(1),
        AudienceFrame: lambda n: AudienceFrame(n, ["r1"]),
        Note: lambda n: Note(n, 1),
        ResumeFrame: lambda n: ResumeFrame(1, [(2 * n, 2 * n)], None, True),
        Cancel: lambda n: Cancel([(n, n)]),
    }
    return (make[kind](number) for number in itertools.count(1))


Answers = Callable[[Sequence[Any]], Iterable[Frame]]


def _last(transfer: Any) -> int:
    return int(transfer.sequence) + len(msgspec.msgpack.decode(transfer.messages)) - 1


def _each(sent: Sequence[Any]) -> list[int]:
    return [n for one in sent for n in range(one.sequence, _last(one) + 1)]


# What a receiver may answer to what it was sent. name -> (messages in a run, lanes, order, answers)
ANSWERS: dict[str, tuple[int, int, str, Answers]] = {
    "dead, all in one": (
        512,
        1,
        "strict",
        lambda sent: [Nack(sent[0].sequence, _last(sent[-1]), Action.DEAD)],
    ),
    "dead, each alone": (
        512,
        1,
        "strict",
        lambda sent: [Nack(n, n, Action.DEAD) for n in _each(sent)],
    ),
    "dead, every other": (
        512,
        1,
        "strict",
        lambda sent: [Nack(n, n, Action.DEAD) for n in _each(sent)[::2]],
    ),
    "taken, every other in one": (
        512,
        1,
        "strict",
        lambda sent: [Ack([(n, n) for n in _each(sent)[1::2]])],
    ),
    "taken, every other run in one": (
        1,
        1,
        "strict",
        lambda sent: [Ack([(n, n) for n in _each(sent)[1::2]])],
    ),
    "taken, from the end": (
        512,
        1,
        "strict",
        lambda sent: [Ack([(n, n)]) for n in _each(sent)[::-1]],
    ),
    "taken, runs from the end": (
        1,
        1,
        "strict",
        lambda sent: [Ack([(n, n)]) for n in _each(sent)[::-1]],
    ),
    "again, each lane": (
        1,
        1 << 20,
        "strict",
        lambda sent: [Nack(n, n, Action.RETRY) for n in _each(sent)],
    ),
    "again, each lane from the end": (
        1,
        1 << 20,
        "strict",
        lambda sent: [Nack(n, n, Action.RETRY) for n in _each(sent)[::-1]],
    ),
    "again, one lane from the end": (
        1,
        1,
        "strict",
        lambda sent: [Nack(n, n, Action.RETRY) for n in _each(sent)[::-1]],
    ),
    "again, all in one": (
        512,
        1,
        "none",
        lambda sent: [Nack(sent[0].sequence, _last(sent[-1]), Action.RETRY)],
    ),
    "again, every other": (
        512,
        1,
        "none",
        lambda sent: [Nack(n, n, Action.RETRY) for n in _each(sent)[::2]],
    ),
    "later, each": (
        512,
        1,
        "none",
        lambda sent: [Nack(n, n, Action.LATER, 1) for n in _each(sent)],
    ),
    "notes": (1, 1, "strict", lambda sent: [Note(n, 1, "r") for n in _each(sent)]),
}
__all__ = ["ANSWERS", "KINDS", "largest", "reads", "smallest"]
