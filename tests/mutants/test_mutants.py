"""Planted bugs: each still fits its place, and some that are found quickly are found.

`make mutants` looks whether every one of them is found by what must find it, and by its sign.
"""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from msgservice.core.flight import Flight
from tests.mutants.__main__ import told
from tests.mutants.catalogue import MUTANTS
from tests.mutants.plant import ByMachine, DoesNotFit, Mutant, compiled, function_at

QUICK = (
    "cursor-off-by-one",
    "gap-over-what-is-open",
    "forgets-marks",
    "an-inverted-range-is-believed",
    "ack-before-the-sync",
)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fits_the_function_that_it_is_for(name: str) -> None:
    function, made = compiled(MUTANTS[name])
    assert function.__code__.co_code != made.__code__.co_code or (
        function.__code__.co_consts != made.__code__.co_consts
    )
    assert function.__code__.co_freevars == made.__code__.co_freevars


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_found_by_its_sign(name: str) -> None:
    is_caught, line = told(MUTANTS[name])
    assert is_caught, line


def test_there_are_as_many_as_promised() -> None:
    assert len(MUTANTS) >= 30


def test_a_mutant_that_does_not_fit_is_an_error() -> None:
    catcher = ByMachine(machine="outbox", signs=("stuck",))
    mutant = Mutant(name="x", at="tests.kit.clients:now", old="nothing", new="", catcher=catcher)
    with pytest.raises(DoesNotFit, match="is 0 times"):
        compiled(mutant)


def test_of_a_property_the_function_behind_it_is_meant() -> None:
    assert function_at("msgservice.core.flight:Flight.wants") is Flight.wants.fget  # type: ignore[attr-defined]  # a property
    assert function_at("twisted.internet.task:Clock.seconds") is Clock.seconds
