"""Options of webhooks, as the configuration says them, and the secrets that they name."""

from __future__ import annotations

import re
import secrets as randomness
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgservice.errors import BadValue, ConfigError
from msgservice.identity.private_files import read_private, write_private
from msgservice.transport.reach import Network
from msgservice.webhooks.signing import secret_of, text_of

SECRET_NAME = "webhook.secret"  # noqa: S105 - of the file
_SECRET_BYTES = 32

TIMEOUT = 30.0  # seconds for a call in all
HOOK_SECONDS_MAX = 600  # … that may be configured
CONCURRENCY = 8  # calls of one webhook at once, of lanes beside each other


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookOptions:
    """The options of one receiver's webhook. `secrets`: files, each with `whsec_` and base64.

    The first signs what is sent now; while a second is there, both do (rotation). Without any the
    node's own is used.
    """

    secrets: tuple[Path, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # secrets among them
    certificate: Path | None = None  # with its key, that calls show; PEM
    private_key: Path | None = None
    trust_roots: Path | None = None  # whose certificates are taken, PEM; None: this machine's


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhooksOptions:
    """The options of all webhooks of a node, and by receiver's name those of its own."""

    networks: tuple[Network, ...] = ()  # that may be dialled besides public addresses
    timeout: float = TIMEOUT
    concurrency: int = CONCURRENCY
    plain: bool = False  # http: beyond this machine
    own: Mapping[str, WebhookOptions] = field(default_factory=dict)


# Headers of a call that are the call's own.
TAKEN = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "user-agent"}
)
TAKEN_BEFORE = ("webhook-", "msgservice-")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}").fullmatch  # RFC 9110, 5.6.2
VALUE_MAX = 4096  # characters


def check_headers(headers: Mapping[str, object]) -> None:
    """Raise `BadValue` for headers that a call cannot have besides its own."""
    for name, value in headers.items():
        lower = name.lower()
        if _HEADER(name) is None or lower in TAKEN or lower.startswith(TAKEN_BEFORE):
            raise BadValue("headers", f"{name!r} is no header that a webhook may have")
        if not isinstance(value, str):
            raise BadValue("headers", f"{name} must be text")
        if not (value.isascii() and value.isprintable()) or len(value) > VALUE_MAX:
            raise BadValue("headers", f"the value of {name} is not printable ASCII, or too long")


def check_readable(file: str) -> None:
    """Raise `BadValue` for a file that cannot be read."""
    try:
        Path(file).read_bytes()
    except OSError as error:
        raise BadValue(file, f"cannot be read: {error.strerror}") from None


def secrets_of(own: WebhookOptions | None, folder: Path | None) -> Sequence[bytes]:
    """Return the secrets that sign calls: a receiver's own, or the one of its node's data folder.

    That one is made when it is first asked for; a node without a folder has none, and signs nothing
    then. Reads files. Raises `ConfigError` where one cannot be used, `OSError` where it cannot be
    made.
    """
    files = own.secrets if own is not None else ()
    if files:
        return [_read(file) for file in files]
    if folder is None:
        return []
    file = folder / SECRET_NAME
    if not file.exists():
        write_private(file, text_of(randomness.token_bytes(_SECRET_BYTES)).encode() + b"\n")
    return [_read(file)]


def _read(file: Path) -> bytes:
    try:
        return secret_of(read_private(file).decode())
    except (BadValue, UnicodeDecodeError) as error:
        why = error.reason if isinstance(error, BadValue) else "is no text"
        raise ConfigError([f"{file}: {why}"]) from None
