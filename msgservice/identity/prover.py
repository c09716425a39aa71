"""`LoginProver`: a client's login, begun anew on each of its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime

from msgservice.credentials import Credentials
from msgservice.threads import in_daemon_thread

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
        """Fire with what `work` returns, without holding up the reactor."""
        return in_daemon_thread(cast("IReactorFromThreads", self._reactor), work)


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
