"""Every subject of the mesh, built and taken apart in this module and nowhere else.

    call.<owner>.<name>.<version>.<caller>          a live call, queue group `workers`
    hop.<owner>.<name>.<version>.<forwarder>        the next stage of a pipeline, handed over
    park.call.… park.hop.…                          the same two, parked in a memory stream
    demand.<owner>.<name>.<version>.<caller>        somebody waits for this version
    reply.<owner>.<name>.<caller>.<session>.<call>  answers and progress, in the answerer's own name
    control.<instance>.<caller>                     cancel
    event.run.<owner>.<name>.<version>              runs as the instance saw them, in batches
    event.caller.<caller>                           runs that ended without an instance, as their sender saw them
    fleet.<owner>.<name>.<version>                  starting, ready, dead
    fleet.host.<launcher>                           the launcher's own beat
    sight.<owner>.<name>.<version>                  runs as they begin and end, for the pre-warmer
    machine.<launcher>                              what a launcher runs, for the pre-warmer
    lease.<instance>                                an instance lives whose launcher cannot look into its memory
    hold.all                                        what the pre-warmer wishes launchers to have up
    claim.<mark>.<caller>.<id>.<number>.chunk       a piece of a payload that travels by claim; the server sets <mark>
    cache.<mark>.<owner>.<name>.<version>.<digest>.result   the kept result of one input; the server sets <mark>
    platform.<program>.<verb>.<owner>.<name>.<caller>   requests to the programs; `_` where no algorithm is meant

<caller> is `k~<id>` for a key and `owner~name` for an instance; the broker's permissions
hold it, so a receiver may trust it.
"""

from typing import NamedTuple

from algomesh_broker.errors import BadMessage, BadName
from algomesh_broker.names import VersionId

WORKERS = "workers"
PARKED_STREAM = "parked"
EVENTS_STREAM = "events"
CLAIMS_STREAM = "claims"
CACHE_STREAM = "cache"
DIRECTORY_BUCKET = "directory"
NO_ALGORITHM = "_"
ALL_VERSIONS = "fleet.*.*.*"
HOST_BEATS = "fleet.host.*"
ALL_DEMAND = "demand.>"
ALL_FLEET = "fleet.>"
ALL_EVENTS = "event.>"
ALL_PARKED = "park.>"
ALL_SIGHTS = "sight.*.*.*"
ALL_MACHINES = "machine.*"
HOLDS = "hold.all"
ALL_LEASES = "lease.*"
ALL_CLAIMS = "claim.*.*.*.*.chunk"
READ_CLAIM = f"$JS.API.DIRECT.GET.{CLAIMS_STREAM}.{ALL_CLAIMS}"
ALL_RESULTS = "cache.*.*.*.*.*.result"
READ_RESULT = f"$JS.API.DIRECT.GET.{CACHE_STREAM}.{ALL_RESULTS}"


class Work(NamedTuple):
    """What the subject of a call or a hop says: lane, version, and who sent it."""

    lane: str
    version: VersionId
    caller: str


def call(version: VersionId, caller: str) -> str:
    """A live call of `version` by `caller`."""
    return f"call.{version.tokens}.{caller}"


def hop(version: VersionId, forwarder: str) -> str:
    """A stage handed over by the instance of `forwarder`."""
    return f"hop.{version.tokens}.{forwarder}"


def park(work: str) -> str:
    """The parked form of a call's or a hop's subject."""
    return f"park.{work}"


def demand(version: VersionId, caller: str) -> str:
    """Somebody waits for `version`."""
    return f"demand.{version.tokens}.{caller}"


def calls_of(version: VersionId) -> str:
    """What an instance subscribes: live calls of its version."""
    return f"call.{version.tokens}.*"


def hops_of(version: VersionId) -> str:
    """What an instance subscribes: hops to its version."""
    return f"hop.{version.tokens}.*"


def parked_of(version: VersionId) -> str:
    """The filter of the version's consumer: its parked calls and hops."""
    return f"park.*.{version.tokens}.*"


def parse_work(subject: str) -> Work:
    """Take apart a live or parked call or hop. Raises BadMessage."""
    tokens = subject.removeprefix("park.").split(".")
    if len(tokens) != 5 or tokens[0] not in ("call", "hop"):
        raise BadMessage(f"{subject!r} is not the subject of a call or a hop")
    try:
        return Work(tokens[0], VersionId.of_tokens(*tokens[1:4]), tokens[4])
    except BadName as error:
        raise BadMessage(f"{subject!r}: {error}") from error


def reply(answerer: str, caller: str, session: str, call_id: str) -> str:
    """Where the answer to one call goes; `answerer` is `owner~name` of the instance, or `platform~<program>`."""
    owner, _, name = answerer.partition("~")
    return f"reply.{owner}.{name}.{caller}.{session}.{call_id}"


def replies_of(answerer: str) -> str:
    """What every answer of `owner~name` begins with; followed by `answer_to`, it is `reply`."""
    owner, _, name = answerer.partition("~")
    return f"reply.{owner}.{name}."


def answer_to(prefix: str, caller: str, session: str, call_id: str) -> str:
    """The subject of one answer, for who answers often and keeps its `replies_of`."""
    return f"{prefix}{caller}.{session}.{call_id}"


def replies_to(caller: str, session: str) -> str:
    """What a caller subscribes once: every answer to this session."""
    return f"reply.*.*.{caller}.{session}.*"


def no_responders(caller: str, session: str, call_id: str) -> str:
    """The NATS reply field of a call: the server itself answers here when nobody is subscribed."""
    return f"reply.none.none.{caller}.{session}.{call_id}"


def inbox(identity: str) -> str:
    """The prefix of an identity's private inboxes (JetStream's answers): nobody else may subscribe it."""
    return f"_INBOX.{identity}"


def control(instance: str, caller: str) -> str:
    """Cancel, sent by `caller` to `instance`."""
    return f"control.{instance}.{caller}"


def controls_of(instance: str) -> str:
    """What an instance subscribes to hear of cancels."""
    return f"control.{instance}.*"


def lease(instance: str) -> str:
    """That `instance` lives, said by itself."""
    return f"lease.{instance}"


def run_events(version: VersionId) -> str:
    """Batches of run events of one version."""
    return f"event.run.{version.tokens}"


def sights(version: VersionId) -> str:
    """Runs of one version as they begin and end."""
    return f"sight.{version.tokens}"


def machine(launcher: str) -> str:
    """What one launcher runs."""
    return f"machine.{launcher}"


def caller_events(caller: str) -> str:
    """Runs that ended without an instance, told by their own sender."""
    return f"event.caller.{caller}"


def fleet(version: VersionId) -> str:
    """Starting, ready and dead instances of one version."""
    return f"fleet.{version.tokens}"


def host_beat(launcher: str) -> str:
    """The beat of one launcher, once a second."""
    return f"fleet.host.{launcher}"


def platform(program: str, verb: str, caller: str, algorithm: str = "") -> str:
    """A request to a program of the mesh, about `owner/name` where there is one."""
    owner, _, name = algorithm.partition("/")
    return f"platform.{program}.{verb}.{owner or NO_ALGORITHM}.{name or NO_ALGORITHM}.{caller}"


def platform_requests(program: str, verb: str = "*") -> str:
    """What a program subscribes to serve one verb, or all of them."""
    return f"platform.{program}.{verb}.*.*.*"


class PlatformRequest(NamedTuple):
    """What the subject of a request to a program says."""

    program: str
    verb: str
    algorithm: str
    caller: str


def parse_platform(subject: str) -> PlatformRequest:
    """Take apart a request's subject. Raises BadMessage."""
    tokens = subject.split(".")
    if len(tokens) != 6 or tokens[0] != "platform":
        raise BadMessage(f"{subject!r} is not the subject of a request to a program")
    owner, name = tokens[3], tokens[4]
    return PlatformRequest(tokens[1], tokens[2], "" if owner == NO_ALGORITHM else f"{owner}/{name}", tokens[5])


def claim_chunk(claim: str, number: int) -> str:
    """One piece of the claim `<caller>.<id>`. The server puts its own mark in the place of `_` (ADR 0008)."""
    return f"claim._.{claim}.{number}.chunk"


def claims_of(caller: str) -> str:
    """What a caller may write of claims: its own."""
    return f"claim.*.{caller}.*.*.chunk"


def read_claim(claim: str, number: int) -> str:
    """The request for one piece of a claim."""
    return f"$JS.API.DIRECT.GET.{CLAIMS_STREAM}.{claim_chunk(claim, number)}"


def kept_result(version: VersionId, digest: str) -> str:
    """Where the result of one input is kept. The server puts its own mark in the place of `_` (ADR 0011)."""
    return f"cache._.{version.tokens}.{digest}.result"


def results_of(version: VersionId) -> str:
    """What an instance may write of kept results: its version's."""
    return f"cache.*.{version.tokens}.*.result"


def read_result(version: VersionId, digest: str) -> str:
    """The request for the kept result of one input."""
    return f"$JS.API.DIRECT.GET.{CACHE_STREAM}.{kept_result(version, digest)}"


def reads_of(pattern: str) -> str:
    """The requests for kept results of the algorithms `<owner>.<name>`, of which both may be `*`."""
    return f"$JS.API.DIRECT.GET.{CACHE_STREAM}.cache.*.{pattern}.*.*.result"


def directory_key(owner: str, name: str) -> str:
    """The subject under which the directory's entry of one algorithm is kept."""
    return f"$KV.{DIRECTORY_BUCKET}.{owner}.{name}"
