"""Who a command is: options, environment and profile, and that no secret is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from msgservice.cli.login import Chosen, choose
from msgservice.cli.session import Session
from msgservice.cli.variables import default_profile
from msgservice.errors import ConfigError
from msgservice.identity.tokens import new_token

_, TOKEN = new_token("shop")
SAID = 'node = "tls:node.example:7411:trustRoots=ca.pem"\nuser = "shop"\n'


def test_a_profile_that_nobody_wrote_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        choose("staging", None, environ={"XDG_CONFIG_HOME": str(tmp_path)}, ask=None)
    (told,) = caught.value.problems
    assert told == (
        f"there is no profile 'staging': neither a table of {tmp_path / 'msgservice.toml'},"
        " which is not there, nor a file"
    )


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return written(tmp_path, f'{SAID}password = "of the profile"\n')


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "profile.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def chosen(
    profile: Path | None = None,
    user: str | None = None,
    *,
    people: bool = False,
    **environ: Any,
) -> Chosen:
    return choose(
        profile, user, environ=environ, ask=(lambda user: f"asked of {user}") if people else None
    )


def login(found: Chosen) -> tuple[str, str | None, str | None]:
    assert found.login is not None
    return found.login.user, found.login.password, found.login.token


def test_a_profile_says_node_user_and_secret_and_its_files_lie_beside_it(
    profile: Path, tmp_path: Path
) -> None:
    found = chosen(profile)
    assert f"tls:node.example:7411:trustRoots={tmp_path}/ca.pem" == found.node
    assert ("shop", "of the profile", None) == login(found)


ENVIRONMENTS: list[tuple[dict[str, Any], tuple[str, str | None, str | None]]] = [
    ({"MSGSERVICE_PASSWORD": "p"}, ("shop", "p", None)),
    ({"MSGSERVICE_TOKEN": TOKEN}, ("", None, TOKEN)),
    ({"MSGSERVICE_PASSWORD": "", "MSGSERVICE_TOKEN": ""}, ("shop", "of the profile", None)),
]


@pytest.mark.parametrize(("environ", "expected"), ENVIRONMENTS)
def test_the_environment_goes_before_the_profile(
    profile: Path,
    environ: dict[str, Any],
    expected: tuple[str, str | None, str | None],
) -> None:
    assert expected == login(chosen(profile, **environ))


def test_the_secret_of_a_profile_is_its_own_users(profile: Path) -> None:
    assert ("shop", "of the profile", None) == login(chosen(profile, "shop"))
    assert ("admin", "p", None) == login(chosen(profile, "admin", MSGSERVICE_PASSWORD="p"))
    with pytest.raises(ConfigError, match="user 'admin' has no password: set MSGSERVICE_PASSWORD"):
        chosen(profile, "admin")
    assert ("admin", "asked of admin", None) == login(chosen(profile, "admin", people=True))


def test_the_name_of_a_command_is_one_of_its_users(profile: Path, tmp_path: Path) -> None:
    assert "shop.cli" == Session(login=chosen(profile).login).sender
    token = written(tmp_path, f'user = "shop"\ntoken = "{TOKEN}"\n')
    assert "shop.cli" == Session(login=chosen(token).login).sender
    # A token of somebody else's than the profile's: whose is not known here.
    another = new_token("admin")[1]
    login = chosen(token, MSGSERVICE_TOKEN=another).login
    assert "msgservice-cli" == Session(login=login).sender == Session().sender
    assert (
        "admin.cli" == Session(login=chosen(None, "admin", MSGSERVICE_TOKEN=another).login).sender
    )


def test_people_are_asked_only_for_what_is_missing(profile: Path, tmp_path: Path) -> None:
    assert ("shop", "of the profile", None) == login(chosen(profile, people=True))
    assert ("shop", "asked of shop", None) == login(chosen(written(tmp_path, SAID), people=True))


def test_who_says_nothing_logs_in_nowhere(tmp_path: Path) -> None:
    assert Chosen() == chosen(people=True)
    only_node = written(tmp_path, 'node = "tcp:127.0.0.1:7999"\n')
    assert Chosen(node="tcp:127.0.0.1:7999") == chosen(only_node, people=True)


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (f"{SAID}password = 'hunter2'", 0o640, "has mode 0640, others can use it: chmod 600"),
        (f"{SAID}password = 'hunter2'\ntoken = '{TOKEN}'", 0o600, "only one can be the login"),
        ("password = 'hunter2'", 0o600, "a password, and nobody says whose: give --user"),
        ("user = 'shop'\ntoken = 'hunter2'", 0o600, "token is none"),
        ("user = 'shop'\npassword = ''", 0o600, "password is empty"),
        ("user = 'shop'\npasswort = 'hunter2'", 0o600, "unknown field `passwort`"),
        ("user = 'shop'\npassword = 2", 0o600, "Expected `str | null`, got `int`"),
        ("user = 'shop'\npassword = hunter2", 0o600, "Invalid value"),
        ("user = 'shop'\npassword = 'hunter2", 0o600, "at end of document"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused_and_shows_no_secret(
    tmp_path: Path, text: str, mode: int, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        chosen(written(tmp_path, text, mode))
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_a_profile_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        chosen(tmp_path / "none.toml")


def test_two_secrets_in_the_environment_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="only one can be the login"):
        chosen(None, "shop", MSGSERVICE_PASSWORD="p", MSGSERVICE_TOKEN=TOKEN)


def test_a_command_that_is_shown_shows_no_secret(profile: Path) -> None:
    found = chosen(profile)
    session = Session(login=found.login)
    for shown in (repr(found), repr(session), repr(found.login)):
        assert "of the profile" not in shown


def test_without_a_profile_the_one_in_the_folder_of_configurations_is_it(tmp_path: Path) -> None:
    (tmp_path / "msgservice.toml").write_text(
        'node = "tcp:one:1"\nuser = "shop"\npassword = "p"\n'
        '[staging]\nnode = "tcp:two:2"\n[prod]\nnode = "tcp:three:3"\nuser = "ops"\n'
    )
    (tmp_path / "msgservice.toml").chmod(0o600)
    here = {"XDG_CONFIG_HOME": str(tmp_path)}
    found = choose(None, None, environ=here, ask=None)
    assert ("tcp:one:1", ("shop", "p", None)) == (found.node, login(found))
    named = choose("staging", None, environ=here, ask=None)
    assert ("tcp:two:2", None) == (named.node, named.login)
    asked = choose("prod", None, environ=here, ask=lambda user: f"asked of {user}")
    assert ("ops", "asked of ops", None) == login(asked)
    with pytest.raises(ConfigError, match="no profile 'stagin': there is prod, staging"):
        choose("stagin", None, environ=here, ask=None)


@pytest.mark.parametrize("folder", ["", "relative"])
def test_a_folder_of_configurations_that_is_no_path_counts_as_unset(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    at = default_profile({"XDG_CONFIG_HOME": folder})
    assert at == tmp_path / ".config" / "msgservice.toml"
    assert choose(None, None, environ={"XDG_CONFIG_HOME": folder}, ask=None) == Chosen()
