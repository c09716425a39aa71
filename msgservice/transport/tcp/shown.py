"""Credentials of a byte stream: what the kernel, at a Unix socket, and TLS say of the other end."""

from __future__ import annotations

import socket
import struct
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import MD5, SHA1, SHA256, Hash, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.protocols.tls import TLSMemoryBIOProtocol

from msgservice.credentials import Credentials
from msgservice.transport.addresses import is_local, plain_host

_PEER = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


def credentials_of(transport: Any, *, is_dialled: bool) -> Credentials:
    """Return the credentials of a connection that stands, after the handshake of TLS if any.

    `is_dialled`: this end is the client.
    """
    address: IAddress = transport.getPeer()
    if isinstance(address, UNIXAddress):
        return _unix(transport)
    local = is_local(address)
    host = address.host if isinstance(address, IPv4Address | IPv6Address) else "unknown"
    host = plain_host(host)
    if isinstance(transport, TLSMemoryBIOProtocol):
        handle: Any = transport.getHandle()
        theirs: Certificate | None = handle.get_peer_certificate(as_cryptography=True)
        server = theirs if is_dialled else handle.get_certificate(as_cryptography=True)
        return Credentials(
            how="tls",
            is_local=local,
            address=host,
            # Our listeners ask for one only where they verify it, and so do those that we dial.
            certificate=None if theirs is None else theirs.public_bytes(Encoding.DER),
            binding=None if server is None else end_point_of(server),
            is_private=True,
        )
    return Credentials(how="plain", is_local=local, address=host, is_private=local)


def _unix(transport: Any) -> Credentials:
    pid: int | None
    uid: int | None
    gid: int | None
    pid = uid = gid = None
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if isinstance(handle, socket.socket):
        found = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, uid, gid = _PEER.unpack(found)
    return Credentials(
        how="unix",
        is_local=True,
        address="unix" if uid is None else f"uid {uid}",
        uid=uid,
        gid=gid,
        pid=pid,
        is_private=True,
    )


def end_point_of(server: Certificate) -> bytes:
    """Return `tls-server-end-point` (RFC 5929, 4.1): the hash of the server's certificate.

    By the hash of its signature, where that has one and it is not broken; else by SHA-256. (Of
    Ed25519, whose signatures have none, the RFC says nothing: both ends of ours do the same.)
    """
    signed: HashAlgorithm | None
    try:
        signed = server.signature_hash_algorithm
    except UnsupportedAlgorithm:
        signed = None
    if signed is None or isinstance(signed, MD5 | SHA1):
        signed = SHA256()
    digest = Hash(signed)
    digest.update(server.public_bytes(Encoding.DER))
    return digest.finalize()
