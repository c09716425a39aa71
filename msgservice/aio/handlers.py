"""Handlers that are coroutine functions of asyncio, as a receiver or responder calls them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from types import CoroutineType
from typing import Any

from msgservice.aio.loop import deferred_of
from msgservice.errors import check_runs


def on_loop(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return the handler, whose coroutines are tasks of the running loop and its futures awaited.

    Raises `TypeError` for one that could not run.
    """
    if not callable(handler):
        raise TypeError(f"handler must be callable, not {handler!r}")
    check_runs(handler)

    @wraps(handler)
    def call(*args: Any) -> Any:
        result = handler(*args)
        if isinstance(result, CoroutineType):
            return deferred_of(asyncio.get_running_loop().create_task(result))
        if isinstance(result, asyncio.Future):
            return deferred_of(result)
        return result

    return call
