"""The extension that our own peers speak beyond the protocol: `hello`, `error`, files that resume.

Called by `faces.callbacks.protocol.peer` and `faces.callbacks.protocol.receiving`. All of it rides
in messages of types that the original silently ignores, and in header keys that it does not read;
and nothing but the first `hello` is sent to a peer that has not announced itself in the same way.

A file that is pushed to a peer of ours waits, before its first byte, for what the peer has of it
already; a peer that turns out to be none of ours gets it from the start.
"""

from collections.abc import Mapping
from typing import Any

from msgservice.faces.callbacks.protocol.sending import Entry, FileEntry, SendQueue
from msgservice.faces.callbacks.protocol.wire import Encoder

HELLO_SECONDS_MAX = 2.0  # a peer of ours says hello at once; one round trip is plenty
# Below it, asking what the peer has costs more than sending again.
RESUME_BYTES_MIN = 1024 * 1024


class Extension:
    """The state of the extension on one connection."""

    def __init__(
        self, queue: SendQueue, encoder: Encoder, *, announce: bool, queue_bytes_max: int
    ) -> None:
        self._queue_bytes_max = queue_bytes_max
        self._queue = queue
        self._encoder = encoder
        self.announce = announce
        self._is_ours: bool | None = None  # None: it has not said anything yet
        self._hello_deadline: float | None = None
        self._offer_deadline: float | None = None
        self._offer_seconds = 0.0

    @property
    def is_ours(self) -> bool:
        """Whether both sides know the extension."""
        return self.announce and self._is_ours is True

    @property
    def is_undecided(self) -> bool:
        """Whether the peer has not said anything yet."""
        return self._is_ours is None

    @property
    def may_be_ours(self) -> bool:
        """Whether the peer may still say hello."""
        return self.announce and self._is_ours is not False

    @property
    def deadline(self) -> float | None:
        """When to wait no longer, for a hello or for an offset."""
        return self._offer_deadline if self._offer_deadline is not None else self._hello_deadline

    def connected(self, now: float, offer_seconds: float) -> None:
        """Say hello, before anything else."""
        self._is_ours = None
        self._offer_seconds = offer_seconds
        if self.announce:
            self._hello_deadline = now + HELLO_SECONDS_MAX
            self._queue.add_first(Entry(self._encoder.extension("hello", {}), volatile=True))

    def disconnected(self) -> None:
        """Forget the peer."""
        self._is_ours = self._hello_deadline = self._offer_deadline = None

    def heard(self, *, hello: bool) -> bool:
        """Take note of a message; return whether the peer has just announced itself."""
        if hello and not self._is_ours:
            self._is_ours = True
            self._hello_deadline = None
            return self.announce
        if self._is_ours is None:
            self._is_ours = False
            self._hello_deadline = None
        return False

    def receive_time(self, now: float) -> None:
        """Stop waiting, when it is time to."""
        if self._hello_deadline is not None and self._hello_deadline <= now:
            self._hello_deadline = None
        if self._offer_deadline is not None and self._offer_deadline <= now:
            self._offer_deadline = None
            head = self._queue.head
            if isinstance(head, FileEntry) and head.held:
                self._begin(head, 0)

    def send(self, kind: str, content: Mapping[str, object]) -> bool:
        """Queue a message of ours if the peer would understand it; return whether it is queued.

        It is not, either, when the peer has so much to read already: these messages help, and
        nothing depends on them for ever.
        """
        if not self.is_ours or self._queue.size > self._queue_bytes_max:
            return False
        # Before files: both sides may hold one until the other has answered.
        self._queue.add_urgent(Entry(self._encoder.extension(kind, content), volatile=True))
        return True

    def prepare(self, head: Entry | None, now: float) -> bool:
        """Decide about a file that is next; return whether something can be sent now."""
        if not isinstance(head, FileEntry) or not head.asks or head.held:
            return False
        if head.interrupted and self._is_ours is None and self._hello_deadline is not None:
            return False  # it may have most of it: wait for its hello
        if self.is_ours and (head.interrupted or head.size >= RESUME_BYTES_MIN):
            head.held = True
            self._offer_deadline = now + self._offer_seconds
            question = {"transfer": head.transfer, "filepath": head.filepath, "size": head.size}
            self._queue.add_first(Entry(self._encoder.extension("resume", question), volatile=True))
        else:
            self._begin(head, 0)
        return True

    def offered(self, transfer: object) -> Any:
        """Return the source of the file that the peer speaks of, None if it is not waited for."""
        head = self._queue.head
        if isinstance(head, FileEntry) and head.held and head.transfer == transfer:
            self._offer_deadline = None
            return head.source
        return None

    def start_file(self, source: object, offset: int) -> None:
        """Send a file that was held from `offset` on."""
        head = self._queue.head
        if isinstance(head, FileEntry) and head.source is source and head.held:
            self._begin(head, offset)

    def _begin(self, head: FileEntry, offset: int) -> None:
        head.asks = head.held = False
        head.start(offset)

    def trailer(self, head: Entry | None, sha256: str) -> bytes:
        """Return what goes after the last byte of a file."""
        if isinstance(head, FileEntry) and head.checked and self.may_be_ours:
            return self._encoder.extension("checksum", {"sha256": sha256})
        return b""
