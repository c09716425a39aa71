"""Every news fragment reaches CHANGES.md at the next release."""

import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
FRAGMENTS = sorted(f for f in (CHECKOUT / "changes").iterdir() if f.name != "README.md")


def test_every_fragment_has_an_issue_and_a_kind_that_towncrier_knows() -> None:
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["towncrier"]
    kinds = {kind["directory"] for kind in settings["type"]}
    for fragment in FRAGMENTS:
        issue, kind, *rest = fragment.name.split(".")
        assert kind in kinds, fragment.name
        assert rest[-1:] == ["md"], fragment.name
        assert issue.isdecimal() or issue.startswith("+"), fragment.name


def test_every_fragment_is_in_the_next_release() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    told = " ".join(done.stdout.split())
    for fragment in FRAGMENTS:
        words = fragment.read_text().split()
        assert words, fragment.name
        assert " ".join(words[:5]) in told, fragment.name
