"""What the programs are asked, verb by verb: the bodies inside `Ask` and `Answer`.

    registry  upload publish archive manifest attach route lease alias-set key-create key-list key-revoke
    launcher  ps stop logs
    ledger    runs

A verb's request is `platform.<program>.<verb>.<owner>.<name>.<caller>`; who may send it is
the broker's to say (permissions.py), so a program answers whatever reaches it.
"""

from typing import TypeVar

import msgspec
from msgspec import Struct

from algomesh_broker.errors import BadMessage

T = TypeVar("T", bound=Struct)

CHUNK_BYTES = 512 * 1024


class Options(Struct, frozen=True, kw_only=True):
    """How a version wants to run. Memory in bytes, times in seconds; `timeout_s` None: no limit.

    `cache_s` is how long its results are kept, 0 for not at all; `batch_max` how many calls run together (0: each
    alone), `batch_wait_ms` how long one waits for others; `streams` says that it yields,
    `takes_parts` that it reads its input as it is yielded. `latency_value` is what a second of a caller's latency is
    worth in seconds of a held GPU (None: the mesh's own), `prewarm` whether it is started ahead and held by what is
    predicted.
    """

    gpu: float = 0.0
    memory_bytes: int | None = None
    concurrency: int = 1
    timeout_s: float | None = 60.0
    idle_s: float = 60.0
    min_instances: int = 0
    max_instances: int = 4
    attempts: int = 3
    calls: list[str] = []
    preload: list[str] = []
    cache_s: float = 0.0
    batch_max: int = 0
    batch_wait_ms: float = 0.0
    streams: bool = False
    takes_parts: bool = False
    latency_value: float | None = None
    prewarm: bool = True


class Manifest(Struct, frozen=True, kw_only=True):
    """One version as its own code describes it; made in a child process, never by the registry.

    `entry` is `module:attribute` inside the archive; `requirements` are PEP 508 strings; `takes` and `gives` are kinds.
    A named pipeline has its JSON form as `pipeline`, and neither entry nor archive nor options.
    A program in another language has its `command` instead of an entry, run in the unpacked archive's folder.
    `image` is the container image in which the docker driver runs it; empty: the launcher's own.
    One that `is_outside` has none of the three, and no archive: it runs only in instances that users attach.
    """

    owner: str
    name: str
    version: str
    entry: str
    description: str = ""
    options: Options = Options()
    input_schema: bytes = b""
    output_schema: bytes = b""
    requirements: list[str] = []
    takes: str = ""
    gives: str = ""
    pipeline: bytes = b""
    command: list[str] = []
    image: str = ""
    is_outside: bool = False


class Upload(Struct, frozen=True, kw_only=True):
    """One piece of an archive: at most CHUNK_BYTES of it from `offset`; `size_bytes` is the whole."""

    digest: str
    size_bytes: int
    offset: int
    data: bytes


class Uploaded(Struct, frozen=True, kw_only=True):
    """How much of the archive the registry has; equal to `size_bytes` when the digest was right."""

    received_bytes: int


class Publish(Struct, frozen=True, kw_only=True):
    """Make this version callable; its archive was uploaded before. A pipeline's digest is that of its JSON form."""

    manifest: Manifest
    digest: str


class Published(Struct, frozen=True, kw_only=True):
    """`created` is False when this very version was there already."""

    algorithm: str
    version: str
    digest: str
    created: bool


class FetchArchive(Struct, frozen=True, kw_only=True):
    """Give me at most CHUNK_BYTES of this archive from `offset`."""

    digest: str
    offset: int = 0


class ArchiveChunk(Struct, frozen=True, kw_only=True):
    """A piece of an archive."""

    size_bytes: int
    data: bytes


class FetchManifest(Struct, frozen=True, kw_only=True):
    """What does this version want?"""

    version: str


class StoredManifest(Struct, frozen=True, kw_only=True):
    """A manifest with the digest of its archive."""

    manifest: Manifest
    digest: str


class Attach(Struct, frozen=True, kw_only=True):
    """I want to run an instance of this version myself; `token` is what I was given before, to go on with it."""

    version: str
    token: str = ""


class Attached(Struct, frozen=True, kw_only=True):
    """Connect as `instance` with `token`, good until `expires` (seconds since the epoch).

    `route_key` is the registry's public nkey, which signs route tokens; `options` are what the version was published
    with.
    """

    instance: str
    token: str
    expires: float
    route_key: str
    options: Options = Options()


class AliasSet(Struct, frozen=True, kw_only=True):
    """Make `alias` of this algorithm mean these versions, each with its weight; none: there is no such alias."""

    alias: str
    weights: dict[str, int] = {}


class RouteAsk(Struct, frozen=True, kw_only=True):
    """Sign this route (route.py) for me, for `lifetime_s` seconds; an instance adds the token it connected with."""

    route: bytes
    lifetime_s: float = 600.0
    token: str = ""


class Lease(Struct, frozen=True, kw_only=True):
    """A run of `root` wants to begin so many more runs than its own budget allows."""

    root: str
    runs: int


class Leased(Struct, frozen=True, kw_only=True):
    """It may begin so many; 0 when its root has had all."""

    runs: int


class RouteGrant(Struct, frozen=True, kw_only=True):
    """The route token (grants.py), and when it is over, in seconds since the epoch."""

    grant: bytes
    expires: float


class KeyCreate(Struct, frozen=True, kw_only=True):
    """A new key with scopes such as `call:text/*`, `publish:me/*`, `observe`, `admin`."""

    name: str
    scopes: list[str]


class KeyCreated(Struct, frozen=True, kw_only=True):
    """The only time the key itself is shown."""

    key: str
    id: str
    name: str
    scopes: list[str]


class KeyList(Struct, frozen=True, kw_only=True):
    """Which keys are there?"""


class KeyRow(Struct, frozen=True, kw_only=True):
    """A key, without itself. Times are seconds since the epoch."""

    id: str
    name: str
    scopes: list[str]
    created_at: float
    revoked_at: float | None = None


class KeyRows(Struct, frozen=True, kw_only=True):
    """All keys, newest first."""

    keys: list[KeyRow]


class KeyRevoke(Struct, frozen=True, kw_only=True):
    """End this key, by its id or its name; its connections are closed."""

    key: str


class Done(Struct, frozen=True, kw_only=True):
    """It is done; `count` of what it was done to."""

    count: int = 1


class Ps(Struct, frozen=True, kw_only=True):
    """Which instances run?"""


class InstanceRow(Struct, frozen=True, kw_only=True):
    """One instance of the fleet. `since` is seconds since the epoch, `load` runs under way, `memory_bytes` PSS."""

    algorithm: str
    version: str
    instance: str
    pid: int
    state: str
    load: int
    since: float
    reason: str
    start_ms: int = 0
    memory_bytes: int = 0
    note: str = ""


class InstanceRows(Struct, frozen=True, kw_only=True):
    """The fleet."""

    instances: list[InstanceRow]


class Stop(Struct, frozen=True, kw_only=True):
    """Retire the instances of this algorithm, or of one version of it."""

    version: str = ""


class Logs(Struct, frozen=True, kw_only=True):
    """The last `lines` lines that an algorithm's instances wrote; of one `version` or `run` if given."""

    version: str = ""
    run: str = ""
    lines: int = 200


class LogLine(Struct, frozen=True, kw_only=True):
    """One line of output; `run` is empty for what was printed outside a run. `at` is seconds since the epoch."""

    at: float
    version: str
    instance: str
    run: str
    line: str


class LogLines(Struct, frozen=True, kw_only=True):
    """Output, oldest first."""

    lines: list[LogLine]


class Runs(Struct, frozen=True, kw_only=True):
    """The latest runs, newest first; only of `algorithm`, or below `root`, if given."""

    limit: int = 50
    algorithm: str = ""
    root: str = ""


class RunRow(Struct, frozen=True, kw_only=True):
    """One run as the ledger has it. Times are seconds since the epoch, or 0."""

    run: str
    attempt: int
    root: str
    parent: str
    algorithm: str
    version: str
    caller: str
    root_caller: str
    instance: str
    state: str
    queued_at: float
    started_at: float
    ended_at: float
    compute_ms: float
    cold_ms: float
    error: str


class RunRows(Struct, frozen=True, kw_only=True):
    """Runs, newest first."""

    runs: list[RunRow]


class History(Struct, frozen=True, kw_only=True):
    """Runs that began after `since` (seconds since the epoch), oldest first; `after` is the last run known already."""

    since: float
    limit: int = 5_000
    after: str = ""


class MayCall(Struct, frozen=True, kw_only=True):
    """Which of these algorithms (`owner/name`) may `caller` call?"""

    caller: str
    algorithms: list[str]


class MayCalled(Struct, frozen=True, kw_only=True):
    """Those that it may."""

    algorithms: list[str]


class Graph(Struct, frozen=True, kw_only=True):
    """What calls what, as the pre-warmer has learned it; of `algorithm` alone where given."""

    algorithm: str = ""


class Edge(Struct, frozen=True, kw_only=True):
    """After `caller_of` comes `algorithm`, with this probability, `delay_s` later at the median.

    `count` is how often lately (decayed), `in_time` the share of its cold starts that were begun ahead in time, None
    where there was none yet.
    """

    caller_of: str
    algorithm: str
    probability: float
    delay_s: float
    count: float = 0.0
    in_time: float | None = None


class GraphEdges(Struct, frozen=True, kw_only=True):
    """The learned graph."""

    edges: list[Edge]


class Starts(Struct, frozen=True, kw_only=True):
    """The latest starts of instances, newest first."""

    limit: int = 50
    algorithm: str = ""


class StartRow(Struct, frozen=True, kw_only=True):
    """One start. `kind`: call, next, stage, gap, minimum. Times are seconds since the epoch, or 0; `held_s` is how long
    it was up with nothing to do, `saved_s` how long callers did not have to wait because of it.
    """

    instance: str
    algorithm: str
    version: str
    kind: str
    reason: str
    started_at: float
    ready_at: float = 0.0
    used_at: float = 0.0
    ended_at: float = 0.0
    held_s: float = 0.0
    saved_s: float = 0.0
    gpu: float = 0.0


class StartRows(Struct, frozen=True, kw_only=True):
    """Starts, newest first."""

    starts: list[StartRow]


class Savings(Struct, frozen=True, kw_only=True):
    """What has pre-warming brought, and cost, since `since` (seconds since the epoch)?

    `calls`: list so many of the calls that were spared a wait, too.
    """

    since: float = 0.0
    calls: int = 0


class SparedRow(Struct, frozen=True, kw_only=True):
    """A call that came at `at` (seconds since the epoch), and waited `seconds` less because of the pre-warmer.

    `why`: next, stage or gap, as its instance was started ahead for; or kept, where it was held for longer than
    its idle time. It stands for `count` calls, of which one in so many was seen.
    """

    run: str
    root: str
    algorithm: str
    version: str
    caller: str
    at: float
    seconds: float
    why: str
    count: int = 1


class SavingsRow(Struct, frozen=True, kw_only=True):
    """Counts and seconds since the pre-warmer began, or since when asked for; `starts` by kind, `used` of these.

    `spared` calls, and the seconds `saved` them, by why; `saved_s` is the sum. `rows` are the latest, newest first.
    """

    starts: dict[str, int]
    used: dict[str, int]
    gpu_s_held: float
    gpu_s_for_nothing: float
    saved_s: float
    calls: int
    cold_calls: int
    spared: dict[str, int] = {}
    saved: dict[str, float] = {}
    rows: list[SparedRow] = []


pack = msgspec.msgpack.Encoder().encode


def unpack(type_: type[T], body: bytes) -> T:
    """Read a body as `type_`. Raises BadMessage with the path of the offending field."""
    try:
        return msgspec.msgpack.decode(body, type=type_)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise BadMessage(f"not a {type_.__name__}: {error}") from error
