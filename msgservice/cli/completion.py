"""`msgservice completion`: the script with which a shell completes commands and options.

What completes is click's; asked by that script, the command says words and does nothing else.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from msgservice.cli.output import out
from msgservice.cli.variables import NAME

SHELLS = ("bash", "zsh", "fish")
ASKED_BY = "_MSGSERVICE_COMPLETE"  # the variable in which click's scripts ask


@click.command(short_help="Print what makes a shell complete msgservice.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete commands and options of msgservice.

    \b
    bash: in ~/.bashrc, eval "$(msgservice completion bash)"
    zsh:  in ~/.zshrc, after compinit, eval "$(msgservice completion zsh)"
    fish: msgservice completion fish > ~/.config/fish/completions/msgservice.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # click's own three
    main = click.get_current_context().find_root().command
    # Not `source()`: that runs the shell and asks for its version, and the script may be for a
    # machine that is not this one.
    script = found(main, {}, NAME, ASKED_BY)
    out((script.source_template % script.source_vars()).encode())
