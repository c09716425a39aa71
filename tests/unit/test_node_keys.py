"""Idempotency keys at a node: taken once, and each who handed one in is told (DELIVERY 45)."""

from __future__ import annotations

import msgspec
import pytest
from twisted.internet.defer import Deferred

from msgservice.core.frames import Ack, AudienceFrame, Nack, Routed, Transfer
from msgservice.errors import KeyReused, LimitReached
from msgservice.identity.rules import Rules
from msgservice.identity.users import User, Users
from msgservice.message import Action, Status, WireMessage, encode_messages
from msgservice.node.gate import Door
from msgservice.records import hash_of
from tests.kit.limits import Limits
from tests.kit.nodes import NodeWorld, ScriptedPeer

OLD = {"traceparent": "1"}


def hand_in(
    peer: ScriptedPeer,
    sequence: int = 1,
    key: str = "k",
    *,
    body: bytes = b"paid",
    subject: str = "orders.paid",
    headers: dict[str, str] | None = None,
    to: tuple[str, ...] | None = None,
    delay: int | None = None,
    ttl: int | None = None,
) -> None:
    messages = encode_messages([WireMessage(body, headers, None, key)])
    peer.connection.send(
        Transfer(sequence, subject, msgspec.Raw(messages), ttl=ttl, to=to, delay=delay)
    )
    peer.world.settle()


def routed(peer: ScriptedPeer) -> list[tuple[int, int]]:
    """(sequence, position) of what was told, taken out."""
    return [(frame.first, frame.position) for frame in peer.take(Routed)]


def world_with() -> tuple[NodeWorld, ScriptedPeer, ScriptedPeer]:
    world = NodeWorld()
    billing = world.peer("billing", receive={"subjects": [">"]}, resume=None)
    return world, billing, world.peer("shop", status_from=1)


def test_45_a_message_with_a_key_is_delivered_once_and_told_to_each_who_sent_it() -> None:
    world, billing, shop = world_with()
    other = world.peer("shop", incarnation="i2", status_from=1)
    hand_in(shop, headers=OLD)
    hand_in(other, 3, headers={"traceparent": "2"})
    ((_, position),) = routed(shop)
    assert set(routed(other)) == {(3, position)}
    assert [frame.ranges for frame in other.take(Ack)]
    (transfer,) = billing.take(Transfer)
    billing.ack(transfer)
    world.settle()
    for peer, sequence in ((shop, 1), (other, 3)):
        assert {("billing", Status.ACKNOWLEDGED): [(sequence, sequence)]} == peer.statuses()
    tracker = world.node.parts.tracker
    assert not tracker._by_key


def test_45_what_became_of_it_before_is_told_at_once() -> None:
    world, billing, shop = world_with()
    billing.answering = True
    hand_in(shop)
    world.settle(1)
    other = world.peer("shop", incarnation="i2", status_from=1)
    hand_in(other)
    assert {("billing", Status.ACKNOWLEDGED): [(1, 1)]} == other.statuses()
    assert billing.take(Transfer) == []
    assert not world.node.parts.tracker._by_key


def test_45_who_comes_back_is_told_too() -> None:
    world, billing, shop = world_with()
    hand_in(shop)
    other = world.peer("shop", incarnation="i2", status_from=1)
    hand_in(other)
    hand_in(other, 2, "another")
    (_, position), *_ = routed(other)
    other.connection.close()
    world.settle()
    assert not world.node.parts.tracker._by_key
    again = world.peer("shop", incarnation="i2", status_from=1)
    assert (1, position) in routed(again)
    for transfer in billing.take(Transfer):
        billing.ack(transfer)
    world.settle()
    ((state, ranges),) = again.statuses().items()
    assert state == ("billing", Status.ACKNOWLEDGED)
    assert {1, 2} == {at for first, last in ranges for at in range(first, last + 1)}


def test_45_a_receiver_that_is_removed_leaves_nothing_to_tell() -> None:
    world, _, shop = world_with()
    hand_in(shop)
    other = world.peer("shop", incarnation="i2", status_from=1)
    hand_in(other)
    Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle(1)
    assert {("billing", Status.REMOVED): [(1, 1)]} == other.statuses()


@pytest.mark.parametrize("how", ["undone", "purged", "expired"])
def test_45_who_sent_a_key_again_is_told_what_is_settled_without_an_answer(how: str) -> None:
    world, billing, shop = world_with()
    billing.connection.abort()
    world.settle()
    other = world.peer("shop", incarnation="i2", status_from=1)
    ttl = 60_000 if how == "expired" else None
    hand_in(shop, 5, "before", ttl=ttl)
    hand_in(shop, 6, ttl=ttl)
    hand_in(shop, 7, "behind", ttl=ttl)
    hand_in(other, 3)
    hand_in(other, 9)
    status = Status.CANCELLED
    if how == "undone":
        ok, _ = shop.request("$node.undo", {"key": "k", "sender": "shop"})
        assert ok
    elif how == "purged":
        world.node.purge("billing")
    else:
        status = Status.EXPIRED
    world.settle(120)
    told = other.statuses()
    ((receiver, state),) = told
    assert ("billing", status) == (receiver, state)
    assert {3, 9} == {n for first, last in told[receiver, state] for n in range(first, last + 1)}
    assert (6, 6) in [
        (max(first, 6), min(last, 6)) for first, last in shop.statuses()["billing", status]
    ]
    assert not world.node.parts.tracker._by_key


@pytest.mark.parametrize(
    "other",
    [
        {"body": b"owed"},
        {"subject": "orders.owed"},
        {"to": ("billing",)},
        {"headers": {"content-type": "application/json"}},
    ],
)
def test_45_another_content_is_refused_with_its_code(other: dict[str, object]) -> None:
    _, _, shop = world_with()
    hand_in(shop)
    hand_in(shop, 2, **other)  # type: ignore[arg-type]  # as the cases say
    (nack,) = shop.take(Nack)
    assert (nack.action, nack.code, nack.about) == (Action.REFUSED, KeyReused.refusal_code, "k")


def test_45_the_names_in_to_have_no_order() -> None:
    world, _, shop = world_with()
    world.peer("till", receive={"subjects": ["tills.>"]})
    hand_in(shop, to=("billing", "till"))
    hand_in(shop, 2, to=("till", "billing"))
    assert shop.take(Nack) == []
    assert 1 == len({position for _, position in routed(shop)})


def test_45_a_name_has_keys_of_its_own() -> None:
    world, billing, shop = world_with()
    other = world.peer("web", status_from=1)
    hand_in(shop)
    hand_in(other, body=b"something else")
    assert other.take(Nack) == []
    assert [b"paid", b"something else"] == billing.bodies()


def test_45_the_names_of_a_user_share_their_keys() -> None:
    rules = Rules(send=[">"])
    users = Users(
        [User(name=name, rules=rules, names=("a", "b")) for name in ("shop", "till")],
        secret=b"a secret of tests",
        passwords={},
    )
    world = NodeWorld(users=users)
    shop, till = Door(asks=False, user="shop"), Door(asks=False, user="till")
    first = world.peer("a", status_from=1, door=shop)
    second = world.peer("b", incarnation="i2", status_from=1, door=shop)
    third = world.peer("b", incarnation="i3", status_from=1, door=till)
    for peer in (first, second, third):
        hand_in(peer)
    ((_, position),), other = routed(first), routed(third)
    assert {(1, position)} == set(routed(second))
    assert (1, position) not in other


def test_45_too_many_keys_are_refused_for_now_and_named() -> None:
    world = NodeWorld(Limits(idempotency_keys=1))
    shop = world.peer("shop", status_from=1)
    hand_in(shop)
    hand_in(shop, 2, "another")
    (nack,) = shop.take(Nack)
    assert (nack.action, nack.code, nack.about) == (
        Action.LATER,
        LimitReached.refusal_code,
        "idempotency_keys",
    )


def test_45_a_key_in_a_run_of_several_is_refused_and_the_connection_goes_on() -> None:
    _, billing, shop = world_with()
    messages = encode_messages([WireMessage(b"1", key="k"), WireMessage(b"2")])
    shop.connection.send(Transfer(1, "orders.paid", msgspec.Raw(messages)))
    hand_in(shop, 3)
    (nack,) = shop.take(Nack)
    assert (nack.first, nack.last, nack.action) == (1, 2, Action.REFUSED)
    assert [b"paid"] == billing.bodies()


# --- of what waits until it is due


MINUTE = 60_000


def dues(peer: ScriptedPeer) -> list[tuple[int, int, bool]]:
    """(sequence, position, whether it waits) of what was told, taken out."""
    return [(one.first, one.position, bool(one.due)) for one in peer.take(Routed)]


def test_45_a_key_with_a_delay_is_one_message_and_each_is_told_when_it_is_due() -> None:
    world, billing, shop = world_with()
    other = world.peer("shop", incarnation="i2", status_from=1)
    third = world.peer("shop", incarnation="i3", status_from=1)
    hand_in(shop, delay=MINUTE)
    hand_in(other, 3, delay=2 * MINUTE)  # it waits until the first was to be due
    hand_in(third, 4)
    for peer, sequence in ((shop, 1), (other, 3), (third, 4)):
        assert {(sequence, 0, True)} == set(dues(peer))
        assert peer.take(Ack)
    assert [] == billing.take(Transfer)
    world.settle(60.5)
    (transfer,) = billing.take(Transfer)
    for peer, sequence in ((shop, 1), (other, 3), (third, 4)):
        ((first, position, waits),) = set(dues(peer))
        assert (sequence, True, False) == (first, position > 0, waits)
    billing.ack(transfer)
    world.settle()
    for peer, sequence in ((shop, 1), (other, 3), (third, 4)):
        assert {("billing", Status.ACKNOWLEDGED): [(sequence, sequence)]} == peer.statuses()
    world.settle(120)
    assert [] == billing.take(Transfer)
    tracker = world.node.parts.tracker
    assert (tracker._by_key, tracker._waits) == ({}, {})


def test_45_who_comes_back_hears_what_became_of_what_waited() -> None:
    world, billing, shop = world_with()
    hand_in(shop, delay=MINUTE)
    other = world.peer("shop", incarnation="i2", status_from=1)
    hand_in(other, 3, delay=MINUTE)
    other.connection.close()
    world.settle()
    assert not world.node.parts.tracker._waits
    again = world.peer("shop", incarnation="i2", status_from=1)
    assert {(3, 0, True)} == set(dues(again))
    world.settle(60.5)
    ((first, position, waits),) = set(dues(again))
    assert (3, True, False) == (first, position > 0, waits)
    billing.ack(*billing.take(Transfer))
    world.settle()
    assert {("billing", Status.ACKNOWLEDGED): [(3, 3)]} == again.statuses()


def test_45_what_waits_is_cancelled_by_the_id_of_each_that_was_handed_in_with_its_key() -> None:
    for cancelled_by in ("i1", "i2"):
        world, billing, shop = world_with()
        other = world.peer("shop", incarnation="i2", status_from=1)
        hand_in(shop, delay=MINUTE)
        hand_in(other, 3, delay=MINUTE)
        name = f"shop/{hash_of(cancelled_by)}/{1 if cancelled_by == 'i1' else 3}"
        ok, told = shop.request("$node.delayed.cancel", {"id": name})
        assert (ok, told["cancelled"]) == (True, 1)
        for peer, sequence in ((shop, 1), (other, 3)):
            assert {("$delayed", Status.CANCELLED): [(sequence, sequence)]} == peer.statuses()
        world.settle(200)
        assert [] == billing.take(Transfer)


def test_45_what_another_sent_next_is_not_cancelled_with_what_came_by_a_key() -> None:
    world, _, shop = world_with()
    other = world.peer("shop", incarnation="i2", status_from=1)
    hand_in(shop, delay=MINUTE)
    hand_in(shop, 2, "another", delay=MINUTE)
    hand_in(other, 3, delay=MINUTE)
    hand_in(other, 4, "own", delay=MINUTE)
    asked = {"id": f"shop/{hash_of('i2')}/3", "count": 3}
    ok, told = shop.request("$node.delayed.cancel", asked)
    assert (ok, told["cancelled"]) == (True, 2)
    cancelled = [(first, last) for first, last in other.statuses()["$delayed", Status.CANCELLED]]
    assert {3, 4} == {n for first, last in cancelled for n in range(first, last + 1)}
    assert [(1, 1)] == shop.statuses()["$delayed", Status.CANCELLED]
    (left,) = shop.request("$node.delayed.list", {})[1]["delayed"]
    assert f"shop/{hash_of('i1')}/2" == left["sender"]


def test_45_a_cancelled_message_is_cancelled_for_each_who_sent_its_key_and_who_comes_then() -> None:
    world, billing, shop = world_with()
    other = world.peer("shop", incarnation="i2", status_from=1)
    hand_in(shop, delay=MINUTE)
    hand_in(other, 3, delay=MINUTE)
    (listed,) = shop.request("$node.delayed.list", {})[1]["delayed"]
    ok, told = shop.request("$node.delayed.cancel", {"id": listed["sender"], "reason": "paid"})
    assert (ok, told["cancelled"]) == (True, 1)
    late = world.peer("shop", incarnation="i3", status_from=1)
    hand_in(late, 8, delay=MINUTE)
    assert late.take(Ack)
    (audience,) = [one.receivers for one in late.take(AudienceFrame) if one.receivers]
    assert ("$delayed",) == tuple(audience)
    assert [8] == [one.first for one in late.take(Routed)], "never that it was for nobody"
    for peer, sequence in ((shop, 1), (other, 3), (late, 8)):
        assert {("$delayed", Status.CANCELLED): [(sequence, sequence)]} == peer.statuses()
    world.settle(200)
    assert [] == billing.take(Transfer)
    assert [] == shop.request("$node.delayed.list", {})[1]["delayed"]
    assert not world.node.parts.tracker._waits


def test_45_another_content_is_refused_while_it_waits() -> None:
    _, _, shop = world_with()
    hand_in(shop, delay=MINUTE)
    hand_in(shop, 2, body=b"owed", delay=MINUTE)
    (nack,) = shop.take(Nack)
    assert (nack.action, nack.code, nack.about) == (Action.REFUSED, KeyReused.refusal_code, "k")
