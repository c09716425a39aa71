"""The messages by which components tell each other what goes on, in Axon's class tree.

`socketShutdown` is a `producerFinished` and `serverShutdown` is a `shutdownMicroprocess`; the two
trees are unrelated. Programs test with `isinstance`, so the tree is part of the interface. The
last four of them live in `Kamaelia.IPC` in the original, and here for want of a second module.
"""

from collections.abc import Iterator
from typing import Any


class ipc:
    """Whatever is about the components themselves rather than their data."""


class producerFinished(ipc):
    """The sender will send no more; what it sent before is still to be processed."""

    def __init__(self, caller: object = None, message: object = None) -> None:
        self.caller, self.message = caller, message


class shutdownMicroprocess(ipc):
    """The receiver is asked to end."""

    def __init__(self, *microprocesses: object) -> None:
        self._microprocesses = microprocesses

    def microprocesses(self) -> tuple[object, ...]:
        """Return what the message was made with."""
        return self._microprocesses


class shutdown(ipc):
    """The same, to everything."""


class notify(ipc):
    """Something happened to `object`, says `caller`."""

    def __init__(self, caller: object, payload: Any) -> None:
        self.caller = caller
        self.object = payload


class status(ipc):
    """A state, as text."""

    def __init__(self, status: object) -> None:
        self._status = status

    def status(self) -> object:
        """Return what the message was made with."""
        return self._status


class wouldblock(ipc):
    """`caller` cannot go on now."""

    def __init__(self, caller: object) -> None:
        self.caller = caller


class reactivate(ipc):
    """`original` shall run again."""

    def __init__(self, original: object) -> None:
        self.original = original


class errorInformation(ipc):
    """Something went wrong at `caller`."""

    def __init__(self, caller: object, exception: object = None, message: object = None) -> None:
        self.caller, self.exception, self.message = caller, exception, message


class newComponent(ipc):
    """Yielded by a `main`: activate these components."""

    def __init__(self, *components: Any) -> None:
        self._components = components

    def components(self) -> tuple[Any, ...]:
        """Return the components to activate."""
        return self._components


class WaitComplete(ipc):
    """Yielded by a `main`: run this generator to its end, then go on here."""

    def __init__(self, generator: Iterator[Any]) -> None:
        self.args = (generator,)
        self.generator = generator


# --- Kamaelia.IPC ---------------------------------------------------------------------------------


class socketShutdown(producerFinished):
    """The connection is closed, by whichever side; a handler gets one, after all its data."""


class serverShutdown(shutdownMicroprocess):
    """Sent to a server's `control`: close every connection and stop listening."""


class newCSA(notify):
    """A connection was accepted; `object` is the connection."""

    def __init__(self, caller: object, CSA: Any, sock: Any = None) -> None:
        super().__init__(caller, CSA)
        self.sock = sock


class shutdownCSA(notify):
    """A connection has ended; `object` is the connection."""


def is_closing(message: object) -> bool:
    """Return whether `message` announces an end: of a producer, or of the receiver itself."""
    return isinstance(message, producerFinished | shutdownMicroprocess)
