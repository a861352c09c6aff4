"""`client()` and `connect()`: the two faces of one thing, for threads and for asyncio.

client = algomesh.client("YOUR_API_KEY")
print(client.algo("text/clean").pipe("a  b").result)

async with algomesh.connect("YOUR_API_KEY") as mesh:
    print((await mesh.algo("text/clean").pipe("a  b")).result)
"""

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Self

from algomesh import errors
from algomesh.compiling import check_fit
from algomesh.composing import Handle
from algomesh.content import Content
from algomesh.http_transport import HttpTransport
from algomesh.inputs import comes_in_items, encode_input, given
from algomesh.loop_thread import LoopThread
from algomesh.nats_transport import NatsTransport
from algomesh.pipeline import Operand, Pipeline, Stage, value_of
from algomesh.response import Response
from algomesh.result_stream import AsyncStream, Stream, Tell
from algomesh.started import AsyncRun, Run
from algomesh.transport import Origin, Transport
from algomesh_broker.errors import BadName
from algomesh_broker.identity import Identity
from algomesh_broker.names import Reference

DEFAULT_URL = "nats://127.0.0.1:4222"
DEFAULT_TIMEOUT_S = 300.0


class AsyncClient:
    """The mesh for asyncio code; made by `connect()`."""

    def __init__(
        self, transport: Transport, timeout_s: float = DEFAULT_TIMEOUT_S, origin: Origin | None = None
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._origin = origin
        self._streams: weakref.WeakSet[AsyncStream] = weakref.WeakSet()
        self._started: set[asyncio.Task[Response]] = set()

    def algo(self, of: Operand) -> "AsyncAlgo":
        """What can be called: an algorithm by its reference `owner/name[/1.2.0]`, a decorated one, or a pipeline.

        Raises BadReference, and BadInput for a pipeline whose neighbours cannot fit, as far as the directory knows.
        """
        pipeline = value_of(of)
        self.check(pipeline)
        return AsyncAlgo(self, pipeline)

    def check(self, pipeline: Pipeline) -> None:
        """Compare the neighbours in a pipeline by what the directory says of them. Raises BadInput."""
        if not isinstance(pipeline, Stage) and isinstance(self._transport, NatsTransport):
            check_fit(pipeline, self._transport.directory.resolve)

    def call(self, pipeline: Pipeline, value: Any, timeout: float | None) -> Coroutine[Any, Any, Response]:
        """Run a pipeline; see `AsyncAlgo.pipe`. No coroutine itself: one that only waits for the next takes time."""
        limit_s = self._timeout_s if timeout is None else check_timeout(timeout, self._timeout_s)
        if comes_in_items(pipeline, value):
            return self._call_with_items(pipeline, value, limit_s)
        return self._transport.call(pipeline, encode_input(value), limit_s, self._origin)

    async def call_later(self, pipeline: Pipeline, value: Any, timeout: float | None) -> Response:
        """As `call`, of which nothing happens before this is awaited: for who is in another thread."""
        return await self.call(pipeline, value, timeout)

    async def _call_with_items(self, pipeline: Pipeline, value: Any, limit_s: float) -> Response:
        async with given(pipeline, value, limit_s) as (items, left_s):
            return await self._transport.call(pipeline, items, left_s, self._origin)

    def start(self, pipeline: Pipeline, value: Any, timeout: float | None) -> "asyncio.Task[Response]":
        """Begin to run a pipeline; see `AsyncAlgo.start`."""
        task = asyncio.get_running_loop().create_task(self.call_later(pipeline, value, timeout), name="algomesh-run")
        self._started.add(task)
        task.add_done_callback(self._started.discard)
        return task

    def stream(self, pipeline: Pipeline, value: Any, timeout: float | None) -> AsyncStream:
        """Run a pipeline, part by part; see `AsyncAlgo.stream`."""
        limit_s = check_timeout(timeout, self._timeout_s)
        opened = AsyncStream(lambda told: self._parts(pipeline, value, limit_s, told))
        self._streams.add(opened)
        return opened

    async def leave(self) -> None:
        """End the streams that are open still, and the runs that were started."""
        started = list(self._started)
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)
        for opened in list(self._streams):
            with suppress(RuntimeError):  # somebody waits for its next part, and will get an error
                await opened.aclose()

    async def _parts(self, pipeline: Pipeline, value: Any, limit_s: float, told: Tell) -> AsyncGenerator[Content, None]:
        async with (
            given(pipeline, value, limit_s) as (items, left_s),
            aclosing(self._transport.stream(pipeline, items, left_s, self._origin, told)) as parts,
        ):
            async for part in parts:
                yield part


class AsyncAlgo(Handle):
    """One algorithm, or pipeline, of an AsyncClient; composes with `|`, `&` and `.each()`."""

    __slots__ = ("_client", "_pipeline")

    def __init__(self, client: AsyncClient, pipeline: Pipeline) -> None:
        self._client = client
        self._pipeline = pipeline

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that it runs."""
        return self._pipeline

    @property
    def owner(self) -> AsyncClient:
        """The client that it calls with."""
        return self._client

    def bound(self, pipeline: Pipeline) -> Self:
        """Another pipeline of the same client. Raises BadInput."""
        self._client.check(pipeline)
        return type(self)(self._client, pipeline)

    async def pipe(self, value: Any, *, timeout: float | None = None) -> Response:
        """Run the algorithm on `value`: text, bytes, JSON, an array, a dataclass, or another Response.

        For a pipeline that begins with `.each()` it may be an iterator, asynchronous or not, whose items are read as
        there is room for them; elsewhere an iterator is made a list first.

        timeout: seconds until the answer must be there, a cold start included; 300 by default.
        Raises MeshError; each kind of it says what to do.
        """
        return await self._client.call(self._pipeline, value, timeout)

    def start(self, value: Any, *, timeout: float | None = None) -> AsyncRun:
        """Begin to run the algorithm on `value`, as `pipe` does, without waiting for it.

        The run goes on until it has ended, is cancelled, or the client is closed. Raises BadInput.
        """
        return AsyncRun(self._client.start(self._pipeline, value, timeout))

    def stream(self, value: Any, *, timeout: float | None = None) -> AsyncStream:
        """Run the algorithm and iterate over what it gives while it runs: what it yields, the results of an `each`
        at the pipeline's end, or its one result.

            async for part in algo.stream(value): ...

        `value` as for `pipe`. The run begins with the first part asked for; a reader that takes its time holds up
        the writer. Leaving early (`aclose`, `async with`, or forgetting it) cancels the run.
        timeout: seconds for all of it. Raises MeshError, also from the iteration.
        """
        return self._client.stream(self._pipeline, value, timeout)

    def __repr__(self) -> str:
        return f"<algo {self._pipeline!r}>"


@asynccontextmanager
async def connect(
    api_key: str | None = None, url: str | None = None, *, timeout: float = DEFAULT_TIMEOUT_S
) -> AsyncIterator[AsyncClient]:
    """Connect to a mesh, for asyncio.

    api_key: else ALGOMESH_API_KEY. url: `nats://…` (direct) or `http(s)://…` (through the gateway), else
    ALGOMESH_URL, else nats://127.0.0.1:4222. timeout: default of every `pipe`, in seconds.
    Raises Unauthenticated, Unreachable.
    """
    transport = await open_transport(api_key, url)
    client = AsyncClient(transport, check_timeout(timeout, timeout))
    try:
        yield client
    finally:
        await _leave(client, transport)


class Client:
    """The mesh for plain code; safe to use from several threads. Made by `client()`."""

    def __init__(self, loop: LoopThread, transport: Transport, timeout_s: float) -> None:
        self._loop = loop
        self._inner = AsyncClient(transport, timeout_s)
        self._closing = threading.Lock()
        self._finalizer = weakref.finalize(self, _shut, loop, self._inner, transport)

    def algo(self, of: Operand) -> "Algo":
        """What can be called: an algorithm by its reference `owner/name[/1.2.0]`, a decorated one, or a pipeline.

        Raises BadReference, and BadInput for a pipeline whose neighbours cannot fit, as far as the directory knows.
        """
        pipeline = value_of(of)
        self.check(pipeline)
        return Algo(self, pipeline)

    def check(self, pipeline: Pipeline) -> None:
        """Compare the neighbours in a pipeline by what the directory says of them. Raises BadInput."""
        if not isinstance(pipeline, Stage) and self._finalizer.alive:
            self._loop.run(self._check(pipeline))  # the directory belongs to the loop's thread

    def call(self, pipeline: Pipeline, value: Any, timeout: float | None) -> Response:
        """Run a pipeline; see `Algo.pipe`."""
        self._check_open()
        return self._loop.run(self._inner.call_later(pipeline, value, timeout))

    def start(self, pipeline: Pipeline, value: Any, timeout: float | None) -> "concurrent.futures.Future[Response]":
        """Begin to run a pipeline; see `Algo.start`."""
        self._check_open()
        return self._loop.begin(self._inner.call_later(pipeline, value, timeout))

    def stream(self, pipeline: Pipeline, value: Any, timeout: float | None) -> Stream:
        """Run a pipeline, part by part; see `Algo.stream`."""
        self._check_open()
        return Stream(self._inner.stream(pipeline, value, timeout), self._loop.begin, self)

    def close(self) -> None:
        """Let go of the connection; calls under way fail. Also done when the client is forgotten."""
        with self._closing:
            self._finalizer()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise errors.Unreachable("this client was closed")

    async def _check(self, pipeline: Pipeline) -> None:
        self._inner.check(pipeline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Algo(Handle):
    """One algorithm, or pipeline, of a Client; composes with `|`, `&` and `.each()`."""

    __slots__ = ("_client", "_pipeline")

    def __init__(self, client: Client, pipeline: Pipeline) -> None:
        self._client = client
        self._pipeline = pipeline

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that it runs."""
        return self._pipeline

    @property
    def owner(self) -> Client:
        """The client that it calls with."""
        return self._client

    def bound(self, pipeline: Pipeline) -> Self:
        """Another pipeline of the same client. Raises BadInput."""
        self._client.check(pipeline)
        return type(self)(self._client, pipeline)

    def pipe(self, value: Any, *, timeout: float | None = None) -> Response:
        """Run the algorithm on `value`: text, bytes, JSON, an array, a dataclass, or another Response.

        For a pipeline that begins with `.each()` it may be an iterator, asynchronous or not, whose items are read as
        there is room for them; elsewhere an iterator is made a list first.

        timeout: seconds until the answer must be there, a cold start included; 300 by default.
        Raises MeshError; each kind of it says what to do.
        """
        return self._client.call(self._pipeline, value, timeout)

    def start(self, value: Any, *, timeout: float | None = None) -> Run:
        """Begin to run the algorithm on `value`, as `pipe` does, without waiting for it.

        The run goes on until it has ended, is cancelled, or the client is closed. Raises BadInput.
        """
        return Run(self._client.start(self._pipeline, value, timeout))

    def stream(self, value: Any, *, timeout: float | None = None) -> Stream:
        """Run the algorithm and iterate over what it gives while it runs: what it yields, the results of an `each`
        at the pipeline's end, or its one result.

            for part in algo.stream(value): ...

        `value` as for `pipe`. The run begins with the first part asked for; a reader that takes its time holds up
        the writer. Leaving early (`break`, `close`, `with`, or forgetting it) cancels the run.
        timeout: seconds for all of it. Raises MeshError, also from the iteration.
        """
        return self._client.stream(self._pipeline, value, timeout)

    def __repr__(self) -> str:
        return f"<algo {self._pipeline!r}>"


def client(api_key: str | None = None, url: str | None = None, *, timeout: float = DEFAULT_TIMEOUT_S) -> Client:
    """Connect to a mesh, for plain code.

    api_key: else ALGOMESH_API_KEY. url: `nats://…` (direct) or `http(s)://…` (through the gateway), else
    ALGOMESH_URL, else nats://127.0.0.1:4222. timeout: default of every `pipe`, in seconds.
    Raises Unauthenticated, Unreachable.
    """
    loop = LoopThread("algomesh-client")
    try:
        transport = loop.run(open_transport(api_key, url))
    except BaseException:
        loop.stop()
        raise
    return Client(loop, transport, check_timeout(timeout, timeout))


async def open_transport(api_key: str | None, url: str | None) -> Transport:
    """The transport that the address asks for."""
    key = api_key or os.environ.get("ALGOMESH_API_KEY", "")
    address = url or os.environ.get("ALGOMESH_URL", "") or DEFAULT_URL
    if not key:
        raise errors.Unauthenticated("no API key: pass one, or set ALGOMESH_API_KEY (`algomesh key create` makes one)")
    key = key.removeprefix("Simple ")
    scheme = address.partition("://")[0]
    if scheme in ("http", "https"):
        return await HttpTransport.open(address, key)
    if scheme in ("nats", "tls"):
        return await NatsTransport.open(address, Identity.of_key(key))
    raise errors.BadReference(f"{address!r} is no address of a mesh; write nats://host:4222 or http://host:8080")


def parse_reference(reference: str) -> Reference:
    """A reference, with the SDK's own error."""
    try:
        return Reference.parse(reference)
    except BadName as error:
        raise errors.BadReference(str(error)) from error


def check_timeout(timeout: float | None, default_s: float) -> float:
    """Seconds. Raises BadInput for what is not a positive number."""
    if timeout is None:
        return default_s
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout <= 7 * 86400:
        raise errors.BadInput(f"timeout={timeout!r} is not a number of seconds above 0, at most a week")
    return float(timeout)


def _shut(loop: LoopThread, inner: AsyncClient, transport: Transport) -> None:
    loop.finish(_leave(inner, transport))


async def _leave(client: AsyncClient, transport: Transport) -> None:
    try:
        await client.leave()
    finally:
        await transport.close()
