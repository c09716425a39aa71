"""Listeners and receivers of a configuration that has users: who is asked, and whose they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from msgservice.cli.main import main
from msgservice.config.config import Config, Flags, load_config, load_users_of
from msgservice.errors import ConfigError
from msgservice.limits import Limits
from msgservice.node.service import read_users

SHOP = '[[user]]\nname = "shop"\nreceive = ["orders.>"]\n'
HERE = '[[listen]]\naddress = "unix:/run/x.sock"\n'
ANY = '[[listen]]\naddress = "tcp:0"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def read(file: Path, text: str) -> Config:
    file.write_text(text)
    return load_config(file)


def problems(file: Path, text: str) -> str:
    with pytest.raises(ConfigError) as wrong:
        read(file, text)
    return str(wrong.value).replace(str(file), "F")


def test_listeners_that_differ_are_tables_of_their_own(file: Path) -> None:
    config = read(
        file,
        f'{SHOP}[[listen]]\naddress = "tcp:7411"\n\n{HERE}login = "none"\nuser = "shop"\n',
    )
    assert [("tcp", "tcp:7411", None), ("unix", "unix:/run/x.sock", "shop")] == [
        (one.transport, one.address, one.user) for one in config.listen
    ]


def test_two_listeners_whose_ports_are_chosen_may_be_alike(file: Path) -> None:
    assert 2 == len(read(file, f"{SHOP}{ANY}{ANY}").listen)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f'{SHOP}{HERE}login = "none"\n', "F:6: listen.login: needs user = NAME"),
        (f'{HERE}login = "none"\n', "F:3: listen.login: there is no [[user]]"),
        (f'{SHOP}{HERE}login = "none"\nuser = "till"\n', "there is no [[user]] named"),
        (f'{SHOP}{HERE}user = "shop"\n', 'is whom all are who come where login = "none"'),
        (f'{SHOP}{HERE}login = "no"\n', 'must be "asked" or "none"'),
        (f"{SHOP}{HERE}logins = 1\n", "unknown key, did you mean 'login'?"),
        (f'{SHOP}[[listen]]\nlogin = "asked"\n', "listen.address: is missing"),
        (f"{HERE}{HERE}", "is there twice"),
        (f'{SHOP}{ANY}{ANY}login = "none"\nuser = "shop"\n', "is there twice, for others"),
        (
            f'{SHOP}[[user]]\nname = "till"\n{ANY}login = "none"\nuser = "shop"\n'
            f'{ANY}login = "none"\nuser = "till"\n',
            "'tcp:0' is there twice, for others",
        ),
        ('listen = "tcp:7411"\n', "must be a table or a list of tables"),
        (f'{HERE}address = "x:1"\n'.replace(HERE, "[[listen]]\n"), "F:2: listen.address"),
    ],
)
def test_what_is_wrong_with_a_listener_is_told(file: Path, text: str, told: str) -> None:
    assert told in problems(file, text)


@pytest.mark.parametrize(
    ("address", "users", "insecure", "told"),
    [
        ("tcp:7411:interface=", SHOP, False, "logins would travel where others can read them"),
        ("tcp:7411:interface=", "", False, "peers would be believed their names"),
        ("tcp:7411:interface=", SHOP, True, None),
        ("tcp:7411", SHOP, False, None),
        ("udp:7411:interface=0.0.0.0", SHOP, False, "beyond loopback key=FILE"),
    ],
)
def test_32_a_listener_beyond_this_machine_is_sealed_or_said_to_be_insecure(
    file: Path, address: str, users: str, insecure: bool, told: str | None
) -> None:
    text = f'[node]\ninsecure = {str(insecure).lower()}\n[[listen]]\naddress = "{address}"\n{users}'
    if told is None:
        read(file, text)
    else:
        assert told in problems(file, text)


@pytest.mark.parametrize(("users", "may"), [(SHOP, True), ("", False)])
def test_32_with_tls_a_listener_is_open_to_others_where_they_are_asked(
    file: Path, users: str, may: bool
) -> None:
    from tests.kit.certificates import Authority

    key, certificate = Authority(file.parent).issue("localhost")
    said = f"tls:7411:interface=:certificate={certificate}:privateKey={key}"
    text = f'{users}[[listen]]\naddress = "{said}"\n'
    if may:
        read(file, text)
        believed = text + 'login = "none"\nuser = "shop"\n'
        assert "peers would be believed their names" in problems(file, believed)
    else:
        assert "peers would be believed their names" in problems(file, text)


RECEIVER = '[[receiver]]\nname = "billing"\nsubjects = ["orders.new"]\n'


def test_a_receiver_is_the_users_that_it_names(file: Path) -> None:
    (one,) = read(file, f'{SHOP}{RECEIVER}user = "shop"\n').receivers
    assert "shop" == one.user


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f'{RECEIVER}user = "shop"\n', 'receiver.user: there is no [[user]] named "shop"'),
        (f'{SHOP}{RECEIVER}user = "till"\n', 'receiver.user: there is no [[user]] named "till"'),
        (
            f'{SHOP}{RECEIVER.replace("orders.new", "bills.>")}user = "shop"\n',
            'receiver.subjects: "bills.>": user "shop" may not receive it',
        ),
        (
            f'{SHOP}{RECEIVER}address = "tcp:192.0.2.1:7420"\n',
            "receiver.address: plain tcp: or pb: beyond this machine needs insecure = true",
        ),
    ],
)
def test_what_the_gate_would_not_let_a_receiver_have_is_told(
    file: Path, text: str, told: str
) -> None:
    assert told in problems(file, text)


def test_a_plain_address_elsewhere_is_dialled_where_nobody_is_asked_or_it_is_said(
    file: Path,
) -> None:
    elsewhere = f'{RECEIVER}address = "tcp:192.0.2.1:7420"\n'
    read(file, elsewhere)
    read(file, f"[node]\ninsecure = true\n{SHOP}{elsewhere}")


def test_users_are_read_anew_though_something_else_is_wrong_by_now(file: Path) -> None:
    file.write_text(f"{SHOP}[listen]\nnonsense = 1\n")
    ((user,), users_file) = load_users_of(file, Limits())
    assert ("shop", None) == (user.name, users_file)
    file.write_text("[[user]]\nname = 7\n")
    with pytest.raises(ConfigError, match="must be a string"):
        load_users_of(file, Limits())


def test_users_are_read_anew_by_the_limits_of_the_node_that_runs(file: Path) -> None:
    """Those of the file need a restart, and the command line may have said others."""
    file.write_text(f'{SHOP}send = ["a", "b"]\n[limits]\npatterns = "many"\n')
    ((user,), _) = load_users_of(file, Limits(patterns=2))
    assert ("a", "b") == user.rules.patterns("send")
    with pytest.raises(ConfigError, match="2 patterns, at most 1 allowed"):
        load_users_of(file, Limits(patterns=1))


def test_a_node_whose_users_need_a_limit_of_the_command_line_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    patterns = ", ".join(f'"{number}"' for number in range(Limits().patterns + 1))
    file.write_text(f"{SHOP}send = [{patterns}]\n")
    config = load_config(file, Flags(limits={"patterns": "2000"}))
    (tmp_path / "data").mkdir()
    assert "shop" in read_users(replace(config, data=tmp_path / "data"))


def test_check_config_says_who_is_not_asked_and_whose_a_receiver_is(file: Path) -> None:
    file.write_text(f'{SHOP}{RECEIVER}user = "shop"\n{HERE}login = "none"\nuser = "shop"\n')
    told = CliRunner().invoke(main, ["check-config", str(file)]).output
    assert "listens    unix:/run/x.sock; no login, all who come are shop" in told
    assert "of user shop, who cannot attach as it: billing is none of its names;" in told
    called = SHOP + 'names = ["billing"]\n'
    file.write_text(f'{called}{RECEIVER}user = "shop"\n')
    assert "of user shop;" in CliRunner().invoke(main, ["check-config", str(file)]).output
