"""The names of the package: there before they are used, for whoever completes or asks."""

from __future__ import annotations

import subprocess
import sys

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
