"""Copies of messages that are sent again on purpose: what they carry of the original, and what not.

Which messages are copied is decided by who asks for it: the log for a page of a replay
(`log.replaying`), from what became of them, and an operator who sends dead letters again. Nothing
here knows a receiver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

from msgservice.message import (
    FLAG_REPLAY,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    WireMessage,
    decode_messages,
    encode_messages,
    options_of,
)
from msgservice.records import NOBODY, Batch, DeadLetter, Origin, hash_of, position_of

# The position of the original in the log of the node that copied it, as `msgservice status` takes
# it. A message that would be too large with it goes without.
REPLAY_OF = "msgservice-replay-of"
POSITION_DIGITS_MAX = 19

Range = tuple[int, int]  # indices of messages in their batch: first and last


def copies_of(
    batch: Batch, ranges: Sequence[Range], size_max: int, *, expires: bool = False
) -> Iterator[Batch]:
    """Yield the copies of these messages of a stored batch, in runs of `size_max` bytes at most.

    A copy has the origin of its original, so that it is of the same lane and has the same identity,
    the flag *replay*, and the header `REPLAY_OF`. It has no options of its sender's: these were
    about the first delivery; but where `expires`, for who has not had it, it does so when the
    original does. Sender, sequence and audience are not known here.
    """
    messages = decode_messages(batch.messages)
    origin = batch.origin or Origin(batch.sender, batch.sequence, hash_of(batch.incarnation))
    for first, last in ranges:
        some = messages[first : last + 1]
        position = position_of(batch.number, first)
        encoded = _all_told(some, position)
        copies: Iterable[Batch]
        if len(encoded) <= size_max:  # so none of them is too large
            copies = (_copy(batch, origin, first, len(some), encoded),)
        else:
            told = [_told(message, at, size_max) for at, message in enumerate(some, position)]
            copies = _runs(batch, origin, first, told, size_max)
        for copy in copies:
            if expires:
                copy.expires_at = batch.expires_at
            yield copy


def copies_of_letters(
    letters: Iterable[DeadLetter], size_max: int, *, to_node: bool = False
) -> list[Batch]:
    """Return the copies of dead letters, a run each, as `copies_of` makes them.

    `to_node`: for a node, which is told as ever what is to be retained, and what is only that.
    """
    kept = FLAG_RETAIN | FLAG_RETAIN_ONLY if to_node else 0
    copies: list[Batch] = []
    for letter in letters:
        (message,) = decode_messages(letter.message)
        hashed = hash_of(letter.incarnation)
        origin = letter.origin or Origin(letter.sender, letter.sequence, hashed)
        told = [_told(message, letter.position, size_max)]
        copies += _runs(letter, origin, 0, told, size_max, letter.flags & kept)
    return copies


def replayed_of(message: WireMessage) -> int | None:
    """Return the position of the original of a copy; None where the copy does not say it."""
    said = (message.headers or {}).get(REPLAY_OF, "").partition(":")[2]
    is_one = said.isascii() and said.isdecimal() and len(said) <= POSITION_DIGITS_MAX
    return int(said) if is_one else None


def _all_told(messages: Sequence[WireMessage], position: int) -> bytes:
    """Return a run of the copies of messages that follow each other from a position on."""
    return encode_messages(
        [
            (
                message.body,
                {REPLAY_OF: f"log:{at}"}
                if message.headers is None
                else message.headers | {REPLAY_OF: f"log:{at}"},
                message.id,
            )
            for at, message in enumerate(messages, position)
        ]
    )


def _told(message: WireMessage, position: int, size_max: int) -> WireMessage:
    of = f"log:{position}"
    headers = {REPLAY_OF: of} if message.headers is None else {**message.headers, REPLAY_OF: of}
    copy = WireMessage(message.body, headers, message.id)
    if len(message.body) + 1024 < size_max and message.headers is None:
        return copy
    if len(encode_messages([copy])) <= size_max:
        return copy
    return WireMessage(message.body, message.headers, message.id)


def _runs(
    of: Batch | DeadLetter,
    origin: Origin,
    first: int,
    told: list[WireMessage],
    size_max: int,
    flags: int = 0,
) -> Iterator[Batch]:
    encoded = encode_messages(told)
    if len(encoded) > size_max and len(told) > 1:
        half = len(told) // 2
        yield from _runs(of, origin, first, told[:half], size_max)
        yield from _runs(of, origin, first + half, told[half:], size_max)
        return
    yield _copy(of, origin, first, len(told), encoded, flags)


def _copy(
    of: Batch | DeadLetter, origin: Origin, first: int, count: int, encoded: bytes, flags: int = 0
) -> Batch:
    return Batch(
        sender="",
        incarnation="",
        sequence=0,
        count=count,
        subject=of.subject,
        audience=NOBODY,
        messages=encoded,
        size=len(encoded),
        crc=crc32(encoded),
        after=0,
        options=options_of(FLAG_REPLAY | flags),
        origin=origin.behind(first),
    )
