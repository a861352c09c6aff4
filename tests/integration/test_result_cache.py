"""Results that are kept, between callers and real instances: what is found is not run again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import algomesh
from algomesh import errors
from algomesh.clients import AsyncClient
from algomesh.lane import Lane
from algomesh.nats_transport import NatsTransport
from algomesh_broker.server import NatsServer
from tests.conditions import until
from tests.integration.bare import BareMesh
from tests.integration.bare_algorithms import (
    clean,
    exclaim,
    kept,
    kept_brief,
    kept_too,
    merge,
    upper,
    write_down,
)
from tests.integration.registry_fixtures import eventually

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[BareMesh]:
    async with BareMesh(nats_server, tmp_path) as bare:
        yield bare


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes.txt"


def runs(notes: Path) -> list[str]:
    return notes.read_text().split() if notes.exists() else []


async def client_of(mesh: BareMesh, caller: str) -> AsyncClient:
    return AsyncClient(await NatsTransport.over(await mesh.connect(caller)), 20.0)


async def test_a_result_is_found_by_any_caller_and_says_so(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept")
    one, other = await client_of(mesh, "k~one"), await client_of(mesh, "k~other")

    first = await one.algo("t/kept").pipe(f"{notes} A")
    await mesh.results_stored()
    again = await other.algo("t/kept").pipe(f"{notes} A")

    assert (first.result, first.metadata.cached) == (f"{notes} a", False)
    assert (again.result, again.metadata.cached) == (f"{notes} a", True)
    assert (again.metadata.algorithm, again.metadata.version) == ("t/kept", "1.0.0")
    assert runs(notes) == ["kept"]
    assert not (await one.algo("t/kept").pipe(f"{notes} B")).metadata.cached


async def test_a_hit_needs_no_instance(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept")
    client = await client_of(mesh, "k~one")
    await client.algo("t/kept").pipe(f"{notes} A")
    await mesh.results_stored()
    mesh.instances[0].kill()
    await asyncio.to_thread(mesh.instances[0].wait)

    response = await client.algo("t/kept").pipe(f"{notes} A", timeout=2)

    assert response.metadata.cached


async def test_a_second_pipeline_does_not_run_what_it_shares_with_the_first(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept", "kept_too", "upper", "exclaim")

    one, tally = await mesh.travel(kept | kept_too | upper, f"{notes} A")
    other, second = await mesh.travel(kept | kept_too | exclaim, f"{notes} A")

    assert (one, other) == (f"{notes} a.".upper(), f"{notes} a.!")
    assert runs(notes) == ["kept", "kept-too"]
    assert (tally.cached, second.cached) == (False, False)
    assert (await mesh.travel(kept | kept_too, f"{notes} A"))[1].cached
    assert runs(notes) == ["kept", "kept-too"]


async def test_an_instance_leaves_out_the_next_step_when_its_result_is_kept(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("clean", "kept", "kept_too", "exclaim")
    await mesh.travel(kept | kept_too, f"{notes} a")
    mesh.instances[1].kill()
    mesh.instances[2].kill()

    last, tally = await mesh.travel(clean | kept | kept_too, f"{notes}   a")
    between, _ = await mesh.travel(clean | kept | kept_too | exclaim, f"{notes}   a")

    assert (last, tally.cached, tally.algorithm) == (f"{notes} a.", True, "t/kept-too")
    assert between == f"{notes} a.!"
    assert runs(notes) == ["kept", "kept-too"]


@pytest.mark.parametrize("where", ["at the head", "in mid-chain", "after a miss"])
async def test_a_fan_out_follows_a_result_that_is_kept(mesh: BareMesh, notes: Path, where: str) -> None:
    await mesh.serve_all("clean", "kept", "kept_too", "upper", "exclaim", "merge")
    rest = (upper & exclaim) | merge
    if where != "after a miss":
        await mesh.travel(kept.pipeline, f"{notes} a")
    pipeline = clean | kept | rest if where == "in mid-chain" else kept | rest

    first, _ = await mesh.travel(pipeline, f"{notes} a")
    again, _ = await mesh.travel(pipeline, f"{notes} a")

    assert first == again == f"{notes} a".upper() + "+" + f"{notes} a!"
    assert runs(notes) == ["kept"]


async def test_a_branch_may_begin_or_end_with_what_is_kept(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("clean", "kept", "kept_too", "upper", "exclaim", "merge")
    pipeline = clean | ((kept | upper) & (exclaim | kept_too)) | merge

    first, _ = await mesh.travel(pipeline, f"{notes} a")
    again, _ = await mesh.travel(pipeline, f"{notes} a")

    assert first == again == "+".join([f"{notes} a".upper(), f"{notes} a!."])
    assert sorted(runs(notes)) == ["kept", "kept-too"]


async def test_branches_that_are_all_kept_say_so(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept", "kept_too", "exclaim")
    await mesh.travel(kept & kept_too, f"{notes} a")

    _, both = await mesh.travel(kept & kept_too, f"{notes} a")
    _, one = await mesh.travel(kept & exclaim, f"{notes} a")

    assert both.metadata("json", 0.0, "r").cached
    assert not one.metadata("json", 0.0, "r").cached


async def test_equal_items_of_an_each_run_once(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept", "kept_too")

    outputs, _ = await mesh.travel((kept | kept_too).each(in_flight=8), [f"{notes} A"] * 20)

    assert outputs == [f"{notes} a."] * 20
    assert runs(notes) == ["kept", "kept-too"]


async def test_a_stream_gives_what_is_kept(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept", "kept_too", "exclaim")
    await mesh.travel(kept | kept_too, f"{notes} a")

    one = [part async for part in mesh.stream(kept | kept_too, f"{notes} a")]
    more = [part async for part in mesh.stream(kept | kept_too | exclaim, f"{notes} a")]

    assert (one, more) == ([f"{notes} a."], [f"{notes} a.!"])
    assert runs(notes) == ["kept", "kept-too"]


async def test_errors_are_never_kept(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept_gate")
    client = await client_of(mesh, "k~one")

    for _ in range(2):
        with pytest.raises(errors.AlgorithmError, match="bad"):
            await client.algo("t/kept-gate").pipe(f"{notes} bad /")

    assert runs(notes) == ["kept-gate"] * 2


async def test_a_large_result_is_not_kept_and_not_shared(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept_large", "kept")
    client = await client_of(mesh, "k~one")

    for _ in range(2):
        assert len((await client.algo("t/kept-large").pipe(f"{notes} a")).result) == 600_000
    large = f"{notes} {'A' * 600_000}"
    assert not (await client.algo("t/kept").pipe(large)).metadata.cached
    assert not (await client.algo("t/kept").pipe(large)).metadata.cached

    assert runs(notes) == ["kept-large"] * 2 + ["kept"] * 2


async def test_a_stage_says_for_itself_whether_results_are_kept(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept", "write_down")
    never, always = algomesh.stage(kept).options(cache=False), algomesh.stage(write_down).options(cache="10m")

    for _ in range(2):
        await mesh.travel(never, f"{notes} a")
        await mesh.travel(always, f"{notes} a")

    assert runs(notes) == ["kept", "ran", "kept"]


async def test_a_result_expires(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("kept_brief")
    await mesh.travel(kept_brief.pipeline, f"{notes} a")
    assert (await mesh.travel(kept_brief.pipeline, f"{notes} a"))[1].cached

    async def has_expired() -> bool:
        return not (await mesh.travel(kept_brief.pipeline, f"{notes} a"))[1].cached

    await eventually(has_expired, 10.0)
    assert len(runs(notes)) == 2


async def test_without_its_stream_everything_runs(mesh: BareMesh, notes: Path) -> None:
    await mesh.serve_all("clean", "kept")
    await mesh.admin.request("$JS.API.STREAM.DELETE.cache")

    for _ in range(2):
        assert (await mesh.travel(clean | kept, f"{notes} a"))[0] == f"{notes} a"
        assert (await mesh.travel(kept.pipeline, f"{notes} a"))[0] == f"{notes} a"

    assert runs(notes) == ["kept"] * 4


# In flight


async def test_identical_calls_of_two_callers_run_once(mesh: BareMesh, notes: Path, tmp_path: Path) -> None:
    await mesh.serve_all("kept_gate")
    gate = tmp_path / "gate"
    text = f"{notes} a {gate}"
    lanes = [await mesh.open_lane(f"k~{number}") for number in range(5)]

    calls = [asyncio.create_task(mesh.call("kept_gate", text, lane=lane)) for lane in lanes]
    await until(lambda: runs(notes))
    late = asyncio.create_task(mesh.call("kept_gate", text))
    other = asyncio.create_task(mesh.call("kept_gate", f"{notes} b {gate}"))  # none of them has a slot of its own
    await until(lambda: len(runs(notes)) == 2)
    gate.touch()

    assert [(await call)[0] for call in [*calls, late]] == [text] * 6
    assert (await other)[0] == f"{notes} b {gate}"
    assert len(runs(notes)) == 2


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_who_cancels_does_so_for_himself(mesh: BareMesh, notes: Path, tmp_path: Path, cancelled: int) -> None:
    await mesh.serve_all("kept_gate")
    gate = tmp_path / "gate"
    text = f"{notes} a {gate}"
    lanes = [await mesh.open_lane(f"k~{number}") for number in range(2)]
    calls = [asyncio.create_task(mesh.call("kept_gate", text, lane=lanes[0]))]
    await until(lambda: runs(notes))
    calls.append(asyncio.create_task(mesh.call("kept_gate", text, lane=lanes[1])))
    await until(lambda: all(_is_running(lane) for lane in lanes))

    calls[cancelled].cancel()
    await asyncio.gather(calls[cancelled], return_exceptions=True)
    if not cancelled:
        await until(lambda: len(runs(notes)) == 2)  # the other one runs now
    gate.touch()

    assert (await calls[1 - cancelled])[0] == text


async def test_an_error_is_each_callers_own(mesh: BareMesh, notes: Path, tmp_path: Path) -> None:
    await mesh.serve_all("kept_gate")
    gate = tmp_path / "gate"
    text = f"{notes} bad {gate}"
    lanes = [await mesh.open_lane(f"k~{number}") for number in range(2)]
    calls = [asyncio.create_task(mesh.call("kept_gate", text, lane=lane)) for lane in lanes]
    await until(lambda: all(_is_running(lane) for lane in lanes))
    gate.touch()

    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, errors.AlgorithmError)


async def test_one_client_asks_once_for_the_same(mesh: BareMesh, notes: Path, tmp_path: Path) -> None:
    await mesh.serve_all("kept_gate")
    gate = tmp_path / "gate"
    client = await client_of(mesh, "k~one")
    calls = [asyncio.create_task(client.algo("t/kept-gate").pipe(f"{notes} a {gate}")) for _ in range(5)]
    await until(lambda: runs(notes))

    calls[0].cancel()
    await asyncio.gather(calls[0], return_exceptions=True)
    await until(lambda: len(runs(notes)) == 2)
    gate.touch()

    responses = [await call for call in calls[1:]]
    assert [response.metadata.cached for response in responses] == [False, True, True, True]
    assert len(runs(notes)) == 2


def _is_running(lane: Lane) -> bool:
    return any(pending.instance for pending in lane._pending.values())
