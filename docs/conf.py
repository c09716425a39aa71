"""Sphinx: Markdown pages, every warning an error (`make docs`)."""

import tomllib
from pathlib import Path

_settings = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())

project = "msgservice"
author = "the msgservice authors"
copyright = author  # noqa: A001 - the name that Sphinx reads
release = version = _settings["project"]["version"]

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": _settings["project"]["description"]}
