"""A `PbPeer` refuses what a program says wrongly, and names it, before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.errors import BadAddress, BadValue
from msgservice.pb import PbPeer
from msgservice.transport.pb.codec import JellyCodec
from tests.kit.clients import error_of


def peer() -> PbPeer:
    return PbPeer(Clock(), name="east")


OTHERS = ["tcp:127.0.0.1:7500", "unix:peer.socket", "nosuch:127.0.0.1:7500"]


@pytest.mark.parametrize("address", OTHERS)
def test_a_peer_dials_and_listens_for_perspective_broker_alone(address: str) -> None:
    with pytest.raises(BadAddress, match=r"expected pb:\.\.\. or pbs:\.\.\."):
        peer().dial(address)
    listening: Deferred[Any] = peer().listen(address)
    assert "expected pb:" in str(error_of(listening, BadAddress))


WRONG: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "address": (lambda p: p.dial(7500), TypeError, "address is a str, not int"),
    "user": (lambda p: p.dial("pb:127.0.0.1:1", user=5), TypeError, "user is a str, not int"),
    "password": (
        lambda p: p.dial("pb:127.0.0.1:1", user="a", password=b"b"),
        TypeError,
        "password is a str, not bytes",
    ),
    "name": (lambda p: p.expose(5, len), TypeError, "name is a str, not int"),
    "function": (
        lambda p: p.expose("add", "add"),
        TypeError,
        "function must be callable, not 'add'",
    ),
    "own": (lambda p: p.expose("ping", len), BadValue, "name 'ping' cannot be exposed"),
    "classes": (
        lambda p: PbPeer(Clock(), name="east", classes=[5]),  # type: ignore[list-item]  # on purpose
        TypeError,
        "classes has 5, which is no class",
    ),
    "codec": (
        lambda p: JellyCodec(5),  # type: ignore[arg-type]  # on purpose
        TypeError,
        "classes has 5, which is no class",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what: str) -> None:
    call, kind, sentence = WRONG[what]
    with pytest.raises(kind, match=f"^{sentence}$"):
        call(peer())


@pytest.mark.parametrize(
    ("address", "users", "sentence"),
    [
        (7500, None, "address is a str, not int"),
        ("pb:7500", ["west"], "users has passwords by name, and is not list"),
        ("pb:7500", {"west": 5}, "password of 'west' is a str, not int"),
        ("pb:7500", {5: "west"}, "user is a str, not int"),
    ],
)
def test_a_listener_that_cannot_be_fails(address: Any, users: Any, sentence: str) -> None:
    assert sentence == str(error_of(peer().listen(address, users=users), TypeError))
