"""The judge of the soak: ledgers and the inbox's table against what was promised. Runs nothing.

A message is promised once its producer was told (`told N`). What was promised to a receiver must be
in its ledger, or in the table that its handler wrote (rejected ones excepted); nothing may be there
twice in one life, nor ever in the table; a lane rises; and a final state that a producer was told
must be true. Nothing here asks the product what it believes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

LANES = 3
Key = tuple[str, int]  # producer, number
Handled = tuple[str, int, int]  # producer, number, lane


def is_rejected(number: int) -> bool:
    """Whether handlers reject this one: it must be dead, and never count as handled."""
    return number % 97 == 0


def is_retried(number: int) -> bool:
    """Whether handlers ask for this one again, once in a life."""
    return number % 53 == 0


def picks_dialled(number: int) -> bool:
    """Whether this one is for `dialled` alone."""
    return number % 11 == 0


def audience_of(number: int) -> tuple[str, ...]:
    """Return whom a message is for."""
    return ("dialled",) if picks_dialled(number) else ("dialled", "once", "udp")


def expects(receiver: str, number: int) -> bool:
    """Whether this receiver handles it; `dialled` rejects nothing."""
    return receiver in audience_of(number) and (receiver == "dialled" or not is_rejected(number))


@dataclass
class Evidence:
    """What crossed the boundaries. `lives`: what each receiver did, one list for each life."""

    told: dict[str, list[int]] = field(default_factory=dict)
    finals: dict[Key, dict[str, str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    lives: dict[str, list[list[Handled]]] = field(default_factory=dict)
    table: list[Handled] = field(default_factory=list)

    def read_producer(self, name: str, lines: Iterable[str]) -> None:
        """Take in the ledger of a producer."""
        told = self.told.setdefault(name, [])
        for line in lines:
            what, *words = line.split()
            if what == "told":
                told.append(int(words[0]))
            elif what == "final":
                states = dict(word.split("=") for word in words[1:])
                self.finals[name, int(words[0])] = states
            elif what == "failed":
                self.failed.append(f"{name}: {line.strip()}")

    def read_output(self, name: str, output: str) -> None:
        """Take in what a process printed: nobody may fail within, whoever was killed."""
        for line in output.splitlines():
            if "#critical]" in line or line.startswith(("Traceback", "Unhandled")):
                self.failed.append(f"{name} printed: {line}")

    def read_receiver(self, name: str, lines: Iterable[str]) -> None:
        """Take in the ledger of a receiver."""
        lives = self.lives.setdefault(name, [])
        for line in lines:
            what, *words = line.split()
            if what == "life":
                lives.append([])
            else:
                lives[-1].append((words[0], int(words[1]), int(words[2])))


def lost(evidence: Evidence) -> list[str]:
    """Return what was promised and did not arrive, a line each."""
    handled: dict[str, set[Key]] = {
        name: {(sender, number) for life in lives for sender, number, _ in life}
        for name, lives in evidence.lives.items()
    }
    handled["once"] = {(sender, number) for sender, number, _ in evidence.table}
    return [
        f"{receiver} never got {sender}'s {number}"
        for sender, numbers in sorted(evidence.told.items())
        for number in numbers
        for receiver in audience_of(number)
        if expects(receiver, number) and (sender, number) not in handled[receiver]
    ]


def wrong(evidence: Evidence) -> list[str]:
    """Return what else is not as promised, a line each."""
    return [
        *evidence.failed,
        *_repeated("once's table", evidence.table),
        *_unordered("once's table", evidence.table),
        *(
            line
            for name, lives in sorted(evidence.lives.items())
            for number, life in enumerate(lives)
            for line in (
                *_repeated(f"{name} in life {number}", life),
                *_unordered(f"{name} in life {number}", life),
            )
        ),
        *_misrouted(evidence),
        *_untrue(evidence),
    ]


def _repeated(who: str, handled: list[Handled]) -> list[str]:
    counts = Counter((sender, number) for sender, number, _ in handled)
    return [
        f"{who} has {key[0]}'s {key[1]} {count} times" for key, count in counts.items() if count > 1
    ]


def _unordered(who: str, handled: list[Handled]) -> list[str]:
    lanes: Mapping[tuple[str, int], list[int]] = defaultdict(list)
    for sender, number, lane in handled:
        lanes[sender, lane].append(number)
    return [
        f"{who} has lane {lane} of {sender} out of order: {one} before {after}"
        for (sender, lane), numbers in lanes.items()
        for one, after in pairwise(numbers)
        if one > after
    ]


def _misrouted(evidence: Evidence) -> list[str]:
    handled = {
        name: [one for life in lives for one in life] for name, lives in evidence.lives.items()
    }
    handled["once"] = evidence.table
    return [
        f"{receiver} handled {sender}'s {number}, which is not for it"
        for receiver, all_of_it in handled.items()
        for sender, number, _ in all_of_it
        if not expects(receiver, number)
    ]


def _untrue(evidence: Evidence) -> list[str]:
    """Final states: acknowledged where handled, dead where rejected, for the audience alone."""
    return [
        f"{sender}'s {number} was told {states}, should be {wanted}"
        for (sender, number), states in evidence.finals.items()
        if states
        != (
            wanted := {
                name: "ACKNOWLEDGED" if expects(name, number) else "DEAD"
                for name in audience_of(number)
            }
        )
    ]
