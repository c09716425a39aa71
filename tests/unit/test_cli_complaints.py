"""A command that fails tells programs which error that was, by its name."""

from __future__ import annotations

import msgspec
import pytest

from msgservice.cli.session import NoAnswer, Session
from msgservice.errors import (
    BadValue,
    Forbidden,
    MsgServiceError,
    NoReceiver,
    RequestFailed,
    UnknownDeadLetter,
    UnknownMessage,
    UnknownReceiver,
)

BY_CODE = [UnknownReceiver, UnknownMessage, UnknownDeadLetter, Forbidden, BadValue, NoReceiver]


def told(error: MsgServiceError, capsys: pytest.CaptureFixture[str]) -> object:
    Session(as_json=True).complain(error)
    return msgspec.json.decode(capsys.readouterr().err)


@pytest.mark.parametrize("kind", BY_CODE)
def test_what_a_node_answers_is_told_by_the_name_of_its_code(
    kind: type[MsgServiceError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert kind.refusal_code
    failed = RequestFailed("no, for this reason", kind.refusal_code)
    assert {"error": kind.__name__, "message": "no, for this reason"} == told(failed, capsys)


@pytest.mark.parametrize("code", [0, 999_999])
def test_without_a_code_that_is_known_the_request_has_failed(
    code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(RequestFailed("no", code), capsys)
    its_own = {"code": code} if code else {}
    assert {"error": "RequestFailed", "message": "no"} | its_own == found


def test_an_error_of_the_command_has_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(NoAnswer("tcp:127.0.0.1:1", 5), capsys)
    assert isinstance(found, dict)
    assert "NoAnswer" == found["error"]
