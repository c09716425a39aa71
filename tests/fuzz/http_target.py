"""One connection of the web listener: any bytes, in any cut, from somebody whom nobody knows.

Nothing raises, whatever the cut. What was answered is whole answers of HTTP and no more than was
asked; what was served is served with its whole body, which is no longer than it may be; what is
held of bodies stays within its limit, and is nothing when the connection has gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from msgservice.limits import Limits
from msgservice.node.gate import LISTENER
from msgservice.node.web.problems import answer_of
from msgservice.transport.http.browsers import check_host, check_media_type, check_site
from msgservice.transport.http.channel import HttpChannel, HttpRequest
from msgservice.transport.owners import Nobody
from msgservice.transport.tcp.pacing import Turn
from tests.fuzz.choices import Choices

BODY_MAX = 300
LIMITS = Limits(http_body_bytes=4096, http_bytes=64 * 1024)
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")


class Serving:
    """A listener that judges heads as the node's does, and serves what comes."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self.served: list[tuple[bytes, bytes, bytes]] = []
        self.answered: list[bytes] = []  # methods

    def opened(self, channel: HttpChannel) -> None:
        """See `Server`."""

    def gone(self, channel: HttpChannel) -> None:
        """See `Server`."""

    def begin(self, request: HttpRequest) -> Deferred[None] | None:
        """See `Server`."""
        said = request.requestHeaders.getRawHeaders
        host = check_host(said(b"Host"), "127.0.0.1", ())
        check_site(said(b"Origin"), said(b"Sec-Fetch-Site"), host, is_secure=False)
        if request.method not in (b"GET", b"HEAD"):
            check_media_type(said(b"Content-Type"), ("application/json",))
            request.body_max = BODY_MAX
        return None

    def serve(self, request: HttpRequest) -> None:
        """See `Server`."""
        assert len(request.body) <= request.body_max
        assert request.length is None or len(request.body) == request.length
        self.answered.append(request.method)
        self.served.append((request.method, request.uri, request.body))
        request.answer(200, b"yes", b"")

    def refuse(self, request: HttpRequest, error: Exception) -> None:
        """See `Server`."""
        self.answered.append(request.method)
        answer = answer_of(error)
        assert 400 <= answer.status < 500 or answer.status == 503, error
        request.answer(answer.status, answer.body, b"")


class Wire(StringTransport):
    """A transport that can be closed in every way that a channel closes one."""

    is_closed = False

    def __init__(self) -> None:
        here = IPv4Address("TCP", "127.0.0.1", 7480)
        super().__init__(here, here)

    def abortConnection(self) -> None:
        self.is_closed = True

    def loseConnection(self) -> None:
        self.is_closed = True

    def loseWriteConnection(self) -> None:
        self.is_closed = True


def run(data: bytes) -> None:
    """One input: cuts, and the bytes of the connection."""
    choices = Choices(data)
    cuts = [1 + choices.byte() for _ in range(choices.below(8))]
    stream = choices.rest()
    whole, in_parts = play(stream, [len(stream)]), play(stream, cuts)
    assert whole.served == in_parts.served, (whole.served, in_parts.served)


def play(stream: bytes, cuts: Sequence[int]) -> Serving:
    """Say a stream in pieces of these sizes, again and again; return who was asked."""
    serving, wire, clock = Serving(), Wire(), Clock()
    channel = channel_of(serving, clock)
    channel.makeConnection(wire)
    at = turn = 0
    sizes = cuts or [len(stream) or 1]
    while at < len(stream) and not wire.is_closed:
        size = sizes[turn % len(sizes)] or 1
        turn += 1
        channel.dataReceived(stream[at : at + size])
        at += size
        assert 0 <= serving.held_bytes <= LIMITS.http_bytes
        clock.advance(0)
    check_answers(wire.value(), serving)
    channel.connectionLost(Failure(ConnectionLost()))
    assert serving.held_bytes == 0
    assert not clock.getDelayedCalls()
    return serving


def channel_of(serving: Serving, clock: Clock) -> Any:
    """Return a connection's protocol, whose requests `serving` is asked."""
    return HttpChannel(
        reactor=clock,
        make_user=no_user,
        limits=LIMITS,
        owner=Nobody(),
        turn=Turn(clock),
        server=serving,
        door=LISTENER,
    )


def no_user() -> Any:
    """Web connections have none."""
    raise AssertionError("a web connection asked for a user")


def check_answers(said: bytes, serving: Serving) -> None:
    """Check that what was written are whole answers, one for each that was served or refused."""
    for method in serving.answered:
        said = said.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = _ANSWER.match(said)
        assert head is not None, said
        length = re.search(rb"(?i)content-length: (\d+)", head[2])
        assert length is not None
        size = 0 if method == b"HEAD" else int(length[1])
        assert len(said) >= head.end() + size
        said = said[head.end() + size :]
    assert not said.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")


def seeds() -> Iterator[bytes]:
    """Requests that are right, late, long, in chunks, and in a row."""
    body = b'{"subject":"a","text":"b"}'
    post = b"POST /v1/messages HTTP/1.1\r\n" + HOST + JSON
    chunks = b"1a\r\n" + body + b"\r\n0\r\n\r\n"
    streams = [
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
        b"HEAD / HTTP/1.0\r\n" + HOST + b"\r\n",
        post + b"Content-Length: 26\r\n\r\n" + body,
        post + b"Content-Length: 26\r\nExpect: 100-continue\r\n\r\n" + body,
        post + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
        post + b"Transfer-Encoding: chunked\r\n\r\n" + b"10;x=y\r\n" + b"x" * 16 + b"\r\n" * 2,
        post + b"Content-Length: 301\r\n\r\n" + b"x" * 301,
        post + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n" + b"xx",
        post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks,
        b"POST / HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n : x\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]
    for stream in [*streams, b"".join(streams[:5])]:
        yield bytes([3, 0, 6, 40]) + stream
