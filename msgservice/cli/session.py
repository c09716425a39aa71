"""The session of a command with its node: options, the reactor, errors, exit codes.

A command is a function that parses and one coroutine that works; `Session.run` gives the coroutine
a reactor and turns what it raises into one sentence and an exit code. The reactor is imported in
there and nowhere else.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import wraps
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import click
import msgspec
from click.core import ParameterSource
from rich.console import RenderableType
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from zope.interface import provider

from msgservice.administration import Operation
from msgservice.cli import signals
from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.output import out
from msgservice.cli.variables import PASSWORD, TOKEN, default_profile
from msgservice.client.client import HELD_BYTES, Client
from msgservice.clock import Reactor, timed
from msgservice.core.subjects import check_name
from msgservice.errors import (
    Ambiguous,
    BadAddress,
    BadName,
    BadSubject,
    ConfigError,
    FrameTooLarge,
    LogWentBack,
    MsgServiceError,
    NoResponder,
    NotAuthenticated,
    PeerForgot,
    Refused,
    RequestFailed,
    RequestTimeout,
    UnknownReceiver,
    kind_of,
    stays_refused,
)
from msgservice.identity.prover import LoginProver
from msgservice.limits import Limits
from msgservice.log_lines import escape
from msgservice.transport.registry import Transports

if TYPE_CHECKING:
    from msgservice.identity.client_exchange import Login
    from msgservice.receiver.receiver import Receiver
    from msgservice.receiver.ways import Attachment

NODE = "tcp:127.0.0.1:7410"
SENDER = "msgservice-cli"
LOOK_SECONDS = 0.1  # between two looks at why there is no connection
SAY_AFTER = 1.0  # seconds after which people are told what is waited for
# Seconds, half of them for answers: at its end a command has all that it waits for, or gave it up.
STOP_TIMEOUT = 1.0
SECONDS_MAX = 1e9  # that may be asked for: a timer knows no infinite wait
TIMEOUT = 5.0  # seconds; a node that is just being started again is waited for

# What people are told behind an unknown receiver; programs have the type of the error.
HOW_ADDED = "msgservice receivers list shows those there are, msgservice receivers add makes one"

P = ParamSpec("P")
T = TypeVar("T")


class NoAnswer(Ambiguous):
    """The node did not answer in the time that the command gives it."""

    def __init__(
        self, node: str, seconds: float, why: str | None = None, refusal: str | None = None
    ) -> None:
        because = f"{why or 'it says nothing'}; is a node there? `msgservice node` starts one"
        super().__init__(
            f"no answer from {node} within {seconds:g} s: {because} (--node, --timeout)"
            if refusal is None
            else f"{node} has not taken it within {seconds:g} s: {refusal} (--timeout)"
        )


class Interrupted(MsgServiceError):
    """A signal ended the command. `told`: what is known of its work, None where nothing is."""

    def __init__(self, told: str | None = None) -> None:
        super().__init__("interrupted" + (f"; {told}" if told else ""))
        self.told = told


class PromiseBroken(MsgServiceError):
    """The promise of the message was broken; the message itself is stored. `reason`: why."""

    def __init__(self, reason: str, acknowledged: int, need: int) -> None:
        super().__init__(
            f"the promise was broken: {reason}; {acknowledged} of the {need} that it needs have"
            " acknowledged the message"
        )
        self.reason = reason


class Kept(Ambiguous):
    """The node has not taken what is in the outbox's file `path`; `reason`: why.

    `name`: of its sender, where the command was told that.
    """

    def __init__(self, reason: MsgServiceError, path: Path, name: str | None = None) -> None:
        words = ["msgservice", "receipts", "--outbox", str(path)]
        if name is not None:
            words += ["--name", name]
        super().__init__(
            f"{reason}; what it has not taken is kept in {path}, and is sent when that is opened"
            f" again: {shlex.join(words)}"
        )
        self.reason = reason


class Stopped(MsgServiceError):
    """The input ended early: some lines were stored, then one was not. `reason`: why.

    `unknown`: how many more the node was given and has not answered.
    """

    def __init__(self, sent: int, reason: MsgServiceError, unknown: int = 0) -> None:
        more = f", {unknown:,} more may be" if unknown else ""
        super().__init__(f"{reason}; {sent:,} messages were stored before{more}")
        self.reason = reason


def reason_of(error: MsgServiceError) -> MsgServiceError:
    """Return the error that says what kind of end it was."""
    return error.reason if isinstance(error, Stopped) else error


def exit_code(error: MsgServiceError) -> ExitCode:
    """Return how a command ends that fails so."""
    error = reason_of(error)
    if isinstance(error, Interrupted):
        return ExitCode.INTERRUPTED
    if isinstance(error, Ambiguous | RequestTimeout | NoResponder | LogWentBack | PeerForgot):
        return ExitCode.NO_ANSWER
    if isinstance(error, ConfigError | BadName | BadSubject | BadAddress):
        return ExitCode.USAGE
    if isinstance(error, PromiseBroken):
        return ExitCode.BROKEN
    return ExitCode.REFUSED


def is_utf8(text: str) -> bool:
    """Return whether a word of the command line is text: its bytes may be anything."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_unknown_receiver(error: MsgServiceError) -> bool:
    if isinstance(error, RequestFailed):
        return error.code == UnknownReceiver.refusal_code
    return isinstance(error, UnknownReceiver)


class Seconds(click.FloatRange):
    """A number of seconds above 0 that a timer can wait for."""

    def __init__(self) -> None:
        super().__init__(min=0, max=SECONDS_MAX, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return it; `BadParameter` for what is none, and for NaN, which is in every range."""
        seconds: float = super().convert(value, param, ctx)
        if isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One command that is being carried out."""

    node: str = NODE
    login: Login | None = field(default=None, repr=False)
    as_json: bool = False
    timeout: float = TIMEOUT  # seconds for each answer
    verbose: bool = False

    @property
    def sender(self) -> str:
        """The name of the sender: one of its user's, where it has said who that is."""
        user = self.login.user if self.login is not None else ""
        return f"{user}.cli" if user else SENDER

    def run(
        self,
        work: Callable[[Any], Coroutine[Deferred[Any], Any, None]],
        level: Any = LogLevel.critical,
    ) -> NoReturn:
        """Run `work(reactor)` to its end, then end the process with its exit code.

        `level`: from which lines of the log are shown. A signal cancels the work: what it has open
        it closes in its `finally`, and that is waited for.
        """
        from twisted.internet.task import react

        async def main(reactor: Reactor) -> None:
            interrupted = False
            reactor.callWhenRunning(signals.leave_to, reactor)
            ended: Deferred[None] = Deferred()
            task = Deferred.fromCoroutine(work(timed(reactor)))

            def interrupt() -> Deferred[None]:
                nonlocal interrupted
                interrupted = True
                task.cancel()
                return ended

            trigger = reactor.addSystemEventTrigger("before", "shutdown", interrupt)
            try:
                await task
            except CancelledError:
                assert interrupted
                if self.as_json:  # people know
                    self.complain(Interrupted())
                raise SystemExit(ExitCode.INTERRUPTED) from None
            except MsgServiceError as error:
                self.complain(error)
                raise SystemExit(exit_code(error)) from None
            finally:
                ended.callback(None)
                if not interrupted:
                    reactor.removeSystemEventTrigger(trigger)

        _log_to_standard_error(LogLevel.info if self.verbose else level)
        try:
            react(main)
        except SystemExit:
            signals.ignore()
            raise
        raise AssertionError("react always exits")

    @asynccontextmanager
    async def client(
        self, reactor: Reactor, name: str | None = None, outbox: Path | None = None
    ) -> AsyncIterator[Client]:
        """Give a client that is connected; it is closed behind. `name`: of the sender.

        With an `outbox` it need not be connected: see `let_in`.
        """
        # Not `connect`, which gives nothing to ask why before there is a connection.
        limits = Limits(stop_timeout=STOP_TIMEOUT)
        name = check_name(self.sender if name is None else name)
        disk = None
        if outbox is not None:
            from msgservice.client.disk import open_outbox

            disk = await open_outbox(reactor, outbox, bytes_max=HELD_BYTES, sender=name)
        client = Client(
            reactor=reactor,
            name=name,
            connector_factory=lambda make_user: (
                Transports().find(self.node).connector(reactor, self.node, make_user, limits)
            ),
            limits=limits,
            new_incarnation=lambda: secrets.token_hex(16),
            prover=None if self.login is None else LoginProver(reactor, self.login),
            outbox=disk,
        )
        client.start()
        try:
            if disk is None:
                await self.let_in(reactor, client)
            saying = self._say_refusal(reactor, client)
            try:
                yield client
            except NoAnswer:
                raise NoAnswer(self.node, self.timeout, refusal=client.why().refusal) from None
            finally:
                if saying.running:
                    saying.stop()
        finally:
            await client.close()

    async def let_in(self, reactor: Reactor, client: Client) -> None:
        """Wait for the connection; an error where there is none in time.

        And where the node says that it will not be had.

        A client would try again, and somebody may change the user meanwhile, say. Whoever waits for
        a command would rather know.
        """
        waiting = client.when_connected()
        error: MsgServiceError | None = None

        def look() -> None:
            nonlocal error
            state = client.why()
            if state.by_certificate:
                error = Refused(state.error or "")
                waiting.cancel()
            elif state.code == FrameTooLarge.wire_code:  # it is no node
                error = Refused(f"{self.node}: {state.error or ''} (--node)")
                waiting.cancel()
            elif state.code and stays_refused(state.code):
                is_login = state.code == NotAuthenticated.wire_code
                nobody = is_login and self.login is None
                cure = f": give --user, and its secret in {PASSWORD} or {TOKEN}" if nobody else ""
                error = (NotAuthenticated if is_login else Refused)(f"{state.error or ''}{cure}")
                waiting.cancel()

        looking = LoopingCall(look)
        looking.clock = reactor
        looking.start(LOOK_SECONDS, now=False)
        try:
            await self.in_time(reactor, waiting, lambda: self._not_in(client))
        except NoAnswer:
            raise NoAnswer(self.node, self.timeout, client.why().error) from None
        except CancelledError:
            if error is not None:
                raise error from None
            raise
        finally:
            looking.stop()

    def _not_in(self, client: Client) -> str:
        """Return why there is no connection yet, and when it is tried again."""
        state = client.why()
        again = "" if state.next_try is None else f"; tried again in {state.next_try:.1f} s"
        return f"no connection to {self.node} yet: {state.error or 'it has not answered'}{again}"

    def unanswered(self, client: Client) -> str:
        """Return that the node has not answered, or "" where it says why: that is told already."""
        return "" if client.why().refusal else f"{self.node} has not answered yet"

    def attach(
        self,
        receiver: Receiver,
        subjects: Sequence[str] | None,
        start: str | int | datetime = "new",
        *,
        retained: bool = True,
    ) -> Attachment:
        """Attach a receiver to the node, as who this command is."""
        said = self.login
        if said is None:
            return receiver.attach(self.node, subjects=subjects, start=start, retained=retained)
        return receiver.attach(
            self.node,
            subjects=subjects,
            start=start,
            retained=retained,
            user=said.user or None,
            password=said.password,
            token=said.token,
        )

    def _say_refusal(self, reactor: IReactorTime, client: Client) -> LoopingCall:
        """Say once why the node takes nothing for now, where that lasts."""

        def look() -> None:
            refusal = client.why().refusal
            if refusal:
                saying.stop()
                if not self.as_json and not self.verbose:  # which tells it by itself
                    text = f"msgservice: the node takes nothing for now: {refusal}; trying again"
                    click.echo(text, err=True)

        saying = LoopingCall(look)
        saying.clock = reactor
        saying.start(SAY_AFTER, now=False)
        return saying

    async def ask(
        self, reactor: Reactor, operation: Operation[Any, Any], **question: object
    ) -> Any:
        """Return what the node answers to one request."""
        async with self.client(reactor) as client:
            return await self.request(reactor, client, operation, **question)

    async def request(
        self,
        reactor: Reactor,
        client: Client,
        operation: Operation[Any, Any],
        **question: object,
    ) -> Any:
        """Return what the node answers, its fields that are not None given."""
        given = {key: value for key, value in question.items() if value is not None}
        asked = client.request(operation.right, given, timeout=self.timeout)
        return await self.in_time(reactor, asked)

    async def in_time(
        self, reactor: IReactorTime, deferred: Deferred[T], waits: Callable[[], str] | None = None
    ) -> T:
        """Return what fires; `NoAnswer` when that takes too long.

        Before, when it takes long, people are told what is waited for: `waits()`, if it is any.
        """
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            deferred.cancel()

        def say() -> None:
            text = f"{self.node} has not answered yet" if waits is None else waits()
            if text:
                click.echo(f"msgservice: {text} (given up after {self.timeout:g} s)", err=True)

        timers = [reactor.callLater(self.timeout, give_up)]
        if not self.as_json and not self.verbose:  # which tells it by itself
            timers.append(reactor.callLater(SAY_AFTER, say))
        try:
            return await deferred
        except (CancelledError, MsgServiceError):
            if late:
                raise NoAnswer(self.node, self.timeout) from None
            raise
        finally:
            for timer in timers:
                if timer.active():
                    timer.cancel()

    def check(self, check: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """End the command as one that was used wrongly where `check` raises: before it connects."""
        try:
            check(*args, **kwargs)
        except MsgServiceError as error:
            self.complain(error)
            raise SystemExit(ExitCode.USAGE) from None

    def show(self, data: object, people: RenderableType | Callable[[], RenderableType]) -> None:
        """Print the outcome: `data` for programs, or `people` for people."""
        if self.as_json:
            out(msgspec.json.encode(data))
        else:
            out(people() if callable(people) else people)

    def complain(self, error: MsgServiceError) -> None:
        """Say on standard error why the command ends."""
        if self.as_json:
            why = reason_of(error)
            told: dict[str, Any] = {"error": kind_of(why).__name__, "message": str(error)}
            if kind_of(why) is RequestFailed and isinstance(why, RequestFailed) and why.code:
                told["code"] = why.code  # one of its own, which has no name here
            click.echo(msgspec.json.encode(told), err=True)
            return
        advice = f" ({HOW_ADDED})" if _is_unknown_receiver(reason_of(error)) else ""
        click.echo(f"msgservice: {error}{advice}", err=True)


def _log_to_standard_error(level: Any) -> None:
    shown = FilteringLogObserver(
        textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(defaultLogLevel=level)]
    )

    @provider(ILogObserver)
    def observer(event: LogEvent) -> None:
        failure = event.get("log_failure")
        # Twisted's word for a second Ctrl-C: the command is ending already.
        if failure is None or not failure.check(ReactorNotRunning):
            escape(event)
            shown(event)

    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False, discardBuffer=True)


class Whole(click.IntRange):
    """An integer, within bounds where there are some; errors call it that, not a range."""

    name = "integer"


def answer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every command that waits for answers."""
    for option in (
        click.option("--verbose", is_flag=True, help="Say on standard error what happens."),
        click.option(
            "--timeout",
            type=Seconds(),
            default=TIMEOUT,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait for each answer.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
    ):
        command = option(command)
    return command


def outbox_option(
    sentence: str, *, required: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that names a producer's outbox. One that is `required` is there already."""
    return click.option(
        "--outbox",
        type=click.Path(dir_okay=False, exists=required, path_type=Path),
        required=required,
        metavar="FILE",
        help=sentence,
    )


def node_options(command: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Add the options of a command that talks to a node; it gets them as a `Session`, first."""

    @click.option(
        "--node",
        envvar="MSGSERVICE_NODE",
        default=NODE,
        show_default=True,
        show_envvar=True,
        metavar="ADDRESS",
        help="Where the node listens.",
    )
    @click.option(
        "--user",
        envvar="MSGSERVICE_USER",
        show_envvar=True,
        metavar="NAME",
        help=f"Who logs in. The password is in {PASSWORD}, a token in {TOKEN}.",
    )
    @click.option(
        "--profile",
        envvar="MSGSERVICE_PROFILE",
        show_envvar=True,
        metavar="FILE|NAME",
        help="Where node, user, and password or token stand: a file, or a table of"
        " ~/.config/msgservice.toml.",
    )
    @answer_options
    @wraps(command)
    def with_session(
        node: str,
        user: str | None,
        profile: str | None,
        as_json: bool,
        timeout: float,
        verbose: bool,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        session = Session(node=node, as_json=as_json, timeout=timeout, verbose=verbose)
        said = user or profile or os.environ.get(PASSWORD) or os.environ.get(TOKEN)
        if said or default_profile(os.environ).exists():
            session = _as_somebody(session, user or None, profile)
        command(session, *args, **kwargs)

    return with_session


def _as_somebody(session: Session, user: str | None, profile: str | None) -> Session:
    # Only here: SCRAM is none of the business of a command that logs in nowhere.
    from msgservice.cli.login import choose

    try:
        chosen = choose(profile, user, environ=os.environ, ask=_ask if _is_attended() else None)
    except ConfigError as error:
        session.complain(error)
        raise SystemExit(ExitCode.USAGE) from None
    source = click.get_current_context().get_parameter_source("node")
    named = session.node if source is not ParameterSource.DEFAULT else None
    return replace(session, node=named or chosen.node or NODE, login=chosen.login)


def _is_attended() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(user: str) -> str:
    password: str = click.prompt(f"Password of {user}", hide_input=True, err=True)
    return password
