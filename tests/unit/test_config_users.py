"""The `[[user]]` tables and the users file: read, and judged whole, without a secret being said."""

from __future__ import annotations

from pathlib import Path

import pytest

from msgservice.config.config import load_config
from msgservice.config.users import users_file_of
from msgservice.errors import BadValue, ConfigError
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.private_files import SECRET_NAME
from msgservice.identity.rules import Rules
from msgservice.identity.tokens import new_token
from msgservice.identity.users import User
from msgservice.identity.users_file import UsersFile, change_users_file, load_users

RECORD = PasswordRecord.of("pencil", iterations=ITERATIONS_MIN)
SPKI = "spki:" + "0123456789abcdef" * 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def problems(file: Path, text: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(file)
    return [problem.replace(str(file), "F") for problem in error.value.problems]


def test_users_are_read(file: Path) -> None:
    file.write_text(f"""
[[user]]
name = "shop"
password = "{RECORD.text()}"
certificate = ["uri:spiffe://example/shop", "{SPKI}"]
uid = [1000, 1001]
names = ["shop", "till.*"]
send = ["orders.>"]
to = ["billing"]
receive = ["prices.*"]
request = ["$node.status"]

[[user]]
name = "till"
certificate = "dns:till.example.org"
uid = 7
relay = true
""")
    assert (
        User(
            name="shop",
            password=RECORD,
            certificates=("uri:spiffe://example/shop", SPKI),
            uids=(1000, 1001),
            names=("shop", "till.*"),
            rules=Rules(
                send=["orders.>"], to=["billing"], receive=["prices.*"], request=["$node.status"]
            ),
        ),
        User(
            name="till",
            certificates=("dns:till.example.org",),
            uids=(7,),
            rules=Rules(relay=True),
        ),
    ) == load_config(file).users


def test_without_users_there_is_none(file: Path) -> None:
    file.write_text("")
    config = load_config(file)
    assert ((), None) == (config.users, config.users_file)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "F:1: user.name: is missing; it must be a string"),
        ('name = "a b"', "F:2: user.name: bad name 'a b': character ' ' at 1 is not allowed"),
        (
            'name = "*"',
            "F:2: user.name: bad subject '*': '*' and '>' belong in patterns only,"
            " which receivers have",
        ),
        ('name = "\uff41"', "F:2: user.name: '\uff41' is to be written 'a'"),
        ('name = "u"\nsned = ["a"]', "F:3: user.sned: unknown key, did you mean 'send'?"),
        ('name = "u"\npassword = "hunter2"', "F:3: user.password: is no record as `msgservice"),
        ('name = "u"\npassword = 12345', "F:3: user.password: must be the record that"),
        ('name = "u"\ncertificate = "cn:u"', "F:3: user.certificate: 'cn:u' is none of uri:URI"),
        ('name = "u"\ncertificate = 1', "F:3: user.certificate: must be a string or a list"),
        ('name = "u"\nuid = -1', "F:3: user.uid: is -1, not 0 to 4294967294"),
        ('name = "u"\nuid = ["root"]', "F:3: user.uid: must be an integer or a list of integers"),
        ('name = "u"\nsend = ["a..b"]', "F:3: user.send: bad subject 'a..b': empty token"),
        ('name = "u"\nto = "a"', "F:3: user.to: must be a list of strings"),
        ('name = "u"\nreceive = ["a", "a"]', "F:3: user.receive: 'a' is there twice"),
        ('name = "u"\nnames = [">.a"]', "F:3: user.names: bad subject"),
        ('name = "u"\nrelay = 1', "F:3: user.relay: must be true or false"),
    ],
)
def test_what_a_user_cannot_be_is_told_with_its_line(file: Path, line: str, problem: str) -> None:
    (told,) = problems(file, f"[[user]]\n{line}\n")
    assert told.startswith(problem)
    assert "hunter2" not in told
    assert "12345" not in told


def test_all_that_is_wrong_is_told_at_once(file: Path) -> None:
    text = '[[user]]\nname = "*"\nuid = -1\npassword = "x"\nsend = ["a..b"]\n'
    assert 4 == len(problems(file, text))


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        ('name = "u"', 'name = "u"', "name: 'u'"),
        ('name = "u"\nuid = 1', 'name = "v"\nuid = [2, 1]', "uid: '1'"),
        (
            'name = "u"\ncertificate = "dns:A.org"',
            'name = "v"\ncertificate = "dns:a.org"',
            "certificate: 'dns:a.org'",
        ),
    ],
)
def test_what_two_users_cannot_both_be_known_by(file: Path, one: str, other: str, key: str) -> None:
    (told,) = problems(file, f"[[user]]\n{one}\n[[user]]\n{other}\n")
    assert f"user.{key} is another user's, at F:" in told


def test_uris_of_certificates_have_case(file: Path) -> None:
    file.write_text(
        '[[user]]\nname = "u"\ncertificate = "uri:A"\n[[user]]\nname = "v"\ncertificate = "uri:a"\n'
    )
    assert 2 == len(load_config(file).users)


def test_a_user_has_as_many_patterns_as_a_receiver_may(file: Path) -> None:
    text = '[limits]\npatterns = 2\n[[user]]\nname = "u"\nsend = ["a", "b", "c"]\n'
    (told,) = problems(file, text)
    assert "user.send: 3 patterns, at most 2 allowed (patterns)" in told


def test_a_key_of_a_user_elsewhere_is_told_where_it_belongs(file: Path) -> None:
    (told,) = problems(file, 'certificate = "dns:a"\n')
    assert "a [[user]]" in told
    (told,) = problems(file, 'users = "users"\n')
    assert "[[user]] of its own" in told


# --- the users file


USERS = '[node]\nusers = "secrets/users"\n[[user]]\nname = "shop"\n'


def test_a_users_file_begins_at_the_files_folder(file: Path) -> None:
    users_file = file.parent / "secrets" / "users"
    users_file.parent.mkdir()
    change_users_file(users_file, lambda kept: kept.with_password("shop", RECORD))
    file.write_text(USERS)
    assert users_file == load_config(file).users_file
    assert users_file == users_file_of(file)


def test_a_users_file_that_cannot_be_used_is_told(file: Path) -> None:
    users_file = file.parent / "secrets" / "users"
    (told,) = problems(file, USERS)
    assert told == f"F:2: node.users: {users_file}: cannot be read: No such file or directory"
    users_file.parent.mkdir()
    users_file.write_text("hunter2\npassword shop hunter2\n")
    users_file.chmod(0o644)
    (told,) = problems(file, USERS)
    assert "others can use it: chmod 600" in told
    users_file.chmod(0o600)
    told_both = problems(file, USERS)
    assert 2 == len(told_both)
    assert "hunter2" not in "".join(told_both)


def test_a_users_file_with_a_zero_byte_in_its_name_is_told(file: Path) -> None:
    (told,) = problems(file, '[node]\nusers = "a\\u0000b"\n[[user]]\nname = "shop"\n')
    assert told.startswith("F:2: node.users: ")
    assert told.endswith("a path has no zero byte")


def test_a_users_file_without_users_is_refused_since_nobody_would_be_asked(file: Path) -> None:
    change_users_file(file.parent / "users", lambda kept: kept.with_password("shop", RECORD))
    (told,) = problems(file, '[node]\nusers = "users"\n')
    assert "no [[user]], so nobody would be asked to log in" in told


def test_a_password_in_both_places_is_refused(file: Path) -> None:
    change_users_file(file.parent / "users", lambda kept: kept.with_password("shop", RECORD))
    text = f'[node]\nusers = "users"\n[[user]]\nname = "shop"\npassword = "{RECORD.text()}"\n'
    (told,) = problems(file, text)
    assert "a password of 'shop' too: one must go" in told


def test_a_command_asks_for_the_users_file_before_it_is_there(file: Path) -> None:
    file.write_text(USERS)
    assert file.parent / "secrets" / "users" == users_file_of(file, "shop")
    with pytest.raises(ConfigError, match=r"no \[\[user\]\] named 'shpo'"):
        users_file_of(file, "shpo")
    file.write_text("")
    with pytest.raises(ConfigError, match=r"node.users: is missing"):
        users_file_of(file)


# --- as the node loads them


def test_users_are_loaded_with_what_their_file_says(tmp_path: Path) -> None:
    users_file, folder = tmp_path / "users", tmp_path / "data"
    folder.mkdir()
    token, secret = new_token("till")
    change_users_file(
        users_file, lambda kept: kept.with_password("shop", RECORD).with_token(token, 0)
    )
    both = (User(name="shop"), User(name="till"))
    users = load_users(both, users_file, folder)
    assert RECORD == users.record("shop")
    assert users.by_token(secret, 0)
    # The secret stays, so what is made of it does.
    assert users.record("nobody") == load_users(both, users_file, folder).record("nobody")
    with pytest.raises(BadValue, match="'shop' is in the configuration"):
        load_users((User(name="shop", password=RECORD),), users_file, folder)


def test_where_nobody_is_configured_nothing_is_made(tmp_path: Path) -> None:
    assert not load_users((), None, tmp_path)
    assert [] == list(tmp_path.iterdir())
    assert load_users((User(name="shop"),), None, tmp_path)
    assert [tmp_path / SECRET_NAME] == list(tmp_path.iterdir())


def test_a_users_file_is_empty_at_first() -> None:
    assert ({}, ()) == (dict(UsersFile().passwords), UsersFile().tokens)
