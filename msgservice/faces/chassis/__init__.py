"""The connected-server chassis: a protocol handler is a component with mailboxes."""

from __future__ import annotations

from msgservice.faces.axon.Ipc import newCSA, serverShutdown, shutdownCSA, socketShutdown
from msgservice.faces.chassis.endpoint import TCPServer
from msgservice.faces.chassis.factory import ChassisFactory
from msgservice.faces.chassis.limits import ChassisLimits
from msgservice.faces.chassis.server import (
    FastRestartServer,
    MoreComplexServer,
    ServerCore,
    SimpleServer,
)

__all__ = [
    "ChassisFactory",
    "ChassisLimits",
    "FastRestartServer",
    "MoreComplexServer",
    "ServerCore",
    "SimpleServer",
    "TCPServer",
    "newCSA",
    "serverShutdown",
    "shutdownCSA",
    "socketShutdown",
]
