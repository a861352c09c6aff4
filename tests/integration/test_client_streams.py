"""`stream`, and iterators as inputs, with the SDK's clients: plain and async, straight and through the gateway."""

import asyncio
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

import algomesh
from algomesh import errors
from algomesh.clients import AsyncClient
from algomesh.response import Metadata
from tests.conditions import until
from tests.integration.stream_fixtures import KEY, open_folder, streaming_mesh
from tests.integration.up_fixtures import Up

pytestmark = pytest.mark.integration

ENDLESS = 10_000_000


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with streaming_mesh(tmp_path_factory.mktemp("mesh")) as up:
        yield up


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture(params=["nats", "gateway"])
def address(up: Up, request: pytest.FixtureRequest) -> str:
    return str(up.said[request.param])


@pytest.fixture
def client(address: str) -> Iterator[algomesh.Client]:
    with algomesh.client(KEY, address) as client:
        yield client


@pytest_asyncio.fixture
async def mesh(address: str) -> AsyncIterator[AsyncClient]:
    async with algomesh.connect(KEY, address) as client:
        yield client


def is_end(metadata: Metadata | None, algorithm: str) -> bool:
    return metadata is not None and metadata.algorithm == algorithm and metadata.run_id != "" and metadata.duration > 0


def test_parts_come_in_order_and_then_the_metadata(client: algomesh.Client) -> None:
    stream = client.algo("s/counts").stream({"n": 200})

    assert stream.metadata is None
    assert list(stream) == list(range(200))
    assert is_end(stream.metadata, "s/counts")
    assert list(stream) == []


def test_every_kind_of_part_comes_as_it_was_yielded(client: algomesh.Client) -> None:
    text, value, data, array, bundle = client.algo("s/kinds").stream(None)

    assert (text, value, data) == ("text", {"json": [1, None]}, b"\x00\xff")
    assert array.dtype == np.float32
    assert np.array_equal(array, np.arange(6).reshape(2, 3))
    assert np.array_equal(bundle[0], [0, 1])
    assert bundle[1] == "bundle"


def test_the_first_part_is_there_before_the_run_has_ended(client: algomesh.Client, folder: Path) -> None:
    gate = folder / "gate"
    pipeline = client.algo("s/counts") | "s/squares"
    found = []

    for number in pipeline.stream({"n": 5, "wait": 2, "gate": str(gate)}):
        found.append(number)
        if len(found) == 2:
            gate.touch()

    assert found == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("how", ["break", "close", "with", "raise", "forget"])
async def test_leaving_early_ends_the_run(client: algomesh.Client, folder: Path, how: str) -> None:
    closed = folder / "closed"

    def leave() -> None:
        stream = client.algo("s/counts").stream({"n": ENDLESS, "closed": str(closed)})
        with pytest.raises(KeyError) if how == "raise" else stream if how == "with" else open("/dev/null"):  # noqa: PTH123
            for number in stream:
                if number == 3:
                    if how == "raise":
                        raise KeyError(number)
                    break
        if how == "close":
            stream.close()
            assert list(stream) == []

    await asyncio.to_thread(leave)
    gc.collect()

    await until(closed.exists)


def test_another_thread_may_close_a_stream_that_waits(client: algomesh.Client, folder: Path) -> None:
    stream = client.algo("s/counts").stream({"n": 5, "wait": 2, "gate": str(folder / "never")})
    found = [next(stream), next(stream)]
    rest: list[Any] = []
    reading = threading.Thread(target=lambda: rest.extend(stream))
    reading.start()

    stream.close()
    reading.join(5)

    assert not reading.is_alive()
    assert (found, rest) == ([0, 1], [])


def test_an_error_comes_after_the_parts_before_it(client: algomesh.Client) -> None:
    stream = client.algo("s/counts").stream({"n": 5, "fail": 3})

    assert [next(stream), next(stream), next(stream)] == [0, 1, 2]
    with pytest.raises(errors.AlgorithmError, match="no more numbers") as caught:
        next(stream)

    assert (caught.value.stage, caught.value.error_type) == ("s/counts/1.0.0", "RuntimeError")
    assert stream.metadata is None


def test_the_callers_time_bounds_a_stream(client: algomesh.Client, folder: Path) -> None:
    stream = client.algo("s/counts").stream({"n": 5, "wait": 1, "gate": str(folder / "never")}, timeout=1.5)

    assert next(stream) == 0
    with pytest.raises(errors.DeadlineExceeded):
        next(stream)


def test_a_closed_client_ends_its_streams(address: str, folder: Path) -> None:
    closed = folder / "closed"
    client = algomesh.client(KEY, address)
    stream = client.algo("s/counts").stream({"n": ENDLESS, "closed": str(closed)})
    assert next(stream) == 0

    client.close()

    with pytest.raises(errors.Unreachable, match="closed"):
        next(stream)
    asyncio.run(until(closed.exists))


def test_a_stream_keeps_its_client(address: str) -> None:
    assert list(algomesh.client(KEY, address).algo("s/counts").stream({"n": 3})) == [0, 1, 2]


def test_each_streams_and_names_the_item_that_failed(client: algomesh.Client) -> None:
    shout = client.algo("s/shout").each()

    assert list(shout.stream(["a", "b"])) == ["A", "B"]
    with pytest.raises(errors.AlgorithmError) as caught:
        list(shout.stream(["a", "bad"]))
    assert caught.value.branch == ["item 1"]


def test_a_generator_is_read_to_its_end_for_pipe(client: algomesh.Client) -> None:
    doubling = client.algo("s/double").each()

    assert doubling.pipe(n for n in range(20)).result == [2 * n for n in range(20)]
    assert (doubling | "s/total").pipe(iter([1, 2])).result == 6
    assert client.algo("s/total").pipe(n for n in range(4)).result == 6


def test_an_endless_generator_streams_over_nats_and_is_refused_over_http(client: algomesh.Client, address: str) -> None:
    stream = client.algo("s/double").each(in_flight=4).stream(itertools.count())

    if address.startswith("nats"):
        assert list(itertools.islice(stream, 50)) == [2 * n for n in range(50)]
    else:
        with pytest.raises(errors.BadInput, match="nats://"):
            next(stream)


def test_pipe_of_an_endless_generator_ends_with_its_deadline(up: Up) -> None:
    with (
        algomesh.client(KEY, up.said["nats"]) as client,
        pytest.raises(errors.DeadlineExceeded),
    ):
        client.algo("s/double").each(in_flight=4).pipe(itertools.count(), timeout=1)


async def test_async_parts_come_and_then_the_metadata(mesh: AsyncClient) -> None:
    stream = (mesh.algo("s/counts") | "s/squares").stream({"n": 20})

    assert [number async for number in stream] == [n * n for n in range(20)]
    assert is_end(stream.metadata, "s/squares")


@pytest.mark.parametrize("how", ["break", "close", "cancel"])
async def test_leaving_an_async_stream_ends_the_run(mesh: AsyncClient, folder: Path, how: str) -> None:
    closed = folder / "closed"
    job = {"n": ENDLESS if how != "cancel" else 5, "wait": 3, "gate": str(folder / "gate"), "closed": str(closed)}
    if how != "cancel":
        (folder / "gate").touch()
    begun = asyncio.Event()

    async def read() -> None:
        async for number in mesh.algo("s/counts").stream(job):
            if number == 2:
                begun.set()
                if how == "break":
                    break

    if how == "close":
        async with mesh.algo("s/counts").stream(job) as stream:
            assert await anext(stream) == 0
    else:
        reading = asyncio.create_task(read())
        await begun.wait()
        if how == "cancel":
            reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        (folder / "gate").touch()

    await until(closed.exists)


async def test_an_async_source_is_read_item_by_item(mesh: AsyncClient) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(10):
            yield number

    assert [n async for n in mesh.algo("s/double").each().stream(numbers())] == [2 * n for n in range(10)]


async def test_algorithms_stream_their_children(mesh: AsyncClient, folder: Path) -> None:
    closed = folder / "closed"

    assert [n async for n in mesh.algo("s/relay").stream({"n": 30})] == list(range(1, 31))
    assert (await mesh.algo("s/arelay").pipe({"n": 30})).result == list(range(1, 31))
    assert (await mesh.algo("s/gathers").pipe(10)).result == [2 * n for n in range(10)]
    leaving = mesh.algo("s/relay").stream({"n": ENDLESS, "most": 3, "closed": str(closed)})
    assert [n async for n in leaving] == [1, 2, 3]
    await until(closed.exists)
