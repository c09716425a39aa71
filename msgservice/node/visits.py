"""The log lines about who comes to a node, goes, and is turned away.

At most two a minute about one name, and about a hundred names: who dials a thousand times a second
fills no disk. Which connection counts for a name is the business of `connections`.
"""

from __future__ import annotations

from twisted.logger import Logger, LogLevel

from msgservice.core.frames import Hello
from msgservice.core.reasons import one_line
from msgservice.node.peer import Peer
from msgservice.node.seldom import Seldom

REASON_SHOWN = 200  # characters
NAME_SHOWN = 100  # of one that may be no name
# The id of a line, and its text for one connection and for many.
_GONE = (
    "peer-gone",
    "{kind} {name} at {address} has gone: {reason}",
    "{kind} {name} has gone {count} times, the last from {address}: {reason}",
)
_NOT_LET_IN = (
    "peer-refused",
    "{kind} {name!r} from {address} was not let in: {reason}",
    "{kind} {name!r} was not let in {count} times, the last from {address}: {reason}",
)
_ENDED = (
    "{count} connection(s) ended before they said who they are, the last from {address}: {reason}"
)
_UNKNOWN = ("connection-unknown", _ENDED, _ENDED)


class Visits:
    """The lines about the connections of one node, while it does not stop."""

    _logger = Logger()

    def __init__(self, seldom: Seldom) -> None:
        self._seldom = seldom
        self._here: set[Peer] = set()

    def came(self, peer: Peer) -> None:
        """The session of a peer is open."""
        self._here.add(peer)
        self._say(
            peer,
            "peer-came",
            "{kind} {name} has come, from {address}",
            "{kind} {name} has come {count} times, the last from {address}",
        )

    def went(self, peer: Peer) -> None:
        """The connection of a peer has ended: it has gone, or was never let in."""
        was_here = peer in self._here
        self._here.discard(peer)
        what, one, many = _UNKNOWN if _hello(peer) is None else _GONE if was_here else _NOT_LET_IN
        self._say(peer, what, one, many)

    def _say(self, peer: Peer, what: str, one: str, many: str) -> None:
        level = LogLevel.warn if _is_error(peer) else LogLevel.info
        kind, name, address, reason = _kind(peer), _name(peer), _address(peer), _reason(peer)

        def tell(count: int) -> None:
            self._logger.emit(
                level,
                one if count == 1 else many,
                line=what,
                kind=kind,
                name=name,
                address=address,
                reason=reason,
                count=count,
            )

        # Who is nobody yet keeps no line about users out of the log, nor one user those of others.
        whose = (peer.user, peer.is_dialled)
        self._seldom.say((what, kind, name, level), tell, kind=whose)

    def stop(self) -> None:
        """The node stops: that everybody goes needs no lines."""
        self._seldom.stop()


def _kind(peer: Peer) -> str:
    hello = _hello(peer)
    receives = peer.is_dialled or (hello is not None and hello.options.receive is not None)
    return "receiver" if receives else "sender"


def _name(peer: Peer) -> str:
    """The name that it says it has, also of one that was turned away for it."""
    hello = _hello(peer)
    return hello.name[:NAME_SHOWN] if hello is not None else ""


def _hello(peer: Peer) -> Hello | None:
    return peer.connection.session.peer_hello if peer.connection is not None else None


def _address(peer: Peer) -> str:
    return peer.connection.peer_address if peer.connection is not None else ""


def _is_error(peer: Peer) -> bool:
    """Whether one of the two ended it for an error of the other."""
    connection = peer.connection
    return connection is not None and bool(connection.session.failed or connection.peer_error)


def _reason(peer: Peer) -> str:
    error = peer.connection.error if peer.connection is not None else ""
    return one_line(peer.goodbye or error)[:REASON_SHOWN]
