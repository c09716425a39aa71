"""Webhooks: whom they reach, how calls are signed, what answers mean, and when they are tried."""

from __future__ import annotations

import base64
import xmlrpc.client
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from standardwebhooks import Webhook as Verifier
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.codecs import decode_content
from msgservice.errors import BadAddress, BadValue, Retry
from msgservice.message import WireMessage, encode_messages
from msgservice.receiver.handling.outcomes import Later
from msgservice.receiver.received import ReceivedMessage, RunFacts, decode_received
from msgservice.records import Origin
from msgservice.transport.reach import NotReachable, Reach, networks_of
from msgservice.webhooks.calls import ANSWER_MAX, HEADER_MAX, Call, Verdict, call_of, verdict_of
from msgservice.webhooks.endpoint import DELAY_MAX, Answer, Endpoint, seconds_asked
from msgservice.webhooks.options import check_headers
from msgservice.webhooks.signing import message_id, secret_of, text_of
from msgservice.webhooks.urls import url_of

SECRET = b"s" * 32


def a_message(body: bytes = b"one", sequence: int = 1, **more: Any) -> ReceivedMessage:
    origin = Origin("shop", sequence, "0" * 16)
    run = RunFacts(sequence << 16, "orders.new", "node", origin, 0, decode_content)
    (message,) = decode_received(encode_messages([WireMessage(body, **more)]), run)
    return message


# --- reach


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",  # carriers' own (RFC 6598)
        "169.254.169.254",  # the metadata of clouds
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",  # Teredo of 10.0.0.1
        "::ffff:0:10.0.0.1",
        "2001:4860::5efe:10.0.0.1",  # ISATAP
        "2001:4860::200:5efe:10.0.0.1",
        "2001:4860::1%eth0",
        "fec0::1",
        "5f00::1",
        "168.63.129.16",  # the services of Azure for its machines
        "64:ff9b::168.63.129.16",
        "192.0.0.192",  # metadata of Oracle's cloud
        "no address",
        "",
    ],
)
def test_what_only_this_machine_or_network_has_is_not_reached(host: str) -> None:
    assert not Reach().allows(host)


@pytest.mark.parametrize(
    "host", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
def test_public_addresses_are_reached(host: str) -> None:
    assert Reach().allows(host)


def test_networks_that_the_operator_allows_are_reached_however_they_are_written() -> None:
    reach = Reach(networks_of(["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"]))
    for host in ("10.1.2.3", "fd00::1", "127.0.0.1", "::ffff:10.1.2.3", "64:ff9b::a01:203"):
        assert reach.allows(host)
    for host in ("11.0.0.1", "fe80::1"):
        assert Reach(networks_of(["10.0.0.0/8"])).allows(host) is (host == "11.0.0.1")
    assert not reach.allows("127.0.0.2")


def test_what_is_no_network_is_named() -> None:
    with pytest.raises(BadValue, match=r"'10\.0\.0\.1/8' is no network"):
        networks_of(["10.0.0.1/8"])


# --- URLs


@pytest.mark.parametrize(
    ("address", "url", "is_xmlrpc"),
    [
        ("https://a.example/x?y=1:2", "https://a.example/x?y=1:2", False),
        ("HTTPS://a.example", "https://a.example", False),
        ("xmlrpc+https://a.example:8443/", "https://a.example:8443/", True),
        ("http://[::1]:80/a=b", "http://[::1]:80/a=b", False),
        ("https://xn--bcher-kva.A-1.example./", "https://xn--bcher-kva.A-1.example./", False),
        ("https://127.1/", "https://127.1/", False),
    ],
)
def test_urls_are_taken_as_they_are(address: str, url: str, is_xmlrpc: bool) -> None:
    assert (url, is_xmlrpc) == url_of(address)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("https:", "expected https://HOST/PATH"),
        ("https:///x", "expected https://HOST/PATH"),
        ("https://a b/", "no spaces"),
        ("https://ä.example/", "ASCII"),
        ("https://a.example/\n", "no spaces"),
        ("https://user:pass@a.example/", "in headers"),
        ("https://a.example/#x", "no #fragment"),
        ("https://a.example:99999/", "is no URL"),
        ("https://[::1/", "is no URL"),
        ("https://a..example/", "no host has the name 'a..example'"),
        ("https://.example/", "no host has the name"),
        ("https://-a.example/", "no host has the name"),
        ("https://a-.example/", "no host has the name"),
        ("xmlrpc+https://my_shop.example/", "no host has the name 'my_shop.example'"),
        ("https://a%2fb/", "no host has the name"),
        ("https://" + "a" * 64 + ".example/", "1 to 63 letters"),
        ("https://" + "a." * 126 + "aa/", "253 characters at most"),
        ("https://a.example/" + "x" * 2000, "allowed are 2000"),
    ],
)
def test_what_is_no_url_is_told(address: str, why: str) -> None:
    with pytest.raises(BadAddress, match=why):
        url_of(address)


# --- signing


@given(st.binary(max_size=100))
def test_a_signature_is_taken_by_the_library_of_the_specification(body: bytes) -> None:
    now = int(datetime.now(UTC).timestamp())
    call = call_of(
        a_message(body), is_xmlrpc=False, secrets=[SECRET], timestamp=now, more={}, agent="a"
    )
    headers = {name.decode(): value.decode() for name, value in call.headers}
    signer = Verifier(text_of(SECRET))
    text = call.body.decode("latin-1")
    if body.isascii():  # the library signs text
        signed = signer.sign(headers["webhook-id"], datetime.fromtimestamp(now, UTC), text)
        assert headers["webhook-signature"] == signed


def test_two_secrets_are_both_taken_while_one_replaces_the_other() -> None:
    now = int(datetime.now(UTC).timestamp())
    call = call_of(
        a_message(b'{"a": 1}'),
        is_xmlrpc=False,
        secrets=[SECRET, b"t" * 24],
        timestamp=now,
        more={},
        agent="a",
    )
    headers = {name.decode(): value.decode() for name, value in call.headers}
    for secret in (SECRET, b"t" * 24):
        assert {"a": 1} == Verifier(text_of(secret)).verify(call.body, headers)
    with pytest.raises(Exception, match="No matching signature"):
        Verifier(text_of(b"u" * 24)).verify(call.body, headers)


def test_the_id_of_a_message_is_the_same_each_time_and_no_other_has_it() -> None:
    one = a_message(sequence=1).identity
    assert message_id(one) == message_id(one)
    assert message_id(one) != message_id(a_message(sequence=2).identity)
    assert message_id(one).startswith("msg_")


@pytest.mark.parametrize("text", ["whsec_!!", "whsec_c2hvcnQ=", "whsec_" + "YQ" * 100, ""])
def test_a_secret_that_is_none_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(BadValue) as raised:
        secret_of(text)
    assert text not in str(raised.value) or not text


def test_secrets_are_read_as_they_are_written() -> None:
    assert secret_of(text_of(SECRET) + "\n") == SECRET
    assert secret_of(base64.b64encode(SECRET).decode()) == SECRET


# --- calls


def headers_of(call: Call) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in call.headers}


def a_call(message: ReceivedMessage, *, is_xmlrpc: bool = False, **more: str) -> Call:
    return call_of(
        message, is_xmlrpc=is_xmlrpc, secrets=[], timestamp=1, more=more, agent="msgservice/1"
    )


def test_a_call_says_what_the_message_is() -> None:
    message = a_message(b"\xff", headers={"content-type": "text/x", "trace": "ä\n"}, id="o-1")
    headers = headers_of(a_call(message))
    assert headers["content-type"] == "text/x"
    assert headers["msgservice-subject"] == "orders.new"
    assert headers["msgservice-message-id"] == "o-1"
    assert headers["msgservice-identity"] == f"shop/{'0' * 16}/1"
    assert headers["msgservice-header-trace"] == "%C3%A4%0A"
    assert headers["user-agent"] == "msgservice/1"
    assert "webhook-signature" not in headers


@given(st.dictionaries(st.text(max_size=30), st.text(max_size=30), max_size=5), st.text())
def test_no_header_of_a_message_breaks_out_of_its_line(headers: dict[str, str], kind: str) -> None:
    for name, value in a_call(a_message(headers=headers | {"content-type": kind})).headers:
        assert not set(name + value) & set(b"\r\n\0")
        assert len(value) <= HEADER_MAX


def test_headers_of_the_configuration_replace_none_of_the_calls_own() -> None:
    headers = headers_of(a_call(a_message(), authorization="x"))
    assert headers["authorization"] == "x"
    for name in ("Host", "content-length", "webhook-id", "msgservice-subject", "a b", "a:b", ""):
        with pytest.raises(BadValue):
            check_headers({name: "x"})
    for value in ("a\nb", "ä", 5):
        with pytest.raises(BadValue):
            check_headers({"x-a": value})


@given(st.binary(max_size=50), st.text(max_size=20))
def test_a_call_of_xmlrpc_is_read_by_the_standard_library(body: bytes, value: str) -> None:
    call = a_call(a_message(body, headers={"a": value}), is_xmlrpc=True)
    parameters, method = xmlrpc.client.loads(call.body)
    told = cast("dict[str, Any]", parameters[0])
    assert (method, told["subject"], told["body"].data) == ("receive", "orders.new", body)
    assert headers_of(call)["content-type"] == "text/xml"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (200, Verdict.TAKEN),
        (204, Verdict.TAKEN),
        (299, Verdict.TAKEN),
        (301, Verdict.UNWELL),
        (400, Verdict.WRONG),
        (401, Verdict.UNWELL),
        (404, Verdict.UNWELL),
        (410, Verdict.GONE),
        (413, Verdict.WRONG),
        (415, Verdict.WRONG),
        (422, Verdict.WRONG),
        (431, Verdict.WRONG),
        (429, Verdict.UNWELL),
        (500, Verdict.UNWELL),
        (503, Verdict.UNWELL),
        (100, Verdict.UNWELL),
    ],
)
def test_answers_mean_what_the_page_says(code: int, verdict: Verdict) -> None:
    found, why = verdict_of(code, b"be\ncause", is_xmlrpc=False)
    assert found is verdict
    assert (why == "") is (verdict is Verdict.TAKEN)
    if why:
        assert f"{code}" in why
        assert "be cause" in why


def response(*parameters: Any) -> bytes:
    return xmlrpc.client.dumps(parameters, methodresponse=True, allow_none=True).encode()


FAULT = b"<?xml version='1.0'?><methodResponse><fault><value><string>"
DECLARES = f'<!DOCTYPE a [<!ENTITY b "c">]>{response(True).decode().partition("?>")[2]}'


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (response(True), Verdict.TAKEN),
        (response(None), Verdict.TAKEN),
        (xmlrpc.client.dumps(xmlrpc.client.Fault(4, "no")).encode(), Verdict.WRONG),
        (b"<html>", Verdict.UNWELL),
        (b"", Verdict.UNWELL),
        (response("x" * ANSWER_MAX)[:ANSWER_MAX], Verdict.TAKEN),  # the rest is not read
        (FAULT + b"x" * ANSWER_MAX, Verdict.WRONG),
        (b"<methodCall><params>" + b"x" * ANSWER_MAX, Verdict.UNWELL),
        (b"<methodResponse>" + b" " * ANSWER_MAX, Verdict.UNWELL),
        (b"x" * ANSWER_MAX, Verdict.UNWELL),
        (response("x" * 100)[:150], Verdict.UNWELL),
        (b'<!DOCTYPE a [<!ENTITY b "c">]>' + response(True), Verdict.UNWELL),
        (DECLARES.encode("utf-16"), Verdict.UNWELL),
        (DECLARES.encode("utf-16") + b"\n\0" * ANSWER_MAX, Verdict.UNWELL),
    ],
)
def test_an_answer_of_xmlrpc_takes_a_message_only_where_it_is_one(
    answer: bytes, verdict: Verdict
) -> None:
    assert verdict is verdict_of(200, answer, is_xmlrpc=True)[0]


# --- the endpoint


class Site:
    """An endpoint's other end: what was called, and what is answered when a test says so."""

    def __init__(self, **more: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.calls: list[tuple[bytes, Deferred[Answer]]] = []
        self.gone: list[str] = []
        self.endpoint = Endpoint(
            "https://a.example/",
            make_call=a_call,
            post=self._post,
            gone=self.gone.append,
            clock=self.clock,
            wall=lambda: int(self.clock.seconds() * 1000),
            rng=lambda: 1.0,
            asked_max=100.0,
            **more,
        )

    def _post(self, call: Call) -> Deferred[Answer]:
        answer: Deferred[Answer] = Deferred()
        self.calls.append((call.body, answer))
        return answer

    def deliver(self, body: bytes = b"one", ttl: int | None = None) -> Outcome:
        """Hand in a message; `ttl`: ms that are left of its time."""
        message = a_message(body)
        if ttl is not None:
            message.run.expires_at = int(self.clock.seconds() * 1000) + ttl
        return Outcome(Deferred.fromCoroutine(self.endpoint.deliver(message)))

    def take(self) -> list[bytes]:
        return [body for body, answer in self.calls if not answer.called]

    def answer(self, code: int, body: bytes = b"", retry_after: str = "") -> None:
        """Answer the oldest call that waits."""
        waiting = next(answer for _, answer in self.calls if not answer.called)
        waiting.callback(Answer(code, body, retry_after))

    def fail(self, error: Exception) -> None:
        waiting = next(answer for _, answer in self.calls if not answer.called)
        waiting.errback(Failure(error))


class Outcome:
    def __init__(self, done: Deferred[None]) -> None:
        self.done = done
        self.told: list[Any] = []
        done.addBoth(self.told.append)

    @property
    def is_taken(self) -> bool:
        return self.told == [None]

    @property
    def reason(self) -> str:
        (failure,) = self.told
        return str(failure.trap(Retry) and failure.value.reason)


def test_messages_are_calls_at_once_while_the_endpoint_is_well() -> None:
    site = Site()
    outcomes = [site.deliver(body) for body in (b"a", b"b")]
    assert [b"a", b"b"] == site.take()
    site.answer(200)
    site.answer(204)
    assert [True, True] == [one.is_taken for one in outcomes]
    assert site.endpoint.trouble is None


def test_what_tls_came_to_is_told_in_words() -> None:
    site = Site()
    site.deliver()
    ((_, waiting),) = site.calls
    waiting.errback(SSL.Error([("SSL routines", "", "wrong version number")]))
    assert "TLS: the other side speaks no TLS: is it an address" in (site.endpoint.trouble or "")


def test_an_endpoint_that_is_unwell_is_tried_with_one_message_at_a_time() -> None:
    site = Site()
    outcomes = [site.deliver(body) for body in (b"a", b"b", b"c")]
    for _ in range(3):
        site.answer(503, b"down for now")
    assert [] == site.take()
    assert site.endpoint.trouble == "the endpoint says 503: down for now"
    for delay in (0.5, 1.0, 2.0, 4.0):
        site.clock.advance(delay - 0.01)
        assert [] == site.take()
        site.clock.advance(0.01)
        assert 1 == len(site.take())
        site.fail(ConnectionRefusedError("refused"))
    late = site.deliver(b"d")
    assert [] == site.take()
    site.clock.advance(8.0)
    (probe,) = site.take()
    assert probe == b"a"  # the first stays the first
    site.answer(200)
    assert [b"b", b"c", b"d"] == site.take()
    for _ in range(3):
        site.answer(200)
    assert all(one.is_taken for one in [*outcomes, late])


def test_since_when_it_is_unwell_is_when_that_began_until_it_is_well() -> None:
    site = Site()
    site.deliver()
    begin = site.clock.seconds()
    assert site.endpoint.unwell_since is None
    site.answer(503)
    for _ in range(3):
        site.clock.advance(5.0)
        site.answer(500)
        assert begin == site.endpoint.unwell_since
    site.clock.advance(5.0)
    site.answer(200)
    assert site.endpoint.unwell_since is None


def test_what_would_let_it_be_dialled_is_known_while_that_is_why_nothing_is_taken() -> None:
    site = Site()
    site.deliver()
    site.fail(NotReachable("10.0.0.1", "networks of [webhook]"))
    assert "networks of [webhook]" == site.endpoint.forbidden
    site.clock.advance(0.5)
    site.answer(503)
    assert "" == site.endpoint.forbidden


def test_a_try_that_hangs_lets_nobody_call_without_a_pause() -> None:
    site = Site()
    for body in (b"slow", b"a", b"b"):
        site.deliver(body)
    slow, first, _ = [answer for _, answer in site.calls]
    first.callback(Answer(500, b""))
    site.clock.advance(0.5)
    assert [b"slow", b"b", b"a"] == site.take()  # the next try, which is not answered
    slow.callback(Answer(200, b""))
    assert site.endpoint.trouble is None
    site.answer(500)  # b: it is unwell again, and waits as at the first time
    assert [b"a"] == site.take()
    assert site.endpoint.next_try_in == 0.5
    site.clock.advance(0.5)
    assert [b"a", b"b"] == site.take()
    site.answer(500)  # the old try says no more than any call
    assert [b"b"] == site.take()
    assert site.endpoint.next_try_in is None, "one try at a time"
    site.answer(500)
    assert site.endpoint.next_try_in == 1.0


def test_the_delay_is_bounded_and_begins_anew_once_it_was_well() -> None:
    site = Site()
    site.deliver()
    site.answer(500)
    for _ in range(15):
        site.clock.advance(DELAY_MAX)
        site.answer(500)
    assert site.endpoint.next_try_in == DELAY_MAX
    site.clock.advance(DELAY_MAX)
    site.answer(200)
    site.deliver()
    site.answer(500)
    assert site.endpoint.next_try_in == 0.5


def test_a_message_that_is_wrong_is_an_attempt_and_keeps_no_other_waiting() -> None:
    site = Site()
    wrong, right = site.deliver(b"wrong"), site.deliver(b"right")
    site.answer(422, b"no customer")
    assert wrong.reason == "the endpoint says 422: no customer"
    site.answer(200)
    assert right.is_taken
    assert site.endpoint.trouble is None


def test_a_wrong_message_shows_that_the_endpoint_is_well_again() -> None:
    site = Site()
    wrong, other = site.deliver(b"wrong"), site.deliver(b"other")
    site.answer(500)
    site.answer(500)
    site.clock.advance(0.5)
    site.answer(400)
    assert wrong.reason.startswith("the endpoint says 400")
    assert [b"other"] == site.take()
    site.answer(200)
    assert other.is_taken


def test_retry_after_is_the_endpoints_and_bounded() -> None:
    site = Site()
    site.deliver()
    site.answer(429, retry_after="30")
    site.clock.advance(29.9)
    assert [] == site.take()
    site.clock.advance(0.1)
    site.answer(503, retry_after="1000000")
    assert site.endpoint.next_try_in == 100.0
    site.clock.advance(100.0)
    assert [b"one"] == site.take()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5.0), (" 7 ", 7.0), ("", 0.0), ("-1", 0.0), ("soon", 0.0), ("9" * 400, 999_999_999.0)],
)
def test_seconds_of_retry_after(text: str, seconds: float) -> None:
    assert seconds == seconds_asked(text, 0)


def test_a_date_of_retry_after() -> None:
    now = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
    wall = int(now.timestamp() * 1000)
    text = (now + timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert seconds_asked(text, wall) == 90.0
    assert seconds_asked(text, wall + 3_600_000) == 0.0


def test_an_endpoint_that_has_gone_is_told_once_and_takes_nothing() -> None:
    site = Site()
    outcome = site.deliver()
    site.answer(410)
    assert ["the endpoint says 410: it wants no more"] == site.gone
    assert outcome.reason == site.gone[0]


def test_a_call_that_is_broken_off_says_nothing_of_the_endpoint() -> None:
    site = Site()
    first, second = site.deliver(b"a"), site.deliver(b"b")
    first.done.cancel()
    assert first.told[0].check(CancelledError)
    assert site.endpoint.trouble is None
    site.answer(200)
    assert second.is_taken


def test_a_try_that_is_broken_off_is_followed_by_another() -> None:
    site = Site()
    first, second = site.deliver(b"a"), site.deliver(b"b")
    site.answer(500)
    site.answer(500)
    site.clock.advance(0.5)
    assert [b"a"] == site.take()
    first.done.cancel()
    site.clock.advance(1.0)
    assert b"b" in site.take()
    site.answer(200)
    assert second.is_taken


def test_one_whose_time_ends_while_it_waits_is_given_back_and_never_called() -> None:
    site = Site()
    first, second, third = site.deliver(b"a"), site.deliver(b"b", ttl=300), site.deliver(b"c")
    for _ in range(3):
        site.answer(503, retry_after="100")
    site.clock.advance(0.3)
    assert second.told[0].check(Later)
    late = site.deliver(b"d", ttl=-1)
    assert late.told[0].check(Later)
    assert (0, []) == (len(first.told) + len(third.told), site.take())
    site.clock.advance(100.0)
    site.answer(200)
    site.answer(200)
    assert (True, True) == (first.is_taken, third.is_taken)
    assert [b"a", b"b", b"c"] == [body for body, _ in site.calls[:3]]
    assert b"b" not in [body for body, _ in site.calls[3:]]
    assert not site.clock.getDelayedCalls()


def test_one_whose_time_ends_during_its_call_is_left_to_the_answer() -> None:
    site = Site()
    outcome = site.deliver(b"a", ttl=300)
    site.clock.advance(1.0)
    site.answer(200)
    assert outcome.is_taken


def test_one_that_waits_can_be_broken_off() -> None:
    site = Site()
    first, second = site.deliver(b"a"), site.deliver(b"b")
    site.answer(500)
    site.answer(500)
    first.done.cancel()
    site.clock.advance(0.5)
    assert [b"b"] == site.take()
    site.answer(200)
    assert second.is_taken
    assert first.told[0].check(CancelledError)


def test_where_nothing_waits_whoever_comes_is_the_next_try() -> None:
    site = Site()
    first = site.deliver(b"a")
    site.answer(500)
    first.done.cancel()
    site.clock.advance(0.5)
    site.deliver(b"b")
    assert [b"b"] == site.take()
    site.answer(500)
    assert site.endpoint.next_try_in == 1.0


def test_a_stopped_endpoint_leaves_nothing() -> None:
    site = Site()
    outcomes = [site.deliver(body) for body in (b"a", b"b")]
    site.answer(500)
    site.answer(500)
    site.endpoint.stop()
    assert [] == site.clock.getDelayedCalls()
    for one in outcomes:
        assert one.told[0].check(CancelledError)


@given(st.lists(st.sampled_from(["deliver", "200", "500", "422", "fail", "cancel", "wait"])))
def test_no_message_is_ever_stuck_or_answered_twice(steps: Sequence[str]) -> None:
    """Whatever happens: once the endpoint answers 200 to everything, all that waits is taken."""
    site, outcomes = Site(), list[Outcome]()
    acts: dict[str, Callable[[], Any]] = {
        "200": lambda: site.answer(200),
        "500": lambda: site.answer(500),
        "422": lambda: site.answer(422),
        "fail": lambda: site.fail(ValueError("broken")),
        "wait": lambda: site.clock.advance(DELAY_MAX),
        "deliver": lambda: outcomes.append(site.deliver()),
        "cancel": lambda: outcomes[-1].done.cancel(),
    }
    for step in steps:
        needs = site.take() if step in ("200", "500", "422", "fail") else True
        if needs and (step != "cancel" or (outcomes and not outcomes[-1].told)):
            acts[step]()
        assert len(site.take()) <= len([one for one in outcomes if not one.told])
        if site.endpoint.trouble is not None:
            assert site.endpoint.next_try_in is not None or site.take()
    for _ in range(3):
        while site.take():
            site.answer(200)
        site.clock.advance(DELAY_MAX)
    assert all(len(one.told) == 1 for one in outcomes)
