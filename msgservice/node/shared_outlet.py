"""The delivery to a receiver that several connections share: each message to one of them.

One backlog, one supply, one progress, as of any receiver (`node.outlet`); and of each connection a
`Worker` with a flight of its own. What is ready goes to the worker that has most room, a part of a
run where that is all there is room for; what one has when it goes is for the others at once.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from msgservice.connection import Connection
from msgservice.core.frames import Frame, Transfer
from msgservice.core.shared import SharedBacklog, SharedFlight
from msgservice.node.outlet import SHORT_AGAIN, TURN_ANSWERS, TURN_BYTES, Outlet, Seat
from msgservice.node.supply import TURN_RUNS
from msgservice.records import Resume


class Worker:
    """The place of one connection of a shared receiver (`outlet.Seat`)."""

    __slots__ = ("_answered", "_going_on", "connection", "flight", "outlet")

    def __init__(self, outlet: SharedOutlet, connection: Connection, flight: SharedFlight) -> None:
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

    @property
    def window_messages(self) -> int:
        """See `Room`."""
        return sum([one.flight.window_messages for one in self._outlet.seats])

    @property
    def window_bytes(self) -> int:
        """See `Room`."""
        return sum([one.flight.window_bytes for one in self._outlet.seats])

    @property
    def wants(self) -> bool:
        """See `Room`."""
        backlog = self._outlet.backlog
        ready = backlog.ready
        is_full = ready.messages >= self.window_messages or ready.size >= self.window_bytes
        return backlog.has_room and not (ready.runs and is_full)


class SharedOutlet(Outlet):
    """The delivery to one shared receiver. `connection`: that of one of its workers, or None."""

    __slots__ = ("seats",)

    def __init__(self, *arguments: object, **how: object) -> None:
        self.seats: dict[Worker, None] = {}
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
        worker = Worker(self, connection, self._make_flight(connection))
        self.seats[worker] = None
        if is_first:
            self.supply.attach(_Room(self))
        self.progress.gather()
        self.pump()
        return worker

    def _make_flight(self, connection: Connection) -> SharedFlight:
        backlog = self.backlog
        assert isinstance(backlog, SharedBacklog)
        return SharedFlight(backlog, **self._flight_options(connection))

    def _receive_resume(self, resume: Resume) -> None:
        # Nothing is unloaded for it: others have some of that in flight.
        self.backlog.receive_resume(resume.floor, resume.ranges)

    def left(self, worker: Worker, reason: str, *, lost: bool) -> None:
        """The connection of a worker has gone: what it had not answered is for the others."""
        del self.seats[worker]
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
        self.flight = next(
            (one.flight for one in self.seats if one.flight.larger is not None), None
        )
        self._rearm_all()

    def _deal(self) -> tuple[dict[Worker, list[Transfer]], bool]:
        """Take what is sent now, run by run; and whether it ended for the sake of others."""
        ready, now = self.backlog.ready, self._time.now()
        here = [one for one in self.seats if one.connection.may_send and one.flight.is_answered]
        allow = None if self.pace is None else self.pace.allow
        dealt: dict[Worker, list[Transfer]] = {}
        size, looks = TURN_BYTES, TURN_RUNS
        while here:
            if size <= 0 or looks <= 0:
                return dealt, True
            looks -= 1
            worker = max(here, key=lambda one: one.flight.free)
            flight = worker.flight
            # No more at once than each would have of what is ready.
            flight.share = max(1, -(-ready.messages // len(here)))
            transfers = flight.take_transfers(now, allow, size, 1)
            if transfers:
                dealt.setdefault(worker, []).extend(transfers)
                size -= sum([len(memoryview(one.messages)) for one in transfers])
            elif not flight.has_more:
                here.remove(worker)
        return dealt, False

    def _rearm_all(self) -> None:
        due = self.pace.next_deadline() if self.pace is not None else None
        if due is None:
            found = [one.flight.next_deadline() for one in self.seats]
            due = min([one for one in found if one is not None], default=None)
        if due is not None:
            self._pump_in(max(0.001, due - self._time.now()))
