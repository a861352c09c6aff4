"""Calls between a lane and real instances: live, parked, resent, cancelled. The launcher's part is the test's."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from algomesh import errors
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Message
from algomesh_broker.server import NatsServer
from tests.conditions import until
from tests.integration import bare_algorithms
from tests.integration.bare import BareMesh

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[BareMesh]:
    async with BareMesh(nats_server, tmp_path) as bare:
        yield bare


def lines_of(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


async def test_a_call_before_its_instance_is_parked_and_served_when_it_comes(mesh: BareMesh) -> None:
    calling = asyncio.create_task(mesh.call("clean", "  A   b "))
    await until(lambda: mesh.lane.in_flight)

    await mesh.serve("clean")
    result, pending = await calling

    assert result == "a b"
    assert pending.cold_s > 0
    assert pending.call.attempt == 1


async def test_a_warm_call_has_no_cold_start(mesh: BareMesh) -> None:
    await mesh.serve("clean")
    await mesh.call("clean", "x")

    _, pending = await mesh.call("clean", "x")

    assert pending.cold_s == 0.0


async def test_every_one_of_many_callers_is_served_once_by_one_slot(mesh: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    await mesh.serve("once")

    answers = await asyncio.gather(
        *[mesh.call("once", {"file": str(file), "name": f"n{number}"}) for number in range(64)]
    )

    assert [result for result, _ in answers] == [f"n{number}" for number in range(64)]
    assert Counter(lines_of(file)) == Counter(f"n{number}" for number in range(64))


async def test_nobody_waits_behind_a_run_that_hangs(mesh: BareMesh) -> None:
    await mesh.serve("slow")
    await mesh.call("slow", 0.0)
    hanging = asyncio.create_task(mesh.call("slow", 15.0))
    await asyncio.sleep(0)
    mesh.start("slow")

    answers = await asyncio.gather(*[mesh.call("slow", 0.01, timeout_s=10) for _ in range(20)])

    assert [result for result, _ in answers] == ["slept"] * 20
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


async def test_a_drained_instance_loses_nothing(mesh: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    first = await mesh.serve("once")
    await mesh.call("once", {"file": str(file), "name": "warm"})
    calls = [asyncio.create_task(mesh.call("once", {"file": str(file), "name": f"n{number}"})) for number in range(40)]
    await until(lambda: len(lines_of(file)) > 5)

    first.send_signal(signal.SIGTERM)
    mesh.start("once")
    answers = await asyncio.gather(*calls)

    assert [result for result, _ in answers] == [f"n{number}" for number in range(40)]
    assert all(pending.call.attempt == 1 for _, pending in answers)
    assert Counter(lines_of(file)) == Counter(["warm", *(f"n{number}" for number in range(40))])
    assert await asyncio.to_thread(first.wait) == 0


async def test_a_run_whose_instance_is_killed_is_run_by_another(mesh: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    first = await mesh.serve("once")
    job = {"file": str(file), "name": "n", "seconds": "1.5"}
    calling = asyncio.create_task(mesh.call("once", job))
    await until(lambda: lines_of(file))

    first.kill()
    mesh.announce_death("once", 1)
    mesh.start("once")
    result, pending = await calling

    assert result == "n"
    assert pending.call.attempt == 2


async def test_a_run_that_may_not_be_repeated_fails_with_its_instance(mesh: BareMesh, tmp_path: Path) -> None:
    first = await mesh.serve("once")
    file = tmp_path / "runs"
    calling = asyncio.create_task(mesh.call("once", {"file": str(file), "name": "n", "seconds": "9"}, attempts=1))
    await until(lambda: lines_of(file))

    first.kill()
    mesh.announce_death("once", 1)

    with pytest.raises(errors.InstanceLost, match=r"t/once/1\.0\.0"):
        await calling


async def test_a_parked_call_is_not_doubled_by_the_death_of_another_instance(mesh: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    calling = asyncio.create_task(mesh.call("once", {"file": str(file), "name": "n"}))
    await until(lambda: mesh.lane.in_flight)
    await mesh.admin.flush()

    mesh.announce_death("once", 99)
    await mesh.serve("once")
    _, pending = await calling

    assert pending.call.attempt == 1
    assert lines_of(file) == ["n"]


async def test_calls_survive_a_restart_of_the_server(mesh: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    await mesh.serve("once")
    await mesh.call("once", {"file": str(file), "name": "warm"})
    calls = [
        asyncio.create_task(mesh.call("once", {"file": str(file), "name": f"n{number}", "seconds": "0.05"}))
        for number in range(10)
    ]
    await until(lambda: len(lines_of(file)) > 2)

    await mesh.server.kill()
    await mesh.server.start()
    await until(lambda: mesh.admin.is_connected)
    # A memory stream's messages are gone with the server; a launcher makes sure of streams and consumers.
    await mesh.make_consumer_again("once")
    answers = await asyncio.gather(*calls)

    assert [result for result, _ in answers] == [f"n{number}" for number in range(10)]


async def test_a_run_that_holds_the_gil_is_not_sent_twice(mesh: BareMesh) -> None:
    await mesh.serve("gil")
    await mesh.call("gil", 0.0)

    result, pending = await mesh.call("gil", 5.0, timeout_s=20)

    assert result == "held"
    assert pending.call.attempt == 1


async def test_a_run_over_its_timeout_is_told_at_once_and_the_next_call_works(mesh: BareMesh) -> None:
    await mesh.serve("brief")
    await mesh.call("brief", 0.0)

    with pytest.raises(errors.RunTimeout, match=r"longer than its timeout of 0\.3 s"):
        await mesh.call("brief", 1.0)

    result, _ = await mesh.call("brief", 0.0)
    assert result == "slept"


async def test_a_thread_that_does_not_come_back_ends_its_instance(mesh: BareMesh) -> None:
    instance = await mesh.serve("brief")

    with pytest.raises(errors.RunTimeout):
        await mesh.call("brief", 60.0)

    assert await asyncio.to_thread(instance.wait, 10) == 74


async def test_async_code_is_cancelled_when_its_caller_goes(mesh: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "said"
    await mesh.serve("waits")
    await mesh.call("waits", {"seconds": 0})
    calling = asyncio.create_task(mesh.call("waits", {"seconds": 30, "file": str(file)}))
    await until(lambda: mesh.lane.running == 1)

    calling.cancel()

    await until(file.exists)
    assert file.read_text() == "cancelled"


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("raise", errors.AlgorithmError, "KeyError: 'no such thing'"),
        ("typed", errors.AlgorithmError, "demo failure"),
        ("exit", errors.AlgorithmError, r"exit\(3\)"),
        ("lock", errors.BadOutput, "lock"),
        ("nan", errors.BadOutput, r"\$\.a\[0\] is nan"),
    ],
)
async def test_what_goes_wrong_in_a_run_is_told_and_the_instance_lives(
    mesh: BareMesh, kind: str, error: type[errors.MeshError], said: str
) -> None:
    await mesh.serve("mishap")

    with pytest.raises(error, match=said):
        await mesh.call("mishap", kind)

    assert (await mesh.call("mishap", "fine"))[0] == "fine"


@pytest.mark.parametrize("attribute", ["parent", "aparent"])
async def test_a_run_that_waits_for_itself_gives_its_only_slot_back(mesh: BareMesh, attribute: str) -> None:
    await mesh.serve(attribute)

    assert (await mesh.call(attribute, 8))[0] == 8


async def test_a_full_stream_refuses_at_once(mesh: BareMesh) -> None:
    calls = [asyncio.create_task(mesh.call("clean", "x")) for _ in range(101)]

    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)

    assert [type(task.exception()) for task in done] == [errors.Overloaded]
    assert len(waiting) == 100
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_no_call_is_lost_or_doubled_through_many_floods(mesh: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    await mesh.serve("once")
    mesh.start("once")
    names = [f"c{cycle}-{number}" for cycle in range(20) for number in range(12)]

    for cycle in range(20):
        batch = names[cycle * 12 : (cycle + 1) * 12]
        await asyncio.gather(*[mesh.call("once", {"file": str(file), "name": n, "seconds": "0.002"}) for n in batch])

    assert Counter(lines_of(file)) == Counter(names)


async def test_a_hop_without_a_route_token_is_refused_and_recorded(mesh: BareMesh) -> None:
    await mesh.serve("clean")
    await mesh.call("clean", "x")
    version = bare_algorithms.clean.version_id
    recorded: list[messages.RunEvent] = []
    heard: list[Message] = []
    await mesh.admin.subscribe(
        subjects.run_events(version), lambda message: recorded.extend(codec.decode_events(message.data).runs)
    )
    await mesh.admin.subscribe("reply.>", heard.append)
    call = messages.Call(run="r", root="r", root_caller="k~a", session="s", call="1", time_left_ms=5000)

    mesh.admin.publish(subjects.hop(version, "evil~forger"), codec.encode(call))

    event = await until(lambda: next((event for event in recorded if event.state == "refused"), None))
    assert event is not None
    assert (event.caller, event.error) == ("evil~forger", "permission_denied")
    assert heard == []


@pytest.mark.parametrize("session", ["s 0\r\n\r\nPUB stolen 2\r\nhi\r\nPUB rest", "a b", "", "s\n"])
async def test_a_caller_cannot_speak_through_the_instance_that_answers_it(mesh: BareMesh, session: str) -> None:
    await mesh.serve("clean")
    await mesh.call("clean", "x")
    version = bare_algorithms.clean.version_id
    heard: list[Message] = []
    await mesh.admin.subscribe("stolen", heard.append)
    payload = memoryview(b"x")
    call = messages.Call(
        run="r", root="r", root_caller="k~a", session=session, call="1", time_left_ms=5000, payload=payload
    )

    mesh.admin.publish(subjects.call(version, "k~a"), codec.encode(call))
    answer, _ = await mesh.call("clean", " A ")
    await mesh.admin.flush()

    assert answer == "a"
    assert heard == []
