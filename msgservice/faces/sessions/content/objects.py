"""The codec of any object: cloudpickle, with tracebacks by tblib. Whoever can send, can run code.

So a listener that uses it is of loopback, or verifies the certificates of its clients. Control
messages are msgpack: nothing is unpickled before a side knows who speaks.
"""

from __future__ import annotations

import pickle
from typing import Any

from zope.interface import implementer

from msgservice.faces.sessions.content.codec import ISessionCodec
from msgservice.faces.sessions.content.safe import (
    frame_control,
    frame_message,
    numbering_of,
    unframe,
)
from msgservice.faces.sessions.envelope import Control, Item
from msgservice.faces.sessions.errors import BadPayload


@implementer(ISessionCodec)
class ObjectsCodec:
    """Any object that cloudpickle can pickle: functions and classes of programs, exceptions too.

    An exception comes out with its traceback, and can be raised again. Raises `ImportError` where
    the extra `objects` is not installed.
    """

    name = "objects"
    trusts = True

    def __init__(self) -> None:
        try:
            import cloudpickle
            from tblib import pickling_support
        except ImportError as error:
            raise ImportError(
                f"{error.name} is needed for objects: pip install 'msgservice[objects]'"
            ) from error
        pickling_support.install()
        self._dumps = cloudpickle.dumps

    def prepare(self, content: Any) -> bytes:
        """See `ISessionCodec`."""
        try:
            pickled: bytes = self._dumps(content)
        except Exception as error:
            raise TypeError(f"{type(content).__name__} cannot be pickled: {error}") from error
        return pickled

    def message(self, prepared: bytes, session: str | None, number: int | None) -> bytes:
        """See `ISessionCodec`."""
        return frame_message(prepared, session, number)

    def control(self, item: Control) -> bytes:
        """See `ISessionCodec`."""
        return frame_control(item)

    def numbering(self, head: bytes) -> tuple[str, int] | None:
        """See `ISessionCodec`."""
        return numbering_of(head)

    def decode(self, payload: bytes) -> Item:
        """See `ISessionCodec`."""
        return unframe(payload, _loads)


def _loads(body: bytes) -> Any:
    try:
        return pickle.loads(body)  # noqa: S301  # who made the codec asked for it
    except BaseException as error:
        raise BadPayload(f"no pickle: {type(error).__name__}") from None
