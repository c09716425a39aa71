"""Whether a run of messages may be taken in, and for whom it is: its checks and its audience.

All that can be refused is refused here, before anything is stored. Nothing here belongs to a
connection; what one sender may have unanswered is the business of `ingress`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from msgservice.codecs import content_type_of
from msgservice.core.frames import Transfer
from msgservice.core.subjects import check_key
from msgservice.errors import (
    Forbidden,
    LimitReached,
    LogFull,
    MalformedFrame,
    MessageTooLarge,
    NoReceiver,
    NotYetBuilt,
    Refused,
    UnknownReceiver,
)
from msgservice.interfaces import ILog
from msgservice.limits import BATCH_INDEX_BITS, BATCH_MESSAGES_MAX, TIME_DAYS_MAX, Limits
from msgservice.message import (
    FLAG_REPLAY,
    FLAG_REQUIRE,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
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
from msgservice.records import NOBODY, Audience, Batch, KeyUse, Origin

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
    ) -> None:
        self._retained = retained
        self._directory = directory
        self._backlogs = backlogs
        self._log = log
        self._log_id = log_id
        self._limits = limits
        self._due = due

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
    ) -> Audience:
        """Return the audience of a run as it is now; its group may `decide_again`.

        Raises `Refused`, `BadSubject` or `BadName` for what is never taken, `LimitReached` for
        what may be later. A name in `to` that `rights` do not allow is unknown, as one that nobody
        has: a sender does not learn which.
        """
        _check_origin(transfer, known)
        subject = transfer.subject
        directory, limits = self._directory, self._limits
        directory.check(subject)
        if not rights.allows("send", subject):
            raise Forbidden("send", subject)
        if size > limits.max_batch:
            raise MessageTooLarge(size, limits.max_batch)
        if transfer.ttl is not None and transfer.ttl > TIME_DAYS_MAX * 24 * 3600 * 1000:
            raise Refused(f"a ttl of {transfer.ttl} ms, at most {TIME_DAYS_MAX} days allowed")
        if transfer.delay is not None:
            raise NotYetBuilt("delay")
        if transfer.flags & (FLAG_RETAIN | FLAG_RETAIN_ONLY):
            self._check_retained(transfer, messages, size)
        if any([m.key is not None for m in messages]):  # noqa: C419 - a list is faster here
            _check_keys(messages, transfer)
        if transfer.to is not None:
            if len(transfer.to) > limits.receivers:
                raise Refused(
                    f"'to' has {len(transfer.to)} names, receivers = {limits.receivers} allowed"
                )
            for name in transfer.to:
                if not rights.allows("to", name):
                    raise UnknownReceiver(name)
            return directory.audience_of(transfer.to, sender)
        audience = self._matching(subject, transfer.flags)
        if transfer.flags & FLAG_REQUIRE and not audience.members:
            raise NoReceiver(subject)
        return audience

    def _matching(self, subject: str, flags: int) -> Audience:
        """Return the audience of who receives a subject; nobody, where it is only retained."""
        if flags & FLAG_RETAIN_ONLY:
            return self._directory.nobody()
        return self._directory.audience(subject)

    def _check_retained(
        self, transfer: Transfer, messages: Sequence[WireMessage], size: int
    ) -> None:
        """Raise `Refused`, or `LimitReached`, unless a run may be retained: its last message."""
        if not transfer.flags & FLAG_RETAIN:
            raise Refused("the flag 'retain, deliver to nobody' (8) without 'retain' (1)")
        if transfer.to is not None:
            raise Refused("what is retained is for who receives its subject: not with 'to'")
        if messages[-1].body:  # else it clears, which needs no room
            self._retained.check_room(transfer.subject, size)

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
            lane = (batch.sender, batch.incarnation, batch.subject)
            refusal: Refused | LimitReached | LogFull | None = held.get(lane)
            audience = NOBODY
            if refusal is None:
                try:
                    audience = self._audience_now(batch, addressed)
                except (NoReceiver, UnknownReceiver, Forbidden) as nobody:
                    refusal = nobody.with_traceback(None)
                except (LimitReached, LogFull) as limit:
                    refusal = held[lane] = limit.with_traceback(None)
                else:
                    full = self._backlogs.full(audience)
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
        audience = self._matching(batch.subject, batch.options.flags)
        if batch.options.flags & FLAG_REQUIRE and not audience.members:
            raise NoReceiver(batch.subject)
        return audience

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

    def full(self, audience: Audience) -> str | None:
        """Why there is no room now for messages to this audience, or None."""
        return self._log.room().full or self._backlogs.full(audience)

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
    ) -> Batch:
        """Return what is stored of a run: the bytes that came. `raw`: the same bytes.

        `refusal`: why it is not, unless it was stored before. `scope`: within which its key counts.
        """
        first = transfer.sequence
        tagged = [m for m in messages if m.id is not None]
        return Batch(  # by position, once a run: by name 180 ns become 260
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
            options_of(transfer.flags),
            _ids(messages) if tagged else (),
            Origin(sender, first, incarnation_hash, (self._log_id,)),
            floor=transfer.floor,
            addressed=transfer.to is not None,
            refusal=refusal,
            key=None if messages[0].key is None else _key_use(scope, transfer, messages[0]),
            expires_at=None if transfer.ttl is None else self._due.now() + transfer.ttl,
        )


def _check_origin(transfer: Transfer, known: bool) -> None:
    """Raise `Refused` for `origin` and `replay`, which only nodes say, and for unknown elements.

    No connection is a node's in this version. A forged origin would put a run into another
    sender's lane, and make a receiver that knows messages by their identity drop the real one.
    What is not known is not stored either: it could ask for something that would not be done.
    """
    if transfer.origin is not None:
        raise Refused("'origin' is taken from nodes only")
    flags = transfer.flags
    if flags & FLAG_REPLAY:
        raise Refused("the flag 'replay' (2) is taken from nodes only")
    if flags & FLAG_UNKNOWN_ELEMENT:
        raise Refused("a TRANSFER with more elements than this node knows")
    if flags & ~FLAGS_KNOWN:
        raise Refused(f"flags {flags & ~FLAGS_KNOWN} are not known to this node")
    if not known:
        raise Refused("a message with more elements than this node knows")


def _check_keys(messages: Sequence[WireMessage], transfer: Transfer) -> None:
    """Raise `Refused` for a key that is none, and for a run with one of which more is a part.

    So what is known of a key is known of all of its run.
    """
    if transfer.delay is not None:
        raise Refused("an idempotency key and a delay together are not supported by this version")
    for message in messages:
        if message.key is not None:
            check_key(message.key)
    if len(messages) > 1:
        raise Refused(
            f"a message with an idempotency key travels alone, not in a run of {len(messages)}"
        )


def _key_use(scope: str, transfer: Transfer, message: WireMessage) -> KeyUse:
    """Return the use of a message's key: of a retry the same, whatever its headers trace."""
    assert message.key is not None
    digest, content = blake2b(digest_size=16), blake2b(digest_size=16)
    for text in (scope, message.key):
        _add(digest, text.encode())
    _add(content, transfer.subject.encode())
    _add(content, b"" if transfer.to is None else "\0".join(sorted(set(transfer.to))).encode())
    _add(content, (content_type_of(message.headers) or "").encode())
    _add(content, message.body)
    return KeyUse(digest.digest(), content.digest(), message.key)


def _add(to: blake2b, part: bytes) -> None:
    to.update(len(part).to_bytes(8, "big"))
    to.update(part)


def _ids(messages: Sequence[WireMessage]) -> tuple[tuple[int, str], ...]:
    limit = 1 << BATCH_INDEX_BITS
    assert len(messages) <= limit
    return tuple((i, m.id) for i, m in enumerate(messages) if m.id is not None)
