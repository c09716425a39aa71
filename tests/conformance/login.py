"""A login's end at a node, right or wrong on purpose; from docs/protocol.md and RFC 5802 alone."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

from tests.conformance.wire import AUTH, ERROR, HELLO, Gone, Silent, Wire, Wrong, name_of

MECHANISM = "SCRAM-SHA-256"
ITERATIONS = 4096
DATA_MAX = 2048


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


class Login:
    """One login of a user with a password, step by step."""

    def __init__(self, wire: Wire, user: str, password: str) -> None:
        self._wire = wire
        self._user, self._password = user, password
        self._salt = secrets.token_bytes(16)
        self._first_bare = self._server_first = self._nonce = ""
        self._salted = b""

    def hear(self, what: str) -> bytes:
        """Return the data of an AUTH, which must be the next frame."""
        frame = self._wire.read()
        if frame[0] != AUTH:
            raise Wrong(f"{name_of(frame)} came where {what} was expected")
        if len(frame) < 2 or not isinstance(frame[1], bytes):
            raise Wrong("the data of AUTH are no bytes")
        if len(frame[1]) > DATA_MAX:
            raise Wrong(f"an AUTH of {len(frame[1])} bytes, more than {DATA_MAX}")
        return frame[1]

    def take_first(self) -> None:
        """The mechanism and what it says first."""
        mechanism, separator, data = self.hear("a login").partition(b"\0")
        if not separator or mechanism != MECHANISM.encode():
            raise Wrong(f"the login is by {mechanism[:40]!r}, here it is {MECHANISM}")
        parts = data.decode().split(",", 2)
        if parts[:2] != ["n", ""]:
            raise Wrong(f"client-first begins with {','.join(parts[:2])!r}, not with n,,")
        self._first_bare = parts[2]
        name, _, nonce = self._first_bare.partition(",r=")
        if name != f"n={self._user}":
            raise Wrong(f"the login is of {name!r}, not of n={self._user}")
        if len(nonce) < 8 or "," in nonce:
            raise Wrong(f"the nonce {nonce!r} is no random one, or extensions follow it")
        self._nonce = nonce

    def challenge(self, iterations: int = ITERATIONS, nonce: str | None = None) -> None:
        """Say server-first."""
        self._nonce = (self._nonce if nonce is None else nonce) + secrets.token_hex(8)
        salt = b64encode(self._salt).decode()
        self._server_first = f"r={self._nonce},s={salt},i={iterations}"
        self._wire.send([AUTH, self._server_first.encode()])

    def take_proof(self) -> bytes:
        """Take client-final, and return what is signed."""
        final = self.hear("the proof").decode()
        without, _, proof = final.rpartition(",p=")
        if without != f"c=biws,r={self._nonce}":
            raise Wrong(f"client-final is {without!r}, not c=biws and the whole nonce")
        password = self._password.encode()
        self._salted = hashlib.pbkdf2_hmac("sha256", password, self._salt, ITERATIONS)
        message = f"{self._first_bare},{self._server_first},{without}".encode()
        key = _hmac(self._salted, b"Client Key")
        signature = _hmac(hashlib.sha256(key).digest(), message)
        right = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        if not hmac.compare_digest(right, b64decode(proof)):
            raise Wrong("the proof is wrong: another password, or it was computed wrongly")
        return message

    def end(self, message: bytes, *, right: bool = True) -> None:
        """Say server-final, with the signature or with one of somebody who does not know it."""
        signature = _hmac(_hmac(self._salted, b"Server Key"), message)
        if not right:
            signature = secrets.token_bytes(32)
        self._wire.send([AUTH, b"v=" + b64encode(signature)])

    def all(self) -> None:
        """All of it, as it should be."""
        self.take_first()
        self._wire.stays_quiet("the answer to its AUTH")
        self.challenge()
        message = self.take_proof()
        self._wire.stays_quiet("the end of its login")
        self.end(message)


def ends_unnamed(wire: Wire, after: str) -> None:
    """It must end the connection, and may not have said who it is."""
    try:
        while (frame := wire.read())[0] == ERROR:
            pass
    except Gone:
        return
    except Silent:
        raise Wrong(f"the connection goes on after {after}") from None
    if frame[0] == HELLO:
        raise Wrong(f"it said its name and incarnation after {after}")
    raise Wrong(f"{name_of(frame)} came after {after}")


def believes_no_hello(login: Login, wire: Wire) -> None:
    """A node that says HELLO instead of proving itself is not told who it is."""
    login.take_first()
    wire.send([HELLO, 1, "conformance", secrets.token_hex(8), {}])
    ends_unnamed(wire, "a HELLO in the place of a proof")


def believes_no_other_signature(login: Login, wire: Wire) -> None:
    """A node that does not know the user is not told who it is."""
    login.take_first()
    login.challenge()
    login.end(login.take_proof(), right=False)
    ends_unnamed(wire, "a wrong signature")


def believes_no_silence(login: Login, wire: Wire) -> None:
    """A login that ends without any signature is none."""
    login.take_first()
    wire.send([AUTH, b""])
    ends_unnamed(wire, "an end without a signature")


def computes_no_single_iteration(login: Login, wire: Wire) -> None:
    """Fewer than 4,096 iterations give a password away, and are not computed."""
    login.take_first()
    login.challenge(iterations=1)
    ends_unnamed(wire, "a single iteration")


def computes_not_for_ever(login: Login, wire: Wire) -> None:
    """More than 1,000,000 iterations are not computed."""
    login.take_first()
    login.challenge(iterations=1_000_000_000)
    ends_unnamed(wire, "1,000,000,000 iterations")


def knows_its_nonce(login: Login, wire: Wire) -> None:
    """An answer to another login is no answer to this."""
    login.take_first()
    login.challenge(nonce="anothers-nonce")
    ends_unnamed(wire, "the nonce of another")


def goes_nowhere_without_a_login(login: Login, wire: Wire) -> None:
    """Where no login is offered it does not go on without."""
    login.take_first()
    wire.send([ERROR, 13, "no login is offered here"])
    ends_unnamed(wire, "ERROR 13")


LOGINS: list[Callable[[Login, Wire], None]] = [
    goes_nowhere_without_a_login,
    believes_no_hello,
    believes_no_silence,
    believes_no_other_signature,
    computes_no_single_iteration,
    computes_not_for_ever,
    knows_its_nonce,
]


class Client:
    """The other end, for the tests of the kit: `fault` names what it does wrong."""

    def __init__(self, wire: Wire, user: str, password: str, fault: str) -> None:
        self._wire = wire
        self._user, self._password, self._fault = user, password, fault

    def run(self, read: Callable[[], list[Any]]) -> bool:
        """Log in; return whether that ended well."""
        nonce = "abc" if self._fault == "guesses its nonce" else secrets.token_hex(12)
        bare = f"n={self._user},r={nonce}"
        self._wire.send([AUTH, f"{MECHANISM}\0n,,{bare}".encode()])
        if self._fault == "does not wait for its login":
            return True
        frame = read()
        if frame[0] == HELLO and self._fault == "takes a HELLO for a proof":
            return True
        if frame[0] == ERROR and self._fault == "goes on without a login":
            return True
        if frame[0] != AUTH or not frame[1]:
            return self._fault == "takes nothing for a proof" and frame[0] == AUTH
        server = frame[1].decode()
        said, salt, count = (part[2:] for part in server.split(","))
        iterations = int(count)
        if not said.startswith(nonce) and self._fault != "knows not its nonce":
            return False
        if iterations < ITERATIONS and self._fault != "computes too little":
            return False
        if iterations > 1_000_000:
            return False
        password = self._password.encode()
        salted = hashlib.pbkdf2_hmac("sha256", password, b64decode(salt), iterations)
        without = f"c=biws,r={said}"
        message = f"{bare},{server},{without}".encode()
        key = _hmac(salted, b"Client Key")
        signature = _hmac(hashlib.sha256(key).digest(), message)
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        if self._fault == "proves nothing":
            proof = bytes(32)
        self._wire.send([AUTH, f"{without},p={b64encode(proof).decode()}".encode()])
        frame = read()
        if frame[0] != AUTH:
            return False
        right = b"v=" + b64encode(_hmac(_hmac(salted, b"Server Key"), message))
        return bool(frame[1] == right) or self._fault == "checks no signature"
