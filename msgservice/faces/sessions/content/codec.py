"""Codecs of sessions: items to payloads and back; one for each listener, as bytes do not tell."""

from __future__ import annotations

from typing import Any

from zope.interface import Attribute, Interface

from msgservice.faces.sessions.envelope import Control, Item

HEAD_BYTES = 1_024


class ISessionCodec(Interface):
    """Turns items into payloads and back. A payload is what stands behind the length prefix."""

    name = Attribute("str: what logs and errors call it")
    trusts = Attribute("bool: whether decoding may run code that the other side chose")

    def prepare(content: Any) -> bytes:
        """Return a message's content, encoded once; `TypeError` where it cannot."""

    def message(prepared: bytes, session: str | None, number: int | None) -> bytes:
        """Return the payload of a prepared message under its number in a session, if it has one."""

    def control(item: Control) -> bytes:
        """Return the payload of a control message."""

    def numbering(head: bytes) -> tuple[str, int] | None:
        """Return the session and number of a message from the beginning of its payload.

        None where that begins no numbered message, or not all of both is there. Of all that this
        codec writes they are in the first `HEAD_BYTES`.
        """

    def decode(payload: bytes) -> Item:
        """Return the item of a payload; `BadPayload` where there is none in it.

        A numbered message whose content cannot be read comes with its `failure`.
        """
