"""Algorithms that yield, and stages that read what is yielded, between a caller and real instances."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import algomesh
from algomesh import errors
from algomesh.part_stream import WINDOW
from algomesh_broker.server import NatsServer
from tests.conditions import until
from tests.integration.bare import BareMesh
from tests.integration.bare_algorithms import (
    acounts,
    asquares,
    clean,
    counts,
    double,
    first,
    squares,
    total,
    upper,
    words,
)

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[BareMesh]:
    async with BareMesh(nats_server, tmp_path) as bare:
        yield bare


async def all_of(mesh: BareMesh, pipeline: algomesh.Pipeline, value: Any) -> list[Any]:
    async with aclosing(mesh.stream(pipeline, value)) as parts:
        return [part async for part in parts]


async def read_into(found: list[Any], parts: AsyncGenerator[Any, None]) -> None:
    async with aclosing(parts) as coming:
        async for part in coming:
            found.append(part)


async def test_parts_come_in_order_and_end(mesh: BareMesh) -> None:
    await mesh.serve_all("counts", "acounts")

    assert await all_of(mesh, counts.pipeline, {"n": 100}) == list(range(100))
    assert await all_of(mesh, acounts.pipeline, 100) == list(range(100))
    assert await all_of(mesh, counts.pipeline, {"n": 0}) == []


async def test_who_wants_no_parts_gets_a_list(mesh: BareMesh) -> None:
    await mesh.serve_all("counts", "acounts")

    assert (await mesh.travel(counts.pipeline, {"n": 3}))[0] == [0, 1, 2]
    assert (await mesh.travel(acounts.pipeline, 3))[0] == [0, 1, 2]


async def test_an_algorithm_that_does_not_yield_streams_its_one_result(mesh: BareMesh) -> None:
    await mesh.serve_all("clean", "upper")

    assert await all_of(mesh, clean.pipeline, " a") == ["a"]
    assert await all_of(mesh, clean | upper, " a") == ["A"]


async def test_the_first_part_is_there_before_the_first_stage_has_ended(mesh: BareMesh, tmp_path: Path) -> None:
    await mesh.serve_all("counts", "squares", "asquares")
    gate = tmp_path / "gate"
    job = {"n": 5, "stop": 2, "gate": str(gate)}
    found = []

    async with aclosing(mesh.stream(counts | squares | asquares, job)) as parts:
        async for part in parts:
            found.append(part)
            if len(found) == 2:
                gate.touch()  # the first stage waits for it, and so has not ended

    assert found == [0, 1, 16, 81, 256]


async def test_a_stage_may_read_parts_and_give_one_result(mesh: BareMesh) -> None:
    await mesh.serve_all("counts", "squares", "total")

    assert (await mesh.travel(counts | squares | total, {"n": 200}))[0] == sum(n * n for n in range(200))
    assert (await mesh.travel(total.pipeline, [1, 2, 3]))[0] == 6


async def test_a_slow_reader_slows_the_writer(mesh: BareMesh, tmp_path: Path) -> None:
    await mesh.serve_all("counts")
    file = tmp_path / "last"

    async with aclosing(mesh.stream(counts.pipeline, {"n": 10_000, "file": str(file)})) as parts:
        assert await anext(parts) == 0
        await until(lambda: file.exists() and int(file.read_text() or 0) >= WINDOW)
        for _ in range(WINDOW):
            await anext(parts)
        await until(lambda: int(file.read_text() or 0) >= WINDOW + WINDOW // 2)

        assert int(file.read_text() or 0) <= 2 * WINDOW + 1


async def test_leaving_the_loop_ends_the_run(mesh: BareMesh, tmp_path: Path) -> None:
    await mesh.serve_all("counts", "squares")
    closed = tmp_path / "closed"

    async with aclosing(mesh.stream(counts | squares, {"n": 10_000_000, "closed": str(closed)})) as parts:
        assert [await anext(parts) for _ in range(3)] == [0, 1, 4]

    await until(closed.exists)
    assert not mesh.lane.in_flight
    assert (await mesh.travel(counts.pipeline, {"n": 2}))[0] == [0, 1]


async def test_a_stage_that_reads_no_more_ends_the_one_before(mesh: BareMesh, tmp_path: Path) -> None:
    await mesh.serve_all("counts", "first")
    closed = tmp_path / "closed"

    result, _ = await mesh.travel(counts | first, {"n": 10_000_000, "closed": str(closed)})

    assert result == 0
    await until(closed.exists)


async def test_an_error_comes_after_the_parts_before_it(mesh: BareMesh) -> None:
    await mesh.serve_all("counts", "squares")

    for pipeline, stage in ((counts.pipeline, "t/counts/1.0.0"), (counts | squares, "t/counts/1.0.0")):
        found: list[int] = []
        with pytest.raises(errors.AlgorithmError, match="no more numbers") as caught:
            await read_into(found, mesh.stream(pipeline, {"n": 5, "fail": 3}))
        assert caught.value.stage == stage
        if pipeline == counts.pipeline:
            assert found == [0, 1, 2]


async def test_a_writer_that_dies_ends_the_stream_with_a_typed_error(mesh: BareMesh, tmp_path: Path) -> None:
    job = {"n": 5, "stop": 2, "gate": str(tmp_path / "never")}
    await mesh.serve_all("counts")
    found: list[int] = []
    reading = asyncio.create_task(read_into(found, mesh.stream(counts.pipeline, job)))
    await until(lambda: len(found) == 2)

    mesh.instances[0].kill()
    mesh.announce_death("counts", 1)

    with pytest.raises(errors.InstanceLost, match="after 2 parts"):
        await reading
    assert found == [0, 1]


async def test_each_streams_in_order_or_as_they_come(mesh: BareMesh) -> None:
    await mesh.serve_all("double", "words", "upper")

    assert await all_of(mesh, double.pipeline.each(), list(range(20))) == [2 * n for n in range(20)]
    unordered = double.pipeline.each(in_flight=4, ordered=False)
    assert sorted(await all_of(mesh, unordered, list(range(20)))) == [2 * n for n in range(20)]
    assert await all_of(mesh, words | upper.pipeline.each(), "a b c") == ["A", "B", "C"]


async def test_each_reads_a_source_that_never_ends(mesh: BareMesh) -> None:
    await mesh.serve_all("double")
    asked = 0

    async def numbers() -> AsyncIterator[int]:
        nonlocal asked
        for number in itertools.count():
            asked += 1
            yield number

    async with aclosing(mesh.stream(double.pipeline.each(in_flight=4), numbers())) as parts:
        found = [await anext(parts) for _ in range(50)]

    assert found == [2 * n for n in range(50)]
    assert asked < 200
