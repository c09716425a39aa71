"""The flight of one connection: what of a backlog was sent there, and how much may be. Sans-IO.

A flight begins when a connection stands and the other side's RESUME was taken (`Backlog.receive_
resume`), and is dropped with it: the window, the frames that were sent and the NACKs that were
heard are facts of that connection. The runs themselves, and what becomes of them, live in
`core.backlog`, as long as the receiver.

The owner sends what `take_transfers` gives and hands it the answers (`receive_acks`,
`receive_nack`). A node has a backlog for each receiver, a client one for its node; each has a
flight while it is connected.

What does not live here: how frames travel, where runs come from, when progress is durable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from msgservice.core.backlog import Backlog
from msgservice.core.frames import Delivery, Promised, Transfer
from msgservice.core.ranges import Range, RangeSet
from msgservice.core.refusal import Refusal
from msgservice.core.runs import WAITING, Run, Tally, parts_of
from msgservice.errors import NeverSent
from msgservice.limits import INTEGER_MAX
from msgservice.message import PLAIN, Action, Status


class Rest(NamedTuple):
    """The rest of an answer: `refusal` and `delay` of a NACK, or an ACK."""

    ranges: deque[Range]
    refusal: Refusal | None
    delay: float


class Deadlines(Protocol):
    """The clock by which runs expire."""

    @property
    def is_held(self) -> bool:
        """Whether nothing expires now, whatever the time is."""

    def now(self) -> int:
        """The time, in ms."""


class Flight:
    """The messages sent on one connection and not answered, and those that may follow them.

    `own_window`: what this side sends unanswered at most, messages and bytes; `window`: what the
    other side takes so, where it said that. `batch_max`: bytes of one run that the other side
    takes. A message larger than that waits for a connection that takes it, or is dead
    (`larger_is_dead`). `due`: the clock by which runs expire; without one none does.
    `tells_facts`: the other side is told of the attempts at a run, and when it was stored. `now`:
    when the connection began. `beside_others`: of the receiver's, others stand.
    """

    __slots__ = (
        "_backlog",
        "_began",
        "_due",
        "_in_flight",
        "_larger",
        "_larger_is_dead",
        "_limit",
        "_nacks",
        "_open",
        "_ready",
        "_sent",
        "_sent_at",
        "_sent_suspect",
        "_shares_backlog",
        "_stuck_lanes",
        "_tells_facts",
        "batch_max",
        "has_more",
        "rest",
        "window_bytes",
        "window_messages",
    )

    def __init__(
        self,
        backlog: Backlog,
        *,
        own_window: tuple[int, int],
        window: tuple[int, int] | None,
        batch_max: int,
        larger_is_dead: bool = False,
        due: Deadlines | None = None,
        tells_facts: bool = False,
        now: float = 0.0,
        beside_others: bool = False,
    ) -> None:
        self.window_messages, self.window_bytes = own_window
        if window is not None:
            self.window_messages = min(self.window_messages, window[0])
            self.window_bytes = min(self.window_bytes, window[1])
        self.batch_max = batch_max
        self._larger: Run | None = None  # the last one that was larger than the other side takes
        # The last `take_transfers` ended at a bound of its call, or made room.
        self.has_more = False
        # Of the answer that was not heard to its end (`go_on`); None: every one was.
        self.rest: Rest | None = None
        self._larger_is_dead = larger_is_dead
        self._due = due
        self._tells_facts = tells_facts
        self._backlog = backlog
        self._open = backlog.open_by_first
        self._limit = backlog.limit
        self._ready, self._in_flight = backlog.ready, self._begin()
        self._shares_backlog = self._in_flight is not backlog.in_flight
        self._stuck_lanes = backlog.stuck_lanes
        self._sent = RangeSet()
        self._nacks = 0
        self._sent_suspect = False  # what is in flight is one message, that was lost alone before
        self._began = self._sent_at = now
        self._limit.begin(now, beside_others=beside_others)
        self._limit.forget_below(backlog.cursor + 1)
        backlog.let_go()

    def _begin(self) -> Tally:
        """Count what is in flight: all that the backlog has in flight is in this one."""
        backlog = self._backlog
        assert not backlog.in_flight.runs  # the flight before has ended
        return backlog.in_flight

    # --- getters

    @property
    def wants(self) -> bool:
        """Whether more runs should be offered: the next window is not full yet."""
        ready = self._ready
        if ready.runs and (
            ready.messages >= self.window_messages or ready.size >= self.window_bytes
        ):
            return False
        return self._backlog.has_room

    @property
    def larger(self) -> Run | None:
        """The last run that waits for a side that takes one as large, if it still does."""
        run = self._larger
        if run is None or run.state != WAITING or run.due != math.inf:
            return None
        return run

    @property
    def is_answered(self) -> bool:
        """Whether every answer so far was heard to its end (`go_on`)."""
        return self.rest is None

    def next_deadline(self) -> float | None:
        """When a retry is due, or None: also while it has no room, which only an answer makes."""
        backlog = self._backlog
        run = backlog.next_retry() if backlog.retries else None
        return None if run is None or not self._room(run) else run.due

    # --- what the other side answers

    def receive_acks(self, ranges: Sequence[Range], runs_max: int = INTEGER_MAX) -> int:
        """The ranges of one ACK, which rise, are acknowledged; return the runs that this took.

        Of more than `runs_max` of them, or of ranges, the rest waits for `go_on`.
        Raises `NeverSent` if some of it was not sent on this connection; nothing is changed then.
        """
        sent = self._sent
        if (
            self._shares_backlog
            or len(ranges) != 1
            or len(sent.firsts) != 1
            or not sent.firsts[0] <= ranges[0][0] <= ranges[0][1] <= sent.lasts[0]
        ):  # else, as of most, all of it was sent
            self._check_sent(ranges)  # of who shares, it is another one
        backlog, open_ = self._backlog, self._open
        before = len(open_)
        if before > runs_max or len(ranges) > runs_max:
            self.rest = Rest(deque(ranges), None, 0.0)
            return self.go_on(0.0, runs_max)
        backlog.acknowledge(ranges)
        if self._limit.most is not None:
            self._limit.grow(self.window_messages)
        return before - len(open_)

    def receive_nack(
        self,
        first: int,
        last: int,
        refusal: Refusal,
        delay: float,
        now: float,
        runs_max: int = INTEGER_MAX,
    ) -> int:
        """A NACK refuses sequences; `delay` in seconds, 0: this side's backoff. Or `NeverSent`.

        Returns the runs that this took; of more than `runs_max` of them the rest waits for `go_on`.
        """
        if not self._sent.covers(first, last):
            raise NeverSent(first, last)
        if refusal.action in (Action.RETRY, Action.LATER):
            self._nacks += 1
        self.rest = Rest(deque([(first, last)]), refusal, delay)
        return self.go_on(now, runs_max)

    def _check_sent(self, ranges: Sequence[Range]) -> None:
        covers = self._sent.covers
        for first, last in ranges:
            if not covers(first, last):
                raise NeverSent(first, last)

    def go_on(self, now: float, runs_max: int = INTEGER_MAX) -> int:
        """Go on with the answer that was not heard to its end; return the runs that this took."""
        rest, backlog, left = self.rest, self._backlog, runs_max
        assert rest is not None
        ranges: list[Range] = []
        while left > 0 and rest.ranges:
            first, last = rest.ranges.popleft()
            count = max(1, backlog.entries(first, last))
            if count > left and (reached := backlog.reach(first, left)) < last:
                rest.ranges.appendleft((reached + 1, last))
                last = reached
            left -= count
            ranges.append((first, last))
        if not rest.ranges:
            self.rest = None
        if rest.refusal is None:
            backlog.acknowledge(ranges)
        else:
            for first, last in ranges:
                backlog.refuse(first, last, rest.refusal, rest.delay, now)
        if self._limit.most is not None:
            self._limit.grow(self.window_messages)
        return runs_max - max(left, 0)

    def end(self, now: float, *, lost: bool) -> None:
        """The connection has gone: what was in flight is ready again, in rising order.

        Where it was lost, the next flight is a quarter as large, until all of this one was
        answered: so a message that the other side dies of is alone after a few of these, and then
        it is what has failed, where the other side lives without it (`core.flight_limit`). Where a
        side left on purpose (not `lost`), that says nothing of any message. Its next attempts are
        alone as well, whatever the limit has grown to meanwhile. The flight is not to be used any
        more.
        """
        messages = self._in_flight.messages
        backlog, limit = self._backlog, self._limit
        was_alone = messages == 1 and (limit.most == 1 or self._sent_suspect)
        unanswered = self._land_all(now) if messages else []
        if not lost:
            return
        if messages:
            limit.lost(messages)
        if was_alone:
            # The other side was given this one message alone and went away (SEMANTICS 14).
            backlog.lose(unanswered[0], now, now - self._began, now - self._sent_at)
        else:
            limit.lost_one(now, None)
            limit.prove(backlog.sendable(unanswered))

    def _land_all(self, now: float) -> list[Run]:
        return self._backlog.land_all(now)

    # --- to the world

    def take_transfers(
        self,
        now: float,
        allow: Callable[[Run], int] | None = None,
        bytes_max: int = INTEGER_MAX,
        runs_max: int = INTEGER_MAX,
    ) -> list[Transfer]:
        """The frames to send now, in order; they are in flight from here on.

        No more once `bytes_max` bytes are reached, or `runs_max` runs were looked at: the owner
        comes again when others had a turn (`has_more`). None while an answer is not heard to its
        end: the count of `nacks` would say that all of it was.

        `allow` is asked before a run is sent, where given: how many of its messages may leave
        now, at least 0. The rest, and all that comes after, waits for the next call.
        """
        backlog = self._backlog
        transfers: list[Transfer] = []
        self.has_more = False
        if self.rest is not None:
            return transfers
        left = runs_max
        retries = backlog.retries
        while retries and (run := backlog.next_retry()) is not None and run.due <= now:
            if not left:
                self.has_more = True
                return transfers
            left -= 1
            if run.expires_at is not None and self._is_over(run):
                continue
            if self._is_larger(run):
                continue
            if self._limit.suspects and (until := self._limit.held_until(run)) > now:
                backlog.put_off(run, until)
                continue
            if not self._may_leave(run, allow):
                return transfers
            self._send(run, transfers, now)
        in_flight, stuck, steps_behind = self._in_flight, self._stuck_lanes, backlog.steps_behind
        limit = self._limit
        is_limited = self._shares_backlog or limit.most is not None or bool(limit.suspects)
        # No lane goes on in here: where none has a queue of its own now, there is one queue.
        first_ready = backlog.first_ready if stuck else backlog.ready_queue.first
        has_stepped = False  # runs wait beside the window now: behind their lanes' heads, too large
        stop_at = in_flight.size + bytes_max
        ready, above, behind_max = self._ready, backlog.above.firsts, backlog.behind_max
        while ready.runs and (run := first_ready()) is not None:
            if in_flight.size >= stop_at or not left:
                self.has_more = True
                break
            left -= 1
            if stuck and steps_behind(run):
                has_stepped = True
                continue
            if run.expires_at is not None and self._is_over(run):
                has_stepped = True
                continue
            if len(above) >= behind_max and self._is_one_too_many(run):
                break
            if (run.size > self.batch_max or run.options.to is not None) and self._is_larger(run):
                has_stepped = True
                continue
            if is_limited or allow is not None:
                if (allow is not None or self._room(run) < run.count) and (
                    not self._may_leave(run, allow)
                ):
                    break
            elif (flying := in_flight.messages) and (  # as `_room`, where no more is asked
                flying + run.count > self.window_messages
                or in_flight.size + run.size > self.window_bytes
            ):
                break
            self._send(run, transfers, now)
        if has_stepped:
            self.has_more = True  # there may be room for others to be loaded now
        if limit.most is not None:
            if transfers:
                self._sent_at = now
            if not limit.is_proving:
                limit.prove(backlog.runs_in_flight())
        return transfers

    def send_alone(self, run: Run) -> Transfer | None:
        """Load a run that comes alone, and send it: it passes no queue. None: it may not.

        That is, where nothing is open, so that nothing goes before it, and nothing but its size is
        to be asked. Then `Backlog.offer` and `take_transfers` are the way.
        """
        limit = self._limit
        if (
            self._open
            or self.rest is not None
            or limit.most is not None
            or limit.suspects
            or run.options is not PLAIN
            or run.expires_at is not None
            or run.size > self.batch_max
            or not self._backlog.load_alone(run)
        ):
            return None
        transfers: list[Transfer] = []
        self._send(run, transfers, 0.0)
        return transfers[0]

    def _is_one_too_many(self, run: Run) -> bool:
        """Whether the run lies above all that is final, of which there is as much as may be.

        Else what was loaded before goes on to be sent, and the other side takes more ranges than
        it can name in a RESUME.
        """
        last = self._backlog.above.last
        return last is not None and run.first > last

    def _is_over(self, run: Run) -> bool:
        """Whether a run's time is over: then it is settled, and not sent."""
        due, backlog = self._due, self._backlog
        if due is None or due.is_held or not backlog.is_over(run, due.now()):
            return False
        backlog.expire(run)
        return True

    def _may_leave(self, run: Run, allow: Callable[[Run], int] | None) -> bool:
        """Cut the run to what may leave of it now; False if nothing may."""
        room = self._room(run)
        if 0 < room < run.count:
            self._backlog.split(run, run.first + room)
        return room > 0 and (allow is None or self._allowed(run, allow))

    def _allowed(self, run: Run, allow: Callable[[Run], int]) -> bool:
        """Cut the run to what is allowed of it; False if nothing is."""
        count = allow(run)
        if 0 < count < run.count:
            self._backlog.split(run, run.first + count)
        return count > 0

    def _room(self, run: Run) -> int:
        """The number of the run's messages that this flight has room for: all, if not limited."""
        in_flight, count = self._in_flight, run.count
        limit = self._limit
        flying, most = in_flight.messages, limit.most
        if limit.suspects and (alone := self._alone(run, flying)) is not None:
            return alone
        if most is not None:
            count = min(count, most - flying)
        if flying and (
            flying + count > self.window_messages or in_flight.size + run.size > self.window_bytes
        ):
            return 0
        return count

    def _alone(self, run: Run, flying: int) -> int | None:
        """The room that there is for a suspect, or beside one; None: this is about none."""
        if run.first in self._limit.suspects:
            return 0 if flying else 1  # alone, whatever else is ready
        return 0 if flying and self._sent_suspect else None

    def _send(self, run: Run, transfers: list[Transfer], now: float) -> None:
        backlog = self._backlog
        backlog.fly(run)
        first = run.first
        suspects = self._limit.suspects
        self._sent_suspect = bool(suspects) and first in suspects
        if self._sent_suspect:
            self._sent_at = now
            self._limit.sent(run, now)
        after = run.after
        lasts = self._sent.lasts
        if lasts and lasts[-1] == after:  # as `RangeSet.add`, behind all that was sent
            lasts[-1] = first + run.count - 1
        else:
            self._sent.add(after + 1, first + run.count - 1)
        messages = run.messages if run.encoded is None else run.encoded
        options = run.options
        ttl, delay = options.ttl, options.delay
        if run.expires_at is not None and self._due is not None:
            ttl = max(0, run.expires_at - self._due.now())  # what is left of it (DELIVERY 44)
        if delay is not None and run.due_at is not None and self._due is not None:
            delay = max(0, run.due_at - self._due.now())
        encoded = messages if type(messages) is msgspec.Raw else msgspec.Raw(messages)
        gap = None if after == first - 1 else after
        floor = backlog.committed + 1
        if self._tells_facts:  # by position, once a run: by name 145 ns become 195
            frame: Transfer = Delivery(
                first,
                run.subject,
                encoded,
                gap,
                floor,
                self._nacks,
                options.to,
                ttl,
                delay,
                options.flags,
                run.origin,
                None,
                run.attempts,
                run.stored_at,
            )
        elif options.promise is not None:
            within = options.promise.within
            if run.promised_until is not None and self._due is not None:
                within = max(1, run.promised_until - self._due.now())  # what is left of it
            frame = Promised(
                first,
                run.subject,
                encoded,
                gap,
                floor,
                self._nacks,
                options.to,
                ttl,
                delay,
                options.flags,
                run.origin,
                msgspec.structs.replace(options.promise, within=within),
            )
        else:
            frame = Transfer(
                first,
                run.subject,
                encoded,
                gap,
                floor,
                self._nacks,
                options.to,
                ttl,
                delay,
                options.flags,
                run.origin,
            )
        transfers.append(frame)

    def _is_larger(self, run: Run) -> bool:
        """Cut a run to what the other side takes; True if it takes nothing of it.

        A run that waits for another try is cut to its first message. A long `to` leaves less room:
        what the other side takes may be less than when the messages were gathered.
        """
        names = run.options.excess_bytes
        most = self.batch_max - names
        if run.size <= most:
            return False
        fitting = parts_of(run).fitting(run.part, run.part + run.count, most)
        if run.state == WAITING:
            fitting = min(1, fitting)
        if run.count > 1:
            self._backlog.split(run, run.first + max(1, fitting))
        if run.size <= most:
            return False
        if self._larger_is_dead:
            beside = f" and {names} of names in `to`" if names else ""
            reason = f"message of {run.size} bytes{beside}, the receiver takes {self.batch_max}"
            self._backlog.settle(run, Status.DEAD, Refusal(Action.DEAD, reason))
        else:
            self._larger = run
            self._backlog.hold(run)
        return True
