"""The streams of a node behind a port: what is put is on its disk before anybody gets it.

    a line ─► client ─► the node's log ─► the receiver `streams` ─► cursors that keep up: lines
                              └──────── pages of one subject ─────► cursors that are behind

Listeners are no receivers of the node: it has one, for all that is put into streams, which
acknowledges as it hands on. Each who listens to a stream is a *cursor*: a position up to which it
has everything. One that keeps up is written what comes; one that is far behind, or comes back with
a token, reads pages of the log until there is nothing more, and keeps up then. Little waits for it
in memory, and it keeps nothing in the log: what has gone before it was read is a gap, and told.

A key is one token of a subject below `streams.`, percent-encoded.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import quote, unquote_to_bytes

from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.arguments import check_kind, check_methods
from msgservice.client.client import Client
from msgservice.client.receipt import Receipt
from msgservice.clock import timed
from msgservice.core.subjects import EVERY_STREAM, STREAMS, check_name, check_subject, streams_of
from msgservice.errors import (
    BadSubject,
    BadValue,
    LimitReached,
    MsgServiceError,
    NoReceiver,
)
from msgservice.faces.streams.keys import SortedKeys
from msgservice.faces.streams.live import LAG_MIN
from msgservice.faces.streams.outbound import Chunk
from msgservice.faces.streams.served import Host, Listener, ListenerState
from msgservice.faces.streams.wire import (
    ABSENT,
    CLOSE,
    DELETE,
    GAP,
    HANGUP,
    HEADER,
    LIST,
    LISTEN,
    PUT,
    REFUSED,
    Command,
    decode,
    encode,
    line_of,
)
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from msgservice.stream_limits import KIB, MIB

NAME = streams_of("")
KIND = "stream"  # in the headers of a message that is no put: `close` or `delete`
PAGE_BYTES = 64 * KIB
CHUNK_BYTES = 64 * KIB
# Of `listener_bytes`: what a listener is behind in memory, shared with others, before it reads the
# log, which costs each of them a page of its own.
BEHIND_PART = 16
UNCOMMITTED_BYTES = 1 * MIB  # of one publisher, that are not stored; it is not read from beyond
MESSAGE_BYTES = 128  # … of one message, beside its body and key
AGAIN_SECONDS = 0.1  # until what found no room, or no receiver yet, is handed in again
ATTACH_SECONDS = 10.0  # for how long the receiver may take to be there
LOOK_SECONDS = 1.0  # between two looks whether it is
LEFT_OUT_SECONDS = 10.0  # between two lines of the log about messages that are left out
EMPTY = "%"  # the token of the empty key; no other has a percent sign without digits
TOKEN_DIGITS_MAX = 19


class Page(Protocol):
    """A page of a stream, as a node gives it."""

    messages: list[tuple[int, bytes, Mapping[str, str] | None]]
    is_gap: bool
    newest: int
    last: int


class Header(Protocol):
    """The header of a stream, as a node gives it, as of the position `newest`."""

    body: bytes | None
    newest: int


class StreamsNode(Protocol):
    """A node, as far as streams need one (`msgservice.Node`)."""

    log_id: str

    def client(self, name: str, *, principal: str = "") -> Client:
        """Return a client that sends to it."""

    def attach(
        self,
        receiver: Receiver,
        subjects: Sequence[str],
        *,
        principal: str = "",
        retained: bool = True,
    ) -> Any:
        """Attach a receiver."""

    async def read_stream(
        self, subject: str, after: int | None, bytes_max: int, *, principal: str = ""
    ) -> Any:
        """Return a `Page`."""

    async def read_stream_header(self, subject: str, *, principal: str = "") -> Any:
        """Return a `Header`."""


@lru_cache(maxsize=4096)
def subject_of(key: str) -> str:
    """Return the subject of a key. Raises `BadValue` where it is too long for one token."""
    token = quote(key, safe="!\"#$&'()+,-/:;<=?@[\\]^_`{|}~").replace(".", "%2E") or EMPTY
    try:
        return check_subject(STREAMS + token)
    except BadSubject as error:
        raise BadValue("stream", f"cannot be kept by a node: {error.reason}") from None


@lru_cache(maxsize=4096)
def key_of(subject: str) -> str | None:
    """Return the key of a subject; None of one that no key has."""
    token = subject.removeprefix(STREAMS)
    try:
        key = "" if token == EMPTY else unquote_to_bytes(token).decode()
        return key if subject_of(key) == subject else None
    except (UnicodeDecodeError, BadValue):
        return None


def _is_end(headers: Mapping[str, str] | None) -> bool:
    """Return whether a message ends its stream; a client may have a header of that name too."""
    return headers is not None and headers.get(KIND) in (CLOSE, DELETE)


class _Entry(NamedTuple):
    position: int
    message: Any
    line: bytes


class _Put(NamedTuple):
    """A message for the node. `retain`: as of `Client.send`; headers are retained only."""

    key: str
    body: bytes
    headers: dict[str, str] | None = None
    retain: bool | Literal["only"] = False
    ttl: float | None = None

    @property
    def size(self) -> int:
        """Bytes that it counts among what its publisher has that is not stored."""
        return len(self.body) + len(self.key) + MESSAGE_BYTES


class _Cursor:
    """The place of one listener in one stream: it has all up to `position`.

    `is_joining`: where it begins is not known yet, that is read with the header.
    """

    __slots__ = (
        "is_joining",
        "is_over",
        "is_paging",
        "is_reading",
        "is_resumed",
        "listener",
        "paging_since",
        "position",
        "wants",
    )

    def __init__(self, listener: Listener, position: int, *, wants: bool, is_resumed: bool) -> None:
        self.listener = listener
        self.position = position
        self.wants = wants  # tokens
        self.is_resumed = is_resumed  # its token was not looked at yet
        self.is_paging = True
        self.paging_since = 0.0
        self.is_joining = not is_resumed
        self.is_reading = self.is_over = False


class _Stream:
    """A stream that somebody listens to. `head`: of the last that came since then."""

    __slots__ = ("cursors", "entries", "head", "key", "subject")

    def __init__(self, key: str, head: int) -> None:
        self.key, self.subject, self.head = key, subject_of(key), head
        self.cursors: dict[Listener, _Cursor] = {}
        self.entries: list[_Entry] = []


class _Publisher:
    """The account of one publisher: `size` bytes in `open` messages that are not stored.

    `stored`: the position up to which the receiver is to have all before it is done.
    """

    __slots__ = ("done", "open", "room", "size", "stored")

    def __init__(self) -> None:
        self.size = self.open = self.stored = 0
        self.room: Deferred[None] | None = None
        self.done: Deferred[None] | None = None


class _Pages:
    """The pages of one listener, one after the other: of many streams it would not take all."""

    __slots__ = ("is_reading", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[_Stream, _Cursor]] = deque()
        self.is_reading = False


class NodeStreams:
    """The streams of a node, for a server (`Served`).

    Args:
        node: an embedded `Node`, which is started and stopped by its owner: started before and
            stopped after the server.
        principal: the user as whom everything is put, received and read; empty: this program.
        name: of the client and of the receiver, one of that user's names.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, node: StreamsNode, *, principal: str = "", name: str = NAME
    ) -> None:
        check_methods("a Node is needed", ("client", "attach", "read_stream"), node=node)
        check_kind(str, "the name of a user is needed", principal=principal)
        self._node = node
        self._principal, self._name = principal, check_name(name)
        self._reactor = timed(reactor)
        self._host: Host
        self._client: Client | None = None
        self._receiver: Receiver | None = None
        self._attachment: Any = None
        self._looking: IDelayedCall | None = None
        self._is_made_again = False  # the receiver, after somebody has removed it
        self._away_since: float | None = None
        self._is_known = False  # the node has the receiver: what is put is for it
        self._first = DeferredLock()
        self._streams: dict[str, _Stream] = {}
        self._keys = SortedKeys()  # of these
        self._gathered: dict[str, _Stream] = {}  # those with entries that are not written
        self._gathered_bytes = 0
        self._publishers: dict[Listener, _Publisher] = {}
        self._handed_on = 0  # position of the last that the receiver has had
        self._given_up = 0  # … up to which it has had all that it will: it was removed since
        self._left_out = 0  # messages, since the log had a line about one
        self._left_out_at: float | None = None
        # A heap by position: those who wait until what they have put was handed on.
        self._not_handed_on: list[tuple[int, int, _Publisher]] = []
        self._ties = 0
        self._pages: dict[Listener, _Pages] = {}
        self._unanswered: dict[Deferred[Any], None] = {}
        self.work = 0

    # --- for the server

    def serve(self, host: Host) -> None:
        """See `Served`."""
        self._host = host

    def begin(self) -> None:
        """See `Served`."""
        self._client = self._node.client(self._name, principal=self._principal)
        self._receiver = Receiver(
            self._reactor, name=self._name, handler=self._received, batch=True
        )
        self._attachment = self._node.attach(
            self._receiver, [EVERY_STREAM], principal=self._principal, retained=False
        )
        self._looking = self._reactor.callLater(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Look whether the receiver is at the node: who listens would hear nothing, and wait."""
        self._looking = self._reactor.callLater(LOOK_SECONDS, self._look)
        attachment = self._attachment
        self._tell_left_out()
        if attachment.connected:
            self._away_since = None
            if self._is_made_again:
                self._is_made_again = False
                self._page_all()
                self._tell_done()
            return
        now = self._reactor.seconds()
        self._away_since = now if self._away_since is None else self._away_since
        if attachment.is_over and not attachment.is_replaced:
            self._log.warn("the receiver {name} was removed: it is made again", name=self._name)
            self._is_known, self._is_made_again = False, True
            # Nothing was stored for it since.
            self._given_up = max((one.stored for one in self._publishers.values()), default=0)
            attachment.start()
        elif now - self._away_since >= ATTACH_SECONDS and self._streams:
            self._log.error(
                "nothing comes to the receiver {name}, and its streams are closed: {why}",
                name=self._name,
                why=attachment.error,
            )
            for stream in tuple(self._streams.values()):
                for cursor in tuple(stream.cursors.values()):
                    self._end(stream, cursor, REFUSED)

    def _page_all(self) -> None:
        """Let the log say what came while there was no receiver."""
        for stream in tuple(self._streams.values()):
            self._flush(stream)
            for cursor in tuple(stream.cursors.values()):
                if not cursor.is_joining:
                    if not cursor.is_paging:
                        cursor.is_paging, cursor.paging_since = True, self._host.now()
                    self._page(stream, cursor)

    def end(self) -> Deferred[None]:
        """See `Served`: what was put is stored, or its publisher is not told otherwise."""
        waits: list[Deferred[Any]] = []
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._client is not None:
            waits.append(self._client.close())
        if self._receiver is not None:
            waits.append(self._receiver.stop())
        return gatherResults(waits).addCallback(lambda _: None)

    def keys(self, after: str | None = None) -> Iterator[str]:
        """See `Served`."""
        for key in self._keys.behind(after):
            if any(not cursor.is_joining for cursor in self._streams[key].cursors.values()):
                yield key

    def listeners_of(self, key: str) -> list[ListenerState]:
        """See `Served`."""
        stream = self._streams.get(key)
        cursors = () if stream is None else tuple(stream.cursors.values())
        return [
            ListenerState(
                one.listener.peer,
                one.listener.waiting_bytes,
                max(self._host.now() - one.paging_since, LAG_MIN) if one.is_paging else 0.0,
            )
            for one in cursors
            if not one.is_joining
        ]

    def take(self, listener: Listener, command: Command) -> Deferred[None] | None:
        """See `Served`."""
        action, key = command.action, command.stream
        if key is not None:
            subject_of(key)
        if key is not None and action in (PUT, HEADER, CLOSE, DELETE):
            return self._put(listener, self._message(key, command))
        publisher = self._publishers.get(listener)
        if publisher is not None and not self._is_done(publisher):
            # After its earlier lines, not beside them.
            publisher.done = Deferred()
            self._wait_until_handed_on(publisher)
            return publisher.done.addCallback(lambda _: self._do(listener, command))
        return self._do(listener, command)

    def _is_done(self, publisher: _Publisher) -> bool:
        return not publisher.open and publisher.stored <= self._done_to

    @property
    def _done_to(self) -> int:
        """The position up to which all that the receiver gets was handed on."""
        return self._handed_on if self._is_made_again else max(self._handed_on, self._given_up)

    def _wait_until_handed_on(self, publisher: _Publisher) -> None:
        if not publisher.open:
            self._ties += 1
            heapq.heappush(self._not_handed_on, (publisher.stored, self._ties, publisher))

    def _message(self, key: str, command: Command) -> _Put:
        action, message = command.action, command.message
        if action == PUT:
            return _Put(key, encode(self._host.codec, message))
        if action == HEADER:
            is_none = message is ABSENT or message is None  # an empty body lets go of it
            body = b"" if is_none else encode(self._host.codec, message)
            return _Put(key, body, retain="only", ttl=None if is_none else command.ttl)
        # One message ends the stream and lets go of its header: nobody sees one without the other.
        return _Put(key, b"", {KIND: action}, retain=action == DELETE)

    def _do(self, listener: Listener, command: Command) -> Deferred[None] | None:
        key = command.stream
        if listener.is_over:
            return None
        if command.action == LIST:
            return self._host.tell_streams(listener, key, command.after)
        if command.action == LISTEN:
            assert key is not None
            return self._listen(listener, key, command.token)
        if key is not None:
            self._flush(self._streams.get(key))
            self._hang_up(listener, key)
        else:
            self.flush()
            self._hang_up_all(listener)
            if command.action != HANGUP:
                listener.finish()
        return None

    def lost(self, listener: Listener) -> None:
        """See `Served`."""
        self._hang_up_all(listener)
        self._publishers.pop(listener, None)
        self._pages.pop(listener, None)

    def writable(self, listener: Listener) -> None:
        """See `Served`."""
        for key in tuple(listener.keys):
            stream = self._streams.get(key)
            cursor = None if stream is None else stream.cursors.get(listener)
            if stream is not None and cursor is not None and cursor.is_paging:
                self._page(stream, cursor)

    # --- into the node

    def _put(self, listener: Listener, put: _Put) -> Deferred[None] | None:
        publisher = self._publishers.setdefault(listener, _Publisher())
        publisher.size += put.size
        publisher.open += 1
        handed: Deferred[None] | None = None
        if self._is_known and self._send(listener, publisher, put):
            pass
        else:  # one after the other, or they would change places
            handed = self._first.run(
                lambda: Deferred.fromCoroutine(self._until_taken(listener, publisher, put))
            )
        if publisher.size <= UNCOMMITTED_BYTES or listener.is_over:
            return handed
        room: Deferred[None] = Deferred()
        publisher.room = room
        return room if handed is None else handed.addCallback(lambda _: room)

    def _hand_in(self, put: _Put) -> Deferred[Receipt]:
        assert self._client is not None
        return self._client.send(
            subject_of(put.key),
            put.body,
            headers=put.headers,
            require=None if put.retain == "only" else True,
            retain=put.retain,
            ttl=put.ttl,
        )

    def _send(self, listener: Listener, publisher: _Publisher, put: _Put) -> bool:
        """Hand in a message; returns whether there was room for it."""
        try:
            sent = self._hand_in(put)
        except LimitReached:
            return False
        failed = getattr(sent, "result", None)
        if isinstance(failed, Failure) and failed.check(LimitReached):
            sent.addErrback(lambda _: None)
            return False
        self._unanswered[sent] = None
        sent.addBoth(self._answered, sent, listener, publisher, put)
        return True

    async def _until_taken(
        self,
        listener: Listener,
        publisher: _Publisher,
        put: _Put,
    ) -> None:
        until = self._reactor.seconds() + ATTACH_SECONDS
        while not self._is_known:
            try:
                receipt = await self._hand_in(put)
            except (NoReceiver, LimitReached) as error:
                if isinstance(error, NoReceiver) and self._reactor.seconds() >= until:
                    return self._settle(listener, publisher, put, error)
                await deferLater(self._reactor, AGAIN_SECONDS)
            except MsgServiceError as error:
                return self._settle(listener, publisher, put, error)
            else:
                self._is_known = put.retain != "only"  # that goes to nobody, known or not
                return self._settle(listener, publisher, put, receipt)
        while not self._send(listener, publisher, put):
            await deferLater(self._reactor, AGAIN_SECONDS)
        return None

    def _answered(
        self,
        result: Any,
        sent: Deferred[Any],
        listener: Listener,
        publisher: _Publisher,
        put: _Put,
    ) -> None:
        self._unanswered.pop(sent, None)
        outcome = result.value if isinstance(result, Failure) else result
        assert outcome is not None
        self._settle(listener, publisher, put, outcome)

    def _settle(
        self,
        listener: Listener,
        publisher: _Publisher,
        put: _Put,
        outcome: Receipt | BaseException,
    ) -> None:
        publisher.size -= put.size
        publisher.open -= 1
        if isinstance(outcome, BaseException):
            if isinstance(outcome, NoReceiver):
                self._is_known = False
            self._refused(listener, put.key, outcome)
        elif put.retain != "only" and outcome.position is not None:  # that goes to nobody
            publisher.stored = max(publisher.stored, outcome.position)
        if publisher.done is not None:
            self._wait_until_handed_on(publisher)
            self._tell_done()
        if publisher.room is not None and publisher.size <= UNCOMMITTED_BYTES:
            room, publisher.room = publisher.room, None
            room.callback(None)

    def _tell_done(self) -> None:
        while self._not_handed_on and self._not_handed_on[0][0] <= self._done_to:
            _, _, publisher = heapq.heappop(self._not_handed_on)
            done, publisher.done = publisher.done, None
            if done is not None:
                done.callback(None)

    def _refused(self, listener: Listener, key: str | None, error: BaseException) -> None:
        """Close a connection whose message is never taken, with the reason."""
        if listener.is_over:
            return
        self._log.warn(
            "a line of {peer} is refused, and it is closed: {why}",
            peer=listener.peer,
            why=str(error),
        )
        self.lost(listener)
        listener.finish(line_of(self._host.codec, CLOSE, key, reason=f"{REFUSED}: {error}"))

    # --- out of the node

    def _received(self, messages: list[ReceivedMessage]) -> None:
        for message in messages:
            if not (message.replay or message.retained):
                self._happened(message.subject, message.position, message.body, message.headers)
            self._handed_on = max(self._handed_on, message.position)
        self.flush()
        self._tell_done()

    def _happened(
        self, subject: str, position: int, body: bytes, headers: Mapping[str, str]
    ) -> None:
        key = key_of(subject)
        stream = None if key is None else self._streams.get(key)
        if stream is None or position <= stream.head:
            return
        stream.head = position
        if _is_end(headers):
            self._flush(stream)
            for cursor in tuple(stream.cursors.values()):
                if cursor.position < position and self._keeps_up(cursor, position):
                    self._close(stream, cursor, position)
            return
        entry = self._entry(stream, position, body)
        if entry is None:
            return
        if not stream.entries:
            self._gathered[stream.key] = stream
            self.work += len(stream.cursors)
        stream.entries.append(entry)
        self._gathered_bytes += len(entry.line)
        if self._gathered_bytes > CHUNK_BYTES:
            self.flush()

    def _entry(self, stream: _Stream, position: int, body: bytes) -> _Entry | None:
        try:
            message = decode(self._host.codec, body)
            return _Entry(position, message, self._line(stream.key, message))
        except (BadValue, LimitReached) as error:
            self._unreadable(stream, position, error)
            return None

    def _line(self, key: str, message: Any, **token: str) -> bytes:
        line = line_of(self._host.codec, PUT, key, message=message, **token)
        line_bytes = self._host.limits.line_bytes
        if len(line) - 1 > line_bytes:  # who listens would leave for it, again and again
            raise LimitReached("line_bytes", line_bytes)
        return line

    def _unreadable(self, stream: _Stream, position: int, error: MsgServiceError) -> None:
        self._tell_left_out()
        if self._left_out_at is not None:
            self._left_out += 1
            return
        self._left_out_at = self._host.now()
        self._log.warn(
            "message {position} of stream {key!r} is left out, no line can say it: {why}",
            position=position,
            key=stream.key,
            why=str(error),
        )

    def _tell_left_out(self) -> None:
        """Say of how many nothing was said: whoever may send must not fill the log."""
        if self._left_out_at is None or self._host.now() - self._left_out_at < LEFT_OUT_SECONDS:
            return
        if self._left_out:
            self._log.warn(
                "{count} more times a message of a stream was left out, no line can say it",
                count=self._left_out,
            )
        self._left_out, self._left_out_at = 0, None

    def _keeps_up(self, cursor: _Cursor, position: int) -> bool:
        """Return whether it is to be written what has this position; else it pages from there."""
        if cursor.is_paging:
            return False
        listener, limits = cursor.listener, self._host.limits
        if listener.is_full and (
            listener.waiting_bytes > limits.listener_bytes // BEHIND_PART
            or self._host.held_bytes > limits.streams_bytes // 2
        ):
            cursor.position = max(cursor.position, position - 1)
            cursor.is_paging, cursor.paging_since = True, self._host.now()
            return False
        return True

    def flush(self) -> None:
        """See `Served`."""
        for stream in tuple(self._gathered.values()):
            self._flush(stream)

    def _flush(self, stream: _Stream | None) -> None:
        if stream is None or not stream.entries:
            return
        entries, stream.entries = stream.entries, []
        self._gathered.pop(stream.key, None)
        self._gathered_bytes -= sum(len(one.line) for one in entries)
        first, last = entries[0].position, entries[-1].position
        plain: Chunk | None = None
        for cursor in tuple(stream.cursors.values()):
            if not self._keeps_up(cursor, first):
                continue
            if cursor.wants or cursor.position >= first:
                self._write(stream, cursor, entries)
            else:
                if plain is None:
                    plain = Chunk(b"".join([one.line for one in entries]))
                cursor.listener.write(plain)
                cursor.position = last

    def _write(self, stream: _Stream, cursor: _Cursor, entries: Sequence[_Entry]) -> None:
        lines = [
            line_of(
                self._host.codec,
                PUT,
                stream.key,
                message=one.message,
                token=self._token(one.position),
            )
            if cursor.wants
            else one.line
            for one in entries
            if one.position > cursor.position
        ]
        if lines:
            cursor.listener.write(Chunk(b"".join(lines)))
            cursor.position = entries[-1].position

    def _close(self, stream: _Stream, cursor: _Cursor, position: int) -> None:
        token = {"token": self._token(position)} if cursor.wants else {}
        self._hang_up(cursor.listener, stream.key)
        cursor.listener.write(Chunk(line_of(self._host.codec, CLOSE, stream.key, **token)))

    def _token(self, position: int) -> str:
        return f"{self._node.log_id}:{position}"

    # --- who listens

    def _listen(self, listener: Listener, key: str, token: Any) -> Deferred[None] | None:
        if key in listener.keys:
            return None
        if len(listener.keys) >= self._host.limits.subscriptions_max:
            raise LimitReached("subscriptions_max", self._host.limits.subscriptions_max)
        is_resumed = isinstance(token, str)
        position = self._handed_on
        if is_resumed:
            log_id, _, digits = token.rpartition(":")
            is_number = digits.isascii() and digits.isdecimal() and len(digits) <= TOKEN_DIGITS_MAX
            if log_id != self._node.log_id or not is_number:
                listener.write(Chunk(line_of(self._host.codec, CLOSE, key, reason=GAP)))
                return None
            position = int(digits)
        self._host.listens(key)
        self.flush()
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(key, self._handed_on)
            self._keys.add(key)
        cursor = _Cursor(listener, position, wants=token is not ABSENT, is_resumed=is_resumed)
        cursor.paging_since = self._host.now()
        stream.cursors[listener] = cursor
        listener.keys[key] = None
        if is_resumed:
            self._page(stream, cursor)
            return None
        return self._join(stream, cursor)

    def _join(self, stream: _Stream, cursor: _Cursor) -> Deferred[None]:
        """Read the header and where that is, between two groups; from there on it has everything.

        Whatever comes meanwhile is behind that, or in the header's past.
        """
        cursor.is_reading = True
        read = Deferred.fromCoroutine(
            self._node.read_stream_header(stream.subject, principal=self._principal)
        )
        read.addCallbacks(
            self._joined,
            self._not_read,
            callbackArgs=(stream, cursor),
            errbackArgs=(stream, cursor),
        )
        return read.addErrback(lambda f: self._log.failure("the header of a stream", f))

    def _joined(self, header: Header, stream: _Stream, cursor: _Cursor) -> None:
        cursor.is_reading = cursor.is_joining = False
        if cursor.is_over:
            return
        cursor.position = header.newest
        if header.body is not None:
            token = {"token": self._token(header.newest)} if cursor.wants else {}
            try:
                message = decode(self._host.codec, header.body)
                line = self._line(stream.key, message, **token)
            except (BadValue, LimitReached) as error:
                self._unreadable(stream, header.newest, error)
            else:
                cursor.listener.write(Chunk(line))
        if stream.head <= header.newest:
            cursor.is_paging = False
        else:
            self._page(stream, cursor)

    def _hang_up(self, listener: Listener, key: str) -> None:
        if key not in listener.keys:
            return
        del listener.keys[key]
        self._host.hangs_up(key)
        stream = self._streams[key]
        stream.cursors.pop(listener).is_over = True
        if not stream.cursors:
            self._gathered.pop(key, None)
            self._gathered_bytes -= sum(len(one.line) for one in stream.entries)
            del self._streams[key]
            self._keys.remove(key)

    def _hang_up_all(self, listener: Listener) -> None:
        for key in tuple(listener.keys):
            self._hang_up(listener, key)

    # --- pages of the log

    def _page(self, stream: _Stream, cursor: _Cursor) -> None:
        """Read a page for a listener, when its turn has come among the streams of that listener."""
        if cursor.is_reading or cursor.is_over:
            return
        cursor.is_reading = True
        pages = self._pages.get(cursor.listener)
        if pages is None:
            pages = self._pages[cursor.listener] = _Pages()
        pages.waiting.append((stream, cursor))
        self._read_next(cursor.listener, pages)

    def _read_next(self, listener: Listener, pages: _Pages) -> None:
        while pages.waiting and not pages.is_reading:
            stream, cursor = pages.waiting.popleft()
            if cursor.is_over:
                continue
            if listener.is_full and not cursor.is_resumed:
                cursor.is_reading = False  # `writable` goes on
                continue
            pages.is_reading = True
            read = Deferred.fromCoroutine(
                self._node.read_stream(
                    stream.subject, cursor.position, PAGE_BYTES, principal=self._principal
                )
            )
            read.addBoth(self._has_read, pages)
            read.addCallbacks(
                self._paged,
                self._not_read,
                callbackArgs=(stream, cursor),
                errbackArgs=(stream, cursor),
            )
            read.addErrback(lambda f: self._log.failure("a page of a stream", f))
            read.addCallback(lambda _: self._read_next(listener, pages))
        if not (pages.waiting or pages.is_reading) and self._pages.get(listener) is pages:
            del self._pages[listener]

    def _has_read(self, result: Any, pages: _Pages) -> Any:
        pages.is_reading = False
        return result

    def _not_read(self, failure: Failure, stream: _Stream, cursor: _Cursor) -> None:
        cursor.is_reading = False
        if cursor.is_over:
            return
        self._log.failure("stream {key!r} cannot be read", failure, key=stream.key)
        self._end(stream, cursor, REFUSED)

    def _paged(self, page: Page, stream: _Stream, cursor: _Cursor) -> None:
        cursor.is_reading = False
        if cursor.is_over:
            return
        if page.is_gap or (cursor.is_resumed and cursor.position > page.newest):
            self._end(stream, cursor, GAP)
            return
        cursor.is_resumed = False
        if cursor.listener.is_full:  # it was read for its token alone
            return
        entries: list[_Entry] = []
        for position, body, headers in page.messages:
            if _is_end(headers):
                self._write(stream, cursor, entries)
                self._close(stream, cursor, position)
                return
            entry = self._entry(stream, position, body)
            if entry is not None:
                entries.append(entry)
        self._write(stream, cursor, entries)
        cursor.position = max(cursor.position, page.last)
        if page.last >= page.newest >= stream.head:  # there is no more, and nothing came meanwhile
            cursor.is_paging = False
        else:
            self._page(stream, cursor)

    def _end(self, stream: _Stream, cursor: _Cursor, reason: str) -> None:
        self._hang_up(cursor.listener, stream.key)
        cursor.listener.write(Chunk(line_of(self._host.codec, CLOSE, stream.key, reason=reason)))
