"""Why a message is where it is, at each receiver: the one cause that matters, and what would help.

Functions of what a node has in memory of a receiver, and of what the log says of the message
(DELIVERY 56). The state itself is the business of the log and of `Dispatch.status_of`; the troubles
of a receiver, whatever the message, of `troubles`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator
from typing import Protocol

from msgservice.administration import Cause, Place
from msgservice.clock import Time
from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.lanes import lane_of
from msgservice.core.reasons import first_line
from msgservice.core.runs import WAITING, Run
from msgservice.core.subjects import matches
from msgservice.message import Status
from msgservice.node.pace import Pace
from msgservice.node.troubles import Dialling, dialled_again, needs_of, tried_again
from msgservice.receiver_options import STRICT
from msgservice.records import DELAYED, Found, ReceiverRow, hash_of
from msgservice.transport.addresses import is_url

# The kinds of causes: what is final by its status, and these.
DELAYED_UNTIL, LEFT_OUT, NOBODY = "delayed", "left_out", "nobody"
PAUSED, REMOVING, AWAY = "paused", "removing", "away"
IN_FLIGHT, PROBING, RETRYING, REFUSING = "in_flight", "probing", "retrying", "refusing"
TOO_LARGE, BEHIND, LETTER, IN_LINE = "too_large", "behind", "letter", "in_line"
REMOVED_FROM_LOG = "left"  # the log, and none of its states is kept
UNSAID = "unsaid"  # by the next node of a chain
KINDS = (
    *(status.name.lower() for status in Status if status.final),
    DELAYED_UNTIL,
    LEFT_OUT,
    NOBODY,
    PAUSED,
    REMOVING,
    AWAY,
    IN_FLIGHT,
    PROBING,
    RETRYING,
    REFUSING,
    TOO_LARGE,
    BEHIND,
    LETTER,
    IN_LINE,
    REMOVED_FROM_LOG,
    UNSAID,
)


class Delivery(Protocol):
    """The delivery to one receiver, as far as a cause is looked for in it (`outlet`)."""

    row: ReceiverRow
    backlog: Backlog
    flight: Flight | None
    since: float
    is_going: bool
    notes: dict[int, tuple[int, str]]  # what it says of messages that it tries by itself
    pace: Pace | None  # None: nothing limits its rate

    @property
    def connection(self) -> object | None:
        """The connection that it has, or None."""

    @property
    def trouble(self) -> str:
        """Why nothing gets on, for people."""


def _command(*words: str) -> str:
    return shlex.join(["msgservice", *words])


def cause_of_final(
    name: str,
    found: Found,
    status: Status,
    attempts: int,
    reason: str,
    copy: int | None = None,
    copy_to: str | None = None,
) -> Cause:
    """Return the cause of what is final.

    `copy`: the position of its newest copy, if it has one; `copy_to`: for which other receiver.
    """
    hashed = hash_of(found.incarnation)
    where = f"{found.sender}/{hashed}/{found.sequence}"
    if found.position:
        where = f"log:{found.position}"
    why = f": {first_line(reason)}" if reason else ""
    help_ = command = ""
    if status is Status.ACKNOWLEDGED:
        sentence = f"{name} has acknowledged it."
    elif status is Status.DEAD:
        tried = f" after {attempts} attempts" if attempts > 1 else ""
        sentence = f"{name} did not take it{tried}, and it is a dead letter{why}"
        help_ = "Send it again when the cause is mended, or drop it."
        command = _command("dead", "show", name, where)
    elif status is Status.EXPIRED:
        sentence = f"Its ttl was over before {name} had acknowledged it."
        help_ = "A longer ttl, or none, lets it wait longer."
    elif status is Status.CANCELLED:
        sentence = f"It was cancelled before {name} got it{why}"
    else:
        sentence = f"{name} was removed before it got it."
    if copy is not None:
        if status is Status.DEAD:
            sentence = f"{name} did not take it{why}"
        to = "" if copy_to is None else f" to {copy_to}"
        sentence = f"{_ended(sentence)} It was sent again{to}, as log:{copy}."
        help_, command = "What became of that is told of the copy.", _command("why", f"log:{copy}")
    return Cause(
        receiver=name,
        status=status.name.lower(),
        kind=status.name.lower(),
        sentence=_ended(sentence),
        help=help_,
        command=command,
        attempts=attempts,
        reason=reason,
        copy=copy,
        copy_to=copy_to,
    )


def cause_of_delayed(found: Found, sender: str, status: Status, reason: str) -> Cause:
    """Return the cause of what waits until it is due, or was cancelled before."""
    if status.final:
        why = f": {first_line(reason)}" if reason else ""
        return Cause(
            receiver=DELAYED,
            status=status.name.lower(),
            kind=status.name.lower(),
            sentence=_ended(f"It was cancelled before it was due{why}"),
            reason=reason,
        )
    return Cause(
        receiver=DELAYED,
        status=status.name.lower(),
        kind=DELAYED_UNTIL,
        sentence="It waits until it is due, and is handed out then.",
        help="It can be cancelled until then.",
        command=_command("delayed", "cancel", sender),
        next_try_at=found.due or None,
    )


def cause_of_nobody(subject: str) -> Cause:
    """Return the cause of a message that is for nobody."""
    return Cause(
        receiver="",
        status="",
        kind=NOBODY,
        sentence=f"No receiver had a pattern that matches {subject} when it was stored.",
        help="A receiver that is made with a start gets what was stored before.",
        command=_command("listen", "NAME", subject, "--start", "first"),
    )


def cause_of_removed(found: Found) -> Cause:
    """Return the cause of a message that has left the log, and of which no state is kept."""
    return Cause(
        receiver="",
        status="",
        kind=REMOVED_FROM_LOG,
        sentence=(
            f"All of {found.sender}'s message {found.sequence} was settled, and it was removed from"
            " the log; how it was settled is not kept, or it was for nobody."
        ),
    )


def cause_unsaid(node: str, error: str) -> Cause:
    """Return the cause of what a next node does not tell."""
    return Cause(
        receiver="",
        status="",
        kind=UNSAID,
        sentence=_ended(f"{node} took it, and does not say what became of it: {error}"),
        help="Ask that node.",
        node=node,
    )


def left_out(rows: Iterable[ReceiverRow], found: Found) -> Iterator[Cause]:
    """Yield the causes of those that match and are not in its audience, being suspended then."""
    for row in rows:
        if (
            not row.removed
            and row.number not in found.states
            and row.left_first
            and row.left_first <= found.position <= (row.left_last or found.position)
            and any(matches(pattern, found.subject) for pattern in row.patterns)
        ):
            yield Cause(
                receiver=row.name,
                status="",
                kind=LEFT_OUT,
                sentence=f"{row.name} was suspended when it was stored, and was left out.",
                help="What it was left out of can be sent to it.",
                command=_command("rewind", row.name, "--suspended"),
            )


class Causes:
    """The causes of what is not final yet, at one receiver after the other."""

    def __init__(self, time: Time) -> None:
        self._time = time

    def of(
        self,
        delivery: Delivery,
        dialling: Dialling | None,
        found: Found,
        status: Status,
        attempts: int,
        reason: str,
        *,
        sees_all: bool,
    ) -> Cause:
        """Return the cause of a message that waits. `sees_all`: who asks may know of others."""
        looked = _Look(self._time, delivery, dialling, found, sees_all)
        kind, sentence, help_, command = looked.answer()
        return Cause(
            receiver=delivery.row.name,
            status=status.name.lower(),
            kind=kind,
            sentence=_ended(sentence),
            help=help_,
            command=command,
            attempts=attempts,
            reason=reason if sees_all else first_line(reason),
            since=looked.since,
            next_try_at=looked.next_try_at,
            behind=looked.behind,
        )


Said = tuple[str, str, str, str]  # kind, sentence, help, command


class _Look:
    """One look at what keeps one message from one receiver."""

    def __init__(
        self,
        time: Time,
        delivery: Delivery,
        dialling: Dialling | None,
        found: Found,
        sees_all: bool,
    ) -> None:
        self._time, self._delivery, self._dialling = time, delivery, dialling
        self._found, self._sees_all = found, sees_all
        self._name = delivery.row.name
        self.since: int | None = None
        self.next_try_at: int | None = None
        self.behind: Place | None = None

    def answer(self) -> Said:
        """Return what keeps it: the first of these that is true says most."""
        return self._standing_still() or self._under_way() or self._stuck() or self._in_line()

    def _standing_still(self) -> Said | None:
        """Whatever the message: the receiver gets nothing."""
        delivery, name = self._delivery, self._name
        why = f": {delivery.trouble}" if delivery.trouble and self._sees_all else ""
        last = f" (its last error: {delivery.trouble})" if why else ""
        if delivery.is_going:
            return REMOVING, f"{name} is being removed, and gets nothing more.", "", ""
        if delivery.row.options.paused:
            return (
                PAUSED,
                f"{name} gets nothing{why or ', it is paused'}",
                "Resume it when it may go on.",
                _command("receivers", "resume", name),
            )
        if delivery.connection is not None:
            return None
        self.since = self._wall(delivery.since)
        link, row = self._dialling, delivery.row
        if row.address is None:
            return (
                AWAY,
                f"{name} is away{last}",
                "It attaches by itself: start it.",
                _command("peek", name),
            )
        error = why
        if link is not None:
            self._next_try_of(link)
            error = f": {link.last_error}" if link.last_error and self._sees_all else why
        if not self._sees_all:
            return AWAY, f"{name} is not reached", "The node dials it again by itself.", ""
        return (
            AWAY,
            f"{name} is not reached at {row.address}{error}",
            needs_of(row, link) or dialled_again(row.address),
            _command("receivers", "list"),
        )

    def _next_try_of(self, link: Dialling) -> None:
        if link.next_attempt_in is not None:
            self.next_try_at = self._time.wall() + round(link.next_attempt_in * 1000)

    def _unwell(self, link: Dialling) -> Said:
        """The endpoint is reached and takes nothing: the message was handed to it all the same."""
        name, address = self._name, self._delivery.row.address
        since: float | None = getattr(link, "unwell_since", None)
        self.since = None if since is None else self._wall(since)
        self._next_try_of(link)
        if not self._sees_all:
            return REFUSING, f"{name} takes nothing now", "It is tried again by itself.", ""
        return (
            REFUSING,
            f"{name} takes nothing now: {link.last_error}",
            needs_of(self._delivery.row, link) or tried_again(address or name),
            _command("receivers", "test", name) if is_url(address or "") else "",
        )

    def _under_way(self) -> Said | None:
        """The message was sent, or waits for its own next attempt."""
        name, backlog = self._name, self._delivery.backlog
        position = self._found.position
        if backlog.in_flight_at(position):
            self.since = None
            link = self._dialling
            if link is not None and link.last_error:
                return self._unwell(link)
            if backlog.limit.most == 1:
                return (
                    PROBING,
                    f"It was sent to {name} alone, since connections were lost while such"
                    " messages were unanswered: it is seen whether this one is why",
                    "See whether its handler ends the process.",
                    _command("peek", name),
                )
            tried, reason = self._delivery.notes.get(position, (0, ""))
            if tried:
                times = "once" if tried == 1 else f"{tried} times"
                said = f": {first_line(reason)}" if reason else ""
                return (
                    IN_FLIGHT,
                    f"It was sent to {name}, which has tried it {times} by itself{said}",
                    "It is tried there again.",
                    "",
                )
            has = "its handler has it, or what came before it"
            if is_url(self._delivery.row.address or ""):
                has = "the call is under way, or waits for those before it"
            return (
                IN_FLIGHT,
                f"It was sent to {name}, which has not answered yet: {has}",
                "",
                "",
            )
        run = backlog.run_at(position)
        if run is None or run.state != WAITING or run.due == math.inf:
            return None
        return self._retrying(run)

    def _retrying(self, run: Run) -> Said:
        name = self._name
        self.next_try_at = self._at(run.due)
        reason = run.reason
        if not reason and self._sees_all:
            reason = self._delivery.trouble  # what it said last
        why = f": {first_line(reason)}" if reason else ""
        peek = _command("peek", name)
        if not run.attempts:
            return (
                REFUSING,
                f"{name} takes it later, it says{why}",
                "It is sent again by itself.",
                peek,
            )
        tried = "once" if run.attempts == 1 else f"{run.attempts} times"
        return (
            RETRYING,
            f"{name} has failed with it {tried}{why}",
            "It is tried again by itself.",
            peek,
        )

    def _stuck(self) -> Said | None:
        """Something before it in its lane, or its size, keeps it."""
        delivery, name, found = self._delivery, self._name, self._found
        flight = delivery.flight
        own = delivery.backlog.run_at(found.position)
        if flight is not None and own is not None and own.state == WAITING:
            return (  # else it has its next attempt at some time
                TOO_LARGE,
                f"It has {own.size:,} bytes, and {name} takes {flight.batch_max:,} at once",
                f"Raise max_batch at {name}.",
                "",
            )
        if delivery.row.options.order != STRICT:
            return None
        lane = self._lane()
        stuck = delivery.backlog.stuck_lanes.get(lane)
        run = None if stuck is None else stuck.head  # it waits for its next attempt, or has it
        if run is None or run.first >= found.position:
            if stuck is None or not stuck.letters:
                return None
            return (
                LETTER,
                f"It waits behind a message of its lane ({found.subject}) that {name} has not"
                " taken, and that is not stored as a dead letter yet",
                "The log has no room for it: give it some.",
                _command("info"),
            )
        self.behind = Place(run.first, run.subject)
        if run.state == WAITING and run.due < math.inf:
            self.next_try_at = self._at(run.due)
        reason = run.reason
        tried = f", tried {run.attempts} times" if run.attempts > 1 else ""
        why = f": {first_line(reason)}" if reason else ""
        return (
            BEHIND,
            f"It waits behind the message log:{run.first} of its lane, which {name} has not taken"
            f"{tried}{why}",
            "Order keeps it there. The one before it is tried again by itself.",
            _command("why", f"log:{run.first}"),
        )

    def _in_line(self) -> Said:
        delivery, name = self._delivery, self._name
        trouble = delivery.trouble if self._sees_all else ""
        if delivery.pace is not None and delivery.pace.next_deadline() is not None:
            return (
                IN_LINE,
                f"It is in line: {name} is sent no more at once than its rate allows",
                "A higher rate lets it come sooner." if self._sees_all else "",
                "",
            )
        at = delivery.backlog.cursor
        why = f". Not all gets on there: {trouble}" if trouble else ""
        return (
            IN_LINE,
            f"It is in line: {name} is connected, has settled all up to log:{max(0, at)}, and gets"
            f" what lies between first{why}",
            "",
            "",
        )

    def _lane(self) -> object:
        """Return the lane of the message: its run's, if that is loaded."""
        found = self._found
        run = self._delivery.backlog.run_at(found.position)
        return run.lane if run is not None else lane_of(None, found.sender, found.subject)

    def _wall(self, monotonic: float) -> int:
        return self._time.wall() - round((self._time.now() - monotonic) * 1000)

    def _at(self, due: float) -> int:
        return self._time.wall() + max(0, round((due - self._time.now()) * 1000))


def _ended(sentence: str) -> str:
    """Return a sentence with its end, unless somebody else's words have one."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
