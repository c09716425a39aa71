"""A node with streams behind a port, in a process that is killed: FOLDER NODE_PORT STREAMS_PORT.

With MODULE CLASS METHOD SIDE VISITS behind these it kills itself at that point, see `soak.points`.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor

from msgservice import Node
from msgservice.faces.streams import NodeStreams, serve
from tests.soak.points import arm


def main(folder: str, node_port: str, streams_port: str, *point: str) -> None:
    node = Node(
        reactor,
        folder,
        listen=[f"tcp:{node_port}:interface=127.0.0.1"],
    )

    def ready(_: Any) -> None:
        if point:
            module, owner, method, side, visits = point
            arm((module, owner, method, side), int(visits))
        serve(int(streams_port), reactor, NodeStreams(reactor, node))
        print("listens", flush=True)

    node.startService()
    node.when_ready().addCallback(ready)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
