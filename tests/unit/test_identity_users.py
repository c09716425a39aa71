"""Users: by what each is known, what becomes of principals after a reload, and names."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from msgservice.credentials import THIS_PROCESS, Credentials
from msgservice.errors import BadName, BadSubject, BadValue
from msgservice.identity.passwords import ITERATIONS, ITERATIONS_MIN, PasswordRecord
from msgservice.identity.rules import Rules
from msgservice.identity.tokens import new_token
from msgservice.identity.users import User, Users, names_in

SECRET = bytes(32)
RECORD = PasswordRecord.of("pencil", iterations=ITERATIONS_MIN)
KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def certificate(
    *san: x509.GeneralName, extension: x509.ExtensionType | None = None, common_name: str = "shop"
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    if san:
        extension = x509.SubjectAlternativeName(san)
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


URI = x509.UniformResourceIdentifier("spiffe://example/shop")
DNS = x509.DNSName("Shop.example.org")
SPKI = names_in(certificate())[0]


def tls(der: bytes) -> Credentials:
    return Credentials(
        how="tls", is_local=False, address="10.0.0.1", certificate=der, is_private=True
    )


def unix(uid: int) -> Credentials:
    return Credentials(how="unix", is_local=True, address="unix", uid=uid, is_private=True)


def users(*all_users: User, **more: object) -> Users:
    return Users(all_users, secret=SECRET, **more)  # type: ignore[arg-type]  # as each test says


# --- who it is


@pytest.mark.parametrize(
    "known_as",
    ["uri:spiffe://example/shop", "dns:shop.example.org", "dns:SHOP.example.org", SPKI],
    ids=["uri", "dns", "dns in capitals", "key"],
)
def test_a_certificate_is_known_by_one_exact_name(known_as: str) -> None:
    found = users(User(name="shop", certificates=(known_as,))).principal(tls(certificate(URI, DNS)))
    assert found is not None
    assert "shop" == found.user
    assert found.how.startswith("certificate ")


@pytest.mark.parametrize(
    "known_as",
    ["uri:spiffe://example/sho", "uri:spiffe://example/SHOP", "dns:example.org", "dns:shop"],
)
def test_neither_a_common_name_nor_a_part_nor_another_case_of_a_uri_is_a_name(
    known_as: str,
) -> None:
    known = users(User(name="shop", certificates=(known_as,)))
    assert known.principal(tls(certificate(URI, DNS))) is None


def test_a_certificate_that_names_two_users_is_nobodys() -> None:
    both = users(
        User(name="one", certificates=("uri:spiffe://example/shop",)),
        User(name="two", certificates=("dns:shop.example.org",)),
    )
    assert both.principal(tls(certificate(URI, DNS))) is None
    assert both.principal(tls(certificate(URI))) is not None


def test_a_certificate_that_nobody_has_is_not_made_good_by_a_user_id() -> None:
    known = users(User(name="shop", uids=(0,)))
    shown = replace(unix(0), certificate=certificate(URI))
    assert known.principal(shown) is None


@pytest.mark.parametrize(
    "der", [b"", b"\x30\x03\x02\x01\x00", certificate(URI)[:-1]], ids=["empty", "other", "cut"]
)
def test_a_certificate_that_cannot_be_read_has_no_names(der: bytes) -> None:
    assert () == names_in(der)
    assert users(User(name="shop", certificates=(SPKI,))).principal(tls(der)) is None


def test_a_certificate_with_names_that_nobody_reads_is_nobodys() -> None:
    # An x400Address, which a CA may sign and this library does not read.
    odd = x509.UnrecognizedExtension(
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("3004a3023000")
    )
    der = certificate(extension=odd)
    with pytest.raises(x509.UnsupportedGeneralNameType):
        x509.load_der_x509_certificate(der).extensions  # noqa: B018 - that is what is asked
    assert () == names_in(der)


def test_a_process_at_a_unix_socket_is_known_by_its_user_id() -> None:
    known = users(User(name="shop", uids=(1000, 1001)), User(name="root", uids=(0,)))
    for uid, expected in ((1000, "shop"), (1001, "shop"), (0, "root")):
        found = known.principal(unix(uid))
        assert found is not None
        assert (expected, f"unix {uid}") == (found.user, found.how)
    assert known.principal(unix(1002)) is None


def test_nobody_is_known_by_a_user_id_elsewhere() -> None:
    known = users(User(name="root", uids=(0,)))
    assert known.principal(THIS_PROCESS) is None
    assert known.principal(Credentials(how="plain", is_local=True, address="::1", uid=0)) is None


def test_whether_anybody_is_configured() -> None:
    assert not users()
    assert users(User(name="shop"))
    assert "shop" in users(User(name="shop"))
    assert "till" not in users(User(name="shop"))


# --- what a user can be


@pytest.mark.parametrize("name", ["", "a b", "$node", "*", "shop.>", "a..b", "a/b", "x" * 254])
def test_a_name_that_would_be_a_pattern_or_none_is_refused(name: str) -> None:
    with pytest.raises((BadName, BadSubject)):
        User(name=name)


@pytest.mark.parametrize("name", ["\uff53hop", "sho\u00adp", "\u2168"])
def test_a_name_that_a_client_would_say_otherwise_is_refused(name: str) -> None:
    with pytest.raises(BadValue, match="is to be written"):
        User(name=name)


def test_a_name_with_characters_that_logins_cannot_have_is_refused() -> None:
    with pytest.raises(BadValue, match="cannot be used"):
        User(name="\U0001f600")


@pytest.mark.parametrize(
    "wrong",
    [
        {"certificates": ("shop",)},
        {"certificates": ("cn:shop",)},
        {"certificates": ("spki:abc",)},
        {"uids": (-1,)},
        {"uids": (2**32 - 1,)},  # means "no user" to the kernel
        {"names": ("a..b",)},
    ],
)
def test_what_a_user_cannot_be_known_by_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((BadValue, BadSubject)):
        User(name="shop", **wrong)  # type: ignore[arg-type]  # each of another kind


@pytest.mark.parametrize(
    "both",
    [
        (User(name="one"), User(name="one")),
        (User(name="one", uids=(1,)), User(name="two", uids=(1,))),
        (User(name="one", certificates=(SPKI,)), User(name="two", certificates=(SPKI,))),
        (
            User(name="one", certificates=("dns:shop",)),
            User(name="two", certificates=("dns:SHOP",)),
        ),
    ],
)
def test_two_users_cannot_be_known_by_the_same(both: tuple[User, User]) -> None:
    with pytest.raises(BadValue, match="said twice"):
        users(*both)


def test_one_user_has_one_password() -> None:
    with pytest.raises(BadValue, match="'shop' is in the configuration and in the users file"):
        users(User(name="shop", password=RECORD), passwords={"shop": RECORD})


def test_what_a_users_file_has_of_others_lets_nobody_in() -> None:
    token, secret = new_token("gone")
    known = users(User(name="shop"), passwords={"gone": RECORD}, tokens=[token])
    assert known.by_password("gone") is None
    assert known.by_token(secret, 0) is None


def test_a_secret_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(BadValue, match="15 bytes"):
        Users(secret=bytes(15))


# --- passwords of users that there are not


def test_a_user_that_there_is_not_has_a_record_that_stays_the_same() -> None:
    known = users(User(name="shop", password=RECORD))
    assert RECORD == known.record("shop")
    made_up = known.record("nobody")
    assert made_up == known.record("nobody")
    assert made_up.salt != known.record("nobody else").salt
    other_node = Users([User(name="shop", password=RECORD)], secret=b"x" * 32)
    assert made_up.salt != other_node.record("nobody").salt
    # Who comes and goes does not show in it, unless it changes what records look like.
    more = users(User(name="shop", password=RECORD), User(name="till", password=RECORD))
    assert made_up.salt == more.record("nobody").salt


def test_records_that_are_made_up_look_as_those_that_there_are() -> None:
    def one(iterations: int, salt_bytes: int) -> PasswordRecord:
        return replace(RECORD, iterations=iterations, salt=bytes(salt_bytes))

    known = users(
        *(User(name=f"user-{n}", password=one(4096, 16)) for n in range(3)),
        User(name="imported", password=one(10_000, 64)),
    )
    shapes = Counter(
        (record.iterations, len(record.salt))
        for record in (known.record(f"nobody-{n}") for n in range(400))
    )
    assert {(4096, 16), (10_000, 64)} == set(shapes)
    assert 40 < shapes[10_000, 64] < 200  # a quarter
    assert ITERATIONS == users().record("nobody").iterations


def test_made_up_records_change_as_seldom_as_passwords_do_and_then_whole() -> None:
    """Else a password that is set would show who has none: their iterations, and not their salt."""

    def made_up(*iterations: int) -> list[PasswordRecord]:
        known = [
            User(name=f"user-{number}", password=replace(RECORD, iterations=each))
            for number, each in enumerate(iterations)
        ]
        found = users(*known)
        return [found.record(f"nobody-{number}") for number in range(300)]

    before = made_up(*[4096] * 6, *[10_000] * 4)
    after = made_up(*[4096] * 6, *[10_000] * 5)
    others = [(one, two) for one, two in zip(before, after, strict=True) if one != two]
    assert 0 < len(others) < 60
    for one, two in others:
        assert (4096, 10_000) == (one.iterations, two.iterations)
        assert one.salt != two.salt
    assert 90 < sum(one.iterations == 10_000 for one in before) < 150  # four in ten


# --- what becomes of a principal


def test_a_principal_holds_until_what_it_stands_on_is_another() -> None:
    shop = User(name="shop", password=RECORD, uids=(7,), certificates=(SPKI,))
    token, secret = new_token("shop", expires=1000)
    before = users(shop, tokens=[token])
    by = {
        "password": before.by_password("shop"),
        "token": before.by_token(secret, 0),
        "unix": before.principal(unix(7)),
        "certificate": before.principal(tls(certificate())),
        "door": before.named("shop", "udp 3"),
    }

    def held(after: Users, wall: int = 0) -> set[str]:
        return {way for way, found in by.items() if found and after.holds(found, wall)}

    everything = set(by)
    other_password = PasswordRecord.of("other", iterations=ITERATIONS_MIN)
    new, _ = new_token("shop")
    assert everything == held(before)
    assert everything == held(users(shop, User(name="till"), tokens=[token]))
    assert everything == held(users(shop, tokens=[token, new]))
    assert everything - {"token"} == held(before, wall=1000)
    assert everything - {"token"} == held(users(shop))
    assert everything - {"password"} == held(
        users(replace(shop, password=other_password), tokens=[token])
    )
    assert everything - {"password"} == held(users(replace(shop, password=None), tokens=[token]))
    assert everything - {"unix"} == held(users(replace(shop, uids=(8,)), tokens=[token]))
    assert everything - {"certificate"} == held(
        users(replace(shop, certificates=()), tokens=[token])
    )
    assert set() == held(users(replace(shop, rules=Rules(send=["a"])), tokens=[token]))
    assert set() == held(users(replace(shop, names=("shop",)), tokens=[token]))
    assert set() == held(users(User(name="till"), tokens=[token]))


def test_a_way_in_that_another_user_has_now_does_not_hold() -> None:
    before = users(User(name="one", uids=(7,), certificates=(SPKI,)), User(name="two"))
    after = users(User(name="one"), User(name="two", uids=(7,), certificates=(SPKI,)))
    for shown in (unix(7), tls(certificate())):
        found = before.principal(shown)
        assert found is not None
        assert not after.holds(found, 0)


def test_a_token_that_another_user_has_now_does_not_hold() -> None:
    token, secret = new_token("one")
    both = User(name="one"), User(name="two")
    found = users(*both, tokens=[token]).by_token(secret, 0)
    assert found is not None
    assert not users(*both, tokens=[replace(token, user="two")]).holds(found, 0)


def test_who_is_gone_or_changed() -> None:
    same, changed, gone = User(name="same"), User(name="changed"), User(name="gone")
    token, _ = new_token("renewed")
    before = users(same, changed, gone, User(name="renewed"))
    after = users(
        same, replace(changed, uids=(1,)), User(name="renewed"), User(name="new"), tokens=[token]
    )
    assert {"changed", "gone", "renewed"} == before.replaced_by(after)
    assert frozenset() == before.replaced_by(before)


# --- names


def test_a_user_has_its_own_name_and_those_below_it() -> None:
    known = users(User(name="shop"), User(name="till", names=("desk.*", "till")))
    for user, name, expected in (
        ("shop", "shop", True),
        ("shop", "shop.1", True),
        ("shop", "shop.1.a", True),
        ("shop", "shopping", False),
        ("shop", "till", False),
        ("till", "desk.1", True),
        ("till", "desk.1.2", False),
        ("till", "till.1", False),
        ("nobody", "nobody", False),
    ):
        assert expected is known.may_be_called(user, name), (user, name)
    assert ("shop", "shop.>") == known.names("shop")
    assert () == known.names("nobody")


def test_rules_of_a_user_that_there_is_not_allow_nothing() -> None:
    assert Rules() == users().rules("nobody")
    assert Rules(send=["a"]) == users(User(name="shop", rules=Rules(send=["a"]))).rules("shop")


def test_users_show_no_secret() -> None:
    token, secret = new_token("shop")
    known = users(User(name="shop", password=RECORD), tokens=[token])
    shown = f"{known!r} {known.all['shop']!r} {known.by_token(secret, 0)!r} {known.tokens!r}"
    for hidden in (secret, RECORD.text(), repr(RECORD.salt), repr(token.digest), "salt"):
        assert hidden not in shown
