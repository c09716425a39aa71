"""The site of the documentation: it is built without a warning, and read on a phone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import ViewportSize, sync_playwright

DOCS = Path(__file__).resolve().parents[2] / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE: ViewportSize = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        assert (site / page.name).with_suffix(".html").exists(), page.name


@pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"),
    reason="no Chromium: apt-get install chromium, or make browser as root",
)
def test_no_page_is_wider_than_a_phone(site: Path) -> None:
    wide = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport=PHONE)
        for page in sorted(site.glob("*.html")):
            tab.goto(page.as_uri())
            width = tab.evaluate("document.scrollingElement.scrollWidth")
            if width > PHONE["width"]:
                wide[page.name] = width
        browser.close()
    assert wide == {}


def test_the_api_has_every_public_name(site: Path) -> None:
    import msgservice

    text = (site / "api.html").read_text()
    names = set(msgservice.__all__) - {"JellyCodec", "Message"} | {"ReceivedMessage"}
    assert [] == sorted(name for name in names if f'.{name}"' not in text)
