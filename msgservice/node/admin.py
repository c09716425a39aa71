"""Administration by REQUEST to `$node.*`: JSON to operations and back (PROTOCOL: Administration).

What can be asked is in `msgservice.administration`, and done in `operations`; who may is the gate's
to say, by the pass of who asks. Here is how it is said. An error is answered as `ok = false` with a
sentence, and its code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from msgservice.administration import (
    AUDIT,
    DEAD_DROP,
    DEAD_GET,
    DEAD_LIST,
    DEAD_REQUEUE,
    DELAYED_CANCEL,
    DELAYED_LIST,
    INFO,
    OBSERVE,
    PEEK,
    PEEK_GET,
    RECEIVERS_ADD,
    RECEIVERS_CHANGE,
    RECEIVERS_LIST,
    RECEIVERS_OWN,
    RECEIVERS_PAUSE,
    RECEIVERS_PURGE,
    RECEIVERS_REMOVE,
    RECEIVERS_REPLAY,
    RECEIVERS_RESUME,
    RECEIVERS_REWIND,
    RECEIVERS_REWIND_CANCEL,
    RECEIVERS_REWIND_COUNT,
    RECEIVERS_TEST,
    RECEIVERS_WHY,
    RELOAD,
    RETAINED_CLEAR,
    RETAINED_GET,
    RETAINED_LIST,
    RETELL,
    STATUS,
    UNDO,
    WHOAMI,
    WHY,
    AskObserved,
    AskRetell,
    AskStatus,
    AskUndo,
    CancelDelayed,
    CancelledTold,
    ClearRetained,
    DelayedPage,
    DelayedTold,
    Discrepancies,
    DropDead,
    GetDead,
    GetRetained,
    LetterPage,
    LetterPart,
    LettersTouched,
    LetterTold,
    ListDead,
    ListDelayed,
    ListReceivers,
    ListRetained,
    Name,
    NodeInfo,
    Nothing,
    ObservedPage,
    Operation,
    Owned,
    OwnReceiver,
    Paused,
    PeekAsked,
    PeekGet,
    PeekPage,
    PeekPart,
    PeekTold,
    PurgeReceiver,
    PurgeTold,
    ReceiverPage,
    ReceiverWhy,
    Reloaded,
    Removal,
    RemoveReceiver,
    ReplayTold,
    RequeueDead,
    Resumed,
    RetainedCleared,
    RetainedPage,
    RetainedPart,
    RetainedTold,
    Rewind,
    StatusPage,
    StatusTold,
    Tested,
    UndoTold,
    Whoami,
    WhyPage,
)
from msgservice.config.addresses import check_given_address
from msgservice.core.frames import Reply, Request
from msgservice.core.reasons import REASON_KEPT_MAX, first_line
from msgservice.errors import (
    MESSAGE_IDS,
    BadValue,
    MsgServiceError,
    NoResponder,
    UnknownMessage,
    UnknownReceiver,
)
from msgservice.limits import BATCH_MESSAGES_MAX, Limits
from msgservice.message import WireMessage, decode_messages
from msgservice.node.admin_pages import Page, message_part
from msgservice.node.gate import Pass
from msgservice.node.letters import DROP, REQUEUE, Touched, Wanted
from msgservice.node.observe import Observer
from msgservice.node.operations import Operations, sender_of, word_of
from msgservice.node.peek import Peeked
from msgservice.node.replies import message, refusal
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import (
    DeadLetter,
    Retained,
    hash_of,
    identity_of,
    scope_of_sender,
    scope_of_user,
)

PEEKED_MAX = 256  # messages that are looked at in one request: each is decoded for its id
LOOKS = 8  # pages of dead letters that one request looks through, where few of them fit

DELAYED_LOOKS = 20  # pages of the log that one answer goes through, where most is others'
TO_SHOWN = 100  # names of one run's receivers

_to_json = msgspec.json.Encoder().encode

A = TypeVar("A", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)
Handler = Callable[[Any, Pass], Awaitable[msgspec.Struct]]


class Gate(Protocol):
    """The gate of a node: what it knows of users, and its log (`gate`)."""

    def names(self, user: str) -> Sequence[str]:
        """Return the patterns of names that a user may have."""

    def senders(self, user: str) -> Sequence[str]:
        """Return the patterns of the senders whose messages are a user's own."""

    def changed(self, who: Pass, what: str) -> None:
        """Somebody changes something of the node, which was allowed."""

    def holds(self, given: Pass) -> bool:
        """Return whether a pass would be given again."""

    def ended(self, given: Pass) -> MsgServiceError:
        """Return what ends the connection of a peer whose pass holds no longer."""


def _by(
    operation: Operation[A, R], handler: Callable[[A, Pass], Awaitable[R]]
) -> tuple[Operation[Any, Any], Handler]:
    """Return an operation with its handler, which takes and returns what the operation says."""
    return operation, handler


def _letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "position": letter.position,
        # Of one that was sent again, or passed on by a node, who sent it first.
        "sender": letter.identity,
        "sequence": letter.sequence if letter.origin is None else letter.origin.sequence,
        "subject": letter.subject,
        "id": decode_messages(letter.message)[0].id,
        "size": letter.size,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "at": letter.at,
        "code": letter.code,
    }


def _peeked(one: Peeked) -> dict[str, Any]:
    batch = one.batch
    return {
        "position": one.position,
        "sender": identity_of(batch.sender, batch.incarnation, one.sequence),
        "sequence": one.sequence,
        "subject": batch.subject,
        "id": decode_messages(one.message)[0].id,
        "size": len(one.message),
        "stored_at": batch.stored_at,
        "status": word_of(one.status),
        "attempts": one.attempts,
        "reason": one.reason,
    }


def _scopes(sender: str, who: Pass, own: Sequence[str] | None) -> list[str]:
    """Return the scopes in which a key is looked for; `own`: of the senders that may be asked for.

    Whoever logs in has one, whatever its senders are called.
    """
    user = who.principal.user
    scopes = [scope_of_user(user)] if user else []
    if sender:
        scopes.append(scope_of_sender(sender))
        if own is None:
            scopes.append(scope_of_user(sender))
    return scopes


def _wanted(asked: ListDead | DropDead) -> Wanted:
    return Wanted(
        of=asked.of,
        subject=asked.subject,
        reason=asked.reason,
        code=asked.code,
        since=asked.since,
        until=asked.until,
    )


def _retained(one: Retained) -> dict[str, Any]:
    origin = one.origin
    return {
        "subject": one.subject,
        "position": one.position,
        "sender": f"{origin.sender}/{origin.incarnation}/{origin.sequence}",
        "size": len(one.message),
        "stored_at": one.stored_at,
    }


class Admin:
    """The handler of requests to `$node.*`."""

    _logger = Logger()

    def __init__(
        self, operations: Operations, observer: Observer, gate: Gate, limits: Limits
    ) -> None:
        self._operations, self._observer = operations, observer
        self._gate = gate
        self._limits = limits
        self._handlers = {
            operation.right: (operation, handler)
            for operation, handler in (
                _by(INFO, self._info),
                _by(OBSERVE, self._observe),
                _by(RECEIVERS_LIST, self._list),
                _by(RECEIVERS_ADD, self._add),
                _by(RECEIVERS_CHANGE, self._change),
                _by(RECEIVERS_PAUSE, self._pause),
                _by(RECEIVERS_RESUME, self._resume),
                _by(RECEIVERS_REMOVE, self._remove),
                _by(RECEIVERS_PURGE, self._purge),
                _by(RECEIVERS_OWN, self._own),
                _by(RECEIVERS_TEST, self._test),
                _by(RECEIVERS_REWIND, self._rewind),
                _by(RECEIVERS_REWIND_COUNT, self._rewind_count),
                _by(RECEIVERS_REWIND_CANCEL, self._rewind_cancel),
                _by(RECEIVERS_REPLAY, self._replay),
                _by(STATUS, self._status),
                _by(WHY, self._why),
                _by(RECEIVERS_WHY, self._receiver_why),
                _by(DEAD_LIST, self._dead),
                _by(DEAD_GET, self._dead_get),
                _by(DEAD_REQUEUE, self._dead_requeue),
                _by(DEAD_DROP, self._dead_drop),
                _by(PEEK, self._peek),
                _by(PEEK_GET, self._peek_get),
                _by(RETAINED_LIST, self._retained),
                _by(RETAINED_GET, self._retained_get),
                _by(RETAINED_CLEAR, self._retained_clear),
                _by(DELAYED_LIST, self._delayed),
                _by(DELAYED_CANCEL, self._cancel),
                _by(RETELL, self._retell),
                _by(UNDO, self._undo),
                _by(RELOAD, self._reload),
                _by(AUDIT, self._audit),
                _by(WHOAMI, self._whoami),
            )
        }

    def answer(self, request: Request, who: Pass) -> Deferred[Reply]:
        """Answer each call of a request, as far as who asks may know and do it; never fails."""
        return Deferred.fromCoroutine(self._answer(request, who))

    async def _answer(self, request: Request, who: Pass) -> Reply:
        calls = decode_messages(request.messages)
        replies = []
        for index, call in enumerate(calls):
            ok, said = await self._call(request.subject, call, who)
            replies.append((request.id + index, ok, said))
        return Reply(replies)

    async def _call(self, subject: str, call: WireMessage, who: Pass) -> tuple[bool, msgspec.Raw]:
        try:
            return True, message(await self.ask(subject, call.body, who))
        except MsgServiceError as error:
            return False, refusal(str(error), error.refusal_code)
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:  # of the arguments
            return False, refusal(str(error), BadValue.refusal_code)
        except Exception:
            self._logger.failure("request {subject} failed", subject=subject)
            return False, refusal("internal error: see the node's log")

    async def ask(self, subject: str, arguments: bytes, who: Pass) -> bytes:
        """Return the answer to one call, both as JSON. Raises what it is refused for.

        `NoResponder` for a subject that nobody answers; msgspec's errors for arguments of another
        shape.
        """
        known = self._handlers.get(subject)
        if known is None:
            raise NoResponder(subject)
        operation, handler = known
        if not self._gate.holds(who):
            # Calls before it took their time, and its connection has ended meanwhile.
            raise self._gate.ended(who)
        if not (operation.own and who.is_bound) and not who.allows("request", subject):
            raise who.refusal(subject)
        try:
            asked = msgspec.json.decode(arguments or b"{}", type=operation.asks)
        except msgspec.ValidationError as error:
            fields = ", ".join(operation.asks.__struct_encode_fields__) or "none"
            raise msgspec.ValidationError(f"{error} (fields: {fields})") from None
        if operation.changes:
            said = msgspec.json.encode(asked).decode()
            self._gate.changed(who, f"{operation.name} {said}")
        return _to_json(await handler(asked, who))

    async def _info(self, _: Nothing, who: Pass) -> NodeInfo:
        return self._operations.info()

    async def _observe(self, asked: AskObserved, who: Pass) -> ObservedPage:
        page = Page(asked.limit, self._limits)
        found = await self._observer.page(asked.after, page.rows_max)
        after = found.next
        for one in found.receivers:
            if not page.add(one.name, one):
                after = next(reversed(page.rows))
                break
        return ObservedPage(node=found.node, receivers=list(page.rows.values()), next=after)

    async def _list(self, asked: ListReceivers, who: Pass) -> ReceiverPage:
        if asked.name is not None:
            only = await self._operations.receiver(asked.name)
            return ReceiverPage(receivers=[only], next=None)
        page = Page(asked.limit, self._limits)
        after, more = asked.after, True
        while more and page.takes:
            states, more = await self._operations.receivers(after, page.step)
            for state in states:
                if not page.add(state.name, state):
                    more = True
                    break
                after = state.name
        return ReceiverPage(receivers=list(page.rows.values()), next=after if more else None)

    async def _add(self, asked: msgspec.Struct, who: Pass) -> Name:
        said = msgspec.structs.asdict(asked)
        name, subjects, address = said.pop("name"), said.pop("subjects"), said.pop("address")
        self._check_given(name, address, subjects, who)
        await self._operations.add(name, subjects, ReceiverOptions(**said), address=address)
        return Name(name)

    async def _change(self, asked: msgspec.Struct, who: Pass) -> Name:
        said = msgspec.structs.asdict(asked)
        name, subjects = said.pop("name"), said.pop("subjects")
        self._check_given(name, said["address"], subjects, who)
        await self._operations.change(name, patterns=subjects, **said)
        return Name(name)

    def _check_given(
        self, name: str, address: str | None, subjects: Sequence[str] | None, who: Pass
    ) -> None:
        """Raise for an address, or subjects, that a user may not give to the receiver of this name.

        `BadAddress` for an address that names what is the node's. `Forbidden` where the receiver is
        there and not the user's own: whoever answers at its address is its user, and gets what
        waits for it, so it is given away. Likewise where it is nobody's, and gets at its address
        what the user may not receive: no owner's rules bound that.
        """
        if not who.is_bound:
            return
        if address is not None:
            check_given_address(address)
        owner = self._operations.owner_of(name)
        row = self._operations.known(name)
        if owner == who.principal.user:
            return  # what it may receive is judged where it is changed
        gives_away = address is not None and (bool(owner) or row is not None)
        if not owner and (address or (row is not None and row.address)):
            gives_away |= not all(who.allows("receive", subject) for subject in subjects or ())
        if gives_away and not who.allows("request", f"$node.{RECEIVERS_OWN.name}"):
            raise who.refusal(f"$node.{RECEIVERS_OWN.name}")

    async def _pause(self, asked: Name, who: Pass) -> Paused:
        await self._operations.pause(asked.name, True)
        return Paused(name=asked.name, paused=True)

    async def _resume(self, asked: Name, who: Pass) -> Resumed:
        row = await self._operations.pause(asked.name, False)
        full = self._operations.letters_full(row)
        return Resumed(name=asked.name, paused=False, full=full)

    async def _remove(self, asked: RemoveReceiver, who: Pass) -> Removal:
        account = await self._operations.account(asked.name)
        dead = self._operations.dead_count(account.receiver)
        row = self._operations.known(asked.name)
        configured = True if row is not None and row.configured else msgspec.UNSET
        if asked.confirm is None:
            return Removal(queued=account.queued, dead=dead, configured=configured)
        removed = await self._operations.remove(asked.name, asked.confirm)
        return Removal(removed=removed, dead=dead, configured=configured)

    async def _purge(self, asked: PurgeReceiver, who: Pass) -> PurgeTold:
        page = await self._operations.purge(
            asked.name,
            asked.after,
            subject=asked.subject,
            end=asked.end,
            dry_run=asked.dry_run,
        )
        return PurgeTold(**msgspec.structs.asdict(page))

    async def _own(self, asked: OwnReceiver, who: Pass) -> Owned:
        await self._operations.own(asked.name, asked.user)
        return Owned(name=asked.name, user=asked.user)

    async def _test(self, asked: Name, who: Pass) -> Tested:
        tried = await self._operations.test(asked.name)
        return Tested(
            name=asked.name,
            taken=tried.is_taken,
            code=tried.code,
            reason=tried.reason,
            seconds=round(tried.seconds, 3),
        )

    async def _rewind(self, asked: Rewind, who: Pass) -> ReplayTold:
        return ReplayTold(name=asked.name, replay=await self._operations.rewind(asked))

    async def _rewind_count(self, asked: Rewind, who: Pass) -> ReplayTold:
        return ReplayTold(name=asked.name, replay=await self._operations.rewind_count(asked))

    async def _rewind_cancel(self, asked: Name, who: Pass) -> ReplayTold:
        return ReplayTold(name=asked.name, replay=await self._operations.call_off(asked.name))

    async def _replay(self, asked: Name, who: Pass) -> ReplayTold:
        return ReplayTold(name=asked.name, replay=self._operations.replay(asked.name))

    async def _whoami(self, _: Nothing, who: Pass) -> Whoami:
        user = who.principal.user
        return Whoami(
            user=user or None,
            how=who.principal.how,
            names=self._gate.names(user),
            send=who.rules.patterns("send"),
            to=who.rules.patterns("to"),
            receive=who.rules.patterns("receive"),
            request=who.rules.patterns("request"),
        )

    async def _status(self, asked: AskStatus, who: Pass) -> StatusPage:
        page = Page(asked.limit, self._limits)
        own = self._gate.senders(who.principal.user) if who.is_bound and not who.sees_all else None
        found, statuses = await self._operations.status(asked.id, asked.after, page.rows_max, own)
        if not (who.sees_all or who.has_sent(found.sender)):
            raise UnknownMessage(asked.id)  # as of one that there is not
        # Some that the log told of may be in no answer, since nothing is known of them any more.
        after, more = max(found.states, default=asked.after), found.more
        for at in statuses:
            reason = at.reason if who.sees_all else first_line(at.reason)
            told = StatusTold(word_of(at.status), at.attempts, reason, at.copy, at.copy_to)
            if not page.add(at.receiver, told):
                after, more = at.number - 1, True
                break
        return StatusPage(
            position=found.position,
            sender=sender_of(found),
            sequence=found.sequence,
            subject=found.subject,
            stored_at=found.stored_at,
            receivers=page.rows,
            next=after if more else None,
            due=found.due or None,
            removed=found.removed,
            promise=None if asked.after else await self._operations.promise(found),
        )

    async def _why(self, asked: AskStatus, who: Pass) -> WhyPage:
        page = Page(asked.limit, self._limits)
        own = self._gate.senders(who.principal.user) if who.is_bound and not who.sees_all else None
        found, causes = await self._operations.why(
            asked.id, asked.after, page.rows_max, own, sees_all=who.sees_all
        )
        if not (who.sees_all or who.has_sent(found.sender)):
            raise UnknownMessage(asked.id)  # as of one that there is not
        after, more = max(found.states, default=asked.after), found.more
        for place, (number, cause) in enumerate(causes):
            # Those that are no receivers of it are few, and come with the last.
            if not page.add(str(place), cause) and number >= 0:
                after, more = number - 1, True
                break
        return WhyPage(
            position=found.position,
            sender=sender_of(found),
            sequence=found.sequence,
            subject=found.subject,
            stored_at=found.stored_at,
            causes=list(page.rows.values()),
            next=after if more else None,
            due=found.due or None,
            removed=found.removed,
            promise=None if asked.after else await self._operations.promise(found),
        )

    async def _receiver_why(self, asked: Name, who: Pass) -> ReceiverWhy:
        return await self._operations.receiver_why(asked.name)

    def _own_senders(self, who: Pass, right: str) -> Sequence[str] | None:
        """Return the patterns of the senders that somebody may ask about; None: of everybody."""
        if not who.is_bound or who.allows("request", right):
            return None
        return self._gate.senders(who.principal.user)

    async def _delayed(self, asked: ListDelayed, who: Pass) -> DelayedPage:
        page = Page(asked.limit, self._limits)
        own = self._own_senders(who, DELAYED_LIST.right)
        after, more, looks = asked.after, True, 0
        while more and page.takes and looks < DELAYED_LOOKS:
            looks += 1
            found = await self._operations.delayed(after, page.step)
            more = bool(found)
            for one in found:
                if own is None or who.has_sent(one.sender):
                    to = None if one.to is None else self._operations.names_of(one.to[:TO_SHOWN])
                    told = DelayedTold(
                        id=one.id,
                        due=one.due_at,
                        sender=identity_of(one.sender, one.incarnation, one.first),
                        messages=one.last - one.first + 1,
                        subject=one.subject,
                        message_id=dict(one.ids[:1]).get(0),
                        to=to,
                        size=one.size,
                        accepted_at=one.accepted_at,
                        expires=one.expires_at,
                    )
                    if not page.add(str(one.id), told):
                        break
                after = (one.due_at, one.id)
        return DelayedPage(delayed=list(page.rows.values()), next=after if more else None)

    async def _cancel(self, asked: CancelDelayed, who: Pass) -> CancelledTold:
        if asked.count > BATCH_MESSAGES_MAX:  # fewer would be cancelled than was asked for
            raise BadValue("count", f"= {asked.count}: at most {BATCH_MESSAGES_MAX} at once")
        own = self._own_senders(who, DELAYED_CANCEL.right)
        # One sentence for all: who may not ask about it hears the same of one that there is not.
        unknown = UnknownMessage(
            asked.id,
            f"no message {asked.id!r} waits until it is due (an id is {MESSAGE_IDS})",
        )
        try:
            found = await self._operations.waiting(asked.id, own)
        except UnknownMessage:
            raise unknown from None
        if own is not None and not who.has_sent(found.sender):
            raise unknown
        if not found.due:
            raise unknown
        by = f"{asked.reason or 'cancelled'} (by {who})"
        count, behind = asked.count, None
        place = await self._operations.place_of(asked.id) if count > 1 else None
        if place is not None and place[:2] != (found.sender, found.incarnation):
            # It was taken by its key, as another's: what that one sent next is not meant.
            sender, incarnation, first = place
            behind = msgspec.structs.replace(
                found, sender=sender, incarnation=incarnation, sequence=first + 1
            )
            count = 1
        ranges = [*await self._operations.cancel(found, count, by[:REASON_KEPT_MAX])]
        if behind is not None:
            with suppress(UnknownMessage):
                left = asked.count - 1
                ranges += await self._operations.cancel(behind, left, by[:REASON_KEPT_MAX])
        return CancelledTold(
            sender=sender_of(found),
            subject=found.subject,
            cancelled=sum(last - first + 1 for first, last in ranges),
        )

    async def _retell(self, asked: AskRetell, who: Pass) -> Nothing:
        own = self._own_senders(who, RETELL.right)
        sender, incarnation, first = await self._operations.of_sender(asked.id)
        if own is not None and not who.has_sent(sender):
            raise UnknownMessage(asked.id)  # as of one that there is not
        self._operations.tell_again(sender, incarnation, first, first + asked.count - 1)
        return Nothing()

    async def _undo(self, asked: AskUndo, who: Pass) -> UndoTold:
        own = self._own_senders(who, UNDO.right)
        if bool(asked.id) == bool(asked.key):
            raise BadValue("id", "or `key` is to be said, one of both")
        id_ = asked.id
        if asked.key:
            id_ = await self._operations.of_key(_scopes(asked.sender, who, own), asked.key)
        # What was taken by its key is found as another sender's message, which those that this one
        # has sent next are not behind.
        place = await self._operations.place_of(id_)
        subject = ""
        try:
            found = await self._operations.message(id_, own)
            subject = found.subject
            place = place or (found.sender, found.incarnation, found.sequence)
        except UnknownMessage:
            # Those behind it are undone all the same: a page may begin where nothing is left.
            if asked.count == 1 or place is None:
                raise
        sender, incarnation, first = place
        if own is not None and not who.has_sent(sender):
            raise UnknownMessage(asked.id or asked.key)  # as of one that there is not
        by = f"{asked.reason or 'undone'} (by {who})"
        key = (sender, incarnation)
        done = await self._operations.undo(key, first, asked.count, by[:REASON_KEPT_MAX])
        of = f"{sender}/{hash_of(incarnation)}"
        return UndoTold(
            sender=f"{of}/{first}",
            subject=subject,
            messages=done.messages,
            receivers=done.receivers,
            next=f"{of}/{done.next}" if done.next is not None else None,
            left=0 if done.next is None else asked.count - (done.next - first),
        )

    async def _dead(self, asked: ListDead, who: Pass) -> LetterPage:
        page, wanted = Page(asked.limit, self._limits), _wanted(asked)
        after: int | None = asked.after
        for _ in range(LOOKS):
            if after is None or not page.takes:
                break
            letters, after = await self._operations.letters.list(
                asked.receiver, after, page.step, wanted=wanted
            )
            for one in letters:
                if not page.add(str(one.position), LetterTold(**_letter(one))):
                    after = one.position - 1
                    break
        return LetterPage(dead=list(page.rows.values()), next=after)

    async def _retained(self, asked: ListRetained, who: Pass) -> RetainedPage:
        page = Page(asked.limit, self._limits)
        after, more = asked.after, True
        while more and page.takes:
            found = await self._operations.retained(after, page.step)
            more = bool(found)
            for one in found:
                if not page.add(one.subject, RetainedTold(**_retained(one))):
                    break
                after = one.subject
        return RetainedPage(retained=list(page.rows.values()), next=after if more else None)

    async def _retained_get(self, asked: GetRetained, who: Pass) -> RetainedPart:
        one = await self._operations.retained_of(asked.subject)
        begin, end = asked.offset, asked.offset + message_part(self._limits)
        return RetainedPart(
            **_retained(one),
            message=one.message[begin:end],
            next=end if end < len(one.message) else None,
        )

    async def _retained_clear(self, asked: ClearRetained, who: Pass) -> RetainedCleared:
        return RetainedCleared(await self._operations.clear_retained(asked.subjects))

    async def _dead_get(self, asked: GetDead, who: Pass) -> LetterPart:
        letter = await self._operations.letters.show(asked.receiver, asked.position)
        begin, end = asked.offset, asked.offset + message_part(self._limits)
        return LetterPart(
            **_letter(letter),
            message=letter.message[begin:end],
            next=end if end < len(letter.message) else None,
        )

    async def _dead_requeue(self, asked: RequeueDead, who: Pass) -> LettersTouched:
        # Who may treat the letters of a receiver may not choose who else gets them.
        if asked.to not in (None, asked.receiver) and not who.allows("to", asked.to or ""):
            raise UnknownReceiver(asked.to or "")
        return await self._dead_touch(REQUEUE, asked, asked.to)

    async def _dead_drop(self, asked: DropDead, who: Pass) -> LettersTouched:
        return await self._dead_touch(DROP, asked, None)

    async def _dead_touch(self, act: str, asked: DropDead, to: str | None) -> LettersTouched:
        letters = self._operations.letters
        touched: Touched = await letters.page(
            act, asked.receiver, _wanted(asked), asked.after, to=to, dry_run=asked.dry_run
        )
        return LettersTouched(**msgspec.structs.asdict(touched))

    async def _peek(self, asked: PeekAsked, who: Pass) -> PeekPage:
        page = Page(asked.limit, self._limits)
        peek, count = self._operations.peek, min(page.rows_max, PEEKED_MAX)
        found, after = await peek.next(asked.receiver, asked.after, count)
        for one in found:
            if not page.add(str(one.position), PeekTold(**_peeked(one))):
                after = one.position - 1
                break
        return PeekPage(messages=list(page.rows.values()), next=after)

    async def _peek_get(self, asked: PeekGet, who: Pass) -> PeekPart:
        one = await self._operations.peek.one(asked.receiver, asked.position)
        begin, end = asked.offset, asked.offset + message_part(self._limits)
        following = end if end < len(one.message) else None
        return PeekPart(**_peeked(one), message=one.message[begin:end], next=following)

    async def _reload(self, _: Nothing, who: Pass) -> Reloaded:
        return Reloaded(await self._operations.reload())

    async def _audit(self, _: Nothing, who: Pass) -> Discrepancies:
        return Discrepancies(await self._operations.audit())
