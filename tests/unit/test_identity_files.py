"""Stored passwords and tokens, and the files that hold secrets: who may read them, and when."""

import hashlib
import hmac
import os
import re
import stat
import threading
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.errors import BadValue, ConfigError
from msgservice.identity.passwords import ITERATIONS_MAX, ITERATIONS_MIN, PasswordRecord
from msgservice.identity.private_files import (
    SECRET_NAME,
    read_private,
    secret_of,
    write_private,
)
from msgservice.identity.tokens import Token, new_token, token_id
from msgservice.identity.users_file import (
    UsersFile,
    change_users_file,
    read_users_file,
    time_of,
    time_text,
)

PASSWORD = "pencil, with a comma"
RECORD = PasswordRecord.of(PASSWORD, iterations=ITERATIONS_MIN)
B64_12, B64_32 = b64encode(bytes(12)).decode(), b64encode(bytes(32)).decode()


# --- passwords


def test_a_record_is_what_the_rfc_computes() -> None:
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), RECORD.salt, ITERATIONS_MIN)
    client_key = hmac.digest(salted, b"Client Key", "sha256")  # RFC 5802, 3
    assert hashlib.sha256(client_key).digest() == RECORD.stored_key
    assert hmac.digest(salted, b"Server Key", "sha256") == RECORD.server_key


def test_a_record_is_read_as_other_stores_write_it() -> None:
    text = f"SCRAM-SHA-256$5000:{B64_12}${B64_32}:{B64_32}"
    record = PasswordRecord.parse(text)
    assert (5000, bytes(12)) == (record.iterations, record.salt)
    assert text == record.text()
    assert RECORD == PasswordRecord.parse(RECORD.text())


def test_a_record_says_neither_password_nor_keys() -> None:
    shown = f"{RECORD!r} {RECORD} {UsersFile().with_password('shop', RECORD)!r}"
    for secret in (PASSWORD, *re.split("[$:]", RECORD.text())[2:], repr(RECORD.salt)):
        assert secret not in shown
    assert str(ITERATIONS_MIN) in shown


def test_no_two_records_of_a_password_are_the_same() -> None:
    assert RECORD.salt != PasswordRecord.of(PASSWORD, iterations=ITERATIONS_MIN).salt


@pytest.mark.parametrize("iterations", [0, 1, ITERATIONS_MIN - 1, ITERATIONS_MAX + 1, 2**31])
def test_iterations_have_bounds(iterations: int) -> None:
    with pytest.raises(BadValue, match=str(iterations)):
        PasswordRecord.of(PASSWORD, iterations=iterations)
    with pytest.raises(BadValue):
        PasswordRecord.parse(RECORD.text().replace("$4096:", f"${iterations}:"))


@pytest.mark.parametrize("password", ["", "\u00ad", "\u0007bell", "x" * 2000, "\ud800", "\u0627x"])
def test_a_password_that_cannot_be_one_is_refused_without_being_said(password: str) -> None:
    with pytest.raises(BadValue) as error:
        PasswordRecord.of(password)
    assert not password or password not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pencil",
        "SCRAM-SHA-1$4096:{}${}:{}",
        "SCRAM-SHA-256$04096:{}${}:{}",
        "SCRAM-SHA-256$4096:{}${}",
        "SCRAM-SHA-256$4096:AAAA${}:{}",
        "SCRAM-SHA-256$4096:{}$AAAA:{}",
        "SCRAM-SHA-256$4096:{}${}:A=AA",
    ],
)
def test_a_text_that_is_no_record_is_refused_without_being_said(text: str) -> None:
    text = text.format(B64_12, B64_32, B64_32)
    with pytest.raises(BadValue) as error:
        PasswordRecord.parse(text)
    assert not text or text not in str(error.value)


# --- tokens


def test_a_token_is_its_secret_alone() -> None:
    token, secret = new_token("shop")
    assert token.is_secret(secret)
    assert not token.is_secret(secret[:-1])
    assert not token.is_secret(new_token("shop")[1])
    assert token.id == token_id(secret)
    assert secret not in repr(token)
    assert token.digest.hex() not in repr(token)


def test_a_token_expires() -> None:
    token, _ = new_token("shop", expires=1000)
    assert token.is_valid(999)
    assert not token.is_valid(1000)
    assert new_token("shop")[0].is_valid(2**53)


@pytest.mark.parametrize(
    "secret", ["", "ms_", "ms_abc_def", f"ms_{'a' * 12}_{'x' * 42}", f"Ms_{'a' * 12}_{'x' * 43}"]
)
def test_what_is_no_token_has_no_id(secret: str) -> None:
    assert token_id(secret) is None


def test_a_token_of_another_form_is_refused() -> None:
    with pytest.raises(BadValue, match="12 letters"):
        Token(id="UPPER", digest=bytes(32), user="shop")
    with pytest.raises(BadValue, match="31 bytes"):
        Token(id="a" * 12, digest=bytes(31), user="shop")


@given(st.integers(0, 253402300799))
def test_a_time_is_read_as_it_was_written(seconds: int) -> None:
    assert seconds * 1000 == time_of(time_text(seconds * 1000))


# --- the users file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


def test_what_was_written_is_read(path: Path) -> None:
    token, _ = new_token("till", expires=86_400_000)
    forever, _ = new_token("till")
    change_users_file(path, lambda file: file.with_password("shop", RECORD))
    change_users_file(path, lambda file: file.with_token(token, 0).with_token(forever, 0))

    found = read_users_file(path)
    assert {"shop": RECORD} == dict(found.passwords)
    assert (token, forever) == found.tokens
    assert "1970-01-02T00:00:00Z" in path.read_text()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_another_password_takes_the_place_of_the_first_and_comments_stay(path: Path) -> None:
    path.write_text(f"# the shop\npassword shop {RECORD.text()}\n\n# no more\n")
    path.chmod(0o600)
    other = PasswordRecord.of("another", iterations=5000)
    change_users_file(path, lambda file: file.with_password("shop", other))
    assert f"# the shop\npassword shop {other.text()}\n\n# no more\n" == path.read_text()
    change_users_file(path, lambda file: file.without_password("shop"))
    assert "# the shop\n\n# no more\n" == path.read_text()


def test_a_user_has_two_tokens_that_are_valid_and_no_third(path: Path) -> None:
    (one, _), (two, _), (three, _) = (new_token("shop", expires=1000 * n) for n in (1, 2, 3))
    file = UsersFile().with_token(one, 0).with_token(two, 0)
    with pytest.raises(BadValue, match=f"{one.id} and {two.id}, at most 2"):
        file.with_token(three, 999)
    # One that has expired makes room, and goes.
    assert (two, three) == file.with_token(three, 1000).tokens
    assert (one, three) == file.without_token(two.id).with_token(three, 0).tokens
    assert file.with_token(new_token("till")[0], 0)


def test_what_is_not_there_is_not_removed() -> None:
    with pytest.raises(BadValue, match="there is none"):
        UsersFile().without_token("a" * 12)
    with pytest.raises(BadValue, match="there is none"):
        UsersFile().without_password("shop")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("password shop", "line 2: it is no"),
        ("password shop hunter2", "line 2: password is no record"),
        (f"password a/b {RECORD.text()}", "line 2: bad name"),
        (f"password shop {RECORD.text()}\npassword shop {RECORD.text()}", "line 3: .* said twice"),
        ("token shop abc 00 never", "line 2: token"),
        (f"token shop {'a' * 12} zz never", "line 2: .*no hex"),
        (f"token shop {'a' * 12} {'00' * 32} tomorrow", "line 2: .*2027-01-01T00:00:00Z"),
        ("hunter2", "line 2: it is no"),
    ],
    ids=range(8),
)
def test_a_line_that_is_wrong_is_named_and_not_repeated(
    line: str, problem: str, path: Path
) -> None:
    path.write_text(f"# users\n{line}\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"{path}: {problem}") as error:
        read_users_file(path)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_file_that_others_can_use_is_refused(mode: int, path: Path) -> None:
    path.write_text("")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        read_users_file(path)
    with pytest.raises(ConfigError, match="mode"):
        change_users_file(path, lambda file: file)


def test_a_file_of_somebody_else_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("")
    path.chmod(0o600)
    owner = path.stat()
    found = os.stat_result((*owner[:4], 4711, *owner[5:10]))
    monkeypatch.setattr(os, "fstat", lambda _: found)
    with pytest.raises(ConfigError, match="belongs to user 4711"):
        read_private(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", ".", "missing"):
        with pytest.raises(ConfigError):
            read_private(tmp_path / name)


def test_a_change_that_fails_leaves_the_file_and_nothing_beside_it(path: Path) -> None:
    change_users_file(path, lambda file: file.with_password("shop", RECORD))
    before = path.read_bytes()
    with pytest.raises(BadValue):
        change_users_file(path, lambda file: file.without_token("a" * 12))
    assert before == path.read_bytes()
    assert [path] == list(path.parent.iterdir())


def test_a_write_that_fails_leaves_the_file_and_nothing_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_private(path, b"old")

    def no_sync(_: int) -> None:
        raise OSError(5, "no sync")

    monkeypatch.setattr(os, "fsync", no_sync)
    with pytest.raises(OSError, match="no sync"):
        write_private(path, b"new")
    assert b"old" == path.read_bytes()
    assert [path] == list(path.parent.iterdir())


def test_a_link_stays_and_the_file_that_it_leads_to_is_written(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    change_users_file(link, lambda file: file.with_password("shop", RECORD))
    assert link.is_symlink()
    assert "shop" in read_users_file(path).passwords


def test_two_that_change_a_file_at_once_wait_for_each_other(path: Path) -> None:
    inside = threading.Event()
    go_on = threading.Event()
    done = []

    def slow(file: UsersFile) -> UsersFile:
        inside.set()
        assert go_on.wait(30)
        return file.with_password("one", RECORD)

    def fast() -> None:
        change_users_file(path, lambda file: file.with_password("two", RECORD))
        done.append("two")

    one = threading.Thread(target=change_users_file, args=(path, slow))
    two = threading.Thread(target=fast)
    one.start()
    assert inside.wait(30)
    two.start()
    assert [] == done  # it may not have come so far yet; what is judged is below
    go_on.set()
    one.join(30)
    two.join(30)
    assert {"one", "two"} == set(read_users_file(path).passwords)


def test_the_secret_of_a_folder_is_made_once(tmp_path: Path) -> None:
    secret = secret_of(tmp_path)
    assert 32 == len(secret)
    assert secret == secret_of(tmp_path)
    assert 0o600 == stat.S_IMODE((tmp_path / SECRET_NAME).stat().st_mode)


def test_a_secret_that_is_cut_is_refused(tmp_path: Path) -> None:
    secret_of(tmp_path)
    (tmp_path / SECRET_NAME).write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes, not 32"):
        secret_of(tmp_path)
