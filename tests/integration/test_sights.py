"""What a pre-warmer hears while pipelines travel: each run, and what it will lead to."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Message
from algomesh_broker.server import NatsServer
from tests.conditions import until
from tests.integration.bare import BareMesh
from tests.integration.bare_algorithms import clean, exclaim, upper

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[BareMesh]:
    async with BareMesh(nats_server, tmp_path) as bare:
        yield bare


async def test_a_pipeline_is_seen_stage_by_stage_with_what_comes_next(mesh: BareMesh) -> None:
    seen: dict[str, messages.Sight] = {}

    def see(message: Message) -> None:
        for sight in codec.decode_sights(message.data).runs:
            seen[message.subject.split(".")[2]] = sight

    mesh.admin.join(subjects.ALL_SIGHTS, see)
    await mesh.admin.flush()
    await mesh.serve_all("clean", "upper", "exclaim")
    await mesh.travel(clean | upper | exclaim, " a ")
    await until(lambda: len(seen) == 3 and all(sight.ended_at for sight in seen.values()))

    first, second, third = seen["clean"], seen["upper"], seen["exclaim"]
    chain = first.run.removesuffix("-0")
    assert [sight.run for sight in (first, second, third)] == [f"{chain}-{at}" for at in range(3)]
    assert first.root == second.root == third.root
    assert first.stages == [str(upper.version_id), str(exclaim.version_id)]
    assert second.stages == [str(exclaim.version_id)]
    assert third.stages == []
    assert {sight.root_caller for sight in seen.values()} == {"k~a"}
    assert third.started_at >= second.started_at >= first.started_at > 0


async def test_who_waits_for_a_cold_stage_tells_what_comes_after_it(mesh: BareMesh) -> None:
    demands: dict[str, messages.Demand] = {}

    def hear(message: Message) -> None:
        demands[message.subject.split(".")[2]] = codec.decode_demand(message.data)

    mesh.admin.join(subjects.ALL_DEMAND, hear)
    await mesh.admin.flush()
    for algorithm in (clean, upper, exclaim):
        await mesh.make_consumer(algorithm.version_id)
    travelling = asyncio.create_task(mesh.travel(clean | upper | exclaim, " a "))
    await until(lambda: "clean" in demands)
    mesh.start("clean")
    await until(lambda: "upper" in demands)
    travelling.cancel()
    await asyncio.gather(travelling, return_exceptions=True)

    assert demands["clean"].stages == [str(upper.version_id), str(exclaim.version_id)]
    assert demands["clean"].root_caller == "k~a"
    assert demands["upper"].stages == [str(exclaim.version_id)]
    assert demands["upper"].run == demands["clean"].run.removesuffix("-0") + "-1"
