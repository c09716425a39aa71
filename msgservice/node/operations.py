"""The operations of a node: all that an operator may ask of it, as calls with values and errors.

What can be asked is listed in `msgservice.administration`. An error has a code
(`MsgServiceError.refusal_code`). Whoever lets people or programs ask from outside translates to
these calls, and decides who may: `admin` does for `$node.*`. What changes a receiver is carried out
by `receivers`; nothing here keeps a state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import msgspec
from twisted.internet.defer import Deferred

from msgservice.administration import NodeInfo, Place, ReceiverState
from msgservice.clock import Time
from msgservice.errors import UnknownDeadLetter, UnknownMessage
from msgservice.interfaces import ILog
from msgservice.limits import Rate
from msgservice.message import Status
from msgservice.node.connections import Connections
from msgservice.node.dead_letters import DeadLetters
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.loaded_bytes import LoadedBytes
from msgservice.node.receivers import Receivers
from msgservice.node.upkeep import Upkeep
from msgservice.receiver_options import ADDED
from msgservice.records import Account, DeadLetter, Found, ReceiverRow, Reread


class StatusAt(msgspec.Struct, frozen=True):
    """The status of one message at one receiver."""

    number: int  # of the receiver
    receiver: str
    status: Status
    attempts: int
    reason: str


def word_of(status: int) -> str:
    """Return the word of a status, as it is told."""
    return Status(status).name.lower()


@cache
def installed_version() -> str:
    """The version of this installation. Looked up once: it is read from a file, and parsed."""
    try:
        return version("msgservice")
    except PackageNotFoundError:
        return "unknown"


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
        upkeep: Upkeep,
        loaded: LoadedBytes,
        reload: Callable[[], Deferred[list[Reread]]],
        time: Time,
    ) -> None:
        self._name = name
        self._log_id = log_id
        self._listeners = listeners
        self._log = log
        self._directory = directory
        self._dispatch = dispatch
        self._rates = rates
        self._connections = connections
        self._upkeep = upkeep
        self._loaded = loaded
        self._time = time
        self.add, self.change = receivers.add, receivers.change
        self.pause, self.remove = receivers.pause, receivers.remove
        self.account, self.own = receivers.account, receivers.own
        self.owner_of, self.known = directory.owner_of, directory.get
        self.letters_full = dead_letters.full
        self.reload = reload

    def info(self) -> NodeInfo:
        """Return what the node is, how full its log, and what is loaded for receivers."""
        room = self._log.room()
        return NodeInfo(
            name=self._name,
            log_id=self._log_id,
            version=installed_version(),
            listeners=tuple(self._listeners),
            connections=len(self._connections.peers),
            room=replace(room, full=room.full or self._upkeep.refused),
            loaded_bytes=self._loaded.total,
        )

    async def receivers(self, after: str, count: int) -> tuple[list[ReceiverState], bool]:
        """Return up to `count` receivers by name, behind this one, and whether there are more.

        One that is removed meanwhile is left out.
        """
        names = self._directory.names_after(after, count + 1)
        rows = [self._directory.named(name) for name in names[:count]]
        accounts = await self._log.accounts([row.number for row in rows])
        found = {one.receiver: one for one in accounts}
        there = [row for row in rows if row.number in self._dispatch.outlets]
        here = self._connections.receivers_here()
        states = [self._state(row, found.get(row.number), row.number in here) for row in there]
        return states, len(names) > count

    def _state(self, row: ReceiverRow, account: Account | None, connected: bool) -> ReceiverState:
        outlet = self._dispatch.outlets[row.number]
        link = self._connections.links.get(row.number)
        account = account or Account(receiver=row.number, routed=0, queued=0, settled={})
        oldest = account.oldest
        waiting = outlet.backlog.waiting_runs
        first = min(waiting, key=lambda run: run.first, default=None)
        waiting = [run for run in waiting if run.attempts]
        options = {option.name: getattr(row.options, option.name) for option in ADDED}
        options["backlog_bytes"] = self._dispatch.backlog_bytes_max(row)
        options["paused"] = row.options.paused or outlet.is_going
        return ReceiverState(
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
            next_try_s=(None if link is None else link.next_attempt_in)
            if outlet.connection is None
            else min([max(0.0, run.due - self._time.now()) for run in waiting], default=None),
            oldest_s=None if oldest is None else max(0, self._time.wall() - oldest.at) / 1000,
            dead_bytes=self._log.dead_bytes(row.number),
            queued=account.queued,
            queued_bytes=account.queued_bytes,
            oldest=account.oldest,
            routed=account.routed,
            unaccounted=account.unaccounted,
            settled={word_of(status): count for status, count in account.settled.items()},
            owner=row.owner,
        )

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
            raise UnknownMessage(id_)
        told = []
        for number, (stored, attempts, reason) in found.states.items():
            row = self._directory.numbered(number)
            if row is not None:
                status = self._dispatch.status_of(number, found.position, stored)
                told.append(StatusAt(number, row.name, status, attempts, reason))
        return found, told

    async def dead_letters(self, name: str, after: int, count: int) -> list[DeadLetter]:
        """Return up to `count` dead letters of a receiver, behind this position.

        Fewer where they are long, none behind the last. Raises `UnknownReceiver`.
        """
        letters: list[DeadLetter] = await self._log.dead_letters(
            self._directory.named(name).number, after, count
        )
        return letters

    async def dead_letter(self, name: str, position: int) -> DeadLetter:
        """Return one dead letter of a receiver. Raises `UnknownReceiver`, `UnknownDeadLetter`."""
        for letter in await self.dead_letters(name, position - 1, 1):
            if letter.position == position:
                return letter
        raise UnknownDeadLetter(name, position)

    async def audit(self) -> list[str]:
        """Return what does not add up in the log, in sentences."""
        discrepancies: list[str] = await self._log.audit()
        return discrepancies
