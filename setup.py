"""Packages, listed by hand.

`package_dir` is explicit so that an editable install puts this folder on `sys.path`: only then
does Twisted's plugin search find `twisted/plugins/msgservice_plugin.py` (setuptools' import
finders are invisible to it). `tests/packaging` holds this for wheels and editable installs.
"""

from setuptools import setup

setup(
    package_dir={"": "."},
    packages=[
        "msgservice",
        "msgservice.cli",
        "msgservice.core",
        "msgservice.faces",
        "msgservice.faces.axon",
        "msgservice.handling",
        "msgservice.log",
        "msgservice.node",
        "msgservice.transport",
        "twisted.plugins",
    ],
    package_data={"msgservice": ["py.typed"]},
)
