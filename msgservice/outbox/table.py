"""The outbox table, as a program has it: `OutboxTable.enqueue`, in the program's own transaction.

Synchronous, on the connection of the caller, which alone commits or rolls back. What is wrong is
refused here, before a row is written; what becomes of a row is the business of `relay`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from msgservice.arguments import check_kind
from msgservice.client.gathering import ONE_CONTENT, Gathering, check_alone
from msgservice.client.promise import Promise
from msgservice.codecs import encode_content
from msgservice.core.subjects import exact
from msgservice.limits import Limits
from msgservice.message import Headers
from msgservice.outbox.sql import Names, Wording, cursor_of, dialect_of, style_of, values_of

TABLE = "msgservice_outbox"
_INSERT = "insert into {table}(enqueued_at, subject, body, headers, options) values (?, ?, ?, ?, ?)"
_FATE = "select state, receivers, reason, ended_at from {table} where id = ?"


class PromiseAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The promise of a row: the arguments of a `Promise`."""

    within: float
    need: Literal["all", "any"] | int = "all"
    otherwise: Literal["notify", "cancel"] = "notify"


class RowOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The options of a row, as its column `options` says them: those of `Client.send`."""

    to: tuple[str, ...] | None = None
    id: str | None = None
    require: bool | None = None
    idempotency_key: str | None = None
    ttl: float | None = None
    delay: float | None = None
    retain: bool | Literal["only"] = False
    promise: PromiseAsked | None = None


_PLAIN = RowOptions()
_encode = msgspec.json.Encoder().encode


class Fate(NamedTuple):
    """The fate of a row, as far as it is known.

    `state`: `waiting`, `handed` (over: to the relay's outbox, and on to the node), or how it ended:
    `acknowledged` by all receivers; `dead`, `expired`, `cancelled` or `removed` at one at least;
    `refused` by the node, or as nothing that can be sent; `nobody` receives it; `unknown`, where
    no more can be known. `receivers`: the state at each, once it has ended. `reason`: why it was
    not acknowledged. `ended_at`: seconds since the epoch.
    """

    state: str
    receivers: dict[str, str]
    reason: str | None
    ended_at: float | None


class OutboxTable:
    """A table of messages in a database of the user's: `enqueue` writes a row, a `Relay` sends it.

    `name`: of the table, or SCHEMA.NAME; `NAME_relay` stands beside it. `limits`: with `max_batch`
    that of the node, so that what it could not take is refused here. `paramstyle`: of the driver,
    where its connections do not show whose they are. Raises `BadValue` for a name that cannot be.
    """

    def __init__(
        self,
        name: str = TABLE,
        *,
        limits: Limits | None = None,
        paramstyle: str | None = None,
    ) -> None:
        self.names = Names(name)
        limits = Limits() if limits is None else limits
        check_kind(Limits, "Limits are needed", limits=limits)
        self.limits = limits
        self._style = paramstyle
        self._wordings: dict[str, Wording] = {}
        if paramstyle is not None:
            self._wording_of(paramstyle)

    def __repr__(self) -> str:
        return f"<OutboxTable {self.names.name!r}>"

    # --- making it

    def sql(self, dialect: str) -> str:
        """Return the SQL that makes the tables, for migrations: `"sqlite"` or `"postgresql"`."""
        return "".join(f"{made};\n" for made in self.names.made(dialect))

    def create(self, connection: Any, dialect: str | None = None) -> None:
        """Make the tables unless they are there, in the transaction of the caller.

        `dialect`: SQLite's for connections of the standard library, else PostgreSQL's.
        """
        cursor = cursor_of(connection)
        try:
            for made in self.names.made(dialect_of(connection) if dialect is None else dialect):
                cursor.execute(made)
        finally:
            cursor.close()

    # --- in a transaction

    def enqueue(
        self,
        connection: Any,
        subject: str,
        content: Any,
        *,
        to: Sequence[str] | None = None,
        headers: Headers | None = None,
        id: str | None = None,  # noqa: A002 - the name that the field has everywhere
        require: bool | None = None,
        idempotency_key: str | None = None,
        ttl: float | None = None,
        delay: float | None = None,
        retain: bool | Literal["only"] = False,
        promise: Promise | None = None,
    ) -> int:
        """Write one message into the table; return the id of its row, for `fate`.

        On `connection`, of DB-API, in the transaction that it has: nothing is committed here, and a
        rollback leaves nothing. The rest is as for `Client.send`; what has a time (`ttl`, `delay`,
        `promise`) counts from this call, by the clock of this machine.

        Raises what `send` fails with before it sends: `BadSubject`, `BadName`, `MessageTooLarge`,
        `TypeError`, `BadValue`, `Refused`; then no row is written. And what the driver raises.
        """
        row = self._row(
            subject,
            content,
            headers,
            RowOptions(to, id, require, idempotency_key, ttl, delay, retain),  # type: ignore[arg-type]  # `to` is checked there
            promise,
        )
        wording = self._wording(connection)
        cursor = cursor_of(connection)
        try:
            if dialect_of(connection) == "sqlite":
                cursor.execute(wording.say(_INSERT), wording.given(row))
                return int(cursor.lastrowid)
            cursor.execute(wording.say(f"{_INSERT} returning id"), wording.given(row))
            return int(values_of(cursor.fetchone())[0])
        finally:
            cursor.close()

    def enqueue_many(
        self,
        connection: Any,
        subject: str,
        contents: Sequence[Any],
        *,
        to: Sequence[str] | None = None,
        headers: Headers | None = None,
        require: bool | None = None,
        ttl: float | None = None,
        delay: float | None = None,
        promise: Promise | None = None,
    ) -> None:
        """Write some messages of one subject, in this order, as `enqueue` writes one."""
        if isinstance(contents, ONE_CONTENT):
            kind = type(contents).__name__
            raise TypeError(f"contents is a list of contents, not {kind}")
        options = RowOptions(to, None, require, None, ttl, delay)  # type: ignore[arg-type]  # as above
        rows = [self._row(subject, content, headers, options, promise) for content in contents]
        if not rows:
            return
        wording = self._wording(connection)
        cursor = cursor_of(connection)
        try:
            cursor.executemany(wording.say(_INSERT), [wording.given(row) for row in rows])
        finally:
            cursor.close()

    def insert(
        self, subject: str, content: Any, *, paramstyle: str | None = None, **options: Any
    ) -> tuple[str, Sequence[Any] | Mapping[str, Any]]:
        """Return the statement that writes one message, and its parameters, to be executed.

        For connections that are not DB-API's: `await connection.execute(*table.insert(...))`.
        `options` are those of `enqueue`, and so are the errors. `paramstyle`: that of the table, or
        this one.
        """
        style = self._style if paramstyle is None else paramstyle
        check_kind(str, "'qmark', 'format', 'pyformat', 'numeric' or 'named'", paramstyle=style)
        assert style is not None
        headers, promise = options.pop("headers", None), options.pop("promise", None)
        row = self._row(subject, content, headers, RowOptions(**options), promise)
        wording = self._wording_of(style)
        return wording.say(_INSERT), wording.given(row)

    def fate(self, connection: Any, row: int) -> Fate | None:
        """Return what became of the row with this id; None where it is not there (any more)."""
        wording = self._wording(connection)
        cursor = cursor_of(connection)
        try:
            cursor.execute(wording.say(_FATE), wording.given((row,)))
            found = cursor.fetchone()
        finally:
            cursor.close()
        if found is None:
            return None
        state, receivers, reason, ended_at = values_of(found)
        return Fate(
            _text(state),
            {} if receivers is None else msgspec.json.decode(receivers, type=dict[str, str]),
            None if reason is None else _text(reason),
            None if ended_at is None else ended_at / 1000,
        )

    # --- inside

    def _wording(self, connection: Any) -> Wording:
        return self._wording_of(style_of(connection) if self._style is None else self._style)

    def _wording_of(self, style: str) -> Wording:
        wording = self._wordings.get(style)
        if wording is None:
            wording = self._wordings[style] = Wording(self.names, style)
        return wording

    def _row(
        self,
        subject: str,
        content: Any,
        headers: Headers | None,
        options: RowOptions,
        promise: Promise | None,
    ) -> tuple[int, str, bytes, str | None, str | None]:
        """Return the values of a row that can be sent; raises what `enqueue` raises."""
        # Not kept: threads of a program may share this table.
        gathering = Gathering(self.limits, self.limits.window_messages, require=False)
        subject = gathering.check_subject(subject)
        check_alone(options.idempotency_key, promise)
        run_options = gathering.options(
            options.to, options.require, options.ttl, options.retain, options.delay, promise
        )
        key = options.idempotency_key
        if key is not None:
            key = gathering.check_key(key)
        gathering.prepare(content, headers, options.id, gathering.limit_of(run_options), key)
        body, headers = encode_content(content, headers or None)
        own_id = options.id
        asked = RowOptions(
            run_options.to,
            None if own_id is None else exact(own_id, "id"),
            options.require,
            key,
            None if options.ttl is None else float(options.ttl),
            None if options.delay is None else float(options.delay),
            options.retain,
            None
            if promise is None
            else PromiseAsked(float(promise.within), promise.need, promise.otherwise),
        )
        return (
            time.time_ns() // 1_000_000,
            subject,
            bytes(body),
            _encode(_exact(headers)).decode() if headers else None,
            None if asked == _PLAIN else _encode(asked).decode(),
        )


def _text(value: str | bytes) -> str:
    """Return text of a connection that may give its bytes (`text_factory` of SQLite)."""
    return value.decode() if isinstance(value, bytes) else value


def _exact(headers: Headers) -> dict[str, str]:
    return {exact(name): exact(value) for name, value in headers.items()}
