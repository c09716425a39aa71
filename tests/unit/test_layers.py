"""The house of docs/architecture.md: imports only point down, and core/ stays sans-IO."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "msgservice"

# Lowest first; a module may import its own layer and those before it.
LAYERS: list[tuple[str, ...]] = [
    ("errors", "limits", "output"),
    ("message", "codecs", "interfaces", "records"),
    ("core",),
    ("log", "transport", "clock", "connection"),
    ("config", "config_addresses", "config_reader", "config_toml"),
    ("receipt", "client_handed"),
    ("client_acked", "client_disk", "client_gather", "client_requests", "client_runs"),
    ("client_hop",),
    ("client_flow",),
    ("client_life",),
    ("received", "handling"),
    ("client", "receiver", "attachment", "node", "faces"),
    ("client_connect",),
    ("tap", "cli", "web", "testing", ""),
]
IMPURE = ("twisted", "time", "random", "socket", "sqlite3", "apsw", "os", "secrets", "threading")
# The log and the transports know nothing of each other.
SIBLINGS = {("log", "transport"), ("transport", "log")}


def layer_of(part: str) -> int:
    for number, names in enumerate(LAYERS):
        if part in names:
            return number
    raise AssertionError(f"{part!r} has no place in the house: add it to LAYERS")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py").removeprefix("__init__")


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_point_down(path: Path) -> None:
    own = part_of(path)
    for name in imports_of(path):
        root, _, rest = name.partition(".")
        if root != "msgservice" or not rest:
            continue
        part = rest.split(".")[0]
        assert layer_of(part) <= layer_of(own), f"{path.name} imports upwards: {name}"
        assert (own, part) not in SIBLINGS, f"{path.name} imports its sibling: {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name)
def test_core_is_sans_io(path: Path) -> None:
    for name in imports_of(path):
        assert name.split(".")[0] not in IMPURE, f"{path.name} imports {name}"
