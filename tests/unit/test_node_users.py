"""A node with users: each has what is its own, by every way in, and nothing else (SEMANTICS 32)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from msgservice.administration import OPERATIONS
from msgservice.core.frames import Nack, Request, StatusFrame, Transfer
from msgservice.errors import (
    BadValue,
    Forbidden,
    LoginEnded,
    NotAllowed,
    NotAuthenticated,
    UnknownMessage,
    UnknownReceiver,
)
from msgservice.faces.gateway import Gateway
from msgservice.identity.client_exchange import ClientExchange, Login
from msgservice.identity.passwords import PasswordRecord
from msgservice.identity.rules import Rules
from msgservice.identity.steps import Compute, Proven, Say
from msgservice.identity.tokens import new_token
from msgservice.identity.users import User, Users
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, WireMessage, encode_messages
from msgservice.node import node as node_module
from msgservice.node.gate import LISTENER, NAMESPACE, Door
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver
from msgservice.records import ReceiverRow
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer, state_of
from tests.kit.passes import HERE, THERE, users_of

PASSWORD = PasswordRecord.of("correct horse", iterations=4096)
SHOP = User(name="shop", rules=Rules(send=["orders.>"], to=["billing"]))
BILLING = User(name="billing", rules=Rules(receive=["orders.>"]))
AUDIT = User(name="audit", names=("audit", "billing.copy"), rules=Rules(receive=["orders.eu.>"]))
OPS = User(name="ops", rules=Rules(request=["$node.>"]))
EVERYBODY = (SHOP, BILLING, AUDIT, OPS)
ORDERS = {"subjects": ["orders.>"]}


class UsersWorld(NodeWorld):
    """A node with these users, whose peers come as a user by a door that asks for no login."""

    def __init__(self, *users: User, **more: Any) -> None:
        super().__init__(users=users_of(*(users or EVERYBODY)), **more)

    def as_user(self, user: str, name: str = "", **more: Any) -> ScriptedPeer:
        more.setdefault("shown", HERE)
        return self.peer(name or user, door=Door(asks=False, user=user), **more)

    def reload(self, *users: User, **more: Any) -> None:
        self.node.reload_users(users_of(*users, **more))
        self.settle()

    def own(self, name: str, user: str) -> list[Any]:
        done: list[Any] = []
        asked = Deferred.fromCoroutine(self.node.parts.receivers.own(name, user))
        asked.addBoth(done.append)
        self.settle()
        return done


def code_of(peer: ScriptedPeer) -> int:
    return peer.connection.peer_error


def nacks(peer: ScriptedPeer) -> list[tuple[int, int, int, str | None]]:
    return [(one.first, one.action, one.code, one.about) for one in peer.take(Nack)]


# --- who comes


def test_32_a_peer_that_shows_nothing_is_asked_for_a_login() -> None:
    world = UsersWorld()
    for shown in (HERE, THERE):
        peer = world.peer("shop", door=LISTENER, shown=shown)
        assert NotAuthenticated.wire_code == code_of(peer)
        assert "asks for a login" in peer.connection.error
    assert [] == list(world.node.parts.directory)


def test_32_a_name_that_is_not_the_users_is_refused_before_anything_is_looked_up() -> None:
    world = UsersWorld()
    peer = world.as_user("shop", "billing", receive=ORDERS)
    assert NotAllowed.wire_code == code_of(peer)
    assert [] == list(world.node.parts.directory)


# --- logins


class LoggingIn(ScriptedPeer):
    """A peer that logs in before it says HELLO."""

    login = Login(user="shop", password="correct horse")

    def channel_up(self, connection: Any) -> None:
        self.exchange = ClientExchange(self.login, HERE)
        connection.auth_received = self._heard
        connection.auth(self.exchange.begin())

    def _heard(self, data: bytes) -> None:
        step = self.exchange.receive(data)
        while isinstance(step, Compute):
            step = self.exchange.resume(step.work())
        if isinstance(step, Say):
            self.connection.auth(step.data)
        else:
            assert isinstance(step, Proven)
            self.connection.authenticated()
            self.connection.hello(self.hello)


class WrongPassword(LoggingIn):
    login = Login(user="shop", password="wrong horse")


def test_a_login_lets_in_as_its_user() -> None:
    world = UsersWorld(replace(SHOP, password=PASSWORD))
    peer = world.peer("shop", door=LISTENER, shown=HERE, kind=LoggingIn)
    ok, told = peer.request("$node.whoami", {})
    assert ok
    assert ("shop", "password", ["orders.>"]) == (told["user"], told["how"], told["send"])


def test_a_wrong_password_is_refused_after_a_while_and_nothing_was_done() -> None:
    world = UsersWorld(replace(SHOP, password=PASSWORD))
    peer = world.peer("shop", door=LISTENER, shown=HERE, kind=WrongPassword)
    assert peer.lost_because is None
    world.settle(1.0)
    assert NotAuthenticated.wire_code == code_of(peer)
    assert "wrong user or password" in peer.connection.error
    assert [] == list(world.node.parts.directory)


def test_who_logged_in_has_the_names_of_its_user_alone() -> None:
    world = UsersWorld(replace(SHOP, password=PASSWORD), AUDIT)
    peer = world.peer("audit", door=LISTENER, shown=HERE, kind=LoggingIn)
    assert NotAllowed.wire_code == code_of(peer)


def test_a_connection_that_goes_while_its_login_waits_leaves_nothing_behind() -> None:
    world = UsersWorld(replace(SHOP, password=PASSWORD))
    peer = world.peer("shop", door=LISTENER, shown=HERE, kind=WrongPassword)
    peer.connection.abort()
    world.settle(2.0)
    assert [] == list(world.node.parts.connections.peers)


# --- send and to


def test_what_a_user_may_not_send_is_refused_and_what_it_may_is_stored() -> None:
    world = UsersWorld()
    billing = world.as_user("billing", receive=ORDERS)
    shop = world.as_user("shop")
    shop.transfer(1, "orders.new", [b"one"])
    shop.transfer(2, "bills.new", [b"two"])
    world.settle()
    assert [b"one"] == billing.bodies()
    assert [(2, Action.REFUSED, Forbidden.refusal_code, "bills.new")] == nacks(shop)


def test_a_receiver_that_may_not_be_named_is_unknown_in_the_same_words() -> None:
    world = UsersWorld()
    world.as_user("billing", receive=ORDERS)
    world.as_user("audit", receive={"subjects": ["orders.eu.>"]})
    shop = world.as_user("shop")
    shop.transfer(1, "orders.new", [b"one"], to=["audit"])
    shop.transfer(2, "orders.old", [b"two"], to=["nobody"])
    shop.transfer(3, "orders.eu", [b"three"], to=["billing"])
    world.settle()
    told = {
        one.first: (one.code, one.reason.replace(one.about or "", "X")) for one in shop.take(Nack)
    }
    assert told[1] == told[2]
    assert UnknownReceiver.refusal_code == told[1][0]
    assert {1, 2} == set(told)


# --- receivers


def test_27_a_new_receiver_is_its_users_and_nobody_elses() -> None:
    world = UsersWorld(BILLING, AUDIT, replace(SHOP, names=("*",), rules=Rules(receive=[">"])))
    billing = world.as_user("billing", receive=ORDERS)
    assert "billing" == state_of(world, "billing").owner
    other = world.as_user("shop", "billing", receive={"subjects": ["other.>"]})
    assert NotAllowed.wire_code == code_of(other)
    assert billing.lost_because is None  # it was not replaced
    assert ("orders.>",) == state_of(world, "billing").subjects  # nor was it changed before that


def test_a_receiver_of_nobody_is_given_to_none_until_the_operator_says_whose_it_is() -> None:
    world = NodeWorld()
    world.peer("billing", receive=ORDERS).connection.abort()
    world.settle()
    world.node.reload_users(users_of(*EVERYBODY))
    door = Door(asks=False, user="billing")
    assert NotAllowed.wire_code == code_of(
        world.peer("billing", door=door, shown=HERE, receive=ORDERS)
    )
    ops = world.peer("ops", door=Door(asks=False, user="ops"), shown=HERE)
    ok, told = ops.request("$node.receivers.own", {"name": "billing", "user": "billing"})
    assert (True, {"name": "billing", "user": "billing"}) == (ok, told)
    peer = world.peer("billing", door=door, shown=HERE, receive=ORDERS)
    assert peer.lost_because is None


def test_an_owner_outlives_that_its_receiver_is_removed_and_made_again() -> None:
    world = UsersWorld(BILLING, replace(SHOP, names=("*",), rules=Rules(receive=[">"])))
    world.as_user("billing", receive=ORDERS)
    removing = Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle()
    assert removing.called
    for incarnation in ("i1", "i2"):  # the second time over a restart
        thief = world.as_user("shop", "billing", receive=ORDERS)
        assert NotAllowed.wire_code == code_of(thief)
        if incarnation == "i1":
            stopped = world.node.stopService()
            world.settle(1.0)
            assert stopped.called
            world.start()
    adding = Deferred.fromCoroutine(world.node.add_receiver("billing", ["orders.>"]))
    world.settle()
    assert adding.called
    assert "billing" == state_of(world, "billing").owner
    assert world.as_user("billing", incarnation="i2", receive=ORDERS).lost_because is None


def test_a_removed_receiver_is_said_to_be_so_only_to_whom_it_was() -> None:
    world = UsersWorld(BILLING, replace(SHOP, names=("*",), rules=Rules(receive=[">"])))
    billing = world.as_user("billing", receive=ORDERS)
    assert billing.node_hello is not None
    known = billing.node_hello.incarnation
    billing.connection.abort()
    world.settle()
    Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle()
    back = {"subjects": ["orders.>"], "known": known}
    assert NotAllowed.wire_code == code_of(world.as_user("shop", "billing", receive=back))
    peer = world.as_user("billing", incarnation="i2", receive=back)
    assert peer.bye is not None
    assert 2 == peer.bye[0]


def test_the_operator_frees_a_name_that_was_removed() -> None:
    world = UsersWorld(BILLING, replace(SHOP, names=("*",), rules=Rules(receive=[">"])))
    world.as_user("billing", receive=ORDERS)
    Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle()
    assert [None] == world.own("billing", "")
    (failure,) = world.own("billing", "shop")  # nothing says any more that it was there
    assert UnknownReceiver is failure.type
    assert world.as_user("shop", "billing", receive=ORDERS).lost_because is None
    assert "shop" == state_of(world, "billing").owner


@pytest.mark.parametrize("owner", ["", "billing"])
def test_who_is_given_a_receiver_that_is_being_removed_is_told_what_came_of_it(
    owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it had no owner its name is nobody's: nothing says that it was there."""
    world = UsersWorld(BILLING, SHOP)
    adding = Deferred.fromCoroutine(world.node.add_receiver("audit", ["orders.>"], owner=owner))
    world.settle()
    assert adding.called
    commits, owning = type(world.node.parts.commits), world.node.parts.receivers.own
    remove = commits.removal
    told: list[Any] = []

    def removal(self: Any, number: int) -> Deferred[None]:
        stored = remove(self, number)
        Deferred.fromCoroutine(owning("audit", "shop")).addBoth(told.append)
        return stored

    monkeypatch.setattr(commits, "removal", removal)
    removing = Deferred.fromCoroutine(world.node.remove_receiver("audit"))
    world.settle()
    assert removing.called
    (outcome,) = told
    if owner:  # whose it was is known, and that may change
        assert outcome is None
        assert "shop" == world.node.parts.directory.owner_of("audit")
    else:
        assert UnknownReceiver is outcome.type
        assert world.node.parts.directory.owner_of("audit") is None


def test_a_receiver_that_gets_another_owner_is_sent_away() -> None:
    world = UsersWorld(BILLING, AUDIT)
    billing = world.as_user("billing", receive=ORDERS)
    assert [None] == world.own("billing", "audit")
    assert billing.bye is not None
    assert NotAllowed.wire_code == code_of(
        world.as_user("billing", incarnation="i2", receive=ORDERS)
    )
    (failure,) = world.own("billing", "nobody")
    assert BadValue is failure.type


def test_a_receiver_that_gets_another_owner_while_its_old_one_says_hello_is_not_given_to_that() -> (
    None
):
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = UsersWorld(BILLING, AUDIT, SHOP, clock=clock, log=log)
    world.as_user("billing", receive=ORDERS).connection.abort()
    world.settle()
    log.hold = True
    Deferred.fromCoroutine(world.node.add_receiver("other", ["other"]))
    thief = world.as_user("billing", receive=ORDERS)
    assert thief.node_hello is None  # it waits for what was changed before
    assert [] == world.own("billing", "audit")
    log.release()
    world.settle()
    world.as_user("shop").transfer(1, "orders.new", [b"one"])
    world.settle()
    assert "audit" == state_of(world, "billing").owner
    assert ([], NotAllowed.wire_code) == (thief.bodies(), code_of(thief))


@pytest.mark.parametrize(
    ("subjects", "may"), [(["orders.eu.>"], True), (["orders.eu.new"], True), (["orders.>"], False)]
)
def test_a_receiver_gets_the_patterns_that_its_user_may_receive(
    subjects: list[str], may: bool
) -> None:
    world = UsersWorld()
    peer = world.as_user("audit", receive={"subjects": subjects})
    assert code_of(peer) == (0 if may else NotAllowed.wire_code)
    assert [one.name for one in world.node.parts.directory] == (["audit"] if may else [])


def test_a_receiver_that_asks_for_no_patterns_is_judged_by_those_that_it_has() -> None:
    world = UsersWorld()
    world.as_user("audit", receive={"subjects": ["orders.eu.>"]}).connection.abort()
    world.settle()
    world.reload(replace(AUDIT, rules=Rules(receive=["orders.us.>"])))
    peer = world.as_user("audit", incarnation="i2", receive={})
    assert NotAllowed.wire_code == code_of(peer)


def test_patterns_that_its_owner_may_not_receive_are_not_given_to_a_receiver() -> None:
    world = UsersWorld()
    world.as_user("audit", receive={"subjects": ["orders.eu.>"]})
    ops = world.as_user("ops")
    for subjects, may in ((["orders.eu.new"], True), ([">"], False)):
        ok, told = ops.request("$node.receivers.change", {"name": "audit", "subjects": subjects})
        assert ok is may, told
    assert "'audit' may not receive it" in told


def test_a_receiver_of_the_configuration_is_the_users_that_it_says() -> None:
    row = ReceiverRow(
        number=0, name="billing", patterns=("orders.>",), configured=True, owner="billing"
    )
    world = UsersWorld(*EVERYBODY, configured=[row])
    assert world.as_user("billing", receive={}).lost_because is None
    other = UsersWorld(*EVERYBODY, configured=[replace(row, owner="")])
    assert NotAllowed.wire_code == code_of(other.as_user("billing", receive={}))


# --- what may be asked


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_an_operation_is_for_who_has_its_right(operation: Any) -> None:
    world = UsersWorld(
        replace(SHOP, rules=Rules(request=[">"])),
        replace(OPS, rules=Rules(request=[operation.right])),
    )
    for user, may in (("ops", True), ("shop", operation.own)):
        peer = world.as_user(user)
        _, told = peer.request(operation.right, {"wrong": 1})
        assert may is ("wrong" in told), (user, told)
        if not may:
            assert f"not allowed: request '{operation.right}'" in told


@pytest.mark.parametrize("operation", ["receivers.add", "receivers.change"])
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tls:far.example:1:trustRoots=/etc/shadow", "trustRoots= names a file of the node's"),
        ("tls:far.example:1:certificate=/a:privateKey=/b", "certificate= names a file"),
        ("udp:far.example:1:key=/etc/shadow", "key= names a file of the node's"),
        (
            "unix:/run/other.sock",
            "a user may give tcp:, tls:, ssl:, udp:, pb:, pbs:, http:, https:, xmlrpc+http:,"
            " xmlrpc+https:; others stand in the configuration alone",
        ),
        ("systemd:domain=INET:index=0", "others stand in the configuration alone"),
    ],
)
def test_an_address_that_a_user_gives_names_nothing_of_the_nodes_machine(
    operation: str, address: str, reason: str
) -> None:
    world = UsersWorld()
    ops = world.as_user("ops")
    assert ops.request("$node.receivers.add", {"name": "far", "subjects": ["a.>"]})[0]
    name = "far" if operation.endswith("change") else "new"
    ok, told = ops.request(f"$node.{operation}", {"name": name, "subjects": [], "address": address})
    assert not ok
    assert reason in str(told)
    assert "No such file" not in str(told)  # nor anything else that was found there
    row = world.node.parts.directory.get(name)
    assert row is None or row.address is None
    ok, _ = ops.request(
        f"$node.{operation}", {"name": name, "subjects": [], "address": "tcp:127.0.0.1:1"}
    )
    assert ok


def test_an_address_for_another_users_receiver_needs_the_right_to_give_it_away() -> None:
    """Whoever answers there is that user, with all that it may do."""
    change = ["$node.receivers.change", "$node.receivers.add"]
    helper = User(name="helper", rules=Rules(request=change, receive=["a.>"]))
    world = UsersWorld(OPS, helper, BILLING)
    world.as_user("billing", receive=ORDERS).connection.abort()
    world.as_user("helper", receive={"subjects": ["a.>"]}).connection.abort()
    world.settle()
    peer, ops = world.as_user("helper", "helper.tool"), world.as_user("ops")
    there = {"name": "billing", "address": "tcp:127.0.0.1:1"}
    new = {"name": "billing", "subjects": [], "address": "tcp:127.0.0.1:1"}
    ok, told = peer.request("$node.receivers.change", there)
    assert (ok, "receivers.own" in told) == (False, True)
    assert peer.request("$node.receivers.change", {"name": "billing", "on_full": "suspend"})[0]
    assert peer.request("$node.receivers.change", {**there, "name": "helper"})[0]
    assert peer.request("$node.receivers.add", {**new, "name": "newest"})[0]
    Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle()
    ok, told = peer.request("$node.receivers.add", new)
    assert (ok, "receivers.own" in told) == (False, True)
    assert world.node.parts.directory.get("billing") is None
    assert ops.request("$node.receivers.add", new)[0]


def test_what_nobodys_receiver_gets_at_an_address_is_what_who_gives_it_may_receive() -> None:
    """The node dials that address, and no owner's rules bound what it sends there."""
    change = ["$node.receivers.change", "$node.receivers.add"]
    helper = User(name="helper", rules=Rules(request=change, receive=["a.>"]))
    world = UsersWorld(OPS, helper)
    peer, ops = world.as_user("helper"), world.as_user("ops")
    there = {"address": "tcp:127.0.0.1:1"}

    def asked(operation: str, name: str, **given: Any) -> bool:
        ok, told = peer.request(f"$node.receivers.{operation}", {"name": name, **given})
        assert ok or "receivers.own" in told
        return ok

    assert not asked("add", "all", subjects=["a.b", ">"], **there)
    assert world.node.parts.directory.get("all") is None
    assert asked("add", "mine", subjects=["a.b"], **there)
    assert not asked("change", "mine", subjects=["a.b", "secret"])
    assert asked("change", "mine", subjects=["a.b", "a.c"], on_full="suspend")
    assert asked("add", "undialled", subjects=[">"])  # nobody can be it
    assert not asked("change", "undialled", **there)
    assert asked("change", "undialled", subjects=["a.b"])
    assert not asked("change", "undialled", **there)  # what waits was not bounded by that
    given = {"name": "undialled", "subjects": [">"], **there}
    assert ops.request("$node.receivers.change", given)[0]
    (row,) = [row for row in world.node.parts.directory if row.name == "undialled"]
    assert (">",) == row.patterns


def test_who_comes_without_login_where_others_read_along_is_nobody() -> None:
    for insecure, shown in ((False, THERE), (True, THERE), (False, HERE)):
        world = UsersWorld(insecure=insecure)
        peer = world.as_user("shop", shown=shown)
        refused = shown is THERE and not insecure
        assert code_of(peer) == (NotAuthenticated.wire_code if refused else 0)


def test_the_operator_of_a_node_without_users_may_give_any_address() -> None:
    world = NodeWorld()
    asked = {"name": "far", "subjects": [], "address": "unix:/run/other.sock"}
    assert world.peer("shop").request("$node.receivers.add", asked)[0]


def test_the_state_of_a_message_is_told_to_its_sender_and_who_has_the_right() -> None:
    world = UsersWorld()
    billing = world.as_user("billing", receive=ORDERS)
    shop = world.as_user("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    billing.nack(1 << 16, 1 << 16, Action.DEAD, reason="it broke\n  File secret.py, line 1")
    world.settle()
    for user, reason in (("shop", "it broke"), ("ops", "it broke\n  File secret.py, line 1")):
        peer = world.as_user(user, incarnation="i2")
        ok, told = peer.request("$node.status", {"id": "log:65536"})
        assert ok, told
        assert reason == told["receivers"]["billing"]["reason"]
    # Of the same message, and of one that there is not, another sender hears the same.
    audit = world.as_user("audit")
    answers = [audit.request("$node.status", {"id": f"log:{at << 16}"}) for at in (1, 99)]
    assert [False, False] == [ok for ok, _ in answers]
    assert answers[0][1].replace("65536", "X") == answers[1][1].replace("6488064", "X")
    assert str(UnknownMessage("log:65536")) == answers[0][1]


def test_an_id_that_another_user_gives_too_hides_nobodys_message() -> None:
    other = User(name="other", rules=Rules(send=["orders.>"]))
    world = UsersWorld(SHOP, other, OPS)
    peers = {user: world.as_user(user) for user in ("shop", "other", "ops")}
    same = msgspec.Raw(encode_messages([WireMessage(b"x", id="17")]))
    for user, sequence in (("shop", 1), ("other", 1), ("other", 2)):
        peers[user].connection.send(Transfer(sequence, "orders.new", same))
        world.settle()
    told = {user: peer.request("$node.status", {"id": "17"}) for user, peer in peers.items()}
    found = {
        user: (said["sender"].split("/")[0], said["sequence"]) if ok else said
        for user, (ok, said) in told.items()
    }
    assert {"shop": ("shop", 1), "other": ("other", 2), "ops": ("other", 2)} == found


def test_a_sender_is_told_the_first_line_of_a_receivers_reason() -> None:
    boss = replace(SHOP, name="boss", rules=Rules(send=[">"], request=["$node.status"]))
    world = UsersWorld(*EVERYBODY, boss)
    billing = world.as_user("billing", receive=ORDERS)
    peers = {user: world.as_user(user, status_from=1) for user in ("shop", "boss")}
    for peer in peers.values():
        peer.transfer(1, "orders.new", [b"one"])
    world.settle()
    for number in (1, 2):
        billing.nack(number << 16, number << 16, Action.DEAD, reason="it broke\nFile secret.py")
    world.settle()
    told = {user: {one.reason for one in peers[user].take(StatusFrame)} for user in peers}
    assert {"shop": {"it broke"}, "boss": {"it broke\nFile secret.py"}} == told


# --- users that change


def test_a_reload_ends_the_sessions_of_who_is_gone_or_another_and_no_other() -> None:
    world = UsersWorld()
    shop, audit, billing = (
        world.as_user("shop"),
        world.as_user("audit", receive={"subjects": ["orders.eu.>"]}),
        world.as_user("billing", receive=ORDERS),
    )
    program = world.peer("the-program")
    world.reload(replace(SHOP, rules=Rules(send=["bills.>"])), BILLING, OPS)
    assert LoginEnded.wire_code == code_of(shop)
    assert NotAuthenticated.wire_code == code_of(audit)
    assert [None, None] == [billing.lost_because, program.lost_because]
    shop = world.as_user("shop", incarnation="i2")
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert [(1, Action.REFUSED, Forbidden.refusal_code, "orders.new")] == nacks(shop)


WIDE = replace(BILLING, rules=Rules(receive=["orders.>", "bills.>"]))
SELLER = replace(SHOP, rules=Rules(send=["orders.>", "bills.>"]))
BOTH = {"subjects": ["orders.>", "bills.>"]}


class KeepingBodies(ScriptedPeer):
    """A receiver that acknowledges, and keeps the bodies."""

    def turn_ended(self, connection: Any) -> None:
        kept = self.take(Transfer)
        for transfer in kept:
            self.ack(transfer)
        self.kept = [*getattr(self, "kept", ()), *kept]

    def bodies(self) -> list[bytes]:
        self.frames = [*getattr(self, "kept", ()), *self.frames]
        self.kept = []
        return super().bodies()


def what_billing_gets(world: UsersWorld, incarnation: str, receive: dict[str, Any]) -> list[bytes]:
    """Send to both subjects while billing is away, and return what it gets when it comes."""
    shop = world.as_user("shop", incarnation=incarnation)
    shop.transfer(1, "bills.new", [b"bill"])
    shop.transfer(2, "orders.new", [b"order"])
    world.settle()
    peer = world.as_user("billing", incarnation=incarnation, receive=receive, kind=KeepingBodies)
    bodies = peer.bodies()
    peer.connection.abort()
    world.settle()
    return bodies


def test_32_what_a_user_may_no_longer_receive_does_not_wait_for_it() -> None:
    world = UsersWorld(SELLER, WIDE)
    world.as_user("billing", receive=BOTH).connection.abort()
    world.settle()
    with capturedLogs() as events:
        world.reload(SELLER, BILLING)
        world.reload(SELLER, BILLING, AUDIT)
    told = [formatEvent(event) for event in events if event.get("patterns")]
    (line,) = told
    assert line.startswith("receiver billing gets nothing of bills.> from now on: its user billing")
    assert [b"order"] == what_billing_gets(world, "i1", ORDERS)


def test_what_a_user_may_receive_again_waits_for_it_again() -> None:
    world = UsersWorld(SELLER, WIDE)
    world.as_user("billing", receive=BOTH).connection.abort()
    world.settle()
    world.reload(SELLER, BILLING)
    world.reload(SELLER, WIDE)
    assert ("orders.>", "bills.>") == state_of(world, "billing").subjects
    assert [b"bill", b"order"] == sorted(what_billing_gets(world, "i1", {}))


def test_a_node_that_starts_with_other_rules_keeps_nothing_for_who_may_not_receive_it() -> None:
    world = UsersWorld(SELLER, WIDE)
    world.as_user("billing", receive=BOTH).connection.abort()
    world.settle()
    world.users = users_of(SELLER, BILLING)
    stopped = world.node.stopService()
    world.settle(1.0)
    assert stopped.called
    world.start()
    assert [b"order"] == what_billing_gets(world, "i2", ORDERS)


def test_a_receiver_that_gets_another_owner_is_sent_what_that_may_receive() -> None:
    other = User(name="other", names=("billing",), rules=Rules(receive=["orders.>"]))
    world = UsersWorld(SELLER, replace(WIDE, names=("billing",)), other)
    world.as_user("billing", receive=BOTH).connection.abort()
    world.settle()
    assert [None] == world.own("billing", "other")
    shop = world.as_user("shop")
    shop.transfer(1, "bills.new", [b"bill"])
    shop.transfer(2, "orders.new", [b"order"])
    world.settle()
    peer = world.as_user("other", "billing", incarnation="i2", receive=ORDERS)
    assert [b"order"] == peer.bodies()


def test_a_removal_that_fails_leaves_a_receiver_what_its_user_may_receive() -> None:
    world = UsersWorld(SELLER, WIDE)
    world.as_user("billing", receive=BOTH).connection.abort()
    world.settle()
    world.reload(SELLER, BILLING)
    directory = world.node.parts.directory
    row = directory.named("billing")
    directory.retire(row)
    world.reload(SELLER, BILLING, AUDIT)
    directory.reinstate(row)
    assert [b"order"] == what_billing_gets(world, "i1", ORDERS)


def test_what_was_in_flight_when_rights_changed_was_not_tried_in_vain() -> None:
    world = UsersWorld(limits=Limits(max_attempts=3))
    world.as_user("billing", receive=ORDERS)
    world.as_user("shop").transfer(1, "orders.new", [b"one"])
    for number in range(6):
        receive = [f"changes.{number}", *BILLING.rules.patterns("receive")]
        world.reload(SHOP, replace(BILLING, rules=Rules(receive=receive)))
        billing = world.as_user("billing", receive=ORDERS)
        assert [b"one"] == billing.bodies()
    assert {} == state_of(world, "billing").settled


def test_what_was_sent_before_a_reload_and_not_yet_read_is_not_taken() -> None:
    world = UsersWorld()
    shop = world.as_user("shop")
    world.node.reload_users(users_of(replace(SHOP, rules=Rules()), BILLING))
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert 0 == world.resume("shop", "i1").floor - 1


def test_calls_that_wait_when_rights_are_taken_away_are_not_carried_out() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = UsersWorld(clock=clock, log=log)
    ops = world.as_user("ops")
    asked = [{"name": name, "subjects": ["a"]} for name in ("one", "two", "three")]
    calls = encode_messages([WireMessage(msgspec.json.encode(each)) for each in asked])
    log.hold = True
    ops.connection.send(Request(1, "$node.receivers.add", msgspec.Raw(calls)))
    world.settle()
    with capturedLogs() as events:
        world.reload(SHOP, BILLING)
        log.release()
        world.settle()
    assert ["one"] == [row.name for row in world.node.parts.directory]
    assert [] == [event for event in events if "receivers.add" in event.get("what", "")]
    assert NotAuthenticated.wire_code == code_of(ops)


def test_the_first_user_of_a_reload_ends_what_was_let_in_without() -> None:
    world = NodeWorld()
    anybody = world.peer("anybody", door=LISTENER, shown=HERE)
    program = world.peer("the-program")
    world.node.reload_users(users_of(SHOP))
    world.settle()
    assert LoginEnded.wire_code == code_of(anybody)
    assert program.lost_because is None


def test_a_token_that_expires_ends_its_session() -> None:
    world = NodeWorld()
    token, secret = new_token("shop", expires=int(world.clock.seconds() * 1000) + 90_000)

    class WithToken(LoggingIn):
        login = Login(token=secret)

    world.node.reload_users(users_of(SHOP, tokens=[token]))
    peer = world.peer("shop", door=LISTENER, shown=HERE, kind=WithToken)
    world.settle(88.0)
    assert peer.lost_because is None
    world.settle(3.0)
    assert LoginEnded.wire_code == code_of(peer)


# --- this process


def test_a_client_of_this_process_acts_for_whom_its_program_says() -> None:
    world = UsersWorld()
    client = world.node.client("shop.till", principal="shop")
    world.settle()
    refused: list[Any] = []
    client.send("bills.new", b"x").addErrback(lambda failure: refused.append(failure.value))
    world.settle()
    (error,) = refused
    assert isinstance(error, Forbidden)
    trusted = world.node.client("anything")
    world.settle()
    stored: list[Any] = []
    trusted.send("bills.new", b"x").addCallback(stored.append)
    world.settle()
    assert stored
    for one in (client, trusted):
        one.close()
    world.settle()


@pytest.mark.parametrize("is_started", [True, False])
def test_a_client_of_nobody_or_by_a_name_of_another_is_the_programs_own_slip(
    is_started: bool,
) -> None:
    world = UsersWorld()
    node = world.node
    if not is_started:
        node = Node(
            world.clock,
            MemoryLog(reactor=world.clock, limits=world.limits),
            users=users_of(*EVERYBODY),
        )
    with pytest.raises(NotAllowed, match="'shop' may not be called 'billing'"):
        node.client("billing", principal="shop")
    with pytest.raises(NotAuthenticated, match="'nobody' is not configured"):
        node.client("x", principal="nobody")
    with pytest.raises(NotAuthenticated, match="'shop' is not configured"):
        NodeWorld().node.client("shop", principal="shop")


def test_a_client_whose_user_a_reload_has_taken_away_says_why() -> None:
    world = UsersWorld()
    client = world.node.client("shop", principal="shop")
    world.settle()
    assert client.connected
    world.reload(BILLING)
    assert not client.connected
    world.settle(60.0)
    assert "'shop' is not configured" in (client.why().error or "")
    with pytest.raises(NotAuthenticated):
        world.node.client("shop", principal="shop")
    client.close()
    world.settle(40.0)


def test_a_receiver_of_a_user_that_is_not_configured_is_not_attached() -> None:
    world = UsersWorld()
    receiver = Receiver(world.clock, name="audit", handler=lambda message: None)
    with pytest.raises(NotAuthenticated, match="'nobody' is not configured"):
        world.node.attach(receiver, ["orders.>"], principal="nobody")
    with pytest.raises(NotAuthenticated, match="'audit' is not configured"):
        NodeWorld().node.attach(receiver, ["orders.>"], principal="audit")
    assert not receiver.ways
    attachment = world.node.attach(receiver, ["orders.>"], principal="shop")  # not its name
    world.settle()
    assert not attachment.connected
    assert "may not be called 'audit'" in attachment.error
    receiver.stop()
    world.settle(40.0)


def test_a_receiver_of_this_process_acts_for_whom_its_program_says() -> None:
    world = UsersWorld()
    receiver = Receiver(world.clock, name="audit", handler=lambda message: None)
    attachment = world.node.attach(receiver, ["orders.>"], principal="audit")
    world.settle()
    assert not attachment.connected
    assert "may not receive 'orders.>'" in attachment.error
    world.node.attach(receiver, ["orders.eu.>"], principal="audit")
    world.settle()
    assert "audit" == state_of(world, "audit").owner
    receiver.stop()
    world.settle(40.0)


def test_the_peers_of_a_face_have_the_names_of_the_user_that_it_acts_for() -> None:
    fleet = User(name="fleet", names=("fleet", "drone.*"), rules=Rules())
    pilot = User(name="pilot", rules=Rules(send=["land"], to=["drone.7"]))
    world = UsersWorld(fleet, pilot)
    handed: list[tuple[str, bytes]] = []
    attachments: list[Any] = []
    gateway: Gateway[str] = Gateway(
        world.clock,
        lambda receiver: attachments.append(world.node.attach(receiver, principal="fleet")),
        lambda peer, message: handed.append((peer, message.body)),
    )
    gateway.add("a drone", "drone.7")
    gateway.add("a thief", "pilot")
    world.settle()
    assert [True, False] == [one.connected for one in attachments]
    assert "may not be called 'pilot'" in attachments[1].error
    assert "fleet" == state_of(world, "drone.7").owner
    client = world.node.client("pilot", principal="pilot")
    world.settle()
    client.send("land", b"now", to=["drone.7"])
    world.settle(1.0)
    assert [("a drone", b"now")] == handed
    gateway.stop()
    client.close()
    world.settle(40.0)


# --- what the log says


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_what_is_only_asked_has_no_line_and_what_changes_something_has_one(operation: Any) -> None:
    words = (
        *("add", "change", "pause", "resume", "remove", "own", "reload"),
        *("rewind", "rewind_cancel", "requeue", "drop", "clear", "cancel", "purge", "undo", "test"),
    )
    assert operation.changes is (operation.name.rpartition(".")[2] in words)


def test_every_change_has_a_line_with_who_and_what_and_from_where() -> None:
    world = UsersWorld()
    ops = world.as_user("ops")
    with capturedLogs() as events:
        ops.request("$node.receivers.add", {"name": "new", "subjects": ["a.>"]})
        ops.request("$node.receivers.list", {})
    lines = [formatEvent(e) for e in events if e["log_namespace"] == NAMESPACE]
    (line,) = lines
    assert line.startswith("user ops (no login) at 127.0.0.1: receivers.add ")
    assert '"name":"new"' in line


def test_users_that_change_while_a_node_starts_are_those_that_were_read_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each reading has a thread of its own, and the first may take longer than the next."""
    first: Deferred[Users] = Deferred()
    readings = [first, succeed(users_of(SHOP))]
    monkeypatch.setattr(node_module, "in_daemon_thread", lambda reactor, work: readings.pop(0))
    clock = Clock()
    log = MemoryLog(reactor=clock, limits=Limits())
    node = Node(clock, log, read_users=users_of)
    node.startService()
    while len(readings) == 2:  # its log is opened first
        clock.advance(0)
    reloaded = node.reload()
    first.callback(users_of(SHOP, BILLING))
    clock.advance(0)
    assert reloaded.called
    assert node.is_running
    node.parts.gate.check_user("shop")
    with pytest.raises(BadValue):
        node.parts.gate.check_user("billing")
    node.stopService()
    clock.advance(0)
