"""A chassis server as a Twisted factory, for endpoints of any kind."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory

from msgservice.clock import timed
from msgservice.faces.axon.scheduler import scheduler_for
from msgservice.faces.chassis.connection import Connection, Server


class Accepting(Server, Protocol):
    """A chassis server, as its factory sees it."""

    @property
    def listens(self) -> bool:
        """Whether it has a port of its own."""

    def serve(self, reactor: IReactorTime) -> None:
        """Begin, if it has not begun."""

    def stop(self) -> Deferred[None]:
        """End, and its connections with it."""

    def accepts(self) -> bool:
        """Return whether one more connection is taken."""


class ChassisFactory(Factory):
    """A Twisted factory whose connections `server` serves: for endpoints of any kind.

    The server need not listen itself: it is activated when a port of this factory starts, and
    stopped when the last one is closed.
    """

    noisy = False

    def __init__(self, server: Accepting, reactor: IReactorTime) -> None:
        self._server = server
        self._reactor = timed(reactor)

    def startFactory(self) -> None:
        """Activate the server, if it has not started this factory itself."""
        self._server.serve(self._reactor)

    def stopFactory(self) -> None:
        """Stop the server, if it does not listen itself: nothing accepts for it any more."""
        if not self._server.listens:
            self._server.stop()

    def buildProtocol(self, addr: IAddress | None) -> Connection | None:
        """Return the protocol of a new connection; None, which closes it, if it is refused."""
        if not self._server.accepts():
            return None
        return Connection(self._server, scheduler_for(self._reactor))
