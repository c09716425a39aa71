"""docs/protocol.md: its examples are frames, and all kinds have a section."""

import re
from pathlib import Path

import pytest

from msgservice.core.frames import KINDS, Auth, decode_frame, encode_frame

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
    assert set(KINDS) - {Auth} == shown


@pytest.mark.parametrize("number", range(1, len(KINDS) + 1))
def test_every_kind_has_a_section(number: int) -> None:
    assert re.search(rf"^###.*\b{number} [A-Z]+ `\[{number}[,\]]", PAGE, re.MULTILINE)
