"""What the launcher asks of a driver: start an instance, watch it, end it.

A driver turns a `LaunchSpec` into a running process of one version. The launcher's reconciler speaks only these
words; `process_driver.ProcessDriver` implements them with zygotes, and container and cluster drivers implement
them elsewhere.
"""

import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from algomesh.instance.watch import Phase

Blame = Literal["version", "machine"]
ExitReason = Literal["exit", "crash", "timeout", "memory_exceeded", "retired", "stopped", "zygote_lost"]


class Watch(Protocol):
    """What an instance says about itself: on its watch page (`WatchReader`), or by its leases (`LeaseWatch`)."""

    @property
    def phase(self) -> Phase:
        """How far it has come."""
        ...

    @property
    def active(self) -> int:
        """How many runs are running."""
        ...

    @property
    def runs_total(self) -> int:
        """How many runs have begun so far."""
        ...

    @property
    def deadline_ns(self) -> int:
        """By when, on CLOCK_MONOTONIC, a run must have ended, grace included; 0 when none must."""
        ...

    def overdue(self, now_ns: int) -> bool:
        """Whether a run should have ended before `now_ns`."""
        ...

    def began_ns(self, phase: Phase) -> int:
        """When `phase` began, on CLOCK_MONOTONIC; 0 when it has not."""
        ...


class LaunchFailed(Exception):
    """An instance could not be started; the text is a sentence that says why.

    `blame` is `version` when it would be the same on any machine: an image that does not exist, say.
    """

    def __init__(self, text: str, *, blame: Blame = "machine") -> None:
        super().__init__(text)
        self.blame: Blame = blame


@dataclass(frozen=True, kw_only=True)
class LaunchSpec:
    """What to start.

    `preload` are the modules that should be imported already; `boot` is the boot record, opaque here, and secret;
    `log_path` takes everything the instance prints; `environment` is added to the driver's own; `threads` is how
    many threads a mathematical library may use; `memory_bytes` is the limit above which the instance is killed
    (None: none); `isolated` False lets the instance keep the launcher's uid where the driver would take that
    away.
    `leased` is what the instance's leases go to, for one whose watch page cannot be read; `command` is what such a
    version in another language runs. `folder` is the unpacked archive, of `digest`; `image` is the container image that
    the version names, `gpus` the devices it gets, `labels` what is to be told about it to whoever looks.
    """

    instance: str
    boot: bytes = field(repr=False)
    log_path: Path
    preload: frozenset[str] = frozenset()
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    threads: int = 1
    nice: int = 0
    memory_bytes: int | None = None
    isolated: bool = True
    leased: Watch | None = None
    command: tuple[str, ...] = ()
    folder: Path = Path("/")
    digest: str = ""
    image: str = ""
    requirements: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How an instance ended.

    `code` or `signal` is what the kernel said (both None when nobody could hear it). `reason` is `exit` when the
    process ended itself, `crash` when a signal that nobody here sent ended it, `timeout` and `memory_exceeded`
    when the driver killed it for that, `retired` when the launcher asked it to go, `stopped` when the driver
    closed, and `zygote_lost` when it died because the process it was forked from did.
    """

    code: int | None
    signal: int | None
    reason: ExitReason
    detail: str = ""

    def __str__(self) -> str:
        """Say it as a sentence's end: `exited with code 3`."""
        if self.detail:
            return self.detail
        if self.signal is not None:
            return f"was ended by {_name_of(self.signal)}"
        return "ended" if self.code is None else f"exited with code {self.code}"


class Process(Protocol):
    """A started instance."""

    @property
    def instance(self) -> str:
        """Its id, as in the spec."""
        ...

    @property
    def pid(self) -> int:
        """Its process id on the machine where it runs; 0 when nobody knows it."""
        ...

    @property
    def watch(self) -> Watch:
        """What it says about itself; readable also after its death."""
        ...

    async def wait(self) -> Exit:
        """Return how it ended, once it has; any number of callers may wait."""
        ...

    def terminate(self, reason: ExitReason = "retired") -> None:
        """Ask it to drain and go (SIGTERM); nothing happens when it is dead."""
        ...

    def kill(self, reason: ExitReason, detail: str = "") -> None:
        """End it now (SIGKILL), with all that it started; the first reason given stays. A dead one is left alone."""
        ...

    def memory_bytes(self) -> int:
        """Return the memory that is its own, with its descendants'; 0 when it is dead. Takes milliseconds."""
        ...


class Driver(Protocol):
    """Starts instances; an async context manager, whose exit leaves none of them behind."""

    async def __aenter__(self) -> Self:
        """Begin."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill every instance and wait until they are gone."""
        ...

    async def launch(self, spec: LaunchSpec) -> Process:
        """Start an instance and return it as soon as its process exists; raises LaunchFailed."""
        ...

    async def warm(self, preload: frozenset[str]) -> None:
        """Prepare for instances with these modules, so that the first of them starts fast; raises LaunchFailed."""
        ...


@runtime_checkable
class KeepsByVersion(Protocol):
    """A driver that keeps something for each version, and drops it when there is no such version any more."""

    def know_published(self, digests: Callable[[], Collection[str]]) -> None:
        """`digests` are those of the versions in the directory, to be asked at any time."""
        ...


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
