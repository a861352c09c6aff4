"""The server of /metrics: what it answers, and to whom it does not listen for long."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from algomesh_observability import metrics_server
from algomesh_observability.metrics import Registry
from algomesh_observability.metrics_server import Address, BadAddress, MetricsServer, metrics_address, serving_metrics
from tests.conditions import until

pytestmark = pytest.mark.integration

ANY = Address("127.0.0.1", 0)
GET = b"GET /metrics HTTP/1.1\r\nHost: me\r\n\r\n"


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Address]:
    registry = Registry()
    registry.counter("calls_total", "Calls.").add(3)
    async with serving_metrics(ANY, registry) as server:
        yield await opened(server)


async def opened(server: MetricsServer | None) -> Address:
    assert server is not None
    async with asyncio.timeout(5):
        await server.is_open.wait()
    assert server.address is not None
    return server.address


async def asked(address: Address, request: bytes) -> tuple[str, bytes]:
    """Status line with headers, and body."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return head.decode(), body
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_it_shows_the_programs_metrics_and_those_of_its_process(served: Address) -> None:
    head, body = await asked(served, GET)

    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}" in head
    assert b"\ncalls_total 3.0\n" in body
    assert b"\nprocess_open_fds " in body
    assert b"\nalgomesh_build_info{" in body


async def test_who_asks_for_openmetrics_gets_it(served: Address) -> None:
    head, body = await asked(
        served, b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n"
    )

    assert "Content-Type: application/openmetrics-text" in head
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200"),
        (b"GET /metrics?name=x HTTP/1.1\r\n\r\n", "200"),
        (b"GET /secrets HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"\xff\x00\r\n\r\n", "405"),
    ],
)
async def test_it_answers_what_it_should(served: Address, request_: bytes, status: str) -> None:
    head, body = await asked(served, request_)

    assert head.split()[1] == status
    assert bool(body) is not request_.startswith(b"HEAD")


async def test_a_request_that_dawdles_is_cut_off(served: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "HEAD_S", 0.05)

    head, body = await asked(served, b"GET /metrics HT")

    assert (head, body) == ("", b"")


async def test_a_head_that_does_not_end_is_cut_off(served: Address) -> None:
    with contextlib.suppress(ConnectionError):
        assert await asked(served, b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 10_000) == ("", b"")


async def test_many_may_ask_at_once(served: Address) -> None:
    answers = await asyncio.gather(*(asked(served, GET) for _ in range(20)))

    assert {head.split()[1] for head, _ in answers} <= {"200", "503"}
    assert any(head.startswith("HTTP/1.1 200") for head, _ in answers)


async def test_a_taken_port_is_tried_again_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "_RETRY_S", 0.02)
    async with serving_metrics(ANY, Registry()) as first:
        wanted = await opened(first)
        async with serving_metrics(wanted, Registry()) as second:
            assert second is not None
            await until(lambda: second._server is None)
            assert first is not None
            await first.close()
            assert await opened(second) == wanted


async def test_without_an_address_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALGOMESH_METRICS", raising=False)

    async with serving_metrics() as server:
        assert server is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_the_address_is_read_and_is_loopback_unless_it_says_otherwise(
    text: str, address: tuple[str, int] | None
) -> None:
    assert metrics_address({"ALGOMESH_METRICS": text}) == address


@pytest.mark.parametrize("text", ["here", "1.2.3.4", "host:99999", "host:"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(BadAddress, match="ALGOMESH_METRICS="):
        metrics_address({"ALGOMESH_METRICS": text})
