"""The receivers of a node at run time: made, changed, paused, removed, and attaching by themselves.

Each change is made in memory at once and stored with the next group; who asked is told when it is
on disk. What the directory and the outlets are is in `directory` and `outlet`; the rows of the
configuration come in here as well (`configure`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.core.frames import BYE_CLOSING, BYE_PAUSED, BYE_REMOVED
from msgservice.core.ranges import Range
from msgservice.core.subjects import exact, is_reserved
from msgservice.errors import (
    BadValue,
    ConfiguredOtherwise,
    LimitReached,
    MsgServiceError,
    NotAllowed,
    NotConfirmed,
    ProtocolError,
    ReceiverExists,
    ReplayRuns,
    UnknownReceiver,
)
from msgservice.interfaces import ILog
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.node.away import Away
from msgservice.node.commits import Commits
from msgservice.node.connections import Connections
from msgservice.node.dead_letters import DeadLetters
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.gate import Gate, Pass
from msgservice.node.greeting import check_shared
from msgservice.node.outlet import Outlet
from msgservice.node.promises import Promises
from msgservice.node.replayer import Replayer, left_out_of_nothing
from msgservice.node.retained import RetainedIndex
from msgservice.node.tail import Tail
from msgservice.node.tracker import Tracker
from msgservice.receiver_options import DEFAULTS, OF_NODES, STRICT, ReceiverOptions
from msgservice.records import (
    LEFT_OUT,
    LOST,
    REWIND,
    START,
    Account,
    ExceptionRow,
    Join,
    ReceiverRow,
    Replay,
    Snapshot,
    position_of,
)
from msgservice.transport.addresses import is_node, is_url
from msgservice.waiters import Waiters

PAUSED = "paused"  # why, where somebody asked for it
ANEW_A_TURN = 500  # receivers at once that get another incarnation: a few milliseconds


class Receivers:
    """The receivers of a node. They are dialled and judged from `start` to `stop`."""

    _logger = Logger()

    def __init__(
        self,
        *,
        log: ILog,
        tail: Tail,
        commits: Commits,
        tracker: Tracker,
        promises: Promises,
        directory: Directory,
        dispatch: Dispatch,
        gate: Gate,
        make_outlet: Callable[[ReceiverRow, Sequence[ExceptionRow]], Outlet],
        connections: Connections,
        dead_letters: DeadLetters,
        away: Away,
        replayer: Replayer,
        retained: RetainedIndex,
        limits: Limits,
        time: Time,
        rng: Callable[[], float],
    ) -> None:
        self._is_running = False
        self._is_stopped = False
        self._log = log
        self._tail = tail
        self._commits = commits
        self._tracker = tracker
        self._promises = promises
        self._directory = directory
        self._dispatch = dispatch
        self._gate = gate
        self._make_outlet = make_outlet
        self._connections = connections
        self._dead_letters = dead_letters
        self._away = away
        self._replayer = replayer
        self._retained = retained
        self._limits = limits
        self._time = time
        self._rng = rng
        self._last_change = 0  # number of the newest change of the directory
        self._unstored: dict[int, None] = {}  # numbers of those that are not stored, rising
        # Who waits for all changes up to a number; rising.
        self._waiting: deque[tuple[int, Waiters[None]]] = deque()
        self._removing: dict[int, Waiters[int]] = {}  # receiver number -> who waits for it
        self._withheld: dict[int, tuple[str, ...]] = {}  # receiver number -> patterns, as was told
        # Numbers of those that were there at the start, and may remember more than the log.
        self._from_before: dict[int, None] = {}
        self._anew: dict[int, None] = {}  # numbers of those that get another incarnation next
        self._anew_later: IDelayedCall | None = None

    # --- starting

    def load(self, snapshot: Snapshot) -> None:
        """Make an outlet for each receiver that the log knows."""
        for row in snapshot.receivers:
            if not row.removed:
                if row.left_first and not row.left_last and not row.suspended:
                    # The end of what it was left out of was not stored any more.
                    row.left_last = position_of(snapshot.next_number) - 1
                outlet = self._make_outlet(row, snapshot.exceptions.get(row.number, ()))
                self._dispatch.add(outlet)
                self._from_before[row.number] = None
                self._dead_letters.load(row)
                self._away.load(row)

    async def configure(self, rows: Sequence[ReceiverRow]) -> None:
        """Bring the receivers of the configuration into the log: made, or as it says now.

        What changes is stored in one group, and not waited for: a disk that takes nothing keeps no
        node from starting, and who greets it waits for what was changed before.
        """
        configured = {row.name for row in rows}
        self._connections.configured = {
            row.name: None if row.address is None else exact(row.address) for row in rows
        }
        for known in self._directory:
            if known.configured and known.name not in configured:
                known.configured = False  # the file no longer says it: it is the operator's now
                self._store(known)
        for row in rows:
            made = Deferred.fromCoroutine(self._configure(row))
            if made.called:
                await made  # raises what is wrong with it
            else:
                made.addErrback(self._not_configured, row.name)

    def _not_configured(self, failure: Failure, name: str) -> None:
        self._logger.failure("receiver {name} of the configuration", failure, name=name)

    async def _configure(self, wanted: ReceiverRow) -> None:
        row = self._directory.get(wanted.name)
        if row is None:
            await self.add(
                wanted.name,
                wanted.patterns,
                wanted.options,
                address=wanted.address,
                configured=True,
                owner=wanted.owner,
            )
            return
        before = row.configured, row.address, row.owner
        row.configured = True
        self._moved(row, wanted.address and exact(wanted.address))
        if wanted.owner:  # else as it was given at run time
            self._directory.own(row, wanted.owner)
        # Paused at run time stays paused over a restart, whatever the file says.
        paused = row.options.paused or wanted.options.paused
        options = msgspec.structs.replace(wanted.options, paused=paused).check()
        if options.shared is not row.options.shared:
            raise BadValue("shared", f"of receiver {row.name!r} cannot be changed: remove it first")
        options.check_against(self._limits)
        _check_stays(options, configured=True)
        _check_webhook(row.address, options)
        _check_node(row.address, options, wanted.patterns)
        if (tuple(wanted.patterns), options) != (row.patterns, row.options):
            self._change(self._dispatch.outlets[row.number], wanted.patterns, options)
        elif before != (row.configured, row.address, row.owner):
            self._store(row)

    def start(self) -> None:
        """Start dialling: receivers with an address, and from now on those that come later."""
        self._tell_withheld()
        for outlet in self._dispatch:
            if outlet.row.options.paused:
                full = self._dead_letters.full(outlet.row)
                outlet.last_error = f"paused: {full}" if full else outlet.last_error
            self._connections.dial(outlet)
        self._is_running = True

    def stop(self) -> None:
        """Receivers that come or change from now on are not dialled."""
        self._is_running, self._is_stopped = False, True
        if self._anew_later is not None:
            self._anew_later.cancel()
        self._take_anew()

    # --- at run time

    def was_removed(self, name: str, number: int) -> bool:
        """Whether the receiver of this name and number was removed, and no other has its name."""
        return self._directory.was_removed(name, number)

    def attaching(
        self,
        name: str,
        patterns: Sequence[str],
        order: str | None,
        who: Pass,
        start: str | int | None = None,
        *,
        retained: bool = True,
        shared: bool = False,
    ) -> Outlet:
        """A peer attaches as the receiver of this name, which is made if new (SEMANTICS 27).

        No `patterns`, or no `order`: as they are. `start`: from where one that is new has messages
        (SEMANTICS 9). `retained`: whether it is to have what is retained of its subjects first, or
        of those that it has from now on (DELIVERY 48); with a `start`, what of it is no more in the
        log: the history has the rest. Who is
        turned away has changed nothing: everything that refuses comes before what it does.
        """
        row = self._directory.get(name)
        self.check_may_be(name, who)
        who.check_receives(patterns or (() if row is None else row.patterns))
        if row is None:
            first = self._first_of(start)
            row = self._directory.new_row(name, patterns)
            row.options = ReceiverOptions(order=order or DEFAULTS.order, shared=shared)
            _check_shared(row.options)
            row.owner = row.owner or who.owner
            if first is None:
                return self._add(
                    row, retained=self._wanted(row, row.patterns) if retained else None
                )
            position, since = first
            replay = Replay(row.number, START, position, position, INTEGER_MAX, since=since)
            asked = (start if isinstance(start, int) else 0, since)
            # What its history has counts for no limit, and which that is only the log knows.
            wanted = self._wanted(row, row.patterns, check=False) if retained else None
            return self._add(row, replay, retained=wanted, asked=asked)
        outlet = self._dispatch.outlets[row.number]
        check_shared(row, shared=shared)
        self._connections.hold_check(outlet)
        if row.options.paused or outlet.is_going:
            return outlet  # it gets nothing, and has changed nothing
        changes, options = False, row.options
        if row.configured:
            if patterns and set(patterns) != set(row.patterns):
                raise ConfiguredOtherwise(name, "subjects")
            if order not in (None, options.order):
                raise ConfiguredOtherwise(name, "order")
        else:
            patterns = patterns or row.patterns
            options = msgspec.structs.replace(options, order=order or options.order)
            _check_shared(options)
            changes = set(patterns) != set(row.patterns) or options != row.options
        if changes:
            self._change(outlet, patterns, options, by_itself=True, retained=retained)
        link = self._connections.links.get(row.number)
        if link is not None:
            link.poke()  # a sign of life (SEMANTICS 14)
        return outlet

    def _first_of(self, start: str | int | None) -> tuple[int, int] | None:
        """Return the position, and the time, from which on a new receiver has history; or None."""
        kept, behind = self._log.kept_from(), position_of(self._tail.next_number)
        if start is None or start == "new":
            return None
        if start == "first":
            return kept, 0
        if isinstance(start, int):
            if start > behind:
                raise ProtocolError(f"start = {start} is not in the log, which ends at {behind}")
            return max(start, kept), 0
        try:
            if not start.startswith("@"):
                raise ValueError
            since = datetime.fromisoformat(start[1:])
            if since.tzinfo is None:
                raise ValueError
            return kept, max(0, int(since.timestamp() * 1000))
        except (ValueError, OverflowError):
            raise ProtocolError(
                f"start = {start!r} is neither 'new', 'first', a position nor '@' with a time and"
                " its zone"
            ) from None

    def check_may_be(self, name: str, who: Pass) -> None:
        """Raise `NotAllowed` unless a peer may be the receiver of this name; the log says why."""
        owner = self._directory.owner_of(name)
        try:
            who.check_name(name, owner)
        except NotAllowed as error:
            whose = f"it is of user {owner!r}" if owner else "it is nobody's: receivers own"
            self._gate.turned_away(who, f"{error}: {whose}")
            raise

    def _change(
        self,
        outlet: Outlet,
        patterns: Sequence[str],
        options: ReceiverOptions,
        *,
        by_itself: bool = False,
        retained: bool = True,
    ) -> None:
        row = outlet.row
        join = None
        if retained and not row.removed and set(patterns) - set(row.patterns):
            join = self._join(row, self._wanted(row, patterns, row.patterns), row.patterns)
        self._directory.set_patterns(row, patterns)
        reordered = options.order != row.options.order
        if reordered:
            reason = "the receiver's order changed"
            if by_itself:
                self._connections.give_up_place(outlet, reason)
            else:
                self._connections.send_away(outlet, BYE_CLOSING, reason)  # it comes back
        row.options = options
        outlet.options_changed()
        if reordered:
            outlet.set_order(options.order)
        self._store(row, join=join)

    def _wanted(
        self,
        row: ReceiverRow,
        patterns: Sequence[str],
        before: Sequence[str] = (),
        *,
        check: bool = True,
    ) -> tuple[str, ...] | None:
        """Return the subjects of which a receiver is to have what is retained, if there is any.

        But for those that it had before. Raises `LimitReached` where that is too much.
        """
        counting = self._gate.receivable(replace(row, patterns=tuple(patterns)))
        if not self._retained.is_for(counting, before, check=check):
            return None
        return tuple(counting)

    def _join(
        self,
        row: ReceiverRow,
        wanted: tuple[str, ...] | None,
        before: Sequence[str] = (),
        asked: tuple[int, int] | None = None,
    ) -> Join | None:
        """Return who joins; raises `LimitReached` where there is no place for that."""
        if wanted is None:
            return None
        below = self._replayer.history_from(row)
        return Join(row.number, self._directory.alone(row), wanted, tuple(before), below, asked)

    def _add(
        self,
        row: ReceiverRow,
        replay: Replay | None = None,
        retained: tuple[str, ...] | None = None,
        asked: tuple[int, int] | None = None,
    ) -> Outlet:
        row.created_at = self._time.wall()
        row.cursor = position_of(self._tail.next_number) - 1
        outlet = self._make_outlet(row, ())
        self._dispatch.add(outlet)
        try:
            join = self._join(row, retained, asked=asked)
            place = None if replay is None else self._directory.audience_alone(row)
        except LimitReached:
            self._dispatch.remove(outlet)
            raise
        self._directory.add(row)
        if replay is None:
            self._store(row, join=join)
        else:
            self._replayer.begin(row, replay, lambda: self._store(row, replay, join), place=place)
        self._logger.info(
            "receiver {name} added: {row}",
            line="receiver-added",
            name=row.name,
            row=list(row.patterns),
        )
        return outlet

    async def add(
        self,
        name: str,
        patterns: Sequence[str],
        options: ReceiverOptions = DEFAULTS,
        *,
        address: str | None = None,
        configured: bool = False,
        owner: str = "",
    ) -> ReceiverRow:
        """Make a receiver; what is sent from now on reaches it. Returns once it is stored.

        `owner`: the user whose it is; empty: whose its name was, or nobody's.
        """
        known = self._directory.get(name)
        if known is not None and known.number in self._removing:
            await self._removing[known.number].wait()
        if self._directory.get(name) is not None:
            raise ReceiverExists(name)
        options = options.check()
        options.check_against(self._limits)
        if address is not None:
            address = self._connections.check(address, name)
        _check_stays(options, configured=configured)
        _check_webhook(address, options)
        _check_node(address, options, patterns)
        row = self._directory.new_row(name, patterns, configured=configured)
        row.address, row.configured, row.options = address, configured, options
        row.owner = owner or row.owner
        if not configured:
            self._gate.check_subjects(row.owner, row.patterns)
        outlet = self._add(row, retained=self._wanted(row, row.patterns, check=not configured))
        await self.stored()
        if self._is_running:
            self._connections.dial(outlet)
        return row

    async def change(
        self,
        /,
        name: str,
        *,
        patterns: Sequence[str] | None = None,
        address: str | None = None,
        **changes: Any,
    ) -> ReceiverRow:
        """Change what a receiver gets from now on, where it is dialled, or its options.

        `changes`: fields of `ReceiverOptions`; those that are None stay.
        """
        row = self._standing(name)
        outlet = self._dispatch.outlets[row.number]
        options = row.options.changed(changes)
        options.check_against(self._limits, [name for name in OF_NODES if changes.get(name)])
        if address is not None:
            address = self._connections.check(address, name)
        if patterns is not None:
            self._gate.check_subjects(row.owner, patterns)
        wanted = row.patterns if patterns is None else patterns
        _check_stays(options, configured=row.configured)
        _check_webhook(row.address if address is None else address, options)
        _check_node(row.address if address is None else address, options, wanted)
        self._change(outlet, wanted, options)
        if address is not None and address != row.address:
            self._moved(row, address)
            self._store(row)
            await self._connections.undial(outlet)
        await self.stored()
        if self._is_running:
            self._dispatch.judge()
            self._connections.dial(outlet)
        return row

    def _moved(self, row: ReceiverRow, address: str | None) -> None:
        """A receiver is dialled elsewhere: what was a node, and is none now, is another memory."""
        if is_node(row.address) != is_node(address):
            self._directory.no_next_node(row)
            self._dispatch.outlets[row.number].progress.inbox_is("")
        row.address = address
        self._directory.addressed(row)

    async def own(self, name: str, user: str) -> None:
        """Give the name of a receiver to a user, empty: to nobody. Returns once it is stored.

        Also that of one which was removed and had an owner: whose the name is outlives it. Who has
        the name is sent away, and comes back if it is its. Raises `UnknownReceiver`; `BadValue`
        where no such user is configured. Of one that is being removed it waits for that: whose a
        name was says only the row of an owner, and others may be forgotten with their receiver.
        """
        row = self._directory.newest(name)
        while row is not None and row.number in self._removing:
            with suppress(MsgServiceError):  # who asked for that is told
                await self._removing[row.number].wait()
            row = self._directory.newest(name)
        if row is None:
            raise UnknownReceiver(name)
        if user:
            self._gate.check_user(user)
        if user == row.owner:
            await self.stored()
            return
        self._directory.own(row, user)
        stored = self._store(row)
        outlet = self._dispatch.outlets.get(row.number)
        if outlet is not None:
            self._connections.dismiss_all(outlet, BYE_CLOSING, "its name is another user's now")
            await self._connections.undial(outlet)
        await stored
        self.judge_dialled()

    def users_changed(self) -> None:
        """Send receivers what their users may receive now, and dial those that may be dialled."""
        self._directory.judge()
        self._tell_withheld()
        self.judge_dialled()

    def _tell_withheld(self) -> None:
        told, self._withheld = self._withheld, {}
        for row in self._directory:
            withheld = self._directory.withheld(row)
            if not withheld:
                continue
            self._withheld[row.number] = withheld
            if told.get(row.number) != withheld:
                self._logger.warn(
                    "receiver {name} gets nothing of {patterns} from now on: its user {owner} may"
                    " not receive that",
                    line="receiver-not-allowed",
                    name=row.name,
                    patterns=", ".join(withheld),
                    owner=row.owner,
                )

    def judge_dialled(self) -> None:
        """Dial no more whom the gate does not let be dialled now, and again whom it does."""
        for outlet in self._dispatch if self._is_running else ():
            if self._gate.why_not_dialled(outlet.row) is not None:
                ended = self._connections.undial(outlet)
                ended.addErrback(lambda failure: self._logger.failure("hanging up", failure))
            self._connections.dial(outlet)  # which says why not

    async def pause(self, name: str, paused: bool, reason: str = PAUSED) -> ReceiverRow:
        """Stop delivering to a receiver, or go on; its messages are kept.

        `reason`: why it is paused, for people and for the receiver.
        """
        row, reason = self._standing(name), exact(reason)
        outlet = self._dispatch.outlets[row.number]
        was_paused = row.options.paused
        row.options = msgspec.structs.replace(row.options, paused=paused)
        stored = self._store(row)
        if paused:
            self._connections.send_away(outlet, BYE_PAUSED, reason)
            if was_paused:
                outlet.last_error = reason
            else:
                outlet.is_paused_now(reason)
            if not was_paused and reason == PAUSED:  # else who pauses it has said why
                self._logger.info("receiver {name} is paused", line="receiver-paused", name=name)
            await self._connections.undial(outlet)
        else:
            if was_paused:
                self._logger.info("receiver {name} is resumed", line="receiver-resumed", name=name)
                outlet.last_error = ""
                # What it asked for was passed by: it comes again, and at once.
                self._connections.dismiss_all(outlet, BYE_CLOSING, "resumed")
            self._connections.dial(outlet)
        await stored
        return row

    def pause_full(self, row: ReceiverRow, reason: str) -> None:
        """Pause a receiver whose dead letters are at their limit, unless it is or goes."""
        if row.options.paused or row.removed or row.number in self._removing:
            return
        self._logger.warn(
            "receiver {name} is {reason}", line="receiver-held", name=row.name, reason=reason
        )
        paused = Deferred.fromCoroutine(self.pause(row.name, True, reason))
        paused.addErrback(lambda failure: self._logger.failure("pausing a receiver", failure))

    def _standing(self, name: str) -> ReceiverRow:
        """The receiver of this name, unless its removal is under way: it is as good as gone."""
        row = self._directory.named(name)
        if row.number in self._removing:
            raise UnknownReceiver(name)
        return row

    async def remove(self, name: str, confirmed: int | None = None) -> int:
        """Remove a receiver; what waited for it is `removed`. Returns how many messages.

        All who ask before it is on disk get the same answer, when it is. Until then it gets nothing
        more, is listed as paused, and keeps its name: after the end of the process it is there
        again. `UnknownReceiver` where there is none (any more); `NotConfirmed` where more than
        `confirmed` messages wait for it.
        """
        row = self._directory.named(name)
        queued = (await self.account(name)).queued
        if confirmed is not None and queued > confirmed:
            raise NotConfirmed(name, queued, confirmed)
        waiters = self._removing.get(row.number)
        if waiters is not None:
            return await waiters.wait()
        if row.removed:
            raise UnknownReceiver(name)
        return await self._begin_removal(row, queued)

    async def remove_away(self, row: ReceiverRow, is_away: Callable[[], bool]) -> int | None:
        """Remove a receiver that has been away for too long, unless it came meanwhile.

        Returns how many messages waited for it; None where it stays, or somebody else removes it.
        """
        queued = (await self.account(row.name)).queued
        if row.removed or row.number in self._removing or self._is_stopped or not is_away():
            return None
        return await self._begin_removal(row, queued)

    def removal(self, number: int) -> Deferred[int] | None:
        """Return what fires, or fails, at the end of a receiver's removal; None: there is none."""
        waiters = self._removing.get(number)
        return None if waiters is None else waiters.wait()

    async def _begin_removal(self, row: ReceiverRow, queued: int) -> int:
        waiters = self._removing[row.number] = Waiters()
        waiter = waiters.wait()
        removing = Deferred.fromCoroutine(self._remove(row, queued))
        removing.addBoth(self._removed, row.number)
        return await waiter

    def _removed(self, result: int | Failure, number: int) -> None:
        waiters = self._removing.pop(number)
        if isinstance(result, Failure):
            waiters.fail(result)
        else:
            waiters.fire(result)

    async def _remove(self, row: ReceiverRow, queued: int) -> int:
        outlet = self._dispatch.outlets[row.number]
        outlet.is_going = True
        try:
            self._connections.part(outlet, "being removed")
            outlet.is_paused_now("being removed")
            # What it has settled stays so: with many dead letters that is more than one group.
            await outlet.all_stored()
            self._directory.retire(row)  # what is stored with the removal is not for it any more
        except Exception as error:
            self._stays(outlet, error)
            raise
        outlet.is_sealed = True
        try:
            await self._commits.removal(row.number)
        except Exception:
            # Handed over, it may be in the log: going on as if it were not would be a guess.
            told = "receiver {name}: the next start of the node says whether it is removed"
            self._logger.failure(told, name=row.name)
            raise
        # It is removed, whatever fails from here on: who asked is told so, and everybody else.
        for step in (
            lambda: self._directory.remove(row),
            lambda: self._dead_letters.forget(row),
            lambda: self._replayer.forget(row.number),
            lambda: self._away.forget(row),
            # Who is told does not come back: that must hold after the end of this process as well.
            lambda: self._connections.dismiss_all(outlet, BYE_REMOVED, "removed"),
            lambda: self._connections.forget(outlet),
            lambda: self._dispatch.remove(outlet),
            lambda: self._tracker.receiver_removed(row.number),
            lambda: self._promises.receiver_removed(row.number),
            lambda: self._connections.undial(outlet),
        ):
            try:
                gone = step()
                if gone is not None:
                    await gone
            except Exception:
                told = "receiver {name} is removed; letting go of it failed"
                self._logger.failure(told, name=row.name)
        self._logger.info("receiver {name} removed", line="receiver-removed", name=row.name)
        return queued

    def _stays(self, outlet: Outlet, error: Exception) -> None:
        """Nothing of a removal was decided, and it failed: the receiver is as it was before."""
        self._logger.failure("receiver {name} is not removed", name=outlet.name)
        outlet.is_going = False
        # Who was parted has no way back to its place: it comes again.
        self._connections.dismiss_all(outlet, BYE_CLOSING, "it was not removed")
        outlet.last_error = f"not removed: {error}"
        if self._is_running:
            self._connections.dial(outlet)

    def compared(self, row: ReceiverRow) -> None:
        """A receiver has said what it has taken, and nothing of it speaks against the log.

        Of one that is shared each worker has a memory of its own: others may say more.
        """
        if not row.options.shared:
            self._from_before.pop(row.number, None)

    def begins_anew(self, row: ReceiverRow) -> bool:
        """Whether a receiver gets another incarnation in one of the next turns."""
        return row.number in self._anew

    def begin_anew(self, row: ReceiverRow) -> None:
        """Take another incarnation towards a receiver that remembers what the log does not have.

        Stored before it is said (SEMANTICS 6). So the log is an older one, and of what those took
        that have not come since the start of the node it may have given the positions to others, so
        many that nothing shows when they come: towards them, too. They go first: who is killed in
        between is told by this one again.
        """
        self._from_before.pop(row.number, None)
        others, self._from_before = self._from_before, {}
        if others:
            self._logger.error(
                "the log is older than what {name} remembers of it: {count} receivers that have not"
                " come since the start are sent all that waits for them, some of it perhaps again",
                line="log-older",
                name=row.name,
                count=len(others),
            )
        self._anew |= others
        self._anew[row.number] = None
        if self._anew_later is None:
            self._take_anew()

    def _take_anew(self) -> None:
        self._anew_later = None
        turn = list(self._anew) if self._is_stopped else list(self._anew)[:ANEW_A_TURN]
        for number in turn:
            del self._anew[number]
            outlet = self._dispatch.outlets.get(number)
            if outlet is None or outlet.row.removed or number in self._removing:
                continue
            outlet.row.epoch = f"{int(self._rng() * 2**48):012x}"
            outlet.begins_anew()
            self._store(outlet.row)
        if self._anew:
            self._anew_later = self._time.clock.callLater(0, self._take_anew)

    async def account(self, name: str) -> Account:
        """Return what waits for a receiver, and what became of the rest. Raises `UnknownReceiver`.

        Empty of one that was removed a moment ago.
        """
        number = self._directory.named(name).number
        for account in await self._log.accounts([number]):
            return account
        return Account(receiver=number, routed=0, queued=0, settled={})

    # --- storing

    def moved(self, row: ReceiverRow) -> None:
        """Store a receiver that has come or gone, as far as that is counted (`away`).

        Not when the node stops: then time away begins with the next start.
        """
        if not (row.removed or self._is_stopped or row.number in self._removing):
            self._store(row)

    def _store(
        self, row: ReceiverRow, replay: Replay | None = None, join: Join | None = None
    ) -> Deferred[None]:
        self._away.judge(row)
        change = self._last_change = self._last_change + 1
        self._unstored[change] = None
        stored = self._commits.receiver(row, replay, join)  # which may suspend another at once
        stored.addCallback(self._change_stored, change)
        return stored

    def set_suspended(self, row: ReceiverRow, suspended: bool) -> None:
        """Suspend a receiver: leave it out of new audiences, or take it in again (SEMANTICS 18)."""
        self._directory.set_suspended(row, suspended)
        if suspended:
            row.left_first = row.left_first or position_of(self._tail.next_number)
            row.left_last = 0
        if row.number not in self._removing:
            stored = self._store(row)
            if not suspended:
                stored.addCallback(self._is_in_again, row)

    def _is_in_again(self, _: None, row: ReceiverRow) -> None:
        """A receiver that was suspended is in the audiences of what is stored from now on.

        What was being stored until then was not for it.
        """
        if row.suspended or row.removed or row.number in self._removing or row.left_last:
            return
        row.left_last = position_of(self._tail.next_number) - 1
        if row.left_last < row.left_first:
            row.left_first = row.left_last = 0
        self._store(row)

    # --- what is sent again

    async def rewind(self, name: str, first: int, end: int) -> Replay:
        """Send a receiver what it has acknowledged between these positions again.

        Returns once that is stored. Raises `UnknownReceiver`, `ReplayRuns`; `LimitReached` where
        there is no place for the set of it alone.
        """
        row = self._standing(name)
        replay = Replay(row.number, REWIND, first, first, end)
        await self._replayer.begin(row, replay, place=self._directory.audience_alone(row))
        return replay

    async def forgotten(
        self, row: ReceiverRow, missing: Sequence[Range], *, is_empty: bool
    ) -> None:
        """A node does not have these positions, and may have had some: those are sent again.

        As copies at the end of the log: no cursor goes back. Returns once that is stored, or where
        it had taken nothing of it. Raises `LimitReached` where there is no place for the set of it
        alone: it comes again, and is compared again. `is_empty`: it has another log, with nothing
        in it, and gets what is retained first, as one that was just made.
        """
        if is_empty:
            await self._hand_retained(row)
        if not missing:
            return
        last = missing[-1][1]
        for first, end in missing:
            looked = Replay(row.number, LOST, first, first, end)
            while not (looked.is_over or looked.copied):
                looked = await self._replayer.count(row, looked, 1)
            if looked.copied:
                break
        else:
            return
        if row.removed:
            return
        self._logger.error(
            "node {name} has lost positions {first} to {last}, which it had acknowledged, or some"
            " of them: its log went back, or is another one; what is kept of them is sent again",
            line="next-node-lost",
            name=row.name,
            first=first,
            last=last,
        )
        await self._replayer.widen(row, Replay(row.number, LOST, first, first, last))

    async def _hand_retained(self, row: ReceiverRow) -> None:
        if row.removed or row.number in self._removing:
            return
        try:
            join = self._join(row, self._wanted(row, row.patterns))
        except LimitReached as error:
            self._logger.error(
                "node {name} has an empty log, and is not sent what is retained here: {why}",
                line="next-node-empty",
                name=row.name,
                why=str(error),
            )
            return
        if join is not None:
            await self._store(row, join=join)

    async def rewind_left_out(self, name: str) -> Replay:
        """Send a receiver what it was left out of while it was suspended.

        Returns once that is stored. Raises `UnknownReceiver`, `ReplayRuns`; `BadValue` where it was
        left out of nothing; `LimitReached` where there is no place for the set of it alone.
        """
        row = self._standing(name)
        span = self._replayer.left_out_of(row)
        if span is None:
            raise left_out_of_nothing(name)
        if self._replayer.runs(row.number):
            raise ReplayRuns(name)
        first, end = span
        place = self._directory.audience_alone(row)
        # What it is left out of from here on is for another time.
        row.left_first, row.left_last = (end + 1, 0) if row.suspended else (0, 0)
        replay = Replay(row.number, LEFT_OUT, first, first, end)
        await self._replayer.begin(row, replay, lambda: self._store(row, replay), place=place)
        return replay

    def leave_out(self, row: ReceiverRow, first: int, last: int) -> None:
        """A replay of these positions is called off: they are left out again. `store` follows."""
        if first <= last:
            if not row.left_first:
                row.left_last = last
            row.left_first = first

    def has_had(self, row: ReceiverRow, position: int) -> None:
        """A receiver that starts has had all before this position: it was left out of none of it.

        Where it was suspended meanwhile. `store` follows.
        """
        if row.left_first and row.left_first < position:
            row.left_first = position
            if row.left_last and row.left_last < position:
                row.left_first = row.left_last = 0

    def store(self, row: ReceiverRow, replay: Replay | None) -> Deferred[None]:
        """Store a receiver, and with it how far a replay is."""
        return self._store(row, replay)

    async def call_off(self, name: str) -> Replay | None:
        """End the replay of a receiver before its time; return how far it came.

        None where none runs. What was copied stays. Raises `UnknownReceiver`.
        """
        return await self._replayer.call_off(self._standing(name).number)

    def _change_stored(self, _: None, number: int) -> None:
        del self._unstored[number]
        waiting = self._waiting
        oldest = next(iter(self._unstored), self._last_change + 1)
        while waiting and waiting[0][0] < oldest:
            waiting.popleft()[1].fire(None)

    def stored(self) -> Deferred[None]:
        """Fire when all changes of the directory so far are stored.

        Those that come later are not waited for: they may never cease.
        """
        if not self._unstored:
            return succeed(None)
        waiting = self._waiting
        if not waiting or waiting[-1][0] != self._last_change:
            waiting.append((self._last_change, Waiters()))
        return waiting[-1][1].wait()


def _check_shared(options: ReceiverOptions) -> None:
    """End the connection of a peer that would share a receiver, and keep an order."""
    try:
        options.check()
    except BadValue as error:
        raise ProtocolError(str(error)) from None


def _check_stays(options: ReceiverOptions, *, configured: bool) -> None:
    """Raise `BadValue` for a time away after which the configuration's would be removed."""
    if configured and options.away_max:
        raise BadValue("away_max", "a receiver of the configuration is never removed")


def _check_webhook(address: str | None, options: ReceiverOptions) -> None:
    """Raise `BadValue` for a webhook that would be a group: its workers attach by themselves."""
    if options.shared and address is not None and is_url(address):
        raise BadValue("shared", "a webhook is one receiver, and no group of workers")


def _check_node(address: str | None, options: ReceiverOptions, patterns: Iterable[str]) -> None:
    """Raise `BadValue` where a node would get what it does not take, or out of order."""
    if not is_node(address):
        return
    if options.order != STRICT:
        raise BadValue("order", f"must be {STRICT!r} towards a node, not {options.order!r}")
    for pattern in patterns:
        if is_reserved(pattern):
            raise BadValue("subjects", f"{pattern!r} is this node's own: no other node takes it")
