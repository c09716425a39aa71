"""Commands that can be known to be wrong without the node: they end before they connect, with 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from msgservice.cli.dead import Code
from msgservice.cli.main import main
from msgservice.cli.session import Session
from msgservice.errors import LogFull, UnknownReceiver
from msgservice.limits import Limits

NO_UTF8 = "\udcff"  # how Python has a byte of the command line that is none
LONG = "n" * 256


class Connected(Exception):
    """A command that would ask the node."""


@pytest.fixture(autouse=True)
def no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Session, work: Any) -> NoReturn:
        raise Connected

    monkeypatch.setattr(Session, "run", run)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, words, input="a line\n")


def test_a_code_is_a_number_or_the_name_of_an_error() -> None:
    codes = [Code().convert(said, None, None) for said in ("0", "26", "UnknownReceiver", "LogFull")]
    assert codes == [0, 26, UnknownReceiver.refusal_code, LogFull.refusal_code]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("send", "a", "x", "--header", "h=1", "--header", "h=2"), "--header 'h' is given twice"),
        (("request", "a", "x", "--header", "h=1", "--header", "h=2"), "'h' is given twice"),
        (("dead", "list", "a", "--code", "Unknown"), "'Unknown' is no code"),
    ],
)
def test_what_an_option_cannot_be_is_named(words: tuple[str, ...], said: str) -> None:
    told = invoke(*words)
    assert (2, True) == (told.exit_code, said in told.output), told.output


WRONG = [
    (("send", "a..b", "x"), "bad subject 'a..b': empty token"),
    (("send", "a..b"), "bad subject 'a..b': empty token"),
    (("send", "", "x"), "bad subject '': it is empty"),
    (
        ("send", "a.*", "x"),
        "bad subject 'a.*': '*' and '>' belong in patterns only, which receivers have",
    ),
    (("send", "$node.info", "x"), "'$' begins the node's own subjects"),
    (("send", "a", "x", "--to", "b c"), "bad name 'b c'"),
    (("send", "a", "--to", ""), "bad name '': it is empty"),
    (("send", "a", "x", "--id", ""), "bad id '': an id has 1 to 255 bytes, not 0"),
    (("send", "a", "x", "--id", LONG), "': an id has 1 to 255 bytes, not 256"),
    (("send", "a", "x", "--key", ""), "bad idempotency key '': an idempotency key has 1 to 255"),
    (("send", "a", "x", "--header", f"h={NO_UTF8}"), "header 'h' is no UTF-8"),
    (("send", "a", "--header", f"h={NO_UTF8}"), "header 'h' is no UTF-8"),
    (("listen", "a b"), "bad name 'a b'"),
    (("listen", "a", "b..c"), "bad subject 'b..c': empty token"),
    (("receivers", "add", "a b"), "bad name 'a b'"),
    (("receivers", "change", "a", "b..c"), "bad subject 'b..c': empty token"),
    (("receivers", "add", "a", "--address", "tcp:h:p"), "port must be from 1 to 65535"),
    (("receivers", "add", "a", "--address", "node:https://h/x"), "a node is dialled where it"),
    (("receivers", "pause", "a b"), "bad name 'a b'"),
    (("receivers", "resume", "a b"), "bad name 'a b'"),
    (("receivers", "remove", "a b"), "bad name 'a b'"),
    (("receivers", "own", "a b", "shop"), "bad name 'a b'"),
    (("receivers", "own", "a", ""), "bad name '': it is empty"),
    (("receivers", "own", "a", "b c"), "bad name 'b c'"),
    (("dead", "list", "a b"), "bad name 'a b'"),
    (("dead", "show", "a b", "1"), "bad name 'a b'"),
    (("dead", "drop", "a b", "--all"), "bad name 'a b'"),
    (("dead", "requeue", "a", "--all", "--to", "b c"), "bad name 'b c'"),
    (("dead", "list", "a", "--subject", "b..c"), "bad subject 'b..c': empty token"),
    (("peek", "a b"), "bad name 'a b'"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_what_is_wrong_is_said_before_the_node_is_asked(
    words: tuple[str, ...], sentence: str
) -> None:
    told = invoke(*words)
    assert 2 == told.exit_code, told.exception
    assert sentence in told.stderr
    for_programs = invoke(*words, "--json")
    assert 2 == for_programs.exit_code
    assert sentence in json.loads(for_programs.stderr)["message"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("send", "a", NO_UTF8), "BODY is text, and this is no UTF-8"),
        (("send", "a", "x", "--retain", "--retain-only"), "give one of --retain, which delivers"),
        (("send", "a", "x", "--ttl", "0"), "--ttl 0 would be over at once: it is above 0"),
        (("send", "a", "--ttl", "0ms"), "--ttl 0 would be over at once"),
        (("status", NO_UTF8), "ID is no UTF-8"),
        (("status", ""), "Missing argument 'ID'"),
    ],
)
def test_words_that_no_command_takes_are_wrong_usage(words: tuple[str, ...], sentence: str) -> None:
    told = invoke(*words)
    assert 2 == told.exit_code, told.exception
    assert sentence in told.stderr
    assert "Usage:" in told.stderr


def test_a_body_that_no_node_takes_from_here_is_not_brought_to_one(tmp_path: Path) -> None:
    most = Limits().body_bytes
    file = tmp_path / "body"
    file.write_bytes(b"x" * (most + 1))
    told = invoke("send", "a", "--file", str(file))
    assert 2 == told.exit_code, told.exception
    assert str(most) in told.stderr
    file.write_bytes(b"x" * most)
    assert isinstance(invoke("send", "a", "--file", str(file)).exception, Connected)


@pytest.mark.parametrize(
    "words",
    [
        ("send", "a.b", "x", "--to", "b", "--id", "n" * 255, "--header", "h=v"),
        ("send", "a.b", NO_UTF8, "--header", "content-type=text/x"),  # goes as it is written
        ("send", "a.b", "--to", "b"),
        ("listen", "a", "b.>"),
        ("status", "shop/i.1/17"),
        ("receivers", "own", "a", "shop"),
        ("receivers", "own", "a", "--nobody"),
        ("dead", "show", "a", "1"),
    ],
)
def test_what_may_be_right_is_for_the_node(words: tuple[str, ...]) -> None:
    assert isinstance(invoke(*words).exception, Connected)
