"""A HELLO that is refused changes nothing, and who fights for a name is held (SEMANTICS 27)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from msgservice.connection import Connection
from msgservice.core.frames import Hello
from msgservice.core.subjects import SubjectMatcher
from msgservice.limits import Limits
from msgservice.records import ReceiverRow
from tests.kit.nodes import NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}
OTHER = {"subjects": ["evil.>"], "order": "none"}


def row_of(world: NodeWorld) -> ReceiverRow:
    row = world.node.parts.directory.get("billing")
    assert row is not None
    return row


def assert_unchanged(world: NodeWorld) -> None:
    assert (row_of(world).patterns, row_of(world).options.order) == (("orders.>",), "strict")


def test_27_who_comes_while_its_receiver_is_paused_changes_nothing() -> None:
    world = NodeWorld()
    world.peer("billing", receive=ORDERS)
    world.peer("admin").request("$node.receivers.pause", {"name": "billing"})
    world.settle(2)
    world.peer("billing", incarnation="b", receive=OTHER)
    assert_unchanged(world)


def hold(world: NodeWorld, receives: list[dict[str, Any]]) -> int:
    """Connect one after the other until one is turned away; return how many came in."""
    for count, receive in zip(range(20), itertools.cycle(receives), strict=False):
        peer = world.peer("billing", incarnation=f"i{count}", receive=receive)
        world.settle(0.1)
        if peer.lost_because is not None:
            return count
    raise AssertionError("nobody was turned away")


def test_27_who_is_turned_away_because_the_name_is_held_changes_nothing() -> None:
    world = NodeWorld()
    hold(world, [ORDERS])
    assert world.peer("billing", incarnation="b", receive=OTHER).lost_because is not None
    assert_unchanged(world)
    assert next(iter(world.node.parts.dispatch)).connection is not None


@pytest.mark.parametrize("other", [{"order": "none"}, {"subjects": ["x.>"]}, OTHER])
def test_27_programs_that_differ_in_what_they_ask_for_are_held_too(other: dict[str, Any]) -> None:
    world = NodeWorld()
    let_in = hold(world, [{**ORDERS, "order": "strict"}, {**ORDERS, **other}])
    assert let_in == world.limits.replacements + 2
    # The one that won last is there, as it asked; who was turned away has not changed it.
    assert next(iter(world.node.parts.dispatch)).connection is not None
    wanted = {**ORDERS, **(other if (let_in - 1) % 2 else {"order": "strict"})}
    assert row_of(world).patterns == tuple(wanted["subjects"])


class Greeted(ScriptedPeer):
    """A peer that says HELLO, and no RESUME."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        pass


@pytest.mark.parametrize("first", [ScriptedPeer, Greeted])
def test_27_who_asked_for_other_subjects_and_went_before_its_place_has_taken_nothing(
    first: type[ScriptedPeer],
) -> None:
    world = NodeWorld()
    asked = world.peer("billing", receive=ORDERS, kind=first)
    newer = world.peer("billing", incarnation="b", receive={"subjects": ["evil.>"]}, kind=Greeted)
    newer.connection.abort()
    world.settle()
    assert asked.lost_because is not None  # and so it comes again, as any receiver does
    world.peer("billing", receive=ORDERS)
    assert_unchanged(world)


def test_27_subjects_that_an_operator_changed_hold_whoever_else_comes_and_goes() -> None:
    world = NodeWorld()
    asked = world.peer("billing", receive=ORDERS)
    world.peer("admin").request(
        "$node.receivers.change", {"name": "billing", "subjects": ["evil.>"]}
    )
    newer = world.peer("billing", incarnation="b", receive={"subjects": []}, kind=Greeted)
    newer.connection.abort()
    world.settle()
    assert asked.lost_because is None


def test_27_an_operator_who_changes_the_order_replaces_nobody() -> None:
    world = NodeWorld()
    admin = world.peer("admin")
    for order in ["none", "strict"] * 3:
        world.peer("billing", receive=ORDERS | {"order": row_order(world)})
        ok, said = admin.request("$node.receivers.change", {"name": "billing", "order": order})
        assert ok, said
    assert world.peer("billing", receive={"order": "strict"}).lost_because is None


def row_order(world: NodeWorld) -> str:
    row = world.node.parts.directory.get("billing")
    return "strict" if row is None else row.options.order


def test_tokens_of_all_patterns_together_are_bounded_and_those_that_are_there_stay() -> None:
    world = NodeWorld(limits=Limits(pattern_tokens=10))
    first = world.peer("first", receive={"subjects": ["a.b.c", "a.b.>", "x"]})  # seven
    assert first.lost_because is None
    over = world.peer("over", receive={"subjects": ["a.b", "b.a"]})
    assert "pattern_tokens = 10" in str(over.lost_because)
    assert world.node.parts.directory.get("over") is None
    ok, said = world.peer("admin").request(
        "$node.receivers.change", {"name": "first", "subjects": ["a.b.c.d.e.f", "x.y.z.u.v"]}
    )
    assert not ok
    assert "pattern_tokens" in said
    world.peer("third", receive={"subjects": ["a.b.c"]})
    changed, _ = world.peer("admin").request(
        "$node.receivers.change", {"name": "first", "subjects": ["x"]}
    )
    assert changed
    assert world.peer("over", receive={"subjects": ["a.b", "b.a"]}).lost_because is None


def test_tokens_that_have_gone_are_not_counted() -> None:
    matcher: SubjectMatcher[int] = SubjectMatcher()
    for pattern in ("a.*.b", "a.>", ">"):
        matcher.add(pattern, 1)
        matcher.add(pattern, 1)
    assert matcher.tokens == 6
    for pattern in ("a.*.b", "a.>", ">", "a.b"):
        matcher.remove(pattern, 1)
        matcher.remove(pattern, 1)
    assert matcher.tokens == len(matcher) == 0
