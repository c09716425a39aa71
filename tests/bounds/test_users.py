"""Users are read anew while a node runs: what the turn costs that asks who holds no more."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from msgservice.identity.principal import Principal
from msgservice.identity.rules import Rules
from msgservice.identity.tokens import Token
from msgservice.identity.users import User, Users
from msgservice.node.gate import LISTENER
from tests.bounds.meter import LIMIT, Meter
from tests.kit.passes import HERE, a_gate

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


def logins(count: int) -> int:
    """The units of a hundred logins by tokens, of so many users."""
    everybody = users_of(count)
    expiring = [replace(token, expires=10**12) for token in everybody.tokens]
    gate = a_gate()
    known = Users(everybody.all.values(), secret=bytes(32), tokens=expiring)
    gate.replace(known)
    meter = Meter()
    with meter.turn("logins"):
        for n in range(100):
            shown = known.named(f"user-{n % 20}", f"token {n % 20:011}a")
            shown = replace(shown, until=10**12)
            gate.admit(shown, HERE, LISTENER, f"user-{n % 20}")
    return meter.units


def test_a_login_costs_the_same_however_many_users_there_are() -> None:
    assert logins(200) <= 1.1 * logins(50)


@pytest.mark.parametrize("count", [50, 200])
def test_twice_the_users_cost_twice_as_much(count: int) -> None:
    assert cost(2 * count) <= 2.5 * cost(count)


def test_a_thousand_users_and_all_connections_of_a_node_are_one_turn() -> None:
    assert cost(1000) <= LIMIT
