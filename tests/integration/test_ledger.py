"""The ledger with a real nats-server and a real PostgreSQL."""

import asyncio
import itertools
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from msgspec.structs import replace

from algomesh_broker import messages, subjects
from algomesh_broker.codec import encode
from algomesh_broker.connection import Message
from algomesh_broker.messages import RunEvent
from algomesh_broker.server import NatsServer
from algomesh_broker.streams import JetStreamAdmin
from algomesh_services.ledger import events
from algomesh_services.ledger.feed import Feed
from algomesh_services.ledger.migrations import MIGRATIONS
from algomesh_services.ledger.service import serve
from algomesh_services.ledger.store import _BEGUN_BEFORE, _LATEST, _LOST, _OF_ALGORITHM, _OF_ROOT, _OLDEST, Store
from algomesh_services.local.postgres import Postgres
from algomesh_services.postgres_pool import BadRows
from tests.conditions import until
from tests.integration.ledger_fixtures import VERSION, Ledgers, ledgers, run_event

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(tmp_path: Path, nats_server: NatsServer, postgres: str) -> AsyncIterator[Ledgers]:
    async with ledgers(tmp_path, nats_server, postgres, upkeep_s=0.2) as there:
        yield there


@pytest_asyncio.fixture
async def store(postgres: str) -> AsyncIterator[Store]:
    opened = await Store.open(postgres, "ledger")
    yield opened
    await opened.close()


async def sql(dsn: str, statement: str, *arguments: Any) -> list[Any]:
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "ledger"})
    try:
        return list(await connection.fetch(statement, *arguments))
    finally:
        await connection.close()


async def age(dsn: str, days: float) -> None:
    """As if all that is in the table had begun so many days earlier."""
    await sql(dsn, "UPDATE runs SET begun_at = begun_at - $1::double precision", days * 86_400)


async def test_a_run_is_kept_with_all_that_is_known_of_it(mesh: Ledgers) -> None:
    event = run_event(
        "abc", attempt=2, root="r", parent="p", queued_at=1.5, started_at=2.5, ended_at=3.5, compute_ms=4.5,
        cold_ms=5.5, error="algorithm_error", state="failed",
    )  # fmt: skip
    async with mesh.running():
        mesh.tell(event)

        row = await mesh.until_state("abc", "failed")

    assert {name: getattr(row, name) for name in row.__struct_fields__} == {
        name: getattr(event, name) for name in event.__struct_fields__
    }


async def test_runs_are_listed_newest_first_by_algorithm_and_by_root(mesh: Ledgers) -> None:
    other = "event.run.text.other.1-0-0"
    now = time.time()
    async with mesh.running():
        mesh.tell(*[run_event(f"r{number}", started_at=now - 50 + number, root=f"r{number}") for number in range(5)])
        mesh.tell(run_event("o1", algorithm="text/other", started_at=now - 100, root="r1"), subject=other)
        await mesh.until_state("o1", "succeeded")
        await mesh.until_state("r4", "succeeded")

        assert [row.run for row in await mesh.rows(limit=2)] == ["r4", "r3"]
        assert [row.run for row in await mesh.rows(algorithm="text/other")] == ["o1"]
        assert [row.run for row in await mesh.rows(root="r1")] == ["r1", "o1"]
        assert await mesh.rows(limit=-1) == []


async def test_a_doubled_event_is_kept_once_and_a_late_running_changes_no_end(mesh: Ledgers) -> None:
    async with mesh.running():
        done = run_event("abc", state="succeeded", compute_ms=7.0)
        mesh.tell(done)
        mesh.tell(done)
        await mesh.until_state("abc", "succeeded")
        mesh.tell(run_event("abc", state="running"))
        mesh.tell(run_event("last"))
        await mesh.until_state("last", "succeeded")

        rows = [row for row in await mesh.rows() if row.run == "abc"]

    assert [(row.state, row.compute_ms) for row in rows] == [("succeeded", 7.0)]


async def test_an_event_that_its_subject_does_not_allow_is_dropped(mesh: Ledgers) -> None:
    async with mesh.running():
        mesh.tell(run_event("forged", algorithm="bank/secret"))
        mesh.tell(run_event("stolen", caller="k~other"), subject="event.caller.k~me")
        mesh.connection.publish(subjects.run_events(VERSION), b"\xc1 rubbish")
        mesh.tell(run_event("good"))
        await mesh.until_state("good", "succeeded")

        assert [row.run for row in await mesh.rows()] == ["good"]


async def test_an_event_cannot_rewrite_another_algorithms_run(mesh: Ledgers) -> None:
    async with mesh.running():
        mesh.tell(run_event("abc"))
        await mesh.until_state("abc", "succeeded")
        mesh.tell(run_event("abc", algorithm="evil/one", error="mine"), subject="event.run.evil.one.1-0-0")
        mesh.tell(run_event("last"))
        await mesh.until_state("last", "succeeded")

        rows = [row for row in await mesh.rows() if row.run == "abc"]

    assert [(row.algorithm, row.error) for row in rows] == [(VERSION.algorithm, "")]


async def test_events_wait_for_a_ledger_that_is_down(mesh: Ledgers) -> None:
    async with mesh.running():
        pass
    mesh.tell(*[run_event(f"r{number}") for number in range(300)])
    await mesh.connection.flush()

    async with mesh.running():
        await mesh.until_state("r299", "succeeded")

        assert len(await mesh.rows()) == 300


async def test_what_was_taken_and_not_written_comes_again_to_the_next_ledger(
    tmp_path: Path, nats_server: NatsServer, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = asyncio.Event()

    async def hang(self: Store, events_: object) -> None:
        writing.set()
        await asyncio.Event().wait()

    async def ensure_quickly(self: JetStreamAdmin, consumer: str) -> None:
        await ensure(self, consumer, ack_wait_s=1.0)

    ensure = JetStreamAdmin.ensure_ledger
    monkeypatch.setattr(JetStreamAdmin, "ensure_ledger", ensure_quickly)
    async with ledgers(tmp_path, nats_server, postgres, grace_s=0.1) as mesh:
        with monkeypatch.context() as patched:
            patched.setattr(Store, "write", hang)
            async with mesh.running():
                mesh.tell(run_event("abc"))
                await writing.wait()

        async with mesh.running():
            await mesh.until_state("abc", "succeeded")


async def test_a_killed_database_loses_nothing(tmp_path: Path, nats_server: NatsServer) -> None:
    async with (
        Postgres(tmp_path / "postgres", is_durable_at_birth=False) as database,
        ledgers(tmp_path, nats_server, database.dsn) as mesh,
        mesh.running(),
    ):
        told = 0
        for turn in range(3):
            for _ in range(20):
                mesh.tell(*[run_event(f"r{told + number}") for number in range(50)])
                told += 50
            await mesh.connection.flush()
            if turn == 1:
                database.signal(signal.SIGKILL)
                await database.wait()
                mesh.tell(*[run_event(f"r{told + number}") for number in range(50)])
                told += 50
                await database.start()

        async def count() -> int:
            try:
                return int((await sql(database.dsn, "SELECT count(*) FROM runs"))[0][0])
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return 0

        async def is_complete() -> bool:
            return await count() == told

        await _eventually(is_complete, 60)


async def test_a_restarted_nats_is_taken_up_again(mesh: Ledgers) -> None:
    async with mesh.running():
        mesh.tell(run_event("before"))
        await mesh.until_state("before", "succeeded")

        await mesh.server.kill()
        await mesh.server.start()
        await until(lambda: mesh.connection.is_connected, 10)
        mesh.tell(run_event("after"))

        await _eventually_state(mesh, "after", "succeeded")


async def test_a_stream_that_was_deleted_is_made_again(mesh: Ledgers) -> None:
    async with mesh.running():
        mesh.tell(run_event("before"))
        await mesh.until_state("before", "succeeded")

        await mesh.connection.request("$JS.API.STREAM.DELETE.events", b"")

        async def is_told() -> bool:
            mesh.tell(run_event("after"))
            return await _has(mesh, "after", "succeeded")

        await _eventually(is_told, 30)


async def test_a_consumer_that_was_deleted_without_a_word_is_made_again(
    mesh: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hear_messages_only(self: Feed, message: Message) -> None:
        if message.reply:
            hear(self, message)

    hear = Feed._on_message
    monkeypatch.setattr(Feed, "_on_message", hear_messages_only)
    monkeypatch.setattr("algomesh_services.ledger.feed._PULL_S", 0.2)
    async with mesh.running():
        mesh.tell(run_event("before"))
        await mesh.until_state("before", "succeeded")

        await mesh.connection.request("$JS.API.CONSUMER.DELETE.events.ledger", b"")
        mesh.tell(run_event("after"))

        await mesh.until_state("after", "succeeded")


async def test_runs_in_an_instance_that_died_are_lost(mesh: Ledgers) -> None:
    async with mesh.running():
        mesh.tell(run_event("dead", state="running"), run_event("alive", state="running", instance="host-2"))
        mesh.tell(run_event("done", state="succeeded"))
        await mesh.until_state("done", "succeeded")

        mesh.announce(messages.Death(instance="host-1", reason="crash"))
        lost = await mesh.until_state("dead", "lost")
        mesh.tell(run_event("late", state="running"))
        await mesh.until_state("late", "lost")
        states = {row.run: row.state for row in await mesh.rows()}

    assert (lost.error, lost.ended_at > 0) == ("crash", True)
    assert states == {"dead": "lost", "late": "lost", "alive": "running", "done": "succeeded"}


async def test_an_instances_last_word_counts_more_than_its_death(mesh: Ledgers) -> None:
    async with mesh.running():
        mesh.tell(run_event("abc", state="running"))
        mesh.announce(messages.Death(instance="host-1", reason="retired"))
        await mesh.until_state("abc", "lost")

        mesh.tell(run_event("abc", state="succeeded", compute_ms=3.0))
        row = await mesh.until_state("abc", "succeeded")

    assert (row.error, row.compute_ms) == ("", 3.0)


async def test_runs_of_a_launcher_nobody_hears_of_are_lost(mesh: Ledgers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("algomesh_services.ledger.fleet.SILENT_S", 1.0)
    async with mesh.running():
        mesh.tell(run_event("gone", state="running", instance="old-1"), run_event("here", state="running"))
        beat = encode(messages.HostBeat(launcher="host"))
        async with asyncio.timeout(20):
            while not any(row.run == "gone" and row.state == "lost" for row in await mesh.rows()):
                mesh.connection.publish(subjects.host_beat("host"), beat)
                await asyncio.sleep(0.1)
        states = {row.run: row.state for row in await mesh.rows()}

    assert states == {"gone": "lost", "here": "running"}


async def test_old_runs_are_deleted_a_bounded_number_at_a_time(mesh: Ledgers, postgres: str, store: Store) -> None:
    await store.write([run_event(f"old{number}") for number in range(10)])
    await age(postgres, 31)
    await store.write([run_event("new")])

    assert await store.delete_older(30, 4) == 4
    async with mesh.running():

        async def is_clean() -> bool:
            return [row.run for row in await mesh.rows()] == ["new"]

        await _eventually(is_clean, 10)


async def test_a_run_that_nobody_ended_for_longer_than_any_deadline_is_lost(
    mesh: Ledgers, postgres: str, store: Store
) -> None:
    await store.write([run_event("abc", state="running", instance="")])
    await age(postgres, 9)

    async with mesh.running():
        await mesh.until_state("abc", "lost")


async def test_the_oldest_runs_are_deleted_first(postgres: str, store: Store) -> None:
    now = time.time()
    await store.write([run_event(f"r{number}", started_at=now - number) for number in (3, 1, 4, 0, 2)])
    await age(postgres, 31)

    assert await store.delete_older(30, 2) == 2
    assert [row.run for row in await store.latest(10)] == ["r0", "r1", "r2"]
    assert await store.delete_older(32, 10) == 0
    assert await store.delete_older(30, 10) == 3


async def test_a_run_of_somebody_whose_clock_is_wrong_is_kept_nearly_as_long_as_others(
    postgres: str, store: Store
) -> None:
    await store.write([run_event("1970", queued_at=5.0, started_at=6.0, state="running"), run_event("other")])

    assert await store.lose_older(8, "instance_lost", time.time()) == 0
    assert await store.delete_older(30, 10) == 0
    assert [(row.run, row.state) for row in await store.latest(10)] == [("other", "succeeded"), ("1970", "running")]
    assert (await store.latest(10))[1].started_at == 6.0
    await age(postgres, 22.5)
    assert await store.lose_older(8, "instance_lost", time.time()) == 1
    assert await store.delete_older(30, 10) == 0
    await age(postgres, 1)
    assert await store.delete_older(30, 10) == 1


async def test_the_table_and_the_rule_agree_in_every_order(store: Store) -> None:
    """However events come, singly or together, the table says what `merged` says."""
    said = [
        run_event("x", state="running", queued_at=10.0, started_at=0.0),
        run_event("x", state="lost", error="crash", started_at=11.0),
        run_event("x", state="succeeded", compute_ms=5.0, started_at=0.0),
        run_event("x", state="expired", error="deadline_exceeded", instance="", started_at=0.0),
        run_event("x", state="failed", error="algorithm_error", ended_at=12.0, started_at=0.0),
    ]
    numbers = random.Random(7)
    orders = numbers.sample(list(itertools.permutations(range(len(said)))), 25)
    for number, order in enumerate(orders):
        told = [replace(said[index], run=f"x{number}") for index in order]
        for event in told:
            await store.write([event])

        (row,) = [row for row in await store.latest(1_000) if row.run == f"x{number}"]
        (expected,) = events.merged(told)

        assert {name: getattr(row, name) for name in row.__struct_fields__} == {
            name: getattr(expected, name) for name in expected.__struct_fields__
        }


async def test_rows_that_the_database_refuses_do_not_take_others_with_them(
    mesh: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write

    async def picky(self: Store, batch: list[RunEvent]) -> list[RunEvent]:
        if any(event.run == "poison" for event in batch):
            raise BadRows("refused")
        return await write(self, batch)

    monkeypatch.setattr(Store, "write", picky)
    async with mesh.running():
        mesh.tell(*[run_event(f"r{number}") for number in range(20)], run_event("poison"), run_event("last"))
        await mesh.until_state("last", "succeeded")

        assert len(await mesh.rows()) == 21


async def test_rows_that_the_database_refuses_are_found_whether_others_are_new_or_known(
    mesh: Ledgers, postgres: str, store: Store
) -> None:
    await sql(postgres, "ALTER TABLE runs ADD CHECK (run <> 'poison')")
    async with mesh.running():
        for state in ("running", "succeeded"):
            runs = [run_event(f"r{number}", state=state, started_at=1.0) for number in range(20)]
            mesh.tell(*runs[:10], run_event("poison"), *runs[10:], run_event(f"new-{state}"))
            await mesh.until_state("r19", state)

        assert {row.run: row.state for row in await mesh.rows()} == {
            **{f"r{number}": "succeeded" for number in range(20)}, "new-running": "succeeded",
            "new-succeeded": "succeeded",
        }  # fmt: skip


async def test_what_an_earlier_ledger_wrote_is_merged_with_and_what_is_new_among_it_kept(
    postgres: str, store: Store
) -> None:
    await store.write([run_event(f"r{number}", state="running", queued_at=5.0) for number in range(10)])
    later = await Store.open(postgres, "ledger")
    try:
        ends = [run_event(f"r{number}", compute_ms=2.0) for number in range(15)]
        forged = run_event("r3", algorithm="evil/one", error="mine")
        await later.write([*ends[:3], forged, *ends[4:]])
        await later.write([*ends[:3], forged, *ends[4:]])
        await later.write([ends[3]])
    finally:
        await later.close()

    rows = {row.run: row for row in await store.latest(1_000)}

    assert {run: (row.state, row.compute_ms, row.error) for run, row in rows.items()} == {
        f"r{number}": ("succeeded", 2.0, "") for number in range(15)
    }
    assert [rows[f"r{number}"].queued_at for number in (0, 3, 14)] == [5.0, 5.0, 0.0]


async def test_two_that_write_the_same_at_once_write_it_once(postgres: str, store: Store) -> None:
    other = await Store.open(postgres, "ledger")
    try:
        for turn in range(5):
            batch = [run_event(f"r{turn}-{number}") for number in range(500)]
            await asyncio.gather(store.write(batch), other.write(batch))
    finally:
        await other.close()

    assert len(await store.latest(10_000)) == 2_500


async def test_questions_are_answered_by_an_index_however_many_runs_there_are(postgres: str, store: Store) -> None:
    first_at = time.time() - 100_000.0
    for part in range(10):
        await store.write(
            [
                run_event(
                    f"r{part}-{number}", root=f"r{part}-{number - number % 3}",
                    started_at=first_at + 5_000.0 * part + number,
                    algorithm=f"text/a{number % 2_000}", state="running" if number % 500 == 0 else "succeeded",
                )
                for number in range(5_000)
            ]
        )  # fmt: skip
    await sql(postgres, "ANALYZE runs")

    plans = {}
    for question, wanted in ((_OF_ROOT, "r3-300"), (_OF_ALGORITHM, "text/a301"), ("true", None)):
        where = question.format(f"'{wanted}'")
        statement = f"EXPLAIN {_LATEST} WHERE {where} ORDER BY begun_at DESC, attempt DESC LIMIT 100"
        plans[question] = "\n".join(row[0] for row in await sql(postgres, statement))
    for upkeep in (
        _OLDEST.replace("$1", f"{first_at - 2e6}").replace("$2", "10000"),
        _OLDEST.replace("$1", f"{first_at + 2e6}").replace("$2", "1000"),
        _LOST.replace("$2", "''").replace("$3", "0") + "instance = ANY('{host-1}')",
        _LOST.replace("$2", "''").replace("$3", "0") + _BEGUN_BEFORE.replace("$1", f"{first_at - 5e5}"),
    ):
        plans[upkeep] = "\n".join(row[0] for row in await sql(postgres, f"EXPLAIN {upkeep}"))

    assert [plan for plan in plans.values() if "Seq Scan" in plan] == []
    assert "runs_root" in plans[_OF_ROOT]
    assert "runs_pkey" in plans[_OF_ROOT]
    assert "runs_algorithm" in plans[_OF_ALGORITHM]
    assert sorted(row.run for row in await store.latest(10, root="r3-300")) == ["r3-300", "r3-301", "r3-302"]
    assert len(await store.latest(10, root="r3-300", algorithm="text/a301")) == 1


async def test_a_run_is_found_by_its_root_only_if_that_is_its_root(store: Store) -> None:
    await store.write([run_event("a", root="a"), run_event("b", root="a"), run_event("c", root="b")])

    assert sorted(row.run for row in await store.latest(10, root="a")) == ["a", "b"]
    assert [row.run for row in await store.latest(10, root="b")] == ["c"]


async def test_all_runs_of_a_root_are_found_steps_of_its_pipeline_or_not(store: Store) -> None:
    beneath = ["a", "a-0", "a-1-2", "a--", "a.", "a0", "aB-1", "b", "b-0", "A-0"]
    told = [run_event(run, root="a") for run in beneath]
    told += [run_event(f"{run}-7", root=root) for run in ("a", "aa", "b") for root in ("", "b", f"{run}-7")]
    await store.write(events.merged(told))

    for root in ("a", "aa", "b", "aa-7", "none"):
        expected = sorted({event.run for event in events.merged(told) if event.root == root})
        assert sorted(row.run for row in await store.latest(100, root=root)) == expected


async def test_two_algorithms_that_are_compared_as_the_same_number_are_told_apart(postgres: str, store: Store) -> None:
    ((first, second),) = await sql(
        postgres,
        "SELECT min(name), max(name) FROM (SELECT 'text/a' || n AS name FROM generate_series(1, 300000) n) names "
        "GROUP BY hashtext(name) HAVING count(*) > 1 LIMIT 1",
    )
    await store.write([run_event(name, algorithm=name) for name in (first, second)])

    for name in (first, second):
        assert [row.run for row in await store.latest(10, algorithm=name)] == [name]


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_a_table_of_an_earlier_version_is_brought_up_to_date(postgres: str, version: int) -> None:
    connection = await asyncpg.connect(postgres)
    now = time.time()
    try:
        await connection.execute("CREATE SCHEMA ledger; SET search_path TO ledger")
        await connection.execute("CREATE TABLE migrations (number integer PRIMARY KEY)")
        for number in range(version):
            await connection.execute(MIGRATIONS[number])
            await connection.execute("INSERT INTO migrations VALUES ($1)", number)
        for run, begun_at in (("a", now), ("a-0", now), ("z", now), ("old", now - 31 * 86_400)):
            values = (
                f"'{run}', 1, 'a', '', 'text/clean', '1.0.0', 'k~me', 'k~me', '', 'succeeded', 0, 0, 0, 0, 0, '', $1"
            )
            await connection.execute(f"INSERT INTO runs VALUES ({values})", begun_at)
    finally:
        await connection.close()

    store = await Store.open(postgres, "ledger")
    try:
        await store.write([run_event("b", root="a"), run_event("a", error="other", root="")])

        assert await store.delete_older(30, 10) == 1
        assert sorted(row.run for row in await store.latest(10, root="a")) == ["a", "a-0", "b", "z"]
        assert len(await store.latest(10, algorithm="text/clean")) == 4
    finally:
        await store.close()


async def test_a_lone_run_is_kept_at_once_and_many_are_kept_together(
    tmp_path: Path, nats_server: NatsServer, postgres: str
) -> None:
    async with ledgers(tmp_path, nats_server, postgres, gather_s=2.0) as mesh, mesh.running():
        began = time.monotonic()
        mesh.tell(run_event("lone"))
        await mesh.until_state("lone", "succeeded")
        took_s = time.monotonic() - began
        for number in range(400):
            mesh.tell(run_event(f"r{number}"))
            await asyncio.sleep(0)
        await mesh.until_state("r399", "succeeded")
        mesh.tell(run_event("last"))
        await mesh.until_state("last", "succeeded")

        written = await sql(postgres, "SELECT count(*) FROM runs GROUP BY xmin::text")

    assert took_s < 1.5
    assert sum(row[0] for row in written) == 402
    assert max(row[0] for row in written) > 300


async def test_a_backlog_is_taken_without_pauses(tmp_path: Path, nats_server: NatsServer, postgres: str) -> None:
    async with ledgers(tmp_path, nats_server, postgres, batch=100, gather_s=2.0) as mesh:
        async with mesh.running():
            pass
        for number in range(2_000):
            mesh.tell(run_event(f"r{number}"))
        await mesh.connection.flush()

        async with mesh.running():
            began = time.monotonic()
            await mesh.until_state("r1999", "succeeded", 30)

            assert time.monotonic() - began < 20  # twenty batches, each of which could have waited two seconds


async def test_it_waits_for_its_servers_and_stops_while_it_waits(tmp_path: Path, nats_server: NatsServer) -> None:
    async with ledgers(tmp_path, nats_server, "postgresql://nobody@/none?host=/nowhere") as mesh:
        stopping = asyncio.Event()
        task = asyncio.create_task(serve(mesh.settings, stopping))
        await asyncio.sleep(0)
        began = time.monotonic()
        stopping.set()
        await task

    assert time.monotonic() - began < 3


async def test_two_ledgers_share_the_work(mesh: Ledgers) -> None:
    async with mesh.running(), mesh.running():
        mesh.tell(*[run_event(f"r{number}") for number in range(100)])
        for number in range(100):
            mesh.tell(run_event(f"s{number}"))
        await mesh.until_state("s99", "succeeded")

        async def is_complete() -> bool:
            return len(await mesh.rows()) == 200

        await _eventually(is_complete, 10)


async def _eventually(condition: Any, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


async def _eventually_state(mesh: Ledgers, run: str, state: str) -> None:
    await _eventually(lambda: _has(mesh, run, state), 30)


async def _has(mesh: Ledgers, run: str, state: str) -> bool:
    """Whether the ledger says so; a question that is lost with its server is asked again."""
    try:
        return any((row.run, row.state) == (run, state) for row in await mesh.rows())
    except TimeoutError:
        return False
