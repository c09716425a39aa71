"""`msgservice`: the command, put together. Each subcommand stands in a module of its own."""

from __future__ import annotations

import click

from msgservice.cli.check_config import check_config
from msgservice.cli.listen import listen
from msgservice.cli.receivers import receivers
from msgservice.cli.send import send
from msgservice.cli.status import info, status

EPILOG = """
\b
Exit codes:
  0    done
  1    the node refused, or the message was not delivered
  2    a wrong option, name, subject, address or configuration; nothing was done
  3    no node there, or no answer in time; what was asked may have been done
  130  interrupted by a signal
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="msgservice")
def main() -> None:
    """Send and receive messages, and look after a messaging node.

    Which node: --node ADDRESS, or MSGSERVICE_NODE in the environment.
    """


for command in (send, listen, receivers, status, info, check_config):
    main.add_command(command)
