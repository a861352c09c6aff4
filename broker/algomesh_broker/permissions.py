"""What each identity may publish and subscribe: allow-lists, made by pure functions.

Whatever is not listed here the server refuses. The registry writes these lists into the token
of a connection (usertoken.py), and nats-server's own configuration holds those of the programs
(authorization.py). `*` stands for one token of a subject; in a subscription `subject queue`
allows that queue group only.

There are two accounts, and JetStream is in STORE, where only programs are. JetStream answers with
its own rights wherever a request's reply field points, so whoever may ask it anything in his own
account may have it delete a stream or call in another's name (ADR 0004); across the border of
accounts such an answer meets nothing but subscribers, who look at the subject.

A pattern is `owner/name`, `owner/*` or `*`; a scope is `call:PATTERN`, `publish:PATTERN`,
`observe` or `admin`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from algomesh_broker import subjects
from algomesh_broker.errors import BadName
from algomesh_broker.identity import caller_of_id, caller_of_program, check_instance
from algomesh_broker.names import VersionId, check_name

ADMIN, OBSERVE, CALL, PUBLISH = "admin", "observe", "call", "publish"
DIRECTORY_STREAM = f"KV_{subjects.DIRECTORY_BUCKET}"
DIRECTORY_GET = f"$JS.API.DIRECT.GET.{DIRECTORY_STREAM}"
DIRECTORY_UPDATES = f"$KV.{subjects.DIRECTORY_BUCKET}.>"
AUTH_REQUESTS = "$SYS.REQ.USER.AUTH"
_FORM = "a scope is 'call:PATTERN', 'publish:PATTERN', 'observe' or 'admin'; a pattern is owner/name, owner/* or *"
_PUBLISHERS_ASK = (
    ("registry", ("upload", "publish", "manifest", "attach", "alias-set")),
    ("launcher", ("stop", "logs")),
)
_OBSERVERS_ASK = (
    ("registry", ("manifest",)),
    ("launcher", ("ps", "logs")),
    ("ledger", ("runs", "history")),
    ("prewarmer", ("graph", "starts", "savings")),
)


class Permissions(NamedTuple):
    """Allow-lists of subjects."""

    publish: list[str]
    subscribe: list[str]


class Pattern(NamedTuple):
    """Which algorithms are meant: `*` stands for any owner, or any name of one owner."""

    owner: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read `owner/name`, `owner/*` or `*`. Raises BadName."""
        if text == "*":
            return cls("*", "*")
        owner, slash, name = text.partition("/")
        if not slash:
            raise BadName(f"{text!r} is not a pattern; write owner/name, owner/* or *")
        return cls(check_name(owner, text), name if name == "*" else check_name(name, text))

    def covers(self, other: "Pattern") -> bool:
        """Whether everything `other` means is meant by this one too."""
        return self.owner in ("*", other.owner) and self.name in ("*", other.name)

    @property
    def tokens(self) -> str:
        """The pattern as two tokens of a subject."""
        return f"{self.owner}.{self.name}"

    def __str__(self) -> str:
        return "*" if self.owner == "*" else f"{self.owner}/{self.name}"


class Scope(NamedTuple):
    """One right of a key: what kind, and of which algorithms."""

    kind: str
    pattern: Pattern

    @classmethod
    def parse(cls, text: str) -> "Scope":
        """Read a scope. Raises BadName, with the form in the sentence."""
        kind, colon, pattern = text.strip().lower().partition(":")
        try:
            if colon and kind in (CALL, PUBLISH):
                return cls(kind, Pattern.parse(pattern))
        except BadName as error:
            raise BadName(f"{text!r} is not a scope: {_FORM}") from error
        if kind in (ADMIN, OBSERVE) and not colon:
            return cls(kind, Pattern("*", "*"))
        raise BadName(f"{text!r} is not a scope: {_FORM}")

    def __str__(self) -> str:
        return f"{self.kind}:{self.pattern}" if self.kind in (CALL, PUBLISH) else self.kind


class CallRights:
    """What a caller may call, for many look-ups."""

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self._patterns = frozenset(patterns)

    @classmethod
    def of_scopes(cls, scopes: Iterable[str]) -> "CallRights":
        """What the scopes of a key let it call. Raises BadName."""
        parsed = list(map(Scope.parse, scopes))
        if any(scope.kind == ADMIN for scope in parsed):
            return cls([Pattern("*", "*")])
        return cls(scope.pattern for scope in parsed if scope.kind == CALL)

    @classmethod
    def of_patterns(cls, calls: Iterable[str]) -> "CallRights":
        """What the patterns granted to a version let it call. Raises BadName."""
        return cls(map(Pattern.parse, calls))

    def covers(self, owner: str, name: str) -> bool:
        """Whether the algorithm `owner/name` may be called."""
        held = self._patterns
        return (owner, name) in held or (owner, "*") in held or ("*", "*") in held


def may_call(scopes: Iterable[str], called: str) -> bool:
    """Whether a key of these scopes may let its algorithms call the pattern `called`. Raises BadName."""
    wanted = Pattern.parse(called)
    return any(
        scope.kind == ADMIN or (scope.kind == CALL and scope.pattern.covers(wanted))
        for scope in map(Scope.parse, scopes)
    )


def of_key(id_: str, scopes: Iterable[str]) -> Permissions:
    """What the holder of a key may do. Raises BadName for a scope that is none."""
    caller = caller_of_id(id_)
    parsed = [Scope.parse(scope) for scope in scopes]
    is_admin = any(scope.kind == ADMIN for scope in parsed)
    if is_admin:
        parsed = [Scope.parse("call:*"), Scope.parse("publish:*"), Scope(OBSERVE, Pattern("*", "*"))]
    calls = [scope.pattern for scope in parsed if scope.kind == CALL]
    publish = _as_caller(caller, calls)
    if calls:
        publish.append(_asks_routes(caller))
    for scope in parsed:
        if scope.kind == PUBLISH:
            publish += _asks(_PUBLISHERS_ASK, scope.pattern, caller)
        elif scope.kind == OBSERVE:
            publish += _asks(_OBSERVERS_ASK, scope.pattern, caller)
    if is_admin:
        publish += [f"platform.registry.{verb}.*.*.{caller}" for verb in ("key-create", "key-list", "key-revoke")]
    return _made(publish, _hears(caller, subjects.inbox(caller), calls))


def of_instance(version: VersionId, instance: str, calls: Iterable[str]) -> Permissions:
    """What one instance may do; `calls` are the patterns granted to its version. Raises BadName."""
    caller, mine = version.caller, version.tokens
    patterns = [Pattern.parse(called) for called in calls]
    publish = [
        f"reply.{version.owner}.{version.name}.>",
        f"hop.*.*.*.{caller}",
        f"park.hop.*.*.*.{caller}",
        f"demand.*.*.*.{caller}",
        # A full instance parks what reached it, in its sender's name: of its own version only.
        f"park.call.{mine}.*",
        f"park.hop.{mine}.*",
        f"demand.{mine}.*",
        subjects.run_events(version),
        subjects.sights(version),
        subjects.lease(check_instance(instance)),
        # It hands over to steps that it may not call, and finds their results by the very input it hands over.
        subjects.results_of(version),
        subjects.READ_RESULT,
        f"$JS.API.CONSUMER.MSG.NEXT.{subjects.PARKED_STREAM}.{version.consumer}",
        f"$JS.ACK.{subjects.PARKED_STREAM}.{version.consumer}.>",
        _asks_routes(caller),
        subjects.platform("registry", "lease", caller),
        *_as_caller(caller, patterns),
    ]
    subscribe = [
        f"{subjects.calls_of(version)} {subjects.WORKERS}",
        f"{subjects.hops_of(version)} {subjects.WORKERS}",
        subjects.controls_of(check_instance(instance)),
        # It joins branches of pipelines that it may not call itself, and must hear of deaths there.
        subjects.ALL_VERSIONS,
        *_hears(caller, subjects.inbox(instance), patterns),
    ]
    return _made(publish, subscribe)


def of_program(program: str) -> Permissions:
    """What a program of the mesh may do. Raises KeyError for a name that is no program."""
    return _PROGRAMS[program]()


def in_store(program: str) -> Permissions:
    """What a program may do in the account that holds the streams. Raises KeyError for one that has none."""
    stream, requests = _STORES[program]
    asks = _keeps(stream)
    heard = [DIRECTORY_UPDATES] if stream == DIRECTORY_STREAM else []
    return _made(asks + requests, [f"{subjects.inbox(program)}.>", *heard])


def _registry() -> Permissions:
    publish = [
        "reply.platform.registry.>",
        "$SYS._INBOX.>",  # where nats-server waits for the answer to an authorization request
    ]
    return _made(publish, [AUTH_REQUESTS, *_serves("registry")])


def _launcher() -> Permissions:
    caller = caller_of_program("launcher")
    publish = [
        "reply.platform.launcher.>",
        *(f"platform.registry.{verb}.*.*.{caller}" for verb in ("archive", "manifest")),
        subjects.ALL_FLEET,
        subjects.ALL_MACHINES,
        DIRECTORY_GET,
    ]
    heard = [subjects.ALL_DEMAND, subjects.ALL_FLEET, subjects.ALL_LEASES, subjects.HOLDS, DIRECTORY_UPDATES]
    return _made(publish, [*_serves("launcher"), *heard, f"reply.*.*.{caller}.>"])


def _prewarmer() -> Permissions:
    caller = caller_of_program("prewarmer")
    publish = [
        "reply.platform.prewarmer.>",
        *(f"platform.registry.{verb}.*.*.{caller}" for verb in ("manifest", "may-call")),
        subjects.HOLDS,
        DIRECTORY_GET,
    ]
    heard = [subjects.ALL_SIGHTS, subjects.ALL_DEMAND, subjects.ALL_MACHINES, subjects.ALL_FLEET]
    return _made(publish, [*_serves("prewarmer"), *heard, DIRECTORY_UPDATES, f"reply.*.*.{caller}.>"])


def _ledger() -> Permissions:
    # It hears of deaths, so that a run whose instance and sender are both gone gets its end, and asks how many GPUs a
    # version takes, for its metrics.
    caller = caller_of_program("ledger")
    publish = ["reply.platform.ledger.>", f"platform.registry.manifest.*.*.{caller}"]
    return _made(publish, [*_serves("ledger"), subjects.ALL_FLEET, f"reply.*.*.{caller}.>"])


def _gateway() -> Permissions:
    # The gateway calls under its callers' own keys; under its own name it only knows what there is.
    return _made([DIRECTORY_GET], [subjects.inbox("gateway") + ".>", DIRECTORY_UPDATES, subjects.HOST_BEATS])


def _keeps(stream: str) -> list[str]:
    return [f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE", "INFO", "PURGE")]


def _consumers(stream: str) -> list[str]:
    return [f"$JS.API.CONSUMER.*.{stream}", f"$JS.API.CONSUMER.*.{stream}.>"]


_PROGRAMS = {
    "registry": _registry,
    "launcher": _launcher,
    "prewarmer": _prewarmer,
    "ledger": _ledger,
    "gateway": _gateway,
}
_STORES = {
    "registry": (DIRECTORY_STREAM, [DIRECTORY_GET, DIRECTORY_UPDATES]),
    "launcher": (
        subjects.PARKED_STREAM,
        [
            *_consumers(subjects.PARKED_STREAM),
            f"$JS.API.STREAM.MSG.GET.{subjects.PARKED_STREAM}",  # since when the oldest waits
            *_keeps(subjects.CLAIMS_STREAM),
            *_keeps(subjects.CACHE_STREAM),
        ],
    ),
    "ledger": (
        subjects.EVENTS_STREAM,
        [
            *_consumers(subjects.EVENTS_STREAM),
            f"$JS.API.CONSUMER.MSG.NEXT.{subjects.EVENTS_STREAM}.ledger",
            f"$JS.ACK.{subjects.EVENTS_STREAM}.ledger.>",
        ],
    ),
}


def _as_caller(caller: str, calls: list[Pattern]) -> list[str]:
    lanes = ("call", "park.call", "demand")
    return [
        *(f"{lane}.{pattern.tokens}.*.{caller}" for pattern in calls for lane in lanes),
        *(subjects.reads_of(pattern.tokens) for pattern in calls),
        f"control.*.{caller}",
        subjects.caller_events(caller),
        DIRECTORY_GET,
        # Who knows a claim may read it. The server's mark keeps wildcards from being read by (ADR 0008).
        subjects.claims_of(caller),
        subjects.READ_CLAIM,
    ]


def _hears(caller: str, inbox: str, calls: list[Pattern]) -> list[str]:
    return [
        f"reply.*.*.{caller}.>",
        f"{inbox}.>",
        DIRECTORY_UPDATES,
        subjects.HOST_BEATS,
        *(f"fleet.{pattern.tokens}.*" for pattern in calls),
    ]


def _serves(program: str) -> list[str]:
    return [subjects.platform_requests(program), f"{subjects.inbox(program)}.>"]


def _asks(programs: Iterable[tuple[str, tuple[str, ...]]], pattern: Pattern, caller: str) -> list[str]:
    return [f"platform.{program}.{verb}.{pattern.tokens}.{caller}" for program, verbs in programs for verb in verbs]


def _asks_routes(caller: str) -> str:
    return subjects.platform("registry", "route", caller)


def _made(publish: list[str], subscribe: list[str]) -> Permissions:
    return Permissions(list(dict.fromkeys(publish)), list(dict.fromkeys(subscribe)))
