"""The queue of what a peer has yet to send, in order, and what is on its way.

Called by `faces.callbacks.protocol.peer`. An entry is *waiting*, then *in flight* once handed out,
and forgotten when the face reports its last byte as sent: so that after a lost connection an
interrupted message can start again from its first byte, and one that was sent whole is not sent
twice.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from msgservice.faces.callbacks.protocol.events import Pending


class FilePiece(msgspec.Struct, frozen=True):
    """Send `length` bytes of `source` from `offset`; after `last`, call `finish_file`."""

    source: Any
    offset: int
    length: int
    last: bool
    checked: bool  # whether `finish_file` needs a checksum


class Entry:
    """A message to send: whole bytes, or a file that is read piece by piece."""

    __slots__ = ("data", "handed_out", "left", "pending", "volatile")

    def __init__(
        self, data: bytes, *, pending: Pending | None = None, volatile: bool = False
    ) -> None:
        self.data = data
        self.pending = pending
        self.volatile = volatile  # means nothing on another connection
        self.left = len(data)

    @property
    def weight(self) -> int:
        """Bytes of memory that it holds."""
        return len(self.data)

    def restart(self) -> None:
        """Begin again at the first byte."""
        self.left = len(self.data)


class FileEntry(Entry):
    """A file on its way out. `header` gives the message's head for a start at an offset."""

    __slots__ = (
        *("asks", "begun", "checked", "filepath", "header", "held", "interrupted", "offset"),
        *("position", "size", "source", "trailer", "transfer"),
    )

    def __init__(
        self,
        *,
        source: Any,
        size: int,
        header: Callable[[int], bytes],
        checked: bool,
        offset: int = 0,
        filepath: str = "",
        transfer: str | None = None,
        volatile: bool = False,
    ) -> None:
        super().__init__(header(offset), volatile=volatile)
        self.source, self.size, self.header = source, size, header
        self.checked = checked  # whether a checksum follows the last byte
        self.filepath, self.transfer = filepath, transfer
        self.asks = transfer is not None  # whether the receiver may have some of it already
        self.held = False  # until the receiver has said so
        self.interrupted = False
        self.start(offset)

    def start(self, offset: int) -> None:
        """Send from `offset` on."""
        self.offset = self.position = offset
        self.data = self.header(offset)
        self.begun = False
        self.trailer: bytes | None = None
        self.left = len(self.data) + self.size - offset

    def restart(self) -> None:
        """Begin again at the first byte, or where the receiver says."""
        self.interrupted = self.interrupted or self.begun
        self.asks = self.transfer is not None
        self.held = False
        self.start(0)


class SendQueue:
    """Entries in the order of sending."""

    def __init__(self) -> None:
        self._waiting: deque[Entry] = deque()
        self._flight: deque[Entry] = deque()
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes of memory held by what is not sent; files count with their headers."""
        return self._bytes

    @property
    def is_empty(self) -> bool:
        """Whether everything was sent."""
        return not self._waiting and not self._flight

    @property
    def head(self) -> Entry | None:
        """The item that is sent next, or being sent if it is a file."""
        return self._waiting[0] if self._waiting else None

    def add(self, entry: Entry) -> None:
        """Send after everything else."""
        self._waiting.append(entry)
        self._bytes += entry.weight

    def add_first(self, entry: Entry) -> None:
        """Send before everything that waits."""
        self._waiting.appendleft(entry)
        self._bytes += entry.weight

    def add_urgent(self, entry: Entry) -> None:
        """Send before every file that has not begun."""
        at = next(
            (
                number
                for number, waiting in enumerate(self._waiting)
                if isinstance(waiting, FileEntry) and not waiting.begun
            ),
            len(self._waiting),
        )
        self._waiting.insert(at, entry)
        self._bytes += entry.weight

    def take(self, bytes_max: int, messages_max: int) -> list[bytes | FilePiece]:
        """Hand out what may be sent now, at least one message or piece if there is one."""
        out: list[bytes | FilePiece] = []
        room = bytes_max
        while self._waiting and messages_max > 0 and (room > 0 or not out):
            entry = self._waiting[0]
            if isinstance(entry, FileEntry):
                room -= self._take_file(entry, room, out)
                break
            out.append(entry.data)
            room -= len(entry.data)
            messages_max -= 1
            self._flight.append(self._waiting.popleft())
        return out

    def _take_file(self, entry: FileEntry, room: int, out: list[bytes | FilePiece]) -> int:
        if entry.asks or entry.held:
            return 0
        taken = 0
        if not entry.begun:
            entry.begun = True
            out.append(entry.data)
            taken = len(entry.data)
        if entry.trailer is not None:
            out.append(entry.trailer)
            self._flight.append(self._waiting.popleft())
            return taken + len(entry.trailer)
        length = min(max(room - taken, 1), entry.size - entry.position)
        if length or entry.size == entry.offset:
            last = entry.position + length == entry.size
            out.append(FilePiece(entry.source, entry.position, length, last, entry.checked))
            entry.position += length
        return taken + length

    def finish_file(self, source: Any, trailer: bytes) -> None:
        """Take note that the last piece was read; `trailer`, if any, goes after it."""
        entry = self.head
        assert isinstance(entry, FileEntry), entry
        assert entry.source is source, (entry.source, source)
        entry.left += len(trailer)
        if trailer:
            entry.trailer = trailer
        else:
            self._flight.append(self._waiting.popleft())

    def sent(self, count: int) -> list[Entry]:
        """Take note of `count` more bytes sent; return the entries that are complete."""
        done: list[Entry] = []
        while self._flight:
            entry = self._flight[0]
            if entry.left > count:
                entry.left -= count
                return done
            count -= entry.left
            done.append(self._flight.popleft())
            self._bytes -= entry.weight
        if count:  # a file goes into flight when it is read to its end, not before
            entry = self._waiting[0]
            assert isinstance(entry, FileEntry), entry
            entry.left -= count
        return done

    def discard_file(self, source: Any) -> bool:
        """Never send a file again; return whether its peer waits for the rest of it."""
        for entry in self._waiting:
            if isinstance(entry, FileEntry) and entry.source is source:
                self._waiting.remove(entry)
                self._bytes -= entry.weight
                return entry.begun
        return False

    def end_connection(self, *, keep: bool) -> list[Entry]:
        """Make ready for another connection; return what is dropped."""
        entries = [*self._flight, *self._waiting]
        self._flight.clear()
        kept = [entry for entry in entries if keep and not entry.volatile]
        for entry in kept:
            entry.restart()
        self._waiting = deque(kept)
        self._bytes = sum(entry.weight for entry in kept)
        return [entry for entry in entries if not keep or entry.volatile]

    def pendings(self) -> set[str]:
        """Return the ids of the requests that wait to be sent."""
        return {entry.pending.request_id for entry in self._waiting if entry.pending is not None}
