"""`PasswordRecord`: what is kept of a password, so that a login can be checked and none be made.

The record of SCRAM (RFC 5802, RFC 7677): who steals it can neither log in here with it nor read the
password from it, but may try passwords against it at `iterations` hashes each; and may play this
node to those who log in. The text is that of other stores too:
`SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY`, base64.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import b64decode, b64encode
from dataclasses import dataclass, field

from scramp import ScramException, ScramMechanism
from scramp.utils import saslprep

from msgservice.errors import BadValue

SCRAM = "SCRAM-SHA-256"
SCRAM_PLUS = "SCRAM-SHA-256-PLUS"
# What a server may ask a client to compute. Less is no protection (RFC 7677), and a million takes a
# third of a second of a core; more would let a hostile node keep its clients busy.
ITERATIONS_MIN = 4096
ITERATIONS_MAX = 1_000_000
# Some 35 ms for a client on its first connection, and for each guess of who has stolen a record.
ITERATIONS = 100_000
SALT_BYTES = 16
SALT_BYTES_MIN = 12  # of a record made elsewhere, as the library has it
SALT_BYTES_MAX = 64
_KEY_BYTES = 32
PASSWORD_BYTES_MAX = 1024

_parse = re.compile(
    r"SCRAM-SHA-256\$([1-9][0-9]{0,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)",
    re.ASCII,
).fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordRecord:
    """The record of one password. Raises `BadValue` where a part has a wrong length or range."""

    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not ITERATIONS_MIN <= self.iterations <= ITERATIONS_MAX:
            raise BadValue(
                "password",
                f"has {self.iterations} iterations, {ITERATIONS_MIN} to {ITERATIONS_MAX} allowed",
            )
        if not SALT_BYTES_MIN <= len(self.salt) <= SALT_BYTES_MAX:
            raise BadValue(
                "password",
                f"has a salt of {len(self.salt)} bytes,"
                f" {SALT_BYTES_MIN} to {SALT_BYTES_MAX} allowed",
            )
        for key in (self.stored_key, self.server_key):
            if len(key) != _KEY_BYTES:
                raise BadValue("password", f"has a key of {len(key)} bytes, not {_KEY_BYTES}")

    @classmethod
    def of(cls, password: str, *, iterations: int = ITERATIONS) -> PasswordRecord:
        """The record of a password, with a new salt; computes for some 35 ms.

        Raises `BadValue`, which does not say the password, for one that cannot be used.
        """
        check_password(password)
        if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
            raise BadValue(
                "iterations", f"is not {ITERATIONS_MIN} to {ITERATIONS_MAX}: {iterations}"
            )
        salt, stored_key, server_key, _ = ScramMechanism(SCRAM).make_auth_info(
            password, iteration_count=iterations, salt=secrets.token_bytes(SALT_BYTES)
        )
        return cls(iterations=iterations, salt=salt, stored_key=stored_key, server_key=server_key)

    @classmethod
    def parse(cls, text: str) -> PasswordRecord:
        """The record that a text says. Raises `BadValue`, which does not say the text."""
        found = _parse(text)
        if found is None:
            raise BadValue(
                "password",
                "is no record as `msgservice passwd` makes it,"
                " SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY",
            )
        try:
            salt, stored_key, server_key = (
                b64decode(part, validate=True) for part in found.groups()[1:]
            )
        except ValueError:
            raise BadValue("password", "is a record with a part that is not base64") from None
        return cls(
            iterations=int(found[1]), salt=salt, stored_key=stored_key, server_key=server_key
        )

    def is_of(self, password: str) -> bool:
        """Return whether this is the record of a password; computes for some 35 ms."""
        if len(password.encode(errors="replace")) > PASSWORD_BYTES_MAX:
            return False
        try:
            prepared = saslprep(password).encode()
        except ScramException:
            return False
        salted = hashlib.pbkdf2_hmac("sha256", prepared, self.salt, self.iterations)
        stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        return hmac.compare_digest(stored, self.stored_key)

    def text(self) -> str:
        """The record as it is kept. Not `str()`: it is a secret, for no log line."""
        salt, stored_key, server_key = (
            b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key)
        )
        return f"{SCRAM}${self.iterations}:{salt}${stored_key}:{server_key}"


def check_password(password: str) -> None:
    """`BadValue`, which does not say the password, unless it can be one."""
    if len(password.encode(errors="replace")) > PASSWORD_BYTES_MAX:
        raise BadValue("password", f"is longer than {PASSWORD_BYTES_MAX} bytes")
    try:
        prepared = saslprep(password)
    except ScramException as error:
        raise BadValue("password", f"cannot be used: {error.args[0]}") from None
    if not prepared:
        raise BadValue("password", "is empty")


def check_user_name(name: str) -> None:
    """`BadValue` for a name that SCRAM's preparation of names would make another one."""
    try:
        prepared = saslprep(name)
    except ScramException as error:
        raise BadValue("user", f"{name!r} cannot be used: {error.args[0]}") from None
    if prepared != name:
        raise BadValue("user", f"{name!r} is to be written {prepared!r}")
