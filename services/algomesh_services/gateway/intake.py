"""What comes in: the key, the body and what kind of value it is; nothing here trusts its sender.

aiohttp waits for ever for a slow body and takes what a compressed one becomes; here every read has a limit of time,
every body one of size, and all bodies in memory together another one.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from aiohttp import hdrs, web

from algomesh import content, errors, http_face
from algomesh.claiming import is_claimed
from algomesh.clients import DEFAULT_TIMEOUT_S, check_timeout
from algomesh.content import Content
from algomesh.pipeline import Pipeline
from algomesh_broker.errors import PayloadTooLarge
from algomesh_broker.names import Reference
from algomesh_services.gateway.answers import SlowBody
from algomesh_services.gateway.forms import Part, read_form
from algomesh_services.gateway.pipelines import LARGEST_BYTES, PipelineReader

_TENSOR: Final = re.compile(r"(numpy|torch)/[<|]?[a-zA-Z0-9]{1,16}/(\d{1,12}(,\d{1,12}){0,31})?", re.ASCII)
_KEY_PARAMETERS: Final = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token", "authorization"})
_FORMS: Final = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
_FORM_MARGIN_BYTES: Final = 65_536
_FORM_PARTS: Final = frozenset({"pipeline", "input"})
_HOW: Final = "send -F 'pipeline={…};type=application/json' -F 'input=…;type=text/plain'"
_CHARSET: Final = re.compile(r';\s*charset="?([^\s;"]{1,40})', re.ASCII | re.IGNORECASE)
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate"})
_check_json = msgspec.json.Decoder(msgspec.Raw).decode


def read_key(request: web.Request) -> str:
    """The API key of `Authorization: Bearer KEY`, `Simple KEY` or the bare key.

    Raises Unauthenticated, and BadInput for a key in the address, where proxies would log it.
    """
    if any(name.lower() in _KEY_PARAMETERS for name in request.query):
        raise errors.BadInput(
            "a key does not belong in the address: send the header `Authorization: Bearer KEY`, and change this key"
        )
    values = request.headers.getall(hdrs.AUTHORIZATION, [])
    if len(values) != 1 or not values[0].strip():
        how = "twice" if len(values) > 1 else "without a key"
        raise errors.Unauthenticated(f"the request came {how}; send the header `Authorization: Bearer KEY`, once")
    text = values[0].strip()
    scheme, separator, rest = text.partition(" ")
    return rest.strip() if separator and scheme.lower() in ("bearer", "simple") else text


def read_reference(request: web.Request) -> Reference:
    """The algorithm in the path. Raises BadReference."""
    if "%" in request.rel_url.raw_path:
        raise errors.BadReference("write the algorithm plainly in the path: owner/name or owner/name/1.2.0, without %")
    try:
        return Reference.parse(request.match_info["reference"])
    except ValueError as error:
        raise errors.BadReference(str(error)) from error


def read_seconds(text: str, name: str) -> float:
    """A timeout as somebody wrote it. Raises BadInput."""
    try:
        return float(text)
    except ValueError as error:
        raise errors.BadInput(f"{name}={text[:40]!r} is not a number of seconds") from error


def read_timeout(request: web.Request) -> float:
    """How long the answer is worth waiting for, in seconds. Raises BadInput."""
    header = request.headers.get(http_face.TIMEOUT)
    timeout_s = DEFAULT_TIMEOUT_S if header is None else read_seconds(header, http_face.TIMEOUT)
    return check_timeout(timeout_s, timeout_s)


class Intake:
    """Reads bodies. Times in seconds: `pause_s` between two pieces, `total_s` for all of it."""

    def __init__(self, *, pause_s: float, total_s: float, body_bytes: int, bodies_bytes: int) -> None:
        self._pause_s, self._total_s = pause_s, total_s
        self._limit_bytes = body_bytes
        self._room_bytes = bodies_bytes
        self._pipelines = PipelineReader()

    @asynccontextmanager
    async def content(self, request: web.Request) -> AsyncIterator[Content]:
        """The request's value; its memory counts until the block ends.

        Raises BadInput, PayloadTooLarge, SlowBody, and Overloaded when too many bodies are here already.
        """
        kind = _content_type(request)
        async with self._body(request, self._limit_bytes) as payload:
            yield _as_content(kind, request.headers.get(http_face.TENSOR, ""), request.charset, payload)

    @asynccontextmanager
    async def form(self, request: web.Request) -> AsyncIterator[tuple[Pipeline, Content]]:
        """The pipeline and the input that a form brings; raises what `content` does, and BadReference."""
        media = request.headers.get(hdrs.CONTENT_TYPE, "")
        if media.partition(";")[0].strip().lower() != "multipart/form-data":
            raise errors.BadInput(f"a pipeline comes as a form, multipart/form-data: {_HOW}")
        _check_encoding(request)
        async with self._body(request, self._limit_bytes + LARGEST_BYTES + _FORM_MARGIN_BYTES) as body:
            parts = read_form(media, body)
            if parts.keys() != _FORM_PARTS:
                named = ", ".join(sorted(repr(name[:40]) for name in parts)) or "none"
                raise errors.BadInput(f"a form has the parts 'pipeline' and 'input', and this has {named}; {_HOW}")
            pipeline = await self._pipelines.read(bytes(parts["pipeline"].payload))
            yield pipeline, self._input(request, parts["input"])

    def _input(self, request: web.Request, part: Part) -> Content:
        """The part that is the input; without a type it is text, as HTML's forms have it."""
        if len(part.payload) > self._limit_bytes:
            raise _too_large(len(part.payload), self._limit_bytes)
        media = part.headers.get("content-type", "text/plain")
        detail = part.headers.get(http_face.TENSOR.lower(), request.headers.get(http_face.TENSOR, ""))
        charset = _CHARSET.search(media)
        return _as_content(http_face.content_type_of(media), detail, charset and charset[1], part.payload)

    @asynccontextmanager
    async def _body(self, request: web.Request, limit_bytes: int) -> AsyncIterator[bytes]:
        declared = request.content_length
        if declared is not None and declared > limit_bytes:
            raise _too_large(declared, limit_bytes)
        held = 0
        chunks: list[bytes] = []
        deadline = asyncio.get_running_loop().time() + self._total_s
        try:
            while chunk := await self._read(request, deadline):
                if len(chunk) > self._room_bytes:
                    raise errors.Overloaded("the gateway holds too many large bodies already; try again in a moment")
                self._room_bytes -= len(chunk)
                held += len(chunk)
                if held > limit_bytes:
                    raise _too_large(held, limit_bytes)
                chunks.append(chunk)
            payload = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            yield payload
        finally:
            self._room_bytes += held

    async def _read(self, request: web.Request, deadline: float) -> bytes:
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(deadline, now + self._pause_s)):
                return await request.content.readany()
        except TimeoutError as error:
            raise SlowBody(f"the body did not come: nothing for {self._pause_s:g} s, or too slowly") from error
        except (web.RequestPayloadError, ValueError) as error:
            raise errors.BadInput(
                "the body is not what its headers say (Content-Encoding, Transfer-Encoding)"
            ) from error


def _content_type(request: web.Request) -> str:
    """What kind of value the body is, before it is read. Raises BadInput."""
    media = request.headers.get(hdrs.CONTENT_TYPE, "")
    essence = media.partition(";")[0].strip().lower()
    if essence in _FORMS:
        raise errors.BadInput(
            f"a body of type {essence} is a form; send a value: -H 'Content-Type: application/json' (or text/plain, "
            "or application/octet-stream)"
        )
    _check_encoding(request)
    return http_face.content_type_of(media)


def _check_encoding(request: web.Request) -> None:
    if request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower() not in _ENCODINGS:
        raise errors.BadInput("the body's Content-Encoding is not gzip or deflate; send it plainly")


def _as_content(kind: str, detail: str, charset: str | None, payload: bytes | memoryview) -> Content:
    """Check a value against its content type. Raises BadInput."""
    if kind == "tensor":
        if not _TENSOR.fullmatch(detail):
            raise errors.BadInput(
                f"{http_face.TENSOR}: {detail[:60]!r} does not say kind/dtype/shape, like numpy/float32/3,4"
            )
        return Content("tensor", detail, payload)
    if kind == "text":
        return Content("text", "", _as_utf8(payload, charset))
    if kind == "json":
        check_json(payload)
        return Content("json", "", payload)
    if kind == "bundle":
        if is_claimed("bundle", payload):
            raise errors.BadInput("what lies elsewhere does not come over HTTP; send the value itself")
        return Content("bundle", "", payload)
    return Content("binary", "", payload)


def check_json(payload: bytes | memoryview) -> None:
    """Raises BadInput for what is not JSON in UTF-8."""
    content.decode_text(payload)
    try:
        _check_json(payload)
    except (msgspec.MsgspecError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        hint = "" if payload else " (the body is empty; write null for nothing)"
        raise errors.BadInput(f"the body is not JSON: {what}{hint}") from error


def _as_utf8(payload: bytes | memoryview, charset: str | None) -> bytes | memoryview:
    if charset is None or charset.lower().replace("_", "-") in ("utf-8", "utf8", "us-ascii"):
        content.decode_text(payload)
        return payload
    try:
        return str(payload, charset).encode()
    except (LookupError, UnicodeError, ValueError) as error:
        raise errors.BadInput(f"the text is not of the charset {charset[:40]!r} that its header names") from error


def _too_large(size_bytes: int, limit_bytes: int) -> errors.PayloadTooLarge:
    return errors.PayloadTooLarge(
        f"{PayloadTooLarge(size_bytes, limit_bytes)}; send it in parts, or put it where the algorithm can fetch it "
        "and send the address"
    )
