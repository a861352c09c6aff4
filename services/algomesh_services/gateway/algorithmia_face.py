"""`POST /v1/algo/{owner}/{name}[/{version}]`: calls in the shapes that Algorithmia's clients speak.

Its Python client (2.0.5) makes an AlgorithmException only of a 2xx answer with an `error` in it, and loses the text of
every other. So a run that failed is answered 200 with `error`, as Algorithmia did, and what never became a run
(name, key, permission, size) has its own status. With `output=raw` the body is the result itself, so there a failed
run is a 400.
"""

import base64
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec
from aiohttp import web
from structlog.contextvars import bind_contextvars

from algomesh import errors
from algomesh.clients import DEFAULT_TIMEOUT_S, check_timeout
from algomesh.content import Content, decode_text
from algomesh.nats_transport import NatsTransport
from algomesh.pipeline import value_of
from algomesh.response import Response
from algomesh_services.gateway.answers import check_detail, headers_of, json_answer, raw_answer
from algomesh_services.gateway.detached import Detached
from algomesh_services.gateway.intake import Intake, check_json, read_key, read_reference, read_seconds
from algomesh_services.gateway.keys import KeyPool
from algomesh_services.gateway.plain import as_plain

_OUTPUTS: Final = ("default", "raw", "void")
# The run was begun, or would have been but for its own algorithm or input: the client should see why.
_RUN_FAILED: Final = (
    errors.AlgorithmError,
    errors.BadInput,
    errors.BadOutput,
    errors.Cancelled,
    errors.DeadlineExceeded,
    errors.DepthExceeded,
    errors.InstanceLost,
    errors.LoadFailed,
    errors.MemoryExceeded,
    errors.RunTimeout,
)


class AlgorithmiaFace:
    """Calls as Algorithmia's clients make them."""

    def __init__(self, keys: KeyPool, intake: Intake, detached: Detached) -> None:
        self._keys, self._intake, self._detached = keys, intake, detached

    async def call(self, request: web.Request) -> web.Response:
        """Run one algorithm; errors are answered, not raised."""
        output = request.query.get("output", "default")
        is_run = False
        try:
            reference = read_reference(request)
            bind_contextvars(algorithm=str(reference))
            if output not in _OUTPUTS:
                raise errors.BadInput(f"output={output[:40]!r} is none of {', '.join(_OUTPUTS)}")
            timeout_s = _timeout_s(request)
            async with AsyncExitStack() as held:
                transport, content = await held.enter_async_context(self._enter(request))
                is_run = True
                if output == "void":
                    self._detached.check()
                    run = await self._detached.start(transport, reference, content, timeout_s, held)
                    bind_contextvars(run=run)
                    return json_answer({"async": "void", "request_id": run})
                began = time.perf_counter()
                response = await transport.call(value_of(reference), content, timeout_s, None)
            bind_contextvars(run=response.metadata.run_id)
            response = Response(await as_plain(response.content), response.metadata)
            return raw_answer(response) if output == "raw" else json_answer(_as_json(response, began))
        except errors.MeshError as error:
            return failure_answer(error, is_run=is_run, is_raw=output == "raw")

    @asynccontextmanager
    async def _enter(self, request: web.Request) -> AsyncIterator[tuple[NatsTransport, Content]]:
        """Let the key in, then read the body."""
        async with (
            self._keys.lease(read_key(request), request.remote or "") as transport,
            self._intake.content(request) as content,
        ):
            yield transport, content


def failure_answer(error: errors.MeshError, *, is_run: bool, is_raw: bool = False) -> web.Response:
    """An error in Algorithmia's shape, with the status that its clients make the most of."""
    status = error.status
    if is_run and isinstance(error, _RUN_FAILED):
        status = 400 if is_raw else 200
    body = {
        "message": str(error), "error_type": error.error_type, "stacktrace": "",
        "code": error.code, "stage": error.stage,
    }  # fmt: skip
    answer = json_answer({"error": body}, status, headers_of(error))
    bind_contextvars(code=error.code)
    return answer


def _timeout_s(request: web.Request) -> float:
    text = request.query.get("timeout")
    seconds = DEFAULT_TIMEOUT_S if text is None else read_seconds(text, "timeout")
    return check_timeout(seconds, seconds)


def _as_json(response: Response, began: float) -> dict[str, Any]:
    """`{result, metadata}`. Raises BadOutput."""
    content, metadata = response.content, response.metadata
    result: Any
    content_type = "binary" if content.content_type == "tensor" else content.content_type
    about: dict[str, Any] = {
        "content_type": content_type,
        "duration": time.perf_counter() - began,
        "run_id": metadata.run_id,
        "algorithm": metadata.algorithm,
        "version": metadata.version,
        "compute_s": metadata.compute_s,
        "queued_s": metadata.queued_s,
        "cold_start_s": metadata.cold_start_s,
        "attempts": metadata.attempts,
    }
    try:
        if content_type == "text":
            result = decode_text(content.payload)
        elif content_type == "json":
            check_json(content.payload)
            result = msgspec.Raw(content.payload)
        else:
            result = base64.b64encode(content.payload).decode()
    except errors.BadInput as error:
        raise errors.BadOutput("the algorithm's answer is not what it says it is", stage=metadata.algorithm) from error
    if content.content_type == "tensor":
        about["tensor"] = check_detail(content.detail)
    return {"result": result, "metadata": about}
