"""Addresses of acknowledged UDP: what may stand in them, and their keys.

    dial     udp:HOST:PORT    [key, keyId, timeout, insecure]
    listen   udp:PORT         [interface, key, keyId, insecure]

`key` is a file with 64 hexadecimal digits, the same on both sides; `keyId` its number (1). Without
a key both ends must be on loopback, unless `insecure=yes`.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgservice.errors import BadAddress
from msgservice.transport.addresses import (
    LOOPBACK,
    Address,
    ip_of,
    is_local_host,
    parse_address,
)

KEY_TEXT = re.compile(r"[0-9a-fA-F]{64}").fullmatch


def read_key(address: Address) -> dict[int, bytes] | None:
    """Return the key that an address names, None if none; BadAddress where it cannot be one."""
    path = address.options.get("key")
    number = address.integer("keyId", 1, 255)
    if path is None:
        return None
    try:
        text = "".join(Path(path).read_text().split())
    except OSError as error:
        raise BadAddress(address.text, f"cannot read {path}: {error.strerror}") from error
    except ValueError:  # no text
        text = ""
    if KEY_TEXT(text) is None:
        raise BadAddress(address.text, f"{path} holds no key: 64 hexadecimal digits are needed")
    return {number: bytes.fromhex(text)}


def check_dial(text: str) -> Address:
    """Return the address taken apart, if it can be dialled; BadAddress if not."""
    address = parse_address(text)
    address.only("key", "keyId", "timeout", "insecure")
    host, _ = address.host_and_port()
    if read_key(address) is None and not is_insecure(address) and not is_local_host(host):
        raise BadAddress(text, "beyond loopback key=FILE is needed (or insecure=yes)")
    return address


def check_listen(text: str) -> Address:
    """Return the address taken apart, if it can be listened on; BadAddress if not."""
    address = parse_address(text)
    address.only("interface", "key", "keyId", "insecure")
    address.port(address.one_part("PORT"), port_min=0)
    interface = address.options.get("interface", LOOPBACK)
    if ip_of(interface) is None:
        raise BadAddress(text, f"interface must be an IP address, not {interface!r}")
    if read_key(address) is None and not is_insecure(address) and not is_local_host(interface):
        raise BadAddress(text, "beyond loopback key=FILE is needed (or insecure=yes)")
    return address


def is_insecure(address: Address) -> bool:
    """Return whether an address says that it may do without a key."""
    value = address.options.get("insecure", "no")
    if value not in ("yes", "no"):
        raise BadAddress(address.text, f"insecure must be yes or no, not {value!r}")
    return value == "yes"
