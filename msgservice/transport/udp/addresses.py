"""Addresses of acknowledged UDP: what may stand in them, and their keys.

    dial     udp:HOST:PORT    [key, keyId, timeout, insecure]
    listen   udp:PORT         [interface, key, keyId, keys, insecure]

`key` is a file with 64 hexadecimal digits, the same on both sides; `keyId` its number (1). `keys`
is a file with a key for each of many users (`udp.keyfile`). Without any both ends must be on
loopback, unless `insecure=yes`.
"""

from __future__ import annotations

from msgservice.errors import BadAddress
from msgservice.transport.addresses import (
    LOOPBACK,
    Address,
    ip_of,
    is_local_host,
    parse_address,
)
from msgservice.transport.udp.keyfile import (
    NUMBER_MAX,
    BadKeys,
    SharedKeys,
    read_keys,
    read_one_key,
)


def read_shared(address: Address) -> SharedKeys | None:
    """Return the keys that an address names, None if none; BadAddress where they cannot be."""
    path, many = address.options.get("key"), address.options.get("keys")
    number = address.integer("keyId", 1, NUMBER_MAX)
    if many is not None and (path is not None or "keyId" in address.options):
        raise BadAddress(address.text, "keys=FILE has all keys with their numbers: no key or keyId")
    try:
        if many is not None:
            return read_keys(many)
        return None if path is None else read_one_key(path, number)
    except BadKeys as error:
        raise BadAddress(address.text, str(error)) from error


def check_dial(text: str) -> Address:
    """Return the address taken apart, if it can be dialled; BadAddress if not."""
    address = parse_address(text)
    if "keys" in address.options:
        raise BadAddress(text, "keys=FILE is a listener's: who dials has one, key=FILE with keyId")
    address.only("key", "keyId", "timeout", "insecure")
    host, _ = address.host_and_port()
    if read_shared(address) is None and not is_insecure(address) and not is_local_host(host):
        raise BadAddress(text, "beyond loopback key=FILE is needed (or insecure=yes)")
    return address


def check_listen(text: str) -> Address:
    """Return the address taken apart, if it can be listened on; BadAddress if not."""
    address = parse_address(text)
    address.only("interface", "key", "keyId", "keys", "insecure")
    address.port(address.one_part("PORT"), port_min=0)
    interface = address.options.get("interface", LOOPBACK)
    if ip_of(interface) is None:
        raise BadAddress(text, f"interface must be an IP address, not {interface!r}")
    if read_shared(address) is None and not is_insecure(address) and not is_local_host(interface):
        raise BadAddress(text, "beyond loopback key=FILE or keys=FILE is needed (or insecure=yes)")
    return address


def is_insecure(address: Address) -> bool:
    """Return whether an address says that it may do without a key."""
    value = address.options.get("insecure", "no")
    if value not in ("yes", "no"):
        raise BadAddress(address.text, f"insecure must be yes or no, not {value!r}")
    return value == "yes"
