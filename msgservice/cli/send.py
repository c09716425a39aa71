"""`msgservice send`: an argument, a file, or lines as they come."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import click
from rich.console import Group
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from msgservice.cli.lines import LineReader
from msgservice.cli.output import console, moment, plain_table
from msgservice.cli.promised import promise_of
from msgservice.cli.session import (
    LOOK_SECONDS,
    SAY_AFTER,
    SENDER,
    Interrupted,
    Kept,
    NoAnswer,
    PromiseBroken,
    Session,
    Stopped,
    is_utf8,
    node_options,
    outbox_option,
)
from msgservice.cli.times import seconds_of
from msgservice.client.client import Client
from msgservice.client.gathering import check_message
from msgservice.client.promise import PromiseOutcome
from msgservice.client.receipt import Receipt, Receipts
from msgservice.clock import Reactor
from msgservice.codecs import content_type_of
from msgservice.core.reasons import first_line
from msgservice.errors import MsgServiceError, NoReceiver, NotDelivered
from msgservice.limits import MAX_BATCH_MAX, Limits
from msgservice.message import Status

# Runs of lines that may be on their way at once: enough to hide a sync behind the next read.
RUNS_IN_FLIGHT = 8


@click.command(short_help="Send a message, or lines, to SUBJECT.")
@click.argument("subject")
@click.argument("body", required=False)
@click.option("--file", type=click.File("rb"), metavar="FILE", help="The body is this file.")
@click.option(
    "--lines",
    type=click.File("rb"),
    metavar="FILE",
    help="Each line of this file is a message; - is standard input.",
)
@click.option("--to", multiple=True, metavar="NAME", help="Only this receiver. Repeatable.")
@click.option("--header", multiple=True, metavar="NAME=VALUE", help="A header. Repeatable.")
@click.option("--id", "message_id", help="Your own name for it, for `status`.")
@click.option("--key", help="Idempotency key: stored once, however often it is sent in a day.")
@click.option("--retain", is_flag=True, help="Keep it for receivers that are made later.")
@click.option("--retain-only", is_flag=True, help="Keep it so, and deliver it to nobody now.")
@click.option(
    "--delay",
    metavar="TIME",
    help="Deliver it so much later, 30s, 5m, 2h, 7d, 366 days at most; see `delayed`.",
)
@click.option("--require", is_flag=True, help="Refuse it if nobody would get it.")
@click.option("--ttl", metavar="TIME", help="Not delivered by then, it expires: 30s, 5m, 2h, 7d.")
@click.option(
    "--within",
    metavar="TIME",
    help="Wait until as many as --need have acknowledged it, so long at most: a promise.",
)
@click.option("--need", metavar="N", help="How many: all, any (one), or a number.  [default: all]")
@click.option(
    "--otherwise",
    metavar="WHAT",
    help="Where they have not: notify, or cancel what is surely not sent.  [default: notify]",
)
@click.option("--wait", is_flag=True, help="Wait until every receiver has acknowledged it.")
@outbox_option("Keep it in this file until the node has it; `receipts` says what became of it.")
@click.option(
    "--name",
    help=f"Name of the sender.  [default: {SENDER}, or USER.cli]",
)
@node_options
def send(
    session: Session,
    subject: str,
    body: str | None,
    file: BinaryIO | None,
    lines: BinaryIO | None,
    to: tuple[str, ...],
    header: tuple[str, ...],
    message_id: str | None,
    key: str | None,
    retain: bool,
    retain_only: bool,
    delay: str | None,
    require: bool,
    ttl: str | None,
    within: str | None,
    need: str | None,
    otherwise: str | None,
    wait: bool,
    outbox: Path | None,
    name: str | None,
) -> None:
    """Send a message to SUBJECT, and say where it is stored once it is on the node's disk.

    The message is BODY, or a --file. Without either, each line of standard input is a message of
    its own, sent as it comes.
    """
    if sum(source is not None for source in (body, file, lines)) > 1:
        raise click.UsageError("give one of BODY, --file and --lines")
    options: dict[str, Any] = {}
    if to:
        options["to"] = list(to)
    if header:
        options["headers"] = headers_of(header)
    if require:
        options["require"] = True
    if retain and retain_only:
        raise click.UsageError(
            "give one of --retain, which delivers it as well, and --retain-only, which does not"
        )
    if ttl is not None:
        options["ttl"] = seconds_of(ttl, "--ttl")
        if not options["ttl"]:
            raise click.UsageError("--ttl 0 would be over at once: it is above 0, as 30s or 5m")
    if delay is not None:
        options["delay"] = seconds_of(delay, "--delay")
    promise = promise_of(session, need, within, otherwise)
    if promise is not None and wait:
        raise click.UsageError("--within waits by itself: not with --wait, which has no end")
    if retain and retain_only:
        raise click.UsageError("give one of --retain and --retain-only")
    checked = partial(
        session.check,
        check_message,
        subject,
        to=options.get("to"),
        headers=options.get("headers"),
        own_id=message_id,
        key=key,
        retain="only" if retain_only else retain,
        delay=options.get("delay"),
        limits=Limits(),
        ttl=options.get("ttl"),
        promise=promise,
    )
    if body is None and file is None:
        if message_id is not None or key is not None or retain or retain_only or wait or promise:
            raise click.UsageError(
                "--id, --key, --retain, --retain-only, --wait and --within are for one message:"
                " give BODY or --file"
            )
        source = lines or sys.stdin.buffer
        checked(b"")
        session.run(
            lambda reactor: _send_lines(session, reactor, name, outbox, subject, source, options)
        )
    content = content_of(body, file, options.get("headers"))
    checked(content)
    if message_id is not None:
        options["id"] = message_id
    if key is not None:
        options["idempotency_key"] = key
    if retain or retain_only:
        options["retain"] = "only" if retain_only else True
    if promise is not None:
        options["promise"] = promise
    session.run(
        lambda reactor: _send_one(
            session, reactor, name, outbox, subject, content, options, wait=wait
        )
    )


async def _send_one(
    session: Session,
    reactor: Reactor,
    name: str | None,
    outbox: Path | None,
    subject: str,
    content: str | bytes | None,
    options: dict[str, Any],
    *,
    wait: bool,
) -> None:
    async with session.client(reactor, name, outbox) as client:
        try:
            sent = client.send(subject, content, **options)
            if outbox is not None:
                receipt = await sent
                await _taken(session, reactor, client, outbox, receipt.accepted, name)
            else:
                receipt = await session.in_time(reactor, sent, lambda: session.unanswered(client))
        except CancelledError:
            where = "not stored as far as is known" if outbox is None else f"kept in {outbox}"
            raise Interrupted(f"{where}{_refusal(client)}") from None
        outcome: PromiseOutcome | None = None
        if "promise" in options:
            outcome = await _promised(session, reactor, receipt)
            statuses: Mapping[str, Status] = outcome.receivers
        else:
            statuses = await _settled(session, reactor, receipt) if wait else receipt.statuses
    told: dict[str, Any] = {
        "position": receipt.position,
        "receivers": {receiver: status.name.lower() for receiver, status in statuses.items()},
    }
    if outcome is not None:
        told["promise"] = {
            "outcome": "kept" if outcome.kept else "broken",
            "reason": outcome.reason,
            "need": options["promise"].option.need or len(statuses),
        }
    if receipt.due is not None:
        told["due"] = round(receipt.due * 1000)
    if receipt.taken_as is not None:
        told["taken_as"] = receipt.taken_as
    is_kept_only = options.get("retain") == "only"
    session.show(told, lambda: _told(told, is_kept_only=is_kept_only))
    for receiver, status in statuses.items():
        if wait and status is not Status.ACKNOWLEDGED:
            known = receipt.run.known_of(receipt.sequence).changes
            reasons = {change.receiver: change.reason for change in known}
            why = _reason(session, reasons.get(receiver, ""))
            raise NotDelivered(receiver, status.name.lower(), why or None)
    if outcome is not None and not outcome.kept:
        acknowledged = sum(status is Status.ACKNOWLEDGED for status in statuses.values())
        why = _reason(session, outcome.reason)
        raise PromiseBroken(why, acknowledged, told["promise"]["need"])


def _reason(session: Session, reason: str) -> str:
    """Return a reason as it is told: to people without its traceback."""
    return reason if session.as_json else first_line(reason)


async def _taken(
    session: Session,
    reactor: Reactor,
    client: Client,
    outbox: Path,
    taken: Deferred[Any],
    name: str | None,
) -> None:
    """Wait until the node has taken what is in the outbox; raises `Kept` where it does not."""
    try:
        await session.let_in(reactor, client)
        await session.in_time(reactor, taken, lambda: session.unanswered(client))
    except NoAnswer as error:
        refusal = client.why().refusal
        why = error if refusal is None else NoAnswer(session.node, session.timeout, None, refusal)
        raise Kept(why, outbox, name) from None
    finally:
        taken.addErrback(lambda _: None)  # without a node nobody has waited for it
        taken.cancel()


async def _promised(session: Session, reactor: IReactorTime, receipt: Receipt) -> PromiseOutcome:
    """Return what became of the promise; say what is waited for if that lasts.

    Raises what keeps it from becoming known, as `_settled`.
    """

    def waiting() -> str:
        away = ", ".join(sorted(n for n, s in receipt.statuses.items() if not s.final))
        return f"stored at log:{receipt.position}; its promise waits for {away}"

    with _saying(session, reactor, waiting):
        try:
            return await receipt.promised()
        except CancelledError:
            raise Interrupted(waiting()) from None


@contextmanager
def _saying(session: Session, reactor: IReactorTime, waiting: Callable[[], str]) -> Iterator[None]:
    """Say on standard error what is waited for, if that lasts."""

    def say() -> None:
        click.echo(f"msgservice: {waiting()}", err=True)

    saying = None if session.as_json else reactor.callLater(SAY_AFTER, say)
    try:
        yield
    finally:
        if saying is not None and saying.active():
            saying.cancel()


async def _settled(
    session: Session, reactor: IReactorTime, receipt: Receipt
) -> Mapping[str, Status]:
    """Return the final statuses; say what is waited for if that lasts.

    Raises what keeps them from becoming known: `PeerForgot`, `LogWentBack`, `Ambiguous`.
    """

    def waiting() -> str:
        away = ", ".join(sorted(n for n, s in receipt.statuses.items() if not s.final))
        if receipt.due is not None:
            return f"stored; waiting until it is due, at {moment(round(receipt.due * 1000))}"
        return f"stored at log:{receipt.position}; waiting for {away} to acknowledge it"

    with _saying(session, reactor, waiting):
        try:
            statuses = await receipt.settled()
            with suppress(NotDelivered, NoReceiver):  # whoever has it not is told with the rest
                await receipt.acknowledged()  # raises, where nothing more can be known
            return statuses
        except CancelledError:
            raise Interrupted(waiting()) from None


def _refusal(client: Client) -> str:
    """Return why the node takes nothing, as the end of a sentence; nothing where it does."""
    refusal = client.why().refusal
    return f": the node takes nothing for now: {refusal}" if refusal else ""


def _told(told: dict[str, Any], *, is_kept_only: bool) -> Group:
    table = plain_table()
    for receiver, status in sorted(told["receivers"].items()):
        table.add_row(receiver, status)
    if "due" in told:
        taken_as = (
            f"; its key was used before: it is {told['taken_as']}" if "taken_as" in told else ""
        )
        return Group(f"stored, to be delivered at {moment(told['due'])}{taken_as}")
    stored = f"stored at log:{told['position']}"
    if "promise" in told:
        promise = told["promise"]
        why = f": {first_line(promise['reason'])}" if promise["reason"] else ""
        stored += f"; its promise was {promise['outcome']}{why}"
    if is_kept_only:
        return Group(f"{stored}, for who is made later; delivered to nobody now")
    return Group(stored, table if told["receivers"] else "nobody receives it")


async def _send_lines(
    session: Session,
    reactor: Reactor,
    name: str | None,
    outbox: Path | None,
    subject: str,
    source: BinaryIO,
    options: dict[str, Any],
) -> None:
    started = reactor.seconds()
    shown = sys.stderr.isatty() and not session.as_json
    reason: MsgServiceError | None = None
    async with session.client(reactor, name, outbox) as client:
        with _Progress(source, shown=shown) as progress:
            try:
                await _send_runs(reactor, client, subject, source, options, progress)
                if outbox is not None:
                    taken = _all_taken(reactor, client)
                    await _taken(session, reactor, client, outbox, taken, name)
            except CancelledError:
                reason = Interrupted(_refusal(client).removeprefix(": ") or None)
            except MsgServiceError as error:
                reason = error
    if reason is not None:  # only now: what was on its way may have been stored meanwhile
        raise Stopped(progress.sent, reason, client.unanswered)
    seconds = reactor.seconds() - started
    told = {
        "sent": progress.sent,
        "bytes": progress.size,
        "seconds": round(seconds, 3),
        "for_nobody": progress.for_nobody,
    }
    stored = f"{progress.sent:,} messages stored in {_seconds(seconds)} s"
    nobody = f"; nobody receives {progress.for_nobody:,} of them" if progress.for_nobody else ""
    session.show(told, stored + nobody)


def _all_taken(reactor: Reactor, client: Client) -> Deferred[Any]:
    """Return what fires when the node has answered all that was handed over."""

    def look() -> None:
        if not client.unanswered:
            looking.stop()

    def fire(_: object) -> None:
        if not waiting.called:  # else nobody waits any more
            waiting.callback(None)

    looking = LoopingCall(look)
    looking.clock = reactor
    waiting: Deferred[Any] = Deferred(lambda _: looking.stop() if looking.running else None)
    looking.start(LOOK_SECONDS).addCallback(fire)
    return waiting


def _seconds(seconds: float) -> str:
    """Return a duration as people read it: two digits, the tenths of long ones."""
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"


async def _send_runs(
    reactor: Reactor,
    client: Client,
    subject: str,
    source: BinaryIO,
    options: dict[str, Any],
    progress: _Progress,
) -> None:
    """Send each run of lines as it comes, a few at once; return when all are stored."""
    reader = LineReader(reactor, source.fileno())
    room = DeferredSemaphore(RUNS_IN_FLIGHT)
    failed: list[Failure] = []
    reading: Deferred[list[bytes]] | None = None

    def stored(receipts: Receipts, run: list[bytes]) -> None:
        for one in receipts.runs:
            piece = one.piece_of(one.first)  # None: they are in the outbox, and go to the node now
            if piece is not None and not piece.audience.names:
                progress.for_nobody += one.count
        progress.advance(len(run), sum(map(len, run)) + len(run))

    def refused(failure: Failure) -> None:
        failed.append(failure)
        if reading is not None:
            reading.cancel()  # the next line may never come

    while not failed:
        reading = Deferred.fromCoroutine(reader.next_lines())
        try:
            run = await reading
        except CancelledError:
            if failed:
                break
            raise  # by a signal
        finally:
            reading = None
        if not run:
            break
        await room.acquire()
        sent = client.send_many(subject, run, **options)
        sent.addCallback(stored, run)
        sent.addErrback(refused)
        sent.addBoth(lambda _: room.release())
    for _ in range(RUNS_IN_FLIGHT):
        await room.acquire()
    if failed:
        failed[0].raiseException()


class _Progress:
    """A progress display: how many lines are stored, shown on a terminal only."""

    def __init__(self, source: BinaryIO, *, shown: bool) -> None:
        self.sent = 0
        self.for_nobody = 0  # of those, as far as it is known
        self.size = 0
        status = os.fstat(source.fileno())
        # A pipe has no size, and its end is not known before it comes.
        total = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._bar = Progress(
            TextColumn("{task.fields[sent]:,} messages stored"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=console(sys.stderr),
            transient=True,
            disable=not shown,
            auto_refresh=False,  # its thread would print into ours
        )
        self._task = self._bar.add_task("", total=total, sent=0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, messages: int, size: int) -> None:
        """Count some more."""
        self.sent += messages
        self.size += size
        self._bar.update(self._task, completed=self.size, sent=self.sent, refresh=True)


def content_of(
    body: str | None, file: BinaryIO | None, headers: dict[str, str] | None
) -> str | bytes | None:
    """Return what a BODY or a file is to who gets it; None where there is neither."""
    content: str | bytes | None = body
    if file is not None:
        content = file.read(MAX_BATCH_MAX + 1)  # one more is refused, with its size
    if isinstance(content, str) and content_type_of(headers) is not None:
        return os.fsencode(content)  # it is written in that type, as a file or a line is
    if isinstance(content, str) and not is_utf8(content):
        raise click.UsageError("BODY is text, and this is no UTF-8: give it by --file")
    return content


def headers_of(texts: Iterable[str]) -> dict[str, str]:
    """Return the headers that are each NAME=VALUE; `UsageError` for a name that comes twice."""
    headers: dict[str, str] = {}
    for text in texts:
        name, value = header_of(text)
        if name in headers:
            raise click.UsageError(f"--header {name!r} is given twice: a message has one of a name")
        headers[name] = value
    return headers


def header_of(text: str) -> tuple[str, str]:
    """Return name and value of a header that is NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--header takes NAME=VALUE, not {text!r}")
    return name, value
