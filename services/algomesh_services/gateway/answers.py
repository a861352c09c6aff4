"""What goes out: JSON, errors in the mesh's own shape, and headers that carry nothing they must not."""

import re
from typing import Any, ClassVar, Final

import msgspec
from aiohttp import hdrs, web

from algomesh import errors, http_face
from algomesh.response import Response

_UNSAFE: Final = re.compile(r"[^\x20-\x7e]")
_DETAIL: Final = re.compile(r"[a-z]{1,16}/[<|a-zA-Z0-9]{1,20}/[0-9,]{0,400}", re.ASCII)
_encode = msgspec.json.Encoder().encode


class SlowBody(errors.MeshError):
    """The request's body did not come in time."""

    code: ClassVar[str] = "slow_body"
    status: ClassVar[int] = 408


class NotFound(errors.MeshError):
    """Nothing is at this path."""

    code: ClassVar[str] = "not_found"
    status: ClassVar[int] = 404


class MethodNotAllowed(errors.MeshError):
    """This path takes other methods."""

    code: ClassVar[str] = "method_not_allowed"
    status: ClassVar[int] = 405


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=_encode(value), content_type="application/json", headers=headers)


def error_answer(error: errors.MeshError) -> web.Response:
    """An error with its status."""
    return json_answer(described(error), error.status, headers_of(error))


def described(error: errors.MeshError) -> dict[str, Any]:
    """An error as `{code, message, stage, branch, error_type}`."""
    return {
        "code": error.code,
        "message": error.message,
        "stage": error.stage,
        "branch": error.branch,
        "error_type": error.error_type,
    }


def headers_of(error: errors.MeshError) -> dict[str, str]:
    """What HTTP wants said with some errors; a body that was not read ends the connection."""
    if isinstance(error, errors.Unauthenticated):
        return {hdrs.WWW_AUTHENTICATE: "Bearer"}
    if isinstance(error, errors.Overloaded | errors.Unreachable | errors.NoCapacity):
        return {hdrs.RETRY_AFTER: "1"}
    return {hdrs.CONNECTION: "close"} if isinstance(error, SlowBody) else {}


def raw_answer(response: Response) -> web.Response:
    """A result as it is: its payload as the body, its metadata in headers. Raises BadOutput."""
    content, metadata = response.content, response.metadata
    headers = {
        hdrs.CONTENT_TYPE: http_face.MEDIA[content.content_type],
        # What an algorithm says is nobody's page.
        "X-Content-Type-Options": "nosniff",
        http_face.RUN: metadata.run_id,
        http_face.ALGORITHM: metadata.algorithm,
        http_face.VERSION: as_header(metadata.version),
        http_face.INSTANCE: as_header(metadata.instance),
        http_face.DURATION: f"{metadata.duration:.6f}",
        http_face.COMPUTE: f"{metadata.compute_s:.6f}",
        http_face.QUEUED: f"{metadata.queued_s:.6f}",
        http_face.COLD_START: f"{metadata.cold_start_s:.6f}",
        http_face.ATTEMPTS: str(metadata.attempts),
        http_face.CACHED: "true" if metadata.cached else "false",
    }
    if content.content_type == "tensor":
        headers[http_face.TENSOR] = check_detail(content.detail)
    return web.Response(body=bytes(content.payload), headers=headers)


def check_detail(detail: str) -> str:
    """The description of a tensor. Raises BadOutput for what is none."""
    if not _DETAIL.fullmatch(detail):
        raise errors.BadOutput("the algorithm returned an array whose description cannot be read")
    return detail


def as_header(text: str) -> str:
    """Text that an instance chose, fit for a header: printable ASCII, at most 200 characters."""
    return _UNSAFE.sub("?", text[:200])
