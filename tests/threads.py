"""`tests.kit.threads` under its former path, for programs outside this checkout; tests import the kit."""

from tests.kit.threads import *  # noqa: F403
