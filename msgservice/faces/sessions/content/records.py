"""The compatible codec: log records as the standard library's `SocketHandler` sends them.

A payload is a pickle (protocol 1) of a mapping, the attributes of a log record. Its `msg` is the
content; a control message is a `msg` too, a mapping: text is what somebody logged. A message of a
session has its number in two attributes more, which other receivers keep and do not look at.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import threading
import time
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from zope.interface import implementer

from msgservice.faces.sessions.content.codec import ISessionCodec
from msgservice.faces.sessions.content.restricted import loads, registered, stand_ins
from msgservice.faces.sessions.content.shapes import Shapes
from msgservice.faces.sessions.envelope import (
    Control,
    Item,
    Message,
    check_numbering,
    control_of,
    fields_of,
)
from msgservice.faces.sessions.errors import BadControl, BadPayload

PROTOCOL = 1  # what `SocketHandler` writes, and every Python reads
# Attributes of a record: names that no program gives to its own (`extra`).
SESSION, NUMBER = "msgservice_session", "msgservice_number"
FORMATTED_MAX = 1_000_000  # characters of a text with its arguments, where they are repeated in it
_STOP = b"."
_BEGIN = b"}q\0"  # the mapping, in the memo as number 0
_MARKS = frozenset({"name", "levelno"})  # a log record has one of these
_TAKEN = frozenset({str, float, bool, type(None)})  # by every receiver
_SCALARS = _TAKEN | {int}
# Conversions with a width and a precision of two digits at most.
_without_modest = re.compile(r"%(?:\(\w+\))?[#0\- +]*\d{0,2}(?:\.\d{1,2})?[diouxXeEfFgGcrsa%]").sub
CONVERSIONS_MAX = 10_000  # each takes its time, and no log record has as many


@implementer(ISessionCodec)
class RecordsCodec:
    """Log records. Content is any object that has such a pickle; others see it as the message.

    Args:
        logger: the name of the logger in what is sent.
        level: its level.
        classes: whose instances may come, beside what `restricted` knows; pickled by protocol 1.
        objects: whether anything may come, and run code. For a listener of loopback, or one that
            verifies the certificates of its clients, only.
    """

    name = "records"

    def __init__(
        self,
        *,
        logger: str = "msgservice",
        level: int = logging.INFO,
        classes: tuple[type, ...] = (),
        objects: bool = False,
    ) -> None:
        self.trusts = objects
        known: dict[tuple[str, str], Any] = {}
        for cls in classes:
            known.update(registered(cls))
        self._shapes = Shapes()
        self._read = self._shapes.record
        self._load: Callable[[bytes], Any] = (
            _load_anything if objects else _loader(self._shapes, known)
        )
        self._check = _loader(self._shapes, stand_ins(known))
        self._classes = classes
        self.control_of = control_of
        self._logger, self._level = logger, level
        self._level_name = logging.getLevelName(level)

    def prepare(self, content: Any) -> bytes:
        """See `ISessionCodec`. What it returns lacks its last opcode: attributes may follow."""
        prepared = self._prepare(content)
        if type(content) not in _TAKEN and not self.trusts:
            try:  # else the other side ends its connection for this, again and again
                self._check(prepared + _STOP)
            except BadPayload as error:
                raise TypeError(f"{type(content).__name__} cannot be sent: {error}") from None
        return prepared

    def _prepare(self, content: Any) -> bytes:
        now = time.time_ns() / 1e9
        return self._pickle(
            {
                "name": self._logger,
                "msg": content,
                "args": None,
                "levelname": self._level_name,
                "levelno": self._level,
                "pathname": "",
                "filename": "",
                "module": "",
                "exc_info": None,
                "exc_text": None,
                "stack_info": None,
                "lineno": 0,
                "funcName": None,
                "created": now,
                "msecs": now % 1 * 1000,
                "relativeCreated": 0.0,
                "thread": threading.get_ident(),
                "threadName": threading.current_thread().name,
                "processName": "MainProcess",
                "process": os.getpid(),
            }
        )

    def prepare_record(self, record: logging.LogRecord) -> bytes:
        """Return a log record as `prepare` does content: as `SocketHandler.makePickle` has it."""
        fields = dict(record.__dict__)
        if record.exc_info and not record.exc_text:
            fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
        fields.update(msg=record.getMessage(), args=None, exc_info=None)
        fields.pop("message", None)
        return self._pickle(fields)

    def message(self, prepared: bytes, session: str | None, number: int | None) -> bytes:
        """See `ISessionCodec`."""
        if session is None:
            return prepared + _STOP
        rest = prepared[len(_BEGIN) :]
        of_session, of_number = _attribute(SESSION, session), _attribute(NUMBER, number)
        return b"".join((_BEGIN, of_session, of_number, rest, _STOP))

    def control(self, item: Control) -> bytes:
        """See `ISessionCodec`."""
        return self._prepare(fields_of(item)) + _STOP

    def without_controls(self) -> RecordsCodec:
        """Return a codec like this one to which nothing is a control message: all was logged."""
        other = copy(self)
        other.control_of = lambda content: None
        return other

    def numbering(self, head: bytes) -> tuple[str, int] | None:
        """See `ISessionCodec`."""
        if not head.startswith(_NUMBERED):
            return None
        at = len(_NUMBERED) + 4
        end = at + int.from_bytes(head[at - 4 : at], "little")
        found = _number(head, end)
        if found is None:
            return None
        try:
            number = pickle.loads(found[1] + _STOP)  # noqa: S301  # an integer: see `_number`
            return check_numbering(head[at:end].decode(), number)
        except ValueError:
            return None

    def decode(self, payload: bytes) -> Item:
        """See `ISessionCodec`."""
        try:
            record = self._read(payload)
        except UnicodeDecodeError:
            record = None  # what reads all of it says what is wrong
        if record is not None:  # it came from a logger, and there was one like it
            content = record["msg"]
            if content[:1] != "{":
                return Message(content, None, None, record)
            return self._item(content, record)
        try:
            value = self._load(payload)
        except BadPayload as error:
            numbering = self.numbering(payload)
            if numbering is None:
                raise
            return Message(None, *numbering, failure=str(error))
        if (
            type(value) is not dict
            or "msg" not in value
            or not ("name" in value or "levelno" in value)
        ):
            return self._item(value, None)
        content = value["msg"]
        session, number = value.get(SESSION), value.get(NUMBER)
        arguments = value.get("args")
        if type(content) is str and type(arguments) in (tuple, dict) and arguments:
            content = _formatted(content, arguments)
        if session is None and number is None:
            if type(content) is str and arguments is None:
                self._shapes.keep(payload, value)
            return self._item(content, value)
        return Message(content, *check_numbering(session, number), value)

    def _item(self, content: Any, record: Mapping[str, Any] | None) -> Item:
        """Return what stands under no number: a control message, or what somebody logged."""
        if type(content) is not str:
            return self.control_of(content) or Message(content, record=record)
        if content[:1] != "{":
            return Message(content, None, None, record)
        try:
            logged = self.control_of(content)
        except BadControl:
            logged = None
        return Message(content, record=record, logged=logged)

    def _pickle(self, fields: dict[str, Any]) -> bytes:
        try:
            pickled = pickle.dumps(fields, PROTOCOL)
        except Exception as error:
            raise TypeError(f"{type(fields['msg']).__name__} cannot be pickled: {error}") from error
        return pickled[:-1]


def _attribute(name: str, value: object) -> bytes:
    """Return an attribute that is set before all others: it takes nothing from the memo."""
    return b"".join((_piece(name), _piece(value), b"s"))


def _piece(value: object) -> bytes:
    if isinstance(value, str):
        text = value.encode()
        return b"X" + len(text).to_bytes(4, "little") + text
    return pickle.dumps(value, PROTOCOL)[:-1]


# How a message begins that has a number, and what its number is behind the session.
_NUMBERED = _BEGIN + _piece(SESSION) + b"X"
_number = re.compile(
    b"s" + re.escape(_piece(NUMBER)) + rb"(K.|M..|J.{4}|L[0-9]{1,17}L\n)s", re.DOTALL
).match


def _formatted(text: str, arguments: Any) -> str:
    """Return text with its arguments, as loggers before Python 3 left it to the receiver.

    Unless it might grow: by a width that the text asks for, or by what is in the arguments; and
    unless there are too many of them.
    """
    values = arguments.values() if isinstance(arguments, dict) else arguments
    if not _SCALARS.issuperset(map(type, values)) or text.count("%") > CONVERSIONS_MAX:
        return text
    if "%" in _without_modest("", text):
        return text
    if isinstance(arguments, dict):  # each may be named any number of times
        longest = max([len(value) for value in values if isinstance(value, str)], default=0)
        if longest * text.count("%") > FORMATTED_MAX:
            return text
    else:  # one text may be among them any number of times
        texts = [value for value in values if isinstance(value, str)]
        once = {id(value): len(value) for value in texts}
        if sum(map(len, texts)) - sum(once.values()) > FORMATTED_MAX:
            return text
    try:
        return str(text % arguments)
    except (TypeError, ValueError, KeyError, OverflowError):
        return text


def _loader(shapes: Shapes, classes: Mapping[tuple[str, str], Any]) -> Callable[[bytes], Any]:
    """Return `restricted.loads`, faster for records of loggers that it has seen."""
    is_plain = shapes.has

    def load(payload: bytes) -> Any:
        if is_plain(payload):
            try:
                return pickle.loads(payload)  # noqa: S301  # texts, numbers and None: see `Shapes`
            except Exception:
                return loads(payload, classes)  # it says what is wrong: text that is no UTF-8, say
        return loads(payload, classes)

    return load


def _load_anything(payload: bytes) -> Any:
    try:
        return pickle.loads(payload)  # noqa: S301  # who made the codec asked for it
    except BaseException as error:
        raise BadPayload(f"no pickle: {type(error).__name__}") from None
