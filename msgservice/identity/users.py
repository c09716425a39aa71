"""`Users`: everybody who is configured, by what each is known, and what each may do.

A value: a reload makes another one, and `holds` says of a principal that was found before whether
it would be found again. `principal` is for what a connection shows by itself; what has to be asked
for, passwords and tokens, is found by `server_exchange`.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from msgservice.core.subjects import check_name, check_pattern, check_subject
from msgservice.credentials import Credentials
from msgservice.errors import BadValue
from msgservice.identity.passwords import (
    ITERATIONS,
    SALT_BYTES,
    PasswordRecord,
    check_user_name,
)
from msgservice.identity.principal import Principal
from msgservice.identity.rules import Patterns, Rules
from msgservice.identity.tokens import Token

K = TypeVar("K")
V = TypeVar("V")

SECRET_BYTES_MIN = 16
SHAPES_MAX = 8  # of passwords' records, the most common, that made-up ones have
# A certificate that its CA has signed may still be none that this library reads.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
PASSWORD = "password"  # noqa: S105 - the word, as `Principal.how` has it
DIGEST = "pb"  # the same, of who has answered a challenge of Perspective Broker
DIGEST_BYTES = 16  # of an MD5, which is all that such an answer can be checked by
UID_MAX = 2**32 - 2
_NOTHING = Rules()
_is_certificate = re.compile(r"uri:\S+|dns:[^\s:]+|spki:[0-9a-f]{64}", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One user, as configured. Raises `BadName`, `BadSubject` or `BadValue` for what it cannot be.

    `certificates`: each a name that a certificate has, exactly: `uri:…` or `dns:…` for one of its
    subject alternative names, `spki:…` for the SHA-256 of its public key, in hex. `uids`: of Unix.
    `names`: patterns of the names that its senders and receivers may have; empty: its own, and
    those that begin with its own and a dot.
    """

    name: str
    password: PasswordRecord | None = field(default=None, repr=False)
    certificates: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    rules: Rules = _NOTHING
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_subject(check_name(self.name))  # no `*` and no `>`: it stands in a pattern
        check_user_name(self.name)
        for pattern in self.patterns():
            check_pattern(pattern)
        for certificate in self.certificates:
            check_certificate(certificate)
        for uid in self.uids:
            check_uid(uid)

    def patterns(self) -> tuple[str, ...]:
        """Return the patterns of names that its senders and receivers may have."""
        return self.names or (self.name, f"{self.name}.>")


def check_certificate(name: str) -> None:
    """`BadValue` for what is no name of certificates, as `User.certificates` has them."""
    if _is_certificate(name) is None:
        raise BadValue(
            "certificate", f"{name!r} is none of uri:URI, dns:NAME, and spki: with 64 hex digits"
        )


def check_uid(uid: int) -> None:
    """`BadValue` unless the kernel can say this user id of a peer."""
    if not 0 <= uid <= UID_MAX:
        raise BadValue("uid", f"is {uid}, not 0 to {UID_MAX}")


class Users:
    """All users, with the passwords and tokens that a users file adds.

    `secret`: random bytes that stay the same over restarts and that nobody outside knows; the salts
    of users that there are not are made of it. Raises `BadValue` where two users are the same, or
    are known by the same, or one has two passwords; passwords and tokens of others are left out.
    `digests`: the MD5 of the password that a user has for Perspective Broker.
    """

    def __init__(
        self,
        users: Iterable[User] = (),
        *,
        secret: bytes,
        passwords: Mapping[str, PasswordRecord] = MappingProxyType({}),
        tokens: Iterable[Token] = (),
        digests: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        if len(secret) < SECRET_BYTES_MIN:
            raise BadValue("secret", f"has {len(secret)} bytes, at least {SECRET_BYTES_MIN} needed")
        self._secret = secret
        self._all: dict[str, User] = {}
        self._by_certificate: dict[str, str] = {}
        self._by_uid: dict[int, str] = {}
        self._passwords: dict[str, PasswordRecord] = {}
        for user in users:
            self._add(user)
            record = passwords.get(user.name)
            if record is not None and user.password is not None:
                raise BadValue(
                    "password",
                    f"of {user.name!r} is in the configuration and in the users file",
                )
            if (kept := record or user.password) is not None:
                self._passwords[user.name] = kept
        self._digests = {name: said for name, said in digests.items() if name in self._all}
        self._tokens: dict[str, Token] = {}
        self._tokens_of: dict[str, set[Token]] = {}
        self._rights: dict[str, bytes] = {}  # of each user that was asked for: `_rights_of`
        for token in tokens:
            if token.user in self._all:
                _only(self._tokens, token.id, token, "token")
                self._tokens_of.setdefault(token.user, set()).add(token)
        self._names = {name: Patterns(user.patterns()) for name, user in self._all.items()}
        # An answer to a user that there is not looks like one of these, as often as each is one.
        shapes = Counter((kept.iterations, len(kept.salt)) for kept in self._passwords.values())
        self._shapes = shapes.most_common(SHAPES_MAX) or [((ITERATIONS, SALT_BYTES), 1)]

    def _add(self, user: User) -> None:
        _only(self._all, user.name, user, "user")
        for certificate in user.certificates:
            _only(self._by_certificate, folded(certificate), user.name, "certificate")
        for uid in user.uids:
            _only(self._by_uid, uid, user.name, "uid")

    def __len__(self) -> int:
        """The number of users; as a truth value: whether anybody is configured."""
        return len(self._all)

    def __contains__(self, name: object) -> bool:
        return name in self._all

    @property
    def all(self) -> Mapping[str, User]:
        """Each user by its name, as configured."""
        return MappingProxyType(self._all)

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of users that there are, expired ones too."""
        return tuple(self._tokens.values())

    # --- who it is

    def principal(self, credentials: Credentials) -> Principal | None:
        """Return whom a connection's peer is known to be without a login; None: nobody.

        A certificate that names two users is nobody's. The user id of a Unix socket counts only
        where there is no certificate.
        """
        if credentials.certificate is not None:
            names = [
                name for name in names_in(credentials.certificate) if name in self._by_certificate
            ]
            found = {self._by_certificate[name] for name in names}
            return self.named(found.pop(), f"certificate {names[0]}") if len(found) == 1 else None
        if credentials.how == "unix" and credentials.uid in self._by_uid:
            return self.named(self._by_uid[credentials.uid], f"unix {credentials.uid}")
        return None

    def named(self, user: str, how: str) -> Principal:
        """Return the principal of a user that somebody else has recognised; `KeyError` if unknown.

        `how` is the door's word for it, a key of datagrams or a listener without login.
        """
        return self._principal(self._all[user], how)

    def by_token(self, secret: str, wall: int) -> Principal | None:
        """Return whom a token's secret belongs to, at this time of the wall clock in ms."""
        token = self.token_of(secret)
        if token is None or not token.is_secret(secret) or not token.is_valid(wall):
            return None
        return self._principal(self._all[token.user], f"token {token.id}", token.expires)

    def by_password(self, user: str) -> Principal | None:
        """Return the principal of a user whose password was proved; None: it has none."""
        if user not in self._passwords:
            return None
        return self._principal(self._all[user], PASSWORD)

    def by_digest(self, user: str, proves: Callable[[bytes], bool]) -> Principal | None:
        """Return the principal of a user whose digest `proves` takes; None: it does not.

        Of a user without one another is asked about, which takes as long.
        """
        digest = self._digests.get(user)
        is_right = proves(digest or self._made_up("digest", user)[:DIGEST_BYTES])
        if digest is None or not is_right:
            return None
        return self._principal(self._all[user], DIGEST)

    def token_of(self, secret: str) -> Token | None:
        """Return the record that a secret says it belongs to: not whether it does."""
        return self._tokens.get(secret[3:15])

    def record(self, user: str) -> PasswordRecord:
        """Return the password's record of a user; of one without, one that no password fits.

        That one is always the same, and looks as others' do, so that nobody learns who is there.
        """
        iterations, salt_bytes = shape = self._shape(user)
        salts = [self._made_up(f"{what} {shape}", user) for what in ("salt", "more salt")]
        made_up = PasswordRecord(
            iterations=iterations,
            salt=b"".join(salts)[:salt_bytes],
            stored_key=self._made_up("stored", user),
            server_key=self._made_up("server", user),
        )
        return self._passwords.get(user, made_up)

    def _shape(self, user: str) -> tuple[int, int]:
        """The iterations and the length of the salt of a user that there is not.

        As often one of those that there are as each is theirs, and for few it becomes another when
        a password is set: with another salt then, as where the user had set one.
        """

        def turn(counted: tuple[tuple[int, int], int]) -> float:
            shape, count = counted
            drawn = int.from_bytes(self._made_up(f"shape {shape}", user)[:7]) + 1
            return -math.log(drawn / 2**56) / count

        return min(self._shapes, key=turn)[0]

    def _made_up(self, what: str, user: str) -> bytes:
        return hmac.digest(self._secret, f"{what}\0{user}".encode(), "sha256")

    def _principal(self, user: User, how: str, until: int | None = None) -> Principal:
        generation = self._generation(user, how)
        assert generation is not None, (user.name, how)
        return Principal(user=user.name, how=how, generation=generation, until=until)

    # --- what holds of it

    def holds(self, principal: Principal, wall: int) -> bool:
        """Return whether this principal would be found again: same rights, names, and way in.

        A new token ends nothing, one that is revoked or has expired ends what it let in.
        """
        user = self._all.get(principal.user)
        if user is None or (principal.until is not None and wall >= principal.until):
            return False
        return self._generation(user, principal.how) == principal.generation

    def _generation(self, user: User, how: str) -> int | None:
        """A number of all that a principal stands on; None where it would not get in this way."""
        ground: object = ""  # of a door that recognised it: the door's to look at
        match how.split(" ", 1):
            case ["password"]:
                record = self._passwords.get(user.name)
                is_known, ground = record is not None, record and record.text()
            case ["pb"]:
                ground = self._digests.get(user.name)
                is_known = ground is not None
            case ["token", id_]:
                token = self._tokens.get(id_)
                is_known = token is not None and token.user == user.name
                ground = token and (token.digest, token.expires)
            case ["certificate", name]:
                is_known = self._by_certificate.get(name) == user.name
            case ["unix", uid]:
                is_known = uid in map(str, user.uids)
            case _:
                is_known = True
        if not is_known:
            return None
        stands_on = repr((self._rights_of(user), how, ground)).encode()
        return int.from_bytes(hashlib.sha256(stands_on).digest()[:7])

    def _rights_of(self, user: User) -> bytes:
        """A hash of a user's rights and names, made once: a reload asks for each session."""
        found = self._rights.get(user.name)
        if found is None:
            rights = repr((user.name, user.patterns(), user.rules)).encode()
            found = self._rights[user.name] = hashlib.sha256(rights).digest()
        return found

    def replaced_by(self, new: Users) -> frozenset[str]:
        """Return the users that are gone in `new`, or have other rights, names or ways in."""
        return frozenset(name for name in self._all if self._whole(name) != new._whole(name))

    def _whole(self, name: str) -> object:
        known_by = (self._passwords, self._tokens_of, self._digests)
        return self._all.get(name), *[one.get(name) for one in known_by]

    # --- what it may

    def rules(self, user: str) -> Rules:
        """Return the rules of a user; of one that is unknown, those that allow nothing."""
        found = self._all.get(user)
        return _NOTHING if found is None else found.rules

    def names(self, user: str) -> tuple[str, ...]:
        """Return the patterns of names that a user's senders and receivers may have."""
        found = self._names.get(user)
        return () if found is None else found.texts

    def may_be_called(self, user: str, name: str) -> bool:
        """Return whether a sender or receiver of the user may have this name.

        Names that begin with `http.` are those of what users hand in over HTTP.
        """
        found = self._names.get(user)
        return found is not None and found.allow(name) and not name.startswith("http.")

    def __repr__(self) -> str:
        return f"Users({', '.join(map(repr, self._all))})"


def names_in(certificate: bytes) -> tuple[str, ...]:
    """Return the names that a certificate (DER) is known by, as `User.certificates` says them.

    Its subject's common name is not among them. Of one that cannot be read there are none.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        key = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        names = [f"spki:{hashlib.sha256(key).hexdigest()}"]
        try:
            san = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return tuple(names)
        names += [f"uri:{name}" for name in san.get_values_for_type(x509.UniformResourceIdentifier)]
        names += [f"dns:{name}" for name in san.get_values_for_type(x509.DNSName)]
    except UNREADABLE:
        return ()
    return tuple(map(folded, names))


def folded(certificate: str) -> str:
    """The name of a certificate as it is compared: host names have no case."""
    return certificate.lower() if certificate.startswith("dns:") else certificate


def _only(into: dict[K, V], key: K, value: V, what: str) -> None:
    if key in into:
        raise BadValue(what, f"{key!r} is said twice")
    into[key] = value
