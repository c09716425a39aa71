"""Dead letters as operators treat them: found, dropped, sent again; and events that tell of them.

What they take, and when a receiver is paused for that, is the business of `dead_letters`; that a
letter goes in the entry that stores its copy, the log's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from zlib import crc32

import msgspec
from twisted.logger import Logger

from msgservice.core.copies import copies_of_letters
from msgservice.core.reasons import first_line
from msgservice.core.subjects import check_pattern, matches
from msgservice.errors import (
    LimitReached,
    Refused,
    UnknownDeadLetter,
    UnknownReceiver,
)
from msgservice.interfaces import ILog
from msgservice.limits import INTEGER_MAX, NAME_BYTES_MAX, Limits
from msgservice.message import WireMessage, decode_messages, encode_messages
from msgservice.node.commits import Commits
from msgservice.node.dead_letters import REASON_SHOWN, DeadLetters
from msgservice.node.directory import BacklogFull, Directory
from msgservice.records import (
    NODE,
    Audience,
    Batch,
    DeadLetter,
    LettersTaken,
    Progress,
    ReceiverRow,
    identity_of,
)

PAGE = 512  # letters that one call looks at; they have 4 MiB at most, and one more
DEAD = "$dead"  # the first token of the subjects of events
DROP, REQUEUE = "drop", "requeue"

_to_json = msgspec.json.Encoder().encode


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letters of a receiver that are meant: all that fit what is given of this.

    `of`: one, by its position, `log:POSITION`, `SENDER/HASH/SEQUENCE` or the id its sender gave.
    A number is an id where no letter of the receiver has it as its position.
    `subject`: a pattern. `reason`: a part of it. `since`, `until`: when it became one, wall clock,
    ms. Raises `BadSubject` for a pattern that is none.
    """

    of: str | None = None
    subject: str | None = None
    reason: str | None = None
    code: int | None = None
    since: int = 0
    until: int = INTEGER_MAX

    def __post_init__(self) -> None:
        if self.subject is not None:
            check_pattern(self.subject)

    @property
    def position(self) -> int | None:
        """The position that `of` is, if it is one."""
        text = (self.of or "").removeprefix("log:")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 17 else None

    @property
    def may_be_id(self) -> bool:
        """Whether `of` may be the id of a message, if no letter has it as its position."""
        return not (self.of or "").startswith("log:")

    def takes(self, letter: DeadLetter) -> bool:
        """Return whether a letter is meant."""
        return (
            self.since <= letter.at <= self.until
            and (self.code is None or self.code == letter.code)
            and (self.reason is None or self.reason in letter.reason)
            and (self.subject is None or matches(self.subject, letter.subject))
            and (self.of is None or self._is(letter))
        )

    def _is(self, letter: DeadLetter) -> bool:
        if self.position == letter.position:
            return True
        here = identity_of(letter.sender, letter.incarnation, letter.sequence)
        return self.of in (here, letter.identity, decode_messages(letter.message)[0].id)


class Touched(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letters that an act has touched, or would. `next`: behind which to go on, or None.

    `newest`: when the newest of them became one, wall clock, ms; 0: there are none.
    """

    count: int
    size: int
    newest: int
    next: int | None


class Backlogs(Protocol):
    """The judge of backlogs (`dispatch`)."""

    def full(self, audience: Audience) -> str | None:
        """Return why messages for an audience are refused, or None."""


class Letters:
    """The acts on dead letters, of one node; of programs `node.dead_letters`."""

    def __init__(
        self,
        *,
        log: ILog,
        directory: Directory,
        backlogs: Backlogs,
        commits: Commits,
        room: DeadLetters,
        limits: Limits,
    ) -> None:
        self._log = log
        self._directory = directory
        self._backlogs = backlogs
        self._commits = commits
        self._room = room
        self._limits = limits

    # --- looking

    async def list(
        self, receiver: str, after: int = 0, limit: int = PAGE, *, wanted: Wanted | None = None
    ) -> tuple[Sequence[DeadLetter], int | None]:
        """Return dead letters of a receiver behind a position, and where the next page begins.

        At most `limit`, of the next `PAGE` that it has: there may be none on a page, and more
        behind it. Raises `UnknownReceiver`.
        """
        wanted = wanted or Wanted()
        number = self._directory.named(receiver).number
        only = wanted.position
        if only is not None:
            there: Sequence[DeadLetter] = await self._log.dead_letters(number, only - 1, 1)
            there = [letter for letter in there if letter.position == only]
            if there or not wanted.may_be_id:
                return [one for one in there if only > after and wanted.takes(one)], None
        found: Sequence[DeadLetter] = await self._log.dead_letters(number, after, PAGE)
        chosen = [letter for letter in found if wanted.takes(letter)]
        if len(chosen) > limit:
            chosen = chosen[: max(1, limit)]
            return chosen, chosen[-1].position
        # The page may end for the bytes that its letters have.
        return chosen, found[-1].position if found else None

    async def show(self, receiver: str, of: str | int) -> DeadLetter:
        """Return one dead letter (`Wanted.of`; a number: the one at this position).

        Raises `UnknownReceiver`, `UnknownDeadLetter`.
        """
        wanted = Wanted(of=of if isinstance(of, str) else f"log:{of}")
        after: int | None = 0
        while after is not None:
            found, after = await self.list(receiver, after, 1, wanted=wanted)
            if found:
                return found[0]
        raise UnknownDeadLetter(receiver, of)

    # --- acting

    async def drop(self, receiver: str, wanted: Wanted) -> int:
        """Drop the dead letters of a receiver that are meant; return how many, on disk.

        Raises `UnknownReceiver`; `UnknownDeadLetter` where one is meant that is not there; what a
        log raises that cannot be written, and then some may be gone already.
        """
        return await self._all(DROP, receiver, wanted, None)

    async def requeue(self, receiver: str, wanted: Wanted, to: str | None = None) -> int:
        """Send the dead letters that are meant again, to their receiver or another; on disk.

        Returns how many. Raises as `drop`, and `BacklogFull`, `LogFull` or `LimitReached` where the
        next has no room, or `Refused` where it has been at the node that is to get it: it, and
        those behind it, are dead letters still.
        """
        return await self._all(REQUEUE, receiver, wanted, to)

    async def _all(self, act: str, receiver: str, wanted: Wanted, to: str | None) -> int:
        count, after = 0, 0
        # What is sent again may be a letter again at once, behind those that there were: each is
        # meant once.
        end = INTEGER_MAX
        while True:
            page, copied_from = await self._page(act, receiver, wanted, after, to=to, end=end)
            count += page.count
            end = min(end, copied_from - 1)
            if page.next is None or page.next >= end:
                break
            after = page.next
        if not count and wanted.of is not None:
            raise UnknownDeadLetter(receiver, wanted.of)
        return count

    async def page(
        self,
        act: str,
        receiver: str,
        wanted: Wanted,
        after: int,
        *,
        to: str | None = None,
        dry_run: bool = False,
    ) -> Touched:
        """Act on those that are meant among the next `PAGE` letters behind a position.

        `act`: `DROP` or `REQUEUE`. `dry_run`: only say which these are. Raises as `requeue`; then
        none of this page was touched.
        """
        page, _ = await self._page(act, receiver, wanted, after, to=to, dry_run=dry_run)
        return page

    async def _page(
        self,
        act: str,
        receiver: str,
        wanted: Wanted,
        after: int,
        *,
        to: str | None = None,
        dry_run: bool = False,
        end: int = INTEGER_MAX,
    ) -> tuple[Touched, int]:
        """Act as `page`, on none behind `end`; return also the position of the first copy.

        Where there is none, that is `INTEGER_MAX`.
        """
        while True:
            row = self._directory.named(receiver)
            target = row if to is None else self._directory.named(to)
            if self._directory.is_retired(target):
                raise UnknownReceiver(target.name)
            found, following = await self.list(receiver, after, wanted=wanted)
            chosen = [letter for letter in found if letter.position <= end]
            touched = Touched(
                count=len(chosen),
                size=sum(letter.size for letter in chosen),
                newest=max([letter.at for letter in chosen], default=0),
                next=following,
            )
            self._check_path(act, target, chosen)
            if dry_run or not chosen:
                return touched, INTEGER_MAX
            taken = LettersTaken(row.number, [letter.position for letter in chosen])
            if act == REQUEUE:
                audience = self._directory.alone(target)
                full = self._backlogs.full(audience)
                if full is not None:
                    raise BacklogFull(full)
                to_node = self._directory.is_next_node(target)
                taken.copies = copies_of_letters(chosen, self._limits.max_batch, to_node=to_node)
                for batch in taken.copies:
                    batch.audience = audience
            outcome = await self._commits.letters(taken)
            if outcome == "stored":
                self._room.gone(row, touched.size, len(chosen), again=act == REQUEUE)
                return touched, min([batch.first for batch in taken.copies], default=INTEGER_MAX)
            if outcome != "void":
                raise outcome
            # Some have gone meanwhile, or who was to get them: that shows when it is begun anew.

    def _check_path(self, act: str, target: ReceiverRow, letters: Sequence[DeadLetter]) -> None:
        """Raise `Refused` for a letter that has been at the node that it is to be sent to.

        That would take it for nobody, and it would be a letter no more.
        """
        for letter in letters if act == REQUEUE else ():
            if letter.origin is not None and self._directory.has_been_at(
                target, letter.origin.path
            ):
                raise Refused(
                    f"{letter.identity} has been at node {target.name!r}, which would deliver it to"
                    " nobody"
                )


class Events:
    """The events `$dead.NAME`: each new dead letter of a receiver, for whoever receives these."""

    _logger = Logger()

    def __init__(self, directory: Directory, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits

    def of(self, progress: Progress) -> list[Batch]:
        """Return the batches that tell of the letters of a progress; none where nobody asks.

        An event that becomes a dead letter has no event: that would never end. Never raises.
        """
        row = self._directory.numbered(progress.receiver)
        if row is None:
            return []
        subject = event_subject(row.name)
        try:
            audience = self._directory.audience(subject)
        except LimitReached as error:
            self._logger.warn(
                "no event {subject}: {error}",
                line="event-not-stored",
                subject=subject,
                error=str(error),
            )
            return []
        if not audience.members:
            return []
        batches: list[Batch] = []
        messages: list[WireMessage] = []
        size = 0
        for letter in progress.dead:
            if letter.subject.startswith(f"{DEAD}."):
                continue
            message = WireMessage(_to_json(_told(row.name, letter)), EVENT_HEADERS, None)
            if messages and size + len(message.body) > self._limits.max_batch // 2:
                batches.append(_batch(subject, audience, messages))
                messages, size = [], 0
            messages.append(message)
            size += len(message.body) + 64
        if messages:
            batches.append(_batch(subject, audience, messages))
        return batches


EVENT_HEADERS = {"content-type": "application/json"}


def event_subject(name: str) -> str:
    """Return the subject of the events about a receiver: `$dead.NAME`.

    A name may hold what a subject cannot, and is said then as in a URL (`*` is `%2A`, and where a
    token would be empty each dot `%2E`); one that is too long is cut. The event has it as it is.
    """
    said = f"{DEAD}.{name.replace('*', '%2A').replace('>', '%3E')}"
    if ".." in said or said.endswith("."):
        said = f"{DEAD}.{said.removeprefix(DEAD + '.').replace('.', '%2E')}"
    return said.encode()[:NAME_BYTES_MAX].decode(errors="ignore").rstrip(".")


def _told(name: str, letter: DeadLetter) -> dict[str, object]:
    return {
        "receiver": name,
        "position": letter.position,
        "sender": letter.identity,
        "subject": letter.subject,
        "reason": first_line(letter.reason)[:REASON_SHOWN],
        "code": letter.code,
        "attempts": letter.attempts,
        "at": letter.at,
    }


def _batch(subject: str, audience: Audience, messages: list[WireMessage]) -> Batch:
    encoded = encode_messages(messages)
    return Batch(
        sender=NODE,
        incarnation="",
        sequence=0,
        count=len(messages),
        subject=subject,
        audience=audience,
        messages=encoded,
        size=len(encoded),
        crc=crc32(encoded),
        after=0,
    )
