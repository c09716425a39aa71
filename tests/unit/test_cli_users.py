"""The commands that set passwords, make tokens, and say what a user may: without a node."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from msgservice.cli.main import main
from msgservice.identity.passwords import PasswordRecord
from msgservice.identity.users_file import read_users_file

CONFIG = """
[node]
users = "users"
[[user]]
name = "shop"
names = ["shop", "till.*"]
send = ["orders.>"]
to = ["billing"]
receive = ["prices.>"]
request = ["$node.status"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "node.toml").write_text(CONFIG)
    return tmp_path


def run(*arguments: str | Path, said: str = "") -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=said)


def proves(record: PasswordRecord, password: str) -> bool:
    import hashlib
    import hmac

    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), record.salt, record.iterations)
    return hmac.digest(salted, b"Server Key", "sha256") == record.server_key


def test_a_password_is_set_in_the_file_that_the_configuration_names(folder: Path) -> None:
    done = run("passwd", "shop", "--config", folder / "node.toml", said="p\u00e9ncil \n")
    assert (0, "") == (done.exit_code, done.stdout)
    assert "msgservice reload" in done.stderr
    record = read_users_file(folder / "users").passwords["shop"]
    assert proves(record, "p\u00e9ncil ")
    assert 100_000 == record.iterations
    assert 0o600 == stat.S_IMODE((folder / "users").stat().st_mode)
    assert "ncil" not in done.stderr + (folder / "users").read_text()


def test_a_record_is_printed_where_no_file_is_said() -> None:
    done = run("passwd", "shop", "--iterations", "5000", said="pencil")
    assert 0 == done.exit_code
    record = PasswordRecord.parse(done.stdout.strip())
    assert 5000 == record.iterations
    assert proves(record, "pencil")


def test_a_password_is_removed(folder: Path) -> None:
    users = ("--users", folder / "users")
    run("passwd", "shop", *users, said="pencil\n")
    assert 0 == run("passwd", "shop", "--remove", *users).exit_code
    assert {} == dict(read_users_file(folder / "users").passwords)
    again = run("passwd", "shop", "--remove", *users)
    assert (2, "msgservice: password of 'shop': there is none\n") == (
        again.exit_code,
        again.stderr,
    )


@pytest.mark.parametrize(
    ("arguments", "said", "told"),
    [
        (("shop",), "\n", "password is empty"),
        (("shop",), "x" * 5000, "password is longer than 1024 bytes"),
        (("shop",), "a\x07\n", "password cannot be used"),
        (("*",), "pencil\n", "bad subject '*'"),
        (("till", "--config", "node.toml"), "pencil\n", "there is no [[user]] named 'till'"),
        (("shop", "--config", "none.toml"), "pencil\n", "none.toml: cannot be read"),
        (("shop", "--users", "u", "--config", "c"), "", "--users is one too many"),
        (("shop", "--remove"), "", "which users file?"),
    ],
)
def test_what_cannot_be_set_is_told_and_nothing_is_done(
    arguments: tuple[str, ...],
    said: str,
    told: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    done = run("passwd", *arguments, said=said)
    assert 2 == done.exit_code
    assert told in done.stderr
    assert "" == done.stdout
    assert ["node.toml"] == [path.name for path in folder.iterdir()]


def test_no_command_takes_a_secret_as_an_argument() -> None:
    done = run("passwd", "shop", "pencil")
    assert 2 == done.exit_code
    assert "" == done.stdout


def test_a_token_is_made_listed_and_revoked(folder: Path) -> None:
    config = ("--config", folder / "node.toml")
    made = run("token", "add", "shop", *config)
    assert 0 == made.exit_code
    secret = made.stdout.strip()
    (token,) = read_users_file(folder / "users").tokens
    assert token.is_secret(secret)
    assert secret not in (folder / "users").read_text() + made.stderr

    never = json.loads(run("token", "add", "shop", "--never", "--json", *config).stdout)
    assert (None, True) == (never["expires"], never["valid"])
    third = run("token", "add", "shop", *config)
    assert 2 == third.exit_code
    assert "revoke one" in third.stderr

    listed = run("token", "list", *config)
    assert [token.id, never["id"]] == [line.split()[0] for line in listed.stdout.splitlines()[1:]]
    told = json.loads(run("token", "list", "--json", *config).stdout)
    assert {token.id: True, never["id"]: True} == {one["id"]: one["valid"] for one in told}
    assert secret not in listed.stdout
    assert never["token"] not in json.dumps(told)

    assert 0 == run("token", "revoke", token.id, *config).exit_code
    assert [never["id"]] == [one.id for one in read_users_file(folder / "users").tokens]
    again = run("token", "revoke", token.id, *config)
    assert (2, True) == (again.exit_code, "there is none of this id" in again.stderr)


def test_a_token_that_has_expired_is_told_so(folder: Path) -> None:
    line = f"token shop {'a' * 12} {'00' * 32} 2020-01-01T00:00:00Z\n"
    (folder / "users").write_text(line)
    (folder / "users").chmod(0o600)
    done = run("token", "list", "--users", folder / "users")
    assert ["a" * 12, "shop", "2020-01-01T00:00:00Z", "expired"] == done.stdout.splitlines()[
        1
    ].split()


@pytest.mark.parametrize(
    ("verb", "name", "rule"),
    [
        ("send", "orders.new", 'send = "orders.>"'),
        ("send", "orders", None),
        ("to", "billing", 'to = "billing"'),
        ("to", "archive", None),
        ("receive", "prices.eu.*", 'receive = "prices.>"'),
        ("receive", ">", None),
        ("request", "$node.status", 'request = "$node.status"'),
        ("request", "$node.info", None),
        ("request", "$node.whoami", "every user may ask whoami, of what is its own"),
        ("name", "till.1", 'names = "till.*"'),
        ("name", "shop.1", None),
    ],
)
def test_what_a_user_may_is_told_with_the_rule(
    verb: str, name: str, rule: str | None, folder: Path
) -> None:
    (folder / "users").touch(0o600)
    config = ("--config", folder / "node.toml")
    done = run("can", "shop", verb, name, *config)
    expected = f"yes: {rule}" if rule else f"no: no rule of shop allows {verb} {name}"
    assert (0 if rule else 1, expected) == (done.exit_code, done.stdout.strip())
    told = json.loads(run("can", "shop", verb, name, "--json", *config).stdout)
    assert (rule is not None, rule) == (told["allowed"], told["rule"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nobody", "send", "a"), "there is no [[user]] named 'nobody'"),
        (("shop", "send", "a.*"), "bad subject 'a.*'"),
        (("shop", "receive", "a..b"), "bad subject 'a..b'"),
        (("shop", "name", "$node"), "bad name '$node'"),
        (("shop", "relay", "a"), "is not one of"),
    ],
)
def test_what_cannot_be_asked_is_told(arguments: tuple[str, ...], told: str, folder: Path) -> None:
    (folder / "users").touch(0o600)
    done = run("can", *arguments, "--config", folder / "node.toml")
    assert 2 == done.exit_code
    assert told in done.stderr


def test_a_configuration_that_is_checked_shows_users_and_no_secret(folder: Path) -> None:
    record = run("passwd", "till", said="pencil\n").stdout.strip()
    with (folder / "node.toml").open("a") as file:
        file.write(f'[[user]]\nname = "till"\npassword = "{record}"\nuid = 7\n')
    run("token", "add", "shop", "--config", folder / "node.toml")
    people = run("check-config", folder / "node.toml").stdout
    assert "user       shop: known by what the users file says; names shop, till.*" in people
    assert "user       till: known by a password, uid 7; names till, till.>" in people
    told = json.loads(run("check-config", "--json", folder / "node.toml").stdout)
    assert ["shop", "till"] == [user["name"] for user in told["users"]]
    assert [False, True] == [user["password"] for user in told["users"]]
    assert ["orders.>"] == told["users"][0]["rules"]["send"]
    for part in record.partition("$")[2].replace(":", "$").split("$")[1:]:
        assert part not in people + json.dumps(told)
