"""`msgservice listen`: be a receiver, and print what comes."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any, BinaryIO

import click
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from msgservice.administration import RECEIVERS_LIST, RECEIVERS_REMOVE
from msgservice.cli.output import CannotPrint, body_told, drop_output
from msgservice.cli.session import Session, Whole, node_options
from msgservice.clock import Reactor
from msgservice.core.reasons import shown
from msgservice.core.subjects import check_name, check_pattern
from msgservice.errors import Forbidden, Refused, RequestFailed
from msgservice.limits import INTEGER_MAX
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from msgservice.receiver.ways import Attachment
from msgservice.receiver_options import NONE, STRICT

WATCH_SECONDS = 0.5  # between two looks at the connection


class Start(click.ParamType[Any]):
    """The place where a new receiver begins; of times the zone of here, where they name none."""

    name = "start"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int | datetime:
        """Return it as `Receiver.attach` takes it."""
        text = str(value)
        if text in ("new", "first"):
            return text
        number = text.removeprefix("log:")
        if number.isascii() and number.isdigit() and int(number) <= INTEGER_MAX:
            return int(number)
        try:
            at = datetime.fromisoformat(text.removeprefix("@"))
        except ValueError:
            self.fail(
                f"{text!r} is neither 'new', 'first', a position nor a time of ISO 8601", param, ctx
            )
        return at.astimezone() if at.tzinfo is None else at


@click.command(short_help="Be the receiver NAME, and print what it gets.")
@click.argument("name")
@click.argument("subjects", nargs=-1, metavar="[SUBJECT]...")
@click.option("--count", type=Whole(min=1), help="Stop after so many messages.")
@click.option(
    "--start",
    type=Start(),
    default="new",
    help="Where a receiver that is new begins: new, first, a position or a time. Default: new.",
)
@click.option(
    "--no-retained",
    is_flag=True,
    help="Of a NAME that is new: not what is retained of these SUBJECTs, only what is sent.",
)
@click.option(
    "--shared",
    is_flag=True,
    help="Share the messages of NAME with others that say so: each goes to one of them.",
)
@click.option("--forget", is_flag=True, help="Remove the receiver at the end.")
@node_options
def listen(
    session: Session,
    name: str,
    subjects: tuple[str, ...],
    count: int | None,
    start: str | int | datetime,
    no_retained: bool,
    shared: bool,
    forget: bool,
) -> None:
    """Attach to the node as the receiver NAME, and print what it gets for these SUBJECTs.

    A message is acknowledged when it is printed. On a terminal its subject stands before it; in a
    pipe each message is a line, nothing added; with --json, each is an object on a line.

    The receiver stays when this ends, and its messages wait for it: `receivers remove NAME`, or
    --forget, ends that. Without SUBJECTs it gets what the node has for it already. With --start a
    NAME that is new to the node has first what is kept from there on.
    """

    session.check(check_name, name)
    for pattern in subjects:
        session.check(check_pattern, pattern)

    async def work(reactor: Reactor) -> None:
        # The node is asked something first: a receiver would dial for ever, and say nothing.
        async with session.client(reactor) as client:
            looks = not subjects or start != "new" or no_retained
            is_new = await _is_new(session, reactor, client, name) if looks else None
            if is_new is False and (start != "new" or no_retained):
                click.echo(
                    f"msgservice: the node knows {name!r} already:"
                    f" {'--start' if start != 'new' else '--no-retained'} has no effect",
                    err=True,
                )
            if not subjects and is_new:
                click.echo(
                    f"msgservice: {name!r} is new to the node, and no SUBJECT is given: it gets"
                    " only what is sent to it by name (--to)",
                    err=True,
                )
            printer = Printer(reactor, sys.stdout.buffer, count=count, as_json=session.as_json)
            receiver = Receiver(
                reactor,
                name=name,
                handler=printer.handle,
                order=NONE if shared else STRICT,
                shared=shared,
            )
            watch = Watch(reactor, printer.done)
            try:
                watch.start(
                    session.attach(receiver, subjects or None, start, retained=not no_retained)
                )
                await printer.done
            finally:
                watch.stop()
                stopped = receiver.stop()
                printer.give_back()
                await stopped
                if forget:
                    await _forget(session, reactor, client, name)

    session.run(work)


async def _is_new(session: Session, reactor: Reactor, client: Any, name: str) -> bool | None:
    """Whether the node has no receiver of this name; None: who asks may not know that.

    Pages rise by name, so that those behind it need not be asked for.
    """
    after: str | None = ""
    try:
        while after is not None and after < name:
            known = await session.request(reactor, client, RECEIVERS_LIST, after=after)
            if any(row["name"] == name for row in known["receivers"]):
                return False
            after = known["next"]
    except RequestFailed as error:
        if error.code != Forbidden.refusal_code:
            raise
        return None
    return True


async def _forget(session: Session, reactor: Reactor, client: Any, name: str) -> None:
    waiting = (await session.request(reactor, client, RECEIVERS_REMOVE, name=name))["queued"]
    await session.request(reactor, client, RECEIVERS_REMOVE, name=name, confirm=waiting)


class Watch:
    """Looks whether the connection stands; what ends it for good ends the command."""

    def __init__(self, reactor: Reactor, done: Deferred[None]) -> None:
        self._done = done
        self._said = ""
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def start(self, attachment: Attachment) -> None:
        """Begin to look."""
        self._attachment = attachment
        looking = self._looking.start(WATCH_SECONDS)
        looking.addErrback(self._fail)

    def stop(self) -> None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()

    def _fail(self, failure: Failure) -> None:
        if not self._done.called:
            self._done.errback(failure)

    def _look(self) -> None:
        error = self._attachment.error
        # A node that never took this receiver, and says why, will not do so by waiting. While a
        # connection that is over still closes, nobody says why.
        over = self._attachment.is_over and not self._attachment.connected
        if over or (error and self._attachment.node is None):
            raise Refused(error)
        if error != self._said:
            self._said = error
            click.echo(f"msgservice: {error or 'connected again'}", err=True)


class Printer:
    """A handler that prints, and what becomes of the messages that it does not print any more.

    Messages are sent ahead, so more than `count` can come. Those are neither acknowledged nor
    failed: they wait, and go back to the node when the receiver stops.
    """

    def __init__(
        self, reactor: Reactor, out: BinaryIO, *, count: int | None = None, as_json: bool = False
    ) -> None:
        self.done: Deferred[None] = Deferred()
        self._reactor = reactor
        self._is_done = False
        self._error: CannotPrint | None = None
        self._out, self._left = out, count
        self._form = _as_json if as_json else _with_subject if out.isatty() else _bare
        self._surplus: list[Deferred[None]] = []

    def handle(self, message: ReceivedMessage) -> Deferred[None] | None:
        """Print one message; return a Deferred for one that is not printed."""
        if self._is_done or self.done.called:
            return self._keep()
        try:
            self._out.write(self._form(message) + b"\n")
            self._out.flush()
        except BrokenPipeError:
            # Who read it has read enough.
            return self._end_output(None)
        except OSError as error:
            # A full disk, most likely. A failed attempt would not be the message's fault, and each
            # would soon have had all of its own.
            return self._end_output(CannotPrint(error, "; what comes waits at the node"))
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._finish()
        return None

    def give_back(self) -> None:
        """Let go of what was not printed; once the receiver stops, it goes back uncounted."""
        surplus, self._surplus = self._surplus, []
        for kept in surplus:
            kept.cancel()

    def _end_output(self, error: CannotPrint | None) -> Deferred[None]:
        drop_output()
        self._error = error
        self._finish()
        return self._keep()

    def _finish(self) -> None:
        self._is_done = True
        # Not now: whoever waits stops the receiver, which still has to hear what this call returns.
        self._reactor.callLater(0, self._fire)

    def _fire(self) -> None:
        if not self.done.called:  # else it was cancelled by a signal
            if self._error is None:
                self.done.callback(None)
            else:
                self.done.errback(self._error)

    def _keep(self) -> Deferred[None]:
        kept: Deferred[None] = Deferred()
        self._surplus.append(kept)
        return kept


def _bare(message: ReceivedMessage) -> bytes:
    return message.body


def _with_subject(message: ReceivedMessage) -> bytes:
    text = message.body.decode(errors="backslashreplace")
    return f"{message.subject}  {shown(text)}".encode()


def _as_json(message: ReceivedMessage) -> bytes:
    told: dict[str, Any] = {
        "subject": message.subject,
        "position": message.position,
        "sender": message.identity,
        "id": message.id,
        "headers": message.headers,
        "replay": message.replay,
        "retained": message.retained,
    }
    return msgspec.json.encode(told | body_told(message.body))
