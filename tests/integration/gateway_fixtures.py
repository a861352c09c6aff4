"""A gateway in front of a mesh with a real registry; the test itself stands in for the instances."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from algomesh import content
from algomesh.claiming import Claims
from algomesh.content import Content
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.names import VersionId
from algomesh_services.gateway.service import Address, serving
from algomesh_services.gateway.settings import Settings
from tests.conditions import until
from tests.integration.registry_fixtures import ADMIN_KEY, Mesh, running_mesh

__all__ = ["ADMIN_KEY", "Served", "answering", "echo", "eventually", "keep_silent", "raw_exchange", "served"]

ECHO, FAIL, SLOW = (VersionId.parse(f"demo/{name}/0.1.0") for name in ("echo", "fail", "slow"))


@dataclass
class StandIn:
    """An instance that answers what it is told to; it keeps what it was asked and which cancels it heard."""

    connection: Connection
    version: VersionId
    behave: Callable[["StandIn", messages.Call, str], None]
    calls: list[messages.Call] = field(default_factory=list)
    cancels: list[messages.Cancel] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        await self.connection.subscribe(subjects.calls_of(self.version), self._on_call, subjects.WORKERS)
        await self.connection.subscribe(subjects.controls_of(self.instance), self._on_control)

    @property
    def instance(self) -> str:
        return self.connection.identity.inbox.rpartition(".")[2]

    def answer(self, caller: str, call: messages.Call, reply: messages.Reply) -> None:
        subject = subjects.reply(self.version.caller, caller, call.session, call.call)
        self.connection.publish(subject, codec.encode(reply))

    def result(self, caller: str, call: messages.Call, value: Content, version: str = "") -> None:
        self.answer(
            caller,
            call,
            messages.Result(
                run=call.run,
                attempt=call.attempt,
                instance=self.instance,
                version=version or str(self.version.version),
                content_type=value.content_type,
                detail=value.detail,
                payload=memoryview(value.payload),
                compute_ms=1.5,
            ),
        )

    def _on_call(self, message: Message) -> None:
        call = codec.decode_call(message.data)
        self.calls.append(call)
        self.behave(self, call, subjects.parse_work(message.subject).caller)

    def _on_control(self, message: Message) -> None:
        word = codec.decode_control(message.data)
        if isinstance(word, messages.Cancel):
            self.cancels.append(word)


def echo(stand_in: StandIn, call: messages.Call, caller: str) -> None:
    given = Content(call.content_type, call.detail, call.payload)
    if given.content_type != "claim":
        stand_in.result(caller, call, given)
        return
    task = asyncio.get_running_loop().create_task(_echo_large(stand_in, call, caller, given))
    stand_in.tasks.add(task)
    task.add_done_callback(stand_in.tasks.discard)


async def _echo_large(stand_in: StandIn, call: messages.Call, caller: str, given: Content) -> None:
    """As an instance does: fetch what was put aside, and put the output aside in its own name."""
    claims = Claims(stand_in.connection)
    deadline = asyncio.get_running_loop().time() + 20
    try:
        output = await claims.store(await claims.load(given, deadline), deadline, call.run, "")
    finally:
        claims.close()
    stand_in.result(caller, call, output)


def fail(stand_in: StandIn, call: messages.Call, caller: str) -> None:
    stand_in.answer(
        caller,
        call,
        messages.Failure(
            run=call.run, attempt=call.attempt, code="algorithm_error", message="demo failure",
            stage=str(stand_in.version), error_type="InputError",
        ),
    )  # fmt: skip


def keep_silent(stand_in: StandIn, call: messages.Call, caller: str) -> None:
    stand_in.answer(caller, call, messages.Running(run=call.run, attempt=call.attempt, instance=stand_in.instance))


def answering(value: Content, version: str = "") -> Callable[[StandIn, messages.Call, str], None]:
    def behave(stand_in: StandIn, call: messages.Call, caller: str) -> None:
        stand_in.result(caller, call, value, version)

    return behave


@dataclass
class Served:
    """A gateway and what is behind it."""

    mesh: Mesh
    address: Address
    http: aiohttp.ClientSession
    echo: StandIn
    fail: StandIn
    slow: StandIn
    stack: AsyncExitStack

    async def stop_gateway(self) -> None:
        """Stop the gateway, and nothing else."""
        await self.stack.aclose()

    @property
    def url(self) -> str:
        return self.address.url

    async def stand_in(
        self, reference: str, behave: Callable[[StandIn, messages.Call, str], None], instance: str
    ) -> StandIn:
        """Publish a version and answer its calls; return when the gateway knows it."""
        made = await _stand_in(self.mesh, reference, behave, instance)
        await self.until_known(made.version.algorithm)
        return made

    async def post(
        self, path: str, value: Any = "x", *, key: str | None = ADMIN_KEY, **options: Any
    ) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Send a value as its content type; return the status, the body (JSON if it is JSON), and the answer."""
        encoded = content.encode(value)
        headers = {"Content-Type": _MEDIA[encoded.content_type], **options.pop("headers", {})}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        data = options.pop("data", bytes(encoded.payload))
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.http.post(self.url + path, data=body, headers=headers, **options) as answer:
            is_json = answer.content_type == "application/json"
            return answer.status, await (answer.json() if is_json else answer.read()), answer

    async def get(self, path: str, key: str | None = ADMIN_KEY) -> tuple[int, Any]:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with self.http.get(self.url + path, headers=headers) as answer:
            return answer.status, await answer.json()

    async def until_known(self, algorithm: str) -> None:
        """Wait until the gateway has the algorithm in its directory."""

        async def is_known() -> bool:
            _, body = await self.get("/v1/algorithms")
            return any(entry["algorithm"] == algorithm for entry in body["algorithms"])

        await eventually(is_known)

    async def until_ready(self) -> None:
        async def is_ready() -> bool:
            return (await self.get("/readyz"))[0] == 200

        await eventually(is_ready, 10)


_MEDIA = {"text": "text/plain", "json": "application/json", "binary": "application/octet-stream"}


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_s: float = 5.0, every_s: float = 0.02) -> None:
    """Wait until an async condition holds."""
    wanted: Callable[[], bool | Awaitable[bool]] = condition
    await until(wanted, timeout_s, every_s=every_s)


async def _stand_in(
    mesh: Mesh, reference: str, behave: Callable[[StandIn, messages.Call, str], None], instance: str
) -> StandIn:
    await mesh.publish(await mesh.admin(), reference)
    made = StandIn(await mesh.instance(reference, instance), VersionId.parse(reference), behave)
    await made.start()
    return made


@asynccontextmanager
async def served(folder: Path, postgres: str, **fields: Any) -> AsyncIterator[Served]:
    """A gateway that is ready, in front of demo/echo, demo/fail and demo/slow (which never answers)."""
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(running_mesh(folder, postgres))
        await (await mesh.store("launcher")).ensure_claims()
        echoing, failing, silent = [
            await _stand_in(mesh, str(version), behave, f"test-{number}")
            for number, (version, behave) in enumerate([(ECHO, echo), (FAIL, fail), (SLOW, keep_silent)], 1)
        ]
        settings = replace(Settings(nats=mesh.url, state=mesh.settings.state, port=0, grace_s=2.0), **fields)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        gateway = await stack.enter_async_context(AsyncExitStack())
        address = await gateway.enter_async_context(serving(settings))
        there = Served(mesh, address, http, echoing, failing, silent, gateway)
        await there.until_ready()
        for stand_in in (echoing, failing, silent):
            await there.until_known(stand_in.version.algorithm)
        yield there


async def raw_exchange(address: Address, data: bytes, *, within_s: float = 10.0) -> bytes:
    """Send bytes as they are, and return everything until the gateway closes."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(data)
        async with asyncio.timeout(within_s):
            return await reader.read()
    finally:
        writer.close()
