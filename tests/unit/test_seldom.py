"""What happens often is said once in a while, and none of it is left uncounted."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent

from msgservice.node.seldom import PERIOD, THINGS_MAX, Seldom


class Said:
    def __init__(self) -> None:
        self.clock = Clock()
        self.seldom = Seldom(self.clock)
        self.lines: list[tuple[str, int]] = []

    def happens(self, thing: str, words: str, count: int = 1, kind: str = "") -> None:
        self.seldom.say(thing, lambda number: self.lines.append((words, number)), count, kind=kind)


def test_the_first_is_said_at_once_and_the_last_with_the_number_of_all_others() -> None:
    said = Said()
    for number in range(1000):
        said.happens("a", f"a{number}", 2)
    said.happens("b", "b")
    assert said.lines == [("a0", 2), ("b", 1)]
    said.clock.advance(PERIOD)
    assert said.lines == [("a0", 2), ("b", 1), ("a999", 1998)]


def test_what_goes_on_is_said_once_a_period() -> None:
    said = Said()
    for _ in range(60):
        said.happens("a", "a")
        said.clock.advance(PERIOD / 20)
    assert said.lines == [("a", 1), ("a", 19), ("a", 20), ("a", 20)]


def test_after_a_quiet_period_the_next_is_said_at_once() -> None:
    said = Said()
    said.happens("a", "first")
    said.clock.advance(PERIOD)
    assert said.clock.getDelayedCalls() == []
    said.happens("a", "next")
    assert said.lines == [("first", 1), ("next", 1)]


def test_however_many_things_there_are_lines_and_memory_are_bounded(logged: list[LogEvent]) -> None:
    said = Said()
    for number in range(10_000):
        said.happens(f"thing-{number}", "x")
    assert len(said.lines) == THINGS_MAX
    said.clock.advance(PERIOD)
    assert len(said.lines) == THINGS_MAX
    (beyond,) = [formatEvent(event) for event in logged]
    assert beyond.startswith(f"{10_000 - THINGS_MAX} more such lines")
    assert said.seldom._said == {}


def test_things_of_one_kind_keep_no_line_about_another_away() -> None:
    said = Said()
    for _ in range(2):
        for number in range(2 * THINGS_MAX):
            said.happens(f"thing-{number}", "made up", kind="strangers")
        said.happens("thing-0", "known", kind="users")
        assert ("known", 1) == said.lines[-1]
        said.clock.advance(PERIOD)
        assert 2 * THINGS_MAX + 1 > len(said.lines)
        said.lines.clear()
        said.clock.advance(PERIOD)
        said.lines.clear()


def test_who_stops_says_what_was_counted_and_leaves_no_timer() -> None:
    said = Said()
    for _ in range(5):
        said.happens("a", "a")
    said.seldom.stop()
    assert said.lines == [("a", 1), ("a", 4)]
    said.happens("b", "who comes while it stops")
    assert said.lines == [("a", 1), ("a", 4)]
    assert said.clock.getDelayedCalls() == []
