"""A pytest plugin that plants the mutant which `MSGSERVICE_MUTANT` names."""

from __future__ import annotations

import os

from tests.mutants.catalogue import MUTANTS
from tests.mutants.plant import plant


def pytest_configure() -> None:
    """Before anything is collected."""
    plant(MUTANTS[os.environ["MSGSERVICE_MUTANT"]])
