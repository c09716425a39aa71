"""The options of a receiver: one frozen value, and all that other places derive from its fields.

`ReceiverOptions` goes whole from where it is said (a `[[receiver]]` of the configuration,
`$node.receivers.add`, the command line) to the row of the receiver, and through the log. A field
says here, once, its name, type, default, check and help. Keys of the configuration, columns of the
log, what `$node.receivers.*` ask, options of `msgservice receivers` and the rows of
docs/configuration.md come from `OPTIONS`. A new one is a field here, its column in a migration
(`log/schema.py`), and whoever acts on it.

Not here: what identifies a receiver (name, address, subjects) and its progress, which are in
`records.ReceiverRow`; and its rate, which is no part of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args

import msgspec

from msgservice.errors import BadValue
from msgservice.limits import (
    INTEGER_MAX,
    WINDOW_BYTES_MAX,
    WINDOW_MESSAGES_MAX,
    Limits,
)
from msgservice.message import plain

ORDERS = STRICT, NONE = "strict", "none"
# Options that a node has a limit for, by the same name: it holds where a receiver's own is 0.
OF_NODES = ("backlog_bytes", "away_max", "max_attempts", "retry_delay_min", "retry_delay_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The facts of an option besides its name, type and default."""

    help: str  # one sentence, for the command line and the docs alike
    choices: tuple[str, ...] = ()  # of a text; none: any
    lowest: int = 0  # of a number
    highest: int = INTEGER_MAX
    unit: str | None = None  # of a number, on the command line
    key: tuple[str, ...] = ()  # in a [[receiver]], where that is not its name
    column: str = ""  # in the log, where that is not its name
    added: bool = True  # whether `$node.receivers` takes and tells it, and the command line ...
    changed: bool = True  # ... and `$node.receivers.change`
    configured: bool = True  # whether a [[receiver]] may say it


class ReceiverOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one receiver. A value may be wrong until it was checked (`check`)."""

    order: Annotated[
        str,
        About(
            help="Messages of one sender and subject in the order sent (strict), or each"
            " acknowledged alone (none).",
            choices=ORDERS,
            column="ordering",
        ),
    ] = STRICT
    on_full: Annotated[
        str,
        About(
            help="When too much waits for it: refuse new messages for it, or leave it out of them"
            " until it has caught up (suspend).",
            choices=("refuse", "suspend"),
        ),
    ] = "refuse"
    backlog_bytes: Annotated[
        int,
        About(
            help="How much may wait for it, in bytes; 0: as the node's configuration says.",
            unit="BYTES",
        ),
    ] = 0
    paused: Annotated[
        bool,
        # Changed by `pause` and `resume`, which also end and begin its connection.
        About(help="Keep its messages, send none until resumed.", changed=False),
    ] = False
    away_max: Annotated[
        int,
        # What the configuration has stays as long as it is there.
        About(
            help="How many seconds it may be away until it is removed; 0: as the node's"
            " configuration says.",
            unit="SECONDS",
            configured=False,
        ),
    ] = 0
    shared: Annotated[
        bool,
        # What a connection has in flight is counted otherwise: it is made so, and stays so.
        About(
            help="Several connections share its messages, each of which goes to one of them; only"
            " with the order none.",
            changed=False,
        ),
    ] = False
    max_attempts: Annotated[
        int,
        About(
            help="After how many attempts a message is a dead letter; 0: as the node's"
            " configuration says.",
            unit="ATTEMPTS",
        ),
    ] = 0
    retry_delay_min: Annotated[
        int,
        About(
            help="How many seconds it is until the second attempt, and twice as many before each"
            " that follows; 0: as the node's configuration says.",
            unit="SECONDS",
        ),
    ] = 0
    retry_delay_max: Annotated[
        int,
        About(
            help="How many seconds it is between two attempts at most; 0: as the node's"
            " configuration says.",
            unit="SECONDS",
        ),
    ] = 0
    window_messages: Annotated[
        int | None,  # None: what the receiver says in its HELLO
        About(
            help="How many messages it takes unanswered.",
            lowest=1,
            highest=WINDOW_MESSAGES_MAX,
            key=("window", "messages"),
            added=False,
            changed=False,
        ),
    ] = None
    window_bytes: Annotated[
        int | None,
        About(
            help="How many bytes of them it takes unanswered.",
            lowest=1,
            highest=WINDOW_BYTES_MAX,
            key=("window", "bytes"),
            added=False,
            changed=False,
        ),
    ] = None

    def check(self) -> ReceiverOptions:
        """These options, if they can be a receiver's; else `BadValue` names the first wrong.

        Each is of its own type then, not of a class derived from that.
        """
        exact = {}
        for option in OPTIONS:
            value = getattr(self, option.name)
            if isinstance(value, option.kind) and type(value) not in (option.kind, bool):
                exact[option.name] = value = plain(value)
            wrong = option.wrong(value, repr)
            if wrong is not None:
                raise BadValue(option.name, wrong)
        if self.shared and self.order != NONE:
            raise BadValue("order", f"must be {NONE!r} where `shared` is true, not {self.order!r}")
        return msgspec.structs.replace(self, **exact) if exact else self

    def check_against(self, limits: Limits, names: Iterable[str] = OF_NODES) -> None:
        """Raise `BadValue` where what it has of its own could not be the node's either.

        `names`: of these.
        """
        replace(limits, **{name: own for name in names if (own := getattr(self, name))})

    def changed(self, changes: dict[str, Any]) -> ReceiverOptions:
        """These options with those `changes` that are not None, checked."""
        given = {name: value for name, value in changes.items() if value is not None}
        for name in given:
            if name not in CHANGED:
                raise BadValue(name, "is no option that can be changed")
        return msgspec.structs.replace(self, **given).check()


KINDS: dict[type, str] = {str: "a string", int: "an integer", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: a field of `ReceiverOptions` with all that is known of it."""

    name: str
    kind: type  # str, int or bool
    default: Any  # None: nothing is said, and null in the log
    about: About
    key: tuple[str, ...]  # in a [[receiver]]
    column: str  # of the table of receivers

    @property
    def asked(self) -> Any:
        """The type of this option in a request: an integer is bounded by what it may be."""
        if self.kind is not int:
            return self.kind
        return Annotated[int, msgspec.Meta(ge=self.about.lowest, le=self.about.highest)]

    def wrong(self, value: Any, shown: Callable[[Any], str]) -> str | None:
        """Return why this value cannot be, with texts as `shown` shows them; None if it can."""
        about = self.about
        if about.choices and value not in about.choices:
            allowed = " or ".join(shown(choice) for choice in about.choices)
            return f"must be {allowed}, not {shown(value)}"
        if value is None and self.default is None:
            return None
        kind = type(value)  # not of a class derived from it, as bool is from int
        if kind is not self.kind:
            return f"must be {KINDS[self.kind]}, not {shown(value)}"
        if self.kind is int and not about.lowest <= value <= about.highest:
            return f"must be from {about.lowest} to {about.highest}, not {value}"
        return None


def _option(field: msgspec.structs.FieldInfo) -> Option:
    declared, about = get_args(field.type)
    return Option(
        name=field.name,
        kind=next(kind for kind in (*get_args(declared), declared) if isinstance(kind, type)),
        default=field.default,
        about=about,
        key=about.key or (field.name,),
        column=about.column or field.name,
    )


OPTIONS = tuple(_option(field) for field in msgspec.structs.fields(ReceiverOptions))
ADDED = tuple(option for option in OPTIONS if option.about.added)
CONFIGURED = tuple(option for option in OPTIONS if option.about.configured)
CHANGED = frozenset(option.name for option in OPTIONS if option.about.changed)
DEFAULTS = ReceiverOptions()
