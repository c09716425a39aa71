"""`tests.kit.nodes` under its former path, for programs outside; tests import the kit."""

from tests.kit.nodes import *  # noqa: F403
