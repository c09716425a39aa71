"""`LoginProver`: a client's login, begun anew on each of its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.threads import deferToThreadPool

from msgservice.credentials import Credentials

if TYPE_CHECKING:
    from msgservice.identity.client_exchange import ClientExchange, Login


class LoginProver:
    """Proves one login to nodes (`connection.Prover`). What takes long is computed in a thread."""

    def __init__(self, reactor: IReactorTime, login: Login) -> None:
        self._reactor = reactor
        self._login = login

    def exchange(self, credentials: Credentials) -> ClientExchange:
        """Return the client's end of a login on a new connection."""
        from msgservice.identity.client_exchange import ClientExchange

        return ClientExchange(self._login, credentials)

    def compute(self, work: Callable[[], str]) -> Deferred[str]:
        """Fire with what `work` returns, without holding up the reactor.

        In the reactor's pool, so that thousands that reconnect at once are not as many threads: a
        login takes some 30 ms there, and the end of a process waits no longer for one.
        """
        reactor: Any = self._reactor
        return deferToThreadPool(reactor, reactor.getThreadPool(), work)


def prover_of(
    reactor: IReactorTime, *, user: str | None, password: str | None, token: str | None
) -> LoginProver | None:
    """Return the prover of a login that was given in parts, None where none was.

    Raises `BadValue`, which shows no secret.
    """
    if user is None and password is None and token is None:
        return None
    # Only here: SCRAM is none of the business of who logs in nowhere.
    from msgservice.identity.client_exchange import Login

    return LoginProver(reactor, Login(user=user or "", password=password, token=token))
