"""A refusal as a value: what a NACK says, apart from which messages it is about, and when."""

from __future__ import annotations

import msgspec

from msgservice.core.frames import Nack
from msgservice.message import Action


class Refusal(msgspec.Struct, gc=False, frozen=True):
    """A refusal of messages: what their sender shall do, the reason for people, a code."""

    action: Action
    reason: str = ""
    code: int = 0  # of the error, for programs (`MsgServiceError.refusal_code`)
    about: str = ""  # … and whom or what it names


_ACTIONS = {action.value: action for action in Action}  # an enum's own call is six lines of Python


def refusal_in(nack: Nack) -> Refusal:
    """Return the refusal that a NACK carries."""
    return Refusal(_ACTIONS[nack.action], nack.reason, nack.code, nack.about or "")
