"""Plays of attack on a listener with a key for each user, written by bytes (`keys_stage`).

An input is acts until its end, each a byte and what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgservice.core.datagram import wire
from tests.fuzz.choices import Choices
from tests.fuzz.keys_stage import BILLING, MALLORY, NODE, SHOP, USERS, Stage
from tests.simulation.datagram_paths import Address

ACTS_MAX = 40
WAITS = (0.001, 0.03, 0.3, 1.6, 5.0, 31.0, 130.0)
SIZES = (0, 1, 30, 600, 1500, 5000)
STRANGER = ("127.0.9.9", 40_000)
PLACES = (SHOP, BILLING, SHOP, MALLORY, STRANGER)
LETTERS = (
    wire.HELLO,
    wire.COOKIE,
    wire.OPENED,
    wire.RESET,
    wire.MESSAGES,
    wire.ACKNOWLEDGEMENT,
)


def run(data: bytes) -> None:
    """Play one play, and check what must be so after each act."""
    choices = Choices(data)
    stage = Stage()
    for user in stage.users:
        stage.say(user, 1)
    stage.pass_all()
    for _ in range(ACTS_MAX):
        if not choices.left:
            break
        choices.of(ACTS)(stage, choices)
        stage.check()
    stage.finish()


# --- acts -----------------------------------------------------------------------------------------


def say(stage: Stage, choices: Choices) -> None:
    """A user sends a message."""
    stage.say(choices.of((SHOP, BILLING)), choices.of(SIZES))


def pass_on(stage: Stage, choices: Choices) -> None:
    """One datagram arrives, mostly the first."""
    if stage.wire:
        stage.pass_on(choices.below(4) % len(stage.wire))


def pass_some(stage: Stage, choices: Choices) -> None:
    """Many arrive, in order."""
    stage.pass_all(1 + choices.below(60))


def lose(stage: Stage, choices: Choices) -> None:
    """One is lost."""
    if stage.wire:
        stage.wire.pop(choices.below(8) % len(stage.wire))


def wait(stage: Stage, choices: Choices) -> None:
    """Time passes."""
    stage.world.run(choices.of(WAITS))


def haunt(stage: Stage, choices: Choices) -> None:
    """Mallory begins at an address, with one of its keys, and says something."""
    stage.ghost(choices.of(PLACES), choices.byte()).say(choices.of(SIZES))


def go_on(stage: Stage, choices: Choices) -> None:
    """A ghost says more, or does what is due."""
    if stage.ghosts:
        ghost = stage.ghosts[choices.below(len(stage.ghosts))]
        if choices.byte() % 2:
            ghost.say(choices.of(SIZES))
        else:
            ghost.turn()


def leave(stage: Stage, choices: Choices) -> None:
    """A ghost ends its session, and is seen no more."""
    if stage.ghosts:
        ghost = stage.ghosts.pop(choices.below(len(stage.ghosts)))
        ghost.endpoint.close(NODE, stage.world.now)
        ghost.turn()


def repeat(stage: Stage, choices: Choices) -> None:
    """What has arrived arrives again, from anywhere, under any key id, or as one of a train."""
    if not stage.arrived:
        return
    held = stage.arrived[-1 - choices.below(min(len(stage.arrived), 250))]
    datagram = bytearray(held.datagram)
    kind = choices.below(4)
    if kind == 1:
        datagram[2] = choices.below(5)
    source = held.source if kind < 2 else choices.of((*PLACES, NODE))
    segment = 0
    if kind == 3:  # all of one length, as the kernel hands them on, but not of one key
        segment = len(datagram)
        other = bytearray(datagram)
        other[2] = choices.below(5)
        datagram = datagram + other + datagram
    if held.to in stage.world.hosts:
        stage.inject(bytes(datagram), source, held.to, segment)


def forge(stage: Stage, choices: Choices) -> None:
    """Mallory seals what it likes with a key that it has."""
    letter = choices.of(LETTERS)
    to: Address = choices.of((NODE, NODE, SHOP, BILLING))
    identifier = choices.number([s for _, s in stage.node.endpoint.table.sessions])
    key_id = choices.below(5)
    header = wire.HEADER.pack(
        letter, wire.VERSION, key_id, choices.below(2), identifier, choices.number((1, 2, 3))
    )
    source = choices.of((*PLACES, NODE))
    stage.inject(stage.sealed(header, body(stage, choices, letter), choices.byte()), source, to)


def body(stage: Stage, choices: Choices, letter: int) -> bytes:
    """Return a body that fits the letter, mostly."""
    if letter in (wire.HELLO, wire.OPENED):
        terms = wire.TERMS.pack(choices.take(16).ljust(16, b"r"), 24, 16_384, 6000, 700)
        return terms if letter == wire.OPENED else terms + wire.NO_COOKIE
    if letter == wire.COOKIE:
        return choices.take(wire.COOKIE_BYTES).ljust(wire.COOKIE_BYTES, b"c")
    if letter == wire.RESET:
        numbers = [
            number
            for session in stage.node.endpoint.table.sessions.values()
            for number in session.flight.recovery.in_flight
        ]
        return wire.RESET_BODY.pack(choices.number((1, 2, *numbers)))
    if choices.byte() % 2:
        return bytes([wire.CLOSE])
    return wire.encode_run(choices.number((1, 2, 3)), [stage.body(MALLORY, 1)])


def change(stage: Stage, choices: Choices) -> None:
    """A user gets another key."""
    stage.change(choices.of(tuple(USERS)))


def take_out(stage: Stage, choices: Choices) -> None:
    """A key is taken out of the file."""
    stage.take_out(choices.of(tuple(USERS)))


def put_back(stage: Stage, choices: Choices) -> None:
    """Whoever has no key gets one."""
    stage.put_back()


ACTS: tuple[Callable[[Stage, Choices], None], ...] = (
    pass_some,
    say,
    pass_on,
    lose,
    wait,
    haunt,
    go_on,
    leave,
    repeat,
    forge,
    change,
    take_out,
    put_back,
    forge,
    haunt,
    go_on,
)


def act(of: Callable[[Stage, Choices], None], *more: int) -> bytes:
    """Return the bytes of an act."""
    return bytes([ACTS.index(of), *more])


def seeds() -> Iterator[bytes]:
    """Each act behind each other, ghosts at every place, each letter forged everywhere."""
    for first in range(len(ACTS)):
        for second in range(len(ACTS)):
            yield bytes([first, 1, 2, 1, second, 2, 1, 3, 0, 40])
    for place in range(len(PLACES)):
        ghost = act(haunt, place, 0, 1) + act(pass_some, 40)
        more = act(go_on, 0, 1, 2) + act(pass_some, 40)
        yield ghost + more + act(say, 0, 1) + act(pass_some, 40) + act(leave, 0)
        for number in range(3):
            changes = act(change, number) + act(haunt, place, 1, 1)
            yield ghost + changes + more + act(take_out, number) + act(haunt, place, 2, 1) + more
    for letter in range(len(LETTERS)):
        for key_id in range(5):
            forged = act(forge, letter, 0, 129, 4, key_id, 1, 129, 4, 0, 1, 1)
            yield act(haunt, 0, 0, 1) + act(pass_some, 40) + forged * 3 + act(say, 0, 2)
