"""What comes from a gateway, read: answers, refusals, and the lines of a stream (docs/http.md)."""

import base64
import binascii
from collections.abc import Mapping

import msgspec

from algomesh import errors, http_face
from algomesh.content import Content
from algomesh.response import Metadata, Response
from algomesh_broker.messages import ContentType


class Refusal(msgspec.Struct):
    """An error as the gateway writes it."""

    code: str = ""
    message: str = ""
    stage: str = ""
    error_type: str = ""
    branch: list[str] = []

    def as_error(self) -> errors.MeshError:
        """The error that it stands for."""
        error = errors.of_code(self.code, self.message, stage=self.stage, error_type=self.error_type)
        error.branch = self.branch
        return error


class Line(msgspec.Struct):
    """One line of a stream: a part, the end, or an error."""

    part: msgspec.Raw = msgspec.Raw(b"")
    content_type: ContentType = "json"
    detail: str = ""
    end: Metadata | None = None
    error: Refusal | None = None

    def as_content(self) -> Content:
        """The part. Raises Unreachable for what is none."""
        if self.content_type in ("json", "text"):
            return Content("json", "", bytes(self.part))
        try:
            data = base64.b64decode(msgspec.json.decode(self.part, type=str), validate=True)
        except (msgspec.MsgspecError, binascii.Error) as error:
            raise errors.Unreachable(f"the gateway sent a part that cannot be read: {error}") from error
        return Content(self.content_type, self.detail, data)


_decode_line = msgspec.json.Decoder(Line).decode


def read_line(line: bytes | memoryview) -> Line:
    """A line of a stream. Raises Unreachable for what is none."""
    try:
        return _decode_line(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.Unreachable(f"the gateway sent a line that is not the mesh's: {error}") from error


def error_of(status: int, body: bytes) -> errors.MeshError:
    """The error in an answer that is not 200."""
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        refusal = Refusal()
    if not refusal.code:
        return errors.Unreachable(
            f"the gateway answered {status} in a way that is not the mesh's; is the address right?"
        )
    return refusal.as_error()


def response_of(headers: Mapping[str, str], body: bytes, duration: float) -> Response:
    """The answer of a call; `duration` in seconds."""
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
            cached=headers.get(http_face.CACHED) == "true",
        ),
    )
