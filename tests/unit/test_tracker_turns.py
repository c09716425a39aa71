"""Histories of many producers are told in slices, and few of their pages are held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.node.tracker import PAGES, SLICE, News, Tracker
from msgservice.records import NOBODY, History, Piece
from tests.kit.doubles import double

PRODUCERS = 2000
PAGE_TAKES = 0.004  # seconds


TURN = 0.001  # seconds of the clock


class TurnClock(Clock):
    """A clock whose calls come in the next turn at the soonest, as a reactor's do."""

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002 - as its base has it
        *args: object,
        **kw: object,
    ) -> IDelayedCall:
        return super().callLater(max(delay, TURN), callable, *args, **kw)


class Turns:
    """A clock of which each turn is seen, and in which telling a page takes time."""

    def __init__(self) -> None:
        self.clock = TurnClock()
        self.now = 0.0
        self.longest = 0.0

    def turn(self, work: Any) -> None:
        began = self.now
        work()
        self.longest = max(self.longest, self.now - began)

    def all(self) -> None:
        while self.clock.getDelayedCalls():
            self.turn(lambda: self.clock.advance(TURN))


class Producer:
    is_gone = False
    is_writable = True

    def __init__(self, turns: Turns, has_room: bool = True) -> None:
        self.turns = turns
        self.told: list[int] = []
        self._room = succeed(None) if has_room else Deferred[None]()

    def tell(self, news: Iterator[News]) -> bool:
        self.turns.now += PAGE_TAKES
        self.told += [one.first for one in news if isinstance(one, Piece)]
        return True

    def room(self) -> Deferred[None]:
        return self._room

    def fault(self, failure: Failure) -> None:
        failure.raiseException()


class Log:
    """A log that answers in another turn, of histories with two pages; how many were asked for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked = self.most = 0
        self.pages: list[tuple[int, int]] = []  # from which sequence on, how many pieces

    def history(
        self, sender: str, incarnation: str, first: int, count: int, removed: Any
    ) -> Deferred[History]:
        self.asked += 1
        self.pages.append((first, count))
        self.most = max(self.most, self.asked)
        page: Deferred[History] = Deferred()
        following = 1001 if first < 1001 else None
        piece = Piece(first, first + 999, NOBODY, first << 16)
        self._clock.callLater(0, self._answer, page, History((piece,), (), following))
        return page

    def _answer(self, page: Deferred[History], history: History) -> None:
        self.asked -= 1
        page.callback(history)


def test_histories_of_very_many_producers_take_no_long_turn_and_are_whole() -> None:
    turns = Turns()
    log: Any = Log(turns.clock)
    directory = double(numbered=lambda number: None)
    tracker = Tracker(log, directory, turns.clock, lambda: turns.now)
    producers = [Producer(turns) for _ in range(PRODUCERS)]
    for number, producer in enumerate(producers):
        turns.turn(lambda: tracker.watch(producer, f"shop-{number}", "i", 1))  # noqa: B023
    turns.all()
    turns.turn(tracker.tell_all_again)
    for number in range(PRODUCERS):
        tracker.tell_from(f"shop-{number}", "i", 500)
    turns.all()
    assert all([1, 1001] == producer.told[:2] for producer in producers)
    assert all(1001 == producer.told[-1] for producer in producers)
    assert turns.longest <= SLICE + PAGE_TAKES + 1e-6
    assert log.most <= PAGES


def test_producers_that_do_not_read_hold_up_no_others() -> None:
    turns = Turns()
    log: Any = Log(turns.clock)
    tracker = Tracker(log, double(numbered=lambda number: None), turns.clock, lambda: turns.now)
    stuck = [Producer(turns, has_room=False) for _ in range(2 * PAGES)]
    reads = Producer(turns)
    for number, producer in enumerate([*stuck, reads]):
        tracker.watch(producer, f"shop-{number}", "i", 1)
    turns.all()
    assert [1, 1001] == reads.told
    tracker.stop()
    assert [] == turns.clock.getDelayedCalls()


def test_of_a_history_no_more_is_asked_than_was_to_be_told() -> None:
    turns = Turns()
    log: Any = Log(turns.clock)
    tracker = Tracker(log, double(numbered=lambda number: None), turns.clock, lambda: turns.now)
    producer = Producer(turns)
    tracker.watch(producer, "shop", "i", 400)
    turns.all()
    log.pages.clear()
    tracker.tell_from("shop", "i", 1, 399)  # of before what it asks for
    tracker.tell_from("shop", "i", 300, 600)
    tracker.tell_from("shop", "i", 700, 800)  # with what is told next anyway
    turns.all()
    assert [(400, 201), (700, 101)] == log.pages
    log.pages.clear()
    tracker.tell_from("shop", "i", 900)
    turns.all()
    assert [(900, 1000), (1001, 1000)] == log.pages
