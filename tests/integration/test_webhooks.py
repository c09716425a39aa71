"""Webhooks of a real node at real HTTP servers: answers, order, signatures, TLS, kills, reach."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.request import urlopen
from xmlrpc.server import SimpleXMLRPCServer

import pytest
import pytest_twisted
from standardwebhooks import Webhook as Verifier
from twisted.internet.threads import deferToThread

from msgservice import Limits
from msgservice.webhooks.transport import WebhookTransport
from tests.integration.command import Command
from tests.integration.daemon import PATIENCE, Daemon, running
from tests.kit.certificates import Authority

PAGE = Path(__file__).resolve().parents[2] / "docs/webhooks.md"
ALLOWED = 'networks = ["127.0.0.0/8"]'
FORBIDDEN = "is no address that this node may dial, unless networks of [webhook] has it"


@dataclass(frozen=True)
class Call:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


Answer = tuple[int, dict[str, str], bytes]
OK: Answer = (204, {}, b"")


class Site:
    """A server whose answers a test says; what it was asked, in order."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.calls: Queue[Call] = Queue()
        self.answers: Queue[Answer | Callable[[BaseHTTPRequestHandler], None]] = Queue()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                site.calls.put(Call(self.path, headers, body))
                answer = site.answers.get(timeout=PATIENCE)
                if callable(answer):
                    answer(self)
                    return
                code, more, told = answer
                self.send_response(code)
                for name, value in more.items():
                    self.send_header(name, value)
                if code != 204:
                    self.send_header("content-length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def call(self) -> Call:
        return self.calls.get(timeout=PATIENCE)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def site_of(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site(tls)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with site_of() as found:
        yield found


@contextmanager
def node_of(
    folder: Path, webhook: str, *, limits: str = "", web: bool = False
) -> Iterator[tuple[Daemon, Command]]:
    too = 'web = "tcp:0:interface=127.0.0.1"\n' if web else ""
    (folder / "node.toml").write_text(
        f'[node]\ndata = "data"\n[listen]\ntcp = "tcp:0"\n{too}'
        f"[limits]\n{limits}\n[webhook]\n{webhook}\n"
    )
    words = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*words, cwd=folder) as daemon:
        yield daemon, Command(f"tcp:127.0.0.1:{daemon.ports()[0]}", folder)


def test_a_message_is_posted_signed_and_acknowledged_by_the_answer(
    tmp_path: Path, site: Site
) -> None:
    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        address = f"http://127.0.0.1:{site.port}/hook?x=1"
        assert msgservice("receivers", "add", "hook", "orders.>", "--address", address).code == 0
        site.answers.put(OK)
        done = msgservice("send", "orders.new", '{"a": 1}', "--id", "o-1", "--wait")
        assert (done.code, done.err) == (0, "")
        call = site.call()
        assert (call.path, call.body) == ("/hook?x=1", b'{"a": 1}')
        assert call.headers["msgservice-subject"] == "orders.new"
        assert call.headers["msgservice-message-id"] == "o-1"
        secret = (tmp_path / "data/webhook.secret").read_text().strip()
        assert {"a": 1} == Verifier(secret).verify(call.body, call.headers)
        assert (tmp_path / "data/webhook.secret").stat().st_mode & 0o777 == 0o600
        assert site.calls.empty()


def test_a_test_is_signed_and_says_what_came_back_whatever_waits(
    tmp_path: Path, site: Site
) -> None:
    own = f'{ALLOWED}\n[webhook.hook]\nheaders = {{ Authorization = "Bearer 7f3a" }}'
    with node_of(tmp_path, own) as (_, msgservice):
        address = f"http://127.0.0.1:{site.port}/hook"
        assert msgservice("receivers", "add", "hook", "orders.>", "--address", address).code == 0
        assert msgservice("receivers", "pause", "hook").code == 0
        assert msgservice("send", "orders.new", "x").code == 0
        site.answers.put(OK)
        done = msgservice("receivers", "test", "hook")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("hook has taken a test: 204 after ")
        call = site.call()
        secret = (tmp_path / "data/webhook.secret").read_text().strip()
        assert {"test": True} == Verifier(secret).verify(call.body, call.headers)
        assert ("/hook", "1", "Bearer 7f3a") == (
            call.path,
            call.headers["msgservice-test"],
            call.headers["authorization"],
        )
        for code, told in ((500, "the endpoint says 500: no"), (410, "it wants no more: no")):
            site.answers.put((code, {}, b"no"))
            done = msgservice("receivers", "test", "hook")
            assert (done.code, told in done.out) == (1, True)
            assert site.call().id != call.id
        site.answers.put((302, {"location": "http://127.0.0.1:1/"}, b""))
        told = msgservice("receivers", "test", "hook", "--json").data
        assert (told["taken"], told["code"]) == (False, 302)
        row = msgservice.receiver("hook")
        assert (row["queued"], row["attempts"], row["paused"]) == (1, 0, True)
        assert site.calls.qsize() == 1  # the last test's: nothing of what waits


def test_a_test_reaches_no_further_than_a_message(tmp_path: Path, site: Site) -> None:
    with node_of(tmp_path, "") as (_, msgservice):
        address = f"http://localhost:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        told = msgservice("receivers", "test", "hook", "--json").data
        assert (told["taken"], told["code"]) == (False, None)
        assert FORBIDDEN in told["reason"]
        assert site.calls.empty()
        msgservice("receivers", "add", "near", "orders.>")
        refused = msgservice("receivers", "test", "near")
        assert (refused.code, "only webhooks are tested" in refused.err) == (1, True)
        assert msgservice("receivers", "test", "nobody").code == 1


def test_a_test_by_xmlrpc_is_a_call(tmp_path: Path, site: Site) -> None:
    from xmlrpc.client import dumps, loads

    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        address = f"xmlrpc+http://127.0.0.1:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        site.answers.put((200, {}, dumps((True,), methodresponse=True).encode()))
        assert msgservice("receivers", "test", "hook").code == 0
        said: Any = loads(site.call().body)
        assert (said[1], said[0][0]["headers"]) == ("receive", {"msgservice-test": "1"})
        site.answers.put((200, {}, b"<html>hello</html>"))
        assert msgservice("receivers", "test", "hook").code == 1


def test_what_was_not_taken_waits_for_the_endpoint_and_keeps_its_order(
    tmp_path: Path, site: Site
) -> None:
    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        address = f"http://127.0.0.1:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        for number in range(3):
            assert msgservice("send", "orders.new", f"{number}").code == 0
        for code in (404, 500, 302):
            site.answers.put((code, {"location": "http://127.0.0.1:1/other"}, b"not now"))
            assert site.call().body == b"0"
        row = msgservice.receiver("hook")
        assert (row["connected"], row["queued"]) == (True, 3)
        assert "not now" in row["last_error"]
        for _ in range(3):
            site.answers.put(OK)
        assert [b"0", b"1", b"2"] == [site.call().body for _ in range(3)]
        assert msgservice.data("status", "log:65536")["receivers"]["hook"]["attempts"] == 0


def test_what_waits_for_the_endpoint_expires_there_when_its_time_is_over(
    tmp_path: Path, site: Site
) -> None:
    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        address = f"http://127.0.0.1:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        site.answers.put((503, {"retry-after": "3600"}, b"not now"))
        told = msgservice("send", "orders.new", "old", "--ttl", "1", "--wait")
        assert site.call().body == b"old"
        assert told.code == 1
        assert "its ttl was over" in msgservice("status", "log:65536").out
        told = msgservice("send", "orders.new", "older", "--ttl", "1", "--wait")
        assert told.code == 1
        assert "expired" in msgservice("status", "log:131072").out
        assert site.calls.empty()
        assert msgservice.receiver("hook")["queued"] == 0


def test_what_waits_for_the_endpoint_is_in_flight_for_an_undo_and_purged_when_it_is_paused(
    tmp_path: Path, site: Site
) -> None:
    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        address = f"http://127.0.0.1:{site.port}/"
        assert msgservice("receivers", "add", "hook", "orders.>", "--address", address).code == 0
        site.answers.put((503, {"retry-after": "3600"}, b"not now"))
        assert msgservice("send", "orders.new", "called", "--id", "o-1").code == 0
        assert site.call().body == b"called"
        while "not now" not in msgservice("why", "o-1").out:
            pass
        assert msgservice("send", "orders.new", "never called", "--id", "o-2").code == 0
        for id_ in ("o-1", "o-2"):
            while msgservice.data("why", id_)["causes"][0]["kind"] == "in_line":
                pass  # it is handed over in a moment
            told = msgservice.data("undo", id_)
            assert told["receivers"] == {"hook": {"in_flight": 1}}
        assert msgservice("receivers", "pause", "hook").code == 0
        while msgservice.receiver("hook")["connected"]:
            pass
        assert msgservice("purge", "hook", "--yes").code == 0
        for id_ in ("o-1", "o-2"):
            assert msgservice.data("undo", id_)["receivers"] == {"hook": {"cancelled_before": 1}}
            status = msgservice.data("status", id_)["receivers"]["hook"]
            wanted = ("cancelled", "purged (outcome unknown)")
            assert wanted == (status["status"], status["reason"])
        assert site.calls.empty()


def test_a_message_that_is_wrong_becomes_a_dead_letter_with_what_was_answered(
    tmp_path: Path, site: Site
) -> None:
    with node_of(tmp_path, ALLOWED, limits="max_attempts = 1") as (_, msgservice):
        address = f"http://127.0.0.1:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        site.answers.put((422, {}, b"no such customer"))
        assert msgservice("send", "orders.new", "x", "--wait").code == 1
        (letter,) = msgservice.data("dead", "list", "hook")["dead"]
        assert letter["reason"] == "the endpoint says 422: no such customer"
        site.answers.put(OK)
        assert msgservice("dead", "requeue", "hook", "--all", "--yes").code == 0
        first, again = site.call(), site.call()
        assert (first.id, again.headers["msgservice-replay"]) == (again.id, "1")


def test_an_endpoint_that_has_gone_pauses_its_receiver_which_keeps_what_waits(
    tmp_path: Path, site: Site
) -> None:
    with node_of(tmp_path, ALLOWED) as (daemon, msgservice):
        address = f"http://127.0.0.1:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        site.answers.put((410, {}, b"closed"))
        assert msgservice("send", "orders.new", "x").code == 0
        daemon.wait_for("receiver hook is paused: the endpoint says 410")
        row = msgservice.receiver("hook")
        assert (row["paused"], row["queued"]) == (True, 1)
        assert "410" in row["last_error"]
        site.answers.put(OK)
        assert msgservice("receivers", "resume", "hook").code == 0
        assert site.call().id == site.call().id


def test_kill_9_between_call_and_answer_calls_again_under_the_same_id(
    tmp_path: Path, site: Site
) -> None:
    killed = threading.Event()

    def never(_: BaseHTTPRequestHandler) -> None:
        killed.wait(PATIENCE)

    address = f"http://127.0.0.1:{site.port}/"
    with node_of(tmp_path, ALLOWED) as (daemon, msgservice):
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        site.answers.put(never)
        assert msgservice("send", "orders.new", "x").code == 0
        first = site.call()
        daemon.send(signal.SIGKILL)
        daemon.ended()
    killed.set()
    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        site.answers.put(OK)
        again = site.call()
        assert (first.id, first.body) == (again.id, again.body)
        assert msgservice("send", "other", "y").code == 0
        assert msgservice.receiver("hook")["queued"] == 0


INSIDE = ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "10.1.2.3", "169.254.169.254"]


@pytest.mark.parametrize("host", INSIDE)
def test_an_address_that_only_the_node_reaches_is_refused_when_it_is_given(
    tmp_path: Path, host: str
) -> None:
    address = f"https://{host}/hook"
    with node_of(tmp_path, "") as (_, msgservice):
        told = msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        assert (told.code, FORBIDDEN in told.err) == (1, True)
        assert [] == msgservice.data("receivers", "list")["receivers"]
    given = f'[[receiver]]\nname = "hook"\naddress = "{address}"\nsubjects = ["orders.>"]\n'
    (tmp_path / "given.toml").write_text(given)
    told = msgservice("check-config", "given.toml")
    assert (told.code, f"given.toml:3: receiver.address: bad address '{address}'" in told.err) == (
        2,
        True,
    )
    assert FORBIDDEN in told.err
    allowed = '[webhook]\nnetworks = ["0.0.0.0/0", "::/0"]\n'
    (tmp_path / "given.toml").write_text(allowed + given)
    assert msgservice("check-config", "given.toml").code == 0


@pytest.mark.parametrize("host", ["localhost", "2130706433"])
def test_a_name_that_leads_to_what_only_the_node_reaches_is_never_shown_as_up(
    tmp_path: Path, site: Site, host: str
) -> None:
    with node_of(tmp_path, "") as (daemon, msgservice):
        address = f"https://{host}:{site.port}/"
        assert msgservice("receivers", "add", "hook", "orders.>", "--address", address).code == 0
        daemon.wait_for("webhook hook is not dialled: .* unless networks of .webhook. has it")
        row = msgservice.receiver("hook")
        assert (row["connected"], row["health"]) == (False, "away")
        assert FORBIDDEN in row["last_error"]
        assert msgservice("send", "orders.new", "x", "--id", "o-1").code == 0
        told = msgservice("why", "o-1").out
        assert f"hook (queued): hook is not reached at {address}: " in told
        assert FORBIDDEN in told
        assert f"Add the network of {address} to networks of [webhook]" in told
        how = msgservice("why", "--receiver", "hook").out
        assert f"Add the network of {address} to networks of [webhook]" in how
        assert site.calls.empty()
        assert msgservice.receiver("hook")["queued"] == 1
    with node_of(tmp_path, 'networks = ["127.0.0.0/8", "::1/128"]') as (daemon, msgservice):
        daemon.wait_for("webhook https://.* takes nothing, its messages wait")
        assert (True, "failing") == tuple(
            msgservice.receiver("hook")[field] for field in ("connected", "health")
        )


def test_what_the_log_has_of_before_is_not_dialled_where_it_may_not_be(
    tmp_path: Path, site: Site
) -> None:
    address = f"http://127.0.0.1:{site.port}/"
    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
    with node_of(tmp_path, "") as (_, msgservice):
        row = msgservice.receiver("hook")
        assert (row["connected"], row["health"]) == (False, "away")
        assert FORBIDDEN in row["last_error"]
        assert msgservice("send", "orders.new", "x", "--id", "o-1").code == 0
        told = msgservice("why", "o-1").out
        assert FORBIDDEN in told
        assert "give it another address" in told
        tried = msgservice("receivers", "test", "hook")
        assert (tried.code, FORBIDDEN in tried.out) == (1, True)
        assert site.calls.empty()


@pytest.mark.parametrize("wrong", [404, 500, None])
def test_why_says_what_is_wrong_with_an_endpoint_that_has_a_message(
    tmp_path: Path, site: Site, wrong: int | None
) -> None:
    address = f"http://127.0.0.1:{site.port if wrong else 1}/"
    with node_of(tmp_path, ALLOWED, web=True) as (daemon, msgservice):
        url = daemon.wait_for(r"listening on (http://\S+)")[1]
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        if wrong is not None:
            site.answers.put((wrong, {"retry-after": "60"}, b""))
        assert msgservice("send", "orders.new", "x", "--id", "o-1").code == 0
        daemon.wait_for("takes nothing, its messages wait")
        why = "refused" if wrong is None else f"the endpoint says {wrong}"
        told = msgservice("why", "o-1").out
        assert "hook (sent): hook takes nothing now: " in told
        assert why in told
        assert "Since 20" in told
        assert "$ msgservice receivers test hook" in told
        with urlopen(f"{url}v1/messages/o-1/why") as answer:
            (cause,) = json.load(answer)["causes"]
        assert ("refusing", "sent") == (cause["kind"], cause["status"])
        assert why in cause["sentence"]
        if wrong is not None:
            assert cause["next_try_at"] > cause["since"] + 59_000
        row = msgservice.receiver("hook")
        assert why in row["last_error"]
        assert "failing" == row["health"]
        assert row["health_s"] < 60
        listed = msgservice("receivers", "list").out
        assert re.search(r"failing \d+ s, connected", listed)


def test_an_answer_that_never_ends_is_read_no_further(tmp_path: Path, site: Site) -> None:
    cut = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", str(1 << 40))
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            cut.set()
        handler.close_connection = True

    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        address = f"http://127.0.0.1:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        site.answers.put(endless)
        assert msgservice("send", "orders.new", "x", "--wait").code == 0
        assert cut.wait(PATIENCE)


def test_a_head_that_never_ends_is_read_no_further(tmp_path: Path, site: Site) -> None:
    sent: Queue[int] = Queue()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        count = 0
        try:
            while count < 1 << 28:
                count += handler.connection.send(b"x-more: 1\r\n" * 1000)
        except OSError:
            pass
        sent.put(count)
        handler.close_connection = True

    with node_of(tmp_path, ALLOWED) as (daemon, msgservice):
        address = f"http://127.0.0.1:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        site.answers.put(endless)
        assert msgservice("send", "orders.new", "x").code == 0
        assert sent.get(timeout=PATIENCE) < 1 << 26
        daemon.wait_for("takes nothing, its messages wait: an answer whose head has more than")
        site.answers.put(OK)
        assert site.call().id == site.call().id


@pytest.mark.parametrize("goes_on", [True, False], ids=["endless", "silent"])
def test_an_endpoint_that_does_not_close_tls_keeps_no_connection(
    tmp_path: Path, goes_on: bool
) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, chain = authority.issue("localhost")
    context.load_cert_chain(chain, key)
    cut = threading.Event()

    def stays(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 8192)
        socket = handler.connection
        try:
            while goes_on:
                handler.wfile.write(b"x" * 65536)
            while os.read(socket.fileno(), 65536):  # below TLS: it does not close, too
                pass
        except OSError:
            pass
        cut.set()
        handler.close_connection = True

    own = f'{ALLOWED}\n[webhook.hook]\ntrust_roots = "{authority.ca_file}"\n'
    with site_of(context) as site, node_of(tmp_path, own) as (_, msgservice):
        address = f"https://localhost:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        site.answers.put(stays)
        assert msgservice("send", "orders.new", "x", "--wait").code == 0
        assert cut.wait(PATIENCE)


def test_an_answer_that_does_not_come_in_time_is_none(tmp_path: Path, site: Site) -> None:
    let_go = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc")
        let_go.wait(PATIENCE)

    with node_of(tmp_path, f"{ALLOWED}\ntimeout = 0.5") as (daemon, msgservice):
        address = f"http://127.0.0.1:{site.port}/"
        msgservice("receivers", "add", "hook", "orders.>", "--address", address)
        site.answers.put(slow)
        assert msgservice("send", "orders.new", "x").code == 0
        daemon.wait_for("takes nothing, its messages wait: no whole answer within 0.5 s")
        site.answers.put(OK)
        assert site.call().id == site.call().id
    let_go.set()


def test_two_webhooks_do_not_wait_for_each_other(tmp_path: Path, site: Site) -> None:
    with node_of(tmp_path, ALLOWED) as (_, msgservice), site_of() as other:
        for name, port in (("one", site.port), ("two", other.port)):
            address = f"http://127.0.0.1:{port}/"
            msgservice("receivers", "add", name, "orders.>", "--address", address)
        site.answers.put((503, {"retry-after": "3600"}, b""))
        other.answers.put(OK)
        told = msgservice.data("send", "orders.new", "x")
        assert sorted(told["receivers"]) == ["one", "two"]
        assert other.call().body == site.call().body == b"x"
        assert msgservice.receiver("one")["queued"] == 1


def test_the_server_of_xmlrpc_of_the_standard_library_takes_messages(tmp_path: Path) -> None:
    told: Queue[Any] = Queue()

    def receive(*parameters: Any) -> bool:
        (message,) = parameters
        told.put(message)
        return True

    server = SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False)
    server.register_function(receive, "receive")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        address = f"xmlrpc+http://127.0.0.1:{server.server_address[1]}/"
        assert msgservice("receivers", "add", "hook", "orders.>", "--address", address).code == 0
        assert msgservice("send", "orders.new", "grüße", "--id", "o-1", "--wait").code == 0
        message = told.get(timeout=PATIENCE)
        assert (message["subject"], message["id"]) == ("orders.new", "o-1")
        assert message["body"].data.decode() == "grüße"
    server.shutdown()
    server.server_close()


def test_tls_is_verified_and_a_configured_webhook_has_its_own_secret_and_headers(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, chain = authority.issue("localhost")
    context.load_cert_chain(chain, key)
    secret = tmp_path / "hook.secret"
    secret.write_text("whsec_" + "MTIz" * 10)
    secret.chmod(0o600)
    own = f"""{ALLOWED}
[webhook.good]
secrets = "hook.secret"
trust_roots = "{authority.ca_file}"
headers = {{ Authorization = "Bearer x" }}
"""
    with site_of(context) as site, node_of(tmp_path, own) as (daemon, msgservice):
        address = f"https://localhost:{site.port}/"
        msgservice("receivers", "add", "good", "good", "--address", address)
        site.answers.put(OK)
        assert msgservice("send", "good", '"x"', "--wait").code == 0
        call = site.call()
        assert call.headers["authorization"] == "Bearer x"
        assert Verifier(secret.read_text()).verify(call.body, call.headers) == "x"
        msgservice("receivers", "add", "bad", "bad", "--address", address)
        assert msgservice("send", "bad", "y").code == 0
        daemon.wait_for("takes nothing, its messages wait: .*certificate")
        assert site.calls.empty()


def test_an_endpoint_that_asks_for_a_certificate_is_shown_the_webhooks(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, chain = authority.issue("localhost")
    context.load_cert_chain(chain, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca_file)
    shown, certificate = authority.issue("node.example.org")
    own = f"""{ALLOWED}
[webhook.known]
trust_roots = "{authority.ca_file}"
certificate = "{certificate}"
private_key = "{shown}"
[webhook.stranger]
trust_roots = "{authority.ca_file}"
"""
    names: Queue[Any] = Queue()

    def says(handler: BaseHTTPRequestHandler) -> None:
        names.put(handler.connection.getpeercert())
        handler.send_response(204)
        handler.end_headers()

    with site_of(context) as site, node_of(tmp_path, own) as (daemon, msgservice):
        address = f"https://localhost:{site.port}/"
        for name in ("known", "stranger"):
            assert msgservice("receivers", "add", name, name, "--address", address).code == 0
        site.answers.put(says)
        assert msgservice("send", "known", "x", "--wait").code == 0
        assert (("DNS", "node.example.org"),) == names.get()["subjectAltName"]
        assert msgservice("send", "stranger", "y").code == 0
        daemon.wait_for("takes nothing, its messages wait: .*certificate")
        assert b"x" == site.call().body
        assert site.calls.empty()


def run(coroutine: Any) -> Any:
    return pytest_twisted.ensureDeferred(coroutine)


@run
async def test_files_are_read_beside_the_reactor_and_not_waited_for_by_a_stop() -> None:
    from twisted.internet import reactor

    readers: list[int] = []
    goes_on, reads = threading.Event(), threading.Event()

    def secrets(name: str) -> list[bytes]:
        readers.append(threading.get_ident())
        if name == "slow":
            reads.set()
            goes_on.wait(PATIENCE)
        return [b"s" * 32]

    transport = WebhookTransport(secrets=secrets)
    tried = await transport.try_out(reactor, "https://localhost:1/", "hook")
    assert (None, False) == (tried.code, tried.is_taken)
    link = transport.connector_to(reactor, "https://localhost:1/", no_user, Limits(), "slow")
    link.startService()
    await deferToThread(reads.wait)
    await link.stopService()
    goes_on.set()
    assert threading.get_ident() not in readers
    assert 2 == len(readers)


def no_user() -> Any:
    raise AssertionError("nobody is connected")


def test_the_endpoint_of_the_page_takes_what_the_node_has_signed(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "endpoint.py").write_text(program)
    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        # Its secret is made when a webhook is dialled first.
        msgservice("receivers", "add", "first", "none", "--address", "http://127.0.0.1:1/")
        secret = tmp_path / "data/webhook.secret"
        while not secret.exists() or not secret.read_text():
            time.sleep(0.01)
        with running("python", "endpoint.py", str(secret), cwd=tmp_path) as endpoint:
            address = endpoint.wait_for("http://.*/")[0]
            assert (
                msgservice("receivers", "add", "hook", "orders.>", "--address", address).code == 0
            )
            words = ("send", "orders.new", '{"id": 17}', "--wait")
            assert msgservice(*words).code == 0
            endpoint.wait_for(r"^msg_\w+ orders.new \{'id': 17\}$")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("https://user:pass@a.example/", "put it in headers"),
        ("http://a.example/", "needs insecure = true"),
        ("https://a b/", "no spaces"),
    ],
)
def test_what_is_no_webhook_is_refused(tmp_path: Path, address: str, sentence: str) -> None:
    with node_of(tmp_path, "") as (_, msgservice):
        told = msgservice("receivers", "add", "hook", "x", "--address", address)
        assert told.code in (1, 2)
        assert sentence in told.err


def test_a_webhook_is_no_group_of_workers(tmp_path: Path, site: Site) -> None:
    with node_of(tmp_path, ALLOWED) as (_, msgservice):
        words = ("receivers", "add", "hook", "x", "--shared", "--order", "none", "--address")
        told = msgservice(*words, f"http://127.0.0.1:{site.port}/")
        assert told.code == 1
        assert "a webhook is one receiver, and no group of workers" in told.err
        assert msgservice("send", "x", "1", "--require").code == 1


@pytest.mark.parametrize(
    ("webhook", "sentence"),
    [
        ('networks = ["10.0.0.1/8"]', "is no network"),
        (
            '[node]\nnetworks = ["inside"]',
            "node.networks: networks 'inside' is no network",
        ),
        ("timeout = 0", "must be above 0"),
        ("concurrency = 0", "must be from 1"),
        ('[webhook.a]\nsecrets = "nothere"', "cannot be read"),
        ('[webhook.a]\nheaders = { Host = "x" }', "no header that a webhook may have"),
        ('[webhook.a]\nprivate_key = "node.toml"', "needs the certificate"),
        ('[webhook.a]\nsecret = "x"', "unknown"),
    ],
)
def test_what_is_wrong_with_the_configuration_is_told(
    tmp_path: Path, webhook: str, sentence: str
) -> None:
    (tmp_path / "node.toml").write_text(f"[webhook]\n{webhook}\n")
    told = Command("tcp:127.0.0.1:1", tmp_path)("check-config", "node.toml")
    assert told.code == 2
    assert sentence in told.err + told.out
