"""The flow between `send` and the hop: gathering the runs of a turn, room, the disk.

    send -> room, Gathering -> end of turn -> sequences -> (disk, synced) -> the hop's outbox

Runs leave at the end of the reactor's turn. While the node is busy with thousands of messages,
those that are still short wait a moment for its answer, and grow. Room is taken when a message is
handed over and given back when its whole run is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.client.gathering import Gathering
from msgservice.client.hop import NodeHop
from msgservice.core.reasons import one_line
from msgservice.core.runs import Run, Settled
from msgservice.errors import Ambiguous, LimitReached, LogError, OutboxFull, Refused
from msgservice.limits import BATCH_OVERHEAD, Limits
from msgservice.message import Status

if TYPE_CHECKING:
    from msgservice.client.disk import DiskOutbox

# With so many messages in flight the node is busy for a while, and runs that are still short
# wait for its next answer to grow: with 1,000 subjects in turn that is the difference between
# runs of 2 messages and runs of 10. So many take about HOLD_SECONDS, which is the longest wait.
HOLD_MESSAGES = 8192
HOLD_SECONDS = 0.05


class Flow:
    """The flow control of a client. `window`, `held`: (messages, bytes), as `Client` has them.

    `wrote` is called when something that was being written to disk is not any more.
    """

    _logger = Logger()

    def __init__(
        self,
        *,
        hop: NodeHop,
        gathering: Gathering,
        disk: DiskOutbox | None,
        reactor: IReactorTime,
        limits: Limits,
        window: tuple[int, int],
        held: tuple[int, int],
        wrote: Callable[[], None],
    ) -> None:
        self.gathering = gathering
        self.room_messages, self.room_bytes = held
        self._hop, self._disk = hop, disk
        self._reactor, self._limits = reactor, limits
        self._window, self._held = window, held
        self._wrote = wrote
        self._flush_due: IDelayedCall | None = None  # at the end of the turn
        self._hold_due: IDelayedCall | None = None  # when short runs have waited long enough

    # --- getters

    @property
    def unanswered(self) -> int:
        """Messages handed over that the node has not answered."""
        return self._held[0] - self.room_messages

    @property
    def blocked(self) -> bool:
        """Whether producers should pause: backpressure, as `Client.blocked` says it."""
        if self._disk is not None:
            nearly_full = min(self._limits.max_batch, self._held[1] // 8)
            return self.room_messages <= 0 or self.room_bytes < nearly_full
        return (
            self._held[0] - self.room_messages >= self._window[0]
            or self._held[1] - self.room_bytes >= self._window[1]
        )

    @property
    def is_writing(self) -> bool:
        """Whether something is on its way to the disk."""
        return self._disk is not None and self._disk.writing > 0

    # --- verbs

    def take_room(self, messages: int, size: int) -> None:
        """Raise `OutboxFull` or `LimitReached` unless there is room for these."""
        if size > self.room_bytes and self._disk is not None:
            raise OutboxFull(self._held[1] - self.room_bytes + size, self._held[1])
        if messages > self.room_messages:
            raise LimitReached("held messages", self._held[0])
        if size > self.room_bytes:
            raise LimitReached("held bytes", self._held[1])
        self.room_messages -= messages
        self.room_bytes -= size

    def give_room(self, messages: int, size: int) -> None:
        """Messages were settled, and are no longer held: their room is given back."""
        self.room_messages += messages
        self.room_bytes += size

    def schedule(self) -> None:
        """Hand over what is gathered, at the end of this turn."""
        if self._flush_due is None and not self._hop.is_telling:  # else `go_on` follows
            self._flush_due = self._reactor.callLater(0, self._flush)

    def hand_over(self, *, only_whole: bool = False) -> None:
        """Hand over what is gathered; `only_whole`: of that, the runs that cannot grow."""
        gathering = self.gathering
        if gathering.open or gathering.whole:
            runs = gathering.take(only_cut=only_whole)
            if runs:
                if self._disk is not None:
                    self._count_runs(runs)
                hop = self._hop
                hop.number(runs)
                if self._disk is None:
                    hop.send(runs)
                else:
                    self._keep(runs, self._disk)
        if gathering.open:
            if self._hold_due is None and self._hop.is_connected:
                self._hold_due = self._reactor.callLater(HOLD_SECONDS, self._held_long)
        elif self._hold_due is not None:
            self._hold_due.cancel()
            self._hold_due = None

    def go_on(self) -> None:
        """The turn is over, or what is gathered waits no longer: there may be room for more."""
        if self.gathering.are_timed:
            self.gathering.cut_expiring()
        # A disk is waited for at the end of each turn, whatever the node does.
        self.hand_over(only_whole=self._disk is None and self._hop.is_busy(HOLD_MESSAGES))

    def stop(self) -> None:
        """Hand over nothing any more."""
        for call in (self._flush_due, self._hold_due):
            if call is not None:
                call.cancel()
        self._flush_due = self._hold_due = None

    # --- from the world

    def settled(self, settled: list[Settled]) -> None:
        """Messages were acknowledged or refused by the node."""
        for one in settled:
            handed, count = one.run.source, one.run.count
            left = handed.left = handed.left - count
            self.room_messages += count
            if not left:
                self.room_bytes += handed.cost
        if self._disk is not None:
            self._disk.file.settle([(one.first, one.last) for one in settled])
            self._tell_refused(settled)

    # --- inside

    def _flush(self) -> None:
        self._flush_due = None
        self.go_on()

    def _held_long(self) -> None:
        self._hold_due = None
        self.hand_over(only_whole=not self._hop.is_connected)

    def _count_runs(self, runs: list[Run]) -> None:
        """Take room for what a run costs besides its messages.

        With a disk each turn's messages are a run of their own, however few, and they wait for a
        node that may be away for long.
        """
        for run in runs:
            run.source.cost += BATCH_OVERHEAD
        self.room_bytes -= BATCH_OVERHEAD * len(runs)

    def _keep(self, runs: list[Run], disk: DiskOutbox) -> None:
        keeping = disk.keep(runs)
        keeping.addCallbacks(self._kept, self._not_kept, callbackArgs=(runs,), errbackArgs=(runs,))
        keeping.addErrback(lambda f: self._logger.failure("after writing the outbox", f))

    def _kept(self, _: None, runs: list[Run]) -> None:
        """Runs were synced to disk: `send` has done its work, and they may be sent."""
        for run in runs:
            run.source.stored()
        self._hop.offer(runs)
        self._hop.pump()
        self._wrote()

    def _not_kept(self, failure: Failure, runs: list[Run]) -> None:
        cause = failure.value
        known = isinstance(cause, Refused | LogError)
        error = cause if known else Ambiguous(f"the outbox could not be written: {cause}")
        self._logger.error("{name}: {error}", name=self._hop.name, error=str(error))
        for run in runs:
            self.give_room(run.count, run.source.cost)
        for run in runs:
            run.source.refused(run.first, run.last, error)
        self._wrote()

    def _tell_refused(self, settled: list[Settled]) -> None:
        """With a disk `send` has fired long ago, and nobody may be listening any more."""
        for one in settled:
            if one.status is Status.EXPIRED:
                self._logger.warn(
                    "{name}: {first} to {last} on {subject} expired before the node was given them",
                    name=self._hop.name,
                    first=one.first,
                    last=one.last,
                    subject=one.run.subject,
                )
            elif one.status is not Status.ACKNOWLEDGED:
                self._logger.error(
                    "{name}: the node refused {first} to {last} on {subject}: {reason}",
                    name=self._hop.name,
                    first=one.first,
                    last=one.last,
                    subject=one.run.subject,
                    reason=one_line(one.reason),
                )
