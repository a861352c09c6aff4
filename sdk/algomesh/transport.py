"""How a call leaves this process: over NATS, or over HTTP through the gateway."""

from typing import NamedTuple, Protocol

from algomesh.content import Content
from algomesh.response import Response
from algomesh_broker.names import Reference

DEEPEST = 32


class Origin(NamedTuple):
    """The run on whose behalf a call is made; `deadline` is the loop's time, in seconds."""

    run: str
    root: str
    root_caller: str
    depth: int
    budget: int
    deadline: float


class Transport(Protocol):
    """One way to the mesh; made on a running loop, used from that loop only."""

    async def call(self, reference: Reference, content: Content, timeout_s: float, origin: Origin | None) -> Response:
        """Run one algorithm. Raises MeshError; ends within `timeout_s` seconds."""
        ...

    async def close(self) -> None:
        """Let go of the connection; calls under way fail."""
        ...
