"""The page at `/` and `/metrics`: the node as people and monitors are shown it.

The files are those of the folder `page`, as they are: there is no build step. They show nothing by
themselves, so they are open to all; what they ask for, they ask as who is at the browser.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from msgservice.administration import OBSERVE
from msgservice.limits import Limits
from msgservice.node.metrics import CONTENT_TYPE, metrics_of
from msgservice.node.observe import Observer
from msgservice.node.web.answers import Answer, Ask
from msgservice.node.web.paths import PathAt

KINDS = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
# Everything comes from here, and no script or style stands in a page or an attribute.
POLICY = (
    b"Content-Security-Policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    b" img-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
)


def page_paths() -> list[PathAt]:
    """Return the paths of the page: `/`, and each of its files below `/page/`."""
    folder = resources.files(__package__) / "page"
    files = {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name.rpartition(".")[2] in KINDS
    }
    return [
        _file("/" if name == "index.html" else f"/page/{name}", name, files[name])
        for name in sorted(files)
    ]


def _file(path: str, name: str, content: bytes) -> PathAt:
    answer = Answer(200, content, KINDS[name.rpartition(".")[2]], (POLICY,))

    def served(_: Ask) -> Answer:
        return answer

    sentence = "The page of the node." if path == "/" else f"{name}, which the page needs."
    return PathAt(method="GET", path=path, answer=served, sentence=sentence, is_open=True)


def metrics_paths(
    observer: Observer, *, wall: Callable[[], int], clock: IReactorTime, limits: Limits
) -> list[PathAt]:
    """Return the path of the metrics. Whoever may ask `$node.observe` may have them."""

    async def answer(ask: Ask) -> Answer:
        ask.only()
        if not ask.who.allows("request", OBSERVE.right):
            raise ask.who.refusal(OBSERVE.right)
        seen = await observer.look()
        pieces = []
        for piece in metrics_of(seen, wall(), limits.metrics_receivers):
            pieces.append(piece)
            await _next_turn(clock)
        return Answer(200, b"".join(pieces), CONTENT_TYPE.encode())

    return [
        PathAt(
            method="GET",
            path="/metrics",
            answer=answer,
            sentence="The metrics of the node and its receivers, in Prometheus' text format.",
        )
    ]


def _next_turn(clock: IReactorTime) -> Deferred[None]:
    turn: Deferred[None] = Deferred()
    clock.callLater(0, turn.callback, None)
    return turn
