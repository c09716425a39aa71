"""Addresses as the configuration has them: whether they can work, and where their paths lie."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

from msgservice.errors import InsecureListener, MsgServiceError, NotYetBuilt

LISTENERS = ("tcp", "unix")
LISTENERS_LATER = ("udp", "pb", "web")
TCP_SCHEMES = ("tcp", "ssl")
_LISTEN_SCHEMES = {"tcp": TCP_SCHEMES, "unix": ("unix",)}
_DIAL_SCHEMES = ("tcp", "tls", "unix")
_DIAL_SCHEMES_LATER = ("pb", "udp", "http", "https", "node")

_COLON = re.compile(r"(?<!\\):")


class BadAddress(MsgServiceError):
    """An address that no transport could use."""


def check_address(address: str) -> None:
    """Raise where the node could not dial `address`."""
    scheme, *parts = _COLON.split(address)
    if scheme in _DIAL_SCHEMES_LATER and parts:
        raise NotYetBuilt(f"a receiver at {scheme}:")
    if scheme not in _DIAL_SCHEMES or not parts:
        begins = ", ".join(f"{s}:" for s in _DIAL_SCHEMES)
        raise BadAddress(f"must begin with one of {begins}, not {address!r}")
    if scheme == "unix":
        _check_path(address, parts)
    elif len(parts) < 2 or not parts[0]:
        raise BadAddress(f"must be {scheme}:HOST:PORT, not {address!r}")
    else:
        _check_port(address, parts[1], lowest=1)


def check_listener(transport: str, address: str, *, insecure: bool) -> None:
    """Raise where a listener of `transport` cannot, or may not, be opened at `address`.

    `InsecureListener` where others than this machine could reach it (SEMANTICS 32).
    """
    scheme, *parts = _COLON.split(address)
    schemes = _LISTEN_SCHEMES[transport]
    if scheme not in schemes or not parts:
        begins = " or ".join(f"{s}:" for s in schemes)
        raise BadAddress(f"must begin with {begins}, not {address!r}")
    if scheme == "unix":
        _check_path(address, parts)
        return
    _check_port(address, parts[0], lowest=0)
    interface = next((p.partition("=")[2] for p in parts if p.startswith("interface=")), "")
    if not insecure and not _loopback(interface.replace("\\:", ":")):
        raise InsecureListener(
            address,
            f"{interface or 'every interface'} is beyond this machine and nothing asks for a login:"
            " use interface=127.0.0.1, a Unix socket, or insecure = true in [node]",
        )


def _check_port(address: str, text: str, *, lowest: int) -> None:
    text = text.removeprefix("port=")
    if not text.isascii() or not text.isdecimal() or not lowest <= int(text[:6]) <= 65535:
        raise BadAddress(f"port {text!r} in {address!r} must be from {lowest} to 65535")


def _check_path(address: str, parts: list[str]) -> None:
    if not parts[0].removeprefix("path=").removeprefix("address="):
        raise BadAddress(f"must be unix:PATH, not {address!r}")


def _loopback(interface: str) -> bool:
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return interface == "localhost"


def absolute_address(address: str, folder: Path) -> str:
    """Return `address` with the path of a Unix socket made absolute, from `folder`."""
    scheme, *parts = _COLON.split(address)
    if scheme != "unix" or not parts:
        return address
    key, equals, path = parts[0].rpartition("=")
    if not path:
        return address
    place = os.path.abspath(folder / path.replace("\\:", ":"))  # noqa: PTH100 - resolve() follows links
    return ":".join(["unix", key + equals + place.replace(":", "\\:"), *parts[1:]])
