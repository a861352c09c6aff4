"""`client()` and `connect()`: the two faces of one thing, for threads and for asyncio.

client = algomesh.client("YOUR_API_KEY")
print(client.algo("text/clean").pipe("a  b").result)

async with algomesh.connect("YOUR_API_KEY") as mesh:
    print((await mesh.algo("text/clean").pipe("a  b")).result)
"""

import os
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from algomesh import content, errors
from algomesh.http_transport import HttpTransport
from algomesh.loop_thread import LoopThread
from algomesh.nats_transport import NatsTransport
from algomesh.response import Response
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

    def algo(self, reference: str) -> "AsyncAlgo":
        """An algorithm by its reference, `owner/name` or `owner/name/1.2.0`. Raises BadReference."""
        return AsyncAlgo(self, parse_reference(reference))

    async def call(self, reference: Reference, value: Any, timeout: float | None) -> Response:
        """Run one algorithm; see `AsyncAlgo.pipe`."""
        return await self._transport.call(
            reference, encode_input(value), check_timeout(timeout, self._timeout_s), self._origin
        )


class AsyncAlgo:
    """One algorithm of an AsyncClient."""

    __slots__ = ("_client", "reference")

    def __init__(self, client: AsyncClient, reference: Reference) -> None:
        self._client = client
        self.reference = reference

    async def pipe(self, value: Any, *, timeout: float | None = None) -> Response:
        """Run the algorithm on `value`: text, bytes, JSON, an array, a dataclass, or another Response.

        timeout: seconds until the answer must be there, a cold start included; 300 by default.
        Raises MeshError; each kind of it says what to do.
        """
        return await self._client.call(self.reference, value, timeout)

    def __repr__(self) -> str:
        return f"<algo {self.reference}>"


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
    try:
        yield AsyncClient(transport, check_timeout(timeout, timeout))
    finally:
        await transport.close()


class Client:
    """The mesh for plain code; safe to use from several threads. Made by `client()`."""

    def __init__(self, loop: LoopThread, transport: Transport, timeout_s: float) -> None:
        self._loop = loop
        self._inner = AsyncClient(transport, timeout_s)
        self._closing = threading.Lock()
        self._finalizer = weakref.finalize(self, _shut, loop, transport)

    def algo(self, reference: str) -> "Algo":
        """An algorithm by its reference, `owner/name` or `owner/name/1.2.0`. Raises BadReference."""
        return Algo(self, parse_reference(reference))

    def call(self, reference: Reference, value: Any, timeout: float | None) -> Response:
        """Run one algorithm; see `Algo.pipe`."""
        if not self._finalizer.alive:
            raise errors.Unreachable("this client was closed")
        return self._loop.run(self._inner.call(reference, value, timeout))

    def close(self) -> None:
        """Let go of the connection; calls under way fail. Also done when the client is forgotten."""
        with self._closing:
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Algo:
    """One algorithm of a Client."""

    __slots__ = ("_client", "reference")

    def __init__(self, client: Client, reference: Reference) -> None:
        self._client = client
        self.reference = reference

    def pipe(self, value: Any, *, timeout: float | None = None) -> Response:
        """Run the algorithm on `value`: text, bytes, JSON, an array, a dataclass, or another Response.

        timeout: seconds until the answer must be there, a cold start included; 300 by default.
        Raises MeshError; each kind of it says what to do.
        """
        return self._client.call(self.reference, value, timeout)

    def __repr__(self) -> str:
        return f"<algo {self.reference}>"


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


def encode_input(value: Any) -> content.Content:
    """Encode what goes into a call; a Response goes on as it came."""
    if isinstance(value, Response):
        return value.content
    try:
        return content.encode(value)
    except errors.BadOutput as error:
        raise errors.BadInput(f"the input cannot travel: {error.message.replace('return ', 'send ')}") from error


def check_timeout(timeout: float | None, default_s: float) -> float:
    """Seconds. Raises BadInput for what is not a positive number."""
    if timeout is None:
        return default_s
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout <= 7 * 86400:
        raise errors.BadInput(f"timeout={timeout!r} is not a number of seconds above 0, at most a week")
    return float(timeout)


def _shut(loop: LoopThread, transport: Transport) -> None:
    loop.finish(transport.close())
