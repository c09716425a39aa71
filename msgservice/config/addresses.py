"""Addresses as the configuration has them: whether they can work, and where their paths lie.

What an address means is the transports' business; here it is asked before anything is started.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from msgservice.errors import BadAddress, InsecureListener
from msgservice.transport.addresses import (
    ALLOWED_BY,
    NODE,
    URL_SCHEMES,
    check_listener,
    check_web_listener,
    checked_way_to,
    is_node,
    is_url,
    parse_address,
    quote,
    way_to,
)
from msgservice.transport.reach import Reach
from msgservice.transport.registry import Transports
from msgservice.webhooks.urls import check_url

# Keys of [listen] that are always there. A plugin's transport has its scheme as its key.
LISTENERS = ("tcp", "unix", "udp", "pb")
# Schemes that stand under the key of another.
SCHEMES_UNDER = {"tls": "tcp", "ssl": "tcp", "pbs": "pb"}
# Keys of [listen] that are other protocols than the node's. Streams are served by who assembles the
# service, HTTP by the node itself.
FACES = (STREAMS, WEB) = ("streams", "web")
FACE_SCHEMES = ("tcp", "tls", "ssl", "unix")
# What a user may give to be dialled: to somewhere else, by name and port.
GIVEN_SCHEMES = ("tcp", "tls", "ssl", "udp", "pb", "pbs", *URL_SCHEMES)
# Options of addresses that name files, each with a scheme that has it.
PATH_OPTIONS = {
    "certificate": "tls",
    "certKey": "tls",
    "key": "udp",
    "keys": "udp",
    "privateKey": "tls",
    "trustRoots": "tls",
}


@cache
def _transports() -> Transports:
    return Transports()


def listeners(wanted: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the keys of [listen]: ours, and which of `wanted` are schemes of plugins."""
    ours = (*LISTENERS, *FACES)
    return (*ours, *(key for key in wanted if key not in ours and _is_served(key)))


def _is_served(scheme: str) -> bool:
    try:
        _transports().find(f"{scheme}:")
    except BadAddress:
        return False
    return scheme not in SCHEMES_UNDER


def key_of(address: str) -> str:
    """Return the key of [listen] that `address` belongs under."""
    scheme = address.partition(":")[0]
    return SCHEMES_UNDER.get(scheme, scheme)


def listener_meant(text: str, scheme: str = "tcp") -> str | None:
    """Return what is wrong with a listener's address that has no scheme, and what is meant."""
    first, _, rest = text.partition(":")
    if not rest and first.isascii() and first.isdecimal():
        return f"bad address {text!r}: has no scheme, {scheme}:{first} may be meant"
    if rest.isascii() and rest.isdecimal() and not _is_known(first):
        meant = f"{scheme}:{rest}:interface={first}" if first else f"{scheme}:{rest}"
        return f"bad address {text!r}: has no scheme, {meant} may be meant"
    return None


def _is_known(scheme: str) -> bool:
    return (
        scheme in (*LISTENERS, *SCHEMES_UNDER, *FACES)
        or is_url(f"{scheme}:")
        or (_is_served(scheme))
    )


def check_listener_address(
    key: str, address: str, *, insecure: bool, asks: bool, transports: Transports
) -> None:
    """Raise where a listener cannot, or may not, be opened at `address`; `asks`: for a login.

    `InsecureListener` where others than this machine could reach it (SEMANTICS 32).
    """
    schemes = [key, *(scheme for scheme, other in SCHEMES_UNDER.items() if other == key)]
    if parse_address(address).scheme not in schemes:
        raise BadAddress(address, "must begin with " + " or ".join(f"{s}:" for s in schemes))
    check_listener(transports.find(address), address, insecure=insecure, asks=asks)


def check_face_address(address: str, *, insecure: bool, asks: bool, transports: Transports) -> None:
    """Raise where streams cannot, or may not, be served at `address`.

    `asks`: there are users, and it is not said whom everybody is who comes: no line can log in.
    """
    if parse_address(address).scheme not in FACE_SCHEMES:
        allowed = " or ".join(f"{scheme}:" for scheme in FACE_SCHEMES if scheme != "ssl")
        raise BadAddress(address, f"must begin with {allowed}")
    beyond = transports.find(address).check_listen(address)
    if asks:
        raise InsecureListener(
            address,
            "no line of a stream can log in: where there is a [[user]] it is a [[listen]] with"
            ' face = "streams", login = "none" and user = NAME',
        )
    if beyond is not None and not (insecure or transports.tcp.asks_certificates(address)):
        raise InsecureListener(
            address,
            f"{beyond}, and whoever comes may put and listen: use tls: with certificates of clients"
            f" (trustRoots, or client_roots of [tls]), or allow it by {ALLOWED_BY}",
        )


def check_web_address(address: str, *, insecure: bool, asks: bool, transports: Transports) -> None:
    """Raise where HTTP cannot, or may not, be served at `address`. `asks`: for a login."""
    check_web_listener(transports.tcp, address, insecure=insecure, asks=asks)


def check_receiver_address(
    address: str,
    transports: Transports | None = None,
    *,
    plain: bool = False,
    webhooks: Reach | None = None,
) -> None:
    """Raise where the node could not dial `address`. `transports`: those of the node, if known.

    `plain`: it may speak where others read along. `webhooks`: what these may dial, if known.
    """
    address = checked_way_to(address)
    if is_url(address):
        check_url(address, plain=plain, reach=webhooks)
        return
    (transports or _transports()).find(address).check_dial(address)


def check_given_address(address: str) -> None:
    """Raise `BadAddress` where a user may not give an address at run time that is to be dialled.

    What it names of the node's machine, files and sockets, is for who writes the configuration: by
    an error, or by what the node then shows to others, a user would reach them too.
    """
    parsed = parse_address(way_to(address))
    if parsed.scheme not in GIVEN_SCHEMES:
        allowed = ", ".join(f"{scheme}:" for scheme in GIVEN_SCHEMES)
        raise BadAddress(
            address, f"a user may give {allowed}; others stand in the configuration alone"
        )
    for option in parsed.options:
        if option in PATH_OPTIONS:
            raise BadAddress(
                address,
                f"{option}= names a file of the node's: a user may give profile=NAME of [tls]"
                " instead, and what has files of its own stands in the configuration",
            )


def absolute_address(text: str, folder: Path) -> str:
    """Return `text` with the paths in it made absolute, from `folder`."""
    if is_node(text):
        return NODE + absolute_address(way_to(text), folder)
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
