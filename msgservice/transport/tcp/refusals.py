"""Sentences for TLS that came to nothing: what is wrong with the other side, or it says of us.

Each end refuses for its own reasons and tells the other with an alert of one byte. OpenSSL names
alerts and failed verifications in words of its own; here they are put so that who reads them knows
which side has to change what.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary, WeakSet

from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)

from msgservice.transport.addresses import ip_of

# X509_V_ERR_… of OpenSSL, by what they come to.
NOT_YET_VALID = (9,)
EXPIRED = (10,)
NOT_TRUSTED = (2, 18, 19, 20, 21)
WRONG_PURPOSE = (26,)
REVOKED = (23,)

# What OpenSSL says of the other side's first bytes where they are none of TLS.
NO_TLS = ("wrong version number", "http request", "packet length too long", "https proxy request")
NO_VERSION = ("unsupported protocol", "version too low", "no protocols available")
# What an alert of the other side comes to.
ALERTS = {
    "certificate required": "it asks for a certificate, and we show none",
    "unknown ca": "it does not trust who signed our certificate",
    "certificate expired": "our certificate has expired",
    "certificate revoked": "our certificate is revoked",
    "unsupported certificate": "our certificate is for another use",
    "bad certificate": "it does not take our certificate",
    "certificate unknown": "it does not take our certificate",
    "protocol version": "it takes no version of TLS that is spoken here",
    "handshake failure": "it may ask for a certificate, or we have no cipher in common",
    # What OpenSSL says for a reason that is not its own: with us, the name in the certificate.
    "internal error": "our certificate is for another name than it dialled, or it has a fault",
}

# Of these, those about a certificate: trying again helps nobody until one is another.
OF_CERTIFICATES = frozenset(
    {
        "certificate required",
        "unknown ca",
        "certificate expired",
        "certificate revoked",
        "unsupported certificate",
        "bad certificate",
        "certificate unknown",
    }
)

_refused: WeakKeyDictionary[SSL.Connection, str] = WeakKeyDictionary()
# Those that were refused for what passes by itself: a certificate that is not valid yet.
_passing: WeakSet[SSL.Connection] = WeakSet()


def watch(connection: SSL.Connection, host: str | None) -> None:
    """Let a connection remember why it does not take the certificate of its other side.

    `host`: the name (in ASCII) or IP address that was dialled, which the certificate must have;
    None for a server, which has dialled nobody. This takes the place of whoever judged the
    certificate before: one that is of nobody who is trusted, or for another name, is refused here,
    within the handshake, so that the other side hears of it.
    """

    def verify(of: SSL.Connection, certificate: X509, code: int, depth: int, taken: int) -> bool:
        reason = None
        try:
            if not taken:
                reason = _untaken(certificate, code, depth)
            elif depth == 0 and host is not None and not _is_for(certificate, host):
                reason = f"the certificate of the other side is for another name than {host}"
        except Exception as error:  # a callback of OpenSSL's must not raise, nor let anybody in
            reason = f"the certificate of the other side cannot be judged: {error!r}"
        if reason is not None and of not in _refused:
            _refused[of] = reason
            if not taken and code in NOT_YET_VALID:
                _passing.add(of)
        return reason is None

    connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)


def refusal_of(connection: object) -> str | None:
    """Return why the certificate of the other side was not taken, None where it was."""
    return _refused.get(connection) if isinstance(connection, SSL.Connection) else None


def is_by_certificate(error: object, connection: object) -> bool:
    """Whether it came to nothing for a certificate, on either side, and does not pass by itself."""
    if isinstance(connection, SSL.Connection) and connection in _refused:
        return connection not in _passing
    if not isinstance(error, SSL.Error):
        return isinstance(error, VerificationError)
    reasons = [entry[-1] for entry in error.args[0]] if error.args else []
    return any(reason.partition("alert ")[2] in OF_CERTIFICATES for reason in reasons)


def _untaken(certificate: X509, code: int, depth: int) -> str:
    whose = "the certificate of the other side"
    if depth:
        whose = f"an authority (depth {depth}) of {whose}"
    read = certificate.to_cryptography()
    if code in EXPIRED:
        return f"{whose} has expired, on {read.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if code in NOT_YET_VALID:
        return f"{whose} is not valid before {read.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    if code in NOT_TRUSTED:
        return "the certificate of the other side is of nobody who is trusted here (trustRoots)"
    if code in WRONG_PURPOSE:
        return f"{whose} is for another use"
    if code in REVOKED:
        return f"{whose} is revoked"
    return f"{whose} is not taken (X509_V_ERR {code})"


def _is_for(certificate: X509, host: str) -> bool:
    try:
        if ip_of(host) is not None:
            verify_certificate_ip_address(certificate.to_cryptography(), host.partition("%")[0])
        else:
            verify_certificate_hostname(certificate.to_cryptography(), host)
    except (VerificationError, CertificateError):
        return False
    return True


def told(error: object) -> str | None:
    """Return what an error of TLS says, for people; None for other errors."""
    if isinstance(error, VerificationError):
        return "the certificate of the other side is for another name"
    if not isinstance(error, SSL.Error):
        return None
    reasons = [entry[-1] for entry in error.args[0]] if error.args else []
    for reason in reasons:
        _, is_alert, alert = reason.partition("alert ")
        if is_alert:
            why = ALERTS.get(alert)
            return "the other side broke off: " + (alert if why is None else f"{why} ({alert})")
        if reason in NO_TLS:
            return "the other side speaks no TLS: is it an address without, tcp: or http:?"
        if reason in NO_VERSION:
            return "the other side speaks no version of TLS that is allowed here (minimumVersion)"
        if reason == "peer did not return a certificate":
            return "the other side shows no certificate, and one is needed here"
    return ", ".join(reasons) or "handshake failed"
