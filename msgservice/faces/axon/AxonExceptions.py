"""Exceptions that mailboxes raise; `Closed` is ours, the other names are Axon's."""

from msgservice.errors import MsgServiceError


class AxonException(MsgServiceError):
    """Anything that the component system raises on purpose."""


class noSpaceInBox(AxonException):
    """A message for a box whose size was set with `setInboxSize` and is reached."""

    def __init__(self, box: str, held: int, held_max: int) -> None:
        super().__init__(f"box {box!r} holds {held} messages, at most {held_max} allowed")
        self.box, self.held, self.held_max = box, held, held_max


class BoxAlreadyLinkedToDestination(AxonException):
    """A box that is linked already, or a link that would lead back to its own beginning."""

    def __init__(self, box: str, reason: str) -> None:
        super().__init__(f"box {box!r} cannot be linked: {reason}")
        self.box, self.reason = box, reason


class BadComponent(AxonException):
    """Something that is not a component, or lacks the boxes that it needs in its place."""

    def __init__(self, what: object, reason: str) -> None:
        super().__init__(f"{what!r}: {reason}")
        self.what, self.reason = what, reason


class Closed(AxonException):
    """`await self.recv(...)` will get nothing more: the box is empty and the end was announced.

    `message` is the `producerFinished` or `shutdownMicroprocess` that stood in `control`, and that
    this takes. A coroutine that lets it pass ends in the ordinary way.
    """

    def __init__(self, box: str, message: object) -> None:
        super().__init__(f"nothing more for {box!r}: {type(message).__name__}")
        self.box, self.message = box, message
