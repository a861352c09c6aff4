"""Names that the gateway and the SDK's HTTP transport share: headers, media types, paths."""

from typing import Final

from algomesh_broker.messages import ContentType

CALL_PATH: Final = "/mesh/v1/call"
PIPE_PATH: Final = "/mesh/v1/pipe"
STREAM_PATH: Final = "/mesh/v1/stream"

RUN: Final = "Algomesh-Run"
ALGORITHM: Final = "Algomesh-Algorithm"
VERSION: Final = "Algomesh-Version"
INSTANCE: Final = "Algomesh-Instance"
DURATION: Final = "Algomesh-Duration-S"
COMPUTE: Final = "Algomesh-Compute-S"
QUEUED: Final = "Algomesh-Queued-S"
COLD_START: Final = "Algomesh-Cold-Start-S"
ATTEMPTS: Final = "Algomesh-Attempts"
CACHED: Final = "Algomesh-Cached"
TENSOR: Final = "Algomesh-Tensor"
TIMEOUT: Final = "Algomesh-Timeout-S"

TENSOR_MEDIA: Final = "application/x-algomesh-tensor"
BUNDLE_MEDIA: Final = "application/vnd.algomesh.bundle"
NDJSON_MEDIA: Final = "application/x-ndjson"
SSE_MEDIA: Final = "text/event-stream"
MEDIA: Final[dict[ContentType, str]] = {
    "text": "text/plain; charset=utf-8",
    "json": "application/json",
    "binary": "application/octet-stream",
    "tensor": TENSOR_MEDIA,
    "bundle": BUNDLE_MEDIA,
}


def content_type_of(media: str) -> ContentType:
    """The content type of a media type: text/* is text, JSON is json, what is ours is ours, the rest binary."""
    essence = media.partition(";")[0].strip().lower()
    if essence == TENSOR_MEDIA:
        return "tensor"
    if essence == BUNDLE_MEDIA:
        return "bundle"
    if essence == "application/json" or essence.endswith("+json"):
        return "json"
    return "text" if essence.startswith("text/") else "binary"


def accepts(accept: str, media: str) -> bool:
    """Whether an Accept header names a media type itself; wildcards do not."""
    return any(offer.partition(";")[0].strip().lower() == media for offer in accept.split(","))
