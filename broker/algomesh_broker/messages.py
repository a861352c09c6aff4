"""What travels on the subjects: Structs, msgpack, array-like, tagged.

Fields are only ever appended, with defaults, since their order is the wire format;
each message has a golden file in tests/wire/. Times are durations in milliseconds,
never clock times, except in events, which are the record of when something happened.
Those that a hop is made of are kept from the garbage collector (`gc=False`): none of them can hold itself. The widest
of them, Call, Result and RunEvent, may be made by position (else `kw_only`), which takes a fifth of the time it takes
with keywords; that is for the one place of the hot path that makes them.
"""

from typing import Final, Literal

from msgspec import Struct

ContentType = Literal["text", "json", "binary", "tensor", "bundle", "claim"]
LeasePhase = Literal["importing", "loading", "connecting", "ready", "draining", "ended"]
Phase = Literal["queued", "forking", "importing", "loading", "connecting", "ready"]
NOT_JOINED: Final = -2
RunState = Literal["running", "succeeded", "failed", "refused", "expired", "lost", "cancelled"]


class Claim(Struct, frozen=True, kw_only=True, array_like=True):
    """Where a payload over 512 KiB lies: `path` in shared memory of the machine `host`, or chunks in a stream."""

    id: str
    size_bytes: int
    host: str = ""
    path: str = ""
    chunks: int = 0


class Call(Struct, frozen=True, array_like=True, gc=False, tag="call"):
    """One run of one algorithm, asked for. The caller stands in the subject, not here.

    `payload` is raw: UTF-8 text, JSON, bytes, or an array's memory; for a tensor `detail`
    says `kind/dtype/shape`, e.g. `numpy/float32/3,4`; a bundle is several of these (content.py),
    a claim says where the payload lies (claiming.py). `time_left_ms` is what is left of the deadline when the message
    is sent.

    In a pipeline `grant` is its route token (grants.py) and `at` the step this envelope is for; `reply_to` is who
    waits for the answer, where that is not the subject's caller (a hop's is its forwarder); `run` is the run of
    the whole chain, of which each stage is a run of its own, `<run>-<at>`; `spent_ms` is the user code's time in
    the stages before. `credit` is how many parts the caller takes before it gives more credit; 0: it wants no
    parts, and gets what is yielded as a list. `feed` is the instance of the step before, where the input is to be
    had part by part, while that still runs.
    """

    run: str
    root: str
    parent: str = ""
    root_caller: str = ""
    attempt: int = 1
    session: str = ""
    call: str = ""
    time_left_ms: int = 0
    depth: int = 0
    budget: int = 10_000
    content_type: ContentType = "json"
    detail: str = ""
    payload: memoryview = memoryview(b"null")
    traceparent: str = ""
    grant: bytes = b""
    at: int = -1
    reply_to: str = ""
    credit: int = 0
    spent_ms: float = 0.0
    feed: str = ""
    writers: list[str] = []
    is_near: bool = False


class Running(Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag="running"):
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
    at: int = -1


class Parked(Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag="parked"):
    """A run waits with the stream: an instance had no slot within 50 ms, or found none for its pipeline's next step."""

    run: str
    attempt: int
    instance: str
    at: int = -1


class Result(Struct, frozen=True, array_like=True, gc=False, tag="result"):
    """A run's output. `queued_ms` is the wait for a slot, `compute_ms` the user code's own time, in all stages.

    `parts` is how many parts were sent before it, -1 where the output is here, and NOT_JOINED where it is that of step
    `at`, and the instance cannot join what fans out after that: who sent the pipeline goes on from there.
    `cached` says that the output was kept from an earlier run.
    `writers` keep something for this run until they are told to forget it.
    """

    run: str
    attempt: int
    instance: str
    version: str
    content_type: ContentType
    detail: str = ""
    payload: memoryview = memoryview(b"null")
    queued_ms: float = 0.0
    compute_ms: float = 0.0
    ready_ms: int = 0
    start_ms: int = 0
    at: int = -1
    parts: int = -1
    cached: bool = False
    writers: list[str] = []


class Part(Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag="part"):
    """One of the values that a run yields, before its Result; `number` counts from 0."""

    run: str
    attempt: int
    instance: str
    number: int
    content_type: ContentType
    detail: str = ""
    payload: memoryview = memoryview(b"")
    at: int = -1


class HandedOver(Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag="handed-over"):
    """A run that was said to run has gone on to the next step, `at`: whoever waits must not mourn it here."""

    run: str
    attempt: int
    instance: str
    at: int


class Failure(Struct, frozen=True, kw_only=True, array_like=True, tag="failure"):
    """A run's end without output. `stage` is `owner/name/version`, `code` one of the SDK's error codes.

    `branch` names the branches of a fan-out, or items of an `each`, in which it failed, outermost first.
    """

    run: str
    attempt: int
    instance: str = ""
    code: str
    message: str
    stage: str = ""
    error_type: str = ""
    at: int = -1
    branch: list[str] = []


Reply = Running | Parked | HandedOver | Part | Result | Failure


class Cancel(Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag="cancel"):
    """Sent to an instance: stop this run, `attempt` and lower ones; of a pipeline, its step `at`."""

    run: str
    attempt: int
    at: int = -1


class Credit(Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag="credit"):
    """Sent to an instance that yields: parts below `upto` may be sent.

    The next step's instance, which reads them, says with its `session` and `call` where they go.
    """

    run: str
    attempt: int
    upto: int
    at: int = -1
    session: str = ""
    call: str = ""


class Forget(Struct, frozen=True, kw_only=True, array_like=True, tag="forget"):
    """Sent to an instance that wrote claims: everything of this root run has been read, or given up."""

    root: str


Control = Cancel | Credit | Forget


class Demand(Struct, frozen=True, kw_only=True, array_like=True, tag="demand"):
    """Somebody parked a call of this version; `stages` are the versions that its pipeline goes on to, in order."""

    run: str
    root: str = ""
    parent: str = ""
    root_caller: str = ""
    attempt: int = 1
    stages: list[str] = []
    traceparent: str = ""


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
    """A launcher lives (`alive`), or says goodbye; its instances' ids begin with its own id and a dash.

    `host` names the shared memory that its instances see (claims_shm.py); empty where there is none.
    """

    launcher: str
    alive: bool = True
    host: str = ""


class InstanceLease(Struct, frozen=True, kw_only=True, array_like=True, tag="lease"):
    """An instance lives whose watch page its launcher cannot read: one in a container, or in another language.

    Said at every change of `phase` and once a second; three seconds of silence are its death. `active` runs are in it
    now, `total` have been; `overdue_ms` is how long it is past the time limit, and two seconds of grace, of a run that
    does not end (0: none is). With `ended` comes why it could not start, as `failure`, an error code and a sentence
    joined by a blank. One that no launcher started shows in every lease the `token` it connects with, which says whose
    it is and of which version.
    """

    instance: str
    phase: LeasePhase
    active: int = 0
    total: int = 0
    overdue_ms: int = 0
    failure: str = ""
    token: str = ""


class RunEvent(Struct, frozen=True, array_like=True, gc=False, tag="run"):
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
    state: RunState = "running"
    queued_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    compute_ms: float = 0.0
    cold_ms: float = 0.0
    error: str = ""


class Events(Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag="events"):
    """A batch of run events from one instance or one caller."""

    runs: list[RunEvent]


class Sight(Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag="sight"):
    """One run as its instance saw it begin, and later end, for the pre-warmer (ADR 0013).

    Clock times are seconds since the epoch; `ended_at` is 0 while it runs. `waited_ms` passed between the call's
    arrival and its start, a cold start included. `stages` are the versions that its pipeline goes on to.
    """

    run: str
    root: str
    parent: str
    caller: str
    root_caller: str
    attempt: int
    started_at: float
    waited_ms: float = 0.0
    ended_at: float = 0.0
    stages: list[str] = []


class Sights(Struct, frozen=True, kw_only=True, array_like=True, tag="sights"):
    """Runs of one version, in a batch: all of them, or of a busy version those of one root in `one_in`."""

    runs: list[Sight]
    one_in: int = 1


class Machine(Struct, frozen=True, kw_only=True, array_like=True, tag="machine"):
    """What a launcher runs: said after every change, and once a second. It replaces what was said before."""

    launcher: str
    instances: list["MachineInstance"]


class MachineInstance(Struct, frozen=True, kw_only=True, array_like=True):
    """One instance. `age_ms` since its launch began; `start_ms` is fork to ready, 0 while it is not.

    `key` is that of the hold it was launched for, and empty when a call waited for it; `idle_ms` is how long it has
    had nothing to do, -1 while it works.
    """

    instance: str
    version: str
    state: str
    age_ms: int
    start_ms: int = 0
    reason: str = ""
    key: str = ""
    idle_ms: int = -1
    runs_total: int = 0


class Hold(Struct, frozen=True, kw_only=True, array_like=True):
    """The pre-warmer's wish that a version be up for a while: loading from `start_ms` on, until `until_ms`.

    Both from now, and 0 where they have passed. `key` names the hold within its version; a new one of the same key
    replaces the old. `reason` is for people; `gain` what a second of it is expected to save, in seconds of a GPU;
    `caller` is whose request it is for, where it is for one; `launcher` who is to have it up (empty: any, and all).
    """

    version: str
    key: str
    start_ms: int
    until_ms: int
    reason: str
    gain: float = 0.0
    caller: str = ""
    launcher: str = ""


class Holds(Struct, frozen=True, kw_only=True, array_like=True, tag="holds"):
    """What the pre-warmer wishes now. Once a second `is_whole`: every hold there is, all others are over.

    In between, what has changed: new and replaced `holds`, and `released` ones as (version, key). A launcher that has
    heard nothing whole for 5 s goes back to fixed idle times. `off` are versions which the pre-warmer leaves alone.
    """

    holds: list[Hold]
    released: list[tuple[str, str]] = []
    is_whole: bool = False
    off: list[str] = []


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
    """What a caller must know of a version; the rest is the registry's manifest.

    `pipeline` is the JSON form of a named pipeline, which its caller puts in its own pipeline's place; `takes` and
    `gives` are kinds, as far as they are known. `takes_parts`: it reads its input as it is yielded.
    """

    version: str
    digest: str = ""
    timeout_s: float | None = 60.0
    attempts: int = 3
    description: str = ""
    published_at: float = 0.0
    min_instances: int = 0
    pipeline: bytes = b""
    takes: str = ""
    gives: str = ""
    cache_s: float = 0.0
    takes_parts: bool = False


class AlgorithmEntry(Struct, frozen=True, kw_only=True, array_like=True, tag="algorithm"):
    """The directory's entry of one algorithm: its versions, oldest first, and what each alias means, by weight."""

    owner: str
    name: str
    versions: list[VersionEntry]
    aliases: dict[str, dict[str, int]] = {}
