"""`msgservice check-config`: is this file right? Starts nothing and asks no node."""

from __future__ import annotations

import sys

import click
import msgspec

from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.output import console
from msgservice.config.config import Config, load_config
from msgservice.errors import ConfigError


@click.command("check-config", short_help="Check a configuration FILE without starting anything.")
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def check_config(file: str, as_json: bool) -> None:
    """Check a configuration FILE, whole, without starting anything.

    Prints what a node would do with it; or all that is wrong, and ends with exit code 2.
    """
    try:
        config = load_config(file)
    except ConfigError as error:
        if as_json:
            click.echo(msgspec.json.encode({"problems": error.problems}))
        else:
            click.echo(error, err=True)
        raise SystemExit(ExitCode.USAGE) from None
    if as_json:
        click.echo(msgspec.json.encode(config, enc_hook=str))
    else:
        console(sys.stdout).print("\n".join(_lines(config)), markup=False)


def _lines(config: Config) -> list[str]:
    lines = [f"name       {config.name or 'as the log says'}", f"data       {config.data}"]
    lines += [f"listens    {one.address}" for one in config.listen]
    for receiver in config.receivers:
        where = f"dialled at {receiver.address}" if receiver.address else "attaches"
        subjects = ", ".join(receiver.subjects) or "what names it"
        lines.append(f"receiver   {receiver.name}: {where}; {subjects}")
    return lines
