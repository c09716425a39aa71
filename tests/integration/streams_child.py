"""A node with streams behind a port, in a process that is killed: FOLDER NODE_PORT STREAMS_PORT."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor

from msgservice import Node
from msgservice.faces.streams import NodeStreams, serve


def main(folder: str, node_port: str, streams_port: str) -> None:
    node = Node(
        reactor,
        folder,
        listen=[f"tcp:{node_port}:interface=127.0.0.1"],
    )

    def ready(_: Any) -> None:
        serve(int(streams_port), reactor, NodeStreams(reactor, node))
        print("listens", flush=True)

    node.startService()
    node.when_ready().addCallback(ready)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
