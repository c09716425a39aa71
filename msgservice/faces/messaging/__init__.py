"""The callback protocol under the names of its documentation, without Twisted."""

from __future__ import annotations

from msgservice.faces.messaging.manager import (
    BadMessage,
    ConnectionManager,
    MessageManager,
    Namespace,
    NotifierSock,
    PendingRequest,
    Singleton,
    get_ip_address,
    message_callback,
    request_callback,
    set_keepalive,
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
