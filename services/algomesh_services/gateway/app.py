"""The HTTP application: routes, one log line per request, and no error that is not JSON."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import structlog
from aiohttp import hdrs, web
from structlog.contextvars import bind_contextvars

from algomesh import errors, http_face
from algomesh_services.gateway import metrics
from algomesh_services.gateway.algorithmia_face import AlgorithmiaFace, failure_answer
from algomesh_services.gateway.answers import MethodNotAllowed, error_answer, json_answer
from algomesh_services.gateway.guard import Guard
from algomesh_services.gateway.mesh_face import MeshFace
from algomesh_services.gateway.pages import Pages
from algomesh_services.gateway.request_spans import traced
from algomesh_services.gateway.stream_face import StreamFace

log = structlog.get_logger("algomesh.gateway")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_QUIET: Final = frozenset({"/healthz", "/readyz"})
_READ, _CALLED, _STREAMED = "GET, HEAD", "POST", "GET, POST"


class Faces(NamedTuple):
    """What answers."""

    mesh: MeshFace
    streams: StreamFace
    algorithmia: AlgorithmiaFace
    pages: Pages


def build_app(faces: Faces, guard: Guard, is_serving: Callable[[], bool]) -> web.Application:
    """The application; what it answers with is in the faces."""

    @web.middleware
    async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
        """The border of the program: whatever happens inside, HTTP gets an answer and the log a line."""
        protocol = request.protocol
        began = time.perf_counter()
        guard.begin(protocol)
        answer: web.StreamResponse | None = None
        try:
            answer = await _answer(request, handler, is_serving=is_serving())
            if not answer.prepared:
                answer.headers[hdrs.SERVER] = "algomesh"
            if not is_serving():
                answer.force_close()
            return answer
        finally:
            guard.end(protocol)
            _log(request, answer, time.perf_counter() - began)

    app = web.Application(middlewares=[traced, edge])
    mesh, streams, algorithmia, pages = faces
    app.router.add_post(http_face.CALL_PATH + "/{reference:[^/]+/.+}", mesh.call)
    app.router.add_post(http_face.PIPE_PATH, mesh.pipe)
    app.router.add_post(http_face.STREAM_PATH, streams.stream_pipeline)
    app.router.add_post(http_face.STREAM_PATH + "/{reference:[^/]+/.+}", streams.stream)
    app.router.add_get(http_face.STREAM_PATH + "/{reference:[^/]+/.+}", streams.get, allow_head=False)
    app.router.add_post("/v1/algo/{reference:[^/]+/.+}", algorithmia.call)
    app.router.add_get("/v1/algorithms", pages.algorithms)
    app.router.add_get("/healthz", pages.healthz)
    app.router.add_get("/readyz", pages.readyz)
    app.router.add_get("/", pages.index)
    app.router.add_route("*", "/{anything:.*}", pages.nothing)
    return app


async def _answer(request: web.Request, handler: Handler, *, is_serving: bool) -> web.StreamResponse:
    try:
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers={hdrs.ALLOW: _allowed(request)})
        if not is_serving and request.path not in _QUIET:
            raise errors.Unreachable("this gateway is stopping; try again in a moment")
        return await handler(request)
    except errors.MeshError as error:
        return _refusal(request, error)
    except web.HTTPException as error:
        return json_answer({"code": "bad_request", "message": error.reason, "stage": ""}, error.status)
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        log.exception("request_failed", method=request.method, route=_route(request))
        return _refusal(request, errors.MeshError("the gateway failed at this; its log says why"))


def _refusal(request: web.Request, error: errors.MeshError) -> web.Response:
    is_shaped = request.path.startswith("/v1/")
    answer = failure_answer(error, is_run=False) if is_shaped else error_answer(error)
    if isinstance(error, MethodNotAllowed):
        answer.headers[hdrs.ALLOW] = _allowed(request)
    bind_contextvars(code=error.code)
    return answer


def _allowed(request: web.Request) -> str:
    if request.path.startswith(http_face.STREAM_PATH + "/"):
        return _STREAMED
    return _CALLED if request.path.startswith(("/mesh/v1/", "/v1/algo/")) else _READ


def _log(request: web.Request, answer: web.StreamResponse | None, took_s: float) -> None:
    """One line per request, without what may be secret: no header, no query, no path that we do not know.

    What the handlers bound (algorithm, run, code) joins it.
    """
    route = _route(request)
    write = log.debug if route in _QUIET else log.info
    method = request.method if request.method in hdrs.METH_ALL else "other"
    status = 0 if answer is None else answer.status
    metrics.served(route, method, status, took_s)
    write(
        "request_served" if answer is not None else "client_gone",
        method=method,
        route=route,
        status=status,
        took_ms=round(took_s * 1000, 2),
        remote=request.remote,
    )


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "none"
