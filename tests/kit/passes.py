"""Gates and passes for tests of other parts: of users, and where nobody is configured."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from msgservice.clock import Time
from msgservice.credentials import NOBODY, THIS_PROCESS, Credentials
from msgservice.identity.users import User, Users
from msgservice.limits import Limits
from msgservice.node.gate import LISTENER, OWN, Door, Gate, Pass
from msgservice.node.seldom import Seldom

SECRET = b"the same over restarts of a test"
HERE = Credentials(how="plain", is_local=True, address="127.0.0.1", is_private=True)
THERE = NOBODY


def users_of(*users: User, **more: Any) -> Users:
    return Users(users, secret=SECRET, **more)


def a_gate(*users: User, insecure: bool = False, clock: Clock | None = None, **limits: Any) -> Gate:
    clock = clock or Clock()
    return Gate(
        users_of(*users) if users else None,
        insecure=insecure,
        time=Time(clock),
        limits=Limits(**limits),
        seldom=Seldom(clock),
    )


def at_home() -> Pass:
    """What somebody on this machine may do where nobody is configured."""
    return a_gate().admit(None, HERE, LISTENER, "somebody")


def from_afar() -> Pass:
    """What somebody elsewhere may do where nobody is configured, and that is allowed."""
    return a_gate(insecure=True).admit(None, THERE, LISTENER, "somebody")


def of_user(gate: Gate, user: str, name: str = "") -> Pass:
    return gate.admit(None, THIS_PROCESS, Door(asks=False, user=user), name or user)


def of_program(gate: Gate) -> Pass:
    return gate.admit(None, THIS_PROCESS, OWN, "the-program")
