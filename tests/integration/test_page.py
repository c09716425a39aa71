"""The page of a real node in a real Chromium: what is shown, clicked, read aloud, and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from tests.integration.command import Command
from tests.integration.daemon import PATIENCE, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"),
        reason="no Chromium: apt-get install chromium, or make browser as root",
    ),
    pytest.mark.timeout(600),
]
MS = PATIENCE * 500
ON_TOP = """text => [...document.querySelectorAll("[role=status]")].some(part => {
  const { left, top, width, height } = part.getBoundingClientRect();
  const shown = document.elementFromPoint(left + width / 2, top + height / 2);
  return part.textContent.startsWith(text) && part.contains(shown);
})"""

REJECTING = """
import sys
from twisted.internet import reactor
from msgservice import Receiver, Reject

def handle(message):
    if not message.replay:
        raise Reject("no such customer")

receiver = Receiver(reactor, name="billing", handler=handle)
receiver.attach(sys.argv[1], subjects=["orders.>"])
print("attached", flush=True)
reactor.run()
"""


@dataclass(frozen=True)
class Shown:
    """A node, its command line, and its page."""

    url: str
    msgservice: Command
    page: Any

    def sees(self, text: str) -> None:
        """Wait until this text is to be seen."""
        self.page.get_by_text(text).first.wait_for(timeout=MS)

    def has_on_top(self, text: str) -> None:
        """Wait until a status says this, in view and with nothing over it."""
        self.page.wait_for_function(ON_TOP, arg=text, timeout=MS)

    def row(self, name: str) -> Any:
        return self.page.locator("#rows tr", has_text=name)

    def plotted(self, name: str, wanted: Callable[[list[float]], bool]) -> None:
        """Wait until the values of a receiver's plot are such: in parts of it, from below."""
        line = self.row(name).locator("polyline")
        until = time.monotonic() + MS / 1000
        while True:
            points = (line.get_attribute("points", timeout=MS) or "").split()
            if wanted([19 - float(point.split(",")[1]) for point in points]):
                return
            assert time.monotonic() < until, points
            self.page.wait_for_timeout(100)

    def click(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click(timeout=MS)


@contextmanager
def browser_of() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def node_of(folder: Path, more: str = "") -> Iterator[tuple[str, Command]]:
    (folder / "node.toml").write_text(
        '[node]\ndata = "data"\n[listen]\ntcp = "tcp:0"\nweb = "tcp:0:interface=127.0.0.1"\n' + more
    )
    words = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*words, cwd=folder) as daemon:
        port = daemon.ports()[0]
        url = daemon.wait_for(r"listening on (http://\S+)")[1]
        yield url, Command(f"tcp:127.0.0.1:{port}", folder)


@contextmanager
def shown_of(folder: Path, *, more: str = "", **how: Any) -> Iterator[Shown]:
    with node_of(folder, more) as (url, msgservice), browser_of() as browser:
        page = browser.new_page(**how)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
        page.goto(url)
        yield Shown(url, msgservice, page)
        assert wrong == []


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    with shown_of(tmp_path) as found:
        yield found


def test_what_happens_while_the_page_is_open_shows_up(shown: Shown, tmp_path: Path) -> None:
    shown.sees("None: every message gets where it is meant to.")
    assert shown.msgservice("receivers", "add", "billing", "orders.>").code == 0
    shown.row("billing").wait_for(timeout=MS)
    assert shown.msgservice("send", "orders.new", "x", "--id", "o-1").code == 0
    shown.sees("billing is away. 1 message waits for it.")
    (tmp_path / "rejecting.py").write_text(REJECTING)
    words = ("python", "rejecting.py", shown.msgservice.node)
    with running(*words, cwd=tmp_path) as receiver:
        receiver.wait_for("attached")
        shown.page.locator("#rows .up").wait_for(timeout=MS)
        shown.sees("billing has a dead letter")
    shown.page.locator("#rows .away").wait_for(timeout=MS)  # it was killed
    shown.page.fill("#message-id", "o-1")
    shown.page.press("#message-id", "Enter")
    shown.page.locator("ol.way li.dead", has_text="no such customer").wait_for(timeout=MS)


def test_a_dead_letter_is_sent_again_by_clicking(shown: Shown, tmp_path: Path) -> None:
    (tmp_path / "rejecting.py").write_text(REJECTING)
    words = ("python", "rejecting.py", shown.msgservice.node)
    with running(*words, cwd=tmp_path) as receiver:
        receiver.wait_for("attached")
        shown.row("billing").wait_for(timeout=MS)
        shown.plotted("billing", lambda heights: bool(heights))
        assert shown.msgservice("send", "orders.new", "x", "--wait").code == 1
        # What has come and gone between two values is in the next.
        shown.plotted("billing", lambda heights: max(heights) > 0)
        shown.click("Look at billing")
        shown.sees("no such customer")
        shown.click("Send all again")
        shown.sees("1 dead letter, ")
        assert shown.page.locator("#act-command").inner_text() == (
            "msgservice dead requeue billing --all"
        )
        assert len(shown.msgservice.data("dead", "list", "billing")["dead"]) == 1  # only shown
        shown.click("Do it")
        shown.sees("1 dead letter of billing sent again.")
        shown.sees("None: every message gets where it is meant to.")
    assert shown.msgservice.data("dead", "list", "billing")["dead"] == []


def test_what_is_left_is_left(shown: Shown) -> None:
    shown.msgservice("receivers", "add", "billing", "orders.>")
    shown.msgservice("send", "orders.new", "x")
    shown.row("billing").get_by_role("button").click(timeout=MS)
    shown.click("Cancel what waits")
    shown.sees("1 message, ")
    shown.click("Leave it")
    assert shown.msgservice.receiver("billing")["queued"] == 1
    shown.click("Pause")
    shown.sees("Nothing is sent to it until it is resumed.")
    shown.click("Do it")
    shown.sees("billing is paused.")
    assert shown.msgservice.receiver("billing")["paused"]


def test_what_was_acknowledged_is_sent_again_from_where_one_says(
    shown: Shown, tmp_path: Path
) -> None:
    taking = REJECTING.replace('raise Reject("no such customer")', 'print("took", flush=True)')
    (tmp_path / "taking.py").write_text(taking.replace("if not message.replay:", "if True:"))
    with running("python", "taking.py", shown.msgservice.node, cwd=tmp_path) as receiver:
        receiver.wait_for("attached")
        for id_ in ("o-1", "o-2", "o-3"):
            assert shown.msgservice("send", "orders.new", "x", "--id", id_, "--wait").code == 0
        shown.click("billing")
        shown.page.fill("#rewind-from", "o-2")
        shown.click("Rewind")
        shown.sees("2 messages, as copies that say so, from o-2 on.")
        assert shown.page.locator("#act-command").inner_text() == (
            "msgservice rewind billing --from o-2"
        )
        shown.click("Do it")
        shown.sees("billing is sent again what it has acknowledged.")
        for _ in range(5):
            receiver.wait_for("took")


def test_a_webhook_is_sent_a_test_by_clicking(shown: Shown) -> None:
    address = "http://localhost:1/"
    shown.msgservice("receivers", "add", "hook", "a.>", "--address", address)
    shown.msgservice("receivers", "add", "billing", "b.>")
    shown.click("billing")
    shown.sees("Nothing waits.")
    assert shown.page.get_by_role("button", name="Send a test").count() == 0
    assert shown.page.get_by_role("button", name="Save body").count() == 0
    shown.click("Close")
    shown.click("hook")
    shown.click("Send a test")
    shown.sees("One call to its address")
    shown.click("Do it")
    shown.sees("is no address that this node may dial, unless networks of [webhook] has it")
    shown.sees("Not taken: ")


def test_what_an_act_does_is_said_where_one_looks(tmp_path: Path) -> None:
    answer = Event()

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            answer.wait(MS / 1000)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    more = '[webhook]\nnetworks = ["127.0.0.0/8"]\n'
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as endpoint,
        shown_of(tmp_path, more=more, viewport={"width": 390, "height": 844}) as shown,
    ):
        Thread(target=endpoint.serve_forever, daemon=True).start()
        try:
            address = f"http://127.0.0.1:{endpoint.server_port}/"
            shown.msgservice("receivers", "add", "hook", "a.>", "--address", address)
            shown.click("hook")
            shown.click("Send a test")
            shown.sees("One call to its address")
            shown.click("Do it")
            shown.has_on_top("Send a test to hook …")
            answer.set()
            shown.has_on_top("hook has taken the test: 204 after")
            shown.click("Pause")
            shown.sees("Nothing is sent to it until it is resumed.")
            shown.click("Do it")
            shown.page.locator("#receiver:not([open])").wait_for(timeout=MS, state="attached")
            shown.page.evaluate("scrollTo(0, document.body.scrollHeight)")
            shown.has_on_top("hook is paused.")
        finally:
            answer.set()
            endpoint.shutdown()


def test_a_body_is_saved_where_the_node_allows_it(tmp_path: Path) -> None:
    with shown_of(tmp_path, more="[web]\nbodies = true\n") as shown:
        assert shown.msgservice("receivers", "add", "billing", "orders.>").code == 0
        assert shown.msgservice("send", "orders.new", "<script>1</script>").code == 0
        shown.click("billing")
        with shown.page.expect_download(timeout=MS) as saved:
            shown.click("Save body")
        assert saved.value.suggested_filename == "message-65536.bin"
        assert Path(saved.value.path()).read_bytes() == b"<script>1</script>"


def test_names_are_text(shown: Shown) -> None:
    name = "<script"
    assert shown.msgservice("receivers", "add", "<img>", "a.>").code == 0
    assert shown.msgservice("send", f"a.{name}", "x", "--id", "<b>1</b>").code == 0
    shown.row("<img>").wait_for(timeout=MS)
    shown.page.fill("#message-id", "<b>1</b>")
    shown.page.press("#message-id", "Enter")
    shown.page.locator("ol.way").wait_for(timeout=MS)
    assert name in shown.page.locator("ol.way").inner_text()
    assert shown.page.locator("main img, main script, main b").count() == 0


def test_a_delayed_message_is_cancelled(shown: Shown) -> None:
    assert shown.msgservice("send", "orders.new", "x", "--delay", "3600", "--id", "o-9").code == 0
    shown.click("Look what waits until it is due")
    shown.page.locator("#delayed").get_by_role("button", name="Cancel").click(timeout=MS)
    shown.click("Do it")
    shown.sees("1 message cancelled.")
    assert shown.msgservice.data("delayed", "list")["delayed"] == []


def test_a_keyboard_alone_is_enough(shown: Shown) -> None:
    shown.msgservice("receivers", "add", "billing", "orders.>")
    shown.row("billing").wait_for(timeout=MS)
    keyboard = shown.page.keyboard
    for _ in range(20):
        keyboard.press("Tab")
        if shown.page.evaluate("document.activeElement.textContent") == "billing":
            break
    keyboard.press("Enter")
    shown.page.locator("#receiver[open]").wait_for(timeout=MS)
    for _ in range(10):
        keyboard.press("Tab")
        if shown.page.evaluate("document.activeElement.textContent") == "Pause":
            break
    keyboard.press("Enter")
    shown.page.locator("#act-yes:enabled").wait_for(timeout=MS)
    for _ in range(10):
        keyboard.press("Tab")
        if shown.page.evaluate("document.activeElement.id") == "act-yes":
            break
    keyboard.press("Enter")
    shown.sees("billing is paused.")
    shown.page.locator("#receiver:not([open])").wait_for(state="attached", timeout=MS)
    shown.sees("billing gets nothing")


SIZES = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}},
}


@pytest.mark.parametrize("how", SIZES.values(), ids=SIZES)
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_page(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text()
    with shown_of(tmp_path, **how) as shown:
        shown.msgservice("receivers", "add", "billing-" + "x" * 60, "orders.>")
        shown.msgservice("send", "orders.new", "x")
        shown.sees("is away")
        for text_size in (16, 32):  # 200 % text
            shown.page.evaluate(f"document.documentElement.style.fontSize = '{text_size}px'")
            assert shown.page.evaluate(
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            )
        shown.page.evaluate("document.documentElement.style.fontSize = ''")
        serious = []
        for opened in ("page", "receiver"):
            if opened == "receiver":
                shown.row("billing").get_by_role("button").click(timeout=MS)
                shown.sees("Next for it")
            shown.page.evaluate(axe)  # by the browser's tools: the page's own policy forbids it
            found = shown.page.evaluate("axe.run(document)")
            serious += [
                (opened, one["id"], [node["html"] for node in one["nodes"]])
                for one in found["violations"]
                if one["impact"] in ("serious", "critical")
            ]
        assert serious == [], json.dumps(serious, indent=1)


def test_a_node_that_goes_away_is_told_and_comes_back(tmp_path: Path) -> None:
    with browser_of() as browser:
        page = browser.new_page()
        with node_of(tmp_path) as (url, _):
            page.goto(url)
            page.get_by_text("None: every message").wait_for(timeout=MS)
        page.get_by_text("The node does not answer. Trying again.").wait_for(timeout=MS)
        port = url.rstrip("/").rpartition(":")[2]
        text = (tmp_path / "node.toml").read_text().replace('web = "tcp:0:', f'web = "tcp:{port}:')
        (tmp_path / "node.toml").write_text(text)
        words = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
        with running(*words, cwd=tmp_path) as daemon:
            daemon.wait_for(r"listening on http://")
            page.locator("#connection:empty").wait_for(state="attached", timeout=MS)


def test_users_log_in_on_the_page_and_see_what_they_may(tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    more = """
[[user]]
name = "ops"
names = ["ops", "ops.>"]
request = ["$node.>"]
"""
    config = (
        '[node]\ndata = "data"\nusers = "users.toml"\n[listen]\ntcp = "tcp:0"\n'
        'web = "tcp:0:interface=127.0.0.1"\n' + more
    )
    (tmp_path / "node.toml").write_text(config)
    asked = ("passwd", "ops", "--users", str(users))
    made = Command("tcp:127.0.0.1:1", tmp_path)(*asked, stdin=b"correct horse battery\n")
    assert made.code == 0, made
    words = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*words, cwd=tmp_path) as daemon, browser_of() as browser:
        url = daemon.wait_for(r"listening on (http://\S+)")[1]
        page = browser.new_page()
        page.goto(url)
        page.locator("#login[open]").wait_for(timeout=MS)
        page.fill("#user", "ops")
        page.fill("#password", "wrong")
        page.get_by_role("button", name="Log in").click()
        page.locator("#login-error:not(:empty)").wait_for(timeout=MS)
        page.fill("#password", "correct horse battery")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("None: every message").wait_for(timeout=MS)
        assert (
            page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length")
            == 0
        )
        assert page.evaluate("document.cookie") == ""
        page.reload()  # it is still logged in
        page.get_by_text("None: every message").wait_for(timeout=MS)
        page.get_by_text("ops", exact=True).wait_for(timeout=MS)
        (kept,) = page.context.cookies()
        page.get_by_role("button", name="Log out").click()
        page.locator("#login[open]").wait_for(timeout=MS)
        assert page.context.cookies() == []
        page.context.add_cookies([kept])  # whoever has kept it has nothing
        page.reload()
        page.locator("#login[open]").wait_for(timeout=MS)
        # A password that is changed ends it while the page is open.
        page.fill("#user", "ops")
        page.fill("#password", "correct horse battery")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("None: every message").wait_for(timeout=MS)
        made = Command("tcp:127.0.0.1:1", tmp_path)(*asked, stdin=b"another horse battery\n")
        assert made.code == 0, made
        daemon.send(signal.SIGHUP)
        page.locator("#login[open]").wait_for(timeout=MS)
        page.locator("#login-error:not(:empty)").wait_for(timeout=MS)


def test_what_a_user_may_not_do_is_shown_and_cannot_be_clicked(tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    (tmp_path / "node.toml").write_text("""
[node]
data = "data"
users = "users.toml"
[listen]
tcp = "tcp:0"
web = "tcp:0:interface=127.0.0.1"
[[receiver]]
name = "billing"
subjects = ["orders.>"]
paused = true
[[user]]
name = "viewer"
request = ["$node.observe", "$node.dead.*", "$node.receivers.pause", "$node.peek"]
[[user]]
name = "shop"
names = ["shop.>"]
send = ["orders.>"]
""")
    for name in ("viewer", "shop"):
        asked = ("passwd", name, "--users", str(users), "--iterations", "4096")
        made = Command("", tmp_path)(*asked, stdin=b"correct horse battery\n")
        assert made.code == 0, made
    words = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*words, cwd=tmp_path) as daemon, browser_of() as browser:
        url = daemon.wait_for(r"listening on (http://\S+)")[1]
        page = browser.new_page()
        page.goto(url)
        page.locator("#login[open]").wait_for(timeout=MS)
        page.fill("#user", "shop")
        page.fill("#password", "correct horse battery")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("shop is logged in, but may not look at this node.").wait_for(timeout=MS)
        page.fill("#user", "viewer")
        page.fill("#password", "correct horse battery")
        page.get_by_role("button", name="Log in").click()
        resume = page.get_by_role("button", name="Resume billing")
        resume.wait_for(timeout=MS)
        assert resume.is_disabled()
        told = "viewer may not: that needs the right to request $node.receivers."
        assert resume.get_attribute("title") == f"{told}resume"
        page.get_by_role("button", name="Look at billing").click()
        dialog = page.locator("#receiver[open]")
        for name, lacks in (
            ("Resume", "resume"),
            ("Cancel what waits", "purge"),
            ("Rewind", "rewind"),
        ):
            button = dialog.get_by_role("button", name=name, exact=True)
            button.wait_for(timeout=MS)
            assert (button.is_disabled(), button.get_attribute("title")) == (True, told + lacks)
        assert dialog.get_by_text("Nothing waits.").is_visible()


def paths_of(page: Any) -> list[str]:
    """Return where a page's requests go that know what happens, as they begin."""
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url.partition("/v1/")[2].partition("?")[0]))
    return asked


def test_the_page_listens_and_asks_only_where_it_cannot(tmp_path: Path) -> None:
    more = "[limits]\nhttp_readers = 1\n"
    with node_of(tmp_path, more) as (url, msgservice), browser_of() as browser:
        first, second = browser.new_page(), browser.new_page()
        by_events, by_asking = paths_of(first), paths_of(second)
        for page in (first, second):
            page.goto(url)
            page.get_by_text("None: every message").wait_for(timeout=MS)
        assert msgservice("receivers", "add", "billing", "orders.>").code == 0
        for page in (first, second):
            page.locator("#rows tr", has_text="billing").wait_for(timeout=MS)
            assert page.locator("#connection").inner_text() == ""
        assert msgservice("receivers", "remove", "billing").code == 0
        for page in (first, second):
            page.locator("#rows:empty").wait_for(state="attached", timeout=MS)
        assert ("observe" in by_events, by_events.count("events")) == (False, 1)
        assert "observe" in by_asking


def test_a_page_that_nobody_sees_lets_go_and_goes_on_where_it_was(shown: Shown) -> None:
    shown.sees("None: every message")
    asked = paths_of(shown.page)
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    turn = hide + "document.dispatchEvent(new Event('visibilitychange'))"
    with shown.page.expect_event("requestfailed", lambda one: "/events" in one.url, timeout=MS):
        shown.page.evaluate(turn % "true")
    shown.msgservice("receivers", "add", "billing", "orders.>")
    shown.page.evaluate(turn % "false")
    shown.row("billing").wait_for(timeout=MS)
    assert asked == ["events"]


def test_ages_are_by_the_clock_of_the_node(tmp_path: Path) -> None:
    with node_of(tmp_path) as (url, msgservice), browser_of() as browser:
        msgservice("receivers", "add", "billing", "orders.>")
        msgservice("send", "orders.new", "x")
        page = browser.new_page()
        page.add_init_script("const is = Date.now; Date.now = () => is() + 5 * 3600000;")
        page.goto(url)
        oldest = page.locator("#rows tr", has_text="billing").locator("[data-label=Oldest]")
        oldest.wait_for(timeout=MS)
        assert oldest.inner_text().endswith(" s")


def test_metrics_are_what_a_monitor_reads(tmp_path: Path) -> None:
    import urllib.request

    from prometheus_client.parser import text_string_to_metric_families

    with node_of(tmp_path) as (url, msgservice):
        msgservice("receivers", "add", "billing", "orders.>")
        msgservice("send", "orders.new", "x")
        with urllib.request.urlopen(f"{url}metrics") as answer:
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            text = answer.read().decode()
    found = {
        (sample.name, sample.labels.get("receiver")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["msgservice_receiver_queued_messages", "billing"] == 1
    assert found["msgservice_stored_messages_total", None] == 1
