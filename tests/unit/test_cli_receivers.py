"""`msgservice receivers list`, without a node: what it says of what is sent to a receiver again."""

from __future__ import annotations

from typing import Any

import pytest

from msgservice.cli.receivers import _replaying
from msgservice.records import LEFT_OUT, REWIND


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (REWIND, "rewind at 196608, 1,111 copied (waits: it is away)"),
        (LEFT_OUT, "what it was left out of at 196608, 1,111 copied (waits: it is away)"),
    ],
)
def test_what_is_sent_again_has_a_name_that_is_no_state_of_the_receiver(
    kind: str, said: str
) -> None:
    replay: dict[str, Any] = {"kind": kind, "next": 196_608, "copied": 1_111, "over": False}
    assert [said] == _replaying({"replay": replay | {"waits": "it is away"}})


def test_what_is_over_is_not_said_and_what_it_was_left_out_of_is() -> None:
    replay = {"kind": LEFT_OUT, "over": True}
    left_out = {"messages": 2_000, "counted": False}
    assert ["left out of 2,000 or more"] == _replaying({"replay": replay, "left_out": left_out})
