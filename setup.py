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
        "msgservice.aio",
        "msgservice.blocking",
        "msgservice.cli",
        "msgservice.cli.dev",
        "msgservice.client",
        "msgservice.config",
        "msgservice.core",
        "msgservice.core.datagram",
        "msgservice.disk",
        "msgservice.faces",
        "msgservice.faces.axon",
        "msgservice.faces.callbacks",
        "msgservice.faces.callbacks.protocol",
        "msgservice.faces.chassis",
        "msgservice.faces.messaging",
        "msgservice.faces.sessions",
        "msgservice.faces.sessions.content",
        "msgservice.faces.streams",
        "msgservice.identity",
        "msgservice.log",
        "msgservice.node",
        "msgservice.node.web",
        "msgservice.outbox",
        "msgservice.receiver",
        "msgservice.receiver.handling",
        "msgservice.receiver.inbox",
        "msgservice.testing",
        "msgservice.transport",
        "msgservice.transport.http",
        "msgservice.transport.pb",
        "msgservice.transport.tcp",
        "msgservice.transport.udp",
        "msgservice.webhooks",
        "twisted.plugins",
    ],
    package_data={"msgservice": ["py.typed"], "msgservice.node.web": ["page/*"]},
)
