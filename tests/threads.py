"""`tests.kit.threads` under its former path, for programs outside; tests import the kit."""

from tests.kit.threads import *  # noqa: F403
