"""What others say to people reaches logs, terminals and answers without what a terminal obeys."""

from __future__ import annotations

import io
import sys
from typing import Any

import msgspec
import pytest

from msgservice.cli.output import console, cut, plain_table
from msgservice.core.frames import (
    Bye,
    ErrorFrame,
    Frame,
    Nack,
    Note,
    Reply,
    StatusFrame,
    Transfer,
    decode_frame,
    encode_frame,
)
from msgservice.core.reasons import REASON_CHARS_MAX, first_line, one_line, shown
from msgservice.errors import NotYetBuilt, Refused, RequestFailed, refused
from msgservice.message import Action, WireMessage
from tests.kit.clients import ClientWorld, error_of
from tests.kit.nodes import NodeWorld, state_of

EVIL = "no\x1b[2J\x9b1m\u202e\r\nfake: a line\ttabbed"
LINES = "no\\x1b[2J\\x9b1m\\u202e\nfake: a line\ttabbed"
LINE = "no\\x1b[2J\\x9b1m\\u202e fake: a line tabbed"


def test_controls_are_shown_and_lines_stay_or_become_one() -> None:
    assert LINES == shown(EVIL)
    assert LINE == one_line(EVIL)
    assert "no\\x1b[2J\\x9b1m\\u202e" == first_line("\n" + EVIL)
    assert "" == first_line("\n ")
    assert "günstig, 5 €" == shown("günstig, 5 €") == one_line("günstig, 5 €")


@pytest.mark.parametrize(("looks", "told"), [(True, 60 - 1), (False, 500)])
def test_a_long_reason_is_cut_where_people_look_and_nowhere_else(
    looks: bool, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Output(io.StringIO):
        def isatty(self) -> bool:
            return looks

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", Output())
    found = cut("x" * 500)
    assert "x" * told == found.removesuffix("…")
    assert looks == found.endswith("…")
    assert "short" == cut("short")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        ([4, 1, 1, 1, 0, EVIL], LINES),
        ([5, "i1", "r", 5, [[1, 1]], EVIL], LINES),
        ([15, 1, 1, EVIL], LINES),
        ([12, 0, EVIL], LINE),
        ([13, 2, EVIL], LINE),
    ],
    ids=["NACK", "STATUS", "NOTE", "BYE", "ERROR"],
)
def test_the_reason_of_a_frame_can_be_shown(array: list[Any], reason: str) -> None:
    frame: Any = decode_frame(msgspec.msgpack.encode(array))
    assert reason == frame.reason
    assert frame == decode_frame(encode_frame(frame))


@pytest.mark.parametrize(
    "frame",
    [
        Nack(1, 1, 1, 0, "\x1b" * REASON_CHARS_MAX),
        StatusFrame("i", "r", 5, [(1, 1)], "\x1b" * REASON_CHARS_MAX),
        Note(1, 1, "\x1b" * REASON_CHARS_MAX),
        Bye(0, "\x1b" * REASON_CHARS_MAX),
        ErrorFrame(1, "\x1b" * REASON_CHARS_MAX),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_what_is_longer_when_shown_still_fits(frame: Frame) -> None:
    assert frame == decode_frame(encode_frame(frame))


def test_a_refusal_reaches_a_sender_in_one_line(logged: list[Any]) -> None:
    world = ClientWorld()
    world.node.answering = False
    sent = world.client.send("a", b"one")
    later = world.client.send("b", b"two")
    world.settle()
    world.node.connection.send(Nack(2, 2, int(Action.LATER), 1000, EVIL))
    world.node.connection.send(Nack(1, 1, int(Action.REFUSED), 0, EVIL))
    world.settle()
    assert LINE == str(error_of(sent, Refused))
    assert LINE == world.client.why().refusal
    assert [LINE] == [event["reason"] for event in logged if "takes no more" in str(event)]
    assert not later.called


def test_the_end_of_a_connection_is_told_in_one_line() -> None:
    world = ClientWorld()
    world.node.connection.send(ErrorFrame(2, EVIL))
    world.settle()
    assert f"the other side says: {LINE} (code 2)" == world.client.why().error


def test_a_failed_request_is_told_in_one_line() -> None:
    world = ClientWorld()
    asked = world.client.request("a", b"")
    world.settle()
    answer = msgspec.Raw(msgspec.msgpack.encode(WireMessage(EVIL.encode())))
    world.node.connection.send(Reply([(1, False, answer)]))
    world.settle()
    assert LINE == str(error_of(asked, RequestFailed))


def test_the_code_of_an_option_names_no_other_text() -> None:
    code = NotYetBuilt.refusal_code
    assert "ttl is not supported by this version" == str(refused(code, "ttl", "", "a"))
    assert "no" == str(refused(code, EVIL, "no", "a"))


def test_the_first_line_of_a_receivers_reason_is_listed() -> None:
    """A handler's error comes before its traceback, which is with the message."""
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": ["a"]})
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "a", [b"one"])
    shop.transfer(2, "a", [b"two"])
    world.settle()
    run, *_ = billing.take(Transfer)
    billing.nack(run.sequence, run.sequence, Action.RETRY, 1000, EVIL)
    world.settle()
    said = state_of(world, "billing").last_error
    assert said.startswith(first_line(EVIL))
    assert "fake" not in said


def test_authentication_that_is_asked_for_is_quoted() -> None:
    world = NodeWorld()
    peer = world.peer("shop", auth=[EVIL])
    assert peer.lost_because is not None
    assert peer.lost_because.isprintable()


def test_a_table_has_what_others_wrote_as_it_is() -> None:
    out = io.StringIO()
    table = plain_table("why")
    table.add_row("[red]no[/x] :smile:")
    console(out).print(table)
    assert "[red]no[/x] :smile:" in out.getvalue()
