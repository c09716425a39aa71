"""TLS of byte streams: what is made of certificates and keys in files, and made anew on a change.

Which files hold for an address is `tcp.profiles`. A client verifies whom it dials, name and all,
whatever the address leaves out: by the system's list of authorities where no others are said. A
server asks its clients for certificates where it is said who must have signed them. Files that have
changed count from the next connection on, whether or not somebody asks for it (`Tls.reload`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
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
from msgservice.transport.tcp.profiles import TlsFiles, TlsProfile, TlsProfiles
from msgservice.transport.tcp.refusals import watch

T = TypeVar("T")

DAY_MS = 86_400_000  # between two warnings of one certificate, too
MINIMUM = {"1.2": TLSVersion.TLSv1_2, "1.3": TLSVersion.TLSv1_3}


class BadFile(Exception):
    """A file of certificates or keys that cannot be used. `key`: of `TlsProfile`, that names it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


@dataclass(frozen=True, slots=True)
class Validity:
    """The time in which a certificate in a file is valid, in ms of the wall clock.

    `whose`: what it is, for people. `serial`: its number, which a renewed one has not.
    """

    file: str
    whose: str
    serial: int
    begins: int
    ends: int

    @classmethod
    def of(cls, file: str, whose: str, certificate: X509Certificate) -> Validity:
        """Return that of a certificate."""
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return cls(file, whose, certificate.serial_number, _ms(begins), _ms(ends))

    def wrong(self, now: int, days: float) -> str | None:
        """Return what is wrong with it now, or will be within so many days.

        It is soon by a quarter of its own time, where that is less: what is made for a week, and
        renewed by a machine, is not always about to end.
        """
        said, moment = "", self.ends
        if now < self.begins:
            said, moment = "{whose} in {file} is not valid before {moment}", self.begins
        elif now >= self.ends:
            said = "{whose} in {file} has expired, on {moment}"
        elif now >= self.ends - min(days * DAY_MS, (self.ends - self.begins) / 4):
            said = "{whose} in {file} expires in {days} day(s), on {moment}"
        return (
            said.format(
                whose=self.whose,
                file=self.file,
                days=(self.ends - now) // DAY_MS,
                moment=f"{datetime.fromtimestamp(moment / 1000, UTC):%Y-%m-%d %H:%M} UTC",
            )
            or None
        )


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


class Tls:
    """The TLS of one transport: makes what connections begin with, and knows what is in use.

    `profiles`: for what addresses leave out.
    """

    _logger = Logger()

    def __init__(self, profiles: TlsProfiles | None = None) -> None:
        self.profiles = profiles or TlsProfiles()
        self._in_use: WeakSet[_Renewed[Any]] = WeakSet()
        self._told: dict[tuple[str, int], int] = {}  # file and serial -> when it was warned of, ms

    def client(self, address: Address, wall: Callable[[], int]) -> _ClientCreator:
        """Return what begins the connections to an address; `BadAddress` where it cannot be.

        `wall`: the wall clock, in ms.
        """
        files = self.profiles.files(address, listening=False)
        made = _ClientCreator(self, address, files, _client_options, wall)
        self._in_use.add(made)
        return made

    def server(self, address: Address, wall: Callable[[], int]) -> _ServerCreator:
        """Return what begins those of a listener; `BadAddress` where it cannot be.

        `wall`: the wall clock, in ms.
        """
        files = self.profiles.files(address, listening=True)
        made = _ServerCreator(self, address, files, _server_options, wall)
        self._in_use.add(made)
        return made

    def reload(self) -> list[Reread]:
        """Read now what has changed, for all that is in use."""
        return [one.reread() for one in self._all()]

    def tell_expiring(self) -> None:
        """Warn of certificates in use that expire soon, each once a day; renewed ones are read."""
        for one in self._all():
            one.get()

    def _all(self) -> list[_Renewed[Any]]:
        return sorted(self._in_use, key=lambda one: one.address.text)

    def tell(self, validity: Validity, address: Address, now: int) -> None:
        """Warn where one is wrong at the wall clock `now`, unless somebody did within a day."""
        wrong = validity.wrong(now, self.profiles.warn_days)
        key = (validity.file, validity.serial)
        if wrong is None or 0 <= now - self._told.get(key, -DAY_MS) < DAY_MS:
            return
        self._told = {one: at for one, at in self._told.items() if 0 <= now - at < DAY_MS}
        self._told[key] = now
        self._logger.warn(
            "{problem} ({address})", line="certificate-expires", problem=wrong, address=address.text
        )


def check_profile(profile: TlsProfile) -> list[BadFile]:
    """Return what is wrong with the files of a profile, each with its key."""
    wrong = []
    checks: list[Callable[[], object]] = [
        lambda: _own(profile.certificate or profile.private_key, profile.private_key),
        lambda: _roots(profile.trust_roots, "trust_roots"),
        lambda: _roots(profile.client_roots, "client_roots"),
    ]
    for check in checks:
        try:
            check()
        except BadFile as error:
            wrong.append(error)
    return wrong


class _Renewed(Generic[T]):
    """TLS options made of the files of an address: anew, for the next connection, on a change.

    Files that make no sense, as one that is half replaced, are told, and what was goes on.
    """

    _logger = Logger()

    def __init__(
        self,
        tls: Tls,
        address: Address,
        files: TlsFiles,
        make: Callable[[Address, TlsFiles, Own, list[X509Certificate]], T],
        wall: Callable[[], int],
    ) -> None:
        self.address = address
        self._tls = tls
        self._files = files
        self._make = make
        self._wall = wall
        self._stamps = _stamps(files)  # before they are read: what changes meanwhile is noticed
        self._made = self._read()
        self._problem: str | None = None  # why what is there now cannot be used
        self._changed = False  # and is used, which nobody who asked has been told yet

    def get(self) -> T:
        """Return it as the files are now, where they can be used."""
        if _stamps(self._files) != self._stamps:
            self._renew()
        self.tell_expiring()
        return self._made

    def reread(self) -> Reread:
        """Read the files, if they have changed or could not be used."""
        if self._problem is not None or _stamps(self._files) != self._stamps:
            self._renew()
        self.tell_expiring()
        changed, self._changed = self._changed, False
        return Reread(self.address.text, changed, self._problem)

    def tell_expiring(self) -> None:
        """Warn of what expires soon."""
        now = self._wall()
        for one in self._validities:
            self._tls.tell(one, self.address, now)

    def _read(self) -> T:
        files = self._files
        try:
            own = _own(files.certificate, files.private_key)
            roots = _roots(files.roots, "trust_roots")
        except BadFile as error:
            raise BadAddress(self.address.text, str(error)) from error
        made = self._make(self.address, files, own, roots)
        self._validities = _validities(files, own, roots)
        return made

    def _renew(self) -> None:
        self._stamps = _stamps(self._files)
        try:
            self._made = self._read()
        except BadAddress as error:
            self._problem = str(error)
            self._logger.error(
                "a renewed certificate cannot be used, the one before goes on: {error}",
                line="certificate-not-read",
                error=self._problem,
            )
        else:
            self._problem, self._changed = None, True
            self._logger.info(
                "certificates of {address} were read anew",
                line="certificates-read",
                address=self.address.text,
            )


@implementer(IOpenSSLServerConnectionCreator)
class _ServerCreator(_Renewed[CertificateOptions]):
    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        made = self.get()
        connection = SSL.Connection(made.getContext(), None)
        if made.verify:
            watch(connection, None)
        return connection


@implementer(IOpenSSLClientConnectionCreator)
class _ClientCreator(_Renewed[Any]):
    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection: SSL.Connection = self.get().clientConnectionForTLS(tlsProtocol)
        host = _host(self.address)
        if host.isascii():  # else Twisted judges the name, which knows how it is encoded
            watch(connection, host)
        return connection


def _host(address: Address) -> str:
    """Return the name or IP address that the certificate of who is dialled must have."""
    return address.options.get("hostname", address.host_and_port()[0])


def _stamps(files: TlsFiles) -> list[tuple[str, int, int, int]]:
    """Return what changes when one of the files is written or replaced."""
    stamps = []
    for name in files.named:
        path = Path(name)
        for file in [path, *sorted(path.glob("*.pem"))] if path.is_dir() else [path]:
            try:
                found = file.stat()
            except OSError:
                continue
            stamps.append((str(file), found.st_ino, found.st_mtime_ns, found.st_size))
    return stamps


def _client_options(
    address: Address, files: TlsFiles, own: Own, roots: list[X509Certificate]
) -> Any:
    minimum = {"raiseMinimumTo": MINIMUM[files.minimum_version]}
    try:
        return optionsForClientTLS(
            _host(address), trustRoot=_trusted(roots), extraCertificateOptions=own.options | minimum
        )
    except UnicodeError as error:  # of IDNA, which takes no `_` either
        raise BadAddress(
            address.text,
            f"{_host(address)!r} is no name that a certificate can be for ({error}): say the one"
            " that it is for with hostname=NAME",
        ) from error


def _server_options(
    address: Address, files: TlsFiles, own: Own, roots: list[X509Certificate]
) -> CertificateOptions:
    if not own.options:
        raise BadAddress(
            address.text, "privateKey=FILE is needed (and certificate=FILE), here or in [tls]"
        )
    return CertificateOptions(
        **own.options,
        trustRoot=_trusted(roots),  # a server asks its clients for nothing unless told whom
        raiseMinimumTo=MINIMUM[files.minimum_version],
    )


@dataclass(frozen=True, slots=True)
class Own:
    """The certificate of this end with its chain, and as options of Twisted's; both may be empty.

    Given to Twisted as objects of `cryptography`: pyOpenSSL deprecates its own.
    """

    chain: list[X509Certificate]
    options: dict[str, Any]


def _own(certificate_path: str | None, key_path: str | None) -> Own:
    """Return the certificate of this end. All may be in one file."""
    key_path = key_path or certificate_path
    if certificate_path is None or key_path is None:
        return Own([], {})
    leaf, *chain = _certificates(certificate_path, "certificate")
    try:
        key = load_pem_private_key(_read(key_path, "private_key"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadFile(
            "private_key", f"{key_path} holds no private key in PEM form without password"
        ) from error
    if key.public_key() != leaf.public_key():
        raise BadFile("private_key", f"the key in {key_path} is not that of {certificate_path}")
    own: dict[str, Any] = {"privateKey": key, "certificate": leaf, "extraCertChain": chain}
    try:
        CertificateOptions(**own).getContext()  # else each connection would fail with what it says
    except SSL.Error as error:
        reason = ", ".join([one[-1] for one in error.args[0]] if error.args else [])
        raise BadFile(
            "certificate", f"OpenSSL does not take {certificate_path}: {reason}"
        ) from error
    return Own([leaf, *chain], own)


def _roots(text: str | None, key: str) -> list[X509Certificate]:
    """Return the authorities in a file, or in all `*.pem` of a folder; none where there is none."""
    if text is None:
        return []
    path = Path(text)
    files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
    certificates = [one for file in files for one in _certificates(str(file), key)]
    if not certificates:
        raise BadFile(key, f"no *.pem in folder {text}")
    return certificates


def _trusted(roots: list[X509Certificate]) -> Any:
    if not roots:
        return None
    return trustRootFromCertificates([Certificate(X509.from_cryptography(one)) for one in roots])


def _validities(files: TlsFiles, own: Own, roots: list[X509Certificate]) -> list[Validity]:
    """Return what is to be watched for its end."""
    found = []
    for number, one in enumerate(own.chain):
        assert files.certificate is not None
        whose = "an authority of the certificate" if number else "the certificate"
        found.append(Validity.of(files.certificate, whose, one))
    if roots:
        # Of many authorities some may well be old: it is told when the last one ends.
        assert files.roots is not None
        last = max(roots, key=lambda one: one.not_valid_after_utc)
        found.append(Validity.of(files.roots, "the last authority", last))
    return found


def _certificates(path: str, key: str) -> list[X509Certificate]:
    try:
        return load_pem_x509_certificates(_read(path, key))
    except ValueError as error:
        raise BadFile(key, f"{path} holds no certificate in PEM form") from error


def _read(path: str, key: str) -> bytes:
    if "\0" in path:
        raise BadFile(key, f"cannot read {path}: a path has no zero byte")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadFile(key, f"cannot read {path}: {error.strerror}") from error
