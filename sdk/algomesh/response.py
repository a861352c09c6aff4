"""What `pipe` returns."""

from typing import Any

from msgspec import Struct

from algomesh.content import Content, decode
from algomesh_broker.messages import ContentType


class Metadata(Struct, frozen=True, kw_only=True):
    """What happened to a call. Times in seconds.

    `duration` is from `pipe` to its answer, `compute_s` the algorithm's own time, `queued_s` the wait for
    a slot, `cold_start_s` the wait for an instance to start (0.0 when one was up), `attempts` how often
    it was sent. `cached` says that the result was kept from an earlier run, or is that of one which was under
    way; where branches were joined, that all of theirs were.
    """

    content_type: ContentType
    duration: float
    run_id: str
    version: str
    algorithm: str = ""
    cold_start_s: float = 0.0
    attempts: int = 1
    compute_s: float = 0.0
    queued_s: float = 0.0
    instance: str = ""
    cached: bool = False


class Response:
    """A result with its metadata; may be piped into the next algorithm as it is."""

    __slots__ = ("_decoded", "_value", "content", "metadata")

    def __init__(self, content: Content, metadata: Metadata) -> None:
        self.content = content
        self.metadata = metadata
        self._decoded = False
        self._value: Any = None

    @property
    def result(self) -> Any:
        """The value: str, bytes, what JSON says, a numpy array or a torch tensor."""
        if not self._decoded:
            content = self.content
            self._value = decode(content.content_type, content.detail, content.payload)
            self._decoded = True
        return self._value

    def __repr__(self) -> str:
        text = repr(self.result)
        short = text if len(text) <= 80 else text[:77] + "..."
        return f"<Response {self.metadata.content_type} {short} in {self.metadata.duration * 1000:.1f} ms>"
