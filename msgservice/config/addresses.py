"""Addresses as the configuration has them: whether they can work, and where their paths lie.

What an address means is the transports' business; here it is asked before anything is started.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.task import Clock
from zope.interface import implementer

from msgservice.errors import BadAddress, NotYetBuilt
from msgservice.transport.addresses import check_listener, parse_address, quote
from msgservice.transport.registry import Transports
from msgservice.transport.tcp.endpoints import client_endpoint, server_endpoint
from msgservice.transport.tcp.transport import TcpTransport
from msgservice.transport.udp.addresses import check_dial, check_listen
from msgservice.transport.udp.transport import UdpTransport

# Keys of [listen], and the schemes that an address under them may have.
LISTEN_SCHEMES = {"tcp": ("tcp", "tls", "ssl"), "unix": ("unix",), "udp": ("udp",)}
LISTENERS_LATER = ("pb", "web")
RECEIVER_SCHEMES_LATER = ("pb", "http", "https", "node")
PATH_OPTIONS = ("certificate", "certKey", "key", "privateKey", "trustRoots")


@cache
def _transports() -> Transports:
    return Transports()


@implementer(IReactorPluggableNameResolver)
class _Unused(Clock):
    """Stands where an endpoint wants a reactor: one that is only made does nothing with it."""

    nameResolver: Any = None

    def installNameResolver(self, resolver: Any) -> Any:
        return resolver


def listeners() -> tuple[str, ...]:
    """Return the keys of [listen] that this build, with what is installed beside it, can serve."""
    known = _transports().schemes
    return tuple(key for key, schemes in LISTEN_SCHEMES.items() if set(schemes) & set(known))


def key_of(address: str) -> str:
    """Return the key of [listen] that `address` belongs under."""
    scheme = address.partition(":")[0]
    keys = (key for key, schemes in LISTEN_SCHEMES.items() if scheme in schemes)
    return next(keys, scheme)


def check_listener_address(key: str, address: str, *, insecure: bool) -> None:
    """Raise where a listener cannot, or may not, be opened at `address`.

    `InsecureListener` where others than this machine could reach it (SEMANTICS 32).
    """
    schemes = LISTEN_SCHEMES[key]
    if parse_address(address).scheme not in schemes:
        raise BadAddress(address, "must begin with " + " or ".join(f"{s}:" for s in schemes))
    if isinstance(_transports().find(address), TcpTransport):
        server_endpoint(_Unused(), address)
        if key == "unix":
            _check_socket(address)
    elif isinstance(_transports().find(address), UdpTransport):
        check_listen(address)
    check_listener(address, insecure)


def _check_socket(address: str) -> None:
    """Raise where no socket could be made at the path of a Unix address."""
    path = Path(parse_address(address).parts[0])
    if "\0" in str(path):
        raise BadAddress(address, "a path has no zero byte")
    if not path.parent.is_dir():
        raise BadAddress(address, f"{path.parent} is not a folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadAddress(address, f"{path.parent} is not writable")
    if path.exists() and not path.is_socket():
        raise BadAddress(address, f"{path} is there and is no socket")


def check_receiver_address(address: str) -> None:
    """Raise where the node could not dial `address`."""
    scheme = parse_address(address).scheme
    try:
        transport = _transports().find(address)
    except BadAddress:
        if scheme in RECEIVER_SCHEMES_LATER:
            raise NotYetBuilt(f"a receiver at {scheme}:") from None
        raise
    if isinstance(transport, TcpTransport):
        client_endpoint(_Unused(), address)
    elif isinstance(transport, UdpTransport):
        check_dial(address)


def absolute_address(text: str, folder: Path) -> str:
    """Return `text` with the paths in it made absolute, from `folder`."""
    try:
        address = parse_address(text)
    except BadAddress:
        return text  # said where it is checked
    parts = list(address.parts)
    if address.scheme == "unix" and parts and parts[0]:
        parts[0] = _absolute(parts[0], folder)
    options = {
        key: _absolute(value, folder) if key in PATH_OPTIONS and value else value
        for key, value in address.options.items()
    }
    if parts == list(address.parts) and options == address.options:
        return text
    told = [f"{key}={quote(value)}" for key, value in options.items()]
    return ":".join([address.scheme, *map(quote, parts), *told])


def _absolute(path: str, folder: Path) -> str:
    return os.path.abspath(folder / path)  # noqa: PTH100 - Path.resolve() follows links
