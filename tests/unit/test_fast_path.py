"""The objects that every run passes through: how Python keeps them.

An instance with a dictionary of thirty attributes or more loses the fast way to them and to its
methods: 8 % of a node's work for a run went there, when three of these classes had grown that far.
With slots it is never lost, however many there are.
"""

from __future__ import annotations

import pytest

from msgservice.client.hop import NodeHop
from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.node.commits import Commits
from msgservice.node.outlet import Outlet
from msgservice.node.peer import Peer
from msgservice.node.supply import Supply

ON_THE_WAY = (Backlog, Commits, Flight, NodeHop, Outlet, Peer, Supply)


@pytest.mark.parametrize("kind", ON_THE_WAY)
def test_objects_of_the_fast_path_have_slots(kind: type) -> None:
    assert "__dict__" not in dir(kind)
