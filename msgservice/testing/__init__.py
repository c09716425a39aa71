"""msgservice for tests of programs that use it: a node in the process, and one in virtual time.

    pytest_plugins = ["msgservice.testing"]      # in conftest.py: the fixtures below

    def test_it(msgservice_node): ...            # a `LocalNode`: real sockets, disk and time
    def test_it(msgservice_world): ...           # a `World`: virtual time, a network that loses

Both are there without pytest too. docs/testing.md has examples.
"""

from __future__ import annotations

from importlib.util import find_spec

from msgservice.testing.local import Collected, LocalNode
from msgservice.testing.network import CALM, Faults
from msgservice.testing.world import World

__all__ = ["CALM", "Collected", "Faults", "LocalNode", "World"]

if find_spec("pytest") is not None:  # it is no dependency
    from msgservice.testing.fixtures import msgservice_node, msgservice_world

    __all__ += ["msgservice_node", "msgservice_world"]
