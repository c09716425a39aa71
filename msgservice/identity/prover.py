"""`LoginProver`: a client's login, begun anew on each of its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from msgservice.clock import timed
from msgservice.credentials import Credentials
from msgservice.threads import in_daemon_thread

if TYPE_CHECKING:
    from msgservice.identity.client_exchange import ClientExchange, Login, RememberedKeys


THREADS_MAX = 4  # that compute logins at once, some 30 ms each
_KEPT = "_msgservice_logins"


class LoginProver:
    """Proves one login to nodes (`connection.Prover`). What takes long is computed in a thread.

    Once for as long as a node asks for the same salt and iterations: the keys live as long as this.
    """

    def __init__(self, reactor: IReactorTime, login: Login) -> None:
        self._reactor: Any = timed(reactor)  # the same one each time
        self._login = login
        self._turns = _turns_of(self._reactor)
        self._keys: RememberedKeys | None = None

    def exchange(self, credentials: Credentials) -> ClientExchange:
        """Return the client's end of a login on a new connection."""
        from msgservice.identity.client_exchange import ClientExchange, RememberedKeys

        if self._keys is None:
            self._keys = RememberedKeys()
        return ClientExchange(self._login, credentials, keys=self._keys)

    def compute(self, work: Callable[[], str]) -> Deferred[str]:
        """Fire with what `work` returns, without holding up the reactor.

        A few of a process are computed at once, so that thousands that reconnect together are not
        as many threads; the others wait. Not in the reactor's pool, whose threads keep a process
        alive that has asyncio's loop and never stops the reactor.
        """
        computed: Deferred[str] = self._turns.run(in_daemon_thread, self._reactor, work)
        return computed


def _turns_of(reactor: Any) -> DeferredSemaphore:
    """Return what all logins of a reactor wait for."""
    made: DeferredSemaphore | None = vars(reactor).get(_KEPT)
    if made is None:
        made = DeferredSemaphore(THREADS_MAX)
        setattr(reactor, _KEPT, made)
    return made


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
