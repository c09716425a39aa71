"""The command `msgservice dev`: its options, its folder and its ports, and how it ends."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from twisted.internet.defer import CancelledError

from msgservice.cli.dev.chaos import Chaos, Script
from msgservice.cli.dev.play import APART, HERE, SUBJECT, Play
from msgservice.cli.dev.telling import Teller
from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.session import NODE, SECONDS_MAX, Session, Whole, exit_code
from msgservice.clock import wall_of
from msgservice.disk.folder import check_not_held
from msgservice.errors import CannotListen, LogLocked, MsgServiceError
from msgservice.transport.registry import Transports

LOOPBACK = "interface=127.0.0.1"
LISTEN, PAGE = f"tcp:7410:{LOOPBACK}", f"tcp:7480:{LOOPBACK}"
ANY_PORT = f"tcp:0:{LOOPBACK}"
FOLDER = "msgservice-dev-"  # the number of the process follows
SEEDS = 1_000_000  # from which one is drawn that nobody gives: it is to be typed again


@click.command("dev", short_help="A node to try things at, with receivers and, if wanted, trouble.")
@click.option("--chaos", is_flag=True, help="Kill, delay and refuse: see what becomes of messages.")
@click.option(
    "--seed", type=Whole(min=0), metavar="N", help="Draw the chaos from this. Default: any."
)
@click.option(
    "--every",
    type=click.FloatRange(min=0, max=SECONDS_MAX),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long until the next message of its own; 0: it sends none.",
)
@click.option("--count", type=Whole(min=1), help="End when so many of its own are final.")
@click.option("-d", "--data", metavar="FOLDER", help="Keep the log here. Default: it is removed.")
@click.option(
    "-l", "--listen", metavar="ADDRESS", help=f"Listen here. Default: {LISTEN}, or any free port."
)
@click.option(
    "--page", metavar="ADDRESS", help=f"The page is here. Default: {PAGE}, or any free port."
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as JSON, for programs.")
@click.option("--verbose", is_flag=True, help="Show the log of all who take part as well.")
def dev(
    chaos: bool,
    seed: int | None,
    every: float,
    count: int | None,
    data: str | None,
    listen: str | None,
    page: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run a node with two receivers and a sender, and show what becomes of each message.

    A line for each event: sent, taken, refused and tried again, a dead letter, killed, and what the
    sender is told in the end. With --chaos there is some of all that. Send to it, listen and look
    at its page meanwhile, until Ctrl-C; then all messages are accounted for.
    """
    if seed is not None and not chaos:
        raise click.UsageError("--seed draws the chaos: it needs --chaos")
    if count is not None and not every:
        raise click.UsageError("--count counts messages of its own, and --every 0 sends none")
    session = Session(as_json=as_json, verbose=verbose)
    if chaos and seed is None:
        seed = secrets.randbelow(SEEDS)
    script = Script(None if seed is None else Chaos(seed, frozenset({APART})))
    try:
        where, shown_at = _free(listen, LISTEN), _free(page, PAGE)
        if data is not None:
            check_not_held(Path(data))
    except MsgServiceError as error:
        session.complain(error)
        raise SystemExit(exit_code(error)) from None

    async def work(reactor: Any) -> None:
        with _folder(data) as folder:
            play = Play(
                reactor,
                folder,
                listen=where,
                web=shown_at,
                script=script,
                every=every,
                count=count,
                tell=lambda event, **fields: teller.tell(event, **fields),
            )
            teller = Teller(as_json=as_json, wall=wall_of(reactor), broken=play.fail)
            account = None
            try:
                await play.begin()
                teller.tell(
                    "ready",
                    node=play.address,
                    is_default=play.address == NODE,
                    page=play.page,
                    pid=play.child.pid,
                    data=str(folder),
                    is_kept=data is not None,
                    receivers=[HERE, APART],
                    subject=SUBJECT,
                    first=play.first,
                    seed=seed,
                )
                play.send_now_and_then()
                await play.over
            except CancelledError:
                pass  # by Ctrl-C or SIGTERM: the end that is meant
            finally:
                account = await play.end()
        if account is not None:
            teller.tell("account", **account)
            if account["discrepancies"]:
                raise SystemExit(ExitCode.REFUSED)

    session.run(work)


def _free(given: str | None, usual: str) -> str:
    """Return the address to listen at: the given one, or the usual one, or any free port.

    Raises `CannotListen` where the given one is taken, and `BadAddress`.
    """
    address = usual if given is None else given
    try:
        Transports().find(address).check_free(address)
    except CannotListen:
        if given is not None:
            raise
        return ANY_PORT
    return address


@contextmanager
def _folder(data: str | None) -> Iterator[Path]:
    """Give the folder of the log: one that is removed behind, unless one is given."""
    if data is not None:
        yield Path(data).absolute()
        return
    _remove_left(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-") as name:
        yield Path(name)


def _remove_left(above: Path) -> None:
    """Remove the folders of those that were killed: ours, of no process, and held by none."""
    for folder in above.glob(f"{FOLDER}*"):
        pid = folder.name.removeprefix(FOLDER).partition("-")[0]
        with suppress(OSError, LogLocked):
            if pid.isdecimal() and folder.lstat().st_uid == os.geteuid() and not _runs(int(pid)):
                check_not_held(folder)
                shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    """Tell whether there is such a process, whoever's."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
