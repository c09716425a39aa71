"""The supply of a backlog: every state with every event, and every short story of a receiver.

The stories are all sequences of what can happen to an outlet that lags: it attaches, loses its
connection, is fed, answers, a page of the log comes or cannot be read, batches are stored. In none
is a batch passed over or loaded twice, or the log asked for two pages at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.errors import LogUnavailable
from msgservice.limits import BATCH_OVERHEAD
from msgservice.node.loaded_bytes import LoadedBytes
from msgservice.node.supply import IDLE, NEXT, REST, REST_MAX, Event, PageRest, State, Supply
from msgservice.node.tail import Tail
from msgservice.records import Audience, Batch, position_of
from tests.kit.doubles import double
from tests.kit.logs import make_batch

MINE = Audience(1, (1,))
WINDOW = (2, 1_000_000)  # messages: a batch has one


def stored(number: int) -> Batch:
    batch = make_batch(MINE, number)
    batch.number = number
    return batch


class Scene:
    """A supply between a tail of few bytes, a log that answers when told to, and its outlet."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.is_lone = False
        self.tail = Tail(1, 4 * (BATCH_OVERHEAD + 10))
        self.batches: list[Batch] = []
        self.asked: list[tuple[int, int, Deferred[list[Batch]]]] = []  # after, to
        self.failures: list[Failure] = []
        self.flight: Flight | None = None
        self.loaded: list[int] = []  # numbers of batches, in order
        self.backlog = Backlog(
            ordered=True, cursor=position_of(1) - 1, retry_delay=lambda attempts: 1.0
        )
        self.supply = Supply(
            self.backlog,
            {MINE.number},
            loaded=LoadedBytes(1 << 30),
            tail=self.tail,
            log=double(read=self.read),
            rest=PageRest(Time(self.clock), lambda: self.is_lone),
            came=self.pump,
            failed=self.failures.append,
            fault=self.failed,
        )

    def failed(self, failure: Failure) -> None:
        failure.raiseException()

    def read(
        self, audiences: Sequence[int], after: int, to: int, size: int, count: int
    ) -> Deferred[list[Batch]]:
        assert not self.asked, "two pages at once"
        page: Deferred[list[Batch]] = Deferred()
        self.asked.append((after, to, page))
        return page

    # --- what can happen

    def store(self) -> None:
        """A batch is stored, and goes to the tail, and to who follows."""
        batch = stored(len(self.batches) + 1)
        self.batches.append(batch)
        self.tail.append(batch)
        if self.supply.state is State.FOLLOWS:
            self.supply.feed(batch)
        self.pump()

    def store_many(self) -> None:
        """More than the tail keeps."""
        for _ in range(6):
            self.store()

    def attach(self) -> None:
        if self.flight is None:
            self.flight = Flight(self.backlog, own_window=WINDOW, window=None, batch_max=1_000_000)
            self.supply.attach(self.flight)
            self.pump()

    def detach(self) -> None:
        if self.flight is not None:
            self.supply.detach()
            self.flight.end(0.0, lost=False)
            self.flight = None

    def unload(self) -> None:
        if self.flight is None:
            self.backlog.unload()

    def page(self) -> None:
        for after, to, page in self.take_asked():
            page.callback([b for b in self.batches if b.last > after and b.first <= to][:3])

    def page_fails(self) -> None:
        for _, _, page in self.take_asked():
            page.errback(Failure(LogUnavailable("no disk")))
            self.pump()  # as the outlet does, after a while

    def take_asked(self) -> list[tuple[int, int, Deferred[list[Batch]]]]:
        asked, self.asked = self.asked, []
        return asked

    def pump(self) -> None:
        if self.flight is None:
            return
        self.supply.fill()
        for transfer in self.flight.take_transfers(0.0):
            self.loaded.append(transfer.sequence >> 16)
        self.supply.fill()

    def answer(self) -> None:
        """All that is in flight is acknowledged."""
        if self.flight is not None:
            for run in self.backlog.runs_in_flight():
                self.flight.receive_acks([(run.first, run.last)])
            self.pump()

    # --- what must hold

    def check(self) -> None:
        state, is_there = self.supply.state, self.flight is not None
        assert is_there is (state in (State.LAGS, State.FOLLOWS, State.READS, State.LATE))
        assert bool(self.asked) is (state in (State.READS, State.LEFT, State.LATE))
        if state is State.FOLLOWS:
            last = self.supply.fed[-1] if self.supply.fed else None
            fed_to = self.backlog.loaded_to if last is None else last.last
            assert position_of(self.tail.next_number) - 1 <= max(fed_to, fed_to | 0xFFFF)
        if not is_there:
            assert not self.supply.fed

    def finish(self) -> None:
        """The receiver comes and answers all: each batch was sent, and settled in order."""
        self.attach()
        for _ in self.batches:
            if self.supply.state is State.FOLLOWS and not self.supply.fed and self.backlog.idle:
                break
            self.page()
            self.answer()
            self.check()
        assert State.FOLLOWS is self.supply.state
        assert len(self.batches) == self.backlog.cursor >> 16
        assert [run.run.source.number for run in self.backlog.take_settled()] == [
            batch.number for batch in self.batches
        ]


EVENTS: dict[str, Callable[[Scene], None]] = {
    "store": Scene.store,
    "store many": Scene.store_many,
    "attach": Scene.attach,
    "detach": Scene.detach,
    "unload": Scene.unload,
    "page": Scene.page,
    "page fails": Scene.page_fails,
    "answer": Scene.answer,
}


@pytest.mark.parametrize("beginning", [*product(EVENTS, repeat=2)], ids=" ".join)
def test_no_story_of_a_receiver_passes_over_a_batch_or_loads_one_twice(
    beginning: tuple[str, str],
) -> None:
    for follows, *rest in product((True, False), EVENTS, EVENTS):
        scene = Scene()
        if follows:
            scene.attach()
        scene.store_many()
        for name in (*beginning, *rest):
            EVENTS[str(name)](scene)
            scene.check()
        scene.finish()


def test_the_stories_come_to_every_state_by_every_event() -> None:
    seen: set[tuple[State, Event]] = set()

    class Noted(dict[tuple[State, Event], State]):
        def __getitem__(self, key: tuple[State, Event]) -> State:
            seen.add(key)
            return super().__getitem__(key)

    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr("msgservice.node.supply.NEXT", Noted(NEXT))
        for story in (
            ["attach", "page", "answer", "page", "answer", "page", "answer", "detach"],
            ["attach", "page", "detach", "attach"],
            ["attach", "detach", "attach", "detach", "page"],
            ["attach", "detach", "attach", "page"],
        ):
            scene = Scene()
            scene.store_many()
            for name in story:
                EVENTS[name](scene)
        scene = Scene()  # a flight that is not answered, and more than two windows of bytes
        scene.flight = Flight(scene.backlog, own_window=(1, 60), window=None, batch_max=1000)
        scene.supply.attach(scene.flight)
        scene.pump()
        for _ in range(9):
            scene.store()
    assert set(NEXT) == seen


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_what_cannot_be_in_a_state_is_an_error(state: State, event: Event) -> None:
    supply: Any = Scene().supply
    supply.state = state
    if (state, event) in NEXT:
        supply._happens(event)
        assert NEXT[state, event] is supply.state
    else:
        with pytest.raises(KeyError):
            supply._happens(event)
        assert state is supply.state


def test_a_page_for_the_connection_before_is_dropped_and_asked_for_again() -> None:
    scene = Scene()
    scene.store_many()
    scene.attach()
    assert State.READS is scene.supply.state
    scene.detach()
    scene.attach()
    assert (State.LATE, 1) == (scene.supply.state, len(scene.asked))
    scene.page()
    assert (State.READS, []) == (scene.supply.state, scene.loaded)
    scene.page()
    assert [1, 2] == scene.loaded


def test_a_page_for_the_connection_before_does_not_pass_over_what_was_unloaded() -> None:
    scene = Scene()
    scene.store_many()
    scene.store_many()
    scene.attach()
    scene.page()
    assert (State.READS, [1, 2]) == (scene.supply.state, scene.loaded)  # from 4 on
    scene.detach()
    scene.unload()
    scene.attach()
    scene.page()
    scene.finish()


def test_a_page_that_cannot_be_read_is_told_and_asked_for_again() -> None:
    scene = Scene()
    scene.store_many()
    scene.attach()
    scene.page_fails()
    assert ["no disk"] == [failure.getErrorMessage() for failure in scene.failures]
    assert State.READS is scene.supply.state


def behind() -> Scene:
    """A receiver that lags by many pages, of which the first was asked for."""
    scene = Scene()
    for _ in range(8):
        scene.store_many()
    scene.attach()
    assert 1 == len(scene.asked)
    return scene


def next_page_after(scene: Scene, seconds: float) -> float:
    """Return the time until the next page is asked for, which comes after so many seconds."""
    scene.clock.advance(seconds)
    scene.page()
    for _ in range(3):
        scene.answer()
    waited = 0.0
    while not scene.asked:
        assert waited < 1
        assert scene.supply.is_reading  # and nothing else is asked for meanwhile
        scene.clock.advance(0.001)
        waited += 0.001
    return waited


def test_between_pages_there_is_a_rest_while_others_send_messages_one_by_one() -> None:
    scene = behind()
    assert 0 == next_page_after(scene, 0.002)
    scene.is_lone = True
    assert REST * 0.002 == pytest.approx(next_page_after(scene, 0.002), abs=0.002)
    assert REST_MAX == pytest.approx(next_page_after(scene, 0.1), abs=0.002)
    assert 0 == next_page_after(scene, IDLE)
    scene.is_lone = False
    assert 0 == next_page_after(scene, 0.002)
    assert sorted(scene.loaded) == scene.loaded == [*range(1, len(scene.loaded) + 1)]


def test_who_rests_and_leaves_gets_what_it_asked_for_by_its_next_connection() -> None:
    scene = behind()
    scene.is_lone = True
    scene.clock.advance(0.002)
    scene.page()
    scene.answer()
    assert [] == scene.asked
    scene.detach()
    scene.attach()
    assert State.LATE is scene.supply.state
    for _ in range(80):
        scene.clock.advance(REST_MAX)
        scene.page()
        scene.answer()
    assert [*range(1, 49)] == sorted({*scene.loaded})


def test_who_is_removed_or_stops_while_it_rests_leaves_no_timer() -> None:
    scene = behind()
    scene.is_lone = True
    scene.clock.advance(0.002)
    scene.page()
    scene.answer()
    assert 1 == len(scene.clock.getDelayedCalls())
    scene.supply.leave()
    assert [] == scene.clock.getDelayedCalls()
    scene.clock.advance(1)
    assert [] == scene.asked
