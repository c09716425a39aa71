"""`tls-server-end-point`: the hash of a server's certificate, as RFC 5929, 4.1 says it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from msgservice.transport.tcp.shown import end_point_of


def certificate(key: Any, signed: hashes.HashAlgorithm | None) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=now,
        not_valid_after=now + timedelta(days=1),
    )
    return builder.sign(key, signed)  # type: ignore[arg-type]  # any of those that it takes


def test_the_hash_is_that_of_the_signature() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for signed in (hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
        made = certificate(key, signed)
        assert made.fingerprint(signed) == end_point_of(made)


def test_a_signature_without_a_hash_of_its_own_counts_as_sha256() -> None:
    made = certificate(ed25519.Ed25519PrivateKey.generate(), None)
    assert made.fingerprint(hashes.SHA256()) == end_point_of(made)


class Old:
    """A certificate whose signature says a hash that nobody makes any more."""

    def __init__(self, signed: hashes.HashAlgorithm | None) -> None:
        self._made = certificate(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        self._signed = signed

    @property
    def signature_hash_algorithm(self) -> hashes.HashAlgorithm:
        if self._signed is None:
            raise UnsupportedAlgorithm("GOST")
        return self._signed

    def public_bytes(self, encoding: Any) -> bytes:
        return self._made.public_bytes(encoding)

    def fingerprint(self) -> bytes:
        return self._made.fingerprint(hashes.SHA256())


@pytest.mark.parametrize(
    "signed",
    [hashes.MD5(), hashes.SHA1(), None],
    ids=["md5", "sha1", "unknown"],
)
def test_a_broken_or_unknown_hash_is_sha256(signed: hashes.HashAlgorithm | None) -> None:
    old: Any = Old(signed)
    assert old.fingerprint() == end_point_of(old)
