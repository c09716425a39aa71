"""The node of the integration tests, for pages whose commands and programs need one."""

from tests.integration.conftest import msgservice, node

__all__ = ["msgservice", "node"]
