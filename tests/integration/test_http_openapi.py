"""The document of OpenAPI, and what schemathesis finds by it: nothing the document does not say."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.threads import deferToThread

from msgservice import Limits
from tests.integration.test_http_messages import World

schemathesis: Any = pytest.importorskip("schemathesis")
# What a subject or an address may be is said in words: the document's types are wider.
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(240)
ensure = pytest_twisted.ensureDeferred
EXAMPLES = 6  # of each path
# What would end the play, or takes its own time.
LEFT_OUT = {"reload"}


@ensure
async def test_every_path_is_in_the_document(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.start()
    try:
        answer = await world.peer.ask("GET", "/v1/openapi.json")
        document = answer.json
        assert "3.1.0" == document["openapi"]
        there = {(one.path, one.method.lower()) for one in world.node.parts.web.paths}
        said = {(path, method) for path, methods in document["paths"].items() for method in methods}
        assert there == said
    finally:
        await world.stop()


@ensure
async def test_answers_are_as_the_document_says(tmp_path: Path) -> None:
    world = World(tmp_path, limits=Limits(stop_timeout=5, http_body_bytes=1024 * 1024))
    await world.start()
    try:
        host: Any = world.node.ports[-1].getHost()
        found = await deferToThread(play, f"http://127.0.0.1:{host.port}")
        assert not found, "\n\n".join(found)
    finally:
        await world.stop()


def play(address: str) -> list[str]:
    """Ask what schemathesis thinks of; return what is other than the document says."""
    schema = schemathesis.openapi.from_url(f"{address}/v1/openapi.json")
    found: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if (
            operation.path.endswith("/events")
            or operation.definition.raw["operationId"] in LEFT_OUT
        ):
            continue  # an answer without an end

        @seed(17)
        @settings(
            max_examples=EXAMPLES,
            phases=[Phase.explicit, Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            response = case.call(timeout=20)
            case.validate_response(response, excluded_checks=[positive_data_acceptance])
            assert response.status_code < 500 or response.status_code in (501, 503), response.text

        try:
            ask()
        except Exception as error:
            said = "".join(traceback.format_exception(error))
            found.append(f"{operation.method.upper()} {operation.path}: {said[-3000:]}")
    return found
