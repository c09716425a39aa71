"""URLs of webhooks: which can be a receiver's address."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from msgservice.errors import BadAddress
from msgservice.transport.addresses import ip_of, is_local_host
from msgservice.transport.reach import NotReachable, Reach

URL_MAX = 2000  # characters
XMLRPC = "xmlrpc+"
HOST_MAX = 253  # characters of a name (RFC 1035, 2.3.4, without its lengths)
# Letters, digits and hyphens in the midst, as Twisted dials no other name, and TLS verifies none.
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)").fullmatch


def url_of(address: str) -> tuple[str, bool]:
    """Return the URL that is posted to, and whether that is by XML-RPC; `BadAddress`."""
    scheme, _, rest = address.partition(":")
    scheme = scheme.lower()
    is_xmlrpc = scheme.startswith(XMLRPC)
    url = f"{scheme.removeprefix(XMLRPC)}:{rest}"
    if len(url) > URL_MAX:
        raise BadAddress(address[:100], f"has {len(url)} characters, allowed are {URL_MAX}")
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise BadAddress(address, "a URL has no spaces, and other characters than ASCII as %XX")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise BadAddress(address, f"is no URL: {error}") from None
    if not host or not rest.startswith("//"):
        raise BadAddress(address, f"expected {scheme}://HOST/PATH")
    if ip_of(host) is None and not _is_name(host):
        raise BadAddress(
            address,
            f"no host has the name {host[:100]!r}: parts of 1 to 63 letters, digits and inner"
            f" hyphens with dots between them, {HOST_MAX} characters at most",
        )
    if parts.username is not None or parts.password is not None:
        raise BadAddress(
            address, "a URL with a user or password is shown to people: put it in headers"
        )
    if parts.fragment:
        raise BadAddress(address, "a URL that is posted to has no #fragment")
    return url, is_xmlrpc


def _is_name(host: str) -> bool:
    """Whether a text can be the name of a host; a dot at its end is the root's."""
    labels = host.removesuffix(".").split(".")
    return len(host) <= HOST_MAX and all(map(_LABEL, labels))


def host_of(address: str) -> str:
    """Return the host of a URL, an IPv6 address without its brackets; raises as `url_of`."""
    return urlsplit(url_of(address)[0]).hostname or ""


def check_url(address: str, *, plain: bool, reach: Reach | None = None) -> None:
    """Raise `BadAddress` for a URL that no receiver can have. `plain`: whether others may read.

    `reach`: what may be dialled, if that is known; of a name it is seen when it is dialled.
    """
    url, _ = url_of(address)
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_near = is_local_host(host)
    if parts.scheme == "http" and not plain and not is_near:
        raise BadAddress(
            address,
            "plain http: beyond this machine needs insecure = true in [node]; or use https:",
        )
    if reach is not None and ip_of(host) is not None:
        try:
            reach.check(host)
        except NotReachable as error:
            raise BadAddress(address, str(error)) from None
