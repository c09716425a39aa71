"""What the parts of a node see of it: the seams between outlets, senders, peers and the node.

Protocols only. `node.node.Node` is all of them; a test gives a part something smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred

from msgservice.core.frames import ReceiveOptions, Reply, Request
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.node.commits import Commits
from msgservice.node.directory import Directory
from msgservice.node.tail import Tail
from msgservice.node.tracker import Tracker

if TYPE_CHECKING:
    from msgservice.node.dispatch import Dispatch
    from msgservice.node.outlet import Outlet
    from msgservice.node.peer import Peer


class DeliveryShared(Protocol):
    """What an outlet needs."""

    log: ILog
    tail: Tail
    commits: Commits
    tracker: Tracker
    clock: Any  # IReactorTime
    limits: Limits

    def now(self) -> float:
        """A monotonic clock, seconds."""

    def wall(self) -> int:
        """The wall clock, milliseconds."""


class IngressShared(DeliveryShared, Protocol):
    """What a sender's side needs besides."""

    directory: Directory
    dispatch: Dispatch
    log_id: str

    def log_full(self) -> str | None:
        """Why the log takes nothing now, or None."""

    def pause_senders(self) -> None:
        """Too much is taken in and not committed: read from no sender until it is."""


class Shared(IngressShared, Protocol):
    """What a connection needs besides."""

    node_name: str
    insecure: bool

    def peer_up(self, peer: Peer) -> None:
        """A connection stands."""

    def peer_opened(self, peer: Peer) -> bool:
        """Its session is open: newest connection wins per (name, incarnation).

        Returns whether this is it; it is sent away otherwise.
        """

    def peer_gone(self, peer: Peer) -> None:
        """It has ended."""

    def attaching(self, name: str, receive: ReceiveOptions) -> Outlet:
        """A peer says that it is the receiver of this name; it is made if it is new."""

    def hold_check(self, outlet: Outlet) -> None:
        """Raise `NameMismatch` while the name is held, `NotSupported` while it is paused."""

    def directory_stored(self) -> Deferred[None]:
        """Fire when all changes of the directory so far are stored."""

    def replace(self, outlet: Outlet, peer: Peer) -> bool:
        """Let this peer be the receiver's connection; the older of two is sent away.

        Returns whether it is.
        """

    def answer(self, request: Request, local: bool) -> Deferred[Reply]:
        """Answer a request."""
