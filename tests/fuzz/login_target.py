"""Both ends of a login, each against anything: what is right, cut, changed, repeated, out of order.

A node answers with steps and lets nobody in who did not prove a password or say a token; a client
fails with `NotAuthenticated` alone, computes within its bounds alone, and believes no server that
did not prove the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

from msgservice.credentials import Credentials
from msgservice.errors import NotAuthenticated
from msgservice.identity.client_exchange import ClientExchange, Login, ScramKeys
from msgservice.identity.passwords import ITERATIONS_MAX, ITERATIONS_MIN, PasswordRecord
from msgservice.identity.server_exchange import ServerExchange
from msgservice.identity.steps import Compute, Deny, Proven, Say, Welcome
from msgservice.identity.throttle import Throttle
from msgservice.identity.tokens import Token
from msgservice.identity.users import User, Users
from tests.fuzz.choices import Choices

PLAIN = Credentials(how="plain", is_local=True, address="127.0.0.1", is_private=True)
TLS = Credentials(how="tls", is_local=False, address="::1", binding=b"b" * 32, is_private=True)
OPEN = Credentials(how="plain", is_local=False, address="10.0.0.1")
RECORD = PasswordRecord.of("pencil", iterations=ITERATIONS_MIN)
USERS = Users(
    [User(name="shop", password=RECORD), User(name="till")],
    secret=bytes(32),
    tokens=[Token(id="a" * 12, digest=bytes(32), user="till")],  # of no secret that anybody knows
)
LOGINS = (Login(user="shop", password="pencil"), Login(user="shop", password="guess"))
FIRST = b"r=%s%%abc,s=AAAAAAAAAAAAAAAAAAAAAA==,i=%d"
DERIVE = ScramKeys.derive
ITERATIONS = (0, 1, 4095, 4096, 4097, 1_000_000, 1_000_001, 10_000_000, 2**32, 2**64)


def run(data: bytes) -> None:
    """One input: which end is played against, what it is like, and what it is told."""
    choices = Choices(data)
    credentials = choices.of((PLAIN, TLS, OPEN))
    if choices.byte() & 1:
        against_a_node(choices, credentials)
    else:
        against_a_client(choices, credentials)


def changed(choices: Choices, message: bytes) -> bytes:
    """The message, or another one in the place of it, or some of it."""
    kind = choices.byte()
    if kind < 64 or not message:
        return message
    if kind < 128:
        return choices.take(choices.byte())
    at = choices.below(len(message))
    cut = choices.below(9)
    return message[:at] + choices.take(choices.below(9)) + message[at + cut :]


def against_a_node(choices: Choices, credentials: Credentials) -> None:
    """A client that knows the password or does not, through a hand that changes what it says."""
    node = ServerExchange(USERS, credentials, Throttle(), wall=lambda: 0, now=lambda: 0.0)
    login = choices.of(LOGINS)
    client = ClientExchange(login, credentials, insecure=True)
    heard = [client.begin(), b"TOKEN\0ms_" + b"a" * 12 + b"_" + b"x" * 43]
    is_over = False
    for _ in range(6):
        message = changed(choices, choices.of(heard))
        step = node.receive(message)
        assert not is_over or isinstance(step, Deny), step
        if isinstance(step, Say):
            try:
                answer = client.receive(step.data)
                if isinstance(answer, Compute):
                    answer = client.resume(answer.work())
            except NotAuthenticated:
                continue
            if isinstance(answer, Say):
                heard.insert(0, answer.data)
        elif isinstance(step, Welcome):
            assert login is LOGINS[0], "let in without the password"
            assert "shop" == step.principal.user
            is_over = True
        else:
            assert str(step.error)
            is_over = True


class TakesItsTime(Exception):
    """Keys that are computed in a thread elsewhere, and not for every input here."""


def derive_within_bounds(password: str, salt: bytes, iterations: int) -> ScramKeys:
    """Compute what a client computes, where it does not take long; it is within the bounds."""
    assert ITERATIONS_MIN <= iterations <= ITERATIONS_MAX, iterations
    if iterations > 2 * ITERATIONS_MIN:
        raise TakesItsTime
    return DERIVE(password, salt, iterations)


def against_a_client(choices: Choices, credentials: Credentials) -> None:
    """A server without the record, which says anything, and some of it in the right form."""
    client = ClientExchange(LOGINS[0], credentials, insecure=True)
    nonce = client.begin().rpartition(b"r=")[2]
    for _ in range(4):
        iterations = choices.of(ITERATIONS)
        right = choices.of(
            (FIRST % (nonce, iterations), b"v=" + b"A" * 43 + b"=", b"e=other-error")
        )
        try:
            step = client.receive(changed(choices, right))
        except NotAuthenticated:
            return
        assert not isinstance(step, Proven), "a server without the record was believed"
        assert isinstance(step, Compute)
        try:
            with patch.object(ScramKeys, "derive", derive_within_bounds):
                result = step.work()
        except TakesItsTime:
            return
        client.resume(result)


def seeds() -> Iterator[bytes]:
    """Logins as they are, and each of the numbers of iterations."""
    for credentials in range(3):
        for login in range(2):
            yield bytes([credentials, 1, login]) + bytes(12)
        for iterations in range(len(ITERATIONS)):
            yield bytes([credentials, 0, iterations, 0, 0, 0, 1, 0])
    yield bytes([1, 1, 0, 0, 64, 40]) + b"SCRAM-SHA-256\0n,,n=shop,r=abcdefghijklmno"
    yield bytes([0, 1, 0, 0, 64, 33]) + b"TOKEN\0ms_aaaaaaaaaaaa_xxxxxxxxxxx"
