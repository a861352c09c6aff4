"""The registry's tables in PostgreSQL: keys and versions. Postgres decides; the directory in NATS is a copy.

The only module here that imports asyncpg. Whatever the database does wrong comes out as StoreAway;
the outcome of what was under way is then unknown, so every write can be sent again.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple, Self

import asyncpg
import structlog

from algomesh_broker.names import VersionId
from algomesh_broker.platform import Manifest, StoredManifest, pack, unpack
from algomesh_services.registry.migrations import MIGRATIONS

log = structlog.get_logger("algomesh.registry")

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,40}", re.ASCII)
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
_STATEMENT_S = 10.0
_CONNECT_S = 5.0
_RETRY_S = 0.25
# Advisory locks are numbers that all programs on one database share; these spell "amr" and a purpose.
_MIGRATE_LOCK, _PUBLISH_LOCK, _MIRROR_LOCK = 0x616D72_01, 0x616D72_02, 0x616D72_03


class StoreAway(Exception):
    """PostgreSQL did not answer, or not sensibly."""


class KeyRecord(NamedTuple):
    """One key as it is kept: its hash under the pepper, never itself. Times are seconds since the epoch."""

    id: str
    name: str
    hash: bytes
    scopes: tuple[str, ...]
    created_at: float
    revoked_at: float | None


class VersionRecord(NamedTuple):
    """What the directory and the callout must know of a version."""

    owner: str
    name: str
    version: str
    digest: str
    calls: tuple[str, ...]
    timeout_s: float | None
    attempts: int
    min_instances: int
    description: str
    published_at: float


_KEYS = (
    "SELECT id, name, hash, scopes, extract(epoch from created_at)::float8, extract(epoch from revoked_at)::float8"
    " FROM keys"
)
_VERSIONS = (
    "SELECT owner, name, version, digest, calls, timeout_s, attempts, min_instances, description,"
    " extract(epoch from published_at)::float8 FROM versions"
)


class Store:
    """A pool of connections. Open it with `Store.open`; every method raises StoreAway."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", dsn: str, schema: str) -> None:
        self._pool = pool
        self._dsn = dsn
        self._channel = f"{schema}_changed"

    @classmethod
    async def open(cls, dsn: str, schema: str) -> Self:
        """Connect, and bring the tables up to date. Raises StoreAway; ValueError for a bad schema name."""
        if not _SCHEMA.fullmatch(schema):
            raise ValueError(f"{schema!r} is not the name of a schema; use a-z, 0-9 and _")
        with _translated():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=8,
                timeout=_CONNECT_S,
                command_timeout=_STATEMENT_S,
                server_settings={"search_path": schema, "application_name": "algomesh-registry"},
            )
            try:
                await _migrate(pool, schema)
            except BaseException:
                pool.terminate()
                raise
        return cls(pool, dsn, schema)

    async def close(self) -> None:
        """Close every connection; those that do not end by themselves are cut."""
        try:
            async with asyncio.timeout(1.0):
                await self._pool.close()
        except (TimeoutError, *_AWAY):
            self._pool.terminate()

    # Keys

    async def keys(self) -> list[KeyRecord]:
        """Every key, newest first, also revoked ones."""
        rows = await self._fetch(_KEYS + " ORDER BY created_at DESC, id")
        return [_key(row) for row in rows]

    async def key(self, id_: str) -> KeyRecord | None:
        """One key by its id."""
        rows = await self._fetch(_KEYS + " WHERE id = $1", id_)
        return _key(rows[0]) if rows else None

    async def add_key(self, id_: str, name: str, hash_: bytes, scopes: list[str]) -> KeyRecord | None:
        """Keep a new key; None when an active one has that name, or that id."""
        query = "INSERT INTO keys (id, name, hash, scopes) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING id"
        async with self._changing() as connection:
            inserted = await connection.fetchval(query, id_, name, hash_, scopes)
            if inserted is not None:
                await self._tell(connection, "key", id_)
        return None if inserted is None else await self.key(id_)

    async def set_key(self, id_: str, name: str, hash_: bytes, scopes: list[str]) -> list[str]:
        """Make this the one active key called `name`; return the ids of those that are revoked by it."""
        async with self._changing() as connection:
            others = (
                "UPDATE keys SET revoked_at = now() WHERE name = $1 AND id <> $2 AND revoked_at IS NULL RETURNING id"
            )
            revoked = [row["id"] for row in await connection.fetch(others, name, id_)]
            await connection.execute(
                "INSERT INTO keys (id, name, hash, scopes) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE"
                " SET name = $2, hash = $3, scopes = $4, revoked_at = NULL",
                *(id_, name, hash_, scopes),
            )
            for changed in (id_, *revoked):
                await self._tell(connection, "key", changed)
        return revoked

    async def revoke_keys(self, id_or_name: str) -> list[str]:
        """Revoke what is active under this id or name; return the ids."""
        query = "UPDATE keys SET revoked_at = now() WHERE (id = $1 OR name = $1) AND revoked_at IS NULL RETURNING id"
        async with self._changing() as connection:
            revoked = [row["id"] for row in await connection.fetch(query, id_or_name)]
            for id_ in revoked:
                await self._tell(connection, "key", id_)
        return revoked

    # Versions

    async def versions(self, owner: str = "", name: str = "") -> list[VersionRecord]:
        """Every version, or those of one algorithm."""
        where, arguments = (" WHERE owner = $1 AND name = $2", (owner, name)) if owner else ("", ())
        rows = await self._fetch(_VERSIONS + where, *arguments)
        return [_version(row) for row in rows]

    async def manifest(self, version: VersionId) -> StoredManifest | None:
        """The manifest of one version, with the digest of its archive."""
        query = "SELECT manifest, digest FROM versions WHERE owner = $1 AND name = $2 AND version = $3"
        rows = await self._fetch(query, version.owner, version.name, str(version.version))
        if not rows:
            return None
        return StoredManifest(manifest=unpack(Manifest, rows[0]["manifest"]), digest=rows[0]["digest"])

    async def add_version(self, version: VersionId, manifest: Manifest, digest: str, by: str) -> bool:
        """Keep a version for ever; False when there is one of that number already."""
        options = manifest.options
        async with self._changing() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _PUBLISH_LOCK)
            inserted = await connection.fetchval(
                "INSERT INTO versions (owner, name, version, digest, manifest, calls, timeout_s, attempts,"
                " min_instances, description, published_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
                " ON CONFLICT DO NOTHING RETURNING true",
                *(version.owner, version.name, str(version.version), digest, pack(manifest), options.calls),
                *(options.timeout_s, options.attempts, options.min_instances, manifest.description, by),
            )
            if inserted:
                await self._tell(connection, "version", str(version))
        return bool(inserted)

    @contextlib.asynccontextmanager
    async def mirroring(self) -> AsyncIterator[None]:
        """Hold the right to write the directory: of several registries one at a time."""
        async with self._changing() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIRROR_LOCK)
            yield

    # Hearing of changes

    async def watch(self, on_change: Callable[[str, str], None], on_resume: Callable[[], Awaitable[None]]) -> None:
        """Call `on_change(kind, id)` for what any registry changes, for ever.

        `on_resume` is awaited whenever listening begins (again), since changes may have been missed.
        """
        while True:
            try:
                await self._watch_once(on_change, on_resume)
            except (StoreAway, *_AWAY) as error:
                log.warning("database_away", error=str(error))
            await asyncio.sleep(_RETRY_S)

    async def _watch_once(
        self, on_change: Callable[[str, str], None], on_resume: Callable[[], Awaitable[None]]
    ) -> None:
        ended = asyncio.Event()
        connection = await asyncpg.connect(self._dsn, timeout=_CONNECT_S, command_timeout=_STATEMENT_S)
        try:
            connection.add_termination_listener(lambda _: ended.set())
            await connection.add_listener(self._channel, lambda *heard: on_change(*json.loads(str(heard[3]))))
            await on_resume()
            await ended.wait()
        finally:
            connection.terminate()

    async def _tell(self, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", kind: str, id_: str) -> None:
        await connection.execute("SELECT pg_notify($1, $2)", self._channel, json.dumps([kind, id_]))

    async def _fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        with _translated():
            return await self._pool.fetch(query, *arguments, timeout=_STATEMENT_S)

    @contextlib.asynccontextmanager
    async def _changing(self) -> "AsyncIterator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]":
        with _translated():
            async with self._pool.acquire(timeout=_CONNECT_S) as connection, connection.transaction():
                yield connection


async def _migrate(pool: "asyncpg.Pool[asyncpg.Record]", schema: str) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATE_LOCK)
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        await connection.execute("CREATE TABLE IF NOT EXISTS migrations (number integer PRIMARY KEY)")
        done = await connection.fetchval("SELECT count(*) FROM migrations")
        for number, statements in enumerate(MIGRATIONS[done:], start=done):
            await connection.execute(statements)
            await connection.execute("INSERT INTO migrations VALUES ($1)", number)
            log.info("tables_migrated", number=number)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _AWAY as error:
        raise StoreAway(f"PostgreSQL: {type(error).__name__}: {error}") from error


def _key(row: asyncpg.Record) -> KeyRecord:
    id_, name, hash_, scopes, created_at, revoked_at = row
    return KeyRecord(id_, name, hash_, tuple(scopes), created_at, revoked_at)


def _version(row: asyncpg.Record) -> VersionRecord:
    owner, name, version, digest, calls, *rest = row
    return VersionRecord(owner, name, version, digest, tuple(calls), *rest)
