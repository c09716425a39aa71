"""Administration by REQUEST to `$node.*`: JSON to operations and back (PROTOCOL: Administration).

Open to local connections. What is asked is done in `operations`; here is how it is said. An error
is answered as `ok = false` with a sentence, and its code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from msgservice.core.frames import Reply, Request
from msgservice.core.subjects import is_reserved
from msgservice.errors import BadValue, MsgServiceError, NoResponder, NotAuthenticated
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.message import Status, WireMessage, decode_messages
from msgservice.node.admin_pages import PAGE_ROWS, Page, message_part
from msgservice.node.operations import NodeInfo, Operations, ReceiverState
from msgservice.node.replies import message, refusal
from msgservice.receiver_options import OPTIONS, ReceiverOptions
from msgservice.records import DeadLetter, Found, hash_of

_to_json = msgspec.json.Encoder().encode

# Every integer that is asked with: an answer says which field has another.
_Number = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


class _Name(msgspec.Struct, forbid_unknown_fields=True):
    name: str


_Address = ("address", str | None, None)
_Add = msgspec.defstruct(
    "_Add",
    [
        ("name", str),
        ("subjects", list[str]),
        _Address,
        *((option.name, option.asked, option.default) for option in OPTIONS if option.about.added),
    ],
    forbid_unknown_fields=True,
    module=__name__,
)
_Change = msgspec.defstruct(
    "_Change",
    [
        ("name", str),
        ("subjects", list[str] | None, None),
        _Address,
        *((option.name, option.asked | None, None) for option in OPTIONS if option.about.changed),
    ],
    forbid_unknown_fields=True,
    module=__name__,
)


class _Remove(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    confirm: _Number | None = None


class _Status(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    after: _Number = 0
    limit: _Number = PAGE_ROWS


class _List(msgspec.Struct, forbid_unknown_fields=True):
    after: str = ""
    limit: _Number = PAGE_ROWS


class _DeadList(msgspec.Struct, forbid_unknown_fields=True):
    receiver: str
    after: _Number = 0
    limit: _Number = 100


class _DeadGet(msgspec.Struct, forbid_unknown_fields=True):
    receiver: str
    position: _Number
    offset: _Number = 0


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


Handler = Callable[[Any], Awaitable[dict[str, Any] | NodeInfo]]

_LISTED = tuple(option.name for option in OPTIONS if option.about.listed)


def _told(state: ReceiverState) -> dict[str, Any]:
    told = msgspec.structs.asdict(state)
    options, account = told.pop("options"), told.pop("account")
    return {
        **{name: getattr(options, name) for name in _LISTED},
        **told,
        "queued": account.queued,
        "queued_bytes": account.queued_bytes,
        "oldest": account.oldest,
        "routed": account.routed,
        "unaccounted": account.unaccounted,
        "settled": {_word(status): count for status, count in account.settled.items()},
    }


def _word(status: int) -> str:
    return Status(status).name.lower()


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
        self._handlers: dict[str, tuple[type[msgspec.Struct], Handler]] = {
            "$node.info": (_Nothing, self._info),
            "$node.receivers.list": (_List, self._list),
            "$node.receivers.add": (_Add, self._add),
            "$node.receivers.change": (_Change, self._change),
            "$node.receivers.pause": (_Name, self._pause),
            "$node.receivers.resume": (_Name, self._resume),
            "$node.receivers.remove": (_Remove, self._remove),
            "$node.status": (_Status, self._status),
            "$node.dead.list": (_DeadList, self._dead),
            "$node.dead.get": (_DeadGet, self._dead_get),
            "$node.audit": (_Nothing, self._audit),
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
            kind, handler = known
            arguments = msgspec.json.decode(call.body or b"{}", type=kind)
            return True, message(_to_json(await handler(arguments)))
        except MsgServiceError as error:
            return False, refusal(str(error), error.refusal_code)
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:  # of the arguments
            return False, refusal(str(error), BadValue.refusal_code)
        except Exception:
            self._logger.failure("request {subject} failed", subject=subject)
            return False, refusal("internal error: see the node's log")

    async def _info(self, _: _Nothing) -> NodeInfo:
        return self._operations.info()

    async def _list(self, asked: _List) -> dict[str, Any]:
        page = Page(asked.limit, self._limits)
        after, more = asked.after, True
        while more and page.takes:
            states, more = await self._operations.receivers(after, page.step)
            for state in states:
                if not page.add(state.name, _told(state)):
                    more = True
                    break
                after = state.name
        return {"receivers": list(page.rows.values()), "next": after if more else None}

    async def _add(self, asked: msgspec.Struct) -> dict[str, Any]:
        said = msgspec.structs.asdict(asked)
        name, subjects, address = said.pop("name"), said.pop("subjects"), said.pop("address")
        await self._operations.add(name, subjects, ReceiverOptions(**said), address=address)
        return {"name": name}

    async def _change(self, asked: msgspec.Struct) -> dict[str, Any]:
        said = msgspec.structs.asdict(asked)
        name, subjects = said.pop("name"), said.pop("subjects")
        await self._operations.change(name, patterns=subjects, **said)
        return {"name": name}

    async def _pause(self, asked: _Name) -> dict[str, Any]:
        await self._operations.pause(asked.name, True)
        return {"name": asked.name, "paused": True}

    async def _resume(self, asked: _Name) -> dict[str, Any]:
        row = await self._operations.pause(asked.name, False)
        return {"name": asked.name, "paused": False, "full": self._operations.letters_full(row)}

    async def _remove(self, asked: _Remove) -> dict[str, Any]:
        account = await self._operations.account(asked.name)
        dead = account.settled.get(Status.DEAD, 0)
        if asked.confirm is None:
            return {"queued": account.queued, "dead": dead}
        removed = await self._operations.remove(asked.name, asked.confirm)
        return {"removed": removed, "dead": dead}

    async def _status(self, asked: _Status) -> dict[str, Any]:
        page = Page(asked.limit, self._limits)
        found, statuses = await self._operations.status(asked.id, asked.after, page.rows_max)
        # Some that the log told of may be in no answer, since nothing is known of them any more.
        after, more = max(found.states, default=asked.after), found.more
        for at in statuses:
            told = {"status": _word(at.status), "attempts": at.attempts, "reason": at.reason}
            if not page.add(at.receiver, told):
                after, more = at.number - 1, True
                break
        return {
            "position": found.position,
            "sender": _sender(found),
            "sequence": found.sequence,
            "subject": found.subject,
            "stored_at": found.stored_at,
            "receivers": page.rows,
            "next": after if more else None,
        }

    async def _dead(self, asked: _DeadList) -> dict[str, Any]:
        page = Page(asked.limit, self._limits)
        after, more = asked.after, True
        while more and page.takes:
            letters = await self._operations.dead_letters(asked.receiver, after, page.step)
            more = bool(letters)
            for one in letters:
                if not page.add(str(one.position), _letter(one)):
                    break
                after = one.position
        return {"dead": list(page.rows.values()), "next": after if more else None}

    async def _dead_get(self, asked: _DeadGet) -> dict[str, Any]:
        letter = await self._operations.dead_letter(asked.receiver, asked.position)
        begin, end = asked.offset, asked.offset + message_part(self._limits)
        return {
            **_letter(letter),
            "message": letter.message[begin:end],
            "next": end if end < len(letter.message) else None,
        }

    async def _audit(self, _: _Nothing) -> dict[str, Any]:
        return {"discrepancies": await self._operations.audit()}
