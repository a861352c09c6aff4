"""The pre-warmer's tables in PostgreSQL: starts, calls by the minute, snapshots.

Whatever the database does wrong comes out as StoreAway; starts and snapshots may then be written again.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Self

import msgspec

from algomesh_broker.platform import SavingsRow, SparedRow, StartRow
from algomesh_services.postgres_pool import PostgresPool
from algomesh_services.prewarmer.migrations import MIGRATIONS

_STATEMENT_S: Final = 30.0
# Advisory locks are numbers that all programs on one database share; this one spells "amp".
_MIGRATE_LOCK: Final = 0x616D70_01
_SNAPSHOTS_KEPT: Final = 3
_DAMAGED_KEPT: Final = 10

_COLUMNS: Final = (
    ("instance", "text"), ("launcher", "text"), ("algorithm", "text"), ("version", "text"), ("kind", "text"),
    ("reason", "text"), ("after", "text"), ("caller", "text"), ("started_at", "double precision"),
    ("ready_at", "double precision"), ("used_at", "double precision"), ("ended_at", "double precision"),
    ("held_s", "double precision"), ("saved_s", "double precision"), ("in_time", "boolean"),
    ("gpu", "double precision"),
)  # fmt: skip
_NAMES: Final = ", ".join(name for name, _ in _COLUMNS)
_UPSERT: Final = (
    f"INSERT INTO starts ({_NAMES}) SELECT * FROM unnest("  # noqa: S608  # our own names
    + ", ".join(f"${number}::{kind}[]" for number, (_, kind) in enumerate(_COLUMNS, 1))
    + ") ON CONFLICT (instance) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name, _ in _COLUMNS if name not in ("instance", "started_at"))
)
_LATEST_STARTS: Final = (
    "SELECT version, launcher, took_s FROM ("
    "SELECT algorithm || '/' || version AS version, launcher, ready_at - started_at AS took_s, started_at, "
    "row_number() OVER (PARTITION BY algorithm, version, launcher ORDER BY started_at DESC) AS age "
    "FROM starts WHERE ready_at > started_at) AS lately WHERE age <= $1 ORDER BY started_at"
)
_SAVINGS: Final = (
    "SELECT kind, count(*) AS starts, count(*) FILTER (WHERE used_at > 0) AS used, "
    "coalesce(sum(held_s * gpu), 0) AS held, "
    "coalesce(sum(gpu * greatest(0, CASE WHEN ended_at > 0 THEN ended_at ELSE $2 END - started_at)) "
    "FILTER (WHERE used_at = 0), 0) AS wasted FROM starts WHERE started_at >= $1 GROUP BY kind"
)
_SPARED_NAMES: Final = ", ".join(SparedRow.__struct_fields__)
_SPARED: Final = f"SELECT {_SPARED_NAMES} FROM spared WHERE at >= $1 ORDER BY at DESC LIMIT $2"  # noqa: S608
_SPARE: Final = (
    f"INSERT INTO spared ({_SPARED_NAMES}) SELECT * FROM unnest($1::text[], $2::text[], $3::text[], "  # noqa: S608
    "$4::text[], $5::text[], $6::double precision[], $7::double precision[], $8::text[], $9::integer[]) "
    "ON CONFLICT (run) DO NOTHING"
)
_MOST_SPARED: Final = 200_000
_NONE: Final[Mapping[tuple[int, str], tuple[int, float]]] = {}
_IN_TIME: Final = (
    "SELECT after, algorithm, avg(in_time::integer)::float8 AS share FROM ("
    "SELECT after, algorithm, in_time FROM starts WHERE after <> '' AND used_at > 0 "
    "ORDER BY started_at DESC LIMIT 10000) AS lately GROUP BY after, algorithm"
)


class StoredStart(NamedTuple):
    """A start as it is kept, in the order of the columns; times are seconds since the epoch."""

    instance: str
    launcher: str
    algorithm: str
    version: str
    kind: str
    reason: str
    after: str
    caller: str
    started_at: float
    ready_at: float
    used_at: float
    ended_at: float
    held_s: float
    saved_s: float
    in_time: bool
    gpu: float


class StoredSnapshot(NamedTuple):
    """A snapshot as it is kept; `damage` says what is wrong with it, as far as the checksum shows it."""

    number: int
    data: bytes
    damage: str


class Store:
    """The tables. Open them with `Store.open`; every method raises StoreAway."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, dsn: str, schema: str) -> Self:
        """Connect, and bring the tables up to date. Raises StoreAway; ValueError for a bad schema name."""
        pool = await PostgresPool.open(
            dsn,
            schema,
            program="prewarmer",
            migrations=MIGRATIONS,
            migrate_lock=_MIGRATE_LOCK,
            size=3,
            statement_s=_STATEMENT_S,
            gives_way=True,
        )
        return cls(pool)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    # Starts and calls

    async def write(
        self,
        starts: Sequence[StoredStart],
        calls: Mapping[int, tuple[int, int]],
        spared: Sequence[SparedRow] = (),
        savings: Mapping[tuple[int, str], tuple[int, float]] = _NONE,
    ) -> None:
        """Keep these starts, each as it is now; add these calls, and cold ones, to those of their minutes; so also
        calls that were `spared` a wait, and their sums by minute and why.
        """
        async with self._pool.transaction() as session:
            if starts:
                await session.execute(_UPSERT, *map(list, zip(*starts, strict=True)))
            if calls:
                await session.executemany(
                    "INSERT INTO calls VALUES ($1, $2, $3) ON CONFLICT (minute) DO UPDATE "
                    "SET calls = calls.calls + excluded.calls, cold = calls.cold + excluded.cold",
                    [(minute, *counts) for minute, counts in calls.items()],
                )
            if spared:
                await session.execute(_SPARE, *map(list, zip(*map(msgspec.structs.astuple, spared), strict=True)))
            if savings:
                await session.executemany(
                    "INSERT INTO savings VALUES ($1, $2, $3, $4) ON CONFLICT (minute, why) DO UPDATE "
                    "SET calls = savings.calls + excluded.calls, seconds = savings.seconds + excluded.seconds",
                    [(*key, *sums) for key, sums in savings.items()],
                )

    async def up(self) -> list[StoredStart]:
        """The starts of which no end is known."""
        rows = await self._pool.fetch(f"SELECT {_NAMES} FROM starts WHERE ended_at = 0")  # noqa: S608
        return [StoredStart(*row) for row in rows]

    async def latest_starts(self, count: int) -> list[tuple[str, str, float]]:
        """Version, launcher and seconds of the last `count` starts of each version on each machine, oldest first."""
        return [(row[0], row[1], row[2]) for row in await self._pool.fetch(_LATEST_STARTS, count)]

    async def starts(self, limit: int, algorithm: str = "") -> list[StartRow]:
        """The latest starts, newest first."""
        where, arguments = ("WHERE algorithm = $2 ", (algorithm,)) if algorithm else ("", ())
        names = ", ".join(StartRow.__struct_fields__)
        query = f"SELECT {names} FROM starts {where}ORDER BY started_at DESC LIMIT $1"  # noqa: S608
        return [StartRow(**dict(row.items())) for row in await self._pool.fetch(query, limit, *arguments)]

    async def in_time(self) -> dict[tuple[str, str], float]:
        """By (called before, algorithm): the share of its starts that were done when the call came."""
        return {(row["after"], row["algorithm"]): row["share"] for row in await self._pool.fetch(_IN_TIME)}

    async def savings(self, since: float, now: float, most: int = 0) -> SavingsRow:
        """Sums of starts and calls since then, and the latest calls that were spared a wait, at `most` so many.

        `now` is the end of the instances that are up.
        """
        rows = await self._pool.fetch(_SAVINGS, since, now)
        calls = await self._pool.fetch(
            "SELECT coalesce(sum(calls), 0)::bigint, coalesce(sum(cold), 0)::bigint FROM calls WHERE minute >= $1",
            int(since // 60),
        )
        sums = await self._pool.fetch(
            "SELECT why, sum(calls)::bigint AS calls, sum(seconds) AS seconds FROM savings WHERE minute >= $1 "
            "GROUP BY why",
            int(since // 60),
        )
        listed = await self._pool.fetch(_SPARED, since, most) if most else []
        return SavingsRow(
            starts={row["kind"]: row["starts"] for row in rows},
            used={row["kind"]: row["used"] for row in rows},
            gpu_s_held=sum(row["held"] for row in rows),
            gpu_s_for_nothing=sum(row["wasted"] for row in rows),
            saved_s=sum(row["seconds"] for row in sums),
            calls=calls[0][0],
            cold_calls=calls[0][1],
            spared={row["why"]: row["calls"] for row in sums},
            saved={row["why"]: row["seconds"] for row in sums},
            rows=[SparedRow(**dict(row.items())) for row in listed],
        )

    async def delete_older(self, before: float) -> None:
        """Forget the starts that ended, and the calls that began, before then (seconds since the epoch).

        Of the calls that were spared a wait, no more than the last 200,000 are known one by one.
        """
        async with self._pool.transaction() as session:
            await session.execute("DELETE FROM starts WHERE started_at < $1 AND ended_at > 0", before)
            await session.execute("DELETE FROM calls WHERE minute < $1", int(before // 60))
            await session.execute("DELETE FROM savings WHERE minute < $1", int(before // 60))
            await session.execute(
                "DELETE FROM spared WHERE at < "
                "greatest($1, (SELECT at FROM spared ORDER BY at DESC OFFSET $2 LIMIT 1))",
                before,
                _MOST_SPARED,
            )

    # Snapshots

    async def add_snapshot(self, data: bytes) -> None:
        """Keep a snapshot in a row of its own; the last three, and ten that were damaged."""
        checksum = await asyncio.to_thread(lambda: hashlib.sha256(data).digest())
        async with self._pool.transaction() as session:
            await session.execute("INSERT INTO snapshots (checksum, data) VALUES ($1, $2)", checksum, data)
            for condition, kept in (("damage = ''", _SNAPSHOTS_KEPT), ("damage <> ''", _DAMAGED_KEPT)):
                await session.execute(
                    f"DELETE FROM snapshots WHERE {condition} AND number NOT IN "  # noqa: S608  # our own words
                    f"(SELECT number FROM snapshots WHERE {condition} ORDER BY number DESC LIMIT $1)",
                    kept,
                )

    async def snapshots(self) -> list[StoredSnapshot]:
        """Those that were not set aside, newest first."""
        rows = await self._pool.fetch(
            "SELECT number, checksum, data FROM snapshots WHERE damage = '' ORDER BY number DESC"
        )
        return [
            StoredSnapshot(
                row["number"],
                row["data"],
                "" if hashlib.sha256(row["data"]).digest() == row["checksum"] else "its checksum is another",
            )
            for row in rows
        ]

    async def set_aside(self, number: int, damage: str) -> None:
        """A snapshot is not to be used again."""
        await self._pool.fetch("UPDATE snapshots SET damage = $2 WHERE number = $1 RETURNING number", number, damage)
