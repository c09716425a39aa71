"""Interfaces that others implement: `ILog`, `ITransport`, `IChannel`, `IConnector`, `ICodec`.

Each has one contract suite under `tests/contract` that every implementation passes, ours or not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IReactorTime
from zope.interface import Attribute, Interface

from msgservice.errors import ProtocolError
from msgservice.limits import Limits
from msgservice.records import (
    Account,
    Appended,
    Audience,
    Batch,
    Copies,
    DeadLetter,
    Delayed,
    Expiring,
    Found,
    Group,
    History,
    Replay,
    Reread,
    Resume,
    Retained,
    Room,
    Snapshot,
    StreamHeader,
    StreamPage,
    Tried,
)


class ILog(Interface):
    """The one durable, ordered store of batches of a node.

    Methods return Deferreds unless they say *now*. All are called on the reactor's thread; those
    that say *now* answer from the committed state held in memory. One `append` runs at a time:
    the caller gathers the next group meanwhile (group commit).
    """

    log_id = Attribute("str: names this log; another after restore, migrate or copy")
    durable = Attribute("bool: whether `append` survives power loss")

    def open() -> Deferred[Snapshot]:
        """Lock, check and open; fire with a `records.Snapshot`.

        Fails with `LogLocked`, `LogTooNew`, `LogDamaged`, `DataFolderUnusable`.
        """

    def append(group: Group) -> Deferred[Appended]:
        """Store a `records.Group` in one transaction; fire after its sync with what became of it.

        Fires with a `records.Appended`: a `records.Outcome` for each batch, in order, and all
        batches that were stored, in the order of their numbers. One that has a `due_at` waits: it
        is an outcome without a number, and counts for dedupe and room as if it were stored. Of each
        page of a replay whether it was stored, its row and all of its copies, or nothing of it.
        Each batch that was stored whole has its `number` and `stored_at` now. `own` comes first,
        and is never a duplicate: the log gives it sender, incarnation and sequence. For `batches`,
        dedupe by (sender, incarnation, sequence) happens inside the transaction; a batch with a
        `refusal` is `Known` as far as it was taken before, else refused with that. A batch that is
        refused does not fail the group, nor does a full disk: then every batch is
        `RefusedBatch(LogFull)` and the rest is stored. Nor is a receiver there again that was
        forgotten (`retain`): numbers of new ones rise, and a row with one that is neither new nor
        known is passed by.
        Fails with `LogUnavailable` (nothing of the group is stored, try again later) or
        `LogFailed` (the process must end). Fires or fails in a later turn, never before it has
        returned: the caller may still be telling what became of the group before.
        """

    def append_now(group: Group) -> Appended | None:
        """Store a group before this returns, where that is quick; None: nothing was done.

        What `append` fires with is returned, and raised what it fails with. Nothing else runs
        meanwhile: so it is asked only when all was told of the groups before.
        """

    def audience(members: Collection[int]) -> Audience:
        """Return *now* the `records.Audience` of these receiver numbers, made if new.

        Raises `LimitReached` beyond `limits.audiences`.
        """

    def want_room(limit: str, sender: str = "") -> None:
        """Take note *now* that something was refused for want of a place in a table.

        `limit`: which there are, as `LimitReached` names it; of `sender_audiences`, `sender`'s.
        What nothing refers to, audiences and removed receivers, is soon looked for then, and
        history that every receiver has settled gives way where it has the places of audiences.
        """

    def take_forgotten() -> list[int]:
        """Return *now* the numbers of removed receivers that were forgotten since the last call.

        Nothing in the log refers to them any more.
        """

    def resume(sender: str, incarnation: str) -> Deferred[Resume]:
        """Fire with the `records.Resume` of this incarnation, as it is then (committed state).

        It fires at once, unless the incarnation was away: then its marks may have to be read. One
        that a `retain` is about to forget is not known; who is told its marks is here from then on.
        """

    def read(
        audiences: Collection[int], after: int, to: int, bytes_max: int, messages_max: int
    ) -> Deferred[list[Batch]]:
        """Fire with the next batches (a list, rising) whose audience is one of `audiences`.

        `audiences`: collection of audience numbers. `after`: position; a batch is given when its
        last position is above it. `to`: position; none is given that begins above it, however late
        the page is read: behind it there may be batches of audiences that who asks did not know of
        yet. At least one batch if there is any, else up to the limits.
        """

    def expiring(after: tuple[int, int], now: int, count_max: int) -> Deferred[Expiring]:
        """Fire with a `records.Expiring`: batches that expire behind `after`, up to `now`.

        `after`: a place, (time, number). Of the order of these places the first `count_max`, also
        those of which all is settled, as long as the log knows them.
        """

    def history(
        sender: str,
        incarnation: str,
        first: int,
        pieces_max: int,
        receivers: Collection[int] | None = None,
    ) -> Deferred[History]:
        """Fire with the `records.History` page of this sender's sequences from `first` on.

        At most `pieces_max` pieces, and all states of what lies before `next`, which is above
        `first`: a page may be shorter, and says where the rest begins.

        `receivers`: numbers of removed ones. The page is of their states alone, without pieces and
        without what has gone.
        """

    def find(
        identity: str,
        after: int = 0,
        count_max: int | None = None,
        senders: Collection[str] | None = None,
    ) -> Deferred[Found | None]:
        """Fire with the `records.Found` of a message, or None.

        `identity`: `log:POSITION`, `SENDER/HASH/SEQUENCE`, or an `id` that its sender gave.
        Its states are those of the receivers with a number above `after`, `count_max` of them.
        `senders`: patterns of names; of the messages with an `id` the newest of such a sender.
        """

    def incarnation(sender: str, hash_: str) -> Deferred[str | None]:
        """Fire with the incarnation of a sender whose `records.hash_of` this is, or None."""

    def heads(numbers: Collection[int]) -> Deferred[dict[int, tuple[int, int]]]:
        """Fire with the messages and bytes of those of these batches that have their row."""

    def of_key(digest: bytes) -> Deferred[str | None]:
        """Fire with the message that was stored by an idempotency key, or None.

        As SENDER/HASH/SEQUENCE; also where it waits until it is due, or has gone since.
        """

    def replay(
        replay: Replay,
        patterns: Sequence[str] | None,
        bytes_max: int,
        size_max: int,
        count_only: bool = False,
    ) -> Deferred[Copies]:
        """Fire with the `records.Copies` that a replay is to store next, from its `next` on.

        What is copied says its `kind` (`records.Replay`); `patterns`: the subjects of its receiver;
        of a rewind, those that may be copied where nobody addressed it (`to`), None: all.
        About `bytes_max` bytes, in runs of `size_max` at most; one batch at least where there is
        any within what one page looks at. What is copied stays in the log as long as the replay's
        row says that it has still to be: nothing that lies at its `next` or behind goes.
        `count_only`: how many messages and bytes there are in the page, without copying them.
        """

    def next_due() -> int | None:
        """Return *now* when the first is due of what waits (wall clock, ms); None: nothing does."""

    def due(to: int, after: tuple[int, int], count_max: int) -> Deferred[list[Batch]]:
        """Fire with the next runs that are due at `to` (wall clock, ms), in their order.

        That is by when they are due, then as they were accepted. `after`: (`due_at`, `delayed_id`)
        of one, behind which the page begins; (0, 0): with the first. At most `count_max`, and with
        fewer about 4 MiB. The audience of those whose sender named none is `NOBODY`. They wait
        until a group has them as `Group.due`.
        """

    def delayed(after: tuple[int, int], count_max: int) -> Deferred[list[Delayed]]:
        """Fire with a page of all that waits, in the order of `due`, behind (`due_at`, `id`)."""

    def find_delayed(
        identity: str, senders: Collection[str] | None = None
    ) -> Deferred[Found | None]:
        """Fire with the `records.Found` of a message that waits until it is due, or None.

        `identity`, `senders`: as those of `find`. Its position is 0.
        """

    def find_finished(
        identity: str,
        after: int = 0,
        count_max: int | None = None,
        senders: Collection[str] | None = None,
    ) -> Deferred[Found | None]:
        """Fire with the `records.Found` of a message that has left the log, or None.

        As `find`, but for positions, as long as its states are kept. Its position is 0. So is one
        found that was cancelled before it was due, with its state at the receiver `NOT_YET`.
        """

    def of_stream(subject: str, after: int | None, bytes_max: int) -> Deferred[StreamPage]:
        """Fire with the `records.StreamPage` of a subject below `streams.`, behind a position.

        `after`: None for all that is kept. One batch at least if there is any in this page; the
        first may begin before `after`. What a replay has copied is left out, and so are copies of
        what is retained, what was only to be that, and what its sender has addressed. The next page
        is behind `last`; none is left where that is `newest` and there is no gap.
        """

    def stream_header(subject: str) -> Deferred[StreamHeader]:
        """Fire with the `records.StreamHeader` of a subject, as of a moment between two groups."""

    def position_at(stored_at: int) -> Deferred[int]:
        """Fire with the position of the first message stored at this time or later.

        `stored_at`: wall clock, ms, which of what is stored later is never earlier. Behind the last
        one where there is none.
        """

    def kept_from() -> int:
        """Return *now* the position from which on the log has rows: those before have gone."""

    def dead_letters(receiver: int, after: int, count_max: int) -> Deferred[list[DeadLetter]]:
        """Fire with up to `count_max` `records.DeadLetter` of a receiver number, by position.

        With fewer, at least one if there is any, where their messages are longer than 4 MiB.
        """

    def retained(after: str, count_max: int) -> Deferred[list[Retained]]:
        """Fire with up to `count_max` `records.Retained` of the subjects behind `after`, rising.

        With fewer, at least one if there is any, where these are longer than 4 MiB.
        """

    def clear_retained(subjects: Sequence[str], expired: int = 0) -> Deferred[None]:
        """Let go of the retained messages of these subjects; fire when that is on disk.

        `expired`: of those alone that expire at this time (ms) or before; 0: of all. Fails as
        `append` does.
        """

    def retain(
        elapsed: int,
        here: Collection[tuple[str, str]] = (),
        left: Collection[tuple[str, str]] = (),
    ) -> Deferred[bool]:
        """Remove what may go, a small range at a time; fire with True if there is more to do.

        `elapsed`: a monotonic clock in ms, beginning anywhere. Between two calls the log grows
        older by what it has moved; ages are kept over restarts, and no wall clock changes them.
        `here`: (name, incarnation) of the senders that are connected: they are not away, and what
        stays away is counted from the last call that named it. Who was told its `resume` before
        this call and may still send is one of them; who is told it later is not forgotten by this
        call either. `left`: those that have said
        goodbye since the last call, with everything answered. A removed receiver that nothing
        refers to is forgotten, but for the newest of a name that has an owner: whose the name is
        outlives it.
        """

    def age() -> int:
        """Return *now* how long the log was open so far, in ms, as of the last `retain`.

        After a crash it may be less by what had passed since something was written last.
        """

    def dead_count(receiver: int) -> int:
        """Return *now* how many dead letters a receiver number has."""

    def dead_bytes(receiver: int) -> int:
        """Return *now* the bytes that the dead letters of a receiver number take."""

    def room() -> Room:
        """Return *now* a `records.Room`."""

    def accounts(receivers: Sequence[int] | None = None) -> Deferred[list[Account]]:
        """Fire with a `records.Account` for each of these numbers that was not removed; for all."""

    def audit() -> Deferred[list[str]]:
        """Recount from the batches; fire with a list of discrepancies as sentences."""

    def close() -> Deferred[None]:
        """Checkpoint, sync and unlock; fire when done. Safe to call twice."""


class IChannel(Interface):
    """One live connection to a peer, whatever carries it: frames out, bytes bounded."""

    peer_address = Attribute("str: where the other side is, for people")
    credentials = Attribute("Credentials: what the connection itself shows of its peer")
    unsent = Attribute("int: bytes that were sent and that the peer, or the kernel, has not taken")
    heard_at = Attribute("float: when something came last, and be it part of a frame (monotonic)")

    def send(frame: bytes) -> None:
        """Queue one encoded frame (bytes); all of one reactor turn leave together.

        Raises `FrameTooLarge` for a frame beyond the limit; nothing is queued then.
        """

    def send_now(frames: Sequence[bytes]) -> None:
        """Queue some frames and write all that is queued, without waiting for the end of the turn.

        For what somebody waits for. Raises `FrameTooLarge`; the frames before that one are queued.
        While a user is told something, they may leave when that is done: see `push`.
        """

    def push() -> None:
        """Write what `send_now` was given, while a user is told something, too.

        For who goes on for long then, so that the other side can begin. What has no room stays.
        """

    def identified() -> None:
        """The peer has said who it is, and was let in; whether a session comes of it is open."""

    def established() -> None:
        """The peer is known now: limits for unknown ones no longer hold."""

    def pause() -> None:
        """Stop reading from the peer."""

    def resume() -> None:
        """Read again."""

    def close() -> None:
        """Send what is queued, then close; aborted when that takes too long.

        Nothing is received any more, and what is sent from now on is dropped.
        """

    def abort() -> None:
        """Close at once. `channel_lost` still follows."""


class IChannelUser(Interface):
    """The user of a channel. Never called from inside `IChannel.send`.

    It may have an attribute `refusal`: a str where one side ended the connection for something that
    does not pass by itself. Whoever dials looks at it when the connection has gone: it tells that,
    and waits for about `link_delay_max`.
    """

    def channel_opened(channel: IChannel) -> None:
        """The connection stands."""

    def frames_received(frames: list[bytes]) -> None:
        """Frames arrived (a list of bytes). May not raise."""

    def channel_failed(error: ProtocolError) -> None:
        """The peer broke a rule that the channel watches (a `ProtocolError`); it will be closed."""

    def channel_writable(writable: bool) -> None:
        """The transport's buffer is full (False), or has room again (True). Starts writable."""

    def channel_lost(reason: str) -> None:
        """The connection has gone (a str for people). Exactly once, and last."""


class IConnector(IService):
    """Keeps one connection to one address, dialling again with backoff; what `why` tells of it.

    Stopping it sends what is queued, closes, and fires within `limits.stop_timeout`. It may be
    started and stopped at any time: `running` is what was asked for last, and one that is started
    while it still closes dials when it has closed.

    It may have attributes that say more:

    `is_by_certificate`: True where the last attempt failed for a certificate of either side, so
    that trying again alone does not help.
    `forbidden`: the option that would let it be dialled, for people, where the last attempt failed
    for want of it; else empty.
    `unwell_since`: since when (seconds of its reactor) what it is connected to takes nothing, or
    None: its `last_error` says why then, and `next_attempt_in` when that is tried again.
    """

    address = Attribute("str: whom it dials")
    channel = Attribute("IChannel or None: the live connection, established or not")
    attempts = Attribute("int: how often it dialled since it was made")
    failures = Attribute("int: failures in a row; only a healthy connection clears them")
    last_error = Attribute("str or None: why there is no connection, for people")
    next_attempt_in = Attribute("float or None: seconds until it dials again, while it waits")

    def poke() -> None:
        """Dial now, if waiting: there is a sign of life from the other side."""


class ITransport(Interface):
    """A kind of address: makes channels both ways. Registered by URL scheme.

    What starts with `check_` is asked before anything is started, and leaves nothing behind.
    """

    schemes = Attribute("tuple of str: the beginnings of addresses that it serves, `tcp`")

    def check_dial(address: str) -> None:
        """Raise `BadAddress` where `connector` would."""

    def check_listen(address: str) -> str | None:
        """Return what lets others than this machine in at a listener, for people; None if nothing.

        Raises `BadAddress` for an address that `listen` cannot have.
        """

    def check_free(address: str) -> None:
        """Raise `CannotListen` where another program has this address of a listener now.

        Passes where that cannot be asked.
        """

    def connector(
        reactor: IReactorTime, address: str, make_user: Callable[[], IChannelUser], limits: Limits
    ) -> IConnector:
        """Return an `IConnector`, not started.

        It keeps one connection to `address` and calls `make_user() -> IChannelUser` for each.
        Raises `BadAddress`.
        """

    def listen(
        reactor: IReactorTime, address: str, make_user: Callable[[], IChannelUser], limits: Limits
    ) -> Deferred[IListeningPort]:
        """Fire with an `IListeningPort`; each connection gets its own `make_user()`.

        Fails with `CannotListen`, or `BadAddress`.
        """

    def reload() -> Sequence[Reread]:
        """Read the files anew that addresses in use name; say of each address what came of it.

        What cannot be used is logged, and what was before goes on. Connections that stand keep
        what they began with, unless it was taken back.
        """


class INamingTransport(ITransport):
    """A kind of address whose receivers are made here, named as the node names them."""

    def connector_to(
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        name: str,
    ) -> IConnector:
        """Return an `IConnector` to the receiver of this name, as `connector` does."""

    def try_out(reactor: IReactorTime, address: str, name: str) -> Deferred[Tried]:
        """Fire with what an endpoint answers to a test, by the options of a receiver's name.

        Fails with `LimitReached` where too many are under way.
        """


class ICodec(Interface):
    """Turns content into a body and back."""

    content_type = Attribute("str: what `headers['content-type']` says")

    def encode(content: Any) -> bytes:
        """Return the bytes of `content`; `TypeError` where it cannot."""

    def decode(body: bytes) -> Any:
        """Return the content of `body` (bytes); `ValueError` where it cannot."""
