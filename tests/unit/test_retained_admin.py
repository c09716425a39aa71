"""Retained messages as an operator sees them: listed in pages, shown in parts, and cleared."""

from __future__ import annotations

import base64

from msgservice.message import FLAG_RETAIN, decode_messages
from tests.kit.limits import Limits
from tests.kit.nodes import NodeWorld


def test_48_what_is_retained_is_listed_shown_and_cleared() -> None:
    world = NodeWorld(Limits(max_batch=4096))
    shop = world.peer("shop")
    subjects = ["a", "a.b", "a\ue000", "ab", "b"]
    for at, subject in enumerate(subjects, 1):
        shop.transfer(at, subject, [subject.encode() * 3], flags=FLAG_RETAIN)
        world.settle()
    asker = world.peer("asker")
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        ok, page = asker.request("$node.retained.list", {"after": after, "limit": 2})
        assert ok
        seen += [one["subject"] for one in page["retained"]]
        after = page["next"]
    assert sorted(subjects) == seen
    for subject in subjects:
        ok, told = asker.request("$node.retained.get", {"subject": subject})
        assert ok
        (message,) = decode_messages(base64.b64decode(told["message"]))
        assert (message.body, told["next"]) == (subject.encode() * 3, None)
        assert told["sender"].startswith("shop/")
    ok, part = asker.request("$node.retained.get", {"subject": "a", "offset": 1})
    ok, whole = asker.request("$node.retained.get", {"subject": "a"})
    assert base64.b64decode(part["message"]) == base64.b64decode(whole["message"])[1:]
    ok, cleared = asker.request("$node.retained.clear", {"subjects": ["a", "a", "nothing"]})
    assert (ok, cleared) == (True, {"cleared": 1})
    ok, refused = asker.request("$node.retained.get", {"subject": "a"})
    assert (ok, refused) == (False, "nothing is retained of 'a'")
    late = world.peer("late", receive={"subjects": [">"]})
    assert b"aaa" not in late.bodies()
