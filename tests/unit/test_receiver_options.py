"""Each option of a receiver goes from where it is said to the log and back, by its field."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from twisted.internet.task import Clock

from msgservice.config.config import load_config
from msgservice.core.datagram.keys import Keys
from msgservice.disk.database import rows
from msgservice.errors import BadValue
from msgservice.limits import Limits
from msgservice.receiver.receiver import Receiver
from msgservice.receiver_options import (
    CHANGED,
    CONFIGURED,
    DEFAULTS,
    OPTIONS,
    Option,
    ReceiverOptions,
)
from msgservice.records import ReceiverRow
from tests.kit.logs import Driver
from tests.kit.nodes import NodeWorld

EACH = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"threads": -1}, "threads must be 0 or more, not -1"),
        ({"concurrency": 0}, "concurrency must be 1 or more, not 0"),
    ],
)
def test_a_number_that_cannot_be_is_named(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Receiver(Clock(), name="billing", handler=print, **wrong)  # type: ignore[arg-type]


# What an option cannot be without.
BESIDE: dict[str, dict[str, Any]] = {"shared": {"order": "none"}}


def another(option: Option) -> Any:
    """Return a value that is not the default."""
    if option.about.choices:
        return option.about.choices[-1]
    return {bool: True, int: option.about.lowest + 5, str: "some words"}[option.kind]


def with_another(option: Option) -> ReceiverOptions:
    said = {option.name: another(option), **BESIDE.get(option.name, {})}
    return msgspec.structs.replace(DEFAULTS, **said).check()


@pytest.mark.parametrize("option", CONFIGURED, ids=lambda option: option.name)
def test_an_option_of_the_configuration_is_kept(option: Option, tmp_path: Path) -> None:
    value = msgspec.json.encode(another(option)).decode()
    file = tmp_path / "node.toml"
    said = f"{'.'.join(option.key)} = {value}\n"
    for name, beside in BESIDE.get(option.name, {}).items():
        said += f'{name} = "{beside}"'
    file.write_text(f'[[receiver]]\nname = "billing"\nsubjects = []\n{said}\n')
    (receiver,) = load_config(file).receivers
    assert with_another(option) == receiver.options


@EACH
def test_an_option_comes_back_from_the_log(option: Option, tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path).open()
    log.append(receivers=[ReceiverRow(number=1, name="billing", options=with_another(option))])
    log.reopen()
    assert [with_another(option)] == [row.options for row in log.snapshot.receivers]
    log.close()


@EACH
def test_an_option_has_a_column_of_its_type(option: Option, tmp_path: Path) -> None:
    log: Any = Driver("sqlite", tmp_path).open()
    columns = {
        name: (kind, bool(required))
        for _, name, kind, required, *_ in rows(log.log._store.db, "pragma table_info(receiver)")
    }
    expected = ("TEXT" if option.kind is str else "INTEGER", option.default is not None)
    kind, required = columns[option.column]
    assert expected == (kind.upper(), required)
    log.close()


@EACH
def test_an_option_is_taken_and_told_by_requests(option: Option) -> None:
    world = NodeWorld()
    admin = world.peer("admin")
    value = another(option)
    asked = {"name": "billing", "subjects": ["orders.>"], option.name: value}
    asked |= BESIDE.get(option.name, {})
    taken, why = admin.request("$node.receivers.add", asked)
    assert option.about.added == taken, why
    if not taken:
        return
    row = world.node.parts.directory.named("billing")
    assert with_another(option) == row.options
    told = admin.request("$node.receivers.list", {})[1]["receivers"][0]
    assert value == told[option.name]
    admin.request("$node.receivers.add", {"name": "plain", "subjects": []})
    change = {"name": "plain", option.name: value}
    assert admin.request("$node.receivers.change", change)[0] == (option.name in CHANGED)
    changed = option.name in CHANGED
    expected = with_another(option) if changed else DEFAULTS
    assert expected == world.node.parts.directory.named("plain").options
    assert (
        admin.request("$node.receivers.change", {"name": "plain", option.name: None})[0] == changed
    )
    assert expected == world.node.parts.directory.named("plain").options


def test_what_is_no_option_that_can_be_changed_is_refused() -> None:
    for name in ("paused", "window_bytes", "colour"):
        with pytest.raises(ValueError, match=f"{name} is no option that can be changed"):
            DEFAULTS.changed({name: 1})


@pytest.mark.parametrize("value", [1.9, 2.0, True, "7"])
@pytest.mark.parametrize("name", [option.name for option in OPTIONS if option.kind is int])
def test_an_integer_is_no_other_number(name: str, value: Any) -> None:
    with pytest.raises(BadValue, match=f"{name} must be an integer, not {value!r}"):
        ReceiverOptions(**{name: value}).check()


@pytest.mark.parametrize("value", [1.9, 2.0, True, "7"])
@pytest.mark.parametrize("limit", [one.name for one in fields(Limits) if type(one.default) is int])
def test_a_limit_that_is_an_integer_is_no_other_number(limit: str, value: Any) -> None:
    with pytest.raises(BadValue, match=f"{limit} must be an integer, not {value!r}"):
        Limits(**{limit: value})


def test_a_limit_in_seconds_is_a_number() -> None:
    assert Limits(heartbeat=2).heartbeat == 2
    for value in (True, "7", None):
        with pytest.raises(BadValue, match="heartbeat must be a number, not"):
            Limits(heartbeat=value)  # type: ignore[arg-type]  # as a program without types may


@pytest.mark.parametrize("value", [1, "no", None])
def test_what_is_true_or_false_is_no_other_value(value: Any) -> None:
    with pytest.raises(BadValue, match="paused must be true or false, not"):
        ReceiverOptions(paused=value).check()


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1.9},
        {"window": True},
        {"window": (1.9, 1000)},
        {"window": (10, True)},
        {"threads": 1.9},
        {"threads": True},
        {"concurrency": 2.0},
        {"concurrency": True},
    ],
    ids=str,
)
def test_an_integer_of_a_receiver_is_no_other_number(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="integers"):
        Receiver(Clock(), name="r", handler=print, **options)


@pytest.mark.parametrize("number", [1.9, 2.0, True])
def test_the_number_of_a_key_is_an_integer(number: Any) -> None:
    with pytest.raises(ValueError, match="must be an integer from 1 to 255"):
        Keys({number: bytes(32)}, ChaCha20Poly1305)
