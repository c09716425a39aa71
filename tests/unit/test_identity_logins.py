"""Both ends of a login, alone and against each other, and what a hostile end may do to either."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from scramp import ScramClient, ScramMechanism
from scramp.utils import saslprep
from twisted.internet.task import Clock

from msgservice.core.frames import Auth, decode_frame
from msgservice.credentials import Credentials
from msgservice.errors import BadValue, NotAuthenticated
from msgservice.identity.client_exchange import ClientExchange, Login, RememberedKeys, ScramKeys
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.prover import LoginProver
from msgservice.identity.server_exchange import BINDING, ServerExchange
from msgservice.identity.steps import (
    AUTH_BYTES_MAX,
    Compute,
    Deny,
    Proven,
    Say,
    Welcome,
)
from msgservice.identity.throttle import Throttle
from msgservice.identity.tokens import new_token
from msgservice.identity.users import User, Users

PASSWORD = "p\u00e9ncil, sharp"
RECORD = PasswordRecord.of(PASSWORD, iterations=ITERATIONS_MIN)
TOKEN, TOKEN_SECRET = new_token("till", expires=1_000_000)
USERS = Users(
    [User(name="shop", password=RECORD), User(name="a,b=c", password=RECORD), User(name="till")],
    secret=b"s" * 32,
    tokens=[TOKEN],
)
PLAIN = Credentials(how="plain", is_local=True, address="127.0.0.1", is_private=True)
OPEN = Credentials(how="plain", is_local=False, address="10.0.0.1")
TLS = Credentials(how="tls", is_local=False, address="10.0.0.1", binding=b"b" * 32, is_private=True)
SHOP = Login(user="shop", password=PASSWORD)
TILL = Login(token=TOKEN_SECRET)


def server(
    credentials: Credentials = PLAIN, throttle: Throttle | None = None, wall: int = 0
) -> ServerExchange:
    return ServerExchange(
        USERS, credentials, throttle or Throttle(), wall=lambda: wall, now=lambda: 0.0
    )


def said(client: ClientExchange, data: bytes) -> bytes | Proven:
    """What a client says to this, with what it computes computed."""
    step = client.receive(data)
    if isinstance(step, Compute):
        step = client.resume(step.work())
    return step if isinstance(step, Proven) else step.data


def log_in(client: ClientExchange, node: ServerExchange) -> tuple[Welcome | Deny, Proven | None]:
    """Play a login to its end at the node, and at the client where there is one."""
    data = client.begin()
    while isinstance(step := node.receive(data), Say):
        answer = said(client, step.data)
        assert isinstance(answer, bytes)
        data = answer
    if isinstance(step, Deny):
        return step, None
    end = client.receive(step.data)
    assert isinstance(end, Proven)
    return step, end


# --- together


@pytest.mark.parametrize("credentials", [PLAIN, TLS], ids=["plain", "tls"])
@pytest.mark.parametrize("name", ["shop", "a,b=c"])
def test_a_password_lets_in_and_the_server_has_proved_itself(
    credentials: Credentials, name: str
) -> None:
    client = ClientExchange(Login(user=name, password=PASSWORD), credentials)
    welcome, end = log_in(client, server(credentials))
    assert isinstance(welcome, Welcome)
    assert (name, "password", None) == (
        welcome.principal.user,
        welcome.principal.how,
        welcome.principal.until,
    )
    assert USERS.holds(welcome.principal, 0)
    assert Proven() == end


def test_a_token_lets_in() -> None:
    welcome, end = log_in(ClientExchange(TILL, TLS), server(TLS))
    assert isinstance(welcome, Welcome)
    assert ("till", f"token {TOKEN.id}", 1_000_000) == (
        welcome.principal.user,
        welcome.principal.how,
        welcome.principal.until,
    )
    assert Proven() == end


def test_the_exchange_is_that_of_the_rfc(monkeypatch: pytest.MonkeyPatch) -> None:
    # RFC 7677, 3: user "user", password "pencil"; what is drawn is the example's.
    monkeypatch.setattr("scramp.core.token_hex", lambda: "rOprNGfwEbeRWgbNEkqO")
    client = ClientExchange(Login(user="user", password="pencil"), PLAIN)
    assert b"SCRAM-SHA-256\0n,,n=user,r=rOprNGfwEbeRWgbNEkqO" == client.begin()
    nonce = b"rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    final = said(client, b"r=" + nonce + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
    proof = b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    assert b"c=biws,r=" + nonce + b",p=" + proof == final
    assert Proven() == said(client, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


@pytest.mark.parametrize("credentials", [PLAIN, TLS], ids=["plain", "tls"])
@pytest.mark.parametrize("name", ["shop", "nobody", "till"])
def test_a_wrong_password_and_an_unknown_user_are_told_the_same(
    credentials: Credentials, name: str
) -> None:
    client = ClientExchange(Login(user=name, password="guess"), credentials)
    deny, _ = log_in(client, server(credentials))
    assert isinstance(deny, Deny)
    assert ("wrong user or password", 1.0, name) == (str(deny.error), deny.delay, deny.user)


def test_an_unknown_user_goes_the_way_of_a_known_one() -> None:
    """Same lengths, same iterations, same salt each time, same number of steps, same end."""
    shapes = set()
    salts: dict[str, set[bytes]] = {"shop": set(), "till": set(), "nada": set()}
    for name, seen in salts.items():
        for _ in range(2):
            node = server()
            client = ClientExchange(Login(user=name, password="guess"), PLAIN)
            first = node.receive(client.begin())
            assert isinstance(first, Say)
            nonce, salt, iterations = first.data.split(b",")
            seen.add(salt)
            final = said(client, first.data)
            assert isinstance(final, bytes)
            end = node.receive(final)
            assert isinstance(end, Deny)
            shapes.add((len(nonce), len(salt), iterations, str(end.error), end.delay))
    assert 1 == len(shapes)
    assert [1, 1, 1] == [len(seen) for seen in salts.values()]
    assert 3 == len(set.union(*salts.values()))


def test_an_unknown_user_stays_out_though_it_proves_the_record_that_was_made_up() -> None:
    # Who had the node's secret could compute one half of a proof; nobody is let in by a bug there.
    class Made(Users):
        def record(self, user: str) -> PasswordRecord:
            return RECORD

    known = Made([User(name="till")], secret=b"s" * 32)
    node = ServerExchange(known, PLAIN, Throttle(), wall=lambda: 0, now=lambda: 0.0)
    for name in ("nobody", "till"):
        deny, _ = log_in(ClientExchange(Login(user=name, password=PASSWORD), PLAIN), node)
        assert isinstance(deny, Deny)
        node = ServerExchange(known, PLAIN, Throttle(), wall=lambda: 0, now=lambda: 0.0)


@pytest.mark.parametrize(
    ("secret", "wall"),
    [
        (TOKEN_SECRET, 1_000_000),
        (TOKEN_SECRET[:-1] + "!", 0),
        (new_token("till")[1], 0),
        (TOKEN_SECRET[:16] + new_token("till")[1][16:], 0),
        ("", 0),
        ("ms_" * 300, 0),
    ],
    ids=["expired", "another form", "unknown", "known id", "empty", "long"],
)
def test_a_token_that_is_wrong_or_has_expired_lets_nobody_in(secret: str, wall: int) -> None:
    throttle = Throttle()
    deny = server(TLS, throttle, wall).receive(b"TOKEN\0" + secret.encode())
    assert isinstance(deny, Deny)
    assert "the token is unknown, wrong or expired" == str(deny.error)
    assert 1 == throttle.records


def test_the_login_of_the_page_is_one() -> None:
    # docs/protocol.md, 11: its example is a first message, which the node answers.
    page = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()
    (example,) = re.findall(r"^    (92 0b [0-9a-f ]+)$", page, re.MULTILINE)
    frame = decode_frame(bytes.fromhex(example))
    assert isinstance(frame, Auth)
    assert isinstance(server().receive(frame.data), Say)
    assert f"{AUTH_BYTES_MAX:,} bytes at most" in page


# --- what is between them


def test_a_login_over_tls_is_bound_to_the_certificate_of_this_connection() -> None:
    between = Credentials(
        how="tls", is_local=False, address="10.0.0.1", binding=b"x" * 32, is_private=True
    )
    deny, _ = log_in(ClientExchange(SHOP, between), server(TLS))
    assert isinstance(deny, Deny)
    assert "channel binding" in deny.why


@pytest.mark.parametrize(
    "message",
    [
        b"SCRAM-SHA-256\0n,,n=shop,r=abcdef",
        b"SCRAM-SHA-256\0y,,n=shop,r=abcdef",
        b"SCRAM-SHA-256\0p=tls-server-end-point,,n=shop,r=abcdef",
        b"SCRAM-SHA-256-PLUS\0n,,n=shop,r=abcdef",
        b"SCRAM-SHA-256-PLUS\0y,,n=shop,r=abcdef",
        b"SCRAM-SHA-256-PLUS\0p=tls-unique,,n=shop,r=abcdef",
        b"SCRAM-SHA-256-PLUS\0p=tls-exporter,,n=shop,r=abcdef",
    ],
)
def test_over_tls_no_login_is_taken_that_is_not_bound_to_it(message: bytes) -> None:
    assert isinstance(server(TLS).receive(message), Deny)


def test_over_tls_without_its_certificates_hash_no_password_is_taken() -> None:
    for message in (
        b"SCRAM-SHA-256\0n,,n=shop,r=abcdef",
        b"SCRAM-SHA-256-PLUS\0p=tls-server-end-point,,n=shop,r=abcdef",
    ):
        assert isinstance(server(replace(TLS, binding=None)).receive(message), Deny)


@pytest.mark.parametrize(
    "message",
    [
        b"SCRAM-SHA-256-PLUS\0p=tls-server-end-point,,n=shop,r=abcdef",
        b"SCRAM-SHA-256\0p=tls-server-end-point,,n=shop,r=abcdef",
    ],
)
def test_where_there_is_no_tls_none_is_taken_that_is(message: bytes) -> None:
    assert isinstance(server().receive(message), Deny)


def test_a_client_without_the_certificates_hash_does_not_say_less() -> None:
    bare = Credentials(how="tls", is_local=False, address="10.0.0.1", is_private=True)
    with pytest.raises(NotAuthenticated, match="bound"):
        ClientExchange(SHOP, bare).begin()


@pytest.mark.parametrize("login", [SHOP, TILL], ids=["password", "token"])
def test_nothing_secret_is_said_where_others_can_read(login: Login) -> None:
    with pytest.raises(NotAuthenticated, match="without TLS"):
        ClientExchange(login, OPEN).begin()


def test_a_password_may_be_used_there_if_asked_for_and_a_token_may_not() -> None:
    welcome, _ = log_in(ClientExchange(SHOP, OPEN, insecure=True), server(OPEN))
    assert isinstance(welcome, Welcome)
    with pytest.raises(NotAuthenticated, match="without TLS"):
        ClientExchange(TILL, OPEN, insecure=True).begin()


def test_a_token_that_was_said_where_others_can_read_is_not_taken() -> None:
    deny = server(OPEN).receive(b"TOKEN\0" + TOKEN_SECRET.encode())
    assert isinstance(deny, Deny)
    assert "revoke" in deny.why


# --- a hostile server


def begun(login: Login = SHOP) -> tuple[ClientExchange, str]:
    client = ClientExchange(login, PLAIN)
    return client, client.begin().decode().rpartition("r=")[2]


SALT = b64encode(bytes(16)).decode()


@pytest.mark.parametrize(
    "iterations",
    ["0", "1", "4095", "1000001", "4294967296", "-4096", "04096", "", " 4096", "9" * 1000, "4e3"],
)
def test_iterations_out_of_bounds_are_not_computed(iterations: str) -> None:
    client, nonce = begun()
    with pytest.raises(NotAuthenticated):
        client.receive(f"r={nonce}abc,s={SALT},i={iterations}".encode())
    with pytest.raises(NotAuthenticated):
        client.receive(b"v=")


@pytest.mark.parametrize("iterations", [4096, 1_000_000])
def test_iterations_in_bounds_are_computed_elsewhere(iterations: int) -> None:
    client, nonce = begun()
    step = client.receive(f"r={nonce}abc,s={SALT},i={iterations}".encode())
    assert isinstance(step, Compute)


@pytest.mark.parametrize(
    "first",
    [
        "",
        "v=" + SALT,
        "e=other-error",
        "r={nonce},s={salt},i=4096",
        "r=abc,s={salt},i=4096",
        "r={nonce}abc,s=AAAA,i=4096",
        "r={nonce}abc,s=!,i=4096",
        "r={nonce}abc,i=4096",
        "m=ext,r={nonce}abc,s={salt},i=4096",
        "r={nonce}abc,s={salt},i=4096,i=5000",
        "r={nonce}abc\x00,s={salt},i=4096",
    ],
)
def test_a_first_answer_that_is_none_ends_the_login(first: str) -> None:
    client, nonce = begun()
    with pytest.raises(NotAuthenticated):
        client.receive(first.format(nonce=nonce, salt=SALT).encode())


@pytest.mark.parametrize(
    "final", ["", "v=", "v=AAAA", "v=" + SALT, "e=other-error", "v=\u00e9", "x"]
)
def test_a_server_that_does_not_know_the_user_is_not_believed(final: str) -> None:
    client, nonce = begun()
    assert isinstance(said(client, f"r={nonce}abc,s={SALT},i=4096".encode()), bytes)
    with pytest.raises(NotAuthenticated):
        client.receive(final.encode())


def test_a_server_that_has_only_seen_another_login_is_not_believed() -> None:
    node = server()
    client = ClientExchange(SHOP, PLAIN)
    first = node.receive(client.begin())
    assert isinstance(first, Say)
    final = said(client, first.data)
    assert isinstance(final, bytes)
    heard = node.receive(final)
    assert isinstance(heard, Welcome)
    other, nonce = begun()
    salt = first.data.partition(b",")[2]
    said(other, f"r={nonce}abc,".encode() + salt)
    with pytest.raises(NotAuthenticated, match="signature"):
        other.receive(heard.data)


def test_a_client_that_is_in_takes_nothing_more() -> None:
    client = ClientExchange(TILL, TLS)
    client.begin()
    assert Proven() == client.receive(b"")
    with pytest.raises(NotAuthenticated, match="more than"):
        client.receive(b"")


def test_a_client_that_has_not_begun_or_computes_takes_nothing() -> None:
    with pytest.raises(NotAuthenticated):
        ClientExchange(SHOP, PLAIN).receive(b"v=" + SALT.encode())
    client, nonce = begun()
    client.receive(f"r={nonce}abc,s={SALT},i=4096".encode())
    with pytest.raises(NotAuthenticated):
        client.receive(b"v=" + SALT.encode())


def test_a_server_that_answers_a_token_with_more_is_not_believed() -> None:
    client = ClientExchange(TILL, TLS)
    client.begin()
    with pytest.raises(NotAuthenticated):
        client.receive(b"r=abc")


def test_a_server_that_says_too_much_is_not_listened_to() -> None:
    client, nonce = begun()
    with pytest.raises(NotAuthenticated, match=str(AUTH_BYTES_MAX)):
        client.receive(f"r={nonce}{'a' * AUTH_BYTES_MAX},s={SALT},i=4096".encode())


# --- a hostile client


def proof(node: ServerExchange, login: Login = SHOP) -> bytes:
    """The final message of a client that knows the password."""
    client = ClientExchange(login, PLAIN)
    first = node.receive(client.begin())
    assert isinstance(first, Say)
    final = said(client, first.data)
    assert isinstance(final, bytes)
    return final


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\0",
        b"PLAIN\0\0shop\0pencil",
        b"SCRAM-SHA-1\0n,,n=shop,r=abc",
        b"SCRAM-SHA-256",
        b"TOKEN",
        b"scram-sha-256\0n,,n=shop,r=abc",
        b"SCRAM-SHA-256\0",
        b"SCRAM-SHA-256\0n,,",
        b"SCRAM-SHA-256\0n,,n=,r=abc",
        b"SCRAM-SHA-256\0n,,r=abc,n=shop",
        b"SCRAM-SHA-256\0n,a=root,n=shop,r=abc",
        b"SCRAM-SHA-256\0n,,m=x,n=shop,r=abc",
        b"SCRAM-SHA-256\0n,,n=sh=op,r=abc",
        b"SCRAM-SHA-256\0n,,n=shop,r=",
        b"SCRAM-SHA-256\0\xff\xff",
        b"\xff\0n,,n=shop,r=abc",
        b"SCRAM-SHA-256\0" + "n,,n=\ufdfa,r=abc".encode(),
        b"SCRAM-SHA-256\0n,,n=" + b"x" * 256 + b",r=abc",
        b"TOKEN\0\xff",
    ],
)
def test_a_first_message_that_is_none_ends_the_login(first: bytes) -> None:
    throttle = Throttle()
    node = server(throttle=throttle)
    assert isinstance(node.receive(first), Deny)
    assert isinstance(node.receive(first), Deny)


def test_a_name_that_is_long_to_prepare_is_not_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    # 600 of U+FDFA become ten thousand characters, in 45 ms; 84 of them are as long as a name.
    looked_at = []

    def watched(text: str) -> str:
        looked_at.append(text)
        prepared: str = saslprep(text)
        return prepared

    monkeypatch.setattr("scramp.core.saslprep", watched)
    for length in (600, 84):
        name = "\ufdfa" * length
        server().receive(b"SCRAM-SHA-256\0" + f"n,,n={name},r=abc".encode())
    assert [] == looked_at
    server().receive(b"SCRAM-SHA-256\0n,,n=" + b"=2C" * 255 + b",r=abc")
    assert ["," * 255] == looked_at


@pytest.mark.parametrize(
    "change",
    [
        lambda final: final[:-1],
        lambda final: final[:-5] + b"AAAA=",
        lambda final: final.replace(b"c=biws", b"c=eSws"),  # "y,,"
        lambda final: final.replace(b"c=biws,", b""),
        lambda final: final.replace(b",r=", b",r=x"),
        lambda final: final.partition(b",p=")[0],
        lambda final: final.partition(b",p=")[0] + b",p=AAAA",
        lambda final: b"\xff" + final,
        lambda _: b"",
        lambda final: final + b"," + b"x" * AUTH_BYTES_MAX,
    ],
)
def test_a_proof_that_is_another_lets_nobody_in(change: object) -> None:
    node = server()
    final = proof(node)
    assert callable(change)
    assert isinstance(node.receive(change(final)), Deny)
    assert isinstance(node.receive(final), Deny)  # nor the right one after it


def test_a_proof_of_another_connection_lets_nobody_in() -> None:
    node, other = server(), server()
    final = proof(node)
    proof(other)
    assert isinstance(other.receive(final), Deny)
    assert isinstance(node.receive(final), Welcome)
    assert isinstance(node.receive(final), Deny)


def test_a_message_that_is_too_long_is_not_looked_at() -> None:
    deny = server().receive(b"SCRAM-SHA-256\0n,,n=shop,r=" + b"a" * AUTH_BYTES_MAX)
    assert isinstance(deny, Deny)
    assert str(AUTH_BYTES_MAX) in str(deny.error)


def test_the_longest_login_that_is_right_is_taken() -> None:
    name = "," * 253  # `NAME.>` is a name too
    login = Login(user=name, password="x" * 1024)
    known = Users(
        [User(name=name, password=PasswordRecord.of("x" * 1024, iterations=4096))], secret=bytes(32)
    )
    node = ServerExchange(known, TLS, Throttle(), wall=lambda: 0, now=lambda: 0.0)
    welcome, _ = log_in(ClientExchange(login, TLS), node)
    assert isinstance(welcome, Welcome)


# --- guessing


def test_who_guesses_is_told_to_wait_and_then_the_right_password_does_not_help() -> None:
    throttle = Throttle(pair_max=3)
    for _ in range(3):
        log_in(ClientExchange(Login(user="shop", password="guess"), PLAIN), server(PLAIN, throttle))
    deny, _ = log_in(ClientExchange(SHOP, PLAIN), server(PLAIN, throttle))
    assert isinstance(deny, Deny)
    assert "too many" in str(deny.error)
    assert isinstance(log_in(ClientExchange(TILL, PLAIN), server(PLAIN, throttle))[0], Welcome)


def test_guesses_that_have_begun_at_once_are_counted_before_they_are_judged() -> None:
    throttle = Throttle(pair_max=3)
    nodes = [server(PLAIN, throttle) for _ in range(10)]
    finals = [proof(node) for node in nodes]
    ends = [
        node.receive(final[:-5] + b"AAA==") for node, final in zip(nodes[:9], finals, strict=False)
    ]
    assert 3 == sum(isinstance(end, Deny) and "wrong" in str(end.error) for end in ends)
    assert isinstance(nodes[9].receive(finals[9]), Deny)
    assert 3 == throttle.records


def test_guesses_of_tokens_are_counted() -> None:
    throttle = Throttle(address_max=3)
    for _ in range(3):
        server(PLAIN, throttle).receive(b"TOKEN\0" + new_token("till")[1].encode())
    deny = server(PLAIN, throttle).receive(b"TOKEN\0" + TOKEN_SECRET.encode())
    assert isinstance(deny, Deny)
    assert "too many" in str(deny.error)


# --- nothing secret is shown


def test_no_step_and_no_error_shows_a_secret() -> None:
    node, client = server(), ClientExchange(SHOP, PLAIN)
    shown = [repr(SHOP), repr(TILL), repr(client), repr(node)]
    first = node.receive(client.begin())
    assert isinstance(first, Say)
    compute = client.receive(first.data)
    assert isinstance(compute, Compute)
    final = client.resume(compute.work())
    welcome = node.receive(final.data)
    shown += map(repr, (first, compute, final, welcome))
    deny = server(TLS).receive(b"TOKEN\0" + TOKEN_SECRET[:-1].encode())
    shown.append(repr(deny))
    text = " ".join(shown)
    salt = b64encode(RECORD.salt).decode()
    for secret in (PASSWORD, TOKEN_SECRET, TOKEN_SECRET[16:-1], salt, final.data[-20:].decode()):
        assert secret not in text


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"user": "shop"},
        {"password": "hunter2"},
        {"user": "shop", "password": "hunter2", "token": TOKEN_SECRET},
        {"token": "hunter2"},
        {"user": "shop", "password": ""},
        {"user": "shop", "password": "hunter2\x07"},
        {"user": "\uff53hop", "password": "hunter2"},
    ],
)
def test_a_login_that_can_be_none_is_refused_without_its_secret(wrong: dict[str, str]) -> None:
    with pytest.raises(BadValue) as error:
        Login(**wrong)
    assert "hunter2" not in str(error.value)
    assert TOKEN_SECRET not in str(error.value)


# --- anything at all

BYTES = st.one_of(
    st.binary(max_size=80),
    st.text(alphabet="nrspvcieym=,+/AZaz09\0\u00e9\ufdfa-", max_size=80).map(str.encode),
)


@st.composite
def mangled(draw: st.DrawFn, data: bytes) -> bytes:
    """The data, cut, with other bytes in it, or as it is."""
    at = draw(st.integers(0, len(data)))
    end = draw(st.integers(at, min(at + 8, len(data))))
    return data[:at] + draw(BYTES) + data[end:]


@given(st.data())
def test_no_client_can_make_the_server_fail_or_get_in(data: st.DataObject) -> None:
    credentials = data.draw(st.sampled_from([PLAIN, OPEN, TLS]))
    node = server(credentials)
    # A client that is right but for its password, whose messages are cut, mangled and repeated.
    client = ClientExchange(Login(user="shop", password="guess"), credentials, insecure=True)
    heard = [client.begin(), b"TOKEN\0" + TOKEN_SECRET[:-2].encode()]
    step: object = None
    for _ in range(data.draw(st.integers(1, 4))):
        message = data.draw(st.one_of(BYTES, st.sampled_from(heard), mangled(heard[-1])))
        step = node.receive(message)
        if isinstance(step, Deny):
            break
        assert isinstance(step, Say)
        try:
            answer = said(client, step.data)
        except NotAuthenticated:
            continue  # the server took a mangled nonce, say
        assert isinstance(answer, bytes)
        heard.append(answer)
    if isinstance(step, Deny):
        assert isinstance(node.receive(data.draw(st.sampled_from(heard))), Deny)


@given(st.data())
def test_no_server_can_make_a_client_fail_otherwise_or_believe_it(data: st.DataObject) -> None:
    client, nonce = begun()
    heard = [
        f"r={nonce}abc,s={SALT},i=4096".encode(),
        b"v=" + b64encode(bytes(32)),
        b"e=invalid-proof",
    ]
    for _ in range(data.draw(st.integers(1, 4))):
        pick = data.draw(st.sampled_from(heard))
        message = data.draw(st.one_of(BYTES, st.just(pick), mangled(pick)))
        try:
            step = client.receive(message)
        except NotAuthenticated:
            with pytest.raises(NotAuthenticated):
                client.receive(pick)
            return
        assert isinstance(step, Compute)
        assert isinstance(client.resume(step.work()), Say)


@given(st.integers(0, 10**12))
@example(4095)
@example(4096)
def test_iterations_are_computed_within_their_bounds_alone(iterations: int) -> None:
    client, nonce = begun()
    message = f"r={nonce}abc,s={SALT},i={iterations}".encode()
    if 4096 <= iterations <= 1_000_000:
        assert isinstance(client.receive(message), Compute)
    else:
        with pytest.raises(NotAuthenticated):
            client.receive(message)


@pytest.mark.parametrize(
    "secret", [TOKEN_SECRET, "correct horse battery staple"], ids=["token", "password"]
)
@pytest.mark.parametrize("behind", [b"", b"\0", b"\0n,,n=shop,r=abc"])
def test_a_secret_in_the_place_of_a_mechanism_is_repeated_to_nobody(
    secret: str, behind: bytes
) -> None:
    step = server(PLAIN).receive(secret.encode() + behind)
    assert isinstance(step, Deny)
    for text in (str(step.error), step.why):
        assert secret[:12] not in text


def test_a_mechanism_that_is_unknown_is_named() -> None:
    step = server(PLAIN).receive(b"PLAIN\0\0shop\0x")
    assert isinstance(step, Deny)
    assert "'PLAIN'" in str(step.error)
    assert "'PLAIN'" in step.why


# --- again


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    """The salts and iterations that keys were computed for."""
    counted: list[tuple[bytes, int]] = []

    def pbkdf2(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
        counted.append((salt, iterations))
        return hashlib.pbkdf2_hmac(name, password, salt, iterations)

    class Hashes:
        """`hashlib` of a client alone."""

        sha256 = staticmethod(hashlib.sha256)
        pbkdf2_hmac = staticmethod(pbkdf2)

    monkeypatch.setattr("msgservice.identity.client_exchange.hashlib", Hashes)
    return counted


@pytest.mark.parametrize("credentials", [PLAIN, TLS], ids=["plain", "tls"])
def test_who_logs_in_again_computes_no_key_again(
    credentials: Credentials, derived: list[tuple[bytes, int]]
) -> None:
    prover = LoginProver(Clock(), SHOP)
    for _ in range(3):
        welcome, end = log_in(prover.exchange(credentials), server(credentials))
        assert isinstance(welcome, Welcome)
        assert Proven() == end
    assert len(derived) == 1
    log_in(LoginProver(Clock(), SHOP).exchange(PLAIN), server(PLAIN))
    assert len(derived) == 2, "keys live longer than who logs in"


def test_another_salt_is_computed_and_only_the_last_is_kept(
    derived: list[tuple[bytes, int]],
) -> None:
    prover = LoginProver(Clock(), SHOP)
    nodes = []
    for _ in range(2):
        record = PasswordRecord.of(PASSWORD, iterations=4096)
        nodes.append(Users([User(name="shop", password=record)], secret=b"s" * 32))

    def asked(users: Users) -> ServerExchange:
        return ServerExchange(users, PLAIN, Throttle(), wall=lambda: 0, now=lambda: 0.0)

    for users in (nodes[0], nodes[0], nodes[1], nodes[1], nodes[0]):
        welcome, _ = log_in(prover.exchange(PLAIN), asked(users))
        assert isinstance(welcome, Welcome)
    assert len(derived) == 3
    assert derived[0] == derived[2]
    assert derived[0] != derived[1]


def test_keys_are_those_of_the_password_the_salt_and_the_iterations_that_are_asked_for(
    derived: list[tuple[bytes, int]],
) -> None:
    keys = RememberedKeys()

    def log_in_with(password: str, iterations: int) -> None:
        """Log in at a node whose record has this password, and the same salt as any."""
        salt, stored_key, server_key, _ = ScramMechanism().make_auth_info(
            password, iteration_count=iterations, salt=b"a salt of 16 byt"
        )
        record = PasswordRecord(
            iterations=iterations, salt=salt, stored_key=stored_key, server_key=server_key
        )
        users = Users([User(name="shop", password=record)], secret=b"s" * 32)
        node = ServerExchange(users, PLAIN, Throttle(), wall=lambda: 0, now=lambda: 0.0)
        login = Login(user="shop", password=password)
        welcome, _ = log_in(ClientExchange(login, PLAIN, keys=keys), node)
        assert isinstance(welcome, Welcome)

    for password, iterations in (("one", 4096), ("two", 4096), ("two", 4097), ("two", 4097)):
        log_in_with(password, iterations)
    assert [4096, 4096, 4097] == [asked for _, asked in derived]


# Many texts are no password: what is left out says nothing of how well it is looked at.
@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.text(min_size=1, max_size=20),
    st.binary(min_size=12, max_size=40),
    st.integers(4096, 4200),
    st.sampled_from([PLAIN, TLS]),
)
@example("pencil", b"a salt of 16 byt", 4096, PLAIN)
@example("\u00ad\u2168 \u00a0=,", b"a salt of 16 byt", 4096, TLS)  # that are prepared
def test_what_is_said_with_keys_is_what_the_library_says(
    password: str, salt: bytes, iterations: int, credentials: Credentials
) -> None:
    try:
        login = Login(user="a,b=c", password=password)
    except BadValue:
        assume(False)
    keys = RememberedKeys()
    for _ in range(2):  # computed, then known
        client = ClientExchange(login, credentials, keys=keys)
        first = client.begin().partition(b"\0")[2].decode()
        mechanism, bound = "SCRAM-SHA-256", None
        if credentials.binding is not None:
            mechanism, bound = "SCRAM-SHA-256-PLUS", (BINDING, credentials.binding)
        nonce = first.partition("r=")[2]
        library = ScramClient([mechanism], login.user, password, bound, c_nonce=nonce)
        assert library.get_client_first() == first
        server_first = f"r={nonce}more,s={b64encode(salt).decode()},i={iterations}"
        library.set_server_first(server_first)
        assert library.get_client_final().encode() == said(client, server_first.encode())
        signature = b64encode(library.server_signature).decode()
        library.set_server_final(f"v={signature}")
        assert Proven() == client.receive(f"v={signature}".encode())


def test_no_key_is_kept_of_a_server_that_proves_nothing(derived: list[tuple[bytes, int]]) -> None:
    keys = RememberedKeys()
    for wrong in (b"v=" + b64encode(b"x" * 32), b"e=other-error", b"v=", b"", b"\xff"):
        client = ClientExchange(SHOP, PLAIN, keys=keys)
        nonce = client.begin().partition(b"r=")[2]
        said(client, b"r=" + nonce + b"more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
        with pytest.raises(NotAuthenticated, match="the server does not know this password either"):
            client.receive(wrong)
    assert len(derived) == 5


def test_no_key_is_shown() -> None:
    keys = ScramKeys.derive("pencil", b"a salt of 16 byt", 4096)
    assert repr(keys) == "ScramKeys(iterations=4096)"
