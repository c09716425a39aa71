"""Each option of a receiver goes from where it is said to the log and back, by its field."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from msgservice.config.config import load_config
from msgservice.disk.database import rows
from msgservice.receiver_options import CHANGED, DEFAULTS, OPTIONS, Option, ReceiverOptions
from msgservice.records import ReceiverRow
from tests.kit.logs import Driver
from tests.kit.nodes import NodeWorld

EACH = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


def another(option: Option) -> Any:
    """Return a value that is not the default."""
    if option.about.choices:
        return option.about.choices[-1]
    return {bool: True, int: option.about.lowest + 5, str: "some words"}[option.kind]


def with_another(option: Option) -> ReceiverOptions:
    return msgspec.structs.replace(DEFAULTS, **{option.name: another(option)}).check()


@EACH
def test_an_option_of_the_configuration_is_kept(option: Option, tmp_path: Path) -> None:
    value = msgspec.json.encode(another(option)).decode()
    file = tmp_path / "node.toml"
    said = f"{'.'.join(option.key)} = {value}"
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
    taken, why = admin.request("$node.receivers.add", asked)
    assert option.about.added == taken, why
    if not taken:
        return
    row = world.node.parts.directory.named("billing")
    assert with_another(option) == row.options
    told = admin.request("$node.receivers.list", {})[1]["receivers"][0]
    assert not option.about.listed or value == told[option.name]
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
