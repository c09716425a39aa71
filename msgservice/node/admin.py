"""Administration by REQUEST to `$node.*`: JSON to operations and back (PROTOCOL: Administration).

Open to local connections. What can be asked is in `msgservice.administration`, and done in
`operations`; here is how it is said. An error is answered as `ok = false` with a sentence, and its
code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from msgservice.administration import (
    AUDIT,
    DEAD_GET,
    DEAD_LIST,
    INFO,
    RECEIVERS_ADD,
    RECEIVERS_CHANGE,
    RECEIVERS_LIST,
    RECEIVERS_PAUSE,
    RECEIVERS_REMOVE,
    RECEIVERS_RESUME,
    RELOAD,
    STATUS,
    AskStatus,
    Discrepancies,
    GetDead,
    LetterPage,
    LetterPart,
    LetterTold,
    ListDead,
    ListReceivers,
    Name,
    NodeInfo,
    Nothing,
    Operation,
    Paused,
    ReceiverPage,
    Reloaded,
    Removal,
    RemoveReceiver,
    Resumed,
    StatusPage,
    StatusTold,
)
from msgservice.core.frames import Reply, Request
from msgservice.core.subjects import is_reserved
from msgservice.errors import BadValue, MsgServiceError, NoResponder, NotAuthenticated
from msgservice.limits import Limits
from msgservice.message import Status, WireMessage, decode_messages
from msgservice.node.admin_pages import Page, message_part
from msgservice.node.operations import Operations, word_of
from msgservice.node.replies import message, refusal
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import DeadLetter, Found, hash_of

_to_json = msgspec.json.Encoder().encode

A = TypeVar("A", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)
Handler = Callable[[Any], Awaitable[msgspec.Struct]]


def _by(
    operation: Operation[A, R], handler: Callable[[A], Awaitable[R]]
) -> tuple[Operation[Any, Any], Handler]:
    """Return an operation with its handler, which takes and returns what the operation says."""
    return operation, handler


def _sender(of: Found | DeadLetter) -> str:
    return f"{of.sender}/{hash_of(of.incarnation)}/{of.sequence}"


def _letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "position": letter.position,
        "sender": _sender(letter),
        "sequence": letter.sequence,
        "subject": letter.subject,
        "id": decode_messages(letter.message)[0].id,
        "size": len(letter.message),
        "reason": letter.reason,
        "attempts": letter.attempts,
        "at": letter.at,
    }


class Admin:
    """The handler of requests to `$node.*`."""

    _logger = Logger()

    def __init__(self, operations: Operations, limits: Limits) -> None:
        self._operations = operations
        self._limits = limits
        self._handlers = {
            operation.right: (operation, handler)
            for operation, handler in (
                _by(INFO, self._info),
                _by(RECEIVERS_LIST, self._list),
                _by(RECEIVERS_ADD, self._add),
                _by(RECEIVERS_CHANGE, self._change),
                _by(RECEIVERS_PAUSE, self._pause),
                _by(RECEIVERS_RESUME, self._resume),
                _by(RECEIVERS_REMOVE, self._remove),
                _by(STATUS, self._status),
                _by(DEAD_LIST, self._dead),
                _by(DEAD_GET, self._dead_get),
                _by(RELOAD, self._reload),
                _by(AUDIT, self._audit),
            )
        }

    def answer(self, request: Request, local: bool) -> Deferred[Reply]:
        """Answer each call of a request; never fails."""
        return Deferred.fromCoroutine(self._answer(request, local))

    async def _answer(self, request: Request, local: bool) -> Reply:
        calls = decode_messages(request.messages)
        replies = []
        for index, call in enumerate(calls):
            ok, said = await self._call(request.subject, call, local)
            replies.append((request.id + index, ok, said))
        return Reply(replies)

    async def _call(self, subject: str, call: WireMessage, local: bool) -> tuple[bool, msgspec.Raw]:
        try:
            known = self._handlers.get(subject)
            if known is None:
                raise NoResponder(subject)
            if not local and is_reserved(subject):
                raise NotAuthenticated("administration is open to local connections only")
            operation, handler = known
            arguments = msgspec.json.decode(call.body or b"{}", type=operation.asks)
            return True, message(_to_json(await handler(arguments)))
        except MsgServiceError as error:
            return False, refusal(str(error), error.refusal_code)
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:  # of the arguments
            return False, refusal(str(error), BadValue.refusal_code)
        except Exception:
            self._logger.failure("request {subject} failed", subject=subject)
            return False, refusal("internal error: see the node's log")

    async def _info(self, _: Nothing) -> NodeInfo:
        return self._operations.info()

    async def _list(self, asked: ListReceivers) -> ReceiverPage:
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

    async def _add(self, asked: msgspec.Struct) -> Name:
        said = msgspec.structs.asdict(asked)
        name, subjects, address = said.pop("name"), said.pop("subjects"), said.pop("address")
        await self._operations.add(name, subjects, ReceiverOptions(**said), address=address)
        return Name(name)

    async def _change(self, asked: msgspec.Struct) -> Name:
        said = msgspec.structs.asdict(asked)
        name, subjects = said.pop("name"), said.pop("subjects")
        await self._operations.change(name, patterns=subjects, **said)
        return Name(name)

    async def _pause(self, asked: Name) -> Paused:
        await self._operations.pause(asked.name, True)
        return Paused(name=asked.name, paused=True)

    async def _resume(self, asked: Name) -> Resumed:
        row = await self._operations.pause(asked.name, False)
        full = self._operations.letters_full(row)
        return Resumed(name=asked.name, paused=False, full=full)

    async def _remove(self, asked: RemoveReceiver) -> Removal:
        account = await self._operations.account(asked.name)
        dead = account.settled.get(Status.DEAD, 0)
        if asked.confirm is None:
            return Removal(queued=account.queued, dead=dead)
        removed = await self._operations.remove(asked.name, asked.confirm)
        return Removal(removed=removed, dead=dead)

    async def _status(self, asked: AskStatus) -> StatusPage:
        page = Page(asked.limit, self._limits)
        found, statuses = await self._operations.status(asked.id, asked.after, page.rows_max)
        # Some that the log told of may be in no answer, since nothing is known of them any more.
        after, more = max(found.states, default=asked.after), found.more
        for at in statuses:
            told = StatusTold(word_of(at.status), at.attempts, at.reason)
            if not page.add(at.receiver, told):
                after, more = at.number - 1, True
                break
        return StatusPage(
            position=found.position,
            sender=_sender(found),
            sequence=found.sequence,
            subject=found.subject,
            stored_at=found.stored_at,
            receivers=page.rows,
            next=after if more else None,
        )

    async def _dead(self, asked: ListDead) -> LetterPage:
        page = Page(asked.limit, self._limits)
        after, more = asked.after, True
        while more and page.takes:
            letters = await self._operations.dead_letters(asked.receiver, after, page.step)
            more = bool(letters)
            for one in letters:
                if not page.add(str(one.position), LetterTold(**_letter(one))):
                    break
                after = one.position
        return LetterPage(dead=list(page.rows.values()), next=after if more else None)

    async def _dead_get(self, asked: GetDead) -> LetterPart:
        letter = await self._operations.dead_letter(asked.receiver, asked.position)
        begin, end = asked.offset, asked.offset + message_part(self._limits)
        return LetterPart(
            **_letter(letter),
            message=letter.message[begin:end],
            next=end if end < len(letter.message) else None,
        )

    async def _reload(self, _: Nothing) -> Reloaded:
        return Reloaded(self._operations.reload())

    async def _audit(self, _: Nothing) -> Discrepancies:
        return Discrepancies(await self._operations.audit())
