"""The pre-warmer on the wire: what instances, callers and launchers say goes in, holds come out."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
import structlog

from algomesh_broker import codec, subjects
from algomesh_broker.identity import Identity, caller_of_key
from algomesh_broker.messages import AlgorithmEntry, Demand, VersionEntry
from algomesh_broker.names import VersionId
from algomesh_broker.platform import (
    Edge,
    Graph,
    GraphEdges,
    MayCall,
    MayCalled,
    Savings,
    SavingsRow,
    StartRow,
    StartRows,
    Starts,
)
from algomesh_services.prewarmer.clock import Clock
from algomesh_services.prewarmer.service import serve
from tests.conditions import until
from tests.integration.prewarmer_fixtures import Stage, run_id, stages
from tests.integration.registry_fixtures import Refusals, ask

pytestmark = pytest.mark.integration

A, B, C = "text/a", "text/b", "text/c"


@pytest_asyncio.fixture
async def stage(tmp_path: Path, postgres: str) -> AsyncIterator[Stage]:
    async with stages(tmp_path, postgres) as there:
        await there.enter(A, B, C, gpu=0.5, calls=["text/*"])
        yield there


async def starts_of(stage: Stage, algorithm: str = "") -> list[StartRow]:
    return (await ask(stage.admin, "starts", Starts(algorithm=algorithm), StartRows, program="prewarmer")).starts


async def test_a_learned_chain_is_held_just_in_time(stage: Stage) -> None:
    async with stage.prewarmer():
        for algorithm in (A, B, C):
            await stage.learn_cold_start(algorithm, 100)
        await stage.learn(A, B, C, step_s=0.2)
        await until(lambda: not stage.ahead(C), 5)

        root = run_id()
        await stage.tell_of(A, stage.sight(root))
        hold = (await until(lambda: stage.ahead(C, root)))[0]

        assert hold.key == f"path:{root}"
        assert hold.reason.startswith("next after text/a in 0.")
        assert 100 < hold.start_ms < 400  # called after 0.4 s, and it takes 0.1 s to start
        assert hold.until_ms > 350
        assert hold.gain > 0
        assert hold.caller == stage.key


async def test_what_is_released_is_told_at_once(stage: Stage) -> None:
    async with stage.prewarmer():
        await stage.learn(A, B, step_s=0.3)
        root = run_id()
        await stage.tell_of(A, stage.sight(root))
        await until(lambda: stage.ahead(B))

        await stage.tell_of(A, stage.sight(root, ended_at=time.time()))

        await until(lambda: not stage.ahead(B), 0.6)


async def test_the_stages_of_a_pipeline_are_held_at_the_first_call_ever(stage: Stage) -> None:
    async with stage.prewarmer():
        run = run_id()

        await stage.demand(A, f"{run}-0", root=run, stages=[f"{B}/1.0.0", f"{C}/1.0.0"])

        held = await until(lambda: (stage.held(B) + stage.held(C))[1:] and stage.held(B) + stage.held(C))
        assert [hold.reason for hold in held] == ["stage 2 of a pipeline under way", "stage 3 of a pipeline under way"]
        assert [hold.start_ms for hold in held] == [0, 0]

        for place, algorithm in enumerate((A, B, C)):
            left = [f"{each}/1.0.0" for each in (A, B, C)[place + 1 :]]
            sight = stage.sight(f"{run}-{place}", run, stages=left, ended_at=time.time() + 1e-3)
            await stage.tell_of(algorithm, sight)
        await until(lambda: not [hold for hold in stage.holds.values() if hold.key.startswith("path:")])


async def test_the_graph_leads_from_step_to_step_of_a_pipeline(stage: Stage) -> None:
    async with stage.prewarmer():
        run = run_id()
        for place, algorithm in enumerate((A, B, C)):
            left = [f"{each}/1.0.0" for each in (A, B, C)[place + 1 :]]
            now = time.time()
            sight = stage.sight(f"{run}-{place}", run, stages=left, started_at=now - 1e-3, ended_at=now)
            await stage.tell_of(algorithm, sight)

        async def edges() -> list[Edge]:
            return (await ask(stage.admin, "graph", Graph(), GraphEdges, program="prewarmer")).edges

        found: list[Edge] = await until(edges, 5)
        assert {(edge.caller_of, edge.algorithm) for edge in found} == {(A, B), (B, C)}
        assert [(edge.probability, edge.count, edge.in_time) for edge in found] == [(1.0, 1.0, None)] * 2


async def test_a_request_that_never_ends_is_let_go_once_nothing_runs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("algomesh_services.prewarmer.sightings._QUIET_S", 0.5)
    async with stage.prewarmer():
        run = run_id()
        stages_left = [f"{B}/1.0.0"]
        await stage.tell_of(A, stage.sight(f"{run}-0", run, stages=stages_left, ended_at=time.time()))
        await until(lambda: stage.held(B))

        await until(lambda: not stage.held(B), 5)  # the second stage never came


async def test_what_nobody_in_the_request_may_call_is_never_held(tmp_path: Path, postgres: str) -> None:
    async with stages(tmp_path, postgres) as stage:
        await stage.enter(A, B, gpu=0.5)
        mine = await stage.mesh.key("call:text/a")
        async with stage.prewarmer():
            await stage.learn(A, B)  # the administrator may
            root = run_id()
            await stage.tell_of(A, stage.sight(root))
            await until(lambda: stage.was_ahead(B, root))
            await stage.tell_of(A, stage.sight(root, ended_at=time.time()))

            caller = caller_of_key(mine)
            root = run_id()
            await stage.tell_of(A, stage.sight(root, caller=caller, root_caller=caller))
            await stage.heard(2)

            assert not stage.was_ahead(B, root)


async def test_stages_that_a_caller_only_claims_are_not_held(tmp_path: Path, postgres: str) -> None:
    async with stages(tmp_path, postgres) as stage:
        await stage.enter(A, B)
        key = await stage.mesh.key("call:text/a")
        connection = await stage.mesh.connect(Identity.of_key(key))
        async with stage.prewarmer():
            run = run_id()
            lie = Demand(run=f"{run}-0", root=run, root_caller=stage.key, stages=[f"{B}/1.0.0"])

            connection.publish(
                subjects.demand(VersionId.parse(f"{A}/1.0.0"), connection.identity.caller), codec.encode(lie)
            )
            await connection.flush()
            await stage.heard(2)

            assert not stage.told


async def test_whoever_probes_at_random_is_stopped_by_his_budget(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("algomesh_services.prewarmer.speculation.FREE_GPU_S", 0.2)
    async with stage.prewarmer():
        await stage.learn(A, B)
        wasted = 0
        for number in range(10):  # calls what would go on, and gives up
            root = run_id()
            await stage.tell_of(A, stage.sight(root))
            await stage.heard(1)
            if not stage.was_ahead(B, root):
                break
            wasted += 1
            stage.has(f"host-{number}", B, start_ms=300, key=f"path:{root}", reason="next", idle_ms=0, age_s=0.3)
            await stage.tell()
            await asyncio.sleep(0.1)
            await stage.tell()
            stage.rows.clear()
            await stage.tell()
            await stage.tell_of(A, stage.sight(root, ended_at=time.time()))

        assert 1 <= wasted < 10


async def test_versions_that_want_to_be_left_alone_are_said_to_be_off(tmp_path: Path, postgres: str) -> None:
    async with stages(tmp_path, postgres) as stage:
        await stage.enter(A)
        await stage.enter(B, prewarm=False)
        await stage.enter(C, latency_value=0.0)
        async with stage.prewarmer():
            for _ in range(4):
                await stage.chain(A, B, C)
            await until(lambda: sorted(stage.off) == [f"{B}/1.0.0", f"{C}/1.0.0"])
            stage.told.clear()

            await stage.tell_of(A, stage.sight(run_id()))
            await stage.heard(2)

            assert not {version for version, _ in stage.told} & {f"{B}/1.0.0", f"{C}/1.0.0"}


async def test_latency_may_be_worth_nothing_for_one_caller(tmp_path: Path, postgres: str) -> None:
    async with stages(tmp_path, postgres, latency_values={"k~nobody": 0.0, "text~c": 0.0}) as stage:
        await stage.enter(A, B, gpu=0.5, calls=["text/*"])
        async with stage.prewarmer():
            await stage.learn(A, B)
            root = run_id()

            await stage.tell_of(A, stage.sight(root, caller="k~nobody", root_caller="k~nobody"))
            await stage.heard(2)
            assert not stage.was_ahead(B, root)

            root = run_id()
            await stage.tell_of(A, stage.sight(root))
            await until(lambda: stage.was_ahead(B, root))


async def test_a_version_that_is_deleted_is_held_no_longer(stage: Stage) -> None:
    async with stage.prewarmer():
        await stage.learn(A, B, step_s=0.3)
        root = run_id()
        await stage.tell_of(A, stage.sight(root))
        await until(lambda: stage.ahead(B, root))
        directory = await stage.mesh.store("registry")

        await directory.put_entries([AlgorithmEntry(owner="text", name="b", versions=[])])
        await until(lambda: not stage.held(B), 0.6)  # its request goes on, and would hold it for longer

        other = run_id()
        await stage.tell_of(A, stage.sight(other))
        await stage.heard(2)
        assert not stage.was_ahead(B, other)

        entry = AlgorithmEntry(owner="text", name="b", versions=[VersionEntry(version="1.0.0")])
        await directory.put_entries([entry])
        last = run_id()
        await stage.tell_of(A, stage.sight(last))
        await until(lambda: stage.was_ahead(B, last))


async def test_what_was_learned_outlives_a_restart(stage: Stage) -> None:
    async with stage.prewarmer():
        await stage.learn_cold_start(B, 2_000)
        await stage.learn(A, B)

    async with stage.prewarmer():
        root = run_id()
        await stage.tell_of(A, stage.sight(root))
        hold = (await until(lambda: stage.ahead(B, root)))[0]

        assert hold.start_ms == 0  # two seconds are longer than it has
        edges = (await ask(stage.admin, "graph", Graph(), GraphEdges, program="prewarmer")).edges
        assert [(edge.caller_of, edge.algorithm) for edge in edges] == [(A, B)]
        assert edges[0].probability > 0.6


async def test_a_damaged_snapshot_is_set_aside_and_the_one_before_it_is_read(stage: Stage, postgres: str) -> None:
    async with stage.prewarmer():
        await stage.learn(A, B)
    connection = await asyncpg.connect(postgres, server_settings={"search_path": "prewarmer"})
    try:
        await connection.execute("INSERT INTO snapshots (checksum, data) VALUES (sha256('x'), 'x')")  # of no use
        await connection.execute("INSERT INTO snapshots (checksum, data) VALUES ('no', 'flipped bits')")

        async with stage.prewarmer():
            root = run_id()
            await stage.tell_of(A, stage.sight(root))
            await until(lambda: stage.was_ahead(B, root))

            rows = await connection.fetch("SELECT damage FROM snapshots WHERE damage <> '' ORDER BY number")
            assert len(rows) == 2
            assert "checksum" in rows[1]["damage"]
    finally:
        await connection.close()


async def test_starts_are_recorded_with_their_reason_and_what_they_saved(stage: Stage) -> None:
    async with stage.prewarmer():
        await stage.learn(A, B, step_s=0.3)
        stage.has("host-1", A)
        await stage.tell()
        root = run_id()
        await stage.tell_of(A, stage.sight(root))
        hold = (await until(lambda: stage.ahead(B, root)))[0]
        stage.has("host-2", B, key=hold.key, reason=hold.reason)
        stage.has("host-3", C, key="gap:0", reason="called about every 9 s")
        await stage.tell()
        await asyncio.sleep(0.12)  # its load
        stage.has("host-2", B, start_ms=100, key=hold.key, reason=hold.reason, idle_ms=0)
        await stage.tell()
        await stage.tell_of(B, stage.sight(run_id(), root, parent=root))
        stage.has("host-2", B, start_ms=100, key=hold.key, reason=hold.reason, runs_total=1)
        await stage.tell()
        del stage.rows["host-3"]
        await stage.tell()

        async def all_known() -> dict[str, StartRow]:
            rows = {row.instance: row for row in await starts_of(stage)}
            return rows if rows.get("host-2") and rows["host-2"].saved_s and rows["host-3"].ended_at else {}

        rows: dict[str, StartRow] = await until(all_known)
        assert rows["host-1"].kind == "call"
        assert rows["host-2"].kind == "next"
        assert rows["host-2"].reason.startswith("next after text/a")
        assert rows["host-2"].used_at > 0
        assert 0.05 < rows["host-2"].saved_s <= 0.1
        assert (rows["host-3"].kind, rows["host-3"].used_at) == ("gap", 0)
        assert [row.instance for row in await starts_of(stage, B)] == ["host-2"]
        savings = await ask(stage.admin, "savings", Savings(), SavingsRow, program="prewarmer")
        assert savings.starts == {"call": 1, "next": 1, "gap": 1}
        assert savings.used["next"] == 1
        assert savings.calls >= 8
        assert savings.saved_s == pytest.approx(rows["host-2"].saved_s)
        assert savings.spared == {"next": 1}
        listed = (await ask(stage.admin, "savings", Savings(calls=10), SavingsRow, program="prewarmer")).rows
        assert [(row.root, row.algorithm, row.why, row.count) for row in listed] == [(root, B, "next", 1)]
        edges = (await ask(stage.admin, "graph", Graph(), GraphEdges, program="prewarmer")).edges
        assert [edge.in_time for edge in edges] == [1.0]


async def test_a_call_that_meets_an_instance_held_beyond_its_idle_time_was_spared_a_cold_start(
    tmp_path: Path, postgres: str
) -> None:
    async with stages(tmp_path, postgres) as stage:
        await stage.enter(A, idle_s=0.1)
        async with stage.prewarmer():
            await stage.learn_cold_start(A, 200)
            for number in range(12):  # often enough to be kept in between
                stage.has("host-1", A, start_ms=200, runs_total=number + 1, idle_ms=0, age_s=10)
                await stage.tell()
                root = run_id()
                await stage.tell_of(A, stage.sight(root), stage.sight(root, ended_at=time.time()))
                await asyncio.sleep(0.45)

            async def spared() -> list[SavingsRow]:
                row = await ask(stage.admin, "savings", Savings(calls=50), SavingsRow, program="prewarmer")
                return [row] if row.spared.get("kept") else []

            rows: list[SavingsRow] = await until(spared)
            found = rows[0]
            assert set(found.spared) == {"kept"}
            assert found.saved["kept"] == pytest.approx(0.2 * found.spared["kept"], rel=0.01)
            assert {row.why for row in found.rows} == {"kept"}


async def test_a_tenth_lost_the_rest_doubled_and_shuffled_teaches_the_same(stage: Stage) -> None:
    chance = random.Random(4)
    async with stage.prewarmer():
        for _ in range(30):
            root, child = run_id(), run_id()
            now = time.time()
            told = [
                (A, stage.sight(root, started_at=now - 1.5)),
                (A, stage.sight(root, started_at=now - 1.5, ended_at=now)),
                (B, stage.sight(child, root, parent=root, started_at=now - 0.5)),
                (B, stage.sight(child, root, parent=root, started_at=now - 0.5, ended_at=now - 0.01)),
            ]
            told = [each for each in told * 2 if chance.random() > 0.1]
            chance.shuffle(told)
            for algorithm, sight in told:
                await stage.tell_of(algorithm, sight)
        await stage.heard()  # what is over has been learned from
        root = run_id()

        await stage.tell_of(A, stage.sight(root))

        await until(lambda: stage.was_ahead(B, root))


async def test_clocks_that_step_teach_no_nonsense(stage: Stage) -> None:
    steps = iter([0.0, 3_600.0, -86_400.0, 1e9, -1e9] * 10_000)
    stage.wall = lambda: time.time() + next(steps)
    async with stage.prewarmer():
        await stage.learn(A, B, step_s=0.05, times=8)

        edges = (await ask(stage.admin, "graph", Graph(), GraphEdges, program="prewarmer")).edges

        assert [(edge.caller_of, edge.algorithm) for edge in edges] == [(A, B)]
        assert 0.02 < edges[0].delay_s < 1.0


async def test_our_own_clock_may_step(stage: Stage) -> None:
    step = 0.0
    async with stage.prewarmer(Clock(wall=lambda: time.time() + step)):
        for number in range(8):
            step = 1e6 * (-1) ** number
            await stage.chain(A, B, step_s=0.05)
        await stage.learn(A, B, step_s=0.05)
        edges = (await ask(stage.admin, "graph", Graph(), GraphEdges, program="prewarmer")).edges

        assert 0.02 < edges[0].delay_s < 1.0


async def test_the_registry_says_what_callers_may_call(stage: Stage) -> None:
    key = await stage.mesh.key("call:text/a", "call:video/*")
    prewarmer = await stage.mesh.program("prewarmer")
    asked = ["text/a", "text/b", "video/join"]

    of_key = await ask(prewarmer, "may-call", MayCall(caller=caller_of_key(key), algorithms=asked), MayCalled)
    of_instance = await ask(prewarmer, "may-call", MayCall(caller="text~a", algorithms=asked), MayCalled)
    of_nobody = await ask(prewarmer, "may-call", MayCall(caller="no~body", algorithms=asked), MayCalled)

    assert of_key.algorithms == ["text/a", "video/join"]
    assert of_instance.algorithms == ["text/a", "text/b"]
    assert of_nobody.algorithms == []
    refusals = Refusals(stage.admin)
    assert await refusals.of_publish(subjects.platform("registry", "may-call", stage.key)) >= 0


async def test_it_stops_while_it_waits_for_its_servers(stage: Stage) -> None:
    stopping = asyncio.Event()
    settings = replace(stage.settings, postgres="postgresql://algomesh@127.0.0.1:1/none")
    with structlog.testing.capture_logs() as said:
        task = asyncio.create_task(serve(settings, stopping))
        await until(lambda: [each for each in said if each["event"] == "waiting_for_server"])

        stopping.set()
        async with asyncio.timeout(5):
            await task
