"""How a call leaves this process: over NATS, or over HTTP through the gateway."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from algomesh.allowance import Allowance
from algomesh.content import Content
from algomesh.pipeline import Pipeline
from algomesh.response import Metadata, Response

DEEPEST = 32
Input = Content | AsyncIterator[Content]


class Origin(NamedTuple):
    """The run on whose behalf a call is made; `deadline` is the loop's time, in seconds.

    `allowance` counts what it begins; without one it is `budget` for this call alone. `traceparent` is what the run was
    given, not what its calls are: see `tracing.beneath`.
    """

    run: str
    root: str
    root_caller: str
    depth: int
    budget: int
    deadline: float
    allowance: Allowance | None = None
    traceparent: str = ""


class Transport(Protocol):
    """One way to the mesh; made on a running loop, used from that loop only."""

    def call(
        self, pipeline: Pipeline, content: Input, timeout_s: float, origin: Origin | None
    ) -> Coroutine[Any, Any, Response]:
        """Run a pipeline, or one algorithm; items that come one by one are for an `each` at its head.

        Raises MeshError; ends within `timeout_s` seconds.
        """
        ...

    def stream(
        self,
        pipeline: Pipeline,
        items: Input,
        timeout_s: float,
        origin: Origin | None,
        told: Callable[[Metadata], None],
    ) -> AsyncGenerator[Content, None]:
        """Run a pipeline and give its parts as they come; `told` gets the metadata at the end. Raises MeshError.

        Leaving it (`aclose`) cancels the run.
        """
        ...

    async def close(self) -> None:
        """Let go of the connection; calls under way fail."""
        ...
