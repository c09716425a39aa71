"""The page about HTTP has the path of each operation, and the status of each error."""

from __future__ import annotations

import re
from pathlib import Path

from msgservice.administration import OPERATIONS
from msgservice.node.web.operations import PLACES, place_of
from msgservice.node.web.problems import STATUSES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "http.md").read_text()


def test_every_operation_is_in_the_table_with_its_path() -> None:
    said = re.findall(r"^\| `([a-z._]+)` \| `([A-Z]+ /v1/\S*)` \|$", PAGE, re.MULTILINE)
    places = {operation.name: " ".join(place_of(operation)) for operation in OPERATIONS}
    assert places == dict(said)
    assert PLACES.keys() <= places.keys(), "a place of no operation"


def test_every_status_is_in_the_table() -> None:
    said = {int(status) for status in re.findall(r"^\| (\d{3}) \|", PAGE, re.MULTILINE)}
    assert {*STATUSES.values(), 404, 405, 408, 413, 415, 421} == said
