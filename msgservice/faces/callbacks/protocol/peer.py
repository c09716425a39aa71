"""One side of a connection that speaks the callback protocol, without IO, clock or randomness.

Both faces drive it: bytes go in by `receive_data` and come out by `take_output`; what the peer
wants comes back as a list of events (`faces.callbacks.protocol.events`). It owns the requests that
wait for answers and the queue of what is to be sent; the disk, the callbacks and the sockets are
the faces'. It outlives connections: `connected` and `disconnected` say where one begins and ends.

Invariants: an id is pending once; a request is removed when its answer is accepted, refused, timed
out or lost, exactly once; at most one file is being received.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

from msgservice.errors import DeadlinePassed, LimitReached
from msgservice.faces.callbacks.protocol.events import (
    CallbackLimits,
    Event,
    Failed,
    FileInterrupted,
    FileUnsent,
    MessageReceived,
    MessagesUnsent,
    Pending,
    RequestLost,
    RequestTimedOut,
)
from msgservice.faces.callbacks.protocol.extension import Extension
from msgservice.faces.callbacks.protocol.reader import Broken, Data, MessageReader, Whole
from msgservice.faces.callbacks.protocol.receiving import Receiving
from msgservice.faces.callbacks.protocol.sending import Entry, FileEntry, FilePiece, SendQueue
from msgservice.faces.callbacks.protocol.wire import FILE_ACTION, Encoder, Header

# A file must move by so much before its deadline moves: about 1 KiB/s at the default of 60 s.
PROGRESS_BYTES = 65_536
IDS = 10_000


class CallbackPeer:
    """The state of one side.

    Args:
        byteorder: what headers say of this machine, `sys.byteorder`.
        first_id: where request ids begin; a random number, so that the late answer of an earlier
            process is not taken for one of this.
        resume_queue: keep what was not sent when a connection ends, and send it on the next.
        resend_requests: send unanswered requests again on the next connection.
        announce: tell the peer that we know the extensions (PROTOCOL of docs/callbacks.md).
        allow_nan: write and accept NaN and infinities, which are not JSON.
        whole_messages: report JSON messages as `MessageReceived`, to be looked into later.
    """

    def __init__(
        self,
        *,
        byteorder: str,
        first_id: int = 0,
        resume_queue: bool = False,
        resend_requests: bool = True,
        announce: bool = False,
        allow_nan: bool = False,
        whole_messages: bool = False,
        limits: CallbackLimits | None = None,
    ) -> None:
        self._whole_messages = whole_messages
        self.limits = limits or CallbackLimits()
        self.resume_queue = resume_queue
        self.resend_requests = resend_requests
        self.encoder = Encoder(
            byteorder, allow_nan=allow_nan, header_bytes_max=self.limits.header_bytes_max
        )
        self._reader = MessageReader(
            header_bytes_max=self.limits.header_bytes_max,
            json_bytes_max=self.limits.json_bytes_max,
            file_bytes_max=self.limits.file_bytes_max,
        )
        self._queue = SendQueue()
        self._pending: dict[str, Pending] = {}
        self._timeouts: list[tuple[float, int, Pending, float]] = []
        self._timeouts_made = 0
        self._next_id = first_id % IDS
        self._is_connected = False
        self._message_deadline: float | None = None
        self._file_progress = 0
        self.extension = Extension(
            self._queue,
            self.encoder,
            announce=announce,
            queue_bytes_max=self.limits.answer_bytes_max,
        )
        self._receiving = Receiving(self._pending, self.extension, allow_nan=allow_nan)

    # --- getters

    @property
    def is_connected(self) -> bool:
        """Whether a connection has begun and not ended."""
        return self._is_connected

    @property
    def is_drained(self) -> bool:
        """Whether everything was handed to the connection."""
        return self._queue.is_empty

    @property
    def queued_bytes(self) -> int:
        """Bytes of memory that wait to be sent; a file counts with its header."""
        return self._queue.size

    @property
    def pending(self) -> Sequence[Pending]:
        """The requests that wait for answers, oldest first."""
        return tuple(self._pending.values())

    def next_deadline(self) -> float | None:
        """When `receive_time` has something to do, None: never."""
        while self._timeouts and not self._is_waiting(self._timeouts[0]):
            heapq.heappop(self._timeouts)
        deadlines = [
            deadline
            for deadline in (
                self._timeouts[0][0] if self._timeouts else None,
                self._message_deadline,
                self.extension.deadline,
            )
            if deadline is not None
        ]
        return min(deadlines, default=None)

    # --- from the world

    def connected(self, now: float = 0.0) -> list[Event]:
        """A connection begins: requests are sent again, then what was kept."""
        events = self.disconnected() if self._is_connected else []
        self._is_connected = True
        if not self.resume_queue:
            events += self._drop_queue()
        events += self._lose_requests()
        self._reader.reset()
        self._message_deadline = None
        # Never one that is also in the kept queue; and before it, as they are older.
        queued = self._queue.pendings()
        for request in reversed(self._pending.values()):
            if request.request_id not in queued:
                self._queue.add_first(Entry(request.data, pending=request))
        self.extension.connected(now, self.limits.resume_seconds_max)
        return events

    def receive_data(self, data: bytes, now: float = 0.0) -> list[Event]:
        """Return what `data` says; the last event may be `Failed`, and then nothing follows."""
        parts = self._reader.feed(data)
        events: list[Event] = []
        for part in parts:
            if isinstance(part, Broken):
                events.append(Failed(part.error))
            elif self._whole_messages and isinstance(part, Whole):
                events.append(MessageReceived(part.header, part.content))
            elif not self._receiving.receive_part(part, events):
                self._reader.break_off()
                break
        self._guard(len(data), completed=any(type(p) is not Data for p in parts), now=now)
        return events

    def receive_message(self, header: Header, content: bytes) -> list[Event]:
        """Return what a `MessageReceived` says; `Failed` as from `receive_data`."""
        events: list[Event] = []
        self._receiving.receive_part(Whole(header, content), events)
        return events

    def _guard(self, count: int, *, completed: bool, now: float) -> None:
        """Move the deadline of the message that is being received."""
        if self._reader.is_between_messages:
            self._message_deadline = None
            return
        self._file_progress += count if self._reader.is_in_raw else 0
        if completed or self._message_deadline is None or self._file_progress >= PROGRESS_BYTES:
            self._message_deadline = now + self.limits.message_seconds_max
            self._file_progress = 0

    def receive_time(self, now: float) -> list[Event]:
        """Return what the passing of time brings: timeouts, and peers that are too slow."""
        events: list[Event] = []
        while self._timeouts and self._timeouts[0][0] <= now:
            timeout = heapq.heappop(self._timeouts)
            if self._is_waiting(timeout):
                _, _, request, seconds = timeout
                self.forget(request)
                events.append(RequestTimedOut(request, seconds))
        self.extension.receive_time(now)
        if self._message_deadline is not None and self._message_deadline <= now:
            self._message_deadline = None
            self._reader.break_off()
            events.append(Failed(DeadlinePassed("message", self.limits.message_seconds_max)))
        return events

    def _is_waiting(self, timeout: tuple[float, int, Pending, float]) -> bool:
        deadline, _, request, _ = timeout
        return (
            self._pending.get(request.request_id) is request
            and request.deadline == deadline
            and self._receiving.answering is not request  # the file is on its way
        )

    def disconnected(self) -> list[Event]:
        """The connection has ended; what is kept for another, `resume_queue` and so on say."""
        events: list[Event] = []
        if self._receiving.disconnected():
            events.append(FileInterrupted())
        self._is_connected = False
        self._message_deadline = None
        self._reader.reset()
        self.extension.disconnected()
        events += self._drop_queue(keep=self.resume_queue)
        return events + self._lose_requests()

    def _lose_requests(self) -> list[Event]:
        if self.resend_requests:
            return []
        queued = self._queue.pendings()
        lost = [request for request in self._pending.values() if request.request_id not in queued]
        for request in lost:
            self.forget(request)
        return [RequestLost(request) for request in lost]

    def _drop_queue(self, *, keep: bool = False) -> list[Event]:
        events: list[Event] = []
        messages = 0
        for entry in self._queue.end_connection(keep=keep):
            if isinstance(entry, FileEntry):
                events.append(FileUnsent(entry.source))
            elif entry.pending is None and not entry.volatile:
                messages += 1
        if messages:
            events.append(MessagesUnsent(messages))
        return events

    # --- from the application

    def send_message(
        self, action: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> None:
        """Queue an action.

        Raises:
            LimitReached: `queue_bytes_max`.
            TypeError, ValueError, FrameTooLarge: it cannot be written.
        """
        self._add(Entry(self.encoder.action(action, args, kwargs)))

    def request(
        self,
        requested_value: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        token: Any = None,
        timeout: float | None = None,
        now: float = 0.0,
    ) -> Pending:
        """Queue a request; errors as `send_message`, and `LimitReached` for `pending_max`."""
        request_id = self._new_id()
        data = self.encoder.request(requested_value, request_id, args, kwargs)
        request = Pending(
            request_id=request_id, requested_value=requested_value, data=data, token=token
        )
        self._add(Entry(data, pending=request))
        self._pending[request_id] = request
        if timeout is not None:
            self._time(request, timeout, now)
        return request

    def request_file(
        self, filepath: str, *, token: Any = None, timeout: float | None = None, now: float = 0.0
    ) -> Pending:
        """Queue a request for a file; errors as `request`. The timeout ends when it begins."""
        request = self.request(
            FILE_ACTION, (), {"filepath": filepath}, token=token, timeout=timeout, now=now
        )
        request.filepath = filepath
        return request

    def have_part(self, request: Pending, offset: int, sha256: str) -> None:
        """Say, when the request for a file is sent again, how much of it is here already."""
        request.data = self.encoder.request(
            FILE_ACTION,
            request.request_id,
            (),
            {"filepath": request.filepath},
            {"x-offset": offset, "x-checksum": sha256} if offset else None,
        )

    def forget(self, request: Pending) -> None:
        """Wait for this answer no longer; when it comes it is ignored."""
        self._pending.pop(request.request_id, None)

    def respond(self, requested_value: str, request_id: object, value: object) -> None:
        """Queue an answer.

        Raises:
            LimitReached: `answer_bytes_max`: the peer asks, but does not read.
            TypeError, ValueError, FrameTooLarge: it cannot be written.
        """
        self._add_answer(Entry(self.encoder.response(requested_value, request_id, value)))

    def _add_answer(self, entry: Entry) -> None:
        if self._queue.size + entry.weight > self.limits.answer_bytes_max:
            raise LimitReached("answer_bytes_max", self.limits.answer_bytes_max)
        self._queue.add(entry)

    def respond_file(
        self, request_id: object, source: object, size: int, *, offset: int = 0
    ) -> None:
        """Queue a file as answer, from `offset` on (above 0 only for peers of ours)."""
        checked = self.extension.is_ours

        def header(start: int) -> bytes:
            return self.encoder.file_response(
                request_id,
                size - start,
                {"x-offset": start, "x-checksum": "sha256"} if checked else None,
            )

        # A peer of ours asks again with what it has by then, so the old answer is worth nothing.
        self._add_answer(
            FileEntry(
                source=source,
                size=size,
                header=header,
                offset=offset,
                checked=checked,
                volatile=checked,
            )
        )

    def send_file(
        self, filepath: str, source: object, size: int, *, transfer: str | None = None
    ) -> None:
        """Queue a file; `transfer` names it, for a later connection to go on where this ended."""
        named = transfer if self.extension.may_be_ours else None

        def header(start: int) -> bytes:
            extra = {"x-transfer": named, "x-offset": start, "x-checksum": "sha256"}
            known = named is not None and self.extension.may_be_ours
            return self.encoder.file_push(filepath, size - start, extra if known else None)

        self._add(
            FileEntry(
                source=source,
                size=size,
                header=header,
                filepath=filepath,
                transfer=named,
                checked=named is not None,
            )
        )

    def start_file(self, source: object, offset: int) -> None:
        """Answer `OffsetOffered`: send the file from there on."""
        self.extension.start_file(source, offset)

    def refuse(self, kind: str, reason: str, about: Mapping[str, object]) -> bool:
        """Tell a peer of ours that something of its failed; peers of others are told nothing."""
        return self.extension.send("error", {"error": kind, "reason": reason[:500], **about})

    def _add(self, entry: Entry) -> None:
        if self._queue.size + entry.weight > self.limits.queue_bytes_max:
            raise LimitReached("queue_bytes_max", self.limits.queue_bytes_max)
        self._queue.add(entry)

    def _new_id(self) -> str:
        if len(self._pending) >= self.limits.pending_max:
            raise LimitReached("pending_max", self.limits.pending_max)
        # In turn, so that an id comes back as late as possible: a late answer to a request that
        # timed out then finds nobody.
        while (request_id := f"{self._next_id:04d}") in self._pending:
            self._next_id = (self._next_id + 1) % IDS
        self._next_id = (self._next_id + 1) % IDS
        return request_id

    def _time(self, request: Pending, seconds: float, now: float) -> None:
        request.deadline = now + seconds
        self._timeouts_made += 1
        heapq.heappush(self._timeouts, (request.deadline, self._timeouts_made, request, seconds))
        if len(self._timeouts) > 2 * len(self._pending) + 64:
            self._timeouts = [timeout for timeout in self._timeouts if self._is_waiting(timeout)]
            heapq.heapify(self._timeouts)

    # --- to the world

    def take_output(
        self, bytes_max: int, *, messages_max: int = 1_000_000, now: float = 0.0
    ) -> list[bytes | FilePiece]:
        """Hand out what is to be sent next; say `sent` when it was.

        A `FilePiece` is read by the face, which calls `finish_file` after the last.
        """
        if not self._is_connected:
            return []
        out = self._queue.take(bytes_max, messages_max)
        if not out and self.extension.prepare(self._queue.head, now):
            out = self._queue.take(bytes_max, messages_max)
        return out

    def sent(self, count: int) -> list[Any]:
        """Take note that `count` bytes are out of our hands; return the sources of whole files."""
        return [entry.source for entry in self._queue.sent(count) if isinstance(entry, FileEntry)]

    def finish_file(self, source: object, sha256: str) -> None:
        """The last piece of `source` was read; its whole content has this SHA-256 (hex)."""
        self._queue.finish_file(source, self.extension.trailer(self._queue.head, sha256))

    def begun_file(self, source: object) -> bool:
        """Return whether bytes of this file were handed out already."""
        head = self._queue.head
        return isinstance(head, FileEntry) and head.source is source and head.begun

    def abandon_file(self, source: object) -> bool:
        """Give up a file that cannot be read; return whether the connection must end for it."""
        return self._queue.discard_file(source)
