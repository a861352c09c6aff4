"""The short way and the general way of an instance: the same calls, and the same comes of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import nkeys
import pytest
from msgspec.structs import replace

from algomesh.decorator import Algorithm, algorithm
from algomesh.errors import BadInput
from algomesh.instance.job import Job
from algomesh.instance.runner import Runner
from algomesh.instance.watch import SIZE_BYTES, WatchWriter
from algomesh_broker import codec, messages, subjects
from algomesh_broker.boot import Boot
from algomesh_broker.connection import Message
from algomesh_broker.credentials import public_key
from algomesh_broker.grants import GrantBook, sign_route
from algomesh_broker.identity import Identity
from algomesh_broker.platform import Options
from algomesh_broker.rider import Rider
from algomesh_broker.route import AllStep, CallStep, Route

CALLER: Final = "k~caller"
BEFORE: Final = "t~before"
SEED: Final = bytes(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER))
KEY: Final = public_key(SEED)


@algorithm(name="t/first", version="1.0.0")
def first(text: str) -> str:
    if text == "bad":
        raise BadInput("it is bad")
    if text == "broken":
        raise KeyError("broken")
    if text == "exit":
        raise SystemExit(3)
    if text == "half":
        return "\ud800"
    if text == "slow":
        time.sleep(0.006)
    return text.upper()


HERE = first.version_id


def token_of(*steps: Any, lifetime_s: float = 600.0, sender: str = CALLER) -> bytes:
    now = time.time() - (10_000.0 if lifetime_s < 0 else 0.0)
    return sign_route(sender, Route(list(steps)).data, SEED, lifetime_s=lifetime_s, now=now)[0]


CHAIN = token_of(CallStep("t/before/1.0.0", 1), CallStep(str(HERE), 2), CallStep("t/after/2.0.0"))
LAST = token_of(CallStep("t/before/1.0.0", 1), CallStep(str(HERE)))
HEAD = token_of(CallStep(str(HERE), 1), CallStep("t/after/2.0.0"))
TIMED = token_of(CallStep("t/before/1.0.0", 1), CallStep(str(HERE), 2, timeout_s=1.0), CallStep("t/after/2.0.0"))
KEPT = token_of(CallStep("t/before/1.0.0", 1), CallStep(str(HERE), 2), CallStep("t/after/2.0.0", cache_s=60.0))
FANS = token_of(
    CallStep(str(HERE), 1), AllStep([2, 3]), CallStep("t/after/2.0.0"), CallStep("t/beside/1.0.0")
)  # fmt: skip
OVER = token_of(CallStep("t/before/1.0.0", 1), CallStep(str(HERE)), lifetime_s=-1.0)
OTHER = token_of(CallStep("t/before/1.0.0", 1), CallStep("t/other/1.0.0"))


class Wire:
    """A connection that keeps what is published, and confirms what was sent."""

    def __init__(self) -> None:
        self.identity = Identity(HERE.caller, "_INBOX.i-1")
        self.is_connected = True
        self.max_payload = 8 * 2**20
        self.on_reconnect: list[Any] = []
        self.on_disconnect: list[Any] = []
        self.on_forbidden: list[Any] = []
        self.sent: list[tuple[str, bytes, str]] = []
        self.callbacks: dict[str, Callable[[Message], None]] = {}

    def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self.sent.append((subject, bytes(payload), reply))

    def rider(self, send: Callable[[], None], ready_s: float, latest_s: float) -> Rider:
        return Rider(send, ready_s, latest_s)

    def join(self, subject: str, callback: Callable[[Message], None], queue: str = "") -> object:
        self.callbacks[subject] = callback
        return object()

    def ping(self, done: Callable[[Exception | None], None]) -> None:
        asyncio.get_running_loop().call_soon(done, None)

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Everything is there at once."""


class Instance:
    """A runner of `first`, fed by hand; `shortened` counts what went the short way."""

    def __init__(self, *, is_short: bool, of: Algorithm[Any, Any] = first, options: Options | None = None) -> None:
        boot = Boot(
            instance="i-1", launcher="i", owner="t", name="first", version="1.0.0", folder="/", entry="x", nats_url="",
            token="", options=options or Options(), launched_ns=0, route_key=KEY,
        )  # fmt: skip
        self.wire = Wire()
        self.page = bytearray(SIZE_BYTES)
        self.runner = Runner(self.wire, of, boot, WatchWriter(self.page), time.monotonic_ns())  # type: ignore[arg-type]
        self.intake = self.runner._intake
        self.shortened = 0
        self._take = self.intake.at_once
        self.intake.at_once = self._counted if is_short and self._take is not None else None

    def _counted(self, call: messages.Call, subject: str, now: float) -> bool:
        assert self._take is not None
        is_taken = self._take(call, subject, now)
        self.shortened += is_taken
        return is_taken

    def hear(self, call: messages.Call, sender: str, *, is_hop: bool) -> None:
        subject = subjects.hop(HERE, sender) if is_hop else subjects.call(HERE, sender)
        pattern = subjects.hops_of(HERE) if is_hop else subjects.calls_of(HERE)
        self.wire.callbacks[pattern](Message(subject, "_INBOX.somebody", codec.encode(call)))

    async def said(self) -> list[Any]:
        """What it published about runs, without what only clocks and tickets know."""
        await self.runner._onward.drain()
        self.runner._answers.flush()
        return [_timeless(subject, data) for subject, data, _ in self.wire.sent if not subject.startswith("$JS")]


def _timeless(subject: str, data: bytes) -> Any:
    kind = subject.partition(".")[0]
    if kind == "hop":
        hop = msgspec.structs.asdict(codec.decode_call(data))
        assert 0 < hop.pop("time_left_ms") <= 60_000
        assert hop.pop("spent_ms") >= 2.5
        return subject, {**hop, "payload": bytes(hop["payload"])}
    if kind == "reply":
        reply = msgspec.structs.asdict(codec.decode_reply(data))
        times = [reply.pop(name, 0.0) for name in ("queued_ms", "compute_ms")]
        assert all(each >= 0.0 for each in times)
        return subject, {**reply, "payload": bytes(reply.get("payload", b""))}
    if subject == subjects.run_events(HERE):
        events = [msgspec.structs.asdict(event) for event in codec.decode_events(data).runs]
        for event in events:
            assert event.pop("queued_at") <= event.pop("started_at") <= event.pop("ended_at") + 1e-3
            assert event.pop("compute_ms") >= 0.0
            event["run"] = event["run"] if not event["run"].startswith("hop-") else "hop-"
        return subject, events
    return subject, len(codec.decode_sights(data).runs) if subject == subjects.sights(HERE) else None


def call(text: str | bytes, **changed: Any) -> messages.Call:
    payload = text.encode() if isinstance(text, str) else text
    fields: dict[str, Any] = {
        "run": "r", "root": "root", "parent": "parent", "root_caller": CALLER, "attempt": 2, "session": "s",
        "call": "1",
        "time_left_ms": 60_000, "depth": 3, "budget": 77, "content_type": "text", "payload": memoryview(payload),
        "traceparent": "00-trace", "credit": 5, "spent_ms": 2.5, "writers": ["i-0"], "is_near": True,
    }  # fmt: skip
    return messages.Call(**(fields | changed))


def hop(text: str | bytes, grant: bytes = CHAIN, **changed: Any) -> messages.Call:
    return call(text, **({"grant": grant, "at": 1, "reply_to": CALLER} | changed))


SHORT: Final = {
    "a call": (call("x"), CALLER, False),
    "JSON": (call(b'"x"', content_type="json"), CALLER, False),
    "the first step": (call("x", grant=HEAD, at=0), CALLER, False),
    "a step in the middle": (hop("x"), BEFORE, True),
    "the last step": (hop("x", LAST), BEFORE, True),
    "an input that does not fit": (hop(b"1", content_type="json"), BEFORE, True),
    "text that is none": (call(b"\xff"), CALLER, False),
    "an input that the code refuses": (call("bad"), CALLER, False),
    "code that fails": (hop("broken"), BEFORE, True),
    "code that exits": (hop("exit"), BEFORE, True),
    "an output that cannot travel": (hop("half"), BEFORE, True),
    "code that takes long": (hop("slow"), BEFORE, True),
}
GENERAL: Final = {
    "a step with a time of its own": (hop("x", TIMED), BEFORE, True),
    "a token that is over": (hop("x", OVER), BEFORE, True),
    "a token for another version": (hop("x", OTHER), BEFORE, True),
    "a hop from who does not hand over": (hop("x"), "t~forger", True),
    "a hop without a token": (call("x", at=1, reply_to=CALLER), BEFORE, True),
    "a token that nobody signed": (hop("x", CHAIN[:-1] + b"!"), BEFORE, True),
    "no time left": (call("x", time_left_ms=0), CALLER, False),
}


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALGOMESH_DISPATCH", "inline")


@pytest.fixture
async def open_() -> Callable[..., Awaitable[Instance]]:
    async def made(**how: Any) -> Instance:
        instance = Instance(**how)
        await instance.runner.open()
        return instance

    return made


Open = Callable[..., Awaitable[Instance]]


@pytest.mark.parametrize("name", [*SHORT, *GENERAL])
async def test_both_ways_say_the_same(open_: Open, name: str) -> None:
    asked, sender, is_hop = (SHORT | GENERAL)[name]
    said = []
    for is_short in (False, True):
        instance = await open_(is_short=is_short)
        # The first one of its kind always goes the general way.
        instance.hear(replace(asked, content_type="text", payload=memoryview(b"x")), sender, is_hop=is_hop)
        for _ in range(2):
            instance.hear(asked, sender, is_hop=is_hop)
        said.append(await instance.said())
        assert instance.shortened == (2 if is_short and name in SHORT else 0)
        assert instance.intake._capacity.taken == 0

    assert said[0] == said[1]
    assert said[0] or name == "no time left"


async def test_what_runs_the_short_way_is_on_the_watch_page_and_knows_its_run(open_: Open) -> None:
    seen: list[tuple[int, bool, str, str]] = []

    @algorithm(name="t/first", version="1.0.0")
    def looks(text: str) -> str:
        from algomesh.context import entered

        words = memoryview(instance.page).cast("Q")
        context = entered()
        assert context is not None
        seen.append((words[1], words[0] > 0, context.run, context.caller))
        return text

    instance = await open_(is_short=True, of=looks)
    for _ in range(2):
        instance.hear(hop("x"), BEFORE, is_hop=True)

    assert instance.shortened == 1
    assert seen == [(1, True, "r-1", CALLER)] * 2
    assert memoryview(instance.page).cast("Q")[:2].tolist() == [0, 0]


async def test_what_is_kept_or_fans_out_or_lies_elsewhere_takes_the_general_way(open_: Open) -> None:
    instance = await open_(is_short=True, options=Options(cache_s=60.0))
    assert instance.intake.at_once is None

    instance = await open_(is_short=True)
    instance.intake._tokens.update(("s", "1"))
    assert instance.intake.at_once is not None
    now = asyncio.get_running_loop().time()
    for _ in range(2):
        instance.hear(hop("x"), BEFORE, is_hop=True)
    for taken in (
        instance.intake.at_once(hop(b"...", content_type="claim"), subjects.hop(HERE, BEFORE), now),
        instance.intake.at_once(hop(b"...", feed="i-0"), subjects.hop(HERE, BEFORE), now),
    ):
        assert not taken
    for grant, at in ((FANS, 0), (KEPT, 1)):
        granted = GrantBook(KEY).check(grant, time.time())
        job = Job.of(hop("x", grant, at=at), "hop", CALLER, now, granted=granted, place=granted.route.places[at])
        instance.runner._express.learn(job)
    assert len(instance.runner._express._known) == 1


async def test_who_waits_for_a_slot_is_not_overtaken(open_: Open) -> None:
    instance = await open_(is_short=True)
    instance.hear(call("x"), CALLER, is_hop=False)
    waiting = Job.of(call("y"), subjects.call(HERE, CALLER), CALLER, asyncio.get_running_loop().time())
    instance.intake._backlog.append(waiting)

    instance.hear(call("z"), CALLER, is_hop=False)

    assert instance.shortened == 0


async def test_a_token_that_runs_out_is_looked_at_again(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = await open_(is_short=True)
    for _ in range(2):
        instance.hear(hop("x"), BEFORE, is_hop=True)
    assert instance.shortened == 1
    later = time.time() + 5_000.0
    monkeypatch.setattr(time, "time", lambda: later)

    instance.hear(hop("x"), BEFORE, is_hop=True)

    assert instance.shortened == 1
    [*_, (_, events)] = await instance.said()
    assert [event["state"] for event in events] == ["succeeded", "succeeded", "refused"]
