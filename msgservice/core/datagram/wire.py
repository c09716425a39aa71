"""Byte layouts of acknowledged UDP: the header, the blocks behind it, the handshake's bodies.

Pure encoding and decoding, called by `core.datagram.endpoint` and the halves of a session; no
state, no decisions. `docs/udp.md` describes every layout with a byte-exact example. All integers
are big-endian and of fixed width, so that a run of messages is packed and unpacked by one call
each.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable, Sequence
from struct import Struct
from struct import error as struct_error
from typing import NamedTuple, Protocol

VERSION = 1

# Letters: the first byte of every datagram.
MESSAGES = 0x57  # W
ACKNOWLEDGEMENT = 0x41  # A
HELLO = 0x48  # H
COOKIE = 0x43  # C
OPENED = 0x4F  # O
RESET = 0x52  # R

# letter, version, key id, role of the sender, session id, packet number
HEADER = Struct("!BBBBQQ")
HEADER_BYTES = HEADER.size
INITIATOR, RESPONDER = 0, 1

# Blocks: the first byte of each part behind the header of a W or an A.
RUN = 1
FRAGMENT = 2
HANDLED = 3
REPLY = 4
RECEIVED = 5
CREDIT = 6
ASK = 7
CLOSE = 8

RUN_HEAD = Struct("!BHQ")  # block, count, first nonce; then count lengths, then the bodies
RUN_OF_ONE = Struct("!BHQH")  # the same for one message, its length included
FRAGMENT_HEAD = Struct("!BBQIIH")  # block, status, nonce, total, offset, length; then the bytes
HANDLED_HEAD = Struct("!BH")  # block, count; then count pairs of first and last nonce
RANGE = Struct("!QQ")
REPLY_HEAD = Struct("!BBQH")  # block, status, nonce, length; then the bytes
RECEIVED_HEAD = Struct("!BBIQI")  # block, further ranges, delay in us, largest, length of its range
GAP = Struct("!II")  # packets missing below the range before, packets in this range
ASK_BLOCK = Struct("!BQ")  # block, the lowest nonce that is open
CREDIT_BLOCK = Struct("!BQQ")  # block, messages in all, bytes in all

# Status of a FRAGMENT and of a REPLY.
PART_OF_MESSAGE = 0
REPLY_OK = 1
REPLY_FAILED = 2

RUN_COUNT_MAX = 4096
RANGES_MAX = 64

_LENGTHS: dict[int, Struct] = {}


def lengths_struct(count: int) -> Struct:
    """Return the packer of `count` 16-bit lengths (kept: compiling a format costs more than using
    it)."""
    found = _LENGTHS.get(count)
    if found is None:
        found = _LENGTHS[count] = Struct(f"!{count}H")
    return found


def encode_run(first: int, bodies: Sequence[bytes]) -> bytes:
    """Return the RUN block of consecutive messages, the first of which has nonce `first`."""
    count = len(bodies)
    lengths = lengths_struct(count).pack(*map(len, bodies))
    return b"".join((RUN_HEAD.pack(RUN, count, first), lengths, *bodies))


def decode_run(data: bytes, at: int, end: int) -> tuple[int, list[bytes], int]:
    """Return (first nonce, bodies, position behind) of the RUN block at `at`; ValueError if it is
    none."""
    _, count, first = RUN_HEAD.unpack_from(data, at)
    lengths = _LENGTHS.get(count)
    if lengths is None:
        if not 0 < count <= RUN_COUNT_MAX:
            raise ValueError("count of a run")
        lengths = lengths_struct(count)
    at += 11
    sizes = lengths.unpack_from(data, at)
    at += 2 * count
    bodies = []
    for size in sizes:
        behind = at + size
        bodies.append(data[at:behind])
        at = behind
    if at > end:
        raise ValueError("run beyond its datagram")
    return first, bodies, at


# A RECEIVED block: the delay in seconds, and inclusive ranges of packet numbers, newest first.
Received = tuple[float, list[tuple[int, int]]]


def encode_received(delay: float, ranges: Sequence[tuple[int, int]]) -> bytes:
    """Return the RECEIVED block of inclusive packet ranges, newest first (at most RANGES_MAX)."""
    first, last = ranges[0]
    microseconds = min(int(delay * 1e6), 0xFFFFFFFF)
    head = RECEIVED_HEAD.pack(RECEIVED, len(ranges) - 1, microseconds, last, last - first + 1)
    if len(ranges) == 1:
        return head
    parts = [head]
    for low, high in ranges[1:]:
        parts.append(GAP.pack(first - high - 1, high - low + 1))
        first = low
    return b"".join(parts)


def decode_received(data: bytes, at: int, end: int) -> tuple[Received, int]:
    """Return the RECEIVED block at `at` and the position behind it; ValueError if it is none."""
    _, more, microseconds, last, length = RECEIVED_HEAD.unpack_from(data, at)
    at += RECEIVED_HEAD.size
    first = last - length + 1
    if not length or first < 0:
        raise ValueError("first range of a RECEIVED block")
    ranges = [(first, last)]
    if not more and at <= end:
        return (microseconds / 1e6, ranges), at
    for _ in range(more):
        gap, length = GAP.unpack_from(data, at)
        at += GAP.size
        last = first - gap - 1
        first = last - length + 1
        if not gap or not length or first < 0:
            raise ValueError("range of a RECEIVED block")
        ranges.append((first, last))
    if at > end:
        raise ValueError("RECEIVED block beyond its datagram")
    return (microseconds / 1e6, ranges), at


def encode_handled(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Return the HANDLED block of inclusive nonce ranges (settled with an empty reply)."""
    pack = RANGE.pack
    return HANDLED_HEAD.pack(HANDLED, len(ranges)) + b"".join([pack(*pair) for pair in ranges])


def decode_handled(data: bytes, at: int, end: int) -> tuple[list[tuple[int, int]], int]:
    """Return the ranges of the HANDLED block at `at` and the position behind it."""
    _, count = HANDLED_HEAD.unpack_from(data, at)
    at += HANDLED_HEAD.size
    behind = at + count * RANGE.size
    if behind > end:
        raise ValueError("HANDLED block beyond its datagram")
    ranges: list[tuple[int, int]] = [
        (first, last) for first, last in RANGE.iter_unpack(data[at:behind])
    ]
    for first, last in ranges:
        if first > last:
            raise ValueError("range of a HANDLED block")
    return ranges, behind


# --- The handshake's bodies ---------------------------------------------------------------------

COOKIE_BYTES = 24
RANDOM_BYTES = 16
# random, messages, bytes, largest message, largest datagram
TERMS = Struct("!16sQQII")
# A first H carries zeros where the cookie will be, so it is longer than either answer.
HELLO_BODY_BYTES = TERMS.size + COOKIE_BYTES
NO_COOKIE = bytes(COOKIE_BYTES)
RESET_BODY = Struct("!Q")


class Terms(NamedTuple):
    """The terms of one side of a session: its random bytes, and the credit that it grants."""

    random: bytes
    messages: int
    bytes: int
    message_bytes_max: int
    datagram_bytes_max: int


def decode_terms(data: bytes, at: int) -> Terms:
    """Return the terms at `at`; ValueError where no peer could keep to them."""
    terms = Terms(*TERMS.unpack_from(data, at))
    if terms.datagram_bytes_max < 512 or not terms.messages or not terms.message_bytes_max:
        raise ValueError("terms")
    return terms


# --- Sealing: a checksum without a key, ChaCha20-Poly1305 with one --------------------------------


class Aead(Protocol):
    """The cipher, as `cryptography`'s ChaCha20Poly1305 has it; handed in, never imported here."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """Return the ciphertext with its 16-byte tag."""

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """Return the plaintext, or raise."""


AeadFactory = Callable[[bytes], Aead]


class Seal(Protocol):
    """Protects datagrams of one direction, and opens those of the other."""

    overhead: int

    def close(self, header: bytes, body: bytes) -> bytes:
        """Return the whole datagram."""

    def open(self, data: bytes, start: int, end: int) -> tuple[bytes, int, int] | None:
        """Return (buffer, start, end) of the body of the datagram data[start:end], None if
        forged."""


class ChecksumSeal:
    """A checksum, no key: CRC-32 over header and body, as UDP's 16 bits pass 1 damage in 65,536."""

    overhead = 4

    def close(self, header: bytes, body: bytes) -> bytes:
        """Return header, body, checksum."""
        checksum = zlib.crc32(body, zlib.crc32(header))
        return b"".join((header, body, checksum.to_bytes(4, "big")))

    def open(self, data: bytes, start: int, end: int) -> tuple[bytes, int, int] | None:
        """Return where the body is; the buffer is `data` itself."""
        stop = end - 4
        checksum = zlib.crc32(memoryview(data)[start:stop])
        if checksum != int.from_bytes(data[stop:end], "big"):
            return None
        return data, start + HEADER_BYTES, stop


class AeadSeal:
    """With a key: the body encrypted, the header authenticated; 16 bytes of tag.

    The 96-bit nonce is bytes 8 to 20 of the datagram: half of the session id and the packet number
    (RFC 8439 asks only that it is never used twice with a key, and each direction has its own).
    """

    overhead = 16

    def __init__(self, own: Aead, other: Aead) -> None:
        self._encrypt = own.encrypt
        self._decrypt = other.decrypt

    def close(self, header: bytes, body: bytes) -> bytes:
        """Return header, ciphertext, tag."""
        return header + self._encrypt(header[8:], body, header)

    def open(self, data: bytes, start: int, end: int) -> tuple[bytes, int, int] | None:
        """Return the decrypted body as a buffer of its own."""
        behind = start + HEADER_BYTES
        try:
            body = self._decrypt(data[start + 8 : behind], data[behind:end], data[start:behind])
        except Exception:  # the AEAD's own error type belongs to its library
            return None
        return body, 0, len(body)


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes derived from `key` (HKDF-SHA256, RFC 5869, one block)."""
    extracted = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def session_seal(
    aead: AeadFactory, key: bytes, role: int, initiator: bytes, responder: bytes
) -> AeadSeal:
    """Return the seal of a session: one key for each direction, from both sides' random bytes."""
    salt = initiator + responder
    keys = [
        aead(hkdf(key, salt, b"msgservice udp 1 initiator")),
        aead(hkdf(key, salt, b"msgservice udp 1 responder")),
    ]
    return AeadSeal(keys[role], keys[1 - role])


def handshake_seals(aead: AeadFactory, key: bytes) -> dict[int, AeadSeal]:
    """Return the seal for each letter of the handshake, and for the reset."""
    seals = {}
    for letter in (HELLO, COOKIE, OPENED, RESET):
        derived = aead(hkdf(key, b"", b"msgservice udp 1 handshake " + bytes([letter])))
        seals[letter] = AeadSeal(derived, derived)
    return seals


DecodeErrors: tuple[type[Exception], ...] = (ValueError, struct_error, IndexError)
