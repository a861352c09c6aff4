"""Names that the gateway and the SDK's HTTP transport share: headers, media types, paths."""

from typing import Final

from algomesh_broker.messages import ContentType

CALL_PATH: Final = "/mesh/v1/call"

RUN: Final = "Algomesh-Run"
ALGORITHM: Final = "Algomesh-Algorithm"
VERSION: Final = "Algomesh-Version"
INSTANCE: Final = "Algomesh-Instance"
DURATION: Final = "Algomesh-Duration-S"
COMPUTE: Final = "Algomesh-Compute-S"
QUEUED: Final = "Algomesh-Queued-S"
COLD_START: Final = "Algomesh-Cold-Start-S"
ATTEMPTS: Final = "Algomesh-Attempts"
TENSOR: Final = "Algomesh-Tensor"
TIMEOUT: Final = "Algomesh-Timeout-S"

TENSOR_MEDIA: Final = "application/x-algomesh-tensor"
MEDIA: Final[dict[ContentType, str]] = {
    "text": "text/plain; charset=utf-8",
    "json": "application/json",
    "binary": "application/octet-stream",
    "tensor": TENSOR_MEDIA,
}


def content_type_of(media: str) -> ContentType:
    """The content type of a media type: text/* is text, JSON is json, our tensor is tensor, the rest binary."""
    essence = media.partition(";")[0].strip().lower()
    if essence == TENSOR_MEDIA:
        return "tensor"
    if essence == "application/json" or essence.endswith("+json"):
        return "json"
    return "text" if essence.startswith("text/") else "binary"
