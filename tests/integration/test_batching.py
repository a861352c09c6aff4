"""Single calls that real instances run together. The launcher's part is the test's."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import algomesh
from algomesh import errors
from algomesh_broker.server import NatsServer
from tests.conditions import until
from tests.integration import bare_algorithms
from tests.integration.bare import BareMesh

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[BareMesh]:
    async with BareMesh(nats_server, tmp_path) as bare:
        yield bare


@pytest_asyncio.fixture
async def together(mesh: BareMesh) -> BareMesh:
    """A mesh with one warm instance of `together`."""
    await mesh.serve("together")
    await mesh.until_ready("together")
    return mesh


def lines_of(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


async def hold(mesh: BareMesh, file: Path, seconds: float = 0.5, attribute: str = "together") -> asyncio.Task[Any]:
    """Keep the instance busy, so that what comes meanwhile gathers."""
    job = {"name": "hold", "file": str(file), "seconds": seconds}
    holding = asyncio.create_task(mesh.call(attribute, job))
    await until(lambda: lines_of(file))
    return holding


async def test_what_came_while_a_batch_ran_runs_together_and_each_gets_its_own(
    together: BareMesh, tmp_path: Path
) -> None:
    holding = await hold(together, tmp_path / "held")

    answers = await asyncio.gather(*[together.call("together", {"name": f"n{number}"}) for number in range(6)])

    assert [answer["name"] for answer, _ in answers] == [f"n{number}" for number in range(6)]
    assert {answer["size"] for answer, _ in answers} == {6}
    assert (await holding)[0]["size"] == 1


async def test_a_batch_has_at_most_so_many(together: BareMesh, tmp_path: Path) -> None:
    holding = await hold(together, tmp_path / "held", 0.3)

    answers = await asyncio.gather(*[together.call("together", {"name": f"n{number}"}) for number in range(60)])

    assert [answer["name"] for answer, _ in answers] == [f"n{number}" for number in range(60)]
    assert max(answer["size"] for answer, _ in answers) == 8
    await holding


async def test_one_caller_at_a_time_does_not_wait(together: BareMesh) -> None:
    alone = bare_algorithms.together.pipeline

    answers = [await together.travel(alone, {"name": f"n{number}"}) for number in range(20)]

    assert {answer["size"] for answer, _ in answers} == {1}
    assert sorted(tally.queued_ms for _, tally in answers)[10] < 10  # of wait_ms=50


async def test_one_bad_input_does_not_fail_its_neighbours(together: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    holding = await hold(together, tmp_path / "held")

    answers = await asyncio.gather(
        *[together.call("together", {"name": f"n{n}", "file": str(file), "bad": n == 2}) for n in range(4)],
        return_exceptions=True,
    )

    bad = answers.pop(2)
    assert isinstance(bad, errors.AlgorithmError)
    assert "one of 1 is bad" in str(bad)
    assert [answer[0]["name"] for answer in answers if isinstance(answer, tuple)] == ["n0", "n1", "n3"]
    assert sorted(lines_of(file)) == sorted([f"n{n}:{size}" for n in range(4) for size in (4, 1)])
    await holding


async def test_inputs_that_do_not_fit_and_outputs_that_cannot_travel_fail_alone(mesh: BareMesh) -> None:
    await mesh.serve("numbers")
    await mesh.call("numbers", 1)

    answers = await asyncio.gather(
        *[mesh.call("numbers", value) for value in (2, "three", 13, 5)], return_exceptions=True
    )

    assert isinstance(answers[1], errors.BadInput)
    assert isinstance(answers[2], errors.BadOutput)
    assert [answer[0] for answer in answers if isinstance(answer, tuple)] == [4, 25]


async def test_outputs_that_do_not_match_the_inputs_are_nobodys(mesh: BareMesh) -> None:
    await mesh.serve("miscounts")
    await mesh.call("miscounts", 2)

    answers = await asyncio.gather(*[mesh.call("miscounts", value) for value in range(6)], return_exceptions=True)

    assert [answer[0] for answer in answers if isinstance(answer, tuple)] == [0, 2, 4]
    assert [str(answer) for answer in answers[1::2]] == [str(answers[1])] * 3
    assert isinstance(answers[1], errors.BadOutput)


async def test_async_code_runs_together_too(mesh: BareMesh) -> None:
    await mesh.serve("Together")
    await mesh.call("Together", {"name": "warm"})
    holding = asyncio.create_task(mesh.call("Together", {"name": "hold", "seconds": 0.3}))
    await asyncio.sleep(0)

    answers = await asyncio.gather(*[mesh.call("Together", {"name": f"n{number}"}) for number in range(5)])

    assert [answer["name"] for answer, _ in answers] == [f"n{number}" for number in range(5)]
    assert max(answer["size"] for answer, _ in answers) >= 4
    await holding


async def test_when_nobody_wants_an_async_batch_it_is_cancelled(mesh: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "cancelled"
    await mesh.serve("Together")
    await mesh.call("Together", {"name": "warm"})

    with pytest.raises(errors.DeadlineExceeded):
        await mesh.call("Together", {"name": "a", "seconds": 9.0, "cancelled": str(file)}, timeout_s=0.3)

    await until(file.exists)
    assert (await mesh.call("Together", {"name": "b"}))[0]["name"] == "b"


async def test_a_caller_that_leaves_a_batch_costs_its_neighbours_nothing(together: BareMesh, tmp_path: Path) -> None:
    """The batch runs on for longer than a plain run that was given up would be let live."""
    file = tmp_path / "runs"
    holding = await hold(together, tmp_path / "held")
    jobs = [{"name": f"n{number}", "seconds": 3.0, "file": str(file)} for number in range(3)]
    calls = [asyncio.create_task(together.call("together", job)) for job in jobs]
    await holding
    await until(lambda: len(lines_of(file)) == 3)

    calls[1].cancel()
    first, _, last = await asyncio.gather(*calls, return_exceptions=True)

    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    assert (first[0]["name"], last[0]["name"]) == ("n0", "n2")
    assert together.instances[0].poll() is None


async def test_a_call_that_is_cancelled_before_its_batch_does_not_run(together: BareMesh, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    holding = await hold(together, tmp_path / "held", 0.6)
    jobs = [{"name": f"n{number}", "file": str(file)} for number in range(3)]
    calls = [asyncio.create_task(together.call("together", job, timeout_s=5)) for job in jobs]
    short = asyncio.create_task(together.call("together", {"name": "short", "file": str(file)}, timeout_s=0.2))

    with pytest.raises(errors.DeadlineExceeded):
        await short
    await asyncio.gather(holding, *calls)

    assert sorted(lines_of(file)) == ["n0:3", "n1:3", "n2:3"]


async def test_a_batch_that_takes_too_long_fails_for_all_and_ends_its_instance(mesh: BareMesh, tmp_path: Path) -> None:
    await mesh.serve("together", timeout_s=0.5)
    await mesh.call("together", {"name": "warm"})
    holding = await hold(mesh, tmp_path / "held", 0.2)

    answers = await asyncio.gather(
        *[mesh.call("together", {"name": f"n{number}", "seconds": 8.0}) for number in range(3)], return_exceptions=True
    )

    assert [type(answer) for answer in answers] == [errors.RunTimeout] * 3
    await until(lambda: mesh.instances[0].poll() is not None, timeout_s=10)
    await holding


async def test_the_time_of_a_batch_is_shared_by_its_runs(together: BareMesh, tmp_path: Path) -> None:
    alone = bare_algorithms.together.pipeline
    holding = await hold(together, tmp_path / "held", 0.4)

    answers = await asyncio.gather(
        *[together.travel(alone, {"name": f"n{number}", "seconds": 0.4}) for number in range(4)]
    )

    assert [tally.compute_ms for _, tally in answers] == pytest.approx([100.0] * 4, abs=40)
    assert min(tally.queued_ms for _, tally in answers) > 100
    await holding


async def test_a_batch_of_several_may_not_call(mesh: BareMesh) -> None:
    await mesh.serve("calls_together")
    await mesh.call("calls_together", 0.0)
    holding = asyncio.create_task(mesh.call("calls_together", 0.3))
    await asyncio.sleep(0)

    answers = await asyncio.gather(*[mesh.call("calls_together", 0.0) for _ in range(4)])

    assert "permission_denied" in {answer for answer, _ in answers}
    assert "called" not in {answer for answer, _ in answers}
    await holding


async def test_a_drained_instance_loses_nothing_of_what_gathers(together: BareMesh, tmp_path: Path) -> None:
    holding = await hold(together, tmp_path / "held", 0.3)
    calls = [asyncio.create_task(together.call("together", {"name": f"n{number}"})) for number in range(40)]
    await asyncio.sleep(0)

    together.instances[0].terminate()
    together.start("together")
    answers = await asyncio.gather(*calls)

    assert [answer["name"] for answer, _ in answers] == [f"n{number}" for number in range(40)]
    await holding


async def test_stages_of_a_pipeline_run_together(together: BareMesh, tmp_path: Path) -> None:
    await together.serve("name_of")
    await together.until_ready("name_of")
    holding = await hold(together, tmp_path / "held", 0.3)
    pipeline = bare_algorithms.together | bare_algorithms.name_of

    answers = await asyncio.gather(*[together.travel(pipeline, {"name": f"n{number}"}) for number in range(5)])

    assert [answer for answer, _ in answers] == [f"n{number}:5" for number in range(5)]
    await holding
    assert isinstance(pipeline, algomesh.Pipeline)
