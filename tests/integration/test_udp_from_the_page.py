"""A peer written from docs/udp.md alone, with plain sockets and nothing of ours, is understood."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from msgservice.transport.udp.peer import DatagramPeer


class PagePeer:
    """The initiator's half of the page: handshake, one run, its answers."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(60)
        self._socket.connect(server)
        self._session = os.urandom(8)
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def send(self, letter: bytes, body: bytes) -> None:
        if letter in b"WA":
            self._number += 1
            number = struct.pack(">Q", self._number)
        else:
            number = os.urandom(8)
        datagram = letter + bytes([1, 0, 0]) + self._session + number + body
        self._socket.send(datagram + struct.pack(">I", zlib.crc32(datagram)))

    def receive(self) -> tuple[bytes, int, bytes]:
        datagram = self._socket.recv(65_535)
        assert struct.pack(">I", zlib.crc32(datagram[:-4])) == datagram[-4:]
        assert bytes([1, 0, 1]) + self._session == datagram[1:12]
        return datagram[:1], int.from_bytes(datagram[12:20], "big"), datagram[20:-4]

    def begin(self) -> None:
        terms = os.urandom(16) + struct.pack(">QQII", 100, 100_000, 10_000, 1200)
        self.send(b"H", terms + bytes(24))
        letter, _, cookie = self.receive()
        assert (b"C", 24) == (letter, len(cookie))
        self.send(b"H", terms + cookie)
        letter, _, theirs = self.receive()
        assert (b"O", 40) == (letter, len(theirs))

    def ask(self, messages: list[bytes]) -> dict[int, bytes]:
        """Send messages, the first with nonce 1, and return their replies by nonce."""
        lengths = b"".join(struct.pack(">H", len(message)) for message in messages)
        run = b"\x01" + struct.pack(">HQ", len(messages), 1) + lengths + b"".join(messages)
        self.send(b"W", run)
        replies: dict[int, bytes] = {}
        while len(replies) < len(messages):
            letter, number, body = self.receive()
            assert b"A" == letter
            self._read(body, replies)
            self.send(b"A", b"\x05" + struct.pack(">BIQI", 0, 0, number, number))
        return replies

    def _read(self, body: bytes, replies: dict[int, bytes]) -> None:
        at = 0
        while at < len(body):
            kind = body[at]
            if kind == 5:
                more = body[at + 1]
                at += 18 + 8 * more
            elif kind == 3:
                (count,) = struct.unpack_from(">H", body, at + 1)
                at += 3
                for _ in range(count):
                    first, last = struct.unpack_from(">QQ", body, at)
                    replies.update(dict.fromkeys(range(first, last + 1), b""))
                    at += 16
            elif kind == 4:
                _, nonce, length = struct.unpack_from(">BQH", body, at + 1)
                replies[nonce] = body[at + 12 : at + 12 + length]
                at += 12 + length
            elif kind == 6:
                at += 17
            else:
                raise AssertionError(f"block {kind} was not expected")


class Upper(DatagramPeer):
    def handle_message(self, data: bytes, address: tuple[str, int]) -> Any:
        return data.upper() or None


@pytest_twisted.ensureDeferred
async def test_a_peer_written_from_the_page_is_understood() -> None:
    server = Upper(reactor)
    client = PagePeer(server.listen())

    def converse() -> dict[int, bytes]:
        client.begin()
        return client.ask([b"one", b"", b"three"])

    try:
        assert {1: b"ONE", 2: b"", 3: b"THREE"} == await deferToThread(converse)
    finally:
        client.close()
        server.close()
