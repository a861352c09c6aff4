"""A gateway that shares its calls with others says that it leaves before it refuses any."""

import asyncio
from pathlib import Path

import pytest

from tests.integration.gateway_fixtures import eventually, served

pytestmark = pytest.mark.integration


async def test_a_gateway_that_was_told_to_stop_first_says_so_and_still_takes_calls(
    tmp_path: Path, postgres: str
) -> None:
    async with served(tmp_path, postgres, leave_s=1.0) as gateway:
        stopping = asyncio.create_task(gateway.stop_gateway())

        async def says_so() -> bool:
            return (await gateway.get("/readyz"))[0] == 503

        await eventually(says_so)
        status, body, _ = await gateway.post("/mesh/v1/call/demo/echo", "still here")

        assert (status, body) == (200, b"still here")
        await stopping
