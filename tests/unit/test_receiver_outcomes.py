"""Outcomes of handlers: what of a `Retry` or a `Reject` goes on the wire, whatever it was given."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from twisted.python.failure import Failure

from msgservice.errors import Reject, Retry
from msgservice.limits import INTEGER_MAX
from msgservice.message import Action
from msgservice.receiver.handling.outcomes import judge


class Text(str):
    """A text of a program's own kind, which no codec takes for one."""

    __slots__ = ()


class Broken:
    def __repr__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("gone", "gone"),
        (Text("gone"), "gone"),
        (ValueError("no such order"), "ValueError: no such order"),
        (None, "None"),
        (b"x", "b'x'"),
        (7, "7"),
    ],
)
def test_14_a_reason_of_any_type_is_a_text_on_the_wire(reason: Any, said: str) -> None:
    for error, action in ((Reject(reason), Action.DEAD), (Retry(0.5, reason), Action.RETRY)):
        found = judge(Failure(error))
        assert found is not None
        assert (found[0], found[2]) == (action, said)
        assert type(found[2]) is str


def test_14_a_reason_without_a_text_is_told_all_the_same() -> None:
    reason: Any = Broken()
    found = judge(Failure(Reject(reason)))
    assert found is not None
    assert "Broken" in found[2]


@pytest.mark.parametrize("delay", [timedelta(seconds=1), "1", b"1", [1], 1j])
def test_14_a_delay_that_is_no_number_is_a_failure_like_any_other(delay: Any) -> None:
    assert judge(Failure(Retry(delay))) is None


@pytest.mark.parametrize(
    ("delay", "milliseconds"),
    [
        (None, 0),
        (0, 1),
        (-1, 1),
        (0.25, 250),
        (10**400, INTEGER_MAX),
        (1e300, INTEGER_MAX),
        (math.inf, 0),
        (math.nan, 0),
    ],
)
def test_14_a_delay_is_milliseconds_in_the_range_of_the_wire(
    delay: float | None, milliseconds: int
) -> None:
    found = judge(Failure(Retry(delay)))
    assert found is not None
    assert (found[1], type(found[1])) == (milliseconds, int)
