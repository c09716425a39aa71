"""The names of the package: there before they are used, for whoever completes or asks."""

from __future__ import annotations

import subprocess
import sys

import pytest

import msgservice


def test_dir_has_the_public_names_and_none_of_how_they_are_found() -> None:
    public = [name for name in dir(msgservice) if not name.startswith("_")]
    # Modules of it are there once they were imported.
    modules = {name.split(".")[1] for name in sys.modules if name.startswith("msgservice.")}
    assert sorted(msgservice.__all__) == sorted(set(public) - modules)


def test_asking_for_the_names_imports_none_of_them() -> None:
    code = "import sys, msgservice; dir(msgservice); print('twisted' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_name_that_is_no_public_one_is_told_with_the_one_that_was_meant() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'Recever'.*did you mean 'Receiver'"):
        # The ignore is a test of its own: a type checker finds it, else it would be too much.
        from msgservice import Recever  # type: ignore[attr-defined]  # noqa: F401
    with pytest.raises(AttributeError, match="did you mean 'Status'"):
        getattr(msgservice, "Sattus")  # noqa: B009  # a type checker would find it
    with pytest.raises(ImportError, match=r"cannot import name 'nonsense' from 'msgservice'$"):
        from msgservice import nonsense  # type: ignore[attr-defined]  # noqa: F401
    assert not hasattr(msgservice, "Recever")


def test_modules_are_imported_from_the_package_as_ever() -> None:
    code = "from msgservice import cli, limits; import msgservice.errors; print(cli.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "msgservice.cli\n"


def test_what_a_handler_gets_has_a_public_name() -> None:
    from msgservice.receiver.received import ReceivedMessage

    assert msgservice.Message is ReceivedMessage
