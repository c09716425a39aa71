"""`msgservice node`: a node in the foreground, for who does not deploy it with `twistd`.

What a node is made of by its configuration is in `msgservice.tap`; here it is started, and said in
plain lines what somebody at a terminal wants to know first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from twisted.internet.defer import Deferred
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    eventAsJSON,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python.usage import UsageError

from msgservice.cli import signals
from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.reactor import install
from msgservice.config.config import Config
from msgservice.errors import CannotListen, ConfigError, LogLocked
from msgservice.tap import Options, build


@click.command("node", short_help="Run a node in the foreground, until Ctrl-C.")
@click.option("-c", "--config", metavar="FILE", help="Configuration file (TOML). Default: none.")
@click.option("-d", "--data", metavar="FOLDER", help="Folder of the log. Default: var/msgservice.")
@click.option("-n", "--name", help="Name of the node. Default: the one that its log was made with.")
@click.option(
    "-l",
    "--listen",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="Listen here, and nowhere else. May be repeated. Default: tcp:7410:interface=127.0.0.1.",
)
@click.option(
    "--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Set a limit. May be repeated."
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Let anybody in who reaches the node, also beyond this machine: no login is needed."
    " As insecure = true in [node].",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How its log is printed, to standard error.",
)
def node(
    config: str | None,
    data: str | None,
    name: str | None,
    addresses: tuple[str, ...],
    limits: tuple[str, ...],
    insecure: bool,
    log_format: str,
) -> None:
    """Run a node in the foreground, until Ctrl-C or SIGTERM.

    Says where its data is, what it listens on, who may connect, and how to stop it. Everything goes
    to standard error. What is given here wins over the file.
    """

    def tell(ready: Deferred[None], listeners: Callable[[], Sequence[str]]) -> None:
        ready.addCallbacks(
            lambda _: click.echo("\n".join(lines(said, listeners())), err=True),
            lambda _failure: None,  # who did not start has said so
        )

    options = Options()
    options.update({"config": config, "data": data, "name": name, "insecure": insecure})
    for address in addresses:
        options.opt_listen(address)
    try:
        for limit in limits:
            options.opt_limit(limit)
        said = options.config()
        install()
        service: Any = build(said, tell=tell if log_format == "text" else _tell_nothing)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    except ConfigError as error:
        click.echo(f"msgservice: the configuration is wrong:\n{error}", err=True)
        raise SystemExit(ExitCode.USAGE) from None
    except (CannotListen, LogLocked) as error:
        click.echo(f"msgservice: {error}", err=True)
        raise SystemExit(ExitCode.REFUSED) from None
    _begin_logging(log_format)

    from twisted.internet import reactor as installed

    reactor: Any = installed
    service.privilegedStartService()
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    signals.give_back()
    reactor.run()


def _tell_nothing(*_: object) -> None:
    """Each line is JSON then, and those of the log say it."""


def lines(config: Config, listeners: Sequence[str]) -> list[str]:
    """Return what somebody at a terminal wants to know of a node that has begun, a fact each."""
    pages = [one for one in listeners if one.startswith(("http://", "https://"))]
    told = [("data", str(Path(config.data).absolute()))]
    told += [("listens on", one) for one in listeners if one not in pages]
    told += [("page", one) for one in pages]
    told.append(("who may", _who(config)))
    told.append(("stop", "Ctrl-C, or SIGTERM; nothing that was stored is lost, however it ends"))
    return ["", *(f"  {name:<11} {what}" for name, what in told), ""]


def _who(config: Config) -> str:
    if config.users or config.users_file is not None:
        count = len(config.users)
        return f"{count} configured user{'' if count == 1 else 's'}, each after a login"
    if config.insecure:
        return "whoever reaches these addresses: insecure, as it was asked for (docs/security.md)"
    return "everybody on this machine, for no users are configured (docs/security.md)"


def _begin_logging(log_format: str) -> None:
    observer = (
        textFileLogObserver(sys.stderr)
        if log_format == "text"
        else FileLogObserver(sys.stderr, lambda event: eventAsJSON(event) + "\n")
    )
    level = LogLevelFilterPredicate(LogLevel.info)
    globalLogBeginner.beginLoggingTo(
        [FilteringLogObserver(observer, [level])], redirectStandardIO=False
    )
