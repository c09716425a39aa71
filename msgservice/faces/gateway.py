"""A gateway: the peers of another protocol as receivers of a node, by their names.

    node's log -> the outlet of a name -> `Gateway` -> what a face makes of a message -> its peer

A peer has a receiver at the node while it is connected, and only then: meanwhile the node keeps
what is for it. Who a peer is, and what a message becomes in its protocol, is the face's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from msgservice.errors import MsgServiceError
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from msgservice.waiters import Waiters

P = TypeVar("P", bound=Hashable)


class _Place(Generic[P]):
    """The place of one connected peer: its name, and its receiver from when the name is free."""

    def __init__(self, peer: P, name: str) -> None:
        self.peer, self.name = peer, name
        self.receiver: Receiver | None = None


class Gateway(Generic[P]):
    """The receivers of a face's peers, one for each that is connected.

    Args:
        reactor: clock and sockets of the receivers.
        attach: attaches a receiver to the node: `lambda r: r.attach("tcp:127.0.0.1:7410")`.
        hand: hands a message to a peer. What it returns or raises becomes of the message as it
            does in a receiver's handler.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        attach: Callable[[Receiver], object],
        hand: Callable[[P, ReceivedMessage], Any],
    ) -> None:
        self._reactor = reactor
        self._attach = attach
        self._hand = hand
        self._places: dict[P, _Place[P]] = {}
        # A name's receiver ends before its next one begins, or the node would have two of them.
        self._ending: dict[str, Waiters[None]] = {}
        self._is_stopped = False

    @property
    def names(self) -> set[str]:
        """The names of the peers that have a receiver now."""
        return {place.name for place in self._places.values() if place.receiver is not None}

    def add(self, peer: P, name: str) -> None:
        """Let the node send to a peer; another one of this name has left then, and its other name.

        One that comes when the gateway has stopped gets nothing.
        """
        if self._is_stopped:
            return
        self.remove(peer)
        for other in [place.peer for place in self._places.values() if place.name == name]:
            self.remove(other)  # it is back before its old connection is known dead
        place = self._places[peer] = _Place(peer, name)
        ending = self._ending.get(name)
        if ending is None:
            self._begin(None, place)
        else:
            ending.wait().addCallback(self._begin, place)

    def _begin(self, _: None, place: _Place[P]) -> None:
        peer = place.peer
        if self._places.get(peer) is place:  # it has not left meanwhile
            place.receiver = Receiver(
                self._reactor, name=place.name, handler=lambda message: self._hand(peer, message)
            )
            try:
                self._attach(place.receiver)
            except MsgServiceError as error:  # what peers do is not held up by it
                self._log.error(
                    "{name} is not attached to the node: {error}", name=place.name, error=str(error)
                )

    def attach_again(self, peer: P) -> Receiver | None:
        """Dial again for a peer whose receiver the node has sent away, and return that; else None.

        It is sent away where it was removed, and where another process attached by its name.
        """
        place = self._places.get(peer)
        receiver = place.receiver if place is not None else None
        ways: list[Any] = [*receiver.ways] if receiver is not None else []
        over = [way for way in ways if getattr(way, "is_over", False)]  # of attachments
        for way in over:
            way.start()
        return receiver if over else None

    def remove(self, peer: P) -> None:
        """Leave what is for the peer in the node."""
        place = self._places.pop(peer, None)
        if place is None or place.receiver is None:
            return
        name = place.name
        ending = self._ending[name] = Waiters()

        def ended(_: object) -> None:
            del self._ending[name]
            ending.fire(None)

        stopped = maybeDeferred(place.receiver.stop)
        stopped.addErrback(lambda f: self._log.failure("end of {name}", f, name=name))
        stopped.addBoth(ended)

    def stop(self) -> Deferred[None]:
        """Leave the node for good; fires when all receivers have ended."""
        self._is_stopped = True
        for peer in list(self._places):
            self.remove(peer)
        ended = gatherResults([ending.wait() for ending in self._ending.values()])
        return ended.addCallback(lambda _: None)
