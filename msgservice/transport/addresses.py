"""Addresses as text: taking them apart, and saying which are local.

An address is an endpoint string as Twisted has them, `scheme:part:part:name=value`, where a
backslash takes the meaning from a colon and brackets do the same for an IPv6 address,
`tcp:[::1]:7410`. Making endpoints of them is the business of `transport.tcp.endpoints`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address as IPv4
from ipaddress import IPv6Address as IPv6
from ipaddress import ip_address

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from msgservice.core.subjects import exact
from msgservice.errors import BadAddress, InsecureListener
from msgservice.interfaces import ITransport

LOOPBACK = "127.0.0.1"
PORT_MAX = 65_535
SEALED = ("tls", "ssl", "pbs")  # schemes by which nobody else reads along, wherever they lead
SEALED_FOR = {"pb": "pbs"}
PLAIN = ("tcp", "pb")  # … and by which everybody does who is between
NODE = "node:"  # before the address of a receiver that is a node itself: it is passed on to
# What a URL begins with: it is no endpoint string, and taken as it is.
URL_SCHEMES = ("http", "https", "xmlrpc+http", "xmlrpc+https")
SCHEME_CHARACTERS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address taken apart. `text` is what the user wrote."""

    text: str
    scheme: str
    parts: Sequence[str]
    options: Mapping[str, str]

    def one_part(self, what: str) -> str:
        """Return the only part (`what` it is, for the error)."""
        if len(self.parts) != 1 or not self.parts[0]:
            said = f"expected {self.scheme}:{what}"
            if what == "PORT" and len(self.parts) == 2:
                host, port = self.parts
                said += f"; an interface stands behind it: {self.scheme}:{port}:interface={host}"
            raise BadAddress(self.text, said)
        return self.parts[0]

    def host_and_port(self) -> tuple[str, int]:
        """Return the two parts of `tcp:HOST:PORT`."""
        if len(self.parts) != 2 or not self.parts[0]:
            raise BadAddress(self.text, f"expected {self.scheme}:HOST:PORT")
        return self.parts[0], self.port(self.parts[1], port_min=1)

    def port(self, text: str, *, port_min: int) -> int:
        """Return the number of a port."""
        # isdecimal alone also takes digits of other scripts, which int() would accept.
        if not (text.isascii() and text.isdecimal()) or not port_min <= int(text) <= PORT_MAX:
            raise BadAddress(self.text, f"port must be from {port_min} to {PORT_MAX}, not {text!r}")
        return int(text)

    def number(self, option: str, default: float) -> float:
        """Return an option that is a number above 0."""
        text = self.options.get(option)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise BadAddress(self.text, f"{option} must be a number above 0, not {text!r}")
        return value

    def integer(self, option: str, default: int, highest: int) -> int:
        """Return an option that is an integer from 1 on."""
        text = self.options.get(option)
        if text is None:
            return default
        plain = text.isascii() and text.isdecimal() and len(text) <= len(str(highest))
        if not plain or not 1 <= int(text) <= highest:
            reason = f"{option} must be an integer from 1 to {highest}, not {text!r}"
            raise BadAddress(self.text, reason)
        return int(text)

    def only(self, *known: str) -> None:
        """Raise `BadAddress` for options other than these."""
        unknown = sorted(set(self.options) - set(known))
        if unknown:
            allowed = ", ".join(known) if known else "none"
            raise BadAddress(self.text, f"unknown option {unknown[0]!r} (known: {allowed})")


def parse_address(text: str) -> Address:
    """Return the address taken apart; `BadAddress` where that cannot be done."""
    text = exact(text, "address")
    if "\0" in text:  # no path has one, and no host: what is made of it would fail in its own words
        raise BadAddress(text, "no address has a zero byte")
    if is_url(text):
        scheme, _, rest = text.partition(":")
        return Address(text=text, scheme=scheme.lower(), parts=(rest,), options={})
    fields = _split(text)
    scheme = fields[0][0]
    if fields[0][1] is not None or SCHEME_CHARACTERS(scheme) is None or len(fields) < 2:
        raise BadAddress(text, "expected SCHEME:..., as in tcp:127.0.0.1:7410")
    parts: list[str] = []
    options: dict[str, str] = {}
    for name, value in fields[1:]:
        if value is None:
            parts.append(name)
        elif name in options:
            raise BadAddress(text, f"option {name!r} twice")
        else:
            options[name] = value
    return Address(text=text, scheme=scheme.lower(), parts=tuple(parts), options=options)


def is_url(text: str) -> bool:
    """Whether an address is a URL: one of a webhook."""
    return text.partition(":")[0].lower() in URL_SCHEMES


def _split(text: str) -> list[tuple[str, str | None]]:
    """Return `(part, None)` or `(name, value)` for each stretch between colons."""
    fields: list[tuple[str, str | None]] = []
    name: str | None = None
    current = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            current += next(characters, "")
        elif character == "[" and not current:
            current = _bracketed(text, characters)
        elif character == ":":
            fields.append((current, None) if name is None else (name, current))
            name, current = None, ""
        elif character == "=" and name is None:
            name, current = current, ""
        else:
            current += character
    fields.append((current, None) if name is None else (name, current))
    return fields


def _bracketed(text: str, characters: Iterator[str]) -> str:
    inside = ""
    for character in characters:
        if character == "]":
            return inside
        inside += character
    raise BadAddress(text, "'[' without ']'")


def quote(value: str) -> str:
    """Return `value` so that it stands in an address as it is."""
    return re.sub(r"([\\:=\[])", r"\\\1", value)


def ip_of(host: str) -> IPv4 | IPv6 | None:
    """Return the IP address that `host` is, or None for a name."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def plain_host(host: str) -> str:
    """Return the one form of a host, so that an address counts as the same however it is written.

    An IPv4 address that an IPv6 socket has met is that IPv4 address.
    """
    ip = ip_of(host)
    if isinstance(ip, IPv6) and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return host if ip is None else str(ip)


def is_local_host(host: str) -> bool:
    """Return whether `host`, a name or an IP address, is loopback."""
    ip = ip_of(host)
    if ip is None:
        # RFC 6761, 6.3: localhost and what is below it are loopback always.
        return host.lower().rstrip(".").rpartition(".")[2] == "localhost"
    if isinstance(ip, IPv6) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped.is_loopback
    return ip.is_loopback


def is_local(address: IAddress) -> bool:
    """Return whether this end of a connection is on this machine: loopback or a Unix socket."""
    if isinstance(address, UNIXAddress):
        return True
    if isinstance(address, IPv4Address | IPv6Address):
        return is_local_host(address.host)
    return False


def describe(address: IAddress, scheme: str = "tcp") -> str:
    """Return an address of a live connection or port as text for people."""
    if isinstance(address, UNIXAddress):
        name = address.name
        text = name.decode(errors="replace") if isinstance(name, bytes) else name
        return f"unix:{text}" if text else "unix"
    if isinstance(address, IPv6Address):
        return f"{scheme}:[{address.host}]:{address.port}"
    if isinstance(address, IPv4Address):
        return f"{scheme}:{address.host}:{address.port}"
    return f"{scheme}:{address}"


def beyond_loopback(address: Address) -> str | None:
    """Return in words that a listener's interface is beyond loopback; None where it is not."""
    interface = address.options.get("interface", LOOPBACK)
    if is_local_host(interface):
        return None
    return f"interface {interface or 'any'} is beyond loopback"


def is_node(address: str | None) -> bool:
    """Whether a receiver's address is that of a node, to which messages are passed on."""
    return address is not None and address.lower().startswith(NODE)


def way_to(address: str) -> str:
    """Return the address at which a receiver is dialled: of a node, what stands behind `node:`."""
    return address[len(NODE) :] if is_node(address) else address


def checked_way_to(address: str) -> str:
    """Return as `way_to`; `BadAddress` for a URL behind `node:`, where messages are only posted."""
    way = way_to(address)
    if way != address and is_url(way):
        raise BadAddress(address, "a node is dialled where it takes messages, at tcp: or tls: say")
    return way


def is_plain(address: str) -> bool:
    """Whether what is said at an address travels beyond this machine where others can read it."""
    try:
        parsed = parse_address(way_to(address))
    except BadAddress:
        return False
    return parsed.scheme in PLAIN and not is_local_host("".join(parsed.parts[:1]))


# What a sentence says of such an address, where it is asked who comes.
PLAIN_NEEDS = (
    "plain tcp: or pb: beyond this machine needs insecure = true in [node]; or use tls: or pbs:"
)


# What lets anybody in, where an operator wants that.
ALLOWED_BY = "insecure = true in [node], or --insecure"

WEB_SCHEMES = ("tcp", "tls", "ssl", "unix")


def check_web_listener(
    transport: ITransport, address: str, *, insecure: bool, asks: bool = False
) -> None:
    """Raise where HTTP cannot, or may not, be served at `address`, as `check_listener` does."""
    if parse_address(address).scheme not in WEB_SCHEMES:
        allowed = ", ".join(f"{scheme}:" for scheme in WEB_SCHEMES)
        raise BadAddress(address, f"HTTP is served at {allowed}")
    check_listener(transport, address, insecure=insecure, asks=asks)


def check_listener(
    transport: ITransport, address: str, *, insecure: bool, asks: bool = False
) -> None:
    """Raise where a listener cannot, or may not, be opened at `address` (SEMANTICS 32).

    `InsecureListener` where others than this machine could reach it, unless `insecure`: the
    operator has allowed that. `asks`: it asks who comes, so that TLS is enough.
    """
    beyond = transport.check_listen(address)
    if beyond is None or insecure:
        return
    if not asks:
        raise InsecureListener(
            address,
            f"{beyond}, and peers would be believed their names: configure users ([[user]]), or"
            f" allow it by {ALLOWED_BY}",
        )
    scheme = parse_address(address).scheme
    if scheme not in SEALED:
        raise InsecureListener(
            address,
            f"{beyond}, and logins would travel where others can read them: use"
            f" {SEALED_FOR.get(scheme, 'tls')}:, or allow it by {ALLOWED_BY}",
        )
