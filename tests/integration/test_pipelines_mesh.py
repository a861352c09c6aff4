"""Pipelines in a whole mesh, as its users write them."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algomesh
from algomesh import errors
from tests.conditions import until
from tests.integration.up_fixtures import Up

pytestmark = pytest.mark.integration

KEY = "YOUR_API_KEY"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("pipelines")
    shutil.copy(Path(__file__).with_name("pipeline_algorithms.py"), folder)
    with Up(folder / "state", "--key", KEY) as up:
        published = up.run("publish", str(folder / "pipeline_algorithms.py"))
        assert published.returncode == 0, published.stderr
        yield up


@pytest.fixture(params=["nats", "gateway"])
def any_client(up: Up, request: pytest.FixtureRequest) -> Iterator[algomesh.Client]:
    with algomesh.client(KEY, up.said[request.param]) as client:
        yield client


@pytest.fixture
def client(up: Up) -> Iterator[algomesh.Client]:
    with algomesh.client(KEY, up.said["nats"]) as client:
        yield client


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that instances can write whoever they are: pytest's own are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="algomesh-test-"))
    folder.chmod(0o777)
    yield folder

    def is_removed() -> bool:
        """What was cancelled may write a last word while its folder goes."""
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait(is_removed)


def wait(condition: Callable[[], object]) -> None:
    asyncio.run(until(condition))


def test_handles_compose_and_start_what_was_down(any_client: algomesh.Client) -> None:
    clean, words = any_client.algo("pipe/clean"), any_client.algo("pipe/words")
    upper, merge = any_client.algo("pipe/upper"), any_client.algo("pipe/merge")

    assert (clean | upper).pipe("  a  B ").result == "A B"
    assert (clean | (upper & clean) | merge | upper).pipe("x").result == "X+X"
    assert (words | upper.each(in_flight=2) | merge).pipe("a b c").result == "A+B+C"
    assert any_client.algo(algomesh.all(loud="pipe/upper", all="pipe/words")).pipe("a b").result == {
        "loud": "A B",
        "all": ["a", "b"],
    }


def test_metadata_and_runs_show_every_stage(up: Up, client: algomesh.Client) -> None:
    response = (client.algo("pipe/clean") | client.algo("pipe/upper")).pipe("x")

    assert response.metadata.algorithm == "pipe/upper"
    assert response.metadata.version == "1.0.0"

    def stages() -> list[str]:
        runs = up.json("runs", "--root", response.metadata.run_id)
        return sorted(run["algorithm"] for run in runs if run["state"] == "succeeded")

    wait(lambda: stages() == ["pipe/clean", "pipe/upper"])


def test_a_key_needs_the_right_to_call_every_stage(up: Up) -> None:
    key = up.json("key", "create", "only-clean", "--may", "call:pipe/clean")[0]["key"]
    with algomesh.client(key, up.said["nats"]) as client:
        assert client.algo("pipe/clean").pipe("A").result == "a"

        began = time.monotonic()
        with pytest.raises(errors.PermissionDenied, match="pipe/upper"):
            (client.algo("pipe/clean") | client.algo("pipe/upper")).pipe("A")
        assert time.monotonic() - began < 2


def test_recursion_within_the_bounds_works(client: algomesh.Client) -> None:
    assert client.algo("pipe/halves").pipe(list(range(40)), timeout=60).result == sum(range(40))


def test_recursion_without_end_ends_in_a_typed_error(client: algomesh.Client) -> None:
    with pytest.raises(errors.DepthExceeded):
        client.algo("pipe/endless").pipe(0, timeout=60)


def test_a_stage_may_be_a_pipeline_that_was_published(up: Up, any_client: algomesh.Client, tmp_path: Path) -> None:
    named = tmp_path / "named.json"
    pipeline = algomesh.stage("pipe/clean") | "pipe/upper"
    text = pipeline.to_json().decode()
    named.write_text(f'{{"name": "pipe/tidy", "version": "1.0.0", "pipeline": {text}}}')
    published = up.run("publish", str(named))
    assert published.returncode in (0, 1), published.stderr
    wait(lambda: "pipe/tidy" in up.run("ls").stdout)

    assert any_client.algo("pipe/tidy").pipe(" a  b").result == "A B"
    assert (any_client.algo("pipe/tidy") | any_client.algo("pipe/words")).pipe("a b").result == ["A", "B"]


def test_parts_stream_to_plain_code(any_client: algomesh.Client) -> None:
    assert list(any_client.algo("pipe/numbers").stream(50)) == list(range(50))
    chain = any_client.algo("pipe/numbers") | any_client.algo("pipe/squares")
    assert list(chain.stream(20)) == [n * n for n in range(20)]
    for part in any_client.algo("pipe/numbers").stream(10_000_000):
        if part == 3:
            break
    assert any_client.algo("pipe/numbers").pipe(3).result == [0, 1, 2]


def test_cancel_reaches_the_children(client: algomesh.Client, open_folder: Path) -> None:
    file = open_folder / "fate"
    with ThreadPoolExecutor(1) as threads:
        calling = threads.submit(client.algo("pipe/boss").pipe, str(file), timeout=30)
        wait(Path(f"{file}.began").exists)

        client.close()

        with pytest.raises(errors.MeshError):
            calling.result(10)
    wait(Path(f"{file}.cancelled").exists)


def test_a_run_that_was_started_can_be_waited_for_or_cancelled(client: algomesh.Client, open_folder: Path) -> None:
    clean = client.algo("pipe/clean") | client.algo("pipe/upper")
    run = clean.start(" a ")
    assert run.wait(30).result == "A"
    assert run.is_over
    assert not run.cancel()  # after the end
    assert run.wait().result == "A"

    file = open_folder / "fate"
    slow = client.algo("pipe/boss").start(str(file), timeout=30)
    with pytest.raises(TimeoutError):
        slow.wait(0.05)
    wait(Path(f"{file}.began").exists)
    assert slow.cancel()
    assert not slow.cancel()  # twice
    with pytest.raises(errors.Cancelled):
        slow.wait(10)
    wait(Path(f"{file}.cancelled").exists)

    early = client.algo("pipe/sleeper").start(str(open_folder / "early"))
    early.cancel()  # perhaps before it was sent
    with pytest.raises(errors.Cancelled):
        early.wait(10)


async def test_a_run_that_was_started_is_awaited_or_cancelled(up: Up, open_folder: Path) -> None:
    async with algomesh.connect(KEY, up.said["nats"]) as mesh:
        assert (await mesh.algo("pipe/clean").start(" a ")).result == "a"
        file = open_folder / "fate"
        run = mesh.algo("pipe/sleeper").start(str(file))
        await until(Path(f"{file}.began").exists)

        assert run.cancel()

        with pytest.raises(errors.Cancelled):
            await run
        await until(Path(f"{file}.cancelled").exists)


def test_large_arrays_travel_through_a_pipeline(any_client: algomesh.Client) -> None:
    array = np.arange(2**20, dtype=np.float32).reshape(1024, -1)
    echo = any_client.algo("pipe/echo")

    result = (echo | echo).pipe(array).result

    assert result.dtype == np.float32
    assert np.array_equal(result, array)


def test_each_takes_a_generator(client: algomesh.Client) -> None:
    def texts() -> Iterator[str]:
        for number in range(300):
            yield f"T{number}"

    result = client.algo("pipe/clean").each(in_flight=16).pipe(texts()).result

    assert result == [f"t{number}" for number in range(300)]


@pytest.mark.parametrize("value", [np.zeros((0, 3), np.float32), {"a": b"\x00", "b": [1]}, [b"1", "2", 3.5]])
def test_odd_values_come_through_joins(client: algomesh.Client, value: Any) -> None:
    echo = client.algo("pipe/echo")

    results = (echo | (echo & echo)).pipe(value).result

    for result in results:
        assert type(result) is type(value)
        assert np.array_equal(result, value) if isinstance(value, np.ndarray) else result == value
