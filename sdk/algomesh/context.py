"""`current()`: what an algorithm may know of its own run, and a client whose calls are that run's children."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

from algomesh import clients, errors
from algomesh.composing import Handle
from algomesh.pipeline import Operand, Pipeline, Stage, value_of
from algomesh.result_stream import AsyncStream, Stream, Tell
from algomesh.transport import Origin

if TYPE_CHECKING:
    from algomesh.content import Content
    from algomesh.response import Response


class Host(Protocol):
    """What the runtime of an instance offers to the runs inside it."""

    loop: asyncio.AbstractEventLoop

    async def call_child(
        self, context: "RunContext", pipeline: Pipeline, value: Any, timeout: float | None
    ) -> "Response":
        """Call on behalf of a run, which gives its slot back while it waits."""
        ...

    def stream_child(
        self, context: "RunContext", pipeline: Pipeline, value: Any, timeout: float | None, told: Tell
    ) -> "AsyncGenerator[Content, None]":
        """The same, part by part; `told` gets the metadata at the end."""
        ...


class RunContext:
    """One run, as the code inside it sees it.

    `run`, `parent`, `root`: ids. `algorithm`: `owner/name/version`. `caller`, `root_caller`: who asked.
    `log`: a structlog logger that is bound to the run. `client`: calls children of this run.
    """

    def __init__(
        self, host: Host | None, origin: Origin, *, parent: str = "", caller: str = "", algorithm: str = ""
    ) -> None:
        self.run, self.root, self.parent = origin.run, origin.root, parent
        self.caller, self.root_caller, self.algorithm = caller, origin.root_caller, algorithm
        self.origin = origin
        self.cancelled = False
        self.has_news = False  # something it called failed, or met a cold start; for run_spans.py
        self._host = host

    @property
    def remaining_s(self) -> float:
        """Seconds until this run must have answered; infinite outside the mesh."""
        if self._host is None:
            return float("inf")
        return max(0.0, self.origin.deadline - self._host.loop.time())

    @property
    def log(self) -> Any:
        """A logger whose lines carry run and algorithm."""
        import structlog  # 0.1 s where rich is installed, and few runs log

        return structlog.get_logger().bind(run=self.run, algorithm=self.algorithm)

    @property
    def client(self) -> "ChildClient":
        """Calls algorithms as children of this run; `await` its `pipe` in async code."""
        return ChildClient(self, self._host)


class ChildClient:
    """The client of a run."""

    def __init__(self, context: RunContext, host: Host | None) -> None:
        self._context, self._host = context, host

    def algo(self, of: Operand) -> "ChildAlgo":
        """What the run may call: an algorithm by its reference, a decorated one, or a pipeline.

        Each must stand in this version's `calls`. Raises BadReference.
        """
        return ChildAlgo(self._context, self._host, value_of(of))


class ChildAlgo(Handle):
    """One algorithm, or pipeline, that a run may call; composes with `|`, `&` and `.each()`."""

    def __init__(self, context: RunContext, host: Host | None, pipeline: Pipeline) -> None:
        self._context, self._host, self._pipeline = context, host, pipeline

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that it runs."""
        return self._pipeline

    @property
    def owner(self) -> RunContext:
        """The run that it calls for."""
        return self._context

    def bound(self, pipeline: Pipeline) -> Self:
        """Another pipeline of the same run."""
        return type(self)(self._context, self._host, pipeline)

    def pipe(self, value: Any, *, timeout: float | None = None) -> Any:
        """Run it as a child: returns a Response in plain code, something to await in async code.

        While it waits, the run gives its slot back. Raises MeshError.
        """
        of, host = self._pipeline, self._host
        if host is None:
            return clients.client().algo(of).pipe(value, timeout=timeout)
        in_loop = self._is_in_loop(host)
        work = host.call_child(self._context, of, value, timeout)
        return work if in_loop else asyncio.run_coroutine_threadsafe(work, host.loop).result()

    def stream(self, value: Any, *, timeout: float | None = None) -> Any:
        """Run it as a child, part by part: something to iterate over, `async for` in async code.

        While it waits for a part, the run gives its slot back. Leaving early cancels the child. Raises MeshError.
        """
        of, host, context = self._pipeline, self._host, self._context
        if host is None:
            return clients.client().algo(of).stream(value, timeout=timeout)
        in_loop = self._is_in_loop(host)
        parts = AsyncStream(lambda told: host.stream_child(context, of, value, timeout, told))
        return parts if in_loop else Stream(parts, partial(asyncio.run_coroutine_threadsafe, loop=host.loop))

    def _is_in_loop(self, host: Host) -> bool:
        """Whether this is async code. Raises PermissionDenied where there is nothing to wait with."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if running is host.loop and asyncio.current_task() is None:
            # A short plain function without `calls` runs inline; the broker would refuse its call anyway.
            of = self._pipeline
            declared = f"calls=[{of.target.algorithm!r}]" if isinstance(of, Stage) else "calls=[…]"
            raise errors.PermissionDenied(
                f"it may not call {of!r}; declare @algorithm({declared})",
                stage=self._context.algorithm,
            )
        return running is host.loop


class Entered(Protocol):
    """A run whose context is made when its code asks for it."""

    @property
    def context(self) -> RunContext:
        """The run, as the code inside it sees it."""
        ...


_current: contextvars.ContextVar[RunContext | Entered | None] = contextvars.ContextVar("algomesh_run", default=None)


def current() -> RunContext:
    """The run this code is in; outside the mesh a stand-in, so that algorithms run as plain code too."""
    context = entered()
    if context is None:
        context = RunContext(None, Origin("local", "local", "local", 0, 10_000, float("inf")))
    return context


# Make a context, or a run that will have one, the current one, and end that; for the runtime.
enter = _current.set
leave = _current.reset


def entered() -> RunContext | None:
    """The current context, or None outside a run; for the runtime."""
    inside = _current.get()
    return inside if inside is None or isinstance(inside, RunContext) else inside.context
