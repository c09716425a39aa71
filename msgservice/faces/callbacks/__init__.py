"""The callback protocol on Twisted: `Connection`, and what its documentation names.

The names are imported when they are first used: `protocol`, which lies below, is shared with a
face that imports no Twisted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msgservice.faces.callbacks.connection import Connection, FileSent

__all__ = ["Connection", "FileSent"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("msgservice.faces.callbacks.connection"), name)
