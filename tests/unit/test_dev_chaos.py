"""What `msgservice dev --chaos` draws: the same from a seed, of each kind, for whom it may be."""

from __future__ import annotations

import pytest

from msgservice.cli.dev.chaos import LOT, MAX_ATTEMPTS, REMEMBERED, TAKE, Chaos, Kind, Script

MORTAL = frozenset({"shipping"})


def drawn(seed: int, receiver: str, numbers: range) -> list[tuple[Kind, ...]]:
    chaos = Chaos(seed, MORTAL)
    return [tuple(act.kind for act in chaos.acts(receiver, number)) for number in numbers]


@pytest.mark.parametrize("receiver", ["billing", "shipping"])
def test_a_seed_draws_the_same_in_whatever_order_it_is_asked(receiver: str) -> None:
    forwards = [Chaos(7, MORTAL).acts(receiver, number) for number in range(1, 50)]
    backwards = [Chaos(7, MORTAL).acts(receiver, number) for number in range(49, 0, -1)]
    assert forwards == backwards[::-1]
    assert forwards != [Chaos(8, MORTAL).acts(receiver, number) for number in range(1, 50)]


@pytest.mark.parametrize("first", [1, 1 + LOT, 1 - LOT])
def test_each_trouble_comes_once_in_a_lot(first: int) -> None:
    lot = drawn(3, "billing", range(first, first + LOT))
    assert sorted(map(len, lot)) == [1, 1, 1, 1, 1, 2, 3, MAX_ATTEMPTS]
    assert lot.count((Kind.REFUSE,) * MAX_ATTEMPTS) == 1
    assert lot.count((Kind.REJECT,)) == lot.count((Kind.DELAY,)) == 1


def test_only_who_may_be_killed_is() -> None:
    of_shipping = drawn(3, "shipping", range(1, 2 + LOT))
    assert of_shipping.count((Kind.DIE, Kind.TAKE)) == 1
    assert not any(Kind.DIE in acts for acts in drawn(3, "billing", range(1, 100)))


def test_a_message_that_comes_again_meets_the_next_act_and_is_taken_in_the_end() -> None:
    script = Script(Chaos(1, MORTAL))
    number = next(n for n in range(1, 1 + LOT) if len(script.acts("billing", n)) == 3)
    for act in script.acts("billing", number):
        assert script.next("billing", number) == act
        assert script.next("billing", number) == act  # it was not done: killed meanwhile
        script.did("billing", number)
    assert script.next("billing", number) == TAKE


def a_number(script: Script, *kinds: Kind) -> int:
    """The first message that shipping does this with."""
    return next(
        n for n in range(1, 100) if tuple(a.kind for a in script.acts("shipping", n)) == kinds
    )


def test_an_answer_that_was_lost_with_its_receiver_is_given_again() -> None:
    script = Script(Chaos(1, MORTAL))
    rejects = a_number(script, Kind.REJECT)
    refuses = a_number(script, Kind.REFUSE, Kind.REFUSE, Kind.REFUSE)
    for number in (rejects, refuses):
        script.did("shipping", number)
    script.killed("shipping")
    script.given("shipping", rejects, 0)
    assert script.next("shipping", rejects).kind is Kind.REJECT
    script.given("shipping", refuses, 0)  # the node does not know of an attempt
    script.did("shipping", refuses)
    script.killed("shipping")
    script.given("shipping", refuses, 1)  # now it does
    for _ in range(2):
        assert script.next("shipping", refuses).kind is Kind.REFUSE
        script.did("shipping", refuses)
    assert script.next("shipping", refuses) == TAKE


def test_a_letter_that_is_sent_again_is_taken_whoever_was_killed_meanwhile() -> None:
    script = Script(Chaos(1, MORTAL))
    number = a_number(script, Kind.REJECT)
    script.did("shipping", number)
    script.final(number)
    script.killed("shipping")
    script.given("shipping", number, 0)
    assert script.next("shipping", number) == TAKE
    other = Script(Chaos(1, MORTAL))
    other.did("shipping", number)
    other.killed("shipping")
    other.final(number)
    other.given("shipping", number, 0)
    assert other.next("shipping", number) == TAKE


def test_without_chaos_all_is_taken() -> None:
    script = Script(None)
    assert {script.next("shipping", number) for number in range(1, 30)} == {TAKE}


def test_it_remembers_a_bounded_number_of_messages() -> None:
    script = Script(Chaos(1, MORTAL))
    for number in range(1, 3 * REMEMBERED):
        script.did("billing", number)
        script.did("shipping", number)
        if number % 700 == 0:
            script.killed("shipping")
    assert len(script._done["billing"]) == REMEMBERED
    kept = [*script._answered.values(), *script._doubtful.values()]
    assert all(len(numbers) <= REMEMBERED for numbers in kept)
