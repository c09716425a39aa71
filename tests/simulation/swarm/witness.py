"""What crossed the boundaries: frames at the far ends, in the order in which they crossed.

Every channel of a process is tapped (`TapTransport`). Frames are decoded here with plain msgpack,
not with the product's decoder, and read for what they say: what was delivered, answered, told.
Nothing of the product's own accounts comes in here. A tap can also hold a process's channels still,
so that it hears nothing or is not heard, without a word to either side.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import implementer

from msgservice.errors import ProtocolError
from msgservice.interfaces import IChannel, IChannelUser, ITransport
from msgservice.limits import Limits
from msgservice.testing.transport import ChecksNothing
from tests.simulation.swarm.meter import Meter

HELLO, TRANSFER, ACK, NACK, STATUS, ROUTED = 1, 2, 3, 4, 5, 6
AUTH, ERROR, RESUME = 11, 13, 16
AGAIN, DEAD, REFUSED, LATER = 1, 2, 3, 4
FINAL = 3  # states from here on never change
EXPIRED = 4  # the state
COPY = 2 | 16  # flags: a replay, or of what was retained
REPLAY_OF = "msgservice-replay-of"
TRANSFER_KIND = bytes([TRANSFER])
NODE_HEARS = {bytes([kind]) for kind in (HELLO, ACK, NACK, RESUME)}  # the frame's second byte
RANGE_MAX = 100_000  # of a range that is looked at one by one

_decode = msgspec.msgpack.Decoder().decode


class Violation(AssertionError):
    """A rule was broken. `sign`: which, in few words, the same for the same fault."""

    def __init__(self, sign: str, what: str) -> None:
        super().__init__(f"{sign}: {what}")
        self.sign = sign


class Delivered:
    """Sequences and the bodies that they brought."""

    def __init__(self) -> None:
        self._bodies: dict[int, bytes] = {}
        self._sequences: list[int] = []  # rising

    def add(self, sequence: int, body: bytes) -> None:
        """It came, perhaps again."""
        if sequence not in self._bodies:
            insort(self._sequences, sequence)
        self._bodies[sequence] = body

    def all(self) -> dict[int, bytes]:
        """Return all that came."""
        return dict(self._bodies)

    def between(self, first: int, last: int) -> list[bytes]:
        """Return what came of these."""
        return [self._bodies[sequence] for sequence in self.sequences(first, last)]

    def sequences(self, first: int, last: int) -> list[int]:
        """Return those of these that came."""
        low, high = bisect_left(self._sequences, first), bisect_right(self._sequences, last)
        return self._sequences[low:high]


class Witness:
    """See the module."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._hash = sha256()
        self.frames = 0
        self.found: list[Violation] = []
        # of what was delivered, by receiver and the node's incarnation
        self.delivered: dict[tuple[str, str], Delivered] = {}
        self.delivered_as: set[tuple[str, str, bytes]] = set()  # receiver, subject, body
        self.answered: set[tuple[str, bytes]] = set()  # (receiver, body): ACK or RESUME was said
        self.rejected: set[tuple[str, bytes]] = set()  # NACK 2 or 3 was said
        self.tries: Counter[tuple[str, bytes]] = Counter()  # NACK 1 was said
        self.refused_by: set[tuple[str, bytes]] = set()  # any NACK was
        self.losses: Counter[str] = Counter()  # connections that a receiver lost
        self.errors: list[tuple[str, int, str]] = []  # (who was told, code, reason)
        self.finals: dict[tuple[str, str, str, int], int] = {}  # told to producers
        self.told_later: Callable[[str], None] = lambda reason: None  # a producer is to wait
        self.is_barred: Callable[[str], bool] = lambda name: False  # nobody may be logged in as it
        # When an answer first reached the node: by receiver and body, and by receiver and position,
        # for what clears a subject has the same body as any other that does.
        self.answered_at: dict[tuple[str, bytes], float] = {}
        self.position_answered_at: dict[tuple[str, int], float] = {}
        self.resumed_at: dict[str, list[float]] = {}  # a receiver's RESUMEs reached the node
        # of what was handed to the node, by producer and its incarnation
        self.handed: dict[tuple[str, str], Delivered] = {}
        self.floors: dict[tuple[str, str], int] = {}  # below it a producer waits for nothing
        # when the connection began over which a message was last said to be accepted
        self.accepted_over: dict[bytes, float] = {}
        # What a producer passed over by `after`, since the log went back: of it an answer that
        # covers the gap says nothing, nor does a RESUME from then on.
        self.passed: set[bytes] = set()
        self.refused: set[bytes] = set()  # a producer was told that its message is not taken
        # When the log last went back: what was told before may be told otherwise.
        self.went_back_at = -1.0
        self.delivered_bytes = 0
        # Of originals: where each is in a log, by that log's id, and when it first came from there.
        self.places: dict[bytes, dict[tuple[str, int], float]] = {}
        # Of copies to a receiver: those of a body, by the id of the log and their positions, and
        # their flags with the position that they say to be of.
        self.copies: dict[tuple[str, bytes], dict[tuple[str, int], tuple[int, str]]] = {}
        # --- of what expires, where that is watched
        self.watches_times = False
        self.told_expired: dict[tuple[str, str, bytes], float] = {}  # producer, receiver, body
        self.fed_at: dict[tuple[str, bytes], float] = {}  # last sent to a receiver by the node
        self.lives_until: dict[bytes, float] = {}  # as what reached the node says
        # ACK frames, and what of them came over the same connection; when one reached the node.
        self._answers: dict[tuple[str, bytes], set[bytes]] = {}
        self.heard_at: dict[tuple[str, bytes], float] = {}
        self.due_of: dict[bytes, int] = {}  # ms, as producers are told

    @property
    def digest(self) -> str:
        """The same for the same history."""
        return self._hash.hexdigest()[:16]

    def note(self, sign: str, what: str) -> None:
        """A rule was broken; the first counts, later ones are often its consequences."""
        if len(self.found) < 20:
            self.found.append(Violation(sign, f"at {self._seconds():.3f}: {what}"))

    def crossed(self, who: str, frame: bytes, *, arrives: bool) -> None:
        """Take note of a frame at the end of a process."""
        self.frames += 1
        self._hash.update(f"{self._seconds():.6f}{who}{arrives:d}".encode())
        self._hash.update(frame)

    # --- of receivers

    def receiver_got(self, tap: TapUser, frame: list[Any]) -> None:
        """A frame reached a receiver."""
        if frame[0] == HELLO:
            tap.far = frame[3]
        elif frame[0] == TRANSFER:
            delivered = self.delivered.setdefault((tap.who, tap.far), Delivered())
            tap.came.update(range(frame[1], frame[1] + len(frame[3])))
            flags = frame[10] if len(frame) > 10 else 0
            log_id = tap.far.partition(".")[0]
            for index, message in enumerate(frame[3]):
                place = (log_id, frame[1] + index)
                if flags & COPY:
                    of = (message[1] or {}).get(REPLAY_OF, "") if len(message) > 1 else ""
                    copies = self.copies.setdefault((tap.who, message[0]), {})
                    copies[place] = (flags, of)
                else:
                    self.places.setdefault(message[0], {}).setdefault(place, self._seconds())
                delivered.add(frame[1] + index, message[0])
                self.delivered_as.add((tap.who, frame[2], message[0]))
                self.delivered_bytes += len(message[0])

    def receiver_said(self, tap: TapUser, frame: list[Any], raw: bytes) -> None:
        """A receiver sent a frame."""
        if frame[0] == ACK:
            self._mark(self.answered, tap, frame[1])
            if self.watches_times:
                delivered = self.delivered.get((tap.who, tap.far), Delivered())
                came = [s for a, b in frame[1] for s in delivered.sequences(a, b) if s in tap.came]
                heard = {body for one in came for body in delivered.between(one, one)}
                self._answers.setdefault((tap.who, raw), set()).update(heard)
        elif frame[0] == RESUME:
            self._mark(self.answered, tap, [(0, frame[1] - 1)])
            self._mark(self.answered, tap, frame[2])
        elif frame[0] == NACK:
            self._mark(self.refused_by, tap, [frame[1:3]])
            if frame[3] == AGAIN:
                bodies = self._bodies(tap.who, tap.far, [frame[1:3]])
                self.tries.update((tap.who, body) for body in bodies)
            elif frame[3] in (DEAD, REFUSED):
                self._mark(self.rejected, tap, [frame[1:3]])

    def _mark(
        self, marks: set[tuple[str, bytes]], tap: TapUser, ranges: Sequence[Sequence[int]]
    ) -> None:
        marks.update((tap.who, body) for body in self._bodies(tap.who, tap.far, ranges))

    def _bodies(self, who: str, far: str, ranges: Sequence[Sequence[int]]) -> Iterator[bytes]:
        delivered = self.delivered.get((who, far))
        if delivered is not None:
            for first, last in ranges:
                yield from delivered.between(first, last)

    def log_went_back(self) -> None:
        """The node's log is an older one: what it tells from now on may be other."""
        self.went_back_at = self._seconds()
        self.finals.clear()
        self.passed.clear()

    # --- of the node

    def node_said(self, tap: TapUser, frame: list[Any]) -> None:
        """The node sent messages; a copy of one that was over before it was dead is another."""
        if len(frame) > 10 and frame[10] & COPY:
            return
        for message in frame[3]:
            self.fed_at[tap.peer, message[0]] = self._seconds()

    def node_got(self, tap: TapUser, frame: list[Any], raw: bytes) -> None:
        """An answer reached the node: from now on it may know."""
        if frame[0] == HELLO:
            tap.peer = frame[2]
            return
        if frame[0] == TRANSFER:
            if self.watches_times and len(frame) > 8 and frame[8] is not None:
                over = self._seconds() + frame[8] / 1000
                for message in frame[3]:
                    self.lives_until[message[0]] = max(over, self.lives_until.get(message[0], over))
            return
        if frame[0] == ACK and not tap.is_ending:
            for body in self._answers.pop((tap.peer, raw), ()):
                self.heard_at.setdefault((tap.peer, body), self._seconds())
        ranges = frame[1] if frame[0] == ACK else [frame[1:3]]
        if frame[0] == RESUME:
            ranges = [(0, frame[1] - 1), *frame[2]]
            self.resumed_at.setdefault(tap.peer, []).append(self._seconds())
            tap.has_resumed = True
        if frame[0] == NACK and frame[3] not in (DEAD, REFUSED):
            return
        now = self._seconds()
        delivered = self.delivered.get((tap.peer, tap.far), Delivered())
        for first, last in ranges:
            for sequence in delivered.sequences(first, last):
                self.position_answered_at.setdefault((tap.peer, sequence), now)
            for body in delivered.between(first, last):
                self.answered_at.setdefault((tap.peer, body), now)

    # --- of producers

    def producer_said(self, tap: TapUser, frame: list[Any]) -> None:
        """A producer sent a frame."""
        if frame[0] == HELLO:
            tap.far = frame[3]
            return
        handed = self.handed.setdefault((tap.who, tap.far), Delivered())
        self.floors[tap.who, tap.far] = max(self.floors.get((tap.who, tap.far), 1), frame[5])
        if frame[4] is not None:
            self.passed.update(handed.between(frame[4] + 1, frame[1] - 1))
        for index, message in enumerate(frame[3]):
            handed.add(frame[1] + index, message[0])
            tap.sent.add(message[0])
            self.passed.discard(message[0])

    def producer_got(self, tap: TapUser, frame: list[Any]) -> None:
        """A frame reached a producer."""
        if frame[0] in (ACK, RESUME):
            handed = self.handed.get((tap.who, tap.far), Delivered())
            ranges = frame[1]
            if frame[0] == RESUME:
                # Not what is below the floor that the producer has said itself.
                floor = self.floors.get((tap.who, tap.far), 1)
                ranges = [(floor, frame[1] - 1), *frame[2]]
            for first, last in ranges:
                for body in handed.between(first, last):
                    # An ACK also covers what `after` passed over, whatever became of that before.
                    if body in tap.sent or (frame[0] == RESUME and body not in self.passed):
                        self.accepted_over[body] = tap.opened_at
        if frame[0] == ROUTED and len(frame) > 5 and frame[5]:
            handed = self.handed.get((tap.who, tap.far), Delivered())
            for body in handed.between(frame[1], frame[2]):
                self.due_of.setdefault(body, frame[5])
        if self.watches_times and frame[0] == STATUS and frame[3] == EXPIRED:
            handed = self.handed.get((tap.who, frame[1]), Delivered())
            for first, last in frame[4]:
                for body in handed.between(first, last):
                    self.told_expired.setdefault((tap.who, frame[2], body), self._seconds())
        if frame[0] == NACK and frame[3] in (DEAD, REFUSED):
            handed = self.handed.get((tap.who, tap.far), Delivered())
            self.refused.update(handed.between(frame[1], frame[2]))
        if frame[0] == STATUS and frame[3] >= FINAL and tap.opened_at >= self.went_back_at:
            _, incarnation, receiver, state, ranges, *_ = frame
            for first, last in ranges:
                for sequence in range(first, min(last, first + RANGE_MAX) + 1):
                    key = (tap.who, incarnation, receiver, sequence)
                    before = self.finals.setdefault(key, state)
                    if before != state:
                        self.note(
                            "a final status changed",
                            f"{tap.who} was told {before} of its {sequence} at {receiver},"
                            f" now {state}",
                        )

    def told_error(self, tap: TapUser, frame: list[Any]) -> None:
        """Somebody was told an ERROR."""
        reason = frame[2] if len(frame) > 2 else ""
        self.errors.append((tap.who, frame[1], reason))
        if reason == "internal error":
            self.note("internal error", f"{tap.who} is told an internal error")


class Party:
    """What a tap needs to know of whose process it is."""

    name: str
    role: str  # node, producer, receiver, other
    taps: list[TapUser]
    meter: Meter | None = None


class TapChannel:
    """A channel that notes what is sent, and can be held still."""

    def __init__(self, tap: TapUser, inner: Any) -> None:
        self._tap = tap
        self.inner = inner
        self._is_paused = False
        self._is_held = False

    def __getattr__(self, name: str) -> Any:
        """What only looks is the inner one's."""
        return getattr(self.inner, name)

    def send(self, frame: bytes) -> None:
        """See `IChannel`."""
        self._tap.said(frame)
        self.inner.send(frame)

    def send_now(self, frames: Sequence[bytes]) -> None:
        """See `IChannel`."""
        for frame in frames:
            self._tap.said(frame)
        self.inner.send_now(frames)

    def established(self) -> None:
        """See `IChannel`."""
        self.inner.established()

    def pause(self) -> None:
        """See `IChannel`."""
        self._is_paused = True
        self.inner.pause()

    def resume(self) -> None:
        """See `IChannel`."""
        self._is_paused = False
        if not self._is_held:
            self.inner.resume()

    def close(self) -> None:
        """See `IChannel`."""
        self._tap.is_ending = True
        self.inner.close()

    def abort(self) -> None:
        """See `IChannel`."""
        self._tap.is_ending = True
        self.inner.abort()

    def hold(self, held: bool) -> None:
        """Read nothing, whatever the user says, until told otherwise."""
        self._is_held = held
        if held:
            self.inner.pause()
        elif not self._is_paused:
            self.inner.resume()

    @property
    def unread_bytes(self) -> int:
        """What was sent here and the other side has not read."""
        inner = self.inner
        if not hasattr(inner, "other"):
            return 0  # over UDP: what it holds for a peer is bounded by `unsent`
        return int(inner.other.waiting_bytes) + sum(map(len, inner._written))


@implementer(IChannelUser)
class TapUser:
    """Passes everything on, and tells the witness."""

    def __init__(self, witness: Witness, party: Party, user: IChannelUser) -> None:
        self.who = party.name
        self.far = ""  # the incarnation that the other side has given; for the others: their own
        self.peer = ""  # who the other side says it is
        self.has_resumed = False  # … and it has said what it has: its session is open
        self.channel: TapChannel | None = None
        self.opened_at = 0.0
        self.is_gone = False
        self.is_ending = False  # the process has closed it
        self.sent: set[bytes] = set()  # bodies, by a producer over this connection
        self.came: set[int] = set()  # sequences, to a receiver over this connection
        self._witness = witness
        self._party = party
        self._user = user

    def said(self, frame: bytes) -> None:
        """The process sends a frame."""
        if self._party.role == "receiver" and not self.is_gone:
            self._witness.receiver_said(self, _decode(frame), frame)
        elif self._party.role == "producer" and frame[1] in (HELLO, TRANSFER):
            self._witness.producer_said(self, _decode(frame))
        elif self._party.role == "node" and self._witness.is_barred(self.peer):
            if frame[1] not in (ERROR, AUTH):
                self._witness.note("who is barred is told", f"{self.peer}: a frame {frame[1]}")
        elif self._party.role == "node" and frame[1] == HELLO:
            self.far = _decode(frame)[3]
        elif self._party.role == "node" and frame[1] == TRANSFER:
            if self._witness.watches_times:
                self._witness.node_said(self, _decode(frame))
        elif self._party.role == "node" and frame[1] == NACK:
            nack = _decode(frame)  # judged as it leaves: it may be on its way for minutes
            if nack[3] == LATER and len(nack) > 5:
                self._witness.told_later(nack[5])

    def channel_opened(self, channel: IChannel) -> None:
        """See `IChannelUser`."""
        self.channel = tapped = TapChannel(self, channel)
        self.opened_at = self._witness._seconds()
        self._party.taps.append(self)
        self._user.channel_opened(cast("IChannel", tapped))

    def frames_received(self, frames: list[bytes]) -> None:
        """See `IChannelUser`."""
        witness, role = self._witness, self._party.role
        for frame in frames:
            witness.crossed(self.who, frame, arrives=True)
            if role == "node":
                if frame[1:2] in NODE_HEARS or (
                    witness.watches_times and frame[1:2] == TRANSFER_KIND
                ):
                    with suppress(ValueError, TypeError, LookupError):  # hostile peers say anything
                        witness.node_got(self, _decode(frame), frame)
                continue
            decoded = _decode(frame)
            if decoded[0] == ERROR:
                witness.told_error(self, decoded)
            elif role == "receiver":
                witness.receiver_got(self, decoded)
            elif role == "producer":
                witness.producer_got(self, decoded)
        if self._party.meter is not None:
            self._party.meter.run(self._user.frames_received, frames)
        else:
            self._user.frames_received(frames)

    def channel_failed(self, error: ProtocolError) -> None:
        """See `IChannelUser`."""
        self._user.channel_failed(error)

    def channel_writable(self, writable: bool) -> None:
        """See `IChannelUser`."""
        self._user.channel_writable(writable)

    def channel_lost(self, reason: str) -> None:
        """See `IChannelUser`."""
        self.is_gone = True
        self._party.taps.remove(self)
        if self._party.role == "receiver":
            self._witness.losses[self.who] += 1
        self._user.channel_lost(reason)


@implementer(ITransport)
class TapTransport(ChecksNothing):
    """A transport whose channels are tapped for one process."""

    def __init__(self, witness: Witness, party: Party, transport: Any) -> None:
        self.schemes = transport.schemes
        self._witness = witness
        self._party = party
        self._transport = transport

    def connector(self, reactor: Any, address: str, make_user: Any, limits: Limits) -> Any:
        """See `ITransport`."""
        return self._transport.connector(reactor, address, self._tapped(make_user), limits)

    def listen(self, reactor: Any, address: str, make_user: Any, limits: Limits) -> Deferred[Any]:
        """See `ITransport`."""
        listening: Deferred[Any] = self._transport.listen(
            reactor, address, self._tapped(make_user), limits
        )
        return listening

    def _tapped(self, make_user: Callable[[], IChannelUser]) -> Callable[[], IChannelUser]:
        return lambda: TapUser(self._witness, self._party, make_user())
