"""Streams: the parts of a run as they come, as server-sent events or as lines of JSON.

`POST /mesh/v1/stream/{owner}/{name}[/{version}]`, also GET with `?input=` for a browser's EventSource, and
`POST /mesh/v1/stream` with a pipeline. Until the first part, or the first sign of life, an error has its own status;
later it is the last event. A reader that is slow is waited for, and so is the algorithm that writes; one that has gone
ends the run.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog
from aiohttp import hdrs, web
from structlog.contextvars import bind_contextvars

from algomesh import errors, http_face
from algomesh.clients import check_timeout
from algomesh.content import Content
from algomesh.nats_transport import NatsTransport
from algomesh.pipeline import Pipeline, value_of
from algomesh.response import Metadata
from algomesh_services.gateway.answers import described
from algomesh_services.gateway.event_lines import BEAT, Form, last_line, part_line
from algomesh_services.gateway.intake import Intake, read_key, read_reference, read_seconds, read_timeout
from algomesh_services.gateway.keys import KeyPool

log = structlog.get_logger("algomesh.gateway")

_STALLED_S: Final = 5.0


class StreamFace:
    """Runs that are read part by part. `beat_s`: seconds of silence after which a sign of life is sent."""

    def __init__(self, keys: KeyPool, intake: Intake, beat_s: float) -> None:
        self._keys, self._intake, self._beat_s = keys, intake, beat_s

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Stream one algorithm. Raises MeshError before the first part."""
        reference = read_reference(request)
        bind_contextvars(algorithm=str(reference))
        answer = _Answer(request, read_timeout(request))
        try:
            async with (
                self._keys.lease(read_key(request), request.remote or "") as transport,
                self._intake.content(request) as content,
            ):
                await self._send(answer, transport, value_of(reference), content)
        except Exception as error:
            await answer.fail(error)
        return answer.response

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Stream one algorithm on a text in the address, as events, for who can only GET. Raises MeshError."""
        reference = read_reference(request)
        bind_contextvars(algorithm=str(reference))
        if "Last-Event-ID" in request.headers:
            # An EventSource that comes again: there is nothing to go on with, and 204 has it stop.
            return web.Response(status=204)
        text = request.query.get("input")
        if text is None or not http_face.accepts(request.headers.get(hdrs.ACCEPT, ""), http_face.SSE_MEDIA):
            raise errors.BadInput(
                "GET is for EventSource: ?input=TEXT and `Accept: text/event-stream`; else POST the input as the body"
            )
        answer = _Answer(request, _timeout_of_query(request))
        try:
            async with self._keys.lease(read_key(request), request.remote or "") as transport:
                await self._send(answer, transport, value_of(reference), Content("text", "", text.encode()))
        except Exception as error:
            await answer.fail(error)
        return answer.response

    async def stream_pipeline(self, request: web.Request) -> web.StreamResponse:
        """Stream the pipeline that a form brings. Raises MeshError before the first part."""
        answer = _Answer(request, read_timeout(request))
        try:
            async with (
                self._keys.lease(read_key(request), request.remote or "") as transport,
                self._intake.form(request) as (pipeline, content),
            ):
                await self._send(answer, transport, pipeline, content)
        except Exception as error:
            await answer.fail(error)
        return answer.response

    async def _send(self, answer: "_Answer", transport: NatsTransport, pipeline: Pipeline, content: Content) -> None:
        told: list[Metadata] = []
        streaming = transport.stream(pipeline, content, answer.timeout_s, None, told.append)
        async with aclosing(streaming) as parts:
            while (part := await self._next(parts, answer)) is not None:
                await answer.part(part)
        bind_contextvars(run=told[0].run_id)
        await answer.end(told[0])

    async def _next(self, parts: AsyncGenerator[Content, None], answer: "_Answer") -> Content | None:
        """The next part, however long it takes; None at the end."""
        taking = asyncio.ensure_future(anext(parts, None))
        try:
            while not taking.done():
                await asyncio.wait({taking}, timeout=self._beat_s)
                if not taking.done():
                    await answer.beat()
            return taking.result()
        finally:
            if not taking.done():
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)


class _Answer:
    """The answer as it is written; a client that does not read it in its own time is cut off."""

    def __init__(self, request: web.Request, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        accept = request.headers.get(hdrs.ACCEPT, "")
        self._form: Form = "sse" if http_face.accepts(accept, http_face.SSE_MEDIA) else "ndjson"
        self._keeps_bundles = http_face.accepts(accept, http_face.BUNDLE_MEDIA)
        self._request = request
        self._patience = asyncio.get_running_loop().time() + timeout_s + _STALLED_S
        self._parts = 0
        media = http_face.SSE_MEDIA if self._form == "sse" else http_face.NDJSON_MEDIA
        headers = {
            hdrs.CONTENT_TYPE: f"{media}; charset=utf-8",
            hdrs.CACHE_CONTROL: "no-store",
            hdrs.SERVER: "algomesh",
            "X-Content-Type-Options": "nosniff",
            "X-Accel-Buffering": "no",
        }
        self.response = web.StreamResponse(headers=headers)

    async def part(self, part: Content) -> None:
        """Write a part; returns when the client has room for more. Raises BadOutput."""
        await self._write(await part_line(self._form, self._parts, part, keeps_bundles=self._keeps_bundles))
        self._parts += 1

    async def beat(self) -> None:
        """Write that we are still here, for proxies that close what is silent."""
        await self._write(BEAT[self._form])

    async def end(self, metadata: Metadata) -> None:
        """Write the end."""
        await self._write(last_line(self._form, "end", metadata))
        await self.response.write_eof()

    async def fail(self, error: Exception) -> None:
        """Write an error as the last event; raise it where nothing has been written yet."""
        if not self.response.prepared or isinstance(error, ConnectionError):
            raise error
        if not isinstance(error, errors.MeshError):
            log.error("stream_failed", exc_info=error)
            error = errors.MeshError("the gateway failed at this; its log says why")
        bind_contextvars(code=error.code)
        await self._write(last_line(self._form, "error", described(error)))
        await self.response.write_eof()

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout_at(self._patience):
                if not self.response.prepared:
                    await self.response.prepare(self._request)
                await self.response.write(data)
        except TimeoutError as error:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client does not read its answer") from error


def _timeout_of_query(request: web.Request) -> float:
    text = request.query.get("timeout")
    if text is None:
        return read_timeout(request)
    seconds = read_seconds(text, "timeout")
    return check_timeout(seconds, seconds)
