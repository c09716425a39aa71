"""Chaos: what a receiver does with each message, drawn from a seed.

Nothing is done here, and no time passes. What is drawn for a message depends on the seed, the
receiver and the message's number alone, so the same seed draws the same, whatever happens when.
"""

from __future__ import annotations

import enum
import random
from collections import OrderedDict
from dataclasses import dataclass

MAX_ATTEMPTS = 3  # of the node: a message is a dead letter soon
RETRY_SECONDS = 1.0
DELAY_SECONDS = (0.3, 1.5)
LOT = 8  # messages in which each trouble comes once; one more where it may be killed
REMEMBERED = 1_000  # messages of a receiver that came lately, and may come again
REFUSALS = ("the printer is out of paper", "no database", "the bank does not answer")
REJECTIONS = ("no such customer", "an order without an address")


class Kind(enum.Enum):
    """The kind of an act: what a receiver does with a message that it is given."""

    TAKE = "take"
    DELAY = "delay"  # take it, later
    REFUSE = "refuse"  # it fails, and is tried again
    REJECT = "reject"  # it is a dead letter at once
    DIE = "die"  # the receiver's process is killed while it has the message


@dataclass(frozen=True, slots=True)
class Act:
    """One act of a receiver. `seconds`: of a delay; `reason`: of a refusal or a rejection."""

    kind: Kind
    seconds: float = 0.0
    reason: str = ""


TAKE = Act(Kind.TAKE)


class Chaos:
    """The draws of one seed. `mortal`: the receivers that may be killed."""

    def __init__(self, seed: int, mortal: frozenset[str]) -> None:
        self.seed = seed
        self._mortal = mortal

    def acts(self, receiver: str, number: int) -> tuple[Act, ...]:
        """Return what a receiver does with a message by its number, each time that it is given it.

        Each kind of trouble comes once in so many messages, in an order that is drawn: nobody has
        to wait for one.
        """
        lot_number, at = divmod(number - 1, LOT + (receiver in self._mortal))
        rng = random.Random(f"{self.seed} {receiver} {lot_number}")
        lot = self._lot(rng, receiver)
        rng.shuffle(lot)
        return lot[at]

    def _lot(self, rng: random.Random, receiver: str) -> list[tuple[Act, ...]]:
        refuse = Act(Kind.REFUSE, reason=rng.choice(REFUSALS))
        delay = Act(Kind.DELAY, seconds=round(rng.uniform(*DELAY_SECONDS), 1))
        lot: list[tuple[Act, ...]] = [
            (TAKE,),
            (TAKE,),
            (TAKE,),
            (delay,),
            (refuse, TAKE),
            (refuse, refuse, TAKE),
            (refuse,) * MAX_ATTEMPTS,
            (Act(Kind.REJECT, reason=rng.choice(REJECTIONS)),),
        ]
        if receiver in self._mortal:
            lot.append((Act(Kind.DIE), TAKE))
        assert len(lot) == LOT + (receiver in self._mortal)
        return lot


class Script:
    """The acts of the receivers, as it goes on. Without chaos they take all."""

    def __init__(self, chaos: Chaos | None) -> None:
        self._chaos = chaos
        self._done: dict[
            str, OrderedDict[int, int]
        ] = {}  # receiver -> number -> acts that are done
        # Messages of the sender's that were refused or rejected, and are not final as it knows;
        # and those of them whose receiver was killed since: the node may not have heard it.
        self._answered: dict[str, dict[int, None]] = {}
        self._doubtful: dict[str, dict[int, None]] = {}

    def acts(self, receiver: str, number: int) -> tuple[Act, ...]:
        """Return all that is drawn for a message at a receiver."""
        return (TAKE,) if self._chaos is None else self._chaos.acts(receiver, number)

    def next(self, receiver: str, number: int) -> Act:
        """Return what a receiver does with a message that it is given now."""
        acts = self.acts(receiver, number)
        done = self._done[receiver].get(number, 0) if receiver in self._done else 0
        return acts[done] if done < len(acts) else TAKE

    def given(self, receiver: str, number: int, attempts: int) -> None:
        """A message is given to a receiver, which had so many attempts as the node knows.

        Where its answer was lost with a receiver that was killed, the act is not done.
        """
        doubtful = self._doubtful.get(receiver, {})
        if number in doubtful:
            del doubtful[number]
            done = self._done[receiver].get(number, 0)  # 0: so long ago that it is forgotten
            acts = self.acts(receiver, number)[:done]
            refused = sum(act.kind is Kind.REFUSE for act in acts)
            if acts and (acts[-1].kind is Kind.REJECT or attempts < refused):
                self._done[receiver][number] = done - 1

    def killed(self, receiver: str) -> None:
        """The process of a receiver was killed, perhaps before what it had answered left it."""
        doubtful = self._doubtful.get(receiver, {}) | self._answered.pop(receiver, {})
        self._doubtful[receiver] = dict.fromkeys([*doubtful][-REMEMBERED:])

    def final(self, number: int) -> None:
        """A message is final at all its receivers: what they had answered was heard."""
        for numbers in (*self._answered.values(), *self._doubtful.values()):
            numbers.pop(number, None)

    def did(self, receiver: str, number: int) -> None:
        """The act that was next is done: given the message again, it does the one behind."""
        if number > 0 and self.next(receiver, number).kind in (Kind.REFUSE, Kind.REJECT):
            answered = self._answered.setdefault(receiver, {})
            answered[number] = None
            if len(answered) > REMEMBERED:
                del answered[next(iter(answered))]
        done = self._done.setdefault(receiver, OrderedDict())
        done[number] = done.pop(number, 0) + 1
        if len(done) > REMEMBERED:
            done.popitem(last=False)
