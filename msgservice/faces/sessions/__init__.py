"""Sessions between a central and its remotes, each with a server and a client of its own.

The names that programs use. How they are built: `central` and `remote`, then `hop`.
"""

from msgservice.faces.sessions.central import Central
from msgservice.faces.sessions.content.objects import ObjectsCodec
from msgservice.faces.sessions.content.records import RecordsCodec
from msgservice.faces.sessions.content.safe import RemoteError, SafeCodec
from msgservice.faces.sessions.durable import DurableRemotes
from msgservice.faces.sessions.errors import NotJoined, QueueFull, RemoteLeft, SessionError
from msgservice.faces.sessions.handlers import SessionMessage
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.faces.sessions.member import Member
from msgservice.faces.sessions.names import (
    RemoteMessagingError,
    RemoteMessagingSender,
    RemoteMessagingServer,
    RemoteMessagingSocketHandler,
)
from msgservice.faces.sessions.remote import Ended, Remote

__all__ = [
    "Central",
    "DurableRemotes",
    "Ended",
    "Member",
    "NotJoined",
    "ObjectsCodec",
    "QueueFull",
    "RecordsCodec",
    "Remote",
    "RemoteError",
    "RemoteLeft",
    "RemoteMessagingError",
    "RemoteMessagingSender",
    "RemoteMessagingServer",
    "RemoteMessagingSocketHandler",
    "SafeCodec",
    "SessionError",
    "SessionLimits",
    "SessionMessage",
]
