"""The reception of a receiver: what all of its connections share, and say of it in their HELLO.

One value, made by `Receiver` and handed to its ways. Nothing here connects, stops or runs a
handler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime

from msgservice.core import features
from msgservice.core.frames import HelloOptions, ReceiveOptions
from msgservice.core.inbox import Inbox
from msgservice.core.marks import SHARED_RANGES_MAX, Marks
from msgservice.core.ranges import RangeSet
from msgservice.limits import Limits
from msgservice.receiver.handling.engine import Handling
from msgservice.receiver.handling.transactions import StoredHandling, StoredInbox
from msgservice.receiver.handling.work import NodeIncarnation
from msgservice.receiver.received import Decode
from msgservice.waiters import Waiters

# Incarnations of nodes whose marks are kept while they are away: one for each log that ever sent.
NODES_MAX = 1000


class HearsOfLosses(Protocol):
    """A way of the receiver (`ways.Way`)."""

    def node_lost(self, node: NodeIncarnation, *, sent_away: bool) -> bool:
        """The connection to a node that was heard has gone; whether others are begun anew."""


@dataclass(slots=True, kw_only=True)
class Reception:
    """The accepting side of a receiver. `openings`: each time that messages can arrive."""

    name: str
    incarnation: str
    order: str
    window: tuple[int, int]
    limits: Limits
    reactor: IReactorTime
    now: Callable[[], float]
    decode: Decode
    handling: Handling
    ways: Sequence[HearsOfLosses]
    shared: bool = False
    openings: Waiters[None] = field(default_factory=Waiters)

    @property
    def inbox(self) -> StoredInbox | None:
        """The stored inbox of this start, or None."""
        return self.handling.inbox if isinstance(self.handling, StoredHandling) else None

    def hello_options(self, receive: ReceiveOptions) -> HelloOptions:
        """Return what a HELLO says about this receiver."""
        return HelloOptions(
            max_batch=self.limits.max_batch,
            heartbeat=round(self.limits.heartbeat * 1000),
            window=self.window,
            inbox=self.inbox.inbox if self.inbox is not None else None,
            receive=receive,
            features=list(features.OF_RECEIVERS),
        )

    def node(self, name: str, incarnation: str) -> NodeIncarnation:
        """Return what is known of an incarnation of a node."""
        nodes = self.handling.nodes
        node = nodes.pop((name, incarnation), None)
        if node is None:
            if len(nodes) >= NODES_MAX:
                idle = [key for key, n in nodes.items() if n.connection is None and not n.works]
                for key in idle[:1]:
                    del nodes[key]
            most = SHARED_RANGES_MAX if self.shared else 0
            how: dict[str, Any] = {"window_messages": self.window[0], "is_shared": self.shared}
            inbox = Inbox(Marks(ranges_max=most), **how)
            if self.inbox is not None:
                known = self.inbox.resume(name, incarnation)
                marks = Marks(known.floor, RangeSet(known.ranges), known.last, most)
                rejected = self.inbox.rejected(name, incarnation)
                inbox = Inbox(marks, rejected=rejected, **how)
            node = NodeIncarnation(name, incarnation, inbox, self.window)
        nodes[name, incarnation] = node  # who was here last is the last to be forgotten
        return node

    def outdated(self, node: NodeIncarnation) -> list[NodeIncarnation]:
        """The incarnations that this one ends: the node's log has had other numbers, or epochs.

        Those of them that still have a connection, which perhaps only seems to live.
        """
        return [
            elder
            for elder in self.handling.nodes.values()
            if elder.connection is not None
            and elder.name == node.name
            and elder.log_id == node.log_id
            and elder is not node
        ]
