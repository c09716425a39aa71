"""The parcels of a relay: rows of an outbox table, gathered into the runs that are handed over.

Rows of one subject and the same options travel together, in the order of their ids; the runs of a
subject stand in that order. What cannot be sent is told apart, each with its reason. Values only,
made on the thread that has read the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from msgservice.client.gathering import BARE_OVERHEAD, Gathering, check_alone
from msgservice.client.handed import HandedRun
from msgservice.client.promise import Promise
from msgservice.core.reasons import one_line
from msgservice.core.runs import Run, producer_run
from msgservice.errors import BadValue, MsgServiceError
from msgservice.limits import Limits
from msgservice.message import ARRAY_HEADER_MAX, RunOptions, encode_bodies, encode_mixed
from msgservice.outbox.table import RowOptions

# Times of rows that were enqueued within so many ms count from the last of these: each would travel
# alone otherwise.
TIME_GRAIN = 100

_options = msgspec.json.Decoder(RowOptions)
_headers = msgspec.json.Decoder(dict[str, str])
_PLAIN = RowOptions()


class Row(NamedTuple):
    """One row that waits, as it was read; text may be bytes, which may be no UTF-8."""

    id: int
    enqueued_at: int | None  # None: what stands there is no number
    subject: str | bytes
    body: bytes
    headers: str | bytes | None
    options: str | bytes | None


class Parcel(NamedTuple):
    """A run, without sequences, and the ids of the rows in it, in its order."""

    run: Run
    rows: list[int]


class Parcels(NamedTuple):
    """The parcels of some rows; `refused`: the rows that cannot be sent, and why."""

    parcels: list[Parcel]
    refused: list[tuple[int, str]]


class _Growing:
    """A run that grows."""

    def __init__(self, subject: str, options: RunOptions, grain: int, limit: int) -> None:
        self.subject, self.options, self.grain, self.limit = subject, options, grain, limit
        self.size = ARRAY_HEADER_MAX
        self.items: list[bytes | msgspec.Raw] = []
        self.rows: list[int] = []
        self.ids: dict[int, str] = {}
        self.is_bare = True
        self.enqueued_at = 0  # of the last of them

    def add(
        self, row: int, at: int, item: bytes | msgspec.Raw, size: int, own_id: str | None
    ) -> None:
        """Add the message of a row, enqueued then; the caller looks whether it fits."""
        if own_id is not None:
            self.ids[len(self.items)] = own_id
        self.is_bare = self.is_bare and type(item) is bytes
        self.items.append(item)
        self.rows.append(row)
        self.size += size
        self.enqueued_at = max(self.enqueued_at, at)

    def parcel(self) -> Parcel:
        """Return it, whole."""
        items, options = self.items, self.options
        messages = encode_bodies(items) if self.is_bare else encode_mixed(items)
        handed = HandedRun(
            self.subject,
            len(items),
            None,
            self.ids or None,
            cost=len(messages),
            promise=options.promise,
        )
        run = producer_run(0, len(items), self.subject, messages, options, handed)
        if options.ttl is not None:
            run.expires_at = self.enqueued_at + options.ttl
        if options.delay is not None:
            run.due_at = self.enqueued_at + options.delay
        if options.promise is not None:
            run.promised_until = self.enqueued_at + options.promise.within
        return Parcel(run, self.rows)


class Packing:
    """The packing of rows, by the limits of the table and by what the node takes."""

    def __init__(self, limits: Limits) -> None:
        self._gathering = Gathering(limits, limits.window_messages, require=False)

    def pack(self, rows: Sequence[Row], max_batch: int, now: int) -> Parcels:
        """Return the runs of some rows; `max_batch`: bytes, as the node was heard last.

        `now`, ms: no row was enqueued later, whatever clock or SQL has said so.
        """
        gathering = self._gathering
        gathering.fit(max_batch)
        growing: dict[str, _Growing] = {}
        order: list[_Growing] = []
        refused: list[tuple[int, str]] = []
        known: dict[str | bytes, tuple[RowOptions, RunOptions]] = {}
        default = (_PLAIN, gathering.options(None, None))
        for row in rows:
            try:
                if row.options is None:
                    asked, options = default
                else:
                    found = known.get(row.options)
                    if found is None:
                        asked = _options.decode(row.options)
                        found = known[row.options] = asked, self._options_of(asked)
                    asked, options = found
                subject = gathering.check_subject(_text(row.subject))
                if row.enqueued_at is None:
                    raise BadValue("enqueued_at", "is a number: ms since the epoch")
                at = min(max(row.enqueued_at, 0), now)
                limit = gathering.limit_of(options)
                if (
                    row.headers is None
                    and asked.id is None
                    and asked.idempotency_key is None
                    and len(row.body) + BARE_OVERHEAD <= limit // 2
                ):
                    item: bytes | msgspec.Raw = row.body
                    size = len(row.body) + BARE_OVERHEAD
                else:
                    headers = None if row.headers is None else _headers.decode(row.headers)
                    key = asked.idempotency_key
                    item, size = gathering.prepare(row.body, headers, asked.id, limit, key)
            except (MsgServiceError, msgspec.MsgspecError, TypeError, ValueError) as error:
                refused.append((row.id, one_line(str(error))))
                continue
            has_time = options.ttl is not None or options.delay is not None or options.promise
            grain = at // TIME_GRAIN if has_time else 0
            run = growing.get(subject)
            if (
                run is None
                or run.options != options
                or run.grain != grain
                or run.size + size > run.limit
                or len(run.items) >= gathering.run_messages
                or asked.idempotency_key is not None
            ):
                run = growing[subject] = _Growing(subject, options, grain, limit)
                order.append(run)
            run.add(row.id, at, item, size, asked.id)
            if asked.idempotency_key is not None:
                del growing[subject]  # such a message travels alone
        return Parcels([run.parcel() for run in order], refused)

    def _options_of(self, asked: RowOptions) -> RunOptions:
        gathering = self._gathering
        promise = None
        if asked.promise is not None:
            said = asked.promise
            promise = Promise(need=said.need, within=said.within, otherwise=said.otherwise)
        check_alone(asked.idempotency_key, promise)
        if asked.idempotency_key is not None:
            gathering.check_key(asked.idempotency_key)
        return gathering.options(
            asked.to, asked.require, asked.ttl, asked.retain, asked.delay, promise
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
