"""The environment of a command: names of variables, and where a profile is by default.

No secret is ever an argument: others on the machine see those. Nothing large is imported: a command
that needs none of it asks first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NAME = "msgservice"
PASSWORD = "MSGSERVICE_PASSWORD"  # noqa: S105  # its name
TOKEN = "MSGSERVICE_TOKEN"  # noqa: S105  # its name


def default_profile(environ: Mapping[str, str]) -> Path:
    """Return the file that is the profile where none is named; it need not be there."""
    folder = environ.get("XDG_CONFIG_HOME") or ""
    # One that is not absolute counts as unset (XDG Base Directory Specification).
    base = Path(folder) if folder.startswith("/") else Path("~/.config").expanduser()
    return base / f"{NAME}.toml"
