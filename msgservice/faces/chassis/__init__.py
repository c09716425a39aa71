"""The connected-server chassis: a protocol handler is a component with mailboxes."""

from __future__ import annotations

from msgservice.faces.chassis.server import (
    ChassisFactory,
    ChassisLimits,
    FastRestartServer,
    MoreComplexServer,
    ServerCore,
    SimpleServer,
    TCPServer,
    newCSA,
    serverShutdown,
    shutdownCSA,
    socketShutdown,
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
