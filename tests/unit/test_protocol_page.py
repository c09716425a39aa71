"""docs/protocol.md: its examples are frames, and all kinds have a section."""

import re
from pathlib import Path

import pytest

from msgservice.core.frames import KINDS, decode_frame, encode_frame
from tests.kit.protocol_vectors import VECTORS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()


def examples() -> list[bytes]:
    found: list[str] = []
    for block in re.findall(r"(?:^    [0-9a-f ]+\n)+", PAGE, re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("       "):  # deeper: the line before goes on
                found[-1] += line
            else:
                found.append(line)
    return [bytes.fromhex(text.replace(" ", "")) for text in found]


@pytest.mark.parametrize("example", examples(), ids=lambda e: f"kind{e[1]}")
def test_example_is_a_frame_and_encodes_to_itself(example: bytes) -> None:
    assert example == encode_frame(decode_frame(example))


def test_every_kind_has_an_example() -> None:
    shown = {type(decode_frame(example)) for example in examples()}
    assert set(KINDS) == shown


@pytest.mark.parametrize("number", range(1, len(KINDS) + 1))
def test_every_kind_has_a_section(number: int) -> None:
    assert re.search(rf"^###.*\b{number} [A-Z]+ `\[{number}[,\]]", PAGE, re.MULTILINE)


def conversation() -> dict[str, bytes]:
    blocks = re.findall(r"```\{code-block\} text\n:name: wire-([a-z-]+)\n\n([0-9a-f \n]+)```", PAGE)
    return {name: bytes.fromhex(text) for name, text in blocks}


def test_the_conversation_on_the_page_is_the_one_that_the_code_speaks() -> None:
    assert VECTORS == conversation()


@pytest.mark.parametrize("data", VECTORS.values(), ids=VECTORS)
def test_every_frame_of_the_conversation_decodes_and_encodes_to_itself(data: bytes) -> None:
    while data:
        size = int.from_bytes(data[:4], "big")
        frame, data = data[4 : 4 + size], data[4 + size :]
        assert frame == encode_frame(decode_frame(frame))
