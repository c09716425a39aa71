"""`tests.kit.nodes` under its former path, for programs outside this checkout; tests import the kit."""

from tests.kit.nodes import *  # noqa: F403
