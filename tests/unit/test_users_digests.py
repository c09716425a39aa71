"""The MD5 of a user's password for Perspective Broker: kept, read, and proved by."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner
from twisted.internet.task import Clock

from msgservice.cli.users import passwd
from msgservice.clock import Time
from msgservice.credentials import Credentials
from msgservice.errors import BadValue, ConfigError, NotAuthenticated
from msgservice.identity.users import User, Users
from msgservice.identity.users_file import UsersFile, read_users_file
from msgservice.limits import Limits
from msgservice.node.gate import Gate
from msgservice.node.seldom import Seldom

DIGEST = hashlib.md5(b"right").digest()
HERE = Credentials(how="plain", is_local=True, address="127.0.0.1", is_private=True)
AWAY = Credentials(how="plain", is_local=False, address="192.0.2.1")


def users(digest: bytes = DIGEST) -> Users:
    return Users([User(name="shop"), User(name="x")], secret=bytes(32), digests={"shop": digest})


def gate(clock: Clock, *, insecure: bool = False) -> Gate:
    return Gate(users(), insecure=insecure, time=Time(clock), limits=Limits(), seldom=Seldom(clock))


def test_a_users_file_keeps_it_beside_the_password() -> None:
    file = UsersFile(("# one",)).with_digest("shop", DIGEST).with_digest("x", bytes(16))
    assert {"shop": DIGEST, "x": bytes(16)} == dict(UsersFile(file.lines).digests)
    assert {"x": bytes(16)} == dict(file.without_digest("shop").digests)
    with pytest.raises(BadValue):
        file.without_digest("nobody")


@pytest.mark.parametrize(
    "line", ["pb shop", "pb shop 12", f"pb shop {'g' * 32}", "pb shop " + "A" * 32]
)
def test_a_line_that_is_none_is_told_without_the_secret(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        UsersFile((line,))
    assert "gggg" not in str(caught.value)


def test_it_is_set_and_taken_away_by_the_command(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("")
    path.chmod(0o600)
    arguments = ["shop", "--pb", "--users", str(path)]
    done = CliRunner().invoke(passwd, arguments, input="right\n")
    assert (0, "") == (done.exit_code, done.output.partition("set in")[0])
    assert {"shop": DIGEST} == dict(read_users_file(path).digests)
    assert "right" not in path.read_text()
    assert 0 == CliRunner().invoke(passwd, [*arguments, "--remove"]).exit_code
    assert {} == dict(read_users_file(path).digests)


def test_a_user_is_known_by_it_until_it_is_another_one() -> None:
    principal = users().by_digest("shop", DIGEST.__eq__)
    assert principal is not None
    assert ("shop", "pb") == (principal.user, principal.how)
    assert users().holds(principal, 0)
    assert not users(bytes(16)).holds(principal, 0)
    assert frozenset({"shop"}) == users().replaced_by(users(bytes(16)))


@pytest.mark.parametrize("name", ["x", "nobody"])
def test_of_who_has_none_one_is_asked_about_that_nothing_fits(name: str) -> None:
    asked: list[bytes] = []

    def proves(digest: bytes) -> bool:
        asked.append(digest)
        return True

    assert users().by_digest(name, proves) is None
    assert [16] == [len(digest) for digest in asked]


@pytest.mark.parametrize("insecure", [False, True])
def test_it_is_never_taken_where_others_read_along(insecure: bool) -> None:
    clock = Clock()
    failed: list[object] = []
    login = gate(clock, insecure=insecure).login_by_digest(AWAY, "shop", DIGEST.__eq__)
    login.addErrback(lambda failure: failed.append(failure.type))
    clock.advance(0)
    assert [NotAuthenticated] == failed


def test_a_user_who_fails_again_and_again_is_not_tried_for_a_while() -> None:
    clock = Clock()
    asked: list[bytes] = []
    one = gate(clock)
    failed: list[str] = []

    def proves(digest: bytes) -> bool:
        asked.append(digest)
        return False

    for _ in range(12):
        trying = one.login_by_digest(HERE, "shop", proves)
        trying.addErrback(lambda failure: failed.append(failure.getErrorMessage()))
        assert not trying.called
        clock.advance(Limits().login_delay)
    assert len(asked) == 10
    assert 12 == len(failed)
    assert "too many" in failed[-1]
    one.stop()
