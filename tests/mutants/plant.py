"""Planted bugs: one function of the product is compiled anew with a small change, in this process.

What refers to the function keeps referring to it: its code is replaced, not its name.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import textwrap
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ByMachine:
    """A model machine must break with one of these signs, within so many seeds."""

    machine: str
    signs: tuple[str, ...]
    seeds: int = 1500


@dataclass(frozen=True, kw_only=True)
class BySwarm:
    """The swarm must find it by one of these signs, within so many seeds with such an operation."""

    operation: str
    signs: tuple[str, ...]
    seeds: int = 100


@dataclass(frozen=True, kw_only=True)
class ByTest:
    """These tests must fail, and `sign` be the name of one that does."""

    path: str
    sign: str


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A bug: `old` becomes `new` in the function `at`, `module:qualified.name`."""

    name: str
    at: str
    old: str
    new: str
    catcher: ByMachine | BySwarm | ByTest


class DoesNotFit(Exception):
    """The function is not what the mutant was made for: it needs another one."""


def function_at(place: str) -> FunctionType:
    """Return the function that a place names; of a property, what reads it."""
    module, _, qualified = place.partition(":")
    found: Any = import_module(module)
    for part in qualified.split("."):
        found = inspect.getattr_static(found, part)
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    if not isinstance(found, FunctionType):
        raise DoesNotFit(f"{place} is no function")
    return found


def compiled(mutant: Mutant) -> tuple[FunctionType, FunctionType]:
    """Return the function, and one with the bug."""
    try:
        function = function_at(mutant.at)
    except (AttributeError, ImportError) as error:
        raise DoesNotFit(f"{mutant.name}: {error}") from None
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(mutant.old) != 1:
        times = source.count(mutant.old)
        raise DoesNotFit(f"{mutant.name}: {mutant.old!r} is {times} times in {mutant.at}")
    tree = ast.parse(source.replace(mutant.old, mutant.new))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    definition.decorator_list = []
    flags = __future__.annotations.compiler_flag
    code = compile(tree, f"<mutant {mutant.name}>", "exec", flags, dont_inherit=True)
    made: dict[str, Any] = {}
    exec(code, function.__globals__, made)
    return function, made[definition.name]


def plant(mutant: Mutant) -> None:
    """Put the bug into this process."""
    function, made = compiled(mutant)
    function.__code__ = made.__code__
