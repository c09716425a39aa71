"""`Token`: what is kept of a secret that a program logs in with instead of a password.

The secret is `ms_ID_RANDOM`: 32 random bytes cannot be guessed, so a hash of it is kept without
salt and iterations, and it is checked within microseconds. Its id finds the record and may be seen.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass, field

from msgservice.errors import BadValue

VALID_MAX = 2  # tokens of one user at a time: one in use, and the one that replaces it
_ID_CHARACTERS = string.ascii_lowercase + string.digits
_ID_LENGTH = 12
_RANDOM_BYTES = 32
_parse = re.compile(r"ms_([a-z0-9]{12})_([A-Za-z0-9_-]{43})", re.ASCII).fullmatch
is_token_id = re.compile(r"[a-z0-9]{12}", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token's record. `digest`: SHA-256 of the secret. `expires`: wall clock in ms, or None."""

    id: str
    digest: bytes = field(repr=False)
    user: str
    expires: int | None = None

    def __post_init__(self) -> None:
        if is_token_id(self.id) is None:
            raise BadValue("token", f"{self.id!r} is not {_ID_LENGTH} letters and digits")
        if len(self.digest) != hashlib.sha256().digest_size:
            raise BadValue("token", f"{self.id} has a SHA-256 of {len(self.digest)} bytes, not 32")

    def is_secret(self, secret: str) -> bool:
        """Return whether this is the token's secret, in the same time whatever differs."""
        digest = hashlib.sha256(secret.encode()).digest()
        return hmac.compare_digest(digest, self.digest)

    def is_valid(self, wall: int) -> bool:
        """Return whether it has not expired."""
        return self.expires is None or wall < self.expires


def new_token(user: str, *, expires: int | None = None) -> tuple[Token, str]:
    """A new token's record, and the secret, which is kept nowhere."""
    id_ = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    secret = f"ms_{id_}_{secrets.token_urlsafe(_RANDOM_BYTES)}"
    digest = hashlib.sha256(secret.encode()).digest()
    return Token(id=id_, digest=digest, user=user, expires=expires), secret


def token_id(secret: str) -> str | None:
    """Return the id that a secret says; None where it has not the form of one."""
    found = _parse(secret)
    return None if found is None else found[1]
