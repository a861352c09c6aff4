"""The ledger's history: all runs from some time on, oldest first, page by page."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from algomesh_broker.platform import History, RunRow, RunRows
from algomesh_broker.server import NatsServer
from algomesh_services.ledger.store import _BEGUN_AFTER, _FOLLOWS, _HISTORY, _IN_ORDER, _PLACE, Store
from algomesh_services.ledger.verbs import MOST_HISTORY
from tests.integration.ledger_fixtures import Ledgers, ledgers, run_event
from tests.integration.registry_fixtures import ask

pytestmark = pytest.mark.integration

T0 = float(int(time.time()) - 100_000)


@pytest_asyncio.fixture
async def store(postgres: str) -> AsyncIterator[Store]:
    opened = await Store.open(postgres, "ledger")
    yield opened
    await opened.close()


async def pages(store: Store, since: float, limit: int) -> list[RunRow]:
    """Everything, as one who asks for page after page gets it."""
    found: list[RunRow] = []
    after = ""
    while page := await store.history(since, limit, after=after):
        found += page
        since, after = page[-1].queued_at or page[-1].started_at or page[-1].ended_at, page[-1].run
    return found


async def test_runs_come_oldest_first_from_the_time_that_was_asked_for(store: Store) -> None:
    await store.write([run_event(f"r{number}", queued_at=T0 + 100.0 + number) for number in (3, 1, 4, 0, 2)])

    assert [row.run for row in await store.history(T0 + 100.0, 10)] == ["r1", "r2", "r3", "r4"]
    assert [row.run for row in await store.history(T0 + 100.5, 2)] == ["r1", "r2"]
    assert await store.history(T0 + 104.0, 10) == []


async def test_pages_follow_one_another_without_a_gap_or_a_row_twice(store: Store) -> None:
    events = [
        run_event(f"r{number:03}", queued_at=T0 + 100.0 + number // 7 + 50 * attempt, attempt=attempt)
        for attempt in (1, 2)
        for number in range(100)
    ]  # many begin at the same time
    await store.write(events)

    for limit in (1, 3, 7, 500):
        found = await pages(store, 0.0, limit)
        assert [(row.run, row.attempt) for row in found] == [(event.run, event.attempt) for event in events]


async def test_two_attempts_of_the_same_moment_are_no_place_to_stay_for_ever(store: Store) -> None:
    await store.write([run_event(run, queued_at=T0 + 100.0, attempt=attempt) for run in "ab" for attempt in (1, 2)])

    assert [row.run for row in await pages(store, 0.0, 1)] == ["a", "b"]


async def test_an_attempt_long_after_the_first_has_its_own_place(store: Store) -> None:
    await store.write(
        [
            run_event("a", queued_at=T0 + 100.0),
            run_event("b", queued_at=T0 + 101.0),
            run_event("a", queued_at=T0 + 102.0, attempt=2),
            run_event("c", queued_at=T0 + 103.0),
        ]
    )

    assert [(row.run, row.attempt) for row in await pages(store, 0.0, 1)] == [("a", 1), ("b", 1), ("a", 2), ("c", 1)]


async def test_a_run_that_is_gone_is_no_reason_to_begin_anew(store: Store) -> None:
    await store.write([run_event(f"r{number}", queued_at=T0 + 100.0 + number) for number in range(5)])

    assert [row.run for row in await store.history(T0 + 102.0, 10, after="deleted")] == ["r3", "r4"]


async def test_of_an_error_only_the_beginning_is_told(store: Store) -> None:
    await store.write([run_event("r", error="e" * 900, state="failed")])

    (row,) = await store.history(0.0, 10)

    assert row.error == "e" * 100


async def test_the_ledger_answers_no_more_than_a_page_at_once(
    tmp_path: Path, nats_server: NatsServer, postgres: str
) -> None:
    async def history(mesh: Ledgers, wanted: History) -> list[str]:
        answer = await ask(mesh.connection, "history", wanted, RunRows, program="ledger")
        return [row.run for row in answer.runs]

    events = [run_event(f"r{number:05}", queued_at=T0 + 100.0 + number) for number in range(MOST_HISTORY + 10)]
    async with ledgers(tmp_path, nats_server, postgres) as mesh, mesh.running():
        store = await Store.open(mesh.settings.postgres, mesh.settings.schema)
        try:
            await store.write(events)
        finally:
            await store.close()

        everything = await history(mesh, History(since=0.0, limit=1_000_000))
        rest = await history(mesh, History(since=T0 + 100.0 + MOST_HISTORY - 1, after=everything[-1]))
        assert await history(mesh, History(since=0.0, limit=-1)) == []

    assert [*everything, *rest] == [event.run for event in events]
    assert len(everything) == MOST_HISTORY


async def test_a_page_is_read_by_an_index_however_many_runs_there_are(postgres: str, store: Store) -> None:
    for part in range(10):
        await store.write(
            [run_event(f"r{part}-{number}", queued_at=T0 + 5e3 * part + number) for number in range(5_000)]
        )
    connection = await asyncpg.connect(postgres, server_settings={"search_path": "ledger"})
    try:
        await connection.execute("ANALYZE runs")
        plans = []
        for statement in (
            f"{_HISTORY} WHERE {_BEGUN_AFTER.format(repr(T0 + 15e3))} {_IN_ORDER} LIMIT 100",
            f"{_HISTORY} WHERE {_FOLLOWS.format(repr(T0 + 15e3), repr('r3-5'), '1')} {_IN_ORDER} LIMIT 100",
            _PLACE.replace("$1", "'r3-5'").replace("$2", repr(T0 + 15e3)),
        ):
            rows = await connection.fetch(f"EXPLAIN ANALYZE {statement}")
            plans.append("\n".join(row[0] for row in rows))
    finally:
        await connection.close()

    assert [plan for plan in plans if "Seq Scan" in plan] == []
    assert "runs_begun" in plans[0]
    assert "runs_begun" in plans[1]
    assert "runs_pkey" in plans[2]
