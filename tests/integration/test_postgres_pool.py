"""The pool that programs keep their records through, with a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from algomesh_services.postgres_pool import BadRows, DoubledRows, PostgresPool, StoreAway, copy
from tests.conditions import until

pytestmark = pytest.mark.integration

MIGRATIONS = ("CREATE TABLE things (name text PRIMARY KEY)", "INSERT INTO things VALUES ('first')")


@asynccontextmanager
async def opened(
    dsn: str, schema: str = "shelf", *, migrations: Sequence[str] = MIGRATIONS, size: int = 2
) -> AsyncIterator[PostgresPool]:
    pool = await PostgresPool.open(
        dsn, schema, program="test", migrations=migrations, migrate_lock=0x7465_01, size=size, statement_s=5.0
    )
    try:
        yield pool
    finally:
        await pool.close()


async def names(pool: PostgresPool) -> list[str]:
    return [row["name"] for row in await pool.fetch("SELECT name FROM things ORDER BY name")]


async def add(pool: PostgresPool, *things: str) -> None:
    async with pool.transaction() as session:
        for name in things:
            await session.execute("INSERT INTO things VALUES ($1)", name)


async def test_each_migration_runs_once_and_new_ones_when_they_come(postgres: str) -> None:
    for migrations in (MIGRATIONS[:1], MIGRATIONS, MIGRATIONS):
        async with opened(postgres, migrations=migrations) as pool:
            found = await names(pool)

    assert found == ["first"]


async def test_two_that_start_at_once_do_not_both_migrate(postgres: str) -> None:
    async def start() -> list[str]:
        async with opened(postgres) as pool:
            return await names(pool)

    one, other = await asyncio.gather(start(), start())

    assert one == other == ["first"]


async def test_a_migration_that_fails_leaves_nothing_of_itself(postgres: str) -> None:
    with pytest.raises(StoreAway, match="nonsense"):
        async with opened(postgres, migrations=(*MIGRATIONS, "nonsense")):
            pass

    async with opened(postgres) as pool:
        assert await names(pool) == ["first"]


async def test_schemas_of_one_database_do_not_see_each_other(postgres: str) -> None:
    async with opened(postgres, "left") as left, opened(postgres, "right") as right:
        await left.fetch("DELETE FROM things")

        assert (await names(left), await names(right)) == ([], ["first"])


@pytest.mark.parametrize("schema", ["", "Shelf", "a b", "a;drop", "1st", "x" * 60])
async def test_a_schema_that_is_no_plain_name_is_refused(schema: str) -> None:
    with pytest.raises(ValueError, match="not the name of a schema"):
        async with opened("postgresql://nowhere", schema):
            pass


async def test_a_transaction_counts_as_a_whole(postgres: str) -> None:
    async with opened(postgres) as pool:
        with pytest.raises(BadRows):
            await add(pool, "second", "first")
        await add(pool, "third", "fourth")

        assert await names(pool) == ["first", "fourth", "third"]


async def test_values_that_are_refused_are_told_from_a_database_that_is_away(postgres: str) -> None:
    async with opened(postgres) as pool:
        with pytest.raises(BadRows, match="UniqueViolation"):
            await pool.fetch("INSERT INTO things VALUES ('first')")
        with pytest.raises(BadRows):
            await pool.fetch("SELECT 1 / $1::integer", 0)
        with pytest.raises(StoreAway) as away:
            await pool.fetch("SELECT pg_terminate_backend(pg_backend_pid())")

        assert not isinstance(away.value, BadRows)
        assert await names(pool) == ["first"]  # over a new connection


async def test_rows_are_copied_all_or_none_and_it_is_said_when_one_is_there(postgres: str) -> None:
    async with opened(postgres) as pool:
        async with pool.session() as session:
            await copy(session, "things", ["name"], [("second",), ("third",)])
        with pytest.raises(DoubledRows):
            async with pool.session() as session:
                await copy(session, "things", ["name"], [("fourth",), ("first",)])

        assert await names(pool) == ["first", "second", "third"]


@pytest.mark.parametrize("value", [None, 7, "a\0b", "\ud800"])
async def test_values_that_cannot_be_copied_are_refused_and_the_session_goes_on(postgres: str, value: object) -> None:
    async with opened(postgres, size=1) as pool:
        with pytest.raises(BadRows) as refused:
            async with pool.session() as session:
                await copy(session, "things", ["name"], [("second",), (value,)])

        assert not isinstance(refused.value, DoubledRows)
        assert await names(pool) == ["first"]


async def test_a_transaction_that_was_cut_short_is_not_left_to_the_next(postgres: str) -> None:
    async with opened(postgres, size=1) as pool:

        async def begin() -> None:
            async with pool.transaction() as session:
                await session.execute("INSERT INTO things VALUES ('half')")
                has_begun.set()
                await session.execute("SELECT pg_sleep(60)")

        has_begun = asyncio.Event()
        task = asyncio.create_task(begin())
        await has_begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert await names(pool) == ["first"]
        assert not (await pool.fetch("SELECT pg_current_xact_id_if_assigned() IS NOT NULL"))[0][0]


async def test_a_server_that_is_not_there_is_said(unused_tcp_port: int) -> None:
    with pytest.raises(StoreAway, match="PostgreSQL"):
        async with opened(f"postgresql://nobody@127.0.0.1:{unused_tcp_port}/none"):
            pass


async def test_notices_are_heard_until_the_connection_is_lost(postgres: str) -> None:
    heard: list[str] = []
    has_begun = asyncio.Event()

    async def begin() -> None:
        has_begun.set()

    async with opened(postgres) as pool:
        listening = asyncio.create_task(pool.listen("news", heard.append, begin))
        await has_begun.wait()
        await pool.fetch("SELECT pg_notify('news', 'hello')")
        await until(lambda: heard == ["hello"])

        await pool.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
        async with asyncio.timeout(5):
            await listening
