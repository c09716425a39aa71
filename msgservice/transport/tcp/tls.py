"""TLS of byte streams: what is made of certificates and keys in files, and made anew on a change.

An address names the files by `certificate`, `privateKey` and `trustRoots`. For a client,
`trustRoots` (a file or a folder of PEM certificates) are who may have signed the server's
certificate, by default the system's list; for a server, who must have signed its clients', by
default nobody. Files that have changed count from the next connection on, whether or not somebody
asks for it (`Tls.reload`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import Certificate as X509Certificate
from cryptography.x509 import load_pem_x509_certificates
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.logger import Logger
from zope.interface import implementer

from msgservice.errors import BadAddress
from msgservice.records import Reread
from msgservice.transport.addresses import Address

T = TypeVar("T")


class Tls:
    """The TLS of one transport: makes what connections begin with, and knows what is in use."""

    def __init__(self) -> None:
        self._in_use: WeakSet[_Renewed[Any]] = WeakSet()

    def client(self, address: Address) -> _ClientCreator:
        """Return what begins the connections to an address; `BadAddress` where it cannot be."""
        made = _ClientCreator(address, _client_options)
        self._in_use.add(made)
        return made

    def server(self, address: Address) -> _ServerCreator:
        """Return what begins those of a listener; `BadAddress` where it cannot be."""
        made = _ServerCreator(address, _server_options)
        self._in_use.add(made)
        return made

    def reload(self) -> list[Reread]:
        """Read now what has changed, for all that is in use."""
        return [one.reread() for one in sorted(self._in_use, key=lambda one: one.address.text)]


class _Renewed(Generic[T]):
    """TLS options made of the files of an address: anew, for the next connection, on a change.

    Files that make no sense, as one that is half replaced, are told, and what was goes on.
    """

    _logger = Logger()

    def __init__(self, address: Address, make: Callable[[Address], T]) -> None:
        self.address = address
        self._make = make
        self._stamps = _stamps(address)  # before they are read: what changes meanwhile is noticed
        self._made = make(address)
        self._problem: str | None = None  # why what is there now cannot be used
        self._changed = False  # and is used, which nobody who asked has been told yet

    def get(self) -> T:
        """Return it as the files are now, where they can be used."""
        if _stamps(self.address) != self._stamps:
            self._renew()
        return self._made

    def reread(self) -> Reread:
        """Read the files, if they have changed or could not be used."""
        if self._problem is not None or _stamps(self.address) != self._stamps:
            self._renew()
        changed, self._changed = self._changed, False
        return Reread(self.address.text, changed, self._problem)

    def _renew(self) -> None:
        self._stamps = _stamps(self.address)
        try:
            self._made = self._make(self.address)
        except BadAddress as error:
            self._problem = str(error)
            self._logger.error(
                "a renewed certificate cannot be used, the one before goes on: {error}",
                error=self._problem,
            )
        else:
            self._problem, self._changed = None, True
            self._logger.info("certificates of {address} were read anew", address=self.address.text)


@implementer(IOpenSSLServerConnectionCreator)
class _ServerCreator(_Renewed[CertificateOptions]):
    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self.get().getContext(), None)


@implementer(IOpenSSLClientConnectionCreator)
class _ClientCreator(_Renewed[Any]):
    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection: SSL.Connection = self.get().clientConnectionForTLS(tlsProtocol)
        return connection


def _stamps(address: Address) -> list[tuple[str, int, int, int]]:
    """Return what changes when a file that the address names is written or replaced."""
    named = [address.options.get(key) for key in _FILE_OPTIONS]
    stamps = []
    for name in dict.fromkeys(name for name in named if name is not None):
        path = Path(name)
        for file in [path, *sorted(path.glob("*.pem"))] if path.is_dir() else [path]:
            try:
                found = file.stat()
            except OSError:
                continue
            stamps.append((str(file), found.st_ino, found.st_mtime_ns, found.st_size))
    return stamps


_FILE_OPTIONS = ("privateKey", "certificate", "certKey", "trustRoots")


def _client_options(address: Address) -> Any:
    host, _ = address.host_and_port()
    return optionsForClientTLS(
        address.options.get("hostname", host),
        trustRoot=_trust_root(address),
        extraCertificateOptions=_own_certificate(address),
    )


def _server_options(address: Address) -> CertificateOptions:
    own = _own_certificate(address)
    if not own:
        raise BadAddress(address.text, "privateKey=FILE is needed (and certificate=FILE)")
    return CertificateOptions(
        **own,
        trustRoot=_trust_root(address),  # a server asks its clients for nothing unless told whom
        raiseMinimumTo=TLSVersion.TLSv1_2,
    )


def _own_certificate(address: Address) -> dict[str, Any]:
    """Return options for the certificate of this end, its chain and its key; {} if it has none.

    All may be in one file. Given to Twisted as objects of `cryptography`: pyOpenSSL deprecates
    its own.
    """
    options = address.options
    certificate_path = options.get("certificate") or options.get("certKey")
    key_path = options.get("privateKey") or certificate_path
    certificate_path = certificate_path or key_path
    if certificate_path is None or key_path is None:
        return {}
    leaf, *chain = _certificates(address, certificate_path)
    try:
        key = load_pem_private_key(_read(address, key_path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadAddress(
            address.text, f"{key_path} holds no private key in PEM form without password"
        ) from error
    if key.public_key() != leaf.public_key():
        raise BadAddress(address.text, f"the key in {key_path} is not that of {certificate_path}")
    own: dict[str, Any] = {"privateKey": key, "certificate": leaf, "extraCertChain": chain}
    try:
        CertificateOptions(**own).getContext()  # else each connection would fail with what it says
    except SSL.Error as error:
        reason = ", ".join([one[-1] for one in error.args[0]] if error.args else [])
        raise BadAddress(
            address.text, f"OpenSSL does not take {certificate_path}: {reason}"
        ) from error
    return own


def _trust_root(address: Address) -> Any:
    text = address.options.get("trustRoots")
    if text is None:
        return None
    path = Path(text)
    files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
    certificates = [
        Certificate(X509.from_cryptography(certificate))
        for file in files
        for certificate in _certificates(address, str(file))
    ]
    if not certificates:
        raise BadAddress(address.text, f"no *.pem in folder {text}")
    return trustRootFromCertificates(certificates)


def _certificates(address: Address, path: str) -> list[X509Certificate]:
    try:
        return load_pem_x509_certificates(_read(address, path))
    except ValueError as error:
        raise BadAddress(address.text, f"{path} holds no certificate in PEM form") from error


def _read(address: Address, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadAddress(address.text, f"cannot read {path}: {error.strerror}") from error
