"""The acts of the command line on many messages: what they would touch is said before it is done.

One way for all of them (`dead drop`, `dead requeue` ...). What is looked for and done is the
command's own; here is what is asked, and how it is told to people and to programs.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import click

from msgservice.cli.session import Session
from msgservice.clock import Reactor
from msgservice.errors import MsgServiceError, Refused
from msgservice.threads import in_daemon_thread

P = ParamSpec("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """The messages that an act would touch. `sentence`: for people, without its full stop.

    `fields`: for programs, besides `count`.
    """

    count: int
    sentence: str
    fields: Mapping[str, Any] | None = None

    @property
    def told(self) -> dict[str, Any]:
        """The object that programs are told."""
        return {"count": self.count, **(self.fields or {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The outcome of an act. `failed`: what ended it before it had touched all."""

    sentence: str
    fields: Mapping[str, Any]
    failed: MsgServiceError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """An act on many messages, as the command line asks for it."""

    dry_run: bool = False
    yes: bool = False

    async def carry_out(
        self,
        session: Session,
        reactor: Reactor,
        touched: Touched,
        do: Callable[[], Awaitable[Done]],
    ) -> None:
        """Say what would be touched; `do` that unless nobody wants it, and say what was done.

        With `--json` one line is printed, `{"dry_run": ..., "would": ..., "done": ...}`, where
        `done` is null unless it was done. Raises `Refused` where nobody has said yes, and what
        ended the act half-way, once what it had done by then is told.
        """
        if self.dry_run or not touched.count:
            self._tell(session, touched, None)
            return
        await self._ask(session, reactor, touched)
        done = await do()
        self._tell(session, touched, done)
        if done.failed is not None:
            raise done.failed

    async def _ask(self, session: Session, reactor: Reactor, touched: Touched) -> None:
        if self.yes:
            if not session.as_json:  # people see it while it is done, and pipes get the outcome
                click.echo(touched.sentence, err=True)
            return
        # No program reads a question, and what a pipe says is not what a person has read.
        if session.as_json or not is_attended():
            raise Refused(f"nothing was done: {touched.sentence}; --yes says so")
        question = f"{touched.sentence}. Do it?"
        if not await in_daemon_thread(reactor, lambda: confirmed(question)):
            raise Refused("nothing was done")

    def _tell(self, session: Session, touched: Touched, done: Done | None) -> None:
        told = {
            "dry_run": self.dry_run,
            "would": touched.told,
            "done": None if done is None else dict(done.fields),
        }
        session.show(told, touched.sentence if done is None else done.sentence)


def act_options(command: Callable[Concatenate[Session, Act, P], None]) -> Callable[..., None]:
    """Add the options of an act on many messages, below `node_options`; it gets them as an `Act`.

    The act comes behind the session.
    """

    @click.option("--dry-run", is_flag=True, help="Say what it would touch, and do nothing.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @wraps(command)
    def with_act(
        session: Session, dry_run: bool, yes: bool, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        if dry_run and yes:
            raise click.UsageError("--dry-run does nothing, so --yes has nothing to say yes to")
        command(session, Act(dry_run=dry_run, yes=yes), *args, **kwargs)

    return with_act


def is_attended() -> bool:
    """Return whether somebody reads a question, and can answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirmed(question: str) -> bool:
    """Ask somebody at a terminal; what is not answered is no."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # the end of the input; what is said next begins a line
        click.echo(err=True)
        return False
