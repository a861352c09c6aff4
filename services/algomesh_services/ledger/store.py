"""The table of runs in PostgreSQL.

Whatever the database does wrong comes out as StoreAway; every write may then be sent again. Rows that PostgreSQL
itself refuses come out as BadRows.

Most events are the only one about their run, or were merged with the others before they came here. Such rows are
copied in, which costs PostgreSQL half of what an upsert does; a copy never changes a row, it is refused as a whole
when one is there already, and then all of them are upserted.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Final, Self

from msgspec.structs import astuple

from algomesh_broker.messages import RunEvent
from algomesh_broker.platform import RunRow
from algomesh_services.database_spans import writes
from algomesh_services.ledger.migrations import MIGRATIONS
from algomesh_services.ledger.recent import Recent, keys_of
from algomesh_services.postgres_pool import DoubledRows, PostgresPool, Session, copy

_STATEMENT_S: Final = 30.0
_DAY_S: Final = 86_400.0
# No run takes longer than a week. Who says that one began earlier has a wrong clock: its run is listed below others and
# kept nearly as long.
_LONGEST_AGO_S: Final = 7 * _DAY_S
# Advisory locks are numbers that all programs on one database share; this one spells "aml".
_MIGRATE_LOCK: Final = 0x616D6C_01

# In the order of RunEvent's fields.
_FIELDS: Final = (
    ("run", "text"), ("attempt", "integer"), ("root", "text"), ("parent", "text"), ("algorithm", "text"),
    ("version", "text"), ("caller", "text"), ("root_caller", "text"), ("instance", "text"), ("state", "text"),
    ("queued_at", "double precision"), ("started_at", "double precision"), ("ended_at", "double precision"),
    ("compute_ms", "double precision"), ("cold_ms", "double precision"), ("error", "text"),
)  # fmt: skip
_NAMES: Final = tuple(name for name, _ in _FIELDS)
_WRITTEN: Final = (*_NAMES, "begun_at")
_queued_at: Final = attrgetter("queued_at")
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
    f"SELECT {', '.join(_NAMES)}, begun_at FROM unnest("
    + ", ".join(f"${number}::{kind}[]" for number, (_, kind) in enumerate(_FIELDS, 1))
    + f", ${len(_FIELDS) + 1}::double precision[]) AS new ({', '.join(_NAMES)}, begun_at) "
    "ON CONFLICT (run, attempt) DO UPDATE SET "
    + ", ".join(
        _set(name, kind) for name, kind in _FIELDS if name not in ("run", "attempt", "algorithm", "version", "caller")
    )
    + " WHERE runs.algorithm = excluded.algorithm AND runs.version = excluded.version AND runs.caller = excluded.caller"
)
_LATEST: Final = f"SELECT {', '.join(_NAMES)} FROM runs"  # noqa: S608  # our own names
# For replays, of which there are many rows in an answer: what an error said is not among what they read.
_HISTORY: Final = f"SELECT {', '.join(_NAMES[:-1])}, left(error, 100) AS error FROM runs"  # noqa: S608  # our own names
_IN_ORDER: Final = "ORDER BY begun_at, run, attempt"
_BEGUN_AFTER: Final = "begun_at > {0}"
# The first half is what the index of beginnings is searched for.
_FOLLOWS: Final = "begun_at >= {0} AND (begun_at, run, attempt) > ({0}, {1}, {2})"
# Of several attempts, the one that is meant is the one that began then; of two at once the last, so that it goes on.
_PLACE: Final = "SELECT begun_at, attempt FROM runs WHERE run = $1 ORDER BY abs(begun_at - $2), attempt DESC LIMIT 1"
_OF_ALGORITHM: Final = "(hashtext(algorithm) = hashtext({0}) AND algorithm = {0})"
# The root and the steps of its pipeline, `<root>-<step>`, are in the index of primary keys ("." is the character after
# "-"), and only the others in that of roots.
_OF_ROOT: Final = (
    "((root = {0} AND root <> run AND NOT starts_with(run, root || '-')) OR (root = {0} AND run = {0}) "
    "OR (root = {0} AND run > {0} || '-' AND run < {0} || '.'))"
)
_BEGUN_BEFORE: Final = "begun_at < $1"
# By their places: to find each by its key again would cost as much as to write it did.
_OLDEST: Final = (
    "DELETE FROM runs WHERE ctid = ANY(ARRAY("  # noqa: S608  # our own names
    f"SELECT ctid FROM runs WHERE {_BEGUN_BEFORE} ORDER BY begun_at LIMIT $2))"
)
_LOST: Final = (
    "UPDATE runs SET state = 'lost', error = $2, ended_at = CASE WHEN ended_at = 0 THEN $3 ELSE ended_at END "
    "WHERE state = 'running' AND "
)


class Store:
    """The table. Open it with `Store.open`; every method raises StoreAway."""

    def __init__(self, pool: PostgresPool, clock: Callable[[], float] = time.time) -> None:
        self._pool, self._clock = pool, clock
        self._recent = Recent()

    @classmethod
    async def open(cls, dsn: str, schema: str) -> Self:
        """Connect, and bring the table up to date. Raises StoreAway; ValueError for a bad schema name."""
        pool = await PostgresPool.open(
            dsn,
            schema,
            program="ledger",
            migrations=MIGRATIONS,
            migrate_lock=_MIGRATE_LOCK,
            size=4,
            statement_s=_STATEMENT_S,
            gives_way=True,
        )
        return cls(pool)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    @writes("INSERT", "runs", is_batch=True)
    async def write(self, events: Sequence[RunEvent]) -> list[RunEvent]:
        """Keep these events, one for each attempt of each run, in one transaction. Raises BadRows too.

        Returns those that are the first end of their attempt, as far as is remembered.
        """
        keys = keys_of(events)
        new, known = self._recent.split(events, keys)
        try:
            if not known:
                async with self._pool.session() as session:
                    await self._copy(session, new)
            else:
                async with self._pool.transaction() as session:
                    await self._upsert(session, known)
                    if new:
                        await self._copy(session, new)
        except DoubledRows:  # told before this program began, or longer ago than it remembers, or to another one
            async with self._pool.session() as session:
                await self._upsert(session, events)
        return self._recent.add(events, keys)

    async def lose_instances(self, instances: Sequence[str], error: str, at: float) -> int:
        """The runs that still ran in these instances are lost; how many."""
        return await self._lose("instance = ANY($1::text[])", list(instances), error, at)

    async def lose_older(self, days: float, error: str, at: float) -> int:
        """Nothing runs this long: of what began so many days ago nobody will tell the end."""
        return await self._lose(_BEGUN_BEFORE, self._clock() - days * _DAY_S, error, at)

    async def running_instances(self) -> list[str]:
        """The instances in which, as far as is known, something runs."""
        rows = await self._pool.fetch("SELECT DISTINCT instance FROM runs WHERE state = 'running' AND instance <> ''")
        return [row[0] for row in rows]

    async def delete_older(self, days: float, limit: int) -> int:
        """Delete at most `limit` runs that began more than so many days ago; how many."""
        async with self._pool.session() as session:
            return _count(await session.execute(_OLDEST, self._clock() - days * _DAY_S, limit))

    async def latest(self, limit: int, *, algorithm: str = "", root: str = "") -> list[RunRow]:
        """The latest runs, newest first."""
        conditions, arguments = [], []
        for condition, wanted in ((_OF_ALGORITHM, algorithm), (_OF_ROOT, root)):
            if wanted:
                arguments.append(wanted)
                conditions.append(condition.format(f"${len(arguments)}::text"))
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = f" ORDER BY begun_at DESC, attempt DESC LIMIT ${len(arguments) + 1}"
        rows = await self._pool.fetch(_LATEST + where + order, *arguments, limit)
        return [RunRow(**dict(row.items())) for row in rows]

    async def history(self, since: float, limit: int, *, after: str = "") -> list[RunRow]:
        """Runs that began after `since` (seconds since the epoch), oldest first, with the beginnings of their errors.

        The next page begins after the run `after`, the last of this one, which began at `since` or near it.
        """
        place = await self._pool.fetch(_PLACE, after, since) if after else []
        if place:
            arguments: tuple[object, ...] = (place[0]["begun_at"], after, place[0]["attempt"])
            where = _FOLLOWS.format("$1", "$2", "$3")
        else:
            arguments, where = (since,), _BEGUN_AFTER.format("$1")
        statement = f"{_HISTORY} WHERE {where} {_IN_ORDER} LIMIT ${len(arguments) + 1}"
        rows = await self._pool.fetch(statement, *arguments, limit)
        return [RunRow(**dict(row.items())) for row in rows]

    async def _copy(self, session: Session, events: Sequence[RunEvent]) -> None:
        # What is added in order goes to the end of the index of beginnings, which costs PostgreSQL a tenth less.
        await copy(session, "runs", _WRITTEN, self._rows(sorted(events, key=_queued_at)))

    async def _upsert(self, session: Session, events: Sequence[RunEvent]) -> None:
        await session.execute(_UPSERT, *zip(*self._rows(events), strict=True))

    def _rows(self, events: Sequence[RunEvent]) -> Iterator[tuple[object, ...]]:
        """The values of each, made when they are sent: a list of them costs more than it takes to make them."""
        now = self._clock()
        earliest = now - _LONGEST_AGO_S
        for event in events:
            begun_at = event.queued_at or event.started_at or event.ended_at or now
            yield (*astuple(event), begun_at if begun_at > earliest else earliest)

    async def _lose(self, condition: str, which: object, error: str, at: float) -> int:
        async with self._pool.session() as session:
            return _count(await session.execute(_LOST + condition, which, error, at))


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])
