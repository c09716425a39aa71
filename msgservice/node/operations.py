"""The operations of a node: all that an operator may ask of it, as calls with values and errors.

What can be asked is listed in `msgservice.administration`. An error has a code
(`MsgServiceError.refusal_code`). Whoever lets people or programs ask from outside translates to
these calls, and decides who may: `admin` does for `$node.*`. What changes a receiver is carried out
by `receivers`; nothing here keeps a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred, gatherResults, succeed

from msgservice.administration import (
    PAGE_ROWS,
    WHY,
    Cause,
    LeftOut,
    LetterCounts,
    NodeInfo,
    Place,
    PromiseCounts,
    PromiseTold,
    ReceiverState,
    ReceiverWhy,
    Replaying,
    Rewind,
    WhyPage,
)
from msgservice.clock import Time
from msgservice.core.reasons import first_line
from msgservice.errors import BadValue, MsgServiceError, UnknownMessage, UnknownReceiver
from msgservice.installation import installed_version
from msgservice.interfaces import IConnector, ILog
from msgservice.limits import Rate
from msgservice.message import Status
from msgservice.node import why
from msgservice.node.away import Away
from msgservice.node.connections import Connections
from msgservice.node.dead_letters import DeadLetters
from msgservice.node.delayed import DelayedMessages
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.letters import Letters
from msgservice.node.loaded_bytes import LoadedBytes
from msgservice.node.outlet import Outlet
from msgservice.node.peek import Peek
from msgservice.node.purge import Purge
from msgservice.node.receivers import Receivers
from msgservice.node.replayer import COUNT_PAGES, Replayer, left_out_of_nothing
from msgservice.node.responders import Responders
from msgservice.node.retained import RetainedIndex
from msgservice.node.tail import Tail
from msgservice.node.tracker import Tracker
from msgservice.node.troubles import (
    FAILING,
    FULL,
    PAUSED,
    PROBING,
    SUSPENDED,
    health_of,
    needs_of,
    troubles_of,
    well,
)
from msgservice.node.undo import Undo
from msgservice.node.upkeep import Upkeep
from msgservice.node.view import Row
from msgservice.receiver_options import ADDED
from msgservice.records import (
    DELAYED,
    NOT_YET,
    REWIND,
    Account,
    DeadLetter,
    Found,
    ReceiverRow,
    Replay,
    Reread,
    Retained,
    Tried,
    digest_of_key,
    identity_of,
    position_of,
)


class Loops(Protocol):
    """The count of what came back over a chain (`acceptance`)."""

    looped: int  # messages, since the node started


class Promises(Protocol):
    """The promises of a node (`promises`), in messages."""

    open: int
    kept: int  # since the start
    broken: int


class StatusAt(msgspec.Struct, frozen=True):
    """The status of one message at one receiver."""

    number: int  # of the receiver
    receiver: str
    status: Status
    attempts: int
    reason: str
    copy: int | None = None  # the position of its newest copy: it was sent again
    copy_to: str | None = None  # … to another receiver


def sender_of(of: Found | DeadLetter) -> str:
    """Return the identity of a message, as it is told: `SENDER/HASH/SEQUENCE`."""
    return identity_of(of.sender, of.incarnation, of.sequence)


def word_of(status: int) -> str:
    """Return the word of a status, as it is told."""
    return Status(status).name.lower()


def outcome_of(status: Status | None) -> str:
    """Return the word of what was decided about a promise."""
    if status is None:
        return "open"
    return "kept" if status is Status.ACKNOWLEDGED else "broken"


TAKEN = (Status.SENT, Status.ACKNOWLEDGED)  # of what a next node may know
SEQUENCE_DIGITS = 17
NEXT_NODE_SECONDS = 5.0  # that a next node has to say why; it asks further nodes as well


def _moment(field: str, text: str) -> int:
    """Return a time in ms. Raises `BadValue`."""
    try:
        at = datetime.fromisoformat(text)
        milliseconds = int(at.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise BadValue(field, f"{text!r} is no time of ISO 8601") from None
    if at.tzinfo is None:
        raise BadValue(field, f"time {text!r} has no time zone")
    return max(0, milliseconds)


class Operations:
    """The operations of one node. `listeners`: what it listens on, for people.

    `reload`: reads the files of addresses in use anew.
    """

    def __init__(
        self,
        *,
        name: str,
        log_id: str,
        listeners: Sequence[str],
        log: ILog,
        directory: Directory,
        dispatch: Dispatch,
        rates: Mapping[str, Rate],
        connections: Connections,
        receivers: Receivers,
        dead_letters: DeadLetters,
        away: Away,
        retained: RetainedIndex,
        replayer: Replayer,
        tail: Tail,
        letters: Letters,
        purge: Purge,
        upkeep: Upkeep,
        acceptance: Loops,
        tracker: Tracker,
        delayed: DelayedMessages,
        undo: Undo,
        loaded: LoadedBytes,
        responders: Responders,
        promises: Promises,
        reload: Callable[[], Deferred[list[Reread]]],
        time: Time,
    ) -> None:
        self._name = name
        self._log_id = log_id
        self._listeners = listeners
        self._log = log
        self._retained = retained
        self._directory = directory
        self._dispatch = dispatch
        self._rates = rates
        self._connections = connections
        self._upkeep = upkeep
        self._receivers, self._replayer, self._tail = receivers, replayer, tail
        self._acceptance = acceptance
        self._loaded = loaded
        self._responders = responders
        self._promises = promises
        self._time = time
        self._causes = why.Causes(time)
        self.add, self.change = receivers.add, receivers.change
        self.pause, self.remove = receivers.pause, receivers.remove
        self.account, self.own = receivers.account, receivers.own
        self.owner_of, self.known = directory.owner_of, directory.get
        self.delayed, self.cancel = delayed.page, delayed.cancel
        self.undo, self.tell_again = undo.page, tracker.tell_again
        self.letters_full = dead_letters.full
        self.letters, self.purge, self.dead_count = letters, purge.page, log.dead_count
        self._dead_letters = dead_letters
        self._away = away
        self.peek = Peek(log=log, directory=directory, dispatch=dispatch, tail=tail)
        self.reload = reload

    def info(self) -> NodeInfo:
        """Return what the node is, how full its log, and what is loaded for receivers."""
        room, dead = self._log.room(), self._dead_letters
        return NodeInfo(
            name=self._name,
            log_id=self._log_id,
            version=installed_version(),
            listeners=tuple(self._listeners),
            connections=len(self._connections.peers),
            room=replace(room, full=room.full or self._upkeep.refused),
            looped=self._acceptance.looped,
            loaded_bytes=self._loaded.total,
            dead_letters=LetterCounts(dead.new, dead.requeued, dead.dropped),
            requests=self._responders.counts(),
            promises=self.promises(),
        )

    def promises(self) -> PromiseCounts:
        """Return how many promises of messages are open, were kept and were broken."""
        promises = self._promises
        return PromiseCounts(promises.open, promises.kept, promises.broken)

    async def receivers(
        self, after: str, count: int, *, left_out_too: bool = True
    ) -> tuple[list[ReceiverState], bool]:
        """Return up to `count` receivers by name, behind this one, and whether there are more.

        One that is removed meanwhile is left out. `left_out_too`: with what each was left out of,
        which takes a look into the log of its own.
        """
        names = self._directory.names_after(after, count + 1)
        rows = [self._directory.named(name) for name in names[:count]]
        return await self._states(rows, left_out_too=left_out_too), len(names) > count

    async def receiver(self, name: str) -> ReceiverState:
        """Return one receiver, as `receivers` does. Raises `UnknownReceiver`."""
        row = self._directory.named(name)
        for state in await self._states([row], left_out_too=True):
            return state
        raise UnknownReceiver(name)  # it was removed meanwhile

    async def _states(
        self, rows: Sequence[ReceiverRow], *, left_out_too: bool
    ) -> list[ReceiverState]:
        accounts = await self._log.accounts([row.number for row in rows])
        found = {one.receiver: one for one in accounts}
        there = [row for row in rows if row.number in self._dispatch.outlets]
        here = self._connections.receivers_here()
        left_out = {
            row.number: await self._replayer.count_left_out(row)
            for row in there
            if row.left_first and left_out_too
        }
        return [
            self._state(row, found.get(row.number), row.number in here, left_out.get(row.number))
            for row in there
            if row.number in self._dispatch.outlets
        ]

    def _state(
        self,
        row: ReceiverRow,
        account: Account | None,
        connected: bool,
        left_out: Replay | None,
    ) -> ReceiverState:
        outlet = self._dispatch.outlets[row.number]
        link = self._connections.links.get(row.number)
        account = account or Account(receiver=row.number, routed=0, queued=0, settled={})
        oldest = account.oldest
        waiting = outlet.backlog.waiting_runs
        first = min(waiting, key=lambda run: run.first, default=None)
        next_try = min([run.due for run in waiting], default=math.inf)
        waiting = [run for run in waiting if run.attempts]
        options = {option.name: getattr(row.options, option.name) for option in ADDED}
        options["backlog_bytes"] = self._dispatch.backlog_bytes_max(row)
        options["away_max"] = self._away.limit(row) // 1000
        options["paused"] = row.options.paused or outlet.is_going
        options["max_attempts"] = outlet.backlog.max_attempts
        state = ReceiverState(
            **options,
            name=row.name,
            address=row.address,
            subjects=row.patterns,
            suspended=row.suspended,
            rate=self._rates.get(row.name),
            refuses=self._dispatch.refuses(row.number),
            connected=connected,
            since_s=round(self._time.now() - outlet.since, 3),
            cursor=outlet.backlog.cursor,
            attempts=max([run.attempts for run in waiting], default=0),
            waits=None if first is None else Place(first.first, first.subject),
            last_error=outlet.trouble or ("" if link is None else link.last_error or ""),
            next_try_s=link.next_attempt_in
            if link is not None and (outlet.connection is None or link.last_error)
            else (None if next_try == math.inf else max(0.0, next_try - self._time.now())),
            oldest_s=None if oldest is None else max(0, self._time.wall() - oldest.at) / 1000,
            dead=self._log.dead_count(row.number),
            dead_bytes=self._log.dead_bytes(row.number),
            queued=account.queued,
            queued_bytes=account.queued_bytes,
            oldest=account.oldest,
            routed=account.routed,
            unaccounted=account.unaccounted,
            settled={word_of(status): count for status, count in account.settled.items()},
            owner=row.owner,
            replay=self._replaying(row),
            left_out=None
            if left_out is None
            else LeftOut(
                first=left_out.first,
                end=left_out.end,
                messages=left_out.copied,
                counted=left_out.is_over,
            ),
            away_s=self._away.since(row),
            stays=self._away.stays(row),
            workers=outlet.workers,
            needs=needs_of(row, link) if link is not None or not connected else "",
            dead_s=self._ago(self._dead_letters.since(row)),
        )
        failing = bool(state.attempts or state.last_error)
        health = health_of(state, probing=outlet.is_probing, failing=failing)
        health_s = self._ago(self._health_since(health, outlet, link))
        return msgspec.structs.replace(state, health=health, health_s=health_s)

    def _ago(self, moment: float | None) -> float | None:
        return None if moment is None else round(self._time.now() - moment, 3)

    @staticmethod
    def _health_since(health: str, outlet: Outlet, link: IConnector | None) -> float | None:
        """Return when a receiver began to be as it is, in this process; None: not known."""
        if health in (SUSPENDED, FULL):
            return outlet.full_since
        if health == PAUSED:
            return outlet.paused_since
        if health in (PROBING, FAILING):
            unwell_since: float | None = getattr(link, "unwell_since", None)
            return outlet.failing_since if unwell_since is None else unwell_since
        return outlet.since

    # --- what is sent again

    def _replaying(self, row: ReceiverRow) -> Replaying | None:
        found = self._replayer.of(row.number)
        return None if found is None else self._told(*found)

    def _told(self, replay: Replay, waits: str = "") -> Replaying:
        return Replaying(
            kind=replay.kind,
            first=replay.first,
            next=replay.next,
            end=replay.end,
            copied=replay.copied,
            skipped=replay.skipped,
            over=replay.is_over,
            waits=waits,
            kept_from=self._log.kept_from(),
        )

    def replay(self, name: str) -> Replaying | None:
        """Return the replay of a receiver, or the last one. Raises `UnknownReceiver`."""
        return self._replaying(self._directory.named(name))

    async def rewind(self, asked: Rewind) -> Replaying:
        """Begin a rewind, and return it once that is stored.

        Raises `UnknownReceiver`, `ReplayRuns`, `UnknownMessage`; `BadValue` for positions that are
        not in the log.
        """
        if asked.suspended:
            return self._told(await self._receivers.rewind_left_out(asked.name))
        self._directory.named(asked.name)
        first, end = await self._range(asked)
        return self._told(await self._receivers.rewind(asked.name, first, end))

    async def rewind_count(self, asked: Rewind) -> Replaying:
        """Return what a rewind would copy, as far as one answer goes; raises as `rewind`.

        Where it is not over, the rest is counted from its `next` to its `end`.
        """
        row = self._directory.named(asked.name)
        if asked.suspended:
            left_out = await self._replayer.count_left_out(row)
            if left_out is None:
                raise left_out_of_nothing(row.name)
            return self._told(left_out)
        first, end = await self._range(asked)
        replay = Replay(row.number, REWIND, first, first, end)
        return self._told(await self._replayer.count(row, replay, COUNT_PAGES))

    async def _range(self, asked: Rewind) -> tuple[int, int]:
        """Return the first and last position that a rewind is about, as far as they are kept."""
        newest = position_of(self._tail.next_number) - 1
        first = await self._position("first", asked.first)
        end = newest
        if asked.end is not None:
            end = await self._position("end", asked.end)
            if isinstance(asked.end, str) and asked.end.startswith("@"):
                end -= 1  # what was stored before that time
        kept = self._log.kept_from()
        end = min(end, newest)
        if first > newest and isinstance(asked.first, str) and asked.first.startswith("@"):
            at = asked.first[1:]
            raise BadValue("first", f"is {at}, and nothing was stored since")
        if first > newest:
            raise BadValue("first", f"is {first}, and the log ends at {newest}")
        if first > end:
            raise BadValue("end", f"is {end}, which lies before the first, {first}")
        if end < kept:
            raise BadValue("end", f"is {end}, and nothing is kept before {kept}")
        return max(first, kept), end

    async def _position(self, field: str, said: str | int) -> int:
        if isinstance(said, int):
            return said
        if said == "first":
            return 0
        if said.startswith("@"):
            position: int = await self._log.position_at(_moment(field, said[1:]))
            return position
        number = said.removeprefix("log:")
        if number.isascii() and number.isdigit():
            return int(number[:20])
        found: Found | None = await self._log.find(said, 0, 0)
        if found is None:
            raise UnknownMessage(said)
        return found.position

    async def test(self, name: str) -> Tried:
        """Try the endpoint of a webhook out; nothing is stored, counted or told of it."""
        row = self.known(name)
        if row is None:
            raise UnknownReceiver(name)
        return await self._connections.try_out(row)

    async def call_off(self, name: str) -> Replaying | None:
        """End the replay of a receiver; return how far it came, or None where none runs."""
        replay = await self._receivers.call_off(name)
        return None if replay is None else self._told(replay)

    def row(self, row: ReceiverRow, connected: bool) -> Row | None:
        """Return a receiver as a view has it, of what is in memory; None: it is not there."""
        outlet = self._dispatch.outlets.get(row.number)
        if outlet is None:
            return None
        backlog = outlet.backlog
        seen = Row(
            connected=connected,
            paused=row.options.paused or outlet.is_going,
            suspended=row.suspended,
            refuses=bool(self._dispatch.refuses(row.number)),
            cursor=backlog.cursor,
            workers=outlet.workers,
        )
        failing = connected and self._fails(outlet)
        health = health_of(seen, probing=outlet.is_probing, failing=failing)
        return seen if health == seen.health else seen._replace(health=health)

    def _fails(self, outlet: Outlet) -> bool:
        waits, link = outlet.backlog.first_waiting, self._connections.links.get(outlet.row.number)
        if outlet.trouble or (waits is not None and waits.attempts):
            return True
        return link is not None and bool(link.last_error)

    async def status(
        self, id_: str, after: int, count: int, senders: Sequence[str] | None = None
    ) -> tuple[Found, list[StatusAt]]:
        """Return a message, and its status at up to `count` receivers behind this number.

        `id_`: `log:POSITION`, `SENDER/HASH/SEQUENCE`, or the id its sender gave. `Found.more`:
        there are receivers with higher numbers. `senders`: patterns of names; where several have
        given the id, the newest message of one of these. Raises `UnknownMessage`.
        """
        found: Found | None = await self._log.find(id_, after, count, senders)
        if found is None:
            found = await self._elsewhere(id_, after, count, senders)
        told = []
        for number, (stored, attempts, reason) in found.states.items():
            if number == NOT_YET:
                told.append(StatusAt(number, DELAYED, stored, attempts, reason))
                continue
            row = self._directory.numbered(number)
            if row is not None:
                status = stored
                if not found.removed:
                    status = self._dispatch.status_of(number, found.position, stored)
                copy, copy_to = found.copies.get(number), None
                if number in found.copied_to:
                    other, copy = found.copied_to[number]
                    there = self._directory.numbered(other)
                    copy_to = None if there is None else there.name
                told.append(StatusAt(number, row.name, status, attempts, reason, copy, copy_to))
        return found, told

    async def promise(self, found: Found) -> PromiseTold | None:
        """Return the promise that a message came with, as it is told; None where it had none."""
        promise = found.promise
        if promise is None:
            return None
        whole: Found | None = found
        if found.more:  # there are receivers that are in another page
            name = f"log:{found.position}" if found.position else sender_of(found)
            find = self._log.find if found.position else self._log.find_finished
            whole = await find(name)
        states = {} if whole is None else whole.states
        return PromiseTold(
            need=promise.need,
            until=promise.until,
            otherwise="cancel" if promise.cancels else "notify",
            acknowledged=sum(
                [
                    status is Status.ACKNOWLEDGED
                    for number, (status, _, _) in states.items()
                    if number != NOT_YET
                ]
            ),
            outcome=outcome_of(promise.status),
            reason=promise.reason,
            decided_at=promise.decided_at or None,
        )

    async def why(
        self,
        id_: str,
        after: int,
        count: int,
        senders: Sequence[str] | None = None,
        *,
        sees_all: bool = True,
    ) -> tuple[Found, list[tuple[int, Cause]]]:
        """Return a message, and by numbers of receivers the causes of where it is there.

        As `status`. Behind the last receiver come those that were left out, as number -1.
        `sees_all`: who asks may know more than its own messages.
        """
        found, told = await self.status(id_, after, count, senders)
        causes: list[tuple[int, Cause]] = []
        asked: list[Deferred[list[tuple[int, Cause]]]] = []  # of next nodes, all at once
        for at in told:
            outlet = self._dispatch.outlets.get(at.number)
            reason = at.reason if sees_all else first_line(at.reason)
            if at.number == NOT_YET:
                cause = why.cause_of_delayed(found, sender_of(found), at.status, reason)
            elif at.status.final or outlet is None:
                cause = why.cause_of_final(
                    at.receiver, found, at.status, at.attempts, reason, at.copy, at.copy_to
                )
            else:
                link = self._connections.links.get(at.number)
                cause = self._causes.of(
                    outlet, link, found, at.status, at.attempts, at.reason, sees_all=sees_all
                )
            is_there = bool(found.position)  # else the next node cannot be asked for it
            if outlet is not None and outlet.is_node and at.status in TAKEN and is_there:
                asked.append(Deferred.fromCoroutine(self._with_further(at.number, cause, found)))
            else:
                asked.append(succeed([(at.number, cause)]))
        for of_one in await gatherResults(asked, consumeErrors=True):
            causes += of_one
        if not found.more and sees_all and found.position:
            causes += [(-1, one) for one in why.left_out(self._directory, found)]
        if not causes and not found.more and not after:
            if found.due:
                cause = why.cause_of_delayed(found, sender_of(found), Status.QUEUED, "")
            elif found.removed:
                cause = why.cause_of_removed(found)
            else:
                cause = why.cause_of_nobody(found.subject)
            causes.append((-1, cause))
        return found, causes

    async def _with_further(
        self, number: int, cause: Cause, found: Found
    ) -> list[tuple[int, Cause]]:
        """Return the cause at a next node, and those that it says itself."""
        return [(number, one) for one in (cause, *await self._further(number, found))]

    async def _further(self, number: int, found: Found) -> list[Cause]:
        """Return what the next node says of a message that was passed on, if it answers."""
        peer = self._connections.next_node(number)
        row = self._directory.numbered(number)
        if peer is None or row is None:
            return []  # that it is away is said already, or that it took it before it went
        asked = {"id": f"{peer.sender_there}/{found.position}"}
        try:
            answer = await peer.ask_node(WHY.right, asked, NEXT_NODE_SECONDS)
            page = msgspec.convert(answer, WhyPage)
        except (MsgServiceError, msgspec.ValidationError) as error:
            return [why.cause_unsaid(row.name, str(error))]
        return [
            msgspec.structs.replace(
                one, node=f"{row.name}/{one.node}" if one.node else row.name, command=""
            )
            for one in page.causes
        ]

    async def why_all(self, id_: str) -> list[Cause]:
        """Return the causes at all receivers. Raises `UnknownMessage`."""
        all_of_them: list[Cause] = []
        after, asked = 0, id_
        while True:
            found, causes = await self.why(asked, after, PAGE_ROWS)
            all_of_them += [cause for _, cause in causes]
            if not found.more:
                return all_of_them
            after = max(found.states)
            if found.position:
                asked = f"log:{found.position}"

    async def receiver_why(self, name: str) -> ReceiverWhy:
        """Return how a receiver is and why. Raises `UnknownReceiver`."""
        row = self._directory.named(name)
        accounts = await self._log.accounts([row.number])
        if row.number not in self._dispatch.outlets:
            raise UnknownReceiver(name)
        state = self._state(
            row,
            accounts[0] if accounts else None,
            row.number in self._connections.receivers_here(),
            await self._replayer.count_left_out(row) if row.left_first else None,
        )
        wall = self._time.wall()
        since = wall - round(state.since_s * 1000)
        as_it_is = None if state.health_s is None else wall - round(state.health_s * 1000)
        dead_since = None if state.dead_s is None else wall - round(state.dead_s * 1000)
        troubles = troubles_of(state, as_it_is, dead_since)
        return ReceiverWhy(
            name=name,
            health=state.health,
            sentence=troubles[0].sentence if troubles else well(state),
            since=since,
            troubles=troubles,
            health_since=as_it_is,
        )

    async def message(self, id_: str, senders: Sequence[str] | None = None) -> Found:
        """Return a message with its state at each receiver. Raises `UnknownMessage`."""
        found: Found | None = await self._log.find(id_, 0, None, senders)
        return found or await self._elsewhere(id_, 0, None, senders)

    async def _elsewhere(
        self, id_: str, after: int, count: int | None, senders: Sequence[str] | None
    ) -> Found:
        """Return a message that is not in the log: it waits, or what became of it is kept."""
        found: Found | None = await self._log.find_delayed(id_, senders)
        if found is None:
            found = await self._log.find_finished(id_, after, count, senders)
        if found is None:  # it may have waited when the log was looked at, and been moved since
            found = await self._log.find(id_, after, count, senders)
        if found is None:
            raise UnknownMessage(id_)
        return found

    async def of_key(self, scopes: Sequence[str], key: str) -> str:
        """Return the message that was stored by an idempotency key, of the first scope that has it.

        As SENDER/HASH/SEQUENCE. Raises `UnknownMessage`.
        """
        for scope in scopes:
            found: str | None = await self._log.of_key(digest_of_key(scope, key))
            if found is not None:
                return found
        whose = (
            "its `sender` (--sender) has to be said, the name that it was sent under, unless it is"
            " the user who asks"
        )
        raise UnknownMessage(key, f"no message with the key {key!r} is known: {whose}")

    async def of_sender(self, id_: str) -> tuple[str, str, int]:
        """Return the sender, incarnation and sequence of SENDER/HASH/SEQUENCE.

        Whether there is such a message or not. Raises `UnknownMessage` where the sender is unknown.
        """
        place = await self.place_of(id_)
        if place is None:
            raise UnknownMessage(id_)
        return place

    async def place_of(self, id_: str) -> tuple[str, str, int] | None:
        """Return what `of_sender` does; None where the sender is unknown, or `id_` is no such."""
        sender, hash_, sequence = [*id_.rsplit("/", 2), "", ""][:3]
        if sequence.isascii() and sequence.isdigit() and len(sequence) < SEQUENCE_DIGITS:
            incarnation: str | None = await self._log.incarnation(sender, hash_)
            if incarnation is not None:
                return sender, incarnation, int(sequence)
        return None

    async def waiting(self, id_: str, senders: Sequence[str] | None = None) -> Found:
        """Return a message that waits until it is due, or was cancelled before.

        `id_`, `senders`: as those of `status`, but for positions. Raises `UnknownMessage`.
        """
        found: Found | None = await self._log.find_delayed(id_, senders)
        if found is None:
            found = await self._log.find_finished(id_, 0, None, senders)
        if found is None or found.removed:
            raise UnknownMessage(id_)
        return found

    def names_of(self, numbers: Sequence[int]) -> list[str]:
        """Return the names of these receivers, removed or not."""
        rows = (self._directory.numbered(number) for number in numbers)
        return [row.name for row in rows if row is not None]

    async def retained(self, after: str, count: int) -> list[Retained]:
        """Return up to `count` retained messages of the subjects behind this one.

        Fewer where they are long, none behind the last.
        """
        found: list[Retained] = await self._log.retained(after, count)
        return found

    async def retained_of(self, subject: str) -> Retained:
        """Return the retained message of a subject. Raises `UnknownMessage`."""
        if subject in self._retained:
            # Behind all that is less than this subject: no text lies between but what goes on from
            # the one before its last character's.
            code = ord(subject[-1]) - 1
            before = subject[:-1] + chr(0xD7FF if 0xD800 <= code <= 0xDFFF else code)
            while True:
                found = await self.retained(before, 100)
                for one in found:
                    if one.subject == subject:
                        return one
                if not found or found[-1].subject > subject:
                    break
                before = found[-1].subject
        raise UnknownMessage(subject, f"nothing is retained of {subject!r}")

    async def clear_retained(self, subjects: Collection[str]) -> int:
        """Retain no message of these subjects any more; return of how many there was one."""
        there = [subject for subject in dict.fromkeys(subjects) if subject in self._retained]
        if there:
            await self._log.clear_retained(there)
            self._retained.cleared(there)
        return len(there)

    async def audit(self) -> list[str]:
        """Return what does not add up in the log, in sentences."""
        discrepancies: list[str] = await self._log.audit()
        return discrepancies
