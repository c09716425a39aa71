"""The house of docs/architecture.md: imports point down, meet in no circle, and core/ is sans-IO.

Imports for types count as any other: who knows a name knows the part.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "msgservice"

# Lowest first; a module may import its own part and those of the layers before it.
LAYERS: list[tuple[str, ...]] = [
    (
        "arguments",
        "credentials",
        "errors",
        "installation",
        "limits",
        "output",
        "lookups",
        "threads",
        "waiters",
    ),
    (
        "message",
        "codecs",
        "interfaces",
        "receiver_options",
        "stream_limits",
        "records",
        "administration",
    ),
    ("core",),
    ("disk", "clock", "log_lines"),
    ("unlogged",),
    ("identity",),
    ("log", "transport", "connection"),
    ("config", "client", "receiver", "webhooks"),
    ("node", "faces", "pb", "recount", "aio", "blocking", "outbox"),
    ("tap", "cli", "testing", ""),
    ("__main__",),
]
# What a face may know of the service; of the node and what lies below it, nothing.
FACES_MAY_IMPORT = {
    "arguments",
    "stream_limits",
    "errors",
    "waiters",
    "clock",
    "codecs",
    "client.client",
    "client.receipt",
    "receiver.receiver",
    "receiver.received",
    "core.subjects",
    "core.backoff",  # how long to wait before dialling again,
    "core.framing",  # length prefixes,
    "transport.addresses",  # and what an address says: the same everywhere
    "faces",
}
# What may know a part beside it.
NEIGHBOURS = {
    ("cli", "tap"),  # one command runs a node
    ("limits", "errors"),
    ("lookups", "threads"),  # each has one
    ("output", "threads"),
    ("records", "message"),
    ("records", "receiver_options"),
    ("receiver_options", "message"),
    ("codecs", "interfaces"),
    ("codecs", "message"),
    ("interfaces", "records"),
    ("administration", "receiver_options"),
    ("administration", "records"),
    ("webhooks", "receiver"),  # each is a receiver of this process
    ("config", "webhooks"),  # of which it has the options
}
IMPURE = ("twisted", "time", "random", "socket", "sqlite3", "apsw", "os", "secrets", "threading")
DOTTED = re.compile(r"msgservice(\.\w+)+").fullmatch
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


def imports_in(source: str, folder: str) -> Iterator[str]:
    """Yield what a source in a folder of the package imports, with `msgservice` before ours.

    Modules as far as they exist. A string that is the name of a module, or of something in one,
    counts too: an annotation, or what is given to `import_module`. Other annotations in strings
    name what is imported, or they are ruff's F821.
    """
    here = ["msgservice", *folder.split("/")] if folder else ["msgservice"]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (module_of(f"{module}.{alias.name}", module) for alias in node.names)
        elif isinstance(node, ast.Constant):
            text = node.value if isinstance(node.value, str) else ""
            if DOTTED(text):
                yield module_of(text, text.rpartition(".")[0])


def module_of(name: str, module: str) -> str:
    """Return `name` where it is a module of ours, else the module that it stands in."""
    is_module = name.startswith("msgservice.") and name.removeprefix("msgservice.") in MODULES
    return name if is_module else module


def imports_of(path: Path) -> Iterator[str]:
    """Yield what a file of the package imports."""
    folder = path.parent.relative_to(PACKAGE).as_posix().removeprefix(".")
    return imports_in(path.read_text(), folder)


@cache
def ours(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, without `msgservice.`.

    The package itself, whose names are those of all layers, is "".
    """
    return {
        name.removeprefix("msgservice").removeprefix(".")
        for name in imports_of(path)
        if name == "msgservice" or name.startswith("msgservice.")
    }


def part_of(name: str) -> str:
    return name.split(".")[0]


def layer_of(part: str) -> int:
    for number, names in enumerate(LAYERS):
        if part in names:
            return number
    raise AssertionError(f"{part!r} has no place in the house: add it to LAYERS")


@pytest.mark.parametrize(
    ("source", "folder", "expected"),
    [
        ("from msgservice.node.peer import Peer", "core", "msgservice.node.peer"),
        ("from msgservice.node import peer", "core", "msgservice.node.peer"),
        ("import msgservice.node.peer as p", "core", "msgservice.node.peer"),
        ("from .dispatch import Dispatch", "node", "msgservice.node.dispatch"),
        ("from . import dispatch", "node", "msgservice.node.dispatch"),
        ("from ..node.peer import Peer", "core", "msgservice.node.peer"),
        ("from ...node import peer", "core/datagram", "msgservice.node.peer"),
        ("from .. import Node", "core", "msgservice"),
        ("from msgservice import Node", "faces/axon", "msgservice"),
        ("import msgservice", "core", "msgservice"),
        ("if TYPE_CHECKING:\n from msgservice import Node", "core", "msgservice"),
        ("def f():\n from msgservice import Node", "core", "msgservice"),
        ("def f(p: 'msgservice.node.peer.Peer'): ...", "core", "msgservice.node.peer"),
        ("p: 'msgservice.Node'", "core", "msgservice"),
        ("import_module('msgservice.node.peer')", "core", "msgservice.node.peer"),
        ("from os import path", "core", "os"),
    ],
)
def test_an_import_is_seen_however_it_is_written(source: str, folder: str, expected: str) -> None:
    assert [expected] == list(imports_in(source, folder))


@pytest.mark.parametrize("name", ["core.flight", "faces.gateway", "log.store", "receiver.ways"])
def test_the_package_itself_is_above_all(name: str) -> None:
    with pytest.raises(AssertionError, match="imports upwards: \\(the package\\)"):
        check_down(name, {""})


def check_down(name: str, targets: set[str]) -> None:
    """Fail where one of these modules is not below the one of this name."""
    own = part_of(name)
    for target in targets:
        part = part_of(target)
        if part == own:
            continue
        shown = target or "(the package)"
        assert layer_of(part) <= layer_of(own), f"{name} imports upwards: {shown}"
        is_beside = layer_of(part) == layer_of(own) and own != ""
        assert not is_beside or (own, part) in NEIGHBOURS, f"{name} imports a sibling: {shown}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_point_down(name: str) -> None:
    check_down(name, ours(MODULES[name]))


def may_import(face: str, target: str) -> bool:
    return part_of(face) == "faces" and bool({target, part_of(target)} & FACES_MAY_IMPORT)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("faces.")])
def test_a_face_imports_only_what_faces_may(name: str) -> None:
    assert [] == [target for target in ours(MODULES[name]) if not may_import(name, target)]


@pytest.mark.parametrize("target", ["", "client.hop", "receiver.ways", "node.node", "log.sqlite"])
def test_a_face_may_not_import_everything(target: str) -> None:
    assert not may_import("faces.gateway", target)


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
