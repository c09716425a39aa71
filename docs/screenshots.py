"""The pictures of the page: a node with some trouble, in Chromium, light, dark and on a phone.

    make screenshots

Writes `docs/images/page-light.png`, `page-dark.png` and `page-phone.png`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
BIN = Path(sys.executable).parent
WIDE = {"width": 1200, "height": 900}
# Messages, one lot after the other.
FED = (300, 900, 2_400, 1_200, 3_000, 600, 1_800, 2_700, 1_500, 900)
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}
CONFIG = """
[node]
name = "central"
data = "data"
[listen]
tcp = "tcp:0"
web = "tcp:0:interface=127.0.0.1"
"""
RECEIVER = """
import sys
from twisted.internet import reactor
from msgservice import Receiver, Reject

def handle(message):
    if message.headers.get("customer") == "unknown":
        raise Reject("no such customer")

for name in sys.argv[2:]:
    Receiver(reactor, name=name, handler=handle).attach(sys.argv[1], subjects=["orders.>"])
print("attached", flush=True)
reactor.run()
"""


@contextmanager
def running(*words: str | Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Give a program of ours, ended behind."""
    program = subprocess.Popen(
        [str(word) for word in words], cwd=cwd, stdout=subprocess.PIPE, text=True
    )
    try:
        yield program
    finally:
        program.terminate()
        program.wait()


def said(program: subprocess.Popen[str], pattern: str) -> str:
    """Return the group of the next line that matches."""
    assert program.stdout is not None
    for line in program.stdout:
        if match := re.search(pattern, line):
            return match[1]
    raise RuntimeError(f"ended without {pattern!r}")


def main() -> None:
    """Make the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "node.toml").write_text(CONFIG)
        (folder / "receiver.py").write_text(RECEIVER)
        node = (BIN / "twist", "--log-format=text", "msgservice", "--config", "node.toml")
        with running(*node, cwd=folder) as central:
            address = said(central, r"listening on (tcp:\S+)")
            url = said(central, r"listening on (http://\S+)")

            def msgservice(*words: str, stdin: str = "") -> str:
                command = [BIN / "msgservice", *words, "--node", address]
                done = subprocess.run(
                    command, input=stdin, capture_output=True, text=True, check=True
                )
                return done.stdout

            for receiver in ("archive", "billing", "mail", "stock"):
                msgservice("receivers", "add", receiver, "orders.>")
            attached = (sys.executable, "receiver.py", address, "archive", "billing", "stock")
            with running(*attached, cwd=folder) as receivers:
                said(receivers, "(attached)")
                lines = "".join(f"{json.dumps({'id': number})}\n" for number in range(5_000))
                msgservice("send", "orders.new", stdin=lines)
                msgservice("send", "orders.eu.new", "{}", "--header", "customer=unknown")
                msgservice("send", "orders.new", "{}", "--id", "o-17")

                def feed(count: int) -> None:
                    lines = "".join(f"{json.dumps({'id': number})}\n" for number in range(count))
                    msgservice("send", "orders.new", stdin=lines)

                shoot(url, feed)


def shoot(url: str, feed: Callable[[int], None]) -> None:
    """Take the pictures of the page, once messages have come for a while, for its plots."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        pages = {name: browser.new_page(**how) for name, how in VIEWS.items()}
        for page in pages.values():
            page.goto(url)
            page.get_by_text("mail is away").wait_for()
        for count in FED:
            feed(count)
        for name, page in pages.items():
            page.get_by_text("mail is away").wait_for()
            page.get_by_text("has a dead letter").first.wait_for()
            page.fill("#message-id", "o-17")
            page.press("#message-id", "Enter")
            page.locator("ol.way li.acknowledged").nth(1).wait_for()
            page.evaluate("document.activeElement.blur()")
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=IMAGES / f"page-{name}.png", full_page=name != "phone")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
