"""Credentials: what a connection shows of its peer before the peer has said anything.

Made where the channel is made, of what the operating system, TLS or a key of datagrams vouch for.
Who that is, and what they may do, is decided elsewhere: nothing here knows of users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The credentials of one connection's peer.

    `how` it is connected: `process` is this process, `plain` a byte stream that nothing protects.
    `is_local`: it is on this machine (loopback, Unix socket, this process). `address`: where it is,
    without a port, for log lines and to count attempts by. `uid`, `gid`, `pid`: of its process, as
    the kernel says at a Unix socket. `certificate`: the peer's own, DER, verified. `binding`:
    `tls-server-end-point` of this connection (RFC 5929), the same at both ends unless somebody sits
    between. `key_id`: of the key that each datagram is sealed with, `key_user`: who holds it, where
    the listener's file of keys says so. `is_private`: nobody else can read along, so that a secret
    may be said.
    """

    how: Literal["process", "unix", "tls", "udp", "plain"]
    is_local: bool
    address: str
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    certificate: bytes | None = field(default=None, repr=False)
    binding: bytes | None = field(default=None, repr=False)
    key_id: int | None = None
    key_user: str | None = None
    is_private: bool = False


NOBODY = Credentials(how="plain", is_local=False, address="unknown")
THIS_PROCESS = Credentials(how="process", is_local=True, address="this process", is_private=True)
