"""Calls over HTTP, through the gateway: plain ones by their path, pipelines as a form, streams as lines of JSON."""

import io
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from algomesh import errors, http_face
from algomesh.content import Content
from algomesh.http_wire import error_of, read_line, response_of
from algomesh.inputs import collect
from algomesh.pipeline import Pipeline, Stage
from algomesh.response import Metadata, Response
from algomesh.transport import Input, Origin
from algomesh_observability.tracing import current_header

if TYPE_CHECKING:
    import aiohttp

_SPARE_S = 5.0


class HttpTransport:
    """A pool of HTTP connections to one gateway, under one key."""

    def __init__(self, url: str, api_key: str) -> None:
        try:
            import aiohttp
        except ImportError as error:
            raise errors.MeshError(
                f"{url} is an HTTP address, and aiohttp is not installed: pip install 'algomesh[http]', "
                "or use the mesh's nats:// address"
            ) from error
        self._aiohttp = aiohttp
        self._url = url.rstrip("/")
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {api_key}"},
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
        )

    @classmethod
    async def open(cls, url: str, api_key: str) -> Self:
        """Make the pool; nothing is sent until the first call."""
        return cls(url, api_key)

    async def call(self, pipeline: Pipeline, content: Input, timeout_s: float, origin: Origin | None) -> Response:
        """Run a pipeline, or one algorithm. Raises MeshError; ends within `timeout_s` seconds."""
        began = time.perf_counter()
        accept = f"{http_face.BUNDLE_MEDIA}, */*"
        async with self._post(http_face.CALL_PATH, http_face.PIPE_PATH, pipeline, content, timeout_s, accept) as answer:
            body = await answer.read()
            return response_of(answer.headers, body, time.perf_counter() - began)

    async def stream(
        self,
        pipeline: Pipeline,
        items: Input,
        timeout_s: float,
        origin: Origin | None,
        told: Callable[[Metadata], None],
    ) -> AsyncGenerator[Content, None]:
        """Run a pipeline and give its parts as they come; see `Transport.stream`."""
        began = time.perf_counter()
        accept = f"{http_face.NDJSON_MEDIA}, {http_face.BUNDLE_MEDIA}"
        path = http_face.STREAM_PATH
        async with self._post(path, path, pipeline, items, timeout_s, accept) as answer:
            async for data in _lines(answer.content):
                line = read_line(data)
                if line.error is not None:
                    raise line.error.as_error()
                if line.end is not None:
                    told(replace(line.end, duration=time.perf_counter() - began))
                    return
                yield line.as_content()
        raise errors.InstanceLost(f"the gateway at {self._url} ended the stream before its end; call again")

    async def close(self) -> None:
        """Close the pool."""
        await self._session.close()

    @asynccontextmanager
    async def _post(
        self, plain: str, composed: str, pipeline: Pipeline, given: Input, timeout_s: float, accept: str
    ) -> AsyncIterator["aiohttp.ClientResponse"]:
        """Send one request and give its answer, which is a 200. Raises MeshError."""
        content = await collect(given)
        headers = {"Accept": accept, http_face.TIMEOUT: f"{timeout_s:.3f}", **current_header()}
        data: Any
        stage = ""
        if isinstance(pipeline, Stage) and pipeline.is_plain:
            stage = str(pipeline.target)
            url = f"{self._url}{plain}/{stage}"
            data = io.BytesIO(content.payload)
            headers |= _described(content)
        else:
            url = f"{self._url}{composed}"
            data = self._form(pipeline, content)
        limit = self._aiohttp.ClientTimeout(total=timeout_s + _SPARE_S, sock_connect=5.0)
        try:
            async with self._session.post(url, data=data, headers=headers, timeout=limit) as answer:
                if answer.status != 200:
                    raise error_of(answer.status, await answer.read())
                yield answer
        except errors.MeshError:
            raise
        except TimeoutError as error:
            raise errors.DeadlineExceeded(f"no answer from {self._url} within {timeout_s:g} s", stage=stage) from error
        except self._aiohttp.ClientError as error:
            raise errors.Unreachable(f"no gateway answers at {self._url}: {error}") from error

    def _form(self, pipeline: Pipeline, content: Content) -> "aiohttp.MultipartWriter":
        form = self._aiohttp.MultipartWriter("form-data")
        value = form.append(io.BytesIO(pipeline.to_json()), {"Content-Type": "application/json"})
        value.set_content_disposition("form-data", name="pipeline")
        given = form.append(io.BytesIO(content.payload), _described(content))
        given.set_content_disposition("form-data", name="input")
        return form


def _described(content: Content) -> dict[str, str]:
    """What the headers say of a value."""
    headers = {"Content-Type": http_face.MEDIA[content.content_type]}
    if content.content_type == "tensor":
        headers[http_face.TENSOR] = content.detail
    return headers


async def _lines(stream: "aiohttp.StreamReader") -> AsyncIterator[bytes]:
    """The lines of an answer, of any length, as they come; empty ones only say that the gateway lives."""
    pieces: list[bytes] = []
    async for chunk in stream.iter_any():
        first, *rest = chunk.split(b"\n")
        pieces.append(first)
        for following in rest:
            line = b"".join(pieces)
            pieces = [following]
            if line:
                yield line
