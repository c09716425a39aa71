"""`msgservice streams`: the streams behind a port, listed, listened to and put into.

They are reached by their lines, not through a node: whoever reaches the port may do this, and there
is no login (faces/streams).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import click
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from msgservice.cli.lines import LineReader
from msgservice.cli.output import out
from msgservice.cli.pages import JsonOfPages, TableOfPages
from msgservice.cli.session import NoAnswer, Session, Whole, answer_options, is_utf8
from msgservice.clock import Reactor
from msgservice.core.reasons import shown
from msgservice.errors import Ambiguous, BadAddress, BadValue, MessageTooLarge, Refused
from msgservice.faces.streams.content import JsonCodec
from msgservice.faces.streams.remote import LOST, Closed, RemoteStream
from msgservice.faces.streams.wire import CLOSE, LIST, PUT, LineSplitter, check_key, decode, line_of
from msgservice.limits import MAX_BATCH_MAX
from msgservice.stream_limits import StreamLimits
from msgservice.transport.addresses import parse_address
from msgservice.transport.tcp.endpoints import client_endpoint
from msgservice.transport.tcp.transport import Unused

P = ParamSpec("P")

# Their server may have other limits than the defaults: what it does not take it says itself.
LIMITS = StreamLimits(line_bytes=MAX_BATCH_MAX, unsent_bytes=MAX_BATCH_MAX)
SCHEMES = ("tcp", "tls", "ssl", "unix")


class NoStreams(Ambiguous):
    """No streams answer at an address, or none any more."""

    def __init__(self, address: str, why: str) -> None:
        self.why = why.removesuffix(".")  # of sentences of Twisted's
        super().__init__(f"no answer from {address}: {self.why} (--at, --timeout)")


class _Lines(Protocol):
    """One connection: lines are written, and one answer at a time is waited for."""

    def __init__(self) -> None:
        self._splitter = LineSplitter(LIMITS.line_bytes)
        self._waiter: Deferred[dict[str, Any]] | None = None
        self._refused: str | None = None
        self._is_lost = False

    def dataReceived(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            try:
                value = decode(JsonCodec, line)
            except BadValue:
                continue
            if not isinstance(value, dict):
                continue
            if value.get("action") == CLOSE:  # it listens to nothing: its lines are refused
                self._refused = str(value.get("reason", "refused"))
            elif value.get("action") == LIST and self._waiter is not None:
                waiter, self._waiter = self._waiter, None
                waiter.callback(value)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_lost = True
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter.errback(self._end(reason))

    def _end(self, reason: Failure) -> Exception:
        if self._refused is not None:
            return Refused(self._refused.removeprefix("refused: "))
        return ConnectionError(reason.getErrorMessage())

    def ask(self, lines: bytes) -> Deferred[dict[str, Any]]:
        """Write lines of which the last asks for a list, which comes when all are done with."""
        waiter: Deferred[dict[str, Any]] = Deferred(self._called_off)
        if self._is_lost:
            waiter.errback(self._end(Failure(ConnectionError("the connection was lost"))))
            return waiter
        self._waiter = waiter
        self.transport.write(lines)  # type: ignore[union-attr]  # it is connected
        return waiter

    def _called_off(self, _: object) -> None:
        self._waiter = None

    def end(self) -> None:
        """Leave; what was answered has been done."""
        self.transport.abortConnection()  # type: ignore[union-attr]  # it was connected


def _ask_line(after: str | None = None, stream: str | None = None) -> bytes:
    return JsonCodec.encode({"action": LIST, "stream": stream, "after": after}) + b"\n"


class _Streams:
    """The streams at the address of a session."""

    def __init__(self, session: Session, reactor: Any) -> None:
        self.session, self.reactor = session, reactor
        self.is_heard = False  # streams have answered there
        self._lines: _Lines | None = None

    def endpoint(self) -> IStreamClientEndpoint:
        """Return where they are."""
        return client_endpoint(self.reactor, self.session.node)

    async def ask(self, lines: bytes) -> dict[str, Any]:
        """Return the answer to lines. Raises `NoStreams` or `Refused`."""
        session = self.session
        try:
            if self._lines is None:
                there = _Lines()
                await session.in_time(self.reactor, connectProtocol(self.endpoint(), there))
                self._lines = there
            answer = await session.in_time(self.reactor, self._lines.ask(lines))
        except NoAnswer:
            why = "are streams there?"
            if self.is_heard:
                why = (
                    "what was put waits, it may be that the node has no room; it may be stored yet"
                )
            raise NoStreams(
                session.node, f"nothing came within {session.timeout:g} s; {why}"
            ) from None
        except (Refused, NoStreams):
            raise
        except Exception as error:  # of an endpoint: any of Twisted's, or of the system's
            raise NoStreams(session.node, str(error).rstrip(".") or type(error).__name__) from None
        self.is_heard = True
        return answer

    def end(self) -> None:
        """Leave."""
        if self._lines is not None:
            self._lines.end()


def _address(session: Session) -> None:
    def check() -> None:
        if parse_address(session.node).scheme not in SCHEMES:
            raise BadAddress(
                session.node, "streams are at tcp:HOST:PORT, tls:HOST:PORT or unix:PATH"
            )
        client_endpoint(Unused(), session.node)

    session.check(check)


def _key(session: Session, key: str) -> None:
    if not is_utf8(key):
        raise click.UsageError("KEY is no text in UTF-8")
    try:
        check_key(key, LIMITS.key_bytes)
    except BadValue as error:
        raise click.UsageError(str(error)) from None


def streams_options(command: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Add the options of a command that talks to streams; it gets them as a `Session`, first."""

    @click.option(
        "--at",
        "address",
        envvar="MSGSERVICE_STREAMS",
        required=True,
        show_envvar=True,
        metavar="ADDRESS",
        help="Where the streams are: tcp:HOST:PORT, tls:HOST:PORT or unix:PATH.",
    )
    @answer_options
    @wraps(command)
    def with_session(
        address: str,
        as_json: bool,
        timeout: float,
        verbose: bool,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        session = Session(node=address, as_json=as_json, timeout=timeout, verbose=verbose)
        _address(session)
        command(session, *args, **kwargs)

    return with_session


@click.group(short_help="List streams, listen to one, put into one.")
def streams() -> None:
    """List the streams behind a port, listen to one, and put into one.

    They are those of `[listen] streams`, or of a program that serves some. Nobody logs in there.
    """


@streams.command("list")
@click.argument("key", required=False)
@streams_options
def list_streams(session: Session, key: str | None) -> None:
    """List the streams that somebody listens to: how many do, and how many of them are behind.

    With KEY those who listen to that stream, the 200 that are farthest behind: what waits for each
    connection, in bytes, and for how many seconds it has not been sent all.
    """
    if key is not None:
        _key(session, key)
        _list_listeners(session, key)
        return

    async def work(reactor: Reactor) -> None:
        table = TableOfPages("stream", "listeners", "behind", "lag")
        json, printed = JsonOfPages("streams"), 0
        served = _Streams(session, reactor)
        after: str | None = None
        try:
            while True:
                page = await served.ask(_ask_line(after))
                after, rows = page["next"], page["streams"]
                printed += len(rows)
                if session.as_json:
                    json.print({"streams": rows, "next": after})
                else:
                    table.print(
                        [
                            (
                                shown(one["stream"]),
                                *(str(one["listeners"]), str(one["behind"]), f"{one['lag']:g}"),
                            )
                            for one in rows
                        ]
                    )
                if after is None:
                    break
        finally:
            served.end()
        if session.as_json:
            json.end()
        elif not printed:
            out("nobody listens")

    session.run(work)


def _list_listeners(session: Session, key: str) -> None:
    async def work(reactor: Reactor) -> None:
        served = _Streams(session, reactor)
        try:
            page = await served.ask(_ask_line(stream=key))
        finally:
            served.end()
        found = page["listeners"]
        if session.as_json:
            session.show({"stream": key, "count": page["count"], "listeners": found}, "")
        elif not found:
            out("nobody listens")
        else:
            table = TableOfPages("peer", "waiting", "lag")
            table.print(
                [(shown(one["peer"]), str(one["waiting"]), f"{one['lag']:g}") for one in found]
            )

    session.run(work)


@streams.command()
@click.argument("key")
@click.option("--count", type=Whole(min=1), help="Stop after so many messages.")
@streams_options
def listen(session: Session, key: str, count: int | None) -> None:
    """Print what is put into the stream KEY, each message as JSON on a line.

    The header comes first, if there is one. It ends when the stream is closed or deleted. After a
    lost connection it listens again; with a node behind the streams nothing is missed then.
    """
    _key(session, key)

    async def work(reactor: Reactor) -> None:
        served = _Streams(session, reactor)
        try:
            await served.ask(_ask_line())  # a RemoteStream would dial for ever, without a word
        finally:
            served.end()
        queue: DeferredQueue[Any] = DeferredQueue()
        remote = RemoteStream("", 0, reactor, endpoint=served.endpoint(), limits=LIMITS)
        remote.listen(key, queue, resume=True)
        printed = 0
        try:
            while count is None or printed < count:
                message = await queue.get()
                if isinstance(message, Closed):
                    if message.reason == LOST:
                        _say(
                            session,
                            "the connection was lost: what is put until it is back is missed",
                        )
                        continue
                    if message.reason:
                        raise Refused(f"{shown(key)!r} is listened to no more: {message.reason}")
                    return
                told = {"stream": key, "message": message} if session.as_json else message
                out(JsonCodec.encode(told))
                printed += 1
        finally:
            await remote.close()

    session.run(work)


@streams.command()
@click.argument("key")
@click.argument("message", required=False)
@click.option("--text", is_flag=True, help="What is put is text, not JSON.")
@streams_options
def put(session: Session, key: str, message: str | None, text: bool) -> None:
    """Put MESSAGE, which is JSON, into the stream KEY.

    Without MESSAGE each line of standard input is one, put as it comes. It ends when all is put:
    with a node behind the streams, when it is on its disk.
    """
    _key(session, key)
    only = None if message is None else _line(key, message, text, "MESSAGE")

    async def work(reactor: Any) -> None:
        served = _Streams(session, reactor)
        try:
            if only is not None:
                await _put(served, [only])
                done = 1
            else:
                reader = LineReader(reactor, sys.stdin.fileno())
                done = await _put_lines(served, reader, key, is_text=text)
        finally:
            served.end()
        session.show({"stream": key, "put": done}, f"{done:,} put into {shown(key)}")

    session.run(work)


async def _put_lines(served: _Streams, reader: LineReader, key: str, *, is_text: bool) -> int:
    """Put each line as it comes, those before a bad one too; return how many were put."""
    done = number = 0
    try:
        while lines := await reader.next_lines():
            ready: list[bytes] = []
            wrong: click.UsageError | None = None
            for line in lines:
                number += 1
                if not (is_text or line.strip()):
                    continue
                try:
                    decoded = line.decode(errors="surrogateescape")
                    ready.append(_line(key, decoded, is_text, f"line {number}"))
                except click.UsageError as error:
                    wrong = error
                    break
            if ready:
                await _put(served, ready)
                done += len(ready)
            if wrong is not None:
                raise wrong
    except click.UsageError as error:
        raise Refused(f"{error.message}; {_before(done)}") from None
    except MessageTooLarge as error:
        raise Refused(f"line {number + 1}: {error}; {_before(done)}") from None
    except Refused as error:
        raise Refused(f"{error}; {_before(done)}") from None
    except NoStreams as error:
        raise NoStreams(served.session.node, f"{error.why}; {_before(done)}") from None
    return done


def _before(done: int) -> str:
    return f"{done:,} {'message was' if done == 1 else 'messages were'} put before"


def _line(key: str, text: str, is_text: bool, name: str) -> bytes:
    if not is_utf8(text):
        raise click.UsageError(f"{name} is no text in UTF-8")
    try:
        # Decoded and encoded again: what the server would only ignore is told here.
        message = text if is_text else decode(JsonCodec, text.encode())
        line = line_of(JsonCodec, PUT, key, message=message)
    except BadValue as error:
        raise click.UsageError(f"{name}: {error}; --text puts it as it is") from None
    if len(line) - 1 > LIMITS.line_bytes:
        raise click.UsageError(f"{name} is longer than line_bytes = {LIMITS.line_bytes}")
    return line


async def _put(served: _Streams, lines: list[bytes]) -> None:
    if not served.is_heard:
        await served.ask(_ask_line())  # so that what waits is not taken for a port without streams
    try:
        answer = await served.ask(b"".join(lines) + _ask_line())
    except NoStreams as error:
        longest = max(map(len, lines))
        if longest <= StreamLimits().line_bytes:
            raise
        why = f"{error.why}; {longest - 1} bytes may be more than its line_bytes"
        raise NoStreams(served.session.node, why) from None
    if answer["ignored"]:
        lines_were = "1 line was" if answer["ignored"] == 1 else f"{answer['ignored']:,} lines were"
        raise Refused(f"{lines_were} not taken; the log of the streams says why")


def _say(session: Session, text: str) -> None:
    if not session.as_json:
        click.echo(f"msgservice: {text}", err=True)
