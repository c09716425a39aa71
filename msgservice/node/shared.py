"""What the parts of a node see of it: the seams between outlets, senders, peers and the node.

Protocols only. `node.node.NodeService` is all of them; a test gives a part something smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred

from msgservice.core.frames import Reply, Request
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.node.commits import Commits
from msgservice.node.directory import Directory
from msgservice.node.tail import Tail
from msgservice.node.tracker import Tracker
from msgservice.transport.registry import Transports

if TYPE_CHECKING:
    from msgservice.node.connections import Connections
    from msgservice.node.dispatch import Dispatch
    from msgservice.node.outlet_progress import OutletProgress
    from msgservice.node.receivers import Receivers


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

    def check_dead_letters(self, outlet: OutletProgress) -> None:
        """It has new dead letters: pause it where they are too many."""


class IngressShared(DeliveryShared, Protocol):
    """What a sender's side needs besides."""

    directory: Directory
    dispatch: Dispatch
    connections: Connections
    log_id: str

    def log_full(self) -> str | None:
        """Why the log takes nothing now, or None."""


class Shared(IngressShared, Protocol):
    """What connections and receivers need besides."""

    node_name: str
    insecure: bool
    running_now: bool
    receivers: Receivers
    transports: Transports

    def answer(self, request: Request, local: bool) -> Deferred[Reply]:
        """Answer a request."""
