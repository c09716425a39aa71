"""A component whose boxes come and go while it runs, and that remembers what each is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from msgservice.faces.axon.Component import component
from msgservice.faces.axon.mailbox import Mailbox, Outbox


class AdaptiveCommsComponent(component):
    """Adds boxes under names that are free, and keeps resources by box."""

    def __init__(self, *args: Any, **argd: Any) -> None:
        self._resource_of_box: dict[str, Any] = {}
        self._boxes_of_resource: dict[Any, tuple[Any, Any, Any]] = {}
        super().__init__(*args, **argd)

    def addInbox(self, name: str = "inbox") -> str:
        """Add an inbox and return its name: `name`, or that with a number if it is taken."""
        name = _free_name(name, self.inboxes)
        self.inboxes[name] = Mailbox(name, self._process)
        return name

    def addOutbox(self, name: str = "outbox") -> str:
        """Add an outbox and return its name: `name`, or that with a number if it is taken."""
        name = _free_name(name, self.outboxes)
        self.outboxes[name] = Outbox(name, self._process)
        return name

    def deleteInbox(self, name: str) -> None:
        """Remove an inbox and what lies in it; `KeyError` if there is none of that name."""
        self.inboxes.pop(name).clear()

    def deleteOutbox(self, name: str) -> None:
        """Remove an outbox; `KeyError` if there is none of that name."""
        del self.outboxes[name]

    def trackResource(self, resource: Any, inbox: str) -> None:
        """Remember that `inbox` is about `resource`; `KeyError` if there is no such inbox."""
        self.inboxes[inbox]
        self._resource_of_box[inbox] = resource

    def retrieveTrackedResource(self, inbox: str) -> Any:
        """Return what `inbox` is about; `KeyError` if nothing is remembered."""
        return self._resource_of_box[inbox]

    def trackResourceInformation(
        self, resource: Any, inboxes: Iterable[str], outboxes: Iterable[str], information: Any
    ) -> None:
        """Remember which boxes are about `resource`, and something more about it."""
        inboxes, outboxes = list(inboxes), list(outboxes)
        for name in inboxes:
            self.trackResource(resource, name)
        for name in outboxes:
            self.outboxes[name]
        self._boxes_of_resource[resource] = (inboxes, outboxes, information)

    def retrieveTrackedResourceInformation(self, resource: Any) -> tuple[Any, Any, Any]:
        """Return (inboxes, outboxes, information); `KeyError` if nothing is remembered."""
        return self._boxes_of_resource[resource]

    def ceaseTrackingResource(self, resource: Any) -> None:
        """Forget `resource` and what was remembered with it."""
        self._boxes_of_resource.pop(resource, None)
        for name in [n for n, r in self._resource_of_box.items() if r is resource]:
            del self._resource_of_box[name]


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    if name not in taken:
        return name
    return next(free for n in count(2) if (free := f"{name}{n}") not in taken)
