"""Whether a run of messages may be taken in, and for whom it is: its checks and its audience.

All that can be refused is refused here, before anything is stored. Nothing here belongs to a
connection; what one sender may have unanswered is the business of `ingress`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol

from twisted.logger import Logger

from msgservice.codecs import content_type_of
from msgservice.core.frames import Promised, Transfer
from msgservice.core.subjects import check_key, check_name, check_word
from msgservice.errors import (
    Forbidden,
    LimitReached,
    LogFull,
    MalformedFrame,
    MessageTooLarge,
    NoReceiver,
    PathTooLong,
    Refused,
    TooFewReceivers,
    UnknownReceiver,
)
from msgservice.interfaces import ILog
from msgservice.limits import BATCH_INDEX_BITS, BATCH_MESSAGES_MAX, TIME_DAYS_MAX, Limits
from msgservice.message import (
    FLAG_REPLAY,
    FLAG_REQUIRE,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    FLAG_RETAINED,
    FLAG_UNKNOWN_ELEMENT,
    FLAGS_KNOWN,
    WireMessage,
    count_of,
    decode_known_messages,
    options_of,
)
from msgservice.node.directory import BacklogFull, Directory
from msgservice.node.due import Due
from msgservice.node.retained import RetainedIndex
from msgservice.node.rights import Rights
from msgservice.node.seldom import Seldom
from msgservice.records import (
    NOBODY,
    PATH_MAX,
    Audience,
    Batch,
    KeyUse,
    Lane,
    Origin,
    Retained,
    digest_of_key,
)
from msgservice.records import Promised as PromiseKept

_logger = Logger()

_NO_PATH: Sequence[str] = ()

# Sets that `to` has made, by number and sender -> the same names now, or why not: a set may have
# thousands of names, and very many runs wait for it.
_Addressed = dict[tuple[int, str], Audience | UnknownReceiver | LimitReached | LogFull]


class Backlogs(Protocol):
    """The backlogs of receivers: which are too far behind to be sent more (`dispatch`)."""

    def full(self, audience: Audience) -> str | None:
        """Why this audience takes nothing now, or None."""


class Acceptance:
    """The checks of a node on what is handed in."""

    def __init__(
        self,
        directory: Directory,
        backlogs: Backlogs,
        log: ILog,
        *,
        retained: RetainedIndex,
        log_id: str,
        limits: Limits,
        due: Due,
        seldom: Seldom,
        promises: Callable[[], int],
    ) -> None:
        self._retained = retained
        self.looped = 0  # messages that came back to this node, since it started
        self._directory = directory
        self._backlogs = backlogs
        self._log = log
        self._log_id = log_id
        self._own_ids = frozenset((log_id,))  # that a path of what has been here names
        self._seldom = seldom
        self._limits = limits
        self._due = due
        self._promises = promises  # how many runs have one that is open

    def decode(self, transfer: Transfer) -> tuple[Sequence[WireMessage], bool]:
        """Return the messages of a run, and whether this node knows all of their elements.

        Raises `MalformedFrame`.
        """
        count = count_of(transfer.messages)
        if not 0 < count <= BATCH_MESSAGES_MAX:  # before they are decoded, which takes long
            raise MalformedFrame(f"{count} messages in a run, 1 to {BATCH_MESSAGES_MAX} allowed")
        return decode_known_messages(transfer.messages)

    def audience(
        self,
        rights: Rights,
        transfer: Transfer,
        messages: Sequence[WireMessage],
        size: int,
        *,
        known: bool,
        sender: str,
        node_log: str = "",
    ) -> Audience:
        """Return the audience of a run as it is now; its group may `decide_again`.

        `node_log`: the id of its log, of a node that passes on what others have sent. Raises
        `Refused`, `BadSubject` or `BadName` for what is never taken, `LimitReached` for what may be
        later. A name in `to` that `rights` do not allow is unknown, as one that nobody has: a
        sender does not learn which.
        """
        flags, path = transfer.flags, _NO_PATH
        # One look at all that most runs have nothing of: it is asked once for each run.
        if flags or not known or node_log or transfer.origin is not None:
            _check_known(transfer, known)
            path = _path_of(transfer, node_log)
        subject = transfer.subject
        directory, limits = self._directory, self._limits
        directory.check(subject)
        if not rights.allows("send", subject):
            raise Forbidden("send", subject)
        if size > limits.max_batch:
            raise MessageTooLarge(size, limits.max_batch)
        if transfer.ttl is not None and transfer.ttl > TIME_DAYS_MAX * 24 * 3600 * 1000:
            raise Refused(f"a ttl of {transfer.ttl} ms, at most {TIME_DAYS_MAX} days allowed")
        if transfer.delay:
            _check_delay(transfer)
        if type(transfer) is Promised:
            self._check_promise(transfer, messages, node_log)
        if path:
            flags = self._flags_of(transfer, path)
        if flags and flags & (FLAG_RETAIN | FLAG_RETAIN_ONLY):
            self._check_retained(transfer, flags, messages, size)
        if not path and (
            messages[0].key is not None
            if len(messages) == 1
            else any([m.key is not None for m in messages])  # noqa: C419 - faster
        ):
            _check_keys(messages)
        if transfer.to is not None:
            if len(transfer.to) > limits.receivers:
                raise Refused(
                    f"'to' has {len(transfer.to)} names, receivers = {limits.receivers} allowed"
                )
            for name in transfer.to:
                if not rights.allows("to", name):
                    raise UnknownReceiver(name)
            return _enough(directory.audience_of(transfer.to, sender), transfer)
        if not flags and not path and not transfer.delay:
            audience = directory.audience(subject)
            return audience if type(transfer) is Transfer else _enough(audience, transfer)
        if path and not self._own_ids.isdisjoint(path):
            self._looped(sender, subject, len(messages))
            return directory.nobody()
        audience = self._matching(subject, flags, path)
        if flags & FLAG_REQUIRE and not audience.members:
            raise NoReceiver(subject)
        if transfer.delay:
            return NOBODY  # for whom it is, is decided when it is due
        return _enough(audience, transfer)

    def _check_promise(
        self, transfer: Promised, messages: Sequence[WireMessage], node_log: str
    ) -> None:
        """Raise `Refused` for a promise that cannot be given, `LimitReached` for one too many."""
        promise = transfer.promise
        if promise is None:
            return
        if node_log:
            raise Refused("a promise is given to a producer, not to a node that passes on")
        if not 0 < promise.within <= TIME_DAYS_MAX * 24 * 3600 * 1000:
            raise Refused(
                f"a promise within {promise.within} ms, above 0 and at most {TIME_DAYS_MAX} days"
                " allowed"
            )
        if transfer.delay:
            raise Refused("a promise and a delay together are not supported by this version")
        if transfer.flags & FLAG_RETAIN_ONLY:
            raise Refused(
                "a promise beside retain-only, which delivers to nobody now: nobody could keep it"
            )
        if any([m.key is not None for m in messages]):  # noqa: C419 - faster
            raise Refused(
                "a promise and an idempotency key together are not supported by this version"
            )
        if self._promises() >= self._limits.promises:
            raise LimitReached("promises", self._limits.promises)

    def _matching(self, subject: str, flags: int, path: Sequence[str]) -> Audience:
        """Return the audience of a subject; of what is only retained, the next nodes alone."""
        if flags & FLAG_RETAIN_ONLY:
            return self._directory.next_nodes(subject, path)
        return self._directory.audience(subject, path)

    def _flags_of(self, transfer: Transfer, path: Sequence[str]) -> int:
        """Return the flags of a run that a node passes on, as they are kept here.

        What comes back, or was sent again, takes the place of no newer message that is retained. A
        copy of what was retained there is retained here where nothing of its subject is.
        """
        flags = transfer.flags
        if not self._own_ids.isdisjoint(path):
            return flags & ~(FLAG_RETAIN | FLAG_RETAIN_ONLY)
        if flags & FLAG_RETAINED:
            flags &= ~(FLAG_RETAIN | FLAG_RETAIN_ONLY)
            if not self._retained.has(transfer.subject):
                flags |= FLAG_RETAIN
        elif flags & FLAG_REPLAY and self._retained.has(transfer.subject):
            flags &= ~FLAG_RETAIN
        return flags

    def _check_retained(
        self, transfer: Transfer, flags: int, messages: Sequence[WireMessage], size: int
    ) -> None:
        """Raise `Refused`, or `LimitReached`, unless a run may be retained: its last message."""
        if not flags & FLAG_RETAIN:
            if flags & FLAG_REPLAY:
                return  # something newer is retained: it is for nobody here
            raise Refused("the flag 'retain, deliver to nobody' (8) without 'retain' (1)")
        if transfer.to is not None:
            raise Refused("what is retained is for who receives its subject: not with 'to'")
        if messages[-1].body:  # else it clears, which needs no room
            self._retained.check_room(transfer.subject, size)

    def _looped(self, sender: str, subject: str, count: int) -> None:
        """Messages came back that this node has had: acknowledged, for nobody, and counted."""
        self.looped += count

        def tell(count: int) -> None:
            _logger.warn(
                "{count} messages to {subject} came back from node {sender}: they have been here,"
                " and go to nobody again",
                line="chain-loop",
                count=count,
                subject=subject,
                sender=sender,
            )

        self._seldom.say(("looped", sender), tell, count, kind="looped")

    @property
    def version(self) -> int:
        """The directory's version: audiences decided at another one may be others now."""
        return self._directory.version

    def decide_again(self, batches: Sequence[Batch]) -> None:
        """Decide anew for whom runs are that wait for their group, which starts now.

        Where there is nobody any more, no place for who there is, or one of them is too far
        behind, they have a `refusal` then; but for nobody so has what follows in the lane, so
        that nothing overtakes.
        """
        held: dict[tuple[str, str, str], LimitReached | LogFull] = {}
        addressed: _Addressed = {}
        for batch in batches:
            lane = batch.lane
            refusal: Refused | LimitReached | LogFull | None = held.get(lane)
            audience = NOBODY
            if refusal is None:
                try:
                    audience = self._audience_now(batch, addressed)
                    if batch.promise is not None:
                        _check_enough(batch.promise.need, audience)
                except (NoReceiver, UnknownReceiver, Forbidden, TooFewReceivers) as nobody:
                    refusal = nobody.with_traceback(None)
                except (LimitReached, LogFull) as limit:
                    refusal = held[lane] = limit.with_traceback(None)
                else:
                    full = None if batch.due_at else self._backlogs.full(audience)
                    if full is not None:
                        audience, refusal = NOBODY, held.setdefault(lane, BacklogFull(full))
            batch.audience.waiting -= 1
            audience.waiting += 1
            batch.audience, batch.refusal = audience, refusal

    def _audience_now(self, batch: Batch, addressed: _Addressed) -> Audience:
        if isinstance(batch.refusal, Forbidden):
            raise batch.refusal  # whoever receives what: its sender may not send it
        if batch.addressed:
            if isinstance(batch.refusal, UnknownReceiver):
                raise batch.refusal  # one of the names was nobody's when it came
            return self._addressed_now(batch, addressed)
        path: Sequence[str] = ()
        if batch.origin is not None and len(batch.origin.path) > 1:  # passed on by a node
            path = batch.origin.path[:-1]
            if not self._own_ids.isdisjoint(path):
                return self._directory.nobody()
        audience = self._matching(batch.subject, batch.options.flags, path)
        if batch.options.flags & FLAG_REQUIRE and not audience.members:
            raise NoReceiver(batch.subject)
        return NOBODY if batch.due_at else audience

    def decide_due(self, batches: Sequence[Batch], held: set[Lane]) -> list[Batch]:
        """Decide for whom runs are that are due, in the group that starts now; return those.

        They were accepted, so nobody's backlog is asked about; whom their senders named, they are
        for, be it that one of them was removed. One without a place for its receivers, or among
        what is retained, waits on, and so does what is behind it in its lane: that is added to
        `held`, and nothing of what is in there goes.
        """
        decided: list[Batch] = []
        before: tuple[str, int, Sequence[str]] | None = None  # of the one before; and who got it
        audience = NOBODY
        for batch in batches:
            if held and batch.lane in held:
                continue
            if not batch.addressed:
                path = () if batch.origin is None else batch.origin.path[:-1]
                flags = batch.options.flags
                wanted = (batch.subject, flags, path)
                try:
                    if flags & FLAG_RETAIN:
                        self._check_room(batch)
                    if wanted != before:
                        if self._own_ids.isdisjoint(path):
                            audience = self._matching(batch.subject, flags, path)
                        else:
                            audience = self._directory.nobody()
                        before = wanted
                    batch.audience = audience
                except (LimitReached, LogFull):
                    held.add(batch.lane)
                    continue  # which is said where it was handed in
                if flags & FLAG_RETAIN:
                    self._retained.coming(batch.subject, batch.size)
            batch.audience.waiting += 1
            decided.append(batch)
        return decided

    def _check_room(self, batch: Batch) -> None:
        """Raise `LimitReached` unless there is room to retain what is due, or it clears."""
        try:
            self._retained.check_room(batch.subject, batch.size)
        except LimitReached:
            if Retained.of(batch) is not None:
                raise

    def _addressed_now(self, batch: Batch, addressed: _Addressed) -> Audience:
        key = batch.audience.number, batch.sender
        found = addressed.get(key)
        if found is None:
            try:
                found = self._directory.audience_again(batch.audience, batch.sender)
            except (UnknownReceiver, LimitReached, LogFull) as error:
                found = error.with_traceback(None)
            addressed[key] = found
        if isinstance(found, Exception):
            raise found
        return found

    def full(self, audience: Audience, *, delayed: bool = False) -> str | None:
        """Why there is no room now for messages to this audience, or None."""
        return self._log.room().full or (None if delayed else self._backlogs.full(audience))

    def batch(
        self,
        transfer: Transfer,
        messages: Sequence[WireMessage],
        raw: memoryview,
        audience: Audience,
        *,
        sender: str,
        incarnation: str,
        incarnation_hash: str,
        scope: str,
        refusal: Refused | None = None,
        key: str | None = None,
    ) -> Batch:
        """Return what is stored of a run: the bytes that came. `raw`: the same bytes.

        `refusal`: why it is not, unless it was stored before. `scope`: within which its key counts.
        `key`: of the run as a whole, where none of its messages has one.
        """
        first, came, flags = transfer.sequence, transfer.origin, transfer.flags
        own = (self._log_id,)
        if came is None:
            origin = Origin(sender, first, incarnation_hash, own)
        else:
            origin = Origin(came.sender, came.sequence, came.incarnation, came.path + own)
            flags = self._flags_of(transfer, came.path)
        tagged = [m for m in messages if m.id is not None]
        batch = Batch(  # by position, once a run: by name 180 ns become 260
            sender,
            incarnation,
            first,
            len(messages),
            transfer.subject,
            audience,
            transfer.messages,
            raw.nbytes,
            zlib.crc32(raw),
            first - 1 if transfer.after is None else transfer.after,
            options_of(flags),
            _ids(messages) if tagged else (),
            origin,
            floor=transfer.floor,
            addressed=transfer.to is not None,
            refusal=refusal,
        )
        # Of a node's no key counts: across a chain those of two producers would collide.
        used = messages[0].key or key
        if used is not None and came is None:
            batch.key = _key_use(scope, transfer, messages, used)
        if transfer.delay:
            batch.due_at = self._due.now() + transfer.delay
        if transfer.ttl is not None:
            batch.expires_at = self._due.now() + transfer.ttl
        if type(transfer) is Promised and (promise := transfer.promise) is not None:
            until = self._due.now() + promise.within
            batch.promise = PromiseKept(promise.need, until, promise.cancels)
        return batch


def _enough(audience: Audience, transfer: Transfer) -> Audience:
    """Return an audience; `TooFewReceivers` where it cannot keep what the run is promised."""
    if type(transfer) is Promised and transfer.promise is not None:
        _check_enough(transfer.promise.need, audience)
    return audience


def _check_enough(need: int, audience: Audience) -> None:
    """Raise `TooFewReceivers` unless so many are there; of 0, which is all, one at least."""
    found = len(audience.members)
    if max(1, need) > found:
        raise TooFewReceivers(f"{need}/{found}")


def _check_delay(transfer: Transfer) -> None:
    """Raise `Refused` for a delay that is too long."""
    assert transfer.delay is not None
    if transfer.delay > TIME_DAYS_MAX * 24 * 3600 * 1000:
        raise Refused(f"a delay of {transfer.delay} ms, at most {TIME_DAYS_MAX} days allowed")


def _path_of(transfer: Transfer, node_log: str) -> Sequence[str]:
    """Return the logs that a run has passed, newest last; none of one that its producer hands in.

    Raises `Refused` for an `origin`, and for flags, that only nodes say: forged, an
    origin would put a run into another sender's lane, and make a receiver that knows messages by
    their identity drop the real one. A node says both only of what it passes on itself: its own log
    is the newest of the path.
    """
    origin = transfer.origin
    if not node_log:
        if origin is not None:
            raise Refused("'origin' is taken from nodes only")
        if transfer.flags & FLAG_REPLAY:
            raise Refused("the flag 'replay' (2) is taken from nodes only")
        if transfer.flags & FLAG_RETAINED:
            raise Refused("the flag 'this was retained' (16) is taken from nodes only")
        return ()
    if origin is None:
        raise Refused("a node says the 'origin' of what it passes on")
    check_name(origin.sender)
    for text in (origin.incarnation, *origin.path):
        check_word(text)
    if not origin.path or origin.path[-1] != node_log:
        raise Refused("the newest log of an origin's path is not that of the node it came from")
    if len(origin.path) >= PATH_MAX:
        raise PathTooLong(len(origin.path) + 1, PATH_MAX)
    return origin.path


def _check_known(transfer: Transfer, known: bool) -> None:
    """Raise `Refused` for elements and flags that this node does not know.

    What is not known is not stored either: it could ask for something that would not be done.
    """
    flags = transfer.flags
    if flags & FLAG_UNKNOWN_ELEMENT:
        raise Refused("a TRANSFER with more elements than this node knows")
    if flags & ~FLAGS_KNOWN:
        raise Refused(f"flags {flags & ~FLAGS_KNOWN} are not known to this node")
    if not known:
        raise Refused("a message with more elements than this node knows")


def _check_keys(messages: Sequence[WireMessage]) -> None:
    """Raise `Refused` for a key that is none, and for a run with one of which more is a part.

    So what is known of a key is known of all of its run.
    """
    for message in messages:
        if message.key is not None:
            check_key(message.key)
    if len(messages) > 1:
        raise Refused(
            f"a message with an idempotency key travels alone, not in a run of {len(messages)}"
        )


def _key_use(
    scope: str, transfer: Transfer, messages: Sequence[WireMessage], key: str | None
) -> KeyUse:
    """Return the use of a run's key: of a retry the same, whatever its headers trace."""
    assert key is not None
    content = blake2b(digest_size=16)
    _add(content, transfer.subject.encode())
    _add(content, b"" if transfer.to is None else "\0".join(sorted(set(transfer.to))).encode())
    for message in messages:
        _add(content, (content_type_of(message.headers) or "").encode())
        _add(content, message.body)
    return KeyUse(digest_of_key(scope, key), content.digest(), key)


def _add(to: blake2b, part: bytes) -> None:
    to.update(len(part).to_bytes(8, "big"))
    to.update(part)


def _ids(messages: Sequence[WireMessage]) -> tuple[tuple[int, str], ...]:
    limit = 1 << BATCH_INDEX_BITS
    assert len(messages) <= limit
    return tuple((i, m.id) for i, m in enumerate(messages) if m.id is not None)
