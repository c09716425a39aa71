"""What is built holds what it should, and works where nothing else is installed."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.environment import Environment

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def installed(distributions: Path, make_environment: Callable[[str], Environment]) -> Environment:
    environment = make_environment("wheel")
    (wheel,) = distributions.glob("*.whl")
    environment.install(str(wheel))
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
        "tests/packaging/test_wheel.py", "twisted/plugins/msgservice_plugin.py",
    }  # fmt: skip
    assert set() == wanted - names
    assert [] == [n for n in names if n.endswith((".pyc", "dropin.cache", ".db"))]


def test_installed_wheel_is_seen_by_twist(installed: Environment) -> None:
    listed = installed.run("twist", "--help")
    assert "msgservice" in listed
    assert "web" in listed  # Twisted's own plugins are where they were


def test_installed_wheel_has_its_options_and_its_command(installed: Environment) -> None:
    assert "--config" in installed.run("twist", "msgservice", "--help")
    assert "check-config" in installed.run("msgservice", "--help")


def test_installed_wheel_is_typed(installed: Environment) -> None:
    where = installed.run("python", "-c", "import msgservice; print(msgservice.__file__)").strip()
    assert Path(where).is_relative_to(installed.folder)
    assert (Path(where).parent / "py.typed").exists()


def test_uninstalling_leaves_twisted_whole(installed: Environment) -> None:
    # The last one: nothing is left for others.
    installed.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "msgservice")
    listed = installed.run("twist", "--help")
    assert "web" in listed
    assert "msgservice" not in listed
