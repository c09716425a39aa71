"""Sphinx: Markdown pages, every warning an error (`make docs`)."""

import re
import tomllib
from pathlib import Path

_settings = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())

project = "msgservice"
author = "the msgservice authors"
copyright = author  # noqa: A001 - the name that Sphinx reads
release = version = _settings["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "msgservice"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Docstrings say names in single backticks, as they stand in the code.
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Types of the signatures stand in pages of others, or in none.
nitpick_ignore_regex = [("py:.*", ".*")]


def _plain_interfaces(*event):
    """Types that are interfaces, by their names: they are no classes, and are shown as objects."""
    signature, returned = event[5:7]
    return tuple(
        said and re.sub(r"<InterfaceClass (?:\w+\.)*(\w+)>", r"\1", said)
        for said in (signature, returned)
    )


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _plain_interfaces)
