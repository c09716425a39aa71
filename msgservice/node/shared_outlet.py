"""The delivery to a receiver that several connections share: each message to one of them.

One backlog, one supply, one progress, as of any receiver (`node.outlet`); and of each connection a
`Worker` with a flight of its own. What is ready goes to the worker that has most room, a part of a
run where that is all there is room for; what one has when it goes is for the others at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from msgservice.connection import Connection
from msgservice.core.frames import Frame, Transfer
from msgservice.core.runs import Run
from msgservice.core.shared import SharedBacklog, SharedFlight
from msgservice.limits import INTEGER_MAX
from msgservice.node.outlet import SHORT_AGAIN, TURN_ANSWERS, TURN_BYTES, Outlet, Seat
from msgservice.node.supply import TURN_RUNS
from msgservice.records import Resume

ENTRIES_SPARE = 64  # void entries of workers with room, beside one for each worker


class Worker:
    """The place of one connection of a shared receiver (`outlet.Seat`)."""

    __slots__ = ("_answered", "_going_on", "connection", "entry", "flight", "number", "outlet")

    def __init__(
        self, outlet: SharedOutlet, connection: Connection, flight: SharedFlight, number: int
    ) -> None:
        self.number = number  # rises with each of a receiver
        self.entry = 0  # the one among those with room that counts, or 0
        self.outlet = outlet
        self.connection = connection
        self.flight = flight
        self._answered = 0  # runs that the answers of this turn were about
        self._going_on: IDelayedCall | None = None  # with an answer of a turn before

    @property
    def takes(self) -> bool:
        """See `Seat`."""
        return self.flight.is_answered and self._answered < TURN_ANSWERS

    @property
    def idle(self) -> bool:
        """See `Seat`."""
        return not self.flight.carried.messages

    def received(self, frame: Frame) -> None:
        """See `Seat`."""
        self._answered += self.outlet.hear_answer(self.flight, frame, self._answered)

    def note(self, sequence: int, attempts: int, reason: str) -> None:
        """See `Seat`."""
        self.outlet.note(sequence, attempts, reason)

    def turn_ended(self) -> None:
        """See `Seat`."""
        self._answered = 0
        if not self.flight.is_answered and self._going_on is None:
            self._going_on = self.outlet.call_later(self._answer_on)
        self.outlet.turn_ended()

    def stored(self) -> Deferred[None]:
        """See `Seat`: of what others have answered as well."""
        return self.outlet.stored()

    def _answer_on(self) -> None:
        self._going_on = None
        flight = self.flight
        self.connection.go_on_with(lambda: self.outlet.go_on(flight))
        if flight.is_answered:
            self.connection.go_on_soon()

    def pump(self) -> None:
        """See `Seat`."""
        self.outlet.pump()

    def detach(self, reason: str, *, lost: bool) -> None:
        """See `Seat`: what it has not answered is for the others."""
        if self._going_on is not None:
            self._going_on.cancel()
            self._going_on = None
        self.outlet.left(self, reason, lost=lost)


class _Room:
    """The room of all workers together (`supply.Room`)."""

    def __init__(self, outlet: SharedOutlet) -> None:
        self._outlet = outlet

        self.window_messages = self.window_bytes = 0  # of all of them

    def count(self, flight: SharedFlight, sign: int) -> None:
        """A worker has come, or has gone, below 0."""
        self.window_messages += sign * flight.window_messages
        self.window_bytes += sign * flight.window_bytes

    @property
    def wants(self) -> bool:
        """See `Room`."""
        backlog = self._outlet.backlog
        ready = backlog.ready
        is_full = ready.messages >= self.window_messages or ready.size >= self.window_bytes
        return backlog.has_room and not (ready.runs and is_full)


class SharedOutlet(Outlet):
    """The delivery to one shared receiver. `connection`: that of one of its workers, or None."""

    __slots__ = ("_by_flight", "_entries", "_made", "_room", "_roomy", "_ticks", "seats")

    def __init__(self, *arguments: object, **how: object) -> None:
        self.seats: dict[Worker, None] = {}
        self._by_flight: dict[SharedFlight, Worker] = {}
        # Those with room, and as a heap: the one that has most is the first. Neither an answer nor
        # a message looks at them all. Void: entries that are not their worker's `entry`.
        self._roomy: dict[Worker, None] = {}
        self._entries: list[tuple[int, int, int, Worker]] = []
        self._made = self._ticks = 0
        self._room = _Room(self)
        super().__init__(*arguments, **how)  # type: ignore[arg-type]  # as it takes them

    @property
    def workers(self) -> int:
        """See `Outlet`."""
        return len(self.seats)

    # --- the connections

    def attach(self, connection: Connection, resume: Resume, inbox: str | None) -> Seat:
        """See `Outlet`: one more worker. Its memory is its own, and none of the receiver's."""
        self._end_hearing()
        is_first = not self.seats
        if is_first:
            self._cancel_timer()
            self.connection = connection
            self.since = self._time.now()
        self._was_seated = True
        self.last_error = ""
        self._knows_from = self._time.now()
        self._receive_resume(resume)
        self._made += 1
        flight = self._make_flight(connection)
        worker = Worker(self, connection, flight, self._made)
        self.seats[worker] = None
        self._by_flight[flight] = worker
        self._room.count(flight, 1)
        self._shared.changed[flight] = None
        if is_first:
            self.supply.attach(self._room)
        self.progress.gather()
        self.pump()
        return worker

    def _make_flight(self, connection: Connection) -> SharedFlight:
        options = self._flight_options(connection)
        return SharedFlight(self._shared, beside_others=bool(self.seats), **options)

    @property
    def _shared(self) -> SharedBacklog:
        backlog = self.backlog
        assert isinstance(backlog, SharedBacklog)
        return backlog

    def _receive_resume(self, resume: Resume) -> None:
        # Nothing is unloaded for it: others have some of that in flight.
        self.backlog.receive_resume(resume.floor, resume.ranges)

    def left(self, worker: Worker, reason: str, *, lost: bool) -> None:
        """The connection of a worker has gone: what it had not answered is for the others."""
        del self.seats[worker], self._by_flight[worker.flight]
        self._roomy.pop(worker, None)
        worker.entry = 0
        self._room.count(worker.flight, -1)
        self._may_wait(self.backlog.runs_in_flight())
        worker.flight.end(self._time.now(), lost=lost)
        if not self._due.is_held:
            self.backlog.expire_all(self._due.now())  # a pass left it to its answer
        if self.flight is worker.flight:
            self.flight = None
        if not self.seats:
            self.supply.detach()
            self.flight = None
            super().detach(reason, lost=lost)
            return
        self.connection = next(iter(self.seats)).connection
        self.progress.gather()
        self._expect_answers()
        self.pump()

    def fault(self, failure: Failure) -> None:
        """See `Outlet`: it is of all its workers."""
        for worker in list(self.seats)[1:]:
            worker.connection.fault(f"receiver {self.name!r}", failure)
        super().fault(failure)

    # --- what they answer

    def hear_answer(self, flight: SharedFlight, frame: Frame, answered: int) -> int:
        """Return how many runs an answer is about, as far as it is heard in this turn."""
        return self._hear_answer(flight, frame, answered)

    def go_on(self, flight: SharedFlight) -> None:
        """Go on with the answer of a worker that was not heard to its end."""
        flight.go_on(self._time.now(), TURN_ANSWERS)

    def call_later(self, call: Callable[[], None]) -> IDelayedCall:
        """Call in the next turn of the reactor."""
        return self._time.clock.callLater(0, call)

    def turn_ended(self) -> None:
        """A worker's answers of one read were all taken, or as many as one turn takes."""
        self.progress.gather()
        self._expect_answers()
        if self._all_answered:
            self.supply.look()
        else:
            self.pump()

    # --- what goes out

    def pump(self) -> None:
        """See `Outlet`: each run to the worker that has most room."""
        if not self.seats or self._has_more:
            return
        supply, backlog, pace = self.supply, self.backlog, self.pace
        has_more = supply.fill()
        if pace is not None:
            pace.begin(backlog.ready.messages, backlog.ready.size)
        dealt, is_short = self._deal()
        if pace is not None:
            pace.end()
        for worker, transfers in dealt.items():
            worker.connection.send_now(transfers)
        if dealt:
            self._expect_answers()
            has_more = has_more or (not is_short and supply.fill())
        has_more = has_more or is_short
        if has_more:
            self._pump_in(0.0)  # others have their turn
        self._has_more = has_more
        if backlog.has_settled:
            self.progress.gather()
        supply.look()
        if self._waits_for_room:
            self._pump_in(SHORT_AGAIN)
        # For people, as the only flight of another receiver would say it.
        self.flight = None
        if self._shared.larger_runs:
            flights = [one.flight for one in self.seats]
            self.flight = next((one for one in flights if one.larger is not None), None)
        self._rearm_all()

    def _deal(self) -> tuple[dict[Worker, list[Transfer]], bool]:
        """Take what is sent now, run by run; and whether it ended for the sake of others."""
        ready, now = self.backlog.ready, self._time.now()
        allow = None if self.pace is None else self.pace.allow
        dealt: dict[Worker, list[Transfer]] = {}
        aside: list[Worker] = []  # they have room, and can be given nothing now
        size, looks = TURN_BYTES, TURN_RUNS
        self._note_changed()
        while self._may_deal(now) and (worker := self._take_roomiest(aside)) is not None:
            if size <= 0 or looks <= 0:
                self._enter(worker)
                break
            looks -= 1
            flight = worker.flight
            # No more at once than each would have of what is ready.
            flight.share = max(1, -(-ready.messages // max(1, len(self._roomy))))
            transfers = flight.take_transfers(now, allow, size, 1)
            self._note_changed()
            if transfers:
                dealt.setdefault(worker, []).extend(transfers)
                size -= sum([len(memoryview(one.messages)) for one in transfers])
            elif not flight.has_more:
                aside.append(worker)
            elif not worker.entry:
                self._enter(worker)
        for one in aside:
            self._enter(one)
        self._deal_larger(dealt, now, allow)
        return dealt, size <= 0 or looks <= 0

    def _deal_larger(
        self,
        dealt: dict[Worker, list[Transfer]],
        now: float,
        allow: Callable[[Run], int] | None,
    ) -> None:
        """Send what was too large for one worker to another, which takes it."""
        larger_runs = self._shared.larger_runs
        if not larger_runs:
            return
        takers = [one for one in self._roomy if one.connection.may_send and one.flight.is_answered]
        takers.sort(key=lambda one: one.flight.batch_max)
        for run in larger_runs:
            while takers and not takers[-1].flight.free:
                takers.pop()
            if not takers:
                break
            flight = takers[-1].flight
            if flight.takes(run):
                self._shared.hand_out(run)
                flight.share = INTEGER_MAX
                transfers = flight.take_transfers(now, allow, TURN_BYTES, 1)
                if transfers:
                    dealt.setdefault(takers[-1], []).extend(transfers)
        self._note_changed()

    def _may_deal(self, now: float) -> bool:
        """Whether there may be something to send."""
        if self.backlog.ready.runs:
            return True
        run = self.backlog.next_retry()
        return run is not None and run.due <= now

    def _note_changed(self) -> None:
        """Enter those of whose flights something came or went, as far as they have room."""
        changed = self._shared.changed
        if changed:
            self._shared.changed = {}
            for flight in changed:
                worker = self._by_flight.get(flight)
                if worker is None:
                    continue
                if flight.free:
                    self._roomy[worker] = None
                    self._enter(worker)
                else:
                    self._roomy.pop(worker, None)
                    worker.entry = 0

    def _enter(self, worker: Worker) -> None:
        entries = self._entries
        if len(entries) > 2 * len(self.seats) + ENTRIES_SPARE:
            self._entries = entries = [each for each in entries if each[2] == each[3].entry]
            heapq.heapify(entries)
        self._ticks += 1
        worker.entry = self._ticks
        heapq.heappush(entries, (-worker.flight.free, worker.number, self._ticks, worker))

    def _take_roomiest(self, aside: list[Worker]) -> Worker | None:
        """Return the worker that has most room, and takes something now."""
        entries = self._entries
        while entries:
            _, _, tick, worker = heapq.heappop(entries)
            if tick != worker.entry:
                continue
            worker.entry = 0
            if worker.connection.may_send and worker.flight.is_answered:
                return worker
            aside.append(worker)
        return None

    def _rearm_all(self) -> None:
        due = self.pace.next_deadline() if self.pace is not None else None
        if due is None and (run := self.backlog.next_retry()) is not None:
            # Where none has room for it, an answer makes that.
            found = (one.flight.next_deadline() for one in self._roomy)
            due = run.due if any(each is not None for each in found) else None
        if due is not None:
            self._pump_in(max(0.001, due - self._time.now()))
