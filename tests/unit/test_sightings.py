"""What an instance tells the pre-warmer: all while little happens, one request in so many when much does."""

import asyncio
import secrets
from collections.abc import Callable

import pytest

from algomesh.instance.job import Job
from algomesh.instance.sightings import MOST_PER_S, Sightings
from algomesh_broker import codec, messages
from algomesh_broker.names import VersionId
from algomesh_broker.rider import Rider
from algomesh_broker.route import CallStep, Route

VERSION = VersionId.parse("text/clean/1.0.0")


class Wire:
    """Keeps what is published."""

    is_connected = True

    def __init__(self) -> None:
        self.sent: list[messages.Sights] = []

    def publish(self, subject: str, payload: bytes) -> None:
        assert subject == "sight.text.clean.1-0-0"
        self.sent.append(codec.decode_sights(payload))

    def rider(self, send: Callable[[], None], ready_s: float, latest_s: float) -> Rider:
        return Rider(send, ready_s, latest_s)

    @property
    def runs(self) -> list[messages.Sight]:
        return [run for sights in self.sent for run in sights.runs]


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def sightings(wire: Wire) -> Sightings:
    return Sightings(wire, VERSION)  # type: ignore[arg-type]  # it publishes, and no more


def job(root: str = "", attempt: int = 1) -> Job:
    root = root or secrets.token_hex(16)
    call = messages.Call(
        run=root, root=root, root_caller="k~a", session="s", call="1", time_left_ms=1000, attempt=attempt
    )
    made = Job.of(call, "call.text.clean.1-0-0.k~a", "k~a", 10.0)
    made.started, made.started_at, made.cold_ms = 10.5, 1.5e9, 250.0
    return made


async def test_a_run_is_told_of_when_it_begins_and_when_it_ends(wire: Wire, sightings: Sightings) -> None:
    running = job()
    sightings.add(running)
    sightings.flush()
    sightings.add(running, 1.5e9 + 2)
    sightings.flush()

    begun, ended = wire.runs
    assert (begun.run, begun.ended_at, begun.waited_ms) == (running.run, 0.0, 750.0)
    assert (ended.run, ended.ended_at) == (running.run, 1.5e9 + 2)


async def test_what_begins_and_ends_at_once_is_told_once_and_by_itself(wire: Wire, sightings: Sightings) -> None:
    running = job()
    sightings.add(running)
    sightings.add(running, 1.5e9)
    async with asyncio.timeout(5):
        while not wire.sent:
            await asyncio.sleep(0.001)
    assert [run.ended_at for run in wire.runs] == [1.5e9]


async def test_a_step_of_a_pipeline_tells_what_comes_after_it(wire: Wire, sightings: Sightings) -> None:
    from algomesh_broker.grants import Granted

    route = Route([CallStep("text/clean/1.0.0", 1), CallStep("text/count/1.0.0")])
    running = job()
    running.granted = Granted(b"", "k~a", 0.0, route)
    running.call = messages.Call(
        run="r", root="r", root_caller="k~a", session="s", call="1", time_left_ms=1000, grant=b"t", at=0
    )
    sightings.add(running)
    sightings.flush()
    assert wire.runs[0].stages == ["text/count/1.0.0"]


async def test_of_many_calls_whole_requests_are_told_and_the_others_counted(wire: Wire, sightings: Sightings) -> None:
    other = Sightings(wire, VERSION)  # type: ignore[arg-type]
    roots = [secrets.token_hex(16) for _ in range(20 * MOST_PER_S)]
    for root in roots:
        sightings.add(job(root), 1.5e9)
    sightings.flush()
    first = {run.root for run in wire.runs}
    assert wire.sent[-1].one_in > 1
    assert len(first) < len(roots) / 4
    wire.sent.clear()

    for root in roots:
        other.add(job(root), 1.5e9)
    other.flush()
    last = wire.sent[-1].one_in
    shown = {f"{digits:02x}" for digits in range(256 // last)}
    assert {root for root in roots[-MOST_PER_S:] if root[-2:] in shown} <= {run.root for run in wire.runs} | first
