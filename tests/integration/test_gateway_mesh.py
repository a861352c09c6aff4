"""`/mesh/v1/call` with a real registry and broker, driven by the SDK's own HTTP transport and by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import pytest_asyncio

import algomesh
from algomesh import errors
from algomesh.clients import AsyncClient
from algomesh.content import Content
from algomesh_broker import platform, subjects
from algomesh_broker.connection import Message
from algomesh_broker.names import VersionId
from algomesh_services.gateway.service import Address, serving
from algomesh_services.gateway.settings import Settings
from tests.conditions import until
from tests.integration.gateway_fixtures import (
    ADMIN_KEY,
    Served,
    StandIn,
    answering,
    echo,
    eventually,
    keep_silent,
    served,
)
from tests.integration.registry_fixtures import ask

pytestmark = pytest.mark.integration
BEARER = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, postgres: str) -> AsyncIterator[Served]:
    async with served(tmp_path, postgres) as there:
        yield there


@pytest_asyncio.fixture
async def mesh(gateway: Served) -> AsyncIterator[AsyncClient]:
    async with algomesh.connect(ADMIN_KEY, gateway.url) as client:
        yield client


@pytest.mark.parametrize("value", ["naïve ☃\n", "", {"a": [1, None, "é"]}, None, 42, b"\x00\xff" * 700, b""])
async def test_a_value_travels_through_http_unchanged(mesh: AsyncClient, value: object) -> None:
    response = await mesh.algo("demo/echo").pipe(value)

    assert response.result == value
    assert type(response.result) is type(value)


async def test_an_array_travels_through_http_unchanged(mesh: AsyncClient) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)

    response = await mesh.algo("demo/echo").pipe(array)

    assert np.array_equal(response.result, array)
    assert response.result.dtype == array.dtype


async def test_metadata_says_what_ran(mesh: AsyncClient, gateway: Served) -> None:
    metadata = (await mesh.algo("Demo/Echo").pipe("x")).metadata

    assert metadata.algorithm == "demo/echo"
    assert metadata.version == "0.1.0"
    assert metadata.run_id == gateway.echo.calls[-1].run
    assert metadata.attempts == 1
    assert metadata.compute_s == pytest.approx(0.0015)
    assert metadata.duration > 0


@pytest.mark.parametrize("reference", ["demo/echo/0.1.0", "demo/echo/0.1", "demo/echo/latest", "algo://demo/echo"])
async def test_every_form_of_reference_resolves(mesh: AsyncClient, reference: str) -> None:
    assert (await mesh.algo(reference).pipe("x")).result == "x"


@pytest.mark.parametrize(
    ("reference", "kind", "says"),
    [
        ("demo/ecko", errors.UnknownAlgorithm, "demo/echo"),
        ("demo/echo/9.9.9", errors.UnknownVersion, "0.1.0"),
        ("demo/fail", errors.AlgorithmError, "demo failure"),
    ],
)
async def test_errors_arrive_as_their_own_class(
    mesh: AsyncClient, reference: str, kind: type[errors.MeshError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        await mesh.algo(reference).pipe("x")


async def test_an_algorithms_error_keeps_its_type_and_stage(mesh: AsyncClient) -> None:
    with pytest.raises(errors.AlgorithmError) as caught:
        await mesh.algo("demo/fail").pipe("x")

    assert caught.value.error_type == "InputError"
    assert caught.value.stage == "demo/fail/0.1.0"


async def test_the_callers_time_is_kept(mesh: AsyncClient, gateway: Served) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await mesh.algo("demo/slow").pipe("x", timeout=0.2)

    assert gateway.slow.calls[-1].time_left_ms <= 200
    await until(lambda: gateway.slow.cancels)


async def test_a_key_may_call_only_what_its_scopes_say(gateway: Served) -> None:
    key = await gateway.mesh.key("call:text/*")

    async with algomesh.connect(key, gateway.url) as client:
        with pytest.raises(errors.PermissionDenied):
            await client.algo("demo/echo").pipe("x")

    assert not gateway.echo.calls


async def test_an_unknown_key_is_refused(gateway: Served) -> None:
    async with algomesh.connect("wrong-" + ADMIN_KEY, gateway.url) as client:
        with pytest.raises(errors.Unauthenticated):
            await client.algo("demo/echo").pipe("x")


async def test_each_key_calls_in_its_own_name(gateway: Served) -> None:
    key = await gateway.mesh.key("call:demo/*")
    async with algomesh.connect(key, gateway.url) as client:
        await client.algo("demo/echo").pipe("x")

    assert gateway.echo.calls[-1].root_caller == f"k~{key.split('_')[1]}"


async def test_many_first_requests_of_one_key_share_one_connection(gateway: Served) -> None:
    key = await gateway.mesh.key("call:demo/*")

    answers = await asyncio.gather(*[gateway.post("/mesh/v1/call/demo/echo", "x", key=key) for _ in range(50)])

    assert {status for status, _, _ in answers} == {200}
    assert len({call.session for call in gateway.echo.calls}) == 1


async def test_a_client_that_goes_cancels_its_run(gateway: Served) -> None:
    request = asyncio.create_task(gateway.post("/mesh/v1/call/demo/slow", "x"))
    await until(lambda: gateway.slow.calls)
    # The gateway must have heard which instance has it before it can send the cancel there.
    await asyncio.sleep(0.1)

    request.cancel()

    await until(lambda: gateway.slow.cancels)
    assert gateway.slow.cancels[0].run == gateway.slow.calls[0].run


async def test_calls_under_way_end_when_their_key_is_revoked(gateway: Served) -> None:
    key = await gateway.mesh.key("call:demo/*", name="leaver")
    request = asyncio.create_task(gateway.post("/mesh/v1/call/demo/slow", "x", key=key))
    await until(lambda: gateway.slow.calls)

    await _revoke(gateway, "leaver")
    status, body, _ = await asyncio.wait_for(request, 10)

    assert (status, body["code"]) == (401, "unauthenticated")
    assert (await gateway.post("/mesh/v1/call/demo/echo", key=key))[0] == 401


async def test_the_mesh_answers_503_while_nats_is_away_and_200_when_it_is_back(gateway: Served) -> None:
    await gateway.post("/mesh/v1/call/demo/echo")
    await gateway.mesh.server.stop()

    status, body, answer = await gateway.post("/mesh/v1/call/demo/echo")
    ready, _ = await gateway.get("/readyz")
    alive, _ = await gateway.get("/healthz")
    await gateway.mesh.server.start()

    assert (status, body["code"], ready, alive) == (503, "unreachable", 503, 200)
    assert "Retry-After" in answer.headers

    async def is_back() -> bool:
        return (await gateway.post("/mesh/v1/call/demo/echo"))[0] == 200

    await eventually(is_back, 15)


async def test_a_call_under_way_survives_a_restart_of_nats(gateway: Served) -> None:
    slow = await gateway.stand_in("demo/wait/1.0.0", keep_silent, "test-9")
    request = asyncio.create_task(gateway.post("/mesh/v1/call/demo/wait", "kept"))
    await until(lambda: slow.calls)

    await gateway.mesh.server.kill()
    slow.behave = echo
    await gateway.mesh.server.start()
    status, body, _ = await asyncio.wait_for(request, 30)

    assert (status, body) == (200, b"kept")


async def test_a_call_that_finds_no_stream_to_wait_in_finds_the_instance_that_comes(gateway: Served) -> None:
    late = VersionId.parse("demo/late/1.0.0")
    await gateway.mesh.publish(await gateway.mesh.admin(), str(late))
    await gateway.until_known(late.algorithm)
    demands: list[Message] = []
    await (await gateway.mesh.program("launcher")).subscribe(subjects.ALL_DEMAND, demands.append)
    request = asyncio.create_task(gateway.post("/mesh/v1/call/demo/late", "kept"))
    await until(lambda: demands)

    await StandIn(await gateway.mesh.instance(str(late), "test-10"), late, echo).start()
    status, body, _ = await asyncio.wait_for(request, 30)

    assert (status, body) == (200, b"kept")


async def test_what_an_instance_says_cannot_break_out_of_a_header(gateway: Served) -> None:
    evil = await gateway.stand_in(
        "demo/evil/1.0.0", answering(Content("text", "", b"hi"), "1.0.0\r\nSet-Cookie: a=b"), "test-9"
    )

    status, body, answer = await gateway.post("/mesh/v1/call/demo/evil")
    evil.behave = answering(Content("tensor", "numpy/float32/3\r\nX: y", b"0" * 12))
    bad, refusal, _ = await gateway.post("/mesh/v1/call/demo/evil")

    assert (status, body) == (200, b"hi")
    assert "Set-Cookie" not in answer.headers
    assert (bad, refusal["code"]) == (422, "bad_output")


async def test_the_listing_names_versions_newest_first(gateway: Served) -> None:
    await gateway.mesh.publish(await gateway.mesh.admin(), "demo/echo/0.2.0")

    async def listed() -> list[str]:
        _, body = await gateway.get("/v1/algorithms")
        entry = next(entry for entry in body["algorithms"] if entry["algorithm"] == "demo/echo")
        return [version["version"] for version in entry["versions"]]

    async def is_listed() -> bool:
        return await listed() == ["0.2.0", "0.1.0"]

    await eventually(is_listed)
    assert (await gateway.get("/v1/algorithms", key=None))[0] == 401


async def test_the_address_file_says_where_it_listens(gateway: Served) -> None:
    file = gateway.mesh.settings.state / "run" / "gateway.json"

    said = json.loads(file.read_text())

    assert said["port"] == gateway.address.port
    assert gateway.address.port > 0


async def test_stopping_finishes_what_is_in_flight_and_refuses_the_rest(gateway: Served) -> None:
    settings = Settings(nats=gateway.mesh.url, state=gateway.mesh.settings.state, port=0)
    leave = asyncio.Event()
    addresses: asyncio.Queue[Address] = asyncio.Queue()

    async def serve() -> None:
        async with serving(settings) as address:
            addresses.put_nowait(address)
            await leave.wait()

    stopping = asyncio.create_task(serve())
    address = await addresses.get()

    async def is_ready() -> bool:
        async with gateway.http.get(f"{address.url}/readyz") as answer:
            return answer.status == 200

    await eventually(is_ready)
    request = asyncio.create_task(gateway.http.post(f"{address.url}/mesh/v1/call/demo/slow", headers=BEARER, data=b"x"))
    await until(lambda: gateway.slow.calls)
    call = gateway.slow.calls[-1]

    leave.set()
    await until(lambda: not settings.address_file.exists())
    gateway.slow.result(call.root_caller, call, Content("text", "", b"finished"))
    async with await request as answer:
        assert (answer.status, await answer.read()) == (200, b"finished")
    await asyncio.wait_for(stopping, 5)

    with pytest.raises(aiohttp.ClientConnectorError):
        await gateway.http.get(f"{address.url}/healthz")


async def _revoke(gateway: Served, name: str) -> None:
    await ask(await gateway.mesh.admin(), "key-revoke", platform.KeyRevoke(key=name), platform.Done)
