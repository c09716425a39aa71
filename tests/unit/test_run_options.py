"""The options of a run: one value from `send` to the frame, the outbox's file and the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from msgservice.client.outbox_file import OutboxFile
from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.frames import Promised, decode_frame, encode_frame
from msgservice.core.runs import Run, cut_run, producer_run
from msgservice.message import PLAIN, PromiseOption, RunOptions, encode_bodies, options_of
from tests.kit.clients import ClientWorld
from tests.kit.threads import ThreadCalls

# Of each option another value than its default.
OTHER: dict[str, Any] = {"to": ("a", "b"), "ttl": 7, "delay": 8, "flags": 4}
OTHER["promise"] = PromiseOption(2, 9, True)
ALL = RunOptions(**OTHER)
BODIES = encode_bodies([b"1", b"2", b"3"])


def run_with(options: RunOptions) -> Run:
    return Run(1, 3, "s", "s", BODIES, len(BODIES), 0, options=options)


def test_the_values_here_differ_from_the_default_in_each_option() -> None:
    assert tuple(OTHER) == RunOptions.__struct_fields__
    for name, value in OTHER.items():
        assert getattr(PLAIN, name) != value


def test_the_options_are_elements_of_a_transfer_in_their_order_with_their_defaults() -> None:
    elements = {
        field.name: field.default
        for field in msgspec.structs.fields(Promised)
        if field.name in OTHER
    }
    options = {field.name: field.default for field in msgspec.structs.fields(RunOptions)}
    assert list(elements.items()) == list(options.items())


def test_a_frame_has_each_option_of_its_run() -> None:
    backlog = Backlog(ordered=True, cursor=0, retry_delay=lambda tries: 1.0)
    flight = Flight(backlog, own_window=(9, 999), window=None, batch_max=999)
    backlog.offer(run_with(ALL))
    (sent,) = flight.take_transfers(0.0)
    came = decode_frame(encode_frame(sent))
    assert {name: getattr(came, name) for name in OTHER} == OTHER


def test_a_part_of_a_run_has_its_options() -> None:
    assert cut_run(run_with(ALL), 2, 2).options is ALL


@pytest.mark.parametrize("name", OTHER)
def test_an_option_comes_back_from_an_outbox_file(name: str, tmp_path: Path) -> None:
    options = RunOptions(**{name: OTHER[name]})
    threads = ThreadCalls()
    file = OutboxFile(tmp_path / "outbox.db", reactor=threads)
    threads.wait(file.open())
    threads.wait(file.append([producer_run(1, 3, "s", BODIES, options)]))
    threads.wait(file.close())
    again = OutboxFile(tmp_path / "outbox.db", reactor=threads)
    (left,) = threads.wait(again.open()).runs
    threads.wait(again.close())
    assert left.options == options


def test_runs_without_options_of_their_own_share_one_value() -> None:
    assert options_of(0) is PLAIN
    assert options_of(4) is options_of(4)
    world = ClientWorld()
    gathering = world.client._gathering
    assert gathering.options(None, None) is gathering.options(None, False) is PLAIN
