"""Calls with a value in and a value out, as the SDK's HTTP transport and curl speak them.

`POST /mesh/v1/call/{owner}/{name}[/{version}]` runs one algorithm, `POST /mesh/v1/pipe` a pipeline that comes along.
"""

from aiohttp import hdrs, web
from structlog.contextvars import bind_contextvars

from algomesh import http_face
from algomesh.pipeline import value_of
from algomesh.response import Response
from algomesh_services.gateway.answers import raw_answer
from algomesh_services.gateway.intake import Intake, read_key, read_reference, read_timeout
from algomesh_services.gateway.keys import KeyPool
from algomesh_services.gateway.plain import as_plain


class MeshFace:
    """Calls with raw bodies; metadata travels in headers."""

    def __init__(self, keys: KeyPool, intake: Intake) -> None:
        self._keys, self._intake = keys, intake

    async def call(self, request: web.Request) -> web.Response:
        """Run one algorithm for one request. Raises MeshError."""
        reference = read_reference(request)
        bind_contextvars(algorithm=str(reference))
        timeout_s = read_timeout(request)
        async with (
            self._keys.lease(read_key(request), request.remote or "") as transport,
            self._intake.content(request) as content,
        ):
            response = await transport.call(value_of(reference), content, timeout_s, None)
        return await _answer(request, response)

    async def pipe(self, request: web.Request) -> web.Response:
        """Run the pipeline that a form brings. Raises MeshError."""
        timeout_s = read_timeout(request)
        async with (
            self._keys.lease(read_key(request), request.remote or "") as transport,
            self._intake.form(request) as (pipeline, content),
        ):
            response = await transport.call(pipeline, content, timeout_s, None)
        return await _answer(request, response)


async def _answer(request: web.Request, response: Response) -> web.Response:
    """The result as it is, but for a bundle that its client has not asked for."""
    bind_contextvars(run=response.metadata.run_id)
    if not http_face.accepts(request.headers.get(hdrs.ACCEPT, ""), http_face.BUNDLE_MEDIA):
        response = Response(await as_plain(response.content), response.metadata)
    return raw_answer(response)
