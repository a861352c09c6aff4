"""Calls over HTTP, through the gateway: `POST /mesh/v1/call/{owner}/{name}[/{version}]`."""

import io
import time
from typing import Self

import msgspec

from algomesh import errors, http_face
from algomesh.content import Content
from algomesh.response import Metadata, Response
from algomesh.transport import Origin
from algomesh_broker.names import Reference

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

    async def call(self, reference: Reference, content: Content, timeout_s: float, origin: Origin | None) -> Response:
        """Run one algorithm. Raises MeshError; ends within `timeout_s` seconds."""
        began = time.perf_counter()
        headers = {"Content-Type": http_face.MEDIA[content.content_type], http_face.TIMEOUT: f"{timeout_s:.3f}"}
        if content.content_type == "tensor":
            headers[http_face.TENSOR] = content.detail
        limit = self._aiohttp.ClientTimeout(total=timeout_s + _SPARE_S, sock_connect=5.0)
        try:
            async with self._session.post(
                f"{self._url}{http_face.CALL_PATH}/{reference}",
                data=io.BytesIO(content.payload),
                headers=headers,
                timeout=limit,
            ) as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise _error_of(answer.status, body)
                return _response(dict(answer.headers), body, time.perf_counter() - began)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"no answer from {self._url} within {timeout_s:g} s", stage=str(reference)
            ) from error
        except self._aiohttp.ClientError as error:
            raise errors.Unreachable(f"no gateway answers at {self._url}: {error}") from error

    async def close(self) -> None:
        """Close the pool."""
        await self._session.close()


class _Refusal(msgspec.Struct):
    code: str = ""
    message: str = ""
    stage: str = ""
    error_type: str = ""


def _error_of(status: int, body: bytes) -> errors.MeshError:
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        refusal = _Refusal()
    if not refusal.code:
        return errors.Unreachable(
            f"the gateway answered {status} in a way that is not the mesh's; is the address right?"
        )
    return errors.of_code(refusal.code, refusal.message, stage=refusal.stage, error_type=refusal.error_type)


def _response(headers: dict[str, str], body: bytes, duration: float) -> Response:
    content_type = http_face.content_type_of(headers.get("Content-Type", ""))
    return Response(
        Content(content_type, headers.get(http_face.TENSOR, ""), body),
        Metadata(
            content_type=content_type,
            duration=duration,
            run_id=headers.get(http_face.RUN, ""),
            version=headers.get(http_face.VERSION, ""),
            algorithm=headers.get(http_face.ALGORITHM, ""),
            cold_start_s=float(headers.get(http_face.COLD_START, 0)),
            attempts=int(headers.get(http_face.ATTEMPTS, 1)),
            compute_s=float(headers.get(http_face.COMPUTE, 0)),
            queued_s=float(headers.get(http_face.QUEUED, 0)),
            instance=headers.get(http_face.INSTANCE, ""),
        ),
    )
