"""Troubles of a node and its receivers, as people are told of them: why, and what would help.

Pure functions of values that were looked at; the looking is the business of `observe`. A health is
computed from facts here, and kept nowhere (DELIVERY 51).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Protocol

import msgspec

from msgservice.administration import ReceiverState, Trouble
from msgservice.records import ReceiverRow, Room
from msgservice.transport.addresses import is_url

UP, AWAY, PROBING, FAILING, PAUSED, SUSPENDED, FULL = (
    "up",
    "away",
    "probing",
    "failing",
    "paused",
    "suspended",
    "full",
)
LETTERS = "dead_letters"
HEALTHS = (UP, AWAY, PROBING, FAILING, PAUSED, SUSPENDED, FULL)


class Facts(Protocol):
    """The facts of a receiver that its health is computed from."""

    @property
    def paused(self) -> bool:
        """Whether it gets nothing until it is resumed."""

    @property
    def suspended(self) -> bool:
        """Whether it is left out of what is stored now."""

    @property
    def refuses(self) -> bool:
        """Whether messages for it are refused."""

    @property
    def connected(self) -> bool:
        """Whether it has a connection."""


def health_of(facts: Facts, *, probing: bool = False, failing: bool) -> str:
    """Return the health of a receiver: of what is true of it, what matters most.

    `probing`: it gets one message at a time, to see which one its connections are lost of.
    `failing`: it has failed with something, or does not get on.
    """
    if facts.paused:
        return PAUSED
    if facts.suspended:
        return SUSPENDED
    if facts.refuses:
        return FULL
    if not facts.connected:
        return AWAY
    if probing:
        return PROBING
    return FAILING if failing else UP


class Dialling(Protocol):
    """The connector of a receiver that the node dials. It may have `IConnector`'s attributes."""

    @property
    def last_error(self) -> str | None:
        """Why it was not reached, the last time, or why what is reached takes nothing."""

    @property
    def next_attempt_in(self) -> float | None:
        """Seconds until that is tried again, or None."""


def dialled_again(address: str) -> str:
    """Return what would help where a receiver is not reached."""
    return f"The node dials {address} again by itself: see that it listens there."


def tried_again(address: str) -> str:
    """Return what would help where a web address is reached, and takes nothing."""
    return f"The node tries {address} again by itself: see what answers there."


def needs_of(row: ReceiverRow, link: Dialling | None) -> str:
    """Return what would help a receiver that is not reached, where trying again alone does not.

    Empty where it may, or nothing is wrong.
    """
    if row.address is None or row.options.paused:
        return ""
    if link is None:
        return "It is not dialled: give it another address, or mend what is said of this one."
    if allowing := getattr(link, "forbidden", ""):
        return (
            f"Add the network of {row.address} to {allowing} and start the node anew, or give it"
            " another address."
        )
    if getattr(link, "is_by_certificate", False):
        return f"Mend the certificates, here or at {row.address}: trying again alone does not."
    return ""


def troubles_of(
    state: ReceiverState, since: int | None, dead_since: int | None = None
) -> Sequence[Trouble]:
    """Return the troubles of a receiver, the worst first.

    `since`: when its health began to be what it is, wall clock, ms; None: not known. `dead_since`:
    when it had its first dead letter, likewise.
    """
    looked = (_unaccounted(state), _kept_out(state), _delivery(state), _letters(state))
    times = {state.health: since, LETTERS: dead_since}
    return [
        msgspec.structs.replace(trouble, since=times.get(trouble.kind))
        for trouble in looked
        if trouble is not None
    ]


def well(state: ReceiverState) -> str:
    """Return how a receiver without trouble is, in a sentence."""
    where = "is connected" if state.connected else "is away"
    if not state.queued:
        return f"{state.name} {where}, and nothing waits for it."
    oldest = f" The oldest is log:{state.oldest.position}." if state.oldest else ""
    return f"{state.name} {where}, and gets what waits for it: {_waiting(state)}.{oldest}"


def _unaccounted(state: ReceiverState) -> Trouble | None:
    if not state.unaccounted:
        return None
    return Trouble(
        kind="unaccounted",
        sentence=f"{state.unaccounted:,} messages for {state.name} are in no account.",
        help="This must not be: keep a copy of the log, and report it.",
        command=_command("receivers", "list"),
    )


def _command(*words: str) -> str:
    return shlex.join(["msgservice", *words])


def _waiting(state: ReceiverState) -> str:
    if not state.queued:
        return "Nothing waits"
    return f"{state.queued:,} messages wait" if state.queued != 1 else "1 message waits"


def _kept_out(state: ReceiverState) -> Trouble | None:
    """The trouble that so much waits for a receiver that more is not taken for it."""
    limit = getattr(state, "backlog_bytes", 0)
    if state.suspended:
        return Trouble(
            kind=SUSPENDED,
            sentence=f"Messages that are sent now are not for {state.name}:"
            f" {_waiting(state)} for it, {state.queued_bytes:,} bytes, and its limit is {limit:,}.",
            help="It is let in again when half of that is gone; what it was left out of can be"
            " sent to it then.",
            command=_command("rewind", state.name, "--suspended"),
        )
    if state.refuses:
        return Trouble(
            kind=FULL,
            sentence=f"Messages for {state.name} are refused, and their senders keep them:"
            f" {state.queued_bytes:,} bytes wait for it, and its limit is {limit:,}.",
            help="Bring it back; or raise its limit, or cancel what waits for it.",
            command=_command("receivers", "change", state.name, "--backlog-bytes", str(2 * limit)),
        )
    return None


def _delivery(state: ReceiverState) -> Trouble | None:
    """The trouble that what waits for a receiver does not get there."""
    name = state.name
    why = f": {state.last_error}" if state.last_error else ""
    if state.paused:
        return Trouble(
            kind=PAUSED,
            sentence=f"{name} gets nothing{why or ', it is paused'}. {_waiting(state)} for it.",
            help="Resume it when it may go on.",
            command=_command("receivers", "resume", name),
            is_severe=bool(state.queued),
        )
    if not state.connected:
        if not state.queued and not (state.address and why):
            return None
        help_ = (
            (state.needs or dialled_again(state.address))
            if state.address
            else "It attaches by itself: start it."
        )
        return Trouble(
            kind=AWAY,
            sentence=f"{name} is away{why}. {_waiting(state)} for it.",
            help=help_,
            command=_command("peek", name) if state.queued else "",
            is_severe=bool(state.queued),
        )
    if state.last_error and not state.attempts and state.address and is_url(state.address):
        # No attempt was counted, so it is no message that fails: the endpoint takes none.
        return Trouble(
            kind=FAILING,
            sentence=f"{name} takes nothing{why}. {_waiting(state)} for it.",
            help=state.needs or tried_again(state.address),
            command=_command("receivers", "test", name),
        )
    if state.attempts or state.last_error:
        where = f" ({state.waits.subject}, log:{state.waits.position})" if state.waits else ""
        tried = f", {state.attempts} attempts so far" if state.attempts else ""
        return Trouble(
            kind=FAILING,
            sentence=f"{name} does not get on with a message{where}{tried}{why}",
            help="It is tried again by itself. What comes behind it in its lane waits for it.",
            command=_command("peek", name),
        )
    return None


def _letters(state: ReceiverState) -> Trouble | None:
    if not state.dead:
        return None
    letters, them, their = f"{state.dead:,} dead letters", "them", "their"
    if state.dead == 1:
        letters, them, their = "a dead letter", "it", "its"
    return Trouble(
        kind=LETTERS,
        sentence=f"{state.name} has {letters}, of {state.dead_bytes:,} bytes.",
        help=f"Look at {them}; send {them} again when {their} cause is mended, or drop {them}.",
        command=_command("dead", "list", state.name),
        is_severe=False,
    )


def troubles_of_node(room: Room, *, clock_is_held: bool, looped: int) -> Sequence[Trouble]:
    """Return the troubles of a node itself, the worst first."""
    found = []
    if room.full:
        found.append(
            Trouble(
                kind="log_full",
                sentence=f"Messages are refused, and their senders keep them: {room.full}",
                help="See which receiver is behind; give the disk room, or raise max_bytes.",
                command=_command("receivers", "list"),
            )
        )
    if clock_is_held:
        found.append(
            Trouble(
                kind="clock",
                sentence="The clock is far ahead of when the log was last written: nothing expires,"
                " and nothing that was delayed is sent, for a minute.",
                help="If it is wrong, stop the node now and set it right.",
            )
        )
    if looped:
        found.append(
            Trouble(
                kind="looped",
                sentence=f"{looped:,} messages came back over other nodes, and were not taken.",
                help="Nodes pass on to each other in a circle: that costs, and loses nothing.",
                command=_command("info"),
                is_severe=False,
            )
        )
    return found
