"""Components with mailboxes, under the names that Axon gave them.

`from msgservice.faces import axon as Axon` gives what programs written for Kamaelia's Axon import:
`Axon.Component.component`, `Axon.AdaptiveCommsComponent.AdaptiveCommsComponent`, `Axon.Ipc` and
`Axon.AxonExceptions`. The names are the original's; the code is ours and runs on Twisted:

* `mailbox`: a bounded queue between two components;
* `process`: one component's `main`, resumed step by step;
* `scheduler`: who runs next, and the pauses of components that wait.

Nothing here knows of sockets: that is `msgservice.faces.chassis.server`.
"""

from msgservice.faces.axon import AdaptiveCommsComponent, AxonExceptions, Component, Ipc

__all__ = ["AdaptiveCommsComponent", "AxonExceptions", "Component", "Ipc"]
