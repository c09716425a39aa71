"""Names and patterns as the configuration may have them."""

from __future__ import annotations

from msgservice.errors import BadName, BadSubject
from msgservice.limits import NAME_BYTES_MAX


def check_name(name: str) -> None:
    """Raise `BadName` where `name` can be no name."""
    if not name:
        raise BadName(name, "empty")
    if len(name.encode()) > NAME_BYTES_MAX:
        raise BadName(name, f"longer than {NAME_BYTES_MAX} bytes")
    if not name.isprintable() or " " in name:
        raise BadName(name, "holds a space or a character that cannot be printed")


def check_pattern(pattern: str) -> None:
    """Raise `BadSubject` where `pattern` can be no pattern of subjects."""
    if len(pattern.encode()) > NAME_BYTES_MAX:
        raise BadSubject(pattern, f"longer than {NAME_BYTES_MAX} bytes")
    tokens = pattern.split(".")
    if not all(tokens):
        raise BadSubject(pattern, "empty token")
    if ">" in tokens[:-1]:
        raise BadSubject(pattern, "> may only come last")
    for token in tokens:
        if not token.isprintable() or " " in token:
            raise BadSubject(pattern, "holds a space or a character that cannot be printed")
