"""What is built holds what it should, and works where nothing else is installed.

The wheel first, then an editable install in its place: what both depend on is installed once.
"""

import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.environment import Environment

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def wheel(distributions: Path, environment: Environment) -> Environment:
    """Return an environment with the wheel in it."""
    (wheel,) = distributions.glob("*.whl")
    environment.pip("install", "--no-compile", str(wheel))
    return environment


@pytest.fixture(scope="module")
def editable(source: Path, environment: Environment) -> Environment:
    """Return an environment with an editable install; whatever else of ours was there is gone."""
    environment.pip("install", "--no-compile", "--editable", str(source))
    assert [] == list(environment.folder.rglob("msgservice_plugin.*"))
    return environment


def test_wheel_holds_the_package_and_the_plugin_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = [n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n]
    plugins = [n for n in names if not n.startswith("msgservice/")]
    assert ["twisted/plugins/msgservice_plugin.py"] == plugins
    assert "msgservice/py.typed" in names
    assert "msgservice/cli/main.py" in names


def test_sdist_holds_what_a_checkout_has(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        ".ci/run", "CHANGES.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md",
        "changes/README.md", "docs/conf.py", "docs/index.md", "msgservice/py.typed",
        "pyproject.toml", "setup.py", "tac/pair.tac", "tac/single.tac", "tests/conftest.py",
        "tests/packaging/test_installed.py", "twisted/plugins/msgservice_plugin.py",
    }  # fmt: skip
    assert set() == wanted - names
    assert [] == [n for n in names if n.endswith((".pyc", "dropin.cache", ".db"))]


def test_installed_wheel_is_seen_by_twist(wheel: Environment) -> None:
    listed = wheel.run("twist", "--help")
    assert "msgservice" in listed
    assert "web" in listed  # Twisted's own plugins are where they were


def test_installed_wheel_has_its_options_and_its_command(wheel: Environment) -> None:
    assert "--config" in wheel.run("twist", "msgservice", "--help")
    assert "check-config" in wheel.run("msgservice", "--help")


def test_installed_wheel_is_typed(wheel: Environment) -> None:
    where = wheel.run("python", "-c", "import msgservice; print(msgservice.__file__)").strip()
    assert Path(where).is_relative_to(wheel.folder)
    assert (Path(where).parent / "py.typed").exists()


def test_uninstalling_leaves_twisted_whole(wheel: Environment) -> None:
    # The last one with the wheel: nothing of it is left for others.
    wheel.pip("uninstall", "--yes", "msgservice")
    listed = wheel.run("twist", "--help")
    assert "web" in listed
    assert "msgservice" not in listed


# setuptools' import finders alone would hide the plugin of an editable install.


def test_editable_install_is_seen_by_twist(editable: Environment) -> None:
    listed = editable.run("twist", "--help")
    assert "msgservice" in listed
    assert "web" in listed


def test_editable_install_runs_from_the_source(editable: Environment, source: Path) -> None:
    where = editable.run("python", "-c", "import msgservice; print(msgservice.__file__)").strip()
    assert source / "msgservice" / "__init__.py" == Path(where)


def test_plugin_is_seen_with_the_reactor_chosen_on_the_command_line(editable: Environment) -> None:
    # With a cold cache the plugin module is imported before the reactor is installed: a reactor
    # imported there would make every other choice fail, on the first run only.
    for cache in editable.folder.rglob("dropin.cache"):
        cache.unlink()
    assert "--config" in editable.run("twist", "--reactor=asyncio", "msgservice", "--help")
