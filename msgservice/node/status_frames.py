"""The frames that tell one producer what became of its messages: ROUTED, AUDIENCE, STATUS.

What became of them is the tracker's to say, in values. Here are the terms of one connection: which
audiences it was told by number, and what fits in a frame that the other side takes.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgservice.core.audiences import GONE_AUDIENCES_MAX, TOLD_MAX, split_audience
from msgservice.core.frames import Frame, Routed, StatusFrame
from msgservice.core.reasons import first_line
from msgservice.limits import BATCH_INDEX_BITS, INTEGER_MAX
from msgservice.node.directory import Directory
from msgservice.node.tracker import GonePiece, News, States
from msgservice.records import DELAYED, NOBODY, NOT_YET, Audience, Batch, Piece

# Of one frame: with the longest reason and names it fits in 8 KiB, so in any frame that the other
# side takes.
STATUS_RANGES_MAX = 180
FRAMES_MAX = 256  # told at once, about; then the transport is asked whether it has room


class StatusFrames:
    """The frames of one connection.

    `status_from`: the first sequence of which its producer wants to know. `whole_reasons`: it is
    told what a receiver said with all lines, a traceback say, and not the first alone.
    """

    __slots__ = (
        "_directory",
        "_gone",
        "_gone_made",
        "_incarnation",
        "_status_from",
        "_whole_reasons",
        "named",
    )

    def __init__(
        self,
        directory: Directory,
        incarnation: str,
        status_from: int,
        *,
        whole_reasons: bool = True,
    ) -> None:
        self.named: set[int] = set()  # numbers of the audiences that were told by name
        self._directory = directory
        self._incarnation = incarnation
        self._status_from = status_from
        self._whole_reasons = whole_reasons
        self._gone: dict[tuple[int, ...], Audience] = {}  # which the log has no more, oldest first
        self._gone_made = 0

    def routed(self, piece: Piece | Batch) -> list[Frame]:
        """Return the ROUTED frames of messages, with new audiences; they go before the ACK."""
        if isinstance(piece, Batch):
            first, last = piece.sequence, piece.sequence + piece.count - 1
            audience, position = piece.audience, piece.number << BATCH_INDEX_BITS
            due, of = 0 if piece.number else piece.due_at, ""
            if not due and audience.number in self.named and last >= self._status_from:  # as most
                return [Routed(first, last, audience.number, position)]
        else:
            first, last = piece.first, piece.last
            audience, position, due, of = piece.audience, piece.position, piece.due, piece.of
        if due:
            audience, position = NOBODY, 0  # that comes when it is due
        if last < self._status_from:
            return []
        return [*self._names(audience), Routed(first, last, audience.number, position, due, of)]

    def take(self, news: Iterator[News]) -> tuple[list[Frame], bool]:
        """Return the frames of the next news, `FRAMES_MAX` or a few more, and whether that is all.

        They are to be sent before any others: a ROUTED has its AUDIENCE before it.
        """
        frames: list[Frame] = []
        named, status_from, incarnation = self.named, self._status_from, self._incarnation
        for one in news:
            # Of what was due a page has hundreds of these, each of its own.
            if (
                type(one) is Piece
                and one.audience.number in named
                and not (one.due or one.of)
                and one.last >= status_from
            ):
                number = one.audience.number
                frames.append(Routed(one.first, one.last, number, one.position))
            elif type(one) is States and len(one.ranges) <= STATUS_RANGES_MAX:
                reason = one.reason
                if reason and not self._whole_reasons:
                    reason = first_line(reason)
                frames.append(
                    StatusFrame(incarnation, one.receiver, int(one.status), [*one.ranges], reason)
                )
            else:
                frames += self._frames_of(one)
            if len(frames) >= FRAMES_MAX:
                return frames, False
        return frames, True

    def _frames_of(self, one: News) -> list[Frame]:
        match one:
            case Piece():
                return self.routed(one)
            case GonePiece(first, last, members):
                return self.routed(Piece(first, last, self._gone_audience(members), 0))
            case States(receiver, status, ranges, reason):
                if not self._whole_reasons:
                    reason = first_line(reason)
                frames: list[Frame] = []
                incarnation, state = self._incarnation, int(status)
                for at in range(0, len(ranges), STATUS_RANGES_MAX):
                    some = [*ranges[at : at + STATUS_RANGES_MAX]]
                    frames.append(StatusFrame(incarnation, receiver, state, some, reason))
                return frames

    def _names(self, audience: Audience) -> list[Frame]:
        if audience.number in self.named:
            return []
        if len(self.named) >= TOLD_MAX:
            self.named.clear()
        self.named.add(audience.number)
        names = self._directory.names(audience)
        if audience.members[:1] == (NOT_YET,):
            names = [DELAYED, *names]
        return [*split_audience(audience.number, names)]

    def _gone_audience(self, members: tuple[int, ...]) -> Audience:
        """Return an audience for messages that the log has no more; the log is not asked for it."""
        audience = self._gone.get(members)
        if audience is None:
            number = INTEGER_MAX - self._gone_made % GONE_AUDIENCES_MAX
            self._gone_made += 1
            if len(self._gone) >= GONE_AUDIENCES_MAX:
                del self._gone[next(iter(self._gone))]
                self.named.discard(number)
            audience = self._gone[members] = Audience(number, members)
        return audience
