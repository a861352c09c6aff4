"""The pre-warmer in a real mesh: chains of cold services, calls at a steady period, and a mesh that has lost it.

What is compared is measured here, in the same minute; where it is time, the best of three rounds counts.
"""

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from algomesh_services.demo_prewarm.figures import Periodic
from tests.conditions import until
from tests.integration.prewarm_chain import Beat, Mesh, mesh_of, names_of, pipeline_of, publish_chain
from tests.integration.up_fixtures import Up

pytestmark = [pytest.mark.integration, pytest.mark.alone]  # starts are timed against each other

ROUNDS = 3
NEW = ("new-a", "new-b", "new-c")
IDLE_S = 1.0
PERIOD_S = 6 * IDLE_S
PERIODS = 10
CHECKED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prewarm")


@pytest.fixture(scope="module")
def up(folder: Path) -> Iterator[Up]:
    """Torch is imported, which is once for a machine: all first starts would have it in them."""
    with Up(folder / "state") as up:
        publish_chain(up, folder, "beat", idle_s=IDLE_S, load_s=0.2)
        publish_chain(up, folder, "hand", idle_s=0.2, more=", prewarm=False")
        publish_chain(up, folder, "code", idle_s=IDLE_S)
        imported = up.run("call", "hand/torch", "null")
        assert imported.returncode == 0, imported.stderr
        yield up


@pytest.fixture(scope="module")
def beat(up: Up) -> Iterator[Beat]:
    """Goes on while the other tests run."""
    with Beat(up, "beat", PERIOD_S) as beat:
        yield beat


async def _started_by_hand(mesh: Mesh) -> float:
    took_s = await mesh.at_once("hand")
    await mesh.gone("hand")
    return took_s


@pytest.mark.usefixtures("beat")
async def test_the_first_call_of_a_pipeline_costs_hardly_more_than_its_starts_together(up: Up, folder: Path) -> None:
    ratios: list[float] = []
    async with mesh_of(up) as mesh:
        for owner in NEW:
            publish_chain(up, folder, owner, idle_s=IDLE_S)
            by_hand_s = await _started_by_hand(mesh)

            first = await mesh.call(pipeline_of(owner))

            ratios.append(first.took_s / by_hand_s)
            if ratios[-1] <= 1.3:
                break

    assert min(ratios) <= 1.3


@pytest.mark.usefixtures("beat")
async def test_code_that_calls_code_costs_one_cold_start_after_five_calls(up: Up) -> None:
    ratios: list[float] = []
    async with mesh_of(up) as mesh:
        calls = [await mesh.call("code/one") for _ in range(5)]
        cold_starts = await mesh.cold_starts(*calls)
        for _ in range(ROUNDS):
            await mesh.gone("code")
            one_s = (await mesh.call("hand/first")).took_s

            cold = await mesh.call("code/one")

            ratios.append(cold.took_s / one_s)
            if ratios[-1] <= 1.3:
                break
            await mesh.gone("hand")

    assert 1 <= cold_starts[0] <= 4
    assert min(ratios) <= 1.3


@pytest.mark.timeout(240)
async def test_calls_at_a_steady_period_meet_no_cold_start_and_hold_little(up: Up, beat: Beat) -> None:
    def is_enough() -> bool:
        return beat.count > PERIODS + CHECKED and (beat.in_a_row >= CHECKED or beat.count > PERIODS + ROUNDS * CHECKED)

    await until(is_enough, 200, every_s=0.1)

    side = beat.stop()

    found = Periodic.of(side, names_of("beat"), after=len(side.calls) - 1 - CHECKED, period_s=PERIOD_S)
    assert side.calls[0].cold_starts > 0  # so there was something to learn
    assert found.calls == CHECKED
    assert found.cold_starts == 0
    assert found.share < 0.25


def test_the_graph_leads_from_stage_to_stage_and_calls_were_spared_their_waits(up: Up) -> None:
    edges = {(edge["caller_of"], edge["algorithm"]): edge for edge in json.loads(up.run("graph", "--json").stdout)}
    savings = json.loads(up.run("prewarm", "savings", "--json").stdout)[0]
    calls = json.loads(up.run("prewarm", "savings", "--calls", "1000", "--json").stdout)

    for pair in itertools.pairwise(names_of("beat")):
        assert edges[pair]["probability"] > 0.9
        assert edges[pair]["count"] > 1
    assert {call["algorithm"] for call in calls} >= set(names_of("beat"))
    assert sum(savings["spared"].values()) >= len(calls) > 0
    assert savings["saved_s"] == pytest.approx(sum(call["seconds"] * call["count"] for call in calls), rel=0.01)


async def test_without_the_pre_warmer_instances_stay_for_their_idle_time(up: Up) -> None:
    prewarmer = up.pids["prewarmer"]
    async with mesh_of(up) as mesh:
        os.kill(prewarmer, signal.SIGSTOP)
        try:
            for owner in ("beat", *NEW, "code"):
                await mesh.gone(owner)

            give_up = time.monotonic() + 30
            while True:  # its last word counts for 5 s
                cold = await mesh.call(pipeline_of("beat"))
                called = time.monotonic()
                await mesh.gone("beat")
                gone_after_s = time.monotonic() - called
                if gone_after_s > 0.5 * IDLE_S or called > give_up:
                    break
            cold_starts = await mesh.cold_starts(cold)
        finally:
            os.kill(prewarmer, signal.SIGCONT)

    assert cold_starts == [4]
    assert 0.5 * IDLE_S < gone_after_s < IDLE_S + 2
