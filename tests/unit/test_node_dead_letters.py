"""Dead letters are seen: in the node's log, in the list of receivers, and each by itself."""

from __future__ import annotations

import base64

import msgspec
import pytest
from twisted.logger import LogEvent, LogLevel, formatEvent

from msgservice import Limits
from msgservice.core.frames import BYE_CLOSING, Transfer
from msgservice.message import Action, WireMessage, decode_messages, encode_messages
from msgservice.node.seldom import PERIOD
from msgservice.records import hash_of
from tests.kit.nodes import NodeWorld, ScriptedPeer, state_of

ALL = {"subjects": [">"]}


def said(logged: list[LogEvent], words: str) -> list[str]:
    return [
        text
        for event in logged
        if event["log_level"] is LogLevel.warn and words in (text := formatEvent(event))
    ]


def rejects(world: NodeWorld, billing: ScriptedPeer, reason: str) -> None:
    for transfer in billing.take(Transfer):
        billing.nack(transfer.sequence, transfer.sequence, Action.DEAD, 0, reason)
        world.settle()


def test_the_log_says_when_a_receiver_begins_to_get_dead_letters_and_then_counts(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld()
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop")
    for number in range(1, 21):
        shop.transfer(number, "a", [b"x"])
        world.settle()
        rejects(world, billing, f"no customer {number}")
    (line,) = said(logged, "dead letter")
    assert "receiver billing has 1 new dead letter(s)" in line
    assert line.endswith("no customer 1")
    world.settle(PERIOD)
    _, line = said(logged, "dead letter")
    assert "receiver billing has 19 new dead letter(s)" in line
    assert line.endswith("no customer 20")


def test_a_message_that_its_receiver_died_of_is_in_the_log_with_its_reason(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld(Limits(max_attempts=3, retry_delay_min=0.1, retry_delay_max=0.1))
    shop = world.peer("shop")
    world.peer("billing", receive=ALL)
    shop.transfer(1, "a", [b"poison"])
    world.settle()
    for number in range(10):
        if said(logged, "dead letter"):
            break
        billing = world.peer("billing", incarnation=f"r{number}", receive=ALL)
        world.settle(1)
        billing.connection.abort()
        world.settle(1)
    (line,) = said(logged, "dead letter")
    assert "after 3 failed attempt(s): connection lost while it was handled" in line


@pytest.mark.parametrize("size", [0, 10, 400_000])
def test_a_dead_letter_is_read_whole_with_its_id_and_headers(size: int) -> None:
    world = NodeWorld()
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop")
    sent = WireMessage(bytes(range(10)) * (size // 10), {"colour": "red"}, "o-17")
    shop.connection.send(Transfer(1, "a", msgspec.Raw(encode_messages([sent]))))
    shop.transfer(2, "a", [b"another"])
    world.settle()
    rejects(world, billing, "no")
    (listed, other) = shop.request("$node.dead.list", {"receiver": "billing"})[1]["dead"]
    assert (listed["id"], listed["sequence"], other["id"], other["sequence"]) == (
        "o-17",
        1,
        None,
        2,
    )
    encoded, offset, answers = b"", 0, 0
    while offset is not None:
        question = {"receiver": "billing", "position": listed["position"], "offset": offset}
        ok, answer = shop.request("$node.dead.get", question)
        assert ok, answer
        encoded += base64.b64decode(answer.pop("message"))
        offset = answer.pop("next")
        answers += 1
        assert answer == listed
    assert decode_messages(encoded) == [sent]
    assert (answers > 1) == (size > 300_000)


def test_a_goodbye_takes_no_dead_letter_out_of_the_list() -> None:
    world = NodeWorld()
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop")
    shop.transfer(1, "a", [b"x"])
    world.settle()
    rejects(world, billing, "no")
    billing.connection.bye(BYE_CLOSING, "")
    world.settle(1)
    state = state_of(world, "billing")
    assert state.settled == {"dead": 1}
    assert state.dead_bytes == world.log.dead_bytes(1) > 0


def test_a_removal_says_how_many_dead_letters_go_with_the_receiver() -> None:
    world = NodeWorld()
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop")
    shop.transfer(1, "a", [b"x"])
    world.settle()
    rejects(world, billing, "no")
    shop.transfer(2, "a", [b"waits"])
    world.settle()
    question = {"name": "billing"}
    there = shop.request("$node.receivers.remove", question)
    assert there == (True, {"queued": 1, "dead": 1})
    removed = shop.request("$node.receivers.remove", question | {"confirm": 1})
    assert removed == (True, {"removed": 1, "dead": 1})


@pytest.mark.parametrize("is_removed", [False, True])
def test_54_a_dead_letter_that_was_sent_to_another_receiver_says_to_whom(
    *, is_removed: bool
) -> None:
    world = NodeWorld(Limits(keep_seconds=0.0 if is_removed else 3600.0))
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop", status_from=1)
    other = world.peer("other", receive={"subjects": ["b"]})
    shop.transfer(1, "a", [b"x"])
    world.settle()
    rejects(world, billing, "no such customer")
    name = f"shop/{hash_of(shop.hello.incarnation)}/1"
    for _ in range(20):
        world.settle(1)
    before = shop.request("$node.status", {"id": name})[1]
    assert is_removed is before["removed"]
    assert (None, None) == tuple(before["receivers"]["billing"][of] for of in ("copy", "copy_to"))
    ok, told = shop.request("$node.dead.requeue", {"receiver": "billing", "to": "other"})
    assert ok, told
    world.settle()
    (copy,) = other.take(Transfer)
    after = shop.request("$node.status", {"id": name})[1]["receivers"]["billing"]
    assert ("dead", copy.sequence, "other") == (after["status"], after["copy"], after["copy_to"])
    (cause,) = shop.request("$node.why", {"id": name})[1]["causes"]
    assert cause["sentence"] == (
        "billing did not take it: no such customer."
        f" It was sent again to other, as log:{copy.sequence}."
    )
    other.ack(copy)
    world.settle()
    at = shop.request("$node.status", {"id": f"log:{copy.sequence}"})[1]["receivers"]
    assert {"other": "acknowledged"} == {who: one["status"] for who, one in at.items()}


def test_54_of_two_dead_letters_of_a_message_the_one_that_stays_names_no_copy() -> None:
    world = NodeWorld()
    peers = [world.peer(who, receive=ALL) for who in ("billing", "till")]
    other, shop = world.peer("other", receive={"subjects": ["b"]}), world.peer("shop")
    shop.transfer(1, "a", [b"x"])
    world.settle()
    for peer in peers:
        rejects(world, peer, "no such customer")
    ok, told = shop.request("$node.dead.requeue", {"receiver": "billing", "to": "other"})
    assert ok, told
    world.settle()
    (copy,) = other.take(Transfer)
    name = f"shop/{hash_of(shop.hello.incarnation)}/1"
    at = shop.request("$node.status", {"id": name})[1]["receivers"]
    assert {"billing": copy.sequence, "till": None} == {who: one["copy"] for who, one in at.items()}


@pytest.mark.parametrize("is_removed", [False, True])
def test_54_a_dead_letter_that_was_sent_again_tells_of_its_copy(*, is_removed: bool) -> None:
    """Also when the message itself has left the log, which its letter outlives."""
    world = NodeWorld(Limits(keep_seconds=0.0 if is_removed else 3600.0))
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop", status_from=1)
    shop.transfer(1, "a", [b"x"])
    world.settle()
    rejects(world, billing, "no such customer")
    name = f"shop/{hash_of(shop.hello.incarnation)}/1"
    before = shop.request("$node.status", {"id": name})[1]["receivers"]["billing"]
    assert ("dead", None) == (before["status"], before["copy"])
    for _ in range(20):
        world.settle(1)
    assert is_removed is shop.request("$node.status", {"id": name})[1]["removed"]
    ok, told = shop.request("$node.dead.requeue", {"receiver": "billing"})
    assert ok, told
    world.settle()
    (copy,) = billing.take(Transfer)
    after = shop.request("$node.status", {"id": name})[1]["receivers"]["billing"]
    assert ("dead", copy.sequence) == (after["status"], after["copy"])
    (cause,) = shop.request("$node.why", {"id": name})[1]["causes"]
    assert (
        f"billing did not take it: no such customer. It was sent again, as log:{copy.sequence}."
        == cause["sentence"]
    )
    assert f"msgservice why log:{copy.sequence}" == cause["command"]
