"""Entries of a log: a play that makes thousands of them, and logs that apply what others decided.

`EntryPlay` hands random groups to a log in memory, lets retention run, and writes down each entry
before it is applied, as bytes: two logs share no object. `Replica` is a log that applies such bytes
and nothing else. `tables` is all that a log says.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from random import Random
from typing import Any

import apsw
import msgspec

from msgservice.core.copies import copies_of_letters
from msgservice.disk.database import rows
from msgservice.errors import LimitReached, Refused
from msgservice.log.base import StoreLog
from msgservice.log.entries import Entry
from msgservice.message import FLAG_RETAIN, Status, WireMessage, encode_messages, options_of
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import (
    LEFT_OUT,
    LOST,
    NOBODY,
    NODE,
    REWIND,
    START,
    Audience,
    Batch,
    Cancel,
    DeadLetter,
    ExceptionRow,
    Group,
    Join,
    KeyUse,
    LettersTaken,
    Origin,
    Progress,
    Promised,
    ReceiverRow,
    Replay,
    ReplayPage,
    StatusFrom,
    Verdict,
    position_of,
)
from tests.kit.limits import Limits
from tests.kit.logs import NOW, Driver, append, make_batch

TABLES = (
    *("meta", "head", "batch", "audience", "receiver", "progress", "exception", "sender"),
    *("finished", "run", "dead", "message_id", "replay", "idempotency", "alias", "retained"),
    *("delayed", "delayed_id", "finished_id", "former", "promise"),
)


class _Pickler(pickle.Pickler):
    """Audiences belong to one log each: they go by what they say."""

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Audience):
            return (value.number, value.members, value.asked_by)
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, log: StoreLog) -> None:
        super().__init__(io.BytesIO(data))
        self._log = log

    def persistent_load(self, named: Any) -> Audience:
        """Return the log's own audience of that number."""
        number, members, asked_by = named
        if not number:
            return NOBODY
        total = self._log._store.state.totals.get(number)
        if total is not None:
            return total.audience
        interned = self._log._audiences
        found = interned.get(members)
        if found is None or found.number != number:
            found = interned[members] = Audience(number, members)
        found.asked_by = asked_by
        return found


def dump(entry: Entry) -> bytes:
    """Return an entry as bytes."""
    file = io.BytesIO()
    _Pickler(file).dump(entry)
    return file.getvalue()


def apply(log: StoreLog, entry: bytes) -> None:
    """Apply an entry that another log decided; on the writer's thread."""
    found: Entry = _Unpickler(entry, log).load()
    log._store.apply(found)


def tables(db: apsw.Connection) -> dict[str, list[Any]]:
    """Return every row of every table, but for the log's id: also the node's own incarnation."""
    found = {
        table: sorted(
            (
                row
                for row in rows(db, f"select * from {table}")
                if table != "meta" or row[0] != "log_id"
            ),
            key=repr,
        )
        for table in TABLES
    }
    for table in ("sender", "former"):
        found[table] = [
            (*row[:2], "", "", *row[4:]) if row[1] == NODE else row for row in found[table]
        ]
    return found


class Replica(Driver):
    """A log that only applies entries."""

    def apply(self, entry: bytes) -> None:
        self.wait(self.log._write(lambda: apply(self.log, entry)))

    def tables(self) -> dict[str, list[Any]]:
        """Save, and return every row."""
        store = self.log._store

        def job() -> dict[str, list[Any]]:
            store.save()
            return tables(store.db)

        return self.wait(self.log._write(job))

    @property
    def chain(self) -> tuple[int, int, int]:
        state = self.log._store.state
        return state.next_number, state.chain, state.commits


class NoDisk:
    """The reserve of a log in memory: full when a play says so."""

    watermark = 1000

    def __init__(self) -> None:
        self.is_full = False

    def free(self) -> int:
        return 0 if self.is_full else 10**9

    def make(self) -> bool:
        return True

    def give_up(self, *, at_once: bool = False) -> bool:
        return True


class EntryPlay:
    """Random groups and retention on one log; `entries` is what it decided."""

    def __init__(self, seed: int) -> None:
        random = self.random = Random(seed)
        self.limits = Limits(
            reserve_bytes=64 * 1024,
            keep_seconds=random.choice([0, 0, 4]),
            keep_bytes=random.choice([0, 3000]),
            max_bytes=random.choice([8_000, 60_000]),
            sender_days=0.01,
            finished_days=0.005,
            finished_rows=random.choice([5, 1000]),
            incarnations=4,
            audiences=random.choice([6, 40]),
            sender_ranges=2,
            idempotency_keys=random.choice([10, 1000]),
        )
        self.driver = Replica("memory", Path(), self.limits).open()
        self.log = self.driver.log
        self.entries: list[bytes] = []
        self.kinds: dict[str, int] = {}
        self._disk = NoDisk()
        self._next: dict[tuple[str, str], int] = {}
        self._receivers: dict[int, ReceiverRow] = {}
        self._removed: set[int] = set()
        self._dead: set[tuple[int, int]] = set()  # a message becomes one once
        self._elapsed = 0
        self.copied = 0  # messages, for pages of replays
        self.letters: list[str] = []  # what became of those that were to go
        store: Any = self.log._store
        store.reserve = self._disk
        whole = store.apply

        def noted(entry: Entry) -> Any:
            data = dump(entry)
            outcomes = whole(entry)
            self.entries.append(data)
            kind = type(entry).__name__
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            return outcomes

        store.apply = noted

    def run(self, steps: int) -> EntryPlay:
        for _ in range(steps):
            self.step()
        return self

    def step(self) -> None:
        random = self.random
        what = random.random()
        if what < 0.02:
            self._disk.is_full = not self._disk.is_full
        elif what < 0.04:
            limit = random.choice(["audiences", "to_audiences", "removed_receivers"])
            self.log.want_room(limit)
        elif what < 0.07:
            self._grow_older()
        elif what < 0.3:
            self._retain()
        else:
            self._group()

    # --- retention

    def _retain(self) -> None:
        random = self.random
        if random.random() < 0.05:
            expired = random.choice([0, NOW + self._elapsed])
            self.driver.wait(self.log.clear_retained([random.choice(["a.b", "c"])], expired))
        self._elapsed += random.choice([1, 400, 1500, 1500, 60_000, 3_600_000, 90_000_000])
        keys = [*self._next]
        here = random.sample(keys, random.randrange(len(keys) + 1))
        left = [key for key in keys if key not in here and random.random() < 0.2]
        for _ in range(random.choice([1, 1, 4])):
            self.driver.wait(self.log.retain(self._elapsed, here, left))

    def _grow_older(self) -> None:
        """What a clean stop says last, after some time in which nothing came."""
        store = self.log._store
        self._elapsed += self.random.choice([0, 1, 900, 5000])

        def job() -> None:
            store.pass_time(self._elapsed)
            store.grow_older()

        self.driver.wait(self.log._write(job))

    # --- groups

    def _group(self) -> None:
        random = self.random
        group = Group(now=NOW + self._elapsed)
        if random.random() < 0.15 or not self._receivers:
            self._add_receivers(group)
        batches = [self._batch() for _ in range(random.choice([0, 1, 1, 3, 20]))]
        group.batches = [batch for batch in batches if batch is not None]
        for number in self._receivers:
            if random.random() < 0.4:
                group.progress.append(self._progress(number))
        if random.random() < 0.1 and self._next:
            name, incarnation = key = random.choice([*self._next])
            wanted = random.randint(1, self._next[key])
            floor = StatusFrom(sender=name, incarnation=incarnation, status_from=wanted)
            group.statuses_from.append(floor)
        if random.random() < 0.08 and len(self._receivers) > 1:
            number = random.choice([*self._receivers])
            del self._receivers[number]
            self._removed.add(number)
            group.removed.append(number)
        if self._receivers and random.random() < 0.3:
            self._replay(group)
        if self._receivers and random.random() < 0.1:
            self._join(group)
        if random.random() < 0.3:
            self._letters(group)
        self._let_wait(group)
        self._promise(group)
        appended = self.driver.wait(append(self.log, group))
        for batch in group.batches:
            batch.audience.waiting -= 1
        self.letters += [str(outcome) for outcome in appended.letters]
        copies = [batch for page in group.pages for batch in page.copies]
        for batch in (*copies, *(one for taken in group.letters for one in taken.copies)):
            batch.audience.waiting -= 1

    def _join(self, group: Group) -> None:
        random = self.random
        number = random.choice([*self._receivers])
        try:
            audience = self.log.audience([number])
        except LimitReached:
            return
        patterns = random.choice([("a.b",), ("c",), (">",)])
        before = random.choice([(), (), ("c",)])
        group.joins.append(Join(number, audience, patterns, before))

    def _replay(self, group: Group) -> None:
        """One begins, is called off, or has its next page; that of another moment too."""
        random = self.random
        state = self.log._store.state
        number = random.choice([*self._receivers])
        known = state.replays.get(number)
        if known is None or known.is_over or random.random() < 0.1:
            first = position_of(random.randint(0, state.next_number), random.choice([0, 0, 1]))
            end = random.choice([first + position_of(40), position_of(state.next_number) - 1])
            kind = random.choice([REWIND, LOST, START, LEFT_OUT])
            group.replays.append(Replay(number, kind, first, first, max(first, end)))
            return
        if random.random() < 0.1:
            group.replays.append(msgspec.structs.replace(known, end=known.next - 1))
            return
        patterns = random.choice([["a.b"], ["c"], [">"]])
        size = random.choice([1, 500, 5000])
        found = self.driver.wait(self.log.replay(known, patterns, size, 1000))
        self.copied += found.messages
        try:
            audience = self.log.audience([number])
        except LimitReached:
            return
        for batch in found.copies:
            batch.audience = audience
            audience.waiting += 1
        row = msgspec.structs.replace(
            known,
            next=found.next,
            copied=known.copied + found.messages,
            skipped=known.skipped + found.skipped,
        )
        after = known.next + (random.random() < 0.1)
        group.pages.append(ReplayPage(after, row, found.copies))

    def _letters(self, group: Group) -> None:
        """Letters of anybody go, or are sent again; also some that are not there, or twice."""
        random = self.random
        numbers = [*self._receivers, *self._removed]
        if not numbers:
            return
        number = random.choice(numbers)
        found = self.driver.wait(self.log.dead_letters(number, 0, random.choice([1, 3, 50])))
        positions = [letter.position for letter in found]
        if random.random() < 0.1:
            positions.append(1)
        if not positions:
            return
        copies: list[Batch] = []
        if random.random() < 0.6:
            try:
                audience = self.log.audience([random.choice(numbers)])
            except LimitReached:
                return
            copies = copies_of_letters(found, 1000)
            for batch in copies:
                batch.audience = audience
                audience.waiting += 1
        group.letters.append(LettersTaken(number, positions, copies))
        if random.random() < 0.1:
            group.letters.append(LettersTaken(number, positions[:1]))

    def _let_wait(self, group: Group) -> None:
        """Some of a group is due later, some of what waits is due, some is cancelled."""
        random, now = self.random, group.now
        for batch in group.batches:
            if random.random() < 0.25:
                batch.due_at = now + random.choice([1, 1, 500, 60_000, 5_000_000])
                if not batch.addressed:
                    batch.audience.waiting -= 1
                    batch.audience = NOBODY
                    NOBODY.waiting += 1
        if random.random() < 0.5:
            due = self.driver.wait(self.log.due(now, (0, 0), random.choice([1, 3, 100])))
            for batch in due:
                if not batch.addressed:
                    found = self._audience((batch.sender, batch.incarnation))
                    if found is None:
                        continue
                    batch.audience = found[0]
                group.due.append(batch)
        if random.random() < 0.2 and self._next:
            key = random.choice([*self._next])
            first = random.randint(1, self._next[key])
            group.cancel.append(Cancel(*key, first, first + random.choice([0, 0, 2, 30]), "no"))

    def _promise(self, group: Group) -> None:
        """Some of a group comes with a promise; about some of before something is decided."""
        random = self.random
        for batch in group.batches:
            if random.random() < 0.2 and not batch.due_at:
                until = group.now + random.choice([1, 1000])
                batch.promise = Promised(random.choice([0, 1, 2]), until, random.random() < 0.5)
        for _ in range(random.choice([0, 0, 1, 3])):
            if self._next:
                key = random.choice([*self._next])
                first = random.randint(1, self._next[key])
                last = first + random.choice([0, 0, 2, 30])
                status = random.choice([Status.ACKNOWLEDGED, Status.EXPIRED])
                group.verdicts.append(Verdict(*key, first, last, status, "so"))

    def _add_receivers(self, group: Group) -> None:
        random = self.random
        if self._receivers and random.random() < 0.4:
            row = self._receivers[random.choice([*self._receivers])]
            row.patterns = (random.choice(["a", "b", ">"]),)
            paused = not row.options.paused
            row.options = ReceiverOptions(paused=paused, window_bytes=7 if paused else None)
        else:
            number = len(self._receivers) + len(self._removed) + 1
            row = ReceiverRow(number=number, name=f"r{number % 7}", patterns=(">",), cursor=-1)
            self._receivers[number] = row
        group.receivers.append(row)

    def _audience(self, key: tuple[str, str]) -> tuple[Audience, bool] | None:
        random = self.random
        numbers = [*self._receivers]
        members = random.sample(numbers, random.randint(0, min(3, len(numbers))))
        try:
            audience = self.log.audience(members)
        except LimitReached as limit:
            self.log.want_room(limit.limit)
            return None
        addressed = random.random() < 0.2
        if addressed and not audience.stored and not audience.waiting:
            audience.asked_by = key[0]
        return audience, addressed

    def _batch(self) -> Batch | None:
        random = self.random
        key = (random.choice(["shop", "web"]), f"i{random.randint(1, 5 + self._elapsed % 3)}")
        found = self._audience(key)
        if found is None:
            return None
        audience, addressed = found
        above = self._next.get(key, 1)
        count = random.choice([1, 1, 2, 5])
        how = random.random()
        if how < 0.6:
            sequence = above
        elif how < 0.75:
            sequence = above + random.randint(1, 4)  # a hole, or none, as `after` says
        else:
            sequence = max(1, above - random.randint(1, 12))  # known, in part or not
        after = random.choice([sequence - 1, sequence - 1, max(0, min(sequence, above) - 1)])
        salt = b"!" if how > 0.97 else b""  # other content than it was
        bodies = [b"%d" % n * (n % 40) + salt for n in range(sequence, sequence + count)]
        self._next[key] = max(above, sequence + count)
        use = self._key() if count == 1 and random.random() < 0.4 else None
        floor = 0
        # With a key it settles much, of a sender that may have as many ranges as are kept.
        if random.random() < (0.2 if use is None else 0.6):
            floor = max(0, above - random.randint(-2, 30 if use is None else 3))
        audience.waiting += 1
        return make_batch(
            audience,
            sequence,
            bodies,
            sender=key[0],
            incarnation=key[1],
            subject="a.b" if sequence % 16 else "c",
            after=after,
            floor=floor,
            options=options_of(random.choice([0, 0, 2, FLAG_RETAIN])),
            ids=((0, f"id{sequence % 9}"),) if random.random() < 0.2 else (),
            origin=Origin(key[0], sequence, "00", ("far",)) if random.random() < 0.2 else None,
            addressed=addressed,
            refusal=Refused("nobody is there") if random.random() < 0.04 else None,
            key=use,
            expires_at=None if sequence % 3 else NOW + 7 * sequence,
        )

    def _key(self) -> KeyUse:
        number = self.random.randint(1, self.random.choice([6, 60]))
        content = self.random.choice([b"same", b"same", b"same", b"other"])
        return KeyUse(b"%016d" % number, content, f"key{number}")

    def _progress(self, number: int) -> Progress:
        random = self.random
        state = self.log._store.state
        last = position_of(max(0, state.next_number - 1))
        at = state.receivers.get(number)
        low = max(0, at.cursor) if at is not None else 0
        cursor = random.choice([last, last, random.randint(min(low, last), last)])
        step = Progress(receiver=number, cursor=cursor, settled={3: random.randint(0, 5)},
                        settled_bytes=random.randint(0, 500))  # fmt: skip
        if random.random() < 0.1:
            step.inbox = f"inbox{random.randint(1, 3)}"
        for _ in range(random.choice([0, 0, 1, 4])):
            first = position_of(random.randint(1, max(1, state.next_number)), random.randint(0, 3))
            status = random.choice([Status.QUEUED, Status.ACKNOWLEDGED, Status.DEAD])
            row = ExceptionRow(number, first, first + random.randint(0, 2), status, attempts=1,
                               reason="why" if status is Status.DEAD else "")  # fmt: skip
            step.exceptions.append(row)
            if status is Status.DEAD and (number, first) not in self._dead:
                self._dead.add((number, first))
                step.settled[int(Status.DEAD)] = step.settled.get(int(Status.DEAD), 0) + 1
                step.dead.append(self._letter(number, first))
        return step

    def _letter(self, number: int, first: int) -> DeadLetter:
        """A letter of whatever: the play's own batches need not say so."""
        message = encode_messages([WireMessage(b"x" * self.random.choice([1, 90]), None, "id")])
        origin = Origin("far", first, "00", ("p",)) if first % 3 == 0 else None
        return DeadLetter(
            number, first, "shop", "i1", first, "a.b", message, "why", 3, 1, first % 5, origin, 7
        )
