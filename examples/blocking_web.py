"""A web server of threads that takes orders: a request is answered when its order is on disk.

    python -m examples.blocking_web tcp:127.0.0.1:7410 8000
    curl -d '{"sku": "espresso"}' http://127.0.0.1:8000/orders

Start a node first (`msgservice node`). Whatever serves requests by threads, Flask say, calls
`client()` in the same way.
"""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from msgservice import blocking
from msgservice.errors import MsgServiceError

BODY_MAX = 64 * 1024  # bytes of an order
TIMEOUT = 5.0  # seconds that a request waits for the node


@cache
def client_of(process: int, address: str) -> blocking.Client:
    """Return the client of one process: a worker that was forked has one of its own."""
    return blocking.connect(address, name=f"shop-{process}", timeout=TIMEOUT)


class Orders(BaseHTTPRequestHandler):
    """Answers requests; a thread each."""

    address: str
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if self.path != "/orders" or not 0 < length <= BODY_MAX:
            self.answer(HTTPStatus.BAD_REQUEST, {"error": "POST an order to /orders"})
            return
        try:
            order = json.loads(self.rfile.read(length))
            receipt = client_of(os.getpid(), self.address).send("orders.new", order)
        except ValueError:
            self.answer(HTTPStatus.BAD_REQUEST, {"error": "an order is JSON"})
        except TimeoutError:
            # It may be stored all the same: who asks again with an idempotency key orders once.
            self.answer(HTTPStatus.GATEWAY_TIMEOUT, {"error": "the order may have been taken"})
        except MsgServiceError as error:
            self.answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)})
        else:
            self.answer(HTTPStatus.CREATED, {"position": receipt.position})

    def answer(self, status: HTTPStatus, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(address: str, port: int) -> None:
    Orders.address = address
    with ThreadingHTTPServer(("127.0.0.1", port), Orders) as server:
        print(f"http://127.0.0.1:{server.server_port}/orders", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("bye")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdigit():
        sys.exit("usage: python -m examples.blocking_web tcp:127.0.0.1:7410 8000")
    main(sys.argv[1], int(sys.argv[2]))
