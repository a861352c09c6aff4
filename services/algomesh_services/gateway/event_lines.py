"""A stream as text: lines of JSON (`application/x-ndjson`), or server-sent events (`text/event-stream`).

{"part": "a word"}                                          event: part
{"part": "AAEC", "content_type": "binary"}                  id: 0
{"end": {"run_id": …, "duration": …}}                       data: {"part": "a word"}
"""

import base64
from typing import Any, Final, Literal

import msgspec

from algomesh import errors
from algomesh.content import Content, decode_text
from algomesh_services.gateway.answers import check_detail
from algomesh_services.gateway.intake import check_json
from algomesh_services.gateway.plain import as_plain

Form = Literal["ndjson", "sse"]
BEAT: Final[dict[Form, bytes]] = {"ndjson": b"\n", "sse": b": still here\n\n"}
_encode = msgspec.json.Encoder().encode


async def part_line(form: Form, number: int, part: Content, *, keeps_bundles: bool = False) -> bytes:
    """One part. JSON and text stand as they are, other kinds in base64 with their `content_type`. Raises BadOutput."""
    fields = _part(part if keeps_bundles else await as_plain(part))
    return fields + b"\n" if form == "ndjson" else b"event: part\nid: %d\ndata: %s\n\n" % (number, fields)


def last_line(form: Form, event: Literal["end", "error"], value: Any) -> bytes:
    """The end, with its metadata, or the error."""
    if form == "ndjson":
        return _encode({event: value}) + b"\n"
    return b"event: %s\ndata: %s\n\n" % (event.encode(), _encode(value))


def _part(part: Content) -> bytes:
    """`{"part": …}` on one line."""
    try:
        if part.content_type == "text":
            return b'{"part":' + _encode(decode_text(part.payload)) + b"}"
        if part.content_type == "json":
            return b'{"part":' + _one_line(part.payload) + b"}"
    except errors.BadInput as error:
        raise errors.BadOutput("a part is not what it says it is") from error
    fields = {"part": base64.b64encode(part.payload).decode(), "content_type": part.content_type}
    if part.content_type == "tensor":
        fields["detail"] = check_detail(part.detail)
    return _encode(fields)


def _one_line(payload: bytes | memoryview) -> bytes:
    data = bytes(payload)
    check_json(data)
    return msgspec.json.format(data, indent=-1) if b"\n" in data or b"\r" in data else data
