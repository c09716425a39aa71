"""An editable install shows the plugin too: setuptools' import finders alone would hide it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.environment import Environment

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def installed(source: Path, make_environment: Callable[[str], Environment]) -> Environment:
    environment = make_environment("editable")
    environment.install("--editable", str(source))
    return environment


def test_editable_install_is_seen_by_twist(installed: Environment) -> None:
    listed = installed.run("twist", "--help")
    assert "msgservice" in listed
    assert "web" in listed


def test_editable_install_runs_from_the_source(installed: Environment, source: Path) -> None:
    where = installed.run("python", "-c", "import msgservice; print(msgservice.__file__)").strip()
    assert source / "msgservice" / "__init__.py" == Path(where)


def test_plugin_is_seen_with_the_reactor_chosen_on_the_command_line(installed: Environment) -> None:
    # With a cold cache the plugin module is imported before the reactor is installed: a reactor
    # imported there would make every other choice fail, on the first run only.
    for cache in installed.folder.rglob("dropin.cache"):
        cache.unlink()
    assert "--config" in installed.run("twist", "--reactor=asyncio", "msgservice", "--help")
