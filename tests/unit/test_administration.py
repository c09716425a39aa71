"""Operations of the node as they are asked and answered: their registry, and JSON as recorded.

What was recorded is what a node of before the registry said, byte for byte.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest

from msgservice import cli
from msgservice.administration import OPERATIONS, RETELL, Operation
from msgservice.core.frames import Reply, Request
from msgservice.limits import Rate
from msgservice.message import FLAG_RETAIN, Action, WireMessage, encode_messages
from msgservice.webhooks.transport import WebhookTransport
from tests.kit.nodes import NodeWorld, ScriptedPeer

DEAD = 1 << 16
_LIST = (
    b'{"order":"none","on_full":"suspend","backlog_bytes":8589934592,"paused":true,"away_max":0,"shared":false,'
    b'"max_attempts":20,"retry_delay_min":0,"retry_delay_max":0,'
    b'"name":"audit","address":null,"subjects":[">"],"suspended":false,"rate":null,'
    b'"refuses":false,"connected":false,"since_s":0.006,"cursor":196607,"attempts":0,'
    b'"waits":null,"last_error":"","next_try_s":null,"oldest_s":null,"dead":0,"dead_bytes":0,'
    b'"queued":0,"queued_bytes":0,"oldest":null,"routed":0,"unaccounted":0,"settled":{},"owner":"","replay":null,"left_out":null,"away_s":null,"stays":"","workers":0,"health":"paused","health_s":0.006,"needs":"","dead_s":null},'
    b'{"order":"strict","on_full":"refuse","backlog_bytes":8589934592,"paused":false,"away_max":0,"shared":false,'
    b'"max_attempts":20,"retry_delay_min":0,"retry_delay_max":0,'
    b'"name":"billing","address":null,"subjects":["orders.>"],"suspended":false,'
    b'"rate":{"messages":100.0,"bytes":null,"burst_seconds":1.0},"refuses":false,'
    b'"connected":true,"since_s":1.022,"cursor":65536,"attempts":0,'
    b'"waits":{"position":65537,"subject":"orders.new"},"last_error":"later",'
    b'"next_try_s":58.984,"oldest_s":1.018,"dead":1,"dead_bytes":158,"queued":2,"queued_bytes":20,'
    b'"oldest":{"position":65537,"subject":"orders.new","at":6},"routed":3,"unaccounted":0,'
    b'"settled":{"dead":1},"owner":"","replay":null,"left_out":null,"away_s":null,"stays":"","workers":1,"health":"failing","health_s":1.016,"needs":"","dead_s":1.016},'
    b'{"order":"strict","on_full":"refuse","backlog_bytes":4194304,"paused":false,"away_max":0,"shared":false,'
    b'"max_attempts":20,"retry_delay_min":0,"retry_delay_max":0,'
    b'"name":"far","address":"tcp:127.0.0.1:1","subjects":[],"suspended":false,"rate":null,'
    b'"refuses":false,"connected":false,"since_s":0.004,"cursor":196607,"attempts":0,'
    b'"waits":null,"last_error":"\'Clock\' object has no attribute \'connectTCP\'",'
    b'"next_try_s":0.496,"oldest_s":null,"dead":0,"dead_bytes":0,"queued":0,"queued_bytes":0,'
    b'"oldest":null,"routed":0,"unaccounted":0,"settled":{},"owner":"","replay":null,"left_out":null,"away_s":null,"stays":"","workers":0,"health":"away","health_s":0.004,"needs":"","dead_s":null}'
)
_LETTER = (
    b'"position":65536,"sender":"shop/4cd9b7672d7fbee8/1","sequence":1,"subject":"orders.new",'
    b'"id":null,"size":158,"reason":"no such customer \xe2\x98\x83","attempts":0,"at":8,"code":0'
)
_PEEKED = (
    b'"position":65537,"sender":"shop/4cd9b7672d7fbee8/2","sequence":2,"subject":"orders.new",'
    b'"id":null,"size":10,"stored_at":6,"status":"queued","attempts":0,"reason":""'
)
_TOUCHED = b'{"count":1,"size":158,"newest":8,"next":65536}'
_RETAINED = (
    b'"subject":"prices.a","position":131072,"sender":"shop/4cd9b7672d7fbee8/4","size":8,'
    b'"stored_at":6'
)
_COUNTED = (
    b'{"kind":"rewind","first":65536,"next":196608,"end":196607,"copied":0,"skipped":0,"over":true,'
    b'"waits":"","kept_from":65536}'
)
_BEGUN = _COUNTED.replace(b"196608", b"65536").replace(b"true", b"false")
_OVER = _COUNTED
_BILLING = {"receiver": "billing"}
_AUDIT = {"subjects": [">"], "order": "none", "on_full": "suspend", "paused": True}
# What is asked, one after the other, and what was said.
RECORDED: list[tuple[str, dict[str, Any], bytes]] = [
    (
        "info",
        {},
        b'{"name":"node-1","log_id":"LOG","version":"VERSION","listeners":[],"connections":2,'
        b'"room":{"used":207,"maximum":17179869184,"free":0,"full":null},"looped":0,"loaded_bytes":1046,"dead_letters":{"new":1,"requeued":0,"dropped":0},'
        b'"requests":{"responders":0,"pending":0,"late":0,"stray":0,"given_up":0},'
        b'"promises":{"open":0,"kept":0,"broken":0}}',
    ),
    ("retained.list", {}, b'{"retained":[{' + _RETAINED + b'}],"next":null}'),
    (
        "retained.get",
        {"subject": "prices.a"},
        b"{" + _RETAINED + b',"message":"kZTEATXAwMA=","next":null}',
    ),
    ("retained.clear", {"subjects": ["prices.a"]}, b'{"cleared":1}'),
    ("receivers.add", {"name": "audit"} | _AUDIT, b'{"name":"audit"}'),
    (
        "receivers.add",
        {"name": "far", "subjects": ["far"], "address": "tcp:127.0.0.1:1"},
        b'{"name":"far"}',
    ),
    (
        "receivers.change",
        {"name": "far", "subjects": [], "backlog_bytes": 4194304},
        b'{"name":"far"}',
    ),
    ("receivers.list", {}, b'{"receivers":[' + _LIST + b'],"next":null}'),
    ("receivers.list", {"after": "far", "limit": 1}, b'{"receivers":[],"next":null}'),
    (
        "status",
        {"id": "log:65536"},
        b'{"position":65536,"sender":"shop/4cd9b7672d7fbee8/1","sequence":1,'
        b'"subject":"orders.new","stored_at":6,"receivers":{"billing":{"status":"dead",'
        b'"attempts":0,"reason":"no such customer \xe2\x98\x83","copy":null,"copy_to":null}},'
        b'"next":null,"due":null,"removed":false,"promise":null}',
    ),
    (
        "status",
        {"id": "log:65537", "limit": 1},
        b'{"position":65537,"sender":"shop/4cd9b7672d7fbee8/2","sequence":2,'
        b'"subject":"orders.new","stored_at":6,"receivers":{"billing":{"status":"queued",'
        b'"attempts":0,"reason":"","copy":null,"copy_to":null}},"next":null,"due":null,'
        b'"removed":false,"promise":null}',
    ),
    (
        "why",
        {"id": "log:65537"},
        b'{"position":65537,"sender":"shop/4cd9b7672d7fbee8/2","sequence":2,'
        b'"subject":"orders.new","stored_at":6,"causes":[{"receiver":"billing","status":"queued",'
        b'"kind":"refusing","sentence":"billing takes it later, it says: later.",'
        b'"help":"It is sent again by itself.","command":"msgservice peek billing","attempts":0,'
        b'"reason":"","since":null,"next_try_at":60008,"behind":null,"node":"","copy":null,"copy_to":null}],"next":null,"due":null,'
        b'"removed":false,"promise":null}',
    ),
    (
        "receivers.why",
        {"name": "billing"},
        b'{"name":"billing","health":"failing","sentence":"billing does not get on with a message'
        b' (orders.new, log:65537): later","since":2,"troubles":[{"kind":"failing","sentence":'
        b'"billing does not get on with a message (orders.new, log:65537): later","help":'
        b'"It is tried again by itself. What comes behind it in its lane waits for it.","command":'
        b'"msgservice peek billing","since":8,"is_severe":true},{"kind":"dead_letters",'
        b'"sentence":"billing has a dead letter, of 158 bytes.","help":"Look at it; send it'
        b' again when its cause is mended, or drop it.","command":"msgservice dead list'
        b' billing","since":8,"is_severe":false}],"health_since":8}',
    ),
    ("dead.list", _BILLING, b'{"dead":[{' + _LETTER + b'}],"next":null}'),
    ("dead.list", _BILLING | {"after": 65536}, b'{"dead":[],"next":null}'),
    (
        "dead.get",
        _BILLING | {"position": 65536},
        b"{" + _LETTER + b',"message":"kZTEA29uZcDAwA==","next":null}',
    ),
    (
        "dead.get",
        _BILLING | {"position": 65536, "offset": 4},
        b"{" + _LETTER + b',"message":"b25lwMDA","next":null}',
    ),
    ("peek", _BILLING | {"limit": 1}, b'{"messages":[{' + _PEEKED + b'}],"next":65537}'),
    (
        "peek.get",
        _BILLING | {"position": 65537},
        b"{" + _PEEKED + b',"message":"kZTEA3R3b8DAwA==","next":null}',
    ),
    ("dead.requeue", _BILLING | {"dry_run": True}, _TOUCHED),
    ("dead.drop", _BILLING | {"dry_run": True}, _TOUCHED),
    (
        "delayed.list",
        {},
        b'{"delayed":[{"id":65536,"due":60008,"sender":"shop/4cd9b7672d7fbee8/5","messages":1,'
        b'"subject":"orders.late","message_id":null,"to":null,"size":11,"accepted_at":8,"expires":null}],'
        b'"next":null}',
    ),
    (
        "delayed.cancel",
        {"id": "shop/4cd9b7672d7fbee8/5"},
        b'{"sender":"shop/4cd9b7672d7fbee8/5","subject":"orders.late","cancelled":1}',
    ),
    ("receivers.pause", {"name": "billing"}, b'{"name":"billing","paused":true}'),
    ("receivers.resume", {"name": "billing"}, b'{"name":"billing","paused":false,"full":null}'),
    (
        "receivers.own",
        {"name": "billing", "user": ""},
        b'{"name":"billing","user":""}',
    ),
    (
        "whoami",
        {},
        b'{"user":null,"how":"process","names":[],"send":[">"],"to":[">"],"receive":[">"],'
        b'"request":[">","$node.>"]}',
    ),
    (
        "receivers.rewind_count",
        {"name": "billing"},
        b'{"name":"billing","replay":' + _COUNTED + b"}",
    ),
    ("receivers.rewind", {"name": "billing"}, b'{"name":"billing","replay":' + _BEGUN + b"}"),
    ("receivers.replay", {"name": "billing"}, b'{"name":"billing","replay":' + _OVER + b"}"),
    ("receivers.rewind_cancel", {"name": "billing"}, b'{"name":"billing","replay":null}'),
    ("reload", {}, b'{"files":[]}'),
    ("audit", {}, b'{"discrepancies":[]}'),
    (
        "receivers.purge",
        {"name": "billing", "dry_run": True},
        b'{"count":2,"size":20,"in_flight":0,"end":196607,"next":65538}',
    ),
    ("receivers.remove", {"name": "billing"}, b'{"queued":2,"dead":1}'),
    (
        "undo",
        {"id": "log:65536"},
        b'{"sender":"shop/4cd9b7672d7fbee8/1","subject":"orders.new","messages":1,'
        b'"receivers":{"billing":{"dead":1}},"next":null,"left":0}',
    ),
    ("receivers.remove", {"name": "billing", "confirm": 2}, b'{"removed":2,"dead":1}'),
    (
        "observe",
        {"after": "audit", "limit": 1},
        b'{"node":{"name":"node-1","version":"VERSION","log_id":"LOG","listeners":[],"at'
        b'":1084,"started_at":0,"connections":1,"receivers":2,"room":{"used":196,"maximu'
        b'm":17179869184,"free":0,"full":null},"loaded_bytes":0,"looped":0,"dead_letters'
        b'":{"new":1,"requeued":0,"dropped":0},"promises":{"open":0,"kept":0,"broken":0},'
        b'"stored":4,"stored_bytes":38,"stored_rate'
        b'":0.0,"settled_rate":0.0,"refused":0,"troubles":[]},"receivers":[{"name":"far"'
        b',"at":1084,"health":"away","since":1020,"connected":false,"address":"tcp:127.0'
        b'.0.1:1","subjects":[],"queued":0,"queued_bytes":0,"backlog_bytes":4194304,"old'
        b'est":null,"rate":0.0,"settled":{},"dead":0,"dead_bytes":0,"attempts":0,"last_error":"\'C'
        b'lock\' object has no attribute \'connectTCP\'","next_try_at":1520,"unaccounted":0'
        b',"replay":null,"troubles":[{"kind":"away","sentence":"far is away: \'Clock\' obj'
        b'ect has no attribute \'connectTCP\'. Nothing waits for it.","help":"The node d'
        b'ials tcp:127.0.0.1:1 again by itself: see that it listens there.","command":""'
        b',"since":1020,"is_severe":false}],"shared":false,"workers":0,'
        b'"health_since":1020}],"next":null}',
    ),
    (
        "receivers.add",
        {"name": "hook", "subjects": [], "address": "https://93.184.216.34/"},
        b'{"name":"hook"}',
    ),
    (
        "receivers.test",
        {"name": "hook"},
        b'{"name":"hook","taken":false,"code":null,"reason":"\'Clock\' object has no attribute'
        b' \'nameResolver\'","seconds":0.0}',
    ),
    ("retell", {"id": "shop/4cd9b7672d7fbee8/1", "count": 3}, b"{}"),
]


def ask(shop: ScriptedPeer, operation: str, asked: dict[str, Any]) -> bytes:
    message = WireMessage(msgspec.json.encode(asked))
    shop.connection.send(Request(1, f"$node.{operation}", msgspec.Raw(encode_messages([message]))))
    shop.world.settle()
    (reply,) = shop.take(Reply)
    ((_, ok, raw),) = reply.replies
    body = msgspec.msgpack.decode(raw, type=WireMessage).body
    assert ok, body
    info = shop.world.node.parts.operations.info()
    for found, told in (
        (info.name, b"node-1"),
        (info.log_id, b"LOG"),
        (info.version, b"VERSION"),
    ):
        body = body.replace(b'"%s"' % found.encode(), b'"%s"' % told)
    return body


def a_scene() -> ScriptedPeer:
    """A node with two receivers: of one message is dead, one waits to be tried again."""
    world = NodeWorld(rates={"billing": Rate(messages=100.0)})
    world.node.parts.connections._transports.register(WebhookTransport())
    billing = world.peer("billing", receive={"subjects": ["orders.>"]})
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one", b"two", b"three"])
    shop.transfer(4, "prices.a", [b"5"], flags=FLAG_RETAIN)
    world.settle()
    billing.nack(DEAD, DEAD, Action.DEAD, 0, "no such customer \N{SNOWMAN}")
    billing.nack(DEAD + 1, DEAD + 1, Action.LATER, 60_000, "later")
    shop.transfer(5, "orders.late", [b"late"], delay=60_000)
    world.settle(1)
    return shop


def test_every_answer_is_what_it_was() -> None:
    shop = a_scene()
    told = [(operation, asked, ask(shop, operation, asked)) for operation, asked, _ in RECORDED]
    assert RECORDED == told


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_answer_has_the_fields_of_its_operation_and_no_others(
    operation: Operation[Any, Any],
) -> None:
    said = [told for name, _, told in RECORDED if name == operation.name]
    assert said
    for told in said:
        value = msgspec.json.decode(told, type=operation.answers)
        assert told == msgspec.json.encode(value)


def test_admin_answers_each_operation() -> None:
    admin = NodeWorld().node.parts.admin
    asked = {right: operation for right, (operation, _) in admin._handlers.items()}
    assert {operation.right: operation for operation in OPERATIONS} == asked


def test_the_command_line_knows_no_operation_but_by_the_registry() -> None:
    folder = Path(cli.__file__).parent
    files = list(folder.rglob("*.py"))
    named = [file.name for file in files if "$node" in file.read_text()]
    assert (len(files) > 10, []) == (True, named)
    used = {
        value
        for file in files
        for value in vars(
            import_module(".".join([cli.__name__, *file.relative_to(folder).with_suffix("").parts]))
        ).values()
        if isinstance(value, Operation)
    }
    # A client asks that by itself, for the receipts that it gives out.
    assert set(OPERATIONS) == used | {RETELL}
