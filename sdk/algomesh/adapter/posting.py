"""A program that speaks HTTP: each call is one POST of the input, and the body of a 2xx answer is the output.

Text, JSON and bytes travel under their media types, both ways. Other statuses are errors: 400, 415 and 422 mean that
the input was bad, 413 that it was too large, 429 that there is too much to do, the rest that the program failed.
"""

import asyncio
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from algomesh import content, errors, http_face
from algomesh.adapter import program
from algomesh.context import entered

_CONNECT_S = 10.0
_BAD_INPUT = (400, 415, 422)


class Posting:
    """Posts to one URL; an async context manager."""

    def __init__(self, url: str) -> None:
        """Raises BadInput for what is no address of a program."""
        self._url = check_url(url)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session; the program may come later."""
        # How long a call may take is its deadline's to say.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def run(self, value: Any) -> Any:
        """What the program answers. Raises BadInput, AlgorithmError, BadOutput, PayloadTooLarge, Overloaded."""
        assert self._session is not None
        given = content.encode(value)
        if given.content_type not in ("text", "json", "binary"):
            raise errors.BadInput(f"a {given.content_type} cannot be posted; send text, JSON or bytes")
        headers = {"Content-Type": http_face.MEDIA[given.content_type], "Accept": "application/json, text/plain, */*"}
        context = entered()
        if context is not None:
            headers[http_face.RUN] = context.run
        try:
            async with self._session.post(
                self._url, data=bytes(given.payload), headers=headers, allow_redirects=False
            ) as answer:
                body = await _body(answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
            raise errors.AlgorithmError(f"{self._url} does not answer: {why}", error_type="Unanswered") from error
        if not 200 <= answer.status < 300:
            raise _error_of(answer.status, answer.reason or "", body)
        return _read(answer, body)


def check_url(url: str) -> str:
    """The URL, if something can be posted to it. Raises BadInput."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise errors.BadInput(
            f"{url!r} is no address that can be posted to; write it like http://127.0.0.1:8000/predict"
        )
    return url


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    pieces = bytearray()
    async for piece in answer.content.iter_any():
        pieces += piece
        if len(pieces) > program.LONGEST_BYTES:
            raise errors.BadOutput(f"the program answered with over {program.LONGEST_BYTES // 2**20} MiB")
        await asyncio.sleep(0)
    return bytes(pieces)


def _read(answer: aiohttp.ClientResponse, body: bytes) -> Any:
    content_type = http_face.content_type_of(answer.headers.get("Content-Type", "application/octet-stream"))
    if content_type in ("tensor", "bundle"):
        content_type = "binary"
    try:
        if content_type == "text":
            return body.decode(answer.charset or "utf-8")
        return content.decode(content_type, "", body) if body or content_type != "json" else None
    except (errors.BadInput, UnicodeDecodeError, LookupError) as error:
        raise errors.BadOutput(f"the program's answer is not the {content_type} it says: {error}") from error


def _error_of(status: int, reason: str, body: bytes) -> errors.MeshError:
    said = f": {program.shown(body)}" if body else ""
    message = f"the program answered {status} {reason}".rstrip() + said
    if status in _BAD_INPUT:
        return errors.BadInput(message, error_type=f"HTTP {status}")
    if status == 413:
        return errors.PayloadTooLarge(message, error_type="HTTP 413")
    if status == 429:
        return errors.Overloaded(message, error_type="HTTP 429")
    return errors.AlgorithmError(message, error_type=f"HTTP {status}")
