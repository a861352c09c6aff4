"""Handles of a client: they compose like values, and stay with their client."""

import asyncio
from typing import NoReturn, cast

import pytest

import algomesh
from algomesh.clients import AsyncClient
from algomesh.content import Content
from algomesh.context import RunContext
from algomesh.errors import BadInput, BadReference
from algomesh.pipeline import Pipeline, stage
from algomesh.response import Metadata, Response
from algomesh.transport import Origin, Transport


class Remembering:
    """A transport that answers with its input and remembers what it was asked to run."""

    def __init__(self) -> None:
        self.asked: list[Pipeline] = []

    async def call(self, pipeline: Pipeline, content: Content, timeout_s: float, origin: Origin | None) -> Response:
        self.asked.append(pipeline)
        return Response(content, Metadata(content_type=content.content_type, duration=0.0, run_id="r", version="1.0.0"))

    async def close(self) -> None:
        """Nothing is open."""


@algomesh.algorithm("handle/here", version="1.2.0")
def here(text: str) -> str:
    """Stay."""
    return text


@pytest.fixture
def transport() -> Remembering:
    return Remembering()


@pytest.fixture
def mesh(transport: Remembering) -> AsyncClient:
    return AsyncClient(cast(Transport, transport))


async def test_a_composition_of_handles_is_called_as_one(mesh: AsyncClient, transport: Remembering) -> None:
    clean, report = mesh.algo("text/clean"), mesh.algo("text/report")

    await (clean | (clean & report).each(in_flight=2) | "text/merge" | here).pipe("x")

    expected = stage("text/clean") | (stage("text/clean") & "text/report").each(2) | "text/merge" | here
    assert transport.asked == [expected]


async def test_values_and_references_before_a_handle_become_the_clients(
    mesh: AsyncClient, transport: Remembering
) -> None:
    last = mesh.algo("text/last")

    await ("text/first" | last).pipe("x")
    await (stage("text/first") | last).pipe("x")
    await (here | last).pipe("x")
    await (here & last).pipe("x")
    await ("text/first" & last).pipe("x")
    await mesh.algo(algomesh.all(x=last, y=here)).pipe("x")
    await last.options(timeout=5).pipe("x")

    assert transport.asked == [
        stage("text/first") | "text/last",
        stage("text/first") | "text/last",
        here | "text/last",
        here & stage("text/last"),
        stage("text/first") & "text/last",
        algomesh.all(x="text/last", y=here),
        stage("text/last").options(timeout=5),
    ]


async def test_what_a_client_calls_may_be_written_in_four_ways(mesh: AsyncClient) -> None:
    assert mesh.algo("Text/Clean").pipeline == stage("text/clean")
    assert mesh.algo(here).pipeline == stage("handle/here/1.2.0")
    assert mesh.algo(mesh.algo("text/clean")).pipeline == stage("text/clean")
    assert repr(mesh.algo("text/clean") | here) == "<algo text/clean | handle/here/1.2.0>"
    with pytest.raises(BadReference):
        mesh.algo("nonsense")


async def test_handles_of_two_clients_do_not_mix(mesh: AsyncClient) -> None:
    other = AsyncClient(cast(Transport, Remembering()))

    with pytest.raises(BadInput, match="belong to two clients"):
        _ = mesh.algo("text/clean") | other.algo("text/clean")
    with pytest.raises(BadInput, match="belong to two clients"):
        _ = mesh.algo("text/clean") & other.algo("text/clean")


async def test_a_run_calls_pipelines_as_its_children() -> None:
    class Host:
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()
            self.asked: list[Pipeline] = []

        async def call_child(
            self, context: RunContext, pipeline: Pipeline, value: object, timeout: float | None
        ) -> Response:
            self.asked.append(pipeline)
            return Response(
                Content("json", "", b"1"), Metadata(content_type="json", duration=0.0, run_id="r", version="1.0.0")
            )

        def stream_child(
            self, context: RunContext, pipeline: Pipeline, value: object, timeout: float | None, told: object
        ) -> NoReturn:
            raise NotImplementedError

    host = Host()
    child = RunContext(host, Origin("r", "r", "k~a", 0, 1, 1.0)).client

    response = await (child.algo("text/a") | child.algo("text/b")).each().pipe("x")
    assert response.result == 1
    assert host.asked == [(stage("text/a") | "text/b").each()]
