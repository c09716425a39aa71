"""The tables of a log, and the steps that bring an older one up.

What the columns mean is in docs/log.md; how steps are taken, in `disk.migrations`. Nothing here
reads or writes anything.
"""

from __future__ import annotations

from msgservice.disk.migrations import Schema

_VERSION_1 = """
create table meta(key text primary key, value) without rowid;

create table head(
    id integer primary key check (id = 1),
    saved integer not null,         -- batches up to here are in sender, audience and used
    chain integer not null,         -- chain of batch `saved`
    used integer not null,          -- bytes of frames not yet dropped, up to `saved`
    oldest integer not null,        -- number of the oldest row kept
    oldest_chain integer not null   -- chain of the batch before it
);

-- Rows are only ever appended, until retention drops the frame and later the row.
create table batch(
    number integer primary key,
    audience integer not null,
    sender integer not null,
    sequence integer not null,
    count integer not null,
    size integer not null,
    subject text not null,
    before_messages integer not null,
    before_bytes integer not null,
    stored_at integer not null,
    after integer not null,
    flags integer not null,
    crc integer not null,
    chain integer not null,
    origin blob,
    frame blob
);
create index batch_audience on batch(audience);
create index batch_sender on batch(sender, sequence);

create table audience(
    number integer primary key,
    members text not null,
    messages integer not null,      -- totals, up to `head.saved`
    bytes integer not null,
    last integer not null,          -- its last batch, up to `head.saved`
    dropped integer not null        -- none of its batches up to here has a frame
);

create table receiver(
    number integer primary key,
    name text not null,
    address text,
    patterns text not null,
    ordering text not null,
    paused integer not null,
    configured integer not null,
    window_messages integer,
    window_bytes integer,
    created_at integer not null,
    routed_base integer not null
);

create table progress(
    receiver integer primary key,   -- -1: its cursor counts the groups that held more than batches
    cursor integer not null,
    removed integer not null,
    acknowledged_count integer not null,
    expired_count integer not null,
    dead_count integer not null,
    cancelled_count integer not null,
    removed_count integer not null,
    settled_bytes integer not null,
    collected integer not null,     -- messages of audiences that were collected
    inbox text
);

create table exception(
    receiver integer not null,
    first integer not null,
    last integer not null,
    status integer not null,
    attempts integer not null,
    next_at integer not null,
    reason text not null,
    primary key (receiver, first)
) without rowid;

create table sender(
    id integer primary key,
    name text not null,
    incarnation text not null,
    hash text not null,
    floor integer not null,
    ranges blob not null,
    last blob,                      -- (first, last, crc) of the newest run
    status_from integer not null,
    seen_at integer not null,
    unique (name, incarnation)
);
create index sender_hash on sender(name, hash);

create table finished(
    sender integer not null,
    receiver integer not null,
    first integer not null,
    last integer not null,
    status integer not null,
    reason text not null,
    at integer not null,
    primary key (sender, receiver, first)
) without rowid;

create table run(
    sender integer not null,
    sequence integer not null,
    count integer not null,
    crc integer not null,
    audience integer not null,
    number integer not null,
    primary key (sender, sequence)
) without rowid;

create table dead(
    receiver integer not null,
    position integer not null,
    sender text not null,
    incarnation text not null,
    sequence integer not null,
    subject text not null,
    message blob not null,
    reason text not null,
    attempts integer not null,
    at integer not null,
    primary key (receiver, position)
) without rowid;

create table message_id(
    id text not null,
    position integer not null,
    primary key (id, position)
) without rowid;
create index message_id_position on message_id(position);
"""

_VERSION_2 = """
alter table receiver add column on_full text not null default 'refuse';
alter table receiver add column backlog_bytes integer not null default 0;
alter table receiver add column suspended integer not null default 0;
"""

_VERSION_3 = """
alter table receiver add column epoch text not null default '';
"""

# An older program would let anybody have the names that are owned.
_VERSION_6 = """
alter table receiver add column owner text not null default '';
"""

# The age of the log when a receiver was removed: of those that were before, now.
_VERSION_7 = """
alter table progress add column removed_at integer;
update progress set removed_at = coalesce(
    (select value from meta where key = 'age'),
    max(coalesce((select max(seen_at) from sender), 0),
        coalesce((select max(at) from finished), 0)))
where removed;
"""

# What is copied for whom, how far, and what suspended receivers were left out of. No row was ever
# counted from another base than 0.
_VERSION_8 = """
create table replay(
    receiver integer primary key,
    kind text not null,             -- rewind, start, suspended
    first integer not null,
    next integer not null,          -- above `end`: it is over
    end integer not null,
    copied integer not null,
    skipped integer not null
);
alter table receiver drop column routed_base;
alter table receiver add column left_first integer not null default 0;
alter table receiver add column left_last integer not null default 0;
"""

# Idempotency keys (DELIVERY 45), and the messages that were taken by one instead of being stored:
# whose message was. An older program would store what has a key again.
_VERSION_KEYS = """
create table idempotency(
    digest blob primary key,        -- of scope and key
    content blob not null,
    sender integer not null,        -- of the message that was stored
    sequence integer not null,
    at integer not null             -- age of the log
) without rowid;
create index idempotency_at on idempotency(at, digest);
create table alias(
    sender integer not null,
    sequence integer not null,
    of_sender integer not null,
    of_sequence integer not null,
    crc integer not null,
    primary key (sender, sequence)
) without rowid;
create index alias_of on alias(of_sender, of_sequence);
"""

# Of the dead letters that are there, what was kept of them is all that is known.
_VERSION_LETTERS = """
alter table dead add column flags integer not null default 0;
alter table dead add column origin blob;
alter table dead add column code integer not null default 0;
"""

# What waits until it is due. Of all rows together, the head says how many there are.
_VERSION_DELAYED = """
create table delayed(
    id integer primary key,         -- rises with acceptance: number << 16 | index of its first
    due_at integer not null,
    sender integer not null,
    sequence integer not null,
    count integer not null,
    size integer not null,
    subject text not null,
    audience integer not null,      -- that its sender named; 0: decided when it is due
    accepted_at integer not null,
    after integer not null,
    flags integer not null,
    crc integer not null,           -- of the messages
    row_crc integer not null,       -- of all before this one, and of ids and origin
    ids text,
    origin blob,
    frame blob not null
);
create index delayed_due on delayed(due_at);
create index delayed_sender on delayed(sender, sequence);
create index delayed_audience on delayed(audience) where audience != 0;
create table delayed_id(
    name text not null,
    delayed integer not null,
    place integer not null,
    primary key (name, delayed, place)
) without rowid;
create index delayed_id_row on delayed_id(delayed);
alter table head add column delayed_count integer not null default 0;
alter table head add column delayed_size integer not null default 0;
alter table head add column delayed_crcs integer not null default 0;    -- sum of row_crc
alter table head add column delayed_last integer not null default 0;    -- the highest number given
"""

_VERSION_SINCE = """
alter table replay add column since integer not null default 0;
"""

# What was put into streams, by their subject; other subjects cost nothing. `STREAMS` of subjects.
_VERSION_STREAMS = """
create index batch_stream on batch(subject, number)
    where subject >= 'streams.' and subject < 'streams/';
"""

# A copy of the last message of each subject that was to be retained (DELIVERY 48).
_VERSION_RETAINED = """
create table retained(
    subject text primary key,
    position integer not null,      -- of the original
    stored_at integer not null,
    expires_at integer not null,    -- 0: never
    origin blob not null,
    message blob not null           -- a run of this one
) without rowid;
"""

# When a batch expires, by the node's clock; never, where nothing is said.
_VERSION_EXPIRES = """
alter table batch add column expires_at integer;
create index batch_expires on batch(expires_at, number) where expires_at is not null;
"""

# Since when a receiver is away, by the age of the log, and how long it may be.
_VERSION_AWAY = """
alter table receiver add column away_max integer not null default 0;
alter table receiver add column away_since integer;
"""

# When what waits expires, by the node's clock; never, where nothing is said.
_VERSION_DELAYED_EXPIRES = """
alter table delayed add column expires_at integer;
"""

# How often a receiver's messages are tried, and after which pauses; 0: as the node's limits say.
_VERSION_ATTEMPTS = """
alter table receiver add column max_attempts integer not null default 0;
alter table receiver add column retry_delay_min integer not null default 0;
alter table receiver add column retry_delay_max integer not null default 0;
"""

# By which id of its sender's a message is found that was cancelled before it was due, for as long
# as that is known of it (`finished`).
_VERSION_CANCELLED_ID = """
create table cancelled_id(
    name text not null,
    sender integer not null,
    sequence integer not null,
    at integer not null,            -- age of the log
    primary key (name, sender, sequence)
) without rowid;
create index cancelled_id_sender on cancelled_id(sender, sequence);
create index cancelled_id_at on cancelled_id(at);
"""

# Whether several connections share a receiver's messages.
_VERSION_SHARED = """
alter table receiver add column shared integer not null default 0;
"""

# Promises that are not decided yet (DELIVERY 55). An older program would never decide them.
_VERSION_PROMISE = """
create table promise(
    sender integer not null,
    first integer not null,
    last integer not null,
    position integer not null,      -- of the first
    need integer not null,          -- receivers that are to acknowledge each
    until integer not null,         -- ms of the node's clock
    cancels integer not null,
    primary key (sender, first)
) without rowid;
"""

# What outlives its batch: by which id of its sender's a message is found that has left the log, or
# was cancelled before it was due, and of whom states are kept who is known no more. An older
# program would forget what producers have heard.
_VERSION_FINISHED = """
create table finished_id(
    name text not null,
    sender integer not null,
    sequence integer not null,
    at integer not null,            -- age of the log
    primary key (name, at, sender, sequence)
) without rowid;
insert into finished_id select name, sender, sequence, at from cancelled_id;
drop table cancelled_id;
create index finished_id_at on finished_id(at);
create index finished_at on finished(at);
create table former(
    sender integer primary key,
    name text not null,
    incarnation text not null,
    hash text not null,
    at integer not null             -- age of the log when it was forgotten
);
create index former_hash on former(name, hash);
create index former_at on former(at);
"""

# Of an outcome at `$promise` what was promised, and when it was decided: need, until, cancels, and
# the wall clock in ms, JSON; null of states at receivers. An older program would write none.
_VERSION_DECIDED = """
alter table finished add column promise text;
"""

# How many rows there are of tables whose rows nothing else tells to be missing, and a sum of these:
# kept by what changes them, whatever that is. An older program keeps them too, but knows no audit.
_SUM_OF = {
    "dead": "(%(row)s.position & 0xffffffff) * 31 + %(row)s.receiver + length(%(row)s.message)",
    "exception": "((%(row)s.first * 31 + %(row)s.last * 7) & 0xffffffff)"
    " + %(row)s.receiver + %(row)s.status * 3 + %(row)s.attempts",
    "message_id": "(%(row)s.position & 0xffffffff) * 31 + length(%(row)s.id)",
}
_KEY_OF = {"dead": "position", "exception": "first"}  # beside `receiver`: such a row is replaced


def _tally_of(table: str) -> str:
    fill = _SUM_OF[table] % {"row": table}
    new, old = _SUM_OF[table] % {"row": "new"}, _SUM_OF[table] % {"row": "old"}
    less = f"set rows = rows - 1, sums = sums - ({old}) where name = '{table}'"
    more = f"set rows = rows + 1, sums = sums + ({new}) where name = '{table}'"
    made = [
        f"insert into tally select '{table}', count(*), coalesce(sum({fill}), 0) from {table};",  # noqa: S608 - fixed names
        f"create trigger {table}_comes after insert on {table} begin update tally {more}; end;",
        f"create trigger {table}_goes after delete on {table} begin update tally {less}; end;",
    ]
    key = _KEY_OF.get(table)
    if key is not None:
        # What is replaced is not deleted, as a trigger sees it.
        there = f"from {table} where receiver = new.receiver and {key} = new.{key}"
        its = f"(select {fill} {there})"
        less = f"set rows = rows - 1, sums = sums - {its} where name = '{table}'"
        when = f"before insert on {table} when exists (select 1 {there})"
        made.append(f"create trigger {table}_replaced {when} begin update tally {less}; end;")
    return "\n".join(made)


_VERSION_TALLY = """
create table tally(
    name text primary key,          -- of a table
    rows integer not null,
    sums integer not null
) without rowid;
""" + "\n".join(map(_tally_of, _SUM_OF))

INTO_FINISHED = "into finished(sender, receiver, first, last, status, reason, at)"

# How far it was: until more is stored its copy is all that it holds, and may take its place.
BROUGHT_UP = "brought_up"
_BROUGHT_UP = f"""
insert or replace into meta values ('{BROUGHT_UP}', json_array(
    coalesce((select cursor from progress where receiver = -1), 0),
    coalesce((select max(number) from batch), (select saved from head))))
"""  # noqa: S608


SCHEMA = Schema(
    0x6D736773,  # "msgs"
    (
        _VERSION_1,
        _VERSION_2,
        _VERSION_3,
        # No other table; but an older program would not keep the sums of pages, so it is to refuse.
        "",
        # Nor here; but an older program would send on the bits of `flags` that are only kept.
        "",
        _VERSION_6,
        _VERSION_7,
        _VERSION_8,
        _VERSION_KEYS,
        _VERSION_LETTERS,
        _VERSION_DELAYED,
        _VERSION_SINCE,
        _VERSION_STREAMS,
        _VERSION_RETAINED,
        _VERSION_EXPIRES,
        _VERSION_AWAY,
        _VERSION_DELAYED_EXPIRES,
        _VERSION_ATTEMPTS,
        _VERSION_CANCELLED_ID,
        _VERSION_SHARED,
        _VERSION_PROMISE,
        _VERSION_FINISHED,
        _VERSION_DECIDED,
        _VERSION_TALLY,
    ),
    sums_since=4,
    brought_up=_BROUGHT_UP,
)
