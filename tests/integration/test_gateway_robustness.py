"""What clients do that they should not: each gets an answer that says so, never a 500, and harms nobody else."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import structlog

from algomesh_services.gateway.service import PortInUse, serving
from algomesh_services.gateway.settings import Settings
from tests.conditions import until
from tests.integration.gateway_fixtures import ADMIN_KEY, Served, eventually, raw_exchange, served

pytestmark = pytest.mark.integration

CALL = "/mesh/v1/call/demo/echo"
HEAD = f"POST {CALL} HTTP/1.1\r\nHost: mesh\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, postgres: str) -> AsyncIterator[Served]:
    async with served(tmp_path, postgres, head_s=0.5, body_pause_s=0.5, body_s=1.0, bodies_bytes=12 * 2**20) as there:
        yield there


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_a_request_head_that_never_ends_is_cut_off(gateway: Served) -> None:
    answer = await raw_exchange(gateway.address, b"POST /mesh/v1/call/demo/echo HTTP/1.1\r\nX-Slow: ", within_s=5)

    assert answer == b""


async def test_a_silent_connection_is_cut_off(gateway: Served) -> None:
    assert await raw_exchange(gateway.address, b"", within_s=5) == b""


async def test_a_body_that_pauses_is_a_408(gateway: Served) -> None:
    answer = await raw_exchange(gateway.address, f"{HEAD}Content-Length: 100\r\n\r\nhalf".encode(), within_s=8)

    assert status_of(answer) == 408
    assert b"slow_body" in answer


async def test_a_body_that_drips_is_a_408(gateway: Served) -> None:
    reader, writer = await asyncio.open_connection(gateway.address.host, gateway.address.port)
    writer.write(f"{HEAD}Content-Length: 100000\r\n\r\n".encode())
    reading = asyncio.create_task(reader.readline())
    while not reading.done():
        writer.write(b"x")
        await asyncio.wait({reading}, timeout=0.1)
    writer.close()

    assert status_of(await reading) == 408


async def test_more_connections_than_allowed_shed_the_oldest_idle_ones(tmp_path: Path, postgres: str) -> None:
    async with served(tmp_path, postgres, connections=40) as gateway:
        connections = [await asyncio.open_connection(gateway.address.host, gateway.address.port) for _ in range(60)]
        reading = [asyncio.create_task(reader.read()) for reader, _ in connections]

        await until(lambda: sum(task.done() for task in reading) >= 20)
        status, _, _ = await gateway.post(CALL)
        for _, writer in connections:
            writer.close()
        await asyncio.gather(*reading)

    assert status == 200
    assert {task.result() for task in reading} == {b""}


@pytest.mark.parametrize(
    "encode", [lambda data: b"not gzip at all", lambda data: gzip.compress(data)[:-12] + b"brokenbroken"]
)
async def test_a_broken_gzip_body_is_a_400(gateway: Served, encode: Any) -> None:
    status, body, _ = await gateway.post(CALL, data=encode(b"x" * 1000), headers={"Content-Encoding": "gzip"})

    assert (status, body["code"]) == (400, "bad_input")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "nonsense"])
async def test_an_encoding_we_do_not_speak_is_a_400(gateway: Served, encoding: str) -> None:
    answer = await raw_exchange(
        gateway.address,
        f"{HEAD}Content-Encoding: {encoding}\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc".encode(),
    )

    assert status_of(answer) == 400


async def test_a_gzip_body_is_unpacked(gateway: Served) -> None:
    status, body, _ = await gateway.post(CALL, data=gzip.compress(b"hello"), headers={"Content-Encoding": "gzip"})

    assert (status, body) == (200, b"hello")


async def test_a_gzip_bomb_is_a_413(gateway: Served) -> None:
    bomb = zlib.compress(b"\0" * (64 * 2**20), 9)

    status, body, _ = await gateway.post(CALL, data=bomb, headers={"Content-Encoding": "deflate"})

    assert (status, body["code"]) == (413, "payload_too_large")


async def test_a_body_as_large_as_the_mesh_takes_travels(gateway: Served) -> None:
    blob = b"x" * (8 * 2**20 - 4096)

    status, body, _ = await gateway.post(CALL, blob)

    assert (status, len(body)) == (200, len(blob))


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_larger_body_is_a_413_that_says_what_to_do(gateway: Served, is_chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"x" * 2**20

    data = chunks() if is_chunked else b"x" * (9 * 2**20)

    status, body, _ = await gateway.post(CALL, b"", data=data)

    assert (status, body["code"]) == (413, "payload_too_large")
    assert "in parts" in body["message"]


async def test_bodies_together_are_bounded_and_their_room_comes_back(gateway: Served) -> None:
    blob = b"x" * (7 * 2**20)

    hurried = {"Algomesh-Timeout-S": "1"}
    answers = await asyncio.gather(*[gateway.post("/mesh/v1/call/demo/slow", blob, headers=hurried) for _ in range(3)])
    after, _, _ = await gateway.post(CALL, blob)

    assert sorted(status for status, _, _ in answers) == [429, 429, 504]
    assert after == 200


@pytest.mark.parametrize("body", [b"", b"{", b"nope", b"[1,]", b'{"a":NaN}', b'"\xff"', b"[" * 200_000, b"1 2"])
async def test_what_is_not_json_is_a_400(gateway: Served, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}

    status, refusal, _ = await gateway.post(CALL, data=body, headers=headers)
    shaped_status, shaped, _ = await gateway.post("/v1/algo/demo/echo", data=body, headers=headers)

    assert (status, refusal["code"]) == (400, "bad_input")
    assert shaped_status in (200, 400)
    assert shaped["error"]["code"] == "bad_input"


async def test_text_is_taken_in_the_charset_it_names(gateway: Served) -> None:
    status, body, _ = await gateway.post(
        CALL, data="é".encode("latin-1"), headers={"Content-Type": "text/plain; charset=iso-8859-1"}
    )
    refused, refusal, _ = await gateway.post(CALL, data=b"\xe9", headers={"Content-Type": "text/plain"})
    unknown, _, _ = await gateway.post(CALL, data=b"x", headers={"Content-Type": "text/plain; charset=base64"})

    assert (status, body.decode()) == (200, "é")
    assert (refused, refusal["code"], unknown) == (400, "bad_input", 400)


@pytest.mark.parametrize(
    "detail", ["", "numpy", "numpy/float32/3,4\x7f", "numpy/float32/-1", "numpy/__import__/1", "pickle/o/1" + "0" * 500]
)
async def test_a_tensor_must_say_what_it_is(gateway: Served, detail: str) -> None:
    status, body, _ = await gateway.post(
        CALL,
        data=b"0" * 48,
        headers={"Content-Type": "application/x-algomesh-tensor", "Algomesh-Tensor": detail.replace("\x7f", "?")},
    )

    assert (status, body["code"]) == (400, "bad_input")


async def test_a_form_is_refused_with_what_to_send(gateway: Served) -> None:
    status, body, _ = await gateway.post(
        CALL, data=b'{"a":1}', headers={"Content-Type": "application/x-www-form-urlencoded"}
    )

    assert status == 400
    assert "application/json" in body["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/mesh/v1/call/demo/%2e%2e/secret",
        "/mesh/v1/call/demo%2Fecho/0.1.0",
        "/mesh/v1/call/demo/echo%00",
        "/mesh/v1/call/demo/echo/",
        "/mesh/v1/call/demo/>",
        "/mesh/v1/call/demo",
        "/mesh/v1/call",
        "/mesh/v1/call/demo/echo/1.2.3.4",
        "/mesh/v1/call/" + "a" * 64 + "/b",
        "/mesh/v1/call/demo/ec.ho",
    ],
)
async def test_a_path_that_names_no_algorithm_is_a_400(gateway: Served, path: str) -> None:
    answer = await raw_exchange(
        gateway.address,
        f"POST {path} HTTP/1.1\r\nHost: m\r\nAuthorization: {ADMIN_KEY}\r\nConnection: close\r\n".encode()
        + b"Content-Length: 0\r\n\r\n",
    )

    assert status_of(answer) == 400
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "bad_reference"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CALL, 405),
        ("PUT", CALL, 405),
        ("DELETE", "/v1/algo/demo/echo", 405),
        ("POST", "/healthz", 405),
        ("POST", "/", 405),
        ("GET", "/nothing/here", 404),
        ("GET", "/v1/algorithms/demo/echo/secret", 404),
        ("TRACE", "/x", 404),
        ("HEAD", "/healthz", 200),
        ("HEAD", "/", 200),
        ("OPTIONS", CALL, 204),
        ("OPTIONS", "/healthz", 204),
    ],
)
async def test_other_methods_and_paths_are_answered_in_json(
    gateway: Served, method: str, path: str, status: int
) -> None:
    async with gateway.http.request(method, gateway.url + path) as answer:
        body = await answer.read()

    assert answer.status == status
    if status in (405, 204):
        assert answer.headers["Allow"]
    if status in (404, 405):
        assert body.startswith(b"{")
        assert b"message" in body


async def test_the_front_page_is_html_for_browsers_and_json_for_others(gateway: Served) -> None:
    async with gateway.http.get(gateway.url + "/", headers={"Accept": "text/html"}) as answer:
        page = await answer.text()
    _, body = await gateway.get("/")

    assert "<h1>algomesh</h1>" in page
    assert "POST /v1/algo/{owner}/{name}[/{version}]" in body["paths"]


@pytest.mark.parametrize("timeout", ["soon", "nan", "inf", "-1", "0", "1e9", ""])
async def test_a_timeout_that_is_none_is_a_400(gateway: Served, timeout: str) -> None:
    status, body, _ = await gateway.post(CALL, headers={"Algomesh-Timeout-S": timeout})

    assert (status, body["code"]) == (400, "bad_input")


@pytest.mark.parametrize("parameter", ["key", "api_key", "API_KEY", "access_token", "token"])
async def test_a_key_in_the_address_is_refused(gateway: Served, parameter: str) -> None:
    for path in (CALL, "/v1/algo/demo/echo"):
        status, _, _ = await gateway.post(f"{path}?{parameter}={ADMIN_KEY}")

        assert status == 400
    assert not gateway.echo.calls


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer a\tb", "Bearer " + "k" * 600, "Bearer ai_forged.token", "Bearer é"],
)
async def test_what_cannot_be_a_key_is_a_401(gateway: Served, authorization: str) -> None:
    data = f"POST {CALL} HTTP/1.1\r\nHost: m\r\nAuthorization: {authorization}\r\nConnection: close\r\n"
    answer = await raw_exchange(gateway.address, (data + "Content-Length: 0\r\n\r\n").encode())

    assert status_of(answer) == 401
    assert b"WWW-Authenticate: Bearer" in answer


async def test_two_keys_in_one_request_are_a_401(gateway: Served) -> None:
    answer = await raw_exchange(
        gateway.address,
        f"{HEAD}Authorization: Bearer other\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode(),
    )

    assert status_of(answer) in (400, 401)


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
    ],
)
async def test_what_is_not_http_is_a_400_or_nothing(gateway: Served, request_: bytes) -> None:
    answer = await raw_exchange(gateway.address, request_)

    assert not answer or 400 <= status_of(answer) < 500
    assert b"Traceback" not in answer
    assert (await gateway.post(CALL))[0] == 200


async def test_bad_chunks_are_a_400(gateway: Served) -> None:
    answer = await raw_exchange(gateway.address, f"{HEAD}Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n".encode())

    assert status_of(answer) == 400


async def test_one_connection_serves_many_requests(gateway: Served) -> None:
    one = f"{HEAD}Content-Type: text/plain\r\nContent-Length: 1\r\n\r\n"
    last = f"{HEAD}Content-Type: text/plain\r\nConnection: close\r\nContent-Length: 1\r\n\r\n"

    answer = await raw_exchange(gateway.address, f"{one}a{one}b{last}c".encode())

    assert answer.count(b"HTTP/1.1 200") == 3


async def test_guessing_keys_is_slowed_down_and_harms_no_known_key(gateway: Served) -> None:
    await gateway.post(CALL)

    answers = await asyncio.gather(*[gateway.post(CALL, key=f"guess-{number}") for number in range(250)])
    known, _, _ = await gateway.post(CALL)

    statuses = {status for status, _, _ in answers}
    assert 429 in statuses
    assert statuses <= {401, 429, 503}  # 503: the broker itself took too long over one of them
    assert known == 200


async def test_a_refused_key_is_not_asked_about_again_at_once(gateway: Served) -> None:
    with structlog.testing.capture_logs() as lines:
        for _ in range(20):
            status, _, _ = await gateway.post(CALL, key="wrong")
            assert status == 401

    refused = [line for line in lines if line["event"] == "connection_refused"]
    assert 1 <= len(refused) <= 2


async def test_no_key_is_ever_in_the_log(gateway: Served) -> None:
    with structlog.testing.capture_logs() as lines:
        await gateway.post(CALL)
        await gateway.post("/v1/algo/demo/fail")
        await gateway.post(f"{CALL}?api_key={ADMIN_KEY}")
        await gateway.get(f"/{ADMIN_KEY}")
        await gateway.post(CALL, key="wrong-" + ADMIN_KEY)

    served_lines = [line for line in lines if line["event"] == "request_served"]
    assert len(served_lines) == 5
    assert ADMIN_KEY not in repr(lines)


async def test_a_connection_nobody_uses_is_closed_in_time(tmp_path: Path, postgres: str) -> None:
    async with served(tmp_path, postgres, key_idle_s=0.2) as gateway:
        await gateway.post(CALL)
        first = gateway.echo.calls[-1].session

        async def is_new() -> bool:
            await gateway.post(CALL)
            return gateway.echo.calls[-1].session != first

        await eventually(is_new, 10, every_s=1.5)


async def test_more_keys_than_allowed_replace_those_unused(tmp_path: Path, postgres: str) -> None:
    async with served(tmp_path, postgres, keys=2) as gateway:
        keys = [await gateway.mesh.key("call:demo/*") for _ in range(3)]

        for key in keys:

            async def is_served(key: str = key) -> bool:
                return (await gateway.post(CALL, key=key))[0] == 200

            await eventually(is_served, 5, every_s=0.2)


async def test_it_starts_without_nats_and_says_so(tmp_path: Path) -> None:
    settings = Settings(nats="nats://127.0.0.1:9", state=tmp_path, port=0)
    async with serving(settings) as address, aiohttp.ClientSession() as http:
        async with http.get(f"{address.url}/healthz") as answer:
            healthy = answer.status
        async with http.get(f"{address.url}/readyz") as answer:
            ready = answer.status
        async with http.post(f"{address.url}{CALL}", headers={"Authorization": "key"}) as answer:
            call, body = answer.status, await answer.json()

    assert (healthy, ready, call, body["code"]) == (200, 503, 503, "unreachable")


async def test_a_port_in_use_is_said_plainly(tmp_path: Path) -> None:
    settings = Settings(nats="nats://127.0.0.1:9", state=tmp_path, port=0)
    async with serving(settings) as address:
        with pytest.raises(PortInUse, match=str(address.port)):
            async with serving(Settings(nats=settings.nats, state=tmp_path, port=address.port)):
                pass
