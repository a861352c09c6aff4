"""`current()`: what an algorithm may know of its own run, and a client whose calls are that run's children."""

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from algomesh import clients, errors
from algomesh.transport import Origin

if TYPE_CHECKING:
    from algomesh.response import Response
    from algomesh_broker.names import Reference


class Host(Protocol):
    """What the runtime of an instance offers to the runs inside it."""

    loop: asyncio.AbstractEventLoop

    async def call_child(
        self, context: "RunContext", reference: "Reference", value: Any, timeout: float | None
    ) -> "Response":
        """Call on behalf of a run, which gives its slot back while it waits."""
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
        return structlog.get_logger().bind(run=self.run, algorithm=self.algorithm)

    @property
    def client(self) -> "ChildClient":
        """Calls algorithms as children of this run; `await` its `pipe` in async code."""
        return ChildClient(self, self._host)


class ChildClient:
    """The client of a run."""

    def __init__(self, context: RunContext, host: Host | None) -> None:
        self._context, self._host = context, host

    def algo(self, reference: str) -> "ChildAlgo":
        """An algorithm by its reference; it must stand in this version's `calls`. Raises BadReference."""
        return ChildAlgo(self._context, self._host, clients.parse_reference(reference))


class ChildAlgo:
    """One algorithm that a run may call."""

    def __init__(self, context: RunContext, host: Host | None, reference: "Reference") -> None:
        self._context, self._host, self.reference = context, host, reference

    def pipe(self, value: Any, *, timeout: float | None = None) -> Any:
        """Run it as a child: returns a Response in plain code, something to await in async code.

        While it waits, the run gives its slot back. Raises MeshError.
        """
        if self._host is None:
            return clients.client().algo(str(self.reference)).pipe(value, timeout=timeout)
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._host.loop and asyncio.current_task() is None:
            # A short plain function without `calls` runs inline; the broker would refuse its call anyway.
            raise errors.PermissionDenied(
                f"it may not call {self.reference}; declare @algorithm(calls=[{self.reference.algorithm!r}])",
                stage=self._context.algorithm,
            )
        work = self._host.call_child(self._context, self.reference, value, timeout)
        return work if running is self._host.loop else asyncio.run_coroutine_threadsafe(work, self._host.loop).result()


_current: contextvars.ContextVar[RunContext | None] = contextvars.ContextVar("algomesh_run", default=None)


def current() -> RunContext:
    """The run this code is in; outside the mesh a stand-in, so that algorithms run as plain code too."""
    context = _current.get()
    if context is None:
        context = RunContext(None, Origin("local", "local", "local", 0, 10_000, float("inf")))
    return context


def enter(context: RunContext) -> contextvars.Token[RunContext | None]:
    """Make `context` the current one; for the runtime."""
    return _current.set(context)


def leave(token: contextvars.Token[RunContext | None]) -> None:
    """End what `enter` began; for the runtime."""
    _current.reset(token)


def entered() -> RunContext | None:
    """The current context, or None outside a run; for the runtime."""
    return _current.get()
