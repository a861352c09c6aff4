"""Connections to PostgreSQL for the programs that keep records: opened, their tables brought up to date, closed.

The one module of these programs that imports asyncpg. Whatever the database does wrong comes out as StoreAway; the
outcome of what was under way is then unknown, so what a program writes must be such that it can be written again.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import asyncpg
import structlog

from algomesh_services.courtesy import give_way

Row: TypeAlias = asyncpg.Record
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Session: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,40}", re.ASCII)
_AWAY: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
_REFUSED: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
_CONNECT_S: Final = 5.0
_CLOSE_S: Final = 1.0
_MIGRATION_S: Final = 3_600.0  # an index over all that was ever kept
# Over a unix socket only; the second is what the process calls itself.
_BACKEND: Final = (
    "SELECT pg_backend_pid(), format('%s %s [local]', session_user, current_database()) "
    "WHERE inet_client_addr() IS NULL"
)


class StoreAway(Exception):
    """PostgreSQL did not answer, or not sensibly."""


class BadRows(StoreAway):
    """PostgreSQL refuses these values, and would again."""


class DoubledRows(BadRows):
    """A row with the same key is there already."""


class PostgresPool:
    """A pool of connections to one schema. Open it with `PostgresPool.open`; every method raises StoreAway."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", dsn: str, statement_s: float) -> None:
        self._pool, self._dsn, self._statement_s = pool, dsn, statement_s

    @classmethod
    async def open(
        cls,
        dsn: str,
        schema: str,
        *,
        program: str,
        migrations: Sequence[str],
        migrate_lock: int,
        size: int,
        statement_s: float,
        gives_way: bool = False,
    ) -> Self:
        """Connect, at most `size` times, and run those of `migrations` that the schema has not seen.

        A statement may take `statement_s` seconds, a migration an hour. `migrate_lock` is the number of an advisory
        lock, which all programs on one database share: it keeps two of this program from migrating at once. With
        `gives_way` a server on this machine works for this pool when nobody else wants the processor (courtesy.py).
        What a statement changes in its session (SET, LISTEN) stays when the session is given back.
        Raises StoreAway; ValueError for a bad schema name.
        """
        if not _SCHEMA.fullmatch(schema):
            raise ValueError(f"{schema!r} is not the name of a schema; use a-z, 0-9 and _")
        with _translated():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=size,
                timeout=_CONNECT_S,
                command_timeout=statement_s,
                server_settings={"search_path": schema, "application_name": f"algomesh-{program}"},
                init=_give_way if gives_way else None,
                reset=_leave_as_it_is,
            )
        opened = cls(pool, dsn, statement_s)
        try:
            async with opened.transaction() as session:
                migrated = await _migrate(session, schema, migrations, migrate_lock)
        except BaseException:
            pool.terminate()
            raise
        if migrated:
            structlog.get_logger(f"algomesh.{program}").info("tables_migrated", numbers=migrated)
        return opened

    async def close(self) -> None:
        """Close every connection; those that do not end by themselves are cut."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._pool.close()
        except _AWAY:
            self._pool.terminate()

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """One connection, for statements that stand alone. Raises BadRows too."""
        with _translated():
            async with self._pool.acquire(timeout=_CONNECT_S) as session:
                yield session

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """One connection, for statements that count together or not at all. Raises BadRows too."""
        async with self.session() as session, session.transaction():
            yield session

    async def fetch(self, query: str, *arguments: Any) -> list[Row]:
        """The rows of one query."""
        async with self.session() as session:
            return list(await session.fetch(query, *arguments))

    async def listen(
        self, channel: str, on_notice: Callable[[str], None], on_start: Callable[[], Awaitable[None]]
    ) -> None:
        """Hear what is notified on `channel` until that is lost, over a connection of its own; returns or raises then.

        `on_start` is awaited when listening has begun, since earlier notices may have been missed.
        """
        ended = asyncio.Event()
        with _translated():
            connection = await asyncpg.connect(self._dsn, timeout=_CONNECT_S, command_timeout=self._statement_s)
            try:
                connection.add_termination_listener(lambda _: ended.set())
                await connection.add_listener(channel, lambda *heard: on_notice(str(heard[3])))
                await on_start()
                await ended.wait()
            finally:
                connection.terminate()


async def copy(session: Session, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Add these rows, or none of them. Raises BadRows, within `session` DoubledRows too."""
    try:
        await session.copy_records_to_table(table, columns=columns, records=rows)
    except (OverflowError, TypeError, ValueError) as error:  # a value that cannot even be sent; elsewhere a DataError
        raise BadRows(_sentence(error)) from error


async def _migrate(session: Session, schema: str, migrations: Sequence[str], lock: int) -> list[int]:
    """Bring the schema up to date; the numbers of what was run."""
    await session.execute("SELECT pg_advisory_xact_lock($1)", lock)
    await session.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    await session.execute("CREATE TABLE IF NOT EXISTS migrations (number integer PRIMARY KEY)")
    done = await session.fetchval("SELECT coalesce(max(number) + 1, 0) FROM migrations")
    missing = list(range(done, len(migrations)))
    for number in missing:
        await session.execute(migrations[number], timeout=_MIGRATION_S)
        await session.execute("INSERT INTO migrations VALUES ($1)", number)
    return missing


async def _leave_as_it_is(_: Connection) -> None:
    """In place of four statements whenever a session is given back; asyncpg itself ends an open transaction."""


async def _give_way(connection: Connection) -> None:
    for pid, title in await connection.fetch(_BACKEND):
        await asyncio.to_thread(_give_way_as, pid, title)


def _give_way_as(pid: int, title: str) -> None:
    """The process works less for us, if it is that backend: in another pid namespace the number is somebody else's."""
    with contextlib.suppress(OSError):
        said = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        if said.startswith("postgres: ") and title in said:
            give_way(pid)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        raise DoubledRows(_sentence(error)) from error
    except _REFUSED as error:
        raise BadRows(_sentence(error)) from error
    except _AWAY as error:
        raise StoreAway(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    return f"PostgreSQL: {type(error).__name__}: {error}"
