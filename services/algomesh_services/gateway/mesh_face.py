"""`POST /mesh/v1/call/{owner}/{name}[/{version}]`: a value in, a value out, as the SDK's HTTP transport speaks it."""

from aiohttp import web
from structlog.contextvars import bind_contextvars

from algomesh import http_face
from algomesh.clients import DEFAULT_TIMEOUT_S, check_timeout
from algomesh_services.gateway.answers import raw_answer
from algomesh_services.gateway.intake import Intake, read_key, read_reference, read_seconds
from algomesh_services.gateway.keys import KeyPool

MARGIN_BYTES = 4096


class MeshFace:
    """Calls with raw bodies; metadata travels in headers."""

    def __init__(self, keys: KeyPool, intake: Intake) -> None:
        self._keys, self._intake = keys, intake

    async def call(self, request: web.Request) -> web.Response:
        """Run one algorithm for one request. Raises MeshError."""
        reference = read_reference(request)
        bind_contextvars(algorithm=str(reference))
        header = request.headers.get(http_face.TIMEOUT)
        timeout_s = DEFAULT_TIMEOUT_S if header is None else read_seconds(header, http_face.TIMEOUT)
        check_timeout(timeout_s, timeout_s)
        async with self._keys.lease(read_key(request), request.remote or "") as transport:
            limit_bytes = transport.connection.max_payload - MARGIN_BYTES
            async with self._intake.content(request, limit_bytes) as content:
                response = await transport.call(reference, content, timeout_s, None)
        bind_contextvars(run=response.metadata.run_id)
        return raw_answer(response)
