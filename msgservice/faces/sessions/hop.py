"""A hop: one side's messages and acknowledgements on their way over its own client.

    Account.outgoing ─► Hop ─► Sender ─► the other side's server
                         ▲ what it acknowledged, or what its kernel has

Both sides of a session have one. When it is open, and what a session is, is its owner's: `member`
at the central, `remote` at the other end. The `Account` outlives both.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from msgservice.core.framing import PREFIX_BYTES
from msgservice.errors import HandlerFailed, MessageTooLarge
from msgservice.faces.sessions.content.codec import ISessionCodec
from msgservice.faces.sessions.envelope import Ack, Control, Previous, Shutdown, Window
from msgservice.faces.sessions.errors import NotJoined, RemoteLeft
from msgservice.faces.sessions.incoming import ACK_BYTES, Incoming
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.outgoing import ENVELOPE_BYTES, Entry, Outgoing
from msgservice.faces.sessions.sender import Sender

SESSIONS_NAMED = 16  # names of sessions by which the other side may come back
LARGE_BYTES = 64 * 1024  # what a kernel takes at once, at least
FRUITLESS_MAX = 2  # connections in a row that end and bring nothing, until it is looked why
ALONE_MAX = 100  # messages that go alone then, at most
TRIES_MAX = 2  # connections that may end with the same large message alone
STOOD_SECONDS = 1.0  # for which a connection stands before the first of them
LOOK_SECONDS = 0.005  # between two looks at what the peer's kernel has, while they go
KERNEL_SECONDS = 0.05  # between two looks at what the peer's kernel has


def prepare(codec: ISessionCodec, content: object, limits: SessionLimits) -> bytes:
    """Return content as the codec has it; `TypeError`, or `MessageTooLarge`."""
    prepared = codec.prepare(content)
    size_max = _size_max(limits.payload_bytes)
    if len(prepared) > size_max:
        raise MessageTooLarge(len(prepared), size_max)
    return prepared


class Account:
    """The account with one other side: the queue towards it, and how far its own were taken."""

    def __init__(self, limits: SessionLimits) -> None:
        self.outgoing = Outgoing(messages_max=limits.queue_messages, bytes_max=limits.queue_bytes)
        self.incoming = Incoming()
        # Whose numbers go on: the last that the other side confirmed, and those begun since.
        self._sessions: list[str] = []
        self.was_confirmed = False  # any of them, ever

    def knows(self, previous: Previous | None) -> bool:
        """Whether the numbers of a session go on, as the other side names it."""
        return previous is not None and previous[0] in self._sessions

    def begin(self, session: str, *, continues: bool, upto: int = 0) -> None:
        """Begin a session. `continues`: with the numbers of the one before, handled `upto` there.

        Raises `BadAck` for an `upto` that was never sent.
        """
        ended = self.outgoing.begin(session, continues=continues, upto=upto)
        if not continues:
            self._sessions.clear()
            self.incoming = Incoming()
            self.outgoing.takes()  # what this process takes it has still to say, if it does
        self.announce(session)
        self.incoming.begin(session)
        for entry in ended:
            entry.settle(None if continues else _unknown(entry, "another process has come"))

    def announce(self, session: str) -> None:
        """Let the other side come back by a session, though it may not have begun here."""
        if session not in self._sessions:
            self._sessions.append(session)
        if len(self._sessions) > SESSIONS_NAMED:
            del self._sessions[1]

    def confirmed(self, payload_bytes: int | None, window: Window | None) -> None:
        """Take note that the other side knows the session: it comes back by none before that.

        `payload_bytes`: that it takes at once, if it says so. What is larger fails: only now, since
        anybody can say to be that side. `window`: how much it takes unanswered.
        """
        self.was_confirmed = True
        if self.outgoing.session in self._sessions:
            del self._sessions[: self._sessions.index(self.outgoing.session)]
        size_max = _size_max(payload_bytes)
        self.outgoing.takes(size_max, window)
        for entry in self.outgoing.remove(
            lambda entry: not entry.number and len(entry.prepared) > size_max
        ):
            entry.settle(MessageTooLarge(len(entry.prepared), size_max))
        for entry in self.outgoing.remove(
            lambda entry: entry.ends_with_process and entry.was_sent and not entry.number
        ):
            entry.settle(_unknown(entry, "another process has come"))

    def end(self, why: str) -> None:
        """End what waits: it has failed, and who was to get it may come back."""
        for entry in self.outgoing.end():
            entry.settle(_unknown(entry, why))


class Hop:
    """The way of one side's messages, while it is open.

    Args:
        acks: whether the other side acknowledges; else what its kernel has counts as that.
        on_shutdown: called when a shutdown that was sent is acknowledged.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        account: Account,
        sender: Sender,
        codec: ISessionCodec,
        limits: SessionLimits,
        acks: bool,
        on_shutdown: Callable[[], object] = lambda: None,
    ) -> None:
        self.is_open = False
        self.is_ending = False  # a shutdown is on its way: nothing leaves behind that
        self._reactor = reactor
        self._account = account
        self._sender = sender
        self._codec = codec
        self._limits = limits
        self._acks = acks
        self._on_shutdown = on_shutdown
        self._ack_timer: IDelayedCall | None = None
        self._kernel_timer: IDelayedCall | None = None
        # Without acknowledgements, while messages end connections (`_ended_with`):
        self._fruitless = 0  # connections in a row that brought nothing
        self._alone = 0  # so many of what is next go one by one …
        self._pause: IDelayedCall | None = None  # … when this is over
        self._written = 0  # bytes, on this connection, and where in them each message ends:
        self._ends: deque[int] = deque()

    def adopt(self, account: Account) -> None:
        """Go on with another account: nothing has left of the one before."""
        self._account = account

    def connected(self) -> None:
        """Begin a connection: control messages may leave."""
        self._written = 0
        self._ends.clear()

    def open(self) -> None:
        """Let messages and acknowledgements leave."""
        self.is_open = True
        self._sender.established(is_proven=self._acks)
        if self._account.incoming.handled:
            self._account.incoming.say(anew=True)
        if self._alone:
            self._pause = self._reactor.callLater(STOOD_SECONDS, self._stood)
        self.writable()

    def close(self) -> None:
        """Let nothing leave any more; what is unanswered waits again."""
        was_open, self.is_open = self.is_open, False
        for timer in (self._ack_timer, self._kernel_timer, self._pause):
            if timer is not None and timer.active():
                timer.cancel()
        self._ack_timer = self._kernel_timer = self._pause = None
        self._ends.clear()
        count = self._account.outgoing.unanswered
        self._account.outgoing.rewind()
        if was_open and count and not (self._acks or self.is_ending):
            self._ended_with(count)

    def add(self, entry: Entry) -> None:
        """Send a message as soon as may be. Raises `QueueFull`, `MessageTooLarge`."""
        self._account.outgoing.add(entry)
        self.pump()

    def write(self, payload: bytes) -> None:
        """Write a control message ahead of all that waits."""
        self._written += PREFIX_BYTES + len(payload)
        self._sender.write([payload])

    def control(self, item: Control) -> None:
        """Write a control message ahead of all that waits."""
        self.write(self._codec.control(item))

    def acknowledged(self, ack: Ack) -> None:
        """Take the other side's word on what was handled. Raises `BadAck`."""
        incoming, failed = self._account.incoming, dict(ack.failed)
        if ack.heard is not None:
            incoming.heard(ack.session, ack.heard)
        for entry in self._account.outgoing.acknowledge(ack.session, ack.upto):
            reason = failed.get(entry.number)
            self._settle(entry, HandlerFailed(reason) if reason is not None else None)
        if failed:  # the other side keeps them until it is told
            incoming.say()
            self.handled(incoming)
        self.pump()  # the window has room again

    def handled(self, incoming: Incoming) -> None:
        """Acknowledge soon: a handler has ended, or a message came again."""
        if incoming is not self._account.incoming or not self.is_open:
            return
        if incoming.due >= self._limits.ack_messages:
            self.write_ack()
        elif self._ack_timer is None:
            self._ack_timer = self._reactor.callLater(0, self.write_ack)

    def write_ack(self, *, at_end: bool = False) -> None:
        """Write the acknowledgement that is due, as far as the client has room; `at_end`: all."""
        timer, self._ack_timer = self._ack_timer, None
        if timer is not None and timer.active():
            timer.cancel()
        account = self._account
        while self.is_open and (at_end or self._sender.room > 0):
            size_max = min(ACK_BYTES, account.outgoing.size_max - ENVELOPE_BYTES)
            ack = account.incoming.take_ack(account.outgoing.answered or None, size_max)
            if ack is None:
                return
            self.control(ack)

    def end(self) -> None:
        """Write all that is to leave before the client ends: answers, and what waits."""
        self.write_ack(at_end=True)
        self.pump(at_end=True)

    def writable(self) -> None:
        """Write on: there is room again."""
        self.write_ack()
        self.pump()

    def pump(self, *, at_end: bool = False) -> None:
        """Write what waits, as much as the client has room for; `at_end`: all."""
        outgoing, sender = self._account.outgoing, self._sender
        while self.is_open and not self.is_ending and outgoing.has_waiting:
            room = sender.room if not at_end else sys.maxsize
            if self._alone and not at_end:
                if self._pause is not None or outgoing.unanswered:
                    break
                room = min(room, 1)
            if room <= 0:
                break
            entries = outgoing.take(room, at_end=at_end)
            if not entries:
                break
            self.is_ending = entries[-1].is_shutdown
            sender.write([self._payload(entry) for entry in entries])
        if self.is_open and self._ends and self._kernel_timer is None:
            seconds = KERNEL_SECONDS if not self._alone else LOOK_SECONDS
            self._kernel_timer = self._reactor.callLater(seconds, self._look_at_kernel)

    # --- inside

    def _payload(self, entry: Entry) -> bytes:
        outgoing = self._account.outgoing
        session, number = (outgoing.session, entry.number) if self._acks else (None, None)
        if entry.is_shutdown:
            reason = entry.prepared.decode() or None
            payload = self._codec.control(Shutdown(session, number, reason))
        else:
            payload = self._codec.message(entry.prepared, session, number)
        if not self._acks:
            self._written += PREFIX_BYTES + len(payload)
            self._ends.append(self._written)
        return payload

    def _ended_with(self, count: int) -> None:
        """Find out which of so many messages it is that ends connections, and give that up.

        The other side may take none so large, who cannot say so, and what is behind it would never
        leave. Where two connections have ended and brought nothing, each goes alone, and only on a
        connection that has stood for a while: one that ends before says nothing of messages.
        """
        if not self._alone:
            self._fruitless += 1
            if self._fruitless == FRUITLESS_MAX:
                self._fruitless, self._alone = 0, min(count, ALONE_MAX)
            return
        entry = self._account.outgoing.first_sent
        if entry is None or len(entry.prepared) < LARGE_BYTES:
            return
        entry.tries += 1
        if entry.tries == TRIES_MAX:
            self._alone -= 1
            self._account.outgoing.remove(lambda each: each is entry)
            size = len(entry.prepared)
            self._log.warn(
                "a message of {size} bytes is given up: {tries} connections ended with it alone",
                size=size,
                tries=TRIES_MAX,
            )
            entry.settle(RemoteLeft(f"{TRIES_MAX} connections ended with its {size} bytes"))

    def _stood(self) -> None:
        """Take note that a connection has stood for a while, with nothing on its way."""
        self._pause = None
        self.pump()

    def _look_at_kernel(self) -> None:
        self._kernel_timer = None
        has = self._written - self._sender.kernel_waits()
        count = 0
        while self._ends and self._ends[0] <= has:
            self._ends.popleft()
            count += 1
        if count:
            self._fruitless, self._alone = 0, max(0, self._alone - count)
        for entry in self._account.outgoing.settle_first(count):
            self._settle(entry, None)
        self.pump()

    def _settle(self, entry: Entry, error: Exception | None) -> None:
        entry.settle(error)
        if entry.is_shutdown:
            self._on_shutdown()


def _unknown(entry: Entry, why: str) -> Exception:
    if entry.was_sent:
        return RemoteLeft(f"{why}, before there was an answer")
    return NotJoined(f"{why}, and nothing was sent")


def _size_max(payload_bytes: int | None) -> int:
    return sys.maxsize if payload_bytes is None else max(0, payload_bytes - ENVELOPE_BYTES)
