"""What can be read of a damaged log: all that waits in it, and its dead letters.

    python -m examples.salvage FOLDER                       # print it, an object of JSON a line
    python -m examples.salvage FOLDER tcp:127.0.0.1:7410    # send what waits to a new node

FOLDER is a copy of the data folder, of which no node runs. Nothing in it is changed but that SQLite
may fold the write-ahead log in. What a receiver has handled since its progress was stored last is
sent to it again; what cannot be read is said on standard error.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from msgservice import connect
from msgservice.message import Status, decode_messages


class Found(NamedTuple):
    """One message: for whom it waits, or whose dead letter it is and why."""

    receivers: list[str]
    subject: str
    position: int
    body: bytes
    headers: dict[str, str] | None
    id: str | None
    dead: str | None = None


def _complain(text: str) -> None:
    print(f"salvage: {text}", file=sys.stderr)


def salvage(folder: Path) -> Iterator[Found]:
    """Give what waits in a log, in the order in which it was stored, then its dead letters."""
    db = sqlite3.connect(folder / "log.db")
    try:
        yield from _waiting(db)
        yield from _dead(db)
    finally:
        db.close()


def _waiting(db: sqlite3.Connection) -> Iterator[Found]:
    names = dict(
        db.execute(
            "select number, name from receiver join progress on receiver = number where not removed"
        )
    )
    cursors = dict(db.execute("select receiver, cursor from progress"))
    members = {
        n: json.loads(text) for n, text in db.execute("select number, members from audience")
    }
    final: dict[int, list[tuple[int, int]]] = {}
    for receiver, first, last in db.execute(
        "select receiver, first, last from exception where status >= ?", (Status.ACKNOWLEDGED,)
    ):
        final.setdefault(receiver, []).append((first, last))

    def waits(receiver: int, position: int) -> bool:
        settled = final.get(receiver, ())
        return position > cursors[receiver] and not any(a <= position <= b for a, b in settled)

    first, last = db.execute("select min(number), max(number) from batch").fetchone()
    for number in range(first or 1, (last or 0) + 1):
        try:
            row = db.execute(
                "select audience, subject, crc, frame from batch where number = ?", (number,)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            _complain(f"batch {number} cannot be read: {error}")
            continue
        if row is None or row[3] is None:
            continue  # it has gone, or all of its receivers have it
        audience, subject, crc, frame = row
        if crc32(frame) != crc:
            _complain(f"batch {number} is damaged")
            continue
        for index, message in enumerate(decode_messages(frame)):
            at = number << 16 | index
            receivers = [names[m] for m in members[audience] if m in names and waits(m, at)]
            if receivers:
                yield Found(receivers, subject, at, message.body, message.headers, message.id)


def _dead(db: sqlite3.Connection) -> Iterator[Found]:
    for name, subject, position, encoded, reason in db.execute(
        "select name, subject, position, message, reason from dead"
        " join receiver on number = receiver order by receiver, position"
    ):
        (message,) = decode_messages(encoded)
        yield Found([name], subject, position, message.body, message.headers, message.id, reason)


def as_json(found: Found) -> str:
    """Return what was found as a line."""
    told: dict[str, Any] = found._asdict()
    body = told.pop("body")
    try:
        told["text"] = body.decode()
    except UnicodeDecodeError:
        told["base64"] = base64.b64encode(body).decode()
    return msgspec.json.encode(told).decode()


async def send(reactor: Any, folder: Path, node: str) -> None:
    """Send what waits to the receivers that it waits for; the node must know these."""
    client = await connect(reactor, node, name="salvage")
    count = 0
    try:
        for one in salvage(folder):
            if one.dead is None:
                await client.send(
                    one.subject, one.body, to=one.receivers, headers=one.headers, id=one.id
                )
                count += 1
    finally:
        await client.close()
    print(f"{count} message{'' if count == 1 else 's'} sent to {node}")


def main() -> None:
    """Print, or send."""
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit("usage: python -m examples.salvage FOLDER [tcp:127.0.0.1:7410]")
    folder = Path(sys.argv[1])
    if not (folder / "log.db").is_file():
        raise SystemExit(f"salvage: no log.db in {folder}")
    if len(sys.argv) == 3:
        from twisted.internet.task import react

        react(lambda reactor: send_all(reactor, folder, sys.argv[2]))
    for one in salvage(folder):
        print(as_json(one))


def send_all(reactor: Any, folder: Path, node: str) -> Any:
    """Return a Deferred of `send`."""
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(send(reactor, folder, node))


if __name__ == "__main__":
    main()
