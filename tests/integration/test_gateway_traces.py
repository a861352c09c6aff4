"""A caller's trace goes through a gateway that makes no spans of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh_observability import telemetry
from tests.integration.gateway_fixtures import ADMIN_KEY, Served, served

pytestmark = pytest.mark.integration
TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "text/plain"}


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, postgres: str) -> AsyncIterator[Served]:
    async with served(tmp_path, postgres) as there:
        yield there


async def call(gateway: Served, traceparent: str) -> str:
    headers = HEADERS | ({"traceparent": traceparent} if traceparent else {})
    async with gateway.http.post(f"{gateway.url}/mesh/v1/call/demo/echo", data=b"x", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
    return gateway.echo.calls[-1].traceparent


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_what_its_caller_said_is_passed_on(gateway: Served, flags: str) -> None:
    assert telemetry.active is None
    said = f"00-{TRACE}-b7ad6b7169203331-{flags}"

    assert await call(gateway, said) == said


@pytest.mark.parametrize("said", ["", "nonsense", f"00-{'0' * 32}-b7ad6b7169203331-01"])
async def test_without_a_trace_the_root_run_is_one_and_nobody_has_decided(gateway: Served, said: str) -> None:
    passed_on = await call(gateway, said)

    run = gateway.echo.calls[-1].run
    assert passed_on == f"00-{run}-{run[:16]}-00"
