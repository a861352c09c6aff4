"""What travels on the subjects: Structs, msgpack, array-like, tagged.

Fields are only ever appended, with defaults, since their order is the wire format;
each message has a golden file in tests/wire/. Times are durations in milliseconds,
never clock times, except in events, which are the record of when something happened.
"""

from typing import Literal

from msgspec import Struct

ContentType = Literal["text", "json", "binary", "tensor"]
Phase = Literal["queued", "forking", "importing", "loading", "connecting", "ready"]
RunState = Literal["running", "succeeded", "failed", "refused", "expired", "lost", "cancelled"]


class Call(Struct, frozen=True, kw_only=True, array_like=True, tag="call"):
    """One run of one algorithm, asked for. The caller stands in the subject, not here.

    `payload` is raw: UTF-8 text, JSON, bytes, or an array's memory; for a tensor `detail`
    says `kind/dtype/shape`, e.g. `numpy/float32/3,4`. `time_left_ms` is what is left of the
    deadline when the message is sent. `grant` is a hop's route token.
    """

    run: str
    root: str
    parent: str = ""
    root_caller: str
    attempt: int = 1
    session: str
    call: str
    time_left_ms: int
    depth: int = 0
    budget: int = 10_000
    content_type: ContentType = "json"
    detail: str = ""
    payload: memoryview = memoryview(b"null")
    traceparent: str = ""
    grant: bytes = b""


class Running(Struct, frozen=True, kw_only=True, array_like=True, tag="running"):
    """An instance has this run: said after 100 ms, at once for a parked call, then once a second.

    `ready_ms` is how long the instance had been ready when it took the run, `start_ms` how long
    its start took; a caller that had waited longer than `ready_ms` met a cold start.
    """

    run: str
    attempt: int
    instance: str
    ready_ms: int = 0
    start_ms: int = 0
    progress: float | None = None
    message: str = ""


class Parked(Struct, frozen=True, kw_only=True, array_like=True, tag="parked"):
    """An instance had no slot within 50 ms and parked the run."""

    run: str
    attempt: int
    instance: str


class Result(Struct, frozen=True, kw_only=True, array_like=True, tag="result"):
    """A run's output. `queued_ms` is the wait for a slot, `compute_ms` the user code's own time."""

    run: str
    attempt: int
    instance: str
    version: str
    content_type: ContentType
    detail: str = ""
    payload: memoryview
    queued_ms: float = 0.0
    compute_ms: float = 0.0
    ready_ms: int = 0
    start_ms: int = 0


class Failure(Struct, frozen=True, kw_only=True, array_like=True, tag="failure"):
    """A run's end without output. `stage` is `owner/name/version`, `code` one of the SDK's error codes."""

    run: str
    attempt: int
    instance: str = ""
    code: str
    message: str
    stage: str = ""
    error_type: str = ""


Reply = Running | Parked | Result | Failure


class Cancel(Struct, frozen=True, kw_only=True, array_like=True, tag="cancel"):
    """Sent to an instance: stop this run; `attempt` and lower ones."""

    run: str
    attempt: int


Control = Cancel


class Demand(Struct, frozen=True, kw_only=True, array_like=True, tag="demand"):
    """Somebody parked a call of this version."""

    run: str
    root: str = ""
    parent: str = ""


class Starting(Struct, frozen=True, kw_only=True, array_like=True, tag="starting"):
    """While calls are parked, once a second: what the launcher is doing about it, and how many wait."""

    phase: Phase
    waiting: int = 0
    instances: int = 0


class Ready(Struct, frozen=True, kw_only=True, array_like=True, tag="ready"):
    """An instance takes calls from now on; `start_ms` is launch to ready."""

    instance: str
    start_ms: int


class Death(Struct, frozen=True, kw_only=True, array_like=True, tag="death"):
    """An instance is gone. `reason`: exit, crash, timeout, memory_exceeded, load_failed, retired, host_lost."""

    instance: str
    reason: str
    detail: str = ""


class Unable(Struct, frozen=True, kw_only=True, array_like=True, tag="unable"):
    """No instance will come for the calls that are parked now: they fail with this code and message."""

    code: str
    message: str


Fleet = Starting | Ready | Death | Unable


class HostBeat(Struct, frozen=True, kw_only=True, array_like=True, tag="host"):
    """A launcher lives (`alive`), or says goodbye; its instances' ids begin with its own id and a dash."""

    launcher: str
    alive: bool = True


class RunEvent(Struct, frozen=True, kw_only=True, array_like=True, tag="run"):
    """What the ledger keeps of a run; a later event of the same (run, attempt) overwrites an earlier one.

    Clock times are seconds since the epoch, UTC; 0 means unknown.
    """

    run: str
    attempt: int
    root: str
    parent: str
    algorithm: str
    version: str
    caller: str
    root_caller: str
    instance: str = ""
    state: RunState
    queued_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    compute_ms: float = 0.0
    cold_ms: float = 0.0
    error: str = ""


class Events(Struct, frozen=True, kw_only=True, array_like=True, tag="events"):
    """A batch of run events from one instance or one caller."""

    runs: list[RunEvent]


class Ask(Struct, frozen=True, kw_only=True, array_like=True, tag="ask"):
    """A request to a program of the mesh; `body` is the msgpack of the verb's own Struct (see platform.py)."""

    session: str
    call: str
    body: bytes = b""


class Answer(Struct, frozen=True, kw_only=True, array_like=True, tag="answer"):
    """A program's answer: `body` of the verb's own Struct, or an error `code` with its `message`."""

    body: bytes = b""
    code: str = ""
    message: str = ""


class VersionEntry(Struct, frozen=True, kw_only=True, array_like=True):
    """What a caller must know of a version; the rest is the registry's manifest."""

    version: str
    digest: str = ""
    timeout_s: float | None = 60.0
    attempts: int = 3
    description: str = ""
    published_at: float = 0.0
    min_instances: int = 0


class AlgorithmEntry(Struct, frozen=True, kw_only=True, array_like=True, tag="algorithm"):
    """The directory's entry of one algorithm: its versions, oldest first."""

    owner: str
    name: str
    versions: list[VersionEntry]
