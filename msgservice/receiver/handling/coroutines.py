"""Handlers that have not ended when they return: their coroutines are begun.

Generators, which nobody would run, are refused (`errors.check_runs`). A coroutine is begun without
a Deferred: many end before they ever wait.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import Any

from twisted.internet.defer import Deferred


def begin(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any] | None:
    """Run a coroutine until it waits; return the Deferred of its end, or None if it has ended.

    Raises what the coroutine raises before it waits. As with `Deferred.fromCoroutine` it has a
    context of its own. A coroutine that ends at once costs a tenth of what that would
    (bench/handling.py).
    """
    context = copy_context()
    try:
        waited = context.run(coroutine.send, None)
    except StopIteration:
        return None
    return context.run(Deferred.fromCoroutine, _go_on(coroutine, waited))


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, Any], waited: Any) -> Generator[Any, Any, Any]:
    """Pass on what a coroutine that has begun waits for, until it ends."""
    try:
        while True:
            try:
                result = yield waited
            except GeneratorExit:
                raise
            except BaseException as error:  # its to handle, whatever it is
                waited = coroutine.throw(error)
            else:
                waited = coroutine.send(result)
    except StopIteration as ended:
        return ended.value
    finally:
        coroutine.close()
