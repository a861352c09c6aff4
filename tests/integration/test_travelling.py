"""Pipelines that travel by themselves, between a caller and real instances. The launcher's part is the test's."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

import algomesh
from algomesh import errors
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Message
from algomesh_broker.server import NatsServer
from tests.conditions import until
from tests.integration import bare_algorithms
from tests.integration.bare import BareMesh
from tests.integration.bare_algorithms import (
    clean,
    exclaim,
    merge,
    mishap,
    nap,
    picky,
    unrepeatable,
    upper,
    words,
    write_down,
)
from tests.integration.counting_proxy import CountingProxy

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[BareMesh]:
    async with BareMesh(nats_server, tmp_path) as bare:
        yield bare


async def test_a_chain_goes_from_stage_to_stage_and_answers_once(mesh: BareMesh) -> None:
    await mesh.serve_all("clean", "upper", "exclaim")

    result, tally = await mesh.travel(clean | upper | exclaim, "  a   b ")

    assert result == "A B!"
    assert tally.algorithm == "t/exclaim"
    assert tally.attempts == 1
    assert tally.cold_s == 0.0


async def test_a_chain_of_n_stages_takes_n_and_one_messages(nats_server: NatsServer, tmp_path: Path) -> None:
    async with CountingProxy(nats_server.url) as proxy:
        bare = BareMesh(nats_server, tmp_path)
        bare.url = proxy.url
        async with bare as mesh:
            await mesh.serve_all("clean", "upper", "exclaim")
            await mesh.travel(clean | upper | exclaim, "warm")
            proxy.published.clear()

            for _ in range(10):
                assert (await mesh.travel(clean | upper | exclaim, "a  b"))[0] == "A B!"

            carried = [subject.split(".")[0] for subject in proxy.published]
            carried = [lane for lane in carried if lane in ("call", "hop", "park", "reply", "demand")]
            assert sorted(carried) == sorted(["call", "hop", "hop", "reply"] * 10)


async def test_branches_are_joined_in_the_order_written(mesh: BareMesh) -> None:
    await mesh.serve_all("clean", "upper", "exclaim", "merge", "nap")

    result, _ = await mesh.travel(clean | (upper & exclaim | merge) | exclaim, " a  b")
    assert result == "A B+a b!!"

    nested, _ = await mesh.travel(clean | algomesh.all(loud=upper, both=upper & exclaim), "x")
    assert nested == {"loud": "X", "both": ["X", "x!"]}


async def test_a_fan_out_at_the_head_is_joined_by_the_sender(mesh: BareMesh) -> None:
    await mesh.serve_all("clean", "upper", "exclaim", "merge")

    result, _ = await mesh.travel((upper | exclaim) & clean & exclaim, "a")
    assert result == ["A!", "a", "a!"]

    merged, _ = await mesh.travel((upper & exclaim) | merge | exclaim, "a")
    assert merged == "A+a!!"


async def test_each_maps_a_list_at_the_head_and_in_the_middle(mesh: BareMesh) -> None:
    await mesh.serve_all("words", "upper", "exclaim", "merge")
    loud = algomesh.stage(upper) | exclaim

    at_head, _ = await mesh.travel(loud.each(), ["a", "b", "c"])
    in_the_middle, _ = await mesh.travel(words | loud.each(in_flight=2) | merge, "a b c d e")
    of_nothing, _ = await mesh.travel(words | loud.each(), "")

    assert at_head == ["A!", "B!", "C!"]
    assert in_the_middle == "A!+B!+C!+D!+E!"
    assert of_nothing == []


async def test_a_fan_out_of_eight_waits_once(mesh: BareMesh) -> None:
    await mesh.serve_all(*["nap"] * 4, "clean")
    fan = algomesh.all(*[nap] * 4)
    await mesh.travel(clean | fan, "0 x")

    began = time.monotonic()
    result, _ = await mesh.travel(clean | fan, "0.5 x")

    assert result == ["0.5 x"] * 4
    assert time.monotonic() - began < 1.9  # four in a row would take two seconds


async def test_a_stage_that_is_down_is_parked_by_who_handed_over_and_served_when_it_comes(mesh: BareMesh) -> None:
    await mesh.serve_all("clean", "exclaim")
    await mesh.make_consumer(upper.version_id)
    demanded: list[Message] = []
    mesh.admin.join(subjects.ALL_DEMAND, demanded.append)
    await mesh.admin.flush()

    travelling = asyncio.create_task(mesh.travel(clean | upper | exclaim, " a"))
    await until(lambda: demanded)
    await mesh.serve("upper")
    result, tally = await travelling

    assert result == "A!"
    assert tally.cold_s > 0
    assert subjects.demand(upper.version_id, clean.version_id.caller) in [message.subject for message in demanded]


async def test_a_branch_that_is_down_is_started_too(mesh: BareMesh) -> None:
    await mesh.serve_all("clean", "exclaim")
    await mesh.make_consumer(upper.version_id)
    travelling = asyncio.create_task(mesh.travel(clean | (upper & exclaim), "a"))

    await mesh.serve("upper")

    assert (await travelling)[0] == ["A", "a!"]


async def test_a_failure_names_stage_and_branch(mesh: BareMesh) -> None:
    await mesh.serve_all("clean", "picky", "upper", "words")

    with pytest.raises(errors.AlgorithmError) as in_chain:
        await mesh.travel(clean | picky | upper, "bad")
    assert in_chain.value.stage == "t/picky/1.0.0"
    assert in_chain.value.branch == []

    with pytest.raises(errors.AlgorithmError) as in_branch:
        await mesh.travel(
            words | algomesh.all(one=algomesh.stage(upper).each(), two=algomesh.stage(picky).each()), "a bad"
        )
    assert in_branch.value.stage == "t/picky/1.0.0"
    assert in_branch.value.branch == ["branch 'two'", "item 1"]
    assert "'bad' is bad" in str(in_branch.value)


async def test_a_branch_that_fails_cancels_its_siblings(mesh: BareMesh, tmp_path: Path) -> None:
    await mesh.serve_all("waits", "mishap")
    file = tmp_path / "fate"
    long = {"seconds": 20, "file": str(file)}
    route = mesh.route(algomesh.stage(bare_algorithms.waits) & algomesh.stage(mishap))
    assert len(route.steps) == 3

    began = time.monotonic()
    with pytest.raises(errors.MeshError):
        await mesh.travel(algomesh.stage(bare_algorithms.waits) & algomesh.stage(mishap), long)

    assert time.monotonic() - began < 15
    await until(lambda: not mesh.lane.in_flight)


async def test_a_caller_that_cancels_ends_the_join_and_its_branches(mesh: BareMesh, tmp_path: Path) -> None:
    await mesh.serve_all("clean", "slow", "nap")
    travelling = asyncio.create_task(mesh.travel(clean | (nap & nap), "15 x"))
    await until(lambda: mesh.lane.running)

    travelling.cancel()
    await asyncio.gather(travelling, return_exceptions=True)

    assert not mesh.lane.in_flight
    ended = await ended_runs(mesh, "t/clean")
    assert ended["state"] == "cancelled"


async def ended_runs(mesh: BareMesh, algorithm: str) -> dict[str, Any]:
    """The next final record of a run of `algorithm`."""
    found: list[messages.RunEvent] = []

    def hear(message: Message) -> None:
        events = codec.decode_events(message.data)
        found.extend(run for run in events.runs if run.algorithm == algorithm and run.state != "running")

    mesh.admin.join(subjects.ALL_EVENTS, hear)
    await until(lambda: found)
    return {"state": found[-1].state, "error": found[-1].error, "caller": found[-1].caller}


async def test_a_slow_stage_that_has_handed_over_is_not_mourned(mesh: BareMesh) -> None:
    await mesh.serve_all("nap", "slow", "exclaim")
    travelling = asyncio.create_task(mesh.travel(nap | nap | exclaim, "0.4 x"))
    await until(lambda: mesh.lane.running)

    result, tally = await travelling

    assert result == "0.4 x!"
    assert tally.attempts == 1


async def test_the_chain_is_sent_again_from_its_head_when_an_instance_dies(mesh: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "log"
    await mesh.serve_all("write_down", "unrepeatable")
    dying = await mesh.serve("mishap")
    await mesh.until_ready("mishap")
    long = algomesh.stage(write_down) | algomesh.stage(bare_algorithms.gate)

    first = await mesh.serve("gate")
    await mesh.until_ready("gate")
    travelling = asyncio.create_task(mesh.travel(long, f"{file} {tmp_path / 'open'}"))
    await until(lambda: mesh.lane.running)
    first.kill()
    first.wait()
    (tmp_path / "open").touch()
    mesh.announce_death("gate", len(mesh.instances))
    await mesh.serve("gate")
    result, tally = await travelling

    assert result.startswith(str(file))
    assert tally.attempts == 2
    assert file.read_text() == "ran\nran\n"
    dying.kill()


async def test_a_chain_with_a_stage_that_may_not_run_twice_is_not_sent_again(mesh: BareMesh, tmp_path: Path) -> None:
    await mesh.serve_all("unrepeatable", "gate")
    travelling = asyncio.create_task(
        mesh.travel(algomesh.stage(unrepeatable) | algomesh.stage(bare_algorithms.gate), f"x {tmp_path / 'open'}")
    )
    await until(lambda: mesh.lane.running)

    mesh.instances[-1].kill()
    mesh.announce_death("gate", len(mesh.instances))

    with pytest.raises(errors.InstanceLost, match="retry=False"):
        await travelling


@pytest.mark.parametrize("forgery", ["none", "position", "sender", "expired", "reply_to", "signature", "version"])
async def test_a_hop_that_the_route_does_not_allow_is_refused_and_recorded(mesh: BareMesh, forgery: str) -> None:
    await mesh.serve_all("upper")
    intruder = await mesh.connect("t~clean")
    route = mesh.route(clean | upper | exclaim)
    token = mesh.grant(route).token
    hop = messages.Call(
        run="r1", root="r1", root_caller="k~a", session="s", call="1", time_left_ms=5000, content_type="text",
        payload=memoryview(b"x"), grant=token, at=1, reply_to="k~a",
    )  # fmt: skip
    subject = subjects.hop(upper.version_id, "t~clean")
    match forgery:
        case "none":
            hop = replace(hop, grant=b"")
        case "position":
            hop = replace(hop, at=2)
        case "sender":
            subject = subjects.hop(upper.version_id, "t~words")
            intruder = await mesh.connect("t~words")
        case "expired":
            hop = replace(hop, grant=mesh.grant(route, now=time.time() - 10_000).token)
        case "reply_to":
            hop = replace(hop, reply_to="k~victim")
        case "signature":
            hop = replace(hop, grant=token[:-1] + bytes([token[-1] ^ 1]))
        case "version":
            hop = replace(hop, grant=mesh.grant(mesh.route(clean | exclaim)).token)
    answers: list[Message] = []
    mesh.admin.join("reply.>", answers.append)
    refused = asyncio.create_task(ended_runs(mesh, "t/upper"))
    await asyncio.sleep(0)
    await mesh.admin.flush()

    intruder.publish(subject, codec.encode(hop))
    record = await refused

    assert record == {"state": "refused", "error": "permission_denied", "caller": subject.rpartition(".")[2]}
    assert answers == []


async def test_a_token_of_another_caller_is_refused_to_the_callers_face(mesh: BareMesh) -> None:
    await mesh.serve_all("clean", "upper")
    other = await mesh.open_lane("k~b")

    with pytest.raises(errors.PermissionDenied):
        await mesh.travel(clean | upper, "x", lane=other)


async def test_a_pipeline_of_many_stages_works(mesh: BareMesh) -> None:
    await mesh.serve_all("exclaim")
    long: algomesh.Pipeline = algomesh.stage(exclaim)
    for _ in range(299):
        long = long | exclaim

    result, _ = await mesh.travel(long, "x", timeout_s=60)

    assert result == "x" + "!" * 300


async def test_a_later_step_that_cannot_end_in_time_does_not_begin(mesh: BareMesh) -> None:
    await mesh.serve_all("clean", "nap")
    for _ in range(8):  # until the instance knows how long it usually takes
        await mesh.call("nap", "0.5 x")

    began = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match="its runs take"):
        await mesh.travel(clean | nap, "0.5 x", timeout_s=0.45)

    assert time.monotonic() - began < 0.44


async def test_one_run_leads_to_so_many_and_no_more(mesh: BareMesh) -> None:
    await mesh.serve_all("words", "exclaim")
    mesh.serve_leases(most=300)
    fan = words | exclaim.pipeline.each(in_flight=64)

    assert len((await mesh.travel(fan, "x " * 400))[0]) == 400
    with pytest.raises(errors.BudgetExceeded):
        await mesh.travel(fan, "x " * 1400)
