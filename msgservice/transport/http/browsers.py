"""Attacks by way of a browser, seen in the head of a request: which are turned away.

A page of another site can have its visitor's browser send requests here, and by a name of its own
that it lets point here (DNS rebinding) read the answers too. So a request must have come by a name
that is ours, from a page of ours or from no page, and may write only with a content type that no
form of another site can send. No header of an answer allows another site anything (CORS).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgservice.errors import WebRefused
from msgservice.transport.addresses import ip_of, is_local_host, plain_host

Values = Sequence[bytes] | None  # of one header, as often as it came
OURS = (b"same-origin", b"none")  # of Sec-Fetch-Site: our own page, or a person who typed it


def check_host(said: Values, own: str, hosts: Collection[str]) -> str:
    """Return the one Host that a request says, as it says it.

    `own`: the address of this end of its connection. `hosts`: other names by which it may be
    reached. Raises `WebRefused` for another name, for none and for several.
    """
    if said is None or len(said) != 1:
        raise WebRefused(400, "exactly one Host is needed")
    try:
        text = said[0].decode("ascii").lower()
    except UnicodeDecodeError:
        raise WebRefused(400, "Host is not ASCII") from None
    host = host_of(text)
    named = "localhost" if is_local_host(host) and ip_of(host) is None else plain_host(host)
    if named == "localhost" or named == plain_host(own) or host in hosts:
        return text
    raise WebRefused(
        421,
        f"this node is not known as {host[:64]!r}: by localhost, the address of its listener, and"
        " what [web] hosts names",
    )


def host_of(authority: str) -> str:
    """Return the host of HOST, HOST:PORT or [IPv6]:PORT."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0].rstrip(".")


def check_site(origin: Values, site: Values, host: str, *, is_secure: bool) -> None:
    """Raise `WebRefused` for a request that a page of another site has made.

    `origin`, `site`: of the headers Origin and Sec-Fetch-Site, which programs do not send.
    """
    if site is not None and (len(site) != 1 or site[0].lower() not in OURS):
        raise WebRefused(403, "a page of another site may not ask here")
    if origin is not None:
        scheme = "https" if is_secure else "http"
        if len(origin) != 1 or origin[0].lower() != f"{scheme}://{host}".encode():
            raise WebRefused(403, "a page of another site may not ask here")


def media_type(said: Values) -> str:
    """Return the media type of a Content-Type in lower case, without its parameters; "": none."""
    if said is None or len(said) != 1:
        return ""
    return said[0].decode("latin-1").partition(";")[0].strip().lower()


def check_media_type(said: Values, taken: Collection[str]) -> str:
    """Return the media type of a body, one of these. Raises `WebRefused` for another."""
    found = media_type(said)
    if found not in taken:
        allowed = " or ".join(taken)
        why = f"not {found[:64]!r}" if found else "also where there is no body"
        raise WebRefused(415, f"Content-Type has to be {allowed} here, {why}")
    return found
