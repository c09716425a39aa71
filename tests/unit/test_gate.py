"""The gate alone: who is let in, as whom, and what each may do (SEMANTICS 32)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from msgservice.credentials import THIS_PROCESS, Credentials
from msgservice.errors import (
    BadValue,
    Forbidden,
    LoginEnded,
    NotAllowed,
    NotAuthenticated,
)
from msgservice.identity.client_exchange import ClientExchange, Login
from msgservice.identity.passwords import PasswordRecord
from msgservice.identity.principal import Principal
from msgservice.identity.rules import Rules
from msgservice.identity.server_exchange import ServerExchange
from msgservice.identity.steps import Compute, Proven, Say, Welcome
from msgservice.identity.tokens import new_token
from msgservice.identity.users import User
from msgservice.node.gate import ARRIVALS_SECONDS, LISTENER, NAMESPACE, OWN, Door, Gate, Pass
from msgservice.node.seldom import THINGS_MAX
from msgservice.records import ReceiverRow
from tests.kit.passes import HERE, THERE, a_gate, of_program, of_user, users_of

RULES = Rules(
    send=["orders.>"], to=["billing"], receive=["orders.eu.>"], request=["$node.receivers.*"]
)
SHOP = User(name="shop", rules=RULES, uids=(1000,))
AUDIT = User(name="audit", names=("audit", "watch.*"), rules=Rules(receive=[">"]))
TLS = Credentials(how="tls", is_local=False, address="192.0.2.7", is_private=True)


def shown(**fields: Any) -> Credentials:
    return replace(HERE, **fields)


# --- nobody is configured


@pytest.mark.parametrize(
    ("credentials", "administrates"),
    [
        (HERE, True),
        (shown(how="unix", uid=1000), True),
        (THIS_PROCESS, True),
        (replace(THERE, how="udp", key_id=1), False),
    ],
)
def test_32_where_nobody_is_configured_who_is_here_or_has_the_key_is_believed(
    credentials: Credentials, administrates: bool
) -> None:
    allowed = a_gate().admit(None, credentials, LISTENER, "anybody")
    for verb in ("send", "to", "receive"):
        assert allowed.allows(verb, "whatever")
    assert administrates is allowed.allows("request", "$node.info")
    allowed.check_name("billing", "")
    allowed.check_name("billing", "somebody")
    allowed.check_receives([">"])
    assert "" == allowed.owner


def test_32_who_is_elsewhere_is_let_in_by_insecure_alone_and_never_administrates() -> None:
    with pytest.raises(NotAuthenticated, match="local connections only"):
        a_gate().admit(None, THERE, LISTENER, "anybody")
    allowed = a_gate(insecure=True).admit(None, THERE, LISTENER, "anybody")
    assert allowed.allows("send", "orders.new")
    assert not allowed.allows("request", "$node.receivers.list")
    refusal = allowed.refusal("$node.receivers.list")
    assert isinstance(refusal, NotAuthenticated)
    assert "local connections only" in str(refusal)


def test_no_login_is_offered_where_nobody_is_configured() -> None:
    with pytest.raises(NotAuthenticated, match="no login is offered here"):
        a_gate().login(HERE)


def test_who_acts_for_a_user_that_nobody_configured_is_not_let_in() -> None:
    for act in (
        lambda: of_user(a_gate(), "shop"),
        lambda: a_gate().acting_for("shop"),
        lambda: of_user(a_gate(AUDIT), "shop"),
        lambda: a_gate(AUDIT).acting_for("shop"),
    ):
        with pytest.raises(NotAuthenticated, match="'shop'"):
            act()


# --- who is known, and by what


@pytest.mark.parametrize(
    ("credentials", "door", "how"),
    [
        (shown(how="unix", uid=1000), LISTENER, "unix 1000"),
        (replace(THERE, how="udp", key_id=3, key_user="shop"), LISTENER, "udp 3"),
        (HERE, Door(asks=False, user="shop"), "no login"),
        (THIS_PROCESS, Door(asks=False, user="shop"), "process"),
    ],
)
def test_a_user_is_known_by_what_the_connection_or_its_door_says(
    credentials: Credentials, door: Door, how: str
) -> None:
    gate = a_gate(SHOP)
    allowed = gate.admit(None, credentials, door, "shop")
    assert ("shop", how) == (allowed.principal.user, allowed.principal.how)
    assert gate.holds(allowed)
    assert "shop" == allowed.owner


@pytest.mark.parametrize(
    "credentials",
    [
        HERE,  # loopback too: a proxy makes everybody that
        THERE,
        TLS,
        shown(how="unix", uid=1001),
        replace(THERE, how="udp", key_id=3),
    ],
)
@pytest.mark.parametrize("insecure", [False, True])
def test_32_from_the_first_user_on_every_listener_asks(
    credentials: Credentials, insecure: bool
) -> None:
    with pytest.raises(NotAuthenticated, match="asks for a login"):
        a_gate(SHOP, insecure=insecure).admit(None, credentials, LISTENER, "shop")


def test_a_key_of_a_user_that_is_not_configured_lets_nobody_in() -> None:
    holder = replace(THERE, how="udp", key_id=3, key_user="nobody")
    with pytest.raises(NotAuthenticated, match="'nobody' is not configured"):
        a_gate(SHOP).admit(None, holder, LISTENER, "nobody")


def test_only_the_programs_own_door_makes_its_clients_the_program() -> None:
    gate = a_gate(SHOP)
    assert of_program(gate).allows("request", "$node.receivers.remove")
    with pytest.raises(NotAuthenticated):
        gate.admit(None, THIS_PROCESS, LISTENER, "shop")
    with pytest.raises(NotAuthenticated):
        gate.admit(None, HERE, OWN, "shop")


def test_what_a_login_has_shown_counts_before_what_the_connection_shows() -> None:
    gate = a_gate(SHOP, AUDIT)
    principal = users_of(SHOP, AUDIT).named("audit", "no login")
    allowed = gate.admit(principal, shown(how="unix", uid=1000), LISTENER, "audit")
    assert "audit" == allowed.principal.user


def test_a_login_that_holds_no_longer_when_hello_comes_has_ended() -> None:
    gate = a_gate(SHOP)
    stale = Principal(user="shop", how="no login", generation=1)
    with pytest.raises(LoginEnded):
        gate.admit(stale, HERE, LISTENER, "shop")


# --- names


@pytest.mark.parametrize(
    ("user", "name", "may"),
    [
        ("shop", "shop", True),
        ("shop", "shop.till", True),
        ("shop", "shop.till.1", True),
        ("shop", "shopper", False),
        ("shop", "audit", False),
        ("audit", "watch.night", True),
        ("audit", "watch.night.1", False),
        ("audit", "audit.1", False),
    ],
)
def test_a_user_has_the_names_that_are_its_and_no_other(user: str, name: str, may: bool) -> None:
    gate = a_gate(SHOP, AUDIT)
    if may:
        assert of_user(gate, user, name).may_be_called(name)
    else:
        with pytest.raises(NotAllowed, match=f"'{user}' may not be called '{name}'"):
            of_user(gate, user, name)


@pytest.mark.parametrize("owner", ["", "audit"])
def test_a_receiver_that_is_another_users_or_nobodys_is_given_to_none(owner: str) -> None:
    allowed = of_user(a_gate(SHOP, AUDIT), "shop")
    with pytest.raises(NotAllowed) as refused:
        allowed.check_name("shop.till", owner)
    # As where the name is none of its own: what is there is not told.
    with pytest.raises(NotAllowed) as other:
        of_user(a_gate(SHOP, AUDIT), "shop", "audit")
    assert str(refused.value).replace("shop.till", "X") == str(other.value).replace("audit", "X")
    allowed.check_name("shop.till", "shop")
    allowed.check_name("shop.till", None)  # it is new


# --- rules


@pytest.mark.parametrize(
    ("verb", "name", "may"),
    [
        ("send", "orders.new", True),
        ("send", "bills.new", False),
        ("to", "billing", True),
        ("to", "audit", False),
        ("receive", "orders.eu.>", True),
        ("receive", "orders.eu.new", True),
        ("receive", "orders.>", False),
        ("request", "$node.receivers.list", True),
        ("request", "$node.info", False),
        ("request", "$node.audit", False),
    ],
)
def test_what_no_rule_allows_is_forbidden(verb: Any, name: str, may: bool) -> None:
    assert may is of_user(a_gate(SHOP), "shop").allows(verb, name)


def test_a_request_that_is_not_allowed_is_forbidden_by_name() -> None:
    refusal = of_user(a_gate(SHOP), "shop").refusal("$node.info")
    assert isinstance(refusal, Forbidden)
    assert ("request", "$node.info") == (refusal.verb, refusal.name)


def test_each_pattern_of_a_receiver_must_be_covered() -> None:
    allowed = of_user(a_gate(SHOP), "shop")
    allowed.check_receives(["orders.eu.new", "orders.eu.*"])
    with pytest.raises(NotAllowed, match=r"receive 'orders\.us\.new'"):
        allowed.check_receives(["orders.eu.new", "orders.us.new"])


def test_patterns_are_judged_by_the_rules_of_a_receivers_owner() -> None:
    gate = a_gate(SHOP)
    gate.check_subjects("shop", ["orders.eu.new"])
    gate.check_subjects("", [">"])  # the operator's own
    with pytest.raises(BadValue, match="'shop' may not receive it"):
        gate.check_subjects("shop", ["orders.>"])
    a_gate().check_subjects("shop", ["orders.>"])


def test_a_receiver_is_given_to_users_that_there_are() -> None:
    a_gate(SHOP).check_user("shop")
    for gate in (a_gate(SHOP), a_gate()):
        with pytest.raises(BadValue, match="'audit' is not configured"):
            gate.check_user("audit")


# --- who is dialled


def test_a_dialled_receiver_hands_in_as_its_owner_and_else_nothing() -> None:
    gate = a_gate(SHOP)
    owned, nobodys = gate.admit_dialled("shop", THERE), gate.admit_dialled("", THERE)
    assert (True, False) == (owned.allows("send", "orders.new"), owned.allows("send", "bills"))
    assert not nobodys.allows("send", "orders.new")
    assert not nobodys.allows("to", "billing")
    assert not nobodys.allows("request", "$node.info")
    assert a_gate().admit_dialled("", THERE).allows("send", "orders.new")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"owner": "shop", "patterns": ("orders.eu.>",)}, None),
        ({"owner": "shop", "patterns": ("orders.>",)}, "may not receive"),
        ({"owner": "gone", "patterns": ("orders.eu.>",)}, "'gone' is not configured"),
        ({"owner": "", "patterns": (">",)}, None),
        ({"owner": "", "address": "tcp:192.0.2.7:7420"}, "insecure = true"),
        ({"owner": "", "address": "tls:192.0.2.7:7420"}, None),
        ({"owner": "", "address": None}, None),
    ],
)
def test_who_may_not_receive_what_it_would_get_is_not_dialled(
    row: dict[str, Any], why: str | None
) -> None:
    made = ReceiverRow(number=1, name="billing", **({"address": "tcp:127.0.0.1:7420"} | row))
    found = a_gate(SHOP).why_not_dialled(made)
    assert (found is None) if why is None else (found is not None and why in found)
    assert a_gate().why_not_dialled(made) is None


def test_a_plain_address_elsewhere_is_dialled_where_that_is_said() -> None:
    made = ReceiverRow(number=1, name="billing", address="tcp:192.0.2.7:7420")
    assert a_gate(SHOP, insecure=True).why_not_dialled(made) is None


# --- logins


PASSWORD = PasswordRecord.of("correct horse", iterations=4096)


class Dialogue:
    """A client that logs in at a gate."""

    def __init__(self, gate: Gate, login: Login, credentials: Credentials = HERE) -> None:
        self.server = gate.login(credentials)
        self.client = ClientExchange(login, credentials)
        self.principal: Principal | None = None
        self.error: Any = None

    def play(self) -> None:
        self._say(self.client.begin())

    def _say(self, data: bytes) -> None:
        self.server.receive(data).addCallbacks(self._heard, self._failed)

    def _heard(self, step: Say | Welcome) -> None:
        if isinstance(step, Welcome):
            self.principal = step.principal
        told: Any = self.client.receive(step.data)
        while isinstance(told, Compute):
            told = self.client.resume(told.work())
        if isinstance(told, Say):
            self._say(told.data)
        else:
            assert isinstance(told, Proven)

    def _failed(self, failure: Any) -> None:
        self.error = failure.value


def with_password(clock: Clock | None = None, **more: Any) -> Gate:
    return a_gate(replace(SHOP, password=PASSWORD), clock=clock, **more)


def test_a_password_makes_the_user_of_a_connection() -> None:
    gate = with_password()
    dialogue = Dialogue(gate, Login(user="shop", password="correct horse"))
    dialogue.play()
    assert dialogue.principal is not None
    allowed = gate.admit(dialogue.principal, HERE, LISTENER, "shop")
    assert ("shop", "password") == (allowed.principal.user, allowed.principal.how)


def test_a_wrong_password_is_told_after_a_while_and_stands_in_the_log_without_it() -> None:
    clock = Clock()
    gate = with_password(clock)
    dialogue = Dialogue(gate, Login(user="shop", password="wrong horse"))
    with capturedLogs() as events:
        dialogue.play()
        assert dialogue.error is None
        clock.advance(1.0)
    assert isinstance(dialogue.error, NotAuthenticated)
    assert "wrong user or password" in str(dialogue.error)
    (event,) = events
    line = formatEvent(event)
    assert NAMESPACE == event["log_namespace"]
    assert "'shop'" in line
    assert "127.0.0.1" in line
    assert "horse" not in repr(event)


def test_failed_logins_are_looked_at_so_often_a_minute() -> None:
    clock = Clock()
    gate = with_password(clock, login_failures=2)
    for _ in range(2):
        Dialogue(gate, Login(user="shop", password="wrong horse")).play()
    right = Dialogue(gate, Login(user="shop", password="correct horse"))
    right.play()
    clock.advance(1.0)
    assert right.principal is None
    assert "too many" in str(right.error)
    clock.advance(60.0)
    right = Dialogue(gate, Login(user="shop", password="correct horse"))
    right.play()
    assert right.principal is not None


def test_a_connection_that_goes_while_its_login_is_refused_leaves_no_timer() -> None:
    clock = Clock()
    gate = with_password(clock)
    waiting: Deferred[Any] = gate.login(HERE).receive(b"nonsense")
    waiting.addErrback(lambda failure: None)
    waiting.cancel()
    clock.advance(0)  # the end of the turn that it was looked at in
    assert not [call for call in clock.getDelayedCalls() if call.getTime() <= 1.0]


def test_steps_of_logins_that_come_together_have_a_slice_of_each_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = with_password(clock := Clock())
    looked_at = 0

    def look(_exchange: ServerExchange, _data: bytes) -> Say:
        nonlocal looked_at
        looked_at += 1
        clock.rightNow += ARRIVALS_SECONDS / 4
        return Say(b"")

    monkeypatch.setattr(ServerExchange, "receive", look)
    answered: list[object] = []
    for _ in range(10):
        gate.login(HERE).receive(b"a step").addCallback(answered.append)
    assert (looked_at, len(answered)) == (4, 4)
    while clock.getDelayedCalls():
        clock.advance(0)
    assert (looked_at, len(answered)) == (10, 10)


@pytest.mark.parametrize("insecure", [False, True])
def test_where_others_read_along_no_login_is_taken_unless_insecure(insecure: bool) -> None:
    gate = with_password(insecure=insecure)
    if insecure:
        gate.login(THERE)
    else:
        with pytest.raises(NotAuthenticated, match="insecure = true"):
            gate.login(THERE)
    gate.login(TLS)
    gate.login(replace(THERE, how="udp", key_id=1, is_private=True))


# --- when users change


def pass_of(gate: Gate, user: str = "shop") -> Pass:
    return of_user(gate, user)


def test_a_reload_ends_what_is_of_users_that_are_gone_or_others_now() -> None:
    gate = a_gate(SHOP, AUDIT)
    shop, audit, program = pass_of(gate), pass_of(gate, "audit"), of_program(gate)
    gate.replace(users_of(replace(SHOP, rules=Rules(send=["bills.>"])), AUDIT))
    assert [False, True, True] == [gate.holds(one) for one in (shop, audit, program)]
    assert isinstance(gate.ended(shop), LoginEnded)
    assert pass_of(gate).allows("send", "bills.new")
    gate.replace(users_of(AUDIT))
    assert not gate.holds(shop)
    assert isinstance(gate.ended(shop), NotAuthenticated)


def test_the_first_user_ends_what_was_let_in_without() -> None:
    gate = a_gate()
    anybody, program = gate.admit(None, HERE, LISTENER, "anybody"), of_program(gate)
    gate.replace(users_of(SHOP))
    assert [False, True] == [gate.holds(anybody), gate.holds(program)]


def test_a_reload_does_not_take_the_last_user_away() -> None:
    gate = a_gate(SHOP)
    with pytest.raises(BadValue, match="start the node anew"):
        gate.replace(users_of())
    assert gate.asks


def test_a_token_that_expires_ends_what_it_let_in() -> None:
    clock = Clock()
    token, secret = new_token("shop", expires=5000)
    gate = a_gate(clock=clock)
    gate.replace(users_of(SHOP, tokens=[token]))
    dialogue = Dialogue(gate, Login(token=secret))
    dialogue.play()
    allowed = gate.admit(dialogue.principal, HERE, LISTENER, "shop")
    assert 5.0 == gate.seconds_left(allowed)
    clock.advance(5.0)
    assert not gate.holds(allowed)
    assert gate.seconds_left(of_program(gate)) is None


@pytest.mark.parametrize(
    ("days", "told"), [(8, []), (3, ["expires in 3.0 days"]), (0, ["has expired"])]
)
def test_a_token_that_expires_soon_is_a_warning_once_a_day(days: int, told: list[str]) -> None:
    clock = Clock()
    clock.advance(30 * 86400.0)
    token, _ = new_token("shop", expires=int(clock.seconds() * 1000) + days * 86_400_000)
    gate = a_gate(clock=clock)
    lines: list[str] = []
    with capturedLogs() as events:
        for _ in range(2):
            gate.replace(users_of(SHOP, tokens=[token]))
        lines += [formatEvent(event) for event in events if "token {id}" in event["log_format"]]
    assert [f"token {token.id} of user shop {end}: make another one" for end in told] == [
        line.partition(" (")[0] for line in lines
    ]


def test_a_token_that_comes_to_its_last_days_while_the_node_runs_is_a_warning() -> None:
    clock = Clock()
    token, secret = new_token("shop", expires=8 * 86_400_000)
    gate = a_gate(clock=clock)
    gate.replace(users_of(SHOP, tokens=[token]))
    dialogue = Dialogue(gate, Login(token=secret))
    dialogue.play()
    with capturedLogs() as events:
        for _ in range(30):
            gate.admit(dialogue.principal, HERE, LISTENER, "shop")
            clock.advance(3600.0 * 1.5)
    lines = [formatEvent(event) for event in events if "token {id}" in event["log_format"]]
    assert 1 == len(lines)
    assert f"token {token.id} of user shop expires in 6.9 days" in lines[0]


# --- what the log says


def test_who_came_who_was_turned_away_and_who_changed_something_is_told_once() -> None:
    gate = a_gate(SHOP)
    with capturedLogs() as events:
        for _ in range(3):
            allowed = of_user(gate, "shop", "shop.till")
            with pytest.raises(NotAllowed):
                of_user(gate, "shop", "audit")
        gate.changed(allowed, 'receivers.remove {"name":"x\n y"}')
    lines = [formatEvent(event) for event in events]
    assert {NAMESPACE} == {event["log_namespace"] for event in events}
    assert [
        "user shop (process) at this process is shop.till",
        "user shop (process) at this process was not let in: user 'shop' may not be called"
        " 'audit': that is none of its names",
        'user shop (process) at this process: receivers.remove {"name":"x y"}',
    ] == lines


def guess(gate: Gate, user: str, credentials: Credentials = HERE) -> None:
    """Fail to log in as this user."""
    login = gate.login(credentials)
    for said in (f"SCRAM-SHA-256\0n,,n={user},r=abc", "c=biws,r=x,p=AAAA"):
        login.receive(said.encode()).addErrback(lambda denied: denied.trap(NotAuthenticated))


def test_a_stranger_that_makes_up_names_keeps_no_line_about_users_out_of_the_log() -> None:
    clock = Clock()
    gate = a_gate(SHOP, clock=clock)
    for number in range(2 * THINGS_MAX):
        guess(gate, f"made-up-{number}")
    with capturedLogs() as events:
        guess(gate, "shop")
        of_user(gate, "shop", "shop.till")
        with pytest.raises(NotAllowed):
            of_user(gate, "shop", "audit")
    lines = [formatEvent(event) for event in events]
    assert ["login of user 'shop'", "is shop.till", "was not let in"] == [
        words
        for line in lines
        for words in ("login of user 'shop'", "is shop.till", "was not let in")
        if words in line
    ]


def test_guesses_about_one_user_keep_no_line_about_another_out_of_the_log() -> None:
    gate = a_gate(SHOP, replace(SHOP, name="billing", uids=()))
    for number in range(2 * THINGS_MAX):
        guess(gate, "shop", replace(HERE, address=f"192.0.2.{number}"))
    with capturedLogs() as events:
        guess(gate, "billing")
    assert [True] == ["login of user 'billing'" in formatEvent(event) for event in events]


def test_a_gate_that_is_closed_tells_what_it_counted_and_leaves_no_timer() -> None:
    clock = Clock()
    gate = a_gate(SHOP, clock=clock)
    with capturedLogs() as events:
        for _ in range(3):
            of_user(gate, "shop", "shop.till")
        gate.stop()
    assert formatEvent(events[-1]).endswith("is shop.till (2 times)")
    assert [] == clock.getDelayedCalls()
