"""The callback protocol under the names of its documentation, without Twisted."""

from __future__ import annotations

from msgservice.faces.callbacks.net import get_ip_address, set_keepalive
from msgservice.faces.messaging.manager import (
    ConnectionManager,
    message_callback,
    request_callback,
)
from msgservice.faces.messaging.notifier import NotifierSock, Singleton
from msgservice.faces.messaging.parts import (
    BadMessage,
    MessageManager,
    Namespace,
    PendingRequest,
)

__all__ = [
    "BadMessage",
    "ConnectionManager",
    "MessageManager",
    "Namespace",
    "NotifierSock",
    "PendingRequest",
    "Singleton",
    "get_ip_address",
    "message_callback",
    "request_callback",
    "set_keepalive",
]
