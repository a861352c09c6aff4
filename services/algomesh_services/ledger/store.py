"""The table of runs in PostgreSQL. The only module of the ledger that imports asyncpg.

Whatever the database does wrong comes out as StoreAway; the outcome of what was under way is then unknown, and
every write here may be sent again. Rows that PostgreSQL itself refuses come out as BadRows.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, Self

import asyncpg

from algomesh_broker.messages import RunEvent
from algomesh_broker.platform import RunRow
from algomesh_services.ledger.migrations import MIGRATIONS

_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,40}", re.ASCII)
_AWAY: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
_STATEMENT_S: Final = 30.0
_CONNECT_S: Final = 5.0
# Advisory locks are numbers that all programs on one database share; this one spells "aml".
_MIGRATE_LOCK: Final = 0x616D6C_01

_FIELDS: Final = (
    ("run", "text"), ("attempt", "integer"), ("root", "text"), ("parent", "text"), ("algorithm", "text"),
    ("version", "text"), ("caller", "text"), ("root_caller", "text"), ("instance", "text"), ("state", "text"),
    ("queued_at", "double precision"), ("started_at", "double precision"), ("ended_at", "double precision"),
    ("compute_ms", "double precision"), ("cold_ms", "double precision"), ("error", "text"),
)  # fmt: skip
_NAMES: Final = tuple(name for name, _ in _FIELDS)
_RANK: Final = "(CASE {0}.state WHEN 'running' THEN 0 WHEN 'lost' THEN 1 ELSE 2 END)"
_IS_MORE_FINAL: Final = f"{_RANK.format('excluded')} > {_RANK.format('runs')}"


def _set(name: str, kind: str) -> str:
    """How a column is written when the row is there: by the more final event, or if it was unknown."""
    if name == "state":
        return f"state = CASE WHEN {_IS_MORE_FINAL} THEN excluded.state ELSE runs.state END"
    unknown = "''" if kind == "text" else "0"
    known_first, new_first = (
        f"coalesce(nullif({first}.{name}, {unknown}), {second}.{name})"
        for first, second in (("runs", "excluded"), ("excluded", "runs"))
    )
    if name == "error":
        known_first = f"CASE WHEN runs.state = excluded.state THEN {known_first} ELSE runs.error END"
        new_first = "excluded.error"
    return f"{name} = CASE WHEN {_IS_MORE_FINAL} THEN {new_first} ELSE {known_first} END"


# An event may not rewrite another algorithm's run, nor give it another caller, whoever sends it.
_UPSERT: Final = (
    f"INSERT INTO runs ({', '.join(_NAMES)}, begun_at) "  # noqa: S608  # our own names
    f"SELECT {', '.join(_NAMES)}, coalesce(nullif(queued_at, 0), nullif(started_at, 0), nullif(ended_at, 0), "
    "extract(epoch FROM now())) FROM unnest("
    + ", ".join(f"${number}::{kind}[]" for number, (_, kind) in enumerate(_FIELDS, 1))
    + f") AS new ({', '.join(_NAMES)}) ON CONFLICT (run, attempt) DO UPDATE SET "
    + ", ".join(
        _set(name, kind) for name, kind in _FIELDS if name not in ("run", "attempt", "algorithm", "version", "caller")
    )
    + " WHERE runs.algorithm = excluded.algorithm AND runs.version = excluded.version AND runs.caller = excluded.caller"
)
_LATEST: Final = f"SELECT {', '.join(_NAMES)} FROM runs"  # noqa: S608  # our own names
_LOST: Final = (
    "UPDATE runs SET state = 'lost', error = $2, ended_at = CASE WHEN ended_at = 0 THEN $3 ELSE ended_at END "
    "WHERE state = 'running' AND "
)


class StoreAway(Exception):
    """PostgreSQL did not answer, or not sensibly."""


class BadRows(Exception):
    """PostgreSQL refuses these rows, and would again."""


class Store:
    """A pool of connections. Open it with `Store.open`; every method raises StoreAway."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    @classmethod
    async def open(cls, dsn: str, schema: str) -> Self:
        """Connect, and bring the table up to date. Raises StoreAway; ValueError for a bad schema name."""
        if not _SCHEMA.fullmatch(schema):
            raise ValueError(f"{schema!r} is not the name of a schema; use a-z, 0-9 and _")
        with _translated():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=4,
                timeout=_CONNECT_S,
                command_timeout=_STATEMENT_S,
                server_settings={"search_path": schema, "application_name": "algomesh-ledger"},
            )
            try:
                await _migrate(pool, schema)
            except BaseException:
                pool.terminate()
                raise
        return cls(pool)

    async def close(self) -> None:
        """Close every connection; those that do not end by themselves are cut."""
        try:
            async with asyncio.timeout(1.0):
                await self._pool.close()
        except (TimeoutError, *_AWAY):
            self._pool.terminate()

    async def write(self, events: Sequence[RunEvent]) -> None:
        """Keep these events, one for each attempt of each run, in one transaction. Raises BadRows too."""
        columns = [[getattr(event, name) for event in events] for name in _NAMES]
        async with self._connection() as connection:
            try:
                await connection.execute(_UPSERT, *columns)
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                raise BadRows(str(error)) from error

    async def lose_instances(self, instances: Sequence[str], error: str, at: float) -> int:
        """The runs that still ran in these instances are lost; how many."""
        return await self._lose("instance = ANY($1::text[])", list(instances), error, at)

    async def lose_host(self, launcher: str, error: str, at: float) -> int:
        """The runs that still ran in any instance of this launcher are lost; how many."""
        return await self._lose("starts_with(instance, $1 || '-')", launcher, error, at)

    async def lose_older(self, days: float, error: str, at: float) -> int:
        """Nothing runs this long: of what was first heard of so many days ago nobody will tell the end."""
        return await self._lose("recorded_at < now() - make_interval(secs => $1)", days * 86_400, error, at)

    async def running_instances(self) -> list[str]:
        """The instances in which, as far as is known, something runs."""
        rows = await self._fetch("SELECT DISTINCT instance FROM runs WHERE state = 'running' AND instance <> ''")
        return [row[0] for row in rows]

    async def delete_older(self, days: float, limit: int) -> int:
        """Delete at most `limit` runs that were recorded more than so many days ago; how many."""
        statement = (
            "DELETE FROM runs WHERE (run, attempt) IN (SELECT run, attempt FROM runs "
            "WHERE recorded_at < now() - make_interval(secs => $1) ORDER BY recorded_at LIMIT $2)"
        )
        async with self._connection() as connection:
            return _count(await connection.execute(statement, days * 86_400, limit))

    async def latest(self, limit: int, *, algorithm: str = "", root: str = "") -> list[RunRow]:
        """The latest runs, newest first."""
        conditions, arguments = [], []
        for name, wanted in (("algorithm", algorithm), ("root", root)):
            if wanted:
                arguments.append(wanted)
                conditions.append(f"{name} = ${len(arguments)}")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = f" ORDER BY begun_at DESC, attempt DESC LIMIT ${len(arguments) + 1}"
        rows = await self._fetch(_LATEST + where + order, *arguments, limit)
        return [RunRow(**dict(row.items())) for row in rows]

    async def _lose(self, condition: str, which: object, error: str, at: float) -> int:
        async with self._connection() as connection:
            return _count(await connection.execute(_LOST + condition, which, error, at))

    async def _fetch(self, statement: str, *arguments: object) -> list[Any]:
        async with self._connection() as connection:
            return list(await connection.fetch(statement, *arguments))

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        with _translated():
            async with self._pool.acquire(timeout=_CONNECT_S) as connection:
                yield connection


async def _migrate(pool: "asyncpg.Pool[asyncpg.Record]", schema: str) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATE_LOCK)
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        await connection.execute("CREATE TABLE IF NOT EXISTS migrations (number integer PRIMARY KEY)")
        done = await connection.fetchval("SELECT coalesce(max(number), -1) FROM migrations")
        for number, statements in enumerate(MIGRATIONS):
            if number > done:
                await connection.execute(statements)
                await connection.execute("INSERT INTO migrations VALUES ($1)", number)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _AWAY as error:
        raise StoreAway(str(error) or type(error).__name__) from error


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])
