"""What the policy is asked and what it answers: calls and the fleet going in, holds and releases coming out."""

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import msgspec

LatencyValue: TypeAlias = float | Callable[[str, str | None], float]
"""GPU-seconds a second of a caller's latency is worth: one figure, or one by (algorithm, caller). 0 switches off."""

Why: TypeAlias = Literal["next", "stage", "called", "gap"]


class Call(Protocol):
    """A call as it begins.

    Live calls may also carry `route` (a tuple of the algorithms that an explicit pipeline still goes through after
    this one), `step` (which pipeline, and which step of it, 0 for its head), `version` and `attempt` (1 for the first);
    all four are read if they are there.
    """

    @property
    def request(self) -> str:
        """The root run: all calls of one request share it."""
        ...

    @property
    def index(self) -> int:
        """Which call of the request this is."""
        ...

    @property
    def parent(self) -> int:
        """The index of the call that made this one, -1 for the root."""
        ...

    @property
    def algorithm(self) -> str:
        """Who is called."""
        ...

    @property
    def caller(self) -> str | None:
        """Who made the request."""
        ...

    @property
    def at_s(self) -> float:
        """When it was called."""
        ...

    @property
    def ready_at_s(self) -> float:
        """When it starts, or is expected to: later than `at_s` by the cold start that it waits for."""
        ...


class Fleet(Protocol):
    """What is up and what it costs, as known at the moment of the question."""

    def cold_start_s(self, algorithm: str, /) -> float:
        """Mean seconds from start to ready; 0: always up, nothing to manage."""
        ...

    def gpu_weight(self, algorithm: str, /) -> float:
        """GPU-seconds that a second of an instance costs."""
        ...

    def state(self, algorithm: str, /) -> str:
        """`off`, `loading` or `warm`."""
        ...

    def ready_in_s(self, algorithm: str, /) -> float:
        """Expected seconds until a load in flight is ready; 0 when warm."""
        ...


class Hold(msgspec.Struct, frozen=True, kw_only=True, tag="hold"):
    """The wish that an algorithm be up (its loading begins at `start_s`) until `until_s`, under `key`.

    A new hold under the same key of the same algorithm replaces the old one. `gain_per_gpu_s` is what the hold is
    expected to save, in GPU-seconds (latency converted), for each GPU-second that it is expected to take: the rank in
    which a launcher without room for all should serve them. `version` is the one called last, where calls say one.
    """

    algorithm: str
    key: str
    start_s: float
    until_s: float
    why: Why
    gain_per_gpu_s: float = 0.0
    probability: float = 1.0
    after: str = ""
    in_s: float = 0.0
    version: str | None = None

    @property
    def reason(self) -> str:
        """A part of a sentence for people: "next after text/clean in 1.2 s, p = 0.93"."""
        match self.why:
            case "next":
                return f"next after {self.after} in {self.in_s:.1f} s, p = {self.probability:.2f}"
            case "stage":
                return f"a stage after {self.after} of the same pipeline"
            case "called":
                return "being called"
            case "gap":
                return f"called about every {self.in_s:.0f} s" if self.in_s >= 1 else "called many times a second"


class Release(msgspec.Struct, frozen=True, kw_only=True, tag="release"):
    """The hold under `key` is dropped."""

    algorithm: str
    key: str


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """A learned edge of the call graph: `caller` calls `callee` with this probability, after so many warm seconds.

    `count` is how often it did so lately, of the last fifty calls or so.
    """

    caller: str
    callee: str
    probability: float
    delay_s: float
    count: float = 0.0


Action: TypeAlias = Hold | Release
