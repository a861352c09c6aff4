"""What is made by position on the hot path: each field in its own place."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from algomesh.content import Content
from algomesh.instance.answers import Answers
from algomesh.instance.forwarding import Forwarder
from algomesh.instance.job import Job
from algomesh.lane import Lane
from algomesh.order import Order
from algomesh_broker import codec, messages, subjects
from algomesh_broker.boot import Boot
from algomesh_broker.grants import Granted
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options
from algomesh_broker.rider import Rider
from algomesh_broker.route import CallStep, Route

FIRST, SECOND = VersionId.parse("t/first/1.0.0"), VersionId.parse("t/second/2.1.0")
ROUTE = Route([CallStep(str(FIRST), 1), CallStep(str(SECOND))])
CALL = messages.Call(
    run="run", root="root", parent="parent", root_caller="k~root", attempt=2, session="session", call="1f",
    time_left_ms=60_000, depth=3, budget=77, content_type="json", detail="", payload=memoryview(b"1"),
    traceparent="00-trace", grant=b"grant", at=0, reply_to="k~waits", credit=5, spent_ms=1.5, feed="feeder",
    writers=["i-1"], is_near=True,
)  # fmt: skip


class Wire:
    """A connection that keeps what is published."""

    def __init__(self) -> None:
        self.identity = Identity("t~first", "_INBOX.i-2")
        self.is_connected = True
        self.max_payload = 2**20
        self.on_reconnect: list[Any] = []
        self.sent: list[tuple[str, bytes]] = []

    def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        self.sent.append((subject, payload))

    def rider(self, send: Callable[[], None], ready_s: float, latest_s: float) -> Rider:
        return Rider(send, ready_s, latest_s)

    def join(self, subject: str, callback: object, queue: str = "") -> None:
        """Nothing comes."""


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def answers(wire: Wire) -> Answers:
    boot = Boot(
        instance="i-2", launcher="i", owner="t", name="first", version="1.0.0", folder="/", entry="x", nats_url="",
        token="", options=Options(), launched_ns=0,
    )  # fmt: skip
    return Answers(wire, FIRST, boot, 0)  # type: ignore[arg-type]  # it publishes, and no more


def job() -> Job:
    now = asyncio.get_running_loop().time()
    granted = Granted(CALL.grant, "k~root", 0.0, ROUTE)
    made = Job.of(CALL, "hop.t.first.1-0-0.t~before", "k~waits", now, granted=granted, place=ROUTE.places[0])
    made.started, made.started_at, made.cold_ms = now + 0.5, 1.5e9, 250.0
    made.writers = ["i-1", "i-2"]
    return made


async def test_a_hop_carries_on_what_it_does_not_change(wire: Wire, answers: Answers) -> None:
    forwarder = Forwarder(wire, answers)  # type: ignore[arg-type]

    forwarder.hand_over(job(), 1, Content("text", "detail", b"output"), 9.5, feed="i-2")

    [(subject, envelope)] = wire.sent
    hop = codec.decode_call(envelope)
    assert subject == "hop.t.second.2-1-0.t~first"
    assert 0 < hop.time_left_ms <= CALL.time_left_ms
    assert hop == replace(
        CALL, time_left_ms=hop.time_left_ms, content_type="text", detail="detail", payload=memoryview(b"output"), at=1,
        reply_to="k~waits", spent_ms=9.5, feed="i-2", writers=["i-1", "i-2"],
    )  # fmt: skip


async def test_a_result_says_what_happened(wire: Wire, answers: Answers) -> None:
    answers.answer(job(), Content("text", "detail", b"output"), 0.25, parts=4)

    subject, data = wire.sent[0]
    assert subject == "reply.t.first.k~waits.session.1f"
    assert codec.decode_reply(data) == messages.Result(
        run="run", attempt=2, instance="i-2", version="1.0.0", content_type="text", detail="detail",
        payload=memoryview(b"output"), queued_ms=500.0, compute_ms=251.5, at=0, parts=4, writers=["i-1", "i-2"],
    )  # fmt: skip


async def test_the_record_of_a_run_says_what_happened(wire: Wire, answers: Answers) -> None:
    answers.record(job(), "cancelled", 0.25)
    answers.flush()

    [event] = [
        codec.decode_events(data).runs[0] for subject, data in wire.sent if subject == subjects.run_events(FIRST)
    ]
    assert event.ended_at > 1.5e9
    assert event == messages.RunEvent(
        run="run-0", attempt=2, root="root", parent="parent", algorithm="t/first", version="1.0.0", caller="k~waits",
        root_caller="k~root", instance="i-2", state="cancelled", queued_at=1.5e9 - 0.5, started_at=1.5e9,
        ended_at=event.ended_at, compute_ms=250.0, cold_ms=250.0,
    )  # fmt: skip


async def test_a_call_says_what_was_ordered(wire: Wire) -> None:
    lane = Lane(wire, "session")  # type: ignore[arg-type]
    now = asyncio.get_running_loop().time()
    order = Order(
        version=FIRST, content=Content("text", "detail", b"input"), deadline=now + 60, run="run", root="root",
        parent="parent", root_caller="k~root", depth=3, budget=77, traceparent="00-trace", grant=b"grant", at=4,
        credit=5, is_hop=True,
    )  # fmt: skip

    calling = asyncio.ensure_future(lane.call(order))
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    lane.close()

    call = codec.decode_call(wire.sent[0][1])
    assert call == messages.Call(
        run="run", root="root", parent="parent", root_caller="k~root", session="session", call="1",
        time_left_ms=call.time_left_ms, depth=3, budget=77, content_type="text", detail="detail",
        payload=memoryview(b"input"), traceparent="00-trace", grant=b"grant", at=4, reply_to="t~first", credit=5,
    )  # fmt: skip
    assert msgspec.structs.asdict(call)["attempt"] == 1
