"""The messages that one turn of a client's program hands over, gathered into runs.

Messages of one subject and one set of options share a run, also when others were sent between
them: no order is promised among subjects. Within a subject the order holds, so another set of
options begins another run. A run is cut when it is full; the rest when it is taken.

Called by `client`; calls nothing but values. Sequences are given later (`client.hop`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from math import ceil
from typing import Any, Literal, NamedTuple

import msgspec
from twisted.internet.defer import Deferred

from msgservice.arguments import check_flags
from msgservice.client.handed import HandedRun
from msgservice.client.promise import Promise
from msgservice.client.receipt import Receipt
from msgservice.codecs import encode_content
from msgservice.core import features
from msgservice.core.features import missing_for
from msgservice.core.runs import Run, producer_run
from msgservice.core.subjects import check_key, check_name, check_subject, exact, is_reserved
from msgservice.errors import (
    BadName,
    BadSubject,
    BadValue,
    MessageTooLarge,
    NotSupported,
    Refused,
)
from msgservice.limits import MESSAGE_OVERHEAD, NAME_BYTES_MAX, TIME_DAYS_MAX, Limits
from msgservice.message import (
    ARRAY_HEADER_MAX,
    FLAG_REQUIRE,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    PLAIN,
    Headers,
    RunOptions,
    WireMessage,
    encode_bodies,
    encode_mixed,
    options_of,
    plain,
)

# As long as runs are cut often enough to keep node and receivers busy side by side, longer ones
# save little: what is left per run is below a tenth of what a Deferred per message costs.
RUN_MESSAGES = 200
ONE_CONTENT = (str, bytes, bytearray, memoryview, Mapping)  # what a list of them is mistaken for
MAX_BATCH = "max_batch, of the node and of who sends"
BARE_OVERHEAD = 6  # bytes of a message beside its body, at most, when it is nothing but a body

_encode = msgspec.msgpack.Encoder(enc_hook=plain).encode


class Prepared(NamedTuple):
    """One message, checked: a bare body, or an encoded message; and its size in a run."""

    item: bytes | msgspec.Raw
    size: int


class Gather:
    """A run that is growing: what `send` adds to."""

    __slots__ = (
        "bare",
        "due_at",
        "ids",
        "items",
        "limit",
        "options",
        "plain",
        "promise",
        "promised_until",
        "size",
        "subject",
        "ttl",
        "until",
        "waiters",
    )

    def __init__(
        self,
        subject: str,
        options: RunOptions,
        limit: int,
        *,
        plain: bool,
        ttl: float | None = None,
        until: int | None = None,
        due_at: int | None = None,
        promise: Promise | None = None,
        promised_until: int | None = None,
    ) -> None:
        self.promise = promise  # as the program says it
        self.promised_until = promised_until  # when it is over, ms by the client's clock
        self.due_at = due_at  # when it is to be delivered, ms by the client's clock
        self.subject, self.options = subject, options
        # Nothing is asked for that `send` does not do by itself, but for `ttl` and `promise`.
        self.plain = plain
        self.ttl = ttl  # as the program says it; that of the options is in ms
        self.until = until  # when it expires, ms by the client's clock
        self.limit = limit  # bytes
        self.size = ARRAY_HEADER_MAX
        self.items: list[Any] = []
        self.bare = True
        self.waiters: list[Deferred[Receipt]] = []
        self.ids: dict[int, str] | None = None

    def add(
        self, item: bytes | msgspec.Raw, size: int, own_id: str | None, waiter: Deferred[Receipt]
    ) -> None:
        """Add a message; the caller looks whether it fits."""
        if type(item) is not bytes:
            self.bare = False
        if own_id is not None:
            if self.ids is None:
                self.ids = {}
            self.ids[len(self.items)] = own_id
        self.items.append(item)
        self.waiters.append(waiter)
        self.size += size

    def run(self) -> Run:
        """Return the run."""
        items = self.items
        messages = encode_bodies(items) if self.bare else encode_mixed(items)
        cost = self.size - ARRAY_HEADER_MAX
        promise = self.options.promise
        handed = HandedRun(
            self.subject, len(items), self.waiters, self.ids, cost=cost, promise=promise
        )
        run = producer_run(0, len(items), self.subject, messages, self.options, handed)
        if self.until is not None or self.due_at is not None:
            run.expires_at, run.due_at = self.until, self.due_at
        if promise is not None:
            run.promised_until = self.promised_until
        return run


class Gathering:
    """Messages that were handed over and not taken yet, in the order in which they may be sent."""

    def __init__(
        self,
        limits: Limits,
        window_messages: int,
        *,
        require: bool,
        now: Callable[[], int] = lambda: 0,
    ) -> None:
        self._now = now  # ms, for what expires
        self.open: dict[str, Gather] = {}  # by subject
        self._default = options_of(FLAG_REQUIRE if require else 0)
        self._limits = limits
        self.whole: list[Run] = []  # that grow no more
        self._subjects: set[str] = set()  # well-formed ones
        # Of the node that was reached last: until there was one, all that this side knows.
        self._features: Collection[str] = features.ALL
        self._run_bytes = self._body_bytes = 0
        self.begin_bytes = -1  # of a plain body that `begin` takes, at most; -1: it takes none
        self.are_timed = False  # of those that are open, some count from their turn
        self.run_messages = min(RUN_MESSAGES, limits.batch_messages, window_messages)
        self.fit(limits.max_batch)

    # --- getters

    def __bool__(self) -> bool:
        return bool(self.whole or self.open)

    def limit_of(self, options: RunOptions = PLAIN) -> int:
        """Bytes of a run's messages; a long `to` takes its room from them."""
        if options is PLAIN:
            return self._run_bytes
        return self._run_bytes - options.excess_bytes

    # --- verbs

    def offered(self, named: Collection[str]) -> None:
        """The node has these features: what needs another fails from now on, before it waits."""
        self._features = named

    def fit(self, max_batch: int) -> None:
        """The node takes runs of so many bytes."""
        self._run_bytes = min(max_batch, self._limits.max_batch)
        self._body_bytes = self._run_bytes - MESSAGE_OVERHEAD
        if self._default is PLAIN and self.run_messages > 1:
            most = self._run_bytes - ARRAY_HEADER_MAX - BARE_OVERHEAD
            self.begin_bytes = min(self._body_bytes, most)
        for gather in self.open.values():
            gather.limit = self.limit_of(gather.options)

    def begin(self, subject: str, body: bytes, waiter: Deferred[Receipt]) -> bool:
        """Let a run grow from a plain body of a subject that has none; False: see `gather`.

        For one message that comes alone, whose subject and options were looked at before; of
        `begin_bytes` at most.
        """
        if type(subject) is not str or subject not in self._subjects:
            return False
        new = self.open[subject] = Gather(subject, PLAIN, self._run_bytes, plain=True)
        new.items.append(body)
        new.waiters.append(waiter)
        new.size += len(body) + BARE_OVERHEAD
        return True

    def gather(
        self,
        subject: str,
        options: RunOptions,
        ttl: float | None = None,
        promise: Promise | None = None,
    ) -> Gather:
        """Return the growing run for these; what grew there with other options is cut."""
        found = self.open.get(subject)
        if found is not None:
            if found.options == options:
                return found
            self.cut(found)
        if options is self._default:
            new = self.open[subject] = Gather(subject, options, self._run_bytes, plain=True)
            return new
        until = due_at = None
        plain = options == self._default
        if options.ttl is not None or options.delay is not None:
            until, due_at = self._times(options)
            is_plain = options.to is None and options.flags == self._default.flags
            plain = is_plain and ttl is not None and due_at is None
        promised_until = None
        if options.promise is not None:
            promised_until = self._now() + options.promise.within
            is_plain = options.to is None and options.flags == self._default.flags
            plain = is_plain and promise is not None and due_at is None
        self.are_timed = self.are_timed or not (until is due_at is promised_until is None)
        new = self.open[subject] = Gather(
            subject,
            options,
            self.limit_of(options),
            plain=plain,
            ttl=ttl,
            until=until,
            due_at=due_at,
            promise=promise,
            promised_until=promised_until,
        )
        return new

    def _times(self, options: RunOptions) -> tuple[int | None, int | None]:
        """Return when a run of now expires, and when it is due: both count from one moment."""
        now = self._now()
        return (
            None if options.ttl is None else now + options.ttl,
            None if options.delay is None else now + options.delay,
        )

    def cut_expiring(self) -> None:
        """The turn is over: times are as of its turn, and no run that has one grows on."""
        self.are_timed = False
        for gather in [
            one for one in self.open.values() if one.until or one.due_at or one.promised_until
        ]:
            self.cut(gather)

    def cut(self, gather: Gather) -> None:
        """The run is closed: it grows no more."""
        del self.open[gather.subject]
        self.whole.append(gather.run())

    def alone(self, subject: str, options: RunOptions) -> Gather:
        """Return a run for one message that shares none: what grew for its subject is cut."""
        before = self.open.get(subject)
        if before is not None:
            self.cut(before)
        return self.gather(subject, options)

    def put(self, run: Run) -> None:
        """Add a run that is whole already, behind what its subject has."""
        before = self.open.get(run.subject)
        if before is not None:
            self.cut(before)
        self.whole.append(run)

    def take(self, *, only_cut: bool = False) -> list[Run]:
        """Return the runs, those of each subject in order."""
        runs, self.whole = self.whole, []
        if not only_cut:
            for gather in self.open.values():
                runs.append(gather.run())
            self.open.clear()
        return runs

    # --- checks: each raises the error that names what is wrong

    def check_subject(self, subject: str) -> str:
        """Return the `exact` subject; `BadSubject` unless messages may be sent to it."""
        subject = exact(subject, "subject")
        if subject in self._subjects:
            return subject
        check_subject(subject)
        if is_reserved(subject):
            raise BadSubject(subject, "'$' begins the node's own subjects")
        if len(self._subjects) >= self._limits.subjects:
            self._subjects.clear()
        self._subjects.add(subject)
        return subject

    def check_key(self, key: str) -> str:
        """Return the `exact` idempotency key; `BadName`, or `NotSupported` by the node."""
        key = check_key(key)
        if features.KEYS not in self._features:
            raise NotSupported(f"{features.KEYS!r} at this node")
        return key

    def options(
        self,
        to: Sequence[str] | None,
        require: bool | None,
        ttl: float | None = None,
        retain: bool | Literal["only"] = False,
        delay: float | None = None,
        promise: Promise | None = None,
    ) -> RunOptions:
        """Return the options of a run, names `exact`; `BadName` unless all may be receivers.

        `ttl`, `delay` in seconds; `BadValue` for one that cannot be. `NotSupported` where the node
        does not offer them.
        """
        options = self._options(to, require, retain)
        if ttl is not None:
            options = RunOptions(options.to, milliseconds("ttl", ttl), flags=options.flags)
        if delay is not None and (least := milliseconds("delay", delay)):
            if options.ttl is not None and options.ttl <= least:
                raise BadValue(
                    "ttl",
                    f"of {ttl:g} s is over when the delay of {delay:g} s is: it must be above it",
                )
            options = RunOptions(options.to, options.ttl, least, options.flags)
        if promise is not None:
            if not isinstance(promise, Promise):
                raise BadValue("promise", f"is a Promise, not {promise!r}")
            if options.delay is not None:
                raise Refused("a promise and a delay together are not supported by this version")
            if options.flags & FLAG_RETAIN_ONLY:
                raise Refused(
                    "a promise beside retain='only', which delivers to nobody now: nobody could"
                    " keep it"
                )
            options = msgspec.structs.replace(options, promise=promise.option)
        missing = missing_for(options, self._features)
        if missing is not None:
            raise NotSupported(f"{missing!r} at this node")
        return options

    def _options(
        self, to: Sequence[str] | None, require: bool | None, retain: bool | Literal["only"]
    ) -> RunOptions:
        if require is None:
            flags = self._default.flags
        else:
            check_flags(require=require)
            flags = FLAG_REQUIRE if require else 0
        if retain:
            if to is not None:
                raise Refused("what is retained is for who receives its subject: not with `to`")
            flags |= FLAG_RETAIN
            if retain == "only":
                flags |= FLAG_RETAIN_ONLY
            elif retain is not True:
                raise Refused(f"retain is True or 'only', not {retain!r}")
        if to is None:
            return options_of(flags)
        if isinstance(to, str):
            raise BadName(to, "`to` is a list of names")
        if not to:
            raise Refused("`to` names nobody")
        return RunOptions(tuple([check_name(name) for name in to]), flags=flags)

    def prepare(
        self,
        content: Any,
        headers: Headers | None,
        own_id: str | None,
        limit: int,
        key: str | None = None,
    ) -> Prepared:
        """Return the message; `MessageTooLarge`, or `TypeError` where content has no form."""
        checked = _checked_headers(headers)
        body, headers = encode_content(content, checked)
        if len(body) > self._body_bytes:
            raise MessageTooLarge(len(body), self._body_bytes, MAX_BATCH)
        if not headers and own_id is None and key is None:
            size = len(body) + BARE_OVERHEAD
            item: bytes | msgspec.Raw = body
        else:
            if headers is not checked:  # a codec has said more
                headers = _checked_headers(headers)
            if own_id is not None:
                own_id = _checked_id(own_id)
            item = msgspec.Raw(_encode(WireMessage(body, headers, own_id, key)))
            size = len(memoryview(item))
        if size > limit - ARRAY_HEADER_MAX:
            raise MessageTooLarge(size, limit - ARRAY_HEADER_MAX, MAX_BATCH)
        return Prepared(item, size)

    def prepare_run(
        self,
        subject: str,
        bodies: Sequence[Any],
        options: RunOptions,
        headers: Headers | None,
    ) -> list[Run]:
        """Return the runs of a `send_many`: one, unless that would be too large.

        `TypeError` for one content in place of a list of them, whose letters or keys would be sent,
        and for what has no length.
        """
        if isinstance(bodies, ONE_CONTENT) or not isinstance(bodies, Sized):
            raise TypeError(f"bodies is a list of contents, not {type(bodies).__name__}")
        limit = self.limit_of(options)
        count_max = self._limits.batch_messages
        if not headers and bodies and len(bodies) <= count_max:
            size = _bytes_in(bodies)
            # Less than a run, so that none of them is too large for a message either.
            if 0 < size <= limit - MESSAGE_OVERHEAD - len(bodies) * BARE_OVERHEAD:
                return self._expiring(
                    [_whole_run(subject, len(bodies), encode_bodies(bodies), options)]
                )
        runs: list[Run] = []
        items: list[bytes | msgspec.Raw] = []
        filled = ARRAY_HEADER_MAX
        for content in bodies:
            item, size = self.prepare(content, headers, None, limit)
            if items and (filled + size > limit or len(items) >= count_max):
                runs.append(_whole_run(subject, len(items), encode_mixed(items), options))
                items, filled = [], ARRAY_HEADER_MAX
            items.append(item)
            filled += size
        if items:
            runs.append(_whole_run(subject, len(items), encode_mixed(items), options))
        return self._expiring(runs)

    def _expiring(self, runs: list[Run]) -> list[Run]:
        """Say of runs with a ttl, a delay or a promise when that is over: it counts from now."""
        for run in runs:
            if run.options.promise is not None:
                run.promised_until = self._now() + run.options.promise.within
            if run.options.ttl is not None or run.options.delay is not None:
                run.expires_at, run.due_at = self._times(run.options)
        return runs


def milliseconds(name: str, seconds: float) -> int:
    """Return a time that a message may wait in ms; `BadValue` names the field and the limit."""
    most = TIME_DAYS_MAX * 24 * 3600
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise BadValue(name, f"is a number of seconds, not {seconds!r}")
    if not 0 <= seconds <= most:  # nor what is no number
        raise BadValue(name, f"is 0 to {TIME_DAYS_MAX} days in seconds, not {seconds!r}")
    return ceil(seconds * 1000)


def check_message(
    subject: str,
    content: Any,
    *,
    to: Sequence[str] | None,
    headers: Headers | None,
    own_id: str | None,
    key: str | None = None,
    retain: bool | Literal["only"] = False,
    delay: float | None = None,
    limits: Limits,
    ttl: float | None = None,
    promise: Promise | None = None,
) -> None:
    """Raise what `send` fails with before it sends, whichever node it would be; see `Client`."""
    gathering = Gathering(limits, limits.window_messages, require=False)
    gathering.check_subject(subject)
    check_alone(key, promise)
    limit = gathering.limit_of(gathering.options(to, None, ttl, retain, delay, promise))
    gathering.prepare(
        content, headers, own_id, limit, None if key is None else gathering.check_key(key)
    )


def check_alone(key: str | None, promise: Promise | None) -> None:
    """Raise `Refused` for a promise beside a key: a repeat's would be about another's message."""
    if key is not None and promise is not None:
        raise Refused("a promise and a key together are not supported by this version")


def _whole_run(subject: str, count: int, messages: bytes, options: RunOptions) -> Run:
    handed = HandedRun(subject, count, None, cost=len(messages), promise=options.promise)
    return producer_run(0, count, subject, messages, options, handed)


def _bytes_in(bodies: Sequence[Any]) -> int:
    """The total size of these in bytes; 0 if not all of them are bytes."""
    try:
        return len(b"".join(bodies))  # tells both in half the time that two looks would take
    except TypeError:
        return 0


def _checked_headers(headers: Headers | None) -> Headers | None:
    if not headers:
        return None
    if not isinstance(headers, Mapping):
        raise Refused(f"headers: a dict of names and values, not {type(headers).__name__}")
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise Refused(f"header {name!r}: names and values are text")
        name, value = exact(name), exact(value)
        try:
            name.encode()
            value.encode()
        except UnicodeEncodeError:
            raise Refused(f"header {name!r} is no UTF-8") from None
        checked[name] = value
    return checked


def _checked_id(own_id: str) -> str:
    own_id = exact(own_id, "id")
    try:
        size = len(own_id.encode())
    except UnicodeEncodeError:
        raise BadName(own_id, "it is no UTF-8", "id") from None
    if not 1 <= size <= NAME_BYTES_MAX:
        raise BadName(own_id, f"an id has 1 to {NAME_BYTES_MAX} bytes, not {size}", "id")
    return own_id
