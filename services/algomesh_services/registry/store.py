"""The registry's tables in PostgreSQL: keys, versions and aliases. Postgres decides; the directory in NATS is a copy.

Whatever the database does wrong comes out as StoreAway; every write can then be sent again.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, Self

import structlog

from algomesh_broker.names import VersionId
from algomesh_broker.platform import Manifest, StoredManifest, pack, unpack
from algomesh_services.database_spans import writes
from algomesh_services.postgres_pool import PostgresPool, Row, Session, StoreAway
from algomesh_services.registry.migrations import MIGRATIONS

log = structlog.get_logger("algomesh.registry")

_STATEMENT_S = 10.0
_RETRY_S = 0.25
# Advisory locks are numbers that all programs on one database share; these spell "amr" and a purpose.
_MIGRATE_LOCK, _PUBLISH_LOCK, _MIRROR_LOCK = 0x616D72_01, 0x616D72_02, 0x616D72_03


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
    pipeline: bytes
    takes: str
    gives: str
    cache_s: float
    takes_parts: bool


class AliasRecord(NamedTuple):
    """What an alias of an algorithm means: versions, each with its weight."""

    owner: str
    name: str
    alias: str
    weights: dict[str, int]


_KEYS = (
    "SELECT id, name, hash, scopes, extract(epoch from created_at)::float8, extract(epoch from revoked_at)::float8"
    " FROM keys"
)
_VERSIONS = (
    "SELECT owner, name, version, digest, calls, timeout_s, attempts, min_instances, description,"
    " extract(epoch from published_at)::float8, pipeline, takes, gives, cache_s,"
    " takes_parts FROM versions"
)
_ALIASES = "SELECT owner, name, alias, versions, weights FROM aliases"


class Store:
    """The tables. Open them with `Store.open`; every method raises StoreAway."""

    def __init__(self, pool: PostgresPool, schema: str) -> None:
        self._pool = pool
        self._channel = f"{schema}_changed"

    @classmethod
    async def open(cls, dsn: str, schema: str) -> Self:
        """Connect, and bring the tables up to date. Raises StoreAway; ValueError for a bad schema name."""
        pool = await PostgresPool.open(
            dsn,
            schema,
            program="registry",
            migrations=MIGRATIONS,
            migrate_lock=_MIGRATE_LOCK,
            size=8,
            statement_s=_STATEMENT_S,
        )
        return cls(pool, schema)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    # Keys

    async def keys(self) -> list[KeyRecord]:
        """Every key, newest first, also revoked ones."""
        rows = await self._pool.fetch(_KEYS + " ORDER BY created_at DESC, id")
        return [_key(row) for row in rows]

    async def key(self, id_: str) -> KeyRecord | None:
        """One key by its id."""
        rows = await self._pool.fetch(_KEYS + " WHERE id = $1", id_)
        return _key(rows[0]) if rows else None

    async def add_key(self, id_: str, name: str, hash_: bytes, scopes: list[str]) -> KeyRecord | None:
        """Keep a new key; None when an active one has that name, or that id."""
        query = "INSERT INTO keys (id, name, hash, scopes) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING id"
        async with self._pool.transaction() as session:
            inserted = await session.fetchval(query, id_, name, hash_, scopes)
            if inserted is not None:
                await self._tell(session, "key", id_)
        return None if inserted is None else await self.key(id_)

    async def set_key(self, id_: str, name: str, hash_: bytes, scopes: list[str]) -> list[str]:
        """Make this the one active key called `name`; return the ids of those that are revoked by it."""
        async with self._pool.transaction() as session:
            others = (
                "UPDATE keys SET revoked_at = now() WHERE name = $1 AND id <> $2 AND revoked_at IS NULL RETURNING id"
            )
            revoked = [row["id"] for row in await session.fetch(others, name, id_)]
            await session.execute(
                "INSERT INTO keys (id, name, hash, scopes) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE"
                " SET name = $2, hash = $3, scopes = $4, revoked_at = NULL",
                *(id_, name, hash_, scopes),
            )
            for changed in (id_, *revoked):
                await self._tell(session, "key", changed)
        return revoked

    async def revoke_keys(self, id_or_name: str) -> list[str]:
        """Revoke what is active under this id or name; return the ids."""
        query = "UPDATE keys SET revoked_at = now() WHERE (id = $1 OR name = $1) AND revoked_at IS NULL RETURNING id"
        async with self._pool.transaction() as session:
            revoked = [row["id"] for row in await session.fetch(query, id_or_name)]
            for id_ in revoked:
                await self._tell(session, "key", id_)
        return revoked

    # Versions

    async def versions(self, owner: str = "", name: str = "") -> list[VersionRecord]:
        """Every version, or those of one algorithm."""
        where, arguments = (" WHERE owner = $1 AND name = $2", (owner, name)) if owner else ("", ())
        rows = await self._pool.fetch(_VERSIONS + where, *arguments)
        return [_version(row) for row in rows]

    async def manifest(self, version: VersionId) -> StoredManifest | None:
        """The manifest of one version, with the digest of its archive."""
        query = "SELECT manifest, digest FROM versions WHERE owner = $1 AND name = $2 AND version = $3"
        rows = await self._pool.fetch(query, version.owner, version.name, str(version.version))
        if not rows:
            return None
        return StoredManifest(manifest=unpack(Manifest, rows[0]["manifest"]), digest=rows[0]["digest"])

    @writes("INSERT", "versions")
    async def add_version(self, version: VersionId, manifest: Manifest, digest: str, by: str) -> bool:
        """Keep a version for ever; False when there is one of that number already."""
        options = manifest.options
        async with self._pool.transaction() as session:
            await session.execute("SELECT pg_advisory_xact_lock($1)", _PUBLISH_LOCK)
            inserted = await session.fetchval(
                "INSERT INTO versions (owner, name, version, digest, manifest, calls, timeout_s, attempts,"
                " min_instances, description, published_by, pipeline, takes, gives, cache_s, takes_parts)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"
                " ON CONFLICT DO NOTHING RETURNING true",
                *(version.owner, version.name, str(version.version), digest, pack(manifest), options.calls),
                *(options.timeout_s, options.attempts, options.min_instances, manifest.description, by),
                *(manifest.pipeline, manifest.takes, manifest.gives, options.cache_s, options.takes_parts),
            )
            if inserted:
                await self._tell(session, "version", str(version))
        return bool(inserted)

    # Aliases

    async def aliases(self, owner: str = "", name: str = "") -> list[AliasRecord]:
        """Every alias, or those of one algorithm."""
        where, arguments = (" WHERE owner = $1 AND name = $2", (owner, name)) if owner else ("", ())
        rows = await self._pool.fetch(_ALIASES + where, *arguments)
        return [_alias(row) for row in rows]

    @writes("INSERT", "aliases")
    async def set_alias(self, record: AliasRecord, by: str) -> None:
        """Let an alias mean this from now on."""
        query = (
            "INSERT INTO aliases (owner, name, alias, versions, weights, changed_by) VALUES ($1, $2, $3, $4, $5, $6)"
            " ON CONFLICT (owner, name, alias)"
            " DO UPDATE SET versions = $4, weights = $5, changed_at = now(), changed_by = $6 RETURNING true"
        )
        versions, weights = list(record.weights), list(record.weights.values())
        await self._pool.fetch(query, record.owner, record.name, record.alias, versions, weights, by)

    async def remove_alias(self, owner: str, name: str, alias: str) -> bool:
        """Forget an alias; False when there was none."""
        query = "DELETE FROM aliases WHERE owner = $1 AND name = $2 AND alias = $3 RETURNING true"
        return bool(await self._pool.fetch(query, owner, name, alias))

    @contextlib.asynccontextmanager
    async def mirroring(self) -> AsyncIterator[None]:
        """Hold the right to write the directory: of several registries one at a time."""
        async with self._pool.transaction() as session:
            await session.execute("SELECT pg_advisory_xact_lock($1)", _MIRROR_LOCK)
            yield

    # Hearing of changes

    async def watch(self, on_change: Callable[[str, str], None], on_resume: Callable[[], Awaitable[None]]) -> None:
        """Call `on_change(kind, id)` for what any registry changes, for ever.

        `on_resume` is awaited whenever listening begins (again), since changes may have been missed.
        """

        def heard(notice: str) -> None:
            on_change(*json.loads(notice))

        while True:
            try:
                await self._pool.listen(self._channel, heard, on_resume)
            except StoreAway as error:
                log.warning("database_away", error=str(error))
            await asyncio.sleep(_RETRY_S)

    async def _tell(self, session: Session, kind: str, id_: str) -> None:
        await session.execute("SELECT pg_notify($1, $2)", self._channel, json.dumps([kind, id_]))


def _key(row: Row) -> KeyRecord:
    id_, name, hash_, scopes, created_at, revoked_at = row
    return KeyRecord(id_, name, hash_, tuple(scopes), created_at, revoked_at)


def _version(row: Row) -> VersionRecord:
    owner, name, version, digest, calls, *rest = row
    return VersionRecord(owner, name, version, digest, tuple(calls), *rest)


def _alias(row: Row) -> AliasRecord:
    owner, name, alias, versions, weights = row
    return AliasRecord(owner, name, alias, dict(zip(versions, weights, strict=True)))
