"""The shutdown of a client: what is due is waited for, then the connection and the disk are closed.

    OPEN      everything is taken
    CLOSING   nothing new is taken; the answers that are due have half of `stop_timeout`, and with
              a disk so has the connection that they need
    LEAVING   BYE was said; the connection ends, or is aborted after the other half, then the outbox
    CLOSED    the Deferreds of `close` have fired

What a client does before that is the business of `client`, and of its flow, hop and requests.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from msgservice.client.flow import Flow
from msgservice.client.hop import NodeHop
from msgservice.client.requests import Requests
from msgservice.core.frames import BYE_CLOSING, BYE_SETTLED
from msgservice.errors import ClientClosed
from msgservice.interfaces import IConnector
from msgservice.waiters import Waiters

if TYPE_CHECKING:
    from msgservice.client.disk import DiskOutbox


class State(enum.Enum):
    """The states of a shutdown, in the order in which they come."""

    OPEN = enum.auto()
    CLOSING = enum.auto()
    LEAVING = enum.auto()
    CLOSED = enum.auto()


class Shutdown:
    """The shutdown of one client, from its first wish to its end. `stop_timeout` in seconds.

    `connecting`: who waits for a session; they fail with it.
    """

    _logger = Logger()

    def __init__(
        self,
        *,
        hop: NodeHop,
        flow: Flow,
        requests: Requests,
        connector: IConnector,
        connecting: Waiters[Any],
        disk: DiskOutbox | None,
        reactor: IReactorTime,
        stop_timeout: float,
    ) -> None:
        self.state = State.OPEN
        self._hop, self._flow, self._requests = hop, flow, requests
        self._connector = connector
        self._connecting = connecting
        self._disk = disk
        self._reactor = reactor
        self._patience = stop_timeout / 2
        self._why = ClientClosed("the client was closed")
        self._waiters: Waiters[None] = Waiters()
        self._deadline: IDelayedCall | None = None
        self._ends_for_good = True  # nobody else has the incarnation

    def check_open(self) -> None:
        """Raise `ClientClosed`, with the reason, where nothing new is taken."""
        if self.state is not State.OPEN:
            raise ClientClosed(str(self._why))

    def close(self) -> Deferred[None]:
        """Begin, unless that was done; fires when all is closed. Cancelling ends the wait only."""
        if self.state is State.CLOSED:
            return succeed(None)
        waiter = self._waiters.wait()
        self._begin()
        return waiter

    def replaced(self) -> None:
        """Another connection has the incarnation: leave at once, and leave it to that one."""
        self._ends_for_good = False
        if self.state is State.OPEN:
            self._why = ClientClosed("another connection has this name and incarnation")
        self._begin()
        self._leave()

    def look(self) -> None:
        """Answers came, the outbox has written, or the connection has gone: is all done now?"""
        is_closing = self.state is State.CLOSING
        if is_closing and not self._flow.is_writing and not self._answers_due():
            self._leave()

    def _answers_due(self) -> bool:
        """Whether the node owes answers that may still come.

        With a disk nobody is told that something was left behind, so a connection is waited for
        as well: what an earlier process left may not have been sent at all.
        """
        if not self._flow.unanswered:
            return False
        return self._hop.is_connected or (self._disk is not None and bool(self._connector.running))

    def _begin(self) -> None:
        if self.state is not State.OPEN:
            return
        self.state = State.CLOSING
        self._flow.hand_over()
        self._deadline = self._reactor.callLater(self._patience, self._answers_overdue)
        # Not now: whoever calls `close` may stand inside one of our own Deferreds.
        self._reactor.callLater(0, self.look)

    def _answers_overdue(self) -> None:
        self._deadline = None
        self._leave()

    def _leave(self) -> None:
        if self.state is not State.CLOSING:
            return
        self.state = State.LEAVING
        if self._deadline is not None:
            self._deadline.cancel()
        self._flow.stop()
        hop = self._hop
        if hop.connection is not None and hop.is_connected:
            # Without a disk nobody comes back under this incarnation: where all answers were heard
            # the node need not know any more what it has taken.
            answered = self._disk is None and not self._flow.unanswered
            is_settled = self._ends_for_good and answered
            hop.connection.bye(BYE_SETTLED if is_settled else BYE_CLOSING)
        hop.stop()
        hop.runs.lose_all(self._why)
        self._requests.close(self._why)
        self._connecting.fail(self._why)
        self._deadline = self._reactor.callLater(self._patience, self._end_overdue)
        stopping: Deferred[Any] = maybeDeferred(self._connector.stopService)
        stopping.addErrback(lambda f: self._logger.failure("stopping the connector", f))
        if self._disk is not None:
            disk = self._disk
            stopping.addCallback(lambda _: self._tell_left(disk))
            stopping.addCallback(lambda _: disk.close())
            stopping.addErrback(lambda f: self._logger.failure("closing the outbox", f))
        stopping.addCallback(lambda _: self._ended())

    def _tell_left(self, disk: DiskOutbox) -> None:
        """Say what stays in the file: there is no Deferred left that could."""
        if unanswered := self._flow.unanswered:
            self._logger.warn(
                "{name}: closed, and {unanswered} messages are left in {path} that the node has"
                " not answered; they are sent when it is opened again",
                name=self._hop.name,
                unanswered=unanswered,
                path=str(disk.file.path),
            )

    def _end_overdue(self) -> None:
        # The connector fires as soon as the connection has gone, and after that the disk is closed.
        self._deadline = None
        if self._hop.connection is not None:
            self._hop.connection.abort()

    def _ended(self) -> None:
        self.state = State.CLOSED
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._waiters.fire(None)
