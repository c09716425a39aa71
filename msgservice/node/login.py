"""The login of one peer of a node: its steps are asked of the gate, and what that says is said.

Which users there are, how a login is proved and how often one may try it is the gate's; that AUTH
comes in its turn, and before HELLO, is the session's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.connection import Connection
from msgservice.credentials import Credentials
from msgservice.errors import ProtocolError
from msgservice.identity.principal import Principal
from msgservice.identity.steps import Say, Welcome


class Dialogue(Protocol):
    """The node's end of one login."""

    def receive(self, data: bytes) -> Deferred[Say | Welcome]:
        """Fire with what is said to this; fail with `NotAuthenticated`, when it may be told.

        Cancelling it ends the wait.
        """


class Gate(Protocol):
    """The gate, as far as it is asked here."""

    def login(self, credentials: Credentials) -> Dialogue:
        """Return a new dialogue; raise `NotAuthenticated` where no login is offered."""


class PeerLogin:
    """The login of one connection. `logged_in` is called with who it is, before its HELLO."""

    _logger = Logger()

    def __init__(
        self, gate: Gate, connection: Connection, logged_in: Callable[[Principal], None]
    ) -> None:
        self._gate = gate
        self._connection = connection
        self._logged_in = logged_in
        self._dialogue: Dialogue | None = None
        self._answer: Deferred[Say | Welcome] | None = None  # the last that was waited for

    def received(self, data: bytes) -> None:
        """Take a step of the peer's; raise `NotAuthenticated` where no login is offered."""
        if self._dialogue is None:
            channel = self._connection.channel
            assert channel is not None
            self._dialogue = self._gate.login(channel.credentials)
        self._answer = self._dialogue.receive(data)
        self._answer.addCallbacks(self._say, self._end).addErrback(self._fault)

    def stop(self) -> None:
        """The connection has gone: nothing is waited for any more."""
        if self._answer is not None:
            self._answer.cancel()

    @property
    def _is_over(self) -> bool:
        """Whether the peer has gone, or was sent away, while the step was looked at."""
        return self._connection.is_gone or not self._connection.is_logging_in

    def _say(self, step: Say | Welcome) -> None:
        if self._is_over:
            return
        self._connection.auth(step.data)
        if isinstance(step, Welcome):
            self._logged_in(step.principal)
            self._connection.authenticated()

    def _end(self, failure: Failure) -> None:
        if failure.check(CancelledError) is not None:
            return
        if not isinstance(failure.value, ProtocolError):
            self._fault(failure)
        elif not self._is_over:
            self._connection.fail(failure.value)

    def _fault(self, failure: Failure) -> None:
        self._logger.failure("a login from {peer}", failure, peer=self._connection.peer_address)
        if not self._connection.is_gone:
            self._connection.fail(ProtocolError("internal error"))
