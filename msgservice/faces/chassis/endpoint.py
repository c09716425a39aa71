"""The listening socket that a chassis server makes itself, unless it is given an endpoint."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorSocket,
    IReactorTCP,
    IReactorTime,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from msgservice.clock import timed

# Connections that the kernel holds for us until they are accepted. One takes about 60 us of ours,
# and 30 us of its client's; when the queue is full, the client's kernel waits a second before it
# tries again (bench/chassis.py opens 5,000 one after the other: 25 s with a queue of 128).
BACKLOG = 1024


@implementer(IStreamServerEndpoint)
class TCPServer:
    """A listening TCP socket on `port`, with one option set before it is bound.

    `socketOptions` is a tuple (level, option, value), or None. `interface` "" is all of IPv4.
    What `ServerCore` takes as `TCPS` is a class that is made and used like this one.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        port: int,
        *,
        interface: str = "",
        socketOptions: tuple[int, int, int] | None = None,
    ) -> None:
        self._reactor = timed(reactor)
        self._port, self._interface = port, interface
        self._option = socketOptions

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Return the listening port; fails with `OSError` or `CannotListenError`."""
        return maybeDeferred(self._listen, protocolFactory)

    def _listen(self, factory: Any) -> IListeningPort:
        if self._option is None:
            reactor = IReactorTCP(self._reactor)
            return reactor.listenTCP(self._port, factory, BACKLOG, self._interface)
        family = socket.AF_INET6 if ":" in self._interface else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            # As Twisted does for its own: a restarted server can listen at once.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(*self._option)
            listener.bind((self._interface, self._port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
            # The reactor duplicates the descriptor; ours is closed here.
            adopter = IReactorSocket(self._reactor)
            return adopter.adoptStreamPort(listener.fileno(), family, factory)
