"""docs/udp.md: every byte-exact example on the page is what the code sends, and reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from msgservice.core.datagram import wire

PAGE = Path(__file__).resolve().parents[2] / "docs" / "udp.md"
EXAMPLES = {
    name: bytes.fromhex(text)
    for name, text in re.findall(
        r"```\{code-block\} text\n:name: udp-([a-z-]+)\n\n([0-9a-f \n]+)```", PAGE.read_text()
    )
}
SESSION = 0x0102030405060708
KEY = bytes(range(32))
ONE, OTHER = bytes(range(16)), bytes(range(16, 32))
COOKIE = bytes.fromhex("00000000000186a0") + bytes(range(0xC0, 0xD0))


def terms(random: bytes) -> bytes:
    return wire.TERMS.pack(random, 16_384, 4 * 2**20, 2**20, 1200)


def plain(letter: str, role: int, number: int, body: bytes) -> bytes:
    header = wire.HEADER.pack(ord(letter), 1, 0, role, SESSION, number)
    return wire.ChecksumSeal().close(header, body)


def keyed_hello() -> bytes:
    header = wire.HEADER.pack(wire.HELLO, 1, 1, 0, SESSION, 0x1111111111111111)
    seal = wire.handshake_seals(ChaCha20Poly1305, KEY)[wire.HELLO]
    return seal.close(header, terms(ONE) + wire.NO_COOKIE)


def keyed_message() -> bytes:
    header = wire.HEADER.pack(wire.MESSAGES, 1, 1, 0, SESSION, 1)
    seal = wire.session_seal(ChaCha20Poly1305, KEY, wire.INITIATOR, ONE, OTHER)
    return seal.close(header, wire.encode_run(1, [b"hello"]))


EXPECTED = {
    "hello": plain("H", 0, 0x1111111111111111, terms(ONE) + bytes(24)),
    "cookie": plain("C", 1, 0x2222222222222222, COOKIE),
    "hello-with-cookie": plain("H", 0, 0x3333333333333333, terms(ONE) + COOKIE),
    "opened": plain("O", 1, 0x4444444444444444, terms(OTHER)),
    "messages": plain("W", 0, 1, wire.encode_run(1, [b"hello", b"", b"you"])),
    "fragment": plain(
        "W", 0, 2, wire.FRAGMENT_HEAD.pack(wire.FRAGMENT, 0, 4, 5000, 1150, 4) + b"part"
    ),
    "answer": plain(
        "A", 1, 1, wire.encode_received(0.00025, [(1, 2)]) + wire.encode_handled([(1, 1), (3, 3)])
    ),
    "reply": plain("A", 1, 2, wire.REPLY_HEAD.pack(wire.REPLY, 1, 2, 4) + b"pong"),
    "gaps": plain("A", 1, 3, wire.encode_received(0.0, [(9, 10), (5, 6), (1, 2)])),
    "credit-and-ask": plain(
        "A",
        1,
        4,
        wire.CREDIT_BLOCK.pack(wire.CREDIT, 20_480, 5 * 2**20) + wire.ASK_BLOCK.pack(wire.ASK, 7),
    ),
    "close": plain("A", 0, 3, bytes([wire.CLOSE])),
    "reset": plain("R", 1, 0x5555555555555555, wire.RESET_BODY.pack(2)),
    "hello-with-a-key": keyed_hello(),
    "messages-with-a-key": keyed_message(),
}


def test_the_page_has_an_example_of_every_letter_and_block() -> None:
    assert set(EXPECTED) == set(EXAMPLES)
    assert set(b"WAHCOR") == {example[0] for example in EXAMPLES.values()}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_example_is_what_the_code_sends(name: str) -> None:
    assert EXPECTED[name] == EXAMPLES[name]


def test_the_examples_are_read_as_the_page_says() -> None:
    body, end = EXAMPLES["messages"], len(EXAMPLES["messages"]) - 4
    assert (1, [b"hello", b"", b"you"], end) == wire.decode_run(body, 20, end)
    body, end = EXAMPLES["answer"], len(EXAMPLES["answer"]) - 4
    (delay, ranges), at = wire.decode_received(body, 20, end)
    assert (0.00025, [(1, 2)]) == (delay, ranges)
    assert ([(1, 1), (3, 3)], end) == wire.decode_handled(body, at, end)
    body, end = EXAMPLES["gaps"], len(EXAMPLES["gaps"]) - 4
    assert ((0.0, [(9, 10), (5, 6), (1, 2)]), end) == wire.decode_received(body, 20, end)
    assert wire.Terms(OTHER, 16_384, 4 * 2**20, 2**20, 1200) == wire.decode_terms(
        EXAMPLES["opened"], 20
    )


def test_the_ten_lines_of_the_page_run() -> None:
    page = PAGE.read_text()
    code = page.split("```python\n", 1)[1].split("```", 1)[0]
    compile("async def example(reactor):\n" + "\n".join(" " + line for line in code.splitlines()),
            "docs/udp.md", "exec")  # fmt: skip
