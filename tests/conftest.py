"""Fixtures: real servers. A nats-server per test, one PostgreSQL per session with a database per test."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from algomesh_broker.server import NatsConfig, NatsServer
from algomesh_services.local.postgres import Postgres


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
    import os

    if os.geteuid() != 0:
        pytest.skip("needs root")
