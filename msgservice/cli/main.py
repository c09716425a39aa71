"""`msgservice`: the command, put together. Each subcommand stands in a module of its own.

A process begins it with `msgservice.cli.run`, before all this is imported.
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches

import click

from msgservice.cli.exit_codes import MEANINGS

# Command -> its module and name there: imported when it is asked for, since each needs much that
# the others do not, and a command that ends at once is mostly imports.
COMMANDS = {
    "node": ("msgservice.cli.node", "node"),
    "dev": ("msgservice.cli.dev.command", "dev"),
    "send": ("msgservice.cli.send", "send"),
    "request": ("msgservice.cli.request", "request"),
    "listen": ("msgservice.cli.listen", "listen"),
    "receivers": ("msgservice.cli.receivers", "receivers"),
    "peek": ("msgservice.cli.peek", "peek"),
    "purge": ("msgservice.cli.purge", "purge"),
    "rewind": ("msgservice.cli.rewind", "rewind"),
    "dead": ("msgservice.cli.dead", "dead"),
    "retained": ("msgservice.cli.retained", "retained"),
    "streams": ("msgservice.cli.streams", "streams"),
    "delayed": ("msgservice.cli.delayed", "delayed"),
    "undo": ("msgservice.cli.undo", "undo"),
    "relay": ("msgservice.cli.relay", "relay"),
    "receipts": ("msgservice.cli.receipts", "receipts"),
    "status": ("msgservice.cli.status", "status"),
    "why": ("msgservice.cli.why", "why"),
    "top": ("msgservice.cli.top", "top"),
    "info": ("msgservice.cli.status", "info"),
    "audit": ("msgservice.cli.audit", "audit"),
    "whoami": ("msgservice.cli.status", "whoami"),
    "reload": ("msgservice.cli.reload", "reload"),
    "passwd": ("msgservice.cli.users", "passwd"),
    "token": ("msgservice.cli.users", "token"),
    "can": ("msgservice.cli.users", "can"),
    "check-config": ("msgservice.cli.check_config", "check_config"),
    "completion": ("msgservice.cli.completion", "completion"),
}


class Commands(click.Group):
    """The group of all commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command with this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is asked for; `UsageError` names the one that was meant."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = get_close_matches(args[0], COMMANDS, 1)
            meant = f", did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no such command {args[0]!r}{meant}", ctx)
        return super().resolve_command(ctx, args)


EPILOG = "\n".join(  # \b: each line as it is
    ["\b", "Exit codes:", *(f"  {code:<4} {meaning}" for code, meaning in MEANINGS.items())]
)


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="msgservice")
def main() -> None:
    """Send and receive messages, and look after a messaging node.

    Which node: --node ADDRESS, or MSGSERVICE_NODE in the environment.
    """
