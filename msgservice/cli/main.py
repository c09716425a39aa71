"""`msgservice`: the command and what all of its subcommands share."""

from __future__ import annotations

import click


@click.group()
@click.version_option(package_name="msgservice")
def main() -> None:
    """Talk to a messaging node."""


@main.command("check-config")
@click.argument("file", type=click.Path())
def check_config(file: str) -> None:
    """Check a configuration file, whole, without starting anything."""
