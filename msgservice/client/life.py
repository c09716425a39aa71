"""How a client ends: what is due is waited for, then the connection and the disk are closed.

    close -> the answers that are due, or half of `stop_timeout` -> BYE -> the connection ends,
    or is aborted after the other half -> the outbox is closed -> the Deferreds of `close` fire

What a client does before that is the business of `client`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from msgservice.client.flow import Flow
from msgservice.client.hop import NodeHop
from msgservice.client.requests import Requests
from msgservice.core.frames import BYE_CLOSING, BYE_SETTLED
from msgservice.errors import ClientClosed
from msgservice.interfaces import IConnector
from msgservice.limits import Limits
from msgservice.waiters import Waiters

if TYPE_CHECKING:
    from msgservice.client.disk import DiskOutbox


class ClientLife:
    """The shutdown of a client: waits for answers, then closes the connection and the outbox."""

    _logger = Logger()

    _hop: NodeHop
    _flow: Flow
    _requests: Requests
    _connector: IConnector

    def __init__(self, reactor: IReactorTime, limits: Limits, disk: DiskOutbox | None) -> None:
        self._reactor = reactor
        self._limits = limits
        self._disk = disk
        self._connect_waiters: Waiters[Any] = Waiters()
        self._closed: ClientClosed | None = None  # nothing new is taken
        self._close_waiters: Waiters[None] = Waiters()
        self._close_deadline: IDelayedCall | None = None
        self._ends_for_good = True  # nobody else has the incarnation
        self._is_finishing = False
        self._is_finished = False

    @property
    def unanswered(self) -> int:
        """Messages handed over that the node has not answered."""
        return self._flow.unanswered

    def close(self) -> Deferred[None]:
        """Take nothing more, wait for the answers that are due, leave; fires when done.

        Takes at most `limits.stop_timeout`. What the node has not answered by then, or when
        there is no connection, fails with `ClientClosed`; it may still be stored. Safe to call
        twice. Cancelling ends the wait only.
        """
        if self._is_finished:
            return succeed(None)
        waiter = self._close_waiters.wait()
        self._begin_closing(ClientClosed("the client was closed"))
        return waiter

    def _begin_closing(self, why: ClientClosed) -> None:
        if self._closed is not None:
            return
        self._closed = why
        self._flow.hand_over()
        # Half of the time for the answers, half for the connection to end.
        self._close_deadline = self._reactor.callLater(
            self._limits.stop_timeout / 2, self._close_overdue
        )
        # Not now: whoever calls `close` may stand inside one of our own Deferreds.
        self._reactor.callLater(0, self._look_whether_done)

    def _close_overdue(self) -> None:
        self._close_deadline = None
        self._finish()

    def _look_whether_done(self) -> None:
        if not self._flow.is_writing and not (self._hop.is_open and self.unanswered):
            self._finish()

    def _wrote(self) -> None:
        if self._closed is not None:
            self._look_whether_done()

    def _finish(self) -> None:
        if self._is_finishing:
            return
        self._is_finishing = True
        assert self._closed is not None
        if self._close_deadline is not None:
            self._close_deadline.cancel()
        self._flow.stop()
        connection = self._hop.connection
        if connection is not None and self._hop.is_open:
            # Without a disk nobody comes back under this incarnation: where all answers were heard
            # the node need not know any more what it has taken.
            is_settled = self._ends_for_good and self._disk is None and not self.unanswered
            connection.bye(BYE_SETTLED if is_settled else BYE_CLOSING)
        self._hop.stop()
        self._hop.runs.lose_all(self._closed)
        self._requests.close(self._closed)
        self._connect_waiters.fail(self._closed)
        self._close_deadline = self._reactor.callLater(
            self._limits.stop_timeout / 2, self._stop_overdue
        )
        stopping: Deferred[Any] = self._connector.stopService() or succeed(None)
        stopping.addErrback(lambda f: self._logger.failure("stopping the connector", f))
        if self._disk is not None:
            disk = self._disk
            stopping.addCallback(lambda _: disk.close())
            stopping.addErrback(lambda f: self._logger.failure("closing the outbox", f))
        stopping.addCallback(lambda _: self._finished())

    def _stop_overdue(self) -> None:
        # The connector fires as soon as the connection has gone, and after that the disk is closed.
        self._close_deadline = None
        if self._hop.connection is not None:
            self._hop.connection.abort()

    def _finished(self) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        if self._close_deadline is not None:
            self._close_deadline.cancel()
            self._close_deadline = None
        self._close_waiters.fire(None)
