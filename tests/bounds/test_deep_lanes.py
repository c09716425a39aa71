"""A lane with a deep backlog of small runs is blocked and goes on as a whole."""

from __future__ import annotations

from collections.abc import Callable

from msgservice.core.frames import Transfer
from msgservice.core.refusal import Refusal
from msgservice.core.runs import Run
from msgservice.message import Action, Status, encode_bodies
from tests.bounds.meter import LIMIT, Meter
from tests.kit.outbox import Outbox

WINDOW = 1 << 15
BODY = encode_bodies([b"x"])
# Of what is neither sent nor answered; a walk of all of that would be 30,000 and more.
FEW = 3000
RUNS_MAX = 1024


def run_of(lane: str, first: int) -> Run:
    return Run(
        first=first, count=1, subject=lane, lane=lane, encoded=BODY, size=len(BODY), after=first - 1
    )


class Deep:
    """A window of one lane, or of several, is in flight, as much again of it waits."""

    def __init__(self, lanes: int = 1) -> None:
        self.lanes = lanes
        self.outbox = Outbox(
            ordered=True,
            cursor=0,
            window=(WINDOW, 1 << 24),
            retry_delay=lambda _: 1.0,
            max_attempts=20,
            keeps_letters=True,
        )
        self.backlog = self.outbox.backlog
        self.outbox.connect(None, 1 << 20)
        self.next = 1
        self.now = 0.0
        self.offer_all()
        self.sent = self.outbox.flight.take_transfers(self.now)
        self.offer_all()
        assert (WINDOW, WINDOW) == (self.backlog.in_flight.runs, self.backlog.ready.runs)

    def offer_all(self) -> None:
        while self.outbox.flight.wants:
            self.backlog.offer(run_of(f"deep{self.next % self.lanes}", self.next))
            self.next += 1

    def units(self, job: Callable[[], object]) -> int:
        meter = Meter(LIMIT)
        with meter.turn("job"):
            job()
        assert meter.over is None, meter.over
        return meter.units

    def nack(self, sequence: int, action: Action) -> int:
        flight = self.outbox.flight
        refusal = Refusal(action, "no")
        return self.units(lambda: flight.receive_nack(sequence, sequence, refusal, 1.0, self.now))

    def store_letters(self) -> int:
        letters = [one for one in self.backlog.take_settled() if one.status is Status.DEAD]
        return self.units(lambda: self.backlog.letters_stored(letters))

    def ack(self, first: int, last: int) -> int:
        return self.units(lambda: self.outbox.flight.receive_acks([(first, last)]))

    def take(self) -> tuple[int, list[Transfer]]:
        taken: list[Transfer] = []
        flight = self.outbox.flight
        units = self.units(lambda: taken.extend(flight.take_transfers(self.now, runs_max=RUNS_MAX)))
        return units, taken


def test_a_dead_letter_walks_nothing_of_what_waits_in_its_lane() -> None:
    deep = Deep()
    deep.nack(1, Action.DEAD)  # indexes the lanes
    costs = [deep.store_letters()]
    for sequence in range(2, 12):
        costs += [deep.nack(sequence, Action.DEAD), deep.store_letters()]
    assert max(costs) < FEW, costs
    assert deep.backlog.behind.runs == 0
    assert WINDOW - 11 == deep.backlog.in_flight.runs


def test_a_retry_walks_what_was_sent_of_its_lane_and_nothing_else() -> None:
    deep = Deep()
    deep.nack(1, Action.RETRY)  # takes a window back
    assert deep.backlog.in_flight.runs == 0
    first, turns = 1, []
    for _ in range(2 * WINDOW // RUNS_MAX + 5):  # all that waits is come upon, by parts
        units, taken = deep.take()
        turns.append(units)
        assert [] == taken
    assert max(turns) < 200 * RUNS_MAX, turns
    assert (0, 2 * WINDOW - 1) == (deep.backlog.ready.runs, deep.backlog.behind.runs)
    released, taken_back = [], []
    for _ in range(10):
        deep.now += 2.0
        _, taken = deep.take()
        assert [first] == [one.sequence for one in taken]  # the head, alone
        released.append(deep.ack(first, first))
        units, taken = deep.take()
        assert list(range(first + 1, first + 1 + RUNS_MAX)) == [one.sequence for one in taken]
        first += 1
        taken_back.append(deep.nack(first, Action.RETRY))
    assert max(released) < FEW, released
    assert max(taken_back) < 100 * RUNS_MAX, taken_back


def test_what_steps_behind_makes_room_for_other_lanes() -> None:
    deep = Deep()
    deep.outbox.disconnect(0.0, lost=False)
    deep.backlog.behind_max = 1 << 30
    deep.outbox.connect(None, 1 << 20)
    deep.take()
    flight = deep.outbox.flight
    flight.receive_nack(1, 1, Refusal(Action.LATER, ""), 3600.0, 0.0)
    assert not flight.wants
    while True:
        assert [] == deep.take()[1]
        if flight.wants:
            break
        assert flight.has_more
    assert flight.has_more  # or nobody would ask whether it wants more
    while flight.has_more:
        assert [] == deep.take()[1]
    deep.backlog.offer(run_of("other", deep.next))
    assert [deep.next] == [one.sequence for one in deep.take()[1]]


def test_the_first_dead_letter_costs_each_other_lane_its_place_in_an_index_and_no_more() -> None:
    deep = Deep(lanes=WINDOW)
    assert deep.nack(1, Action.DEAD) < 15 * WINDOW  # of two runs each
    assert deep.store_letters() < FEW
    assert max(deep.nack(sequence, Action.RETRY) for sequence in range(2, 12)) < FEW
    assert WINDOW - 11 == deep.backlog.in_flight.runs
