"""The clients, receivers and receipts of all three kinds of program have the same calls."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from types import ModuleType
from typing import get_type_hints

import pytest

from msgservice import aio, blocking
from msgservice.client import client, receipt, responding
from msgservice.client.connect import ConnectArguments, connect
from msgservice.receiver import deliveries, receiver, ways

# Calls of Twisted's objects that are no calls of a program, or have another name elsewhere.
OF_PARTS = {
    # what the parts below call
    *("opened", "settled", "answers_applied", "replied", "closed", "replaced"),
    *("channel_up", "greeted", "lost", "peer_leaves", "received", "turn_ended", "writable"),
    # what a relay of an outbox table calls
    *("hand_over", "room", "next_sequence"),
    # services of Twisted, and what is made of them
    *("start", "as_service", "new_waiter", "attach_through", "startService", "stopService"),
    *("privilegedStartService", "setName", "setServiceParent", "disownServiceParent"),
    *("name", "parent", "running", "logger", "runs"),
}
OF_RECEIPTS = OF_PARTS - {"settled"}
ALIKE = [
    ("Client", client.Client, OF_PARTS),
    ("Receiver", receiver.Receiver, OF_PARTS),
    ("Receipt", receipt.Receipt, OF_RECEIPTS),
    ("Receipts", receipt.Receipts, OF_RECEIPTS),
    ("Responder", responding.Responder, OF_PARTS),
]


def calls_of(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize("package", [aio, blocking])
@pytest.mark.parametrize(("name", "twisted", "left_out"), ALIKE)
def test_what_twisted_has_is_there(
    package: ModuleType, name: str, twisted: type, left_out: set[str]
) -> None:
    assert calls_of(twisted) - left_out <= calls_of(getattr(package, name))


@pytest.mark.parametrize("package", [aio, blocking])
def test_the_arguments_of_a_call_are_those_of_twisted(package: ModuleType) -> None:
    for name in ("send", "send_many", "request", "cancel", "undo", "explain"):
        theirs = inspect.signature(getattr(client.Client, name))
        assert theirs == inspect.signature(getattr(package.Client, name))


def test_the_arguments_of_connect_are_those_of_twisted() -> None:
    theirs = inspect.signature(connect).parameters
    assert list(theirs)[1:] == list(inspect.signature(aio.connect).parameters)
    assert {*theirs} - {"reactor", "address", "name"} == {*get_type_hints(ConnectArguments)}


def test_the_arguments_of_a_receiver_are_those_of_twisted() -> None:
    theirs = inspect.signature(receiver.Receiver).parameters
    assert {*theirs} - {"reactor"} == {*get_type_hints(receiver.ReceiverArguments)}


def test_an_attachment_of_a_blocking_program_says_as_much() -> None:
    said = {"connected", "error", "node", "is_over", "is_replaced", "start"}
    assert said <= calls_of(ways.Attachment) | {"node", "is_over", "is_replaced"}
    assert said <= calls_of(blocking.Attachment)


@pytest.mark.parametrize("module", ["msgservice.aio", "msgservice.blocking"])
def test_importing_it_installs_no_reactor(module: str) -> None:
    code = f"import sys, {module}; print('twisted.internet.reactor' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("option", ["batch", "threads", "inbox"])
def test_a_receiver_without_a_handler_has_no_options_of_handlers(option: str) -> None:
    arguments: receiver.ReceiverArguments = {"name": "billing"}
    arguments[option] = "x.db" if option == "inbox" else 1  # type: ignore[literal-required]
    with pytest.raises(ValueError, match=f"{option} needs a handler"):
        deliveries.handling_of(arguments)
