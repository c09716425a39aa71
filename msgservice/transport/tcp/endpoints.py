"""Endpoints for addresses: who is dialled, where is listened, and with which certificates.

    dial     tcp:HOST:PORT              [timeout, bindAddress]
             tls:HOST:PORT (ssl: the same) [timeout, bindAddress, hostname, trustRoots,
                                         certificate, privateKey]
             unix:PATH                  [timeout]
    listen   tcp:PORT                   [interface, backlog]
             tls:PORT (ssl: the same)   [interface, backlog, privateKey, certificate (certKey),
                                         trustRoots]
             unix:PATH                  [mode, backlog]

Option names are those of Twisted's own endpoint strings. Listeners are on loopback unless
`interface` says otherwise. `trustRoots` is a file or a folder of PEM certificates: for a client,
who may have signed the server's certificate (default: the system's list); for a server, who must
have signed its clients' (default: clients need none). Any other scheme is handed to Twisted, so
that endpoint plugins work. Certificates and keys are read anew for the next connection when their
files have changed. `ssl:` is not: Twisted's client of that name checks no host name.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import Certificate as X509Certificate
from cryptography.x509 import load_pem_x509_certificates
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    clientFromString,
    serverFromString,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
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
from msgservice.transport.addresses import LOOPBACK, Address, ip_of, parse_address

CONNECT_TIMEOUT = 30.0  # seconds for one attempt to connect, Twisted's own default
# A node that comes back is dialled by all its peers at once; the kernel caps it at `somaxconn`.
BACKLOG = 1024
BACKLOG_MAX = 2**31 - 1  # what the kernel is asked with
# Whoever may open the socket file may claim any name, so by default only the node's own user.
UNIX_MODE = "600"
UNIX_PATH_BYTES = 107  # sun_path of unix(7), less its final NUL


class _UnixServerEndpoint(UNIXServerEndpoint):
    """Listens at a path whose lock may be one that a killed process has left.

    Twisted asks whether the process lives whose id is in the lock. That may be another by now; in
    a container it is this one, whose id is the same at each start. Whether somebody listens at the
    path is what tells.
    """

    def listen(self, protocolFactory: Any) -> Any:
        """See `IStreamServerEndpoint`."""
        path = Path(os.fsdecode(self._address))
        lock = path.with_name(f"{path.name}.lock")
        if lock.is_symlink() and not is_listened_at(path):
            with suppress(OSError):
                if path.is_socket():
                    path.unlink()
                lock.unlink()
        return super().listen(protocolFactory)


def is_listened_at(path: Path) -> bool:
    """Return whether somebody listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # its queue is full, or it is not ours to ask
        return True


def check_socket(address: Address) -> None:
    """Raise `BadAddress` where no socket could be made at the path of a Unix address."""
    path = Path(address.parts[0])
    if "\0" in str(path):
        raise BadAddress(address.text, "a path has no zero byte")
    if not path.parent.is_dir():
        raise BadAddress(address.text, f"{path.parent} is not a folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadAddress(address.text, f"{path.parent} is not writable")
    if path.exists() and not path.is_socket():
        raise BadAddress(address.text, f"{path} is there and is no socket")


def client_endpoint(reactor: IReactorTime, text: str) -> IStreamClientEndpoint:
    """Return the endpoint that dials this address; `BadAddress` where there is none."""
    address = parse_address(text)
    if address.scheme == "tcp":
        address.only("timeout", "bindAddress")
        return _dial(reactor, address)
    if address.scheme in ("tls", "ssl"):
        address.only(
            "timeout", "bindAddress", "hostname", "trustRoots", "certificate", "privateKey"
        )
        creator = _ClientCreator(address, _client_options)
        return wrapClientTLS(creator, _dial(reactor, address), reactor)
    if address.scheme == "unix":
        address.only("timeout")
        path = address.one_part("PATH")
        return UNIXClientEndpoint(reactor, path, address.number("timeout", CONNECT_TIMEOUT))
    try:
        dialled: IStreamClientEndpoint = clientFromString(reactor, text)
        return dialled
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise BadAddress(text, str(error)) from error


def server_endpoint(reactor: IReactorTime, text: str) -> IStreamServerEndpoint:
    """Return the endpoint that listens on this address; `BadAddress` where there is none."""
    address = parse_address(text)
    if address.scheme == "tcp":
        address.only("interface", "backlog")
        return _listen(reactor, address)
    if address.scheme in ("tls", "ssl"):
        address.only("interface", "backlog", "privateKey", "certificate", "certKey", "trustRoots")
        return wrapServerTLS(
            _ServerCreator(address, _server_options), _listen(reactor, address), reactor
        )
    if address.scheme == "unix":
        address.only("mode", "backlog")
        path = address.one_part("PATH")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES:
            # Found out by bind(), it would leave Twisted's lock file and socket behind.
            raise BadAddress(text, f"path longer than {UNIX_PATH_BYTES} bytes")
        mode = address.options.get("mode", UNIX_MODE)
        if not mode.isascii() or any(digit not in "01234567" for digit in mode) or len(mode) != 3:
            raise BadAddress(text, f"mode must be three octal digits, not {mode!r}")
        # wantPID: the lock beside the socket tells a stale one, left by a killed process.
        return _UnixServerEndpoint(reactor, path, _backlog(address), int(mode, 8), wantPID=True)
    try:
        listening: IStreamServerEndpoint = serverFromString(reactor, text)
        return listening
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise BadAddress(text, str(error)) from error


def _dial(reactor: IReactorTime, address: Address) -> IStreamClientEndpoint:
    host, port = address.host_and_port()
    timeout = address.number("timeout", CONNECT_TIMEOUT)
    bind = address.options.get("bindAddress")
    if ip_of(host) is not None:
        return TCP4ClientEndpoint(reactor, host, port, timeout, (bind, 0) if bind else None)
    # A name may have several addresses, of both families; this tries them in turn (RFC 8305).
    return HostnameEndpoint(reactor, host, port, timeout, (bind, 0) if bind else None)


def _listen(reactor: IReactorTime, address: Address) -> IStreamServerEndpoint:
    port = address.port(address.one_part("PORT"), port_min=0)
    interface = address.options.get("interface", LOOPBACK)
    return TCP4ServerEndpoint(reactor, port, _backlog(address), interface)


def _backlog(address: Address) -> int:
    return address.integer("backlog", BACKLOG, BACKLOG_MAX)


T = TypeVar("T")


class _Renewed(Generic[T]):
    """TLS options made of the files of an address: anew, for the next connection, on a change.

    Files that make no sense, as one that is half replaced, are told, and what was goes on.
    """

    _logger = Logger()

    def __init__(self, address: Address, make: Callable[[Address], T]) -> None:
        self._address = address
        self._make = make
        self._stamps = _stamps(address)  # before they are read: what changes meanwhile is noticed
        self._made = make(address)

    def get(self) -> T:
        """Return it as the files are now, where they can be used."""
        stamps = _stamps(self._address)
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._made = self._make(self._address)
            except BadAddress as error:
                self._logger.error(
                    "a renewed certificate cannot be used, the one before goes on: {error}",
                    error=str(error),
                )
            else:
                self._logger.info(
                    "certificates of {address} were read anew", address=self._address.text
                )
        return self._made


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
