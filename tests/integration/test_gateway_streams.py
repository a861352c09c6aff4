"""Streams over HTTP as plain clients read them: events, lines, slow readers, readers that go."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

import algomesh
from tests.conditions import until
from tests.integration.gateway_fixtures import ADMIN_KEY, Served, raw_exchange, served
from tests.integration.stream_fixtures import BEARER, form_of, open_folder, streaming_mesh
from tests.integration.up_fixtures import Up

pytestmark = pytest.mark.integration

SSE = {**BEARER, "Accept": "text/event-stream"}
JSON = {"Content-Type": "application/json"}
PATH = "/mesh/v1/stream"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with streaming_mesh(tmp_path_factory.mktemp("mesh")) as up:
        yield up


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest_asyncio.fixture
async def http(up: Up) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(up.said["gateway"]) as session:
        yield session


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line]


def events_of(text: str) -> list[dict[str, Any]]:
    """Server-sent events, with their data read as JSON."""
    found: list[dict[str, Any]] = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def piped(pipeline: algomesh.Pipeline, value: bytes, media: str = "text/plain") -> aiohttp.MultipartWriter:
    return form_of({"pipeline": (pipeline.to_json(), "application/json"), "input": (value, media)})


async def test_lines_of_json_hold_the_parts_and_the_end(http: aiohttp.ClientSession) -> None:
    async with http.post(f"{PATH}/s/counts", data=b'{"n":3}', headers=BEARER | JSON) as answer:
        *parts, end = lines_of(await answer.text())

    assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
    assert parts == [{"part": 0}, {"part": 1}, {"part": 2}]
    assert end["end"]["algorithm"] == "s/counts"
    assert len(end["end"]["run_id"]) == 32


async def test_events_hold_the_parts_and_the_end(http: aiohttp.ClientSession) -> None:
    async with http.post(f"{PATH}/s/counts", data=b'{"n":2}', headers=SSE | JSON) as answer:
        *parts, end = events_of(await answer.text())

    assert answer.content_type == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    assert [(part["event"], part["id"], part["data"]) for part in parts] == [
        ("part", "0", {"part": 0}),
        ("part", "1", {"part": 1}),
    ]
    assert (end["event"], end["data"]["version"]) == ("end", "1.0.0")


async def test_other_kinds_come_in_base64_and_bundles_as_json(http: aiohttp.ClientSession) -> None:
    async with http.post(f"{PATH}/s/kinds", data=b"null", headers=BEARER | JSON) as answer:
        text, value, data, array, bundle, _ = lines_of(await answer.text())

    assert (text, value) == ({"part": "text"}, {"part": {"json": [1, None]}})
    assert data == {"part": "AP8=", "content_type": "binary"}
    assert (array["content_type"], array["detail"]) == ("tensor", "numpy/float32/2,3")
    assert bundle == {"part": [[0, 1], "bundle"]}


async def test_a_pipeline_streams(http: aiohttp.ClientSession) -> None:
    pipeline = algomesh.stage("s/shout") | algomesh.all(a="s/shout", b="s/size")
    doubled = algomesh.stage("s/double").each()

    async with http.post(PATH, data=piped(pipeline, b"hi"), headers=BEARER) as answer:
        assert lines_of(await answer.text())[0] == {"part": {"a": "HI", "b": 2}}
    async with http.post(PATH, data=piped(doubled, b"[1,2]", "application/json"), headers=SSE) as answer:
        assert [event["data"].get("part") for event in events_of(await answer.text())] == [2, 4, None]


@pytest.mark.parametrize("headers", [BEARER, SSE])
async def test_an_error_before_the_first_part_has_its_status(
    http: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with http.post(f"{PATH}/s/counts", data=b'{"n":2,"fail":0}', headers=headers | JSON) as answer:
        assert answer.status == 422
        assert (await answer.json())["code"] == "algorithm_error"
    async with http.post(f"{PATH}/s/none", data=b"1", headers=headers) as answer:
        assert answer.status == 404
    async with http.post(f"{PATH}/s/counts", data=b"1") as answer:
        assert answer.status == 401


async def test_an_error_between_parts_is_the_last_event(http: aiohttp.ClientSession) -> None:
    shout = algomesh.stage("s/shout").each(in_flight=1)
    async with http.post(f"{PATH}/s/counts", data=b'{"n":9,"fail":2}', headers=SSE | JSON) as answer:
        *_, last = events_of(await answer.text())
    async with http.post(PATH, data=piped(shout, b'["a","bad"]', "application/json"), headers=BEARER) as answer:
        first, error = lines_of(await answer.text())

    assert (last["event"], last["data"]["code"], last["data"]["stage"]) == (
        "error",
        "algorithm_error",
        "s/counts/1.0.0",
    )
    assert first == {"part": "A"}
    assert error["error"]["branch"] == ["item 1"]
    assert error["error"]["stage"] == "s/shout/1.0.0"


async def test_event_source_may_get(http: aiohttp.ClientSession) -> None:
    async with http.get(f"{PATH}/s/shout", params={"input": "a b"}, headers=SSE) as answer:
        assert events_of(await answer.text())[0]["data"] == {"part": "A B"}
    async with http.get(f"{PATH}/s/shout", params={"input": "a"}, headers={**SSE, "Last-Event-ID": "0"}) as answer:
        assert answer.status == 204  # EventSource came again, and must not begin anew
    async with http.get(f"{PATH}/s/shout", params={"input": "a"}, headers=BEARER) as answer:
        assert (answer.status, (await answer.json())["code"]) == (400, "bad_input")
    async with http.get(f"{PATH}/s/shout", headers=SSE) as answer:
        assert answer.status == 400
    async with http.get(f"{PATH}/s/shout", params={"input": "a", "key": "k"}, headers=SSE) as answer:
        assert answer.status == 400


async def test_other_methods_are_told_what_there_is(http: aiohttp.ClientSession) -> None:
    for method, path, allowed in (
        ("PUT", f"{PATH}/s/shout", "GET, POST"),
        ("HEAD", f"{PATH}/s/shout", "GET, POST"),
        ("GET", PATH, "POST"),
        ("GET", "/mesh/v1/pipe", "POST"),
    ):
        async with http.request(method, path, headers=BEARER) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, allowed)


async def where_it_stops(file: Path) -> int:
    """How long a file is that has not grown for half a second."""
    size = -1
    while size != file.stat().st_size:
        size = file.stat().st_size
        await asyncio.sleep(0.5)
    return size


async def test_a_slow_reader_slows_the_writer_and_gets_everything(up: Up, folder: Path) -> None:
    written = folder / "written"
    written.touch()
    written.chmod(0o666)
    count, size = 400, 2**18
    job = json.dumps({"n": count, "size": size, "file": str(written)}).encode()
    head = f"POST {PATH}/s/blobs HTTP/1.1\r\nHost: a\r\nAuthorization: {BEARER['Authorization']}\r\n" + (
        f"Content-Type: application/json\r\nContent-Length: {len(job)}\r\nConnection: close\r\n\r\n"
    )
    host, port = up.said["gateway"].removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**16)
    writer.write(head.encode() + job)
    await reader.readuntil(b'{"part"')

    stopped_at = await where_it_stops(written)
    rest = await reader.read()
    writer.close()

    assert stopped_at < count / 2
    assert written.stat().st_size == count
    assert rest.count(b'"part"') == count - 1
    assert b'{"end":' in rest


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_a_reader_that_goes_ends_the_run(http: aiohttp.ClientSession, folder: Path, accept: str) -> None:
    closed = folder / "closed"
    job = json.dumps({"n": 10_000_000, "closed": str(closed)}).encode()

    async with http.post(f"{PATH}/s/counts", data=job, headers=BEARER | JSON | {"Accept": accept}) as answer:
        await answer.content.readline()

    await until(closed.exists)


def test_curl_reads_a_stream_of_a_pipeline(up: Up) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    pipeline = '{"kind":"each","of":{"kind":"stage","reference":"s/double"}}'

    said = subprocess.run(
        [
            "curl", "-sN", "-H", f"Authorization: {BEARER['Authorization']}",
            "-F", f"pipeline={pipeline};type=application/json", "-F", "input=[1,2,3];type=application/json",
            up.said["gateway"] + PATH,
        ],
        capture_output=True, text=True, timeout=30, check=True,
    ).stdout  # fmt: skip

    assert [line.get("part") for line in lines_of(said)] == [2, 4, 6, None]


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, postgres: str) -> AsyncIterator[Served]:
    async with served(tmp_path, postgres, beat_s=0.05) as there:
        yield there


async def test_silence_is_broken_by_signs_of_life(gateway: Served) -> None:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Algomesh-Timeout-S": "5"}

    for accept, beat in (("text/event-stream", b": still here\n"), ("application/x-ndjson", b"\n")):
        async with gateway.http.post(
            f"{gateway.url}{PATH}/demo/slow", data=b"x", headers={**headers, "Accept": accept}
        ) as answer:
            assert answer.status == 200
            assert await answer.content.readline() == beat

    await until(lambda: len(gateway.slow.cancels) == 2)


async def test_the_callers_time_ends_a_stream_with_its_error(gateway: Served) -> None:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Algomesh-Timeout-S": "0.3"}

    async with gateway.http.post(f"{gateway.url}{PATH}/demo/slow", data=b"x", headers=headers) as answer:
        assert lines_of(await answer.text())[-1]["error"]["code"] == "deadline_exceeded"


async def test_an_http_1_0_client_reads_until_the_end(gateway: Served) -> None:
    head = f"POST {PATH}/demo/echo HTTP/1.0\r\nAuthorization: Bearer {ADMIN_KEY}\r\nContent-Length: 2\r\n"

    said = await raw_exchange(gateway.address, head.encode() + b"Content-Type: text/plain\r\n\r\nhi")

    assert b'{"part":"hi"}\n' in said
    assert said.rstrip().endswith(b"}}")
