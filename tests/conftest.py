"""Fixtures: real servers. A nats-server per test, one PostgreSQL per session with a database per test."""

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from algomesh_broker.server import NatsConfig, NatsServer
from algomesh_services.local.postgres import Postgres

# Tests run beside each other: threads of a mathematical library that wait for a core would take it from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Begun first where files run beside each other: one of these at the end would be waited for.
LONG = {
    "test_prewarmer_judge.py", "test_demo_video.py", "test_demo.py", "test_up.py", "test_cli.py", "test_cli_prewarm.py",
    "test_catalog_video.py", "test_catalog_models.py", "test_mesh.py", "test_gateway_robustness.py", "test_zygote.py",
    "test_launcher_holds.py", "test_launcher.py", "test_ledger.py", "test_lanes.py", "test_travelling.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long first."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest_asyncio.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A fresh nats-server with JetStream on a free port; `.url` is its address."""
    folder = tmp_path / "nats-server"
    config = NatsConfig(
        store_dir=folder / "store", runtime_dir=folder / "run", log=folder / "run" / "nats.log", is_synced=False
    )
    async with NatsServer(config) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Postgres]:
    """The session's PostgreSQL."""
    async with Postgres(tmp_path_factory.mktemp("postgres"), is_durable_at_birth=False) as server:
        connection = await asyncpg.connect(server.dsn)
        for setting in ("fsync", "full_page_writes"):  # what a killed process wrote is there without
            await connection.execute(f"ALTER SYSTEM SET {setting} = off")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        yield server


@pytest_asyncio.fixture
async def postgres(postgres_server: Postgres) -> AsyncIterator[str]:
    """The DSN of an empty database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    connection = await asyncpg.connect(postgres_server.dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield postgres_server.dsn_of(name)
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest.fixture
def needs_root() -> None:
    """Skip where a test needs what only root may do."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
