"""Users are read anew while a node runs: what the turn costs that asks who holds no more."""

from __future__ import annotations

from functools import cache

import pytest

from msgservice.identity.principal import Principal
from msgservice.identity.rules import Rules
from msgservice.identity.tokens import Token
from msgservice.identity.users import User, Users
from tests.bounds.meter import LIMIT, Meter

SESSIONS = 10  # of each user


@cache
def users_of(count: int) -> Users:
    everybody = [
        User(name=f"user-{n}", rules=Rules(send=[f"s{n}.{k}.>" for k in range(20)]))
        for n in range(count)
    ]
    tokens = [
        Token(id=f"{n:011}{which}", digest=bytes(32), user=user.name)
        for n, user in enumerate(everybody)
        for which in "ab"
    ]
    return Users(everybody, secret=bytes(32), tokens=tokens)


def reload(before: Users, after: Users, sessions: list[Principal]) -> int:
    """Return the units of the turn."""
    meter = Meter()
    with meter.turn("reload"):
        assert frozenset() == before.replaced_by(after)
        assert all([after.holds(session, 0) for session in sessions])  # noqa: C419 - all are asked
    return meter.units


def cost(count: int) -> int:
    before = users_of(count)
    after = Users(before.all.values(), secret=bytes(32), tokens=before.tokens)
    sessions = [before.named(name, f"udp {n}") for name in before.all for n in range(SESSIONS)]
    return reload(before, after, sessions)


@pytest.mark.parametrize("count", [50, 200])
def test_twice_the_users_cost_twice_as_much(count: int) -> None:
    assert cost(2 * count) <= 2.5 * cost(count)


def test_a_thousand_users_and_all_connections_of_a_node_are_one_turn() -> None:
    assert cost(1000) <= LIMIT
