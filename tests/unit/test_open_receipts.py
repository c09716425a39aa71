"""Which receipts of an outbox are open: DELIVERY 53, against a model of single messages."""

from __future__ import annotations

import random

import pytest

from msgservice.client.open_receipts import Audiences, OpenReceipts

NAMES = ("billing", "mail", "audit")
AUDIENCES = (("billing",), ("billing", "mail"), NAMES, ())


class Model:
    """Each message by itself."""

    def __init__(self) -> None:
        self.names: dict[int, tuple[str, ...] | None] = {}
        self.final: set[tuple[str, int]] = set()
        self.answered: set[int] = set()
        self.undecided: set[int] = set()
        self.over: set[int] = set()

    def is_over(self, sequence: int) -> bool:
        if sequence in self.over:
            return True
        names = self.names.get(sequence)
        return (
            names is not None
            and sequence in self.answered
            and sequence not in self.undecided
            and all((name, sequence) in self.final for name in names)
        )


@pytest.mark.parametrize("seed", range(60))
def test_53_a_row_may_go_when_all_of_it_is_final_everywhere_and_never_before(seed: int) -> None:
    rng = random.Random(seed)
    model, receipts = Model(), OpenReceipts()
    rows: list[tuple[int, int]] = []
    gone: set[tuple[int, int]] = set()
    given = 0
    for _ in range(300):
        what = rng.choice(["add", "routed", "final", "answered", "decided", "end", "forget", "due"])
        first = rng.randint(1, max(1, given))
        last = min(given, first + rng.choice([0, 1, 5, 40]))
        if what == "add":
            first, given = given + 1, given + rng.choice([1, 1, 3, 20])
            if rng.random() < 0.1:
                receipts.skip(first, given)
                model.over.update(range(first, given + 1))
                continue
            rows.append((first, given))
            promised = rng.random() < 0.2
            receipts.add(first, given, promised=promised)
            if promised:
                model.undecided.update(range(first, given + 1))
        elif what == "routed":
            names = rng.choice(AUDIENCES)
            receipts.routed(first, last, names, is_known=True, is_due=True)
            model.names |= dict.fromkeys(range(first, last + 1), names)
        elif what == "due":
            receipts.routed(first, last, (), is_known=False, is_due=False)
            model.names |= dict.fromkeys(range(first, last + 1), None)
        elif what == "final":
            name = rng.choice(NAMES)
            receipts.final(name, first, last)
            model.final |= {(name, sequence) for sequence in range(first, last + 1)}
        elif what == "answered":
            receipts.answered(first, last)
            model.answered.update(range(first, last + 1))
        elif what == "decided":
            receipts.decided(first, last)
            model.undecided -= set(range(first, last + 1))
        elif what == "end":
            if rng.random() < 0.2:
                receipts.end(first, last)
                model.over.update(range(first, last + 1))
        elif rng.random() < 0.2:
            receipts.forget(first, last)
            model.over.update(range(first, last + 1))
        for low, high in receipts.take_gone():
            gone.update(row for row in rows if low <= row[0] and row[1] <= high)
        for sequence in range(1, given + 1):
            if model.is_over(sequence):
                model.over.add(sequence)  # from then on nothing changes that
        for row in rows:
            is_over = all(sequence in model.over for sequence in range(row[0], row[1] + 1))
            assert is_over == (row in gone), (seed, row)
    assert gone


@pytest.mark.parametrize("seed", range(40))
def test_audiences_are_those_that_were_set_last(seed: int) -> None:
    rng = random.Random(seed)
    audiences, model = Audiences(), dict[int, tuple[str, ...] | None]()
    for _ in range(150):
        first = rng.randint(1, 60)
        last = first + rng.randint(0, 15)
        if rng.random() < 0.2:
            audiences.cut(first, last)
            for sequence in range(first, last + 1):
                model.pop(sequence, None)
        else:
            names = rng.choice([*AUDIENCES, None])
            audiences.set(first, last, names)
            model |= dict.fromkeys(range(first, last + 1), names)
        found = {
            sequence: names
            for low, high, names in audiences.within(1, 100)
            for sequence in range(low, high + 1)
        }
        assert model == found
    rising = [(low, high) for low, high, _ in audiences.within(1, 100)]
    assert rising == sorted(rising)


def left(**said: object) -> OpenReceipts:
    """Two rows of an earlier process, answered and for one receiver."""
    found = OpenReceipts(10, [(1, 4), (5, 10)], **said)  # type: ignore[arg-type]  # by name
    found.routed(1, 10, ("billing",), is_known=True, is_due=True)
    return found


def test_53_what_an_earlier_process_left_stays_until_it_is_given_out() -> None:
    receipts = left()
    receipts.final("billing", 1, 10)
    assert [] == receipts.take_gone()
    assert [(1, 10)] == list(receipts.ended)
    assert receipts.give_out([(1, 4)])
    assert [] == receipts.take_gone()  # all of it is told anew, and then it may go
    receipts.routed(1, 4, ("billing",), is_known=True, is_due=True)
    receipts.final("billing", 1, 4)
    assert [(1, 4)] == receipts.take_gone()
    assert [(5, 10)] == list(receipts.ended)
    assert not receipts.give_out([(1, 4)])


def test_53_what_is_lost_goes_when_it_is_given_out() -> None:
    receipts = left(over=[(1, 4)])
    assert [] == receipts.take_gone()
    assert receipts.give_out([(1, 4)])
    assert [(1, 4)] == receipts.take_gone()


def test_53_what_was_forgotten_is_listed_no_more() -> None:
    receipts = left(forgotten=[(2, 3)])
    assert [(1, 1), (4, 7)] == receipts.listed(1, 10, 5)
    receipts.forget(1, 4)
    assert [(1, 4)] == receipts.take_gone()
    assert [(5, 10)] == receipts.listed(1, 10, 100)


def test_53_rows_that_were_too_many_are_followed_no_more() -> None:
    receipts = left()
    receipts.drop_below(5)
    assert [(5, 10)] == receipts.listed(1, 10, 100)


def test_53_of_what_the_node_knows_no_more_nothing_more_is_waited_for() -> None:
    receipts = OpenReceipts(6, [(1, 6)], promised=[(1, 6)])
    receipts.give_out([(1, 6)])
    receipts.routed(1, 2, ("billing",), is_known=True, is_due=True)
    receipts.routed(5, 6, ("billing",), is_known=True, is_due=True)
    receipts.routed(1, 4, (), is_known=False, is_due=True)
    assert [(1, 4)] == receipts.take_gone()
    receipts.final("billing", 5, 6)
    receipts.decided(5, 6)
    assert [(1, 6)] == receipts.take_gone()


def test_53_what_is_told_anew_moves_no_entry_of_very_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receipts, count = OpenReceipts(), 1000

    def route_all() -> None:
        for at in range(1, count + 1):
            receipts.routed(at, at, (f"r{at % 2}",), is_known=True, is_due=True)

    receipts.add(1, count, promised=False)
    route_all()
    moved: list[int] = []
    monkeypatch.setattr(Audiences, "cut", lambda _, first, last: moved.append(first))
    route_all()
    assert [] == moved


def test_53_what_ends_among_very_many_moves_no_entry_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receipts, count = OpenReceipts(), 10_000
    receipts.add(1, count, promised=False)
    receipts.answered(1, count)
    for at in range(1, count + 1):
        receipts.routed(at, at, (f"r{at % 2}",), is_known=True, is_due=True)
    cut: list[int] = []
    monkeypatch.setattr(Audiences, "cut", lambda _, first, last: cut.append(first))
    for at in range(1, count + 1, 2):  # none is the neighbour of another
        receipts.final("r1", at, at)
        assert [(at, at)] == receipts.take_gone()
    assert [] == cut
    for at in range(2, count - 1, 2):
        receipts.final("r0", at, at)
    receipts.take_gone()
    assert 1 == len(receipts._audiences)  # those that ended are not held for ever either


def test_53_what_is_said_of_runs_in_a_row_is_one_range_and_of_others_another() -> None:
    receipts = OpenReceipts()
    receipts.add(1, 100, promised=False)
    for sequence in range(1, 41):
        receipts.routed(sequence, sequence, ("billing",), is_known=True, is_due=True)
    receipts.routed(41, 60, NAMES, is_known=True, is_due=True)
    receipts.routed(62, 70, NAMES, is_known=True, is_due=True)
    receipts.answered(1, 100)
    receipts.final("billing", 1, 100)
    assert [(1, 40)] == receipts.take_gone()
    assert 3 == len(receipts._audiences)
    assert [(41, 100)] == [*receipts.open]


def test_53_what_was_said_before_they_were_given_out_is_waited_for_anew() -> None:
    receipts = OpenReceipts(10, [(1, 10)])
    receipts.answered(1, 10)
    receipts.routed(1, 10, ("billing",), is_known=True, is_due=True)
    assert receipts.give_out([(1, 10)])
    receipts.final("billing", 1, 10)
    assert [] == receipts.take_gone()
    receipts.routed(1, 10, ("billing",), is_known=True, is_due=True)
    assert [(1, 10)] == receipts.take_gone()
