"""A whole mesh as users have it: the seed snippet, every kind of value, rude algorithms, and what may not be done."""

import asyncio
import contextlib
import io
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algomesh
from algomesh import errors
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from tests.conditions import is_alive, until
from tests.integration.up_fixtures import Up

pytestmark = pytest.mark.integration

KEY = "YOUR_API_KEY"
SEED = """
import algomesh as Algorithmia

client = Algorithmia.client('YOUR_API_KEY')
algo1 = client.algo('username/cleaning')
algo2 = client.algo('username/preprocessing')
print(algo2.pipe(algo1.pipe(input)).result)
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("mesh")
    shutil.copy(Path(__file__).with_name("mesh_algorithms.py"), folder)
    with Up(folder / "state", "--key", KEY) as up:
        published = up.run("publish", str(folder / "mesh_algorithms.py"))
        assert published.returncode == 0, published.stderr
        yield up


@pytest.fixture
def client(up: Up) -> Iterator[algomesh.Client]:
    with algomesh.client(KEY, up.said["nats"]) as client:
        yield client


@pytest.fixture(params=["nats", "gateway"])
def any_client(up: Up, request: pytest.FixtureRequest) -> Iterator[algomesh.Client]:
    with algomesh.client(KEY, up.said[request.param]) as client:
        yield client


@pytest.fixture
def open_file() -> Iterator[Path]:
    """A file that instances can write whoever they are: pytest's own folders are closed to other users."""
    with tempfile.TemporaryDirectory(prefix="algomesh-test-") as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "runs"
        file.touch()
        file.chmod(0o666)
        yield file


@pytest.mark.parametrize("address", ["nats", "gateway"])
def test_the_seed_snippet_runs_verbatim(up: Up, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALGOMESH_URL", up.said[address])
    out = io.StringIO()

    names: dict[str, Any] = {"input": "  Hello,   NATS \n World  "}
    with contextlib.redirect_stdout(out):
        exec(SEED, names)
    names["client"].close()

    assert out.getvalue() == "['hello,', 'nats', 'world']\n"


@pytest.mark.parametrize("value", ["naïve ☃", "", b"\x00\xff", {"é": [1, 2.5, None]}, None, 42, [], True])
def test_every_kind_of_value_comes_back(any_client: algomesh.Client, value: Any) -> None:
    response = any_client.algo("test/echo").pipe(value)

    assert response.result == value
    assert type(response.result) is type(value)


def test_arrays_travel_both_ways(any_client: algomesh.Client) -> None:
    result = any_client.algo("test/double").pipe(np.arange(6, dtype=np.float32).reshape(2, 3)).result

    assert np.array_equal(result, 2 * np.arange(6, dtype=np.float32).reshape(2, 3))


def test_metadata_says_what_happened(any_client: algomesh.Client) -> None:
    metadata = any_client.algo("username/cleaning").pipe("x").metadata

    assert metadata.content_type == "text"
    assert metadata.version == "1.0.0"
    assert metadata.attempts == 1
    assert metadata.duration > 0
    assert len(metadata.run_id) == 32


def test_one_client_serves_many_threads(client: algomesh.Client) -> None:
    echo = client.algo("test/echo")

    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda number: echo.pipe(number).result, range(200)))

    assert results == list(range(200))


def test_a_run_knows_itself(client: algomesh.Client) -> None:
    response = client.algo("test/about").pipe(None, timeout=20)

    assert response.result["run"] == response.result["root"] == response.metadata.run_id
    assert response.result["caller"].startswith("k~")
    assert response.result["algorithm"] == "test/about/1.0.0"
    assert 0 < response.result["remaining_s"] <= 20


@pytest.mark.parametrize(
    ("reference", "error", "said"),
    [
        ("test/ecko", errors.UnknownAlgorithm, "test/echo"),
        ("test/echo/9.9.9", errors.UnknownVersion, "1.0.0"),
        ("echo", errors.BadReference, "owner/name"),
        ("a/b/c/d", errors.BadReference, "owner/name"),
        ("test/..", errors.BadReference, "owner/name"),
        ("test/>", errors.BadReference, "owner/name"),
        ("test/e\x00o", errors.BadReference, "owner/name"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_is_meant(
    any_client: algomesh.Client, reference: str, error: type[errors.MeshError], said: str
) -> None:
    with pytest.raises(error, match=said):
        any_client.algo(reference).pipe("x")


async def test_a_name_that_does_not_exist_is_refused_without_a_round_trip(up: Up) -> None:
    async with algomesh.connect(KEY, up.said["nats"]) as mesh:
        took = []
        for number in range(20):
            began = time.perf_counter()
            with pytest.raises(errors.UnknownAlgorithm):
                await mesh.algo(f"test/ech{number}").pipe("x")
            took.append(time.perf_counter() - began)

    assert min(took) < 0.005


def test_a_wrong_key_is_refused(up: Up) -> None:
    with pytest.raises(errors.Unauthenticated):
        algomesh.client("wrong", up.said["nats"])
    with algomesh.client("wrong", up.said["gateway"]) as client, pytest.raises(errors.Unauthenticated):
        client.algo("test/echo").pipe("x")


def test_a_mesh_that_is_not_there_is_said_so() -> None:
    with pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1:1"):
        algomesh.client(KEY, "nats://127.0.0.1:1")


async def test_a_call_that_the_key_may_not_make_is_refused_in_50_ms(up: Up) -> None:
    key = up.json("key", "create", "narrow", "--may", "call:username/*")[0]["key"]
    async with algomesh.connect(key, up.said["nats"]) as mesh:
        assert (await mesh.algo("username/cleaning").pipe("A")).result == "a"
        took = []
        for _ in range(5):
            began = time.perf_counter()
            with pytest.raises(errors.PermissionDenied, match="call:test/echo"):
                await mesh.algo("test/echo").pipe("x")
            took.append(time.perf_counter() - began)

    assert min(took) < 0.05


def test_an_algorithm_may_not_call_what_it_has_not_declared(client: algomesh.Client) -> None:
    with pytest.raises(errors.PermissionDenied, match="calls"):
        client.algo("test/sneak").pipe("test/echo")


async def test_a_key_cannot_send_a_hop(up: Up) -> None:
    key = up.json("key", "create", "hopper", "--may", "admin")[0]["key"]
    identity = Identity.of_key(key)
    version = VersionId.parse("test/echo/1.0.0")
    async with (
        algomesh.connect(KEY, up.said["nats"]) as mesh,
        await Connection.open(up.said["nats"], identity) as forger,
    ):
        await mesh.algo("test/echo").pipe("warm")
        refused: list[str] = []
        forger.on_forbidden.append(lambda operation, subject: refused.append(subject))
        call = messages.Call(run="r" * 32, root="r" * 32, root_caller="k~x", session="s", call="1", time_left_ms=5000)
        forger.publish(subjects.hop(version, identity.caller), codec.encode(call))
        await forger.flush()

    # Only instances may publish hops at all; the receiver's own refusal is tested in test_lanes.py.
    assert refused == [subjects.hop(version, identity.caller)]


@pytest.mark.parametrize("how", ["print", "fork", "close", "signals"])
def test_a_rude_run_harms_nobody(client: algomesh.Client, how: str) -> None:
    rude = client.algo("test/rude")

    assert rude.pipe(how, timeout=60).result == how
    assert rude.pipe("nothing").result == "nothing"


def test_a_run_that_exits_is_told_and_the_next_call_works(client: algomesh.Client) -> None:
    with pytest.raises(errors.InstanceLost, match=r"test/rude/1\.0\.0"):
        client.algo("test/rude").pipe("exit")

    assert client.algo("test/rude").pipe("nothing").result == "nothing"


def test_too_much_memory_is_told_and_the_next_call_works(client: algomesh.Client) -> None:
    with pytest.raises(errors.MemoryExceeded, match="256"):
        client.algo("test/greedy").pipe(600)

    assert client.algo("test/greedy").pipe(1).result == 2**20


def test_what_cannot_be_loaded_says_why(client: algomesh.Client) -> None:
    began = time.monotonic()
    with pytest.raises(errors.LoadFailed, match="no weights here"):
        client.algo("test/unloadable").pipe(1)

    assert time.monotonic() - began < 10


def test_ten_seconds_of_load_are_no_death(client: algomesh.Client) -> None:
    response = client.algo("test/longload").pipe(1, timeout=60)

    assert response.metadata.attempts == 1
    assert response.metadata.cold_start_s > 9


async def test_a_killed_instance_is_replaced_within_a_second(up: Up, open_file: Path) -> None:
    async with algomesh.connect(KEY, up.said["nats"]) as mesh:
        calling = asyncio.create_task(mesh.algo("test/once").pipe({"file": str(open_file), "seconds": 1.5}))
        first = int((await until(lambda: open_file.read_text().split(), 10))[1])

        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        await until(lambda: len(open_file.read_text().splitlines()) == 2, 10)
        again_after_s = time.monotonic() - killed
        response = await calling

    assert response.metadata.attempts == 2
    assert response.result != first
    assert not is_alive(first)
    assert again_after_s < 3  # a second on an idle machine; see the figures


async def test_a_killed_server_is_back_and_calls_go_on(up: Up) -> None:
    async with algomesh.connect(KEY, up.said["nats"]) as mesh:
        echo = mesh.algo("test/echo")
        await echo.pipe("warm")
        calls = [asyncio.create_task(mesh.algo("test/about").pipe(number, timeout=30)) for number in range(8)]
        await asyncio.sleep(0)

        os.kill(up.pids["nats-server"], signal.SIGKILL)
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert [result for result in results if isinstance(result, BaseException)] == []
        assert (await echo.pipe("after", timeout=10)).result == "after"


async def test_64_callers_are_served_once_each_and_more_instances_come(up: Up, open_file: Path) -> None:
    async with algomesh.connect(KEY, up.said["nats"]) as mesh:
        once = mesh.algo("test/once")
        answers = await asyncio.gather(
            *[once.pipe({"file": str(open_file), "name": f"n{number}", "seconds": 0.1}) for number in range(64)]
        )

    names = [line.split()[0] for line in open_file.read_text().splitlines()]
    assert sorted(names) == sorted(f"n{number}" for number in range(64))
    assert len({answer.result for answer in answers}) > 1
