"""Who is let in by a node, and what he may ask: by where he is, and by what he has proved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from msgservice.connection import Connection
from msgservice.core.frames import (
    BYE_CLOSING,
    Ack,
    Bye,
    Cancel,
    Frame,
    Nack,
    Note,
    Reply,
    Request,
    Transfer,
)
from msgservice.credentials import NOBODY
from msgservice.message import WireMessage, encode_messages
from msgservice.transport.local import LocalChannel
from tests.kit.nodes import NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}


class Remote(ScriptedPeer):
    """A peer on another machine, as the node sees it."""

    credentials = NOBODY

    def channel_up(self, connection: Connection) -> None:
        channel = connection.channel
        assert isinstance(channel, LocalChannel)
        assert channel.other is not None
        channel.other.credentials = self.credentials
        super().channel_up(connection)


class KeyHolder(Remote):
    """One whose datagrams are sealed with the listener's key."""

    credentials = replace(NOBODY, how="udp", key_id=1)


def test_32_an_insecure_listener_takes_remote_peers_but_administration_stays_at_home() -> None:
    world = NodeWorld()
    world.node.parts.gate.insecure = True
    remote = world.peer("shop", kind=Remote)
    assert remote.lost_because is None
    ok, reason = remote.request("$node.receivers.list", {})
    assert not ok
    assert "local connections only" in reason
    ok, _ = world.peer("at-home").request("$node.receivers.list", {})
    assert ok


def test_32_a_remote_peer_with_the_key_of_the_listener_is_taken() -> None:
    world = NodeWorld()
    billing = world.peer("billing", kind=KeyHolder, receive=ORDERS)
    shop = world.peer("shop", kind=KeyHolder)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert [b"one"] == billing.bodies()


@pytest.mark.parametrize("subject", ["$node.receivers.list", "$node.info"])
def test_32_the_key_of_a_listener_opens_no_administration(subject: str) -> None:
    world = NodeWorld()
    holder = world.peer("shop", kind=KeyHolder)
    ok, _ = holder.request(subject, {})
    assert not ok


def test_32_a_remote_peer_that_has_proved_nothing_is_turned_away() -> None:
    world = NodeWorld()
    stranger = world.peer("shop", kind=Remote)
    assert "local connections only" in (stranger.lost_because or "")
    assert stranger.node_hello is None


RUN = msgspec.Raw(encode_messages([WireMessage(b"{}")]))


class Ungreeted(ScriptedPeer):
    """One that says no HELLO, but goodbye, and something more."""

    behind: Frame

    def channel_up(self, connection: Connection) -> None:
        connection.send(Bye(BYE_CLOSING, ""))
        connection.send(self.behind)


@pytest.mark.parametrize(
    "behind",
    [
        Transfer(1, "orders.new", RUN),
        Request(1, "$node.receivers.list", RUN),
        Ack([(1, 1)]),
        Nack(1, 1, 4, 0, ""),
        Note(1, 1, ""),
        Cancel([(0, 9)]),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_32_what_follows_a_goodbye_without_a_greeting_is_passed_by(
    behind: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has said who he is: nothing is answered, and it is no fault of the node's."""
    failures: list[Any] = []
    monkeypatch.setattr(Connection._logger, "failure", lambda *told, **more: failures.append(told))
    world = NodeWorld()
    monkeypatch.setattr(Ungreeted, "behind", behind, raising=False)
    peer = world.peer("nobody", kind=Ungreeted)
    assert failures == []
    assert peer.take(Reply) == []
    assert peer.lost_because is not None
