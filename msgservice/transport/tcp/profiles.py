"""Profiles of TLS: files and versions for what an address leaves out, as `[tls]` says them.

`tcp.tls` makes something of the files. A profile is whole: an address that names one takes nothing
of the default, so that what it leaves out is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgservice.errors import BadAddress
from msgservice.transport.addresses import Address

VERSIONS = ("1.2", "1.3")  # that may be asked for at least; what is older is broken (RFC 8996)
WARN_DAYS = 21.0
# What an address with TLS may say, dialled or listened at.
OPTIONS = ("profile", "certificate", "privateKey", "trustRoots", "minimumVersion")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsProfile:
    """The TLS of an address that does not say its own. Paths of PEM files, or None.

    `trust_roots`: who may have signed the certificate of a server that is dialled, None: the
    system's list. `client_roots`: who must have signed those of a listener's clients, None: they
    need none. `minimum_version`: one of `VERSIONS`.
    """

    certificate: str | None = None
    private_key: str | None = None  # None: in the file of the certificate
    trust_roots: str | None = None
    client_roots: str | None = None
    minimum_version: str = VERSIONS[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The files and the version that hold for one address."""

    certificate: str | None
    private_key: str | None
    roots: str | None  # who must have signed the certificate of the other side
    minimum_version: str

    @property
    def named(self) -> list[str]:
        """The files, each once."""
        named = (self.certificate, self.private_key, self.roots)
        return list(dict.fromkeys(name for name in named if name is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsProfiles:
    """The profiles of one process: that of addresses which name none, and those with a name.

    `warn_days`: certificates that expire within so many days are warned of, or within a quarter of
    their own time where that is less.
    """

    default: TlsProfile = field(default_factory=TlsProfile)
    named: Mapping[str, TlsProfile] = field(default_factory=dict)
    warn_days: float = WARN_DAYS

    def files(self, address: Address, *, listening: bool) -> TlsFiles:
        """Return what holds for an address; `BadAddress` for a profile that is not there."""
        said = address.options
        profile = self._profile(address)
        certificate = said.get("certificate") or said.get("certKey")
        private_key = said.get("privateKey")
        if certificate is None and private_key is None:
            # The two are a pair: neither is taken from here where the address has the other.
            certificate, private_key = profile.certificate, profile.private_key
        version = said.get("minimumVersion", profile.minimum_version)
        if version not in VERSIONS:
            allowed = " or ".join(VERSIONS)
            raise BadAddress(address.text, f"minimumVersion must be {allowed}, not {version!r}")
        return TlsFiles(
            certificate=certificate or private_key,
            private_key=private_key or certificate,
            roots=said.get(
                "trustRoots", profile.client_roots if listening else profile.trust_roots
            ),
            minimum_version=version,
        )

    def _profile(self, address: Address) -> TlsProfile:
        name = address.options.get("profile")
        if name is None:
            return self.default
        profile = self.named.get(name)
        if profile is None:
            known = ", ".join(sorted(self.named)) or "none"
            raise BadAddress(address.text, f"no profile [tls.{name}] (known: {known})")
        return profile
