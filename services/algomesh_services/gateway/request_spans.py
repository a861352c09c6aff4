"""One span per HTTP request, by the conventions for HTTP servers; and the caller's trace, if it brings one.

The span is made at the request's end, when its trace goes out: its caller's `traceparent` says so, or the sampler
does, or it failed (5xx), or something under it failed or met a cold start. Without telemetry the caller's trace is
passed on all the same.
"""

import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from algomesh_observability import telemetry, tracing
from algomesh_observability.spans import SpanRecord, Value
from algomesh_observability.tracing import Inbound, TraceContext

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics", "/"})
_TRACEPARENT: Final = "traceparent"
_SERVER_ERROR: Final = 500


@web.middleware
async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have what the request leads to belong to its trace."""
    on = telemetry.active
    header = request.headers.get(_TRACEPARENT, "")
    if (on is None and not header) or request.path in _UNTRACED:
        return await handler(request)
    context = tracing.read_header(header) if header else None
    if on is None:
        if context is None:
            return await handler(request)
        inbound = Inbound(context.parent, context)
    else:
        inbound = Inbound(secrets.token_hex(8), context, on.samples)
    began_ns = time.time_ns()
    answer: web.StreamResponse | None = None
    token = tracing.enter_inbound(inbound)
    try:
        answer = await handler(request)
        return answer
    finally:
        tracing.leave_inbound(token)
        if on is not None:
            _end(on, inbound, request, answer, began_ns)


def _end(
    on: telemetry.Telemetry,
    inbound: Inbound,
    request: web.Request,
    answer: web.StreamResponse | None,
    began_ns: int,
) -> None:
    status = 0 if answer is None else answer.status
    has_failed = status >= _SERVER_ERROR
    if not inbound.trace:  # refused before anything was sent
        trace = secrets.token_hex(16)
        inbound.trace, inbound.is_sampled = trace, on.samples(TraceContext(trace, "", None))
    if not (inbound.is_sampled or has_failed or inbound.has_news):
        return
    resource = request.match_info.route.resource
    route = "" if resource is None else resource.canonical
    method = request.method if request.method in hdrs.METH_ALL else "_OTHER"
    on.add(
        SpanRecord(
            trace=inbound.trace,
            span=inbound.span,
            parent=inbound.parent,
            name=f"{method if method != '_OTHER' else 'HTTP'} {route}".strip(),
            kind="server",
            start_ns=began_ns,
            end_ns=time.time_ns(),
            attributes=_attributes(request, method, route, status),
            error=str(status) if has_failed else "client_gone" if answer is None else "",
        )
    )


def _attributes(request: web.Request, method: str, route: str, status: int) -> dict[str, Value]:
    """Nothing that may be secret: no header, no query, no path but the route and the algorithm in it."""
    found: dict[str, Value] = {
        "http.request.method": method,
        "url.scheme": request.scheme,
        "network.protocol.version": f"{request.version.major}.{request.version.minor}",
    }
    if route and "{anything" not in route:
        found["http.route"] = route
        found["url.path"] = request.path
    if status:
        found["http.response.status_code"] = status
    if request.remote:
        found["client.address"] = request.remote
    if request.content_length:
        found["http.request.body.size"] = request.content_length
    return found
