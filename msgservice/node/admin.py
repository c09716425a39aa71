"""Administration by REQUEST to `$node.*`, JSON bodies (PROTOCOL: Administration).

Open to local connections. An error is answered as `ok = false` with a sentence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from msgservice.core.frames import Reply, Request
from msgservice.core.subjects import is_reserved
from msgservice.errors import MsgServiceError, NoResponder
from msgservice.interfaces import ILog
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.message import Status, WireMessage, decode_messages
from msgservice.node.admin_pages import PAGE_ROWS, Page
from msgservice.node.connections import Connections
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.ingress import hash_of
from msgservice.node.receivers import Receivers
from msgservice.node.replies import message, refusal
from msgservice.receiver_options import OPTIONS, ReceiverOptions
from msgservice.records import Account, Found

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


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


Handler = Callable[[Any], Awaitable[dict[str, Any]]]


def _counts(account: Account | None) -> dict[str, Any]:
    counts = {} if account is None else account.settled
    return {
        "queued": 0 if account is None else account.queued,
        "queued_bytes": 0 if account is None else account.queued_bytes,
        "routed": 0 if account is None else account.routed,
        "unaccounted": 0 if account is None else account.unaccounted,
        "settled": {Status(s).name.lower(): n for s, n in counts.items()},
    }


@cache
def installed_version() -> str:
    """The version of this installation. Looked up once: it is read from a file, and parsed."""
    try:
        return version("msgservice")
    except PackageNotFoundError:
        return "unknown"


class Admin:
    """The handler of requests to `$node.*`. `listeners`: what the node listens on, for people."""

    _logger = Logger()

    def __init__(
        self,
        *,
        name: str,
        log_id: str,
        listeners: Sequence[str],
        log: ILog,
        directory: Directory,
        dispatch: Dispatch,
        connections: Connections,
        receivers: Receivers,
        limits: Limits,
    ) -> None:
        self._name = name
        self._log_id = log_id
        self._listeners = listeners
        self._log = log
        self._directory = directory
        self._dispatch = dispatch
        self._connections = connections
        self._receivers = receivers
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
                raise MsgServiceError("administration is open to local connections only")
            kind, handler = known
            arguments = msgspec.json.decode(call.body or b"{}", type=kind)
            return True, message(_to_json(await handler(arguments)))
        except (MsgServiceError, ValueError, msgspec.MsgspecError) as error:
            return False, refusal(str(error), getattr(error, "refusal_code", 0))
        except Exception:
            self._logger.failure("request {subject} failed", subject=subject)
            return False, refusal("internal error: see the node's log")

    async def _info(self, _: _Nothing) -> dict[str, Any]:
        room = self._log.room()
        return {
            "name": self._name,
            "log_id": self._log_id,
            "version": installed_version(),
            "listeners": list(self._listeners),
            "connections": len(self._connections.peers),
            "room": {
                "used": room.used,
                "maximum": room.maximum,
                "free": room.free,
                "full": room.full,
            },
        }

    async def _list(self, asked: _List) -> dict[str, Any]:
        page = Page(asked.limit, self._limits)
        after, more = asked.after, True
        while more and page.takes:
            names = self._directory.names_after(after, page.step + 1)
            more = len(names) > page.step
            rows = [self._directory.named(name) for name in names[: page.step]]
            accounts = await self._log.accounts([row.number for row in rows])
            found = {one.receiver: one for one in accounts}
            for row in rows:
                outlet = self._dispatch.outlets.get(row.number)
                if outlet is not None and not page.add(
                    row.name, self._receivers.state_of(outlet) | _counts(found.get(row.number))
                ):
                    more = True
                    break
                after = row.name
        return {"receivers": list(page.rows.values()), "next": after if more else None}

    async def _add(self, asked: msgspec.Struct) -> dict[str, Any]:
        said = msgspec.structs.asdict(asked)
        name, subjects, address = said.pop("name"), said.pop("subjects"), said.pop("address")
        await self._receivers.add(name, subjects, ReceiverOptions(**said), address=address)
        return {"name": name}

    async def _change(self, asked: msgspec.Struct) -> dict[str, Any]:
        said = msgspec.structs.asdict(asked)
        name, subjects = said.pop("name"), said.pop("subjects")
        await self._receivers.change(name, patterns=subjects, **said)
        return {"name": name}

    async def _pause(self, asked: _Name) -> dict[str, Any]:
        await self._receivers.pause(asked.name, True)
        return {"name": asked.name, "paused": True}

    async def _resume(self, asked: _Name) -> dict[str, Any]:
        await self._receivers.pause(asked.name, False)
        return {"name": asked.name, "paused": False}

    async def _remove(self, asked: _Remove) -> dict[str, Any]:
        receivers = self._receivers
        if asked.confirm is None:
            return {"queued": await receivers.queued(self._directory.named(asked.name).number)}
        return {"removed": await receivers.remove(asked.name, asked.confirm)}

    async def _status(self, asked: _Status) -> dict[str, Any]:
        page = Page(asked.limit, self._limits)
        limit = min(max(1, asked.limit), PAGE_ROWS)
        found: Found | None = await self._log.find(asked.id, asked.after, limit)
        if found is None:
            raise ValueError(f"no message {asked.id!r} in the log")
        after, more = asked.after, found.more
        for number, (stored, attempts, reason) in found.states.items():
            row = self._directory.numbered(number)
            if row is not None:
                status = self._dispatch.status_of(number, found.position, stored)
                told = {"status": status.name.lower(), "attempts": attempts, "reason": reason}
                if not page.add(row.name, told):
                    more = True
                    break
            after = number
        return {
            "position": found.position,
            "sender": f"{found.sender}/{hash_of(found.incarnation)}/{found.sequence}",
            "sequence": found.sequence,
            "subject": found.subject,
            "stored_at": found.stored_at,
            "receivers": page.rows,
            "next": after if more else None,
        }

    async def _dead(self, asked: _DeadList) -> dict[str, Any]:
        row = self._directory.named(asked.receiver)
        page = Page(asked.limit, self._limits)
        after, more = asked.after, True
        while more and page.takes:
            letters = await self._log.dead_letters(row.number, after, page.step)
            more = bool(letters)
            for one in letters:
                told = {
                    "position": one.position,
                    "sender": f"{one.sender}/{hash_of(one.incarnation)}/{one.sequence}",
                    "subject": one.subject,
                    "size": len(one.message),
                    "reason": one.reason,
                    "attempts": one.attempts,
                    "at": one.at,
                }
                if not page.add(str(one.position), told):
                    break
                after = one.position
        return {"dead": list(page.rows.values()), "next": after if more else None}

    async def _audit(self, _: _Nothing) -> dict[str, Any]:
        return {"discrepancies": await self._log.audit()}
