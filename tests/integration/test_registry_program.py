"""The registry as a process of its own: it says ready, and SIGTERM ends it in order."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from algomesh_services.environment import BadSetting
from algomesh_services.registry.settings import Settings
from tests.integration.registry_fixtures import running_mesh

pytestmark = pytest.mark.integration

MAIN = """
import asyncio
from algomesh_services.registry import service
from algomesh_services.registry.settings import Settings
asyncio.run(service.run(Settings.from_environment()))
"""


async def test_it_says_ready_serves_and_ends_at_sigterm(tmp_path: Path, postgres: str) -> None:
    async with running_mesh(tmp_path, postgres, with_registry=False) as mesh:
        told = {
            "ALGOMESH_NATS": mesh.url,
            "ALGOMESH_POSTGRES": postgres,
            "ALGOMESH_STATE": str(mesh.settings.state),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MAIN, env=os.environ | told, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(20):
                while b"ready" not in await process.stdout.readline():
                    assert process.returncode is None
            await (await mesh.admin()).close()

            process.send_signal(signal.SIGTERM)

            async with asyncio.timeout(3):
                await process.stdout.read()
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(BadSetting, match="ALGOMESH_POSTGRES and ALGOMESH_STATE"):
        Settings.from_environment({"ALGOMESH_NATS": "nats://127.0.0.1:4222"})
