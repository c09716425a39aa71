"""Logins for tests: users with quick passwords, a node's gate and a client's prover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from msgservice.connection import Connection
from msgservice.credentials import Credentials
from msgservice.errors import NotAuthenticated
from msgservice.identity.client_exchange import ClientExchange, Login
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.principal import Principal
from msgservice.identity.server_exchange import ServerExchange
from msgservice.identity.steps import Deny, Say, Welcome
from msgservice.identity.throttle import Throttle
from msgservice.identity.tokens import new_token
from msgservice.identity.users import User, Users
from msgservice.node.login import PeerLogin

SECRET = b"a secret of tests"
PASSWORD = "correct horse"
WALL = 1_700_000_000_000


def users_with(**passwords: str) -> Users:
    """Users by their names and passwords, computed quickly."""
    records = {
        name: PasswordRecord.of(password, iterations=ITERATIONS_MIN)
        for name, password in passwords.items()
    }
    return Users([User(name=name) for name in passwords], secret=SECRET, passwords=records)


def users_with_a_token(name: str) -> tuple[Users, str]:
    token, secret = new_token(name, expires=None)
    return Users([User(name=name)], secret=SECRET, tokens=[token]), secret


class _Dialogue:
    def __init__(self, gate: LoginGate, credentials: Credentials) -> None:
        clock = gate.clock
        self._gate = gate
        self._exchange = ServerExchange(
            gate.users, credentials, gate.throttle, wall=lambda: WALL, now=clock.seconds
        )

    def receive(self, data: bytes) -> Deferred[Say | Welcome]:
        self._gate.heard.append(data)
        step = self._exchange.receive(data)
        answer: Deferred[Say | Welcome]
        if isinstance(step, Deny):
            answer = deferLater(self._gate.clock, step.delay, _fail, step.error)
        elif self._gate.is_slow:
            answer = Deferred()
            self._gate.waiting.append(lambda: answer.callback(step))
        else:
            answer = succeed(step)
        return answer


def _fail(error: Exception) -> Any:
    raise error


class LoginGate:
    """A gate that knows these users, or offers no login (`users` None).

    `is_slow`: its answers wait in `waiting`.
    """

    def __init__(self, clock: IReactorTime, users: Users | None) -> None:
        self.clock = clock
        self.throttle = Throttle()
        self.heard: list[bytes] = []
        self.waiting: list[Callable[[], None]] = []
        self.is_slow = False
        self._users = users

    @property
    def users(self) -> Users:
        assert self._users is not None
        return self._users

    @users.setter
    def users(self, users: Users | None) -> None:
        self._users = users

    def login(self, credentials: Credentials) -> _Dialogue:
        if self._users is None:
            raise NotAuthenticated("no login is offered here")
        return _Dialogue(self, credentials)

    def watch(self, connection: Connection, logged_in: Callable[[Principal], None]) -> None:
        """Let others log in on a connection of a node."""
        connection.auth_received = PeerLogin(self, connection, logged_in).received


class QuickProver:
    """A client's login, computed at once, or when a test says so (`is_slow`, `waiting`)."""

    def __init__(self, user: str = "shop", **secret: str) -> None:
        self.login = Login(user=user, **(secret or {"password": PASSWORD}))
        self.is_slow = False
        self.waiting: list[Callable[[], None]] = []

    def exchange(self, credentials: Credentials) -> ClientExchange:
        return ClientExchange(self.login, credentials)

    def compute(self, work: Callable[[], str]) -> Deferred[str]:
        computed: Deferred[str] = Deferred()
        if self.is_slow:
            self.waiting.append(lambda: computed.callback(work()))
        else:
            computed.callback(work())
        return computed
