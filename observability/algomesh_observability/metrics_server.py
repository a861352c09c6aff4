"""Serves `/metrics` of a program, where ALGOMESH_METRICS says: `host:port`, port 0 for any; nothing when it is empty.

`async with serving_metrics():` is all a program does. What is shown is collected on the program's
loop, in a millisecond or so, and written out beside it. Metrics never stop a program: while the address is taken it is
tried again, and a request that dawdles is cut off. There is no password: bind what only you and Prometheus can reach.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from algomesh_observability.logger import get_logger
from algomesh_observability.metrics import REGISTRY, Registry
from algomesh_observability.metrics_program import program_metrics

log = get_logger("algomesh.metrics")

VARIABLE: Final = "ALGOMESH_METRICS"
DEFAULT_HOST: Final = "127.0.0.1"
HEAD_S: Final = 5.0
"""How long a request may take to come, and an answer to be taken."""
_RENDER_S: Final = 30.0
_HEAD_BYTES: Final = 8 * 2**10
_AT_ONCE: Final = 8
_RETRY_S: Final = 2.0
_PLAIN: Final = "text/plain; charset=utf-8"


class BadAddress(ValueError):
    """ALGOMESH_METRICS is not an address."""


class Address(NamedTuple):
    """Where metrics are served, or are to be: port 0 is any."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The page's address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"


def metrics_address(environment: Mapping[str, str] = os.environ) -> Address | None:
    """The address in ALGOMESH_METRICS; None when it is empty or not there. Raises BadAddress."""
    text = environment.get(VARIABLE, "").strip()
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise BadAddress(f"{VARIABLE}={text!r} is not an address; write host:port, as in 127.0.0.1:9464")
    host = host.removeprefix("[").removesuffix("]")
    return Address(host or DEFAULT_HOST, int(port))


@asynccontextmanager
async def serving_metrics(
    address: Address | None = None, registry: Registry = REGISTRY
) -> AsyncIterator["MetricsServer | None"]:
    """Serve the metrics of this process while the block runs.

    `address` is that of the environment by default; without one nothing is served. Raises BadAddress.
    """
    address = address or metrics_address()
    if address is None:
        yield None
        return
    forget = registry.add_source(program_metrics())
    server = MetricsServer(registry, address)
    opening = asyncio.create_task(server.open(), name="metrics")
    try:
        yield server
    finally:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await server.close()
        forget()


class MetricsServer:
    """A small HTTP server for one page. `address` is where it listens, None until it does."""

    def __init__(self, registry: Registry, wanted: Address) -> None:
        self._registry, self._wanted = registry, wanted
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self.address: Address | None = None
        self.is_open = asyncio.Event()

    async def open(self) -> None:
        """Listen; tries until it can."""
        said = ""
        while self._server is None:
            try:
                self._server = await asyncio.start_server(
                    self._on_connection, self._wanted.host, self._wanted.port, limit=_HEAD_BYTES
                )
            except OSError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("metrics_not_served", address=self._wanted.url, error=said)
                await asyncio.sleep(_RETRY_S)
        self.address = Address(self._wanted.host, self._server.sockets[0].getsockname()[1])
        self.is_open.set()
        log.info("metrics_served", address=self.address.url)

    async def close(self) -> None:
        """Listen no more, and cut off who is being answered."""
        if self._server is not None:
            self._server.close()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(HEAD_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                async with asyncio.timeout(_RENDER_S):
                    answer = await self._answer(head)
                async with asyncio.timeout(HEAD_S):
                    writer.write(answer)
                    await writer.drain()
        except asyncio.CancelledError:
            writer.transport.abort()  # who closes us waits for nobody
        finally:
            self._answering.discard(task)
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        line, *fields = head.decode("latin-1").split("\r\n")
        method, _, target = line.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", _PLAIN, b"only GET\n", "Allow: GET, HEAD\r\n")
        if path not in ("/metrics", "/"):
            return _response("404 Not Found", _PLAIN, b"what there is, is /metrics\n")
        if len(self._answering) > _AT_ONCE:
            return _response("503 Service Unavailable", _PLAIN, b"too many ask at once\n")
        from algomesh_observability.metrics_page import render

        page = await asyncio.to_thread(render, self._registry.collect(), _header(fields, "accept"))
        return _response("200 OK", page.content_type, page.body, is_head=method == "HEAD")


def _header(fields: list[str], wanted: str) -> str:
    for field in fields:
        name, _, value = field.partition(":")
        if name.strip().lower() == wanted:
            return value.strip()
    return ""


def _response(status: str, content_type: str, body: bytes, more: str = "", *, is_head: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}"
    return (head + "Connection: close\r\n\r\n").encode("latin-1") + (b"" if is_head else body)
