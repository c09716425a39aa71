"""Signatures of webhooks, as Standard Webhooks has them (https://www.standardwebhooks.com, 1.0).

webhook-id: msg_…            the same each time that a message is sent
webhook-timestamp: …         seconds, of this attempt
webhook-signature: v1,…      HMAC-SHA256 of `id.timestamp.body`, one for each secret
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from msgservice.errors import BadValue

PREFIX = "whsec_"
SECRET_MIN, SECRET_MAX = 24, 64  # bytes, as the specification asks
SECRETS_MAX = 2  # the one that is in use, and the one that it is replaced by


def secret_of(text: str, name: str = "secret") -> bytes:
    """Return the bytes of a secret, `whsec_` and base64. `BadValue`, which does not show it."""
    encoded = text.strip().removeprefix(PREFIX)
    try:
        secret = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BadValue(name, f"expected {PREFIX} and base64") from None
    if not SECRET_MIN <= len(secret) <= SECRET_MAX:
        allowed = f"from {SECRET_MIN} to {SECRET_MAX}"
        raise BadValue(name, f"has {len(secret)} bytes, allowed are {allowed}")
    return secret


def text_of(secret: bytes) -> str:
    """Return a secret as it is written down."""
    return PREFIX + base64.b64encode(secret).decode()


def message_id(identity: str) -> str:
    """Return the id of a message's calls: the same at each attempt, and on each node of a chain."""
    digest = hashlib.sha256(identity.encode()).digest()
    return "msg_" + base64.b32encode(digest).decode().rstrip("=").lower()


def signature(secrets: Sequence[bytes], id_: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`."""
    signed = f"{id_}.{timestamp}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()
        for secret in secrets
    )
