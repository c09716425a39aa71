"""Docstrings say something where they stand, and refer only to interfaces that say it.

`See X.` is for a method whose promise is written at the interface or base that it implements. Any
other docstring has a first line of its own, since that is what `help` and `grep` find.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from zope.interface import Interface

import msgservice

ROOT = Path(msgservice.__file__).parent
MODULES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in ROOT.rglob("*.py")
}

NO_NOUN = re.compile(r"(What|Who|Whom|Whose|Its|It)\b").match
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, Definition]]:
    """Return (class that it stands in, definition) for all below `tree`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            yield owner, node
        yield from definitions(node, node.name if isinstance(node, ast.ClassDef) else owner)


def promises() -> dict[str, set[str]]:
    """Return, for each class of the product, the members that have a text of their own."""
    found: dict[str, set[str]] = {}
    for tree in MODULES.values():
        for owner, node in definitions(tree):
            text = ast.get_docstring(node) or ""
            if owner and text and not text.startswith("See "):
                found.setdefault(owner, set()).add(node.name)
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(attributes(node))
    return found


def attributes(definition: ast.ClassDef) -> Iterator[str]:
    """Return the names that an interface documents with `Attribute("...")`."""
    for node in definition.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=made))):
                if made == "Attribute":
                    yield name


PROMISES = promises()


def is_promised(reference: str, member: str) -> bool:
    """Whether the class that a docstring names has a text for this member, or is Twisted's."""
    name = reference.removesuffix(f".{member}").rpartition(".")[2]
    if member in PROMISES.get(name, ()):
        return True
    for module in ("twisted.internet.interfaces", "twisted.application.service"):
        interface = getattr(importlib.import_module(module), name, None)
        if isinstance(interface, type(Interface)):
            return member in interface.names(all=True)
    return False


def is_a_reference(owner: str, node: Definition, text: str) -> bool:
    """Whether `See X` stands on a method, and X says what the method promises."""
    named = re.match(r"See `([\w.]+)`", text)
    return bool(owner) and named is not None and is_promised(named[1], node.name)


@pytest.mark.parametrize("module", MODULES)
def test_a_docstring_that_refers_stands_on_a_method_of_the_interface_it_names(module: str) -> None:
    assert [] == [
        f"{owner}.{node.name}: {text}".splitlines()[0]
        for owner, node in definitions(MODULES[module])
        if (text := ast.get_docstring(node) or "").startswith("See ")
        and not is_a_reference(owner, node, text)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_no_docstring_sends_its_reader_to_the_module(module: str) -> None:
    assert [] == [
        node.name
        for _, node in definitions(MODULES[module])
        if re.match("see the module", ast.get_docstring(node) or "", re.IGNORECASE)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_a_docstring_begins_with_a_noun_of_the_field(module: str) -> None:
    """`grep` for what something is finds the sentence that says it."""
    nodes: list[ast.Module | Definition] = [MODULES[module]]
    nodes += [node for _, node in definitions(MODULES[module])]
    texts = [ast.get_docstring(node) or "" for node in nodes]
    assert [] == [text.splitlines()[0] for text in texts if NO_NOUN(text)]


@pytest.mark.parametrize(
    ("reference", "member", "expected"),
    [
        ("IChannel", "send", True),
        ("IChannel", "unsent", True),
        ("ILog.open", "open", True),
        ("connection.Owner", "opened", True),
        ("IReactorTime", "seconds", True),
        ("IService", "startService", True),
        ("IChannel", "what_no_channel_has", False),
        ("Unheard", "send", False),
        ("os", "open", False),
    ],
)
def test_what_a_docstring_may_refer_to(reference: str, member: str, expected: bool) -> None:
    assert expected is is_promised(reference, member)
