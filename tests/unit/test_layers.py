"""The house of docs/architecture.md: imports point down, meet in no circle, and core/ is sans-IO.

Imports for types count as any other: who knows a name knows the part.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "msgservice"

# Lowest first; a module may import its own part and those of the layers before it.
LAYERS: list[tuple[str, ...]] = [
    ("errors", "limits", "output", "threads", "waiters"),
    ("message", "codecs", "interfaces", "receiver_options", "records"),
    ("core",),
    ("disk",),
    ("clock", "log", "transport", "connection"),
    ("config", "client", "receiver"),
    ("node", "faces"),
    ("tap", "cli", "web", "testing", ""),
]
# What a face may know of the service; of the node and what lies below it, nothing.
FACES_MAY_IMPORT = {
    "errors",
    "limits",
    "waiters",
    "clock",
    "codecs",
    "client",
    "receiver",
    "core.subjects",
    "core.backoff",  # how long to wait before dialling again,
    "core.framing",  # length prefixes,
    "transport.addresses",  # and what an address says: the same everywhere
    "faces",
}
# What may know a part beside it.
NEIGHBOURS = {
    ("limits", "errors"),
    ("output", "threads"),
    ("records", "message"),
    ("records", "receiver_options"),
    ("receiver_options", "message"),
    ("codecs", "interfaces"),
    ("codecs", "message"),
    ("interfaces", "records"),
    ("transport", "clock"),
}
IMPURE = ("twisted", "time", "random", "socket", "sqlite3", "apsw", "os", "secrets", "threading")
SANS_IO = ("core", "faces/callbacks/protocol")


def modules() -> dict[str, Path]:
    """Return every module of the package by its name below `msgservice`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> Iterator[str]:
    """Yield what a file imports: modules as far as they exist, with `msgservice.` before ours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("msgservice.") in MODULES
                yield inner if is_module and inner.startswith("msgservice.") else node.module


@cache
def ours(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, without `msgservice.`."""
    return {
        name.removeprefix("msgservice.")
        for name in imports_of(path)
        if name.startswith("msgservice.")
    }


def part_of(name: str) -> str:
    return name.split(".")[0]


def layer_of(part: str) -> int:
    for number, names in enumerate(LAYERS):
        if part in names:
            return number
    raise AssertionError(f"{part!r} has no place in the house: add it to LAYERS")


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_point_down(name: str) -> None:
    own = part_of(name)
    for target in ours(MODULES[name]):
        part = part_of(target)
        if part == own:
            continue
        assert layer_of(part) <= layer_of(own), f"{name} imports upwards: {target}"
        is_beside = layer_of(part) == layer_of(own) and own != ""
        assert not is_beside or (own, part) in NEIGHBOURS, f"{name} imports a sibling: {target}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("faces.")])
def test_a_face_imports_only_what_faces_may(name: str) -> None:
    for target in ours(MODULES[name]):
        assert target in FACES_MAY_IMPORT or part_of(target) in FACES_MAY_IMPORT, (
            f"{name} imports {target}"
        )


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in SANS_IO for path in (PACKAGE / folder).rglob("*.py")),
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_sans_io_parts_import_nothing_that_does_anything(path: Path) -> None:
    for name in imports_of(path):
        assert name.split(".")[0] not in IMPURE, f"{path.name} imports {name}"


def test_disk_knows_neither_log_nor_client_nor_receiver() -> None:
    known = {
        part_of(target)
        for name, path in MODULES.items()
        if part_of(name) == "disk"
        for target in ours(path)
    }
    assert known <= {"disk", "errors", "limits", "threads"}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected parts of more than one (Tarjan 1972), each sorted."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in order:
            visit(name)
    return found


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_there_is_no_circle() -> None:
    graph = {name: ours(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    assert circles(graph) == []
